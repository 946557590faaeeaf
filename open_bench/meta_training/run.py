"""One meta-training from request to stored weights: ``<results>/meta/<name>/`` and the library of weights."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
import pandas as pd

from open_bench.algorithms.registry import algorithm_name
from open_bench.config import Execution
from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import load_baseline_returns
from open_bench.events import Compiled, Evaluated, Started, Watcher, Work
from open_bench.experiments.estimate import lifetime_seconds
from open_bench.experiments.execute import stream, tell
from open_bench.experiments.provenance import provenance
from open_bench.experiments.session import watcher_of
from open_bench.experiments.store import Store
from open_bench.meta_training import fitness as work
from open_bench.meta_training.checkpoint import Checkpoints
from open_bench.meta_training.evolution import Evolved, check_generations, evolve
from open_bench.meta_training.fitness import Evaluator, Fitness, FitnessTask
from open_bench.meta_training.imitation import Imitator
from open_bench.meta_training.logging import logged
from open_bench.meta_training.request import COMPARED, Request, after, make_requests
from open_bench.meta_training.spec import MetaConfig, adjusted
from open_bench.optimizers.registry import name_of
from open_bench.optimizers.spec import EMPTY_THETA, Theta
from open_bench.training.devices import start
from open_bench.training.task import Settings
from open_bench.weights import library
from open_bench.weights.format import WeightsError, content_hash, load_weights, save_weights

LOCK = ".lock"  # held by the process that evolves in a folder
LATEST = "latest.safetensors"  # θ as it is, with its metadata


@dataclasses.dataclass(frozen=True)
class MetaTrained:
    """Stored weights and how they came about.

    Attributes:
        name: of the weights.
        optimizer: what to call the optimizer with them, as in ``open@NAME``.
        path: the file in the library of weights.
        hash: of their content.
        theta: the mean after the last generation.
        history: a row a generation.
        imitation: a row a part of the imitation; empty where there was none.
        metadata: of the weights.
        folder: checkpoints, ``history.csv``, ``imitation.csv``, ``latest.safetensors`` and ``best.safetensors``,
            and with ``save_every`` ``generation-….safetensors``.
        stages: those before, in order, where the study has stages.
    """

    name: str
    optimizer: str
    path: Path
    hash: str
    theta: Theta
    history: pd.DataFrame
    imitation: pd.DataFrame
    metadata: dict[str, Any]
    folder: Path
    stages: tuple["MetaTrained", ...] = ()


def evolve_weights(
    optimizer: Any, study: str | MetaConfig | None, changes: Mapping[str, Any], settings: Settings | None,
    execution: Execution, name: str | None, tensorboard: bool, wandb: str | None,
) -> MetaTrained:  # fmt: skip
    """``open_bench.meta_train``: check all stages, then evolve and store one after another."""
    fields = {field.name for field in dataclasses.fields(Execution)} - {"vmap_size"}
    execution = execution.but({key: value for key, value in changes.items() if key in fields})
    Store(execution.folder).check_writable()
    changes = {key: value for key, value in changes.items() if key not in fields}
    changes["algorithm"] = algorithm_name(changes.get("algorithm"))
    config = adjusted(study, {**changes, "vmap_size": changes.get("vmap_size") or execution.vmap_size})
    _warn_of_unused(config, tensorboard, wandb)
    devices = start(execution.devices, execution.executor)
    requests = make_requests(name_of(optimizer), config, load_baseline_returns(), devices, settings)
    last = name or requests[-1].default_name
    named = [last + each.config.name.removeprefix(config.name) for each in requests[:-1]] + [last]
    for each, request in zip(named, requests, strict=True):
        check_name_is_free(library.check_can_keep(each), request)
    done: tuple[MetaTrained, ...] = ()
    for index, (each, request) in enumerate(zip(named, requests, strict=True)):
        begun = after(request, done[-1].name, done[-1].theta, done[-1].metadata) if done else request
        watcher = logged(watcher_of(execution), begun, execution.folder, each, tensorboard, wandb)
        later = tuple(_plan(other, devices) for other in requests[index + 1 :])
        done += (meta_train(begun, execution.folder, each, devices, watcher, provenance(), later),)
    return dataclasses.replace(done[-1], stages=done[:-1])


def _warn_of_unused(config: MetaConfig, tensorboard: bool, wandb: str | None) -> None:
    """Without generations, what is done every so many of them is never done."""
    if config.generations:
        return
    asked = {"evaluate_every": config.evaluate_every, "save_every": config.save_every, "tensorboard": tensorboard,
             "wandb": wandb}  # fmt: skip
    unused = [name for name, value in asked.items() if value]
    if unused:
        warnings.warn(
            f"generations = 0: {', '.join(unused)} {'does' if len(unused) == 1 else 'do'} nothing. Each round of "
            "imitation has a check of its own, on the environments that it imitates on",
            stacklevel=3,
        )


def meta_train(
    request: Request,
    results: Path,
    name: str | None,
    devices: Sequence[jax.Device],
    watcher: Watcher,
    facts: Mapping[str, Any],
    later: tuple[Started, ...] = (),
) -> MetaTrained:
    """Imitate and evolve, as the request says, or go on with it, and store the weights.

    Args:
        request: what to do.
        results: folder to write to.
        name: of the weights and of the folder under ``<results>/meta``; by default it follows from the request.
        devices: devices of all processes.
        watcher: of the events.
        facts: about machine and packages, for the weights' metadata.
        later: what comes after it, for the watcher.

    Raises:
        UserError: the name is taken, another process is at work in the folder, or evolution cannot go on.
    """
    name = library.check_can_keep(name or request.default_name)
    folder, leader = results / "meta" / name, jax.process_index() == 0
    check_name_is_free(name, request)
    if leader and (folder / LOCK).exists():
        with _lock(folder):  # a busy folder is known before anything is told, and nothing is made before that
            pass
    with ExitStack() as held, stream(watcher):
        checkpoints = Checkpoints(folder, request.identity)

        @functools.cache
        def begin() -> None:
            if leader:
                held.enter_context(_lock(folder))
                checkpoints.clear_temporaries()

        theta, imitation = request.start, list[dict[str, Any]]()
        if request.teachers:
            imitator = Imitator(request, devices, folder, watcher, work_of, leader)
            own = (_plan(request, devices),) if request.config.generations else ()
            watcher(dataclasses.replace(imitator.started(), later=(*own, *later)))
            begin()
            theta, imitation = imitator.run()

        def about(evolved: Evolved) -> dict[str, Any]:
            return describe(request, evolved, imitation, facts, len(devices))

        def keep(evolved: Evolved) -> None:
            path = folder / f"generation-{len(evolved.history):06d}.safetensors"
            save_weights(path, evolved.theta, about(evolved))

        evolved = _evolve(request, theta, devices, watcher, checkpoints, begin, keep, leader, later)
        metadata = _as_stored(about(evolved), evolved.theta, folder)
        if leader:
            if evolved.history:
                checkpoints.write_history(evolved.history)
            _store(evolved, metadata, name, folder, request)
    path = library.library_dir() / f"{name}.safetensors"
    histories = pd.DataFrame(evolved.history), pd.DataFrame(imitation)
    optimizer = f"{request.optimizer}@{name}"
    return MetaTrained(name, optimizer, path, content_hash(evolved.theta), evolved.theta, *histories, metadata, folder)


def _evolve(
    request: Request, theta: Theta, devices: Sequence[jax.Device], watcher: Watcher, checkpoints: Checkpoints,
    begin: Callable[[], None], keep: Callable[[Evolved], None], leader: bool, later: tuple[Started, ...],
) -> Evolved:  # fmt: skip
    """The generations that are missing, from θ; with none asked for θ stays."""
    if not request.config.generations:
        saved = checkpoints.load()
        check_generations(saved.generation if saved else 0, request.config, checkpoints.folder)
        return Evolved(theta, theta, float("-inf"), [], 0.0)
    population = _Population(request, devices, watcher)
    return evolve(
        request.config,
        theta,
        population.evaluate,
        checkpoints=checkpoints,
        watcher=watcher,
        begin=begin,
        prepare=population.prepare,
        evaluate_mean=population.evaluate_mean,
        keep=keep,
        writes=leader,
        work=_work(request),
        generation_seconds=_generation_seconds(request, devices),
        later=later,
    )


def _plan(request: Request, devices: Sequence[jax.Device]) -> Started:
    """An evolution from its beginning, for watchers."""
    config, each = request.config, _generation_seconds(request, devices)
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(request.start))
    seconds = None if each is None else each * config.generations
    return Started(config.name, _work(request), config.generations, 0, size, seconds)


def _work(request: Request) -> tuple[Work, ...]:
    return tuple(work_of(task, _lifetimes(request)) for task in request.tasks)


def work_of(task: FitnessTask, lifetimes: int) -> Work:
    """A task's part of a generation, as watchers know it."""
    label = f"{task.task.name} · {task.task.algorithm}"
    return Work(task.task.name, label, task.task.num_updates, task.task.lifetime_steps, lifetimes)


