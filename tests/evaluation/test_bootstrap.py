"""Aggregates and intervals, against answers worked out by hand and against rliable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from synthetic import NAN, matrix

from open_bench.evaluation import bootstrap
from open_bench.evaluation.bootstrap import ScoreMatrix


def test_aggregates_of_a_known_matrix():
    """Runs × tasks [[0, 4], [1, 5], [2, 6], [3, 7]]: the middle half is 2, 3, 4, 5."""
    scores = matrix([[0, 4], [1, 5], [2, 6], [3, 7]])
    found = bootstrap.aggregates(scores, resamples=200)
    assert tuple(found) == bootstrap.AGGREGATES
    assert found["iqm"].value == pytest.approx(3.5)
    assert found["median"].value == pytest.approx(3.5)  # of the task means 1.5 and 5.5
    assert found["mean"].value == pytest.approx(3.5)
    assert found["optimality_gap"].value == pytest.approx(1 / 8)  # only the 0 falls short of 1
    assert bootstrap.aggregates(matrix([[0, 9], [0, 9], [1, 9]]), 50)["iqm"].value == pytest.approx(4.75)


def test_aggregates_tell_their_axes_apart():
    """Median of task means, not of run means: a transposed matrix would give 4."""
    found = bootstrap.aggregates(matrix([[0, 0, 9], [0, 3, 9], [0, 3, 9], [0, 6, 9]]), resamples=50)
    assert found["median"].value == pytest.approx(3.0)


def test_intervals_contain_the_estimate_and_have_vmap_size():
    rng = np.random.default_rng(3)
    for estimate in bootstrap.aggregates(matrix(rng.normal(0.8, 0.3, (8, 4))), resamples=500).values():
        assert estimate.low < estimate.value < estimate.high
        assert 0.01 < estimate.high - estimate.low < 1


def test_the_interval_of_a_mean_is_that_of_statistics():
    """n = 100 values of variance 1: about ±1.96/10; and the stratified one over 4 tasks half of that."""
    values = np.random.default_rng(0).normal(size=(100, 4))
    values = (values - values.mean(0)) / values.std(0)
    one, four = bootstrap.mean_estimate(matrix(values[:, :1])), bootstrap.mean_estimate(matrix(values))
    assert (one.high - one.low) / 2 == pytest.approx(0.196, rel=0.1)
    assert (four.high - four.low) / 2 == pytest.approx(0.098, rel=0.1)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(60):
        estimate = bootstrap.mean_estimate(matrix(rng.normal(2.0, 1.0, (20, 2))), resamples=200)
        covered += estimate.low <= 2.0 <= estimate.high
    assert 50 <= covered < 60  # 95 % of 60 is 57; percentile intervals of few samples are a little narrow


def test_environments_are_strata():
    """Resampling seeds within tasks leaves the difference between tasks out of the interval."""
    estimate = bootstrap.mean_estimate(matrix([[0, 100], [0.1, 100.1], [0.2, 100.2]]), resamples=300)
    assert 0 < estimate.high - estimate.low <= 0.2 + 1e-9


def test_a_single_seed_has_no_interval():
    for estimate in bootstrap.aggregates(matrix([[0.2, 0.8]])).values():
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
    scores = matrix(np.random.default_rng(1).normal(size=(6, 3)))
    np.random.seed(1)  # noqa: NPY002 - that generator is what the test is about
    before = np.random.get_state()  # noqa: NPY002
    first = bootstrap.aggregates(scores, resamples=50)
    np.testing.assert_equal(np.random.get_state(), before)  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert bootstrap.aggregates(scores, resamples=50) == first


def test_a_win_rate_is_rliables_probability_of_improvement():
    from rliable import metrics

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, (5, 3)).astype(float), rng.integers(0, 4, (7, 3)).astype(float)  # many ties
    found = bootstrap.probability_of_improvement(matrix(x), matrix(y), 10)
    assert found.value == pytest.approx(metrics.probability_of_improvement(x, y))


def test_probability_of_improvement_known_answers():
    low, high = matrix([[0, 1], [1, 2], [2, 3]]), matrix([[10, 11], [12, 13]])
    assert bootstrap.probability_of_improvement(high, low, 100) == (1, 1, 1)
    assert bootstrap.probability_of_improvement(low, low, 100).value == 0.5
    mixed = bootstrap.probability_of_improvement(matrix([[1, 0], [3, 0]]), matrix([[0, 1], [2, 1]]), 100)
    assert mixed.value == pytest.approx((0.75 + 0) / 2)
    assert mixed.low < mixed.value < mixed.high
    with pytest.raises(ValueError, match="environments differ"):
        bootstrap.probability_of_improvement(low, matrix([[1], [2]]))


@pytest.mark.parametrize("seeds", [1, 2, 5, 8, 17, 130])
def test_many_paired_differences_are_each_ones_to_the_bit(seeds):
    def one(shift, environments=("e",)):
        values = np.random.default_rng(shift).normal(shift, 10.0**shift, (seeds, len(environments)))
        return ScoreMatrix(values, tuple(range(shift, seeds + shift)), environments)

    pairs = [(one(shift), one(other)) for shift in range(4) for other in range(4)] + [(None, one(1)), (one(1), None)]
    each = [bootstrap.paired_difference(*pair) for pair in pairs]
    np.testing.assert_array_equal(np.array(bootstrap.paired_differences(pairs)), np.array(each))


def test_paired_differences_cancel_what_the_seed_does():
    """X = Y + 1 in every pair: exactly 1, however much seeds differ; and only shared seeds count."""
    y = np.random.default_rng(0).normal(0, 50, (6, 2)).round()
    x = ScoreMatrix(np.vstack([y[1:] + 1, [[1e6, 1e6]]]), (1, 2, 3, 4, 5, 9), ("e0", "e1"))
    assert bootstrap.paired_difference(x, matrix(y)) == (1, 1, 1)
    separate = bootstrap.mean_estimate(matrix(y), 100)
    assert separate.high - separate.low > 10
    strangers = bootstrap.paired_difference(ScoreMatrix(y[:1], (7,), ("e0", "e1")), matrix(y))
    assert np.isnan(strangers).all()


def rliables(values, functions, resamples):
    """(value, low, high), each (functions,), as rliable computes them; it draws from numpy's global generator."""
    from rliable import library

    np.random.seed(2407)  # noqa: NPY002
    value, interval = library.get_interval_estimates(
        {"x": values}, lambda x: np.array([f(x) for f in functions]), reps=resamples, confidence_interval_size=0.95
    )
    return np.array([value["x"], *interval["x"]])


