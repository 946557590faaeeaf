"""The leaderboard and its figures, on small made-up runs."""

import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_scores import NAN, join, make_references, make_runs, shuffled

from open_bench.errors import UserError
from open_bench.evaluation import figures, tables
from open_bench.evaluation.leaderboard import ESTIMATES, leaderboard

FEW = 60  # bootstrap resamples
SCALES = make_references(a=(0, 10), b=(0, 100))
RESULTS = {
    ("adam", "a"): [10, 9, 11, 10],
    ("adam", "b"): [100, 90, 110, 100],
    ("lion", "a"): [12, 13, 11, 14],
    ("lion", "b"): [120, 130, 110, 140],
    ("sgd", "a"): [5, None, 4, 5],
    ("sgd", "b"): [50, 60, 40, 50],
}


def board_table(runs, references=SCALES, **options):
    """The table of a leaderboard, by optimizer."""
    return leaderboard(runs, references, resamples=FEW, **options).table.set_index("optimizer")


def rendered(leaderboard_, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(leaderboard_.to_rich(width))
    return console.file.getvalue()


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
    assert set(table["seeds"]) == {4}
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
    assert table["seeds"].to_dict() == {"lion": 2, "adam": 4, "sgd": 1}
    assert table.loc["lion", "mean"] == pytest.approx(1.25)  # 1.2, 1.3 in both
    assert table.loc["lion", "final_return:a"] == 12.5  # over all four
    assert table.loc["lion", "paired_difference"] == pytest.approx(1.25 - 0.95)  # with adam's first two
    assert "lion: 2 to 4 seeds an environment; aggregates are over the 2 in common" in made.notes
    assert "sgd: one seed, so no intervals" in made.notes
    assert np.isnan(table.loc["sgd", "iqm_low"])
    assert table.loc["sgd", "iqm"] == pytest.approx(0.5)


def test_an_environment_without_a_reference_is_raw_and_out_of_the_aggregates():
    made = leaderboard(make_runs(RESULTS), make_references(a=(0, 10)), resamples=FEW)
    table = made.table.set_index("optimizer")
    assert table.loc["lion", "mean"] == pytest.approx(1.25)
    assert table.loc["sgd", "mean"] == pytest.approx(0.35)  # a alone
    assert table.loc["lion", "final_return:b"] == 125
    assert "b at quick: no reference; raw returns only" in made.notes
    assert any("normalized aggregates are over a;" in note for note in made.notes)


def test_only_raw_returns_rank_by_mean_rank():
    results = {("x", "a"): [3], ("y", "a"): [2], ("z", "a"): [1], ("x", "b"): [10], ("y", "b"): [30], ("z", "b"): [20]}
    results |= {("x", "c"): [2], ("y", "c"): [2], ("z", "c"): [1]}
    made = leaderboard(make_runs(results), {}, resamples=FEW, baseline="x")
    table = made.table.set_index("optimizer")
    assert table["mean_rank"].to_dict() == pytest.approx({"y": 1.5, "x": (1 + 3 + 1.5) / 3, "z": 8 / 3})
    assert list(table.index) == ["y", "x", "z"]
    assert table["iqm"].isna().all()
    assert "no environment has a scale: ranked by mean rank over environments" in made.notes
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
    assert [board.scores.budget for board in both.boards] == ["full", "quick"]
    pd.testing.assert_frame_equal(both.boards[1].table, alone.boards[0].table)
    pd.testing.assert_frame_equal(
        leaderboard(join(full, quick), SCALES, "quick", resamples=FEW).table, alone.table, check_dtype=False
    )
    table = both.table
    assert list(table.groupby("budget")["rank"].max()) == [1, 3] or table["rank"].isna().any()
    assert table.loc[table["budget"] == "quick", "final_return:c"].isna().all()
    assert list(table.columns[:5]) == ["budget", "protocol", "root_seed", "rank", "optimizer"]
    returns = [name for name in table if name.startswith("final_return:")]
    assert returns == ["final_return:a", "final_return:b", "final_return:c"]
    at = list(table).index(returns[0])
    assert list(table)[at : at + 3] == returns


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


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["final_return", "mean_return"]))
def test_the_order_of_rows_changes_nothing(root_seed, metric):
    runs = make_runs(RESULTS)
    options = {"resamples": 10, "metric": metric}
    assert (
        leaderboard(shuffled(runs, root_seed), SCALES, **options).to_csv()
        == leaderboard(runs, SCALES, **options).to_csv()
    )