def _lifetimes(request: Request) -> int:
    """Of a generation, on each environment."""
    return request.config.population * request.config.rollouts


def _generation_seconds(request: Request, devices: Sequence[jax.Device]) -> float | None:
    """What a generation takes, roughly; None on accelerators."""
    each = [lifetime_seconds(task.task, True, devices) for task in request.tasks]
    known = [seconds for seconds in each if seconds is not None]
    return _lifetimes(request) * sum(known) / len(devices) if known else None


class _Population:
    """Evaluates populations, and the mean, on programs that are compiled when they are first needed."""

    def __init__(self, request: Request, devices: Sequence[jax.Device], watcher: Watcher):
        self._request, self._devices, self._watcher = request, devices, watcher
        self._evaluators: dict[tuple[str, str], Evaluator] = {}
        self._compared: dict[str, float] = {}

    def prepare(self) -> None:
        """Compile the programs that generations and evaluations need."""
        for task in (*self._request.tasks, *self._request.held_out, *self._request.compared):
            self._evaluator(task)

    def evaluate(self, population: Theta, generation: int) -> Fitness:
        """Fitness of every member in a generation."""
        config, tasks = self._request.config, self._request.tasks
        total, done = config.population * config.rollouts * len(tasks), 0

        def show(count: int) -> None:
            nonlocal done
            done += count
            self._watcher(Evaluated(done, total))

        results = []
        for task in tasks:
            keys = work.generation_keys(config, task.task.name, generation)
            part = work_of(task, _lifetimes(self._request))
            told = functools.partial(tell, self._watcher, part)
            results.append(self._evaluator(task).returns(population, keys, config.fitness, show, told))
        return work.combine(tasks, results, pairs=config.task_sampling == "antithetic")

    def evaluate_mean(self, theta: Theta) -> dict[str, float]:
        """Returns of θ and of Adam on seeds that are never trained on, the same at every evaluation."""
        for task in self._request.compared:
            if task.task.name not in self._compared:
                self._compared[task.task.name] = self._return(task, EMPTY_THETA)
        found: dict[str, float] = {}
        for task in (*self._request.tasks, *self._request.held_out):
            environment = task.task.name
            found[f"return.{environment}"] = self._return(task, theta)
            found[f"{COMPARED}.{environment}"] = self._compared[environment]
        return found

    def _return(self, task: FitnessTask, theta: Theta) -> float:
        """Mean return over the evaluation's rollouts; NaN when one of them failed."""
        config = self._request.config
        where = (config.root_seed, work.EVALUATION, task.task.name, 0, config.evaluation_rollouts)
        alone = jax.tree.map(lambda leaf: np.asarray(leaf)[None], theta)
        values, _ = self._evaluator(task).returns(alone, work.rollout_keys(*where), config.fitness)
        return float(values.mean())

    def _evaluator(self, task: FitnessTask) -> Evaluator:
        config = self._request.config
        trained_on = any(task is other for other in self._request.tasks)
        lifetimes = config.population * config.rollouts if trained_on else config.evaluation_rollouts
        key = (task.optimizer.label, task.task.name)
        if key not in self._evaluators:
            made = Evaluator(task, self._devices, self._request.vmap_size, lifetimes)
            self._watcher(Compiled(work_of(task, lifetimes), made.program.compile_seconds))
            self._evaluators[key] = made
        return self._evaluators[key]


