"""Figures of histories: of an evolution (fitness, the mean θ against Adam, σ), of an imitation (losses, returns)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from open_bench.evaluation.style import GRAY, LEVEL, PALETTE, figure_legend, finish_axis, panel_grid, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _VERMILION, _GREEN, _, _ORANGE = PALETTE[:5]
_PANEL = (3.9, 2.5)  # inches


def save_history(history: pd.DataFrame, stem: str | Path, title: str) -> list[Path]:
    """Write ``<stem>.png`` and ``<stem>.pdf``; the same history gives the same bytes.

    Args:
        history: what ``history.csv`` holds, a row a generation.
        stem: path without a suffix.
        title: the figure's heading.
    """
    return save(history_figure(history, title), stem, ("png", "pdf"))


def history_figure(history: pd.DataFrame, title: str) -> "Figure":
    """Panels over generations: fitness, one for each evaluated environment, σ, and failed members where there are any.

    Args:
        history: columns ``generation``, ``fitness_mean``, ``fitness_std``, ``fitness_best``, ``sigma``, ``diverged``,
            ``unfinished``, and ``return.<environment>`` with ``adam.<environment>``, NaN where nothing was evaluated.
        title: the figure's heading.
    """
    environments = [name.removeprefix("return.") for name in history if name.startswith("return.")]
    failed = bool((history["diverged"] + history["unfinished"]).any())
    figure, axes = panel_grid(2 + len(environments) + failed, _PANEL)
    figure.suptitle(title, fontsize=11)
    remaining = iter(axes)
    shown = _draw_fitness(next(remaining), history)
    for environment in environments:
        shown |= _draw_evaluations(next(remaining), history, environment)
    _draw_sigma(next(remaining), history)
    if failed:
        shown |= _draw_failed(next(remaining), history)
    for axis in axes:
        _whole_generations(axis, int(history["generation"].max()))
    figure_legend(figure, shown)
    return figure


def save_imitation(history: pd.DataFrame, stem: str | Path, title: str) -> list[Path]:
    """Write ``<stem>.png`` and ``<stem>.pdf`` of an imitation's history, a row a part; see ``save_history``."""
    return save(imitation_figure(history, title), stem, ("png", "pdf"))


def imitation_figure(history: pd.DataFrame, title: str) -> "Figure":
    """Panels over batches: the loss, and one for each environment with θ's returns beside the teacher's.

    Args:
        history: columns ``batch``, ``loss``, ``held_out_loss``, ``new_loss``, and ``return.<environment>`` with
            ``teacher.<environment>``, NaN where nothing was measured.
        title: the figure's heading.
    """
    environments = [name.removeprefix("return.") for name in history if name.startswith("return.")]
    figure, axes = panel_grid(1 + len(environments), _PANEL)
    figure.suptitle(title, fontsize=11)
    shown: dict[str, Any] = {}
    for column, label, color, marker in (
        ("loss", "loss", _BLUE, ""),
        ("held_out_loss", "loss at held-out parameters", _GREEN, ""),
        ("new_loss", "loss in new states", _VERMILION, "o"),
    ):
        known = history.dropna(subset=[column])
        (shown[label],) = axes[0].plot(known["batch"], known[column], color=color, linewidth=0 if marker else 1.6,
                                       marker=marker or _marker(len(known)), markersize=4)  # fmt: skip
    axes[0].set_yscale("log")
    finish_axis(axes[0], "squared error of updates", "batch")
    for axis, environment in zip(axes[1:], environments, strict=False):
        known = history.dropna(subset=[f"return.{environment}"])
        (shown["θ"],) = axis.plot(known["batch"], known[f"return.{environment}"], color=_VERMILION, marker="o",
                                  linewidth=1.6, markersize=4)  # fmt: skip
        teacher = history[f"teacher.{environment}"].iloc[-1]
        shown["teacher"] = axis.axhline(teacher, color=GRAY, linewidth=1.1, linestyle=LEVEL, zorder=1)
        finish_axis(axis, environment, "batch")
        axis.set_ylabel("return", fontsize=9)
    figure_legend(figure, shown)
    return figure


def _draw_fitness(axis: "Axes", history: pd.DataFrame) -> dict[str, Any]:
    generation, mean, spread = (history[name] for name in ("generation", "fitness_mean", "fitness_std"))
    marker = _marker(len(history))
    band = axis.fill_between(generation, mean - spread, mean + spread, color=_BLUE, alpha=0.18, linewidth=0)
    (best,) = axis.plot(generation, history["fitness_best"], color=_GREEN, linewidth=1.1, marker=marker, markersize=3)
    (line,) = axis.plot(generation, mean, color=_BLUE, linewidth=1.8, marker=marker, markersize=4)
    finish_axis(axis, "fitness", "generation")
    return {"mean of the population": line, "± one standard deviation": band, "best member": best}


def _draw_evaluations(axis: "Axes", history: pd.DataFrame, environment: str) -> dict[str, Any]:
    """Return of the mean θ on the evaluation's seeds, and Adam's on the same seeds."""
    evaluated = history.dropna(subset=[f"return.{environment}"])
    adam = history[f"adam.{environment}"].dropna()
    (line,) = axis.plot(evaluated["generation"], evaluated[f"return.{environment}"], color=_VERMILION, linewidth=1.6,
                        marker="o", markersize=4)  # fmt: skip
    finish_axis(axis, f"evaluation on {environment}", "generation")
    axis.set_ylabel("return", fontsize=9)
    if adam.empty:  # it failed there
        return {"mean θ": line}
    level = axis.axhline(adam.iloc[-1], color=GRAY, linewidth=1.1, linestyle=LEVEL, zorder=1)
    return {"mean θ": line, "Adam": level}


def _draw_sigma(axis: "Axes", history: pd.DataFrame) -> None:
    axis.plot(history["generation"], history["sigma"], color=_BLUE, linewidth=1.6, marker=_marker(len(history)),
              markersize=4)  # fmt: skip
    finish_axis(axis, "σ of the search distribution", "generation")
    axis.set_ylim(0, 1.15 * float(history["sigma"].max()))


def _draw_failed(axis: "Axes", history: pd.DataFrame) -> dict[str, Any]:
    from matplotlib.ticker import MaxNLocator

    generation, diverged, unfinished = (history[name] for name in ("generation", "diverged", "unfinished"))
    lost = axis.bar(generation, diverged, width=1.0, color=_ORANGE)
    endless = axis.bar(generation, unfinished, width=1.0, bottom=diverged, color=GRAY)
    finish_axis(axis, "members without fitness", "generation")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    return {"diverged": lost, "no episode ended": endless}


def _marker(points: int) -> str:
    """A single generation makes no line, and markers would hide a long one."""
    return "o" if points <= 20 else ""


def _whole_generations(axis: "Axes", last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axis.set_xlim((0.5, last + 0.5) if last < 10 else (0, 1.02 * last))
