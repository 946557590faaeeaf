"""Jobs on the workers of a Ray cluster: they train and stream what comes out, and this process alone stores it.

No file system is shared. A worker gets names, settings, seeds and θ, makes the experiment again, and refuses where it
is another one there. A lost worker loses the device batch that it was at; what is left of its part goes to another.
Ray's own retries are off: they would begin again with what is stored already.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import queue
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from open_bench.config import RAY, Execution
from open_bench.errors import UserError, installed_with
from open_bench.events import Advanced, Event, Finished, Started, Waiting, Watcher, Work
from open_bench.experiments.checkpoint import remove_batches
from open_bench.experiments.estimate import estimate_missing, lifetime_seconds
from open_bench.experiments.execute import Group, Job, facts_of, run_group, stream, work_of
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.rebuild import rebuild
from open_bench.optimizers import registry
from open_bench.training import runner
from open_bench.training.devices import Device, RemoteDevice, start
from open_bench.weights.format import Theta

CONNECT_SECONDS = 10.0  # until somebody answers at an address
STATUS_SECONDS = 30.0  # until it says that it is a cluster's head
WORKER_SECONDS = 300.0  # until the first worker has started
WAIT_SECONDS = 0.5  # between two looks at jobs that other processes hold
PARTS = 4  # tasks of a worker, where lifetimes are enough and long: none waits long for the last
EVENTS_A_SECOND = 20  # of progress, from all workers together: each takes the driver milliseconds
LEAST_SECONDS = 30.0  # of training in a task that is not a whole experiment: each compiles its program
TRIES = 5  # of a part, in a row, without a device batch


class Portion(NamedTuple):
    """What a worker gets: small values and arrays."""

    content: dict[str, Any]  # what ``rebuild`` needs of experiment.json
    theta: Theta | None
    indices: list[int]
    seeds: list[int]
    own: Any
    diagnose: bool
    work: Work
    save_agents: bool
    devices: int
    tell_seconds: float  # between two events of progress


class Batch(NamedTuple):
    """A device batch that a worker has finished."""

    indices: list[int]  # which of the job's
    finished: runner.Finished
    facts: dict[str, Any]


# --- the cluster ------------------------------------------------------------------------------------------------------


def devices_for(execution: Execution) -> list[Device]:
    """The devices to use: this process's, or one for each task that a Ray cluster has room for."""
    if execution.executor == RAY:
        return connect(execution.address, 1 if execution.devices is None else execution.devices)
    return list(start(execution.devices, execution.executor))


