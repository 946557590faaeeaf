"""Environments: the contract of every adapter that ships, and what gymnax tasks do, step by step."""

import importlib.util
import urllib.request
from functools import cache
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from open_bench import config
from open_bench.environments import gymnax as adapter
from open_bench.environments.base import Continuous, Discrete, Environment
from open_bench.environments.registry import load_environment, make, make_environment
from open_bench.errors import UserError

# Craftax is optional: tests/environments/test_craftax.py has its contract.
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


@pytest.mark.usefixtures("optimized_test")
@pytest.mark.parametrize("name", [*CLASSIC, "FrozenLake-misc", "MountainCarContinuous-v0"])
def test_a_walk_restarts_after_each_episode(name: str) -> None:
    check_restarts(jax.device_get(walk(task(name), STEPS)))


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("name", MINATAR)
def test_a_step_has_no_loop_that_an_accelerator_would_wait_for(name: str) -> None:
    _, state = jax.eval_shape(task(name).reset, jax.random.key(0))
    traced = str(jax.make_jaxpr(task(name).step)(jax.random.key(0), state, jnp.int32(0)))
    assert "while[" not in traced


def test_asterix_has_the_slots_of_gymnax() -> None:
    spec = importlib.util.find_spec("gymnax.environments.minatar.asterix")
    assert spec is not None and spec.loader is not None
    untouched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(untouched)
    keys = jax.random.split(jax.random.key(0), 900)
    full = jnp.arange(900)[:, None] % 9 / 8  # from never to always
    filled = jax.random.bernoulli(jax.random.key(1), full, (900, 8)).astype(jnp.int32)
    theirs, ours = (jax.vmap(each)(keys, filled) for each in (untouched.while_sample_slots, adapter.free_slot))
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    assert set(np.unique(ours[1])) == {0, 1}
