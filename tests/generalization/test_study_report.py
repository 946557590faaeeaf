"""Tables and figures of a generalization study."""

import io
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from synthetic import evidence

from open_bench.generalization import figures, report, scores
from open_bench.generalization.scores import Evidence, Generalization

ADAM = {"a": [10.0, 10.0], "b": [20.0, 20.0]}
RANDOM = {"a": [0.0, 0.0], "b": [10.0, 10.0]}
PLACES = {"a": "in", "b": "out"}


def generalization(known: Evidence, normalizer: str = "adam") -> Generalization:
    """Scored with few resamples: what is asserted of intervals does not need many."""
    return scores.generalization(known, normalizer, resamples=100)


def by_hand() -> Generalization:
    names = ["adam", "open@a_rather_long_name_of_weights", "lion:learning_rate=0.001,b1=0.95+dpo"]
    numbers = {name: {"a": [10.0 + i, 10.0], "b": [20.0, 15.0 - i]} for i, name in enumerate(names)}
    points = [("levels", "sixteen_rooms", "a"), ("lifetime", "30,000,000", "b"), ("lifetime", "1", "a")]
    return generalization(evidence(numbers, {"a": [0.0, 0.0], "b": [1.0, 0.0]}, PLACES, points=points))


@pytest.mark.parametrize("normalizer", scores.NORMALIZERS)
def test_the_same_study_gives_the_same_files(tmp_path: Path, normalizer: str) -> None:
    known = evidence({"adam": ADAM, "x": {"a": [9.0, 11.0], "b": [15.0, 16.0]}}, RANDOM, PLACES,
                     optimal={"a": [20.0, 20.0]})  # fmt: skip
    first, second = (report.write(generalization(known, normalizer), tmp_path / name) for name in ("1", "2"))
    assert [path.name for path in first] == [
        "generalization.csv", "points.csv", "axes.csv", "summary.csv", "generalization.md", "heatmap.png", "sweeps.png",
    ]  # fmt: skip
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[-1].read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(first[0])) == 2 * 2 * 2
    assert "nan" not in first[4].read_text()


def test_brackets_in_names_are_no_markup() -> None:
    study = by_hand()
    study.summary["worst_point"] = "breakout[hidden=16x16]"
    console = Console(width=200, file=io.StringIO())
    console.print(report.rich_tables(study))
    assert "breakout[hidden=16x16]" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80])
def test_the_tables_fit(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    console.print(report.rich_tables(by_hand(), width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= width
    assert "lifetime" in shown
    assert "…" not in shown
    assert shown.count("[") == shown.count("]")  # no interval is cut off


def test_in_sweeps_shapes_are_optimizers_and_filling_is_training() -> None:
    figure = figures.sweeps(by_hand())
    marked = [line for line in figure.axes[0].lines if line.get_marker() not in ("", "None")]
    assert len({line.get_marker() for line in marked if len(line.get_xdata())}) == 3
    filled = {line.get_fillstyle() for line in figure.axes[0].lines if len(line.get_xdata()) and line in marked}
    assert filled == {"full"}  # of the axis levels, whose one point lies inside
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown[-2:] == ["in training", "outside of it"]
