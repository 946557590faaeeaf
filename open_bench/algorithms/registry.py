"""Algorithms by name: those that ship, plug-ins (entry points ``open_bench.algorithms``), and ``module:Class``."""

import uuid
from typing import Any

from open_bench import plugins
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
    return [name for name, each in ALGORITHMS.items() if each.learns] + list(plugins.installed(ENTRY_POINTS))


def find_algorithm(name: str) -> type[Algorithm]:
    """The class of an algorithm; raises UserError for an unknown name, or a class that is no algorithm."""
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    source = plugins.installed(ENTRY_POINTS).get(name, name)
    if ":" not in source:
        raise UserError(
            f"unknown algorithm '{name}'.{near_matches(name, available())} Known: {', '.join(available())}; "
            "or a class of yours as module:Class."
        )
    return _checked(name, plugins.load_attribute("algorithm", source))


def algorithm_name(algorithm: Any) -> Any:
    """The name of an algorithm that may be given as its class; raises UserError for another object."""
    if algorithm is None or isinstance(algorithm, str):
        return algorithm
    if not isinstance(algorithm, type):
        raise UserError(
            f"algorithm: a {type(algorithm).__name__} object is neither a name nor a class: give the class, and its "
            "settings by settings="
        )
    shipped = next((name for name, kind in ALGORITHMS.items() if kind is algorithm), None)
    name = shipped or f"{algorithm.__module__}:{algorithm.__qualname__}"
    if shipped is None and not plugins.is_held(_checked(name, algorithm)):
        raise UserError(f"algorithm '{name}' is found under no such name: define the class at the top of a module")
    return name


def code_identity(name: str) -> dict[str, str]:
    """What tells an algorithm of a user's from its earlier versions, as JSON values; nothing of those that ship."""
    if name in ALGORITHMS:
        return {}
    digest = plugins.file_digest(find_algorithm(name))
    return {"algorithm_digest": uuid.uuid4().hex if digest is None else digest}


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