@settings(max_examples=8, deadline=None)
@given(st.floats(0.01, 100), st.floats(-50, 50))
def test_the_ranking_does_not_depend_on_the_unit_of_returns(unit, shift):
    def change(value):
        return None if value is None else value * unit + shift

    runs = make_runs({key: list(map(change, value)) for key, value in RESULTS.items()})
    scales = make_references(a=(shift, 10 * unit + shift), b=(shift, 100 * unit + shift))
    for name, returns in scales.items():  # random's interval shrinks with the unit too
        final = dataclasses.replace(returns.random.final_return, low=shift - unit, high=shift + unit)
        random = dataclasses.replace(returns.random, final_return=final)
        scales[name] = dataclasses.replace(returns, random=random)
    before, after = board_table(make_runs(RESULTS)), board_table(runs, scales)
    assert list(after.index) == list(before.index)
    assert after["mean"].tolist() == pytest.approx(before["mean"].tolist(), abs=1e-6)


# --- rendering ---------------------------------------------------------------------------------------------------


def test_csv_reads_back(tmp_path):
    made = leaderboard(make_runs(RESULTS), SCALES, resamples=FEW)
    text = made.to_csv(tmp_path / "results" / "leaderboard.csv")
    assert (tmp_path / "results" / "leaderboard.csv").read_text() == text
    assert "\r" not in text
    read = pd.read_csv(io.StringIO(text))
    assert list(read) == list(made.table)
    assert read["iqm"].tolist() == pytest.approx(made.table["iqm"].tolist(), rel=1e-5)


def test_markdown_has_intervals_returns_and_notes():
    made = leaderboard(make_runs(RESULTS), SCALES, resamples=FEW)
    text = made.to_markdown()
    lines = text.splitlines()
    assert lines[0] == "### quick · protocol 1 · root seed 0"
    low, high = made.table.loc[0, ["iqm_low", "iqm_high"]]
    assert f"| 1 | lion | 1.25 [{low:.2f}, {high:.2f}] |" in text
    assert "| P(better than adam) |" in lines[2]
    assert "1 of 8" in next(line for line in lines if line.startswith("| 3 | sgd"))
    assert "| optimizer | a | b |" in lines
    assert "- a at quick: 1 of sgd diverged, counted with the random policy's return, 0" in lines
    for block in text.split("\n\n"):
        vmap_sizes = {line.count(" | ") for line in block.splitlines() if line.startswith("|")}
        assert len(vmap_sizes) <= 1


def test_markdown_without_scales_shows_no_empty_columns():
    text = leaderboard(make_runs(RESULTS), {}, resamples=FEW).to_markdown()
    assert "mean rank" in text
    assert "IQM" not in text


@pytest.mark.parametrize("environments", [1, 2, 7])
def test_the_terminal_table_fits_80_columns_and_loses_nothing(environments):
    names = [f"environment_{i}" for i in range(environments)]
    optimizers = {"adam": 100, "open@a_rather_long_name_of_weights": 200}
    runs = make_runs({(o, e): [v, v + 7] for o, v in optimizers.items() for e in names})
    made = leaderboard(runs, make_references(**dict.fromkeys(names, (0, 100))), resamples=FEW)
    text = rendered(made)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert text.count("103.5") == environments
    assert all(name in text for name in names)
    assert tables.interval(*made.table.loc[0, ["iqm", "iqm_low", "iqm_high"]]) in text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.934, 0.812, 1.041), "0.93 [0.81, 1.04]"),
        ((6517.3, 6400.2, 6600.9), "6517 [6400, 6601]"),
        ((167.09, 160.0, 170.0), "167.1 [160.0, 170.0]"),
        ((0.5, NAN, NAN), "0.50"),
        ((NAN, NAN, NAN), ""),
    ],
)
def test_interval(numbers, text):
    assert tables.interval(*numbers) == text


def test_durations():
    assert [tables.duration(s) for s in (0, 119, 120, 7200, NAN)] == ["0 s", "119 s", "2.0 min", "2.0 h", ""]


# --- figures -----------------------------------------------------------------------------------------------------


def made_board(runs, references=SCALES):
    return leaderboard(runs, references, resamples=FEW).boards[0]


