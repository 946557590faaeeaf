"""Aggregates with interval estimates, after rliable (Agarwal et al. 2021, arXiv 2108.13264).

Intervals of aggregates are 95 % percentile bootstrap intervals, stratified by environment: seeds are drawn again within
each environment. A resample is held as counts, how often it drew each score, so that all resamples of a statistic are
a few products of matrices; on the same resamples the results are rliable's, to rounding. The seed is one constant:
matrices of one shape meet the same resamples, so comparing two optimizers compares scores, not luck.

Intervals of **paired differences** are no bootstrap intervals: percentile intervals of few seeds are too narrow. They
are Student's, with a variance for each environment and Satterthwaite's degrees of freedom; see ``paired_difference``.

A single seed says nothing about its spread, so its intervals are NaN rather than of width zero. Of a matrix that is
not there (None) there is no estimate.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

AGGREGATES = ("iqm", "median", "mean", "optimality_gap")
RESAMPLES = 2000
CONFIDENCE = 0.95
_SEED = 2407
_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
_AT_ONCE = 2**16  # scores of resamples that are held together: what a processor's cache holds
_KEPT = 2**21  # of those that are kept: 8 MiB


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

    values, clipped = scores.values, np.minimum(scores.values, 1.0)

    def statistic(counts: np.ndarray) -> np.ndarray:
        means = np.einsum("rse,se->re", counts, values) / len(values)
        gap = 1.0 - _mean(clipped, counts)
        return np.stack([_iqm(values, counts), np.median(means, axis=1), means.mean(axis=1), gap], axis=1)

    _, low, high = _bootstrap(statistic, [scores], resamples)
    value = [getattr(metrics, f"aggregate_{name}")(values) for name in AGGREGATES]
    return {name: Estimate(*map(float, each)) for name, *each in zip(AGGREGATES, value, low, high, strict=True)}


def performance_profile(scores: ScoreMatrix, thresholds: np.ndarray, resamples: int = RESAMPLES) -> Profile:
    """Fraction of runs, over all environments, whose score is above each of ``thresholds`` (n,)."""
    above = scores.values.reshape(-1, 1) > np.asarray(thresholds, dtype=float)
    fraction = above / scores.values.size
    return Profile(*_bootstrap(lambda counts: _flat(counts) @ fraction, [scores], resamples))


def probability_of_improvement(x: ScoreMatrix | None, y: ScoreMatrix | None, resamples: int = RESAMPLES) -> Estimate:
    """P(X > Y) + ½·P(X = Y) of a run of each in the same environment, averaged over environments; ½ is a draw.

    Mann-Whitney's U / (nₓ·n_y). It needs no scale, so raw returns do. The numbers of seeds may differ. Raises
    ValueError unless both have the same environments in the same order.
    """
    if x is None or y is None:
        return NO_ESTIMATE
    _same_environments(x, y)
    difference = x.values[:, None, :] - y.values[None, :, :]
    wins = (difference > 0) + 0.5 * (difference == 0)

    def statistic(of_x: np.ndarray, of_y: np.ndarray) -> np.ndarray:
        a, b = (counts.transpose(2, 0, 1).astype(float) for counts in (of_x, of_y))  # (environments, resamples, seeds)
        return ((a @ wins.transpose(2, 0, 1)) * b).sum(axis=(0, 2))[:, None] / difference.size

    return _single(_bootstrap(statistic, [x, y], resamples))


def paired_difference(x: ScoreMatrix | None, y: ScoreMatrix | None) -> Estimate:
    """Mean of X − Y over the (seed, environment) pairs that both have, with an interval that holds its level.

    Every optimizer meets the same seeds, so what a seed does to both cancels. ``difference_interval`` says which
    interval. No estimate where no seed is shared. Raises ValueError unless both have the same environments.
    """
    difference = differences(x, y)
    return NO_ESTIMATE if difference is None else difference_interval(difference)


def paired_differences(pairs: Sequence[tuple[ScoreMatrix | None, ScoreMatrix | None]]) -> list[Estimate]:
    """``paired_difference`` of many pairs of one environment each, those with equally many seeds at once."""
    found = [NO_ESTIMATE] * len(pairs)
    values = {place: each[:, 0] for place, pair in enumerate(pairs) if (each := differences(*pair)) is not None}
    for seeds in {len(each) for each in values.values()}:
        alike = {place: each for place, each in values.items() if len(each) == seeds}
        intervals = _difference_intervals(np.stack(list(alike.values())))
        for place, *numbers in zip(alike, *(each.tolist() for each in intervals), strict=True):
            found[place] = Estimate(*numbers)
    return found


def _difference_intervals(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``difference_interval`` of each row of (n, seeds), one environment's differences: (n,) each, the same bits."""
    from scipy.special import stdtrit

    seeds, means = differences.shape[1], differences.mean(axis=1)
    if seeds < 2:
        return means, np.full_like(means, np.nan), np.full_like(means, np.nan)
    errors = np.array([(variance / seeds) ** 0.5 for variance in differences.var(axis=1, ddof=1).tolist()])
    half = stdtrit(seeds - 1.0, _TAILS[1]) * errors
    return means, means - half, means + half


