"""Figures of a board as PNG files: curves, returns, aggregates, profiles of scores and times, diagnosis.

The same runs give the same bytes; see ``style`` for the look that all figures share.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from open_bench.evaluation import time_to_target
from open_bench.evaluation.baseline_returns import BaselineReturns, returns_of
from open_bench.evaluation.bootstrap import AGGREGATES, RESAMPLES, mean_bands, performance_profile
from open_bench.evaluation.leaderboard import Board, Leaderboard, leaderboard
from open_bench.evaluation.schema import DIAGNOSIS, Runs
from open_bench.evaluation.style import (
    GRAY,
    LEVEL,
    aliases,
    draw_line,
    figure_legend,
    finish_axis,
    in_file_names,
    panel_grid,
    png,
    styles,
)
from open_bench.evaluation.tables import LABELS
from open_bench.files import write_atomically
from open_bench.text import compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEVELS = {"Adam (stored)": LEVEL, "random policy": (0, (2, 2))}
MOST_CELLS = 600  # optimizers × environments of a board whose environments are drawn
_SMOOTHED = 80  # points of a curve a step of the window's half


def save_figures(
    runs: Runs,
    baseline_returns: BaselineReturns,
    budget: str | None,
    directory: str | Path,
    *,
    resamples: int = RESAMPLES,
    ranked: Leaderboard | None = None,
    most_cells: int = MOST_CELLS,
) -> list[Path]:
    """Draw every board of ``budget`` (None: of all) into ``directory``; returns the files, in order.

    ``<study or budget>_<algorithm>_learning_curves.png`` (where curves are stored), ``…_returns.png`` and, where an
    environment has a scale and an optimizer has run in all of those, ``…_aggregates.png`` and ``…_profiles.png``;
    ``…_time_to_target.png`` where Adam's target and curves are there; for each environment with a stored diagnosis
    ``…_diagnosis_<environment>.png``.
    A board of more than ``most_cells`` optimizers × environments has no figures of single environments but diagnosis.
    Boards that would share a name have protocol, root seed and vmap size in it. ``ranked`` saves computing the
    leaderboard again. Raises what ``leaderboard`` raises.
    """
    if ranked is None:
        ranked = leaderboard(runs, baseline_returns, budget, resamples=resamples)
    shown = [board for board in ranked.boards if budget in (None, board.scores.key.budget)]
    stems = [_stem(board) for board in shown]
    written = []
    for board, stem in zip(shown, stems, strict=True):
        suffix = _suffix(board) if stems.count(stem) > 1 else ""
        for name, figure in _figures(board, runs, baseline_returns, resamples, most_cells):
            written.append(write_atomically(Path(directory) / f"{stem}{suffix}_{name}.png", png(figure)))
    return written


def _stem(board: Board) -> str:
    key = board.scores.key
    study, budget, algorithm = map(in_file_names, (board.study or "", key.budget, key.algorithm))
    return "_".join([*([] if study in ("", budget) else [study]), budget, algorithm])


def _suffix(board: Board) -> str:
    key, vmap_size = board.scores.key, board.scores.vmap_size
    apart = "" if vmap_size is None else f"_vmap{vmap_size}"
    return f"_protocol{key.protocol}_seed{key.root_seed}{apart}"


def learning_curves(
    board: Board, runs: Runs, baseline_returns: BaselineReturns, resamples: int = RESAMPLES
) -> "Figure | None":
    """Mean episode return over seeds against env steps, a panel an environment; None where none is stored.

    Curves of many points are smoothed lightly; bands are 95 % bootstrap intervals of the mean. A diverged seed counts
    with its stand-in return (the random policy's) from where it diverged. A point is drawn once half of the seeds have
    finished an episode.
    """
    curves = _board_curves(board, runs)
    if curves["episode_return"].notna().sum() == 0:
        return None
    look = styles(board.scores.optimizers)
    figure, axes = panel_grid(len(board.scores.environments), panel=(3.6, 2.7))
    lines: dict[str, Any] = {}
    for axis, environment in zip(axes, board.scores.environments, strict=True):
        for optimizer in board.table["optimizer"]:
            steps, values = _curve_matrix(board, curves, optimizer, environment)
            if len(steps):
                lines.setdefault(optimizer, _draw_curve(axis, steps, values, look[optimizer], resamples))
        lines |= _draw_levels(axis, board, baseline_returns, environment)
        finish_axis(axis, environment, "env steps")
        axis.xaxis.set_major_formatter(lambda value, _: compact(value))
        axis.set_xlim(left=0)
    figure.supylabel("episode return", fontsize=10)
    short = aliases(board.scores.optimizers)
    order = [*board.table["optimizer"], *_LEVELS]
    figure_legend(figure, {short.get(name, name): lines[name] for name in order if name in lines})
    return figure


def diagnosis(board: Board, runs: Runs, environment: str, resamples: int = RESAMPLES) -> "Figure | None":
    """What was measured of the updates in an environment, a panel a diagnostic; None where none is stored.

    Means over the seeds that were trained with diagnosis, with 95 % bootstrap intervals; a seed counts until it
    diverges. A diagnostic that is positive and varies by more than 100 times has a logarithmic axis.
    """
    labels = board.scores.experiments.set_index("experiment")
    rows = runs.diagnosis[runs.diagnosis["experiment"].isin(labels.index[labels["environment"] == environment])]
    rows = rows.assign(optimizer=rows["experiment"].map(labels["optimizer"]))
    rows = rows.replace([np.inf, -np.inf], np.nan).dropna(axis="columns", how="all")
    names = [name for name in rows.columns if name not in DIAGNOSIS]
    if not names:
        return None
    look, short = styles(board.scores.optimizers), aliases(board.scores.optimizers)
    figure, axes = panel_grid(len(names), panel=(3.1, 2.3))
    lines: dict[str, Any] = {}
    for axis, name in zip(axes, names, strict=True):
        for optimizer in (each for each in board.table["optimizer"] if each in set(rows["optimizer"])):
            mine = rows[rows["optimizer"] == optimizer]
            table = mine.pivot(index="seed", columns="env_steps", values=name).sort_index(axis=1)
            drawn = _draw_curve(axis, table.columns.to_numpy(float), table.to_numpy(float), look[optimizer], resamples)
            lines.setdefault(short[optimizer], drawn)
        finish_axis(axis, name.replace("_", " "), "env steps")
        if (rows[name].dropna() > 0).all() and rows[name].max() > 100 * rows[name].min():
            axis.set_yscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: compact(value))
        axis.set_xlim(left=0)
    figure.suptitle(environment, fontsize=10)
    figure_legend(figure, lines)
    return figure


def return_intervals(board: Board) -> "Figure":
    """Mean return of each optimizer, a panel an environment, with 95 % intervals; best-ranked on top."""
    scores = board.scores
    panels = {
        name: board.per_environment[board.per_environment["environment"] == name].set_index("optimizer")
        for name in scores.environments
    }
    return _interval_figure(
        board, {name: (scores.label, frame[["mean", "low", "high"]]) for name, frame in panels.items()}
    )


def aggregate_intervals(board: Board) -> "Figure | None":
    """IQM, median, mean and optimality gap of scores with 95 % intervals; None without any."""
    table = board.table.dropna(subset=["iqm"]).set_index("optimizer")
    if table.empty:
        return None
    panels = {}
    for name in AGGREGATES:
        what = "less is better" if name == "optimality_gap" else "score (1: Adam)"
        panels[LABELS[name]] = (what, table[[name, f"{name}_low", f"{name}_high"]])
    figure = _interval_figure(board, panels, only=tuple(table.index), columns=4)
    for name, axis in zip(AGGREGATES, figure.axes, strict=True):
        if name != "optimality_gap":
            axis.axvline(1.0, color=GRAY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    return figure


def profiles(board: Board, resamples: int = RESAMPLES) -> "Figure | None":
    """Fraction of lifetimes above each score, with 95 % intervals; None where nothing has one."""
    scores = board.scores
    found = {name: scores.matrix(name, scores.normalized) for name in board.table["optimizer"]}
    matrices = {name: matrix for name, matrix in found.items() if matrix is not None}
    if not matrices:
        return None
    thresholds = _thresholds(np.concatenate([matrix.values.ravel() for matrix in matrices.values()]))
    look, short = styles(scores.optimizers), aliases(scores.optimizers)
    figure, (axis,) = panel_grid(1, panel=(6.0, 3.8))
    lines = {}
    for name, matrix in matrices.items():
        profile = performance_profile(matrix, thresholds, resamples)
        lines[short[name]] = draw_line(axis, thresholds, profile.value, look[name])
        axis.fill_between(thresholds, profile.low, profile.high, color=look[name]["color"], alpha=0.13, linewidth=0)
    axis.axvline(1.0, color=GRAY, linewidth=1.0, linestyle=(0, (4, 3)))
    finish_axis(axis, f"performance profile, {scores.key.budget}", "score τ (0: random policy, 1: Adam)")
    axis.set_ylabel("fraction of lifetimes with score > τ", fontsize=9)
    axis.set_xlim(thresholds[0], thresholds[-1])
    axis.set_ylim(-0.02, 1.02)
    figure_legend(figure, lines)
    return figure


def time_profiles(board: Board) -> "Figure | None":
    """Share of environments in which an optimizer needs at most τ times the fewest env steps to the target."""
    steps = board.per_environment.pivot(index="environment", columns="optimizer", values="steps_to_target")
    ratios = time_to_target.ratios(steps.dropna(axis="index", how="all"))
    complete = [name for name in board.table["optimizer"] if len(ratios) and ratios[name].notna().all()]
    if not complete:
        return None
    limits = np.linspace(1.0, time_to_target.LONGEST, 301)
    look, short = styles(board.scores.optimizers), aliases(board.scores.optimizers)
    figure, (axis,) = panel_grid(1, panel=(6.0, 3.8))
    lines = {
        short[name]: draw_line(axis, limits, time_to_target.profile(ratios[name], limits), look[name])
        for name in complete
    }
    finish_axis(axis, f"time to {board.scores.adam}'s median {board.scores.label}", "τ: env steps / fewest env steps")
    axis.set_ylabel("share of environments with r ≤ τ", fontsize=9)
    axis.set_xlim(1.0, time_to_target.LONGEST)
    axis.set_ylim(-0.02, 1.02)
    figure_legend(figure, lines)
    return figure


def _figures(
    board: Board, runs: Runs, baseline_returns: BaselineReturns, resamples: int, most_cells: int
) -> list[tuple[str, "Figure"]]:
    made: dict[str, Figure | None] = {}
    cells = len(board.scores.environments) * len(board.scores.optimizers)
    if cells <= most_cells:
        made["learning_curves"] = learning_curves(board, runs, baseline_returns, resamples)
        made["returns"] = return_intervals(board)
    else:
        warnings.warn(
            f"{board.title}: no figures of single environments, as {cells:,} curves are too many to be told apart: "
            "choose some with `runs.select(environment=…)`", stacklevel=3,
        )  # fmt: skip
    made["aggregates"] = aggregate_intervals(board)
    made["profiles"] = profiles(board, resamples)
    made["time_to_target"] = time_profiles(board)
    for name in board.scores.environments:
        made[f"diagnosis_{in_file_names(name)}"] = diagnosis(board, runs, name, resamples)
    return [(name, figure) for name, figure in made.items() if figure is not None]


# --- learning curves ---------------------------------------------------------------------------------------------


def _board_curves(board: Board, runs: Runs) -> pd.DataFrame:
    labels = board.scores.experiments.set_index("experiment")["optimizer"]
    curves = runs.curves[runs.curves["experiment"].isin(labels.index)]
    return curves.assign(optimizer=curves["experiment"].map(labels))


def _curve_matrix(
    board: Board, curves: pd.DataFrame, optimizer: str, environment: str
) -> tuple[np.ndarray, np.ndarray]:
    """(points,) env steps and (seeds, points) returns, NaN where a seed has no return yet."""
    rows = board.scores.rows
    rows = rows[(rows["optimizer"] == optimizer) & (rows["environment"] == environment)].set_index("seed")
    mine = curves[(curves["optimizer"] == optimizer) & (curves["environment"] == environment)]
    table = mine.pivot(index="seed", columns="env_steps", values="episode_return")
    table = table.sort_index(axis=1).reindex(rows.index)
    values = table.to_numpy(float)
    stand_in = board.scores.stand_in[environment]
    for row in np.flatnonzero(rows["diverged"]):
        values[row] = _after_divergence(values[row], stand_in)
    return table.columns.to_numpy(float), values


def _after_divergence(curve: np.ndarray, stand_in: float) -> np.ndarray:
    """A curve (points,) whose missing end, all of it if nothing is there, is filled with ``stand_in``."""
    known = np.flatnonzero(~np.isnan(curve))
    end = known[-1] + 1 if len(known) else 0
    return np.concatenate([curve[:end], np.full(len(curve) - end, stand_in)])


def smoothed(values: np.ndarray) -> np.ndarray:
    """Running means along the points of curves (seeds, points), over about 2.5 % of them; NaN stays, and counts not.

    Curves of up to 79 points stay as they are: each of theirs is a mean over many episodes already.
    """
    half = values.shape[1] // _SMOOTHED
    known = ~np.isnan(values)
    sums, counts = (
        np.cumsum(np.pad(each, ((0, 0), (half + 1, half))), axis=1) for each in (np.where(known, values, 0.0), known)
    )
    window = 2 * half + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (sums[:, window:] - sums[:, :-window]) / (counts[:, window:] - counts[:, :-window])
    return np.where(known, means, np.nan)


def _draw_curve(axis: "Axes", steps: np.ndarray, values: np.ndarray, look: dict[str, Any], resamples: int) -> Any:
    mean, low, high = mean_bands(smoothed(values), resamples)
    axis.fill_between(steps, low, high, color=look["color"], alpha=0.14, linewidth=0)
    return draw_line(axis, steps, mean, look)


def _draw_levels(axis: "Axes", board: Board, baseline_returns: BaselineReturns, environment: str) -> dict[str, Any]:
    """Dashed levels of the random policy and of Adam's stored returns, where known."""
    scores, known = board.scores, returns_of(baseline_returns, environment)
    adam = known.adam(scores.key.algorithm, scores.key.budget)
    levels = {"Adam (stored)": adam.final_return.mean} if adam is not None else {}
    if environment in scores.scales:
        levels["random policy"] = scores.scales[environment].zero
    elif known.random is not None:
        levels["random policy"] = known.random.final_return.mean
    return {
        name: axis.axhline(level, color=GRAY, linewidth=1.1, linestyle=_LEVELS[name], zorder=1)
        for name, level in levels.items()
    }


# --- intervals ---------------------------------------------------------------------------------------------------


def _interval_figure(
    board: Board,
    panels: dict[str, tuple[str, pd.DataFrame]],
    only: tuple[str, ...] | None = None,
    columns: int | None = None,
) -> "Figure":
    """Panels of horizontal intervals; each frame has value, low and high by optimizer."""
    optimizers = [name for name in board.table["optimizer"] if only is None or name in only]
    look, short = styles(board.scores.optimizers), aliases(board.scores.optimizers)
    height = 0.75 + 0.34 * len(optimizers)
    figure, axes = panel_grid(len(panels), panel=(2.9, height), columns=columns, share_y=True)
    for axis, (title, (what, frame)) in zip(axes, panels.items(), strict=True):
        for place, name in enumerate(optimizers):
            if name in frame.index:
                _draw_interval(axis, place, frame.loc[name].to_numpy(float), look[name]["color"])
        finish_axis(axis, title, what)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", left=False)
        axis.locator_params(axis="x", nbins=5)
        axis.use_sticky_edges = False  # else the lowest bar touches the edge, as if it were cut off
        axis.margins(x=0.06)
        axis.set_yticks(range(len(optimizers)), [short[name] for name in optimizers], fontsize=9)
        axis.set_ylim(len(optimizers) - 0.4, -0.6)
    return figure


def _draw_interval(axis: "Axes", place: int, estimate: np.ndarray, color: str) -> None:
    value, low, high = estimate
    if np.isfinite([low, high]).all():
        axis.barh(place, high - low, left=low, height=0.55, color=color, alpha=0.35, linewidth=0)
    axis.plot([value, value], [place - 0.275, place + 0.275], color=color, linewidth=2.4, solid_capstyle="butt")


def _thresholds(scores: np.ndarray) -> np.ndarray:
    """From the lowest score (at least −1) to a little above the highest (at most 3), 0 and 1 always inside."""
    return np.linspace(max(min(0.0, scores.min()), -1.0), min(max(1.1, scores.max() * 1.05), 3.0), 401)
