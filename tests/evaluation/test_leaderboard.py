"""The leaderboard, on small made-up runs."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leaderboards import FEW, RESULTS, SCALES, board_table, rendered
from synthetic import join, make_returns, make_runs, measured, random_runs, shuffled

from open_bench.evaluation import figures
from open_bench.evaluation.baseline_returns import EnvironmentReturns
from open_bench.evaluation.leaderboard import ESTIMATES, leaderboard

# --- the table ---------------------------------------------------------------------------------------------------


def test_order_values_and_counts():
    table = board_table(make_runs(RESULTS))
    assert table["rank"].to_dict() == {"lion": 1, "adam": 2, "sgd": 3}
    assert list(table.index) == ["lion", "adam", "sgd"]
    assert table.loc["lion", "iqm"] == pytest.approx(1.25)  # 1.1 1.1 (1.2 1.2 1.3 1.3) 1.4 1.4
    assert table.loc["sgd", "mean"] == pytest.approx(0.425)  # (0.5+0+0.4+0.5)/4 and (0.5+0.6+0.4+0.5)/4
    assert table.loc["adam", "optimality_gap"] == pytest.approx(0.025)
    assert table["final_return:a"].to_dict() == {"lion": 12.5, "adam": 10, "sgd": 3.5}
    assert table["final_return:b"].to_dict() == {"lion": 125, "adam": 100, "sgd": 50}
    assert table["diverged"].to_dict() == {"lion": 0, "adam": 0, "sgd": 1}
    assert set(table["num_seeds"]) == {4}
    assert set(table["lifetimes"]) == {8}
    assert table.loc["sgd", "mean_rank"] == 3
    for name in ("iqm", "median", "mean", "optimality_gap"):
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()


def test_comparisons_with_adam():
    table = board_table(make_runs(RESULTS))
    assert table.loc["lion", "paired_difference"] == pytest.approx(0.25)
    assert table.loc["lion", "probability_of_improvement"] == pytest.approx(15.5 / 16)  # 16 pairs, one tie of 11s
    assert table.loc["sgd", "probability_of_improvement"] == 0
    assert table.loc["adam", ["paired_difference", "probability_of_improvement"]].isna().all()
    other = board_table(make_runs(RESULTS), baseline="sgd")
    assert other.loc["lion", "probability_of_improvement"] == 1
    assert other.loc["sgd", "paired_difference_low"] != other.loc["adam", "paired_difference_low"]


def test_paired_differences_per_environment():
    found = leaderboard(make_runs(RESULTS), SCALES, resamples=FEW).per_environment
    found = found.set_index(["optimizer", "environment"])
    assert found.loc[("lion", "a"), "difference"] == pytest.approx(2.5)
    assert found.loc[("lion", "a"), "difference_low"] < 2.5 < found.loc[("lion", "a"), "difference_high"]
    assert found.loc[("sgd", "a"), "difference"] == pytest.approx(-6.5)  # the diverged one counts with 0
    assert np.isnan(found.loc[("adam", "a"), "difference"])


def test_without_the_baseline_nothing_is_compared_and_that_is_said():
    runs = make_runs({key: value for key, value in RESULTS.items() if key[0] != "adam"})
    made = leaderboard(runs, SCALES, resamples=FEW)
    assert made.table["probability_of_improvement"].isna().all()
    assert "adam is not there, so nothing is compared with it" in made.notes
    assert made.table["iqm"].notna().all()


def test_a_missing_environment_leaves_the_aggregate_blank_and_the_returns_there():
    runs = make_runs({key: value for key, value in RESULTS.items() if key != ("lion", "b")})
    made = leaderboard(runs, SCALES, resamples=FEW)
    table = made.table.set_index("optimizer")
    assert list(table.index) == ["adam", "sgd", "lion"]
    assert pd.isna(table.loc["lion", "rank"])
    assert table.loc["lion", [f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")]].isna().all()
    assert table.loc["lion", "final_return:a"] == 12.5
    assert np.isnan(table.loc["lion", "final_return:b"])
    assert "lion: has not run in b; its aggregate is left blank" in made.notes
    assert "has not run in b" in table.loc["lion", "notes"]
    assert "has not run" not in table.loc["sgd", "notes"]
    complete = board_table(make_runs(RESULTS))  # and the others are as they would be beside it
    assert table.loc["sgd", "iqm"] == complete.loc["sgd", "iqm"]


def test_unequal_seeds_aggregate_those_in_common():
    runs = make_runs(RESULTS | {("lion", "b"): [120, 130], ("sgd", "a"): [5], ("sgd", "b"): [50]})
    made = leaderboard(runs, SCALES, resamples=FEW)
    table = made.table.set_index("optimizer")
    assert table["num_seeds"].to_dict() == {"lion": 2, "adam": 4, "sgd": 1}
    assert table.loc["lion", "mean"] == pytest.approx(1.25)  # 1.2, 1.3 in both
    assert table.loc["lion", "final_return:a"] == 12.5  # over all four
    assert table.loc["lion", "paired_difference"] == pytest.approx(1.25 - 0.95)  # with adam's first two
    assert "lion: 2 to 4 seeds an environment; aggregates are over the 2 in common" in made.notes
    assert "sgd: one seed, so no intervals" in made.notes
    assert np.isnan(table.loc["sgd", "iqm_low"])
    assert table.loc["sgd", "iqm"] == pytest.approx(0.5)


def test_an_environment_without_a_scale_is_raw_and_out_of_the_aggregates():
    """Adam's stored return in b is not above random's interval."""
    made = leaderboard(make_runs(RESULTS), make_returns(a=(0, 10), b=(99, 100)), resamples=FEW)
    table = made.table.set_index("optimizer")
    assert table.loc["lion", "mean"] == pytest.approx(1.25)
    assert table.loc["sgd", "mean"] == pytest.approx(0.35)  # a alone
    assert table.loc["lion", "final_return:b"] == 125
    assert (
        "b at quick: Adam's return, 99 or more, is not above random's interval, which ends at 100; returns only"
        in made.notes
    )
    assert any("aggregates of scores are over a;" in note for note in made.notes)


def test_scores_by_ones_own_adam():
    """lion: (12.5 − 10)/10 and (125 − 100)/100 above Adam, sgd −6.25/10 and −50/100; a diverged seed is random's 1."""
    runs = join(make_runs(RESULTS), random_runs(a=[-1, 1, 0, 0], b=[0, 10, -10, 0]))
    made = leaderboard(runs, {}, resamples=FEW)
    table = made.table.set_index("optimizer")
    assert list(table.index) == ["lion", "adam", "sgd"]
    assert table["mean"].to_dict() == pytest.approx({"lion": 1.25, "adam": 1, "sgd": (0.375 + 0.5) / 2})
    assert table.loc["sgd", "final_return:a"] == pytest.approx((5 + 1 + 4 + 5) / 4)  # random's of the same seed
    assert table.loc["lion", "paired_difference"] == pytest.approx(0.25)
    assert table.loc["adam", "iqm_low":"optimality_gap_high"].filter(regex="low|high").isna().all()  # by construction
    assert table.loc["adam", "iqm"] == 1
    assert "random" not in table.index


