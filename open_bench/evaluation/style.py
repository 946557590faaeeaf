"""The look that all figures share: colors, line styles and markers of optimizers, panels, legends, files.

Drawn on ``matplotlib.figure.Figure`` objects with the Agg canvas: pyplot is not imported and no global setting stays
changed. Files carry no dates or versions, so the same figure gives the same bytes.
"""

import io
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_bench.errors import UserError, near_matches
from open_bench.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette (its yellow, too faint on white, exchanged) and some of Paul Tol's muted colors, told apart
# with any common color blindness. Neighbors in lightness also differ in line style and marker.
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
    "#000000",
)
GRAY = "#555555"
LEVEL = (0, (6, 3))  # dashes of a level that is no optimizer's
# The usual ones always look the same; any other starts from a place that its name determines.
_FIXED = ("adam", "open", "lion", "velo", "rmsprop", "sgd", "optim4rl", "muon", "lpo", "adamw")
_LINE_STYLES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "p", "*", "<", ">", "X", "d")  # 11, so that each meets all 4 line styles
_MARKS = 8  # on a line
_DPI = 150


def png(figure: "Figure") -> bytes:
    """The figure as a PNG without metadata."""
    return _saved(figure, "png", {"Software": None})


def pdf(figure: "Figure") -> bytes:
    """The figure as a PDF without a date."""
    return _saved(figure, "pdf", {"CreationDate": None})


def svg(figure: "Figure") -> bytes:
    """The figure as an SVG without a date; its text is paths, so it looks the same everywhere."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "open-bench"}):  # names of parts are random else
        return _saved(figure, "svg", {"Date": None, "Creator": None})


FORMATS = {"png": png, "svg": svg, "pdf": pdf}


def save(figure: "Figure", stem: str | Path, formats: Collection[str] = ("png",)) -> list[Path]:
    """Write ``<stem>.png`` or what else of ``FORMATS`` is asked for; the same figure gives the same bytes."""
    return [write_atomically(f"{stem}.{form}", FORMATS[form](figure)) for form in formats]


def _saved(figure: "Figure", form: str, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=_DPI, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def styles(optimizers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Color, line style and marker of each optimizer, always the same for the usual ones.

    Another starts at a color given by a checksum of its name and takes the next free one, in alphabetical order;
    when all colors are taken they begin again. Up to 40 optimizers differ without their colors too.
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
            "linestyle": _LINE_STYLES[place % len(_LINE_STYLES)],
            "marker": _MARKERS[place % len(_MARKERS)],
        }
        for name, place in chosen.items()
    }


def aliases(names: Iterable[str], chosen: Mapping[str, str] | None = None) -> dict[str, str]:
    """Short names, no two alike: ``signed:signed_momentum#cddb1c18`` is ``signed_momentum`` where no other would be.

    Args:
        names: of optimizers, or of environments, that are shown together.
        chosen: short names by name, which may be without the digest of its file, and without what a board adds in
            brackets, which stays. What is not among ``names`` is passed over.

    Raises:
        UserError: a chosen one would name two.
    """
    names = list(names)
    given = {name: alias for name in names if (alias := _chosen(name, chosen or {})) is not None}
    short = {name: given.get(name, _short(name)) for name in names}
    counts = Counter([*short.values(), *short])
    found = {
        name: alias if name in given or alias == name or counts[alias] == 1 else name for name, alias in short.items()
    }
    for alias in given.values():
        alike = [name for name in found if found[name] == alias]
        if len(alike) > 1:
            raise UserError(f"alias {alias!r} would name {' and '.join(alike)}: choose others")
    return found


def check_aliases(names: Collection[str], chosen: Mapping[str, str]) -> None:
    """Raise UserError for an alias of what is not among ``names``."""
    for name in chosen:
        if not any(_chosen(each, {name: ""}) is not None for each in names):
            known = [_without_digest(each) for each in names]
            raise UserError(f"alias {chosen[name]!r}: nothing here is called {name!r}.{near_matches(name, known)}")


def _chosen(name: str, chosen: Mapping[str, str]) -> str | None:
    base, bracket, rest = name.partition(" (")
    for each, end in ((name, ""), (base, bracket + rest)):
        for key in (each, _without_digest(each)):
            if key in chosen:
                return chosen[key] + end
    return None


def in_file_names(name: str) -> str:
    """A name with nothing in it that could lead to another folder."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")


def _short(name: str) -> str:
    """Without the digest of its file, and an attribute without its module; settings and weights stay."""
    return re.sub(r"^[\w.\-]+:(?=[A-Za-z_][\w.]*(?:$|[:+@ ]))", "", _without_digest(name))


def _without_digest(name: str) -> str:
    return re.sub(r"#[0-9a-f]{6,}", "", name)


def draw_line(axis: "Axes", x: Any, y: Any, look: dict[str, Any], **changes: Any) -> Any:
    """A line with a few markers on it, however many points it has."""
    spacing = max(1, len(x) // _MARKS)
    options = {"linewidth": 1.6, "markersize": 4.5, "markevery": spacing} | look | changes
    (line,) = axis.plot(x, y, **options)
    return line


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
    grid = axis.get_gridspec()
    inches = axis.get_figure().get_figwidth() / (grid.ncols if grid is not None else 1)  # type: ignore[union-attr]
    axis.set_title("\n".join(folded(title, int(8 * inches))), fontsize=10)  # so many letters an inch
    axis.set_xlabel(x_label, fontsize=9)
    axis.tick_params(labelsize=8.5)
    axis.grid(visible=True, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def folded(title: str, width: int) -> list[str]:
    """Lines of at most ``width`` characters, where a title may break: at spaces, after commas and before brackets."""
    lines = [""]
    for part in re.split(r"(?<=[, ])|(?=\[)", title):
        if lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def figure_legend(figure: "Figure", lines: dict[str, Any]) -> None:
    """One legend for all panels, below them: name → what was drawn; in as many columns as fit."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]  # of Agg, which panel_grid has chosen
    for columns in range(min(len(lines), max(2, int(figure.get_figwidth() / 1.6))), 0, -1):
        legend = figure.legend(
            list(lines.values()), list(lines), loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            return
        legend.remove()
