"""Figures of a board as files: curves, returns, aggregates, profiles of scores and times, diagnosis.

The same runs give the same bytes; see ``style`` for the look that all figures share.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from open_bench.evaluation import curves
from open_bench.evaluation.baseline_returns import BaselineReturns
from open_bench.evaluation.bootstrap import AGGREGATES, RESAMPLES
from open_bench.evaluation.leaderboard import Board, Leaderboard, leaderboard
from open_bench.evaluation.schema import Runs
from open_bench.evaluation.style import (
    GRAY,
    LEVEL,
    draw_line,
    figure_legend,
    finish_axis,
    in_file_names,
    panel_grid,
    save,
    styles,
)
from open_bench.evaluation.tables import LABELS
from open_bench.text import compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEVELS = {"Adam (stored)": LEVEL, "random policy": (0, (2, 2))}
MOST_CELLS = 600  # optimizers × environments of a board whose environments are drawn


def save_figures(
    runs: Runs,
    baseline_returns: BaselineReturns,
    budget: str | None,
    directory: str | Path,
    *,
    resamples: int = RESAMPLES,
    ranked: Leaderboard | None = None,
    formats: Collection[str] = ("png",),
    most_cells: int = MOST_CELLS,
) -> list[Path]:
    """Draw every board of ``budget`` (None: of all) into ``directory``; returns the files, in order.

    ``<study or budget>_<algorithm>_learning_curves.png`` (where curves are stored), ``…_returns.png`` and, where an
    environment has a scale and an optimizer has run in all of those, ``…_aggregates.png`` and ``…_profiles.png``;
    ``…_time_to_target.png`` where Adam's target and curves are there; for each environment with a stored diagnosis
    ``…_diagnosis_<environment>.png``.
    A board of more than ``most_cells`` optimizers × environments has no figures of single environments but diagnosis.
    Another root seed than 0 is in the name, so that one call leaves the other's figures; boards that would still share
    a name have protocol and vmap size in it. ``ranked`` saves computing the leaderboard again; ``formats``: see
    ``style.save``. Raises what ``leaderboard`` raises.
    """
    if ranked is None:
        ranked = leaderboard(runs, baseline_returns, budget, resamples=resamples)
    shown = [board for board in ranked.boards if budget in (None, board.scores.key.budget)]
    stems = [_stem(board) for board in shown]
    written = []
    for board, stem in zip(shown, stems, strict=True):
        suffix = _suffix(board) if stems.count(stem) > 1 else ""
        for name, figure in _figures(board, runs, baseline_returns, resamples, most_cells):
            if figure is not None:
                written += save(figure, Path(directory) / f"{stem}{suffix}_{name}", formats)
    return written


def _stem(board: Board) -> str:
    key = board.scores.key
    study, budget, algorithm = map(in_file_names, (board.study or "", key.budget, key.algorithm))
    seed = [f"seed{key.root_seed}"] if key.root_seed else []
    return "_".join([*([] if study in ("", budget) else [study]), budget, algorithm, *seed])


def _suffix(board: Board) -> str:
    key, vmap_size = board.scores.key, board.scores.vmap_size
    apart = "" if vmap_size is None else f"_vmap{vmap_size}"
    return f"_protocol{key.protocol}{apart}"


def learning_curves(
    board: Board, runs: Runs, baseline_returns: BaselineReturns, resamples: int = RESAMPLES
) -> "Figure | None":
    """Mean episode return over seeds against env steps, a panel an environment; None where none is stored.

    See ``curves.learning_curves``.
    """
    found = curves.learning_curves(board, runs, resamples)
    if all(np.isnan(curve.value).all() for mine in found.values() for curve in mine.values()):
        return None
    figure, axes = panel_grid(len(found), panel=(3.6, 2.7))
    lines: dict[str, Any] = {}
    for axis, (environment, mine) in zip(axes, found.items(), strict=True):
        lines = _draw_curves(axis, board, mine) | lines
        for name, level in curves.levels(board, baseline_returns, environment).items():
            lines[name] = axis.axhline(level, color=GRAY, linewidth=1.1, linestyle=_LEVELS[name], zorder=1)
        finish_axis(axis, board.places[environment], "env steps")
    figure.supylabel("episode return", fontsize=10)
    short = board.short
    order = [*board.table["optimizer"], *_LEVELS]
    figure_legend(figure, {short.get(name, name): lines[name] for name in order if name in lines})
    return figure


def diagnosis(found: Mapping[str, Mapping[str, curves.Curve]], board: Board, environment: str) -> "Figure":
    """What was measured of the updates in an environment (``curves.diagnosis``), a panel a diagnostic.

    A diagnostic that is positive and varies by more than 100 times has a logarithmic axis.
    """
    short = board.short
    figure, axes = panel_grid(len(found), panel=(3.1, 2.3))
    lines: dict[str, Any] = {}
    for axis, (name, mine) in zip(axes, found.items(), strict=True):
        lines = _draw_curves(axis, board, mine) | lines
        finish_axis(axis, name.replace("_", " "), "env steps")
        if curves.needs_log(mine):
            axis.set_yscale("log")
    figure.suptitle(board.places[environment], fontsize=10)
    figure_legend(figure, {short[name]: lines[name] for name in board.table["optimizer"] if name in lines})
    return figure


def return_intervals(board: Board) -> "Figure":
    """Mean return of each optimizer, a panel an environment, with 95 % intervals; best-ranked on top."""
    scores = board.scores
    panels = {
        board.places[name]: board.per_environment[board.per_environment["environment"] == name].set_index("optimizer")
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
    figure = _profile_figure(board, curves.profiles(board, resamples))
    if figure is None:
        return None
    (axis,) = figure.axes
    axis.axvline(1.0, color=GRAY, linewidth=1.0, linestyle=(0, (4, 3)))
    finish_axis(axis, f"performance profile, {board.scores.key.budget}", "score τ (0: random policy, 1: Adam)")
    axis.set_ylabel("fraction of lifetimes with score > τ", fontsize=9)
    return figure


def time_profiles(board: Board) -> "Figure | None":
    """Share of environments in which an optimizer needs at most τ times the fewest env steps to the target."""
    figure = _profile_figure(board, curves.time_profiles(board))
    if figure is None:
        return None
    (axis,) = figure.axes
    finish_axis(axis, f"time to {board.scores.adam}'s median {board.scores.label}", "τ: env steps / fewest env steps")
    axis.set_ylabel("share of environments with r ≤ τ", fontsize=9)
    return figure


def _profile_figure(board: Board, found: Mapping[str, curves.Curve]) -> "Figure | None":
    """Fractions against a limit, with a legend; the axis is to be finished."""
    if not found:
        return None
    look, short = styles(board.scores.optimizers), board.short
    figure, (axis,) = panel_grid(1, panel=(6.0, 3.8))
    lines = {short[name]: _draw_curve(axis, curve, look[name]) for name, curve in found.items()}
    limits = next(iter(found.values())).x
    axis.set_xlim(limits[0], limits[-1])
    axis.set_ylim(-0.02, 1.02)
    figure_legend(figure, lines)
    return figure


def _figures(
    board: Board, runs: Runs, baseline_returns: BaselineReturns, resamples: int, most_cells: int
) -> Iterator[tuple[str, "Figure | None"]]:
    cells = len(board.scores.environments) * len(board.scores.optimizers)
    if cells <= most_cells:
        yield "learning_curves", learning_curves(board, runs, baseline_returns, resamples)
        yield "returns", return_intervals(board)
    else:
        warnings.warn(
            f"{board.title}: no figures of single environments, as {cells:,} curves are too many to be told apart: "
            "`openbench report` has them, or choose some with `runs.select(environment=…)`", stacklevel=3,
        )  # fmt: skip
    yield "aggregates", aggregate_intervals(board)
    yield "profiles", profiles(board, resamples)
    yield "time_to_target", time_profiles(board)
    for environment, found in curves.diagnosis(board, runs, resamples).items():
        yield f"diagnosis_{in_file_names(environment)}", diagnosis(found, board, environment)


def _draw_curves(axis: "Axes", board: Board, found: Mapping[str, curves.Curve]) -> dict[str, Any]:
    """Curves against env steps, by optimizer; the lines."""
    look = styles(board.scores.optimizers)
    lines = {name: _draw_curve(axis, curve, look[name]) for name, curve in found.items()}
    axis.xaxis.set_major_formatter(lambda value, _: compact(value))
    axis.set_xlim(left=0)
    return lines


def _draw_curve(axis: "Axes", curve: curves.Curve, look: dict[str, Any]) -> Any:
    if not np.isnan(curve.low).all():
        axis.fill_between(curve.x, curve.low, curve.high, color=look["color"], alpha=0.14, linewidth=0)
    return draw_line(axis, curve.x, curve.value, look)


# --- intervals ---------------------------------------------------------------------------------------------------


def _interval_figure(
    board: Board,
    panels: dict[str, tuple[str, pd.DataFrame]],
    only: tuple[str, ...] | None = None,
    columns: int | None = None,
) -> "Figure":
    """Panels of horizontal intervals; each frame has value, low and high by optimizer."""
    optimizers = [name for name in board.table["optimizer"] if only is None or name in only]
    look, short = styles(board.scores.optimizers), board.short
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
