"""The harness: the same bits however the work is cut, the arithmetic of a record, what an optimizer is told."""

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from hypothesis import given
from probes import Probe

import open_bench
from open_bench.algorithms import ppo as algorithm
from open_bench.algorithms.actor_critic import make_agent
from open_bench.algorithms.policy_losses import PPO
from open_bench.config import PPOConfig
from open_bench.environments.base import Environment
from open_bench.environments.registry import make
from open_bench.environments.wrappers import VectorEnvironment
from open_bench.errors import UserError
from open_bench.experiments.execute import rows
from open_bench.training import devices
from open_bench.training import mesh as parallel
from open_bench.training.keys import PURPOSES, lifetime_keys, stream
from open_bench.training.lifetime import (
    MAX_CURVE_POINTS,
    Lifetime,
    LifetimeState,
    curve_ends,
    final_window,
    make_lifetime,
)

TINY = PPOConfig(num_envs=2, num_steps=4, update_epochs=2, num_minibatches=2, hidden=(4,))
SMALL = PPOConfig(num_envs=4, num_steps=16, update_epochs=2, num_minibatches=2, hidden=(8, 8))
UPDATES = 12
SEEDS = 4


def lifetime_of(
    environment: Environment, ppo: PPOConfig = TINY, updates: int = UPDATES, optimizer: Any = None
) -> Lifetime:
    chosen = optax.with_extra_args_support(optimizer or optax.adam(1e-2))
    return make_lifetime(environment, ppo, updates, lambda _: chosen, lambda _, *a: PPO({}, *a))


def run_jitted(lifetime: Lifetime, root_seed: int = 0) -> LifetimeState:
    """One whole lifetime, without the parallel machinery."""
    state = jax.jit(lifetime.init)(jax.random.key(root_seed), {})
    return jax.device_get(jax.jit(lifetime.run)(state, {}, lifetime.num_updates)[0])


def equal(one: Any, two: Any) -> None:
    """Bitwise equality of two lists of arrays, NaN included."""
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


# --- the same numbers, however the work is cut ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cartpole() -> Lifetime:
    return lifetime_of(make("gymnax:CartPole-v1"), SMALL)


def program(lifetime: Lifetime, count: int, vmap_size: int = 1, lifetimes: int = SEEDS) -> parallel.Program:
    return parallel.compile_program(lifetime, {}, jax.devices()[:count], vmap_size, lifetimes)


def keys(seeds: list[int]) -> jax.Array:
    return lifetime_keys(0, "cartpole", seeds)


def in_rounds(compiled: parallel.Program, seeds: list[int], cuts: tuple[int, ...] = (UPDATES,)) -> list[Any]:
    """The arrays of every seed's final state, trained round by round in segments of ``cuts`` updates."""
    rounds = []
    for start in range(0, len(seeds), compiled.slots):
        chosen = seeds[start : start + compiled.slots]
        padded = chosen + [chosen[-1]] * (compiled.slots - len(chosen))
        state = compiled.init(keys(padded), {})
        for updates in cuts:
            state, _ = compiled.run(state, {}, updates)
        rounds.append([array[: len(chosen)] for array in compiled.save(state)])
    return [np.concatenate(leaves) for leaves in zip(*rounds, strict=True)]


@pytest.fixture(scope="module")
def on_one(cartpole: Lifetime) -> parallel.Program:
    return program(cartpole, 1)


@pytest.fixture(scope="module")
def reference(on_one: parallel.Program) -> list[Any]:
    return in_rounds(on_one, list(range(SEEDS)))


@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_devices_gives_the_same_bits(count: int, cartpole: Lifetime, reference: list[Any]) -> None:
    compiled = program(cartpole, count)
    assert (compiled.mesh.size, compiled.slots) == (count, count)
    equal(in_rounds(compiled, list(range(SEEDS))), reference)
    # Three lifetimes leave a slot over, and what is in the other slots does not matter.
    equal(in_rounds(compiled, [3, 0, 1]), [leaf[[3, 0, 1]] for leaf in reference])


def test_alone_or_among_others_gives_the_same_bits(on_one: parallel.Program, reference: list[Any]) -> None:
    equal(in_rounds(on_one, [2]), [leaf[2:3] for leaf in reference])
    for leaf in reference:  # the seeds differ from one another, so the comparison means something
        if leaf.dtype == np.float32 and leaf.ndim > 2:
            assert not np.array_equal(leaf[0], leaf[1])


