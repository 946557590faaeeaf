"""A meta-training that has been checked, with everything that determines its θ."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from open_bench.algorithms.base import AlgorithmConfig
from open_bench.algorithms.policy_losses import PPO
from open_bench.algorithms.registry import find_algorithm
from open_bench.environments.registry import has_levels
from open_bench.errors import UserError, check_known
from open_bench.evaluation.baseline_returns import BaselineReturns, returns_of
from open_bench.evaluation.metrics import Scale, stored_scale
from open_bench.meta_training.evolution import Strategy, warn_of_ignored
from open_bench.meta_training.fitness import FitnessTask
from open_bench.meta_training.spec import ImitationConfig, MetaConfig
from open_bench.optimizers import names
from open_bench.optimizers.registry import learned_names
from open_bench.optimizers.resolve import BY_ENVIRONMENT, UNTRAINED, ResolvedOptimizer, resolve
from open_bench.optimizers.spec import Imitation, Theta
from open_bench.training.devices import default_vmap_size
from open_bench.training.record import METRICS, metrics_of
from open_bench.training.task import Settings, Task, make_task
from open_bench.weights import library
from open_bench.weights.format import content_hash

COMPARED = "adam"  # what evaluations of the mean θ are compared with
# These change neither θ nor the rows of the history that are there already.
_FREE = {"name", "description", "generations", "save_every"}
# The identity holds what these lead to.
_SPELT_OUT = {
    "environments",
    "held_out",
    "settings",
    "vmap_size",
    "budget",
    "env_steps",
    "algorithm",
    "imitation",
    "stages",
}


@dataclasses.dataclass(frozen=True)
class Request:
    """A meta-training.

    Attributes:
        optimizer: name without a source of weights.
        start: θ where the mean starts, or imitation.
        parent: hash of the weights that it starts from, None for the optimizer's own beginning.
        ancestors: what those weights, and those that they started from, were trained on; the eldest first.
        config: the settings.
        tasks: what fitness is measured on.
        held_out: what is only evaluated.
        compared: Adam on the tasks and the held-out tasks, when there are evaluations.
        vmap_size: lifetimes vmapped on one device.
        teachers: whom θ is fitted to on each task; empty without imitation.
        follows: the stage before, whose θ is the start once it is known; empty for the first.
    """

    optimizer: str
    start: Theta
    parent: str | None
    ancestors: tuple[dict[str, Any], ...]
    config: MetaConfig
    tasks: tuple[FitnessTask, ...]
    held_out: tuple[FitnessTask, ...]
    compared: tuple[FitnessTask, ...]
    vmap_size: int
    teachers: tuple[ResolvedOptimizer, ...] = ()
    follows: str = ""

    @property
    def policy_loss(self) -> str | None:
        """Name of the policy loss that agents are trained with."""
        loss = self.tasks[0].optimizer.policy_loss
        return loss.name if loss else None

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines θ, as JSON values; the number of generations does not: more can be added."""
        config = {
            key: value for key, value in self.config.model_dump(mode="json").items() if key not in _FREE | _SPELT_OUT
        }
        return {
            "optimizer": self.optimizer,
            "policy_loss": self.policy_loss,
            "start": self.follows or content_hash(self.start),
            "vmap_size": self.vmap_size,
            **config,
            "environments": {each.task.name: each.identity for each in self.tasks},
            "held_out": {each.task.name: each.identity for each in self.held_out},
            **({"imitation": self._imitation} if self.config.imitation is not None else {}),
        }

    @property
    def _imitation(self) -> dict[str, Any]:
        """The settings of imitation, with what its teachers are on each task."""
        assert self.config.imitation is not None
        teachers = zip(self.tasks, self.teachers, strict=True)
        return {
            **self.config.imitation.model_dump(mode="json"),
            "teachers": {each.task.name: teacher.identity for each, teacher in teachers},
        }

    @property
    def digest(self) -> str:
        """The identity in ten hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def default_name(self) -> str:
        """``<optimizer>-<environments>-<digest>``, made of characters that names of weights may have."""
        words = [self.optimizer, "+".join(each.task.name for each in self.tasks)]
        return "-".join([*(re.sub(r"[^A-Za-z0-9._-]+", "_", word)[:60] for word in words), self.digest])


def make_requests(
    optimizer: str,
    config: MetaConfig,
    baseline_returns: BaselineReturns,
    devices: Sequence[jax.Device],
    settings: Settings | None = None,
) -> tuple[Request, ...]:
    """A request for each stage, as ``make_request``; those that follow another wait for its θ (``after``)."""
    made: list[Request] = []
    for stage in config.in_stages:
        request = make_request(optimizer, stage, baseline_returns, devices, settings)
        if made:
            follows = f"after {made[-1].digest}, {made[-1].config.generations} generations"
            request = dataclasses.replace(request, follows=follows)
        made.append(request)
    return tuple(made)


def after(request: Request, name: str, theta: Theta, facts: Mapping[str, Any]) -> Request:
    """The request of a stage, beginning at the θ of the one before, which is kept as ``name`` with these ``facts``."""
    return dataclasses.replace(request, start=theta, parent=content_hash(theta), ancestors=ancestry(name, theta, facts))


def make_request(
    optimizer: str,
    config: MetaConfig,
    baseline_returns: BaselineReturns,
    devices: Sequence[jax.Device],
    settings: Settings | None = None,
) -> Request:
    """Check everything that can be wrong before anything is compiled.

    Args:
        optimizer: a name in the registry's grammar. With a source (``open@NAME``) evolution starts from those weights,
            else where the optimizer begins, even when weights are kept under its name.
        config: the settings.
        baseline_returns: to normalize by.
        devices: where it will run; decides the default vmap size.
        settings: of the algorithm; they replace the study's.

    Raises:
        UserError: an optimizer without θ, no environment, an unknown strategy, too great a vmap size, a teacher or a
            student that is none.
    """
    if settings:
        replaced = settings.model_dump(mode="json") if isinstance(settings, AlgorithmConfig) else dict(settings)
        config = config.model_copy(update={"settings": {**config.settings, **replaced}})  # so that metadata has them
    if not config.environments:
        raise UserError("no environment to meta-train on: name one with -e, or in the study")
    check_known("fitness", config.fitness, METRICS)
    tasks = _tasks(config.environments, config, settings)
    held_out = _tasks(config.held_out, config, settings)
    _check_tasks([*tasks, *held_out], config.fitness)
    evaluated = held_out if config.evaluate_every else []
    start, parent, ancestors = _beginning(optimizer, config, tasks[0])
    teachers = _teachers(optimizer, config, tasks)
    name = str(dataclasses.replace(names.parse(optimizer), source=None))
    Strategy(config, start)
    warn_of_ignored(config)
    if config.task_sampling == "antithetic":
        _check_levels(tasks)
    compared = [*tasks, *evaluated] if config.evaluate_every else []
    return Request(
        name,
        start,
        parent,
        ancestors,
        config,
        tuple(FitnessTask(task, _at(name, start, task), _scale(task, config, baseline_returns)) for task in tasks),
        tuple(FitnessTask(task, _at(name, start, task)) for task in evaluated),
        tuple(FitnessTask(task, resolve(COMPARED, task)) for task in compared),
        _vmap_size(config, tasks, devices),
        teachers,
    )


def _tasks(environments: Sequence[str], config: MetaConfig, settings: Settings | None) -> list[Task]:
    """Tasks under the environments' own names: their Adam, keys and baselines are those of the settings that ship."""
    chosen = settings if isinstance(settings, AlgorithmConfig) else {**config.settings, **(settings or {})}
    made = [
        make_task(name, algorithm=config.algorithm, budget=config.budget, steps=config.env_steps, settings=chosen)
        for name in environments
    ]
    return [
        dataclasses.replace(each, environment=each.environment.model_copy(update={"name": each.base})) for each in made
    ]


