"""Missing returns, scales and "above random", against answers worked out by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from synthetic import NAN, join, make_returns, make_runs, measured, random_runs

from open_bench.evaluation import metrics
from open_bench.evaluation.baseline_returns import BaselineReturn, EnvironmentReturns
from open_bench.evaluation.metrics import Scale, normalize, stored_scale


def test_normalize_maps_random_to_0_and_adam_to_1():
    assert normalize(np.array([2.0, 12.0, 7.0, 0.0, 22.0]), Scale(2, 12)).tolist() == [0, 1, 0.5, -0.2, 2]
    with pytest.raises(ValueError, match="not above"):
        normalize(np.array([1.0]), Scale(2, 2))


def published(**fields):
    values = {"final_return": {"mean": 50.0822}, "origin": "published", "optimizer": "adam", "source": "a paper"}
    return BaselineReturn(**values | fields)


KNOWN = make_returns(a=(2, 12))["a"]


@pytest.mark.parametrize(
    ("returns", "budget", "metric", "found"),
    [
        (KNOWN, "quick", "final_return", Scale(2, 12)),
        (KNOWN, "quick", "mean_return", Scale(1, 6)),
        (KNOWN, "quick", "another", "Adam's return is not known by another"),
        (KNOWN, "full", "final_return", "Adam's return is not known"),
        (EnvironmentReturns(environment="a"), "quick", "final_return", "Adam's return is not known"),
        (make_returns(a=(2, 3))["a"], "quick", "final_return",
         "Adam's return, 2 or more, is not above random's interval, which ends at 3"),
        (make_returns(a=(2, 4))["a"], "quick", "final_return",
         "Adam's return, 3 or more, is not above random's interval, which ends at 3"),
        (make_returns(a=(2, 4.01))["a"], "quick", "final_return", Scale(2, 4.01)),
        (EnvironmentReturns(environment="a", ppo={"full": published()}), "full", "final_return",
         "the random policy's return is not known"),
        (EnvironmentReturns(environment="a", random=measured(1), ppo={"full": published()}), "full", "final_return",
         Scale(1, 50.0822)),
        (EnvironmentReturns(environment="a", random=measured(1), ppo={"full": published()}), "full", "mean_return",
         "Adam's return is not known by mean_return"),
    ],
)  # fmt: skip
def test_stored_scale_or_the_reason_why_there_is_none(returns, budget, metric, found):
    assert stored_scale(returns, "ppo", budget, metric) == found
    assert isinstance(stored_scale(returns, "pqn", budget, metric), str)


# --- which scale a board has -------------------------------------------------------------------------------------

TWO = make_returns(a=(2, 12), b=(0, 1))


@pytest.mark.parametrize(
    ("environments", "algorithm", "budget", "optimizers", "options", "kind", "reason"),
    [
        (["a", "b"], "ppo", "quick", ["lion"], {}, "stored", "by stored returns"),
        (["a"], "ppo", "quick", ["adam"], {"env_steps": {"a": 1000}}, "stored", "by stored returns"),
        (["a"], "ppo", "quick", ["adam"], {"env_steps": {"a": 999}}, "own", "no stored returns fit a (ppo at quick)"),
        (["a", "c", "d"], "ppo", "quick", ["lion", "adam"], {}, "own", "no stored returns fit c, d (ppo at quick)"),
        (["a"], "pqn", "quick", ["adam"], {}, "own", "no stored returns fit a (pqn at quick)"),
        (["a"], "ppo", "full", ["adam"], {}, "own", "no stored returns fit a (ppo at full)"),
        (["a[num_steps=16]"], "ppo", "quick", ["adam"], {}, "own", "no stored returns fit a[num_steps=16]"),
        (["a"], "ppo", "quick", ["adam"], {"metric": "area"}, "own", "no stored returns fit a"),
        (["c"], "ppo", "quick", ["adam:learning_rate=1.0"], {}, "none", "adam has not run here"),
        (list("cdefghi"), "ppo", "quick", [], {}, "none", "no stored returns fit c, d, e, f and 3 more"),
    ],
)
def test_one_scale_a_board(environments, algorithm, budget, optimizers, options, kind, reason):
    plan = metrics.scale_plan(environments, algorithm, budget, optimizers, TWO, **options)
    assert plan.kind == kind
    assert reason in plan.reason


def test_published_returns_without_a_length_fit():
    known = {"a": EnvironmentReturns(environment="a", random=measured(1), ppo={"full": published()})}
    assert metrics.scale_plan(["a"], "ppo", "full", [], known, env_steps={"a": 10**7}).kind == "stored"


# --- above random, and scores by one's own Adam ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adam", "random", "above"),
    [
        ([5.0, 6.0, 7.0], [0.0, 1.0, 2.0], True),  # 5 more each
        ([1.0, 1.0], [0.0, 1.0], False),  # the interval of 1 and 0 reaches 0
        ([-9.0, 20.0], [0.0, 0.0], False),  # one lucky seed
        ([10.4, 20.4, 30.4, 0.4], [10.0, 20.0, 30.0, 0.0], False),  # always 0.4 more, where random varies by 13
        ([17.0, 27.0, 37.0, 7.0], [10.0, 20.0, 30.0, 0.0], True),  # 7 > 13/2
        ([1.0], [0.5], True),  # a single pair has no noise
        ([0.5], [0.5], False),
        ([1.0, 2.0], [NAN, NAN], False),
        ([1.0, NAN], [0.0, 0.0], True),  # a single pair again
    ],
)
def test_above_random_by_pairs(adam, random, above):
    assert metrics.above_random(pd.Series(adam), pd.Series(random)) == above


def test_random_seeds_beyond_adams_are_no_pairs():
    adam, random = pd.Series([3.0, 4.0]), pd.Series([0.0, 1.0, 50.0])
    assert metrics.above_random(adam, random)
    assert metrics.own_scale(adam, metrics.RandomReturns.of(random)) == "adam is not above the random policy"  # mean 17


def test_own_scale_is_of_means_and_says_why_there_is_none():
    adam, random = pd.Series([3.0, 5.0]), metrics.RandomReturns.of([0.0, 1.0])
    assert metrics.own_scale(adam, random) == Scale(0.5, 4.0)
    assert "has not run" in metrics.own_scale(adam, metrics.RandomReturns())
    assert metrics.own_scale(pd.Series(dtype=float), random) == "adam has not run"
    assert metrics.own_scale(pd.Series([0.0, 1.0]), random) == "adam is not above the random policy"


def lifetimes(**returns):
    """Rows of one task from optimizer=[returns]; None has diverged, NaN is unfinished."""
    rows = [
        {"optimizer": name, "seed": seed, "final_return": NAN if value is None else value, "diverged": value is None}
        for name, values in returns.items()
        for seed, value in enumerate(values)
    ]
    return metrics.lifetimes(pd.DataFrame(rows), "final_return")


def test_scores_are_paired_with_adams_of_the_same_seed():
    rows = lifetimes(adam=[3.0, 5.0], x=[3.0, 8.5, 100.0])
    scores = metrics.scored(rows, Scale(0.5, 4.0), paired=True)
    assert scores.tolist() == pytest.approx([1, 1, 1, 2, NAN], nan_ok=True)  # 1 + 3.5/3.5; nobody is seed 2's pair
    assert metrics.scored(rows, Scale(0.5, 4.0), paired=False).tolist()[2] == pytest.approx(2.5 / 3.5)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(float, (2, 5), elements=st.floats(-100, 100)), st.floats(-50, 50), st.floats(0.1, 50))
def test_paired_scores_have_the_score_of_the_mean_return_as_their_mean(returns, zero, unit):
    adam, x = returns
    scale = Scale(zero, zero + unit)
    rows = lifetimes(adam=adam - adam.mean() + scale.one, x=x)
    scores = metrics.scored(rows, scale, paired=True)
    assert scores[:5] == pytest.approx(1)
    assert scores[5:].mean() == pytest.approx((x.mean() - scale.zero) / unit, abs=1e-6)


# --- missing returns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("random", "values"),
    [
        (metrics.RandomReturns.of([1.0, 2.0, 6.0]), [12, 2, 6, 7]),  # of its own seed
        (metrics.RandomReturns.of([1.0, NAN, 6.0]), [12, 3.5, 6, 7]),  # or the mean
        (metrics.RandomReturns(2.5), [12, 2.5, 2.5, 7]),
        (metrics.RandomReturns(), [12, 7, 7, 7]),  # or the lowest of any lifetime
    ],
)
def test_what_a_lifetime_without_a_return_counts_as(random, values):
    rows = lifetimes(adam=[12.0, None, NAN], lion=[7.0])
    assert rows["unfinished"].tolist() == [False, False, True, False]
    assert metrics.filled(rows, random).tolist() == values


def test_where_nothing_finished_there_is_no_result_and_where_all_diverged_it_is_randoms():
    random = metrics.RandomReturns.of([1.0, 2.0])
    assert metrics.filled(lifetimes(adam=[NAN, NAN]), random).isna().all()
    assert metrics.filled(lifetimes(adam=[None, None]), random).tolist() == [1, 2]
    assert metrics.filled(lifetimes(adam=[None, NAN]), random).tolist() == [1, 2]


def test_the_random_policys_lifetimes_are_found_by_what_must_agree():
    runs = join(random_runs(a=[1, NAN], b=[5]), make_runs({("adam", "a"): [9]}))
    runs = join(runs, make_runs({("random", "a"): [7]}, algorithm="random", root_seed=3))
    found = metrics.random_returns(runs)
    how = metrics.acting({})
    assert set(found) == {("a", "quick", 1, 0, how), ("b", "quick", 1, 0, how), ("a", "quick", 1, 3, how)}
    assert found[("a", "quick", 1, 0, how)].by_seed.tolist() == pytest.approx([1, NAN], nan_ok=True)
    assert found[("a", "quick", 1, 0, how)].mean == 1
    assert metrics.random_returns(runs, "mean_return")[("a", "quick", 1, 3, how)].mean == 3.5


def test_the_random_policy_of_one_algorithms_task_is_not_that_of_anothers():
    """It acts in as many copies as the algorithm that it is compared with."""
    few, many = (json.dumps({"algorithm": {"num_envs": n, "num_steps": 8}, "options": {}}) for n in (4, 64))
    one, other = random_runs(a=[1, 2]), random_runs(a=[7, 8])
    one.experiments["settings"], other.experiments["settings"] = few, many
    other.experiments["experiment"] = other.scores["experiment"] = "another"
    both = metrics.random_returns(join(one, other))
    assert {key[-1]: float(found.mean) for key, found in both.items()} == {
        metrics.acting({"settings": few}): 1.5, metrics.acting({"settings": many}): 7.5,
    }  # fmt: skip
    learner = json.dumps({"algorithm": {"num_envs": 64, "num_steps": 8, "clip": 0.2}, "options": {}})
    assert metrics.acting({"settings": learner}) == metrics.acting({"settings": many})
    assert metrics.acting({"settings": learner, "environment_version": 2}) != metrics.acting({"settings": many})


# --- matrices ----------------------------------------------------------------------------------------------------


def test_a_matrix_has_the_seeds_that_all_tasks_have():
    rows = pd.DataFrame(
        [("x", "a", "q", 0, 1.0), ("x", "a", "q", 1, 2.0), ("x", "b", "q", 1, 3.0), ("y", "a", "q", 1, 9.0)],
        columns=["optimizer", "environment", "budget", "seed", "value"],
    ).assign(score=lambda frame: frame["value"] / 2)
    table = metrics.ScoreTable(rows, ["environment", "budget"])
    found = table.matrix("x", [("a", "q"), ("b", "q")])
    assert (found.seeds, found.environments, found.values.tolist()) == ((1,), ("a @ q", "b @ q"), [[1.0, 1.5]])
    assert table.matrix("x", [("a", "q")], "value").values.tolist() == [[1.0], [2.0]]
    assert table.matrix("y", [("a", "q"), ("b", "q")]) is None
    assert table.matrix("z", [("a", "q")]) is None
    assert table.matrix("x", []) is None


matrices = hnp.arrays(float, st.tuples(st.integers(2, 5), st.integers(1, 4)), elements=st.floats(-10, 10))


@settings(max_examples=25, deadline=None)
@given(matrices, st.floats(-100, 100), st.floats(0.01, 1000))
def test_scores_do_not_depend_on_the_unit_of_the_return(values, shift, unit):
    """Returns, random and reference in another unit: the same normalized scores."""
    scale = Scale(-3.0, 7.0)
    other = Scale(*(unit * end + shift for end in scale))
    assert normalize(values * unit + shift, other) == pytest.approx(normalize(values, scale), abs=1e-6)
