"""Charts as JSON values, which the page's script draws: lines with bands or bars, and horizontal intervals.

A chart belongs to a group whose legend shows and hides its lines; a line names its place in that legend.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from open_bench.evaluation.curves import Curve
from open_bench.evaluation.style import PALETTE, aliases, styles

# BokehJS's markers, and characters like them, for matplotlib's.
_MARKERS = {
    "o": ("circle", "●"), "s": ("square", "■"), "^": ("triangle", "▲"), "D": ("diamond", "◆"),
    "v": ("inverted_triangle", "▼"), "p": ("hex", "⬢"), "*": ("star", "★"), "<": ("cross", "✚"), ">": ("x", "✖"),
    "X": ("asterisk", "✱"), "d": ("circle_cross", "⊕"),
}  # fmt: skip
# The palette on a dark page, color by color.
_DARK = ("#5cb0ee", "#ff8a4c", "#2fcc9f", "#eaa9d0", "#f7b731", "#a5dbff", "#e0709f", "#d0d060", "#a99cff", "#ffffff")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a legend: how what it names looks on light and dark pages, and without color."""

    name: str
    short: str
    light: str
    dark: str
    dash: tuple[float, ...]
    marker: str
    mark: str  # a character like the marker


def legend(names: Sequence[str], short: Mapping[str, str] | None = None) -> list[Entry]:
    """Of optimizers: the look that they have in all figures, and what they are called there."""
    look, short = styles(names), short or aliases(names)
    return [_entry(name, short[name], **look[name]) for name in names]


def plain_legend(names: Sequence[str]) -> list[Entry]:
    """Of what are no optimizers, in order."""
    looks = itertools.cycle(zip(PALETTE, ("-", (0, (5, 1.5)), (0, (1, 1))) * 4, _MARKERS, strict=False))
    return [_entry(name, name, *look) for name, look in zip(names, looks, strict=False)]


def _entry(name: str, short: str, color: str, linestyle: Any, marker: str) -> Entry:
    dash = () if linestyle == "-" else tuple(3.0 * part for part in linestyle[1])
    return Entry(name, short, color, _DARK[PALETTE.index(color)], dash, *_MARKERS[marker])


@dataclasses.dataclass
class Charts:
    """All charts of a page by their number, and the legends of their groups."""

    charts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    legends: dict[str, list[Entry]] = dataclasses.field(default_factory=dict)

    def lines(
        self, group: str, title: str, x: str, y: str, curves: Mapping[str, Curve], *, bars: bool = False,
        levels: Mapping[str, float] | None = None, ticks: Sequence[str] = (), **look: Any,
    ) -> int:  # fmt: skip
        """Lines with bands (or error bars) by name in the group's legend.

        Args:
            title, x, y: in words.
            levels: dashed horizontal lines by name.
            ticks: labels of 0, 1, … on the x axis.
            look: ``log_y``, ``from_zero`` (the x axis), ``fraction`` (y from 0 to 1), ``apart`` (points, no lines).
        """
        places = {entry.name: place for place, entry in enumerate(self.legends[group])}
        grids: dict[tuple[float | None, ...], int] = {}
        series = []
        for name, curve in curves.items():
            x_values = tuple(rounded(curve.x, 7))
            one: dict[str, Any] = {
                "of": places[name],
                "x": grids.setdefault(x_values, len(grids)),
                "v": rounded(curve.value),
            }
            if not np.isnan(curve.low).all():
                one |= {"low": rounded(curve.low, 3), "high": rounded(curve.high, 3)}
            series.append(one)
        about = {"kind": "lines", "group": group, "title": title, "x": x, "y": y, "bars": bars, "ticks": list(ticks)}
        about["levels"] = [[name, rounded([value])[0]] for name, value in (levels or {}).items()]
        return self._add({**about, "grids": list(grids), "series": series, **look})

    def intervals(
        self,
        group: str,
        title: str,
        x: str,
        rows: Iterable[tuple[str, float, float, float]],
        level: float | None = None,
    ) -> int:
        """A horizontal bar from low to high with its value, a row a name of the group's legend; the first on top."""
        places = {entry.name: place for place, entry in enumerate(self.legends[group])}
        shown = [[places[name], *rounded(values)] for name, *values in rows if not math.isnan(values[0])]
        return self._add({"kind": "intervals", "group": group, "title": title, "x": x, "rows": shown, "level": level})

    def points(
        self, group: str, title: str, x: str, y: str, rows: Iterable[tuple[str, Sequence[float], Sequence[float]]]
    ) -> int:
        """A point a name, (value, low, high) along both axes."""
        places = {entry.name: place for place, entry in enumerate(self.legends[group])}
        shown = [[places[name], rounded(along_x), rounded(along_y)] for name, along_x, along_y in rows]
        return self._add({"kind": "points", "group": group, "title": title, "x": x, "y": y, "rows": shown})

    def _add(self, chart: dict[str, Any]) -> int:
        self.charts.append(chart)
        return len(self.charts) - 1


def rounded(values: Sequence[float] | np.ndarray, digits: int = 4) -> list[float | None]:
    """Numbers with so many significant digits, as JSON has them; None where there is none."""
    array = np.asarray(values, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        places = digits - 1 - np.floor(np.log10(np.abs(array)))
        shifted = 10.0 ** np.where(np.isfinite(places), places, 0)
        found = np.round(array * shifted) / shifted
    return [value if math.isfinite(value) else None for value in found.tolist()]
