"""Copies stepped together: episode statistics, normalization and restarts against plain Python."""

from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from probes import Probe

from open_bench.environments.base import restart_finished
from open_bench.environments.wrappers import (
    EpisodeStatistics,
    VectorEnvironment,
    episode_return,
    initial_moments,
    update_moments,
    update_statistics,
)

# --- episode statistics ---------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 4), st.floats(0, 1))
def test_statistics_equal_plain_bookkeeping(root_seed: int, steps: int, envs: int, often: float) -> None:
    generator = np.random.default_rng(root_seed)
    rewards = generator.integers(-5, 6, (steps, envs)).astype(np.float32)  # integers: sums are exact
    dones = generator.random((steps, envs)) < often
    state = EpisodeStatistics(jnp.zeros(envs), jnp.zeros(envs), jnp.zeros(envs, bool))
    running, last = [0.0] * envs, [None] * envs
    for reward, done in zip(rewards, dones, strict=True):
        state = update_statistics(state, jnp.asarray(reward), jnp.asarray(done))
        for env in range(envs):
            running[env] += float(reward[env])
            if done[env]:
                last[env], running[env] = running[env], 0.0  # type: ignore[call-overload]
        finished = [value for value in last if value is not None]
        found = float(episode_return(state))
        if finished:
            assert found == pytest.approx(sum(finished) / len(finished), rel=1e-6)
        else:
            assert np.isnan(found)
    np.testing.assert_array_equal(state.running, running)


def test_copies_that_never_finished_do_not_count() -> None:
    state = EpisodeStatistics(jnp.array([9.0, 9.0]), jnp.array([4.0, 0.0]), jnp.array([True, False]))
    assert float(episode_return(state)) == 4.0


# --- normalization --------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 20), min_size=1, max_size=6), st.floats(-3, 3), st.floats(0.1, 5))
def test_moments_equal_those_of_all_data(root_seed: int, sizes: list[int], shift: float, scale: float) -> None:
    """Chan's merge of a prior (mean 0, variance 1, worth 1e-4 samples) with every batch is one big weighted mean."""
    generator = np.random.default_rng(root_seed)
    batches = [(shift + scale * generator.normal(size=(n, 3))).astype(np.float32) for n in sizes]
    moments = initial_moments((3,))
    for batch in batches:
        moments = update_moments(moments, jnp.asarray(batch))
    data = np.concatenate(batches).astype(np.float64)
    count = 1e-4 + len(data)
    mean = data.sum(0) / count
    variance = (1e-4 * (1.0 + mean**2) + ((data - mean) ** 2).sum(0)) / count
    np.testing.assert_allclose(moments.count, count, rtol=1e-6)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moments.variance, variance, rtol=2e-3, atol=1e-4)


def test_moments_of_binary_observations() -> None:
    moments = update_moments(initial_moments((2,)), jnp.array([[True, False], [True, True]]))
    np.testing.assert_allclose(moments.mean, [1.0, 0.5], atol=1e-4)


