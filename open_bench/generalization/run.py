"""A generalization study: its points as ordinary experiments of the store, and what was measured there."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import pandas as pd

from open_bench.config import build
from open_bench.environments.registry import load_environment
from open_bench.errors import UserError
from open_bench.evaluation.schema import Runs
from open_bench.experiments.execute import Options, Progress, execute
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.plan import Task, changed, make_experiments, resolve_all
from open_bench.experiments.store import Store
from open_bench.generalization.distribution import Trained, of_weights, place, trained_on
from open_bench.generalization.scales import optimal_returns, random_returns
from open_bench.generalization.scores import Evidence, Key
from open_bench.generalization.study import (
    TRAINING,
    GeneralizationConfig,
    Point,
    check_labels,
    make_points,
    make_task,
    training_point,
)
from open_bench.optimizers.spec import OptimizerSpec
from open_bench.optimizers.registry import resolve

BASELINE = "adam"
FOLDER = "generalization"  # below the results folder


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study ready to run.

    Attributes:
        preset: with the seeds in force.
        points: in order.
        experiments: every optimizer at every task.
        train_on: environments that the user names as the training distribution.
        notes: what a reader has to know.
    """

    preset: GeneralizationConfig
    points: tuple[Point, ...]
    experiments: tuple[Experiment, ...]
    train_on: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def tasks(self) -> dict[Key, Task]:
        """Tasks by environment and budget, each once."""
        return {point.key: point.task for point in self.points}


def make_plan(
    preset: GeneralizationConfig,
    optimizers: Sequence[str],
    devices: Sequence[jax.Device],
    *,
    train_on: Sequence[str] = (),
    axes: Sequence[str] = (),
    num_seeds: int | None = None,
    root_seed: int | None = None,
    vmap_size: int | None = None,
) -> Plan:
    """Check everything that can be wrong before anything trains.

    Args:
        preset: the sweeps.
        optimizers: names in the registry's grammar; Adam joins them.
        devices: where it will run; decides the default vmap_size.
        train_on: environments that count as what those optimizers were trained on of which it is not known.
        axes: only these.
        num_seeds, root_seed: in place of the preset's.
        vmap_size: lifetimes in a vmapped group.

    Raises:
        UserError: naming what is wrong.
    """
    if not optimizers:
        raise UserError("no optimizer: name at least one, such as open")
    given = {key: value for key, value in (("num_seeds", num_seeds), ("root_seed", root_seed)) if value is not None}
    preset = build(GeneralizationConfig, preset.model_dump() | given, f"preset {preset.name}")
    trained = list(dict.fromkeys(load_environment(name).name for name in train_on))
    specs = resolve_all(optimizers)
    notes = []
    if BASELINE not in [spec.name for spec in specs]:
        specs = [resolve(BASELINE), *specs]
        notes.append(f"{BASELINE} was not named; it is there as what all are compared with")
    points = make_points(preset, axes)
    added, more = _training_points(specs, points, train_on, preset.longest_training)
    if added:
        names = ", ".join(point.label for point in added)
        notes.append(f"axis {TRAINING} is added: where optimizers were trained, when it is no other point: {names}")
    points = (*added, *points)
    check_labels(points, preset.name)
    tasks = list({point.key: point.task for point in points}.values())
    experiments = make_experiments(specs, tasks, devices, preset.root_seed, vmap_size, share_keys=True)
    if trained:
        notes.append(f"--train-on: {', '.join(trained)} counts as the training distribution, at any lifetime, of those "
                     "optimizers of which it is not known")  # fmt: skip
    return Plan(preset, points, experiments, tuple(train_on), (*notes, *more))


def run(plan: Plan, store: Store, devices: Sequence[jax.Device], progress: Progress) -> Evidence:
    """Train what is missing, and measure the random policy at every task."""
    seeds = plan.preset.num_seeds
    execute(plan.experiments, seeds, store, Options(devices), progress)
    there = {(experiment.environment.name, experiment.budget): experiment for experiment in plan.experiments}
    random = {}
    with progress.watch():
        for done, (key, experiment) in enumerate(there.items()):
            progress.measuring(experiment.environment.name, done, len(there))
            random[key] = random_returns(experiment, seeds, devices, store.results / FOLDER / "random")
        progress.measuring("", len(there), len(there))
    optimal = {
        key: found for key, experiment in there.items() if (found := optimal_returns(experiment, seeds)) is not None
    }
    runs = store.load(list(plan.experiments))
    scores, curves = (frame[frame["seed"] < seeds] for frame in (runs.scores, runs.curves))
    return Evidence(
        plan.preset.name, _point_rows(plan), _placements(plan), Runs(runs.experiments, scores, curves), random, optimal,
        plan.notes,
    )  # fmt: skip


def folder_of(results: str | Path, preset: str) -> Path:
    """Where tables and figures of a preset are written."""
    return Path(results) / FOLDER / preset


def _training_points(
    specs: Sequence[OptimizerSpec], points: Sequence[Point], train_on: Sequence[str], longest: int | None
) -> tuple[list[Point], list[str]]:
    """What θ was trained on, as points, where it is none yet; and notes on what could not be added."""
    found = {point.key: point for point in _given_points(points, train_on, longest)}
    notes = []
    for spec in specs:
        for trained in (of_weights(spec) or ()) if spec.needs_theta else ():
            task = _training_task(trained)
            if task is None:
                notes.append(f"{spec.name}: θ was trained on {trained.name}, which is not known here or has changed")
            elif longest is not None and task.env_steps > longest:
                notes.append(
                    f"{spec.name}: θ was trained on {trained.name} with lifetimes of {task.env_steps:,} env steps, "
                    f"longer than the preset's longest_training = {longest:,}, so that is no point"
                )
            else:
                point = training_point(task.environment, task.base, task.env_steps)
                found.setdefault(point.key, point)
    return list(found.values()), notes


def _training_task(trained: Trained) -> Task | None:
    try:
        base = load_environment(trained.name)
    except UserError:
        return None
    if (base.source, base.version) != (trained.source, trained.version) or not {*base.options} <= {*trained.options}:
        return None
    assert trained.num_updates is not None
    config = changed(base, trained.ppo, trained.options)
    return make_task(config, base.name, trained.num_updates * config.ppo.batch_size)


def _given_points(points: Sequence[Point], train_on: Sequence[str], longest: int | None) -> list[Point]:
    there = {point.task.environment.name for point in points}
    configs = {config.name: config for config in map(load_environment, train_on)}
    missing = [config for name, config in configs.items() if name not in there]
    lengths = [config.budgets.get("quick", min(config.budgets.values())) for config in missing]
    return [
        training_point(config, config.name, length if longest is None else min(length, longest))
        for config, length in zip(missing, lengths, strict=True)
    ]


def _point_rows(plan: Plan) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "axis": point.axis,
                "point": point.label,
                "x": point.x,
                "environment": point.key[0],
                "budget": point.key[1],
                "env_steps": point.task.env_steps,
                "num_updates": point.task.environment.num_updates(point.task.env_steps),
            }
            for point in plan.points
        ]
    )


def _placements(plan: Plan) -> pd.DataFrame:
    tasks = plan.tasks
    rows = []
    for experiment in plan.experiments:
        task = tasks[(experiment.environment.name, experiment.budget)]
        distribution, shifts = place(task, trained_on(experiment.resolved, task, plan.train_on))
        rows.append(
            {
                "optimizer": experiment.optimizer,
                "environment": experiment.environment.name,
                "budget": experiment.budget,
                "distribution": distribution,
                "shifts": "; ".join(shifts),
            }
        )
    return pd.DataFrame(rows)
