"""Points of a generalization study, which is data, and the environments that their sweeps describe."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from open_bench.config import Config, Count, Positive, RootSeed, StudyName, build, load_named
from open_bench.environments.base import Discrete
from open_bench.environments.config import EnvironmentConfig
from open_bench.environments.registry import load_environment, make_environment, read_files, same_task
from open_bench.errors import UserError, check_known
from open_bench.training.task import Task, make_task

Axis = Literal[
    "levels", "size", "horizon", "density", "respawn", "terminate", "walls", "width", "depth", "activation", "lifetime",
    "num_envs", "minibatches", "families", "algorithm",
]  # fmt: skip
AXES: tuple[str, ...] = get_args(Axis)
TRAINING = "training"  # the axis of points that are added: where θ was trained
_VARIED = ("settings.", "options.")


class Sweep(Config):
    """One axis with everything else fixed: several environments, or one with some of its settings varied."""

    axis: Axis
    environments: tuple[str, ...] = Field(min_length=1)
    # "settings.<setting>", "options.<option>", "env_steps", "algorithm": all get each of the values in turn.
    vary: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)  # of the algorithm, the same at every point
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)  # likewise of the task
    algorithm: str | None = None  # each environment's own by default
    budget: str | None = None  # of a lifetime; either this or env_steps, unless these are varied
    env_steps: Positive | tuple[Positive, ...] | None = None  # one for all environments, or one each

    @model_validator(mode="after")
    def _is_one_sweep(self) -> "Sweep":
        lengths = sum((self.budget is not None, self.env_steps is not None, "env_steps" in self.vary))
        if lengths != 1:
            raise ValueError(f"axis {self.axis}: give one of env_steps and budget, or vary env_steps")
        if isinstance(self.env_steps, tuple) and len(self.env_steps) != len(self.environments):
            raise ValueError(
                f"axis {self.axis}: {len(self.env_steps)} env_steps for {len(self.environments)} environments"
            )
        if bool(self.vary) != bool(self.values):
            raise ValueError(f"axis {self.axis}: vary and values go together")
        if self.vary and len(self.environments) > 1:
            raise ValueError(f"axis {self.axis}: a sweep varies settings of one environment, not of several")
        for name in self.vary:
            if name not in ("env_steps", "algorithm") and not name.startswith(_VARIED):
                raise ValueError(
                    f"axis {self.axis}: vary = '{name}' is neither env_steps nor algorithm nor settings.SETTING nor "
                    "options.OPTION"
                )
        return self


class GeneralizationConfig(Config):
    """A study: sweeps, and how often each point is repeated."""

    name: StudyName
    description: str = ""
    num_seeds: Count = 4  # seeds of each point
    root_seed: RootSeed = 0  # root seed
    # Env steps: an environment that θ was trained on is a point too, unless its lifetimes were longer than this.
    longest_training: Positive | None = None
    sweeps: tuple[Sweep, ...] = Field(min_length=1)


@dataclasses.dataclass(frozen=True)
class Point:
    """One place of the study; the same task may be a point of several axes.

    Attributes:
        axis: what is swept.
        label: the value there, for people.
        x: the value as a number, NaN where it is none.
        task: what is trained on.
    """

    axis: str
    label: str
    x: float
    task: Task

    @property
    def key(self) -> tuple[str, str]:
        """Environment (with an algorithm that is not its usual one) and budget: points with equal ones share runs."""
        return task_name(self.task), self.task.budget


def task_name(task: Task) -> str:
    """The environment's name, with the algorithm where it is not the environment's own."""
    return task.name + _algorithm(task)


def _algorithm(task: Task) -> str:
    return "" if task.algorithm == task.environment.algorithm else f" · {task.algorithm}"


def load_generalization(name: str) -> GeneralizationConfig:
    """A study by name or by path to a TOML."""
    return load_named(GeneralizationConfig, "generalize", name)


def adjusted(
    study: GeneralizationConfig, *, algorithm: str | None = None, budget: str | None = None, steps: int | None = None,
    settings: Mapping[str, Any] | None = None, num_seeds: int | None = None, root_seed: int | None = None,
) -> GeneralizationConfig:  # fmt: skip
    """The study with a user's changes; a sweep keeps what it varies. Under another algorithm it is another study."""
    values = study.model_dump()
    length = {"budget": None, "env_steps": steps} if steps is not None else {"budget": budget, "env_steps": None}
    for sweep in values["sweeps"]:
        sweep["settings"] |= settings or {}
        if algorithm is not None and "algorithm" not in sweep["vary"]:
            sweep["algorithm"] = algorithm
        if (steps, budget) != (None, None) and "env_steps" not in sweep["vary"]:
            sweep |= length
    if algorithm is not None:
        values["name"] += "-" + re.sub(r"[^A-Za-z0-9._-]+", "-", algorithm)
    values |= {} if num_seeds is None else {"num_seeds": num_seeds}
    values |= {} if root_seed is None else {"root_seed": root_seed}
    return build(GeneralizationConfig, values, f"study {study.name}")


