"""The one loop over lifetimes: device batches, segments by the clock, interrupts, checkpoints, results."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Key

from open_bench.training import record as records
from open_bench.training.lifetime import Progress
from open_bench.training.mesh import Program, gather

SEGMENT_SECONDS = 1.0  # how often the host looks at the devices


@runtime_checkable
class Checkpoint(Protocol):
    """Where the state of a batch under way is kept."""

    def due(self) -> bool:
        """Whether it is time to save again."""

    def save(self, arrays: Sequence[np.ndarray], facts: dict[str, Any]) -> None:
        """Keep arrays, and facts that are JSON values."""

    def load(self) -> tuple[list[np.ndarray], dict[str, Any]] | None:
        """What was kept; None when there is nothing, or it is damaged."""


class Segment(NamedTuple):
    """What is told between two looks at the devices."""

    updates: int  # of each lifetime
    lifetimes: int  # in the batch, spare ones left out
    episode_return: float  # their mean, NaN when none is known
    diverged: int
    seconds: float


class Finished(NamedTuple):
    """One device batch that has come to its end; arrays have a leading axis of its lifetimes."""

    indices: range  # which of all lifetimes these are
    metrics: dict[str, np.ndarray]  # (lifetimes,) float64 each, NaN where nothing is known
    curves: np.ndarray  # (lifetimes, points) float64
    diagnosis: dict[str, np.ndarray]  # (lifetimes, measured updates) float64 each; {} where it is off
    diverged: np.ndarray  # (lifetimes,) bool
    agents: Any  # parameters of the trained agents, {} unless they were asked for
    seconds: float  # run time, compilation apart


def run_lifetimes(
    program: Program,
    keys: Key[Array, " lifetimes"],
    inputs: Any,
    on_segment: Callable[[Segment], None] = lambda segment: None,
    checkpoint: Callable[[range], Checkpoint | None] = lambda indices: None,
    keep_agents: bool = False,
) -> Iterator[Finished]:
    """Run a lifetime from each key, a device batch at a time; every batch is yielded when it has ended.

    Args:
        program: the compiled lifetime.
        keys: (lifetimes,).
        inputs: traced inputs, shared, or with a leading axis of lifetimes when the program has ``own_inputs``.
        on_segment: told about once a second.
        checkpoint: where a batch's state is kept, and found again when the batch was begun before.
        keep_agents: fetch the trained parameters as well.

    Spare places in the last batch repeat the last lifetime. Segmentation never changes numbers.
    """
    size, segment = program.batch_size, 1
    for first in range(0, len(keys), size):
        indices = range(first, min(first + size, len(keys)))
        places = np.minimum(np.arange(first, first + size), len(keys) - 1)
        own = jax.tree.map(lambda x, at=places: np.asarray(x)[at], inputs) if program.own_inputs else inputs
        total, kept = program.lifetime.num_updates, checkpoint(indices)
        state, done, seconds = _begin(program, keys[places], own, kept)
        if done:  # by a process before this one
            on_segment(Segment(done, len(indices), math.nan, 0, 0.0))
        while done < total:
            start, length = time.perf_counter(), min(segment, total - done)
            state, progress = program.run(state, own, length)
            shown = gather(progress)
            elapsed = time.perf_counter() - start
            done, seconds = done + length, seconds + elapsed
            on_segment(_segment(shown, length, len(indices), elapsed))
            if kept is not None and jax.process_count() == 1 and done < total and kept.due():
                kept.save(program.save(state), {"update": done, "seconds": seconds})
            if length == segment:  # the rest of a lifetime is no measure
                segment = next_segment(segment, elapsed, total)
        yield _finished(program, state, own, indices, seconds, keep_agents)


def _begin(
    program: Program, keys: Key[Array, " lifetimes"], inputs: Any, checkpoint: Checkpoint | None
) -> tuple[Any, int, float]:
    """``(state, updates done, seconds so far)``: from a checkpoint where there is one that fits."""
    saved = checkpoint.load() if checkpoint is not None and jax.process_count() == 1 else None
    if saved is not None:
        arrays, facts = saved
        try:
            return program.restore(arrays, inputs), facts["update"], facts["seconds"]
        except ValueError:
            warnings.warn(
                f"{facts['update']} updates of a batch that was begun with other devices, or with or without "
                "--diagnose, do not fit: it is begun anew",
                stacklevel=4,
            )
    return program.init(keys, inputs), 0, 0.0


def _segment(shown: Progress, updates: int, lifetimes: int, seconds: float) -> Segment:
    returns = shown.episode_return[:lifetimes]
    known = returns[np.isfinite(returns)]
    mean = float(known.mean()) if known.size else float("nan")
    return Segment(updates, lifetimes, mean, int((~shown.finite[:lifetimes]).sum()), seconds)


def _finished(program: Program, state: Any, inputs: Any, indices: range, seconds: float, keep_agents: bool) -> Finished:
    count = len(indices)
    record, finite = gather((state.record, state.agent.finite))
    metrics, curves = records.finish(record)
    diagnosis = {name: records.rounded(values[:count], 6) for name, values in record.diagnosis.items()}
    diverged = ~np.asarray(finite)[:count]
    # What a diverged lifetime reached before does not count.
    metrics = {name: np.where(diverged, np.nan, values[:count]) for name, values in metrics.items()}
    agents = gather(program.acting_params(state, inputs)) if keep_agents else {}
    return Finished(indices, metrics, curves[:count], diagnosis, diverged, agents, seconds)


def next_segment(segment: int, elapsed: float, total: int) -> int:
    """Updates in the segment after one of ``segment`` that took ``elapsed`` seconds; a lifetime has ``total``."""
    if jax.process_count() > 1:  # processes have clocks of their own, so all take the same fixed segments
        return max(1, total // 50)
    return max(1, min(2 * segment, round(segment * SEGMENT_SECONDS / max(elapsed, 1e-6))))
