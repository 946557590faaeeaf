"""PPO: advantages against plain Python, the loss term by term, and probe environments with known answers."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from probes import Probe, signs
from tiny import lifetime_of

from open_bench.algorithms.policy_losses import PPO as PPO_LOSS
from open_bench.algorithms.ppo import PPO, Batch, PPOConfig, advantages

SMALL = PPOConfig(
    num_envs=8, num_steps=8, update_epochs=4, num_minibatches=4, hidden=(16, 16), entropy_coefficient=0.0, gamma=0.9
)


def plain_gae(reward: Any, value: Any, last_value: Any, done: Any, gamma: float, lam: float) -> np.ndarray:
    """Generalized advantage estimation, one environment and step at a time."""
    steps, envs = reward.shape
    result = np.zeros((steps, envs))
    for env in range(envs):
        advantage, next_value = 0.0, last_value[env]
        for t in reversed(range(steps)):
            alive = 0.0 if done[t, env] else 1.0
            delta = reward[t, env] + gamma * next_value * alive - value[t, env]
            advantage = delta + gamma * lam * alive * advantage
            result[t, env] = advantage
            next_value = value[t, env]
    return result


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(5, 3), (1, 2), (8, 1)]), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_plain_python(seed: int, shape: tuple[int, int], gamma: float, lam: float) -> None:
    generator = np.random.default_rng(seed)
    reward, value = generator.normal(size=shape), generator.normal(size=shape)
    last_value, done = generator.normal(size=shape[1]), generator.random(shape) < 0.3
    found = advantages(*map(jnp.float32, (reward, value, last_value)), jnp.asarray(done), gamma, lam)
    np.testing.assert_allclose(found, plain_gae(reward, value, last_value, done, gamma, lam), rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_loss_is_the_published_one() -> None:
    """The total loss of a minibatch, recomputed term by term in numpy."""
    agent = PPO(SMALL.model_copy(update={"entropy_coefficient": 0.01}), Probe(length=3))
    params = agent.init_params(jax.random.key(1))
    generator = np.random.default_rng(0)
    batch = Batch(
        observation=jnp.eye(4)[generator.integers(4, size=16)],
        action=jnp.asarray(generator.integers(2, size=16)),
        log_prob=jnp.asarray(generator.normal(-0.7, 0.2, 16), jnp.float32),
        advantage=jnp.asarray(generator.normal(size=16), jnp.float32),
        target=jnp.asarray(generator.normal(size=16), jnp.float32),
        value=jnp.asarray(generator.normal(size=16), jnp.float32),
    )
    total, activations = agent.loss(params, batch, partial(PPO_LOSS, {}))
    logits = np.asarray(agent.policy(params, batch.observation).logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    a = np.asarray(batch.advantage, np.float64)
    a = (a - a.mean()) / (a.std() + 1e-8)
    ratio = np.exp(log_p[np.arange(16), batch.action] - batch.log_prob)
    policy = -np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a).mean()
    value = np.asarray(agent.value(params, batch.observation)[0], np.float64)
    clipped = batch.value + np.clip(value - batch.value, -0.2, 0.2)
    critic = 0.5 * np.maximum((value - batch.target) ** 2, (clipped - batch.target) ** 2).mean()
    entropy = -(np.exp(log_p) * log_p).sum(1).mean()
    assert float(total) == pytest.approx(policy + 0.5 * critic - 0.01 * entropy, rel=1e-5)
    assert {name: set(layers) for name, layers in activations.items()} == {
        network: {"layer_00_dense", "layer_01_dense", "layer_02_dense"} for network in ("actor", "critic")
    }


def test_actor_and_critic_have_keys_and_heads_of_their_own() -> None:
    agent = PPO(PPOConfig(hidden=(32, 32)), Probe(length=3))
    params = agent.init_params(jax.random.key(0))
    assert not np.array_equal(*(params[name]["layer_00_dense"]["kernel"] for name in ("actor", "critic")))
    for network, gain in (("actor", 0.01), ("critic", 1.0)):
        head = np.asarray(params[network]["layer_02_dense"]["kernel"])
        np.testing.assert_allclose(head.T @ head, gain**2 * np.eye(head.shape[1]), atol=1e-5)


# --- probes -----------------------------------------------------------------------------------------------------------


@cache
def program(probe: Callable[[Any], Probe], config: PPOConfig, updates: int) -> Callable[[Any], Any]:
    """What the probe is made with → the trained parameters and what the last update shows; it compiles once."""

    def live(given: Any) -> Any:
        lifetime = lifetime_of(probe(given), config, updates, optax.adam(1e-2))
        state, progress = lifetime.run(lifetime.init(jax.random.key(0), {}), {}, jnp.int32(updates))
        return state.agent.params, progress

    return jax.jit(live)


def train(
    probe: Callable[[Any], Probe], given: Any = None, config: PPOConfig = SMALL, updates: int = 60
) -> tuple[PPO, Any, Any]:
    return PPO(config, probe(given)), *program(probe, config, updates)(given)


def values_of(agent: PPO, params: Any, length: int) -> np.ndarray:
    return np.asarray(agent.value(params, jnp.eye(length + 1)[:length])[0])


@pytest.mark.slow
def test_probe_constant_reward() -> None:
    agent, params, progress = train(lambda _: Probe(length=1))
    np.testing.assert_allclose(values_of(agent, params, 1), [1.0], atol=0.05)
    assert float(progress.episode_return) == 1.0


@pytest.mark.slow
def test_probe_discounting() -> None:
    """Reward 1 at the end of three steps: the values are γ², γ and 1."""
    agent, params, _ = train(lambda _: Probe(length=3, reward=lambda step, sign, action: step == 2))
    np.testing.assert_allclose(values_of(agent, params, 3), [0.81, 0.9, 1.0], atol=0.06)


@pytest.mark.slow
def test_probe_observation_decides_reward() -> None:
    agent, params, _ = train(signs, np.float32([1, 0]))
    found = np.asarray(agent.value(params, jnp.array([[1.0], [-1.0]]))[0])
    np.testing.assert_allclose(found, [1.0, -1.0], atol=0.1)


def test_probe_action_decides_reward() -> None:
    """The right action is 1 where the observation is +1, else 0."""
    agent, params, _ = train(signs, np.float32([0, 1]))
    logits = agent.policy(params, jnp.array([[1.0], [-1.0]])).logits
    probabilities = np.asarray(jax.nn.softmax(logits))
    assert probabilities[0, 1] > 0.95
    assert probabilities[1, 0] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("bootstrap", "expected"), [(False, 1.0), (True, 2.0)])
def test_probe_truncation(bootstrap: bool, expected: float) -> None:
    """Episodes cut after one step: a termination is worth 1; bootstrapping sees the endless sum 1/(1 − γ) = 2."""

    class Same(Probe):
        """The final observation is the first again, which makes the value recursive."""

        def _observe(self, step: Any, sign: Any) -> Any:
            return jnp.array([1.0, 0.0])

    config = SMALL.model_copy(update={"gamma": 0.5, "bootstrap_on_truncation": bootstrap})
    agent, params, _ = train(lambda _: Same(length=1, truncate=True), None, config, updates=100)
    assert values_of(agent, params, 1)[0] == pytest.approx(expected, abs=0.1)
