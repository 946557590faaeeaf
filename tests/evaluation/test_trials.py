"""Trials of tuning: expected best of k, sensitivity, stability of ranks, and reading what is stored."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import NAN

from open_bench.evaluation import trial_figures, trials
from open_bench.evaluation.schema import TRIAL_LABELS
from open_bench.evaluation.trials import ALL

FEW = 40


def make_trials(results, **columns):
    """Rows from {(optimizer, environment): [[returns of the seeds] of trial 0, 1, …]}; None has diverged."""
    return pd.DataFrame(
        [
            {
                "environment": environment, "algorithm": "ppo", "budget": "short", "optimizer": optimizer,
                "trial": trial, "seed": seed, "settings": json.dumps({"learning_rate": 0.1 * trial}), "env_steps": 100,
                "diverged": value is None, "final_return": NAN if value is None else float(value),
                "mean_return": NAN if value is None else value / 2,
            } | columns
            for (optimizer, environment), table in results.items()
            for trial, values in enumerate(table)
            for seed, value in enumerate(values)
        ]
    )  # fmt: skip


def drawn(*names, environments=("a", "b"), count=6, seeds=2, root_seed=0):
    rng = np.random.default_rng(root_seed)
    return make_trials({(name, e): rng.normal(10, 4, (count + 1, seeds)) for name in names for e in environments})


def best_of(k, ranking, scores):
    """By going through every choice of k trials; of equally ranked winners their mean."""
    found = []
    for chosen in itertools.combinations(range(len(scores)), k):
        best = max(ranking[i] for i in chosen)
        found.append(np.mean([scores[i] for i in range(len(scores)) if ranking[i] == best]))
    return float(np.mean(found))


numbers = st.integers(-5, 5).map(float)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6))
def test_expected_best_is_that_of_all_choices(pairs):
    ranking, scores = (np.array(each) for each in zip(*pairs, strict=True))
    found = trials.expected_best(ranking, scores)
    assert found == pytest.approx([best_of(k, ranking, scores) for k in range(1, len(pairs) + 1)])
    assert found[0] == pytest.approx(scores.mean())  # the best of one is any of them
    itself = trials.expected_best(scores, scores)
    assert (np.diff(itself) >= -1e-12).all()
    assert itself[-1] == pytest.approx(scores.max())


def test_the_best_of_one_of_many():
    """C(N − j, k − 1)/C(N, k) at N = 100: best of 50 ranked by itself."""
    scores = np.arange(100.0)
    expected = sum(math.comb(100 - j, 49) / math.comb(100, 50) * (100 - j) for j in range(1, 101))
    assert trials.expected_best(scores, scores)[49] == pytest.approx(expected)


def test_one_seed_ranks_and_the_other_judges():
    """Trials 1 to 3 (0 takes no part): ranked by seed 0 they score 1, 5, 2 by seed 1, and the reverse."""
    frame = make_trials({("adam", "a"): [[99, 99], [9, 1], [8, 5], [1, 2]]})
    found = trials.best_of_k(frame, FEW)
    mine = found[found["environment"] == "a"].set_index("k")
    by_first, by_second = [[9, 8, 1], [1, 5, 2]], [[1, 5, 2], [9, 8, 1]]
    for k in (1, 2, 3):
        assert mine.loc[k, "value"] == pytest.approx((best_of(k, *by_first) + best_of(k, *by_second)) / 2)
    assert mine.loc[3, "value"] == (1 + 8) / 2  # the winner by 9 scores 1: no winner's curse
    assert (mine["low"] <= mine["value"]).all()
    assert mine.loc[1, "low"] < mine.loc[1, "high"]


def test_a_diverged_lifetime_makes_its_trial_the_worst():
    frame = make_trials({("adam", "a"): [[0, 0], [None, 50], [3, 4], [2, 6]]})
    mine = trials.best_of_k(frame, FEW).set_index(["environment", "k"])["value"]
    # Ranked by seed 0: 3, 2, diverged → 4; by seed 1: 50, 6, 4 → what stands in, the lowest return 2.
    assert mine[("a", 3)] == (4 + 2) / 2


def test_three_seeds_are_left_out_one_by_one():
    table = np.random.default_rng(3).normal(size=(5, 3))
    found = trials.best_of_k(make_trials({("adam", "a"): [[0, 0, 0], *table]}), FEW)
    expected = np.mean([trials.expected_best(np.delete(table, s, 1).mean(1), table[:, s]) for s in range(3)], axis=0)
    assert found.loc[found["environment"] == "a", "value"].tolist() == pytest.approx(expected)


def test_trials_that_tie_at_a_cap_share_their_scores():
    """As at CartPole's 500: every draw has a mean of its own, and the order of trials decides nothing."""
    tied = [[500, 480], [500, 400], [500, 460], [480, 500], [300, 200], [250, 150]]
    frames = [
        make_trials({("adam", e): [[0, 0], *order] for e in ("a", "b")}) for order in (tied, tied[::-1])
    ]  # fmt: skip
    best, again = (trials.best_of_k(frame, FEW).set_index(["environment", "k"]) for frame in frames)
    assert best.loc[("a", 6), "value"] == pytest.approx((np.mean([480, 400, 460]) + 480) / 2)
    assert again["value"].tolist() == pytest.approx(best["value"].tolist())
    assert best.loc[("a", 6), "low"] < best.loc[("a", 6), "value"] < best.loc[("a", 6), "high"]
    names = ["performance", "one_setting", "sensitivity"]
    first, second = (trials.sensitivity(frame, FEW)[names].to_numpy()[0] for frame in frames)
    assert first.tolist() == pytest.approx(second.tolist())