def test_the_title_of_a_board_says_what_it_holds():
    runs = make_runs(RESULTS)
    assert leaderboard(runs, SCALES, resamples=FEW).boards[0].title == "ppo · quick · protocol 1 · root seed 0"
    named = leaderboard(runs, SCALES, resamples=FEW, title="mystudy")
    assert named.boards[0].title == "mystudy · ppo · quick · protocol 1 · root seed 0"
    assert "### mystudy · ppo" in named.to_markdown()
    assert "mystudy" in rendered(named)


def test_a_row_has_its_own_notes_alone():
    runs = make_runs({key: value for key, value in RESULTS.items() if key != ("lion", "b")})
    made = leaderboard(runs, SCALES, resamples=FEW)
    notes = made.table.set_index("optimizer")["notes"].to_dict()
    assert notes == {"adam": "", "sgd": "", "lion": "has not run in b; its aggregate is left blank"}
    assert any("1 of sgd diverged" in note for note in made.notes)


def test_intervals_of_returns_stand_in_the_table():
    made = leaderboard(make_runs(RESULTS), SCALES, resamples=FEW)
    cells = made.per_environment.set_index(["optimizer", "environment"])
    for row in made.table.to_dict("records"):
        for environment in ("a", "b"):
            found = [row[f"final_return{end}:{environment}"] for end in ("", "_low", "_high")]
            assert found == list(cells.loc[(row["optimizer"], environment), ["mean", "low", "high"]])
    assert made.table.loc[0, "final_return_low:a"] < 12.5 < made.table.loc[0, "final_return_high:a"]


