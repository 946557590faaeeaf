"""The registry: names → specs. It knows neither tasks nor weights."""

import dataclasses
import functools
import math
import reprlib
from collections.abc import Sequence
from typing import Any

from open_bench import plugins
from open_bench.algorithms.policy_losses import POLICY_LOSSES, PolicyLoss
from open_bench.errors import UserError, check_known, near_matches
from open_bench.optimizers import adapters, hand_designed, names
from open_bench.optimizers.learned import celo2, optim4rl, velo
from open_bench.optimizers.learned import open as open_family
from open_bench.optimizers.spec import OptimizerSpec

ENTRY_POINTS = "open_bench.optimizers"
BRIDGE = "learned_optimization"
SHIPPED = (*hand_designed.SPECS, *open_family.SPECS, *optim4rl.SPECS, *velo.SPECS, *celo2.SPECS)

_registered: dict[str, OptimizerSpec] = {}


def register(spec: OptimizerSpec) -> OptimizerSpec:
    """Add an optimizer for this process; raises UserError when the name is taken. Returns the spec."""
    if spec.name in known():
        raise UserError(f"an optimizer named '{spec.name}' is registered already")
    _registered[spec.name] = spec
    return spec


def known() -> dict[str, OptimizerSpec]:
    """Specs by name, without plug-ins."""
    return {spec.name: spec for spec in SHIPPED} | _registered


def available() -> list[str]:
    """Names of all registered optimizers, plug-ins included, sorted."""
    return sorted({*known(), *plugins.installed(ENTRY_POINTS)})


def learned_names() -> list[str]:
    """Names of those that need weights."""
    return [name for name, spec in known().items() if spec.needs_theta]


def learned_spec(name: str) -> OptimizerSpec:
    """The spec of a learned optimizer that is registered; raises UserError for any other name."""
    if name not in learned_names():
        raise UserError(
            f"'{name}' is not a learned optimizer.{near_matches(name, learned_names())} "
            f"Known: {', '.join(learned_names())}"
        )
    return known()[name]


def is_ours(parsed: names.ParsedName) -> bool:
    """Whether what a name means is here already: finding it imports no code from outside."""
    return parsed.attribute is None and (parsed.head in known() or parsed.head.startswith("optax."))


def registered_here(spec: OptimizerSpec) -> bool:
    """Whether ``register`` has added it, in this process alone."""
    return spec.name in _registered


def find(parsed: names.ParsedName) -> OptimizerSpec:
    """The spec that the head of a name means; raises UserError for an unknown one, with near matches."""
    if parsed.head.partition(".")[0] == BRIDGE:
        from open_bench.optimizers.learned_optimization import resolve_bridge

        return resolve_bridge(f"{parsed.head}:{parsed.attribute or ''}")
    if parsed.attribute is not None:
        return adapters.from_attribute(parsed.head, parsed.attribute)
    if parsed.head in _registered:
        spec = _registered[parsed.head]
        return dataclasses.replace(spec, digest=plugins.file_digest(spec, spec.make))
    if parsed.head in known():
        return known()[parsed.head]
    if parsed.head.startswith("optax."):
        return adapters.from_optax(parsed.head.removeprefix("optax."))
    installed = plugins.installed(ENTRY_POINTS)
    if parsed.head in installed:
        return adapters.from_value(parsed.head, plugins.load_attribute("optimizer", installed[parsed.head]))
    raise UserError(
        f"unknown optimizer '{parsed.head}'.{near_matches(parsed.head, available())} "
        "`openbench list optimizers` shows all of them; anything in optax is optax.NAME."
    )


