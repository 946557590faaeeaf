"""Where an optimizer was trained or tuned, and whether a point of a study is inside of that or how it is outside."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from open_bench.config import EnvironmentConfig, PPOConfig, build
from open_bench.environments.registry import load_environment, task_shifts
from open_bench.errors import UserError
from open_bench.experiments.plan import Task
from open_bench.optimizers.resolve import ResolvedOptimizer
from open_bench.optimizers.spec import OptimizerSpec

Placement = Literal["in", "out", "unknown"]
IN: Placement = "in"
OUT: Placement = "out"
UNKNOWN: Placement = "unknown"
_UNTRAINED = ("zero", "init")  # sources of a θ that nothing has trained


@dataclasses.dataclass(frozen=True)
class Trained:
    """One thing that an optimizer was trained or tuned on.

    Attributes:
        name: the environment's.
        source, options, version: the task.
        ppo: settings of agent and training, as JSON values.
        num_updates: PPO updates in a lifetime; None: not known, so lifetimes are not compared.
    """

    name: str
    source: str
    options: Mapping[str, Any]
    version: int
    ppo: Mapping[str, Any]
    num_updates: int | None


def from_environment(config: EnvironmentConfig, env_steps: int | None) -> Trained:
    """Training on an environment with the settings of its configuration."""
    updates = None if env_steps is None else config.num_updates(env_steps)
    return Trained(config.name, config.source, config.options, config.version, _ppo(config), updates)


def trained_on(resolved: ResolvedOptimizer, task: Task, given: Sequence[str] = ()) -> tuple[Trained, ...] | None:
    """What an optimizer, as it is used on a task, was trained or tuned on.

    A learned optimizer: what the metadata of its weights say; nothing for θ = 0. A classic one: the environment and
    budget that the hyperparameters which it uses here were tuned on; nothing for its defaults. Where neither says, what
    the user names.

    Args:
        resolved: the optimizer with the hyperparameters of the task.
        task: where it is used.
        given: environments that the user names where it is not known, at any length of a lifetime.

    Returns:
        What it was trained on, possibly nothing; None when that is not known.
    """
    known = _known(resolved)
    if known is None and given:
        return tuple(from_environment(load_environment(name), None) for name in given)
    return known


def _known(resolved: ResolvedOptimizer) -> tuple[Trained, ...] | None:
    if resolved.spec.needs_theta:
        return of_weights(resolved.spec)
    if resolved.origin == "given":
        return None
    if resolved.origin == "default":
        return ()
    assert resolved.tuned_on is not None
    environment, budget = resolved.tuned_on
    config = load_environment(environment)
    return (from_environment(config, config.budgets.get(budget)),)


def of_weights(spec: OptimizerSpec) -> tuple[Trained, ...] | None:
    """What the metadata of an optimizer's weights say that θ was trained on, the weights that it began with included.

    Nothing for θ = 0; None if the metadata do not say, of those weights or of any that they began with.
    """
    if spec.theta_source in _UNTRAINED:
        return ()
    ancestors = spec.theta_metadata.get("ancestors", ())
    found: list[Trained] = []
    for facts in (spec.theta_metadata, *(ancestors if isinstance(ancestors, list) else ())):
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
            return tuple(
                from_environment(load_environment(name), int(said["env_steps"])) for name, said in named.items()
            )
    except (KeyError, TypeError, ValueError, UserError):  # metadata of other hands say what they like
        return None
    return None


def _from_identity(name: str, facts: Mapping[str, Any]) -> Trained:
    ppo = build(PPOConfig, dict(facts["ppo"]), name).model_dump(mode="json")
    return Trained(name, str(facts["source"]), dict(facts["options"]), int(facts["version"]), ppo,
                   int(facts["num_updates"]))  # fmt: skip


def place(task: Task, trained: Sequence[Trained] | None) -> tuple[Placement, tuple[str, ...]]:
    """Whether a task is in the training distribution, and if it is outside: what is shifted, against the nearest."""
    if trained is None:
        return UNKNOWN, ()
    if not trained:
        return OUT, ("never trained",)
    differences = [shifts(task, known) for known in trained]
    nearest = min(differences, key=lambda found: ("environment" in found, len(found)))
    return (OUT, nearest) if nearest else (IN, ())


def shifts(task: Task, trained: Trained) -> tuple[str, ...]:
    """What differs from one thing trained on; empty when the task lies inside of it.

    Names of what differs: "environment"; what the environment itself says lies outside (``shifts_from``), else options;
    PPO settings; "lifetime".
    """
    config = task.environment
    found: list[str] = []
    if config.source != trained.source or dict(config.options) != dict(trained.options):
        found += task_shifts(config, trained.source, trained.options)
    if "environment" in found:
        return ("environment",)
    if config.version != trained.version:
        found.append("version")
    ours = _ppo(config)
    found += sorted(key for key in ours if key not in trained.ppo or ours[key] != trained.ppo[key])
    if trained.num_updates not in (None, config.num_updates(task.env_steps)):
        found.append("lifetime")
    return tuple(found)


def _ppo(config: EnvironmentConfig) -> dict[str, Any]:
    return config.ppo.model_dump(mode="json")
