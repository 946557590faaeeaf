"""PQN: λ-returns, ε and the loss against plain Python, the greedy policy's returns, and probes with known answers."""

import functools
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from probes import Probe, signs
from tiny import TINY_PQN, learning, lifetime_of, run_jitted

from open_bench.algorithms.networks import EpsilonGreedy
from open_bench.algorithms.pqn import GREEDY_FROM, PQN, Batch, PQNConfig, lambda_returns
from open_bench.environments.base import Continuous
from open_bench.errors import UserError

SMALL = PQNConfig(num_envs=8, num_steps=8, num_epochs=4, num_minibatches=4, hidden=(16, 16), gamma=0.9, greedy_envs=4)


# --- arithmetic -------------------------------------------------------------------------------------------------------


def plain_lambda_return(
    t: int, reward: Any, value: Any, last_value: float, done: Any, gamma: float, lam: float
) -> float:
    """The definition, one environment: G_t by recursion, the last one bootstrapped."""
    if done[t]:
        return reward[t]
    if t == len(reward) - 1:
        return reward[t] + gamma * last_value
    following = plain_lambda_return(t + 1, reward, value, last_value, done, gamma, lam)
    return reward[t] + gamma * (lam * following + (1 - lam) * value[t + 1])


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(5, 3), (1, 2), (8, 1)]), st.floats(0, 1), st.floats(0, 1))
def test_lambda_returns_equal_plain_python(seed: int, shape: tuple[int, int], gamma: float, lam: float) -> None:
    generator = np.random.default_rng(seed)
    reward, value = generator.normal(size=shape), generator.normal(size=shape)
    last_value, done = generator.normal(size=shape[1]), generator.random(shape) < 0.3
    found = lambda_returns(*map(jnp.float32, (reward, value, last_value)), jnp.asarray(done), gamma, lam)
    expected = [
        [
            plain_lambda_return(t, reward[:, env], value[:, env], last_value[env], done[:, env], gamma, lam)
            for env in range(shape[1])
        ]
        for t in range(shape[0])
    ]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 9]))
def test_with_lambda_one_they_are_discounted_sums_and_with_zero_one_step_targets(seed: int, steps: int) -> None:
    generator = np.random.default_rng(seed)
    reward, value = jnp.float32(generator.normal(size=(2, steps, 1)))
    nothing, last = jnp.zeros((steps, 1), bool), jnp.float32([generator.normal()])
    sums = lambda_returns(reward, value, last, nothing, 0.9, 1.0)[:, 0]
    discounts = 0.9 ** np.arange(steps)
    expected = float(discounts @ reward[:, 0] + 0.9**steps * last[0])
    assert float(sums[0]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    one_step = lambda_returns(reward, value, last, nothing, 0.9, 0.0)[:, 0]
    successors = np.append(value[1:, 0], last)
    np.testing.assert_allclose(one_step, reward[:, 0] + 0.9 * successors, rtol=1e-4, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1), st.floats(0, 1))
def test_epsilon_equals_plain_python(start: float, finish: float, decay: float, fraction: float) -> None:
    config = PQNConfig(eps_start=start, eps_finish=finish, eps_decay=decay)
    expected = finish if fraction >= decay else start + (finish - start) * fraction / decay
    assert float(PQN(config, Probe()).epsilon(jnp.float32(fraction))) == pytest.approx(expected, abs=1e-5)


def test_loss_is_half_the_mean_squared_error_of_the_chosen_actions() -> None:
    agent = PQN(SMALL, Probe(length=3))
    params = agent.init_params(jax.random.key(1))
    generator = np.random.default_rng(0)
    batch = Batch(
        observation=jnp.eye(4)[generator.integers(4, size=16)],
        action=jnp.asarray(generator.integers(2, size=16)),
        target=jnp.asarray(generator.normal(size=16), jnp.float32),
    )
    loss, activations = agent.loss(params, batch)
    values = np.asarray(agent.values(params, batch.observation)[0], np.float64)
    errors = values[np.arange(16), batch.action] - np.asarray(batch.target)
    assert float(loss) == pytest.approx(0.5 * (errors**2).mean(), rel=1e-5)
    assert set(activations) == {"q"}
    assert set(activations["q"]) == set(params["q"])  # a norm's too


