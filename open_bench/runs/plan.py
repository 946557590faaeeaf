"""From names to cells. Everything that a user can get wrong is found here, before anything trains."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from open_bench.config import EnvironmentConfig, StudyConfig, build
from open_bench.environments.base import Environment
from open_bench.environments.catalogue import load_environment, make_environment
from open_bench.errors import UserError
from open_bench.harness import parallel
from open_bench.optimizers.candidate import prepare
from open_bench.optimizers.registry import resolve
from open_bench.runs.cell import Cell


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study ready to run: its cells, optimizer by optimizer within each environment."""

    study: StudyConfig
    cells: tuple[Cell, ...]


def make_plan(
    study: StudyConfig,
    devices: Sequence[jax.Device],
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    width: int | None = None,
) -> Plan:
    """The cells of a study.

    Args:
        study: optimizers, environments, budget and seeds.
        devices: where it will run; decides the default width.
        steps: env steps of a lifetime, in place of the budget's.
        settings: PPO settings to replace.
        width: lifetimes in a vmapped group.

    Raises:
        UserError: naming what is wrong: an unknown name, a bad setting, too few steps, missing weights.
    """
    if width is not None and width < 1:
        raise UserError(f"--width must be at least 1, not {width}")
    entries = [resolve(name) for name in _unique(study.optimizers, "optimizer")]
    configs = [_environment(name, settings) for name in _unique(study.environments, "environment")]
    cells = []
    for config in configs:
        budget = f"steps-{steps}" if steps is not None else study.budget
        env_steps = steps if steps is not None else config.budget_steps(study.budget)
        config.num_updates(env_steps)
        chosen = width or parallel.default_width(devices, slot_bytes(make_environment(config), config))
        for entry in entries:
            candidate = prepare(entry, config.name.partition("[")[0], budget)
            cells.append(Cell(config, budget, env_steps, candidate, study.seed, chosen))
    _check_distinct(cells)
    return Plan(study, tuple(cells))


def adjust(study: StudyConfig, **changes: Any) -> StudyConfig:
    """The study with some fields replaced; ``None`` leaves a field as it is. Raises UserError for a bad value."""
    given = {key: value for key, value in changes.items() if value is not None}
    return build(StudyConfig, study.model_dump() | given, f"study {study.name}")


def slot_bytes(environment: Environment, config: EnvironmentConfig) -> int:
    """Rough memory of one lifetime's slot: its rollout, kept, flattened and shuffled."""
    item = jnp.dtype(environment.observation_dtype).itemsize
    return 4 * config.ppo.batch_size * (environment.observation_size * item + 40) + (1 << 22)


def _environment(name: str, settings: Mapping[str, Any] | None) -> EnvironmentConfig:
    """The configuration, renamed when settings differ from it, so that its results stay apart."""
    config = load_environment(name)
    if not settings:
        return config
    changed = config.with_settings(dict(settings))
    shipped, now = config.ppo.model_dump(), changed.ppo.model_dump()
    label = ",".join(f"{key}={_spell(now[key])}" for key in sorted(now) if now[key] != shipped[key])
    return changed.model_copy(update={"name": f"{config.name}[{label}]"}) if label else config


def _spell(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _check_distinct(cells: Sequence[Cell]) -> None:
    """Refuse two cells that would be one row: other spellings of one name, or two environments called alike."""
    seen: set[tuple[str, str]] = set()
    for cell in cells:
        row = (cell.environment.name, cell.optimizer)
        if row in seen:
            raise UserError(f"{cell.optimizer} on {cell.environment.name} is asked for twice, perhaps in two spellings")
        seen.add(row)


def _unique(names: Sequence[str], kind: str) -> list[str]:
    seen: list[str] = []
    for name in names:
        if name in seen:
            raise UserError(f"{kind} '{name}' is listed twice")
        seen.append(name)
    return seen
