"""How a leaderboard looks: in Markdown and on a terminal."""

import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from open_bench.text import duration, interval, number, rate

if TYPE_CHECKING:
    from open_bench.evaluation.leaderboard import Board, Leaderboard

LABELS = {
    "iqm": "IQM",
    "median": "median",
    "mean": "mean",
    "optimality_gap": "optimality gap",
    "probability_of_improvement": "P(better than {baseline})",
    "paired_difference": "difference to {baseline}",
}


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table on a terminal; only those that fold may be narrower than what they hold."""

    heading: str
    cells: Sequence[str]
    justify: Literal["left", "right"] = "right"
    fold: int | None = None  # widest that it gets


def markdown(leaderboard: "Leaderboard") -> str:
    """Every board under its heading: aggregates, returns per environment, notes."""
    return "\n".join(_board_markdown(board, leaderboard) for board in leaderboard.boards)


def _board_markdown(board: "Board", leaderboard: "Leaderboard") -> str:
    parts = [
        f"### {board.title}\n",
        markdown_table(*_summary(board, leaderboard.baseline)),
        f"Mean {board.scores.label} per environment, with 95 % bootstrap intervals:\n",
        markdown_table(*_returns(board)),
    ]
    if board.notes:
        parts.append("Notes:\n\n" + "".join(f"- {note}\n" for note in board.notes))
    return "\n".join(parts)


def _summary(board: "Board", baseline: str) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; an estimate that no optimizer has gets no column."""
    columns: dict[str, list[str]] = {"rank": _ranks(board.table), "optimizer": list(board.table["optimizer"])}
    for name, label in LABELS.items():
        if board.table[name].notna().any():
            ends = (board.table[f"{name}{end}"] for end in ("", "_low", "_high"))
            columns[label.format(baseline=baseline)] = [
                interval(value, low, high, 2) for value, low, high in zip(*ends, strict=True)
            ]
    if not board.scores.normalized:
        columns["mean rank"] = [number(value) for value in board.table["mean_rank"]]
    columns |= {
        "seeds": list(map(str, board.table["num_seeds"])),
        "diverged": _failures(board.table, "diverged"),
        "hyperparameters": list(board.table["hyperparameter_origin"]),
        "θ": list(board.table["theta"]),
        "steps/s": list(map(rate, board.table["steps_per_second"])),
        "run time": list(map(duration, board.table["run_seconds"])),
        "compile time": list(map(duration, board.table["compile_seconds"])),
    }
    if not any(columns["θ"]):
        del columns["θ"]
    if board.table["unfinished"].any():
        columns["no episode"] = _failures(board.table, "unfinished")
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _returns(board: "Board") -> tuple[list[str], list[list[str]]]:
    found = board.per_environment.set_index(["optimizer", "environment"])
    rows = []
    for optimizer in board.table["optimizer"]:
        row = [optimizer]
        for environment in board.scores.environments:
            key = (optimizer, environment)
            row.append(interval(*found.loc[key, ["mean", "low", "high"]]) if key in found.index else "")
        rows.append(row)
    return ["optimizer", *board.scores.environments], rows


def _ranks(table: pd.DataFrame) -> list[str]:
    return ["" if pd.isna(rank) else str(rank) for rank in table["rank"]]


