"""A generalization study: its points as ordinary experiments of the store, and what was measured there."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from open_bench.algorithms.registry import algorithm_name
from open_bench.config import Execution
from open_bench.environments.registry import load_environment
from open_bench.errors import UserError, check_known
from open_bench.evaluation.schema import Runs
from open_bench.events import Watcher
from open_bench.experiments.estimate import announce, missing_of
from open_bench.experiments.execute import execute
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.plan import make_experiments, with_random_policy
from open_bench.experiments.remote import devices_for
from open_bench.experiments.session import watcher_of
from open_bench.experiments.store import Store
from open_bench.files import write_atomically
from open_bench.generalization.distribution import Trained, of_weights, place, trained_on
from open_bench.generalization.report import write
from open_bench.generalization.scores import NORMALIZERS, Evidence, Generalization, Key, generalization
from open_bench.generalization.study import (
    TRAINING,
    GeneralizationConfig,
    Point,
    adjusted,
    check_labels,
    load_generalization,
    make_points,
    task_name,
    training_point,
)
from open_bench.optimizers.hyperparameters import folder_of as hyperparameters_folder
from open_bench.optimizers.registry import told_apart
from open_bench.optimizers.resolve import ResolvedOptimizer, resolve
from open_bench.training.devices import Device
from open_bench.training.keys import stream
from open_bench.training.task import Task, make_task

BASELINE = "adam"
FOLDER = "generalization"  # below the results folder
REQUEST = "request.json"  # how a study was asked for, where names can say it


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study ready to run.

    Attributes:
        study: what is run.
        points: in order.
        experiments: every optimizer at every task.
        train_on: environments that the user names as the training distribution.
        notes: what a reader has to know.
    """

    study: GeneralizationConfig
    points: tuple[Point, ...]
    experiments: tuple[Experiment, ...]
    train_on: tuple[str, ...]
    notes: tuple[str, ...]


def make_plan(
    study: GeneralizationConfig,
    optimizers: Sequence[Any],
    devices: Sequence[Device],
    *,
    train_on: Sequence[str] = (),
    axes: Sequence[str] = (),
    vmap_size: int | None = None,
    hyperparameters: str | Path | None = None,
) -> Plan:
    """Check everything that can be wrong before anything trains.

    Args:
        study: the sweeps.
        optimizers: names in the registry's grammar; Adam joins them.
        devices: where it will run; decides the default vmap size.
        train_on: environments that count as what those optimizers were trained on of which it is not known.
        axes: only these.
        vmap_size: lifetimes vmapped on one device.
        hyperparameters: results of tune, or a folder of its files, that come before those that ship.

    Raises:
        UserError: naming what is wrong.
    """
    if not optimizers:
        raise UserError("no optimizer: name at least one, such as open")
    trained = list(dict.fromkeys(load_environment(name).name for name in train_on))
    found = [resolve(each) for each in optimizers]
    named, notes = list(optimizers), []
    if BASELINE not in [each.label for each in found]:
        named = [BASELINE, *named]
        notes.append(f"{BASELINE} was not named; it is there as what all are compared with")
    points = make_points(study, axes)
    added, more = _training_points(found, points, train_on, study.longest_training)
    if added:
        names = ", ".join(point.label for point in added)
        notes.append(f"axis {TRAINING} is added: where optimizers were trained, when it is no other point: {names}")
    points = (*added, *points)
    check_labels(points, study.name)
    tasks = list({point.key: point.task for point in points}.values())
    folder = None if hyperparameters is None else hyperparameters_folder(hyperparameters)
    find = functools.partial(_carried_over, folder=folder)
    experiments = make_experiments(named, tasks, devices, study.root_seed, vmap_size, share_keys=True, find=find)
    labels = [each.label for each in found]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UserError(
            f"two of the optimizers are called {twice} (tracks are no part of a label): name it once; other "
            "settings of it stand in the name, as in adam:learning_rate=1e-3"
        )
    if trained:
        notes.append(f"--train-on: {', '.join(trained)} counts as the training distribution, at any lifetime, of those "
                     "optimizers of which it is not known")  # fmt: skip
    return Plan(study, points, experiments, tuple(train_on), (*notes, *more))


