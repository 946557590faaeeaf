"""Running the missing repetitions of a list of cells, sharing the work with other processes through locks."""

import dataclasses
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
import pandas as pd

from open_bench.environments.catalogue import make_environment
from open_bench.harness import parallel
from open_bench.harness.estimate import warn_of_long_run
from open_bench.harness.lifetime import Lifetime, Metrics, Record, make_lifetime
from open_bench.harness.seeds import repetition_keys
from open_bench.optimizers.entry import Budget
from open_bench.runs.agents import saved_agents
from open_bench.runs.cell import Cell
from open_bench.runs.checkpoint import Checkpoint, remove_all
from open_bench.runs.provenance import provenance
from open_bench.runs.store import Store


class Progress:
    """What a run tells its watcher. Every method does nothing: watchers override those that they care for."""

    def watch(self) -> AbstractContextManager[Any]:
        """Entered around the whole run."""
        return nullcontext()

    def planned(self, cells: Sequence[Cell], repetitions: int) -> None:
        """The work is known; ``repetitions`` are wanted of each cell."""

    def cell_started(self, cell: Cell, repetitions: list[int]) -> None:
        """These repetitions are missing and compilation begins."""

    def compiled(self, cell: Cell, seconds: float) -> None:
        """The cell's program is ready."""

    def advanced(self, cell: Cell, updates: int, episode_return: float, diverged: int) -> None:
        """So many PPO updates were made, over all repetitions at work; their mean return, NaN if none is known."""

    def cell_finished(self, cell: Cell, trained: int) -> None:
        """All repetitions are stored, ``trained`` of them by this process."""

    def measuring(self, what: str, done: int, total: int) -> None:
        """Beside the cells: ``done`` of ``total`` measurements are made, and the next is of ``what``."""

    def waiting(self, cells: list[Cell]) -> None:
        """Other processes are at work on all cells that are left."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, none of which changes results.

    Attributes:
        devices: the devices of the mesh.
        checkpoint_seconds: how often a round under way is saved.
        save_agents: keep the trained agents' parameters in the shards.
    """

    devices: Sequence[jax.Device]
    checkpoint_seconds: float = 30.0
    save_agents: bool = False


def execute(cells: Sequence[Cell], repetitions: int, store: Store, options: Options, progress: Progress) -> None:
    """Train what is missing of repetitions 0 … n−1 of every cell.

    A cell that another process is training is left to it and looked at again; when that process dies, its lock falls
    free and its cell is continued here.
    """
    warn_of_long_runs(cells, repetitions, store, options.devices)
    if options.save_agents:
        _warn_of_absent_agents(cells, repetitions, store)
    with progress.watch():
        progress.planned(cells, repetitions)
        pending = list(cells)
        while pending:
            left = [cell for cell in pending if not _attend(cell, repetitions, store, options, progress)]
            if len(left) == len(pending):
                progress.waiting(left)
                time.sleep(0.5)
            pending = left


def warn_of_long_runs(cells: Sequence[Cell], repetitions: int, store: Store, devices: Sequence[jax.Device]) -> None:
    """Warn, an environment at a time, when what is missing of repetitions 0 … n−1 would take a CPU long."""
    for config in {cell.environment.name: cell.environment for cell in cells}.values():
        here = [cell for cell in cells if cell.environment.name == config.name]
        missing = [len(set(range(repetitions)) - store.repetitions(cell)) * cell.lifetime_steps for cell in here]
        warn_of_long_run(config, sum(missing), devices)


def _warn_of_absent_agents(cells: Sequence[Cell], repetitions: int, store: Store) -> None:
    """What is stored is not trained again, not for its agents either."""
    for cell in cells:
        stored = store.repetitions(cell) & set(range(repetitions))
        if stored - saved_agents(store.path(cell)):
            warnings.warn(
                f"{store.path(cell)} was trained without --save-agents and is stored already, so its agents are not "
                "there: remove that folder, or name other --results, to have them",
                stacklevel=2,
            )


def _attend(cell: Cell, repetitions: int, store: Store, options: Options, progress: Progress) -> bool:
    """Run a cell unless somebody else is at it; says whether it is done."""
    leader = jax.process_index() == 0
    # With several hosts the first decides and writes, and the others follow it round by round.
    with store.lock(cell, wait=jax.process_count() > 1) if leader else _nobody() as free:
        if not free:
            return False
        done = store.repetitions(cell) if leader else set()
        missing = _agree([r for r in range(repetitions) if r not in done], repetitions)
        if missing:
            if leader:
                store.create(cell, _description(cell))
            _run(cell, missing, store, options, progress, leader)
        progress.cell_finished(cell, len(missing))
        return True


class _nobody:
    """A lock that is always free: followers in a cluster do not touch the store."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        return None


def _agree(missing: list[int], repetitions: int) -> list[int]:
    """The first process's list of missing repetitions, on every process."""
    if jax.process_count() == 1:
        return missing
    mask = np.zeros(repetitions, np.int32)
    mask[missing] = 1
    mask = np.asarray(parallel.multihost_utils.broadcast_one_to_all(mask))
    return [int(r) for r in np.flatnonzero(mask)]


def _description(cell: Cell) -> dict[str, Any]:
    return {
        "family": cell.environment.family,
        "hyperparameter_origin": cell.candidate.origin,
        "theta_source": cell.candidate.entry.theta_source,
        "env_steps": cell.env_steps,
    }


