"""One meta-training from request to stored weights: ``<results>/meta/<name>/`` and the library of weights."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
import pandas as pd

from open_bench import weights
from open_bench.config import EnvironmentConfig, MetaConfig
from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import BaselineReturns
from open_bench.meta_training import fitness as work
from open_bench.meta_training.checkpoint import Checkpoints
from open_bench.meta_training.evolution import Evolved, Progress, Strategy, evolve
from open_bench.meta_training.fitness import Evaluator, Fitness, Task
from open_bench.optimizers import names
from open_bench.optimizers.spec import EMPTY_THETA, OptimizerSpec, Theta
from open_bench.optimizers.registry import known, resolve
from open_bench.training.estimate import warn_of_long_run
from open_bench.weights.format import WeightsError

REFERENCE_OPTIMIZER = "adam"  # what evaluations of the mean θ are compared with
# These change neither θ nor the rows of the history that are there already.
_FREE = {"name", "description", "generations"}
_SPELT_OUT = {
    "environments",
    "held_out",
    "settings",
    "vmap_size",
    "budget",
    "env_steps",
}  # the identity holds what these lead to
# Settings that came later: left out where they say what was so before, so that older checkpoints still go on.
_SINCE = {"task_sampling": "common"}


@dataclasses.dataclass(frozen=True)
class Request:
    """A meta-training with everything that determines its θ.

    Attributes:
        spec: the optimizer; its name has no source of weights.
        start: θ where the mean starts.
        parent: hash of the weights that it starts from, None for the spec's own beginning.
        ancestors: what those weights, and those that they started from, were trained on; the eldest first.
        config: the settings.
        tasks: what fitness is measured on.
        held_out: what is only evaluated.
        reference: Adam on the tasks and the held-out tasks, when there are evaluations.
        vmap_size: lifetimes in a vmapped group.
    """

    spec: OptimizerSpec
    start: Theta
    parent: str | None
    ancestors: tuple[dict[str, Any], ...]
    config: MetaConfig
    tasks: tuple[Task, ...]
    held_out: tuple[Task, ...]
    reference: tuple[Task, ...]
    vmap_size: int

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines θ, as JSON values; the number of generations does not: more can be added."""
        config = {
            key: value
            for key, value in self.config.model_dump(mode="json").items()
            if key not in _FREE | _SPELT_OUT and (key, value) not in _SINCE.items()
        }
        return {
            "optimizer": self.spec.name,
            "policy_loss": self.spec.policy_loss.name,
            "start": weights.content_hash(self.start),
            "vmap_size": self.vmap_size,
            **config,
            "environments": {task.environment.name: task.identity for task in self.tasks},
            "held_out": {task.environment.name: task.identity for task in self.held_out},
        }

    @property
    def digest(self) -> str:
        """The identity in ten hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def default_name(self) -> str:
        """``<optimizer>-<environments>-<digest>``, made of characters that names of weights may have."""
        words = [self.spec.name, "+".join(task.environment.name for task in self.tasks)]
        return "-".join([*(re.sub(r"[^A-Za-z0-9._-]+", "_", word)[:60] for word in words), self.digest])


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
        folder: checkpoints, ``history.csv``, ``latest.safetensors`` and ``best.safetensors``.
    """

    name: str
    optimizer: str
    path: Path
    hash: str
    theta: Theta
    history: pd.DataFrame
    folder: Path


def make_request(
    optimizer: str,
    config: MetaConfig,
    environments: Sequence[EnvironmentConfig],
    held_out: Sequence[EnvironmentConfig],
    references: BaselineReturns,
    default_vmap_size: int,
) -> Request:
    """Check everything that can be wrong before anything is compiled.

    Args:
        optimizer: a name in the registry's grammar. With a source (``open@NAME``) evolution starts from those weights,
            else where the spec begins, even when weights are kept under its name.
        config: the settings.
        environments, held_out: in the order of the configuration, with the PPO settings in force.
        references: reference returns, to normalize by.
        default_vmap_size: vmap_size when the configuration has none; a generation may be smaller.

    Raises:
        UserError: an optimizer without θ, no environment, an unknown strategy, too great a vmap_size.
    """
    spec, start, parent, ancestors = _beginning(optimizer, config.root_seed)
    if not environments:
        raise UserError("no environment to meta-train on: name one with -e, or in the configuration")
    lifetimes = config.population * config.rollouts
    if config.vmap_size is not None and config.vmap_size > lifetimes:
        raise UserError(
            f"vmap_size {config.vmap_size} is larger than the population: a generation has {lifetimes} lifetimes on an "
            f"environment (population {config.population} × rollouts {config.rollouts})"
        )
    Strategy(config, start)
    if config.task_sampling == "antithetic":
        work.check_levels(environments)
    evaluated = tuple(held_out) if config.evaluate_every else ()

    def plain(environment: EnvironmentConfig, other: OptimizerSpec, theta: Theta) -> Task:
        return work.make_tasks(other, theta, (environment,), config, references)[0]

    reference = resolve(REFERENCE_OPTIMIZER)
    compared = (*environments, *evaluated) if config.evaluate_every else ()
    return Request(
        spec,
        start,
        parent,
        ancestors,
        config,
        work.make_tasks(spec, start, environments, config, references),
        tuple(plain(environment, spec, start) for environment in evaluated),
        tuple(plain(environment, reference, EMPTY_THETA) for environment in compared),
        config.vmap_size or min(default_vmap_size, lifetimes),
    )


