"""Which trial wins, from rows of trials: per environment, and over several."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

FAILED = -np.inf  # score of a trial that has a diverged lifetime, or one in which no episode finished


def trial_scores(rows: pd.DataFrame) -> pd.Series:
    """Mean final return over seeds by trial, sorted; ``FAILED`` where a lifetime diverged or finished no episode."""
    returns = rows["final_return"].where(~rows["diverged"])
    means = returns.groupby(rows["trial"]).agg(lambda values: values.mean() if values.notna().all() else FAILED)
    return means.astype(float).sort_index()


def winner(rows: pd.DataFrame) -> int | None:
    """The trial with the highest score; of equals, as at a return that cannot be passed, the one with the highest mean
    return over the lifetime, then the first; None where all have failed."""
    scores = trial_scores(rows)
    if not len(scores) or scores.max() == FAILED:
        return None
    equals = scores.index[scores == scores.max()]
    learned = rows.groupby("trial")["mean_return"].mean().loc[equals]
    return int(equals[learned.fillna(FAILED).argmax()])


def best(scores: pd.Series) -> int | None:
    """The trial with the highest score, of several the first; None where all have failed."""
    return int(scores.index[scores.argmax()]) if len(scores) and scores.max() > FAILED else None


def one_setting(scores: Mapping[str, pd.Series]) -> int | None:
    """The trial that is best over several environments: cross-environment hyperparameter setting.

    In each environment a trial counts with the empirical CDF of its score among the optimizer's own trials there, a
    failed one with 0; the highest mean over environments wins, of several the first. Trial 0 takes no part: it is
    another setting in each environment (Patterson et al. 2024, arXiv 2407.18840).

    Args:
        scores: by environment, of the same trials.
    """
    ranked = []
    for own in scores.values():
        drawn = own[own.index >= 1]
        counts = drawn.rank(method="max")  # CDF × trials: whole numbers, so that equals stay equal
        ranked.append(counts.where(drawn > FAILED, 0.0))
    total = pd.concat(ranked, axis=1).sum(axis=1).sort_index()
    return best(total.where(total > 0, FAILED))
