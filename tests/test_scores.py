"""Rows, reference returns, normalization and aggregates, against answers worked out by hand."""

import dataclasses
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from open_bench.errors import UserError
from open_bench.evaluation import bootstrap as aggregate
from open_bench.evaluation.baseline_returns import (
    BaselineReturn,
    EnvironmentReturns,
    ReturnInterval,
    load_references,
    read_returns,
    write_returns,
)
from open_bench.evaluation.boards import boards
from open_bench.evaluation.bootstrap import ScoreMatrix
from open_bench.evaluation.metrics import Scale, normalize, scale_of
from open_bench.evaluation.schema import Runs, validate

NAN = float("nan")


def make_runs(results: dict, curves: bool = False, **experiment: object) -> Runs:
    """Runs from {(optimizer, environment): [final returns]}; a None has diverged. ``experiment`` overrides experiment columns."""
    experiments, scores, points = [], [], []
    for (optimizer, environment), returns in results.items():
        row = {
            "experiment": f"{environment}-{optimizer}",
            "environment": environment,
            "family": "gymnax",
            "budget": "quick",
            "env_steps": 1000,
            "optimizer": optimizer,
            "hyperparameters": "{}",
            "hyperparameter_origin": "default",
            "theta": "",
            "root_seed": 0,
            "vmap_size": 1,
            "protocol": 1,
            "steps_per_second": 100.0,
            "run_seconds": 10.0 * len(returns),
            "compile_seconds": 5.0,
            "hardware": "2 cores",
            "revision": "abc",
        } | experiment
        row["experiment"] += "".join(f"-{key}{value}" for key, value in experiment.items())
        experiments.append(row)
        same = {key: row[key] for key in ("experiment", "environment", "budget", "optimizer")}
        for seed, value in enumerate(returns):
            final = NAN if value is None else float(value)
            mean, diverged = final / 2, value is None
            scores.append(
                same
                | {"seed": seed, "final_return": final, "mean_return": mean}
                | {"diverged": diverged, "env_steps": 1000}
            )
            for step in (250, 500, 750, 1000) if curves else ():
                known = step > 250 and not (diverged and step > 500)
                episode = (final if not diverged else 1.0) * step / 1000 if known else NAN
                points.append(same | {"seed": seed, "env_steps": step, "episode_return": episode})
    frame = Runs.empty()
    return Runs(
        pd.DataFrame(experiments, columns=list(frame.experiments)),
        pd.DataFrame(scores, columns=list(frame.scores)),
        pd.DataFrame(points, columns=list(frame.curves)) if points else frame.curves,
    )


def join(*several: Runs) -> Runs:
    """All rows together."""
    return Runs(
        *(pd.concat([getattr(r, n) for r in several], ignore_index=True) for n in ("experiments", "scores", "curves"))
    )


def shuffled(runs: Runs, root_seed: int) -> Runs:
    """The same rows in another order, with other index labels."""
    return Runs(
        *(
            getattr(runs, n).sample(frac=1, random_state=root_seed + i).reset_index(drop=True)
            for i, n in enumerate(("experiments", "scores", "curves"))
        )
    )


def measured(mean: float, optimizer: str = "", spread: float = 1.0, **fields: object) -> BaselineReturn:
    """A measured baseline whose mean_return is half its final_return."""
    final = ReturnInterval(mean, mean - spread, mean + spread)
    half = ReturnInterval(mean / 2, (mean - spread) / 2, (mean + spread) / 2)
    values = {"seeds": 8, "env_steps": 1000, "revision": "abc", "optimizer": optimizer} | fields
    return BaselineReturn(final, half, **values)


def make_references(**scales: tuple[float, float]) -> dict[str, EnvironmentReturns]:
    """References at budget quick from environment=(random, reference)."""
    return {
        name: EnvironmentReturns(name, measured(random), {"quick": measured(reference, "adam")})
        for name, (random, reference) in scales.items()
    }


def matrix(values: object) -> ScoreMatrix:
    """Labelled runs × tasks."""
    array = np.asarray(values, dtype=float)
    return ScoreMatrix(array, tuple(range(array.shape[0])), tuple(f"e{i}" for i in range(array.shape[1])))


# --- importing ---------------------------------------------------------------------------------------------------