def _carried_over(optimizer: Any, task: Task, folder: Path | None) -> ResolvedOptimizer:
    """Under another algorithm than the environment's own the baseline is tuned for it, and all others carry over."""
    usual = None if resolve(optimizer).label == BASELINE else task.environment.algorithm
    return resolve(optimizer, task, tuned_for=usual, folder=folder)


def generalize(
    study: str | GeneralizationConfig, optimizers: Sequence[Any], train_on: Sequence[str], axes: Sequence[str],
    normalizer: str, execution: Execution, hyperparameters: str | Path | None = None, **changes: Any,
) -> Generalization:  # fmt: skip
    """``open_bench.generalize``: plan, train what is missing, score, write."""
    check_known("normalizer", normalizer, NORMALIZERS)
    changes["algorithm"] = algorithm_name(changes.get("algorithm"))
    chosen = adjusted(load_generalization(study) if isinstance(study, str) else study, **changes)
    store = Store(execution.folder)
    store.check_writable()
    devices = devices_for(execution)
    plan = make_plan(
        chosen, told_apart(optimizers), devices, train_on=train_on, axes=axes, vmap_size=execution.vmap_size,
        hyperparameters=hyperparameters,
    )  # fmt: skip
    evidence = run(plan, store, devices, watcher_of(execution), execution.save_agents, execution.diagnose)
    scored = generalization(evidence, normalizer, BASELINE)
    folder = folder_of(execution.folder, chosen.name)
    if jax.process_index() > 0:  # of several hosts the first writes
        return scored
    write(scored, folder)
    (folder / REQUEST).unlink(missing_ok=True)
    if all(isinstance(each, str) for each in (study, *optimizers)):
        sizes = {each.vmap_size for each in plan.experiments}
        request = {"optimizers": list(optimizers), "study": study, "train_on": list(train_on), "axes": list(axes),
                   "normalize": normalizer, **changes, "num_seeds": chosen.num_seeds, "root_seed": chosen.root_seed,
                   "vmap_size": max(sizes), "settings": dict(changes.get("settings") or {}),
                   "hyperparameters": None if hyperparameters is None else str(hyperparameters)}  # fmt: skip
        write_atomically(folder / REQUEST, json.dumps(request, indent=1) + "\n")
    return scored


def run(
    plan: Plan, store: Store, devices: Sequence[Device], watcher: Watcher, save_agents: bool = False,
    diagnose: bool = False,
) -> Evidence:  # fmt: skip
    """Train what is missing, and measure the random policy at every task."""
    num_seeds, there = plan.study.num_seeds, {_key(each): each for each in plan.experiments}
    random = {key: with_random_policy(each) for key, each in there.items()}
    experiments = (*plan.experiments, *random.values())
    announce(missing_of(experiments, num_seeds, store), devices)
    execute(experiments, num_seeds, store, devices, watcher, title=plan.study.name,
            save_agents=save_agents, diagnose=diagnose)  # fmt: skip
    optimal = {key: found for key, each in there.items() if (found := optimal_returns(each, num_seeds)) is not None}
    return Evidence(
        plan.study.name,
        _point_rows(plan),
        _placements(plan),
        _under_task_names(store.load(plan.experiments, num_seeds), plan.experiments),
        {key: _final_returns(store, each, num_seeds) for key, each in random.items()},
        optimal,
        plan.notes,
    )


def _key(experiment: Experiment) -> Key:
    return task_name(experiment.task), experiment.task.budget


def _final_returns(store: Store, experiment: Experiment, num_seeds: int) -> Any:
    """(num_seeds,), NaN where no episode ended."""
    scores = store.load([experiment], num_seeds).scores
    return scores.set_index("seed")["final_return"].reindex(range(num_seeds)).to_numpy(float)


