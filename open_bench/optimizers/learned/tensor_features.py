"""What VeLO, Celo and Celo2 keep of every tensor, and the features of its elements that their small networks read.

Momenta and a mean square of the gradient as Adam has them, and second moments that are factored over the two largest
dimensions as in Adafactor (Shazeer & Stern 2018, arXiv 1804.04235). Arrays have the channels first.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

Array = jax.Array

MOMENTUM_DECAYS = (0.9, 0.99, 0.999)
SECOND_MOMENT_DECAYS = (0.9, 0.99, 0.999)
LARGEST_GRADIENT = 1000.0
GROUP_CHANNELS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)  # channels of the 14 feature groups, 30 in all
ROW_GROUPS, COLUMN_GROUPS = (9, 11), (10, 12)  # groups that a factored tensor holds per row, per column
ELEMENT_GROUPS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 13)
NO_IMITATION = "its steps depend on whole tensors, and what is fitted is a rule of each parameter by itself"


class TensorState(NamedTuple):
    """Accumulators of one tensor of shape S (a scalar counts as shape (1,))."""

    momentum: Float[Array, " 3 *S"]
    rms: Float[Array, " *S"]
    second: tuple[Array, ...]  # float32: rows and columns, (3, *S) with one dimension kept at 1; or the whole (3, *S)


def to_tensors(tree: Any) -> list[Array]:
    """Non-empty leaves as float32 tensors, in tree order; a scalar has shape (1,)."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [jnp.atleast_1d(leaf.astype(jnp.float32)) for leaf in leaves if leaf.size]


def clipped_tensors(gradients: Any) -> list[Array]:
    """``to_tensors`` of gradients, clipped to ±1000."""
    return [jnp.clip(gradient, -LARGEST_GRADIENT, LARGEST_GRADIENT) for gradient in to_tensors(gradients)]


def from_tensors(found: Sequence[Array], tree: Any) -> Any:
    """The inverse of ``to_tensors``: shapes and dtypes of ``tree``, empty leaves back in their places."""
    remaining = iter(found)
    leaves, structure = jax.tree.flatten(tree)
    shaped = [
        next(remaining).reshape(jnp.shape(leaf)).astype(jnp.result_type(leaf)) if jnp.size(leaf) else jnp.asarray(leaf)
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, shaped)


def dot(a: Any, b: Any) -> Array:
    """Σ over the last axis of ``a`` and the first of ``b``, in full float32 (GPUs round to fewer bits by default)."""
    return jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)


# --- accumulators --------------------------------------------------------------------------------------------------


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """(second-largest, largest) dimension, over which second moments are factored; None below two dimensions."""
    if len(shape) < 2:
        return None
    second, largest = np.argsort(shape, kind="stable")[-2:]
    return int(second), int(largest)


def init_tensor(shape: Sequence[int]) -> TensorState:
    """Zero accumulators of one tensor."""
    shape = tuple(shape)
    axes = factored_axes(shape)
    if axes is None:
        kept = (shape,)
    else:
        second, largest = axes
        kept = tuple(tuple(1 if d == gone else n for d, n in enumerate(shape)) for gone in (largest, second))  # type: ignore[assignment]
    return TensorState(
        momentum=jnp.zeros((3, *shape), jnp.float32),
        rms=jnp.zeros(shape, jnp.float32),
        second=tuple(jnp.zeros((3, *k), jnp.float32) for k in kept),
    )


def _decay(
    old: Float[Array, "decays *S"], new: Float[Array, " *S"], decays: Sequence[float]
) -> Float[Array, "decays *S"]:
    """decay·old + (1 − decay)·new for each of the decays, which lie along the leading axis of ``old``."""
    beta = jnp.asarray(decays, jnp.float32).reshape(-1, *(1,) * new.ndim)
    return beta * old + (1.0 - beta) * new[None]


def update_tensor(state: TensorState, gradient: Float[Array, " *S"], rms_decay: float) -> TensorState:
    """Accumulate one gradient: momenta, mean square, and (factored) second moments."""
    squared = jnp.square(gradient)
    axes = factored_axes(gradient.shape)
    fresh = squared + 1e-30
    if axes is None:
        parts = (fresh,)
    else:
        second, largest = axes
        parts = (fresh.mean(largest, keepdims=True), fresh.mean(second, keepdims=True))  # type: ignore[assignment]
    return TensorState(
        momentum=_decay(state.momentum, gradient, MOMENTUM_DECAYS),
        rms=rms_decay * state.rms + (1.0 - rms_decay) * squared,
        second=tuple(_decay(o, n, SECOND_MOMENT_DECAYS) for o, n in zip(state.second, parts, strict=True)),
    )


# --- features ------------------------------------------------------------------------------------------------------


def _inverse_root(x: Float[Array, " *S"]) -> Float[Array, " *S"]:
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))


def _second_moment_factors(
    state: TensorState, axes: tuple[int, int] | None
) -> tuple[Float[Array, "3 ..."], Float[Array, "3 ..."]]:
    """What turns a gradient, and a momentum, into its normalized form."""
    if axes is None:
        (full,) = state.second
        return _inverse_root(full + 1e-9), jax.lax.rsqrt(full)
    row, column = state.second
    relative = row / (row.mean(axes[0] + 1, keepdims=True) + 1e-9)
    factor = _inverse_root(relative) * _inverse_root(column)
    return factor, factor


def element_features(
    state: TensorState, gradient: Float[Array, " *S"], parameter: Float[Array, " *S"], rms_floor: float
) -> list[Float[Array, "_ ..."]]:
    """The 14 feature groups of one tensor, as channels first: (c_i, *S), or 1 for a dimension they do not vary in.

    ``rms_floor`` is added to the mean square before its root is taken.
    """
    momentum, rms = state.momentum, state.rms[None]
    gradient, parameter = gradient[None], parameter[None]
    inverse = jax.lax.rsqrt(rms + rms_floor)
    on_gradient, on_momentum = _second_moment_factors(state, factored_axes(parameter.shape[1:]))
    row, column = state.second[0], state.second[-1]
    return [
        gradient,
        jnp.clip(gradient, -0.1, 0.1),
        parameter,
        momentum,
        rms,
        momentum * inverse,
        inverse,
        gradient * on_gradient,
        gradient * inverse,
        row,
        column,
        jax.lax.rsqrt(row + 1e-8),
        jax.lax.rsqrt(column + 1e-8),
        momentum * on_momentum,
    ]