class Plain:
    """Running moments of everything seen, kept as a list."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def add(self, batch: Any) -> tuple[Any, Any]:
        self.seen += list(np.asarray(batch, np.float64))
        data, count = np.stack(self.seen), 1e-4 + len(self.seen)
        mean = data.sum(0) / count
        return mean, (1e-4 * (1.0 + mean**2) + ((data - mean) ** 2).sum(0)) / count


def test_normalization_equals_a_plain_loop() -> None:
    """Observations by all observations so far; rewards by the discounted return so far, reset at an episode's end."""
    envs, steps, gamma = 3, 12, 0.9
    inner = Probe(length=4, random_observation=True, reward=lambda step, sign, action: sign * (2.0 + step) + action)
    vector = VectorEnvironment(inner, envs, normalize_observations=True, normalize_rewards=True, gamma=gamma)
    bare = VectorEnvironment(inner, envs)
    keys = jax.random.split(jax.random.key(2), steps)
    observation, state = vector.reset(jax.random.key(1))
    raw, bare_state = bare.reset(jax.random.key(1))
    seen, returns = Plain(), Plain()
    mean, variance = seen.add(raw)
    np.testing.assert_allclose(observation, (raw - mean) / np.sqrt(variance + 1e-8), rtol=1e-4, atol=1e-4)
    discounted, running, last = np.zeros(envs), np.zeros(envs), np.zeros(envs)
    step, bare_step = jax.jit(vector.step), jax.jit(bare.step)
    for key in keys:
        action = jax.random.randint(key, (envs,), 0, 2)
        transition, state = step(key, state, action)
        expected, bare_state = bare_step(key, bare_state, action)
        mean, variance = seen.add(expected.observation)
        scale = np.sqrt(variance + 1e-8)
        np.testing.assert_allclose(transition.observation, (expected.observation - mean) / scale, rtol=1e-4, atol=1e-4)
        final = (expected.final_observation - mean) / scale
        np.testing.assert_allclose(transition.final_observation, final, rtol=1e-4, atol=1e-4)
        discounted = discounted * gamma + np.asarray(expected.reward)
        _, spread = returns.add(discounted)
        np.testing.assert_allclose(transition.reward, expected.reward / np.sqrt(spread + 1e-8), rtol=1e-4, atol=1e-4)
        discounted = np.where(expected.terminated | expected.truncated, 0.0, discounted)
        # Returns are reported in the task's own units.
        running = running + np.asarray(expected.reward)
        done = np.asarray(expected.terminated | expected.truncated)
        last, running = np.where(done, running, last), np.where(done, 0.0, running)
        np.testing.assert_allclose(state.statistics.last, last, rtol=1e-5)
        np.testing.assert_allclose(state.statistics.running, running, rtol=1e-5, atol=1e-5)
    assert np.asarray(state.statistics.finished).all()
    assert (last != 0).any()


def draw_place(key: jax.Array) -> dict[str, jax.Array]:
    return {"place": jax.random.normal(key, (2,)), "key": key}


restart_some = jax.jit(lambda *arguments: restart_finished(draw_place, *arguments), static_argnums=3)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=7, max_size=7), st.sampled_from([1, 3, 7]))
def test_finished_copies_alone_begin_again(done: list[bool], at_once: int) -> None:
    keys = jax.random.split(jax.random.key(3), 7)
    current = {"place": jnp.arange(14.0).reshape(7, 2), "key": jax.random.split(jax.random.key(4), 7)}
    found = restart_some(keys, jnp.array(done), current, at_once)
    fresh = jax.vmap(draw_place)(keys)
    for name in current:
        expected = [(fresh if over else current)[name][i] for i, over in enumerate(done)]
        assert (found[name] == jnp.stack(expected)).all()


def test_copies_are_stepped_as_the_environment_says() -> None:
    class Together(Probe):
        def step_copies(self, keys: Any, state: Any, action: Any) -> Any:
            observation, state, reward, *rest = super().step_copies(keys, state, action)
            return (observation, state, reward + 100.0, *rest)

    rewards = []
    for kind in (Probe, Together):
        copies = VectorEnvironment(kind(), 3)
        _, state = copies.reset(jax.random.key(0))
        rewards.append(copies.step(jax.random.key(1), state, jnp.zeros(3, jnp.int32))[0].reward)
    np.testing.assert_array_equal(rewards[1], rewards[0] + 100.0)


def test_no_more_episodes_are_begun_than_are_over() -> None:
    drawn: list[int] = []

    def reset(key: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: drawn.append(1))
        return jax.random.normal(key)

    keys, done = jax.random.split(jax.random.key(0), 8), jnp.arange(8) >= 5
    restart_finished(reset, keys, done, jnp.zeros(8), at_once=1)
    jax.effects_barrier()
    assert len(drawn) == 3
