"""Stored returns that scores are measured against: ``baselines/returns/<environment>.toml``.

A file holds what a uniformly random policy reaches and, for each algorithm and budget, what Adam reaches with the
hyperparameters that stand beside it: those that ship. Returns are undiscounted episode returns as docs/rules.md defines
them; ``low`` and
``high`` bound the mean over seeds with 95 % confidence.

    environment = "breakout"

    [random]
    num_seeds = 64
    env_steps = 500000
    origin = "measured"
    revision = "1a2b3c4"
    final_return = {mean = 0.52, low = 0.49, high = 0.55}
    mean_return = {mean = 0.52, low = 0.5, high = 0.54}

    [ppo.quick]
    optimizer = "adam"
    hyperparameters = {learning_rate = 0.01, b1 = 0.9, b2 = 0.99}
    num_seeds = 16
    env_steps = 500000
    origin = "measured"
    revision = "1a2b3c4"
    final_return = {mean = 21.3, low = 19.8, high = 22.9}
    mean_return = {mean = 12.1, low = 11.5, high = 12.8}

    [ppo.full]
    optimizer = "adam"
    hyperparameters = {learning_rate = 0.01, b1 = 0.9, b2 = 0.99}
    origin = "published"
    source = "Goldie et al. 2024, arXiv 2407.07082"
    final_return = {mean = 50.0822}

What was measured has intervals, ``num_seeds``, ``env_steps`` (of one lifetime) and ``revision`` (git). What was
published has means without intervals and a ``source``; ``mean_return``, ``num_seeds`` and ``env_steps`` are optional.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from open_bench import files
from open_bench.config import Config, Positive, load
from open_bench.errors import UserError


def _scalar(value: Any) -> bool | int | float | str:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{value!r} is no bool, integer, finite float or string")


Number = Annotated[float, Field(strict=True)]
Scalar = Annotated[Any, AfterValidator(_scalar)]


class ReturnInterval(Config):
    """A mean return over seeds with its 95 % interval, which a published one lacks."""

    mean: Number
    low: Number | None = None
    high: Number | None = None

    @model_validator(mode="after")
    def _is_an_interval(self) -> "ReturnInterval":
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval needs both low and high")
        if self.low is not None and self.high is not None and not self.low <= self.mean <= self.high:
            raise ValueError(f"low ≤ mean ≤ high does not hold: {self.low}, {self.mean}, {self.high}")
        return self


class BaselineReturn(Config):
    """What one policy, random or trained, reaches in one environment; the fields of one table of the file."""

    optimizer: str = ""  # "" is the random policy
    hyperparameters: dict[str, Scalar] = Field(default_factory=dict)
    num_seeds: Positive | None = None
    env_steps: Positive | None = None  # of one lifetime
    origin: Literal["measured", "published"]
    revision: str = ""  # git revision that measured it
    source: str = ""  # where it was published
    final_return: ReturnInterval
    mean_return: ReturnInterval | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> "BaselineReturn":
        if self.origin == "published":
            if not self.source:
                raise ValueError("a published return needs a source")
            return self
        for name in ("final_return", "mean_return"):
            value = getattr(self, name)
            if value is None or value.low is None:
                raise ValueError(f"a measured {name} needs mean, low and high")
        if self.num_seeds is None or self.env_steps is None or not self.revision:
            raise ValueError("a measured return needs num_seeds, env_steps and revision")
        return self

    def of(self, metric: str) -> ReturnInterval | None:
        """The interval of a metric; None where it is not known."""
        return getattr(self, metric) if metric in ("final_return", "mean_return") else None


def _of_the_random_policy(value: BaselineReturn) -> BaselineReturn:
    if value.optimizer or value.origin != "measured":
        raise ValueError("the random policy has no optimizer, and is measured here")
    return value


def _of_an_optimizer(value: BaselineReturn) -> BaselineReturn:
    if not value.optimizer:
        raise ValueError("the optimizer is not named")
    return value


class EnvironmentReturns(Config):
    """One environment's file: the random policy, and a table of budgets for each algorithm.

    ``EnvironmentReturns(environment="breakout", random=…, ppo={"quick": …})``.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Annotated[BaselineReturn, AfterValidator(_of_an_optimizer)]]] = Field(
        init=False
    )

    environment: str
    random: Annotated[BaselineReturn, AfterValidator(_of_the_random_policy)] | None = None

    @property
    def algorithms(self) -> dict[str, dict[str, BaselineReturn]]:
        """Adam's returns by algorithm and budget."""
        return self.__pydantic_extra__

    def adam(self, algorithm: str, budget: str) -> BaselineReturn | None:
        """Adam's returns with an algorithm at a budget, where they are known."""
        return self.algorithms.get(algorithm, {}).get(budget)

    def with_adam(self, algorithm: str, budget: str, returns: BaselineReturn) -> "EnvironmentReturns":
        """A copy with one entry added or replaced."""
        algorithms = self.algorithms | {algorithm: self.algorithms.get(algorithm, {}) | {budget: returns}}
        return EnvironmentReturns(environment=self.environment, random=self.random, **algorithms)