def find_object(value: Any) -> tuple[names.ParsedName, OptimizerSpec]:
    """What a Python object means (``adapters.from_object``), and how it is written as a name.

    What a ``functools.partial`` binds are settings of its function, where they can be.

    Raises:
        UserError: it cannot be used, or it is a spec that calls itself like a registered one.
    """
    if isinstance(value, functools.partial) and (settings := adapters.bound_settings(value)) is not None:
        spec = adapters.from_object(value.func)
        if spec.digest is not None:
            return names.ParsedName(spec.name, settings=settings), spec
    if isinstance(value, OptimizerSpec) and value.name in known():
        if known()[value.name] is not value:
            raise UserError(
                f"an OptimizerSpec calls itself '{value.name}', and another optimizer is registered under this name: "
                f"give it a name of its own, as in dataclasses.replace(spec, name='my-{value.name}'); the registered "
                f"one is the text '{value.name}'"
            )
        return names.ParsedName(value.name), find(names.ParsedName(value.name))
    spec = adapters.from_object(value)
    return names.ParsedName(spec.name), spec


def told_apart(optimizers: Sequence[Any]) -> Any:
    """The optimizers, grids written out, and objects that no file tells numbered where they would have one label."""

    def name_of(optimizer: Any) -> str | None:
        spec = None if isinstance(optimizer, str) else find_object(optimizer)[1]
        return spec.name if spec is not None and spec.digest is None else None

    def renamed(optimizer: Any, name: str) -> OptimizerSpec:
        return dataclasses.replace(find_object(optimizer)[1], name=name)

    written_out = [each for one in optimizers for each in (names.expand(one) if isinstance(one, str) else [one])]
    return plugins.told_apart(written_out, name_of, renamed)


def name_of(optimizer: Any) -> str:
    """The name by which another process finds what a Python object is; raises UserError where there is none."""
    if isinstance(optimizer, str):
        return optimizer
    parsed, spec = find_object(optimizer)
    if spec.digest is None and parsed.head not in known():
        if not spec.needs_theta:
            raise UserError(f"{parsed} cannot be meta-trained: it has no meta-parameters θ")
        raise UserError(
            f"{parsed} is an object that no file tells, so its weights could not be used again: give it a name in a "
            "module of yours, and pass it as 'module:NAME'"
        )
    return str(parsed)


def find_policy_loss(name: str) -> PolicyLoss:
    """A policy loss by name; raises UserError for an unknown one."""
    check_known("policy loss", name, POLICY_LOSSES)
    return POLICY_LOSSES[name]


def check_settings(spec: OptimizerSpec, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in the types of their defaults; raises UserError for an unknown one, or a value that does not fit."""
    for key in settings:
        if key not in spec.hyperparameters:
            known = list(spec.hyperparameters)
            raise UserError(
                f"{spec.name} has no setting '{key}'.{near_matches(key, known)} It has: {', '.join(known) or 'none'}."
            )
    return {key: check_value(spec, key, value) for key, value in settings.items()}


def check_value(spec: OptimizerSpec, key: str, value: Any) -> Any:
    """``value`` in the type of the setting's default; raises UserError when it is of another kind or out of range."""
    default, given = spec.hyperparameters[key].default, value
    if isinstance(default, bool):
        fits = isinstance(value, bool)
    elif isinstance(default, float):
        value = _as_float(value)
        fits = value is not None
    elif isinstance(default, int):
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
    else:
        return value
    if not fits:
        kind = "finite number (float)" if isinstance(default, float) else type(default).__name__
        raise UserError(f"{spec.name}: {key} = {reprlib.repr(given)} is not a {kind}")
    _check_range(spec, key, value)
    return value


def _as_float(value: Any) -> float | None:
    """A finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def _check_range(spec: OptimizerSpec, key: str, value: float) -> None:
    low, high = spec.hyperparameters[key].minimum, spec.hyperparameters[key].below
    if (low is not None and value < low) or (high is not None and value >= high):
        allowed = [f"at least {low:g}"] if low is not None else []
        allowed += [f"below {high:g}"] if high is not None else []
        raise UserError(f"{spec.name}: {key} = {value!r} makes no sense: it must be {' and '.join(allowed)}")
