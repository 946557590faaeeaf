"""A task: an environment, an algorithm with its settings, and the length of a lifetime."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from open_bench.algorithms.base import Algorithm, AlgorithmConfig, Learning
from open_bench.algorithms.registry import ALGORITHMS, RANDOM, build_config, code_identity, find_algorithm
from open_bench.config import TrainingLength
from open_bench.environments.base import Environment
from open_bench.environments.config import EnvironmentConfig
from open_bench.environments.registry import load_environment, make_environment, read_files
from open_bench.errors import UserError

Settings = Mapping[str, Any] | AlgorithmConfig  # of an algorithm: those to replace, or all of them


@dataclasses.dataclass(frozen=True)
class Task:
    """What an optimizer is trained on in one experiment.

    Attributes:
        environment: with the options in force; its name says what differs from the one that ships.
        algorithm: name of the algorithm.
        settings: of the algorithm, as they are in force.
        budget: name of the budget, or "steps-N" for any other length.
        env_steps: length of a lifetime as asked for.
        base: name of the environment before options and settings were changed: its tuned hyperparameters apply.
    """

    environment: EnvironmentConfig
    algorithm: str
    settings: AlgorithmConfig
    budget: str
    env_steps: int
    base: str

    @property
    def name(self) -> str:
        """The environment's name, with what differs."""
        return self.environment.name

    @property
    def num_updates(self) -> int:
        """Updates in a lifetime; raises UserError when there is not even one."""
        per_update = self.settings.env_steps_per_update
        updates = self.env_steps // per_update
        if self.env_steps <= 0 or updates < 1:
            raise UserError(
                f"{self.env_steps} steps on {self.name} are fewer than one update of {self.algorithm}: it needs "
                f"num_envs × num_steps = {self.settings.num_envs} × {self.settings.num_steps} = {per_update} env "
                "steps. Ask for more steps, or make the rollout smaller with --set num_envs=… or --set num_steps=…"
            )
        if updates >= 2**31:
            raise UserError(f"{self.env_steps} steps on {self.name} are {updates} updates, more than can be counted")
        return updates

    @property
    def length(self) -> TrainingLength:
        """A lifetime in the units that an optimizer may need."""
        return self.settings.training_length(self.num_updates)

    @property
    def lifetime_steps(self) -> int:
        """Env steps in a lifetime: whole updates only."""
        return self.num_updates * self.settings.env_steps_per_update

    @property
    def nearest_budget(self) -> str:
        """The task's budget when it is a named one, else that of the nearest length, by ratio: whose settings apply."""
        budgets = self.environment.budgets
        if self.budget in budgets:
            return self.budget
        return min(budgets, key=lambda name: abs(math.log(budgets[name] / self.env_steps)))

    @property
    def identity(self) -> dict[str, Any]:
        """Everything about the task that determines results, as JSON values."""
        config = self.environment
        return {
            "environment": config.name,
            **config.task_identity,
            "environment_version": config.version,
            "algorithm": self.algorithm,
            **code_identity(self.algorithm),
            "settings": json.loads(self.settings.model_dump_json()),
            "num_updates": self.num_updates,
        }

    def make_environment(self) -> Environment:
        """The environment."""
        return make_environment(self.environment)

    def make_algorithm(self) -> Algorithm:
        """The algorithm on the environment."""
        return find_algorithm(self.algorithm)(self.settings, self.make_environment())

    def params(self) -> Any:
        """Shapes of the agent's parameters; nothing is run."""
        algorithm, key = self.make_algorithm(), jax.random.key(0)
        learning = Learning(optax.with_extra_args_support(optax.identity()), lambda state, params: params, None)
        try:
            return jax.eval_shape(lambda key: algorithm.init(key, key, learning).params, key)
        except Exception as error:  # whatever the author's code raises
            raise UserError(
                f"{self.algorithm} cannot begin on {self.name}: its init fails with {type(error).__name__}: {error}"
            ) from error

    def random(self) -> "Task":
        """The same environment, copies, lengths and keys for the random policy."""
        values = {"num_envs": self.settings.num_envs, "num_steps": self.settings.num_steps}
        return dataclasses.replace(self, algorithm=RANDOM, settings=build_config(RANDOM, values, self.name))

    @functools.cached_property
    def lifetime_bytes(self) -> int:
        """Rough memory of one lifetime: its rollout, kept, flattened and shuffled; parameters with gradients, momenta
        and copies."""
        environment = self.make_environment()
        item = jnp.dtype(environment.observation_dtype).itemsize
        rollout = self.settings.env_steps_per_update * (environment.observation_size * item + 40)
        params = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.params()))
        return 4 * rollout + 6 * params + (1 << 22)


