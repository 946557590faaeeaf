"""How a leaderboard looks: in Markdown and on a terminal."""

import dataclasses
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from open_bench.evaluation.schema import METRICS
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


_WORDS = ("rank", "optimizer", "track")  # columns of text
_NOT_FOR_PAPERS = ("hyperparameters", "θ", "steps/s", "run time", "compile time")
_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "θ": r"$\theta$", "–": "--", "−": "$-$", "·": r"$\cdot$", "×": r"$\times$",
    "|": r"\textbar{}", "∞": r"$\infty$",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table on a terminal; only those that fold may be narrower than what they hold."""

    heading: str
    cells: Sequence[str]
    justify: Literal["left", "right"] = "right"
    fold: int | None = None  # widest that it gets


def markdown(leaderboard: "Leaderboard") -> str:
    """Every board under its heading: aggregates, returns per environment, notes."""
    return "\n".join(map(_board_markdown, leaderboard.boards))


def _board_markdown(board: "Board") -> str:
    parts = [f"### {markdown_text(board.title)}\n"]
    for about, headings, rows in _tables(board):
        parts += [*([f"{markdown_text(about)}:\n"] if about else []), markdown_table(headings, rows)]
    if board.notes:
        parts.append("Notes:\n\n" + "".join(f"- {markdown_text(note)}\n" for note in board.notes))
    return "\n".join(parts)


def _tables(board: "Board") -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """What each table of a board is about, its headings and its rows."""
    cells = summary(board)
    yield "", list(cells), [list(row) for row in zip(*cells.values(), strict=True)]
    yield f"Mean {board.scores.label} per environment, with 95 % bootstrap intervals", *returns(board)
    if board.per_environment["steps_to_target"].notna().any():
        adam = board.short.get(board.scores.adam, board.scores.adam)
        about = f"Env steps to the median {board.scores.label} of {adam}, median over seeds"
        yield about, *_steps_to_target(board)


def latex(leaderboard: "Leaderboard") -> str:
    """Every board as tables of LaTeX (package booktabs), its notes as comments."""
    return "\n".join(map(_board_latex, leaderboard.boards))


def _board_latex(board: "Board") -> str:
    parts = []
    for about, headings, rows in _tables(board):
        kept = [place for place, name in enumerate(headings) if name not in _NOT_FOR_PAPERS]
        lines = [[line[place] for place in kept] for line in (headings, *rows)]
        # After a row's end, LaTeX would take a bracket for a distance and a star for a variant.
        top, *body = (re.sub(r"^(?=[\[*])", "{}", " & ".join(map(latex_text, line))) + r" \\" for line in lines)
        caption = latex_text(f"{board.title}. {about}".removesuffix(". "))
        parts += [
            r"\begin{table}", r"\centering", rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{{''.join('l' if name in _WORDS else 'r' for name in lines[0])}}}",
            r"\toprule", top, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}",
        ]  # fmt: skip
    parts += ["% " + " ".join(note.split()) for note in board.notes]
    return "\n".join(parts) + "\n"


def summary(board: "Board") -> dict[str, list[str]]:
    """Cells by heading; an estimate that no optimizer has gets no column."""
    ranges = zip(board.table["rank_low"], board.table["rank_high"], strict=True)
    ranks = ["" if pd.isna(low) else str(low) if low == high else f"{low}–{high}" for low, high in ranges]
    columns = {"rank": ranks, "optimizer": [board.short[name] for name in board.table["optimizer"]],
               "track": list(board.table["track"])}  # fmt: skip
    for name, label in LABELS.items():
        if board.table[name].notna().any():
            ends = (board.table[f"{name}{end}"] for end in ("", "_low", "_high"))
            columns[label.format(baseline=board.short[board.baseline])] = [
                interval(value, low, high, 2) for value, low, high in zip(*ends, strict=True)
            ]
    ends = (board.table[f"mean_rank{end}"] for end in ("", "_low", "_high"))
    columns["mean rank"] = [interval(*each) for each in zip(*ends, strict=True)]
    if board.table["time_to_target"].notna().any():
        columns["time to target"] = list(map(number, board.table["time_to_target"]))
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
    if columns["hyperparameters"] == columns["track"]:
        del columns["hyperparameters"]
    if board.table["unfinished"].any():
        columns["no episode"] = _failures(board.table, "unfinished")
    return columns


def returns(board: "Board") -> tuple[list[str], list[list[str]]]:
    """Headings and rows of each environment's mean, with its 95 % bootstrap interval."""
    found = board.per_environment.set_index(["optimizer", "environment"])[["mean", "low", "high"]].to_dict("index")
    cells = {key: interval(*values.values()) for key, values in found.items()}
    rows = [
        [board.short[optimizer], *(cells.get((optimizer, name), "") for name in board.scores.environments)]
        for optimizer in board.table["optimizer"]
    ]
    return ["optimizer", *board.places.values()], rows


