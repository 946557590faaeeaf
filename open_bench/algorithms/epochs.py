"""Learning from a batch: passes over it in fresh permutations, an optimizer step a minibatch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from open_bench.algorithms.base import Activations, Learning, Params

# (params, minibatch) → (loss, activations by network)
Loss = Callable[[Params, Any], tuple[Array, dict[str, Activations]]]


def clip_gradients(gradients: Params, max_norm: float) -> Params:
    """Scale the gradients of each network separately to a global norm of at most ``max_norm``."""

    def clip(tree: Any) -> Any:
        # A NaN norm compares false with everything and so leaves the NaN visible to the divergence check.
        scale = jnp.minimum(1.0, max_norm / jnp.maximum(optax.tree.norm(tree), 1e-16))
        return jax.tree.map(lambda g: g * scale, tree)

    return {network: clip(tree) for network, tree in gradients.items()}


def learn(
    loss: Loss,
    learning: Learning,
    acting_network: str,
    params: Params,
    optimizer_state: Any,
    batch: Any,
    *,
    epochs: int,
    minibatches: int,
    max_grad_norm: float,
    training_fraction: Float[Array, ""],
    key: Key[Array, ""],
) -> tuple[Params, Any, Float[Array, ""], Bool[Array, ""]]:
    """``epochs`` passes over ``batch``: ``(params, optimizer state, mean loss of the last epoch, all losses finite)``.

    Args:
        loss: of a minibatch.
        learning: the optimizer; its update gets every extra of the contract.
        acting_network: told to the optimizer.
        batch: every array has a leading axis of samples, which ``minibatches`` divides.
        max_grad_norm: of each network's gradients.
        training_fraction: where in the lifetime the update is.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    samples = len(jax.tree.leaves(batch)[0])
    Carry = tuple[Params, Any, Array]

    def minibatch(epoch_fraction: Array, carry: Carry, row: tuple[Array, Array, Array]) -> tuple[Carry, Array]:
        params, optimizer_state, finite = carry
        indices, new_rollout, key = row
        rows = jax.tree.map(lambda x: x[indices], batch)
        (value, activations), gradients = gradient(params, rows)
        updates, optimizer_state = learning.optimizer.update(
            clip_gradients(gradients, max_grad_norm),
            optimizer_state,
            params,
            training_fraction=training_fraction,
            epoch_fraction=epoch_fraction,
            new_rollout=new_rollout,
            activations=activations,
            acting_network=acting_network,
            loss=value,
            value=value,
            key=key,
        )
        return (optax.apply_updates(params, updates), optimizer_state, finite & jnp.isfinite(value)), value

    def epoch(carry: Carry, row: tuple[Array, Array]) -> tuple[Carry, Array]:
        index, key = row
        shuffle_key, optimizer_key = jax.random.split(key)
        order = jax.random.permutation(shuffle_key, samples).reshape(minibatches, -1)
        first = (index == 0) & (jnp.arange(minibatches) == 0)
        # The fraction is no row of the scan: what a learned rule makes of it is then computed once an epoch, and OPEN
        # costs 1.6 times less on a CPU.
        body = functools.partial(minibatch, index / max(1, epochs - 1))
        carry, losses = jax.lax.scan(body, carry, (order, first, jax.random.split(optimizer_key, minibatches)))
        return carry, losses.mean()

    numbers = jnp.arange(epochs, dtype=jnp.float32)
    start = (params, optimizer_state, jnp.bool_(True))
    (params, optimizer_state, finite), losses = jax.lax.scan(epoch, start, (numbers, jax.random.split(key, epochs)))
    return params, optimizer_state, losses[-1], finite