@pytest.mark.parametrize(("seeds", "tasks"), [(2, 1), (3, 4), (8, 2), (16, 6), (33, 20)])  # the last in several chunks
def test_vectorized_intervals_are_rliables(seeds, tasks):
    """On the same resamples: the aggregates, a mean, and each point of a curve taken alone."""
    from rliable import metrics

    values = np.random.default_rng(seeds).normal(1.0, 0.5, (seeds, tasks)).round(1)  # with ties
    functions = [getattr(metrics, f"aggregate_{name}") for name in bootstrap.AGGREGATES]
    found = np.array(list(bootstrap.aggregates(matrix(values), 200).values())).T
    assert found == pytest.approx(rliables(values, functions, 200), rel=1e-12, abs=1e-14)
    assert bootstrap.iqm_estimate(matrix(values), 200) == pytest.approx(found[:, 0], rel=1e-12)
    mean = rliables(values, [np.mean], 200)[:, 0]
    assert bootstrap.mean_estimate(matrix(values), 200) == pytest.approx(mean, rel=1e-12)
    for point, found in enumerate(zip(*bootstrap.mean_bands(values, 200), strict=True)):
        assert found == pytest.approx(rliables(values[:, [point]], [np.mean], 200)[:, 0], rel=1e-12)


def test_resamples_that_are_remembered_are_those_that_are_too_many_to_be():
    shapes = [(40, 60), (7, 60)]
    few, many = (list(bootstrap.resampled(shapes, number)) for number in (500, 1000))
    assert len(few) > 1
    for one, other in zip(zip(*few, strict=True), zip(*many, strict=True), strict=True):
        assert (np.concatenate(one) == np.concatenate(other)[:500]).all()


def test_two_matrices_are_drawn_independently():
    """The win rate and the gap on each resample, by a loop over the seeds that it draws."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(5, 2)), rng.normal(size=(3, 2))
    draws = [np.random.RandomState(2407 + i).choice(len(v), (40, *v.shape)) for i, v in enumerate((x, y))]
    pairs = [(x[i, np.arange(2)], y[j, np.arange(2)]) for i, j in zip(*draws, strict=True)]
    wins = [np.mean(a[:, None] > b[None]) for a, b in pairs]
    found = bootstrap.probability_of_improvement(matrix(x), matrix(y), 40)
    assert found == pytest.approx([np.mean(x[:, None] > y[None]), *np.quantile(wins, [0.025, 0.975])])


# --- paired differences ------------------------------------------------------------------------------------------


def test_the_interval_of_a_difference_is_students():
    from scipy import stats

    for values in (np.random.default_rng(1).normal(2.0, 3.0, (10, 1)), np.array([[0.0], [0], [0], [5]])):
        expected = stats.ttest_1samp(values[:, 0], 0.0)
        assert bootstrap.difference_interval(values)[1:] == pytest.approx(tuple(expected.confidence_interval(0.95)))
        assert bootstrap.p_value(values) == pytest.approx(expected.pvalue)


def test_environments_of_other_noise_cost_degrees_of_freedom():
    """Two environments: Welch's test of the means of x and −y is that of their sum."""
    from scipy import stats

    rng = np.random.default_rng(3)
    values = np.stack([rng.normal(0.5, 1.0, 8), rng.normal(0.2, 0.1, 8)], axis=1)
    expected = stats.ttest_ind(values[:, 0], -values[:, 1], equal_var=False)
    assert bootstrap.p_value(values) == pytest.approx(expected.pvalue)
    ends = np.array(expected.confidence_interval(0.95)) / 2
    assert bootstrap.difference_interval(values)[1:] == pytest.approx(tuple(ends))


