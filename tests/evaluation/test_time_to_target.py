"""Env steps to Adam's median return, and profiles of them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leaderboards import FEW, SCALES
from synthetic import NAN, join, make_returns, make_runs

from open_bench.evaluation import curves, figures, time_to_target
from open_bench.evaluation.boards import boards
from open_bench.evaluation.leaderboard import leaderboard

INF = float("inf")
# Curves are at 500, 750 and 1,000 env steps a half, three quarters and all of the final return.
RUNS = make_runs(
    {
        ("adam", "a"): [10, 10, 10],
        ("adam", "b"): [100, 90, 100],
        ("lion", "a"): [20, 14, 9],  # at 500, 750, never
        ("lion", "b"): [50, 50, 300],  # never, never, at 500
        ("sgd", "a"): [20, None, None],  # who diverged has missed it
        ("sgd", "b"): [200, 200, 200],
    },
    curves=True,
)


def test_median_steps_to_adams_median_return():
    (board,) = boards(RUNS, SCALES)
    assert time_to_target.targets(board) == {"a": 10, "b": 100}
    found = time_to_target.steps_to_target(board, RUNS.curves)
    assert found.to_dict("index") == {
        "a": {"adam": 1000, "lion": 750, "sgd": INF},
        "b": {"adam": 1000, "lion": INF, "sgd": 500},
    }
    ratios = time_to_target.ratios(found)
    assert ratios.loc["a"].tolist() == pytest.approx([4 / 3, 1, INF])
    assert ratios.loc["b"].tolist() == [2, INF, 1]


def test_the_target_is_adams_final_return_whatever_is_ranked():
    by_mean, by_final = (
        leaderboard(RUNS, SCALES, metric=name, resamples=FEW) for name in ("mean_return", "final_return")
    )
    assert time_to_target.targets(by_mean.boards[0].scores) == {"a": 10, "b": 100}
    times = ["time_to_target", "optimizer"]
    pd.testing.assert_frame_equal(
        by_mean.table[times].sort_values("optimizer", ignore_index=True),
        by_final.table[times].sort_values("optimizer", ignore_index=True),
    )


def test_an_optimizer_that_is_not_shown_is_still_the_fastest():
    """A filter changes which rows are shown, and no number of theirs."""
    runs = dataclasses.replace(RUNS, experiments=RUNS.experiments.assign(hyperparameter_origin=[
        "tuned" if name == "sgd" else "default" for name in RUNS.experiments["optimizer"]
    ]))  # fmt: skip
    whole, part = leaderboard(runs, SCALES, resamples=FEW), leaderboard(runs, SCALES, only=["default"], resamples=FEW)
    scores = whole.table.set_index("optimizer")["time_to_target"]
    assert set(part.table["optimizer"]) == {"adam", "lion"}
    assert part.table.set_index("optimizer")["time_to_target"].to_dict() == scores.drop("sgd").to_dict()
    drawn, all_drawn = (curves.time_profiles(made.boards[0]) for made in (part, whole))
    np.testing.assert_array_equal(drawn["adam"].value, all_drawn["adam"].value)


def test_the_board_says_it():
    made = leaderboard(RUNS, SCALES, resamples=FEW)
    table = made.table.set_index("optimizer")
    assert table["time_to_target"].to_dict() == pytest.approx(
        {"adam": ((4 - 4 / 3) / 3 + 2 / 3) / 2, "lion": 1 / 2, "sgd": 1 / 2}
    )
    shown = made.to_markdown()
    assert "Env steps to the median final return of adam, median over seeds:" in shown
    assert "| lion | 750 | missed |" in shown
    assert "| time to target |" in shown
    (axis,) = figures.time_profiles(made.boards[0]).axes
    assert [line.get_ydata()[0] for line in axis.lines] == pytest.approx(
        [{"adam": 0, "lion": 0.5, "sgd": 0.5}[name] for name in made.table["optimizer"]]
    )
    assert axis.lines[list(made.table["optimizer"]).index("adam")].get_ydata()[-1] == 1


def test_without_adam_or_curves_there_is_none():
    for runs in (RUNS.select(optimizer=["lion", "sgd"]), dataclasses.replace(RUNS, curves=RUNS.curves.iloc[:0])):
        made = leaderboard(runs, SCALES, resamples=FEW)
        assert made.table["time_to_target"].isna().all()
        assert "Env steps to" not in made.to_markdown()
        assert figures.time_profiles(made.boards[0]) is None


def test_who_has_not_run_everywhere_has_times_and_no_score():
    made = leaderboard(join(RUNS.select(optimizer="adam"), make_runs({("lion", "a"): [20, 20]}, curves=True)), SCALES)
    assert np.isnan(made.table.set_index("optimizer").loc["lion", "time_to_target"])
    steps = made.per_environment.set_index(["optimizer", "environment"])["steps_to_target"]
    assert steps[("lion", "a")] == 500


def test_an_environment_without_a_result_has_no_target():
    runs = make_runs({("adam", "a"): [NAN, NAN], ("adam", "b"): [1, 3]}, curves=True)
    (board,) = boards(runs, make_returns(a=(0, 1), b=(0, 1)))
    assert time_to_target.targets(board) == {"b": 2}


ratio_lists = st.lists(st.one_of(st.just(INF), st.floats(1, 20)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(ratio_lists)
def test_profiles_rise_within_0_and_1_and_the_score_is_their_mean(values):
    ratios = pd.Series(values)
    limits = np.linspace(1, 4, 6001)
    found = time_to_target.profile(ratios, limits)
    assert (np.diff(found) >= 0).all()
    assert 0 <= found[0] <= found[-1] <= 1
    assert list(found[::1000]) == [sum(r <= t for r in values) / len(values) for t in limits[::1000]]
    assert time_to_target.score(ratios) == pytest.approx(np.trapezoid(found, limits) / 3, abs=1e-3)