def differences(x: ScoreMatrix | None, y: ScoreMatrix | None) -> np.ndarray | None:
    """X − Y, (shared seeds, environments); None where no seed is shared. Raises as ``paired_difference`` does."""
    if x is None or y is None:
        return None
    _same_environments(x, y)
    if x.seeds == y.seeds:
        return x.values - y.values
    shared = tuple(seed for seed in x.seeds if seed in y.seeds)
    return x.only(shared).values - y.only(shared).values if shared else None


def difference_interval(difference: np.ndarray) -> Estimate:
    """Mean of differences (seeds, environments), environments weighted alike, with its Student interval.

    The variance of the mean is that of the environments' means, Σ sₑ²/n / E², each with its own sₑ, and Satterthwaite's
    (1946) degrees of freedom, (Σ sₑ²)² / Σ sₑ⁴/(n − 1). What environments differ by is no noise, and one noisy
    environment costs degrees of freedom. benchmarks/paired_differences.py compares it with bootstrap intervals.
    """
    mean, error, freedom = _student(difference)
    from scipy.special import stdtrit

    half = float(stdtrit(freedom, _TAILS[1])) * error if error > 0 else error  # NaN for a single seed
    return Estimate(mean, mean - half, mean + half)


def difference_bands(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of differences (seeds, points), NaN left out, with each point's Student interval: (points,) each."""
    known = [column[~np.isnan(column)][:, None] for column in values.T]
    value, low, high = np.array([difference_interval(each) if len(each) else NO_ESTIMATE for each in known]).T
    return value, low, high


def p_value(difference: np.ndarray) -> float:
    """Two-sided, of the mean of differences (seeds, environments) being 0, by the same statistic as the interval."""
    from scipy.special import stdtr

    mean, error, freedom = _student(difference)
    if error > 0:
        return float(2 * stdtr(freedom, -abs(mean) / error))
    return 1.0 if mean == 0 or np.isnan(error) else 0.0


def _student(difference: np.ndarray) -> tuple[float, float, float]:
    """(mean, its standard error, degrees of freedom); the last two are NaN for a single seed."""
    seeds, tasks = difference.shape
    mean = float(difference.mean())
    if seeds < 2:
        return mean, float("nan"), float("nan")
    variances = difference.var(axis=0, ddof=1)
    total = float(variances.sum())
    if total == 0:
        return mean, 0.0, float("nan")
    shares = variances / total  # squares of tiny variances would vanish
    return mean, (total / seeds) ** 0.5 / tasks, float((seeds - 1) / (shares**2).sum())


def mean_estimate(scores: ScoreMatrix | None, resamples: int = RESAMPLES) -> Estimate:
    """Mean of all values, environments weighted alike."""
    if scores is None:
        return NO_ESTIMATE
    values = scores.values
    return _single(_bootstrap(lambda counts: _mean(values, counts)[:, None], [scores], resamples))


def mean_estimates(scores: Sequence[ScoreMatrix | None], resamples: int = RESAMPLES) -> list[Estimate]:
    """``mean_estimate`` of many matrices of one environment each, those with equally many seeds at once."""
    found = [NO_ESTIMATE] * len(scores)
    values = {place: each.values[:, 0] for place, each in enumerate(scores) if each is not None}
    for seeds in {len(each) for each in values.values()}:
        alike = {place: each for place, each in values.items() if len(each) == seeds}
        bands = mean_bands(np.stack(list(alike.values()), axis=1), resamples)
        for place, *numbers in zip(alike, *bands, strict=True):
            found[place] = Estimate(*map(float, numbers))
    return found


def iqm_estimate(scores: ScoreMatrix | None, resamples: int = RESAMPLES) -> Estimate:
    """Interquartile mean of all values: the mean of their middle half."""
    if scores is None:
        return NO_ESTIMATE
    values = scores.values
    return _single(_bootstrap(lambda counts: _iqm(values, counts)[:, None], [scores], resamples))


def iqm_gap(x: ScoreMatrix | None, y: ScoreMatrix | None, resamples: int = RESAMPLES) -> Estimate:
    """IQM of X − IQM of Y. The environments may differ: both are drawn again on their own, so nothing is paired."""
    if x is None or y is None:
        return NO_ESTIMATE
    a, b = x.values, y.values
    return _single(_bootstrap(lambda of_x, of_y: (_iqm(a, of_x) - _iqm(b, of_y))[:, None], [x, y], resamples))


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
        counts = _of_seeds(seeds, resamples)
        means = (counts @ filled[:, enough]) / (counts @ known[:, enough].astype(float))
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    low[enough], high[enough] = np.nanquantile(means, _TAILS, axis=0) if np.isnan(means).any() else _tails(means)
    return mean, low, high


@functools.lru_cache(maxsize=16)
def _of_seeds(seeds: int, resamples: int) -> np.ndarray:
    """(resamples, seeds)."""
    return np.concatenate([counts[:, :, 0] for (counts,) in resampled([(seeds, 1)], resamples)]).astype(float)


def _tails(values: np.ndarray) -> np.ndarray:
    """(2, n) from (resamples, n): what numpy's quantile gives, in a third of the time."""
    ordered, place = np.sort(values, axis=0), np.array(_TAILS) * (len(values) - 1)
    below = place.astype(int)
    low, high = ordered[below], ordered[np.minimum(below + 1, len(values) - 1)]
    return low + (high - low) * (place - below)[:, None]


def columns_of(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Estimates as columns of a table: ``name``, ``name_low``, ``name_high``."""
    ends = (("", 0), ("_low", 1), ("_high", 2))
    return {f"{name}{end}": estimate[i] for name, estimate in estimates.items() for end, i in ends}


def _same_environments(x: ScoreMatrix, y: ScoreMatrix) -> None:
    if x.environments != y.environments:
        raise ValueError(f"the environments differ: {x.environments} and {y.environments}")


# --- resamples as counts (resamples, seeds, environments), how often each drew each score --------------------------


def _flat(counts: np.ndarray) -> np.ndarray:
    return counts.reshape(len(counts), -1)


def _mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(resamples,)."""
    return (_flat(counts) @ values.ravel()) / values.size


def _iqm(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(resamples,): means without the lowest and highest quarter, by how much of each score lies between them."""
    cut = values.size // 4
    order = np.argsort(values, axis=None)
    upto = np.cumsum(_flat(counts).take(order, axis=1), axis=1, dtype=counts.dtype)
    inside = np.diff(np.clip(upto, cut, values.size - cut), axis=1, prepend=counts.dtype.type(cut))
    return (inside @ values.ravel()[order]) / (values.size - 2 * cut)


def _single(found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Estimate:
    return Estimate(*(float(each[0]) for each in found))


def _bootstrap(
    statistic: Callable[..., np.ndarray], scores: list[ScoreMatrix], resamples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(value, low, high), each (n,), of ``statistic``: counts of each matrix → (resamples, n).

    Several matrices are drawn independently.
    """
    shapes = [each.values.shape for each in scores]
    value = statistic(*(np.ones((1, *shape), np.int32) for shape in shapes))[0]
    if min(shape[0] for shape in shapes) < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    found = np.concatenate([statistic(*counts) for counts in resampled(shapes, resamples)])
    low, high = np.quantile(found, _TAILS, axis=0)
    return value, low, high


def resampled(shapes: list[tuple[int, int]], resamples: int) -> Iterable[list[np.ndarray]]:
    """Counts for each shape (seeds, environments), in chunks, in the order in which rliable draws seeds.

    The first shape's are those of one seed, the second's those of the next. A board's matrices have few shapes, so what
    is not too large is kept; do not write to it.
    """
    small = resamples * sum(seeds * tasks for seeds, tasks in shapes) <= _KEPT
    return _kept(tuple(shapes), resamples) if small else _drawn(shapes, resamples)


@functools.lru_cache(maxsize=16)
def _kept(shapes: tuple[tuple[int, int], ...], resamples: int) -> list[list[np.ndarray]]:
    return list(_drawn(shapes, resamples))


def _drawn(shapes: Sequence[tuple[int, int]], resamples: int) -> Iterator[list[np.ndarray]]:
    generators = [np.random.RandomState(_SEED + place) for place in range(len(shapes))]
    chunk = max(1, _AT_ONCE // max(seeds * tasks for seeds, tasks in shapes))
    for first in range(0, resamples, chunk):
        number = min(chunk, resamples - first)
        yield [_counts(generator, number, *shape) for generator, shape in zip(generators, shapes, strict=True)]


def _counts(generator: np.random.RandomState, number: int, seeds: int, tasks: int) -> np.ndarray:
    drawn = generator.choice(seeds, (number, seeds, tasks))
    places = (drawn + seeds * np.arange(number)[:, None, None]) * tasks + np.arange(tasks)
    return np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.int32)
