"""Recordings of lifetimes: what a learned rule reads of some parameters, and what a hand-designed teacher does to them.

A recorder is an optimizer. It runs student and teacher side by side on the same gradients and applies the updates of
one of them, so that a recorded lifetime is a lifetime like any other. Inputs and the teacher's updates of sampled
parameters lie in windows of consecutive steps, spread evenly over the lifetime, in a buffer of fixed size that is part
of the optimizer's state. Time goes by the optimizer's steps.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from open_bench.algorithms.base import Learning
from open_bench.optimizers.learned.per_parameter import Layout
from open_bench.optimizers.resolve import ResolvedOptimizer
from open_bench.optimizers.spec import Imitation, Theta, params_themselves
from open_bench.training import runner
from open_bench.training.lifetime import make_lifetime
from open_bench.training.mesh import compile_program
from open_bench.training.task import Task


class Buffer(NamedTuple):
    """A lifetime's recording under way; steps that belong to no window go to the last slot."""

    inputs: jax.Array  # (slots + 1, rows, parameters)
    targets: jax.Array  # (slots + 1, parameters)


class RecorderState(NamedTuple):
    """State of a recorder."""

    step: jax.Array
    student: Any
    teacher: Any
    observer: Any
    buffer: Buffer


class Recording(NamedTuple):
    """What lifetimes of one task have kept, on the host; windows of all of them are one axis.

    Targets are the teacher's updates over its initial learning rate, so that annealing is part of them.
    """

    inputs: np.ndarray  # (windows, steps, rows, parameters) float32
    targets: np.ndarray  # (windows, steps, parameters) float32
    valid: np.ndarray  # (windows, steps) bool: all is finite up to here, and the lifetime was as long
    first: np.ndarray  # (windows,) bool: those that begin with the lifetime


class Recorded(NamedTuple):
    """Some lifetimes of one task."""

    recording: Recording
    returns: np.ndarray  # (lifetimes,) NaN where no episode ended or the lifetime diverged
    diverged: np.ndarray  # (lifetimes,) bool
    env_steps: int


