"""The registry: names → entries. Everything that can be wrong with a name is found here, before any tracing."""

import dataclasses
import importlib.metadata
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from open_bench.agents.objectives import OBJECTIVES
from open_bench.errors import UserError, near_matches
from open_bench.optimizers import classic, foreign, names, open, optim4rl, velo
from open_bench.optimizers.entry import EMPTY_THETA, Budget, OptimizerEntry

ENTRY_POINTS = "open_bench.optimizers"

SHIPPED = (*classic.ENTRIES, *open.ENTRIES, *optim4rl.ENTRIES, *velo.ENTRIES)
BRIDGE = "learned_optimization"
FETCHED = ("velo",)  # weights that their authors publish where ``openbench weights fetch`` finds them

_registered: dict[str, OptimizerEntry] = {}


def register(entry: OptimizerEntry) -> OptimizerEntry:
    """Add an optimizer for this process; raises UserError when the name is taken. Returns the entry."""
    if entry.name in known():
        raise UserError(f"an optimizer named '{entry.name}' is registered already")
    _registered[entry.name] = entry
    return entry


def available() -> list[str]:
    """Names of all registered optimizers, plug-ins included, sorted."""
    return sorted({*known(), *_plugins()})


def resolve(name: str) -> OptimizerEntry:
    """The entry that a name means, with its settings, objective and weights.

    Args:
        name: see ``open_bench.optimizers.names`` for the grammar.

    Raises:
        UserError: unknown name or setting (with near matches), a value of the wrong kind, weights that do not fit, or
            an optimizer that cannot run on gradients alone.
    """
    parsed = names.parse(name)
    entry = _find(parsed)
    given = _check_settings(entry, dict(parsed.settings))
    entry = dataclasses.replace(entry, name=_label(entry, parsed), given=given, tuned_as=entry.tuned_as or entry.name)
    if parsed.objective is not None:
        entry = dataclasses.replace(entry, objective=_objective(parsed.objective))
    entry = _with_theta(entry, parsed)
    if entry.theta is not None or not entry.needs_theta:
        _dry_run(entry)
    return entry


def known() -> dict[str, OptimizerEntry]:
    """Entries by name, without plug-ins."""
    return {entry.name: entry for entry in SHIPPED} | _registered


def _plugins() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def _find(parsed: names.ParsedName) -> OptimizerEntry:
    if parsed.head.partition(".")[0] == BRIDGE:
        from open_bench.optimizers.learned_optimization import resolve_bridge

        return resolve_bridge(f"{parsed.head}:{parsed.attribute or ''}")
    if parsed.attribute is not None:
        return foreign.from_attribute(parsed.head, parsed.attribute)
    entries = known()
    if parsed.head in entries:
        return entries[parsed.head]
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


def _check_settings(entry: OptimizerEntry, settings: dict[str, Any]) -> dict[str, Any]:
    checked = {}
    for key, value in settings.items():
        if key not in entry.hyperparameters:
            known = list(entry.hyperparameters)
            raise UserError(
                f"{entry.name} has no setting '{key}'.{near_matches(key, known)} It has: {', '.join(known) or 'none'}."
            )
        checked[key] = check_value(entry, key, value)
    return checked


def check_value(entry: OptimizerEntry, key: str, value: Any) -> Any:
    """``value`` in the type of the setting's default; raises UserError when it is of another kind."""
    default = entry.hyperparameters[key].default
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
        raise UserError(f"{entry.name}: {key} = {value!r} is not a {kind}")
    _check_range(entry, key, value)
    return value


def _check_range(entry: OptimizerEntry, key: str, value: float) -> None:
    low, high = entry.hyperparameters[key].minimum, entry.hyperparameters[key].below
    if (low is not None and value < low) or (high is not None and value >= high):
        allowed = [f"at least {low:g}"] if low is not None else []
        allowed += [f"below {high:g}"] if high is not None else []
        raise UserError(f"{entry.name}: {key} = {value!r} makes no sense: it must be {' and '.join(allowed)}")


def _objective(name: str) -> Any:
    if name not in OBJECTIVES:
        raise UserError(
            f"unknown policy objective '{name}'.{near_matches(name, list(OBJECTIVES))} Known: {', '.join(OBJECTIVES)}"
        )
    return OBJECTIVES[name]


def _with_theta(entry: OptimizerEntry, parsed: names.ParsedName) -> OptimizerEntry:
    """Attach the weights that the name asks for, or those that are kept under what is learned (``own_weights``)."""
    from open_bench import weights

    if not entry.needs_theta:
        if parsed.source is not None:
            raise UserError(
                f"'{parsed}': {parsed.head} is not a learned optimizer, so '@{parsed.source}' has no meaning"
            )
        return entry
    if parsed.source is None:
        own = own_weights(entry)
        kept = weights.kept(own) if own is not None else None
        if kept is None:
            return entry
        found = weights.import_file(kept, entry)
        return dataclasses.replace(entry, theta=found.theta, theta_source=kept.name, theta_metadata=found.metadata)
    if parsed.source in ("zero", "init"):
        theta = entry.init_theta(jax.random.key(0))
        theta = jax.tree.map(jnp.zeros_like, theta) if parsed.source == "zero" else theta
        return dataclasses.replace(entry, theta=theta, theta_source=parsed.source)
    found = weights.load_reference(parsed.source, entry)
    # Rows and folders show the weights' name; what they hold is told by their hash, wherever the file lies.
    short = pathlib.PurePath(parsed.source).name
    for suffix in weights.SUFFIXES:
        short = short.removesuffix(suffix)
    name = _label(entry, dataclasses.replace(parsed, source=short))
    return dataclasses.replace(entry, name=name, theta=found.theta, theta_source=short, theta_metadata=found.metadata)


def own_weights(entry: OptimizerEntry) -> str | None:
    """Name of the weights that an optimizer uses when none are named, such as "open"; "lpo" for ``adam+lpo``.

    None where optimizer and objective are both learned: no weights can go by the name of one of them.
    """
    if entry.learned and entry.objective.init is not None:
        return None
    return (entry.tuned_as or entry.name) if entry.learned else entry.objective.name


def _label(entry: OptimizerEntry, parsed: names.ParsedName) -> str:
    """The name as rows show it; of code that lies in a file, with a digest, so that an edited file is another row."""
    return f"{parsed}#{entry.version}" if entry.version else str(parsed)


def _dry_run(entry: OptimizerEntry) -> None:
    """Trace one step on a tiny agent, so that an optimizer that cannot work says so before anything trains."""
    layer = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}
    params = {"actor": {"dense_00": layer, "log_std": jnp.zeros(2)}, "critic": {"dense_00": layer}}
    unit = {"dense_00": jnp.ones(2)}

    def step(params: Any, key: jax.Array) -> Any:
        optimizer = entry.make(entry.theta or EMPTY_THETA, Budget(2, 2, 2))
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
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{entry.name} cannot make an update from PPO's gradients and extras: {reason}") from error
    for what, found, expected in (("updates", updates, params), ("state", after, before)):
        if _kinds(found) != _kinds(expected):
            whose = "the parameters" if what == "updates" else "the state of init"
            raise UserError(
                f"{entry.name} returns {what} of another structure, shape or dtype than {whose}; "
                f"`openbench check` says more"
            )


def _kinds(tree: Any) -> Any:
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
