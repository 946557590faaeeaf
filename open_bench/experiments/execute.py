"""Running what is missing of experiments and other jobs, sharing the work with other processes through locks."""

import contextlib
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import pandas as pd

from open_bench.algorithms.registry import find_algorithm
from open_bench.events import Advanced, Compiled, Compiling, Ended, Finished, Started, Waiting, Watcher, Work, silent
from open_bench.experiments.agents import saved_agents
from open_bench.experiments.checkpoint import BatchCheckpoint, remove_batches
from open_bench.experiments.estimate import estimate_missing
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.programs import Ahead, prepare_program, shared_program
from open_bench.experiments.provenance import provenance
from open_bench.experiments.store import Store
from open_bench.optimizers.resolve import ResolvedOptimizer
from open_bench.training import runner
from open_bench.training.devices import Device, is_remote
from open_bench.training.lifetime import Lifetime
from open_bench.training.mesh import Program, broadcast, compile_program, meet
from open_bench.training.record import MAX_MEASURED, METRICS, curve_ends, metrics_of

CHECKPOINT_SECONDS = 30.0  # how often a device batch under way is saved


@dataclasses.dataclass(frozen=True)
class Group:
    """Lifetimes of a job that share one program.

    Attributes:
        indices: which of the job's.
        experiment: what makes them; its optimizer has their static hyperparameters.
        seeds: whose keys they have; one a lifetime.
        own: inputs of each, with a leading axis of lifetimes; None: all have the experiment's.
        diagnose: whether diagnostics are recorded.
    """

    indices: Sequence[int]
    experiment: Experiment
    seeds: Sequence[int]
    own: Any = None
    diagnose: bool = False

    @functools.cached_property
    def lifetime(self) -> Lifetime:
        """What is compiled."""
        return self.experiment.make_lifetime(self.diagnose)

    @property
    def inputs(self) -> Any:
        """Of one lifetime, or ``own``."""
        return self.experiment.inputs if self.own is None else self.own

    @property
    def keys(self) -> jax.Array:
        """(indices,)."""
        return self.experiment.keys(list(self.seeds))


class Job(Protocol):
    """Lifetimes that are stored together, and that one process at a time trains.

    Attributes:
        experiment: the task and the vmap size; what a rough duration is told by.
        name: unique among jobs.
        label: for people: what is trained on what.
        lifetimes: how many are wanted; they are numbered from 0.
        counted: what one of them is called: "seed" where its number is one.
        path: the folder.
        save_agents: whether trained parameters are wanted.
    """

    experiment: Experiment
    lifetimes: int
    counted: str
    save_agents: bool

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def path(self) -> Path: ...

    def stored(self) -> set[int]:
        """Which of the lifetimes are there."""

    def lock(self, wait: bool) -> AbstractContextManager[bool]:
        """Hold the job, yielding whether it was free."""

    def create(self) -> None:
        """Make the folder."""

    def refresh(self) -> None:
        """Where the folder is there, bring what it says of itself up to date, and set aside what is damaged; hold the
        lock."""

    def take_over(self) -> None:
        """Copy what an equal job has stored meanwhile; hold the lock."""

    def groups(self, missing: Sequence[int]) -> Iterable[Group]:
        """The missing lifetimes, by program."""

    def digest(self, indices: Sequence[int]) -> str:
        """What tells a batch apart from others with the same first and last lifetime, "" where there is none."""

    def add(self, lifetime: Lifetime, indices: Sequence[int], batch: runner.Finished, facts: dict[str, Any]) -> None:
        """Store a device batch."""