@dataclasses.dataclass(frozen=True)
class Windows:
    """Which steps of a lifetime are recorded.

    Attributes:
        starts: first steps of the windows, in order; windows do not overlap.
        length: steps of a window.
        steps: optimizer steps of the lifetime.
    """

    starts: tuple[int, ...]
    length: int
    steps: int

    @classmethod
    def spread(cls, steps: int, length: int, most: int) -> "Windows":
        """As many windows as fit, ``most`` at most, from the first step to the last."""
        count = max(1, min(most, steps // length))
        return cls(tuple(int(x) for x in np.linspace(0, max(0, steps - length), count)), length, steps)

    @property
    def slots(self) -> np.ndarray:
        """(steps,) int32: where each step is kept, windows one after another; the number of slots where it is not."""
        slots = np.full(self.steps, len(self.starts) * self.length, np.int32)
        for window, start in enumerate(self.starts):
            part = slots[start : start + self.length]
            part[:] = window * self.length + np.arange(len(part))
        return slots


def recorder(
    student: optax.GradientTransformationExtraArgs,
    teacher: optax.GradientTransformationExtraArgs,
    imitation: Imitation,
    windows: Windows,
    columns: jax.Array,
    learning_rate: Any,
    by_student: Any,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that records.

    Args:
        student, teacher: run side by side, each with a state of its own, on the gradients of one agent.
        imitation: of the student's rule: what it reads.
        windows: the steps to record.
        columns: (windows, parameters) int: which parameters in each window.
        learning_rate: the teacher's initial one; targets are its updates over this.
        by_student: whether the student's updates are applied, or the teacher's; may be a tracer.
    """
    kept = len(windows.starts) * windows.length

    def init(params: Any) -> RecorderState:
        observer = imitation.init(params)
        inputs, _ = jax.eval_shape(imitation.observe, params, observer, params)
        count = columns.shape[1]
        buffer = Buffer(jnp.zeros((kept + 1, inputs.shape[0], count)), jnp.zeros((kept + 1, count)))
        return RecorderState(jnp.int32(0), student.init(params), teacher.init(params), observer, buffer)

    def update(gradients: Any, state: RecorderState, params: Any = None, **extras: Any) -> tuple[Any, RecorderState]:
        own, student_state = student.update(gradients, state.student, params, **extras)
        theirs, teacher_state = teacher.update(gradients, state.teacher, params, **extras)
        inputs, observer = imitation.observe(gradients, state.observer, params, **extras)
        target = Layout.of(params).flatten(theirs) / learning_rate
        slot = jnp.asarray(windows.slots).at[state.step].get(mode="fill", fill_value=kept)
        chosen = columns[slot // windows.length]  # of the last window where the step is in none
        buffer = Buffer(
            state.buffer.inputs.at[slot].set(inputs[:, chosen]), state.buffer.targets.at[slot].set(target[chosen])
        )
        updates = jax.tree.map(lambda x, y: jnp.where(by_student, x, y), own, theirs)
        return updates, RecorderState(state.step + 1, student_state, teacher_state, observer, buffer)

    return optax.GradientTransformationExtraArgs(init, update)


def sample_columns(layout: Layout, count: int, draws: int, generator: np.random.Generator) -> np.ndarray:
    """(draws, count) columns of parameters, drawn evenly from all tensors: small ones as often as there are numbers.

    An agent that has fewer parameters than ``count`` has some of them twice.
    """
    quotas, left = {}, min(count, layout.count)
    by_size = sorted(range(len(layout.sizes)), key=lambda leaf: layout.sizes[leaf])
    for number, leaf in enumerate(by_size):
        quotas[leaf] = min(layout.sizes[leaf], left // (len(by_size) - number))
        left -= quotas[leaf]

    def draw() -> np.ndarray:
        chosen = [layout.offsets[leaf] + generator.permutation(layout.sizes[leaf])[:n] for leaf, n in quotas.items()]
        return np.resize(generator.permutation(np.concatenate(chosen)), count)

    return np.stack([draw() for _ in range(draws)]).astype(np.int32)


class Recorder:
    """A task's recorded lifetimes, compiled once.

    Args:
        task: what agents are trained on.
        student: the learned optimizer there, with an example of θ.
        imitation: of the student.
        teacher: the optimizer there whose updates are recorded.
        learning_rate: the teacher's initial one.
        windows, parameters: how much of a lifetime is kept.
        devices, vmap_size, lifetimes: as for an ``Evaluator``.
    """

    def __init__(
        self, task: Task, student: ResolvedOptimizer, imitation: Imitation, teacher: ResolvedOptimizer,
        learning_rate: float, windows: Windows, parameters: int, devices: Sequence[jax.Device], vmap_size: int,
        lifetimes: int,
    ):  # fmt: skip
        self.task, self._student, self._teacher = task, student, teacher
        self._windows, self._lifetimes = windows, lifetimes
        self._layout, self._parameters = Layout.of(task.params()), parameters

        def learning(inputs: Any) -> Learning:
            own, other = (each.learning(task.length, inputs[name]) for each, name in _both(student, teacher))
            made = recorder(own.optimizer, other.optimizer, imitation, windows, inputs["columns"], learning_rate,
                            inputs["by_student"])  # fmt: skip
            return Learning(made, params_themselves, own.policy_loss)

        # What a lifetime hands over at its end is its recording, in place of the parameters that the agent acts with.
        lifetime = make_lifetime(task.make_algorithm(), task.num_updates, learning)._replace(
            acting_params=lambda state, inputs: state.agent.optimizer_state.buffer
        )
        example = jax.tree.map(lambda x: np.asarray(x)[0], self._inputs(student.theta, np.random.default_rng(0), True))
        self.program = compile_program(lifetime, example, devices, vmap_size, lifetimes, own_inputs=True)

    def record(
        self,
        theta: Theta,
        keys: jax.Array,
        generator: np.random.Generator,
        by_student: bool,
        metric: str,
        on_segment: Callable[[runner.Segment], None] = lambda segment: None,
    ) -> Recorded:
        """Run a lifetime from each key.

        Args:
            theta: the student's.
            keys: (lifetimes,).
            generator: draws the parameters.
            by_student: whose updates are applied.
            metric: of the record: what counts as a lifetime's return.
            on_segment: told about once a second.
        """
        inputs = self._inputs(theta, generator, by_student)
        batches = list(runner.run_lifetimes(self.program, keys, inputs, on_segment, keep_agents=True))
        # Spare places of the last batch lie at the end.
        buffer = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(keys)], *(each.agents for each in batches))
        return Recorded(
            self._cut(buffer),
            np.concatenate([each.metrics[metric] for each in batches]),
            np.concatenate([each.diverged for each in batches]),
            self._lifetimes * self.task.lifetime_steps,
        )

    def _inputs(self, theta: Theta, generator: np.random.Generator, by_student: bool) -> dict[str, Any]:
        """Inputs with a leading axis of lifetimes."""
        count = self._lifetimes
        draws = sample_columns(self._layout, self._parameters, count * len(self._windows.starts), generator)
        shared = {"student": self._student.with_theta(theta).inputs, "teacher": self._teacher.inputs,
                  "by_student": np.bool_(by_student)}  # fmt: skip
        own = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], count, axis=0), jax.device_get(shared))
        return {**own, "columns": draws.reshape(count, -1, self._parameters)}

    def _cut(self, buffer: Buffer) -> Recording:
        """The buffers of lifetimes (lifetimes, slots + 1, …) as windows."""
        length, starts = self._windows.length, np.asarray(self._windows.starts)
        inputs, targets = (
            part[:, :-1].reshape(-1, length, *part.shape[2:]) for part in (buffer.inputs, buffer.targets)
        )
        there = starts[:, None] + np.arange(length) < self._windows.steps
        finite = np.isfinite(inputs).all(axis=(2, 3)) & np.isfinite(targets).all(axis=2)
        valid = np.logical_and.accumulate(finite, axis=1) & np.tile(there, (self._lifetimes, 1))
        filled = np.where(valid[:, :, None, None], inputs, 0.0), np.where(valid[:, :, None], targets, 0.0)
        return Recording(*filled, valid, np.tile(starts == 0, self._lifetimes))


def _both(student: ResolvedOptimizer, teacher: ResolvedOptimizer) -> tuple[tuple[ResolvedOptimizer, str], ...]:
    return (student, "student"), (teacher, "teacher")