def plain_sensitivity(gamma):
    """gamma[environment][trial] = (first seed, second seed), in plain Python."""
    tuned, single = [], []
    trial_numbers = range(len(gamma[0]))
    for ranks, judges in ((0, 1), (1, 0)):
        chosen = [max(trial_numbers, key=lambda t, own=own: own[t][ranks]) for own in gamma]
        tuned += [own[t][judges] for own, t in zip(gamma, chosen, strict=True)]
        everywhere = max(trial_numbers, key=lambda t: sum(own[t][ranks] for own in gamma))
        single += [own[everywhere][judges] for own in gamma]
    return np.mean(tuned), np.mean(single)


def test_sensitivity_in_plain_python():
    frame = drawn("adam", "lion", count=7)
    found = trials.sensitivity(frame, FEW).set_index("optimizer")
    searched = frame[frame["trial"] > 0]
    ends = {}
    for environment, rows in searched.groupby("environment"):
        means = rows.groupby(["optimizer", "trial"])["final_return"].mean()
        ends[environment] = np.percentile(means, [5, 95])
    for name in ("adam", "lion"):
        gamma = []
        for environment, (low, high) in ends.items():
            rows = searched[(searched["optimizer"] == name) & (searched["environment"] == environment)]
            returns = rows.pivot(index="trial", columns="seed", values="final_return").to_numpy()
            gamma.append([tuple((returns[t] - low) / (high - low)) for t in range(7)])
        tuned, single = plain_sensitivity(gamma)
        row = found.loc[name]
        assert row["performance"] == pytest.approx(tuned)
        assert row["one_setting"] == pytest.approx(single)
        assert row["sensitivity"] == pytest.approx(tuned - single)
        assert (row["num_environments"], row["trials"]) == (2, 7)
        assert row["sensitivity_low"] < row["sensitivity_high"]


def test_one_environment_has_no_sensitivity():
    found = trials.sensitivity(drawn("adam", environments=("a",)), FEW)
    assert found["sensitivity"].item() == 0


def test_the_same_best_setting_everywhere_is_insensitive_and_others_are_not():
    good, bad = [[5, 5]], [[0, 0]]
    same = {("adam", e): bad + good + bad * 3 for e in ("a", "b")}
    apart = {("lion", "a"): bad + good + bad * 3, ("lion", "b"): bad * 3 + good + bad}
    found = trials.sensitivity(make_trials(same | apart), FEW).set_index("optimizer")["sensitivity"]
    assert found["adam"] == 0
    assert found["lion"] > 0.4


@settings(max_examples=5, deadline=None)
@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_the_unit_of_returns_does_not_matter(scale, shift):
    frame = drawn("adam", "lion")
    other = frame.assign(
        final_return=frame["final_return"].where(frame["environment"] == "a", frame["final_return"] * scale + shift)
    )
    before, after = (
        trials.sensitivity(each, 10).drop(columns=["optimizer", "algorithm", "budget"]) for each in (frame, other)
    )
    assert after.to_numpy(float) == pytest.approx(before.to_numpy(float))


def test_ranks_as_k_grows():
    """lion's first trials are good and its best no better; adam's one good setting wins once it is likely found."""
    lion, adam = [[0, 0], *[[5, 5]] * 4], [[0, 0], [9, 9], [1, 1], [1, 1], [1, 1]]
    frame = make_trials({(name, e): table for name, table in (("lion", lion), ("adam", adam)) for e in ("a", "b")})
    found = trials.rank_stability(trials.best_of_k(frame, FEW)).set_index(["k", "optimizer"])
    assert found["rank"].unstack()["lion"].to_dict() == {1: 1, 2: 1.5, 3: 2, 4: 2}
    assert found.loc[(1, "adam"), "kendall_tau"] == -1
    assert found.loc[(4, "adam"), "kendall_tau"] == 1