def test_no_more_devices_are_used_than_there_are_groups(cartpole: Lifetime) -> None:
    assert program(cartpole, 4, lifetimes=1).mesh.size == 1


@pytest.mark.parametrize("cuts", [(1,) * UPDATES, (5, 7), (1, 2, 4, 5)], ids=str)
def test_segments_give_the_same_bits(cuts: tuple[int, ...], on_one: parallel.Program, reference: list[Any]) -> None:
    assert sum(cuts) == UPDATES
    equal(in_rounds(on_one, [0], cuts), [leaf[:1] for leaf in reference])


def test_a_restored_state_goes_on_with_the_same_bits(
    cartpole: Lifetime, on_one: parallel.Program, reference: list[Any]
) -> None:
    state, _ = on_one.run(on_one.init(keys([1]), {}), {}, 5)
    saved = on_one.save(state)
    other = program(cartpole, 1)
    state, _ = other.run(other.restore(saved, {}), {}, UPDATES - 5)
    equal(other.save(state), [leaf[1:2] for leaf in reference])
    with pytest.raises(ValueError, match="other shapes"):
        program(cartpole, 2).restore(saved, {})
    with pytest.raises(ValueError, match="other shapes"):
        on_one.restore(saved[1:], {})


def test_run_whole_is_init_and_run(on_one: parallel.Program, reference: list[Any]) -> None:
    equal(on_one.save(parallel.run_whole(on_one, keys([0]), {})), [leaf[:1] for leaf in reference])


def test_widths_agree_on_the_first_update_and_each_repeats_itself(cartpole: Lifetime, on_one: parallel.Program) -> None:
    wide = program(cartpole, 1, vmap_size=2)
    assert wide.slots == 2
    one = in_rounds(on_one, [0, 1], cuts=(1,))
    two = in_rounds(wide, [0, 1], cuts=(1,))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-4, atol=1e-5)
    spread = program(cartpole, 2, vmap_size=2)
    assert spread.slots == 4
    equal(in_rounds(spread, [0, 1, 2, 3]), in_rounds(wide, [0, 1, 2, 3]))


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_key_streams_are_all_different() -> None:
    found = {
        tuple(np.asarray(jax.random.key_data(stream(key, purpose))).tolist())
        for seed in (0, 1)
        for environment in ("breakout", "cartpole")
        for key in lifetime_keys(seed, environment, [0, 1, 2])
        for purpose in PURPOSES
    }
    assert len(found) == 2 * 2 * 3 * len(PURPOSES)
    with pytest.raises(ValueError, match="unknown purpose"):
        stream(jax.random.key(0), "network")


def test_a_seed_has_the_same_key_whatever_else_is_asked_for() -> None:
    together = np.asarray(jax.random.key_data(lifetime_keys(3, "acrobot", [0, 1, 2, 3])))
    np.testing.assert_array_equal(jax.random.key_data(lifetime_keys(3, "acrobot", [3, 1])), together[[3, 1]])


def test_networks_and_episodes_begin_from_streams_of_their_own() -> None:
    environment, key = make("gymnax:CartPole-v1"), jax.random.key(5)

    def expected() -> Any:
        vector = VectorEnvironment(environment, TINY.num_envs)
        params = make_agent(environment, TINY).init(stream(key, "networks"))
        return params, vector.reset(stream(key, "environment"))[0]

    state = jax.jit(lifetime_of(environment, TINY).init)(key, {})
    jax.tree.map(np.testing.assert_array_equal, (state.learner.params, state.observation), jax.jit(expected)())


def test_every_optimizer_meets_the_same_networks_and_episodes() -> None:
    environment = make("gymnax:CartPole-v1")
    states = []
    for optimizer in (optax.adam(1e-2), optax.sgd(1.0)):
        lifetime = lifetime_of(environment, TINY, optimizer=optimizer)
        start = jax.jit(lifetime.init)(jax.random.key(5), {})
        states.append((start, jax.jit(lifetime.run)(start, {}, 1)[0]))
    (start, after), (other_start, other_after) = jax.device_get(
        [[s._replace(key=jax.random.key_data(s.key)) for s in pair] for pair in states]
    )
    same = lambda a, b: equal(jax.tree.leaves(a), jax.tree.leaves(b))
    same(start.learner.params, other_start.learner.params)
    same((start.observation, start.environment), (other_start.observation, other_start.environment))
    same((after.observation, after.environment), (other_after.observation, other_after.environment))
    different = zip(jax.tree.leaves(after.learner.params), jax.tree.leaves(other_after.learner.params), strict=True)
    assert any(not np.array_equal(a, b) for a, b in different)


