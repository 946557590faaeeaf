"""A generalization study as CSV, Markdown and on a terminal."""

from pathlib import Path
from typing import Any

import pandas as pd

from open_bench.evaluation.tables import Column, csv, markdown_table, markdown_text, packed
from open_bench.files import write_atomically
from open_bench.generalization.scores import Generalization
from open_bench.text import interval, number

MARKS = {"in": "", "out": "°", "unknown": "?"}


def write(study: Generalization, folder: str | Path) -> list[Path]:
    """Write ``generalization.csv`` (a row a seed), ``points.csv``, ``axes.csv``, ``summary.csv``,
    ``generalization.md`` and ``figures/``; the same study gives the same bytes. Returns the files, in order."""
    from open_bench.generalization.figures import save_figures

    folder = Path(folder)
    tables = {"generalization": study.rows, "points": study.points, "axes": study.axes, "summary": study.summary}
    written = [write_atomically(folder / f"{name}.csv", csv(table)) for name, table in tables.items()]
    written.append(write_atomically(folder / "generalization.md", markdown(study)))
    return [*written, *save_figures(study, folder / "figures")]


def markdown(study: Generalization) -> str:
    """Summary, axes, points and notes."""
    parts = [
        f"# Generalization: {study.name}\n",
        f"Scores: {scale_in_words(study)}. Intervals: 95 %, bootstrap over seeds, stratified by task; "
        "Student's for differences.\n",
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
        "".join(f"- {markdown_text(note)}\n" for note in study.notes),
    ]
    return "\n".join(parts)


def scale_in_words(study: Generalization) -> str:
    """What 0 and 1 mean."""
    return {
        "adam": "0 is a random policy and 1 Adam, both at the same point",
        "optimal": "0 is a random policy and 1 an optimal one",
        "none": "none, raw returns",
    }[study.normalize]


def rich_tables(study: Generalization, width: int = 80) -> Any:
    """A ``rich.console.Group`` that fits a terminal ``width`` columns wide: the summary, the axes, and the notes."""
    from rich.console import Group
    from rich.text import Text

    title = Text(f"generalization · {study.name} · {scale_in_words(study)}", style="italic")
    notes = [Text(f"· {note}", style="dim") for note in study.notes]
    return Group(title, *_summary_tables(study, width), *_axes_tables(study, width), *notes)


def _summary_tables(study: Generalization, width: int) -> list[Any]:
    """The optimizers that were measured; intervals and names of points stand below, so that estimates fit."""
    headings, rows = _summary(study)
    columns = {
        name: Column(name, [row[headings.index(name)].replace(" [", "\n[") for row in rows], "left", fold)
        for name, fold in (("optimizer", 22), ("in", None), ("out", None), ("gap", None), ("worst point", 40))
    }
    return packed("", [columns.pop("optimizer")], list(columns.values()), width)


def _axes_tables(study: Generalization, width: int) -> list[Any]:
    """Mean scores by axis; a baseline that is 1 throughout is left out."""
    headings, rows = _axes(study)
    start = 3 if study.relative and len(headings) > 3 else 2
    first = [Column("IQM by axis", [row[0] for row in rows], "left"), Column("scored", [row[1] for row in rows])]
    rest = [Column(headings[i], [row[i] for row in rows], "left", 24) for i in range(start, len(headings))]
    return packed("", first, rest, width)


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
            estimates = [text if text == "–" else "1" for text in estimates]
        unknown = f", {row['unknown_tasks']} ?" if row["unknown_tasks"] else ""
        counts = f"{row['in_tasks']}/{row['out_tasks']}{unknown}"
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