def test_what_cannot_be_measured_is_said():
    alone = make_trials({("adam", "a"): [[1], [2]]})
    with pytest.warns(UserWarning, match=r"adam in a \(ppo at short\) has no trials with two seeds or more: left out"):
        assert trials.best_of_k(alone, FEW).empty
    alike = make_trials({("adam", "a"): [[1, 1]] * 4})
    with pytest.warns(UserWarning, match="all trials in a score alike: left out of all environments"):
        assert set(trials.best_of_k(alike, FEW)["environment"]) == {"a"}
    uneven = pd.concat([drawn("adam", "lion"), drawn("sgd", environments=("a",))])
    with pytest.warns(UserWarning, match="sgd lacks trials that others have: left out of all environments"):
        found = trials.best_of_k(uneven, FEW)
    assert set(found.loc[found["environment"] == ALL, "optimizer"]) == {"adam", "lion"}
    assert "sgd" in set(found.loc[found["environment"] == "a", "optimizer"])
    elsewhere = drawn("adam", "lion")
    there = (elsewhere["environment"] == "b") & (elsewhere["optimizer"] == "adam")
    elsewhere.loc[there, "settings"] = elsewhere.loc[there, "settings"].str.replace("learning_rate", "rate")
    with pytest.warns(UserWarning, match="adam has other trials in one environment than in another: left out of all"):
        assert set(trials.sensitivity(elsewhere, FEW)["optimizer"]) == {"lion"}
    with pytest.warns(UserWarning, match="no trial in a .* has a return"):
        assert trials.best_of_k(make_trials({("adam", "a"): [[None, None]] * 3}), FEW).empty


# --- on disk -----------------------------------------------------------------------------------------------------


def store(frame, results, change=lambda frame: frame, **labels):
    for (environment, optimizer), mine in frame.groupby(["environment", "optimizer"]):
        folder = results / "tuning" / f"{environment}--{optimizer}--0123456789"
        folder.mkdir(parents=True)
        identity = mine.iloc[0][list(TRIAL_LABELS)].to_dict() | labels
        (folder / "tuning.json").write_text(json.dumps({"identity": identity}))
        change(mine.drop(columns=list(TRIAL_LABELS))).to_csv(folder / "trials.csv", index=False)


def test_stored_trials_are_read_and_measured(tmp_path):
    frame = drawn("adam", "lion").assign(greedy_return=1.0)  # further columns are welcome
    store(frame, tmp_path)
    read = trials.read_trials(tmp_path)
    order = ["environment", "optimizer", "trial", "seed"]
    assert list(read["tuning"].unique()) == [f"{e}--{o}--0123456789" for e in "ab" for o in ("adam", "lion")]
    pd.testing.assert_frame_equal(read.drop(columns="tuning"), frame.sort_values(order, ignore_index=True))
    written = trial_figures.write_trials(read, tmp_path, FEW)
    names = [path.relative_to(tmp_path / "tuning").as_posix() for path in written]
    assert names == ["best_of_k.csv", "sensitivity.csv", "rank_stability.csv", "figures/short_ppo_best_of_k.png",
                     "figures/short_ppo_sensitivity.png"]  # fmt: skip
    first = [path.read_bytes() for path in written]
    assert first == [path.read_bytes() for path in trial_figures.write_trials(read[::-1], tmp_path, FEW)]
    assert pd.read_csv(written[0])["k"].max() == 6


def test_without_trials_nothing_is_written(tmp_path):
    assert trials.read_trials(tmp_path).empty
    assert trial_figures.write_trials(trials.read_trials(tmp_path), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [{"environment_version": 2}, {"settings": {"num_envs": 8}}, {"protocol": 1}])
def test_trials_of_another_task_are_not_ranked_with_these(other, tmp_path):
    """As a board refuses them."""
    task = {"environment_version": 1, "settings": {"num_envs": 64}, "protocol": 2}
    store(drawn("adam"), tmp_path, **task)
    store(drawn("lion", environments=("a",)), tmp_path, **task | other)
    store(drawn("lion", environments=("b",)), tmp_path, **task)
    with pytest.warns(
        UserWarning, match=r"skipped .*a--lion--0123456789.*of another task than .*a--adam--01234"
    ) as told:
        read = trials.read_trials(tmp_path)
    assert len(told) == 1
    assert set(zip(read["environment"], read["optimizer"], strict=True)) == {
        ("a", "adam"),
        ("b", "adam"),
        ("b", "lion"),
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: f.drop(columns="settings"), "columns are missing: settings"),
        (lambda f: f.assign(seed=0), "a lifetime appears twice"),
        (lambda f: f.assign(trial=-1), "trial must be finite, from 0"),
        (lambda f: f.assign(final_return="much"), "must hold number values"),
        (None, "has trials of b ppo short adam too"),
    ],
)
def test_a_table_that_breaks_the_schema_is_named_and_skipped(change, problem, tmp_path):
    store(drawn("adam"), tmp_path)
    other = drawn("adam", environments=("c",))
    store(other, tmp_path, change) if change else store(other, tmp_path, environment="b")
    with pytest.warns(UserWarning, match="skipped .*c--adam--0123456789") as told:
        read = trials.read_trials(tmp_path)
    assert problem in str(told[0].message)
    assert set(read["environment"]) == {"a", "b"}
