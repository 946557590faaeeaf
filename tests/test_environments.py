"""Environments: the contract of every adapter, and episode statistics and normalization against plain Python."""

import urllib.request
from functools import cache
from typing import Any

import gymnax
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from probes import Probe

from open_bench import config
from open_bench.environments import make
from open_bench.environments.base import Continuous, Discrete, Environment, restart_finished
from open_bench.environments.registry import load_environment, make_environment
from open_bench.environments.wrappers import (
    EpisodeStatistics,
    VectorEnvironment,
    episode_return,
    initial_moments,
    update_moments,
    update_statistics,
)
from open_bench.errors import UserError

# Craftax is optional: tests/test_craftax.py has its contract.
SHIPPED = tuple(name for name in config.shipped("environments") if load_environment(name).family != "craftax")
CLASSIC = tuple(name for name in SHIPPED if load_environment(name).family in {"classic", "bsuite", "misc"})
MINATAR = ("asterix", "breakout", "freeway", "seaquest", "spaceinvaders")
OTHERS = (
    "Catch-bsuite", "DeepSea-bsuite", "FourRooms-misc", "FrozenLake-misc", "MountainCarContinuous-v0", "Pendulum-v1",
    "PointRobot-misc", "Reacher-misc", "UmbrellaChain-bsuite",
)  # fmt: skip
STEPS = 48


@cache
def task(name: str) -> Environment:
    return make_environment(load_environment(name))


def random_action(space: Any, key: jax.Array) -> jax.Array:
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.n)
    return jax.random.uniform(key, (space.size,), minval=space.low, maxval=space.high)


