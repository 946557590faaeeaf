"""Hyperparameter files: an optimizer's settings by environment, algorithm and budget, with where they come from.

``<folder>/<optimizer>.toml`` holds ``[environments.<environment>.<algorithm>.<budget or any>]`` tables and, for one
setting over several environments, ``[one_setting.<algorithm>.<budget>]``. A folder lies in ``baselines``; others are a
user's own.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from open_bench import files
from open_bench.config import Config, load
from open_bench.errors import UserError

FOLDER = "hyperparameters"  # below baselines, and below results
ANY = "any"  # budget of settings that are meant for all
ONE_SETTING = "one setting"  # origin of settings that were chosen over several environments
Amount = Annotated[int, Field(ge=0)]


class Provenance(Config):
    """Where settings come from, in words and numbers."""

    values: dict[str, Any]
    source: str = ""
    trials: Amount = 0  # of tuning: points of the search space, the setting that it began with left out
    num_seeds: Amount = 0  # of each
    env_steps: Amount = 0  # that all of it took
    revision: str = ""


class Table(Provenance):
    """Settings for one environment, algorithm and budget."""

    origin: Literal["published", "tuned"]
    environment: str | None = None  # that a family's settings were found on


class OneSetting(Provenance):
    """One setting for several environments."""

    environments: tuple[str, ...] = Field(min_length=1)


class HyperparameterFile(Config):
    """All settings of an optimizer."""

    optimizer: str
    environments: dict[str, dict[str, dict[str, Table]]] = Field(default_factory=dict)
    one_setting: dict[str, dict[str, OneSetting]] = Field(default_factory=dict)


class Place(NamedTuple):
    """What settings are looked for by.

    Attributes:
        names: of the environment, the nearest first.
        algorithm: ppo, pqn, ….
        budgets: the nearest first.
    """

    names: tuple[str, ...]
    algorithm: str
    budgets: tuple[str, ...]


class Found(NamedTuple):
    """Settings with their origin, and the environment, algorithm and budget that they were found on."""

    origin: str
    table: Provenance
    tuned_on: tuple[str, str, str]


def file_name(optimizer: str) -> str:
    """The file of an optimizer; other characters than letters, digits and . = + - become underscores."""
    return re.sub(r"[^A-Za-z0-9.=+-]+", "_", optimizer) + ".toml"


def shipped(optimizer: str) -> HyperparameterFile | None:
    """What ships for an optimizer."""
    return _read(files.baselines_dir() / FOLDER, optimizer)


def _read(folder: Path, optimizer: str) -> HyperparameterFile | None:
    path = folder / file_name(optimizer)
    return _parsed(path, path.stat().st_mtime_ns) if path.is_file() else None


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, modified: int) -> HyperparameterFile:
    """A study asks once an experiment; a file that tuning writes meanwhile is read anew."""
    return load(HyperparameterFile, path)


def folder_of(path: str | Path) -> Path:
    """The folder of hyperparameter files that is meant: ``path``, or below it where it is a results folder.

    Raises:
        UserError: there are none.
    """
    for folder in (Path(path) / FOLDER, Path(path)):
        if any(map(_names_an_optimizer, folder.glob("*.toml"))):
            return folder
    raise UserError(
        f"{path} holds no hyperparameter files (<optimizer>.toml): name a results folder that `openbench tune` has "
        "written to, or the folder of the files themselves"
    )


def _names_an_optimizer(path: Path) -> bool:
    """Whether a TOML is meant as one of these files; a folder may hold others, such as pyproject.toml."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return path.is_file()  # which cannot be read: whoever needs it says so
    return re.search(r"""^\s*["']?optimizer["']?\s*=""", text, re.MULTILINE) is not None


def find(optimizer: str, place: Place, track: str | None, folder: Path | None = None) -> Found | None:
    """The settings of a track for a place; without a track the best that are known: tuned ones, else published.

    Args:
        optimizer: whose file is read.
        place: a family ("gridworld/*") stands for what lies below it without a table.
        track: "one_setting", "tuned" or "published".
        folder: files that come before those that ship.
    """
    own = _read(folder, optimizer) if folder is not None else None
    for file in (own, shipped(optimizer)):
        found = (
            None if file is None else _one_setting(file, place) if track == "one_setting" else _of(file, place, track)
        )
        if found is not None:
            return found
    return None


def one_setting_over(folder: Path, optimizer: str, algorithm: str, budget: str) -> tuple[str, ...]:
    """Environments that a folder's one setting of an optimizer is for; () where it has none."""
    file = _read(folder, optimizer)
    table = file.one_setting.get(algorithm, {}).get(budget) if file is not None else None
    return table.environments if table is not None else ()


def _of(file: HyperparameterFile, place: Place, track: str | None) -> Found | None:
    base = place.names[-1]
    families = (f"{base.rpartition('/')[0]}/*",) if "/" in base else ()
    for name in (*place.names, *families):
        tables = file.environments.get(name, {}).get(place.algorithm, {})
        for budget in (*place.budgets, ANY):
            table = tables.get(budget)
            if table is not None and track in (None, table.origin):
                # Published settings, for any budget, were tuned at the full one; a family's on one of its environments.
                where = (table.environment or base, place.algorithm, budget.replace(ANY, "full"))
                return Found(table.origin, table, where)
    return None


def _one_setting(file: HyperparameterFile, place: Place) -> Found | None:
    for budget in place.budgets:
        table = file.one_setting.get(place.algorithm, {}).get(budget)
        if table is not None and set(place.names) & set(table.environments):
            return Found(ONE_SETTING, table, (place.names[-1], place.algorithm, budget))
    return None


def write(path: Path, optimizer: str, tables: Sequence[tuple[tuple[str, ...], Mapping[str, Any]]]) -> None:
    """Put tables at their keys in an optimizer's file; all else there, comments too, stays as it is.

    Raises:
        UserError: published settings would be lost, or the file cannot be read or written.
    """
    import tomlkit

    before = load(HyperparameterFile, path).model_dump() if path.is_file() else {}
    text = path.read_text("utf-8") if before else f'optimizer = "{optimizer}"\n'
    document = tomlkit.parse(text)
    for keys, table in tables:
        there = functools.reduce(lambda inside, key: inside.get(key, {}), keys, before)
        if there.get("origin") == "published":
            raise UserError(
                f"{path} holds published settings at {'.'.join(keys)}: move them to the budget '{ANY}' first"
            )
        inside: Any = document
        for key in keys[:-1]:
            inside = inside.setdefault(key, tomlkit.table(is_super_table=True))
        values = tomlkit.inline_table()
        values.update(table["values"])
        inside[keys[-1]] = {**table, "values": values}
    try:
        files.write_atomically(path, re.sub(r"(?<=\S)\n(?=\[)", "\n\n", tomlkit.dumps(document)))  # a blank line apart
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    _parsed.cache_clear()