def build_lifetime(cell: Cell) -> Lifetime:
    """The lifetime that a cell describes."""
    ppo = cell.environment.ppo
    budget = Budget(cell.num_updates, ppo.update_epochs, ppo.num_minibatches)
    return make_lifetime(
        make_environment(cell.environment),
        ppo,
        cell.num_updates,
        lambda inputs: cell.candidate.make(budget, inputs),
        cell.candidate.objective,
    )


def _run(cell: Cell, missing: list[int], store: Store, options: Options, progress: Progress, leader: bool) -> None:
    """Train the missing repetitions round by round; every finished round is stored."""
    progress.cell_started(cell, missing)
    theta = cell.candidate.inputs
    program = parallel.compile_program(build_lifetime(cell), theta, options.devices, cell.width, len(missing))
    progress.compiled(cell, program.compile_seconds)
    compile_seconds = program.compile_seconds
    for start in range(0, len(missing), program.slots):
        chosen = missing[start : start + program.slots]
        checkpoint = Checkpoint(store.path(cell), chosen, options.checkpoint_seconds) if leader else None
        record, agents, seconds = _round(cell, program, theta, chosen, checkpoint, progress, options.save_agents)
        if leader:
            scores, curves = rows(cell, program.lifetime, chosen, record)
            facts = {
                **provenance(),
                "repetitions": chosen,
                "devices": program.mesh.size,
                "env_steps": len(chosen) * cell.num_updates * cell.environment.ppo.batch_size,
                "run_seconds": seconds,
                "compile_seconds": compile_seconds,
            }
            store.add(cell, scores, curves, facts, agents)
            assert checkpoint is not None
            checkpoint.remove()
        compile_seconds = 0.0  # it belongs to the first round alone
    if leader:
        remove_all(store.path(cell))


def _round(
    cell: Cell, program: parallel.Program, theta: Any, chosen: list[int], checkpoint: Checkpoint | None,
    progress: Progress, save_agents: bool,
) -> tuple[tuple[Record, np.ndarray], dict[str, np.ndarray], float]:  # fmt: skip
    """Train one round: ``((record, finite), agents' parameters, seconds)``; the arrays have a leading axis of slots."""
    padded = chosen + [chosen[-1]] * (program.slots - len(chosen))  # spare slots repeat the last repetition
    done, seconds, state = 0, 0.0, None
    saved = checkpoint.load() if checkpoint is not None and jax.process_count() == 1 else None
    if saved is not None:
        try:
            state, done, seconds = program.restore(saved.arrays, theta), saved.update, saved.seconds
        except ValueError:  # written on another number of devices: begin this round anew
            state = None
    if state is None:
        state = program.init(repetition_keys(cell.study_seed, cell.keys_name, padded), theta)
    total, segment = program.lifetime.num_updates, 1
    while done < total:
        segment = min(segment, total - done)
        start = time.perf_counter()
        state, metrics = program.run(state, theta, segment)
        shown: Metrics = parallel.gather(metrics)
        elapsed = time.perf_counter() - start
        done, seconds = done + segment, seconds + elapsed
        real = slice(0, len(chosen))
        progress.advanced(
            cell, segment * len(chosen), _mean(shown.episode_return[real]), int((~shown.finite[real]).sum())
        )
        if checkpoint is not None and jax.process_count() == 1 and done < total and checkpoint.due():
            checkpoint.save(program.save(state), done, seconds)
        segment = parallel.next_segment(segment, elapsed, total)
    record, finite = parallel.gather((state.record, state.learner.finite))
    agents = parallel.gather(state.learner.params) if save_agents else {}
    return (record, finite), agents, seconds


def rows(
    cell: Cell, lifetime: Lifetime, chosen: list[int], result: tuple[Record, np.ndarray]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of ``scores.csv`` and ``curves.csv``; a diverged repetition's returns are NaN."""
    record, finite = result
    batch_size = cell.environment.ppo.batch_size
    count = len(chosen)
    diverged = ~np.asarray(finite)[:count]
    final = np.where(diverged, np.nan, _divide(record.final_sum, record.final_count)[:count])
    mean = np.where(diverged, np.nan, _divide(record.total_sum, record.total_count)[:count])
    scores = pd.DataFrame(
        {
            "repetition": chosen,
            "final_return": final,
            "mean_return": mean,
            "diverged": diverged,
            "env_steps": lifetime.num_updates * batch_size,
        }
    )
    curve = _divide(record.curve_sum, record.curve_count)[:count]
    curves = pd.DataFrame(
        {
            "repetition": np.repeat(chosen, curve.shape[1]),
            "env_steps": np.tile(lifetime.curve_ends.astype(np.int64) * batch_size, count),
            "episode_return": curve.reshape(-1),
        }
    )
    return scores, curves


def _divide(total: Any, count: Any) -> np.ndarray:
    """Means in float64, NaN where nothing was counted; rounded to what float32 sums can hold."""
    total, count = np.asarray(total, np.float64), np.asarray(count)
    means = np.full(total.shape, np.nan)
    np.divide(total, count, out=means, where=count > 0)
    return np.vectorize(lambda x: float(f"{x:.8g}"))(means)


def _mean(values: Any) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
