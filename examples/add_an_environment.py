"""Train on an environment of yours: python examples/add_an_environment.py

Half a minute on two cores.
"""

from typing import Any

import jax
import jax.numpy as jnp

import open_bench
from open_bench.environments import Discrete, Environment


class Hunt(Environment):
    """Catch what sits somewhere on a ring: a step left or right, -0.1 each, and 1 for catching it in time."""

    observation_size = 2  # sine and cosine of the angle to the prey
    action_space = Discrete(2)
    places, time_limit = 16, 32

    def observe(self, state: Any) -> jax.Array:
        hunter, prey, _ = state
        angle = 2 * jnp.pi * (prey - hunter) / self.places
        return jnp.stack([jnp.sin(angle), jnp.cos(angle)])

    def reset(self, key: jax.Array) -> Any:
        hunter, prey = jax.random.randint(key, (2,), 0, self.places)
        state = (hunter, prey, jnp.int32(0))
        return self.observe(state), state

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> Any:
        hunter, prey, time = state
        state = ((hunter + 2 * action - 1) % self.places, prey, time + 1)
        terminated = state[0] == prey
        truncated = ~terminated & (state[2] >= self.time_limit)
        last = self.observe(state)
        # The next episode begins by itself; the last observation of the old one goes along.
        done = terminated | truncated
        after = jax.tree.map(lambda fresh, now: jnp.where(done, fresh, now), self.reset(key), (last, state))
        return *after, jnp.where(terminated, 1.0, -0.1), terminated, truncated, {"final_observation": last}


def main(**request: Any) -> Any:
    """The scores, a row a seed; ``request`` is whatever ``open_bench.train`` takes."""
    scores = open_bench.train(
        "adam", Hunt, **{"num_seeds": 2, "results": "results/your-environment", "progress": True, **request}
    )
    print(scores[["seed", "final_return", "mean_return"]].to_string(index=False))
    return scores


if __name__ == "__main__":
    main()