def _beginning(optimizer: str, root_seed: int) -> tuple[OptimizerSpec, Theta, str | None, tuple[dict[str, Any], ...]]:
    """The spec without a source, θ where it starts, the hash of the weights that θ comes from, and their ancestry."""
    parsed = names.parse(optimizer)
    spec = resolve(optimizer)
    if not spec.needs_theta:
        learned = [name for name, other in known().items() if other.needs_theta]
        raise UserError(
            f"{optimizer} cannot be meta-trained: it has no meta-parameters θ. Those that ship and have: "
            f"{', '.join(learned)}; any other with the policy_loss lpo, such as {parsed.head}+lpo."
        )
    name = str(dataclasses.replace(parsed, source=None))
    parent: str | None = None
    ancestors: tuple[dict[str, Any], ...] = ()
    if parsed.source is not None:
        assert spec.theta is not None
        theta = spec.theta
        if parsed.source not in ("zero", "init"):
            parent, ancestors = weights.content_hash(theta), ancestry(parsed.source, spec)
    else:
        theta = spec.init_theta(jax.random.key(root_seed))
    spec = dataclasses.replace(spec, name=name, theta=None, theta_source=None, theta_metadata={})
    return spec, _as_float32(theta), parent, ancestors


def ancestry(source: str, spec: OptimizerSpec) -> tuple[dict[str, Any], ...]:
    """What weights and those that they started from were trained on, as metadata of their descendants; eldest first."""
    facts = spec.theta_metadata
    identity = facts.get("identity")
    own = {
        "hash": weights.content_hash(spec.theta) if spec.theta else None,
        "name": Path(source).stem,
        "environments": facts.get("environments", {}),
        "identity": {"environments": identity.get("environments", {}) if isinstance(identity, Mapping) else {}},
        "cost": facts.get("cost", {}),
    }
    return (*facts.get("ancestors", ()), own)


def _as_float32(theta: Theta) -> Theta:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), jax.device_get(theta))


def meta_train(
    request: Request,
    results: Path,
    name: str | None,
    devices: Sequence[jax.Device],
    progress: Progress,
    provenance: Mapping[str, Any],
) -> MetaTrained:
    """Evolve θ, or go on with it, and store the weights.

    Args:
        request: what to do.
        results: folder to write to.
        name: of the weights and of the folder under ``<results>/meta``; by default it follows from the request.
        devices: devices of all processes.
        progress: watcher.
        provenance: facts about machine and packages, for the weights' metadata.

    Raises:
        UserError: the name is taken, another process is at work in the folder, or evolution cannot go on.
    """
    name = weights.check_can_keep(name or request.default_name)
    folder, leader = results / "meta" / name, jax.process_index() == 0
    check_name_is_free(name, request)
    with _lock(folder) if leader else _nothing(), progress.watch():
        checkpoints = Checkpoints(folder, request.identity)
        if leader:
            checkpoints.clear_temporaries()
        population = _Population(request, devices, progress)
        evolved = evolve(
            request.config,
            request.start,
            population.evaluate,
            checkpoints=checkpoints,
            progress=progress,
            prepare=population.prepare,
            evaluate_mean=population.evaluate_mean,
            writes=leader,
        )
        if leader:
            checkpoints.write_history(evolved.history)
            _store(request, evolved, name, folder, provenance, len(devices))
    path = weights.library_dir() / f"{name}.safetensors"
    history = pd.DataFrame(evolved.history)
    optimizer = f"{request.spec.name}@{name}"
    return MetaTrained(name, optimizer, path, weights.content_hash(evolved.theta), evolved.theta, history, folder)


