"""Craftax-Classic: the adapter's contract where the optional suite is installed, and what is said where it is not."""

import importlib.util
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from open_bench.algorithms.registry import build_config
from open_bench.config import load_study
from open_bench.environments.base import Discrete
from open_bench.environments.registry import load_environment, make, make_environment
from open_bench.errors import UserError
from open_bench.experiments.plan import adjust, make_plan

SOURCE = "craftax:Craftax-Classic-Symbolic-v1"
installed = pytest.mark.skipif(importlib.util.find_spec("craftax") is None, reason="open-bench[craftax] is absent")
COPIES, STEPS, LIMIT = 4, 40, 16


def test_where_it_is_absent_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "craftax", None)
    monkeypatch.setitem(sys.modules, "craftax.craftax_env", None)
    study = adjust(load_study("quick"), optimizers=("adam",), environments=("craftax-classic",))
    with pytest.raises(UserError, match=r"Craftax is not installed .*pip install \"\.\[craftax\]\" in a clone"):
        make_plan(study, jax.devices())


def test_the_settings_are_those_of_craftax_authors() -> None:
    shipped = load_environment("craftax-classic")
    ppo: Any = build_config("ppo", shipped.algorithms["ppo"], shipped.name)
    assert (shipped.source, ppo.num_envs, ppo.num_steps, ppo.num_minibatches) == (SOURCE, 1024, 64, 8)
    assert (ppo.gae_lambda, ppo.max_grad_norm, ppo.hidden) == (0.8, 1.0, (512, 512, 512))


def test_an_unknown_id_is_an_error() -> None:
    with pytest.raises(UserError, match=r"unknown Craftax environment 'Craftax-Clasic.*Did you mean Craftax-Classic"):
        make("craftax:Craftax-Clasic-Symbolic-v1")


@installed
def test_unknown_options_are_errors() -> None:
    with pytest.raises(UserError, match=r"Craftax has no option 'max_timestep'\. Did you mean max_timesteps"):
        make(SOURCE, max_timestep=3)
    with pytest.raises(UserError, match=r"max_timesteps = 'long' does not fit"):
        make(SOURCE, max_timesteps="long")


@installed
def test_contract() -> None:
    environment = make_environment(load_environment("craftax-classic"))
    assert environment.action_space == Discrete(17)
    key = jax.random.key(0)
    observation, state = jax.eval_shape(environment.reset, key)
    assert (observation.shape, observation.dtype) == ((environment.observation_size,), jnp.float32)
    action = jax.ShapeDtypeStruct((), jnp.int32)
    after, later, reward, terminated, truncated, info = jax.eval_shape(environment.step, key, state, action)
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
    assert kinds(after) == kinds(observation) == kinds(info["final_observation"])
    assert kinds(later) == kinds(state)
    assert (reward.shape, reward.dtype) == ((), jnp.float32)
    assert all((flag.shape, flag.dtype) == ((), jnp.bool_) for flag in (terminated, truncated))


@installed
def test_a_time_limit_truncates_and_a_new_world_begins() -> None:
    environment = make(SOURCE, max_timesteps=LIMIT)

    def step(carry: Any, key: jax.Array) -> Any:
        state, _ = carry
        keys, action = jax.random.split(key, COPIES), jax.random.randint(key, (COPIES,), 0, 17)
        after, state, reward, terminated, truncated, info = jax.vmap(environment.step)(keys, state, action)
        final = info["final_observation"]
        return (state, after), (after, final, reward, terminated, truncated, state.map, state.timestep)

    @jax.jit
    def walk() -> Any:
        first, state = environment.reset_copies(jax.random.key(0), COPIES)
        _, rows = jax.lax.scan(step, (state, first), jax.random.split(jax.random.key(1), STEPS))
        return first, rows

    first, (after, final, reward, terminated, truncated, worlds, time) = jax.device_get(walk())
    assert first.shape == (COPIES, environment.observation_size)
    done = terminated | truncated
    np.testing.assert_array_equal(after[~done], final[~done])
    assert (after[done] != final[done]).any(-1).all()
    np.testing.assert_array_equal(time[done], 0)
    age = np.zeros(COPIES, int)
    for ended, cut in zip(terminated, truncated, strict=True):
        age += 1
        np.testing.assert_array_equal(cut, (age == LIMIT) & ~ended)
        age[ended | cut] = 0
    assert truncated.any()
    begun = worlds[done]
    assert len(np.unique(begun.reshape(len(begun), -1), axis=0)) == len(begun)  # each has a world of its own
    assert np.isfinite(reward).all()
    assert (reward != 0).any()


@installed
def test_copies_stepped_together_equal_each_alone() -> None:
    environment = make(SOURCE, max_timesteps=2)
    keys = jax.random.split(jax.random.key(2), COPIES)
    _, state = environment.reset_copies(jax.random.key(0), COPIES)
    state = state.replace(timestep=jnp.arange(COPIES))  # for some of them this step is the last
    action = jnp.zeros(COPIES, jnp.int32)
    together = jax.jit(environment.step_copies)(keys, state, action)
    done = together[3] | together[4]
    assert done.any() and not done.all()
    alone = jax.jit(lambda i: environment.step(*jax.tree.map(lambda x: x[i], (keys, state, action))))
    for i in range(COPIES):
        assert jax.tree.all(jax.tree.map(lambda a, b, i=i: (a[i] == b).all(), together, alone(i)))
