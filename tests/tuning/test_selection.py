"""Which trial wins."""

import math

import hypothesis.strategies as st
import pandas as pd
from hypothesis import given, settings

from open_bench.tuning.selection import FAILED, best, one_setting, trial_scores, winner


def rows(**returns: list[float]) -> pd.DataFrame:
    """``t0=[1.0, 2.0]``: the final returns of trial 0 by seed; infinity stands for a diverged lifetime."""
    return pd.DataFrame(
        [
            {"trial": int(name[1:]), "seed": seed, "diverged": math.isinf(value),
             "final_return": math.nan if math.isinf(value) else value}
            for name, values in returns.items()
            for seed, value in enumerate(values)
        ]
    )  # fmt: skip


def test_the_highest_mean_wins() -> None:
    scores = trial_scores(rows(t1=[5.0, 5.0], t0=[1.0, 3.0], t2=[10.0, -10.0]))
    assert scores.to_dict() == {0: 2.0, 1: 5.0, 2: 0.0}
    assert best(scores) == 1


def test_a_failed_lifetime_makes_its_trial_the_worst() -> None:
    """Whether it diverged or never finished an episode, and however good the other seeds are."""
    scores = trial_scores(rows(t0=[-9.0, -9.0], t1=[100.0, math.inf], t2=[100.0, math.nan]))
    assert scores.to_dict() == {0: -9.0, 1: FAILED, 2: FAILED}
    assert best(scores) == 0
    assert best(trial_scores(rows(t0=[math.inf], t1=[math.nan]))) is None


def test_of_equals_the_one_that_learned_faster_wins_then_the_first() -> None:
    found = rows(t0=[1.0, 1.0], t1=[2.0, 2.0], t2=[1.0, 3.0], t3=[2.0, 2.0])
    assert best(trial_scores(found)) == 1
    over_lifetimes = [9.0, 9.0, 0.5, 0.5, 0.2, 1.0, 0.7, 0.3]
    assert winner(found.assign(mean_return=over_lifetimes)) == 2
    assert winner(found.assign(mean_return=0.0)) == 1
    assert winner(found.assign(mean_return=math.nan)) == 1
    assert winner(rows(t0=[math.inf], t1=[math.nan]).assign(mean_return=0.0)) is None


def plain(scores: dict[str, dict[int, float]]) -> int | None:
    """The definition, in plain Python."""
    means: dict[int, float] = {}
    trials = sorted(trial for trial in next(iter(scores.values())) if trial >= 1)
    for trial in trials:
        total = 0.0
        for own in scores.values():
            if own[trial] > FAILED:
                total += sum(own[other] <= own[trial] for other in trials) / len(trials)
        means[trial] = total / len(scores)
    winner = max(trials, key=lambda trial: (round(means[trial], 9), -trial))
    return winner if means[winner] > 0 else None


SCORE = st.one_of(st.sampled_from([FAILED, 0.0, 1.0, 2.0]), st.floats(-5, 5))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda k: st.lists(st.lists(SCORE, min_size=k + 1, max_size=k + 1), min_size=1, max_size=4)
    )
)
def test_one_setting_is_the_definition(values: list[list[float]]) -> None:
    by_environment = {f"e{place}": dict(enumerate(own)) for place, own in enumerate(values)}
    assert one_setting({name: pd.Series(own) for name, own in by_environment.items()}) == plain(by_environment)


def test_one_setting_is_good_everywhere_rather_than_best_somewhere() -> None:
    first = pd.Series({0: 99.0, 1: 10.0, 2: 9.0, 3: 5.0, 4: 1.0})
    second = pd.Series({0: 99.0, 1: 1.0, 2: 900.0, 3: 5.0, 4: 1000.0})
    assert [best(first), best(second)] == [0, 4]  # trial 0 is another setting in each environment, and takes no part
    assert one_setting({"a": first, "b": second}) == 2
