"""How a leaderboard looks: in Markdown and on a terminal."""

import io
import math
from typing import TYPE_CHECKING, Any

import pandas as pd

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
METRIC_LABELS = {"final_return": "final return", "mean_return": "return over the lifetime"}


def number(value: float, places: int | None = None) -> str:
    """Enough digits to compare by: 6517, 167.1, 50.08, 0.52; "" for NaN."""
    if math.isnan(value):
        return ""
    return f"{value:.{_places(value) if places is None else places}f}"


def interval(value: float, low: float, high: float, places: int | None = None) -> str:
    """``0.93 [0.81, 1.04]``, without brackets where there is no interval, "" where there is no value."""
    if math.isnan(value) or math.isnan(low) or math.isnan(high):
        return number(value, places)
    places = _places(value) if places is None else places
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def duration(seconds: float) -> str:
    """Wall clock as 45 s, 12.5 min or 3.2 h; "" for NaN."""
    if math.isnan(seconds):
        return ""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (math.inf, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.{0 if size == 1 else 1}f} {unit}"
    raise ValueError(f"{seconds} is not a duration")


def rate(per_second: float) -> str:
    """``54,321``; "" for NaN."""
    return "" if math.isnan(per_second) else f"{per_second:,.0f}"


def markdown(leaderboard: "Leaderboard") -> str:
    """Every board under its heading: aggregates, returns per environment, notes."""
    return "\n".join(_board_markdown(board, leaderboard) for board in leaderboard.boards)


def _places(value: float) -> int:
    return 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2


def _board_markdown(board: "Board", leaderboard: "Leaderboard") -> str:
    what = METRIC_LABELS[leaderboard.metric]
    parts = [
        f"### {board.title}\n",
        markdown_table(*_summary(board, leaderboard.baseline)),
        f"Mean {what} per environment, with 95 % bootstrap intervals:\n",
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
        "seeds": list(map(str, board.table["seeds"])),
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
    names, returns = list(board.scores.environments), _rich_returns(board)
    if _fits(whole := _rich_table(board, names, returns, summary=True), width):
        return [whole]
    tables = [_rich_table(board, [], returns, summary=True)]
    while names:
        count = len(names)
        while count > 1 and not _fits(_rich_table(board, names[:count], returns, summary=False), width):
            count -= 1
        tables.append(_rich_table(board, names[:count], returns, summary=False))
        names = names[count:]
    return tables


def _rich_returns(board: "Board") -> dict[str, list[str]]:
    columns = {name: board.table[f"{board.scores.metric}:{name}"] for name in board.scores.environments}
    return {name: [number(value) for value in column] for name, column in columns.items()}


def _rich_table(board: "Board", environments: list[str], returns: dict[str, list[str]], summary: bool) -> Any:
    """Rank and optimizer, then the summary's columns around those of ``environments``."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    what = METRIC_LABELS[board.scores.metric]
    title = board.title if summary else f"{board.scores.budget} · mean {what}"
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("optimizer", overflow="fold", max_width=26)
    columns = [_ranks(board.table), list(board.table["optimizer"])]
    if summary:
        heading, cells = _rich_merit(board)
        table.add_column(heading, no_wrap=True)
        columns.append(cells)
    for name in environments:
        table.add_column(Text(name), justify="right", overflow="fold", min_width=7)
        columns.append(returns[name])
    if summary:
        for heading, cells in _rich_counts(board).items():
            table.add_column(heading, justify="right", no_wrap=True)
            columns.append(cells)
    for row in zip(*columns, strict=True):
        table.add_row(*map(Text, row))
    return table


def _rich_merit(board: "Board") -> tuple[str, list[str]]:
    if not board.scores.normalized:
        return "mean rank", [number(value) for value in board.table["mean_rank"]]
    ends = (board.table[name] for name in ("iqm", "iqm_low", "iqm_high"))
    return "IQM [95 %]", [interval(value, low, high, 2) for value, low, high in zip(*ends, strict=True)]


def _rich_counts(board: "Board") -> dict[str, list[str]]:
    return {
        "seeds": list(map(str, board.table["seeds"])),
        "diverged": list(map(str, board.table["diverged"])),
        "steps/s": list(map(rate, board.table["steps_per_second"])),
    }


def _fits(table: Any, width: int) -> bool:
    """Whether the table needs no wrapping in ``width`` columns, whatever the terminal is now."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(file=io.StringIO(), width=10_000)
    return Measurement.get(console, console.options, table).maximum <= width


def rich_scores(scores: pd.DataFrame) -> Any:
    """A rich table of single seeds, a row each, and their mean."""
    from rich.table import Table

    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in ("seed", "final return", "mean return", "env steps", ""):
        table.add_column(column, justify="left" if column == "" else "right")
    for row in scores.itertuples():
        state = "diverged" if row.diverged else "no episode finished" if pd.isna(row.final_return) else ""
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