def _check_tasks(tasks: Sequence[Task], fitness: str) -> None:
    """Refuse environments that share a name, by which keys and scales are found, and a fitness that one lacks."""
    called = [task.name for task in tasks]
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"environment '{twice}' is named twice, to train on or to hold out: name it once, or give a TOML of yours "
            "another name"
        )
    for task in tasks:
        there = metrics_of(find_algorithm(task.algorithm).reports)
        if fitness not in there:
            raise UserError(
                f"fitness '{fitness}' is not measured on {task.name} with {task.algorithm}: take {' or '.join(there)}"
            )


def _at(optimizer: str, theta: Theta, task: Task) -> ResolvedOptimizer:
    """The optimizer on a task, with an example of θ."""
    return resolve(optimizer, task, require_weights=False).with_theta(theta)


def _vmap_size(config: MetaConfig, tasks: Sequence[Task], devices: Sequence[jax.Device]) -> int:
    lifetimes = config.population * config.rollouts
    if config.vmap_size is not None and config.vmap_size > lifetimes:
        raise UserError(
            f"vmap_size {config.vmap_size} is larger than the population: a generation has {lifetimes} lifetimes on an "
            f"environment (population {config.population} × rollouts {config.rollouts})"
        )
    largest = max(task.lifetime_bytes for task in tasks)
    return config.vmap_size or min(default_vmap_size(devices, largest), lifetimes)


