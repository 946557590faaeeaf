"""PPO: advantages against plain Python, policy_losses against golden values, and probe environments with known answers."""

from functools import partial
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from probes import Probe

from open_bench.algorithms import ppo as algorithm
from open_bench.algorithms.actor_critic import make_agent
from open_bench.algorithms.networks import Categorical, DiagonalGaussian
from open_bench.algorithms.policy_losses import DPO, LPO, PPO
from open_bench.config import PPOConfig
from open_bench.training.lifetime import make_lifetime

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


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(5, 3), (1, 2), (8, 1)]), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_plain_python(root_seed: int, shape: tuple[int, int], gamma: float, lam: float) -> None:
    generator = np.random.default_rng(root_seed)
    reward, value = generator.normal(size=shape), generator.normal(size=shape)
    last_value, done = generator.normal(size=shape[1]), generator.random(shape) < 0.3
    found = algorithm.advantages(*map(jnp.float32, (reward, value, last_value)), jnp.asarray(done), gamma, lam)
    np.testing.assert_allclose(found, plain_gae(reward, value, last_value, done, gamma, lam), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("policy_loss", "name"), [(PPO, "ppo"), (DPO, "dpo"), (LPO, "lpo")], ids=["ppo", "dpo", "lpo"])
def test_objectives_reproduce_golden(policy_loss: Any, name: str, golden: Any) -> None:
    data = np.load(golden / "policy_losses.npz")
    raw = data["advantage"]
    advantage = (raw - raw.mean()) / (raw.std() + 1e-8)
    theta = {"kernel_0": data["lpo_kernel_0"], "kernel_1": data["lpo_kernel_1"]} if name == "lpo" else {}
    loss, gradient = jax.value_and_grad(
        lambda log_prob: policy_loss(theta, log_prob, data["log_prob_old"], advantage, float(data["clip"]))
    )(jnp.asarray(data["log_prob"]))
    np.testing.assert_allclose(loss, data[f"{name}_loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, data[f"{name}_grad"], rtol=1e-5, atol=1e-7)


def test_lpo_at_zero_is_almost_ppo() -> None:
    key = jax.random.key(0)
    log_prob, old, advantage = 0.3 * jax.random.normal(key, (3, 64))
    zero = LPO.init(key)
    assert abs(LPO(zero, log_prob, old, advantage, 0.2) - PPO({}, log_prob, old, advantage, 0.2)) < 2e-4


def test_gradients_of_actor_and_critic_are_clipped_separately() -> None:
    gradients = {"actor": {"w": jnp.full(4, 10.0)}, "critic": {"w": jnp.full(4, 0.1)}}
    clipped = algorithm.clip_gradients(gradients, 0.5)
    assert optax.tree.norm(clipped["actor"]) == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_array_equal(clipped["critic"]["w"], gradients["critic"]["w"])


def test_loss_is_the_published_one() -> None:
    """The total loss of a minibatch, recomputed term by term in numpy."""
    agent = make_agent(Probe(length=3), SMALL)
    params = agent.init(jax.random.key(1))
    generator = np.random.default_rng(0)
    batch = algorithm.Batch(
        observation=jnp.eye(4)[generator.integers(4, size=16)],
        action=jnp.asarray(generator.integers(2, size=16)),
        log_prob=jnp.asarray(generator.normal(-0.7, 0.2, 16), jnp.float32),
        advantage=jnp.asarray(generator.normal(size=16), jnp.float32),
        target=jnp.asarray(generator.normal(size=16), jnp.float32),
        value=jnp.asarray(generator.normal(size=16), jnp.float32),
    )
    config = SMALL.model_copy(update={"entropy_coefficient": 0.01})
    total, activations = algorithm.loss(agent, config, partial(PPO, {}), params, batch)
    logits = np.asarray(agent.policy(params, batch.observation)[0].logits, np.float64)
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
        network: {"dense_00", "dense_01", "dense_02"} for network in ("actor", "critic")
    }


def test_distributions_match_their_definitions() -> None:
    mean, log_std = jnp.array([[0.5, -1.0]]), jnp.array([0.2, -0.3])
    gaussian = DiagonalGaussian(mean, log_std)
    action = jnp.array([[0.1, 0.4]])
    expected = jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum()
    assert gaussian.log_prob(action)[0] == pytest.approx(float(expected), rel=1e-5)
    assert gaussian.entropy()[0] == pytest.approx(float((0.5 * jnp.log(2 * jnp.pi * jnp.e) + log_std).sum()), rel=1e-5)
    categorical = Categorical(jnp.log(jnp.array([[0.25, 0.75]])))
    assert float(jnp.exp(categorical.log_prob(jnp.array([1])))[0]) == pytest.approx(0.75, rel=1e-5)
    assert categorical.entropy()[0] == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)), rel=1e-5)