def optimal_returns(experiment: Experiment, num_seeds: int) -> np.ndarray | None:
    """Expected returns (num_seeds,) of an optimal policy on each seed's level; None where they are not known."""
    environment, returns = experiment.task.make_environment(), []
    for key in experiment.keys(list(range(num_seeds))):
        value = environment.optimal_return(environment.level(stream(key, "environment")))
        if value is None:
            return None
        returns.append(value)
    return np.array(returns)


def _under_task_names(runs: Runs, experiments: Sequence[Experiment]) -> Runs:
    """Rows whose environment says the algorithm too, where it is not the environment's own."""
    names = {each.name: task_name(each.task) for each in experiments}
    frames = (runs.experiments, runs.scores, runs.curves, runs.diagnosis)
    return Runs(*(frame.assign(environment=frame["experiment"].map(names)) for frame in frames))


def folder_of(results: str | Path, study: str) -> Path:
    """Where tables and figures of a study are written."""
    return Path(results) / FOLDER / study


def _training_points(
    optimizers: Sequence[ResolvedOptimizer], points: Sequence[Point], train_on: Sequence[str], longest: int | None
) -> tuple[list[Point], list[str]]:
    """What θ was trained on, as points, where it is none yet; and notes on what could not be added."""
    found = {point.key: point for point in _given_points(points, train_on, longest)}
    notes = []
    for each in optimizers:
        for trained in (of_weights(each) or ()) if each.needs_weights else ():
            if trained.num_updates is None:
                notes.append(
                    f"{each.label}: θ was trained on {trained.name} with lifetimes of a length that is not known, so "
                    "that is no further point"
                )
                continue
            task = _training_task(trained)
            if task is None:
                notes.append(f"{each.label}: θ was trained on {trained.name}, which is not known here or has changed")
            elif longest is not None and task.env_steps > longest:
                notes.append(
                    f"{each.label}: θ was trained on {trained.name} with lifetimes of {task.env_steps:,} env steps, "
                    f"longer than the study's longest_training = {longest:,}, so that is no point"
                )
            else:
                point = training_point(task)
                found.setdefault(point.key, point)
    return list(found.values()), notes


def _training_task(trained: Trained) -> Task | None:
    try:
        base = load_environment(trained.name)
        if (base.source, base.version) != (trained.source, trained.version) or not {*base.options} <= {
            *trained.options
        }:
            return None
        first = make_task(base, algorithm=trained.algorithm, settings=trained.settings, options=trained.options)
        assert trained.num_updates is not None
        steps = trained.num_updates * first.settings.env_steps_per_update
        return make_task(
            base, algorithm=trained.algorithm, steps=steps, settings=trained.settings, options=trained.options
        )
    except UserError:
        return None


def _given_points(points: Sequence[Point], train_on: Sequence[str], longest: int | None) -> list[Point]:
    there = {point.task.name for point in points}
    configs = {config.name: config for config in map(load_environment, train_on)}
    missing = [config for name, config in configs.items() if name not in there]
    lengths = [config.budgets.get("quick", min(config.budgets.values())) for config in missing]
    return [
        training_point(make_task(config, steps=length if longest is None else min(length, longest)))
        for config, length in zip(missing, lengths, strict=True)
    ]


def _point_rows(plan: Plan) -> pd.DataFrame:
    return pd.DataFrame([
        {"axis": point.axis, "point": point.label, "x": point.x, "environment": point.key[0],
         "algorithm": point.task.algorithm, "budget": point.key[1], "env_steps": point.task.env_steps,
         "num_updates": point.task.num_updates}
        for point in plan.points
    ])  # fmt: skip


def _placements(plan: Plan) -> pd.DataFrame:
    rows = []
    for each in plan.experiments:
        assert each.optimizer is not None
        distribution, shifts = place(each.task, trained_on(each.optimizer, each.task, plan.train_on))
        environment, budget = _key(each)
        rows.append({"optimizer": each.label, "environment": environment, "budget": budget,
                     "distribution": distribution, "shifts": "; ".join(shifts)})  # fmt: skip
    return pd.DataFrame(rows)
