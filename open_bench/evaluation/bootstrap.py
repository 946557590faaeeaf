"""Aggregates with interval estimates, by rliable (Agarwal et al. 2021, arXiv 2108.13264).

All intervals are 95 % percentile bootstrap intervals, stratified by environment: seeds are drawn again within
each environment. rliable 1.2 ignores its ``random_state`` and draws from numpy's global generator, so that generator
is seeded around each call and put back; the same scores give the same numbers. The seed is one constant: matrices of
one shape meet the same resamples, so comparing two optimizers compares scores, not luck.

A single seed says nothing about its spread, so its intervals are NaN rather than of width zero. Of a matrix that is
not there (None) there is no estimate.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

AGGREGATES = ("iqm", "median", "mean", "optimality_gap")
RESAMPLES = 2000
CONFIDENCE = 0.95
_SEED = 2407
_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


class Estimate(NamedTuple):
    """A value with its 95 % interval; ``low`` and ``high`` are NaN where there is no interval."""

    value: float
    low: float
    high: float


NO_ESTIMATE = Estimate(float("nan"), float("nan"), float("nan"))


@dataclasses.dataclass(frozen=True)
class ScoreMatrix:
    """One optimizer's scores, runs × tasks, with what its axes mean.

    rliable takes swapped axes without a word and then reports intervals that are far too narrow; carrying the labels
    makes that a ValueError. (Equal lengths of both axes can not be told apart by shape.)

    Attributes:
        values: (seeds, environments), finite.
        seeds: index of each row; the same index means the same seeds for every optimizer.
        environments: name of each column.
    """

    values: np.ndarray
    seeds: tuple[int, ...]
    environments: tuple[str, ...]

    def __post_init__(self) -> None:
        expected = (len(self.seeds), len(self.environments))
        if np.shape(self.values) != expected or 0 in expected:
            raise ValueError(
                f"scores must be runs × tasks, here {expected[0]} seeds × {expected[1]} environments, "
                f"at least one of each; their shape is {np.shape(self.values)}"
            )
        if len(set(self.seeds)) < expected[0] or len(set(self.environments)) < expected[1]:
            raise ValueError("seeds and environments must be unique")
        if not np.isfinite(self.values).all():
            raise ValueError("scores must be finite: a diverged seed gets the random policy's return first")

    def only(self, seeds: tuple[int, ...]) -> "ScoreMatrix":
        """The rows of these seeds, in this order."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return ScoreMatrix(self.values[rows], seeds, self.environments)


class Profile(NamedTuple):
    """A performance profile: the fraction of runs with a score above each threshold, with 95 % intervals."""

    value: np.ndarray  # (n,), non-increasing, in [0, 1]
    low: np.ndarray  # (n,)
    high: np.ndarray  # (n,)


def aggregates(scores: ScoreMatrix, resamples: int = RESAMPLES) -> dict[str, Estimate]:
    """IQM, median, mean and optimality gap of normalized scores, by the names in ``AGGREGATES``.

    IQM: mean of the middle half of all scores. Median and mean: of the environments' mean scores. Optimality gap:
    1 − mean(min(score, 1)), the shortfall from Adam; less is better.
    """
    from rliable import metrics

    functions = (
        metrics.aggregate_iqm,
        metrics.aggregate_median,
        metrics.aggregate_mean,
        metrics.aggregate_optimality_gap,
    )
    value, low, high = _bootstrap(lambda x: np.array([f(x) for f in functions]), [scores], resamples)
    return {name: Estimate(*map(float, each)) for name, *each in zip(AGGREGATES, value, low, high, strict=True)}


def performance_profile(scores: ScoreMatrix, thresholds: np.ndarray, resamples: int = RESAMPLES) -> Profile:
    """Fraction of runs, over all environments, whose score is above each of ``thresholds`` (n,)."""
    thresholds = np.asarray(thresholds, dtype=float)
    total = scores.values.size

    def above(x: np.ndarray) -> np.ndarray:  # rliable's score distribution without its Python loop over thresholds
        return (total - np.searchsorted(np.sort(x, axis=None), thresholds, side="right")) / total

    return Profile(*_bootstrap(above, [scores], resamples))


def probability_of_improvement(x: ScoreMatrix | None, y: ScoreMatrix | None, resamples: int = RESAMPLES) -> Estimate:
    """P(X > Y) + ½·P(X = Y) of a run of each in the same environment, averaged over environments; ½ is a draw.

    It needs no scale, so raw returns do. The numbers of seeds may differ. Raises ValueError unless both have
    the same environments in the same order.
    """
    _same_environments(x, y)
    return _estimate(win_rate, [x, y], resamples)


