"""Figures of a board as PNG files: learning curves, returns, aggregates with intervals, performance profiles.

Drawn on ``matplotlib.figure.Figure`` objects with the Agg canvas: pyplot is not imported and no global setting is
touched. Files carry no dates or versions, so the same runs give the same bytes.
"""

import io
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from open_bench.evaluation.baseline_returns import References, returns_of
from open_bench.evaluation.bootstrap import AGGREGATES, RESAMPLES, mean_bands, performance_profile
from open_bench.evaluation.leaderboard import Board, Leaderboard, leaderboard
from open_bench.evaluation.schema import Runs
from open_bench.evaluation.tables import LABELS, METRIC_LABELS
from open_bench.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette (its yellow, too faint on white, exchanged) and four of Paul Tol's muted colors: told apart
# with any common color blindness.
PALETTE = (
    "#0072B2",  # blue
    "#D55E00",  # vermilion
    "#009E73",  # green
    "#CC79A7",  # pink
    "#E69F00",  # orange
    "#56B4E9",  # sky
    "#882255",  # wine
    "#999933",  # olive
    "#332288",  # indigo
    "#44AA99",  # teal
    "#AA4499",  # purple
    "#000000",
)
# The usual ones always look the same; any other starts from a place that its name determines.
_FIXED = ("adam", "open", "lion", "velo", "rmsprop", "sgd", "optim4rl", "muon")
_LINE_STYLES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
_DPI = 150
_GRAY = "#555555"


def save_figures(
    runs: Runs,
    references: References,
    budget: str | None,
    directory: str | Path,
    *,
    metric: str = "final_return",
    baseline: str = "adam",
    resamples: int = RESAMPLES,
    ranked: Leaderboard | None = None,
) -> list[Path]:
    """Draw every board of ``budget`` (None: of all) into ``directory``; returns the files, in order.

    ``<budget>_learning_curves.png`` (where curves are stored), ``<budget>_returns.png`` and, where an environment has
    a scale and an optimizer has run in all of those, ``<budget>_aggregates.png`` and ``<budget>_profiles.png``. Two
    boards of one budget have protocol, root seed and width in their names. ``ranked`` saves computing the leaderboard
    again. Raises what ``leaderboard`` raises.
    """
    if ranked is None:
        ranked = leaderboard(runs, references, budget, metric=metric, baseline=baseline, resamples=resamples)
    shown = [board for board in ranked.boards if budget in (None, board.scores.budget)]
    written = []
    for board in shown:
        several = sum(other.scores.budget == board.scores.budget for other in shown) > 1
        suffix = _suffix(board) if several else ""
        for name, figure in _figures(board, runs, references, resamples):
            path = Path(directory) / f"{board.scores.budget}{suffix}_{name}.png"
            written.append(write_atomically(path, png(figure)))
    return written


def _suffix(board: Board) -> str:
    width = "" if board.scores.vmap_size is None else f"_width{board.scores.vmap_size}"
    return f"_protocol{board.scores.protocol}_seed{board.scores.root_seed}{width}"


