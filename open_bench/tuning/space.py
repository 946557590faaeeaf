"""Search spaces and their trials: scrambled Sobol points, the same in all environments, each number of them a prefix
of a larger one.

Sobol sequences: Sobol 1967; scrambling: Owen 1998, as in ``scipy.stats.qmc``.
"""

import math
from collections.abc import Mapping
from typing import Any

from open_bench.errors import UserError
from open_bench.optimizers.registry import check_value
from open_bench.optimizers.spec import OptimizerSpec, Search

SCRAMBLE = 0  # seed of the scrambling
DIGITS = 3  # significant digits of a number
EDGE = 0.1  # share of a range at each of its ends
FURTHER = 10.0  # factor by which a range is widened


def space_of(spec: OptimizerSpec) -> dict[str, Search]:
    """What is searched of an optimizer, by hyperparameter.

    Raises:
        UserError: nothing is, or a space makes no sense.
    """
    space = {key: each.search for key, each in spec.hyperparameters.items() if each.search is not None}
    if not space:
        raise UserError(
            f"{spec.name} has no search space, so there is nothing to tune: add search=Search(low, high) to a "
            "Hyperparameter of its spec, or decorate a function with "
            "@open_bench.optimizers.searchable(learning_rate=Search(1e-4, 1e-1))"
        )
    for key, search in space.items():
        _check(spec, key, search)
    return space


def _check(spec: OptimizerSpec, key: str, search: Search) -> None:
    where = f"{spec.name}: the search space of {key}"
    bounds, default = (search.low, search.high), spec.hyperparameters[key].default
    if bool(search.choices) == (bounds != (None, None)):
        raise UserError(f"{where} must have either low and high, or choices")
    for choice in search.choices:
        if not isinstance(choice, bool | int | float | str):
            raise UserError(f"{where} has the choice {choice!r}: choices are numbers, texts, True and False")
        check_value(spec, key, choice)
    if search.choices:
        return
    low, high = bounds
    if low is None or high is None or isinstance(default, bool) or not isinstance(default, int | float):
        raise UserError(f"{where} must have choices, or low and high if it is a number")
    if not low < high:
        raise UserError(f"{where} has low = {low!r} and high = {high!r}: low must be below high")
    if search.scale == "log" and low <= 0:
        raise UserError(f"{where} is logarithmic and has low = {low!r}: it must be above 0, or the scale linear")
    for bound in (low, high):
        check_value(spec, key, type(default)(bound))


def points(spec: OptimizerSpec, space: Mapping[str, Search], count: int) -> list[dict[str, Any]]:
    """The first ``count`` points of a space, each with a value for every searched hyperparameter."""
    import numpy as np
    from scipy.stats import qmc

    sobol = qmc.Sobol(len(space), scramble=True, rng=np.random.default_rng(SCRAMBLE))
    units = sobol.random_base2(max(0, math.ceil(math.log2(count))))[:count]
    return [
        {key: check_value(spec, key, _value(spec, key, search, float(unit)))
         for (key, search), unit in zip(space.items(), row, strict=True)}
        for row in units
    ]  # fmt: skip


def _value(spec: OptimizerSpec, key: str, search: Search, unit: float) -> Any:
    """The value at ``unit`` (0 … 1) of a space."""
    if search.choices:
        return search.choices[min(int(unit * len(search.choices)), len(search.choices) - 1)]
    assert search.low is not None
    assert search.high is not None
    if search.scale == "log":
        value = search.low * (search.high / search.low) ** unit
    else:
        value = search.low + (search.high - search.low) * unit
    rounded = min(max(float(f"{value:.{DIGITS}g}"), search.low), search.high)
    return round(rounded) if isinstance(spec.hyperparameters[key].default, int) else rounded


def edge_note(spec: OptimizerSpec, space: Mapping[str, Search], settings: Mapping[str, Any]) -> str:
    """Which values lie at an end of their range (its outer tenth, or beyond), and the range to try; "" if none.

    Lists of choices have no edge. Nothing is said of an end beyond which a value makes no sense.
    """
    notes = []
    for key, search in space.items():
        if search.low is None or search.high is None:
            continue
        low, high = _tried(spec, key, search, float(settings[key]))
        if (low, high) != (search.low, search.high):
            side = "lower" if low < search.low else "upper"
            notes.append(
                f"{key} = {settings[key]:.3g} is at the {side} edge of {search.low:g} … {search.high:g}: try "
                f"Search({low:g}, {high:g}" + (")" if search.scale == "log" else ', "linear")')
            )
    return "; ".join(notes)


def _tried(spec: OptimizerSpec, key: str, search: Search, value: float) -> tuple[float, float]:
    """The range to try after the best was ``value``: wider at the end that it lies at."""
    assert search.low is not None
    assert search.high is not None
    logarithmic = search.scale == "log"
    place = [math.log(each) if logarithmic else each for each in (search.low, search.high, max(value, 1e-300))]
    unit = (place[2] - place[0]) / (place[1] - place[0])
    low, high = search.low, search.high
    if unit < EDGE:
        low = low / FURTHER if logarithmic else low - (high - low)
    elif unit > 1 - EDGE:
        high = high * FURTHER if logarithmic else high + (high - low)
    minimum, below = spec.hyperparameters[key].minimum, spec.hyperparameters[key].below
    if minimum is not None and low < minimum:
        low = minimum if minimum < search.low and not logarithmic else search.low
    if below is not None and high >= below:
        high = search.high
    return float(f"{low:.{DIGITS}g}") if low != search.low else low, high
