"""An experiment made again from what is stored of it: the same identity, so the same numbers."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from open_bench.algorithms.registry import ALGORITHMS, build_config, find_algorithm
from open_bench.config import PROTOCOL_VERSION
from open_bench.environments import registry as environments
from open_bench.errors import UserError
from open_bench.experiments.experiment import Experiment
from open_bench.optimizers import names
from open_bench.optimizers import registry as optimizers
from open_bench.optimizers.resolve import ResolvedOptimizer, resolve
from open_bench.training.task import Task
from open_bench.weights.format import Theta

_BROKEN = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)


def rebuild(content: Mapping[str, Any], own_code: bool = False, theta: Theta | None = None) -> Experiment:
    """The experiment that an ``experiment.json`` tells of.

    Args:
        content: what the file holds.
        own_code: import what it names from outside open-bench (``module:attribute``, plug-ins); without leave such a
            name is an error, and nothing of it is imported.
        theta: θ, where the weights that the optimizer's name means need not be here.

    Raises:
        UserError: why it cannot be made again here: another protocol, code from outside, weights that are not here, or
            whatever else differs from what is stored.
    """
    try:
        return _rebuilt(content, content["identity"], own_code, theta)
    except _BROKEN as error:  # a folder of somebody else's may hold anything
        raise UserError(f"its identity makes no experiment ({type(error).__name__}: {error})") from None


def _rebuilt(
    content: Mapping[str, Any], identity: Mapping[str, Any], own_code: bool, theta: Theta | None
) -> Experiment:
    if identity["protocol"] != PROTOCOL_VERSION:
        raise UserError(f"it follows protocol {identity['protocol']}, and this is protocol {PROTOCOL_VERSION}")
    foreign = _from_outside(identity)
    if foreign and not own_code:
        raise UserError(f"it runs code from outside open-bench ({', '.join(foreign)}): --own-code allows that")
    task = _task(content, identity)
    optimizer = _optimizer(identity, task, theta)
    keys_of = identity.get("keys_of", "")
    experiment = Experiment(task, optimizer, identity["root_seed"], identity["vmap_size"], keys_of)
    here = json.loads(json.dumps(experiment.identity))
    differing = sorted(key for key in {*identity, *here} if identity.get(key) != here.get(key))
    if differing:
        told = "; ".join(f"{key} is stored as {identity.get(key)!r} and is {here.get(key)!r}" for key in differing)
        raise UserError(f"it is another experiment here: {told}")
    return experiment


def _from_outside(identity: Mapping[str, Any]) -> list[str]:
    """What of an experiment is code from outside the package, by name."""
    algorithm, source = identity["algorithm"], identity["source"]
    found = [] if algorithm in ALGORITHMS else [algorithm]
    found += [] if environments.is_ours(source) else [source]
    learns = algorithm not in ALGORITHMS or ALGORITHMS[algorithm].learns
    return found + ([_name(identity)] if learns and not optimizers.is_ours(names.parse(_name(identity))) else [])


def _name(identity: Mapping[str, Any]) -> str:
    """The optimizer's name, without the digest of its file."""
    return str(identity["optimizer"]).removesuffix(f"#{identity.get('code', '')}")


def _task(content: Mapping[str, Any], identity: Mapping[str, Any]) -> Task:
    name, algorithm, budget = identity["environment"], identity["algorithm"], identity["budget"]
    settings = build_config(algorithm, identity["settings"], f"settings of {name}")
    env_steps = identity["num_updates"] * settings.env_steps_per_update
    config = environments.stored_environment(
        name, identity["source"], identity["options"], identity["environment_version"], content["family"],
        {budget: env_steps},
    )  # fmt: skip
    find_algorithm(algorithm).check(environments.make_environment(config), name)
    return Task(config, algorithm, settings, budget, env_steps, name)


def _optimizer(identity: Mapping[str, Any], task: Task, theta: Theta | None) -> ResolvedOptimizer | None:
    if not find_algorithm(task.algorithm).learns:
        return None
    name, track, stored = _name(identity), identity.get("track"), identity["hyperparameters"]
    if theta is None:
        return resolve(name, task, track=track, stored=stored)
    unnamed = str(dataclasses.replace(names.parse(name), source=None))
    found = resolve(unnamed, task, require_weights=False, track=track, stored=stored)
    return dataclasses.replace(found.with_theta(theta), label=identity["optimizer"])
