"""Fitness: keys, pairs, normalization, and lifetimes of many θ at once."""

import os
import signal
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest
from tiny_meta import GENERATION, STEPS_PER_UPDATE, TINY, UPDATES

from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import load_baseline_returns
from open_bench.evaluation.metrics import Scale
from open_bench.meta_training import fitness as tasks
from open_bench.meta_training.fitness import Evaluator, FitnessTask
from open_bench.meta_training.request import make_request
from open_bench.meta_training.spec import MetaConfig
from open_bench.optimizers.resolve import resolve
from open_bench.optimizers.spec import EMPTY_THETA
from open_bench.training import runner
from open_bench.training.task import make_task

# --- pairs ------------------------------------------------------------------------------------------------------------


def test_the_better_of_a_pair_scores_0_and_the_other_minus_1() -> None:
    nan = np.nan
    first, second = [3.0, -2.0, 5.0, nan, 1.0, nan], [1.0, -1.0, 5.0, -9.0, nan, nan]
    scores = tasks.pair_scores(np.asarray([first + second]).T)
    assert scores.tolist() == [0, -1, -0.5, -1, 0, -0.5, -1, 0, -0.5, 0, -1, -0.5]


def test_pairs_are_compared_level_by_level() -> None:
    """The first member wins twice by little and loses once by much; what failed once loses everywhere."""
    nan = np.nan
    returns = [[1.1, 0.2, 0.0], [5.0, 5.0, nan], [1.0, 0.1, 99.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(tasks.pair_scores(np.asarray(returns)), [-1 / 3, -1, -2 / 3, 0])


def test_both_of_a_pair_share_keys_and_pairs_differ() -> None:
    keys = jax.random.key_data(tasks.pair_keys(0, tasks.TRAINING, "gridworld/rand_all", 3, 2, population=6))
    assert keys.shape[:2] == (6, 2)
    np.testing.assert_array_equal(keys[:3], keys[3:])
    assert len(np.unique(keys[:3].reshape(6, -1), axis=0)) == 6
    later = jax.random.key_data(tasks.pair_keys(0, tasks.TRAINING, "gridworld/rand_all", 4, 2, population=6))
    evaluated = jax.random.key_data(tasks.rollout_keys(0, tasks.EVALUATION, "gridworld/rand_all", 0, 6))
    everything = np.concatenate([keys[:3].reshape(6, -1), later[:3].reshape(6, -1), evaluated])
    assert len(np.unique(everything, axis=0)) == 18


# --- fitness ----------------------------------------------------------------------------------------------------------


def bare_task(name: str, scale: Scale | None) -> FitnessTask:
    """Three updates."""
    per_update = make_task(name).settings.env_steps_per_update
    task = make_task(name, steps=3 * per_update)
    return FitnessTask(task, resolve("adam", task), scale)


def test_members_fitness_is_averaged_over_rollouts_then_normalized_environments() -> None:
    pair = [bare_task("cartpole", Scale(20.0, 220.0)), bare_task("breakout", Scale(-10.0, -5.0))]
    healthy = np.zeros((3, 2), bool)
    lost = np.asarray([[False, False], [False, True], [False, False]])
    first = (np.asarray([[20.0, 40.0], [220.0, 220.0], [1.0, 1.0]]), healthy)
    second = (np.asarray([[-5.0, -5.0], [-5.0, np.nan], [np.nan, -5.0]]), lost)
    found = tasks.combine(pair, [first, second])
    np.testing.assert_allclose(found.values, [(0.05 + 1.0) / 2, np.nan, np.nan])
    assert (found.diverged, found.unfinished) == (1, 1)
    assert (found.lifetimes, found.env_steps) == (12, 6 * 3 * 512 + 6 * 3 * 64 * 128)
    raw = tasks.combine([bare_task("cartpole", None)], [first])
    np.testing.assert_allclose(raw.values, [30.0, 220.0, 1.0])


def test_several_environments_need_baseline_returns() -> None:
    pair, known = MetaConfig(environments=("cartpole", "breakout")), load_baseline_returns()
    made = make_request("lpo@zero", pair, known, jax.devices()).tasks
    assert all(task.scale is not None and task.scale.one > task.scale.zero for task in made)
    with pytest.raises(
        UserError, match=r"breakout cannot be meta-trained on together .*\(Adam's return is not known\)"
    ):
        make_request("lpo@zero", pair, {"cartpole": known["cartpole"]}, jax.devices())
    alone = make_request("lpo@zero", MetaConfig(environments=("breakout",)), {}, jax.devices())
    assert alone.tasks[0].scale is None


def test_keys_differ_by_everything_but_the_member() -> None:
    training, evaluation = tasks.TRAINING, tasks.EVALUATION
    cases = [(0, training, "cartpole", 0), (1, training, "cartpole", 0), (0, evaluation, "cartpole", 0),
             (0, training, "breakout", 0), (0, training, "cartpole", 1)]  # fmt: skip
    drawn = [jax.random.key_data(tasks.rollout_keys(*case, rollouts=3)) for case in cases]
    assert len(np.unique(np.concatenate(drawn), axis=0)) == 15
    np.testing.assert_array_equal(drawn[0], jax.random.key_data(tasks.rollout_keys(*cases[0], rollouts=3)))


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    task = make_task("cartpole", steps=STEPS_PER_UPDATE * UPDATES, settings=TINY)
    made = FitnessTask(task, resolve("open@zero", task))
    return Evaluator(made, jax.devices()[:2], 1, GENERATION)


def members(count: int) -> Any:
    zero = resolve("open@zero").theta
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: generator.normal(size=(count, *leaf.shape)).astype(np.float32), zero)


def test_every_member_trains_with_its_own_theta_on_common_keys(evaluator: Evaluator) -> None:
    keys = tasks.rollout_keys(0, tasks.TRAINING, "cartpole", 0, 2)
    some = members(3)
    order = np.asarray([2, 0, 0])
    values, diverged = evaluator.returns(some, keys, "mean_return")
    swapped, _ = evaluator.returns(jax.tree.map(lambda leaf: leaf[order], some), keys, "mean_return")
    assert values.shape == diverged.shape == (3, 2)
    assert not diverged.any()
    assert len(np.unique(values)) > 4
    np.testing.assert_array_equal(swapped, values[order])
    final, _ = evaluator.returns(some, keys, "final_return")
    assert not np.array_equal(final, values)


def test_members_may_have_keys_of_their_own(evaluator: Evaluator) -> None:
    some, keys = members(3), tasks.rollout_keys(0, tasks.TRAINING, "cartpole", 0, 6).reshape(3, 2)
    values, _ = evaluator.returns(some, keys, "mean_return")
    for member in range(3):
        alone = jax.tree.map(lambda leaf, m=member: leaf[m : m + 1], some)
        expected, _ = evaluator.returns(alone, keys[member], "mean_return")
        np.testing.assert_array_equal(values[member], expected[0])
    assert len(np.unique(values)) > 4


def test_segments_of_any_length_give_the_same_numbers(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, found = tasks.rollout_keys(0, tasks.TRAINING, "cartpole", 0, 2), []
    for seconds, expected in ((1e-9, 3 * UPDATES * [1]), (1e9, [1, 2, 4, 8, 5, 16, 4, 20])):
        monkeypatch.setattr(runner, "SEGMENT_SECONDS", seconds)
        lengths: list[int] = []
        values, _ = evaluator.returns(
            members(3), keys, "mean_return", on_segment=lambda segment, seen=lengths: seen.append(segment.updates)
        )
        assert lengths == expected  # of three batches
        found.append(values)
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
def test_an_interrupt_is_heard_in_the_middle_of_a_long_batch() -> None:
    updates = 2_000_000  # many minutes
    task = make_task("cartpole", steps=STEPS_PER_UPDATE * updates, settings=TINY)
    made = Evaluator(FitnessTask(task, resolve("adam", task)), jax.devices()[:1], 1, 1)
    keys = tasks.rollout_keys(0, tasks.TRAINING, "cartpole", 0, 1)
    timer = threading.Timer(2.5, os.kill, (os.getpid(), signal.SIGINT))
    # Where the tests run in the background, a shell has told them to ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            made.returns(EMPTY_THETA, keys, "final_return")
    finally:
        signal.signal(signal.SIGINT, before)
    assert 2.0 < time.monotonic() - start < 30.0  # a segment is about a second on an idle machine


def test_a_member_that_diverges_is_counted_and_harms_no_other(evaluator: Evaluator) -> None:
    keys = tasks.rollout_keys(0, tasks.TRAINING, "cartpole", 0, 1)
    some = members(3)
    whole, _ = evaluator.returns(some, keys, "mean_return")
    broken = jax.tree.map(lambda leaf: np.concatenate([leaf[:1], np.full_like(leaf[1:2], np.nan), leaf[2:]]), some)
    values, diverged = evaluator.returns(broken, keys, "mean_return")
    assert diverged[:, 0].tolist() == [False, True, False]
    np.testing.assert_array_equal(values[[0, 2]], whole[[0, 2]])
    found = tasks.combine([evaluator.task], [(values, diverged)])
    assert (found.diverged, found.unfinished) == (1, 0)
    assert np.isnan(found.values).tolist() == [False, True, False]
