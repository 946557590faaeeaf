"""Figures of a board, and the look that all figures share."""

import dataclasses
import itertools
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from leaderboards import FEW, RESULTS, SCALES
from synthetic import NAN, join, make_returns, make_runs

from open_bench.errors import UserError
from open_bench.evaluation import curves, figures, schema, style
from open_bench.evaluation.leaderboard import leaderboard

FIGURES = ("learning_curves", "returns", "aggregates", "profiles", "time_to_target")


def made_board(runs, baseline_returns=SCALES):
    return leaderboard(runs, baseline_returns, resamples=FEW).boards[0]


@pytest.mark.slow
def test_files(tmp_path):
    runs = make_runs(RESULTS, curves=True)
    names = [path.name for path in figures.save_figures(runs, SCALES, "quick", tmp_path, resamples=FEW)]
    assert names == [f"quick_ppo_{name}.png" for name in FIGURES]
    for name in names:
        data = (tmp_path / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert b"tEXt" not in data  # no dates, no versions
        assert len(data) > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_raw_only_boards_without_curves_have_only_returns(tmp_path):
    files = figures.save_figures(make_runs(RESULTS), {}, None, tmp_path, resamples=FEW)
    assert [path.name for path in files] == ["quick_ppo_returns.png"]


def test_boards_of_one_budget_do_not_overwrite_each_other(tmp_path):
    runs = join(make_runs({("adam", "a"): [1, 2]}), make_runs({("adam", "a"): [3, 4]}, root_seed=7))
    files = figures.save_figures(runs, {}, "quick", tmp_path, resamples=FEW)
    assert [f.name for f in files] == ["quick_ppo_returns.png", "quick_ppo_seed7_returns.png"]
    runs = join(make_runs({("adam", "a"): [1, 2]}), make_runs({("adam", "a"): [3, 4]}, vmap_size=8))
    files = figures.save_figures(runs, {}, "quick", tmp_path, resamples=FEW)
    assert [f.name for f in files] == [f"quick_ppo_protocol1_vmap{w}_returns.png" for w in (1, 8)]
    with pytest.raises(UserError, match="no runs at budget 'full'"):
        figures.save_figures(runs, {}, "full", tmp_path)


def test_no_name_leads_to_another_folder(tmp_path):
    """Results of somebody else's may call a budget anything."""
    runs = make_runs({("adam", "a"): [1, 2]}, budget="../../quick")
    files = figures.save_figures(runs, {}, None, tmp_path / "a" / "b", resamples=FEW)
    assert [path.name for path in files] == ["quick_ppo_returns.png"]
    assert files[0].parent == tmp_path / "a" / "b"


def test_a_board_of_very_many_has_no_figures_of_single_environments(tmp_path):
    runs = make_runs(RESULTS, curves=True)
    with pytest.warns(UserWarning, match="curves are too many to be told apart"):
        files = figures.save_figures(runs, SCALES, None, tmp_path, resamples=FEW, most_cells=3)
    assert [path.name for path in files] == [f"quick_ppo_{name}.png" for name in FIGURES[2:]]


def test_learning_curves_draw_a_panel_an_environment_and_one_legend():
    runs = make_runs(RESULTS, curves=True)
    figure = figures.learning_curves(made_board(runs), runs, SCALES, FEW)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    assert [axis.get_legend() for axis in figure.axes] == [None, None]
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["lion", "adam", "sgd", "Adam (stored)", "random policy"]
    first = figure.axes[0].lines[0]  # lion in a: mean 12.5 at the end, grown in proportion to env steps
    assert first.get_xdata().tolist() == [250, 500, 750, 1000]
    assert first.get_ydata().tolist() == pytest.approx([NAN, 6.25, 9.375, 12.5], nan_ok=True)
    levels = [line.get_ydata()[0] for line in figure.axes[0].lines[3:]]
    assert levels == [10, 0]


@pytest.mark.parametrize("count", [2, 7, 25])
def test_a_legend_of_many_long_names_fits_below_the_panels(count):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure, axes = style.panel_grid(2, (3.6, 2.4))
    names = [f"schedule-free-adamw-{number:02d} (one setting)" for number in range(count)]
    style.figure_legend(figure, {name: axes[0].plot([0, 1], label=name)[0] for name in names})
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    shown = legend.get_window_extent(canvas.get_renderer())
    assert figure.bbox.x0 <= shown.x0 < shown.x1 <= figure.bbox.x1
    assert legend._ncols >= min(2, count)


def test_a_diverged_curve_goes_on_with_the_random_policys_return():
    runs = make_runs({("adam", "a"): [8, None]}, curves=True)
    figure = figures.learning_curves(made_board(runs, make_returns(a=(2, 12))), runs, {}, FEW)
    mean = figure.axes[0].lines[0].get_ydata().tolist()
    # 0.5 at step 500 before it diverged, then random's 2; the other has 4, 6, 8.
    assert mean == pytest.approx([NAN, 2.25, 4.0, 5.0], nan_ok=True)


def test_a_seed_that_left_no_curve_still_counts():
    runs = make_runs({("adam", "a"): [None, 8]}, curves=True)
    runs = dataclasses.replace(runs, curves=runs.curves[runs.curves["seed"] == 1])
    figure = figures.learning_curves(made_board(runs, make_returns(a=(2, 12))), runs, {}, FEW)
    assert figure.axes[0].lines[0].get_ydata().tolist() == pytest.approx([2, 3, 4, 5])


def test_curves_of_many_points_are_smoothed_lightly():
    """160 points: a running mean over 5; a straight line stays, ends and gaps too."""
    line = np.tile(np.arange(160.0), (2, 1))
    line[1, :10] = NAN
    found = curves.smoothed(line)
    assert found[0, 2:-2] == pytest.approx(line[0, 2:-2])
    assert (found[0, 0], found[0, -1]) == (1, 158)  # the mean of 0, 1, 2, and of 157, 158, 159
    assert np.isnan(found[1, :10]).all()
    assert found[1, 10] == 11  # of 10, 11, 12
    spike = np.zeros((1, 160))
    spike[0, 80] = 5.0
    assert curves.smoothed(spike)[0, 77:84].tolist() == [0, 1, 1, 1, 1, 1, 0]
    few = np.random.default_rng(0).normal(size=(3, 79))
    assert curves.smoothed(few) == pytest.approx(few)


def with_diagnosis(runs, **diagnostics):
    """The runs with diagnostics at four points, as a function of (optimizer, seed, env steps)."""
    rows = [
        {**{name: row[name] for name in schema.LABELS}, "seed": row["seed"], "env_steps": steps}
        | {name: value(row["optimizer"], row["seed"], steps) for name, value in diagnostics.items()}
        for _, row in runs.scores.iterrows()
        for steps in (250, 500, 750, 1000)
    ]
    return dataclasses.replace(runs, diagnosis=pd.DataFrame(rows))


def test_diagnosis_is_a_figure_an_environment_with_a_panel_a_diagnostic(tmp_path):
    runs = with_diagnosis(
        make_runs({("adam", "a/b"): [1, 2], ("sgd", "a/b"): [3, 4], ("adam", "c"): [1, 2]}),
        policy_kl=lambda optimizer, seed, steps: (seed + 1) * 10.0 ** -(steps / 250),
        update_cosine=lambda optimizer, seed, steps: np.inf if steps == 250 else 0.1 * seed,
        silent=lambda optimizer, seed, steps: NAN,
    )
    runs = dataclasses.replace(runs, diagnosis=runs.diagnosis[runs.diagnosis["environment"] == "a/b"])
    board = made_board(runs, {})
    figure = figures.diagnosis(curves.diagnosis(board, runs, FEW)["a/b"], board, "a/b")
    kl, cosine = figure.axes
    assert (kl.get_title(), cosine.get_title()) == ("policy kl", "update cosine")
    assert (kl.get_yscale(), cosine.get_yscale()) == ("log", "linear")
    assert kl.lines[0].get_ydata().tolist() == pytest.approx([0.15, 0.015, 0.0015, 0.00015])
    assert cosine.lines[0].get_ydata().tolist() == pytest.approx([NAN, 0.05, 0.05, 0.05], nan_ok=True)
    assert len(kl.collections) == 2  # intervals
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["adam", "sgd"]
    assert list(curves.diagnosis(made_board(runs, {}), runs, FEW)) == ["a/b"]
    names = [path.name for path in figures.save_figures(runs, {}, None, tmp_path, resamples=FEW)]
    assert [name for name in names if "diagnosis" in name] == ["quick_ppo_diagnosis_a-b.png"]


def test_a_study_names_its_figures(tmp_path):
    runs = make_runs(RESULTS)
    ranked = leaderboard(runs, SCALES, resamples=FEW, title="my study/2")
    files = figures.save_figures(runs, SCALES, None, tmp_path, resamples=FEW, ranked=ranked)
    assert [path.name for path in files] == [
        f"my-study-2_quick_ppo_{n}.png" for n in ("returns", "aggregates", "profiles")
    ]
    ranked = leaderboard(runs, SCALES, resamples=FEW, title="quick")
    files = figures.save_figures(runs, SCALES, None, tmp_path, resamples=FEW, ranked=ranked)
    assert files[0].name == "quick_ppo_returns.png"


@pytest.mark.slow
def test_another_algorithm_draws_into_files_of_its_own(tmp_path):
    for algorithm in ("ppo", "pqn"):
        ranked = leaderboard(make_runs(RESULTS, algorithm=algorithm), SCALES, resamples=FEW, title="mine")
        figures.save_figures(make_runs(RESULTS), SCALES, None, tmp_path, resamples=FEW, ranked=ranked)
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"mine_quick_{algorithm}_returns.png" for algorithm in ("ppo", "pqn")} <= names


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
    assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx(
        tuple(board.table.loc[0, ["iqm_low", "iqm_high"]])
    )