def _steps_to_target(board: "Board") -> tuple[list[str], list[list[str]]]:
    found = board.per_environment.pivot(index="optimizer", columns="environment", values="steps_to_target")
    found = found.loc[list(board.table["optimizer"])].dropna(axis="columns", how="all")
    rows = [[board.short[name], *map(_steps, found.loc[name])] for name in found.index]
    return ["optimizer", *(board.places[name] for name in found)], rows


def _steps(steps: float) -> str:
    return "missed" if steps == float("inf") else rate(steps)


def _failures(table: pd.DataFrame, column: str) -> list[str]:
    """``2 of 40``: failures among all lifetimes."""
    return [f"{count} of {total}" for count, total in zip(table[column], table["lifetimes"], strict=True)]


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(
        "| " + " | ".join(markdown_text(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def markdown_text(text: str) -> str:
    """Text that is neither HTML nor a link in Markdown, on one line."""
    return " ".join(text.splitlines()).replace("<", "&lt;").replace("](", "]\\(")


def latex_text(text: str) -> str:
    """Text as LaTeX shows it, minus signs as such."""
    shown = "".join(_LATEX.get(letter, letter) for letter in " ".join(text.splitlines()))
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", shown)


def csv(frame: pd.DataFrame, float_format: str | None = None) -> str:
    """A table for people as CSV; what a spreadsheet would take for a formula gets an apostrophe in front."""
    texts = [name for name in frame if frame[name].dtype == object]
    shown = frame.assign(**{name: frame[name].map(_no_formula) for name in texts}).rename(columns=_no_formula)
    return shown.to_csv(index=False, float_format=float_format, lineterminator="\n")


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


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
    cells = summary(board) | {"diverged": list(map(str, board.table["diverged"]))}
    first = [Column("#", cells["rank"]), Column("optimizer", cells["optimizer"], "left", 26)]
    if board.scores.normalized:
        merit = Column("IQM [95 %]", cells.get("IQM", [""] * len(board.table)), "left")
    else:
        merit = Column("mean rank [95 %]", cells["mean rank"], "left")
    track = Column("track", cells["track"], "left")
    counts = [Column(name, cells[name]) for name in ("seeds", "diverged", "steps/s")]
    of_environment = {name: board.table[f"{board.scores.metric}:{name}"] for name in board.scores.environments}
    returns = [Column(board.places[name], list(map(number, values))) for name, values in of_environment.items()]
    whole = packed(board.title, first, [track, merit, *returns, *counts], width)
    if len(whole) == 1:
        return whole
    heading = f"{board.scores.key.budget} · mean {board.scores.label}"
    return packed(board.title, first, [track, merit, *counts], width) + packed(heading, first, returns, width)


def packed(title: str, first: Sequence[Column], rest: Sequence[Column], width: int) -> list[Any]:
    """Rich tables that each begin with ``first`` and hold as many of ``rest`` as fit in ``width`` columns."""
    beside = [_widest(first[0])]
    begin, alone = _width(first), _width(beside)
    added = [_width([*beside, _widest(each)]) - alone for each in rest]  # each column's part of a table's width
    tables: list[Any] = []
    at = 0
    while at < len(rest):
        count = 1
        while at + count < len(rest) and begin + sum(added[at : at + count + 1]) <= width:
            count += 1
        tables.append(_table(title, [*first, *rest[at : at + count]]))
        at += count
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


def _widest(column: Column) -> Column:
    """The column with those of its cells alone that its width follows from."""
    from rich.cells import cell_len

    in_cells = max(column.cells, key=lambda cell: max(map(cell_len, cell.splitlines()), default=0), default="")
    in_letters = max(column.cells, key=lambda cell: max(map(len, cell.split("\n"))), default="")
    return dataclasses.replace(column, cells=[in_cells, in_letters])


def _width(columns: Sequence[Column]) -> int:
    """Of a table that needs no wrapping, whatever the terminal is now."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(file=io.StringIO(), width=10_000)
    return Measurement.get(console, console.options, _table("", columns)).maximum


def rich_scores(scores: pd.DataFrame, metrics: Mapping[str, str] = METRICS) -> Any:
    """A rich table of single seeds, a row each, and their mean; ``metrics`` are labels by column."""
    from rich.table import Table

    rows = [
        [str(row["seed"]), *(number(row[name]) for name in metrics), f"{row['env_steps']:,}",
         "diverged" if row["diverged"] else "no episode" if pd.isna(row["final_return"]) else ""]
        for row in scores.to_dict("records")
    ]  # fmt: skip
    known = scores.dropna(subset=["final_return"])
    if len(scores) > 1 and len(known):
        some = "" if len(known) == len(scores) else f"of {len(known)} of {len(scores)}"
        rows.append(["mean", *(number(known[name].mean()) for name in metrics), "", some])
    table = Table(header_style="bold", box=None, pad_edge=False)
    for place, heading in enumerate(("seed", *metrics.values(), "env steps", "")):
        width = max((len(row[place]) for row in rows), default=0)  # headings may fold, numbers never
        table.add_column(heading, justify="right" if heading else "left", min_width=width)
    for row in rows:
        table.add_row(*row, end_section=row is rows[len(scores) - 1])
    return table
