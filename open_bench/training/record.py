"""What is measured of a lifetime, on the device, as it goes: a thinned learning curve and the table of metrics.

Everything is summed as it arrives, so memory does not grow with the number of updates. A new per-lifetime statistic is
one entry of ``METRICS``: columns of files and tables, figures and fitness follow from it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

MAX_CURVE_POINTS = 200  # a curve is thinned on the device to at most so many points, however long the lifetime
MAX_MEASURED = 50  # updates of a lifetime at which the algorithm's diagnostics are measured
FINAL_SHARE = 20  # the final return is over the last 1/20 of the updates


class Shown(NamedTuple):
    """What a metric sees of an update."""

    update: Int[Array, ""]  # 0-based
    num_updates: int
    values: Mapping[str, Float[Array, ""]]  # "episode_return", "loss" and what the algorithm reports; NaN: not known


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number a lifetime.

    Attributes:
        label: for people.
        value: name in ``Shown.values`` that it is made of; algorithms that do not report it have no such column.
        start: the sums before the first update, a tree of arrays.
        accumulate: (sums, shown) → sums, on the device.
        finish: (sums with a leading axis of lifetimes, on the host) → (lifetimes,) float64, NaN where nothing is known.
    """

    label: str
    value: str
    start: Callable[[], Any]
    accumulate: Callable[[Any, Shown], Any]
    finish: Callable[[Any], np.ndarray]


class MeanSums(NamedTuple):
    """Of a mean over those updates at which the value is known."""

    total: Float[Array, ""]
    known: Int[Array, ""]  # at how many updates it was


def mean_over(value: str, label: str, final: bool) -> Metric:
    """Mean of a reported value over the last 5 % of updates (``final``), or over all."""

    def accumulate(sums: MeanSums, shown: Shown) -> MeanSums:
        known = ~jnp.isnan(shown.values[value])
        amount, count = jnp.where(known, shown.values[value], 0.0), known.astype(jnp.int32)
        if final:
            inside = (shown.update >= shown.num_updates - final_window(shown.num_updates)).astype(jnp.int32)
            amount, count = amount * inside, count * inside
        return MeanSums(sums.total + amount, sums.known + count)

    return Metric(
        label,
        value,
        lambda: MeanSums(jnp.float32(0.0), jnp.int32(0)),
        accumulate,
        lambda sums: divide(sums.total, sums.known),
    )


METRICS: dict[str, Metric] = {
    "final_return": mean_over("episode_return", "final return", final=True),
    "mean_return": mean_over("episode_return", "return over the lifetime", final=False),
    "greedy_return": mean_over("greedy_return", "final return of the greedy policy", final=True),
}


class Record(NamedTuple):
    """The sums of one lifetime."""

    curve_sum: Float[Array, " points"]
    curve_count: Int[Array, " points"]  # updates that counted: at others no episode had finished
    metrics: dict[str, Any]
    diagnosis: dict[str, Float[Array, " measured"]]  # as measured; {} where diagnosis is off


def metrics_of(reports: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the metrics of an algorithm that reports these values beside the episode return and the loss."""
    known = {"episode_return", "loss", *reports}
    return tuple(name for name, metric in METRICS.items() if metric.value in known)


def curve_ends(num_updates: int, most: int = MAX_CURVE_POINTS) -> np.ndarray:
    """Updates at which the ``most`` points, or fewer, of a thinned curve end, the last being ``num_updates``."""
    points = min(num_updates, most)
    return np.asarray([-(-(i + 1) * num_updates // points) for i in range(points)], np.int32)


def final_window(num_updates: int) -> int:
    """Number of last updates over which the final return is averaged: ⌈5 %⌉, at least 1."""
    return max(1, -(-num_updates // FINAL_SHARE))


def is_measured(update: Int[Array, ""], num_updates: int) -> Bool[Array, ""]:
    """Whether the diagnostics of this update (0-based) are kept."""
    return (jnp.asarray(curve_ends(num_updates, MAX_MEASURED)) == update + 1).any()


def empty_record(names: tuple[str, ...], diagnostics: tuple[str, ...], num_updates: int) -> Record:
    """The record before the first update."""
    points, measured = len(curve_ends(num_updates)), len(curve_ends(num_updates, MAX_MEASURED))
    return Record(
        jnp.zeros(points),
        jnp.zeros(points, jnp.int32),
        {name: METRICS[name].start() for name in names},
        {name: jnp.full(measured, jnp.nan) for name in diagnostics},
    )


def add(record: Record, shown: Shown) -> Record:
    """The record after one more update."""
    value = shown.values["episode_return"]
    known = ~jnp.isnan(value)
    point = _point(shown, MAX_CURVE_POINTS)
    return Record(
        record.curve_sum.at[point].add(jnp.where(known, value, 0.0)),
        record.curve_count.at[point].add(known.astype(jnp.int32)),
        {name: METRICS[name].accumulate(sums, shown) for name, sums in record.metrics.items()},
        # The measured update is the last of its point, so what stands there in the end is what was measured.
        {
            name: values.at[_point(shown, MAX_MEASURED)].set(shown.values[name])
            for name, values in record.diagnosis.items()
        },
    )


def _point(shown: Shown, most: int) -> Int[Array, ""]:
    """Index of the curve's point that the update belongs to."""
    return jnp.searchsorted(jnp.asarray(curve_ends(shown.num_updates, most)), shown.update, side="right")


def finish(record: Record) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Metrics (lifetimes,) and curves (lifetimes, points) of records on the host, with a leading axis of lifetimes."""
    metrics = {name: METRICS[name].finish(sums) for name, sums in record.metrics.items()}
    return metrics, divide(record.curve_sum, record.curve_count)


def divide(total: Any, count: Any) -> np.ndarray:
    """Means in float64, NaN where nothing was counted; rounded to what float32 sums can hold."""
    total, count = np.asarray(total, np.float64), np.asarray(count)
    means = np.full(total.shape, np.nan)
    np.divide(total, count, out=means, where=count > 0)
    return rounded(means, 8)


def rounded(values: Any, digits: int) -> np.ndarray:
    """Values in float64, rounded to so many significant digits."""
    return np.vectorize(lambda x: float(f"{x:.{digits}g}"), otypes=[np.float64])(values)
