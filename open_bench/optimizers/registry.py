"""The registry: names → specs. Everything that can be wrong with a name is found here, before any tracing."""

import dataclasses
import importlib.metadata
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from open_bench.algorithms.policy_losses import POLICY_LOSSES
from open_bench.errors import UserError, near_matches
from open_bench.optimizers import adapters as foreign
from open_bench.optimizers import hand_designed as classic
from open_bench.optimizers import names
from open_bench.optimizers.learned import open, optim4rl, velo
from open_bench.optimizers.spec import EMPTY_THETA, OptimizerSpec, TrainingLength

ENTRY_POINTS = "open_bench.optimizers"

SHIPPED = (*classic.SPECS, *open.SPECS, *optim4rl.SPECS, *velo.SPECS)
BRIDGE = "learned_optimization"
FETCHED = ("velo",)  # weights whose authors publish them for this optimizer alone; see weights.fetch

_registered: dict[str, OptimizerSpec] = {}


def register(spec: OptimizerSpec) -> OptimizerSpec:
    """Add an optimizer for this process; raises UserError when the name is taken. Returns the spec."""
    if spec.name in known():
        raise UserError(f"an optimizer named '{spec.name}' is registered already")
    _registered[spec.name] = spec
    return spec


def available() -> list[str]:
    """Names of all registered optimizers, plug-ins included, sorted."""
    return sorted({*known(), *_plugins()})


def resolve(name: str) -> OptimizerSpec:
    """The spec that a name means, with its settings, policy_loss and weights.

    Args:
        name: see ``open_bench.optimizers.names`` for the grammar.

    Raises:
        UserError: unknown name or setting (with near matches), a value of the wrong kind, weights that do not fit, or
            an optimizer that cannot run on gradients alone.
    """
    parsed = names.parse(name)
    spec = _find(parsed)
    given = _check_settings(spec, dict(parsed.settings))
    spec = dataclasses.replace(spec, name=_label(spec, parsed), given=given, tuned_as=spec.tuned_as or spec.name)
    if parsed.policy_loss is not None:
        spec = dataclasses.replace(spec, policy_loss=_policy_loss(parsed.policy_loss))
    spec = _with_theta(spec, parsed)
    if spec.theta is not None or not spec.needs_theta:
        _dry_run(spec)
    return spec


def known() -> dict[str, OptimizerSpec]:
    """Entries by name, without plug-ins."""
    return {spec.name: spec for spec in SHIPPED} | _registered


def _plugins() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def _find(parsed: names.ParsedName) -> OptimizerSpec:
    if parsed.head.partition(".")[0] == BRIDGE:
        from open_bench.optimizers.learned_optimization import resolve_bridge

        return resolve_bridge(f"{parsed.head}:{parsed.attribute or ''}")
    if parsed.attribute is not None:
        return foreign.from_attribute(parsed.head, parsed.attribute)
    specs = known()
    if parsed.head in specs:
        return specs[parsed.head]
    if parsed.head.startswith("optax."):
        return foreign.from_optax(parsed.head.removeprefix("optax."))
    plugins = _plugins()
    if parsed.head in plugins:
        return foreign.from_value(parsed.head, _load_plugin(plugins[parsed.head]))
    raise UserError(
        f"unknown optimizer '{parsed.head}'.{near_matches(parsed.head, available())} "
        "`openbench list optimizers` shows all of them; anything in optax is optax.NAME."
    )