def _failures(table: pd.DataFrame, column: str) -> list[str]:
    """``2 of 40``: failures among all lifetimes."""
    return [f"{count} of {total}" for count, total in zip(table[column], table["lifetimes"], strict=True)]


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; bars in cells are escaped."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def rich_tables(leaderboard: "Leaderboard", width: int = 80) -> Any:
    """A ``rich.console.Group``: for each board its table, further tables of returns if need be, and its notes."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for board in leaderboard.boards:
        parts += _board_tables(board, width)
        parts += [Text(f"· {note}", style="dim") for note in board.notes]
    return Group(*parts)


def _board_tables(board: "Board", width: int) -> list[Any]:
    """One table with the returns in it where that fits; else they follow, as many side by side as fit."""
    first = [Column("#", _ranks(board.table)), Column("optimizer", list(board.table["optimizer"]), "left", 26)]
    merit, counts, returns = _merit(board), _rich_counts(board), _rich_returns(board)
    whole = packed(board.title, first, [merit, *returns, *counts], width)
    if len(whole) == 1:
        return whole
    heading = f"{board.scores.key.budget} · mean {board.scores.label}"
    return packed(board.title, first, [merit, *counts], width) + packed(heading, first, returns, width)


def packed(title: str, first: Sequence[Column], rest: Sequence[Column], width: int) -> list[Any]:
    """Rich tables that each begin with ``first`` and hold as many of ``rest`` as fit in ``width`` columns."""
    tables: list[Any] = []
    waiting = list(rest)
    while waiting:
        count = len(waiting)
        while count > 1 and not _fits(_table("", [*first, *waiting[:count]]), width):
            count -= 1
        tables.append(_table(title, [*first, *waiting[:count]]))
        waiting = waiting[count:]
    return tables


def _table(title: str, columns: Sequence[Column]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for column in columns:
        # Headings may fold, numbers never.
        longest = max((len(line) for cell in column.cells for line in cell.split("\n")), default=1)
        least = min(longest, column.fold or longest)
        table.add_column(Text(column.heading), justify=column.justify, overflow="fold", max_width=column.fold,
                         min_width=None if column.fold else least)  # fmt: skip
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, row))  # as it stands: names hold brackets
    return table


def _fits(table: Any, width: int) -> bool:
    """Whether the table needs no wrapping in ``width`` columns, whatever the terminal is now."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(file=io.StringIO(), width=10_000)
    return Measurement.get(console, console.options, table).maximum <= width


def _merit(board: "Board") -> Column:
    if not board.scores.normalized:
        return Column("mean rank", [number(value) for value in board.table["mean_rank"]])
    ends = (board.table[name] for name in ("iqm", "iqm_low", "iqm_high"))
    cells = [interval(value, low, high, 2) for value, low, high in zip(*ends, strict=True)]
    return Column("IQM [95 %]", cells, "left")


def _rich_returns(board: "Board") -> list[Column]:
    found = {name: board.table[f"{board.scores.metric}:{name}"] for name in board.scores.environments}
    return [Column(name, [number(value) for value in column]) for name, column in found.items()]


def _rich_counts(board: "Board") -> list[Column]:
    return [
        Column("seeds", list(map(str, board.table["num_seeds"]))),
        Column("diverged", list(map(str, board.table["diverged"]))),
        Column("steps/s", list(map(rate, board.table["steps_per_second"]))),
    ]


def rich_scores(scores: pd.DataFrame) -> Any:
    """A rich table of single seeds, a row each, and their mean."""
    from rich.table import Table

    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in ("seed", "final return", "mean return", "env steps", ""):
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    for row in scores.itertuples():
        state = "diverged" if row.diverged else "no episode" if pd.isna(row.final_return) else ""
        returns = (number(row.final_return), number(row.mean_return))
        table.add_row(str(row.seed), *returns, f"{row.env_steps:,}", state)
    known = scores.dropna(subset=["final_return"])
    if len(scores) > 1 and len(known):
        table.add_section()
        means = (number(known["final_return"].mean()), number(known["mean_return"].mean()))
        table.add_row("mean", *means, "", "" if len(known) == len(scores) else f"of {len(known)} of {len(scores)}")
    return table


def check_line(name: str, passed: bool, detail: str) -> str:
    """One line of a conformance report, in rich markup."""
    from rich.markup import escape

    return f"{'[green]pass[/]' if passed else '[bold red]FAIL[/]'}  {name:<28} {escape(detail)}"


def cost_lines(parameters: int, state_bytes: int, seconds: float, relative: float) -> list[str]:
    """What an optimizer costs, in words."""
    return [
        f"state {state_bytes / parameters:.1f} bytes a parameter ({state_bytes / 2**20:.2f} MiB for {parameters:,})",
        f"step  {1e3 * seconds:.2f} ms, {relative:.1f} × Adam's",
    ]
