"""Meta-training: the direction of evolution, fitness, exact resume on any number of devices, and what is stored."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax
import numpy as np
import optax
import pandas as pd
import pytest
from commands import OpenBench

import open_bench
import open_bench.api
from open_bench import files, weights
from open_bench.config import ANTITHETIC, MetaConfig, load_meta, shipped
from open_bench.environments.registry import load_environment
from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import load_baseline_returns
from open_bench.evaluation.metrics import Scale
from open_bench.meta_training import evolution
from open_bench.meta_training import fitness as tasks
from open_bench.meta_training.checkpoint import Checkpoints, Saved
from open_bench.meta_training.evolution import Progress, Strategy, evolve
from open_bench.meta_training.fitness import Evaluator, Fitness, Task
from open_bench.optimizers import resolve
from open_bench.optimizers.spec import EMPTY_THETA
from open_bench.training import mesh as parallel

TINY = {"num_envs": 4, "num_steps": 16, "update_epochs": 2, "num_minibatches": 2, "hidden": (8,)}
UPDATES = 20
# σ is large, so that the members of so small a generation differ in so short a life.
SETTINGS: dict[str, Any] = {
    "steps": 4 * 16 * UPDATES,
    "settings": TINY,
    "population": 6,
    "rollouts": 2,
    "generations": 10,
    "sigma": 1.0,
    "fitness": "mean_return",
    "vmap_size": 1,
}
GENERATION = 6 * 2  # lifetimes


def theta_of(*numbers: float) -> dict[str, Any]:
    return {"optimizer": {"a": np.asarray(numbers, np.float32)}, "policy_loss": {}}


def vector(theta: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(theta)])


def fitness_of(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any, int], Fitness]:
    """A fitness function of members' numbers (population, dimensions) in place of lifetimes."""

    def evaluate(population: Any, generation: int) -> Fitness:
        members = np.asarray(population["optimizer"]["a"], np.float64)
        return Fitness(function(members), lifetimes=len(members), env_steps=10 * len(members))

    return evaluate


TARGET = np.asarray([1.0, -1.0, 0.5])
quadratic = fitness_of(lambda x: -((x - TARGET) ** 2).sum(axis=1))


# --- evolution --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["Open_ES", "SNES", "CMA_ES", "PGPE"])
def test_evolution_climbs_towards_higher_fitness(strategy: str) -> None:
    config = MetaConfig(strategy=strategy, population=16, generations=40, sigma=0.1, learning_rate=0.1, b1=0.9)
    evolved = evolve(config, theta_of(0, 0, 0), quadratic)
    assert np.linalg.norm(vector(evolved.theta) - TARGET) < 0.5 < np.linalg.norm(TARGET)
    fitness = [row["fitness_mean"] for row in evolved.history]
    assert fitness[-1] > fitness[0] + 1.0
    assert evolved.best_fitness == max(fitness)
    assert [row["generation"] for row in evolved.history] == list(range(1, 41))
    assert evolved.history[-1]["lifetimes"] == 40 * 16
    assert evolved.history[-1]["env_steps"] == 40 * 160


def test_the_best_theta_is_where_the_fittest_generation_was_sampled() -> None:
    """Fitness falls after the third generation, so the best mean is the one before it."""
    seen: list[np.ndarray] = []

    def evaluate(population: Any, generation: int) -> Fitness:
        members = np.asarray(population["optimizer"]["a"])
        seen.append(members.mean(axis=0))  # antithetic pairs cancel
        return Fitness(members[:, 0] + (100.0 if generation == 2 else 0.0))

    evolved = evolve(MetaConfig(population=8, generations=6), theta_of(0, 0), evaluate)
    np.testing.assert_allclose(vector(evolved.best), seen[2], atol=1e-6)
    assert not np.allclose(vector(evolved.theta), seen[2], atol=1e-6)


@pytest.mark.parametrize("strategy", ANTITHETIC)
def test_member_i_and_the_one_half_a_population_later_are_mirror_images(strategy: str) -> None:
    """What antithetic task sampling relies on, of the populations that evosax really draws."""
    strategy_ = Strategy(MetaConfig(strategy=strategy, population=8, sigma=0.3), theta_of(3.0, -2.0))
    state = strategy_.start()
    for generation in range(2):
        population, state = strategy_.ask(generation, state)
        drawn, mean = vector(population).reshape(8, 2), vector(strategy_.theta(state))
        np.testing.assert_allclose(drawn[:4] + drawn[4:], np.tile(2 * mean, (4, 1)), atol=1e-5)
        assert len(np.unique(drawn, axis=0)) == 8
        state = strategy_.tell(generation, population, np.arange(8.0), state)


