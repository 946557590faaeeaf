"""Why an optimizer wins or collapses: what can be said of an update beside its return.

Everything is measured once an update, outside of the passes over the batch, on as many samples of the rollout as a
minibatch has. Its inputs are what the passes began and ended with, so the program that trains stays as it is.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from open_bench.algorithms.base import Activations, Params

DORMANT = 0.025  # a unit whose mean |activation| is at most this share of its layer's mean is dormant
Diagnosis = dict[str, Float[Array, ""]]  # diagnostic → value


def when(measured: Bool[Array, ""], names: Iterable[str], measure: Callable[[], Diagnosis]) -> Diagnosis:
    """``measure()``, whose keys are ``names``, where the update is ``measured``; else NaN, at no cost."""
    return jax.lax.cond(measured, measure, lambda: dict.fromkeys(names, jnp.float32(jnp.nan)))


def draw_samples(batch: Any, count: int, key: Key[Array, ""]) -> Any:
    """``count`` samples of a batch whose arrays have a leading axis of samples, drawn with replacement."""
    indices = jax.random.randint(key, (count,), 0, len(jax.tree.leaves(batch)[0]))
    return jax.tree.map(lambda x: x[indices], batch)


def of_update(gradients: Params, before: Params, after: Params) -> Diagnosis:
    """Of the network that acts: its gradient before the update, and where all steps of the update led it.

    ``gradient_norm`` ‖g‖ before clipping, ``update_ratio`` ‖Δ‖/‖θ‖, ``update_cosine`` −g·Δ/(‖g‖‖Δ‖), with Δ = after −
    before. NaN where it would be 0/0.
    """
    change = optax.tree.sub(after, before)
    norm, moved = optax.tree.norm(gradients), optax.tree.norm(change)
    return {
        "gradient_norm": norm,
        "update_ratio": moved / optax.tree.norm(before),
        "update_cosine": -optax.tree.vdot(gradients, change) / (norm * moved),
    }


def dormant_fraction(activations: Activations) -> Float[Array, ""]:
    """Share of dormant hidden units in a network (Sokar et al. 2023, arXiv 2302.12902).

    A unit is dormant where its mean |activation|, divided by the mean of its layer, is at most ``DORMANT``; all of a
    layer that is silent are.

    Args:
        activations: mean |activation| of the units by layer; the last dense layer is the head, which does not count.
    """
    dense = [name for name in sorted(activations) if name.endswith("dense")]
    units = [activations[name] for name in dense[:-1]]
    dormant = jnp.concatenate([jnp.where(jnp.isnan(x).any(), jnp.nan, x <= DORMANT * x.mean()) for x in units])
    return dormant.mean()


def explained_variance(target: Float[Array, " samples"], value: Float[Array, " samples"]) -> Float[Array, ""]:
    """1 − Var(target − value)/Var(target): 1 is a value function that knows its targets, 0 one that is a constant."""
    return 1.0 - (target - value).var() / target.var()
