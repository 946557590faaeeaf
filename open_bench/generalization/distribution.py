"""Where an optimizer was trained or tuned, and whether a point of a study is inside of that or how it is outside."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from open_bench.algorithms.registry import build_config
from open_bench.environments.registry import load_environment, task_shifts
from open_bench.errors import UserError
from open_bench.optimizers.resolve import UNTRAINED, ResolvedOptimizer
from open_bench.training.task import Task, make_task

Placement = Literal["in", "out", "unknown"]


@dataclasses.dataclass(frozen=True)
class Trained:
    """One thing that an optimizer was trained or tuned on.

    Attributes:
        name: the environment's.
        source, options, version: the environment.
        algorithm, settings: of agent and training, as JSON values.
        num_updates: updates in a lifetime; None: not known, so lifetimes are not compared.
    """

    name: str
    source: str
    options: Mapping[str, Any]
    version: int
    algorithm: str
    settings: Mapping[str, Any]
    num_updates: int | None


def from_task(task: Task, known_length: bool = True) -> Trained:
    """Training on a task; without ``known_length`` at any length of a lifetime."""
    config, updates = task.environment, task.num_updates if known_length else None
    return Trained(task.base, config.source, config.options, config.version, task.algorithm, _settings(task), updates)


def trained_on(optimizer: ResolvedOptimizer, task: Task, given: Sequence[str] = ()) -> tuple[Trained, ...] | None:
    """What an optimizer, as it is used on a task, was trained or tuned on.

    A learned optimizer: what the metadata of its weights say; nothing for θ = 0. A hand-designed one: the environment
    and budget that the hyperparameters which it uses here were tuned on; nothing for its defaults. Where neither says,
    what the user names.

    Args:
        optimizer: with the hyperparameters of the task.
        task: where it is used.
        given: environments that the user names where it is not known, at any length of a lifetime.

    Returns:
        What it was trained on, possibly nothing; None when that is not known.
    """
    known = _known(optimizer, task)
    if known is None and given:
        return tuple(from_task(make_task(name), known_length=False) for name in given)
    return known


def _known(optimizer: ResolvedOptimizer, task: Task) -> tuple[Trained, ...] | None:
    if optimizer.needs_weights:
        return of_weights(optimizer)
    if optimizer.origin == "given":
        return None
    if optimizer.tuned_on is None:
        return ()
    environment, algorithm, budget = optimizer.tuned_on
    config = load_environment(environment)
    known_length = budget in config.budgets
    length = budget if known_length else next(iter(config.budgets))
    return (from_task(make_task(config, algorithm=algorithm, budget=length), known_length),)


def of_weights(optimizer: ResolvedOptimizer) -> tuple[Trained, ...] | None:
    """What the metadata of an optimizer's weights say that θ was trained on, the weights that it began with included.

    Nothing for θ = 0; None if the metadata do not say, of those weights or of any that they began with.
    """
    if optimizer.source in UNTRAINED or optimizer.weights is None:
        return ()
    metadata = optimizer.weights.metadata
    ancestors = metadata.get("ancestors", ())
    found: list[Trained] = []
    for facts in (metadata, *(ancestors if isinstance(ancestors, list) else ())):
        one = _of_metadata(facts) if isinstance(facts, Mapping) else None
        if one is None:
            return None
        found += one
    return tuple(found)


def _of_metadata(facts: Mapping[str, Any]) -> tuple[Trained, ...] | None:
    identity = facts.get("identity")
    tasks = identity.get("environments") if isinstance(identity, Mapping) else None
    named = facts.get("environments")
    try:
        if isinstance(tasks, Mapping) and tasks:
            return tuple(_from_identity(name, said) for name, said in tasks.items())
        if isinstance(named, Mapping) and named:
            return tuple(_from_length(name, said.get("env_steps")) for name, said in named.items())
    except (AttributeError, KeyError, TypeError, ValueError, UserError):  # metadata of other hands say what they like
        return None
    return None


def _from_length(name: str, env_steps: Any) -> Trained:
    """From an environment's own settings; ``env_steps`` None: at lifetimes of a length that is not known."""
    steps = None if env_steps is None else int(env_steps)
    return from_task(make_task(name, steps=steps), known_length=steps is not None)


def _from_identity(name: str, facts: Mapping[str, Any]) -> Trained:
    """From a task's identity; version 1 knew PPO alone, and called its settings so."""
    algorithm, settings = facts.get("algorithm", "ppo"), facts.get("settings", facts.get("ppo"))
    version = facts.get("environment_version", facts.get("version"))
    chosen = build_config(str(algorithm), dict(settings), name).model_dump(mode="json")
    return Trained(name, str(facts["source"]), dict(facts["options"]), int(version), str(algorithm), chosen,
                   int(facts["num_updates"]))  # fmt: skip


def place(task: Task, trained: Sequence[Trained] | None) -> tuple[Placement, tuple[str, ...]]:
    """Whether a task is in the training distribution, and if it is outside: what is shifted, against the nearest."""
    if trained is None:
        return "unknown", ()
    if not trained:
        return "out", ("never trained",)
    differences = [shifts(task, known) for known in trained]
    nearest = min(differences, key=lambda found: ("environment" in found, len(found)))
    return ("out", nearest) if nearest else ("in", ())


def shifts(task: Task, trained: Trained) -> tuple[str, ...]:
    """What differs from one thing trained on; empty when the task lies inside of it.

    Names of what differs: "environment"; what the environment itself says lies outside (``shifts_from``), else
    options; settings; "algorithm"; "lifetime".
    """
    config = task.environment
    found: list[str] = []
    if config.source != trained.source or dict(config.options) != dict(trained.options):
        found += task_shifts(config, trained.source, trained.options)
    if "environment" in found:
        return ("environment",)
    if config.version != trained.version:
        found.append("version")
    if task.algorithm != trained.algorithm:
        return (*found, "algorithm")  # settings of different algorithms do not compare
    ours = _settings(task)
    found += sorted(key for key in ours if key not in trained.settings or ours[key] != trained.settings[key])
    if trained.num_updates not in (None, task.num_updates):
        found.append("lifetime")
    return tuple(found)


def _settings(task: Task) -> dict[str, Any]:
    return task.settings.model_dump(mode="json")
