"""Figures of a generalization study: a heat map of optimizers × points, and the scores along each axis."""

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from open_bench.evaluation.style import GRAY, aliases, draw_line, figure_legend, finish_axis, panel_grid, save, styles
from open_bench.generalization.scores import Generalization
from open_bench.text import compact, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_UNSCALED = "#e6e6e6"
# How much of a marker is filled; its shape is the optimizer's.
_FILLED: dict[str, Any] = {"in": "full", "out": "none", "unknown": "left"}


def save_figures(study: Generalization, directory: str | Path) -> list[Path]:
    """Write ``heatmap.png`` and ``sweeps.png``; returns the files."""
    figures = {"heatmap": heat_map(study), "sweeps": sweeps(study)}
    return [path for name, figure in figures.items() for path in save(figure, Path(directory) / name)]


def heat_map(study: Generalization) -> "Figure":
    """Mean scores: a row a point, grouped by axis, a column an optimizer; gray with the return where there is no scale.

    A frame marks what lies in the training distribution of the optimizer.
    """
    points = study.points
    labels = points[["axis", "point"]].drop_duplicates().itertuples(index=False)
    places, groups = _layout([tuple(label) for label in labels])
    width, height = 2.6 + 1.15 * len(study.optimizers), 1.7 + 0.26 * (max(places.values()) + 1)
    figure, (axis,) = panel_grid(1, panel=(width, height))
    colors, low, high = _colors(study)
    for row in points.itertuples():
        _draw_cell(axis, row, study.optimizers.index(row.optimizer), places[(row.axis, row.point)], colors)
    axis.set_xlim(-0.5, len(study.optimizers) - 0.5)
    axis.set_ylim(max(places.values()) + 0.6, -0.6)
    shown, short = [_broken(label) for _, label in places], aliases(study.optimizers)
    axis.set_yticks(list(places.values()), shown, fontsize=8.5)
    axis.set_xticks(range(len(study.optimizers)), [_wrapped(short[name]) for name in study.optimizers], fontsize=8.5)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    aside = -16 - 5.2 * max(len(line) for label in shown for line in label.split("\n"))  # points: beyond the longest
    for name, (first, last) in groups.items():
        axis.annotate(name, (0, (first + last) / 2), xycoords=("axes fraction", "data"), xytext=(aside, 0),
                      textcoords="offset points", ha="right", va="center", fontsize=9, fontweight="bold",
                      annotation_clip=False)  # fmt: skip
    if study.normalize != "none":
        _color_bar(figure, axis, colors, (low, high), study)
    return figure


def sweeps(study: Generalization) -> "Figure":
    """Mean score along each axis with 95 % intervals, a panel an axis; hollow marks lie outside of training.

    Where no point of an axis has a scale, its panel shows returns.
    """
    names = list(dict.fromkeys(study.points["axis"]))
    figure, panels = panel_grid(len(names), panel=(3.7, 2.9))
    look, short = styles(study.optimizers), aliases(study.optimizers)
    handles: dict[str, Any] = {}
    for panel, name in zip(panels, names, strict=True):
        mine = study.points[study.points["axis"] == name]
        column = "score" if mine["score"].notna().any() else "mean"
        handles = _draw_sweep(panel, mine, column, study, look) | handles
    named = {short[name]: handles[name] for name in study.optimizers if name in handles}
    figure_legend(figure, named | _marks(study.points["distribution"]))
    return figure


# --- heat map ----------------------------------------------------------------------------------------------------


def _layout(
    labels: list[tuple[str, str]],
) -> tuple[dict[tuple[str, str], float], dict[str, tuple[float, float]]]:
    """Rows of points with a gap between axes: their places, and where each axis begins and ends."""
    places: dict[tuple[str, str], float] = {}
    groups: dict[str, tuple[float, float]] = {}
    place = -1.0
    for axis, point in labels:
        place += 1.0 if axis in groups or not groups else 1.45
        places[(axis, point)] = place
        groups[axis] = (groups.get(axis, (place, place))[0], place)
    return places, groups


