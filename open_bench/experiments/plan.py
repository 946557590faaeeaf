"""From names to experiments. Everything that a user can get wrong is found here, before anything trains."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from open_bench.config import StudyConfig, build
from open_bench.environments import registry as environments
from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import BaselineReturns
from open_bench.evaluation.metrics import ADAM, JOINED, ScalePlan, scale_plan
from open_bench.experiments.experiment import Experiment
from open_bench.optimizers import registry as optimizers
from open_bench.optimizers.resolve import ResolvedOptimizer, resolve
from open_bench.training.devices import Device, default_vmap_size
from open_bench.training.task import Settings, Task, make_task

Find = Callable[[Any, Task], ResolvedOptimizer]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study ready to run.

    Attributes:
        study: what was asked for.
        experiments: optimizer by optimizer within each environment.
        joined: Adam on every environment, where scores need it and nobody named it.
        random: the random policy on every environment, where scores need it.
        scales: what scores are measured against, one an algorithm's board.
    """

    study: StudyConfig
    experiments: tuple[Experiment, ...]
    joined: tuple[Experiment, ...] = ()
    random: tuple[Experiment, ...] = ()
    scales: tuple[ScalePlan, ...] = ()


def make_plan(
    study: StudyConfig,
    devices: Sequence[Device],
    steps: int | None = None,
    settings: Settings | None = None,
    vmap_size: int | None = None,
    find: Find = resolve,
    baseline_returns: BaselineReturns | None = None,
    baseline: bool = True,
) -> Plan:
    """The experiments of a study.

    Args:
        study: optimizers, environments, algorithm, budget and seeds.
        devices: where it will run; decides the default vmap size.
        steps: env steps of a lifetime, in place of the budget's.
        settings: settings of the algorithm to replace.
        vmap_size: lifetimes vmapped on one device.
        find: what an optimizer's name means for a task.
        baseline_returns: stored returns that scores may be measured against.
        baseline: whether Adam joins where neither they nor the study's own Adam can measure.

    Raises:
        UserError: naming what is wrong: an unknown name, a bad setting, too few steps, missing weights.
    """
    environments = _unique(study.environments, "environment")
    tasks = [
        make_task(each, algorithm=study.algorithm, budget=study.budget, steps=steps, settings=settings)
        for each in environments
    ]
    if len({task.budget for task in tasks}) > 1:  # so many steps are a budget of some of them alone
        tasks = [dataclasses.replace(task, budget=f"steps-{steps}") for task in tasks]
    experiments = make_experiments(study.optimizers, tasks, devices, study.root_seed, vmap_size, find=find)
    if baseline_returns is None:
        return Plan(study, experiments)
    joined: list[Experiment] = []
    random: list[Experiment] = []
    scales = []
    for algorithm in dict.fromkeys(task.algorithm for task in tasks):  # each has a board of its own
        board = [task for task in tasks if task.algorithm == algorithm]
        mine = [each for each in experiments if each.task.algorithm == algorithm]
        scale = _scale(board, {each.label for each in mine}, baseline_returns)
        if scale.kind == "none" and baseline:
            joined += make_experiments([ADAM], board, devices, study.root_seed, vmap_size, find=find)
            scale = _scale(board, {ADAM}, baseline_returns)
            scale = scale._replace(reason=f"{scale.reason}; {JOINED}")
        scales.append(scale)
        random += random_experiments(mine) if scale.kind == "own" else ()
    return Plan(study, experiments, tuple(joined), tuple(random), tuple(scales))


def _scale(board: Sequence[Task], optimizers: set[str], baseline_returns: BaselineReturns) -> ScalePlan:
    lengths = {task.name: task.lifetime_steps for task in board}
    return scale_plan(lengths, board[0].algorithm, board[0].budget, optimizers, baseline_returns, env_steps=lengths)


def make_experiments(
    optimizers: Sequence[Any],
    tasks: Sequence[Task],
    devices: Sequence[Device],
    root_seed: int,
    vmap_size: int | None = None,
    share_keys: bool = False,
    find: Find = resolve,
) -> tuple[Experiment, ...]:
    """Every optimizer on every task, optimizer by optimizer within each task.

    Args:
        optimizers: names, or what a name may stand for.
        tasks: what they are trained on.
        devices: where they will run; decides the default vmap size.
        root_seed: root of all keys.
        vmap_size: lifetimes vmapped on one device.
        share_keys: variants of one base environment use its keys, so that they meet the same levels and resets;
            otherwise each has keys of its own name.
        find: what an optimizer's name means for a task.

    Raises:
        UserError: a bad vmap size, missing weights, a name listed twice, or two experiments that would be one row.
    """
    if vmap_size is not None and not 1 <= vmap_size <= 4096:
        raise UserError(f"--vmap-size must be from 1 to 4096, not {vmap_size}")
    named = _unique(optimizers, "optimizer")
    experiments = []
    for task in tasks:
        chosen = vmap_size or default_vmap_size(devices, task.lifetime_bytes)
        keys_of = task.base if share_keys else ""
        experiments += [Experiment(task, find(each, task), root_seed, chosen, keys_of) for each in named]
    _check_distinct(experiments)
    return tuple(experiments)


def random_experiments(experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
    """The random policy on every task of some experiments, with their keys."""
    found: dict[tuple[str, str, str], Experiment] = {}
    for each in experiments:
        random = with_random_policy(each)
        found.setdefault((each.task.name, each.task.algorithm, each.task.budget), random)
    return tuple(found.values())


def with_random_policy(experiment: Experiment) -> Experiment:
    """The random policy in place of what an experiment trains."""
    return dataclasses.replace(experiment, task=experiment.task.random(), optimizer=None)


def told_apart(study: StudyConfig) -> StudyConfig:
    """The study, with grids written out, and numbers in the names of objects that would have one name."""
    apart = {
        "optimizers": optimizers.told_apart(study.optimizers),
        "environments": environments.told_apart(study.environments),
    }
    return study.model_copy(update=apart)


def adjust(study: StudyConfig, **changes: Any) -> StudyConfig:
    """The study with some fields replaced; ``None`` leaves a field as it is. Raises UserError for a bad value."""
    values = {name: getattr(study, name) for name in study.model_fields_set}
    given = {key: value for key, value in changes.items() if value is not None}
    return build(StudyConfig, values | given, f"study {study.name}")


def _check_distinct(experiments: Sequence[Experiment]) -> None:
    """Refuse two experiments that would be one row: other spellings of one name, or two environments called alike."""
    seen: set[tuple[str, ...]] = set()
    for each in experiments:
        origin = each.optimizer.origin if each.optimizer is not None else ""  # by which boards tell rows apart
        row = (each.task.name, each.task.algorithm, each.task.budget, each.label, origin)
        if row in seen:
            raise UserError(f"{each.label} on {each.task.name} is asked for twice, perhaps in two spellings")
        seen.add(row)


def _unique(values: Sequence[Any], kind: str) -> list[Any]:
    seen: set[Any] = set()
    for value in values:
        key = value if isinstance(value, str) else id(value)
        if key in seen:
            raise UserError(f"{kind} '{value}' is listed twice")
        seen.add(key)
    return list(values)
