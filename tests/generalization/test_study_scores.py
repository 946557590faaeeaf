"""Scores of a generalization study with known answers."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import evidence

from open_bench.errors import UserError
from open_bench.evaluation.schema import Runs
from open_bench.generalization import scores
from open_bench.generalization.scores import Evidence, Generalization


def generalization(known: Evidence, normalizer: str = "adam") -> Generalization:
    """Scored with few resamples: what is asserted of intervals does not need many."""
    return scores.generalization(known, normalizer, resamples=100)


ADAM = {"a": [10.0, 10.0], "b": [20.0, 20.0]}
RANDOM = {"a": [0.0, 0.0], "b": [10.0, 10.0]}
PLACES = {"a": "in", "b": "out"}


def of(table: pd.DataFrame, **values: str) -> pd.Series:
    """The one row with these values."""
    for column, value in values.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_in_out_gap_and_worst_point_are_the_known_ones() -> None:
    found = generalization(evidence({"adam": ADAM, "x": {"a": [10.0, 10.0], "b": [15.0, 15.0]}}, RANDOM, PLACES))
    row = of(found.summary, optimizer="x")
    assert (row["in_score"], row["out_score"], row["gap"]) == (1.0, 0.5, 0.5)
    assert (row["gap_low"], row["gap_high"]) == (0.5, 0.5)
    assert (row["worst_axis"], row["worst_point"], row["worst"]) == ("levels", "b", 0.5)
    assert (row["in_difference"], row["out_difference"]) == (0.0, -0.5)
    assert (row["in_win"], row["out_win"]) == (0.5, 0.0)
    assert (row["in_tasks"], row["out_tasks"], row["scored_tasks"]) == (1, 1, 2)


def test_adam_is_one_relative_to_itself_and_has_no_gap() -> None:
    found = generalization(evidence({"adam": {"a": [8.0, 12.0], "b": [20.0, 30.0]}}, RANDOM, PLACES))
    assert list(found.points["score"]) == [1.0, 1.0]
    row = of(found.summary, optimizer="adam")
    assert np.isnan(row["gap"])
    assert np.isnan(row["worst"])
    assert any("by construction" in note for note in found.notes)


def test_against_the_optimum_scores_are_absolute_and_adam_has_a_gap() -> None:
    known = evidence({"adam": ADAM}, RANDOM, PLACES, optimal={"a": [20.0, 20.0], "b": [50.0, 50.0]})
    found = generalization(known, "optimal")
    row = of(found.summary, optimizer="adam")
    assert (row["in_score"], row["out_score"], row["gap"]) == (0.5, 0.25, 0.25)
    without = generalization(dataclasses.replace(known, optimal={}), "optimal")
    assert without.points["score"].isna().all()
    assert any("can not be computed" in note for note in without.notes)


def test_without_a_normalizer_only_wins_are_aggregated() -> None:
    found = generalization(evidence({"adam": ADAM, "x": {"a": [11.0, 11.0], "b": [1.0, 1.0]}}, RANDOM, PLACES), "none")
    row = of(found.summary, optimizer="x")
    assert np.isnan([row["in_score"], row["out_score"], row["gap"], row["all_score"]]).all()
    assert (row["in_win"], row["out_win"]) == (1.0, 0.0)
    assert of(found.points, optimizer="x", point="a")["difference"] == 1.0


def test_differences_are_paired_by_seed() -> None:
    """Adam's seeds differ by far more than the optimizers do, and the interval of the difference is of width 0."""
    adam = {"a": [10.0, 20.0, 30.0, 40.0]}
    found = generalization(evidence({"adam": adam, "x": {"a": [11.0, 21.0, 31.0, 41.0]}}, {"a": [0.0] * 4}, PLACES))
    row = of(found.points, optimizer="x")
    assert (row["difference"], row["difference_low"], row["difference_high"]) == (1.0, 1.0, 1.0)
    assert row["score_difference"] == pytest.approx(1 / 25)
    assert (row["score"], row["score_low"], row["score_high"]) == pytest.approx((1.04, 1.04, 1.04))
    shuffled = generalization(evidence({"adam": adam, "x": {"a": [41.0, 11.0, 31.0, 21.0]}}, {"a": [0.0] * 4}, PLACES))
    row = of(shuffled.points, optimizer="x")
    assert row["difference"] == 1.0
    assert row["difference_high"] - row["difference_low"] > 5
    assert row["score"] == pytest.approx(1.04)
    assert row["score_high"] - row["score_low"] > 0.2


def test_a_twin_of_adam_scores_as_adam_however_much_levels_differ() -> None:
    adam = {"a": [0.1, 0.2, 9.0, 0.3], "b": [3.0, 8.0, 0.0, 4.0], "c": [1.0, 1.0, 2.0, 9.0]}
    random = {task: [0.0, 0.1, 0.0, 0.1] for task in adam}
    found = generalization(evidence({"adam": adam, "x": adam}, random, {"a": "in", "b": "out", "c": "out"}))
    for name in ("adam", "x"):
        row = of(found.summary, optimizer=name)
        assert [row["in_score"], row["out_score_low"], row["out_score_high"], row["all_score"]] == [1.0] * 4
    assert (row["gap"], row["gap_low"], row["gap_high"]) == (0.0, 0.0, 0.0)


def test_the_mean_score_is_the_score_of_the_mean_return() -> None:
    adam, x = [10.0, 20.0, 60.0], [5.0, 30.0, 10.0]
    found = generalization(evidence({"adam": {"a": adam}, "x": {"a": x}}, {"a": [1.0, 2.0, 3.0]}, {"a": "in"}))
    assert of(found.points, optimizer="x")["score"] == pytest.approx((15.0 - 2.0) / (30.0 - 2.0))