def _load_plugin(point: importlib.metadata.EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise UserError(f"plug-in '{point.name}' ({point.value}) cannot be loaded: {error}") from error


def _check_settings(spec: OptimizerSpec, settings: dict[str, Any]) -> dict[str, Any]:
    checked = {}
    for key, value in settings.items():
        if key not in spec.hyperparameters:
            known = list(spec.hyperparameters)
            raise UserError(
                f"{spec.name} has no setting '{key}'.{near_matches(key, known)} It has: {', '.join(known) or 'none'}."
            )
        checked[key] = check_value(spec, key, value)
    return checked


def check_value(spec: OptimizerSpec, key: str, value: Any) -> Any:
    """``value`` in the type of the setting's default; raises UserError when it is of another kind."""
    default = spec.hyperparameters[key].default
    if isinstance(default, bool):
        fits = isinstance(value, bool)
    elif isinstance(default, float):
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        value = float(value) if fits else value
    elif isinstance(default, int):
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        return value
    if not fits:
        kind = "finite number (float)" if isinstance(default, float) else type(default).__name__
        raise UserError(f"{spec.name}: {key} = {value!r} is not a {kind}")
    _check_range(spec, key, value)
    return value


def _check_range(spec: OptimizerSpec, key: str, value: float) -> None:
    low, high = spec.hyperparameters[key].minimum, spec.hyperparameters[key].below
    if (low is not None and value < low) or (high is not None and value >= high):
        allowed = [f"at least {low:g}"] if low is not None else []
        allowed += [f"below {high:g}"] if high is not None else []
        raise UserError(f"{spec.name}: {key} = {value!r} makes no sense: it must be {' and '.join(allowed)}")


def _policy_loss(name: str) -> Any:
    if name not in POLICY_LOSSES:
        raise UserError(
            f"unknown policy loss '{name}'.{near_matches(name, list(POLICY_LOSSES))} Known: {', '.join(POLICY_LOSSES)}"
        )
    return POLICY_LOSSES[name]


def _with_theta(spec: OptimizerSpec, parsed: names.ParsedName) -> OptimizerSpec:
    """Attach the weights that the name asks for, or those that are kept under what is learned (``own_weights``)."""
    from open_bench import weights

    if not spec.needs_theta:
        if parsed.source is not None:
            raise UserError(
                f"'{parsed}': {parsed.head} is not a learned optimizer, so '@{parsed.source}' has no meaning"
            )
        return spec
    if parsed.source is None:
        own = own_weights(spec)
        kept = weights.kept(own) if own is not None else None
        if kept is None:
            return spec
        found = weights.import_file(kept, spec)
        return dataclasses.replace(spec, theta=found.theta, theta_source=kept.name, theta_metadata=found.metadata)
    if parsed.source in ("zero", "init"):
        theta = spec.init_theta(jax.random.key(0))
        theta = jax.tree.map(jnp.zeros_like, theta) if parsed.source == "zero" else theta
        return dataclasses.replace(spec, theta=theta, theta_source=parsed.source)
    found = weights.load_reference(parsed.source, spec)
    # Rows and folders show the weights' name; what they hold is told by their hash, wherever the file lies.
    short = pathlib.PurePath(parsed.source).name
    for suffix in weights.SUFFIXES:
        short = short.removesuffix(suffix)
    name = _label(spec, dataclasses.replace(parsed, source=short))
    return dataclasses.replace(spec, name=name, theta=found.theta, theta_source=short, theta_metadata=found.metadata)


def own_weights(spec: OptimizerSpec) -> str | None:
    """Name of the weights that an optimizer uses when none are named, such as "open"; "lpo" for ``adam+lpo``.

    None where optimizer and policy_loss are both learned: no weights can go by the name of one of them.
    """
    if spec.learned and spec.policy_loss.init is not None:
        return None
    return (spec.tuned_as or spec.name) if spec.learned else spec.policy_loss.name


def _label(spec: OptimizerSpec, parsed: names.ParsedName) -> str:
    """The name as rows show it; of code that lies in a file, with a digest, so that an edited file is another row."""
    return f"{parsed}#{spec.digest}" if spec.digest else str(parsed)


def _dry_run(spec: OptimizerSpec) -> None:
    """Trace one step on a tiny agent, so that an optimizer that cannot work says so before anything trains."""
    layer = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}
    params = {"actor": {"dense_00": layer, "log_std": jnp.zeros(2)}, "critic": {"dense_00": layer}}
    unit = {"dense_00": jnp.ones(2)}

    def step(params: Any, key: jax.Array) -> Any:
        optimizer = spec.make(spec.theta or EMPTY_THETA, TrainingLength(2, 2, 2))
        extras = {"training_fraction": jnp.float32(0), "epoch_fraction": jnp.float32(0), "loss": jnp.float32(0)}
        activations = {"actor": unit, "critic": unit}
        state = optimizer.init(params)
        return state, optimizer.update(
            params, state, params, activations=activations, value=jnp.float32(0), key=key, **extras
        )

    try:
        before, (updates, after) = jax.eval_shape(step, params, jax.random.key(0))
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}{foreign.line_of(error)}"
        raise UserError(f"{spec.name} cannot make an update from PPO's gradients and extras: {reason}") from error
    for what, found, expected in (("updates", updates, params), ("state", after, before)):
        if _kinds(found) != _kinds(expected):
            whose = "the parameters" if what == "updates" else "the state of init"
            raise UserError(
                f"{spec.name} returns {what} of another structure, shape or dtype than {whose}; "
                f"`openbench check` says more"
            )


def _kinds(tree: Any) -> Any:
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