def test_antithetic_pairs_are_mirror_images_of_the_right_spread() -> None:
    config = MetaConfig(population=400, sigma=0.25)
    strategy = Strategy(config, theta_of(3.0, -2.0))
    members = np.asarray(strategy.ask(0, strategy.start())[0]["optimizer"]["a"])
    np.testing.assert_allclose(members[:200] + members[200:], np.tile([6.0, -4.0], (200, 1)), atol=1e-5)
    assert np.std(members, axis=0) == pytest.approx(0.25, rel=0.15)
    assert len(np.unique(members, axis=0)) == 400


def test_every_generation_draws_anew_and_the_seed_decides() -> None:
    strategy, other = (Strategy(MetaConfig(population=4, root_seed=seed), theta_of(0.0)) for seed in (0, 1))
    state = strategy.start()
    draws = [np.asarray(s.ask(g, state)[0]["optimizer"]["a"]) for s, g in ((strategy, 0), (strategy, 1), (other, 0))]
    assert all(not np.array_equal(draws[i], draws[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_centered_ranks_put_the_failed_last() -> None:
    cost = evolution.to_minimize(np.asarray([5.0, np.nan, -1e6, 7.0, np.nan]))
    assert np.isfinite(cost).all()
    ranks = np.asarray(evolution.centered_ranks(None, cost, None, None))
    np.testing.assert_allclose(ranks, [-0.25, 0.375, 0.0, -0.5, 0.375])
    direct = np.asarray(evolution.centered_ranks(None, np.asarray([-5.0, np.nan, 1e6]), None, None))
    np.testing.assert_allclose(direct, [-0.5, 0.5, 0.0])


def test_the_mean_moves_away_from_a_failed_member() -> None:
    strategy = Strategy(MetaConfig(population=2, sigma=0.1), theta_of(0.0))
    population, state = strategy.ask(0, strategy.start())
    first = float(population["optimizer"]["a"][0, 0])
    after = strategy.theta(strategy.tell(0, population, np.asarray([np.nan, -1e9]), state))
    assert np.sign(vector(after)[0]) == -np.sign(first)


@pytest.mark.parametrize("value", [9.5, np.nan])
@pytest.mark.parametrize("population", [4, 6, 64])
def test_where_all_members_tie_the_mean_stays(value: float, population: int) -> None:
    strategy = Strategy(MetaConfig(population=population), theta_of(0.1, 0.2, 0.3))
    members, state = strategy.ask(0, strategy.start())
    after = strategy.tell(0, members, np.full(population, value), state)
    np.testing.assert_array_equal(vector(strategy.theta(after)), np.float32([0.1, 0.2, 0.3]))


def test_sigma_and_learning_rate_decay_by_the_generation() -> None:
    config = MetaConfig(population=4, generations=5, sigma=0.2, sigma_decay=0.5, learning_rate=0.1,
                        learning_rate_decay=0.25)  # fmt: skip
    history = evolve(config, theta_of(0, 0, 0), quadratic).history
    np.testing.assert_allclose([row["sigma"] for row in history], 0.2 * 0.5 ** np.arange(5), rtol=1e-6)
    optimizer = evolution.mean_optimizer(config)
    state, steps = optimizer.init(np.float32(0.0)), []
    for _ in range(4):  # Adam's step under a constant gradient is its learning rate
        step, state = optimizer.update(np.float32(1.0), state)
        steps.append(float(step))
    np.testing.assert_allclose(steps, -0.1 * 0.25 ** np.arange(4), rtol=1e-4)


def test_b1_is_adams() -> None:
    ours, adam = evolution.mean_optimizer(MetaConfig(b1=0.5, learning_rate=1.0)), optax.adam(1.0, b1=0.5)
    states = [optimizer.init(np.float32(0.0)) for optimizer in (ours, adam)]
    for gradient in (1.0, -3.0):
        steps = []
        for index, optimizer in enumerate((ours, adam)):
            step, states[index] = optimizer.update(np.float32(gradient), states[index])
            steps.append(float(step))
    assert steps[0] == pytest.approx(steps[1] * 0.999)


def test_a_mean_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(UserError, match=r"mean θ is not finite after generation 1: lower sigma"):
        evolve(MetaConfig(population=4), theta_of(np.inf), fitness_of(lambda x: np.arange(4.0)))


def test_lifetimes_without_an_episodes_end_are_an_error() -> None:
    with pytest.raises(UserError, match=r"no member has ended an episode .* --steps"):
        evolve(MetaConfig(population=4), theta_of(0.0), lambda *_: Fitness(np.full(4, np.nan), unfinished=4))


# --- antithetic task sampling -----------------------------------------------------------------------------------------


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


def pairs_on_levels(members: np.ndarray, generation: int) -> Fitness:
    """A quadratic, plus what can be earned on each pair's level: far more than any member differs from another."""
    level = np.tile(np.random.default_rng(generation).normal(scale=1e3, size=len(members) // 2), 2)
    values = level - ((members - TARGET) ** 2).sum(axis=1)
    return Fitness(values, scores=tasks.pair_scores(values[:, None]))


@pytest.mark.parametrize("strategy", ANTITHETIC)
def test_with_levels_of_their_own_pairs_climb_towards_the_better_member(strategy: str) -> None:
    """With the sign of the scores turned round the mean moves away from every winner."""
    config = MetaConfig(strategy=strategy, population=16, generations=60, sigma=0.1, learning_rate=0.05, b1=0.9,
                        task_sampling="antithetic")  # fmt: skip
    evaluate = lambda population, g: pairs_on_levels(np.asarray(population["optimizer"]["a"], np.float64), g)
    evolved = evolve(config, theta_of(0, 0, 0), evaluate)
    assert np.linalg.norm(vector(evolved.theta) - TARGET) < 0.5 < np.linalg.norm(TARGET)


def test_scores_are_climbed_and_fitness_is_shown() -> None:
    def evaluate(population: Any, generation: int) -> Fitness:
        quality = -((np.asarray(population["optimizer"]["a"], np.float64) - TARGET) ** 2).sum(axis=1)
        return Fitness(-quality, scores=tasks.pair_scores(quality[:, None]), tied_pairs=0)

    config = MetaConfig(population=16, generations=40, sigma=0.1, learning_rate=0.1, b1=0.9, task_sampling="antithetic")
    evolved = evolve(config, theta_of(0, 0, 0), evaluate)
    assert np.linalg.norm(vector(evolved.theta) - TARGET) < 0.5
    fitness = [row["fitness_mean"] for row in evolved.history]
    assert fitness[-1] < fitness[0] - 1.0
    assert evolved.history[0]["tied_pairs"] == 0


@pytest.mark.parametrize("better", [0, 1])
def test_one_pair_moves_the_mean_towards_its_better_member(better: int) -> None:
    strategy = Strategy(MetaConfig(population=2, sigma=0.1, task_sampling="antithetic"), theta_of(0.5))
    population, state = strategy.ask(0, strategy.start())
    members = np.asarray(population["optimizer"]["a"])[:, 0]
    scores = tasks.pair_scores(np.where(np.arange(2) == better, 7.0, 6.9)[:, None])
    after = vector(strategy.theta(strategy.tell(0, population, scores, state)))[0]
    assert np.sign(after - 0.5) == np.sign(members[better] - 0.5)


@pytest.mark.parametrize("strategy", ANTITHETIC)
@pytest.mark.parametrize("population", [4, 6, 64])
def test_where_all_pairs_tie_the_mean_stays(strategy: str, population: int) -> None:
    config = MetaConfig(strategy=strategy, population=population, task_sampling="antithetic")
    made = Strategy(config, theta_of(0.1, 0.2, 0.3))
    members, state = made.ask(0, made.start())
    scores = tasks.pair_scores(np.tile(np.arange(population / 2), 2)[:, None])
    after = made.tell(0, members, scores, state)
    np.testing.assert_array_equal(vector(made.theta(after)), np.float32([0.1, 0.2, 0.3]))


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


def bare_task(name: str, scale: Scale | None) -> Task:
    return Task(load_environment(name), 3, None, scale)  # type: ignore[arg-type]


def test_members_fitness_is_averaged_over_rollouts_then_normalised_environments() -> None:
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


def test_several_environments_need_references() -> None:
    spec = resolve("lpo@zero")
    environments = [load_environment("cartpole"), load_environment("breakout")]
    made = tasks.make_tasks(spec, spec.theta, environments, MetaConfig(), load_baseline_returns())
    assert all(task.scale is not None and task.scale.one > task.scale.zero for task in made)
    with pytest.raises(UserError, match=r"breakout cannot be meta-trained on together .*\(no reference\)"):
        references = {"cartpole": load_baseline_returns()["cartpole"]}
        tasks.make_tasks(spec, spec.theta, environments, MetaConfig(), references)
    assert tasks.make_tasks(spec, spec.theta, environments[1:], MetaConfig(), {})[0].scale is None


def test_keys_differ_by_everything_but_the_member() -> None:
    training, evaluation = tasks.TRAINING, tasks.EVALUATION
    cases = [(0, training, "cartpole", 0), (1, training, "cartpole", 0), (0, evaluation, "cartpole", 0),
             (0, training, "breakout", 0), (0, training, "cartpole", 1)]  # fmt: skip
    drawn = [jax.random.key_data(tasks.rollout_keys(*case, rollouts=3)) for case in cases]
    assert len(np.unique(np.concatenate(drawn), axis=0)) == 15
    np.testing.assert_array_equal(drawn[0], jax.random.key_data(tasks.rollout_keys(*cases[0], rollouts=3)))


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    environment = load_environment("cartpole").with_settings(TINY)
    spec = resolve("open@zero")
    config = MetaConfig(env_steps=64 * UPDATES)
    (task,) = tasks.make_tasks(spec, spec.theta, [environment], config, {})
    return Evaluator(task, jax.devices()[:2], 1, GENERATION)


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
    keys, found, lengths = tasks.rollout_keys(0, tasks.TRAINING, "cartpole", 0, 2), [], []
    run = type(evaluator.program).run
    monkeypatch.setattr(
        type(evaluator.program), "run", lambda program, *rest: lengths.append(rest[-1]) or run(program, *rest)
    )
    for seconds in (1e-9, 1e9):
        monkeypatch.setattr(parallel, "SEGMENT_SECONDS", seconds)
        evaluator._segment = 1 if seconds < 1 else UPDATES
        lengths.clear()
        found.append(evaluator.returns(members(3), keys, "mean_return")[0])
        assert set(lengths) == ({1} if seconds < 1 else {UPDATES})
    np.testing.assert_array_equal(*found)


def test_an_interrupt_is_heard_in_the_middle_of_a_long_round() -> None:
    environment = load_environment("cartpole").with_settings(TINY)
    spec = resolve("adam")
    updates = 2_000_000  # many minutes
    (task,) = tasks.make_tasks(spec, EMPTY_THETA, [environment], MetaConfig(env_steps=64 * updates), {})
    made = Evaluator(task, jax.devices()[:1], 1, 1)
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


# --- whole evolutions -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of weights of its own for every test, and none that ship."""
    baselines = tmp_path / "baselines"
    (baselines / "weights").mkdir(parents=True)
    for folder in ("hyperparameters", "returns"):
        (baselines / folder).symlink_to(files.baselines_dir() / folder)
    monkeypatch.setattr(files, "baselines_dir", lambda: baselines)
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "library"))
    return tmp_path / "library"


def meta_train(folder: Path, optimizer: str = "open", name: str = "mine", **changes: Any) -> Any:
    return open_bench.meta_train(
        optimizer, ["cartpole"], results=folder, name=name, **{**SETTINGS, "devices": 2, **changes}
    )


class Undisturbed(NamedTuple):
    trained: Any
    folder: Path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPEN_BENCH_WEIGHTS", str(folder / "library"))
        trained = meta_train(folder)
    # Otherwise all comparisons below would hold of a θ that never moved.
    assert (trained.history["fitness_std"] > 0).sum() > 5
    assert np.abs(vector(trained.theta)).max() > 0.05
    return Undisturbed(trained, folder)


@pytest.mark.parametrize("devices", [1, 4])
def test_theta_is_bitwise_the_same_on_any_number_of_devices(
    devices: int, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    other = meta_train(tmp_path, devices=devices)
    np.testing.assert_array_equal(vector(other.theta), vector(undisturbed.trained.theta))
    same = [column for column in other.history if column != "seconds"]
    pd.testing.assert_frame_equal(other.history[same], undisturbed.trained.history[same], check_exact=True)


def lpo_start(folder: Path) -> str:
    """LPO at a drift of zero, away from θ = 0: there its network is even in θ, so antithetic pairs always tie."""
    kernel = np.random.default_rng(0).normal(size=(8, 128)).astype(np.float32)
    theta = {"optimizer": {}, "policy_loss": {"kernel_0": kernel, "kernel_1": np.zeros((128, 1), np.float32)}}
    weights.save_weights(folder / "start.safetensors", theta)
    return f"lpo@{folder / 'start.safetensors'}"


GRIDWORLD = """
name = "tiny-gridworld"
description = "small levels of short episodes"
family = "gridworld"
source = "gridworld:rand_all"

[options]
max_size = 5
max_steps = 30
max_objects = 2

[budgets]
quick = 1280
"""


def test_pairs_of_gridworlds_resume_bitwise_on_another_number_of_devices(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(GRIDWORLD)

    def evolve_pairs(folder: str, **changes: Any) -> Any:
        settings = {**SETTINGS, "steps": 64 * 8, "population": 4, "rollouts": 1, "generations": 3,
                    "task_sampling": "antithetic", "evaluate_every": 1, "evaluation_rollouts": 2}  # fmt: skip
        where = {"results": tmp_path / folder, "name": folder}
        return open_bench.meta_train("open", [str(tmp_path / "tiny.toml")], **where, **{**settings, **changes})

    whole = evolve_pairs("whole", devices=2)
    with pytest.raises(KeyboardInterrupt):
        evolve_pairs("parts", devices=1, progress=Stop(1))
    parts = evolve_pairs("parts", devices=2)
    assert (whole.history["tied_pairs"] < 2).any()
    assert np.abs(vector(whole.theta)).max() > 0.01
    np.testing.assert_array_equal(vector(parts.theta), vector(whole.theta))
    same = [column for column in whole.history if column != "seconds"]  # Adam and the mean on fixed levels among them
    pd.testing.assert_frame_equal(parts.history[same], whole.history[same], check_exact=True)
    assert whole.history["adam.tiny-gridworld"].nunique() == 1
    assert weights.load_weights(whole.path).metadata["identity"]["task_sampling"] == "antithetic"
    whole.path.unlink()
    with pytest.raises(UserError, match=r'task_sampling \("antithetic" there, absent here\)'):
        evolve_pairs("whole", task_sampling="common")


def test_groups_that_do_not_divide_a_generation_change_nothing(tmp_path: Path) -> None:
    """Width 5 of 12 lifetimes: the last group is padded, on one device as on two."""
    start = lpo_start(tmp_path)
    one, two = (meta_train(tmp_path / str(n), start, vmap_size=5, generations=3, devices=n) for n in (1, 2))
    assert np.abs(one.theta["policy_loss"]["kernel_1"]).max() > 0.01
    np.testing.assert_array_equal(vector(one.theta), vector(two.theta))


class Stop(Progress):
    """Interrupts after a generation, as Ctrl-C would."""

    def __init__(self, after: int):
        self._after = after

    def generation(self, row: dict[str, Any], seconds_left: float) -> None:
        if row["generation"] == self._after:
            raise KeyboardInterrupt


class StopWithin(Progress):
    """Interrupts between two rounds of the third generation."""

    def __init__(self) -> None:
        self._rounds = 0

    def evaluated(self, lifetimes: int, total: int) -> None:
        self._rounds += lifetimes == 2
        if self._rounds == 3 and lifetimes == 6:
            raise KeyboardInterrupt


def test_interrupted_between_rounds_theta_is_bitwise_the_same(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        meta_train(tmp_path, progress=StopWithin())
    assert newest(Checkpoints(tmp_path / "meta" / "mine", {})) == 2
    resumed = meta_train(tmp_path)
    np.testing.assert_array_equal(vector(resumed.theta), vector(undisturbed.trained.theta))


def interrupted(folder: Path, after: int = 5) -> Path:
    with pytest.raises(KeyboardInterrupt):
        meta_train(folder, progress=Stop(after))
    return folder / "meta" / "mine"


KILLED = """
import sys, time
import open_bench
import open_bench.api
from open_bench.meta_training.evolution import Progress

class Slow(Progress):
    def generation(self, row, seconds_left):
        time.sleep(0.2)

open_bench.meta_train("open", ["cartpole"], name="mine", progress=Slow(), devices=2, **{settings!r})
"""


def test_killed_at_random_moments_theta_is_bitwise_the_same(undisturbed: Undisturbed, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "results" / "meta" / "mine", {})
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_NUM", "XLA_"))}
    start = lambda: subprocess.Popen(
        [sys.executable, "-c", KILLED.format(settings=SETTINGS)], cwd=tmp_path, stderr=subprocess.PIPE,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[1])}, text=True,
    )  # fmt: skip
    moments, kills, seen = random.Random(), 0, []
    while kills < 3:
        process, before = start(), newest(checkpoints)
        while newest(checkpoints) <= before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        kills += 1
        seen.append(newest(checkpoints))
    assert sorted(set(seen)) == seen
    assert seen[-1] < SETTINGS["generations"], "it ended before it was killed"
    process = start()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    found = weights.load_weights(tmp_path / "library" / "mine.safetensors")
    np.testing.assert_array_equal(vector(found.theta), vector(undisturbed.trained.theta))
    history = pd.read_csv(checkpoints.folder / "history.csv")
    assert history["generation"].tolist() == list(range(1, SETTINGS["generations"] + 1))
    assert not list(checkpoints.folder.glob(".*.safetensors.*"))  # nothing half-written stays


def newest(checkpoints: Checkpoints) -> int:
    return max((int(path.stem.partition("-")[2]) for path in checkpoints.paths()), default=0)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    """One bit of the last number: the file stays readable."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    damage: Callable[[Path], None], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder = interrupted(tmp_path)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        f"checkpoint-{generation:06d}.safetensors" for generation in (3, 4, 5)
    ]
    damage(folder / "checkpoint-000005.safetensors")
    with pytest.warns(UserWarning, match=r"checkpoint-000005\.safetensors is damaged; going on from checkpoint-000004"):
        resumed = meta_train(tmp_path)
    np.testing.assert_array_equal(vector(resumed.theta), vector(undisturbed.trained.theta))


def test_where_all_checkpoints_are_damaged_it_begins_anew(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {"a": 1})
    assert checkpoints.load() is None
    checkpoints.save(Saved(1, {"x": np.zeros(3)}, [], {}))
    truncate(checkpoints.paths()[0])
    with pytest.warns(UserWarning, match="is damaged; beginning anew"):
        assert checkpoints.load() is None


def test_a_checkpoint_holds_what_was_saved(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {"settings": {"sigma": 0.1}})
    for generation in range(1, 6):
        saved = Saved(generation, {"x": np.full(2, np.pi * generation)}, [{"fitness": float("nan")}], {"b": 0.1})
        checkpoints.save(saved)
    found = checkpoints.load()
    assert found is not None
    assert (found.generation, found.facts) == (5, {"b": 0.1})
    np.testing.assert_array_equal(found.arrays["x"], saved.arrays["x"])
    assert np.isnan(found.history[0]["fitness"])
    assert [path.name for path in checkpoints.paths()] == [f"checkpoint-{i:06d}.safetensors" for i in (3, 4, 5)]
    with pytest.raises(
        UserError, match=r"settings\.sigma \(0\.1 there, 0\.2 here\); vmap_size \(absent there, 4 here\)"
    ):
        Checkpoints(tmp_path, {"settings": {"sigma": 0.2}, "vmap_size": 4}).load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0.5}, r"sigma \(1\.0 there, 0\.5 here\)\. Use"),
        ({"vmap_size": 2, "root_seed": 3}, r"root_seed \(0 there, 3 here\); vmap_size \(1 there, 2 here\)\. Use"),
        ({"population": 4, "rollouts": 3}, r"population \(6 there, 4 here\); rollouts \(2 there, 3 here\)"),
        ({"steps": 64 * 10}, r"environments\.cartpole\.num_updates \(20 there, 10 here\)"),
        ({"settings": {**TINY, "gamma": 0.9}}, r"environments\.cartpole\.ppo\.gamma \(0\.99 there, 0\.9 here\)"),
        ({"optimizer": "lpo"}, r'policy_loss \("ppo" there, "lpo" here\); optimizer \("open" there, "lpo" here\)'),
        ({"generations": 4}, r"has 10 generations already, and 4 were asked for"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    changes: dict[str, Any], message: str, undisturbed: Undisturbed
) -> None:
    with pytest.raises(UserError, match=message):
        meta_train(undisturbed.folder, **changes)


def test_more_generations_continue_a_finished_evolution(undisturbed: Undisturbed, tmp_path: Path) -> None:
    short = meta_train(tmp_path, generations=6)
    longer = meta_train(tmp_path)
    assert short.hash != longer.hash
    np.testing.assert_array_equal(vector(longer.theta), vector(undisturbed.trained.theta))
    assert weights.load_weights(longer.path).hash == longer.hash
    assert weights.load_weights(longer.path).metadata["cost"]["generations"] == 10


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_weights_are_stored_with_how_they_were_made(undisturbed: Undisturbed) -> None:
    trained, folder = undisturbed
    stored = weights.load_weights(folder / "library" / "mine.safetensors")
    assert stored.hash == trained.hash
    np.testing.assert_array_equal(vector(stored.theta), vector(trained.theta))
    facts = stored.metadata
    assert facts["optimizer"] == "open"
    assert facts["policy_loss"] == "ppo"
    assert facts["parameters"] == 1211
    assert facts["parent"] is None
    assert facts["seed"] == 0
    assert facts["environments"] == {"cartpole": {"env_steps": 64 * UPDATES}}
    assert facts["config"]["sigma"] == 1.0
    assert facts["config"]["strategy"] == "Open_ES"
    cost = facts["cost"]
    assert cost["generations"] == 10
    assert cost["lifetimes"] == 10 * GENERATION
    assert cost["env_steps"] == 10 * GENERATION * 64 * UPDATES
    assert 0 < cost["seconds"] < 600
    assert cost["devices"] == 2
    assert "cpu" in cost["device"]
    assert {"jax", "optax", "evosax"} <= set(facts["provenance"]["packages"])
    assert json.loads(json.dumps(facts)) == facts
    best = weights.load_weights(trained.folder / "best.safetensors")
    assert best.metadata["fitness"] == pytest.approx(trained.history["fitness_mean"].max())
    assert weights.load_weights(trained.folder / "latest.safetensors").hash == trained.hash
    history = pd.read_csv(trained.folder / "history.csv")
    pd.testing.assert_frame_equal(history, trained.history)


def test_meta_trained_weights_are_used_by_name(undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(undisturbed.folder / "library"))
    spec = resolve(undisturbed.trained.optimizer)
    assert spec.name == "open@mine"
    np.testing.assert_array_equal(vector(spec.theta), vector(undisturbed.trained.theta))


def test_evolution_starts_at_the_named_weights_and_says_so(undisturbed: Undisturbed, tmp_path: Path) -> None:
    start = undisturbed.trained.folder / "latest.safetensors"
    child = meta_train(tmp_path, f"open@{start}", generations=1, learning_rate=1e-6)
    assert 0 < np.abs(vector(child.theta) - vector(undisturbed.trained.theta)).max() < 1e-5
    metadata = weights.load_weights(child.path).metadata
    assert metadata["parent"] == undisturbed.trained.hash
    (ancestor,) = metadata["ancestors"]
    parent = weights.load_weights(start).metadata
    assert (ancestor["hash"], ancestor["environments"]) == (undisturbed.trained.hash, parent["environments"])
    assert ancestor["identity"]["environments"] == parent["identity"]["environments"]
    assert child.optimizer == "open@mine"
    grandchild = meta_train(tmp_path, f"open@{child.path}", name="next", generations=1)
    ancestors = weights.load_weights(grandchild.path).metadata["ancestors"]
    assert [one["hash"] for one in ancestors] == [undisturbed.trained.hash, child.hash]


def test_weights_under_the_optimizers_own_name_are_no_start(undisturbed: Undisturbed, tmp_path: Path) -> None:
    weights.save_named("open", undisturbed.trained.theta, {})
    assert vector(resolve("open").theta).any()
    moved = meta_train(tmp_path, generations=1, learning_rate=1e-6)
    assert np.abs(vector(moved.theta)).max() < 1e-5


def test_a_policy_objective_is_evolved_too(tmp_path: Path) -> None:
    trained = meta_train(tmp_path, lpo_start(tmp_path), generations=2)
    assert trained.theta["optimizer"] == {}
    moved = trained.theta["policy_loss"]
    assert {name: leaf.shape for name, leaf in moved.items()} == {"kernel_0": (8, 128), "kernel_1": (128, 1)}
    assert 0.01 < np.abs(moved["kernel_1"]).max() < 0.1  # two steps of Adam from 0
    assert trained.optimizer == "lpo@mine"
    assert resolve("lpo@mine").theta is not None


def test_the_mean_is_evaluated_against_adam_and_on_what_is_held_out(tmp_path: Path) -> None:
    changes = {"held_out": ["catch"], "evaluate_every": 2, "evaluation_rollouts": 2, "generations": 2}
    trained = meta_train(tmp_path, lpo_start(tmp_path), **changes, population=2, rollouts=1, learning_rate=3.0)
    columns = ["return.cartpole", "adam.cartpole", "return.catch", "adam.catch"]
    assert trained.history[columns].iloc[0].isna().all()
    last = trained.history[columns].iloc[1]
    assert last["return.cartpole"] != last["adam.cartpole"]  # or one of them is not what it says
    assert last[["return.cartpole", "adam.cartpole"]].min() > 8
    assert last[["return.catch", "adam.catch"]].between(-1, 1).all()
    assert trained.history["env_steps"].iloc[1] == 2 * 2 * 64 * UPDATES  # what is only looked at is not counted


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "meta" / "mine"
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / ".lock"), pytest.raises(UserError, match="another process is meta-training"):
        meta_train(tmp_path)


def test_a_name_that_is_taken_is_refused_at_once(tmp_path: Path, library: Path) -> None:
    weights.save_named("mine", theta_of(1.0), {})
    with pytest.raises(UserError, match="holds other weights; choose another --name"):
        meta_train(tmp_path)
    assert not (tmp_path / "meta").exists()


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["open", "-e", "cartpole", "--population", 5], "population = 5 is odd, and Open_ES samples antithetic pairs"),
        (["open", "-e", "cartpole", "--population", 0], "population = 0: Input should be greater than or equal to 2"),
        (
            ["open", "-e", "cartpole", "--population", 4, "--vmap-size", 8],
            "vmap_size 8 is larger than the population: a gener",
        ),
        (["adam", "-e", "cartpole"], "adam cannot be meta-trained: it has no meta-parameters"),
        (["open", "-e", "cartpole", "--strategy", "OpenES"], "strategy 'OpenES' is unknown. Did you mean Open_ES"),
        (["open", "-e", "cartpole", "--strategy", "PSO"], "strategy 'PSO' is population-based"),
        (["open"], "no environment to meta-train on"),
        (["open", "-e", "cartpol"], "unknown environment 'cartpol'. Did you mean cartpole"),
        (["open", "-e", "cartpole", "--steps", 10], "10 steps on cartpole are fewer than one PPO update"),
        (["open", "-e", "cartpole", "--sigma", -1], "sigma = -1.0: Input should be greater than 0"),
        (["open", "-e", "cartpole", "--fitness", "best"], "fitness = 'best': "),
        (["open", "-e", "cartpole", "--held-out", "cartpole"], "'cartpole' is both trained on and held out"),
        (["open", "-e", "cartpole", "--held-out", "catch"], "held_out is evaluated every evaluate_every generations"),
        (
            ["open", "-e", "cartpole", "-e", "UmbrellaChain-bsuite"],
            "UmbrellaChain-bsuite cannot be meta-trained on together with others",
        ),
        (["open", "--config", "opn"], "unknown meta-training recipe 'opn'. Did you mean open"),
        (["opne", "-e", "cartpole"], "unknown optimizer 'opne'. Did you mean open"),
        (["open", "-e", "cartpole", "--name", "../up"], "is no name of weights"),
        (["open", "-e", "cartpole", "--name", "zero"], "'zero' cannot name weights: NAME@zero means θ = zero"),
        (
            ["open", "-e", "gridworld/rand_all", "-e", "cartpole", "--task-sampling", "antithetic"],
            "cartpole draws none: train on environments with levels alone, such as gridworlds, or take task_sampling",
        ),
        (
            ["open", "-e", "gridworld/rand_all", "--task-sampling", "antithetic", "--strategy", "SNES"],
            "compares mirrored members, and SNES draws none: take Open_ES",
        ),
        (["open", "-e", "cartpole", "--task-sampling", "pairs"], "task_sampling = 'pairs': Input should be 'common'"),
    ],
)
def test_a_bad_request_is_one_line_and_exit_code_2(
    arguments: list[object], message: str, openbench: OpenBench, tmp_path: Path
) -> None:
    answer = openbench("meta-train", *arguments, "--results", tmp_path / "results")
    assert answer.code == 2
    assert message in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("optimizer", "sigma", "message"),
    [("open", 0.5, "sigma (1.0 there, 0.5 here). Use"), ("lpo", 1.0, 'optimizer ("open" there, "lpo" here)')],
)
def test_a_checkpoint_of_others_is_one_line_and_exit_code_2(
    optimizer: str, sigma: float, message: str, openbench: OpenBench, undisturbed: Undisturbed
) -> None:
    answer = openbench(
        "meta-train", optimizer, "-e", "cartpole", "--results", undisturbed.folder, "--name", "mine", "--steps", 1280,
        "--population", 6, "--rollouts", 2, "--sigma", sigma, "--fitness", "mean_return", "--vmap-size", 1, "--quiet",
        *[f"--set={key}={list(value) if isinstance(value, tuple) else value}" for key, value in TINY.items()],
    )  # fmt: skip
    assert answer.code == 2
    assert message in answer.err
    assert "was made with other settings" in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def test_an_unknown_setting_comes_with_near_matches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown key 'popluation'\. Did you mean population"):
        meta_train(tmp_path, popluation=4)


def test_the_command_line_meta_trains_and_says_where_the_weights_are(
    openbench: OpenBench, undisturbed: Undisturbed, tmp_path: Path, library: Path
) -> None:
    settings = [f"--set={key}={list(value) if isinstance(value, tuple) else value}" for key, value in TINY.items()]
    flags = {"population": 6, "rollouts": 2, "sigma": 1.0, "fitness": "mean_return", "vmap_size": 1, "devices": 2,
             "steps": SETTINGS["steps"], "results": tmp_path, "name": "mine"}  # fmt: skip
    options = [f"--{key}={value}" for key, value in flags.items()]
    answer = openbench("meta-train", "open", "-e", "cartpole", *settings, *options, "--generations=3", "--plain")
    assert answer.code == 0, answer.err
    assert "custom: 3 generations, θ has 1,211 numbers" in answer.err
    assert "generation 3/3: fitness " in answer.err
    assert "open@mine" in answer.out
    assert (library / "mine.safetensors").is_file()
    expected = undisturbed.trained.history["fitness_mean"][:3]
    pd.testing.assert_series_equal(pd.read_csv(tmp_path / "meta/mine/history.csv")["fitness_mean"], expected)
    answer = openbench("meta-train", "open", "-e", "cartpole", *settings, *options, "--generations=4", "--plain")
    assert "going on after generation 3" in answer.err


def test_recipes_ship_and_the_published_ones_are_the_papers() -> None:
    recipes = {name: load_meta(name) for name in shipped("meta")}
    assert {"open", "lpo", "open-cartpole", "open-gridworld", "open-gridworld-small"} <= set(recipes)
    assert all(recipe.name == name and recipe.description for name, recipe in recipes.items())
    published = {"population": 64, "sigma": 0.03, "learning_rate": 0.03, "b1": 0.99, "rollouts": 1,
                 "fitness": "final_return", "strategy": "Open_ES", "budget": "full", "env_steps": None}  # fmt: skip
    for name in ("open-gridworld", "open-gridworld-small"):
        assert (recipes[name].task_sampling, recipes[name].environments) == ("antithetic", ("gridworld/rand_all",))
    assert load_environment("gridworld/rand_all").budget_steps("full") == 30_000_000
    for name, decay, generations in (("open", 0.999, 500), ("open-gridworld", 0.999, 500), ("lpo", 0.99, 800)):
        found = recipes[name].model_dump()
        assert published.items() <= found.items()
        assert (found["sigma_decay"], found["learning_rate_decay"], found["generations"]) == (decay, decay, generations)


def test_a_recipes_ppo_settings_hold_unless_others_are_given() -> None:
    recipe = MetaConfig(environments=("cartpole",), settings={"num_envs": 8, "hidden": [4, 4]}, env_steps=20_480)

    def found(given: dict[str, Any]) -> tuple[int, tuple[int, ...]]:
        (task,) = open_bench.api._meta_request("open", recipe, given, jax.devices()).tasks
        return task.environment.ppo.num_envs, task.environment.ppo.hidden

    assert found({}) == (8, (4, 4))
    assert found({"num_envs": 2}) == (2, (4, 4))
    with pytest.raises(UserError, match="unknown key 'num_env'"):
        found({"num_env": 2})
    plain = MetaConfig(environments=("cartpole",), env_steps=20_480)
    ours, theirs = (
        open_bench.api._meta_request("open", config, given, jax.devices()).identity
        for config, given in ((recipe, {}), (plain, {"num_envs": 8, "hidden": [4, 4]}))
    )
    assert ours == theirs