def test_scores_and_report_never_import_jax_or_pyplot(tmp_path):
    """Also not while they work: rliable and matplotlib are imported late."""
    code = """
import sys
import open_bench.evaluation.bootstrap, open_bench.evaluation.boards, open_bench.files, open_bench.evaluation.metrics
import open_bench.evaluation.baseline_returns, open_bench.evaluation.schema
import open_bench.evaluation.figures, open_bench.evaluation.leaderboard, open_bench.evaluation.tables
heavy = {"matplotlib", "rliable", "scipy", "rich"} & set(sys.modules)
assert not heavy, heavy
sys.path.insert(0, "tests")
from test_scores import make_references, make_runs
import matplotlib
settings = [name for name in matplotlib.rcParams if name != "backend"]  # looking that one up imports pyplot
before = [matplotlib.rcParams[name] for name in settings]
runs = make_runs({("adam", "a"): [3, 4, 5], ("lion", "a"): [4, 5, 6]}, curves=True)
from open_bench.evaluation.figures import save_figures
files = save_figures(runs, make_references(a=(0, 5)), "quick", sys.argv[1], resamples=50)
assert len(files) == 4, files
assert [matplotlib.rcParams[name] for name in settings] == before
loaded = {"jax", "jaxlib", "flax", "matplotlib.pyplot"} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- rows --------------------------------------------------------------------------------------------------------


def test_empty_runs_have_the_columns_and_are_valid():
    assert validate(Runs.empty()).budgets == ()


def test_select_keeps_scores_and_curves_of_the_chosen_experiments():
    runs = make_runs({("adam", "a"): [1, 2], ("adam", "b"): [3], ("lion", "a"): [4]}, curves=True)
    chosen = runs.select(environment="a", optimizer=["lion", "sgd"])
    assert list(chosen.experiments["experiment"]) == ["a-lion"]
    assert list(chosen.scores["final_return"]) == [4.0]
    assert set(chosen.curves["experiment"]) == {"a-lion"}
    with pytest.raises(KeyError, match="no column 'enviroment'"):
        runs.select(enviroment="a")


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("experiments", lambda f: f.drop(columns="vmap_size"), "experiments: columns are missing: vmap_size"),
        ("experiments", lambda f: pd.concat([f, f]), "experiment names must be unique"),
        ("experiments", lambda f: f.assign(hyperparameter_origin="guess"), "hyperparameter_origin must be one of"),
        ("experiments", lambda f: f.assign(protocol="1"), "column 'protocol' must hold integer"),
        ("scores", lambda f: pd.concat([f, f]), "a seed appears twice"),
        ("scores", lambda f: f.assign(diverged="False"), "column 'diverged' must hold flag"),
        ("scores", lambda f: f.assign(final_return=np.inf), "final_return must be finite"),
        ("scores", lambda f: f.assign(experiment="other"), "belong to no experiment"),
        ("scores", lambda f: f.assign(budget="full"), "budget is not that of the experiment"),
        ("curves", lambda f: f.assign(optimizer="lion"), "optimizer is not that of the experiment"),
        ("curves", lambda f: pd.concat([f, f]), "a point appears twice"),
    ],
)
def test_validate_says_what_is_wrong(table, change, message):
    runs = make_runs({("adam", "a"): [1, 2]}, curves=True)
    assert validate(runs) is runs
    with pytest.raises(ValueError, match=message):
        validate(dataclasses.replace(runs, **{table: change(getattr(runs, table))}))


# --- reference returns -------------------------------------------------------------------------------------------


def published(mean: float = 50.0822) -> BaselineReturn:
    return BaselineReturn(
        ReturnInterval(mean),
        origin="published",
        optimizer="adam",
        hyperparameters={"learning_rate": 0.01, "nesterov": False, "steps": 3, "note": 'a "b"\n'},
        source="Goldie et al. 2024",
    )


def test_returns_survive_being_written_and_the_bytes_are_stable(tmp_path):
    specs = {"steps-500000": measured(21.25, "adam"), "full": published(), "odd name": measured(1e-7, "adam")}
    returns = EnvironmentReturns("breakout", measured(0.5), specs)
    path = write_returns(tmp_path, returns)
    first = path.read_bytes()
    assert path == tmp_path / "breakout.toml"
    assert read_returns(tmp_path, "breakout") == returns
    write_returns(tmp_path, dataclasses.replace(returns, reference=dict(reversed(specs.items()))))
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["breakout.toml"]


def test_the_documented_format_is_the_one_that_is_read(tmp_path):
    """The example in the module's docstring is a valid file."""
    from open_bench.evaluation import baseline_returns as references

    example = [line[4:] for line in references.__doc__.splitlines() if line.startswith("    ") or not line]
    (tmp_path / "breakout.toml").write_text("\n".join(example))
    returns = load_references(tmp_path)["breakout"]
    assert returns.random.final_return == ReturnInterval(0.52, 0.49, 0.55)
    assert returns.reference["full"].final_return == ReturnInterval(50.0822)
    assert returns.reference["quick"].hyperparameters == {"learning_rate": 0.01, "b1": 0.9, "b2": 0.99}