class SeedsOf:
    """The job of an experiment: its seeds 0 … n−1. ``equals`` are others whose numbers are the same."""

    counted = "seed"

    def __init__(
        self, experiment: Experiment, num_seeds: int, store: Store, save_agents: bool = False, diagnose: bool = False,
        equals: Sequence[Experiment] = (),
    ):  # fmt: skip
        self.equals = equals
        self.experiment, self.lifetimes, self.store = experiment, num_seeds, store
        self.save_agents, self.diagnose = save_agents, diagnose
        self.name, self.label, self.path = experiment.name, label_of(experiment), store.path(experiment)

    def stored(self) -> set[int]:
        return self.store.seeds(self.experiment) & set(range(self.lifetimes))

    def lock(self, wait: bool) -> AbstractContextManager[bool]:
        return self.store.lock(self.experiment, wait)

    def create(self) -> None:
        self.store.create(self.experiment, description(self.experiment))

    def refresh(self) -> None:
        self.store.refresh(self.experiment, description(self.experiment))

    def take_over(self) -> None:
        for other in self.equals:
            missing = set(range(self.lifetimes)) - self.stored()
            shards = self.store.shards_with(other, missing, self.save_agents, self.diagnose) if missing else []
            for shard in shards:
                self.create()
                self.store.add_copy(self.experiment, shard)

    def groups(self, missing: Sequence[int]) -> Iterable[Group]:
        yield Group(missing, self.experiment, missing, diagnose=self.diagnose)

    def digest(self, indices: Sequence[int]) -> str:
        return ""

    def add(self, lifetime: Lifetime, indices: Sequence[int], batch: runner.Finished, facts: dict[str, Any]) -> None:
        scores, curves = rows(lifetime, indices, batch)
        diagnosis = diagnosis_rows(lifetime, indices, batch)
        self.store.add(self.experiment, scores, curves, {**facts, "seeds": list(indices)}, batch.agents, diagnosis)


def label_of(experiment: Experiment) -> str:
    """What is trained on what, for people."""
    return " · ".join(dict.fromkeys((experiment.task.name, experiment.task.algorithm, experiment.label)))


