"""Normalized scores: 0 is a uniformly random policy, 1 is the reference (Adam) at the same budget.

score = (x − random) / (reference − random), where x is a seed's ``final_return`` or ``mean_return``. A score
is not clipped: below 0 is worse than random, above 1 better than the reference.
"""

from typing import NamedTuple

import numpy as np

from open_bench.evaluation.baseline_returns import EnvironmentReturns, References, load_references

__all__ = ["References", "Scale", "load_references", "normalize", "scale_of"]


class Scale(NamedTuple):
    """The two returns that become 0 and 1."""

    random: float
    reference: float


def normalize(returns: np.ndarray, scale: Scale) -> np.ndarray:
    """(x − random) / (reference − random), elementwise; raises ValueError unless reference > random."""
    if not scale.reference > scale.random:
        raise ValueError(f"the reference {scale.reference} is not above random's {scale.random}")
    return (np.asarray(returns, dtype=float) - scale.random) / (scale.reference - scale.random)


def scale_of(returns: EnvironmentReturns | None, budget: str, metric: str) -> tuple[Scale | None, str]:
    """The scale of an environment at a budget, or None and the reason why only raw returns can be reported."""
    random = returns.random.of(metric) if returns is not None and returns.random is not None else None
    entry = returns.reference.get(budget) if returns is not None else None
    reference = entry.of(metric) if entry is not None else None
    if reference is None:
        return None, "no reference" if metric == "final_return" else f"no reference for {metric}"
    if random is None:
        return None, "the random policy's return is not known"
    high = random.mean if random.high is None else random.high
    if not reference.mean > high:
        return None, f"the reference {reference.mean:.4g} is not above random's interval, which ends at {high:.4g}"
    return Scale(random.mean, reference.mean), ""
