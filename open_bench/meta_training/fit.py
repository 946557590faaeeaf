"""Fitting θ to recordings by gradient descent through the unrolled rule.

The loss is the expected squared error of the student's updates, noise included (so the noise is pulled to 0), over the
teacher's initial learning rate. Batches mix windows of all phases of all lifetimes: fitted along a lifetime, a rule
forgets its beginning. A window begins with carry 0, which the student has at the beginning of a lifetime alone; the
first ``burn_in`` steps of the others only warm the carry up and do not count.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from open_bench.meta_training.recording import Recording
from open_bench.meta_training.spec import ImitationConfig
from open_bench.optimizers.spec import Imitation
from open_bench.training.keys import name_to_int

MAX_GRADIENT_NORM = 1.0


class Lessons(NamedTuple):
    """Recordings to learn from, their windows one axis of fixed length: places that are still empty are never drawn."""

    inputs: Any  # (windows, steps, rows, parameters) float32
    targets: Any  # (windows, steps, parameters) float32
    weights: Any  # (windows, steps) float32: 1 where the error counts
    learning_rates: Any  # (windows,) float32, of the teacher
    shares: Any  # (windows,) float32: how often each is drawn


def empty_lessons(windows: int, recording: Recording) -> Lessons:
    """Room for so many windows like those of a recording."""
    steps, rows, parameters = recording.inputs.shape[1:]
    shapes = (steps, rows, parameters), (steps, parameters), (steps,), (), ()
    return Lessons(*(np.zeros((windows, *shape), np.float32) for shape in shapes))


def fill(
    lessons: Lessons, first: int, recordings: Sequence[Recording], learning_rates: Sequence[float], burn_in: int
) -> int:
    """Put the recordings of one round, one of each environment, at window ``first``; returns the window after them.

    Every environment is drawn as often as every other, and every round. Windows without a step that counts are not.
    """
    for recording, learning_rate in zip(recordings, learning_rates, strict=True):
        place = slice(first, first + len(recording.targets))
        counts = recording.valid & ((np.arange(recording.valid.shape[1]) >= burn_in) | recording.first[:, None])
        usable = counts.any(axis=1)
        lessons.inputs[place], lessons.targets[place] = recording.inputs, recording.targets
        lessons.weights[place], lessons.learning_rates[place] = counts, learning_rate
        lessons.shares[place] = usable / max(1, usable.sum())
        first = place.stop
    return first


class Fit:
    """Adam on θ, compiled when it is first asked for; it never depends on how the batches of a round are cut.

    Args:
        imitation: of the student's rule.
        config: the settings.
        root_seed: of the draws.
    """

    def __init__(self, imitation: Imitation, config: ImitationConfig, root_seed: int):
        self._imitation, self._config = imitation, config
        self._key = jax.random.fold_in(jax.random.key(root_seed), name_to_int("imitation"))
        schedule = optax.cosine_decay_schedule(config.learning_rate, config.rounds * config.batches)
        self.optimizer = optax.chain(optax.clip_by_global_norm(MAX_GRADIENT_NORM), optax.adam(schedule))
        self.held_out = max(1, config.parameters // 8)  # of each window, left out of the fit

    @functools.partial(jax.jit, static_argnums=0)
    def advance(self, state: tuple[Any, Any], lessons: Lessons, first: Any, count: Any) -> tuple[tuple[Any, Any], Any]:
        """Batches ``first`` … ``first + count − 1`` of all: (θ, Adam's state) after them, and their mean loss."""

        def step(batch: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            (theta, adam), total = carry
            drawn = self._draw(jax.random.fold_in(self._key, batch), lessons)
            loss, gradient = jax.value_and_grad(self._loss)(theta, *drawn)
            updates, adam = self.optimizer.update(gradient, adam, theta)
            return (optax.apply_updates(theta, updates), adam), total + loss

        state, total = jax.lax.fori_loop(first, first + count, step, (state, jnp.float32(0.0)))
        return state, total / count

    @functools.partial(jax.jit, static_argnums=0)
    def held_out_loss(self, theta: Any, lessons: Lessons) -> Any:
        """(windows,) loss at the parameters that are never fitted to; NaN where no step counts."""

        def one(window: Lessons) -> Any:
            chosen = (window.inputs[..., -self.held_out :], window.targets[:, -self.held_out :])
            weights = jnp.broadcast_to(window.weights[:, None], chosen[1].shape)
            return self._loss(theta, *chosen, weights, window.learning_rates)

        return jax.lax.map(one, lessons)

    def _draw(self, key: jax.Array, lessons: Lessons) -> tuple[Any, Any, Any, Any]:
        """A batch: inputs (steps, rows, columns), targets, weights (steps, columns) and learning rates (columns,)."""
        size = self._config.batch_size
        chosen = jax.random.choice(key, lessons.shares.shape[0], (size,), p=lessons.shares / lessons.shares.sum())
        inputs = jnp.moveaxis(lessons.inputs[chosen][..., : -self.held_out], 0, 2)
        targets = jnp.moveaxis(lessons.targets[chosen][..., : -self.held_out], 0, 1)
        weights = jnp.broadcast_to(lessons.weights[chosen].T[..., None], targets.shape)
        rates = jnp.broadcast_to(lessons.learning_rates[chosen, None], targets.shape[1:])
        steps, columns = targets.shape[0], targets.shape[1] * targets.shape[2]
        flat = inputs.reshape(steps, -1, columns), targets.reshape(steps, columns)
        return *flat, weights.reshape(steps, columns), rates.reshape(columns)

    def _loss(self, theta: Any, inputs: Any, targets: Any, weights: Any, learning_rates: Any) -> Any:
        updates, spread = self._imitation.unroll(theta, inputs)
        errors = jnp.square(updates / learning_rates - targets) + jnp.square(spread / learning_rates)
        return (weights * errors).sum() / weights.sum()
