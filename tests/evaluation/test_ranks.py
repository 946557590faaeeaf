"""Mean ranks with intervals, and optimizers that share a range of ranks."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leaderboards import FEW, SCALES, board_table
from synthetic import make_runs

from open_bench.evaluation import ranks
from open_bench.evaluation.boards import boards
from open_bench.evaluation.leaderboard import leaderboard

SEEDS = 6
NOISE = np.random.default_rng(0).normal(0, 1.0, (4, 2, SEEDS))
SHIFTS = {"adam": 10, "lion": 10.1, "sgd": 2, "muon": 18}


def noisy(shifts=SHIFTS, change=lambda x: x):
    return make_runs(
        {
            (name, environment): [change(shift + noise) for noise in NOISE[i, j]]
            for i, (name, shift) in enumerate(shifts.items())
            for j, environment in enumerate(("a", "b"))
        }
    )


def test_mean_ranks_are_those_of_a_loop():
    (board,) = boards(noisy(), SCALES)
    found = ranks.mean_ranks(board, 30)
    table = board.rows.pivot(index=["optimizer", "environment"], columns="seed", values="value")
    draws = [np.random.RandomState(2407 + place).choice(SEEDS, (30, SEEDS)) for place in range(2)]

    def mean_rank(seeds):
        means = {key: np.mean(row.to_numpy()[seeds["ab".index(key[1])]]) for key, row in table.iterrows()}
        return pd.Series(means).unstack().rank(ascending=False).mean(axis=1)

    whole = mean_rank([np.arange(SEEDS)] * 2)
    again = pd.DataFrame([mean_rank([drawn[r] for drawn in draws]) for r in range(30)])
    assert found["mean_rank"].to_dict() == pytest.approx(whole.to_dict())
    assert found["mean_rank_low"].to_dict() == pytest.approx(again.quantile(0.025).to_dict())
    assert found["mean_rank_high"].to_dict() == pytest.approx(again.quantile(0.975).to_dict())


def test_who_is_not_told_apart_shares_a_range():
    table = board_table(noisy())
    assert [table.index[0], table.index[-1]] == ["muon", "sgd"]
    ends = table[["rank_low", "rank_high"]].astype(int).apply(tuple, axis=1).to_dict()
    assert ends == {"muon": (1, 1), "adam": (2, 3), "lion": (2, 3), "sgd": (4, 4)}
    shown = leaderboard(noisy(), SCALES, resamples=FEW).to_markdown()
    assert "| 2–3 | adam |" in shown
    assert "| 1 | muon |" in shown
    assert "a range of ranks counts significant differences alone" in shown


def test_one_seed_tells_nobody_apart():
    table = board_table(make_runs({(name, "a"): [value] for name, value in SHIFTS.items()}))
    assert table["rank"].tolist() == [1, 2, 3, 4]
    assert set(table["rank_low"]) == {1}
    assert set(table["rank_high"]) == {4}
    assert table[["mean_rank_low", "mean_rank_high"]].isna().all(axis=None)


def test_who_has_no_rank_has_no_range():
    runs = make_runs({("adam", "a"): [1, 2], ("adam", "b"): [1, 2], ("lion", "a"): [5, 6]})
    table = board_table(runs)
    assert pd.isna(table.loc["lion", ["rank", "rank_low", "rank_high", "mean_rank"]]).all()
    assert table.loc["adam", ["rank_low", "rank_high", "mean_rank"]].tolist() == [1, 1, 1]


@settings(max_examples=5, deadline=None)
@given(st.sampled_from([np.exp, np.cbrt, lambda x: 3 * x + 7, lambda x: x**3]))
def test_without_a_scale_ranks_depend_on_order_alone(change):
    """Ranks of returns and who is told apart: any monotone change of the returns leaves ranges as they are."""
    before, after = (leaderboard(noisy(change=f), {}, resamples=10).table for f in (lambda x: x, change))
    columns = ["optimizer", "rank_low", "rank_high"]
    # Mean returns may swap adam and lion, which share a range; who shares one with whom may not change.
    pd.testing.assert_frame_equal(
        *(table[columns].sort_values("optimizer", ignore_index=True) for table in (before, after))
    )


def holm_by_definition(p_values, level):
    """The closed test: a hypothesis falls if every set of hypotheses that holds it falls by Bonferroni."""
    everyone = range(len(p_values))
    subsets = [s for n in range(1, len(p_values) + 1) for s in itertools.combinations(everyone, n)]
    falls = {s: min(p_values[i] for i in s) <= level / len(s) for s in subsets}
    return [all(falls[s] for s in subsets if i in s) for i in everyone]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.001, 0.01, 0.012, 0.016, 0.024, 0.04, 0.5]), max_size=6))
def test_holms_correction(p_values):
    assert ranks.holm(p_values, 0.05) == holm_by_definition(p_values, 0.05)


def test_win_rates_are_the_boards_and_mirror_each_other():
    (board,) = boards(noisy(), SCALES)
    found = ranks.win_rates(board, board.optimizers, FEW)
    assert len(found) == len(SHIFTS) * (len(SHIFTS) - 1)
    table = board_table(noisy())
    for name in ("lion", "sgd", "muon"):
        mine = table.loc[name, [f"probability_of_improvement{end}" for end in ("", "_low", "_high")]].tolist()
        mirrored = found["adam", name]
        assert mine[0] == pytest.approx(found[name, "adam"].value)
        assert mirrored == pytest.approx([1 - found[name, "adam"][place] for place in (0, 2, 1)])
    assert found["muon", "sgd"].value == 1