def connect(address: str | None = None, devices: int = 1) -> list[Device]:
    """Join a Ray cluster, or begin one of this machine, and say what each task will have there.

    Args:
        address: HOST:PORT of its head; None: the cluster that this machine belongs to, else one of this machine alone.
            A process that is in a cluster already stays there.
        devices: GPUs of a task, or CPUs where the cluster has no GPU.

    Raises:
        UserError: Ray is not installed, nothing answers, no node has so many devices, or workers cannot start.
    """
    ray = _ray()
    if not ray.is_initialized():
        _join(ray, address)
    kind = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
    nodes = [node["Resources"].get(kind, 0.0) for node in ray.nodes() if node["Alive"]]
    most = max(nodes, default=0)
    if not 1 <= devices <= most:
        raise UserError(f"--devices {devices}: the nodes of this cluster have at most {most:g} {kind}s")
    if kind == "GPU":  # whose memory is the workers'; no matter where JAX runs already
        jax.config.update("jax_platforms", "cpu")
    try:
        found = ray.get(_task(ray, describe, kind, devices).remote(devices), timeout=WORKER_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise UserError(
            f"no worker with {devices} {kind} has started within {WORKER_SECONDS:.0f} s: `ray status` says who has them"
        ) from None
    except ray.exceptions.RayError as error:
        raise UserError(
            f"a worker of the cluster cannot start: {_reason(error)}. Every node needs this version of open-bench"
        ) from None
    return [found] * sum(int(count // devices) for count in nodes)


def describe(devices: int) -> RemoteDevice:
    """What a worker has."""
    found = start(devices)[0]
    return RemoteDevice(found.platform, (found.memory_stats() or {}).get("bytes_limit"), devices)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError(f"executor ray needs Ray ({error}): {installed_with('ray')}") from None
    return ray


def _join(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that begins here reports to nobody
    if address is not None:
        reach(address)
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address}" if address else "a Ray cluster"
        raise UserError(f"cannot join {where}: {error}") from None


def reach(address: str) -> None:
    """Raise UserError unless a cluster's head answers there; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise UserError(f"--address {address}: expected HOST:PORT of the cluster's head, such as 10.0.0.1:6379")
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        subprocess.run(command, capture_output=True, check=True, timeout=STATUS_SECONDS)
    except (OSError, OverflowError, subprocess.SubprocessError) as error:
        why = error if isinstance(error, OSError | OverflowError) else "something else listens there"
        raise UserError(
            f"no Ray cluster answers at {address} ({why}): `ray start --head` begins one and names its address"
        ) from None


def _task(ray: Any, function: Callable[..., Any], kind: str, devices: int, **options: Any) -> Any:
    """A function as a Ray task that declares what it takes."""
    takes = {"num_gpus": devices} if kind == "GPU" else {}
    return ray.remote(function).options(num_cpus=1 if takes else devices, **takes, max_retries=0, **options)


def _reason(error: Exception) -> str:
    """What a task failed with, without Ray's traceback."""
    cause = getattr(error, "cause", None) or error
    return f"{cause}" if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"


# --- what travels -----------------------------------------------------------------------------------------------------


def check_portable(experiment: Experiment) -> None:
    """Raise UserError for what workers could not make again: code that this process alone has."""
    optimizer, environment = experiment.optimizer, experiment.task.environment
    identity, what = experiment.identity, f"{experiment.label} on {experiment.task.name}"
    mine = not environment.stored
    if optimizer is not None:
        mine = mine or optimizer.spec.digest is None or registry.registered_here(optimizer.spec)
    if mine or any(str(identity[key]).startswith("__main__:") for key in ("optimizer", "source", "algorithm")):
        raise UserError(
            f"{what} is defined in this session or script, which the workers of a cluster cannot import: put it into a "
            "module that every node has, and name it 'module:attribute'"
        )
    try:
        rebuild(content_of(experiment), own_code=True, theta=theta_of(experiment))
    except UserError as error:
        raise UserError(f"{what} cannot be made again by the workers of a cluster: {error}") from None
    settings = optimizer.hyperparameters if optimizer is not None else {}
    stuck = [key for key, value in settings.items() if not isinstance(value, bool | int | float | str | None)]
    if stuck:
        raise UserError(f"{what}: {', '.join(stuck)} cannot be sent to a cluster, as only numbers and texts can")


def content_of(experiment: Experiment) -> dict[str, Any]:
    """What of ``experiment.json`` makes it again."""
    return {"identity": json.loads(json.dumps(experiment.identity)), "family": experiment.task.environment.family}


def theta_of(experiment: Experiment) -> Theta | None:
    """θ, for a worker that need not have the weights; None where nothing is learned."""
    optimizer = experiment.optimizer
    return jax.tree.map(np.asarray, optimizer.theta) if optimizer is not None and optimizer.needs_weights else None


def some_of(group: Group, places: Sequence[int]) -> Group:
    """The lifetimes at some places of a group."""
    own = None if group.own is None else jax.tree.map(lambda leaf: np.asarray(leaf)[list(places)], group.own)
    indices, seeds = ([values[place] for place in places] for values in (group.indices, group.seeds))
    return dataclasses.replace(group, indices=indices, seeds=seeds, own=own)


def split(group: Group, size: int) -> Iterator[Group]:
    """A group in parts of ``size`` lifetimes."""
    for first in range(0, len(group.indices), size):
        yield some_of(group, range(first, min(first + size, len(group.indices))))


def train(portion: Portion) -> Iterator[Event | Batch]:
    """What a worker does: events, and every device batch."""
    yield from thinned(_as_it_happens(portion), portion.tell_seconds)


def thinned(
    told: Iterator[Event | Batch], seconds: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[Any]:
    """The same with less progress: what is made within ``seconds`` is told together. Nothing else waits or is lost."""
    made: Advanced | None = None
    last = -math.inf
    for each in told:
        if isinstance(each, Advanced):
            if made is not None:
                each = dataclasses.replace(
                    each, updates=made.updates + each.updates, seconds=made.seconds + each.seconds
                )
            made = each
            if clock() - last < seconds:
                continue
            last, each, made = clock(), made, None
        elif made is not None:
            yield made
            made = None
        yield each
    if made is not None:
        yield made


def _as_it_happens(portion: Portion) -> Iterator[Event | Batch]:
    devices = start(portion.devices)
    experiment = rebuild(portion.content, own_code=True, theta=portion.theta)
    group = Group(portion.indices, experiment, portion.seeds, portion.own, portion.diagnose)
    told: queue.SimpleQueue[Event | Batch] = queue.SimpleQueue()

    def run() -> None:
        batches = run_group(
            group, portion.work, experiment.vmap_size, devices, told.put, keep_agents=portion.save_agents
        )
        for program, indices, batch in batches:
            told.put(Batch(indices, batch, facts_of(program, len(indices), batch)))

    pool = ThreadPoolExecutor(1)  # events come in the middle of a batch
    training = pool.submit(run)
    try:
        while not (training.done() and told.empty()):
            with contextlib.suppress(queue.Empty):
                yield told.get(timeout=0.1)
        training.result()
    finally:
        pool.shutdown(wait=False)  # who asks for no more may be anyone, the pool's own thread among them


# --- the driver -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Begun:
    """A job whose lock is held here."""

    job: Job
    work: Work
    held: contextlib.ExitStack
    missing: int
    parts: int = 0  # that are not done


@dataclasses.dataclass
class _Part:
    """Lifetimes of a job that one task trains, without those that are stored."""

    of: _Begun
    group: Group
    tries: int = 0


def spread(
    jobs: Sequence[Job], devices: Sequence[RemoteDevice], watcher: Watcher, *, title: str,
    when_done: Callable[[Job], None] = lambda job: None, least_seconds: float = LEAST_SECONDS,
) -> None:  # fmt: skip
    """``execute_jobs`` on the workers of the cluster that ``connect`` has joined.

    A task is an experiment's missing lifetimes. Where those are more than a worker's fair share, they are split, but
    not below ``least_seconds`` of training, as far as it can be told.
    """
    for job in jobs:
        check_portable(job.experiment)
    stored = [len(job.stored()) for job in jobs]
    missing = [(job.experiment, job.lifetimes - there) for job, there in zip(jobs, stored, strict=True)]
    ahead = estimate_missing(missing, devices)
    with stream(watcher):
        parts = tuple(work_of(job, there) for job, there in zip(jobs, stored, strict=True))
        watcher(Started(title, parts, seconds=ahead.seconds))
        run = _Spread(devices, watcher, when_done, ahead.env_steps / (PARTS * len(devices)), least_seconds)
        # Ray tells of lost nodes on stdout, which is for results.
        with contextlib.closing(run), contextlib.redirect_stdout(sys.stderr):
            run.train(jobs)


class _Spread:
    """Jobs under way on a cluster; ``share`` (env steps) and ``least_seconds`` say how much makes a task."""

    def __init__(
        self, devices: Sequence[RemoteDevice], watcher: Watcher, when_done: Callable[[Job], None], share: float,
        least_seconds: float,
    ):  # fmt: skip
        self.ray, self.workers, self.each = _ray(), len(devices), devices[0]
        self.watcher, self.when_done, self.share, self.least_seconds = watcher, when_done, share, least_seconds
        kind = "CPU" if self.each.platform == "cpu" else "GPU"
        self.task = _task(self.ray, train, kind, self.each.count, num_returns="streaming")
        self.begun: list[_Begun] = []
        self.parts: deque[_Part] = deque()  # not sent yet
        self.running: dict[Any, _Part] = {}  # by the stream of what they yield
        self.look_again = 0.0  # at jobs that others hold

    def train(self, jobs: Sequence[Job]) -> None:
        """Until every job is complete, whoever completes it."""
        waiting = deque(jobs)
        while waiting or self.begun:
            self._begin(waiting)
            while self.parts and len(self.running) < self._most:
                part = self.parts.popleft()
                self.running[self.task.remote(self._portion(part))] = part
            if self.running:
                self._collect()
            elif waiting:
                self.watcher(Waiting(len(waiting)))
                time.sleep(WAIT_SECONDS)

    def close(self) -> None:
        """Stop what runs and let go of every job."""
        for task in self.running:
            with contextlib.suppress(Exception):  # the cluster may be gone
                self.ray.cancel(task, force=True)
        for each in self.begun:
            each.held.close()

    @property
    def _most(self) -> int:
        """Tasks at once: the next ones wait at the workers. No more jobs are locked than they need."""
        return 2 * self.workers

    def _begin(self, waiting: deque[Job]) -> None:
        """Lock jobs and cut them into parts, as many as there is room for."""
        busy = 0
        while waiting and busy < len(waiting) and len(self.running) + len(self.parts) < self._most:
            if busy == 0 and time.monotonic() < self.look_again:
                return
            job, held = waiting.popleft(), contextlib.ExitStack()
            if not held.enter_context(job.lock(False)):
                held.close()
                waiting.append(job)
                busy += 1
                continue
            self._cut(job, held)
        if busy and busy == len(waiting):
            self.look_again = time.monotonic() + WAIT_SECONDS

    def _cut(self, job: Job, held: contextlib.ExitStack) -> None:
        job.refresh()
        job.take_over()
        stored = job.stored()
        missing = [index for index in range(job.lifetimes) if index not in stored]
        begun = _Begun(job, work_of(job, len(stored)), held, len(missing))
        self.begun.append(begun)
        if missing:
            job.create()
            size = self._size(job.experiment)
            parts = [_Part(begun, part) for group in job.groups(missing) for part in split(group, size)]
            begun.parts = len(parts)
            self.parts += parts
        else:
            self._end(begun)

    def _size(self, experiment: Experiment) -> int:
        """Lifetimes of a task: whole device batches."""
        batch, learned = experiment.vmap_size * self.each.count, bool(theta_of(experiment))
        seconds = lifetime_seconds(experiment.task, learned, [self.each])
        least = 0.0 if seconds is None else self.least_seconds / seconds * self.each.count
        return batch * max(1, round(max(self.share / experiment.task.lifetime_steps, least) / batch))

    def _portion(self, part: _Part) -> Portion:
        group, job = part.group, part.of.job
        return Portion(
            content_of(group.experiment), theta_of(group.experiment), list(group.indices), list(group.seeds), group.own,
            group.diagnose, part.of.work, job.save_agents, self.each.count, self.workers / EVENTS_A_SECOND,
        )  # fmt: skip

    def _collect(self) -> None:
        """Take what the tasks have yielded since the last look, one thing of each."""
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=WAIT_SECONDS)
        for task in ready:
            part = self.running[task]
            try:
                told = self.ray.get(next(task))
            except StopIteration:
                del self.running[task]
                self._done(part)
            except self.ray.exceptions.RayTaskError as error:  # what the worker itself has raised
                if isinstance(error.cause, UserError):
                    raise UserError(f"{part.of.work.label}, on a worker: {error.cause}") from None
                raise
            except self.ray.exceptions.RayError as error:
                del self.running[task]
                self._again(part, error)
            else:
                self._take(part, told)

    def _take(self, part: _Part, told: Event | Batch) -> None:
        if isinstance(told, Batch):
            part.of.job.add(part.group.lifetime, told.indices, told.finished, told.facts)
            left = [place for place, index in enumerate(part.group.indices) if index not in told.indices]
            part.group, part.tries = some_of(part.group, left), 0
            return
        if isinstance(told, Advanced):  # time is told as if one process made everything
            told = dataclasses.replace(told, seconds=told.seconds / min(len(self.running), self.workers))
        self.watcher(told)

    def _again(self, part: _Part, error: Exception) -> None:
        """A worker is lost, and what it had finished is not: another gets the rest, before all else."""
        if not part.group.indices:
            self._done(part)
            return
        part.tries += 1
        if part.tries >= TRIES:
            raise UserError(
                f"{part.of.work.label}: {TRIES} workers in a row were lost at it, the last with "
                f"{type(error).__name__}: {error}. What is finished is stored. Have the nodes enough memory?"
            ) from None
        self.parts.appendleft(part)

    def _done(self, part: _Part) -> None:
        part.of.parts -= 1
        if not part.of.parts:
            self._end(part.of)

    def _end(self, begun: _Begun) -> None:
        job = begun.job
        if begun.missing:
            remove_batches(job.path)
        self.begun.remove(begun)
        self.watcher(Finished(work_of(job, len(job.stored())), begun.missing))
        begun.held.close()
        self.when_done(job)