def test_its_network_is_normalized_before_every_hidden_non_linearity() -> None:
    params = PQN(SMALL, Probe()).init_params(jax.random.key(0))
    names = ["layer_00_dense", "layer_00_norm", "layer_01_dense", "layer_01_norm", "layer_02_dense"]
    assert {network: sorted(layers) for network, layers in params.items()} == {"q": names}
    head = np.asarray(params["q"]["layer_02_dense"]["kernel"])
    np.testing.assert_allclose(head.T @ head, np.eye(2), atol=1e-5)


@pytest.mark.slow
def test_targets_are_of_the_values_at_collection_and_of_scaled_rewards() -> None:
    """One rollout by hand: λ-returns of max Q of what was observed, whatever was done."""
    config = SMALL.model_copy(update={"reward_scale": 0.5})
    agent = PQN(config, Probe(length=3, reward=lambda step, sign, action: 1.0 + step))
    state = agent.init(jax.random.key(0), jax.random.key(1), learning())
    rollout, last, _ = agent.collect(state.params, state, jnp.float32(1.0), jax.random.key(2))
    batch = agent.make_batch(state.params, rollout, last)
    best = lambda observation: np.asarray(agent.values(state.params, observation)[0].max(-1))
    value, last_value = best(rollout.observation.reshape(-1, 4)).reshape(8, 8), best(last)
    for env in range(8):
        done = np.asarray(rollout.terminated)[:, env]
        reward = 0.5 * np.asarray(rollout.reward)[:, env]
        expected = [
            plain_lambda_return(t, reward, value[:, env], last_value[env], done, 0.9, config.td_lambda)
            for t in range(8)
        ]
        np.testing.assert_allclose(batch.target.reshape(8, 8)[:, env], expected, rtol=1e-4, atol=1e-5)


def test_a_trained_agent_acts_as_it_did_at_the_end() -> None:
    agent = PQN(SMALL, Probe())
    policy = agent.policy(agent.init_params(jax.random.key(0)), jnp.eye(2))
    assert isinstance(policy, EpsilonGreedy)
    assert policy.epsilon == SMALL.eps_finish == 0.05


def test_continuous_actions_are_refused() -> None:
    class Box(Probe):
        action_space = Continuous(2)  # type: ignore[assignment]

    for make in (lambda: PQN(SMALL, Box()), lambda: PQN.check(Box(), "mine")):
        with pytest.raises(UserError, match=r"has continuous actions, and pqn .*--algorithm ppo"):
            make()


# --- probes -----------------------------------------------------------------------------------------------------------


@functools.cache
def program(probe: Callable[[Any], Probe], config: PQNConfig, updates: int) -> Callable[[Any], Any]:
    """What the probe is made with → the end of a lifetime; it compiles once."""
    rate = optax.linear_schedule(1e-2, 0.0, updates * config.num_epochs * config.num_minibatches)

    def live(given: Any) -> Any:
        lifetime = lifetime_of(probe(given), config, updates, optax.adam(rate))
        return lifetime.run(lifetime.init(jax.random.key(0), {}), {}, jnp.int32(updates))[0]

    return jax.jit(live)


def train(
    probe: Callable[[Any], Probe], given: Any = None, config: PQNConfig = SMALL, updates: int = 60
) -> tuple[PQN, Any, Any]:
    state = jax.device_get(program(probe, config, updates)(given))
    return PQN(config, probe(given)), state.agent.params, state


def constant(truncate: Any) -> Probe:
    """One step that is worth 1."""
    return Probe(length=1, truncate=truncate)


def values_of(agent: PQN, params: Any, length: int) -> np.ndarray:
    return np.asarray(agent.values(params, jnp.eye(length + 1)[:length])[0])


@pytest.mark.slow
def test_probe_constant_reward() -> None:
    agent, params, state = train(constant, False)
    np.testing.assert_allclose(values_of(agent, params, 1), [[1.0, 1.0]], atol=0.05)
    assert float(state.record.metrics["final_return"].total / state.record.metrics["final_return"].known) == 1.0


