"""The random policy: uniform actions, no parameters, nothing learned."""

import jax
import jax.numpy as jnp
import numpy as np
from probes import Probe
from tiny import learning

from open_bench.algorithms.random_policy import RandomConfig, RandomPolicy
from open_bench.environments.base import Continuous
from open_bench.training.lifetime import make_lifetime


def test_actions_are_uniform() -> None:
    policy = RandomPolicy(RandomConfig(num_envs=2, num_steps=2), Probe()).policy({}, jnp.zeros((4000, 2)))
    actions = np.asarray(policy.sample(jax.random.key(0)))
    assert abs(actions.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)


def test_continuous_actions_fill_the_box() -> None:
    class Box(Probe):
        action_space = Continuous(3, -2.0, 1.0)  # type: ignore[assignment]

    policy = RandomPolicy(RandomConfig(), Box()).policy({}, jnp.zeros((4000, 2)))
    actions = np.asarray(policy.sample(jax.random.key(0)))
    assert actions.shape == (4000, 3)
    assert -2.0 <= actions.min() < -1.9
    assert 0.9 < actions.max() <= 1.0
    np.testing.assert_allclose(actions.mean(0), -0.5, atol=5 * 3 / np.sqrt(12 * 4000))


def test_its_return_is_known_and_it_never_learns() -> None:
    """Every second guess is right, from the first update to the last."""
    environment = Probe(
        length=1, random_observation=True, reward=lambda step, sign, action: (action == 1) == (sign > 0)
    )
    algorithm = RandomPolicy(RandomConfig(num_envs=32, num_steps=4), environment)
    lifetime = make_lifetime(algorithm, 50, lambda inputs: learning())
    state, _ = jax.jit(lifetime.run)(jax.jit(lifetime.init)(jax.random.key(0), {}), {}, 50)
    assert state.agent.params == {}
    sums = state.record.metrics["mean_return"]
    assert abs(float(sums.total / sums.known) - 0.5) < 5 * 0.5 / np.sqrt(50 * 32)
    assert bool(state.agent.finite)
    assert lifetime.metrics == ("final_return", "mean_return")
