"""Optimizers from elsewhere: anything in optax, or an attribute of an importable module."""

import dataclasses
import hashlib
import importlib
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optax

from open_bench.errors import UserError, near_matches
from open_bench.optimizers.schedules import anneal
from open_bench.optimizers.spec import Hyperparameter, OptimizerSpec, TrainingLength

DEFAULT_LEARNING_RATE = 3e-4

# These call the loss function again, which no harness of gradients can offer them.
NEEDS_CLOSURES = {
    "lbfgs": "it searches along a line with the loss function",
    "scale_by_backtracking_linesearch": "it searches along a line with the loss function",
    "scale_by_zoom_linesearch": "it searches along a line with the loss function",
    "contrib.sam": "it takes gradients at other points",
    "contrib.look_sam": "it takes gradients at other points",
}
# Their learning rate is not a plain factor of the update, so scaling the update is not annealing.
NOT_ANNEALED = ("schedule_free",)


def from_optax(path: str) -> OptimizerSpec:
    """The optax optimizer at ``path`` ("adabelief", "contrib.muon")."""
    if path in NEEDS_CLOSURES:
        raise UserError(f"optax.{path} cannot be benchmarked: {NEEDS_CLOSURES[path]}, and PPO gives it gradients only")
    constructor: Any = optax
    module = optax
    for part in path.split("."):
        module, constructor = constructor, getattr(constructor, part, None)
        if constructor is None:
            known = [name for name in dir(module) if not name.startswith("_")]
            raise UserError(f"optax has no '{path}'.{near_matches(part, known)}")
    if not callable(constructor) or inspect.isclass(constructor):
        raise UserError(f"optax.{path} is not an optimizer: it is a {type(constructor).__name__}")
    return from_constructor(f"optax.{path}", constructor, "DeepMind JAX Ecosystem, optax")


def from_attribute(module_name: str, attribute: str) -> OptimizerSpec:
    """``module:attribute``: an OptimizerSpec, an optax-style constructor, or a gradient transformation."""
    name = f"{module_name}:{attribute}"
    module = _import(name, module_name)
    value = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            known = [key for key in dir(value) if not key.startswith("_")]
            raise UserError(f"optimizer '{name}': no such attribute.{near_matches(part, known)}")
        value = getattr(value, part)
    return dataclasses.replace(from_value(name, value), digest=_code_version(module))


def _import(name: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"optimizer '{name}': cannot import {module_name}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the author's file raises
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"optimizer '{name}': importing {module_name} fails with {reason}{where}") from error


def _code_version(module: Any) -> str:
    """Eight hexadecimal digits of the module's source: an edited file is another optimizer; '' for built-in modules."""
    path = getattr(module, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8] if path and Path(path).is_file() else ""


def from_value(name: str, value: Any) -> OptimizerSpec:
    """Make an spec of whatever a module or a plug-in offers."""
    if isinstance(value, OptimizerSpec):
        # Its own name may be a shipped optimizer's, whose tuned settings are not meant for it.
        return dataclasses.replace(value, tuned_as=value.tuned_as or name)
    if isinstance(value, optax.GradientTransformation):
        return OptimizerSpec(name, f"{name}, as built there", lambda theta, length: value)
    if callable(value):
        return from_constructor(name, value)
    raise UserError(
        f"optimizer '{name}' is a {type(value).__name__}: expected an OptimizerSpec, a function that returns an "
        "optax.GradientTransformation, or such a transformation"
    )


def from_constructor(name: str, constructor: Callable[..., Any], citation: str = "") -> OptimizerSpec:
    """An spec from an optax-style constructor; its arguments with defaults become static hyperparameters."""
    parameters = inspect.signature(constructor).parameters
    hyperparameters = {
        key: Hyperparameter(_default(name, parameter), f"argument of {name}")
        for key, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and key not in ("length", "theta")
    }
    has_rate = "learning_rate" in hyperparameters
    annealed = has_rate and not any(word in name for word in NOT_ANNEALED)
    hyperparameters["anneal_learning_rate"] = Hyperparameter(annealed, "anneal the updates linearly to 0")

    def factory(theta: Any, length: TrainingLength, *, anneal_learning_rate: bool, **values: Any) -> Any:
        own = {"length": length, "theta": theta}
        missing = [key for key, value in values.items() if value is inspect.Parameter.empty]
        if missing:
            raise UserError(f"{name} needs a value for {', '.join(missing)}: write {name}:{missing[0]}=…")
        transformation = constructor(**values, **{key: own[key] for key in own if key in parameters})
        if not isinstance(transformation, optax.GradientTransformation):
            raise UserError(f"{name} returned a {type(transformation).__name__}, not an optax.GradientTransformation")
        return anneal(transformation, length, anneal_learning_rate)

    description = (inspect.getdoc(constructor) or name).strip().splitlines()[0].rstrip(".")
    return OptimizerSpec(name, description, factory, citation, hyperparameters=hyperparameters)


def _default(name: str, parameter: inspect.Parameter) -> Any:
    if parameter.default is inspect.Parameter.empty and parameter.name == "learning_rate":
        return DEFAULT_LEARNING_RATE
    return parameter.default
