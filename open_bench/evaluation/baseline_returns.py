"""Returns that scores are measured against: ``baselines/returns/<environment>.toml``.

A file holds what a uniformly random policy reaches and, for each budget, what the reference optimizer (Adam with
its shipped hyperparameters) reaches. Returns are undiscounted episode returns as docs/protocol.md defines them;
``low`` and ``high`` bound the mean over seeds with 95 % confidence.

    environment = "breakout"

    [random]
    final_return = {mean = 0.52, low = 0.49, high = 0.55}
    mean_return = {mean = 0.52, low = 0.5, high = 0.54}
    seeds = 64
    env_steps = 500000
    origin = "measured"
    revision = "1a2b3c4"

    [reference.quick]
    optimizer = "adam"
    hyperparameters = {learning_rate = 0.01, b1 = 0.9, b2 = 0.99}
    final_return = {mean = 21.3, low = 19.8, high = 22.9}
    mean_return = {mean = 12.1, low = 11.5, high = 12.8}
    seeds = 16
    env_steps = 500000
    origin = "measured"
    revision = "1a2b3c4"

    [reference.full]
    optimizer = "adam"
    hyperparameters = {learning_rate = 0.01, b1 = 0.9, b2 = 0.99}
    final_return = {mean = 50.0822}
    origin = "published"
    source = "Goldie et al. 2024, arXiv 2407.07082"

A measured entry has intervals, ``seeds``, ``env_steps`` (of one lifetime) and ``revision`` (git). A published
one has means without intervals and a ``source``; ``mean_return``, ``seeds`` and ``env_steps`` are optional.
"""

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from open_bench.errors import UserError
from open_bench.files import write_atomically

Hyperparameters = Mapping[str, float | int | bool | str]


@dataclasses.dataclass(frozen=True)
class ReturnInterval:
    """A mean return over seeds with its 95 % interval, which a published one lacks."""

    mean: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.low, self.mean, self.high) if value is not None]
        if not all(math.isfinite(value) for value in given):
            raise ValueError(f"returns must be finite, not {given}")
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval needs both low and high")
        if given != sorted(given):
            raise ValueError(f"low ≤ mean ≤ high does not hold: {given}")