def test_only_raw_returns_rank_by_mean_rank():
    results = {("x", "a"): [3], ("y", "a"): [2], ("z", "a"): [1], ("x", "b"): [10], ("y", "b"): [30], ("z", "b"): [20]}
    results |= {("x", "c"): [2], ("y", "c"): [2], ("z", "c"): [1]}
    made = leaderboard(make_runs(results), {}, resamples=FEW, baseline="x")
    table = made.table.set_index("optimizer")
    assert table["mean_rank"].to_dict() == pytest.approx({"y": 1.5, "x": (1 + 3 + 1.5) / 3, "z": 8 / 3})
    assert list(table.index) == ["y", "x", "z"]
    assert table["iqm"].isna().all()
    assert made.notes[0] == (
        "no scores, only returns, ranked by mean rank: no stored returns fit a, b, c (ppo at quick), and adam has not "
        "run here"
    )
    assert table.loc["y", "probability_of_improvement"] == 0.5  # loses a, wins b, draws c


def test_equal_optimizers_share_a_rank_and_are_listed_by_name():
    same = [8, 9, 10]
    table = board_table(make_runs({("lion", "a"): same, ("adam", "a"): same, ("sgd", "a"): [1, 2, 3]}))
    assert list(table.index) == ["adam", "lion", "sgd"]
    assert list(table["rank"]) == [1, 1, 3]


def test_budgets_are_never_mixed():
    """A second budget adds rows and changes none."""
    quick = make_runs(RESULTS)
    full = make_runs({("adam", "a"): [1000, 1010], ("adam", "c"): [1, 2]}, budget="full")
    alone = leaderboard(quick, SCALES, resamples=FEW)
    both = leaderboard(join(full, quick), SCALES, resamples=FEW)
    assert [board.scores.key.budget for board in both.boards] == ["full", "quick"]
    pd.testing.assert_frame_equal(both.boards[1].table, alone.boards[0].table)
    pd.testing.assert_frame_equal(
        leaderboard(join(full, quick), SCALES, "quick", resamples=FEW).table, alone.table, check_dtype=False
    )
    table = both.table
    assert list(table.groupby("budget")["rank"].max()) == [1, 3] or table["rank"].isna().any()
    assert table.loc[table["budget"] == "quick", "final_return:c"].isna().all()
    assert list(table.columns[:6]) == ["algorithm", "budget", "protocol", "root_seed", "rank", "optimizer"]
    returns = [name for name in table if name.startswith("final_return:")]
    assert returns == ["final_return:a", "final_return:b", "final_return:c"]
    ends = [name.replace(":", f"_{end}:") for end in ("low", "high") for name in returns]
    at = list(table).index(returns[0])
    assert list(table)[at : at + 9] == returns + ends


def test_provenance_and_cost():
    cheap = make_runs({("adam", "a"): [1, 2]}, run_seconds=10.0, steps_per_second=100.0)
    dear = make_runs({("adam", "b"): [1, 2]}, run_seconds=30.0, steps_per_second=20.0, hyperparameter_origin="tuned")
    row = board_table(join(cheap, dear)).loc["adam"]
    assert row["steps_per_second"] == pytest.approx((1000 + 600) / 40)
    assert (row["run_seconds"], row["compile_seconds"]) == (40, 10)
    assert row["hyperparameter_origin"] == "default/tuned"


def test_mean_return_is_another_metric():
    table = board_table(make_runs(RESULTS), metric="mean_return")
    assert table.loc["lion", "iqm"] == pytest.approx(1.25)  # returns and scale are both halved
    assert table.loc["lion", "mean_return:a"] == 6.25