@pytest.mark.slow
def test_probe_discounting() -> None:
    """Reward 1 at the end of three steps: the values are γ², γ and 1, whatever is done."""
    agent, params, _ = train(lambda _: Probe(length=3, reward=lambda step, sign, action: step == 2))
    expected = np.repeat([[0.81], [0.9], [1.0]], 2, axis=1)
    np.testing.assert_allclose(values_of(agent, params, 3), expected, atol=0.08)


@pytest.mark.slow
def test_probe_observation_decides_reward() -> None:
    agent, params, _ = train(signs, np.float32([1, 0]))
    found = np.asarray(agent.values(params, jnp.array([[1.0], [-1.0]]))[0])
    np.testing.assert_allclose(found, [[1.0, 1.0], [-1.0, -1.0]], atol=0.1)


def test_probe_action_decides_reward() -> None:
    """The right action is 1 where the observation is +1, else 0: all four values are known, and the greedy return."""
    agent, params, state = train(signs, np.float32([0, 1]))
    found = np.asarray(agent.values(params, jnp.array([[1.0], [-1.0]]))[0])
    np.testing.assert_allclose(found, [[0.0, 1.0], [1.0, 0.0]], atol=0.15)
    greedy = state.record.metrics["greedy_return"]
    assert float(greedy.total / greedy.known) == 1.0  # never explores
    explored = state.record.metrics["mean_return"]
    assert float(explored.total / explored.known) < 1.0


def test_probe_truncation_is_a_termination() -> None:
    """The published protocol: nothing is expected after a time limit."""
    agent, params, _ = train(constant, True)
    np.testing.assert_allclose(values_of(agent, params, 1), [[1.0, 1.0]], atol=0.05)


@pytest.mark.slow
def test_a_fixed_epsilon_of_one_is_the_random_policy() -> None:
    """Half of the actions are right then, however much is known."""
    config = SMALL.model_copy(update={"eps_finish": 1.0, "num_envs": 64})
    _, _, state = train(signs, np.float32([0, 1]), config, updates=40)
    mean = state.record.metrics["mean_return"]
    assert float(mean.total / mean.known) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(40 * 64))


def test_the_greedy_policy_acts_on_the_lifetimes_own_level() -> None:
    """Its copies are others, and what all copies share is the same."""
    from open_bench.environments.registry import load_environment, make_environment

    agent = PQN(SMALL, make_environment(load_environment("gridworld/rand_all")))
    state = jax.jit(lambda key: agent.init(key, key, learning()))(jax.random.key(3))
    trained, greedy = state.environment.environment.level, state.extra.environment.environment.level
    for mine, own in zip(jax.tree.leaves(trained), jax.tree.leaves(greedy), strict=True):
        np.testing.assert_array_equal(mine[0], own[0])
    another = jax.jit(lambda key: agent.init(key, key, learning()))(jax.random.key(4))
    levels = [np.concatenate([np.ravel(leaf[0]) for leaf in jax.tree.leaves(each)]) for each in (
        trained, another.environment.environment.level
    )]  # fmt: skip
    assert not np.array_equal(*levels)  # so that it could have been another


@pytest.mark.slow
def test_the_greedy_policy_is_measured_late_and_changes_nothing() -> None:
    """Without its copies the agent learns the same, bit for bit, and there is no such number."""
    environment = Probe(length=3, reward=lambda step, sign, action: action)
    lifetime = lifetime_of(environment, TINY_PQN, updates=20)
    run, seen = jax.jit(lifetime.run), []
    state = jax.jit(lifetime.init)(jax.random.key(0), {})
    for _ in range(20):
        state, _ = run(state, {}, 1)
        seen.append(bool(state.agent.extra.environment.statistics.finished.any()))
    first = next(update for update in range(20) if update / 19 >= GREEDY_FROM)
    assert seen == [update >= first for update in range(20)]
    without = TINY_PQN.model_copy(update={"greedy_envs": 0})
    other = run_jitted(lifetime_of(environment, without, updates=20))
    jax.tree.map(np.testing.assert_array_equal, other.agent.params, jax.device_get(state.agent.params))
    assert int(other.record.metrics["greedy_return"].known) == 0
    assert int(state.record.metrics["greedy_return"].known) == 1  # the final window of 20 updates is one
