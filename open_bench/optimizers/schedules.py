"""The learning-rate schedule that all hand-designed optimizers share: linear to 0, one step down an update."""

from typing import Any

import jax
import optax

from open_bench.optimizers.spec import TrainingLength


def remaining(training_fraction: jax.Array | float, length: TrainingLength) -> jax.Array | float:
    """1 − u/updates at update u (0-based), of which the harness's ``training_fraction`` is u/(updates − 1)."""
    return 1.0 - training_fraction * ((length.updates - 1) / length.updates)


def anneal(
    optimizer: optax.GradientTransformation, length: TrainingLength, enabled: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Scale the steps of update u (0-based) of the lifetime by 1 − u/updates (``remaining``).

    For optimizers whose update is proportional to the learning rate this is the published schedule. Nothing is counted
    here.
    """
    inner = optax.with_extra_args_support(optimizer)
    if not enabled:
        return inner

    def update(
        updates: optax.Updates,
        state: Any,
        params: Any = None,
        *,
        training_fraction: jax.Array | float = 0.0,
        **extras: Any,
    ) -> tuple[optax.Updates, Any]:
        updates, state = inner.update(updates, state, params, training_fraction=training_fraction, **extras)
        scale = remaining(training_fraction, length)
        return jax.tree.map(lambda u: (u * scale).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