class Busy(UserError):
    """Another process holds the folder."""


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder; freed by the system when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}. Choose another --name or --results") from error
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise Busy(f"{folder}: another process is meta-training there") from None
    try:
        yield
    finally:
        lock.release()


def check_name_is_free(name: str, request: Request) -> None:
    """Hours of evolution must not end at a name that is taken; earlier weights of the same request may be replaced."""
    path = library.kept(library.check_can_keep(name))
    if path is None:
        return
    if path.suffix != library.OWN or load_weights(path).metadata.get("run") != request.digest:
        raise WeightsError(f"{path} holds other weights; choose another --name or remove that file")


def _store(evolved: Evolved, metadata: Mapping[str, Any], name: str, folder: Path, request: Request) -> None:
    """Keep θ in the folder, and in the library unless others have taken the name meanwhile."""
    if evolved.history:
        fitness = evolved.best_fitness if np.isfinite(evolved.best_fitness) else None  # all members failed
        best = {**metadata, "which": "best", "fitness": fitness}
        save_weights(folder / "best.safetensors", evolved.best, best)
    latest = folder / LATEST
    save_weights(latest, evolved.theta, metadata)
    try:
        check_name_is_free(name, request)
    except WeightsError as error:
        raise WeightsError(
            f"{error}. It was free when this began; what was made is in {latest}: keep it by `openbench weights import "
            f"{latest} --optimizer {request.optimizer} --name ANOTHER`"
        ) from error
    save_weights(library.library_dir() / f"{name}{library.OWN}", evolved.theta, metadata)