def execute(
    experiments: Sequence[Experiment],
    num_seeds: int,
    store: Store,
    devices: Sequence[Device],
    watcher: Watcher = silent,
    *,
    title: str = "study",
    save_agents: bool = False,
    diagnose: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Train what is missing of seeds 0 … n−1 of every experiment; see ``execute_jobs``."""
    if save_agents:
        agents_of = lambda each: saved_agents(store.path(each))
        _warn_of_absent(experiments, num_seeds, store, agents_of, "--save-agents", "its agents are")
    if diagnose:
        experiments_with = _warn_of_no_diagnostics(experiments)
        _warn_of_absent(experiments_with, num_seeds, store, store.diagnosed_seeds, "--diagnose", "its diagnosis is")
    equals: dict[str, list[Experiment]] = {}
    for each in experiments:
        equals.setdefault(each.computation, []).append(each)
    others = lambda each: [other for other in equals[each.computation] if other is not each]
    jobs = [SeedsOf(each, num_seeds, store, save_agents, diagnose, others(each)) for each in experiments]
    execute_jobs(jobs, devices, watcher, title=title, checkpoint_seconds=checkpoint_seconds)


def execute_jobs(
    jobs: Sequence[Job],
    devices: Sequence[Device],
    watcher: Watcher = silent,
    *,
    title: str,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    when_done: Callable[[Job], None] = lambda job: None,
) -> None:
    """Train what is missing of every job, in order; ``when_done`` is told of each that is complete.

    A job that another process is training is left to it and looked at again; when that process dies, its lock falls
    free and its job is continued here. Workers of a cluster, where those are the devices, save no checkpoints.
    """
    if is_remote(devices):
        from open_bench.experiments.remote import spread

        spread(jobs, devices, watcher, title=title, when_done=when_done)
        return
    with Ahead() as compiling, stream(watcher):
        run = _Run(devices, watcher, checkpoint_seconds, compiling)
        missing = [(job.experiment, job.lifetimes - len(job.stored())) for job in jobs] if run.leader else []
        ahead = estimate_missing(missing, devices).seconds if run.leader else None
        watcher(Started(title, tuple(run.work(job) for job in jobs), seconds=ahead))
        pending = list(jobs)
        while pending:
            left = []
            for place, job in enumerate(pending, 1):
                if run.attend(job, pending[place:]):
                    when_done(job)
                else:
                    left.append(job)
            if len(left) == len(pending):
                watcher(Waiting(len(left)))
                time.sleep(0.5)
            pending = left
    meet("all that was trained is stored")


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
    """What all jobs of one call share."""

    def __init__(
        self, devices: Sequence[jax.Device], watcher: Watcher, checkpoint_seconds: float, ahead: Ahead
    ):  # fmt: skip
        self.devices, self.watcher, self.checkpoint_seconds, self.ahead = devices, watcher, checkpoint_seconds, ahead
        self.leader = jax.process_index() == 0  # of several hosts the first decides and writes

    def work(self, job: Job) -> Work:
        """The job as watchers know it."""
        return work_of(job, len(job.stored()) if self.leader else 0)

    def attend(self, job: Job, later: Sequence[Job] = ()) -> bool:
        """Run a job unless somebody else is at it; says whether it is done. ``later`` are those that come after it."""
        wait = jax.process_count() > 1  # the other hosts follow the first batch by batch
        with job.lock(wait) if self.leader else contextlib.nullcontext(True) as free:
            if not free:
                return False
            if self.leader:
                job.refresh()
                job.take_over()
            missing = self._missing(job)
            if missing:
                if self.leader:
                    job.create()
                groups = list(job.groups(missing))
                for place, group in enumerate(groups, 1):
                    self._train(job, group, groups[place:], later)
                if self.leader:
                    remove_batches(job.path)
            self.watcher(Finished(self.work(job), len(missing)))
            return True

    def _missing(self, job: Job) -> list[int]:
        """Lifetimes that are not stored, by the first process's account."""
        done = job.stored() if self.leader else set()
        mask = np.array([index not in done for index in range(job.lifetimes)], np.int32)
        return [int(index) for index in np.flatnonzero(broadcast(mask))]

    def _train(self, job: Job, group: Group, others: Sequence[Group], later: Sequence[Job]) -> None:
        """Train lifetimes a device batch at a time; every finished batch is stored. ``others`` are the job's next."""

        def upcoming() -> Iterator[tuple[Group, int]]:
            yield from ((each, job.experiment.vmap_size) for each in others)
            for one in later:
                missing = sorted(set(range(one.lifetimes)) - one.stored())
                yield from ((each, one.experiment.vmap_size) for each in one.groups(missing) if missing)

        def prepare() -> None:
            for each, vmap_size in upcoming():
                prepare_program(*_wanted(each, vmap_size, self.devices))
                return

        def compiled() -> None:
            if jax.process_count() == 1:  # several hosts do the same in the same order
                self.ahead.begin(prepare)

        def checkpoint(places: range) -> BatchCheckpoint | None:
            indices = [group.indices[place] for place in places]
            return self._checkpoint(job, indices) if self.leader else None

        self.ahead.wait()
        batches = run_group(
            group, self.work(job), job.experiment.vmap_size, self.devices, self.watcher, checkpoint, job.save_agents,
            compiled,
        )  # fmt: skip
        for program, indices, batch in batches:
            if self.leader:
                facts = facts_of(program, len(indices), batch)
                job.add(group.lifetime, indices, batch, facts)
                self._checkpoint(job, indices).remove()

    def _checkpoint(self, job: Job, indices: Sequence[int]) -> BatchCheckpoint:
        return BatchCheckpoint(job.path, indices, self.checkpoint_seconds, job.digest(indices))


def work_of(job: Job, stored: int = 0) -> Work:
    """A job as watchers know it, with so many of its lifetimes stored."""
    task = job.experiment.task
    return Work(job.name, job.label, task.num_updates, task.lifetime_steps, job.lifetimes, stored, job.counted)


def run_group(
    group: Group, work: Work, vmap_size: int, devices: Sequence[jax.Device], watcher: Watcher,
    checkpoint: Callable[[range], BatchCheckpoint | None] = lambda places: None, keep_agents: bool = False,
    compiled: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Program, list[int], runner.Finished]]:  # fmt: skip
    """Compile a group's program and run its lifetimes a device batch at a time, with their indices; stores nothing.

    ``compiled`` is called between the two.
    """
    watcher(Compiling(work, tuple(group.indices) if work.counted == "seed" else ()))
    program = shared_program(*_wanted(group, vmap_size, devices))
    watcher(Compiled(work, program.compile_seconds))
    compiled()
    told = functools.partial(tell, watcher, work)
    for batch in runner.run_lifetimes(program, group.keys, group.inputs, told, checkpoint, keep_agents):
        yield program, [group.indices[place] for place in batch.indices], batch