def test_networks_start_as_published() -> None:
    agent = make_agent(Probe(length=3), PPOConfig(hidden=(32, 32)))
    params = agent.init(jax.random.key(0))
    hidden = np.asarray(params["actor"]["dense_01"]["kernel"])
    np.testing.assert_allclose(hidden @ hidden.T, 2.0 * np.eye(32), atol=1e-4)
    for network, gain in (("actor", 0.01), ("critic", 1.0)):
        head = np.asarray(params[network]["dense_02"]["kernel"])
        np.testing.assert_allclose(head.T @ head, gain**2 * np.eye(head.shape[1]), atol=1e-5)
        assert all(not np.any(layer["bias"]) for layer in params[network].values())


def train(environment: Probe, ppo: PPOConfig = SMALL, updates: int = 60) -> Any:
    lifetime = make_lifetime(
        environment, ppo, updates, lambda _: optax.with_extra_args_support(optax.adam(1e-2)), lambda _, *a: PPO({}, *a)
    )
    state = jax.jit(lifetime.init)(jax.random.key(0), {})
    state, _ = jax.jit(lifetime.run)(state, {}, updates)
    return make_agent(environment, ppo), state.learner.params, state


def values_of(agent: Any, params: Any, environment: Probe) -> np.ndarray:
    return np.asarray(agent.value(params, jnp.eye(environment.observation_size)[: environment.length])[0])


def test_probe_constant_reward() -> None:
    environment = Probe(length=1)
    agent, params, state = train(environment)
    np.testing.assert_allclose(values_of(agent, params, environment), [1.0], atol=0.05)
    assert float(state.record.final_sum / state.record.final_count) == 1.0


def test_probe_discounting() -> None:
    """Reward 1 at the end of three steps: the values are γ², γ and 1."""
    environment = Probe(length=3, reward=lambda step, sign, action: step == 2)
    agent, params, _ = train(environment)
    np.testing.assert_allclose(values_of(agent, params, environment), [0.81, 0.9, 1.0], atol=0.06)


def test_probe_observation_decides_reward() -> None:
    environment = Probe(length=1, random_observation=True, reward=lambda step, sign, action: sign)
    agent, params, _ = train(environment)
    found = np.asarray(agent.value(params, jnp.array([[1.0], [-1.0]]))[0])
    np.testing.assert_allclose(found, [1.0, -1.0], atol=0.1)


def test_probe_action_decides_reward() -> None:
    """The right action is 1 where the observation is +1, else 0."""
    environment = Probe(
        length=1, random_observation=True, reward=lambda step, sign, action: (action == 1) == (sign > 0)
    )
    agent, params, _ = train(environment)
    logits = agent.policy(params, jnp.array([[1.0], [-1.0]]))[0].logits
    probabilities = np.asarray(jax.nn.softmax(logits))
    assert probabilities[0, 1] > 0.95
    assert probabilities[1, 0] > 0.95


@pytest.mark.parametrize(("bootstrap", "expected"), [(False, 1.0), (True, 2.0)])
def test_probe_truncation(bootstrap: bool, expected: float) -> None:
    """Episodes cut after one step: a termination is worth 1; bootstrapping sees the endless sum 1/(1 − γ) = 2."""
    environment = Probe(length=1, truncate=True)
    ppo = SMALL.model_copy(update={"gamma": 0.5, "bootstrap_on_truncation": bootstrap})
    # The final observation is another than the first, so let both be the same to make the value recursive.
    environment._observe = lambda step, sign: jnp.array([1.0, 0.0])  # type: ignore[method-assign]
    agent, params, _ = train(environment, ppo, updates=100)
    assert values_of(agent, params, environment)[0] == pytest.approx(expected, abs=0.1)