def test_files(tmp_path):
    runs = make_runs(RESULTS, curves=True)
    names = [path.name for path in figures.save_figures(runs, SCALES, "quick", tmp_path, resamples=FEW)]
    assert names == [f"quick_{name}.png" for name in ("learning_curves", "returns", "aggregates", "profiles")]
    for name in names:
        data = (tmp_path / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert b"tEXt" not in data  # no dates, no versions
        assert len(data) > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_raw_only_boards_without_curves_have_only_returns(tmp_path):
    files = figures.save_figures(make_runs(RESULTS), {}, None, tmp_path, resamples=FEW)
    assert [path.name for path in files] == ["quick_returns.png"]


def test_boards_of_one_budget_do_not_overwrite_each_other(tmp_path):
    runs = join(make_runs({("adam", "a"): [1, 2]}), make_runs({("adam", "a"): [3, 4]}, root_seed=7))
    files = figures.save_figures(runs, {}, "quick", tmp_path, resamples=FEW)
    assert [f.name for f in files] == ["quick_protocol1_seed0_returns.png", "quick_protocol1_seed7_returns.png"]
    runs = join(make_runs({("adam", "a"): [1, 2]}), make_runs({("adam", "a"): [3, 4]}, vmap_size=8))
    files = figures.save_figures(runs, {}, "quick", tmp_path, resamples=FEW)
    assert [f.name for f in files] == [f"quick_protocol1_seed0_vmap_size{w}_returns.png" for w in (1, 8)]
    with pytest.raises(UserError, match="no runs at budget 'full'"):
        figures.save_figures(runs, {}, "full", tmp_path)


def test_learning_curves_draw_a_panel_an_environment_and_one_legend():
    runs = make_runs(RESULTS, curves=True)
    figure = figures.learning_curves(made_board(runs), runs, SCALES, FEW)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    assert [axis.get_legend() for axis in figure.axes] == [None, None]
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["lion", "adam", "sgd", "reference (adam)", "random policy"]
    first = figure.axes[0].lines[0]  # lion in a: mean 12.5 at the end, grown in proportion to env steps
    assert first.get_xdata().tolist() == [250, 500, 750, 1000]
    assert first.get_ydata().tolist() == pytest.approx([NAN, 6.25, 9.375, 12.5], nan_ok=True)
    levels = [line.get_ydata()[0] for line in figure.axes[0].lines[3:]]
    assert levels == [10, 0]


def test_a_diverged_curve_goes_on_with_the_random_policys_return():
    runs = make_runs({("adam", "a"): [8, None]}, curves=True)
    figure = figures.learning_curves(made_board(runs, make_references(a=(2, 12))), runs, {}, FEW)
    mean = figure.axes[0].lines[0].get_ydata().tolist()
    # 0.5 at step 500 before it diverged, then random's 2; the other has 4, 6, 8.
    assert mean == pytest.approx([NAN, 2.25, 4.0, 5.0], nan_ok=True)


def test_a_seed_that_left_no_curve_still_counts():
    runs = make_runs({("adam", "a"): [None, 8]}, curves=True)
    runs = dataclasses.replace(runs, curves=runs.curves[runs.curves["seed"] == 1])
    figure = figures.learning_curves(made_board(runs, make_references(a=(2, 12))), runs, {}, FEW)
    assert figure.axes[0].lines[0].get_ydata().tolist() == pytest.approx([2, 3, 4, 5])


def test_curve_band():
    values = np.array([[NAN, 1.0, 2.0], [NAN, 3.0, 4.0], [NAN, NAN, 6.0], [9.0, NAN, 8.0]])
    mean, low, high = figures.curve_band(values, 500)
    assert mean.tolist() == pytest.approx([NAN, 2, 5], nan_ok=True)
    assert np.isnan([low[0], high[0]]).all()
    assert 2 < low[2] < 5 < high[2] < 8
    assert 1 <= low[1] < 2 < high[1] <= 3
    mean, low, _ = figures.curve_band(values[:1])
    assert mean.tolist() == pytest.approx([NAN, 1, 2], nan_ok=True)
    assert np.isnan(low).all()


def test_interval_figures_show_every_optimizer_in_rank_order():
    board = made_board(make_runs(RESULTS))
    for figure, titles in (
        (figures.aggregate_intervals(board), ["IQM", "median", "mean", "optimality gap"]),
        (figures.return_intervals(board), ["a", "b"]),
    ):
        assert [axis.get_title() for axis in figure.axes] == titles
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert labels == ["lion", "adam", "sgd"]
        low, high = figure.axes[0].get_ylim()
        assert low > high  # the best is on top
    iqm = figures.aggregate_intervals(board).axes[0]
    assert iqm.lines[0].get_xdata()[0] == pytest.approx(1.25)
    bar = iqm.patches[0]
    assert (bar.get_x(), bar.get_x() + bar.get_vmap_size()) == pytest.approx(
        tuple(board.table.loc[0, ["iqm_low", "iqm_high"]])
    )


def test_incomplete_optimizers_are_in_returns_but_not_in_aggregates():
    board = made_board(make_runs({key: value for key, value in RESULTS.items() if key != ("lion", "b")}))
    assert len(figures.aggregate_intervals(board).axes[0].get_yticklabels()) == 2
    assert len(figures.return_intervals(board).axes[0].get_yticklabels()) == 3
    shown = [text.get_text() for text in figures.profiles(board, FEW).legends[0].get_texts()]
    assert shown == ["adam", "sgd"]


def test_colors_belong_to_optimizers():
    few, more = figures.styles(["adam", "mine"]), figures.styles(["adam", "lion", "mine", "open"])
    assert few["adam"] == more["adam"]
    assert few["mine"] == more["mine"]
    many = figures.styles([f"optimizer{i}" for i in range(40)] + ["adam"])
    assert len({(style["color"], str(style["linestyle"])) for style in many.values()}) == 41
    assert many["adam"] == few["adam"]


def test_compact_steps():
    assert [figures.compact(x) for x in (0, 250, 500_000, 2_500_000, 1e9)] == ["0", "250", "500k", "2.5M", "1G"]