def make_task(
    environment: Any,
    *,
    algorithm: str | None = None,
    budget: str = "quick",
    steps: Any = None,
    settings: Any = None,
    options: Mapping[str, Any] | None = None,
) -> Task:
    """A task, with every name and value checked.

    Args:
        environment: whatever ``load_environment`` takes.
        algorithm: in place of the environment's own.
        budget: of a lifetime; ``steps``, a whole number of env steps, replaces it. As many steps as a budget has are
            that budget.
        settings: settings of the algorithm to replace, or all of them as its ``Config``; the environment is renamed by
            them, so that results stay apart.
        options: options of the environment to replace, likewise.

    Raises:
        UserError: naming what is wrong.
    """
    steps = None if steps is None else _whole(steps)
    config = load_environment(environment)
    tables = _tables(config, environment if isinstance(environment, str) else config.name)
    chosen = algorithm or config.algorithm
    before = _settings(config, tables, chosen)
    after = _replaced(before, settings, chosen, config.name)
    named = _renamed(config, before, after, {**config.options, **read_files(config, options or {})})
    env_steps = config.budget_steps(budget) if steps is None else steps
    find_algorithm(chosen).check(make_environment(named), named.name)
    name = next((name for name, steps in config.budgets.items() if steps == env_steps), f"steps-{env_steps}")
    task = Task(named, chosen, after, name, env_steps, config.name)
    _ = task.num_updates  # too few steps are an error now
    return task


def _whole(steps: Any) -> int:
    """A number of env steps, which Python may spell 1e5; raises UserError for what is none."""
    try:
        if not isinstance(steps, str | bool) and int(steps) == steps:
            return int(steps)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"steps = {steps!r} is no whole number of env steps")


def _tables(config: EnvironmentConfig, origin: str) -> dict[str, AlgorithmConfig]:
    """Settings of every algorithm that the environment names, checked whichever is asked for.

    Raises UserError that says where it stands: ``origin`` is the file or the name.
    """
    try:
        find_algorithm(config.algorithm)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    found = {}
    for name, values in config.algorithms.items():
        where = f"{origin}, [algorithms.{name}]"
        try:
            find_algorithm(name)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        found[name] = build_config(name, values, where)
    return found


def _settings(config: EnvironmentConfig, tables: Mapping[str, AlgorithmConfig], algorithm: str) -> AlgorithmConfig:
    """The environment's settings for an algorithm; an algorithm that does not ship has its defaults where none are."""
    kind = find_algorithm(algorithm)
    if algorithm in tables:
        return tables[algorithm]
    if tables and algorithm in ALGORITHMS:
        kind.check(make_environment(config), config.name)
        raise UserError(
            f"{config.name} has no settings for {algorithm} (it has {', '.join(tables)}): add a table "
            f"[algorithms.{algorithm}] to a .toml of yours"
        )
    return build_config(algorithm, {}, config.name)


def _replaced(before: AlgorithmConfig, settings: Any, algorithm: str, environment: str) -> AlgorithmConfig:
    if isinstance(settings, AlgorithmConfig):
        if type(settings) is not type(before):
            raise UserError(
                f"settings: {type(settings).__name__} is not of {algorithm}, which {environment} is trained with: give "
                f"a {type(before).__name__}, or name the algorithm that is meant"
            )
        return settings
    if not isinstance(settings, Mapping | None):
        raise UserError(f"settings: {settings!r} is no table: give one such as {{'num_envs': 32}}")
    return build_config(algorithm, {**before.model_dump(), **(settings or {})}, f"settings of {environment} (--set)")


def _renamed(
    config: EnvironmentConfig, before: AlgorithmConfig, after: AlgorithmConfig, options: Mapping[str, Any]
) -> EnvironmentConfig:
    """The configuration called ``name{options}[settings]`` by what differs.

    With other settings the environment is the same, and so is its random policy; with other options it is not.
    """
    names = [
        _difference(config.options, options, "{}"),
        _difference(before.model_dump(), after.model_dump(), "[]"),
    ]
    if not any(names):
        return config
    return config.model_copy(update={"name": "".join([config.name, *names]), "options": dict(options)})


def _difference(before: Mapping[str, Any], after: Mapping[str, Any], brackets: str) -> str:
    new = [f"{key}={_short(after[key])}" for key in sorted(after) if key not in before or after[key] != before[key]]
    return brackets[0] + ",".join(new) + brackets[1] if new else ""


def _short(value: Any) -> str:
    if isinstance(value, str) and "\n" in value:  # a map
        return f"map-{hashlib.sha256(value.encode()).hexdigest()[:8]}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
