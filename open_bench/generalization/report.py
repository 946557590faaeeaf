"""A generalization study as CSV, Markdown and on a terminal."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from open_bench.evaluation.tables import interval, markdown_table, number
from open_bench.files import write_atomically
from open_bench.generalization.scores import Generalization

MARKS = {"in": "", "out": "°", "unknown": "?"}


def write(study: Generalization, folder: str | Path) -> list[Path]:
    """Write ``generalization.csv`` (a row a seed), ``points.csv``, ``axes.csv``, ``summary.csv``,
    ``generalization.md`` and ``figures/``; the same study gives the same bytes. Returns the files, in order."""
    from open_bench.generalization.figures import save_figures

    folder = Path(folder)
    tables = {"generalization": study.rows, "points": study.points, "axes": study.axes, "summary": study.summary}
    written = [
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
        for name, table in tables.items()
    ]
    written.append(write_atomically(folder / "generalization.md", markdown(study)))
    return [*written, *save_figures(study, folder / "figures")]


def markdown(study: Generalization) -> str:
    """Summary, axes, points and notes."""
    parts = [
        f"# Generalization: {study.preset}\n",
        f"Scores: {scale_in_words(study)}. Intervals: 95 % bootstrap over seeds, stratified by task.\n",
        "## In and out of the training distribution\n",
        markdown_table(*_summary(study)),
        "## Axes\n",
        "IQM of scores over the points of each axis.\n",
        markdown_table(*_axes(study)),
        "## Points\n",
        "Mean score, or mean return in brackets where there is no scale; ° outside of what the optimizer was trained "
        "or tuned on, ? not known.\n",
        markdown_table(*_points(study)),
        "## Notes\n",
        "".join(f"- {note}\n" for note in study.notes),
    ]
    return "\n".join(parts)


def scale_in_words(study: Generalization) -> str:
    """What 0 and 1 mean."""
    return {
        "adam": "0 is a random policy and 1 Adam, both at the same point",
        "optimal": "0 is a random policy and 1 an optimal one",
        "none": "none, raw returns",
    }[study.normalize]


def rich_tables(study: Generalization) -> Any:
    """A ``rich.console.Group`` that fits 80 columns: the summary, the axes, and the notes."""
    from rich.console import Group
    from rich.text import Text

    title = Text(f"generalization · {study.preset} · {scale_in_words(study)}", style="italic")
    notes = [Text(f"· {note}", style="dim") for note in study.notes]
    return Group(title, _summary_table(study), *_axes_tables(study), *notes)


def _summary_table(study: Generalization) -> Any:
    """The optimizers that were measured, a line or two each."""
    from rich.text import Text

    table = _table()
    for name, justify in (("optimizer", "left"), ("in", "left"), ("out", "left"), ("gap", "left"), ("worst", "left")):
        table.add_column(name, justify=justify, overflow="fold", max_width=22 if name == "optimizer" else None)
    headings, rows = _summary(study)
    picked = [headings.index(name) for name in ("optimizer", "in", "out", "gap", "worst point")]
    for row in rows:
        # Intervals and names of points stand below, so that four estimates fit.
        table.add_row(*(Text(row[i].replace(" [", "\n[")) for i in picked))  # as it stands: names hold brackets
    return table


def _axes_tables(study: Generalization) -> list[Any]:
    """Mean scores by axis, as many optimizers side by side as fit; a baseline that is 1 throughout is left out."""
    headings, rows = _axes(study)
    first = 3 if study.relative and len(headings) > 3 else 2
    tables = []
    for start in range(first, len(headings), 2):
        table = _table()
        table.add_column("IQM by axis", no_wrap=True)
        table.add_column("scored", no_wrap=True, justify="right")
        for name in headings[start : start + 2]:
            table.add_column(name, overflow="fold", min_width=17, max_width=24)
        for row in rows:
            table.add_row(*row[:2], *row[start : start + 2])
        tables.append(table)
    return tables


def _table() -> Any:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


def _summary(study: Generalization) -> tuple[list[str], list[list[str]]]:
    better = f"P(better than {study.baseline})"
    headings = ["optimizer", "tasks in/out", "in", "out", "gap", "all", f"in − {study.baseline}",
                f"out − {study.baseline}", f"{better} in", f"{better} out", "worst point", "diverged"]  # fmt: skip
    rows = []
    for row in study.summary.to_dict("records"):
        itself = study.relative and row["optimizer"] == study.baseline
        estimates = [_estimate(row, name) for name in ("in_score", "out_score", "gap", "all_score")]
        versus = [_estimate(row, name) for name in ("in_difference", "out_difference", "in_win", "out_win")]
        worst = f"{row['worst_axis']} {row['worst_point']}: {_estimate(row, 'worst')}" if row["worst_axis"] else "–"
        if itself:  # 1 by construction, so an interval would say nothing
            estimates = [
                "–" if math.isnan(row[name]) else "1" for name in ("in_score", "out_score", "gap", "all_score")
            ]
        counts = f"{row['in_tasks']}/{row['out_tasks']}" + (
            f", {row['unknown_tasks']} ?" if row["unknown_tasks"] else ""
        )
        rows.append([row["optimizer"], counts, *estimates, *versus, worst, f"{row['diverged']} of {row['lifetimes']}"])
    return headings, rows


def _axes(study: Generalization) -> tuple[list[str], list[list[str]]]:
    found = study.axes.set_index(["axis", "optimizer"])
    rows = []
    for axis in study.axes["axis"].unique():
        cells, counts = [], found.loc[(axis, study.baseline)]  # a task has a scale for all or for none
        for optimizer in study.optimizers:
            itself = study.relative and optimizer == study.baseline and counts["scored_points"]
            cells.append("1" if itself else _estimate(found.loc[(axis, optimizer)], "score"))
        rows.append([axis, f"{int(counts['scored_points'])}/{int(counts['points'])}", *cells])
    return ["axis", "scored", *study.optimizers], rows


def _points(study: Generalization) -> tuple[list[str], list[list[str]]]:
    found = study.points.set_index(["axis", "point", "optimizer"])
    rows = []
    for axis, point in study.points[["axis", "point"]].drop_duplicates().itertuples(index=False):
        cells = [point_text(found.loc[(axis, point, optimizer)]) for optimizer in study.optimizers]
        rows.append([axis, point, *cells])
    return ["axis", "point", *study.optimizers], rows


def point_text(row: "pd.Series") -> str:
    """``0.93 [0.81, 1.04]°``: the score, or ``(return)`` where there is no scale, with the mark of its distribution."""
    text = _estimate(row, "score") if pd.notna(row["score"]) else f"({number(row['mean'])})"
    return text + MARKS[row["distribution"]]


def _estimate(row: Any, name: str) -> str:
    text = interval(row[name], row[f"{name}_low"], row[f"{name}_high"], 2)
    return text or "–"