def test_incomplete_optimizers_are_in_returns_but_not_in_aggregates():
    board = made_board(make_runs({key: value for key, value in RESULTS.items() if key != ("lion", "b")}))
    assert len(figures.aggregate_intervals(board).axes[0].get_yticklabels()) == 2
    assert len(figures.return_intervals(board).axes[0].get_yticklabels()) == 3
    shown = [text.get_text() for text in figures.profiles(board, FEW).legends[0].get_texts()]
    assert shown == ["adam", "sgd"]


def test_the_look_belongs_to_the_optimizer():
    few, more = style.styles(["adam", "signed_momentum"]), style.styles(["adam", "lion", "signed_momentum", "open"])
    assert few["adam"] == more["adam"]
    assert few["signed_momentum"] == more["signed_momentum"]
    many = style.styles([f"optimizer{i}" for i in range(40)] + ["adam"])
    assert len({(look["color"], str(look["linestyle"]), look["marker"]) for look in many.values()}) == 41
    assert many["adam"] == few["adam"]


def test_without_colors_optimizers_are_told_apart_too():
    looks = style.styles([f"optimizer{i}" for i in range(40)])
    assert len({(str(look["linestyle"]), look["marker"]) for look in looks.values()}) == 40


def lab(color):
    """CIELAB of a hex color, in which distances are about as large as they look; 2 is just seen."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    rgb = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = to_xyz @ rgb / [0.9505, 1.0, 1.089]
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colors_are_far_apart():
    assert np.linalg.norm(lab("#009E73") - lab("#44AA99")) < 25  # what lion and lpo once had
    assert min(np.linalg.norm(lab(a) - lab(b)) for a, b in itertools.combinations(style.PALETTE, 2)) > 25
    looks = style.styles(["lion", "lpo"])
    assert looks["lion"]["color"] != looks["lpo"]["color"]


def test_lines_have_markers_and_legends_short_names():
    names = {"adam": "adam", "signed:signed_momentum#cddb1c18": "signed_momentum"}
    runs = make_runs({(name, "a"): [8, 9] for name in names}, curves=True)
    figure = figures.learning_curves(made_board(runs), runs, {}, FEW)
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == [*sorted(names.values()), "random policy"]
    assert [line.get_marker() not in ("", "None") for line in figure.axes[0].lines] == [True, True, False]  # its level


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["signed:signed_momentum#cddb1c18", "adam"], ["signed_momentum", "adam"]),
        (["my.package:rule:learning_rate=0.1#cddb1c18+dpo"], ["rule:learning_rate=0.1+dpo"]),
        (["adam:learning_rate=0.001", "open@weights", "optax.contrib.muon"],) * 2,
        (["a:rule#111111aa", "b:rule#222222bb", "c:other#333333cc"], ["a:rule#111111aa", "b:rule#222222bb", "other"]),
        (["mine:adam", "adam"], ["mine:adam", "adam"]),
    ],
)
def test_aliases_are_short_and_unique(names, short):
    assert style.aliases(names) == dict(zip(names, short, strict=True))


@pytest.mark.parametrize(
    ("names", "chosen", "short"),
    [
        (["my:rule#cddb1c18", "adam"], {"my:rule": "mine"}, ["mine", "adam"]),
        (["my:rule#cddb1c18", "adam"], {"my:rule#cddb1c18": "mine", "lion": "not there"}, ["mine", "adam"]),
        (["lion (tuned)", "lion (default)"], {"lion": "L", "lion (default)": "plain"}, ["L (tuned)", "plain"]),
        (["adam:learning_rate=0.1", "adam"], {"adam:learning_rate=0.1": "hot"}, ["hot", "adam"]),
        (["a:rule", "b:rule", "c:other"], {"a:rule": "A", "c:other": "rule"}, ["A", "b:rule", "rule"]),
    ],
)
def test_aliases_of_ones_own_come_first(names, chosen, short):
    assert style.aliases(names, chosen) == dict(zip(names, short, strict=True))
    assert len(set(short)) == len(short)


def test_no_two_rows_are_called_alike():
    with pytest.raises(UserError, match="alias 'lion' would name adam and lion"):
        style.aliases(["adam", "lion"], {"adam": "lion"})
    with pytest.raises(UserError, match="alias 'x' would name"):
        leaderboard(make_runs(RESULTS), SCALES, resamples=FEW, names={"adam": "x", "lion": "x"})
    with pytest.raises(UserError, match=r"nothing here is called 'lino'\. Did you mean"):
        style.check_aliases(["adam", "lion#cddb1c18"], {"lino": "x"})


def test_figures_are_the_same_bytes_in_every_form(tmp_path):
    board = made_board(make_runs(RESULTS))
    for name in ("one", "two"):
        style.save(figures.aggregate_intervals(board), tmp_path / name, style.FORMATS)
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for form, start in starts.items():
        data = (tmp_path / f"one.{form}").read_bytes()
        assert data.startswith(start)
        assert data == (tmp_path / f"two.{form}").read_bytes()


def test_a_long_title_is_folded_where_it_may_break() -> None:
    assert style.folded("breakout", 24) == ["breakout"]
    assert style.folded("gridworld/rand_dense[num_envs=16]", 24) == ["gridworld/rand_dense", "[num_envs=16]"]
    assert style.folded("breakout[hidden=16x16,num_envs=16]", 24) == ["breakout[hidden=16x16,", "num_envs=16]"]


@given(st.text("ab [],", max_size=60), st.integers(1, 30))
def test_folding_loses_nothing_and_only_what_cannot_break_is_too_long(title: str, width: int) -> None:
    lines = style.folded(title, width)
    assert "".join(lines).replace(" ", "") == title.replace(" ", "")
    for line in lines:
        assert len(line) <= width or sum(map(bool, re.split(r"(?<=[, ])|(?=\[)", line))) == 1


def test_titles_of_neighbors_do_not_meet() -> None:
    figure, axes = style.panel_grid(3, (3.6, 2.4))
    for axis, name in zip(axes, ("asterix", "breakout", "spaceinvaders"), strict=True):
        style.finish_axis(axis, f"{name}[hidden=16x16,num_envs=16]", "env steps")
    figure.canvas.draw()
    boxes = [axis.title.get_window_extent() for axis in axes]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
