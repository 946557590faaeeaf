"""Tables of the page: text, the number that a cell is sorted by, and what else it says."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from open_bench.evaluation.leaderboard import Board
from open_bench.evaluation.tables import LABELS, summary
from open_bench.reports.commands import Identity, commands
from open_bench.reports.contents import Source
from open_bench.text import duration, interval, number, rate

_NUMBERS = {
    "rank": "rank", "mean rank": "mean_rank", "time to target": "time_to_target", "seeds": "num_seeds",
    "diverged": "diverged", "no episode": "unfinished", "steps/s": "steps_per_second", "run time": "run_seconds",
    "compile time": "compile_seconds",
}  # fmt: skip
MOST_PAIRED = 20  # optimizers in the matrix of pairs


class Cell(NamedTuple):
    """A number as text; ``heat`` from 0 to 1 colors it, ``kind`` "in" frames it."""

    text: str
    key: float | None = None
    heat: float | None = None
    kind: str = ""


class Head(NamedTuple):
    """A heading of a row; ``whole``: what it is short for."""

    text: str
    kind: str = "head"
    whole: str = ""


class Commands(NamedTuple):
    """What makes the row again, or why nothing does."""

    lines: tuple[str, ...]
    otherwise: str = "none: options of the environment"
    kind: str = "commands"


class Heading(NamedTuple):
    """A heading of a column; ``environment``: place of the one that it is about, which filters hide it by."""

    text: str
    environment: int | None = None


class Row(NamedTuple):
    """Cells, and what filters hide the row by."""

    cells: Sequence[str | Cell | Head | Commands]
    optimizer: str | None = None
    track: str = ""


class Table(NamedTuple):
    """A table with what it is about."""

    caption: str
    headings: list[Heading]
    rows: list[Row]
    kind: str = ""
    sortable: bool = True


def headings(names: Iterable[str]) -> list[Heading]:
    """Of columns that belong to no environment."""
    return [Heading(name) for name in names]


def numeric(text: str, key: float, heat: float | None = None, kind: str = "") -> Cell:
    """A cell that is sorted by ``key``, last where that is NaN."""
    return Cell(text, None if pd.isna(key) else float(f"{key:.6g}"), heat, kind)


def estimate(value: float, low: float, high: float, places: int | None = None) -> Cell:
    """``0.93 [0.81, 1.04]``."""
    return numeric(interval(value, low, high, places), value)


def named(row: Mapping[Any, Any], name: str, places: int | None = None) -> Cell:
    """A row's columns ``name``, ``name_low`` and ``name_high``; empty where there is none."""
    low, high = (row.get(f"{name}{end}", math.nan) for end in ("_low", "_high"))
    return estimate(row.get(name, math.nan), low, high, places)


def leaderboard(board: Board, sources: Mapping[str, Source]) -> Table:
    """The board's summary, returns in each environment, and commands."""
    scores, cells = board.scores, summary(board)
    columns = {label.format(baseline=board.short[board.baseline]): name for name, label in LABELS.items()} | _NUMBERS
    returns = board.per_environment.set_index(["optimizer", "environment"])[["mean", "low", "high"]].to_dict("index")
    known, seeds = identities(board, sources), num_seeds(board)
    rows = []
    for place, optimizer in enumerate(board.table["optimizer"]):
        row: list[str | Cell | Head | Commands] = []
        for heading, texts in cells.items():
            if heading == "optimizer":
                row.append(_head(board, optimizer))
            elif heading in columns:
                row.append(numeric(texts[place], board.table[columns[heading]].iloc[place]))
            else:
                row.append(texts[place])
        for environment in scores.environments:
            found = returns.get((optimizer, environment))
            row.append(estimate(found["mean"], found["low"], found["high"]) if found else Cell(""))
        mine = {environment: seeds[optimizer, environment] for environment in known[optimizer]}
        row.append(Commands(commands(known[optimizer].values(), mine)))
        rows.append(Row(row, optimizer, scores.tracks[optimizer]))
    about = [Heading(f"{name} ({scores.label})", place) for place, name in enumerate(board.places.values())]
    intervals = "95 % intervals in brackets; returns are means over seeds"
    return Table(f"Leaderboard: {intervals}", [*headings(cells), *about, Heading("command")], rows)


