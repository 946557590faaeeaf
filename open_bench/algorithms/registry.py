"""Algorithms by name: those that ship, plug-ins (entry points ``open_bench.algorithms``), and ``module:Class``."""

import importlib
import importlib.metadata
from typing import Any

from open_bench.algorithms.base import Algorithm, AlgorithmConfig
from open_bench.algorithms.ppo import PPO
from open_bench.algorithms.pqn import PQN
from open_bench.algorithms.random_policy import RandomPolicy
from open_bench.config import build
from open_bench.errors import UserError, near_matches

ENTRY_POINTS = "open_bench.algorithms"
ALGORITHMS: dict[str, type[Algorithm]] = {each.name: each for each in (PPO, PQN, RandomPolicy)}
RANDOM = RandomPolicy.name


def available() -> list[str]:
    """Names of the algorithms that learn, plug-ins included."""
    plugins = [point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS)]
    return [name for name, each in ALGORITHMS.items() if each.learns] + plugins


def find_algorithm(name: str) -> type[Algorithm]:
    """The class of an algorithm; raises UserError for an unknown name, or a class that is no algorithm."""
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
        return _checked(name, point.load())
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(
            f"unknown algorithm '{name}'.{near_matches(name, available())} Known: {', '.join(available())}; "
            "or a class of yours as module:Class."
        )
    try:
        return _checked(name, getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise UserError(f"algorithm '{name}': {error}") from None


def _checked(name: str, value: Any) -> type[Algorithm]:
    if not (isinstance(value, type) and issubclass(value, Algorithm)):
        raise UserError(f"algorithm '{name}' is no subclass of open_bench.algorithms.base.Algorithm")
    missing = [part for part in ("name", "Config", "acting_network") if not hasattr(value, part)]
    missing += sorted(getattr(value, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"algorithm '{name}' lacks {', '.join(missing)}")
    return value


def build_config(name: str, values: dict[str, Any], origin: str) -> AlgorithmConfig:
    """Settings of an algorithm; raises UserError naming ``origin``, the key, and whose setting it is instead."""
    algorithm = find_algorithm(name)
    fields = algorithm.Config.model_fields
    for key in values:
        owners = [other for other, each in ALGORITHMS.items() if key in each.Config.model_fields and other != name]
        if key not in fields and owners:
            raise UserError(f"{origin}: '{key}' is a setting of {' and '.join(owners)}, not of {name}")
    return build(algorithm.Config, values, origin)
