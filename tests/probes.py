"""Probe environments: tasks so small that the right values and policies are known."""

from typing import Any

import jax
import jax.numpy as jnp

from open_bench.environments.base import Discrete, Environment


class Probe(Environment):
    """Walk through ``length`` observations; the state counts steps.

    Args:
        length: steps in an episode.
        reward: ``(step, action) → reward``.
        truncate: end by a time limit instead of a termination.
        never_ends: no episode ever finishes.
        random_observation: the observation is +1 or −1, drawn at reset, instead of the step number.
    """

    action_space = Discrete(2)

    def __init__(self, length: int = 1, reward: Any = None, truncate: bool = False, never_ends: bool = False,
                 random_observation: bool = False):  # fmt: skip
        self.length, self.truncate, self.never_ends = length, truncate, never_ends
        self.reward = reward or (lambda step, sign, action: 1.0)
        self.random_observation = random_observation
        self.observation_size = 1 if random_observation else length + 1

    def _observe(self, step: jax.Array, sign: jax.Array) -> jax.Array:
        return sign[None] if self.random_observation else jax.nn.one_hot(step, self.length + 1)

    def reset(self, key: jax.Array) -> tuple[jax.Array, Any]:
        sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        state = (jnp.int32(0), sign)
        return self._observe(*state), state

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> Any:
        step, sign = state
        reward = jnp.float32(self.reward(step, sign, action))
        after = step + 1
        done = (after >= self.length) & (not self.never_ends)
        final = self._observe(jnp.minimum(after, self.length), sign)
        first, fresh = self.reset(key)
        state = jax.tree.map(lambda a, b: jnp.where(done, a, b), fresh, (after, sign))
        observation = jnp.where(done, first, final)
        truncated = done & self.truncate
        return observation, state, reward, done & ~truncated, truncated, {"final_observation": final}


def signs(worth: Any) -> Probe:
    """One step that shows a sign: ``worth[0]`` is what the sign itself gives, ``worth[1]`` the action that fits it.

    The worth may be traced, so that one program serves several probes.
    """
    fits = lambda sign, action: (action == 1) == (sign > 0)
    reward = lambda step, sign, action: worth[0] * sign + worth[1] * fits(sign, action)
    return Probe(length=1, random_observation=True, reward=reward)
