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
from open_bench.training.record import MAX_MEASURED, METRICS, curve_ends, metrics_of

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
    diagnose: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Train what is missing of seeds 0 … n−1 of every experiment.

    An experiment that another process is training is left to it and looked at again; when that process dies, its lock
    falls free and its experiment is continued here.
    """
    if save_agents:
        agents_of = lambda each: saved_agents(store.path(each))
        _warn_of_absent(experiments, num_seeds, store, agents_of, "--save-agents", "its agents are")
    if diagnose:
        experiments_with = _warn_of_no_diagnostics(experiments)
        _warn_of_absent(experiments_with, num_seeds, store, store.diagnosed_seeds, "--diagnose", "its diagnosis is")
    run = _Run(num_seeds, store, devices, watcher, save_agents, diagnose, checkpoint_seconds)
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


def _warn_of_absent(
    experiments: Sequence[Experiment], num_seeds: int, store: Store, seeds_with: Callable[[Experiment], set[int]],
    option: str, its: str,
) -> None:  # fmt: skip
    """What is stored is not trained again, not for its agents or diagnosis either."""
    for each in experiments:
        stored = store.seeds(each) & set(range(num_seeds))
        if each.optimizer is not None and stored - seeds_with(each):
            warnings.warn(
                f"{store.path(each)} was trained without {option} and is stored already, so {its} not there: remove "
                "that folder, or name other --results, to have them",
                stacklevel=3,
            )


def _warn_of_no_diagnostics(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Those experiments whose algorithm has diagnostics; which others learn is said."""
    algorithms = {each.task.algorithm: find_algorithm(each.task.algorithm) for each in experiments}
    for name, algorithm in algorithms.items():
        if algorithm.learns and not algorithm.diagnostics:
            warnings.warn(f"algorithm {name} reports no diagnostics: --diagnose stores nothing of it", stacklevel=3)
    return [each for each in experiments if algorithms[each.task.algorithm].diagnostics]


class _Run:
    """What all experiments of one call share."""

    def __init__(
        self, num_seeds: int, store: Store, devices: Sequence[jax.Device], watcher: Watcher, save_agents: bool,
        diagnose: bool, checkpoint_seconds: float,
    ):  # fmt: skip
        self.num_seeds, self.store, self.devices, self.watcher = num_seeds, store, devices, watcher
        self.save_agents, self.diagnose, self.checkpoint_seconds = save_agents, diagnose, checkpoint_seconds
        self.leader = jax.process_index() == 0  # of several hosts the first decides and writes

    def work(self, experiment: Experiment) -> Work:
        """The experiment as watchers know it."""
        task, stored = experiment.task, self.store.seeds(experiment) if self.leader else set()
        label = " · ".join(dict.fromkeys((task.name, task.algorithm, experiment.label)))
        done = len(stored & set(range(self.num_seeds)))
        return Work(experiment.name, label, task.num_updates, task.lifetime_steps, self.num_seeds, done)

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
        work = self.work(experiment)
        self.watcher(Compiling(work, tuple(missing)))
        lifetime = experiment.make_lifetime(self.diagnose)
        program = compile_program(lifetime, experiment.inputs, self.devices, experiment.vmap_size, len(missing))
        self.watcher(Compiled(work, program.compile_seconds))
        folder = self.store.path(experiment)

        def checkpoint(indices: range) -> BatchCheckpoint | None:
            seeds = [missing[index] for index in indices]
            return BatchCheckpoint(folder, seeds, self.checkpoint_seconds) if self.leader else None

        batches = runner.run_lifetimes(
            program,
            experiment.keys(missing),
            experiment.inputs,
            functools.partial(tell, self.watcher, work),
            checkpoint,
            self.save_agents,
        )
        for batch in batches:
            seeds = [missing[index] for index in batch.indices]
            if self.leader:
                scores, curves = rows(lifetime, seeds, batch)
                facts = _facts(program, seeds, batch, first=batch.indices.start == 0)
                self.store.add(experiment, scores, curves, facts, batch.agents, diagnosis_rows(lifetime, seeds, batch))
                BatchCheckpoint(folder, seeds, 0.0).remove()
        if self.leader:
            remove_batches(folder)


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
    whole = lifetime.num_updates * lifetime.env_steps_per_update
    scores = pd.DataFrame({"seed": seeds, **batch.metrics, "diverged": batch.diverged, "env_steps": whole})
    curves = _points(lifetime, seeds, curve_ends(lifetime.num_updates), {"episode_return": batch.curves})
    return scores, curves


def diagnosis_rows(lifetime: Lifetime, seeds: list[int], batch: runner.Finished) -> pd.DataFrame | None:
    """The rows of ``diagnosis.csv``: a diverged lifetime's are what was measured until then; None without diagnosis."""
    ends = curve_ends(lifetime.num_updates, MAX_MEASURED)
    return _points(lifetime, seeds, ends, batch.diagnosis) if batch.diagnosis else None


def _points(lifetime: Lifetime, seeds: list[int], ends: np.ndarray, values: dict[str, np.ndarray]) -> pd.DataFrame:
    """A row a seed and update of ``ends``, from columns (seeds, ends)."""
    steps = ends.astype(np.int64) * lifetime.env_steps_per_update
    columns = {name: value.reshape(-1) for name, value in values.items()}
    return pd.DataFrame({"seed": np.repeat(seeds, len(ends)), "env_steps": np.tile(steps, len(seeds)), **columns})
