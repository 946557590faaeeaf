"""Ranks of a board's optimizers with what is not known of them, and how likely each is better than each other.

**Mean rank**: an optimizer's rank by mean return in each environment, averaged; ties share their average rank. It is
among the optimizers that have a result in every environment. The interval is a 95 % percentile bootstrap interval:
seeds are drawn again within each environment, the same for optimizers with equally many, as their seeds are paired.

**Rank range**: of two optimizers one is better where the mean of their paired score differences is not 0 at 5 %
(``bootstrap.p_value``) by Holm's (1979) correction over all pairs of the board, so that all ranges hold together with
95 %. The range goes from 1 + how many are better to the number of optimizers − how many are worse, and always holds the
rank itself. Where no environment has a scale, scores are ranks of lifetimes within their environment.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from open_bench.evaluation import bootstrap
from open_bench.evaluation.boards import BoardScores
from open_bench.evaluation.bootstrap import Estimate
from open_bench.evaluation.metrics import ScoreTable

LEVEL = 1 - bootstrap.CONFIDENCE


def mean_ranks(scores: BoardScores, resamples: int) -> pd.DataFrame:
    """mean_rank, mean_rank_low and mean_rank_high by optimizer; those that lack an environment are not there."""
    rows = scores.rows.dropna(subset=["value"])
    cells = {key: mine.to_numpy(float) for key, mine in rows.groupby(["optimizer", "environment"])["value"]}
    returns = {name: [cells.get((name, each), np.empty(0)) for each in scores.observed] for name in scores.optimizers}
    complete = {name: values for name, values in returns.items() if values and all(map(len, values))}
    if not complete:
        return pd.DataFrame(columns=["mean_rank", "mean_rank_low", "mean_rank_high"], dtype=float)
    value = _mean_ranks(np.array([[[each.mean() for each in values]] for values in complete.values()]))[0]
    low = high = np.full_like(value, np.nan)
    if all(len(each) > 1 for values in complete.values() for each in values):
        means = np.array([_resampled_means(values, resamples) for values in complete.values()])
        low, high = np.quantile(_mean_ranks(means), [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    return pd.DataFrame({"mean_rank": value, "mean_rank_low": low, "mean_rank_high": high}, index=list(complete))


def _mean_ranks(means: np.ndarray) -> np.ndarray:
    """(optimizers, resamples, environments) → (resamples, optimizers)."""
    from scipy.stats import rankdata

    parts = np.array_split(-np.moveaxis(means, 0, 2), max(1, means.size // 2**18))  # what a cache holds
    return np.concatenate([rankdata(part, axis=2).mean(axis=1) for part in parts])


def _resampled_means(values: list[np.ndarray], resamples: int) -> np.ndarray:
    """Mean returns (resamples, environments) from returns (seeds,) by environment."""
    chunks = bootstrap.resampled([(len(each), 1) for each in values], resamples)
    return np.concatenate(
        [
            np.stack([counts[:, :, 0] @ each / len(each) for counts, each in zip(chunk, values, strict=True)], axis=1)
            for chunk in chunks
        ]
    )


def rank_ranges(scores: BoardScores, ranks: pd.Series) -> pd.DataFrame:
    """rank_low and rank_high by optimizer, for those that have a rank (``ranks``, by optimizer)."""
    ranks = ranks.dropna().astype(int)
    matrices = _comparable(scores)
    pairs, p_values = [], []
    for x, y in itertools.combinations(ranks.index, 2):
        difference = bootstrap.differences(matrices[x], matrices[y])
        if difference is not None:
            pairs.append((x, y) if difference.mean() > 0 else (y, x))
            p_values.append(bootstrap.p_value(difference))
    better, worse = dict.fromkeys(ranks.index, 0), dict.fromkeys(ranks.index, 0)
    for (winner, loser), differs in zip(pairs, holm(p_values), strict=True):
        worse[winner] += differs
        better[loser] += differs
    low = {name: min(rank, 1 + better[name]) for name, rank in ranks.items()}
    high = {name: max(rank, len(ranks) - worse[name]) for name, rank in ranks.items()}
    return pd.DataFrame({"rank_low": low, "rank_high": high}, dtype="Int64")


def _comparable(scores: BoardScores) -> dict[str, bootstrap.ScoreMatrix | None]:
    if scores.normalized:
        return {name: scores.matrix(name, scores.normalized) for name in scores.optimizers}
    rows = scores.rows[scores.rows["optimizer"].isin(scores.optimizers)]
    table = ScoreTable(rows.assign(score=rows.groupby("environment")["value"].rank()))
    return {name: table.matrix(name, scores.observed) for name in scores.optimizers}


def win_rates(scores: BoardScores, optimizers: Sequence[str], resamples: int) -> dict[tuple[str, str], Estimate]:
    """``bootstrap.probability_of_improvement`` of every ordered pair that has run in all environments with a result."""
    returns = {name: scores.matrix(name, scores.observed, "value") for name in optimizers}
    found = {}
    for x, y in itertools.combinations(optimizers, 2):
        if returns[x] is not None and returns[y] is not None:
            found[x, y] = it = bootstrap.probability_of_improvement(returns[x], returns[y], resamples)
            found[y, x] = Estimate(1 - it.value, 1 - it.high, 1 - it.low)
    return found


def holm(p_values: list[float], level: float = LEVEL) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects, so that any is falsely rejected with at most ``level``."""
    rejected = [False] * len(p_values)
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > level / (len(p_values) - place):
            break
        rejected[index] = True
    return rejected
