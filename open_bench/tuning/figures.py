"""Figures of trials: return against each hyperparameter, and learning curves; see ``evaluation.style`` for the look."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from open_bench.evaluation.style import GRAY, LEVEL, PALETTE, figure_legend, finish_axis, panel_grid, save
from open_bench.optimizers.spec import Search
from open_bench.text import compact
from open_bench.tuning.selection import FAILED, trial_scores
from open_bench.tuning.trials import Trials

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WINNER, _FIRST = PALETTE[1], PALETTE[0]  # colors of the winner and of trial 0


def save_figures(jobs: Sequence[Trials], winners: Mapping[str, Any], folder: Path) -> list[Path]:
    """``<trials>_returns.png`` and ``<trials>_curves.png`` for each job; ``winners`` by its name have a ``trial``."""
    written = []
    for job in jobs:
        rows, curves = job.load()
        winner = winners.get(job.name)
        trial = None if winner is None else winner.trial
        for name, figure in (
            ("returns", returns(job.label, rows, job.space, trial)),
            ("curves", learning_curves(job.label, curves, trial)),
        ):
            written += save(figure, folder / f"{job.name}_{name}")
    return written


def returns(title: str, rows: pd.DataFrame, space: Mapping[str, Search], winner: int | None) -> "Figure":
    """Mean final return of each trial against each searched hyperparameter; small dots are single seeds.

    A failed trial is a cross at the lower edge.
    """
    scores = trial_scores(rows)
    values = rows.drop_duplicates("trial").set_index("trial")["settings"].map(json.loads)
    figure, axes = panel_grid(len(space), panel=(2.9, 2.5), share_y=True)
    drawn: dict[str, Any] = {}
    for axis, (key, search) in zip(axes, space.items(), strict=True):
        places = {trial: _place(search, setting[key]) for trial, setting in values.items()}
        drawn |= _draw_trials(axis, places, rows, scores, winner)
        if search.choices:
            axis.set_xticks(range(len(search.choices)), [str(choice) for choice in search.choices])
        elif search.scale == "log":
            axis.set_xscale("log")
        finish_axis(axis, "", key)
    figure.suptitle(title, fontsize=10)
    figure.supylabel("final return", fontsize=10)
    figure_legend(figure, drawn)
    return figure


def _place(search: Search, value: Any) -> float:
    """Where a value is drawn; a choice that is none of the list, beside it."""
    if not search.choices:
        return float(value)
    return float(search.choices.index(value)) if value in search.choices else -1.0


def _draw_trials(
    axis: "Axes", places: Mapping[Any, float], rows: pd.DataFrame, scores: pd.Series, winner: int | None
) -> dict[str, Any]:
    known, failed = scores[scores > FAILED], scores[scores == FAILED]
    low = float(known.min()) if len(known) else 0.0
    single = rows["trial"].map(places)
    axis.scatter(single, rows["final_return"], s=5, color=GRAY, alpha=0.5, linewidths=0)
    drawn = {"trial": axis.scatter([places[each] for each in known.index], known, s=22, color=GRAY)}
    if len(failed):
        crosses = [places[each] for each in failed.index]
        drawn["failed"] = axis.scatter(crosses, [low] * len(failed), s=22, color=GRAY, marker="x")
    for name, trial, color in (("trial 0", 0, _FIRST), ("winner", winner, _WINNER)):
        if trial is not None and trial in known:
            drawn[name] = axis.scatter([places[trial]], [known[trial]], s=44, color=color, zorder=3)
    return drawn


def learning_curves(title: str, curves: pd.DataFrame, winner: int | None) -> "Figure":
    """Episode return of every trial, averaged over its seeds, against env steps."""
    figure, (axis,) = panel_grid(1, panel=(4.6, 3.2))
    means = curves.groupby(["trial", "env_steps"])["episode_return"].mean().unstack("env_steps")
    looks: dict[Any, dict[str, Any]] = {trial: {"color": GRAY, "linewidth": 0.7, "alpha": 0.6} for trial in means.index}
    labels = dict.fromkeys(means.index, "trial")
    for name, trial, look in (
        ("trial 0", 0, {"color": _FIRST, "linewidth": 1.6, "linestyle": LEVEL}),
        ("winner", winner, {"color": _WINNER, "linewidth": 1.8}),
    ):
        if trial in looks:
            looks[trial], labels[trial] = {**look, "zorder": 3}, name
    drawn = {}
    for trial, values in means.iterrows():
        (drawn[labels[trial]],) = axis.plot(means.columns.to_numpy(float), values.to_numpy(float), **looks[trial])
    finish_axis(axis, title, "env steps")
    axis.set_ylabel("episode return", fontsize=9)
    axis.xaxis.set_major_formatter(lambda value, _: compact(value))
    axis.set_xlim(left=0)
    figure_legend(figure, drawn)
    return figure