def make_points(study: GeneralizationConfig, axes: Sequence[str] = ()) -> tuple[Point, ...]:
    """The points of a study, every one checked, in its order; ``axes`` leaves the others out.

    Raises:
        UserError: an axis that is unknown or that the study has not, or a point that cannot be.
    """
    known = tuple(dict.fromkeys(sweep.axis for sweep in study.sweeps))
    for axis in axes:
        check_known("axis", axis, AXES)
        if axis not in known:
            raise UserError(f"study {study.name} has no axis '{axis}'; it has {', '.join(known)}")
    points = []
    for sweep in study.sweeps:
        if not axes or sweep.axis in axes:
            try:
                points += _points_of(sweep)
            except UserError as error:
                raise UserError(f"study {study.name}, axis {sweep.axis}: {error}") from None
    check_labels(points, study.name)
    return tuple(points)


def training_point(task: Task) -> Point:
    """A point on the axis of what θ was trained on."""
    return Point(TRAINING, f"{_short(task.environment)}{_algorithm(task)} {task.env_steps:,}", math.nan, task)


def _points_of(sweep: Sweep) -> list[Point]:
    points = []
    for index, name in enumerate(sweep.environments):
        base = load_environment(name)
        for value in sweep.values or (None,):
            varied = dict.fromkeys(sweep.vary, value)
            task = make_task(
                base,
                algorithm=varied.get("algorithm", sweep.algorithm),
                steps=_env_steps(sweep, index, base, varied),
                settings=sweep.settings | _part(varied, "settings."),
                options=_options(base, {**sweep.options, **_part(varied, "options.")}),
            )
            _check_that_it_starts(task.environment)
            label = _short(base) if value is None else _spell(value, sweep.axis)
            points.append(Point(sweep.axis, label, _number(value, sweep.axis), task))
    return points


def _check_that_it_starts(config: EnvironmentConfig) -> None:
    """Raise UserError unless an episode can be begun and stepped with the environment's options; nothing is run."""
    for option, value in config.options.items():
        if not isinstance(value, bool | int | float | str):
            raise UserError(f"{config.name}: {option} = {value!r} is neither a number nor a word")
    environment, key = make_environment(config), jax.random.key(0)
    space = environment.action_space
    action = jnp.int32(0) if isinstance(space, Discrete) else jnp.zeros(space.size)
    try:
        _, state = jax.eval_shape(environment.reset, key)
        jax.eval_shape(environment.step, key, state, action)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{config.name}: these options do not work: {error}") from None


def _env_steps(sweep: Sweep, index: int, base: EnvironmentConfig, varied: dict[str, Any]) -> int:
    if "env_steps" in varied:
        if not _counts(varied["env_steps"]):
            raise UserError(f"env_steps = {varied['env_steps']!r} is no number of env steps")
        return int(varied["env_steps"])
    if sweep.budget is not None:
        return base.budget_steps(sweep.budget)
    assert sweep.env_steps is not None
    return sweep.env_steps[index] if isinstance(sweep.env_steps, tuple) else sweep.env_steps


def _part(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _options(base: EnvironmentConfig, options: dict[str, Any]) -> dict[str, Any]:
    """Without options that spell out what holds anyway, so that those runs are the base's."""
    there = {**base.options, **read_files(base, options)}
    return {} if same_task(base, base.model_copy(update={"options": there})) else options


def _short(config: EnvironmentConfig) -> str:
    """The environment's name without its family's folder."""
    return config.name.removeprefix(f"{config.family}/")


def _spell(value: Any, axis: str) -> str:
    if axis == "depth" and isinstance(value, list | tuple):
        return str(len(value))
    if isinstance(value, list | tuple):
        return "×".join(map(str, value))
    return f"{value:,}" if _counts(value) else str(value)


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any, axis: str) -> float:
    if isinstance(value, list | tuple) and value:
        return float(len(value)) if axis == "depth" else float(value[0]) if _counts(value[0]) else math.nan
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def check_labels(points: Sequence[Point], study: str) -> None:
    """Raise UserError where two points could not be told apart."""
    seen: set[tuple[str, str]] = set()
    for point in points:
        if (point.axis, point.label) in seen:
            raise UserError(f"study {study}, axis {point.axis}: the point {point.label} is there twice")
        seen.add((point.axis, point.label))