@pytest.mark.parametrize(
    ("adam", "scored"), [([1.0, 1.0], False), ([2.0, 5.0], True), ([-9.0, 20.0], False), ([1.1, 0.1], False)]
)
def test_where_adam_does_not_beat_random_only_returns_are_reported(adam: list[float], scored: bool) -> None:
    """One lucky root_seed, or a difference that is small against the noise, does not make a scale."""
    random = {"a": [0.0, 0.0], "b": [1.0, 0.0]}
    known = evidence({"adam": {"a": [10.0, 10.0], "b": adam}, "x": {"a": [5.0, 5.0], "b": [2.0, 2.0]}}, random, PLACES)
    found = generalization(known)
    row = of(found.points, optimizer="x", point="b")
    assert row["mean"] == 2.0
    assert pd.notna(row["score"]) == scored
    summary = of(found.summary, optimizer="x")
    assert pd.notna(summary["out_score"]) == scored
    assert pd.notna(summary["out_win"])
    assert any("returns only, left out" in note and "levels b" in note for note in found.notes) != scored


def test_a_task_that_is_a_point_of_two_axes_counts_once() -> None:
    points = [("width", "16", "a"), ("depth", "1", "a"), ("depth", "2", "b")]
    places = {"a": "out", "b": "out"}
    x = {"a": [10.0, 10.0], "b": [10.0, 10.0]}
    found = generalization(evidence({"adam": ADAM, "x": x}, RANDOM, places, points=points))
    row = of(found.summary, optimizer="x")
    assert row["out_score"] == 0.5
    assert (row["out_tasks"], row["lifetimes"]) == (2, 4)
    assert of(found.axes, optimizer="x", axis="width")["score"] == 1.0
    assert of(found.axes, optimizer="x", axis="depth")["score"] == 0.5
    assert len(found.rows) == 3 * 2 * 2


def test_a_diverged_lifetime_counts_as_the_random_policy() -> None:
    found = generalization(evidence({"adam": ADAM, "x": {"a": [10.0, np.nan], "b": [20.0, 20.0]}}, RANDOM, PLACES))
    assert of(found.points, optimizer="x", point="a")["score"] == 0.5
    assert of(found.summary, optimizer="x")["diverged"] == 1
    assert any("1 diverged" in note for note in found.notes)
    own = {"a": [0.0, 4.0], "b": [10.0, 10.0]}  # of the level that it met
    found = generalization(evidence({"adam": ADAM, "x": {"a": [10.0, np.nan], "b": [20.0, 20.0]}}, own, PLACES))
    assert of(found.points, optimizer="x", point="a")["mean"] == 7.0
    unknown = {"a": [np.nan, np.nan], "b": [10.0, 10.0]}
    found = generalization(evidence({"adam": ADAM, "x": {"a": [7.0, np.nan], "b": [20.0, 20.0]}}, unknown, PLACES))
    row = of(found.points, optimizer="x", point="a")
    assert row["mean"] == 7.0
    assert np.isnan(row["score"])


def test_one_seed_has_no_intervals_and_an_unknown_training_no_gap() -> None:
    one = {"adam": {"a": [10.0], "b": [20.0]}, "x": {"a": [5.0], "b": [15.0]}}
    found = generalization(evidence(one, {"a": [0.0], "b": [10.0]}, {"a": "unknown", "b": "unknown"}))
    row = of(found.summary, optimizer="x")
    assert row["all_score"] == 0.5
    assert np.isnan([row["all_score_low"], row["in_score"], row["out_score"], row["gap"]]).all()
    assert any("one seed" in note for note in found.notes)
    assert any(note.startswith("x:") and "--train-on" in note for note in found.notes)


def test_unknown_normalizers_and_missing_baselines_are_refused() -> None:
    known = evidence({"x": ADAM}, RANDOM, PLACES)
    with pytest.raises(UserError, match=r"unknown normalizer 'optmal'.*optimal"):
        generalization(known, "optmal")
    with pytest.raises(ValueError, match="adam has not run"):
        generalization(known)


returns = st.lists(st.floats(-100, 100, allow_nan=False), min_size=3, max_size=3)


@pytest.mark.slow
@given(x=returns, adam=returns, scale=st.floats(0.5, 20), shift=st.floats(-50, 50), data=st.data())
@settings(max_examples=10, deadline=None)
def test_scores_do_not_depend_on_units_or_on_the_order_of_rows(
    x: list[float], adam: list[float], scale: float, shift: float, data: st.DataObject
) -> None:
    adam = [abs(value) + 1.0 for value in adam]

    def study_in(scale: float, shift: float) -> Evidence:
        def unit(values: list[float]) -> list[float]:
            return [scale * value + shift for value in values]

        return evidence({"adam": {"a": unit(adam)}, "x": {"a": unit(x)}}, {"a": unit([0.0] * 3)}, {"a": "in"})

    plain, other = (generalization(study_in(*units)) for units in ((1.0, 0.0), (scale, shift)))
    numbers = ["score", "score_low", "score_high", "score_difference"]
    np.testing.assert_allclose(plain.points[numbers], other.points[numbers], rtol=1e-6, atol=1e-6)
    known = study_in(1.0, 0.0)
    order = data.draw(st.permutations(range(len(known.runs.scores))))
    mixed = Runs(known.runs.experiments, known.runs.scores.iloc[list(order)], known.runs.curves)
    again = generalization(dataclasses.replace(known, runs=mixed))
    pd.testing.assert_frame_equal(plain.rows, again.rows)
    pd.testing.assert_frame_equal(plain.summary, again.summary)