def test_load_references_finds_nested_names_and_leaves_out_the_unknown(tmp_path):
    write_returns(tmp_path, EnvironmentReturns("brax/ant", measured(1.0)))
    assert list(load_references(tmp_path)) == ["brax/ant"]
    assert load_references(tmp_path, ["asterix"]) == {}
    with pytest.raises(UserError, match="no such folder"):
        load_references(tmp_path / "absent")
    with pytest.raises(ValueError, match="does not name an environment"):
        write_returns(tmp_path, EnvironmentReturns("../ant", measured(1.0)))


RANDOM = (
    "final_return = {mean = 1, low = 0, high = 2}\nmean_return = {mean = 1, low = 0, high = 2}\n"
    'seeds = 4\nenv_steps = 10\norigin = "measured"\nrevision = "abc"\n'
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('environment = "b"', "environment: is 'b'"),
        ("[random]\n" + RANDOM, "environment: is missing"),
        ('environment = "a"\nnote = 1', "note: unknown key"),
        ('environment = "a"\nrandom = 3', "random: must be a table"),
        ('environment = "a"\n[random]\n' + RANDOM.replace("env_steps = 10", "steps = 10"), "random.steps: unknown key"),
        ('environment = "a"\n[random]\n' + RANDOM.replace("low = 0", "low = 1.5"), "random.final_return: low ≤ mean"),
        ('environment = "a"\n[random]\n' + RANDOM.replace("mean = 1,", "mean = nan,"), "must be finite"),
        ('environment = "a"\n[random]\n' + RANDOM.replace("mean = 1,", 'mean = "1",'), "must be a number"),
        ('environment = "a"\n[random]\n' + RANDOM.replace(", high = 2", ""), "both low and high"),
        ('environment = "a"\n[random]\n' + RANDOM.replace("seeds = 4\n", ""), "needs seeds, env_steps"),
        ('environment = "a"\n[random]\n' + RANDOM.replace("= 4", "= 0"), "seeds must be a positive integer"),
        ('environment = "a"\n[random]\noptimizer = "sgd"\n' + RANDOM, "the random policy has no optimizer"),
        ('environment = "a"\n[reference.quick]\n' + RANDOM, "reference.quick: the optimizer is not named"),
        (
            'environment = "a"\n[reference.full]\noptimizer = "adam"\nfinal_return = {mean = 1}\norigin = "published"',
            "reference.full: a published return needs a source",
        ),
        (
            'environment = "a"\n[reference.full]\noptimizer = "adam"\nfinal_return = {mean = 1}\norigin = "measured"',
            "a measured final_return needs mean, low and high",
        ),
        ("environment = ", "Invalid value"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_file_and_key(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_returns(tmp_path, "a")
    assert "a.toml" in str(error.value)


def test_a_hyperparameter_that_toml_can_not_hold_is_refused(tmp_path):
    bad = dataclasses.replace(published(), hyperparameters={"b1": NAN})
    with pytest.raises(ValueError, match="b1: nan can not be written"):
        write_returns(tmp_path, EnvironmentReturns("a", None, {"full": bad}))
    assert not list(tmp_path.iterdir())


# --- normalization -----------------------------------------------------------------------------------------------


def test_normalise_maps_random_to_0_and_the_reference_to_1():
    assert normalize(np.array([2.0, 12.0, 7.0, 0.0, 22.0]), Scale(2, 12)).tolist() == [0, 1, 0.5, -0.2, 2]
    with pytest.raises(ValueError, match="not above"):
        normalize(np.array([1.0]), Scale(2, 2))


@pytest.mark.parametrize(
    ("returns", "budget", "metric", "scale", "reason"),
    [
        (make_references(a=(2, 12))["a"], "quick", "final_return", Scale(2, 12), ""),
        (make_references(a=(2, 12))["a"], "quick", "mean_return", Scale(1, 6), ""),
        (make_references(a=(2, 12))["a"], "full", "final_return", None, "no reference"),
        (None, "quick", "final_return", None, "no reference"),
        (make_references(a=(2, 3))["a"], "quick", "final_return", None, "not above random's interval"),  # high end is 3
        (make_references(a=(2, 3.01))["a"], "quick", "final_return", Scale(2, 3.01), ""),
        (EnvironmentReturns("a", None, {"full": published()}), "full", "final_return", None, "random policy's return"),
        (EnvironmentReturns("a", measured(1), {"full": published()}), "full", "final_return", Scale(1, 50.0822), ""),
        (EnvironmentReturns("a", measured(1), {"full": published()}), "full", "mean_return", None, "for mean_return"),
    ],
)
def test_scale_or_the_reason_why_there_is_none(returns, budget, metric, scale, reason):
    found, why = scale_of(returns, budget, metric)
    assert found == scale
    assert reason in why
    assert bool(why) == (scale is None)


# --- aggregates --------------------------------------------------------------------------------------------------


def test_aggregates_of_a_known_matrix():
    """Runs × tasks [[0, 4], [1, 5], [2, 6], [3, 7]]: the middle half is 2, 3, 4, 5."""
    scores = matrix([[0, 4], [1, 5], [2, 6], [3, 7]])
    found = aggregate.aggregates(scores, resamples=200)
    assert tuple(found) == aggregate.AGGREGATES
    assert found["iqm"].value == pytest.approx(3.5)
    assert found["median"].value == pytest.approx(3.5)  # of the task means 1.5 and 5.5
    assert found["mean"].value == pytest.approx(3.5)
    assert found["optimality_gap"].value == pytest.approx(1 / 8)  # only the 0 falls short of 1
    assert aggregate.aggregates(matrix([[0, 9], [0, 9], [1, 9]]), 50)["iqm"].value == pytest.approx(4.75)


def test_aggregates_tell_their_axes_apart():
    """Median of task means, not of run means: a transposed matrix would give 4."""
    found = aggregate.aggregates(matrix([[0, 0, 9], [0, 3, 9], [0, 3, 9], [0, 6, 9]]), resamples=50)
    assert found["median"].value == pytest.approx(3.0)


def test_intervals_contain_the_estimate_and_have_vmap_size():
    rng = np.random.default_rng(3)
    for estimate in aggregate.aggregates(matrix(rng.normal(0.8, 0.3, (8, 4))), resamples=500).values():
        assert estimate.low < estimate.value < estimate.high
        assert 0.01 < estimate.high - estimate.low < 1


def test_the_interval_of_a_mean_is_that_of_statistics():
    """n = 100 values of variance 1: about ±1.96/10; and the stratified one over 4 tasks half of that."""
    values = np.random.default_rng(0).normal(size=(100, 4))
    values = (values - values.mean(0)) / values.std(0)
    one, four = aggregate.mean_estimate(matrix(values[:, :1])), aggregate.mean_estimate(matrix(values))
    assert (one.high - one.low) / 2 == pytest.approx(0.196, rel=0.1)
    assert (four.high - four.low) / 2 == pytest.approx(0.098, rel=0.1)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(60):
        estimate = aggregate.mean_estimate(matrix(rng.normal(2.0, 1.0, (20, 2))), resamples=200)
        covered += estimate.low <= 2.0 <= estimate.high
    assert 50 <= covered < 60  # 95 % of 60 is 57; percentile intervals of few samples are a little narrow


def test_environments_are_strata():
    """Resampling seeds within tasks leaves the difference between tasks out of the interval."""
    estimate = aggregate.mean_estimate(matrix([[0, 100], [0.1, 100.1], [0.2, 100.2]]), resamples=300)
    assert 0 < estimate.high - estimate.low <= 0.2 + 1e-9


def test_a_single_seed_has_no_interval():
    for estimate in aggregate.aggregates(matrix([[0.2, 0.8]])).values():
        assert np.isfinite(estimate.value)
        assert np.isnan([estimate.low, estimate.high]).all()


@pytest.mark.parametrize(
    ("values", "seeds", "environments", "message"),
    [
        (np.zeros((2, 5)), tuple(range(5)), ("a", "b"), "must be runs × tasks, here 5 seeds × 2"),  # transposed
        (np.zeros(5), tuple(range(5)), ("a",), "must be runs × tasks"),
        (np.zeros((5, 0)), tuple(range(5)), (), "at least one of each"),
        (np.zeros((2, 1)), (0, 0), ("a",), "must be unique"),
        (np.array([[NAN], [1.0]]), (0, 1), ("a",), "must be finite"),
    ],
)
def test_a_wrong_matrix_is_refused(values, seeds, environments, message):
    with pytest.raises(ValueError, match=message):
        ScoreMatrix(values, seeds, environments)


def test_numpys_global_generator_neither_matters_nor_changes():
    """rliable ignores its random_state."""
    scores = matrix(np.random.default_rng(1).normal(size=(6, 3)))
    np.random.seed(1)  # noqa: NPY002 - that generator is what the test is about
    before = np.random.get_state()  # noqa: NPY002
    first = aggregate.aggregates(scores, resamples=50)
    np.testing.assert_equal(np.random.get_state(), before)  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert aggregate.aggregates(scores, resamples=50) == first


def test_win_rate_is_rliables_probability_of_improvement():
    from rliable import metrics

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, (5, 3)).astype(float), rng.integers(0, 4, (7, 3)).astype(float)  # many ties
    assert aggregate.win_rate(x, y)[0] == pytest.approx(metrics.probability_of_improvement(x, y))


def test_probability_of_improvement_known_answers():
    low, high = matrix([[0, 1], [1, 2], [2, 3]]), matrix([[10, 11], [12, 13]])
    assert aggregate.probability_of_improvement(high, low, 100) == (1, 1, 1)
    assert aggregate.probability_of_improvement(low, low, 100).value == 0.5
    mixed = aggregate.probability_of_improvement(matrix([[1, 0], [3, 0]]), matrix([[0, 1], [2, 1]]), 100)
    assert mixed.value == pytest.approx((0.75 + 0) / 2)
    assert mixed.low < mixed.value < mixed.high
    with pytest.raises(ValueError, match="environments differ"):
        aggregate.probability_of_improvement(low, matrix([[1], [2]]))


def test_paired_differences_cancel_what_the_seed_does():
    """X = Y + 1 in every pair: exactly 1, however much seeds differ; and only shared seeds count."""
    y = np.random.default_rng(0).normal(0, 50, (6, 2)).round()
    x = ScoreMatrix(np.vstack([y[1:] + 1, [[1e6, 1e6]]]), (1, 2, 3, 4, 5, 9), ("e0", "e1"))
    assert aggregate.paired_difference(x, matrix(y), 100) == (1, 1, 1)
    separate = aggregate.mean_estimate(matrix(y), 100)
    assert separate.high - separate.low > 10
    with pytest.raises(ValueError, match="nothing is paired"):
        aggregate.paired_difference(ScoreMatrix(y[:1], (7,), ("e0", "e1")), matrix(y))


def test_performance_profile_known_answer():
    from rliable import library

    scores = matrix([[0, 1], [1, 2], [2, 3]])
    thresholds = np.array([-1.0, 0.0, 1.0, 2.5, 3.0])
    profile = aggregate.performance_profile(scores, thresholds, resamples=200)
    assert profile.value.tolist() == pytest.approx([1, 5 / 6, 3 / 6, 1 / 6, 0])
    assert profile.value.tolist() == pytest.approx(library.score_distributions(scores.values, thresholds).tolist())
    assert (profile.low <= profile.value).all()
    assert (profile.value <= profile.high).all()
    assert profile.low[2] < profile.high[2]


matrices = hnp.arrays(float, st.tuples(st.integers(2, 5), st.integers(1, 4)), elements=st.floats(-10, 10))


@settings(max_examples=15, deadline=None)
@given(matrices, st.floats(0.1, 10), st.floats(-10, 10))
def test_location_estimates_follow_an_affine_change_of_scale(values, scale, shift):
    before = aggregate.aggregates(matrix(values), resamples=30)
    after = aggregate.aggregates(matrix(values * scale + shift), resamples=30)
    for name in ("iqm", "median", "mean"):
        assert np.asarray(after[name]) == pytest.approx(np.asarray(before[name]) * scale + shift, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(matrices, st.randoms(use_true_random=False))
def test_the_order_of_seeds_and_environments_does_not_change_values(values, random):
    rows, columns = list(range(values.shape[0])), list(range(values.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    before = aggregate.aggregates(matrix(values), resamples=10)
    after = aggregate.aggregates(matrix(values[rows][:, columns]), resamples=10)
    for name in aggregate.AGGREGATES:
        assert after[name].value == pytest.approx(before[name].value, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(matrices, st.floats(-100, 100), st.floats(0.01, 1000))
def test_scores_do_not_depend_on_the_unit_of_the_return(values, shift, unit):
    """Returns, random and reference in another unit: the same normalized scores."""
    scale = Scale(-3.0, 7.0)
    other = Scale(*(unit * end + shift for end in scale))
    assert normalize(values * unit + shift, other) == pytest.approx(normalize(values, scale), abs=1e-6)


# --- boards ------------------------------------------------------------------------------------------------------


def test_a_diverged_seed_scores_0_and_is_counted():
    runs = make_runs({("adam", "a"): [12, None, 7]})
    (board,) = boards(runs, make_references(a=(2, 12)))
    assert board.rows["value"].tolist() == [12, 2, 7]
    assert board.rows["score"].tolist() == [1, 0, 0.5]
    assert board.rows["diverged"].sum() == 1
    assert board.notes == ("a at quick: 1 of adam diverged, counted with the random policy's return, 2",)


def test_what_a_diverged_seed_reached_before_does_not_count():
    runs = make_runs({("adam", "a"): [12, None]})
    scores = runs.scores.assign(mean_return=[6.0, 100.0])
    (board,) = boards(dataclasses.replace(runs, scores=scores), make_references(a=(2, 12)), metric="mean_return")
    assert board.rows["score"].tolist() == [1, 0]


def test_all_diverged_is_a_score_of_0_not_a_missing_one():
    (board,) = boards(make_runs({("adam", "a"): [None, None]}), make_references(a=(2, 12)))
    assert board.normalized == ("a",)
    assert board.matrix("adam", ("a",)).values.tolist() == [[0], [0]]


def test_without_a_random_return_the_lowest_return_stands_in():
    runs = make_runs({("adam", "a"): [12, None], ("lion", "a"): [3, 5]})
    (board,) = boards(runs, {})
    assert board.rows["value"].tolist() == [12, 3, 3, 5]
    assert "a at quick: no reference; raw returns only" in board.notes
    assert any("the lowest return of any seed, 3" in note for note in board.notes)
    assert board.normalized == ()


def test_a_seed_without_an_episode_counts_as_random():
    runs = make_runs({("adam", "a"): [12, NAN], ("lion", "a"): [7, 7]})
    (board,) = boards(runs, make_references(a=(2, 12)))
    assert board.rows["score"].tolist() == [1, 0, 0.5, 0.5]
    assert board.rows["unfinished"].tolist() == [False, True, False, False]
    assert any("1 of adam finished no episode" in note for note in board.notes)


def test_an_environment_in_which_nothing_finished_is_left_out_and_noted():
    runs = make_runs({("adam", "a"): [NAN, NAN], ("lion", "a"): [NAN, NAN], ("adam", "b"): [12, 7]})
    (board,) = boards(runs, make_references(a=(2, 12), b=(2, 12)))
    assert (board.environments, board.observed, board.normalized) == (("a", "b"), ("b",), ("b",))
    assert "a at quick: no episode finished within the budget; left out of every aggregate" in board.notes


@pytest.mark.parametrize("column", ["budget", "protocol", "root_seed"])
def test_what_does_not_compare_is_never_on_one_board(column):
    other = {"budget": "full", "protocol": 2, "root_seed": 1}[column]
    runs = join(make_runs({("adam", "a"): [1, 2]}), make_runs({("adam", "a"): [100, 200]}, **{column: other}))
    found = boards(runs, {})
    assert sorted(sorted(board.rows["value"]) for board in found) == [[1, 2], [100, 200]]
    assert {getattr(board, column) for board in found} == {
        other,
        getattr(boards(make_runs({("adam", "a"): [1]}), {})[0], column),
    }


def test_a_budget_can_be_chosen():
    runs = join(make_runs({("adam", "a"): [1]}), make_runs({("adam", "a"): [9]}, budget="full"))
    (board,) = boards(runs, {}, "full")
    assert board.rows["value"].tolist() == [9]
    with pytest.raises(UserError, match=r"no runs at budget 'fulll'; there are full, quick\. Did you mean full"):
        boards(runs, {}, "fulll")


def test_two_cells_for_one_place_are_refused():
    runs = join(make_runs({("adam", "a"): [1, 2]}), make_runs({("adam", "a"): [3]}, hyperparameters='{"b1": 0.5}'))
    with pytest.raises(
        UserError, match=r"adam has 2 experiments in a at quick .* differ in hyperparameters: move one away"
    ):
        boards(runs, {})
    (board,) = boards(runs.select(hyperparameters="{}"), {})
    assert board.rows["value"].tolist() == [1, 2]


def test_two_origins_of_hyperparameters_are_two_rows():
    runs = join(
        make_runs({("lion", "a"): [1], ("adam", "a"): [9]}, hyperparameters='{"b1": 0.5}'),
        make_runs({("lion", "a"): [2]}, hyperparameter_origin="tuned"),
    )
    (board,) = boards(runs, {})
    assert board.rows.set_index("optimizer")["value"].to_dict() == {"adam": 9, "lion (default)": 1, "lion (tuned)": 2}


def test_one_optimizer_at_two_widths_makes_two_boards():
    narrow = make_runs({("adam", "a"): [1, 2], ("lion", "a"): [3, 4]})
    found = boards(join(make_runs({("adam", "a"): [5, 6]}, vmap_size=4), narrow), {})
    assert [board.vmap_size for board in found] == [1, 4]
    assert [board.rows["value"].tolist() for board in found] == [[1, 2, 3, 4], [5, 6]]


def test_an_environment_with_two_lengths_or_settings_is_refused():
    runs = make_runs({("adam", "a"): [1], ("lion", "a"): [2]})
    longer = dataclasses.replace(runs, experiments=runs.experiments.assign(env_steps=[1000, 2000]))
    with pytest.raises(UserError, match="different env_steps \\(1000 and 2000\\)"):
        boards(longer, {})
    different = dataclasses.replace(runs, experiments=runs.experiments.assign(settings=["{}", '{"num_envs": 8}']))
    with pytest.raises(UserError, match="different settings"):
        boards(different, {})
    assert len(boards(runs, {})) == 1


def test_widths_and_hardware_may_mix_with_a_note():
    runs = join(make_runs({("adam", "a"): [1]}), make_runs({("lion", "a"): [2]}, vmap_size=8, hardware="H200"))
    (board,) = boards(runs, {})
    assert board.vmap_size is None
    assert any("different vmap_sizes (1, 8)" in note for note in board.notes)
    assert any("different hardware (2 cores, H200)" in note for note in board.notes)


def test_two_thetas_of_one_optimizer_are_two_rows_but_one_theta_per_environment_is_one():
    in_one = join(make_runs({("open", "a"): [1]}, theta="11aa"), make_runs({("open", "a"): [2]}, theta="22bb"))
    assert boards(in_one, {})[0].optimizers == ("open (11aa)", "open (22bb)")
    apart = join(make_runs({("open", "a"): [1]}, theta="11aa"), make_runs({("open", "b"): [2]}, theta="22bb"))
    assert boards(apart, {})[0].optimizers == ("open",)


def test_a_matrix_has_the_seeds_that_all_environments_share():
    runs = make_runs({("adam", "a"): [1, 2, 3], ("adam", "b"): [10, 20]})
    runs = dataclasses.replace(runs, scores=runs.scores.assign(seed=[0, 1, 2, 2, 1]))
    (board,) = boards(runs, {})
    found = board.matrix("adam", ("a", "b"), "value")
    assert (found.seeds, found.environments) == ((1, 2), ("a", "b"))
    assert found.values.tolist() == [[2, 20], [3, 10]]
    assert board.matrix("adam", ("a", "c"), "value") is None


def test_nothing_to_rank_and_unknown_metrics_are_errors():
    with pytest.raises(UserError, match="no runs to rank"):
        boards(Runs.empty(), {})
    with pytest.raises(UserError, match="metric must be one of final_return, mean_return"):
        boards(make_runs({("adam", "a"): [1]}), {}, metric="return")