# --- same runs, same bytes ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(tmp_path):
    runs = make_runs(RESULTS, curves=True)
    one, two = (leaderboard(r, SCALES, resamples=FEW) for r in (runs, shuffled(runs, 3)))
    assert one.to_csv() == two.to_csv()
    assert one.to_markdown() == two.to_markdown()
    assert rendered(one) == rendered(two)
    first = figures.save_figures(runs, SCALES, "quick", tmp_path / "one", resamples=FEW)
    second = figures.save_figures(shuffled(runs, 5), SCALES, "quick", tmp_path / "two", resamples=FEW)
    assert [path.name for path in first] == [path.name for path in second]
    for left, right in zip(first, second, strict=True):
        assert left.read_bytes() == right.read_bytes()


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["final_return", "mean_return"]))
def test_the_order_of_rows_changes_nothing(root_seed, metric):
    runs = make_runs(RESULTS)
    options = {"resamples": 10, "metric": metric}
    assert (
        leaderboard(shuffled(runs, root_seed), SCALES, **options).to_csv()
        == leaderboard(runs, SCALES, **options).to_csv()
    )


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.floats(0.01, 100), st.floats(-50, 50))
def test_the_ranking_does_not_depend_on_the_unit_of_returns(unit, shift):
    def change(value):
        return None if value is None else value * unit + shift

    runs = make_runs({key: list(map(change, value)) for key, value in RESULTS.items()})
    scales = {}
    for name, adam in (("a", 10), ("b", 100)):  # intervals grow with the unit too
        random = measured(shift, spread=unit)
        top = measured(adam * unit + shift, "adam", spread=unit)
        scales[name] = EnvironmentReturns(environment=name, random=random, ppo={"quick": top})
    before, after = board_table(make_runs(RESULTS)), board_table(runs, scales)
    assert list(after.index) == list(before.index)
    assert after["mean"].tolist() == pytest.approx(before["mean"].tolist(), abs=1e-6)


# --- tracks and what they cost -----------------------------------------------------------------------------------


def costly():
    tuned = {"hyperparameter_origin": "tuned", "tuning_trials": 16, "tuning_env_steps": 1_000_000}
    return join(
        make_runs({("adam", "a"): [10, 12], ("adam", "b"): [100, 120]}, **tuned),
        make_runs({("lion", "a"): [9, 9], ("lion", "b"): [9, 9]}, **tuned),
        make_runs({("adam", "a"): [9, 8], ("adam", "b"): [90, 80]}, **tuned | {"hyperparameter_origin": "one setting"}),
        make_runs({("open", "a"): [14, 15], ("open", "b"): [140, 150]}, theta="abc", meta_env_steps=3 * 10**9,
                  trained_on="breakout"),
        make_runs({("sgd", "a"): [1, 2]}, hyperparameter_origin="published"),
        make_runs({("sgd", "b"): [1, 2]}),
    )  # fmt: skip


def test_the_board_says_what_tuning_and_meta_training_took():
    made = leaderboard(costly(), SCALES, resamples=FEW)
    table = made.table.set_index("optimizer")
    assert table["track"].to_dict() == {
        "open": "learned", "adam (tuned)": "tuned", "lion": "tuned", "adam (one setting)": "one setting", "sgd": "mixed"
    }  # fmt: skip
    assert table["tuning_trials"].to_dict() == dict.fromkeys(table.index, "16") | {"open": "", "sgd": ""}
    steps = {"adam (tuned)": 2_000_000, "lion": 2_000_000, "adam (one setting)": 1_000_000, "open": 0, "sgd": 0}
    assert table["tuning_env_steps"].to_dict() == steps
    assert table.loc["open", ["meta_env_steps", "trained_on"]].tolist() == [3 * 10**9, "breakout"]
    assert "adam (tuned), lion: settings of 16 trials, 2M env steps of tuning each" in made.notes
    assert "adam (one setting): settings of 16 trials, 1M env steps of tuning" in made.notes
    paid = "as many as tuning adam (tuned) took in 3,000 environments like these"  # 3G/1M
    assert f"open: θ of 3G env steps of meta-training on breakout: {paid}" in made.notes
    assert "sgd: default in b; published in a" in made.notes
    assert "| track |" in made.to_markdown()
    assert "learned" in rendered(made, 80)
    assert "| hyperparameters |" in made.to_markdown()  # which tell more than tracks, where θ has some


def test_of_several_adams_the_tuned_one_is_compared_with():
    made = leaderboard(costly(), SCALES, resamples=FEW, only=["one_setting", "learned"])
    assert list(made.table["optimizer"]) == ["open", "adam (one setting)"]
    assert made.boards[0].baseline == "adam (tuned)"
    assert made.table.set_index("optimizer").loc["open", "probability_of_improvement"] == 1
    assert made.table["paired_difference"].notna().all()
    assert "P(better than adam (tuned))" in made.to_markdown()
    assert set(made.per_environment["optimizer"]) == {"open", "adam (one setting)"}