class _Population:
    """Evaluates populations, and the mean, on programs that are compiled when they are first needed."""

    def __init__(self, request: Request, devices: Sequence[jax.Device], progress: Progress):
        self._request, self._devices, self._progress = request, devices, progress
        self._evaluators: dict[tuple[str, str], Evaluator] = {}
        self._reference: dict[str, float] = {}

    def prepare(self, generations: int) -> None:
        """Compile the programs that generations and evaluations need; say when a CPU is no match for the task."""
        config = self._request.config
        for task in self._request.tasks:
            lifetimes = generations * config.population * config.rollouts
            warn_of_long_run(task.environment, lifetimes * task.env_steps, self._devices)
        for task in (*self._request.tasks, *self._request.held_out, *self._request.reference):
            self._evaluator(task)

    def evaluate(self, population: Theta, generation: int) -> Fitness:
        """Fitness of every member in a generation."""
        config, tasks = self._request.config, self._request.tasks
        done = 0

        def show(count: int) -> None:
            nonlocal done
            done += count
            self._progress.evaluated(done, config.population * config.rollouts * len(tasks))

        results = []
        for task in tasks:
            keys = self._keys(task, generation)
            results.append(self._evaluator(task).returns(population, keys, config.fitness, show))
        return work.combine(tasks, results, pairs=config.task_sampling == "antithetic")

    def _keys(self, task: Task, generation: int) -> jax.Array:
        config = self._request.config
        where = (config.root_seed, work.TRAINING, task.environment.name, generation, config.rollouts)
        if config.task_sampling == "antithetic":
            return work.pair_keys(*where, config.population)
        return work.rollout_keys(*where)

    def evaluate_mean(self, theta: Theta, generations: int) -> dict[str, float]:
        """Returns of θ and of Adam on seeds that are never trained on, the same at every evaluation."""
        del generations
        for task in self._request.reference:
            environment = task.environment.name
            if environment not in self._reference:
                self._reference[environment] = self._return(task, EMPTY_THETA)
        found: dict[str, float] = {}
        for task in (*self._request.tasks, *self._request.held_out):
            environment = task.environment.name
            found[f"return.{environment}"] = self._return(task, theta)
            found[f"{REFERENCE_OPTIMIZER}.{environment}"] = self._reference[environment]
        return found

    def _return(self, task: Task, theta: Theta) -> float:
        """Mean return over the evaluation's rollouts; NaN when one of them failed."""
        config = self._request.config
        keys = work.rollout_keys(
            config.root_seed, work.EVALUATION, task.environment.name, 0, config.evaluation_rollouts
        )
        alone = jax.tree.map(lambda leaf: np.asarray(leaf)[None], theta)
        values, _ = self._evaluator(task).returns(alone, keys, config.fitness)
        return float(values.mean())

    def _evaluator(self, task: Task) -> Evaluator:
        config = self._request.config
        trained_on = any(task is other for other in self._request.tasks)
        lifetimes = config.population * config.rollouts if trained_on else config.evaluation_rollouts
        key = (task.resolved.spec.name, task.environment.name)
        if key not in self._evaluators:
            made = Evaluator(task, self._devices, self._request.vmap_size, lifetimes)
            self._progress.compiled(task.environment.name, made.program.compile_seconds)
            self._evaluators[key] = made
        return self._evaluators[key]


class Busy(UserError):
    """Another process holds the folder."""


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder; freed by the system when the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise Busy(f"{folder}: another process is meta-training there") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def check_name_is_free(name: str, request: Request) -> None:
    """Hours of evolution must not end at a name that is taken; earlier weights of the same request may be replaced."""
    path = weights.library_dir() / f"{name}.safetensors"
    if path.exists() and weights.load_weights(path).metadata.get("run") != request.digest:
        raise WeightsError(f"{path} holds other weights; choose another --name or remove that file")


def _store(
    request: Request, evolved: Evolved, name: str, folder: Path, provenance: Mapping[str, Any], devices: int
) -> None:
    metadata = describe(request, evolved, provenance, devices)
    best = {**metadata, "which": "best", "fitness": evolved.best_fitness}
    weights.save_weights(folder / "best.safetensors", evolved.best, best)
    weights.save_weights(folder / "latest.safetensors", evolved.theta, metadata)
    path = weights.library_dir() / f"{name}.safetensors"
    if path.exists() and weights.load_weights(path).hash != weights.content_hash(evolved.theta):
        path.unlink()  # fewer generations of the same request: check_name_is_free has seen to that
    weights.save_named(name, evolved.theta, metadata)


def describe(request: Request, evolved: Evolved, provenance: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """How weights were made, as JSON values: for their metadata."""
    last = evolved.history[-1]
    return {
        "optimizer": request.spec.name,
        "policy_loss": request.spec.policy_loss.name,
        "parameters": int(sum(np.size(leaf) for leaf in jax.tree.leaves(evolved.theta))),
        "parent": request.parent,
        "ancestors": list(request.ancestors),
        "run": request.digest,
        "which": "latest",
        "environments": {task.environment.name: {"env_steps": task.env_steps} for task in request.tasks},
        "held_out": [task.environment.name for task in request.held_out],
        "config": request.config.model_dump(mode="json"),
        "identity": request.identity,
        "root_seed": request.config.root_seed,
        "fitness": _finite(last["fitness_mean"]),
        "cost": {
            "env_steps": last["env_steps"],
            "lifetimes": last["lifetimes"],
            "generations": last["generation"],
            "seconds": round(evolved.seconds, 3),
            "devices": devices,
            "device": provenance.get("hardware", "unknown"),
        },
        "provenance": {**provenance, "packages": {**provenance.get("packages", {}), "evosax": version("evosax")}},
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
