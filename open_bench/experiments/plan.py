"""From names to experiments. Everything that a user can get wrong is found here, before anything trains."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from open_bench.config import EnvironmentConfig, StudyConfig, build
from open_bench.environments.base import Environment
from open_bench.environments.registry import load_environment, make_environment
from open_bench.errors import UserError
from open_bench.experiments.experiment import Experiment
from open_bench.optimizers.spec import OptimizerSpec
from open_bench.optimizers.registry import resolve
from open_bench.optimizers.resolve import prepare
from open_bench.training import mesh as parallel


@dataclasses.dataclass(frozen=True)
class Task:
    """What an optimizer is trained on in one experiment.

    Attributes:
        environment: configuration with the PPO settings in force.
        budget: name of the budget, or "steps-N".
        env_steps: length of a lifetime as asked for.
        base: environment whose shipped hyperparameters apply, and whose keys are used.
    """

    environment: EnvironmentConfig
    budget: str
    env_steps: int
    base: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study ready to run: its experiments, optimizer by optimizer within each environment."""

    study: StudyConfig
    experiments: tuple[Experiment, ...]


def make_plan(
    study: StudyConfig,
    devices: Sequence[jax.Device],
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    vmap_size: int | None = None,
    find: Callable[[str], OptimizerSpec] = resolve,
) -> Plan:
    """The experiments of a study.

    Args:
        study: optimizers, environments, budget and seeds.
        devices: where it will run; decides the default vmap_size.
        steps: env steps of a lifetime, in place of the budget's.
        settings: PPO settings to replace.
        vmap_size: lifetimes in a vmapped group.
        find: what an optimizer's name means.

    Raises:
        UserError: naming what is wrong: an unknown name, a bad setting, too few steps, missing weights.
    """
    specs = resolve_all(study.optimizers, find)
    tasks = []
    for name in _unique(study.environments, "environment"):
        shipped = load_environment(name)
        config = changed(shipped, settings or {})
        budget = f"steps-{steps}" if steps is not None else study.budget
        env_steps = steps if steps is not None else config.budget_steps(study.budget)
        tasks.append(Task(config, budget, env_steps, shipped.name))
    return Plan(study, make_experiments(specs, tasks, devices, study.root_seed, vmap_size))


def make_experiments(
    specs: Sequence[OptimizerSpec],
    tasks: Sequence[Task],
    devices: Sequence[jax.Device],
    root_seed: int,
    vmap_size: int | None = None,
    share_keys: bool = False,
) -> tuple[Experiment, ...]:
    """Every optimizer on every task, optimizer by optimizer within each task.

    Args:
        specs: resolved optimizers.
        tasks: what they are trained on.
        devices: where they will run; decides the default vmap_size.
        root_seed: root of all keys.
        vmap_size: lifetimes in a vmapped group.
        share_keys: variants of one base environment use its keys, so that they meet the same levels and resets;
            otherwise each has keys of its own name.

    Raises:
        UserError: a bad vmap_size, too few steps, missing weights, or two experiments that would be one row.
    """
    if vmap_size is not None and vmap_size < 1:
        raise UserError(f"--vmap-size must be at least 1, not {vmap_size}")
    experiments = []
    for task in tasks:
        config = task.environment
        config.num_updates(task.env_steps)
        chosen = vmap_size or parallel.default_vmap_size(devices, slot_bytes(make_environment(config), config))
        keys_of = task.base if share_keys else ""
        for spec in specs:
            resolved = prepare(spec, task.base, task.budget, nearest_budget(config, task))
            experiments.append(Experiment(config, task.budget, task.env_steps, resolved, root_seed, chosen, keys_of))
    _check_distinct(experiments)
    return tuple(experiments)


def nearest_budget(config: EnvironmentConfig, task: Task) -> str:
    """The task's budget when it is a named one, else that of the nearest length, by ratio: whose settings apply."""
    if task.budget in config.budgets:
        return task.budget
    return min(config.budgets, key=lambda name: abs(math.log(config.budgets[name] / task.env_steps)))


def resolve_all(optimizers: Sequence[str], find: Callable[[str], OptimizerSpec] = resolve) -> list[OptimizerSpec]:
    """The specs that names mean; raises UserError for a name that is listed twice, or that means nothing."""
    return [find(name) for name in _unique(optimizers, "optimizer")]


def adjust(study: StudyConfig, **changes: Any) -> StudyConfig:
    """The study with some fields replaced; ``None`` leaves a field as it is. Raises UserError for a bad value."""
    given = {key: value for key, value in changes.items() if value is not None}
    values = study.model_dump(exclude_unset=True)  # what [meta] leaves open stays so
    return build(StudyConfig, values | given, f"study {study.name}")


def slot_bytes(environment: Environment, config: EnvironmentConfig) -> int:
    """Rough memory of one lifetime's slot: its rollout, kept, flattened and shuffled."""
    item = jnp.dtype(environment.observation_dtype).itemsize
    return 4 * config.ppo.batch_size * (environment.observation_size * item + 40) + (1 << 22)


def changed(
    config: EnvironmentConfig,
    settings: Mapping[str, Any],
    options: Mapping[str, bool | int | float | str] | None = None,
) -> EnvironmentConfig:
    """The configuration with PPO settings and options of the task replaced.

    It is renamed by what differs, so that its results stay apart: ``name{options}[settings]``. With other settings the
    task is the same, and so is its random policy; with other options it is not.
    """
    made = config.with_settings(dict(settings)) if settings else config
    chosen = {**config.options, **(options or {})}
    names = [
        _difference(config.options, chosen, "{}"),
        _difference(config.ppo.model_dump(), made.ppo.model_dump(), "[]"),
    ]
    if not any(names):
        return config
    return made.model_copy(update={"name": "".join([config.name, *names]), "options": chosen})


def _difference(before: Mapping[str, Any], after: Mapping[str, Any], brackets: str) -> str:
    new = [f"{key}={_spell(after[key])}" for key in sorted(after) if key not in before or after[key] != before[key]]
    return brackets[0] + ",".join(new) + brackets[1] if new else ""


def _spell(value: Any) -> str:
    if isinstance(value, str) and "\n" in value:  # a map
        return f"map-{hashlib.sha256(value.encode()).hexdigest()[:8]}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _check_distinct(experiments: Sequence[Experiment]) -> None:
    """Refuse two experiments that would be one row: other spellings of one name, or two environments called alike."""
    seen: set[tuple[str, str, str]] = set()
    for experiment in experiments:
        row = (experiment.environment.name, experiment.budget, experiment.optimizer)
        if row in seen:
            raise UserError(
                f"{experiment.optimizer} on {experiment.environment.name} is asked for twice, perhaps in two spellings"
            )
        seen.add(row)


def _unique(names: Sequence[str], kind: str) -> list[str]:
    seen: list[str] = []
    for name in names:
        if name in seen:
            raise UserError(f"{kind} '{name}' is listed twice")
        seen.append(name)
    return seen