# --- records ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**7))
def test_curve_points_cover_the_lifetime(updates: int) -> None:
    ends = curve_ends(updates)
    assert ends[-1] == updates
    assert len(ends) == min(updates, MAX_CURVE_POINTS)
    assert (np.diff(ends) > 0).all()
    assert ends[0] >= 1


@given(st.integers(1, 10**7))
def test_the_final_window_is_five_per_cent_rounded_up(updates: int) -> None:
    window = final_window(updates)
    assert window >= 1
    assert (window - 1) * 20 < updates <= window * 20


def scored(lifetime: Lifetime, states: list[Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that the store would get."""
    stack = lambda *leaves: np.stack(leaves)
    record = jax.tree.map(stack, *(state.record for state in states))
    finite = np.stack([state.learner.finite for state in states])
    experiment: Any = SimpleNamespace(environment=SimpleNamespace(ppo=TINY))
    return rows(experiment, lifetime, list(range(len(states))), (record, finite))


@pytest.mark.parametrize("updates", [1, 19, 21, 450])
def test_scores_equal_those_of_the_returns_update_by_update(updates: int) -> None:
    """An episode is 11 steps and the rollout 4, so the first updates have no return."""
    environment = Probe(length=11, reward=lambda step, sign, action: sign + 0.37 * action * step)
    lifetime = lifetime_of(environment, updates=updates)
    run = jax.jit(lifetime.run)
    state, returns = jax.jit(lifetime.init)(jax.random.key(1), {}), []
    for _ in range(updates):
        state, metrics = run(state, {}, 1)
        returns.append(float(metrics.episode_return))
    assert int(state.update) == updates
    scores, curves = scored(lifetime, [jax.device_get(state), run_jitted(lifetime, root_seed=1)])
    values = np.asarray(returns, np.float64)
    assert np.isnan(values[:2]).all()
    mean = lambda part: np.nan if np.isnan(part).all() else np.nanmean(part)
    window = max(1, int(np.ceil(0.05 * updates)))
    np.testing.assert_allclose(scores["final_return"], [mean(values[-window:])] * 2, rtol=1e-5)
    np.testing.assert_allclose(scores["mean_return"], [mean(values)] * 2, rtol=1e-5)
    assert list(scores["env_steps"]) == [updates * TINY.batch_size] * 2
    assert not scores["diverged"].any()
    ends = [0, *(-(-(i + 1) * updates // min(updates, 200)) for i in range(min(updates, 200)))]
    expected = [mean(values[a:b]) for a, b in itertools.pairwise(ends)]
    for _, curve in curves.groupby("seed"):
        assert list(curve["env_steps"]) == [end * TINY.batch_size for end in ends[1:]]
        np.testing.assert_allclose(curve["episode_return"], expected, rtol=1e-5)


def test_episodes_that_never_finish_give_nan_and_no_divergence() -> None:
    lifetime = lifetime_of(Probe(never_ends=True), updates=30)
    scores, curves = scored(lifetime, [run_jitted(lifetime)])
    assert scores[["final_return", "mean_return"]].isna().all(axis=None)
    assert curves["episode_return"].isna().all()
    assert not scores["diverged"].any()


LAST_STEP = UPDATES * TINY.update_epochs * TINY.num_minibatches - 1


@pytest.mark.parametrize(("bad", "when"), [(np.nan, 20), (np.inf, 20), (np.nan, LAST_STEP)])
def test_an_optimizer_that_breaks_down_is_recorded_as_diverged(bad: float, when: int) -> None:
    """Late, so that finite returns were seen before; in the last step only the parameters can tell."""

    class Count(NamedTuple):
        steps: jax.Array

    def update(updates: Any, state: Count, params: Any = None) -> Any:
        del params
        broken = jnp.where(state.steps == when, bad, 0.0)
        return jax.tree.map(lambda u: -1e-2 * u + broken, updates), Count(state.steps + 1)

    optimizer = optax.GradientTransformation(lambda params: Count(jnp.int32(0)), update)
    lifetime = lifetime_of(Probe(length=1), optimizer=optimizer)
    state = run_jitted(lifetime)
    scores, curves = scored(lifetime, [state, run_jitted(lifetime_of(Probe(length=1)))])
    assert list(scores["diverged"]) == [True, False]
    assert scores.loc[0, ["final_return", "mean_return"]].isna().all()
    assert list(scores.loc[1, ["final_return", "mean_return"]]) == [1.0, 1.0]
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.learner.params))
    assert curves.loc[curves["seed"] == 0, "episode_return"].iloc[0] == 1.0  # before the breakdown


def state_bytes(updates: int) -> int:
    """Bytes of everything that a lifetime carries from one update to the next."""
    shapes = jax.eval_shape(lifetime_of(Probe(), updates=updates).init, jax.random.key(0), {})
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    assert state_bytes(200) == state_bytes(100_000) == state_bytes(10_000_000)
    assert state_bytes(200) - state_bytes(10) == 190 * (4 + 4)  # a float32 sum and an int32 count a curve point


# --- what an optimizer is told ----------------------------------------------------------------------------------------


class Recorded(NamedTuple):
    step: jax.Array  # () int32
    training: jax.Array  # (steps,)
    epoch: jax.Array  # (steps,)
    loss: jax.Array  # (steps,)
    value: jax.Array  # (steps,)
    key: jax.Array  # (steps, key words) uint32
    activations: Any  # {"actor": {layer: (steps, units)}, …}


def recorder(environment: Environment, ppo: PPOConfig, updates: int) -> optax.GradientTransformationExtraArgs:
    """Stores every extra that it is given, and changes no parameter."""
    steps = updates * ppo.update_epochs * ppo.num_minibatches
    space: Any = environment.action_space
    units = {f"dense_{i:02d}": size for i, size in enumerate(ppo.hidden)}
    head = f"dense_{len(ppo.hidden):02d}"

    def init(params: Any) -> Recorded:
        del params
        zeros = jnp.zeros(steps)
        layers = {"actor": {**units, head: space.n}, "critic": {**units, head: 1}}
        activations = jax.tree.map(lambda size: jnp.zeros((steps, size)), layers)
        keys = jnp.zeros((steps, *jax.random.key_data(jax.random.key(0)).shape), jnp.uint32)
        return Recorded(jnp.int32(0), zeros, zeros, zeros, zeros, keys, activations)

    def update(updates: Any, state: Recorded, params: Any = None, *, training_fraction: Any, epoch_fraction: Any,
               activations: Any, loss: Any, value: Any, key: Any) -> Any:  # fmt: skip
        del params
        put = lambda array, spec: array.at[state.step].set(spec)
        told = (training_fraction, epoch_fraction, loss, value, jax.random.key_data(key), activations)
        new = jax.tree.map(put, tuple(state[1:]), told)
        return jax.tree.map(jnp.zeros_like, updates), Recorded(state.step + 1, *new)

    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize(("updates", "epochs"), [(3, 3), (1, 1), (2, 1)])
def test_extras_tell_where_in_the_lifetime_an_update_is(updates: int, epochs: int) -> None:
    ppo = TINY.model_copy(update={"update_epochs": epochs})
    environment = Probe(length=3, random_observation=True)
    lifetime = lifetime_of(environment, ppo, updates, recorder(environment, ppo, updates))
    state = run_jitted(lifetime)
    told: Recorded = state.learner.optimizer_state
    steps = updates * epochs * ppo.num_minibatches
    assert told.step == steps
    rows_of = [(u, e) for u in range(updates) for e in range(epochs) for _ in range(ppo.num_minibatches)]
    proportion = lambda index, count: index / (count - 1) if count > 1 else 0.0
    np.testing.assert_allclose(told.training, [proportion(u, updates) for u, _ in rows_of], rtol=1e-6)
    np.testing.assert_allclose(told.epoch, [proportion(e, epochs) for _, e in rows_of], rtol=1e-6)
    np.testing.assert_array_equal(told.loss, told.value)
    assert (told.loss != 0).all()
    assert len({tuple(key) for key in told.key.tolist()}) == steps


def test_activations_and_loss_are_those_of_the_minibatches() -> None:
    """Parameters never change here, so an epoch's minibatches average to the whole rollout, recomputed by hand."""
    environment, key = Probe(length=3, random_observation=True), jax.random.key(0)
    lifetime = lifetime_of(environment, TINY, 1, recorder(environment, TINY, 1))
    state = run_jitted(lifetime)
    told: Recorded = state.learner.optimizer_state
    agent = make_agent(environment, TINY)
    start = lifetime.init(key, {})
    rollout, observation, _ = algorithm.collect(
        agent, VectorEnvironment(environment, TINY.num_envs), TINY, start.learner.params, start.observation,
        start.environment, stream(jax.random.fold_in(key, 0), "rollout"),
    )  # fmt: skip
    batch = algorithm.make_batch(agent, TINY, start.learner.params, rollout, observation)
    networks = {"actor": agent.policy, "critic": agent.value}
    for network, apply in networks.items():
        expected = apply(start.learner.params, batch.observation)[1]
        assert set(told.activations[network]) == set(expected)
        for layer, units in expected.items():
            found = np.asarray(told.activations[network][layer])
            assert found.shape == (TINY.update_epochs * TINY.num_minibatches, *units.shape)
            for epoch in found.reshape(TINY.update_epochs, TINY.num_minibatches, -1):
                np.testing.assert_allclose(epoch.mean(0), units, rtol=1e-4, atol=1e-7)


def test_optimizers_that_ignore_activations_do_not_pay_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled program is that of a loss which never computes them; one that reads them does more."""
    plain = optax.with_extra_args_support(optax.sgd(1e-2))

    def update(updates: Any, state: Any, params: Any = None, *, activations: Any, **extras: Any) -> Any:
        total = sum(units.sum() for units in jax.tree.leaves(activations))
        return plain.update(jax.tree.map(lambda u: u + total, updates), state, params, **extras)

    def compiled(optimizer: Any) -> tuple[float, int]:
        lifetime = lifetime_of(Probe(length=3), optimizer=optimizer)
        state = jax.eval_shape(lifetime.init, jax.random.key(0), {})
        program = jax.jit(lifetime.run).lower(state, {}, 1).compile()
        cost = program.cost_analysis()
        assert cost is not None
        return cost["flops"], sum(" = " in line for line in program.as_text().splitlines())

    offered = compiled(plain)
    assert compiled(optax.GradientTransformationExtraArgs(plain.init, update)) > offered
    with_activations = algorithm.loss
    monkeypatch.setattr(algorithm, "loss", lambda *arguments: (with_activations(*arguments)[0], {}))
    assert compiled(plain) == offered


# --- start-up ---------------------------------------------------------------------------------------------------------


def test_the_default_width_is_one_on_cpu_and_follows_memory_elsewhere() -> None:
    assert parallel.default_vmap_size(jax.devices(), 1) == 1
    gpu: Any = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 32 << 30})
    assert parallel.default_vmap_size([gpu], 1 << 20) == 16
    assert parallel.default_vmap_size([gpu], 3 << 30) == 4
    assert parallel.default_vmap_size([gpu], 64 << 30) == 1


def test_devices_are_chosen_and_bad_requests_refused() -> None:
    assert devices.start(2) == jax.devices()[:2]
    with pytest.raises(UserError, match="--devices must be at least 1, not 0"):
        devices.start(0)
    with pytest.raises(UserError, match="go together"):
        devices.start(None, "127.0.0.1:1234", None, None)
    with pytest.warns(UserWarning, match="JAX had started with 4 CPU devices"):
        assert devices.start(64) == jax.devices()


def test_two_processes_give_the_same_bits_as_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    request = ["train", "adam", "-e", "cartpole", "--steps", "2048", "--seeds", "2", "--set", "num_steps=16"]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "open_bench.cli.main", *request, "--quiet", "--results", str(tmp_path / "two"),
             "--coordinator", address, "--num-processes", "2", "--process-id", str(number)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        for number in (0, 1)
    ]  # fmt: skip
    try:
        output = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], output
    alone = open_bench.train(
        "adam", "cartpole", steps=2048, num_seeds=2, settings={"num_steps": 16}, results=tmp_path / "one"
    )
    together = open_bench.load_runs(tmp_path / "two")
    pd.testing.assert_frame_equal(together.scores, alone, check_exact=True)
    curves = open_bench.load_runs(tmp_path / "one").curves
    pd.testing.assert_frame_equal(together.curves, curves, check_exact=True)
    assert len(curves) == 2 * 32