def _scale(task: Task, config: MetaConfig, baseline_returns: BaselineReturns) -> Scale | None:
    """With several environments each return is normalized by the baseline returns at ``config.budget``.

    Whatever the lifetime's length: the scale makes environments commensurable, and returns may be negative, so they are
    not merely divided. Antithetic pairs need none: they are compared within each environment. Imitation alone has no
    fitness and does without; where there is a scale it has it, so that evolution can go on from there.
    """
    if len(config.environments) == 1 or config.task_sampling == "antithetic":
        return None
    known = returns_of(baseline_returns, task.base)
    scale = stored_scale(known, task.algorithm, config.budget, config.fitness)
    if isinstance(scale, str):
        if not config.generations:
            return None
        raise UserError(
            f"{task.base} cannot be meta-trained on together with others: at the budget '{config.budget}' its "
            f"returns cannot be normalized ({scale}). Leave it out, or name a budget that has baseline returns."
        )
    return scale


def _check_levels(tasks: Sequence[Task]) -> None:
    """Refuse antithetic task sampling where a lifetime does not draw a level from its key."""
    others = [task.name for task in tasks if not has_levels(task.environment)]
    if others:
        raise UserError(
            f'task_sampling = "antithetic" gives each pair of members a level of its own, and {", ".join(others)} '
            f"{'draws' if len(others) == 1 else 'draw'} none: train on environments with levels alone, such as "
            'gridworlds, or take task_sampling = "common" (--task-sampling common)'
        )


def _beginning(optimizer: str, config: MetaConfig, task: Task) -> tuple[Theta, str | None, tuple[dict[str, Any], ...]]:
    """θ where it starts, the hash of the weights that it comes from, and their ancestry."""
    parsed = names.parse(optimizer)
    at = None if BY_ENVIRONMENT in (parsed.source or "") else task  # it begins at one θ: refused
    found = resolve(optimizer, at, require_weights=parsed.source is not None)
    if not found.needs_weights:
        raise UserError(
            f"{optimizer} cannot be meta-trained: it has no meta-parameters θ. Those that ship and have: "
            f"{', '.join(learned_names())}; any other with the policy loss lpo, such as {parsed.head}+lpo."
        )
    if config.imitation is not None and parsed.source in UNTRAINED:
        raise UserError(f"{optimizer}: imitation begins at a random θ; leave @{parsed.source} out, or name weights")
    if parsed.source is None:
        key = jax.random.key(config.root_seed)
        begun = found.spec.init_theta(key)
        if config.imitation is not None:
            begun = {**begun, "optimizer": imitation_of(found).start(key)}
        return _as_float32(begun), None, ()
    theta = _as_float32(found.theta)
    if parsed.source in UNTRAINED:
        return theta, None, ()
    facts = found.weights.metadata if found.weights else {}
    return theta, content_hash(theta), ancestry(library.stem(Path(parsed.source)), theta, facts)


