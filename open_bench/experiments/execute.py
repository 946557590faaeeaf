"""Running the missing seeds of a list of experiments, sharing the work with other processes through locks."""

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd

from open_bench.algorithms.registry import find_algorithm
from open_bench.events import Advanced, Compiled, Compiling, Ended, Finished, Started, Waiting, Watcher, Work, silent
from open_bench.experiments.agents import saved_agents
from open_bench.experiments.checkpoint import BatchCheckpoint, remove_batches
from open_bench.experiments.estimate import estimate
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.provenance import provenance
from open_bench.experiments.store import Store
from open_bench.training import runner
from open_bench.training.lifetime import Lifetime
from open_bench.training.mesh import Program, broadcast, compile_program
from open_bench.training.record import METRICS, curve_ends, metrics_of

CHECKPOINT_SECONDS = 30.0  # how often a device batch under way is saved


def execute(
    experiments: Sequence[Experiment],
    num_seeds: int,
    store: Store,
    devices: Sequence[jax.Device],
    watcher: Watcher = silent,
    *,
    title: str = "study",
    save_agents: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Train what is missing of seeds 0 … n−1 of every experiment.

    An experiment that another process is training is left to it and looked at again; when that process dies, its lock
    falls free and its experiment is continued here.
    """
    if save_agents:
        _warn_of_absent_agents(experiments, num_seeds, store)
    run = _Run(num_seeds, store, devices, watcher, save_agents, checkpoint_seconds)
    with stream(watcher):
        ahead = estimate(experiments, num_seeds, store, devices).seconds if run.leader else None
        watcher(Started(title, tuple(run.work(each) for each in experiments), seconds=ahead))
        pending = list(experiments)
        while pending:
            left = [each for each in pending if not run.attend(each)]
            if len(left) == len(pending):
                watcher(Waiting(len(left)))
                time.sleep(0.5)
            pending = left


def tell(watcher: Watcher, work: Work, segment: runner.Segment) -> None:
    """Tell a watcher what was made of a part between two looks at the devices."""
    updates = segment.updates * segment.lifetimes
    watcher(Advanced(work, updates, segment.lifetimes, segment.episode_return, segment.diverged, segment.seconds))


@contextlib.contextmanager
def stream(watcher: Watcher) -> Iterator[None]:
    """A watcher's stream of events is ended, whatever happens."""
    finished = False
    try:
        yield
        finished = True
    finally:
        watcher(Ended(finished))


def _warn_of_absent_agents(experiments: Sequence[Experiment], num_seeds: int, store: Store) -> None:
    """What is stored is not trained again, not for its agents either."""
    for each in experiments:
        stored = store.seeds(each) & set(range(num_seeds))
        if stored - saved_agents(store.path(each)):
            warnings.warn(
                f"{store.path(each)} was trained without --save-agents and is stored already, so its agents are not "
                "there: remove that folder, or name other --results, to have them",
                stacklevel=3,
            )


class _Run:
    """What all experiments of one call share."""

    def __init__(
        self, num_seeds: int, store: Store, devices: Sequence[jax.Device], watcher: Watcher, save_agents: bool,
        checkpoint_seconds: float,
    ):  # fmt: skip
        self.num_seeds, self.store, self.devices, self.watcher = num_seeds, store, devices, watcher
        self.save_agents, self.checkpoint_seconds = save_agents, checkpoint_seconds
        self.leader = jax.process_index() == 0  # of several hosts the first decides and writes

    def work(self, experiment: Experiment) -> Work:
        """The experiment as watchers know it."""
        stored = self.store.seeds(experiment) if self.leader else set()
        return work_of(experiment, self.num_seeds, len(stored & set(range(self.num_seeds))))

    def attend(self, experiment: Experiment) -> bool:
        """Run an experiment unless somebody else is at it; says whether it is done."""
        wait = jax.process_count() > 1  # the other hosts follow the first batch by batch
        with self.store.lock(experiment, wait) if self.leader else contextlib.nullcontext(True) as free:
            if not free:
                return False
            missing = self._missing(experiment)
            if missing:
                if self.leader:
                    self.store.create(experiment, description(experiment))
                self._train(experiment, missing)
            self.watcher(Finished(self.work(experiment), len(missing)))
            return True

    def _missing(self, experiment: Experiment) -> list[int]:
        """Seeds that are not stored, by the first process's account."""
        done = self.store.seeds(experiment) if self.leader else set()
        mask = np.array([seed not in done for seed in range(self.num_seeds)], np.int32)
        return [int(seed) for seed in np.flatnonzero(broadcast(mask))]

    def _train(self, experiment: Experiment, missing: list[int]) -> None:
        """Train seeds a device batch at a time; every finished batch is stored."""
        work, folder = self.work(experiment), self.store.path(experiment)

        def checkpoint(indices: range) -> BatchCheckpoint | None:
            seeds = [missing[index] for index in indices]
            return BatchCheckpoint(folder, seeds, self.checkpoint_seconds) if self.leader else None

        batches = run_seeds(experiment, missing, self.devices, self.watcher, work, checkpoint, self.save_agents)
        for program, seeds, batch in batches:
            if self.leader:
                scores, curves = rows(program.lifetime, seeds, batch)
                facts = _facts(program, seeds, batch, first=batch.indices.start == 0)
                self.store.add(experiment, scores, curves, facts, batch.agents)
                BatchCheckpoint(folder, seeds, 0.0).remove()
        if self.leader:
            remove_batches(folder)


def work_of(experiment: Experiment, lifetimes: int, stored: int = 0) -> Work:
    """An experiment as watchers know it."""
    task = experiment.task
    label = " · ".join(dict.fromkeys((task.name, task.algorithm, experiment.label)))
    return Work(experiment.name, label, task.num_updates, task.lifetime_steps, lifetimes, stored)


def run_seeds(
    experiment: Experiment, seeds: Sequence[int], devices: Sequence[jax.Device], watcher: Watcher, work: Work,
    checkpoint: Callable[[range], BatchCheckpoint | None] = lambda indices: None, keep_agents: bool = False,
) -> Iterator[tuple[Program, list[int], runner.Finished]]:  # fmt: skip
    """Compile an experiment's program and run seeds of it, a device batch at a time; nothing is stored."""
    watcher(Compiling(work, tuple(seeds)))
    program = compile_program(
        experiment.make_lifetime(), experiment.inputs, devices, experiment.vmap_size, len(seeds)
    )  # fmt: skip
    watcher(Compiled(work, program.compile_seconds))
    batches = runner.run_lifetimes(
        program, experiment.keys(list(seeds)), experiment.inputs, functools.partial(tell, watcher, work), checkpoint,
        keep_agents,
    )  # fmt: skip
    for batch in batches:
        yield program, [seeds[index] for index in batch.indices], batch


def description(experiment: Experiment) -> dict[str, Any]:
    """What ``experiment.json`` says beside the identity."""
    optimizer, reports = experiment.optimizer, find_algorithm(experiment.task.algorithm).reports
    return {
        "family": experiment.task.environment.family,
        "hyperparameter_origin": optimizer.origin if optimizer else "none",
        "theta_source": optimizer.source if optimizer else None,
        "env_steps": experiment.task.lifetime_steps,
        "metrics": {name: METRICS[name].label for name in metrics_of(reports)},
    }


def _facts(program: Program, seeds: list[int], batch: runner.Finished, first: bool) -> dict[str, Any]:
    lifetime = program.lifetime
    return {
        **provenance(),
        "seeds": seeds,
        "devices": program.mesh.size,
        "env_steps": len(seeds) * lifetime.num_updates * lifetime.env_steps_per_update,
        "run_seconds": batch.seconds,
        "compile_seconds": program.compile_seconds if first else 0.0,
    }


def rows(lifetime: Lifetime, seeds: list[int], batch: runner.Finished) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of ``scores.csv`` and ``curves.csv``; a diverged lifetime's metrics are NaN."""
    steps, points = lifetime.env_steps_per_update, batch.curves.shape[1]
    whole = lifetime.num_updates * steps
    scores = pd.DataFrame({"seed": seeds, **batch.metrics, "diverged": batch.diverged, "env_steps": whole})
    ends = curve_ends(lifetime.num_updates).astype(np.int64) * steps
    curves = pd.DataFrame({"seed": np.repeat(seeds, points), "env_steps": np.tile(ends, len(seeds))})
    curves["episode_return"] = batch.curves.reshape(-1)
    return scores, curves