def _as_stored(metadata: dict[str, Any], theta: Theta, folder: Path) -> dict[str, Any]:
    """The metadata that θ was stored with: where nothing has been made since, this machine has no part in it."""
    try:
        stored = load_weights(folder / LATEST)
    except WeightsError:  # none yet, or damaged
        return metadata
    same = stored.hash == content_hash(theta) and stored.metadata.get("run") == metadata["run"]
    return dict(stored.metadata) if same and _generations(stored.metadata) == _generations(metadata) else metadata


def _generations(metadata: Mapping[str, Any]) -> Any:
    return metadata["cost"]["generations"]


_NOTHING: dict[str, Any] = {"env_steps": 0, "lifetimes": 0, "generation": 0, "seconds": 0.0, "fitness_mean": np.nan}


def describe(
    request: Request, evolved: Evolved, imitation: list[dict[str, Any]], facts: Mapping[str, Any], devices: int
) -> dict[str, Any]:
    """How weights were made, as JSON values: for their metadata. The cost is that of imitation and evolution."""
    last = evolved.history[-1] if evolved.history else _NOTHING
    before = imitation[-1] if imitation else _NOTHING
    return {
        "optimizer": request.optimizer,
        "policy_loss": request.policy_loss,
        "parameters": int(sum(np.size(leaf) for leaf in jax.tree.leaves(evolved.theta))),
        "parent": request.parent,
        "ancestors": list(request.ancestors),
        "run": request.digest,
        "which": "latest",
        "environments": {each.task.name: {"env_steps": each.task.lifetime_steps} for each in request.tasks},
        "held_out": [each.task.name for each in request.held_out],
        "config": request.config.model_dump(mode="json"),
        "identity": request.identity,
        "root_seed": request.config.root_seed,
        "fitness": last["fitness_mean"] if np.isfinite(last["fitness_mean"]) else None,
        **({"imitation": _of_imitation(before)} if imitation else {}),
        "cost": {
            "env_steps": before["env_steps"] + last["env_steps"],
            "lifetimes": before["lifetimes"] + last["lifetimes"],
            "generations": last["generation"],
            "seconds": round(before["seconds"] + evolved.seconds, 3),
            "devices": devices,
            "device": facts.get("hardware", "unknown"),
        },
        "provenance": {**facts, "packages": {**facts.get("packages", {}), "evosax": version("evosax")}},
    }


def _of_imitation(row: Mapping[str, Any]) -> dict[str, Any]:
    """What imitation ended with: losses, returns beside the teacher's, and its share of the cost."""
    return {key: None if isinstance(x, float) and not np.isfinite(x) else x for key, x in row.items()}