BaselineReturns = Mapping[str, EnvironmentReturns]


def load_baseline_returns(directory: str | Path | None = None) -> dict[str, EnvironmentReturns]:
    """Baseline returns by environment, from ``<directory>/<environment>.toml``.

    Args:
        directory: default: ``returns`` in the baselines that ship, empty if they have none.

    Raises:
        UserError: ``directory`` was given and is no folder, or a file is wrong; the message names file and key.
    """
    if directory is not None and not Path(directory).is_dir():
        raise UserError(f"{directory}: no such folder of baseline returns")
    directory = Path(directory) if directory is not None else files.baselines_dir() / "returns"
    found = sorted(path.relative_to(directory).with_suffix("").as_posix() for path in directory.rglob("*.toml"))
    return {name: read_returns(directory, name) for name in found}


def returns_of(baseline_returns: BaselineReturns, environment: str) -> EnvironmentReturns:
    """What is known of an environment.

    With other settings (``cartpole[num_steps=16]``) the random policy is the same, and Adam's returns are not.
    """
    base, bracket, _ = environment.partition("[")
    known = baseline_returns.get(base)
    if known is None or bracket:
        return EnvironmentReturns(environment=environment, random=known.random if known is not None else None)
    return known


def returns_path(directory: str | Path, environment: str) -> Path:
    """Where an environment's returns are; raises ValueError for a name that leaves the folder."""
    if not environment or environment.startswith("/") or ".." in Path(environment).parts:
        raise ValueError(f"{environment!r} does not name an environment")
    return Path(directory) / f"{environment}.toml"


def read_returns(directory: str | Path, environment: str) -> EnvironmentReturns:
    """Read one file. Raises UserError naming the file and key when something is missing, unknown or wrong."""
    path = returns_path(directory, environment)
    returns = load(EnvironmentReturns, path)
    if returns.environment != environment:
        raise UserError(f"{path}: environment = {returns.environment!r} in the file of {environment!r}")
    return returns


def write_returns(directory: str | Path, returns: EnvironmentReturns) -> Path:
    """Write ``<directory>/<environment>.toml`` whole or not at all; equal returns give equal bytes."""
    content: dict[str, Any] = {"environment": returns.environment}
    if returns.random is not None:
        content["random"] = _table(returns.random)
    for algorithm, budgets in sorted(returns.algorithms.items()):
        content[algorithm] = {budget: _table(budgets[budget]) for budget in sorted(budgets)}
    return files.write_toml(returns_path(directory, returns.environment), content)


def _table(returns: BaselineReturn) -> dict[str, Any]:
    table = returns.model_dump(exclude_none=True, exclude_defaults=True)
    if "hyperparameters" in table:
        table["hyperparameters"] = dict(sorted(table["hyperparameters"].items()))
    return table