def test_differences_without_noise_or_of_one_seed():
    assert bootstrap.difference_interval(np.zeros((3, 2))) == (0, 0, 0)
    assert [bootstrap.p_value(np.full((3, 2), each)) for each in (0.0, 2.0)] == [1, 0]
    alone = bootstrap.difference_interval(np.array([[1.0, 3.0]]))
    assert alone.value == 2
    assert np.isnan(alone[1:]).all()
    assert bootstrap.p_value(np.array([[1.0, 3.0]])) == 1


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(
        float, st.tuples(st.integers(2, 6), st.integers(1, 3)), elements=st.floats(-10, 10).map(lambda x: round(x, 3))
    )
)
def test_interval_and_p_value_agree(values):
    value, low, high = bootstrap.difference_interval(values)
    assert low <= value <= high
    assert np.asarray(bootstrap.difference_interval(-values)) == pytest.approx(-np.array([value, high, low]))
    if min(abs(low), abs(high)) > 1e-9:
        assert (bootstrap.p_value(values) < 0.05) == (low > 0 or high < 0)


def test_many_means_at_once_are_those_of_each_alone():
    columns = [np.random.default_rng(n).normal(3.0, 1.0, (n, 1)) for n in (4, 1, 4, 6)]
    matrices = [*map(matrix, columns), None]
    alone = [bootstrap.mean_estimate(each, 200) for each in matrices]
    assert bootstrap.mean_estimates(matrices, 200) == [pytest.approx(each, nan_ok=True) for each in alone]


def test_bands_leave_out_what_is_missing():
    values = np.array([[NAN, 1.0, 2.0], [NAN, 3.0, 4.0], [NAN, NAN, 6.0], [9.0, NAN, 8.0]])
    mean, low, high = bootstrap.mean_bands(values, 500)
    assert mean.tolist() == pytest.approx([NAN, 2, 5], nan_ok=True)
    assert np.isnan([low[0], high[0]]).all()
    assert 2 < low[2] < 5 < high[2] < 8
    assert 1 <= low[1] < 2 < high[1] <= 3
    mean, low, _ = bootstrap.mean_bands(values[:1])
    assert mean.tolist() == pytest.approx([NAN, 1, 2], nan_ok=True)
    assert np.isnan(low).all()


def test_of_nothing_there_is_no_estimate():
    there = matrix([[1.0], [2.0]])
    for found in (
        bootstrap.mean_estimate(None), bootstrap.iqm_estimate(None), bootstrap.iqm_gap(None, there),
        bootstrap.iqm_gap(there, None), bootstrap.paired_difference(there, None),
        bootstrap.probability_of_improvement(None, there),
    ):  # fmt: skip
        assert np.isnan(found).all()


def test_estimates_as_columns():
    found = bootstrap.columns_of({"a": bootstrap.Estimate(1.0, 0.5, 2.0)})
    assert found == {"a": 1.0, "a_low": 0.5, "a_high": 2.0}


def test_performance_profile_known_answer():
    from rliable import library

    scores = matrix([[0, 1], [1, 2], [2, 3]])
    thresholds = np.array([-1.0, 0.0, 1.0, 2.5, 3.0])
    profile = bootstrap.performance_profile(scores, thresholds, resamples=200)
    assert profile.value.tolist() == pytest.approx([1, 5 / 6, 3 / 6, 1 / 6, 0])
    assert profile.value.tolist() == pytest.approx(library.score_distributions(scores.values, thresholds).tolist())
    assert (profile.low <= profile.value).all()
    assert (profile.value <= profile.high).all()
    assert profile.low[2] < profile.high[2]


matrices = hnp.arrays(float, st.tuples(st.integers(2, 5), st.integers(1, 4)), elements=st.floats(-10, 10))


@settings(max_examples=15, deadline=None)
@given(matrices, st.floats(0.1, 10), st.floats(-10, 10))
def test_location_estimates_follow_an_affine_change_of_scale(values, scale, shift):
    before = bootstrap.aggregates(matrix(values), resamples=30)
    after = bootstrap.aggregates(matrix(values * scale + shift), resamples=30)
    for name in ("iqm", "median", "mean"):
        assert np.asarray(after[name]) == pytest.approx(np.asarray(before[name]) * scale + shift, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(matrices, st.randoms(use_true_random=False))
def test_the_order_of_seeds_and_environments_does_not_change_values(values, random):
    rows, columns = list(range(values.shape[0])), list(range(values.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    before = bootstrap.aggregates(matrix(values), resamples=10)
    after = bootstrap.aggregates(matrix(values[rows][:, columns]), resamples=10)
    for name in bootstrap.AGGREGATES:
        assert after[name].value == pytest.approx(before[name].value, abs=1e-9)