def _colors(study: Generalization) -> tuple[Any, float, float]:
    """Score → color. Relative scores: blue above Adam, red below; absolute ones from light to dark."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = (0.0, 2.0) if study.relative else (0.0, 1.0)
    name = "RdBu" if study.relative else "YlGnBu"
    return ScalarMappable(Normalize(low, high, clip=True), colormaps[name]), low, high


def _draw_cell(axis: "Axes", row: Any, column: int, place: float, colors: Any) -> None:
    from matplotlib.patches import Rectangle

    scored = pd.notna(row.score)
    color = colors.to_rgba(row.score) if scored else _UNSCALED
    inside = row.distribution == "in"
    size = 0.44
    axis.add_patch(
        Rectangle((column - size, place - size), 2 * size, 2 * size, facecolor=color,
                  edgecolor="black" if inside else "none", linewidth=1.6 if inside else 0)
    )  # fmt: skip
    dark = scored and np.dot(color[:3], (0.299, 0.587, 0.114)) < 0.45  # its luminance
    text = number(row.score, 2) if scored else f"({number(row.mean)})"
    axis.text(column, place, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _wrapped(name: str) -> str:
    """Long names break where their parts meet, so that columns may be narrow."""
    for sign in ("@", ":", "+", ","):
        name = name.replace(sign, f"\n{sign}") if len(name) > 14 else name
    return name


def _broken(label: str) -> str:
    """A long point on two lines, so that the cells keep their width."""
    return label.replace("[", "\n[").replace("{", "\n{") if len(label) > 24 else label


def _color_bar(figure: "Figure", axis: "Axes", colors: Any, ends: tuple[float, float], study: Generalization) -> None:
    meaning = "score (0: random, 1: Adam)" if study.relative else "score (0: random, 1: optimal)"
    inches = figure.get_figheight()
    bar = figure.colorbar(
        colors, ax=axis, orientation="horizontal", fraction=0.16 / inches, pad=0.12 / inches, aspect=18, extend="both"
    )
    bar.set_label(meaning, fontsize=8)
    # Of the figure, not of the bar: it is wider than the cells of few optimizers.
    figure.supxlabel("framed: in the training distribution; (gray): return, no scale", fontsize=8)
    bar.set_ticks(list(np.linspace(*ends, 5)))
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


# --- sweeps ------------------------------------------------------------------------------------------------------


def _draw_sweep(
    panel: "Axes", points: pd.DataFrame, column: str, study: Generalization, look: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Values stand at equal distances, whatever they are; numbers are in ascending order and joined by lines."""
    numeric = points["x"].notna().all() and points["point"].nunique() > 1
    order = points.sort_values("x", kind="stable") if numeric else points
    labels = list(dict.fromkeys(order["point"]))
    handles = {}
    for index, optimizer in enumerate(study.optimizers):
        mine = order[order["optimizer"] == optimizer].dropna(subset=[column])
        if not mine.empty:
            apart = (0.06 if numeric else 0.14) * (index - (len(study.optimizers) - 1) / 2)
            x = np.array([labels.index(label) + apart for label in mine["point"]])
            handles[optimizer] = _draw_line(panel, x, mine, column, look[optimizer], numeric)
    if column == "score":
        panel.axhline(1.0, color=GRAY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        panel.axhline(0.0, color=GRAY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    left_out = points.drop_duplicates("point")["score"].isna().sum() if column == "score" else 0
    finish_axis(panel, points["axis"].iloc[0] + (f" ({left_out} without a scale)" if left_out else ""), "")
    panel.set_ylabel("score" if column == "score" else "return (no scale)", fontsize=9)
    _label_x(panel, order, labels)
    return handles


def _draw_line(
    panel: "Axes", x: np.ndarray, points: pd.DataFrame, column: str, look: dict[str, Any], line: bool
) -> Any:
    from matplotlib.lines import Line2D

    y, low, high = (points[f"{column}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    color = look["color"]
    if line:
        draw_line(panel, x, y, look, linewidth=1.4, marker="")  # marks say where a point lies
    panel.vlines(x, low, high, color=color, linewidth=2.2, alpha=0.45)
    for place, filled in _FILLED.items():
        here = (points["distribution"] == place).to_numpy()
        panel.plot(x[here], y[here], look["marker"], color=color, fillstyle=filled, markersize=5.5, zorder=3,
                   markerfacecoloralt="white", markeredgewidth=1.4)  # fmt: skip
    return Line2D([], [], linewidth=2.0, markersize=5.5, **look)


def _label_x(panel: "Axes", points: pd.DataFrame, labels: list[str]) -> None:
    values = points.drop_duplicates("point").set_index("point")["x"]
    short = [compact(values[label]) if values[label] >= 10_000 else _stacked(label) for label in labels]
    crowded = max(len(line) for label in short for line in label.split("\n")) * len(short) > 34
    panel.set_xticks(range(len(short)), short, fontsize=8.5, rotation=35 if crowded else 0,
                     ha="right" if crowded else "center", rotation_mode="anchor")  # fmt: skip
    panel.set_xlim(-0.5, len(short) - 0.5)


def _stacked(label: str) -> str:
    """A long point on as many lines as it takes to be narrow."""
    if len(label) <= 24:
        return label
    parts = re.sub(r",(?=[a-z])", ", ", label.replace("[", " [").replace("{", " {"))
    return "\n".join(textwrap.wrap(parts, 16, break_long_words=False))


def _marks(distributions: "pd.Series") -> dict[str, Any]:
    """What full, hollow and half markers mean, for those that are there."""
    from matplotlib.lines import Line2D

    words = {"in": "in training", "out": "outside of it", "unknown": "not known"}
    return {
        word: Line2D([], [], color=GRAY, linestyle="", marker="o", markersize=5.5, fillstyle=_FILLED[place],
                     markerfacecoloralt="white")
        for place, word in words.items()
        if (distributions == place).any()
    }  # fmt: skip