def environment(
    board: Board, name: str, returns: pd.DataFrame | None, known: Mapping[str, Mapping[str, Identity]],
    seeds: Mapping[tuple[str, str], int],
) -> Table:  # fmt: skip
    """All optimizers in one environment, by mean return.

    Args:
        returns: the environment's rows of the board's ``per_environment``; None where no optimizer that is shown ran.
        known, seeds: what ``identities`` and ``num_seeds`` give.
    """
    rows = []
    ordered = returns.sort_values("mean", ascending=False).to_dict("records") if returns is not None else ()
    for one in ordered:
        optimizer = one["optimizer"]
        steps = one["steps_to_target"]
        cells: list[str | Cell | Head | Commands] = [
            _head(board, optimizer),
            estimate(one["mean"], one["low"], one["high"]),
            numeric(number(one["score"], 2), one["score"]),
            named(one, "difference"),
            numeric("missed", math.nan) if math.isinf(steps) else numeric(rate(steps), steps),
            *(numeric(str(one[key]), one[key]) for key in ("num_seeds", "diverged", "unfinished")),
            Commands(commands([known[optimizer][name]], {name: seeds[optimizer, name]})),
        ]
        rows.append(Row(cells, optimizer, board.scores.tracks[optimizer]))
    baseline = board.short[board.baseline]
    names = ["optimizer", board.scores.label, "score", f"difference to {baseline}", "env steps to target", "seeds",
             "diverged", "no episode", "command"]  # fmt: skip
    return Table(f"{board.places[name]}: means over seeds with 95 % intervals", headings(names), rows)


def pairs(board: Board, rates: Mapping[tuple[str, str], tuple[float, float, float]]) -> Table | None:
    """How likely the row's optimizer is better than the column's; None without two that can be compared."""
    names = [name for name in board.table["optimizer"][:MOST_PAIRED] if any(name in pair for pair in rates)]
    if not names:
        return None
    rows = []
    for x in names:
        found = [rates.get((x, y), (math.nan,) * 3) for y in names]
        cells = [
            numeric(interval(*each, 2), each[0], None if math.isnan(each[0]) else round(each[0], 3)) for each in found
        ]
        rows.append(Row([_head(board, x), *cells], x, board.scores.tracks[x]))
    few = f", the best {MOST_PAIRED}" if len(board.table) > MOST_PAIRED else ""
    columns = headings(["optimizer", *(board.short[name] for name in names)])
    return Table(f"P(row > column) with 95 % intervals{few}", columns, rows, "heat")


def _head(board: Board, optimizer: str) -> Head:
    return Head(board.short[optimizer], whole=optimizer)


def identities(board: Board, sources: Mapping[str, Source]) -> dict[str, dict[str, Identity]]:
    """What determines the board's experiments, by optimizer and environment."""
    found: dict[str, dict[str, Identity]] = {}
    columns = (board.scores.experiments[name] for name in ("optimizer", "environment", "experiment"))
    for optimizer, environment, experiment in zip(*columns, strict=True):
        found.setdefault(optimizer, {})[environment] = sources[experiment].identity
    return found


def num_seeds(board: Board) -> dict[tuple[str, str], int]:
    """How many seeds are needed to have all of them: they count from 0."""
    return (board.scores.rows.groupby(["optimizer", "environment"])["seed"].max() + 1).to_dict()


def machines(sources: Iterable[Source]) -> Table:
    """What ran where: revisions, hardware and versions, with how many lifetimes."""
    found: dict[tuple[str, ...], list[int]] = {}
    for shard in (shard for source in sources for shard in source.shards):
        told = shard.get("packages")
        packages = told if isinstance(told, dict) else {}
        versions = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()) if version != "absent")
        key = (*(str(shard.get(name, "")) for name in ("revision", "hardware", "platform", "python")), versions)
        seeds = shard.get("seeds")
        found.setdefault(key, []).append(len(seeds) if isinstance(seeds, list) else 0)
    rows = [Row([*key, Cell(str(sum(seeds)), sum(seeds))]) for key, seeds in sorted(found.items())]
    names = ["revision", "hardware", "platform", "Python", "packages", "lifetimes"]
    return Table("What the runs were made with", headings(names), rows)


def experiments(frame: pd.DataFrame, sources: Mapping[str, Source]) -> Table:
    """Every stored experiment: what determines it, and digests of its files."""
    rows = []
    for one in frame.sort_values("experiment").to_dict("records"):
        digests = [
            f"{shard['shard']}/{file} {str(digest)[:16]}"
            for shard in sources[one["experiment"]].shards
            for file, digest in sorted(shard["files"].items())
        ]
        settings = f"{one['hyperparameter_origin']} {one['hyperparameters']}"
        rows.append(
            Row([
                Head(one["experiment"]), one["optimizer"], one["environment"], one["algorithm"], one["budget"],
                numeric(str(one["env_steps"]), one["env_steps"]), settings, one["theta"], one["trained_on"],
                str(one["vmap_size"]), str(one["root_seed"]), str(one["protocol"]), one["revision"], one["hardware"],
                numeric(duration(one["run_seconds"]), one["run_seconds"]), " ".join(digests),
            ])
        )  # fmt: skip
    names = ["experiment", "optimizer", "environment", "algorithm", "budget", "env steps", "hyperparameters", "θ",
             "θ trained on", "vmap size", "root seed", "protocol", "revision", "hardware", "run time",
             "SHA-256 of files (begin)"]  # fmt: skip
    return Table(
        "Experiments: the name ends with the hash of all that determines the numbers", headings(names), rows, "wide"
    )