def win_rate(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(1,): Mann-Whitney U / (nₓ·n_y) averaged over tasks: rliable's metric, 50 times faster than its p-values."""
    difference = x[:, None, :] - y[None, :, :]
    return np.array([np.mean((difference > 0) + 0.5 * (difference == 0))])


def paired_difference(x: ScoreMatrix | None, y: ScoreMatrix | None, resamples: int = RESAMPLES) -> Estimate:
    """Mean of X − Y over the (seed, environment) pairs that both have; pairs are resampled together.

    Every optimizer meets the same seeds, so what a seed does to both cancels and the interval is narrower than that
    of two separate means; no estimate where no seed is shared. Raises ValueError unless both have the same
    environments.
    """
    if x is None or y is None:
        return NO_ESTIMATE
    _same_environments(x, y)
    shared = tuple(seed for seed in x.seeds if seed in y.seeds)
    if not shared:
        return NO_ESTIMATE
    difference = x.only(shared).values - y.only(shared).values
    return mean_estimate(ScoreMatrix(difference, shared, x.environments), resamples)


def mean_estimate(scores: ScoreMatrix | None, resamples: int = RESAMPLES) -> Estimate:
    """Mean of all values, environments weighted alike; the estimate behind returns and paired differences.

    Vectorized, as there are many of these: rliable's own interval, from its resamples.
    """
    if scores is None:
        return NO_ESTIMATE
    value, unknown = float(scores.values.mean()), float("nan")
    if len(scores.seeds) < 2:
        return Estimate(value, unknown, unknown)
    # (resamples, seeds, tasks) indices of seeds, in the order in which rliable draws them.
    drawn = np.random.RandomState(_SEED).choice(len(scores.seeds), (resamples, *scores.values.shape))
    means = scores.values[drawn, np.arange(len(scores.environments))].mean(axis=(1, 2))
    return Estimate(value, *map(float, np.quantile(means, _TAILS)))


def iqm_estimate(scores: ScoreMatrix | None, resamples: int = RESAMPLES) -> Estimate:
    """Interquartile mean of all values: the mean of their middle half."""
    return _estimate(_iqm, [scores], resamples)


def iqm_gap(x: ScoreMatrix | None, y: ScoreMatrix | None, resamples: int = RESAMPLES) -> Estimate:
    """IQM of X − IQM of Y. The environments may differ: both are drawn again on their own, so nothing is paired."""
    return _estimate(lambda a, b: _iqm(a) - _iqm(b), [x, y], resamples)


def _iqm(x: np.ndarray) -> np.ndarray:
    from rliable import metrics

    return np.array([metrics.aggregate_iqm(x)])


def mean_bands(values: np.ndarray, resamples: int = RESAMPLES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds (seeds, points) → (points,) with its 95 % bootstrap interval, NaN left out.

    Each point's interval is what ``mean_estimate`` gives for its column alone, but all points share their resamples and
    are done at once. NaN where less than half of the seeds have a value; the interval is NaN for a single seed.
    """
    seeds = len(values)
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    enough = known.sum(axis=0) * 2 >= seeds
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(enough, filled.sum(axis=0) / known.sum(axis=0), np.nan)
        if seeds < 2 or not enough.any():
            return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
        # How often each resample draws each seed: a product with the values is every resample's mean at once.
        drawn = np.random.RandomState(_SEED).choice(seeds, (resamples, seeds))
        counts = (drawn[:, :, None] == np.arange(seeds)).sum(axis=1)
        means = np.where(enough, (counts @ filled) / (counts @ known.astype(float)), np.nan)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    low[enough], high[enough] = np.nanquantile(means[:, enough], _TAILS, axis=0)
    return mean, low, high


def columns_of(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Estimates as columns of a table: ``name``, ``name_low``, ``name_high``."""
    ends = (("", 0), ("_low", 1), ("_high", 2))
    return {f"{name}{end}": estimate[i] for name, estimate in estimates.items() for end, i in ends}


def _same_environments(x: ScoreMatrix | None, y: ScoreMatrix | None) -> None:
    if x is not None and y is not None and x.environments != y.environments:
        raise ValueError(f"the environments differ: {x.environments} and {y.environments}")


def _estimate(function: Callable[..., np.ndarray], scores: list[ScoreMatrix | None], resamples: int) -> Estimate:
    """Of a function → (1,), where all matrices are there."""
    there = [each for each in scores if each is not None]
    if len(there) < len(scores):
        return NO_ESTIMATE
    return Estimate(*(float(each[0]) for each in _bootstrap(function, there, resamples)))


def _bootstrap(
    function: Callable[..., np.ndarray], scores: list[ScoreMatrix], resamples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(value, low, high), each (n,), of ``function(*matrices) → (n,)``; several matrices are drawn independently."""
    from rliable import library

    matrices = [np.asarray(each.values, dtype=float) for each in scores]
    if min(len(matrix) for matrix in matrices) < 2:
        value = function(*matrices)
        unknown = np.full_like(value, np.nan)
        return value, unknown, unknown
    data = {"scores": matrices[0] if len(matrices) == 1 else matrices}
    with _seeded():
        values, intervals = library.get_interval_estimates(
            data, function, reps=resamples, confidence_interval_size=CONFIDENCE
        )
    return values["scores"], intervals["scores"][0], intervals["scores"][1]


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seed numpy's global generator for a while; whoever else uses it finds it as it was."""
    state = np.random.get_state()  # noqa: NPY002 - rliable leaves no choice
    np.random.seed(_SEED)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