def imitation_of(student: ResolvedOptimizer) -> Imitation:
    """How a student imitates; raises UserError with the reason where it cannot."""
    learned = student.spec.learned
    how = learned.imitation if learned is not None else "its θ is a policy loss, which makes no updates"
    if isinstance(how, str):
        raise UserError(
            f"{student.spec.name} cannot imitate: {how}. OPEN and its variants can; without --imitate it is evolved "
            "from its own beginning"
        )
    return how


def _teachers(optimizer: str, config: MetaConfig, tasks: Sequence[Task]) -> tuple[ResolvedOptimizer, ...]:
    """The teacher on each task, with its settings there; () without imitation.

    Raises:
        UserError: a student that cannot imitate, or a teacher that is unknown, learned without weights, or of another
            kind than a rule can be.
    """
    if config.imitation is None:
        return ()
    given = config.imitation.teachers
    named = zip(given if len(given) > 1 else given * len(tasks), tasks, strict=True)
    student = resolve(optimizer, tasks[0], require_weights=False)
    timed = imitation_of(student).timed
    found = tuple(resolve(name, task) for name, task in named)
    for teacher in found:
        if (reason := _no_teacher(teacher, student, timed)) is not None:
            raise UserError(f"{teacher.label} cannot be a teacher of {student.spec.name}: {reason}")
    _check_memory(config.imitation, tasks)
    return found


def _no_teacher(teacher: ResolvedOptimizer, student: ResolvedOptimizer, timed: bool) -> str | None:
    """Why a student cannot learn from a teacher; None where it can."""
    rate = teacher.hyperparameters.get("learning_rate")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0:
        return "it has no learning rate above 0, and what is imitated is its update over its initial learning rate"
    if teacher.spec.eval_params is not None:
        return "its agents act at other parameters than it differentiates at, and a rule has one kind"
    if teacher.hyperparameters.get("anneal_learning_rate") and not timed:
        return "it is annealed, and the student does not know how far the lifetime is: set anneal_learning_rate=false"
    loss, own = teacher.policy_loss, student.policy_loss
    if loss is not None and own is not None and loss.name not in (PPO.name, own.name):
        return f"it is meant for the policy loss {loss.name}: name the student so, as {student.spec.name}+{loss.name}"
    return None


def _check_memory(config: ImitationConfig, tasks: Sequence[Task]) -> None:
    """Refuse recordings and batches that would fill the machine's memory."""
    fitting = (min(config.windows, max(1, task.length.optimizer_steps // config.window_steps)) for task in tasks)
    windows = config.rounds * config.lifetimes * sum(fitting)
    # Of some 20 numbers each; recordings are kept twice.
    needed = 4 * 20 * (2 * windows + config.batch_size) * config.window_steps * config.parameters
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there // 2:
        raise UserError(
            f"the recordings may need {needed / 2**30:.0f} GiB, and this machine has {there / 2**30:.0f}: lower "
            "imitation's rounds, lifetimes, windows, window_steps, parameters or batch_size"
        )


def ancestry(name: str, theta: Theta, facts: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """What weights and those that they started from were trained on, as metadata of their descendants; eldest first."""
    identity = facts.get("identity")
    own = {
        "hash": content_hash(theta),
        "name": name,
        "environments": facts.get("environments", {}),
        "identity": {"environments": identity.get("environments", {}) if isinstance(identity, Mapping) else {}},
        "cost": facts.get("cost", {}),
    }
    return (*facts.get("ancestors", ()), own)


def _as_float32(theta: Theta) -> Theta:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), jax.device_get(theta))
