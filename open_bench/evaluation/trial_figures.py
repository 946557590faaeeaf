"""Tables and figures of tuning, beside the stored trials: ``<results>/tuning``."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from open_bench.evaluation import trials as measures
from open_bench.evaluation.bootstrap import RESAMPLES
from open_bench.evaluation.style import (
    aliases,
    draw_line,
    figure_legend,
    finish_axis,
    in_file_names,
    panel_grid,
    save,
    styles,
)
from open_bench.evaluation.tables import csv
from open_bench.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_trials(
    trials: pd.DataFrame, results: str | Path, resamples: int = RESAMPLES, formats: Collection[str] = ("png",)
) -> list[Path]:
    """Write best_of_k.csv, sensitivity.csv, rank_stability.csv and figures; returns the files, in order.

    Figures are ``figures/<budget>_<algorithm>_best_of_k.png`` and ``…_sensitivity.png``. Without trials nothing is
    written.
    """
    folder = Path(results) / "tuning"
    best, sensitive = measures.best_of_k(trials, resamples), measures.sensitivity(trials, resamples)
    tables = {"best_of_k": best, "sensitivity": sensitive, "rank_stability": measures.rank_stability(best)}
    written = [
        write_atomically(folder / f"{name}.csv", csv(table, "%.6g")) for name, table in tables.items() if len(table)
    ]
    for name, table, draw in (("best_of_k", best, best_of_k), ("sensitivity", sensitive, sensitivity)):
        for (algorithm, budget), mine in table.groupby(measures.BOARD) if len(table) else ():
            stem = folder / "figures" / f"{in_file_names(budget)}_{in_file_names(algorithm)}_{name}"
            written += save(draw(mine), stem, formats)
    return written


def best_of_k(best: pd.DataFrame) -> "Figure":
    """Expected best of k against k with intervals, a panel an environment; rows of one algorithm and budget."""
    environments = sorted(set(best["environment"]), key=lambda name: (name == measures.ALL, name))
    look, short = styles(sorted(set(best["optimizer"]))), aliases(best["optimizer"])
    figure, axes = panel_grid(len(environments), panel=(3.6, 2.7))
    lines = {}
    for axis, environment in zip(axes, environments, strict=True):
        for name, mine in best[best["environment"] == environment].groupby("optimizer"):
            lines[short[name]] = draw_line(axis, mine["k"].to_numpy(), mine["value"].to_numpy(), look[name])
            axis.fill_between(mine["k"], mine["low"], mine["high"], color=look[name]["color"], alpha=0.13, linewidth=0)
        finish_axis(axis, environment, "trials")
        axis.set_ylabel("normalized (p5 to p95)" if environment == measures.ALL else "final return", fontsize=9)
    figure_legend(figure, dict(sorted(lines.items())))
    return figure


def sensitivity(table: pd.DataFrame) -> "Figure":
    """Performance against Φ, with intervals of both; rows of one algorithm and budget."""
    look, short = styles(sorted(table["optimizer"])), aliases(table["optimizer"])
    figure, (axis,) = panel_grid(1, panel=(5.0, 3.8))
    lines = {}
    for row in table.to_dict("records"):
        name, x, y = row["optimizer"], row["sensitivity"], row["performance"]
        color, marker = look[name]["color"], look[name]["marker"]
        axis.hlines(y, row["sensitivity_low"], row["sensitivity_high"], color=color, linewidth=0.8)
        axis.vlines(x, row["performance_low"], row["performance_high"], color=color, linewidth=0.8)
        lines[short[name]] = axis.plot(x, y, color=color, marker=marker, markersize=6, linestyle="")[0]
    finish_axis(axis, "performance and sensitivity", "sensitivity Φ: what tuning per environment brings")
    axis.set_ylabel("performance, tuned per environment", fontsize=9)
    figure_legend(figure, lines)
    return figure