def describe(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def walk(environment: Environment, steps: int, observe: Any = None) -> Any:
    """One copy, random actions: the stacked outputs of every step, led by the observation before it.

    ``observe(key, state, action)``, when given, is called before every step, and its values are returned as well.
    """

    def step(carry: Any, key: jax.Array) -> Any:
        observation, state = carry
        action_key, step_key = jax.random.split(key)
        action = random_action(environment.action_space, action_key)
        after, next_state, reward, terminated, truncated, info = environment.step(step_key, state, action)
        row = (observation, after, reward, terminated, truncated, info, next_state)
        return (after, next_state), (row, observe(step_key, state, action)) if observe else row

    reset_key, walk_key = jax.random.split(jax.random.key(0))
    return jax.jit(lambda: jax.lax.scan(step, environment.reset(reset_key), jax.random.split(walk_key, steps))[1])()


@pytest.mark.parametrize("name", [*SHIPPED, *OTHERS])
def test_contract(name: str) -> None:
    """Shapes and dtypes as declared, states that loops can carry, and one scalar a step of everything else."""
    environment = task(name)
    key = jax.random.key(0)
    observation, state = jax.eval_shape(environment.reset, key)
    assert (observation.shape, observation.dtype) == ((environment.observation_size,), environment.observation_dtype)
    action = jax.eval_shape(lambda key: random_action(environment.action_space, key), key)
    after, next_state, reward, terminated, truncated, info = jax.eval_shape(environment.step, key, state, action)
    assert describe(after) == describe(observation) == describe(info["final_observation"])
    assert describe(next_state) == describe(state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    assert (reward.shape, reward.dtype) == ((), jnp.float32)
    for flag in (terminated, truncated):
        assert (flag.shape, flag.dtype) == ((), jnp.bool_)
    assert set(info) == {"final_observation"}


def check_restarts(rows: Any) -> None:
    """Observations follow one another, and an episode's end begins the next one, keeping the last observation."""
    before, after, reward, terminated, truncated, info, state = rows
    done = terminated | truncated
    final = info["final_observation"]
    np.testing.assert_array_equal(after[~done], final[~done])
    np.testing.assert_array_equal(before[1:], after[:-1])
    np.testing.assert_array_equal(state.time[done], np.zeros(done.sum()))
    assert (state.time[~done] > 0).all()
    assert np.isfinite(reward).all()
    assert np.isfinite(np.asarray(after, np.float32)).all()


@pytest.mark.parametrize("name", [*CLASSIC, "FrozenLake-misc", "MountainCarContinuous-v0"])
def test_a_walk_restarts_after_each_episode(name: str) -> None:
    check_restarts(jax.device_get(walk(task(name), STEPS)))


@pytest.mark.parametrize("name", MINATAR)
def test_minatar(name: str) -> None:
    """Boolean storage loses nothing of gymnax's own observations, and a time limit truncates without terminating."""
    limit = 9
    shipped = load_environment(name)
    environment = make(shipped.source, **{**shipped.options, "max_steps_in_episode": limit})
    assert environment.observation_dtype == jnp.bool_
    raw, params = gymnax.make(shipped.source.removeprefix("gymnax:"))
    params = params.replace(max_steps_in_episode=limit)

    def observe(key: jax.Array, state: Any, action: jax.Array) -> jax.Array:
        return raw.step(key, state, action, params)[0].reshape(-1)

    rows, expected = jax.device_get(walk(environment, 3 * STEPS, observe=observe))
    check_restarts(rows)
    stored, terminated, truncated = rows[1], rows[3], rows[4]
    np.testing.assert_array_equal(np.asarray(stored, np.float32), expected)
    assert len(np.unique(expected, axis=0)) > 10  # the walk went somewhere
    age = 0
    for end, cut in zip(terminated, truncated, strict=True):
        age += 1
        assert cut == (age == limit)
        age = 0 if end or cut else age
    assert (truncated & ~terminated).any()


def test_some_walks_do_finish_episodes() -> None:
    """The test above would say nothing of auto-reset if no episode ended."""
    for name in ("catch", "cartpole", "FrozenLake-misc"):
        assert jax.device_get(walk(task(name), STEPS)[3]).any(), name


def test_the_final_observation_is_that_of_the_old_episode() -> None:
    """Catch: an episode ends with the ball in the lowest row and begins with it in the highest."""
    _, after, _, terminated, _, info, _ = jax.device_get(walk(task("catch"), STEPS))
    boards, finals = (np.asarray(x).reshape(-1, 10, 5) for x in (after, info["final_observation"]))
    assert (boards[terminated][:, 0].sum(1) == 1).all()
    assert (finals[terminated][:, 0].sum(1) == 0).all()


@pytest.mark.parametrize("name", ["cartpole", "pendulum"])
def test_a_time_limit_truncates_and_does_not_terminate(name: str) -> None:
    shipped = load_environment(name)
    environment = make(shipped.source, **{**shipped.options, "max_steps_in_episode": 3})
    terminated, truncated = jax.device_get(walk(environment, 9)[3:5])
    np.testing.assert_array_equal(truncated, np.arange(9) % 3 == 2)
    assert not terminated.any()


def test_a_fall_terminates_and_does_not_truncate() -> None:
    terminated, truncated = jax.device_get(walk(task("cartpole"), 3 * STEPS)[3:5])
    assert terminated.any()
    assert not truncated.any()


@pytest.mark.parametrize("name", ["pendulum", "MountainCarContinuous-v0", "PointRobot-misc"])
def test_continuous_actions_are_clipped_to_the_bounds(name: str) -> None:
    environment = task(name)
    space = environment.action_space
    assert isinstance(space, Continuous)
    assert space.low < space.high
    key = jax.random.key(3)
    _, state = environment.reset(key)
    step = jax.jit(environment.step)

    def after(value: float) -> Any:
        return jax.device_get(step(key, state, jnp.full(space.size, value))[:3])

    jax.tree.map(np.testing.assert_array_equal, after(space.high), after(100.0))
    jax.tree.map(np.testing.assert_array_equal, after(space.low), after(-100.0))
    low, high = jax.tree.leaves(after(space.low)[1]), jax.tree.leaves(after(space.high)[1])
    assert any(np.any(a != b) for a, b in zip(low, high, strict=True))  # actions do matter


def test_a_discrete_observation_becomes_one_hot() -> None:
    environment = task("FrozenLake-misc")
    after = jax.device_get(walk(environment, STEPS)[1])
    assert after.shape == (STEPS, 16)
    np.testing.assert_array_equal(after.sum(1), np.ones(STEPS))


def test_the_shipped_deep_sea_is_seeded_by_its_options() -> None:
    """An argument of the constructor reaches gymnax as well as a field of the parameters does."""
    assert make("gymnax:DeepSea-bsuite", size=5).observation_size == 25
    with pytest.raises(UserError, match=r"gymnax cannot make DeepSea-bsuite with \{'sise': 5\}"):
        make("gymnax:DeepSea-bsuite", sise=5)


def test_an_unknown_source_is_an_error() -> None:
    with pytest.raises(UserError, match="unknown environment source 'gym:CartPole-v1'"):
        make("gym:CartPole-v1")


def test_a_task_whose_data_cannot_be_downloaded_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(gymnax, "make", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match=r"gymnax cannot make MNISTBandit-bsuite .*no network"):
        make_environment(load_environment("MNISTBandit-bsuite"))


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


def test_normalisation_equals_a_plain_loop() -> None:
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
