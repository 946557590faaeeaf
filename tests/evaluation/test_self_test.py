"""The simulations that say which intervals hold their level: twins.py and paired_differences.py of benchmarks."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from leaderboards import RESULTS, SCALES
from synthetic import make_runs

from open_bench.evaluation.boards import boards

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TWINS = runpy.run_path(str(BENCHMARKS / "twins.py"))
SIMULATION = runpy.run_path(str(BENCHMARKS / "paired_differences.py"))


def test_twins_are_rarely_declared_different_and_a_difference_is_found():
    """Three optimizers of other noise, one often at a cap; 500 studies of 10 seeds × 4 environments. 5 % is nominal."""
    rng = np.random.default_rng(0)
    pools = {
        "quiet": [rng.normal(1.0, 0.1, 10) for _ in range(4)],
        "noisy": [rng.lognormal(0.0, 0.4, 10) for _ in range(4)],
        "capped": [np.minimum(rng.normal(1.0, 0.3, 10), 1.0) for _ in range(4)],
    }
    table = TWINS["self_test"](pools, studies=500, num_seeds=10, difference=0.5)
    assert (table["declared"] < 0.08).all()  # 5 % and three standard errors
    assert table["declared"].mean() > 0.01
    assert table["any"].iloc[0] < 0.08
    assert (table["found"] > 0.9).all()


def test_the_real_scores_of_a_board_are_what_is_drawn_from():
    (board,) = boards(make_runs(RESULTS), SCALES)
    pools = TWINS["pools_of"](board)
    assert {name: [pool.tolist() for pool in each] for name, each in pools.items()}["adam"] == [
        [1.0, 0.9, 1.1, 1.0], [1.0, 0.9, 1.1, 1.0]
    ]  # fmt: skip
    assert pools["sgd"][0].min() == 0  # who diverged counts as the random policy


@pytest.mark.parametrize("kind", ["normal", "capped"])
def test_students_interval_holds_its_level_where_the_percentile_bootstrap_does_not(kind):
    rates = SIMULATION["miss_rates"](kind, (10, 1), 400)
    assert rates["Student"] < 0.08
    assert rates["percentile"] > 0.08


def test_the_simulated_methods_agree_where_there_is_much_data():
    difference = np.random.default_rng(1).normal(0.3, 1.0, (200, 3))
    found = [method(difference, np.random.default_rng(2)) for method in SIMULATION["METHODS"].values()]
    assert np.std(found, axis=0) == pytest.approx([0, 0], abs=0.01)
    assert found[0][1] - found[0][0] == pytest.approx(2 * 1.96 / np.sqrt(600), rel=0.1)
