"""Pictures of a gridworld level and of an episode in it: text for the terminal, and PNG.

Drawn on ``matplotlib.figure.Figure``: pyplot is not imported and no global setting is touched.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from open_bench.environments.gridworld.environment import ACTIONS, GridworldEnvironment, Policy, State
from open_bench.environments.gridworld.episodes import Episode, play
from open_bench.environments.gridworld.levels import Level
from open_bench.environments.gridworld.optimal import optimal_policy, random_return, solvable, solve
from open_bench.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ARROWS = "^v<>"  # by action; staying leaves none
_GOOD, _BAD, _WALL, _FLOOR, _LINES, _INK = "#009E73", "#D55E00", "#3b3f46", "#fbfaf7", "#dedbd3", "#222222"
_START, _END = "#0072B2", "#08306b"
_DPI = 150
_INCHES, _SIDE = (8.1, 5.5), 5.0  # of the figure; of the grid, a square


def show_level(
    environment: GridworldEnvironment,
    name: str,
    key: jax.Array,
    path: Literal["optimal", "random"] | tuple[str, Policy] | None = None,
    png: Path | None = None,
) -> str:
    """The level that copies started from ``key`` share (the first copy's, where each has its own), as text.

    Args:
        environment: where levels are drawn.
        name: what people call it.
        key: of ``reset_copies``; the harness passes a lifetime's "environment" stream.
        path: also play an episode: with this policy, or one's description and itself.
        png: also draw a picture into this file.

    Raises:
        UserError: for an optimal path where places are random, or a file that cannot be written.
    """
    known = solvable(environment.distribution)
    if path == "optimal" and not known:
        why = "random places" if environment.distribution.random_places else "too many states"
        raise UserError(f"{name} has {why}: its optimal episodes are not known")
    state: State = jax.tree.map(lambda x: x[0], jax.jit(environment.reset_copies, static_argnums=1)(key, 1)[1])
    level = state.level._replace(start=state.cell, cells=state.cells)
    lines: list[str] = []
    played: tuple[str, Policy] | None = None
    if path == "random":
        played = "the random policy", lambda key, *_: jax.random.randint(key, (), 0, len(ACTIONS))
    if known:
        solution = solve(level)
        lines.append(f"Expected return: optimal {solution.value:.3f}, random policy {random_return(level):.3f}.")
        played = ("the optimal policy", optimal_policy(solution)) if path == "optimal" else played
    played = path if isinstance(path, tuple) else played
    episode = None
    if played is not None:
        who, policy = played
        episode = jax.jit(lambda level, key: play(environment, level, policy, key))(level, key)
        end = "an object ended it" if episode.terminated else "at the horizon"
        summary = f"return {float(episode.reward.sum()):.3f} in {int(episode.length)} env steps ({end})"
        lines.append(f"An episode of {who}: {summary}.")
    size, horizon = int(level.size), int(level.horizon)
    title = f"{name}: {size} × {size} cells, episodes of at most {horizon} env steps"
    if png is not None:
        figure = level_figure(title, level, episode, lines)
        try:
            figure.savefig(png, format="png", dpi=_DPI, metadata={"Software": None})
        except OSError as error:
            raise UserError(f"{png}: {error}") from None
    return "\n".join([title, level_text(level, episode), "", *lines]).rstrip()


def level_text(level: Level, episode: Episode | None = None) -> str:
    """The level in characters, with a legend.

    ``#`` wall, ``.`` free, ``S`` start, ``a`` … objects; with an episode, ``^ v < >`` show how the agent last left
    each cell and ``E`` where it was at the end.
    """
    level, episode = jax.device_get((level, episode))
    start, cells = _places(level, episode)
    size = int(level.size)
    area = np.where(level.walls[: size * size], "#", ".").astype("<U1")
    if episode is not None:
        for time in range(int(episode.length)):
            before, after = episode.cell[time], episode.cell[time + 1]
            if before != after:
                area[before] = _ARROWS[episode.action[time]]
        area[episode.cell[int(episode.length)]] = "E"
    area[start] = "S"
    for i in _used(level):
        area[cells[i]] = _letter(i)
    border = "+" + "-" * (2 * size + 1) + "+"
    rows = ["| " + " ".join(row) + " |" for row in area.reshape(size, size)]
    legend = ["{}  {:<16}{:<27}{}".format(_letter(i), *_facts(level, i)) for i in _used(level)]
    return "\n".join([border, *rows, border, "", *legend])


def level_figure(title: str, level: Level, episode: Episode | None = None, notes: Sequence[str] = ()) -> "Figure":
    """The level on the left, what its objects do and ``notes`` on the right.

    An episode is a line that darkens with time; it keeps to the right of its way, so that there and back stay apart.
    """
    from matplotlib.figure import Figure

    level, episode = jax.device_get((level, episode))
    figure = Figure(figsize=_INCHES, facecolor="white")
    width, height = _INCHES
    grid = figure.add_axes((0.1 / width, 0.1 / height, _SIDE / width, _SIDE / height))
    text = figure.add_axes(((_SIDE + 0.3) / width, 0.1 / height, 1 - (_SIDE + 0.4) / width, _SIDE / height))
    start, cells = _places(level, episode)
    _draw_grid(grid, level)
    if episode is not None:
        _draw_path(grid, level, episode)
    _draw_objects(grid, level, cells)
    grid.plot(*_center(level, start), marker="D", color=_START, markersize=9, zorder=3)
    _draw_legend(text, level, episode is not None, notes)
    figure.text(0.1 / width, 1 - 0.12 / height, title, ha="left", va="top", fontsize=11, color=_INK)
    return figure


def _places(level: Level, episode: Episode | None) -> tuple[int, np.ndarray]:
    """Where start and objects are: at the episode's beginning, else as the level says."""
    if episode is None:
        return int(level.start), np.asarray(level.cells)
    return int(episode.cell[0]), np.asarray(episode.cells[0])


def _used(level: Level) -> list[int]:
    return [int(i) for i in np.flatnonzero(level.used)]


def _letter(i: int) -> str:
    return chr(ord("a") + i % 26)


def _facts(level: Level, i: int) -> tuple[str, str, str]:
    """Reward, probability to terminate, probability to come back, of one object."""
    return (
        f"reward {float(level.rewards[i]):+.3g}",
        f"ends the episode: {100 * float(level.terminate[i]):.3g} %",
        f"comes back: {100 * float(level.respawn[i]):.3g} % a step",
    )


def _center(level: Level, cells: Any) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of cells; rows go down."""
    row, column = np.divmod(cells, int(level.size))
    return column + 0.5, row + 0.5


def _draw_grid(axes: "Axes", level: Level) -> None:
    from matplotlib.colors import ListedColormap

    size = int(level.size)
    walls = level.walls[: size * size].reshape(size, size)
    axes.set_facecolor(_FLOOR)
    for line in range(1, size):
        axes.axhline(line, color=_LINES, linewidth=0.6, zorder=1)
        axes.axvline(line, color=_LINES, linewidth=0.6, zorder=1)
    solid = np.ma.masked_equal(walls, 0)
    axes.imshow(solid, cmap=ListedColormap([_WALL]), extent=(0, size, size, 0), interpolation="nearest", zorder=2)
    axes.set(xticks=[], yticks=[], xlim=(0, size), ylim=(size, 0), aspect="equal")
    for spine in axes.spines.values():
        spine.set(color=_WALL, linewidth=2)


def _draw_path(axes: "Axes", level: Level, episode: Episode) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle

    points = _way(np.stack(_center(level, episode.cell[: int(episode.length) + 1]), 1))
    if len(points) < 2:
        return
    stretches = list(np.stack([points[:-1], points[1:]], 1))
    shades = np.linspace(0.35, 1.0, len(stretches))
    lines = LineCollection(stretches, cmap="Blues", linewidths=2.0, capstyle="round", array=shades, zorder=2.5)
    lines.set_clim(0, 1)
    axes.add_collection(lines)
    axes.add_patch(Rectangle(tuple(points[-1] - 0.43), 0.86, 0.86, fill=False, color=_END, linewidth=2, zorder=3))


def _way(middles: np.ndarray) -> np.ndarray:
    """A line through the cells' middles (steps, 2) that keeps a little to the right of its direction."""
    aside, moves = 0.13, np.diff(middles, axis=0)
    moving = moves.any(1)
    moves = moves[moving]
    if not len(moves):
        return middles[:1]
    corners = middles[1:][moving]
    shifts = aside * np.stack([-moves[:, 1], moves[:, 0]], 1)  # to the right: y points down
    points = [middles[0], middles[0] + shifts[0]]
    for corner, before, after in zip(corners[:-1], shifts[:-1], shifts[1:], strict=True):
        turn = float(before @ after) / aside**2  # 1 straight on, 0 a corner, −1 back
        if turn > 0.5:
            points.append(corner + after)
        elif turn > -0.5:
            points.append(corner + before + after)
        else:
            points += [corner + before, corner + after]
    return np.stack([*points, corners[-1] + shifts[-1], corners[-1]])


def _draw_objects(axes: "Axes", level: Level, cells: np.ndarray) -> None:
    from matplotlib.patches import Circle

    for i in _used(level):
        x, y = (float(value) for value in _center(level, cells[i]))
        axes.add_patch(Circle((x, y), 0.36, color=_GOOD if level.rewards[i] >= 0 else _BAD, zorder=3))
        axes.text(x, y, _letter(i), color="white", ha="center", va="center", zorder=4, weight="bold")


def _draw_legend(axes: "Axes", level: Level, path: bool, notes: Sequence[str]) -> None:
    objects = _used(level)
    wrapped = [textwrap.wrap(note, 36) for note in notes]
    needed = 2.0 + 3.8 * len(objects) + sum(len(lines) + 0.8 for lines in wrapped)
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(max(29.0, needed), 0))  # in lines of text
    axes.plot(0.05, 0.7, marker="D", color=_START, markersize=9)
    axes.text(0.13, 0.7, "start", va="center", color=_INK, fontsize=9)
    if path:
        axes.plot(0.45, 0.7, marker="s", color=_END, markersize=12, fillstyle="none", markeredgewidth=2)
        axes.text(0.53, 0.7, "end", va="center", color=_INK, fontsize=9)
    line = 2.6
    for i in objects:
        axes.plot(0.05, line, marker="o", color=_GOOD if level.rewards[i] >= 0 else _BAD, markersize=14)
        axes.text(0.05, line, _letter(i), color="white", weight="bold", ha="center", va="center", fontsize=9)
        for fact in _facts(level, i):
            axes.text(0.13, line, fact, va="center", color=_INK, fontsize=9)
            line += 1.0
        line += 0.8
    for lines in wrapped:
        for words in lines:
            axes.text(0.0, line, words, va="center", color=_INK, fontsize=9)
            line += 1.0
        line += 0.8
