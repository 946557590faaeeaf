"""What is drawn of a board, as numbers."""

import numpy as np
import pytest
from leaderboards import FEW, RESULTS, SCALES
from synthetic import NAN, make_returns, make_runs

from open_bench.evaluation import curves
from open_bench.evaluation.leaderboard import leaderboard


def made_board(runs, baseline_returns=SCALES):
    return leaderboard(runs, baseline_returns, resamples=FEW).boards[0]


def test_curves_are_by_environment_and_optimizer_best_first():
    runs = make_runs(RESULTS, curves=True)
    found = curves.learning_curves(made_board(runs), runs, FEW)
    assert [(name, list(mine)) for name, mine in found.items()] == [(name, ["lion", "adam", "sgd"]) for name in "ab"]
    lion = found["a"]["lion"]
    assert lion.x.tolist() == [250, 500, 750, 1000]
    assert lion.value.tolist() == pytest.approx([NAN, 6.25, 9.375, 12.5], nan_ok=True)
    assert (lion.low[1:] < lion.value[1:]).all()
    assert (lion.value[1:] < lion.high[1:]).all()


@pytest.mark.parametrize(("points", "shown"), [(4, [250, 500, 750, 1000]), (3, [500, 1000]), (1, [1000])])
def test_fewer_points_are_the_same_points_and_the_last_is_among_them(points, shown):
    runs = make_runs(RESULTS, curves=True)
    board = made_board(runs)
    whole, few = (curves.learning_curves(board, runs, FEW, each)["b"]["adam"] for each in (None, points))
    assert few.x.tolist() == shown
    kept = np.isin(whole.x, few.x)
    for all_of_it, some in zip(whole, few, strict=True):
        assert some.tolist() == pytest.approx(all_of_it[kept].tolist(), nan_ok=True)


def test_levels_are_what_is_known():
    runs = make_runs(RESULTS, curves=True)
    assert curves.levels(made_board(runs), SCALES, "b") == {"Adam (stored)": 100, "random policy": 0}
    assert curves.levels(made_board(make_runs({("sgd", "c"): [1, 2]}), {}), {}, "c") == {}


def test_profiles_fall_from_all_to_none():
    runs = make_runs(RESULTS, curves=True)
    found = curves.profiles(made_board(runs), FEW, points=50)
    assert list(found) == ["lion", "adam", "sgd"]
    assert found["lion"].value[[0, -1]].tolist() == [1, 0]
    assert (np.diff(found["sgd"].value) <= 0).all()
    assert curves.profiles(made_board(make_runs({("sgd", "c"): [1, 2]}), {}), FEW) == {}


def test_a_logarithmic_axis_is_for_positive_values_that_vary_much():
    x = np.arange(3.0)

    def needs(*values):
        return curves.needs_log({"one": curves.Curve(x, np.array(values), np.array(values), np.full(3, NAN))})

    assert needs(1.0, 10.0, 1000.0)
    assert not needs(1.0, 10.0, 50.0)
    assert not needs(0.0, 10.0, 1000.0)
    assert not needs(NAN, NAN, NAN)


def test_time_profiles_rise():
    runs = make_runs(RESULTS, curves=True)
    found = curves.time_profiles(made_board(runs, make_returns(a=(0, 10), b=(0, 100))), points=10)
    assert found["lion"].value[0] == 1  # the fastest in both
    assert (np.diff(found["adam"].value) >= 0).all()