def png(figure: "Figure") -> bytes:
    """The figure as a PNG without metadata."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def styles(optimizers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Color and line style of each optimizer, always the same for the usual ones.

    Another starts at a color given by a checksum of its name and takes the next free one, in alphabetical order;
    when all colors are taken they begin again with the next line style.
    """
    chosen: dict[str, int] = {name: _FIXED.index(name) for name in optimizers if name in _FIXED}
    for name in sorted(set(optimizers) - set(chosen)):
        start, used = zlib.crc32(name.encode()) % len(PALETTE), set(chosen.values())
        free = (
            turn * len(PALETTE) + (start + step) % len(PALETTE)
            for turn in range(len(optimizers) + 1)
            for step in range(len(PALETTE))
        )
        chosen[name] = next(place for place in free if place not in used)
    return {
        name: {
            "color": PALETTE[place % len(PALETTE)],
            "linestyle": _LINE_STYLES[place // len(PALETTE) % len(_LINE_STYLES)],
        }
        for name, place in chosen.items()
    }


def learning_curves(board: Board, runs: Runs, references: References, resamples: int = RESAMPLES) -> "Figure | None":
    """Mean episode return over seeds against env steps, a panel an environment; None where none is stored.

    Bands are 95 % bootstrap intervals of the mean. A diverged seed counts with its stand-in return (the random
    policy's) from where it diverged. A point is drawn once half of the seeds have finished an episode.
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
        lines |= _draw_levels(axis, references, environment, board.scores.budget)
        finish_axis(axis, environment, "env steps")
        axis.xaxis.set_major_formatter(lambda value, _: compact(value))
        axis.set_xlim(left=0)
    figure.supylabel("episode return", fontsize=10)
    order = [*(name for name in board.table["optimizer"] if name in lines), "reference (adam)", "random policy"]
    figure_legend(figure, {name: lines[name] for name in order if name in lines})
    return figure


def return_intervals(board: Board) -> "Figure":
    """Mean raw return of each optimizer, a panel an environment, with 95 % intervals; best-ranked on top."""
    scores = board.scores
    panels = {
        name: board.per_environment[board.per_environment["environment"] == name].set_index("optimizer")
        for name in scores.environments
    }
    what = METRIC_LABELS[scores.metric]
    return _interval_figure(board, {name: (what, frame[["mean", "low", "high"]]) for name, frame in panels.items()})


def aggregate_intervals(board: Board) -> "Figure | None":
    """IQM, median, mean and optimality gap of normalized scores with 95 % intervals; None without any."""
    table = board.table.dropna(subset=["iqm"]).set_index("optimizer")
    if table.empty:
        return None
    panels = {}
    for name in AGGREGATES:
        what = "less is better" if name == "optimality_gap" else "normalized score (1: reference)"
        panels[LABELS[name]] = (what, table[[name, f"{name}_low", f"{name}_high"]])
    figure = _interval_figure(board, panels, only=tuple(table.index), columns=4)
    for name, axis in zip(AGGREGATES, figure.axes, strict=True):
        if name != "optimality_gap":
            axis.axvline(1.0, color=_GRAY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    return figure


def profiles(board: Board, resamples: int = RESAMPLES) -> "Figure | None":
    """Fraction of runs above each normalized score, with 95 % intervals; None where nothing is normalized."""
    scores = board.scores
    found = {name: scores.matrix(name, scores.normalized) for name in board.table["optimizer"]}
    matrices = {name: matrix for name, matrix in found.items() if matrix is not None}
    if not matrices:
        return None
    thresholds = _thresholds(np.concatenate([matrix.values.ravel() for matrix in matrices.values()]))
    look = styles(scores.optimizers)
    figure, (axis,) = panel_grid(1, panel=(6.0, 3.8))
    lines = {}
    for name, matrix in matrices.items():
        profile = performance_profile(matrix, thresholds, resamples)
        (lines[name],) = axis.plot(thresholds, profile.value, linewidth=1.6, **look[name])
        axis.fill_between(thresholds, profile.low, profile.high, color=look[name]["color"], alpha=0.13, linewidth=0)
    axis.axvline(1.0, color=_GRAY, linewidth=1.0, linestyle=(0, (4, 3)))
    finish_axis(axis, f"performance profile, {scores.budget}", "normalized score τ (0: random policy, 1: reference)")
    axis.set_ylabel("fraction of runs with score > τ", fontsize=9)
    axis.set_xlim(thresholds[0], thresholds[-1])
    axis.set_ylim(-0.02, 1.02)
    figure_legend(figure, lines)
    return figure


def compact(value: float) -> str:
    """Env steps as 0, 500k, 2.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _figures(board: Board, runs: Runs, references: References, resamples: int) -> list[tuple[str, "Figure"]]:
    drawn: list[tuple[str, Callable[[], Figure | None]]] = [
        ("learning_curves", lambda: learning_curves(board, runs, references, resamples)),
        ("returns", lambda: return_intervals(board)),
        ("aggregates", lambda: aggregate_intervals(board)),
        ("profiles", lambda: profiles(board, resamples)),
    ]
    made = [(name, draw()) for name, draw in drawn]
    return [(name, figure) for name, figure in made if figure is not None]


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


def curve_band(values: np.ndarray, resamples: int = RESAMPLES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds (seeds, points) → (points,) with its 95 % bootstrap interval, NaN left out.

    NaN where less than half of the seeds have a value; the interval is NaN for a single seed.
    """
    return mean_bands(values, resamples)


def _draw_curve(axis: "Axes", steps: np.ndarray, values: np.ndarray, look: dict[str, Any], resamples: int) -> Any:
    mean, low, high = curve_band(values, resamples)
    axis.fill_between(steps, low, high, color=look["color"], alpha=0.14, linewidth=0)
    (line,) = axis.plot(steps, mean, linewidth=1.6, **look)
    return line


def _draw_levels(axis: "Axes", references: References, environment: str, budget: str) -> dict[str, Any]:
    """Dashed levels of the random policy and the reference, where known."""
    known = returns_of(references, environment)
    levels = {}
    if known is not None and budget in known.reference:
        levels["reference (adam)"] = (known.reference[budget].final_return.mean, (0, (6, 3)))
    if known is not None and known.random is not None:
        levels["random policy"] = (known.random.final_return.mean, (0, (2, 2)))
    return {
        name: axis.axhline(level, color=_GRAY, linewidth=1.1, linestyle=dashes, zorder=1)
        for name, (level, dashes) in levels.items()
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
    look = styles(board.scores.optimizers)
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
        axis.set_yticks(range(len(optimizers)), optimizers, fontsize=9)
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


# --- common ------------------------------------------------------------------------------------------------------


def panel_grid(
    count: int, panel: tuple[float, float], columns: int | None = None, share_y: bool = False
) -> tuple["Figure", list["Axes"]]:
    """A figure with ``count`` axes of ``panel`` inches (width, height), ``columns`` (2 or 3 by default) in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns or (2 if count in (2, 4) else 3), count)
    rows = -(-count // columns)
    figure = Figure(figsize=(panel[0] * columns + 0.6, panel[1] * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y).ravel()
    for unused in grid[count:]:
        unused.remove()
    return figure, list(grid[:count])


def finish_axis(axis: "Axes", title: str, x_label: str) -> None:
    """Title, label and the look that all panels share."""
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x_label, fontsize=9)
    axis.tick_params(labelsize=8.5)
    axis.grid(visible=True, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def figure_legend(figure: "Figure", lines: dict[str, Any]) -> None:
    """One legend for all panels, below them: name → what was drawn."""
    figure.legend(
        list(lines.values()),
        list(lines),
        loc="outside lower center",
        ncols=min(len(lines), max(2, int(figure.get_figwidth() / 1.6))),
        frameon=False,
        fontsize=9,
    )