def _wanted(group: Group, vmap_size: int, devices: Sequence[jax.Device]) -> tuple[Any, ...]:
    """What ``shared_program`` is asked for."""
    own = group.own is not None
    example = jax.tree.map(lambda leaf: leaf[0], group.own) if own else group.inputs
    make = lambda: compile_program(group.lifetime, example, devices, vmap_size, len(group.indices), own)
    devices_used = tuple(devices[: -(-len(group.indices) // vmap_size)])
    return group.experiment, example, (devices_used, vmap_size, own, group.diagnose), make


def description(experiment: Experiment) -> dict[str, Any]:
    """What ``experiment.json`` says beside the identity."""
    optimizer, reports = experiment.optimizer, find_algorithm(experiment.task.algorithm).reports
    return {
        "family": experiment.task.environment.family,
        "hyperparameter_origin": optimizer.origin if optimizer else "none",
        "theta_source": optimizer.source if optimizer else None,
        "tuning_trials": optimizer.tuning_trials if optimizer else 0,
        "tuning_env_steps": optimizer.tuning_env_steps if optimizer else 0,
        **_of_weights(optimizer),
        "env_steps": experiment.task.lifetime_steps,
        "metrics": {name: METRICS[name].label for name in metrics_of(reports)},
    }


def _of_weights(optimizer: ResolvedOptimizer | None) -> dict[str, Any]:
    """What θ was trained on and what that cost, by its metadata and those of the weights that it began with."""
    metadata = optimizer.weights.metadata if optimizer is not None and optimizer.weights is not None else {}
    ancestors = metadata.get("ancestors")
    said = [
        facts for facts in (metadata, *(ancestors if isinstance(ancestors, list) else ())) if isinstance(facts, Mapping)
    ]
    named = [name for facts in said if isinstance(facts.get("environments"), Mapping) for name in facts["environments"]]
    costs = [facts["cost"].get("env_steps") for facts in said if isinstance(facts.get("cost"), Mapping)]
    steps = sum(cost for cost in costs if isinstance(cost, int) and cost > 0)
    return {"meta_env_steps": steps, "trained_on": ", ".join(dict.fromkeys(map(str, named)))}


def facts_of(program: Program, lifetimes: int, batch: runner.Finished) -> dict[str, Any]:
    """Where a device batch of so many lifetimes was trained, and what it took, as JSON values."""
    lifetime, first = program.lifetime, batch.indices.start == 0
    return {
        **provenance(),
        "devices": program.mesh.size,
        "env_steps": lifetimes * lifetime.num_updates * lifetime.env_steps_per_update,
        "run_seconds": batch.seconds,
        "compile_seconds": program.compile_seconds if first else 0.0,
    }


def rows(lifetime: Lifetime, seeds: Sequence[int], batch: runner.Finished) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of ``scores.csv`` and ``curves.csv``; a diverged lifetime's metrics are NaN."""
    whole = lifetime.num_updates * lifetime.env_steps_per_update
    scores = pd.DataFrame({"seed": seeds, **batch.metrics, "diverged": batch.diverged, "env_steps": whole})
    curves = _points(lifetime, seeds, curve_ends(lifetime.num_updates), {"episode_return": batch.curves})
    return scores, curves


def diagnosis_rows(lifetime: Lifetime, seeds: Sequence[int], batch: runner.Finished) -> pd.DataFrame | None:
    """The rows of ``diagnosis.csv``: a diverged lifetime's are what was measured until then; None without diagnosis."""
    ends = curve_ends(lifetime.num_updates, MAX_MEASURED)
    return _points(lifetime, seeds, ends, batch.diagnosis) if batch.diagnosis else None


def _points(lifetime: Lifetime, seeds: Sequence[int], ends: np.ndarray, values: dict[str, np.ndarray]) -> pd.DataFrame:
    """A row a seed and update of ``ends``, from columns (seeds, ends)."""
    steps = ends.astype(np.int64) * lifetime.env_steps_per_update
    columns = {name: value.reshape(-1) for name, value in values.items()}
    return pd.DataFrame({"seed": np.repeat(seeds, len(ends)), "env_steps": np.tile(steps, len(seeds)), **columns})