@dataclasses.dataclass(frozen=True)
class BaselineReturn:
    """What one policy, random or trained, reaches in one environment; the fields of one table of the file."""

    final_return: ReturnInterval
    mean_return: ReturnInterval | None = None
    seeds: int | None = None
    env_steps: int | None = None  # of one lifetime
    origin: str = "measured"  # or "published"
    revision: str = ""  # git revision that measured it
    optimizer: str = ""  # "" is the random policy
    hyperparameters: Hyperparameters = dataclasses.field(default_factory=dict)
    source: str = ""  # where it was published

    def __post_init__(self) -> None:
        if self.origin == "measured":
            self._check_measured()
        elif self.origin == "published":
            if not self.source:
                raise ValueError("a published return needs a source")
        else:
            raise ValueError(f"origin must be measured or published, not {self.origin!r}")
        for name in ("seeds", "env_steps"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        wrong = [name for name in ("revision", "optimizer", "source") if not isinstance(getattr(self, name), str)]
        if wrong:
            raise ValueError(f"{wrong[0]} must be a text, not {getattr(self, wrong[0])!r}")
        if not isinstance(self.hyperparameters, Mapping):
            raise ValueError(f"hyperparameters must be a table, not {self.hyperparameters!r}")

    def _check_measured(self) -> None:
        for name in ("final_return", "mean_return"):
            value = getattr(self, name)
            if value is None or value.low is None:
                raise ValueError(f"a measured {name} needs mean, low and high")
        if self.seeds is None or self.env_steps is None or not self.revision:
            raise ValueError("a measured return needs seeds, env_steps and revision")

    def of(self, metric: str) -> ReturnInterval | None:
        """The interval of ``final_return`` or ``mean_return``; None where it is not known."""
        return getattr(self, metric)


@dataclasses.dataclass(frozen=True)
class EnvironmentReturns:
    """One environment's file: the random policy, and the reference at each budget."""

    environment: str
    random: BaselineReturn | None = None
    reference: Mapping[str, BaselineReturn] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.random is not None and (self.random.optimizer or self.random.origin != "measured"):
            raise ValueError("random: the random policy has no optimizer, and is measured here")
        for budget, reference in self.reference.items():
            if not reference.optimizer:
                raise ValueError(f"reference.{budget}: the optimizer is not named")


References = Mapping[str, EnvironmentReturns]


def load_references(
    directory: str | Path | None = None, environments: Iterable[str] | None = None
) -> dict[str, EnvironmentReturns]:
    """Reference returns by environment, from ``<directory>/<environment>.toml``.

    Args:
        directory: default: ``returns`` in the baselines that ship, empty if they have none.
        environments: which to read (those without a file are left out); default: all that are there.

    Raises:
        UserError: ``directory`` was given and is no folder, or a file is wrong; the message names file and key.
    """
    if directory is None:
        from open_bench.files import baselines_dir

        directory = baselines_dir() / "returns"
    elif not Path(directory).is_dir():
        raise UserError(f"{directory}: no such folder of reference returns")
    directory = Path(directory)
    if environments is None:
        found = sorted(path.relative_to(directory).with_suffix("").as_posix() for path in directory.rglob("*.toml"))
    else:
        found = [name for name in sorted(set(environments)) if returns_path(directory, name).is_file()]
    return {name: read_returns(directory, name) for name in found}


def returns_of(references: References, environment: str) -> EnvironmentReturns | None:
    """What is known of an environment.

    With other PPO settings (``cartpole[num_steps=16]``) the random policy is the same and the reference is not.
    """
    base, bracket, _ = environment.partition("[")
    known = references.get(base)
    return EnvironmentReturns(environment, known.random) if known is not None and bracket else known


def returns_path(directory: str | Path, environment: str) -> Path:
    """Where an environment's returns are; raises ValueError for a name that leaves the folder."""
    if not environment or environment.startswith("/") or ".." in Path(environment).parts:
        raise ValueError(f"{environment!r} does not name an environment")
    return Path(directory) / f"{environment}.toml"


def read_returns(directory: str | Path, environment: str) -> EnvironmentReturns:
    """Read one file. Raises UserError naming the file and key when something is missing, unknown or wrong."""
    path = returns_path(directory, environment)
    try:
        returns = _parse(path.read_text(encoding="utf-8"))
        if returns.environment != environment:
            raise ValueError(f"environment: is {returns.environment!r} in the file of {environment!r}")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:  # includes TOMLDecodeError and UnicodeDecodeError
        raise UserError(f"{path}: {error}") from error
    return returns


def write_returns(directory: str | Path, returns: EnvironmentReturns) -> Path:
    """Write ``<directory>/<environment>.toml`` whole or not at all; equal returns give equal bytes.

    Raises:
        ValueError: a hyperparameter is no bool, int, finite float or string, or a text would not survive the file.
    """
    text = _format(returns)
    if _parse(text) != returns:
        raise ValueError(f"{returns.environment}: the returns do not survive being written")
    return write_atomically(returns_path(directory, returns.environment), text)


def _parse(text: str) -> EnvironmentReturns:
    data = tomllib.loads(text)
    _known("", data, {"environment", "random", "reference"})
    if "environment" not in data:
        raise ValueError("environment: is missing")
    random = _baseline("random", data["random"]) if "random" in data else None
    entries = data.get("reference", {})
    if not isinstance(entries, Mapping):
        raise ValueError("reference: must be a table of budgets")
    reference = {budget: _baseline(f"reference.{budget}", entry) for budget, entry in entries.items()}
    return EnvironmentReturns(data["environment"], random, reference)


def _baseline(key: str, entry: Any) -> BaselineReturn:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{key}: must be a table")
    _known(key, entry, {field.name for field in dataclasses.fields(BaselineReturn)})
    for name in ("final_return", "origin"):
        if name not in entry:
            raise ValueError(f"{key}.{name}: is missing")
    values = dict(entry)
    for name in ("final_return", "mean_return"):
        if name in values:
            values[name] = _interval(f"{key}.{name}", values[name])
    try:
        return BaselineReturn(**values)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _interval(key: str, entry: Any) -> ReturnInterval:
    if not isinstance(entry, Mapping) or "mean" not in entry:
        raise ValueError(f"{key}: must be a table with a mean")
    _known(key, entry, {"mean", "low", "high"})
    wrong = [name for name, value in entry.items() if type(value) not in (int, float)]
    if wrong:
        raise ValueError(f"{key}.{wrong[0]}: must be a number, not {entry[wrong[0]]!r}")
    try:
        return ReturnInterval(**{name: float(value) for name, value in entry.items()})
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _known(key: str, entry: Mapping[str, Any], names: set[str]) -> None:
    unknown = sorted(set(entry) - names)
    if unknown:
        where = f"{key}." if key else ""
        raise ValueError(f"{where}{unknown[0]}: unknown key; known are {', '.join(sorted(names))}")


def _format(returns: EnvironmentReturns) -> str:
    blocks = [f"environment = {_toml(returns.environment)}\n"]
    if returns.random is not None:
        blocks.append(_format_baseline("random", returns.random))
    for budget in sorted(returns.reference):
        blocks.append(_format_baseline(f"reference.{_toml_key(budget)}", returns.reference[budget]))
    return "\n".join(blocks)


def _format_baseline(header: str, baseline: BaselineReturn) -> str:
    lines = [f"[{header}]"]
    if baseline.optimizer:
        lines.append(f"optimizer = {_toml(baseline.optimizer)}")
        lines.append(f"hyperparameters = {_inline(dict(sorted(baseline.hyperparameters.items())))}")
    for name in ("final_return", "mean_return"):
        interval = baseline.of(name)
        if interval is not None:
            numbers = {key: float(value) for key, value in dataclasses.asdict(interval).items() if value is not None}
            lines.append(f"{name} = {_inline(numbers)}")
    for name in ("seeds", "env_steps", "origin", "revision", "source"):
        value = getattr(baseline, name)
        if value not in (None, ""):
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _inline(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{_toml_key(name)} = {_toml(value, name)}" for name, value in values.items()) + "}"


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any, name: str = "value") -> str:
    """A scalar in TOML. JSON's strings and booleans, and the repr of numbers, are also TOML's."""
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    raise ValueError(f"{name}: {value!r} can not be written; use a bool, an integer, a finite float or a string")
