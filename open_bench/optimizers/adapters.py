"""Optimizers from elsewhere: anything in optax, an attribute of an importable module, or a Python object.

A function becomes an optimizer by its signature. Arguments with a number as default are *traced* hyperparameters,
so that another value compiles nothing; those that the function cannot take as a tracer (it branches on them), and
everything that is no float, are static. ``length`` is filled with the ``TrainingLength``, ``theta`` with θ. A
``learning_rate`` without a default gets 3e-4, and the hyperparameter's description says so. Updates of a function that
has a ``learning_rate`` are annealed like those of shipped optimizers, unless it takes ``length``: then it is taken to
have a schedule of its own. ``searchable`` says where tuning looks.
"""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from open_bench import plugins
from open_bench.errors import UserError, near_matches
from open_bench.optimizers.schedules import anneal
from open_bench.optimizers.spec import Hyperparameter, OptimizerSpec, Search, TrainingLength

Function = TypeVar("Function", bound=Callable[..., Any])

DEFAULT_LEARNING_RATE = 3e-4
OWN_DEFAULT = f" (it has none itself: open-bench's default is {DEFAULT_LEARNING_RATE:g})"
OWN_SEARCH = (1e-4, 3e-2)
SEARCH_FACTOR = 30.0  # a learning rate is searched from default/30 to default·30 where nobody says otherwise
FILLED = ("length", "theta")  # arguments that are no hyperparameters

# What optax offers and PPO cannot train with, by reason.
_REFUSED = {
    "it needs the loss as a function, to call it at other points, and the harness gives it gradients only": (
        "lbfgs scale_by_lbfgs scale_by_backtracking_linesearch scale_by_zoom_linesearch contrib.sam contrib.look_sam "
        "contrib.sophia contrib.hutchinson_estimator_diag_hessian"
    ),
    "it needs the gradient of every single sample, and the harness gives it their mean": (
        "contrib.dpsgd contrib.differentially_private_aggregate"
    ),
    "it wraps another transformation: name a function of your own that returns the whole, as MODULE:FUNCTION": (
        "apply_if_finite chain conditionally_mask conditionally_transform flatten freeze inject_hyperparams "
        "inject_stateful_hyperparams lookahead masked maybe_update multi_transform named_chain partition "
        "selective_transform stateless stateless_with_tree_map with_extra_args_support contrib.mechanize "
        "contrib.schedule_free contrib.split_real_and_imaginary"
    ),
    "it only measures or schedules: put it into a function of your own with optax.chain": (
        "measure_with_ema monitor snapshot contrib.reduce_on_plateau"
    ),
    "it is one part of an optimizer: put it into a function of your own with optax.chain": (
        "adaptive_grad_clip add_decayed_weights add_noise apply_every centralize clip clip_by_block_rms "
        "clip_by_global_norm ema identity keep_params_nonnegative normalize_by_update_norm scale set_to_zero trace "
        "zero_nans contrib.normalize"
    ),
}
REFUSED = {name: reason for reason, names in _REFUSED.items() for name in names.split()}
PART = "scale_by_"  # names of parts begin so

_BIAS = jax.ShapeDtypeStruct((2,), jnp.float32)
_LAYERS = {"layer_00_dense": {"kernel": jax.ShapeDtypeStruct((3, 2), jnp.float32), "bias": _BIAS}}
TINY_AGENTS = {
    "actor": {"actor": {**_LAYERS, "log_std": _BIAS}, "critic": _LAYERS},
    "q": {"q": _LAYERS},
}  # by what acts


def searchable(**spaces: Search) -> Callable[[Function], Function]:
    """Say where a search for a function's arguments looks.

    Example::

        @searchable(learning_rate=Search(1e-4, 1e-1), decay=Search(choices=(0.9, 0.99)))
        def mine(learning_rate=1e-2, decay=0.9):
            return optax.sgd(learning_rate, momentum=decay)
    """

    def mark(function: Function) -> Function:
        function.search = spaces  # type: ignore[attr-defined]
        return function

    return mark


# --- where they come from --------------------------------------------------------------------------------------------


def from_optax(path: str) -> OptimizerSpec:
    """The optax optimizer at ``path`` ("adabelief", "contrib.muon"); UserError says why one cannot be used."""
    reason = REFUSED.get(path)
    if reason is None and path.rpartition(".")[2].startswith(PART):
        reason = REFUSED["clip"]
    if reason:
        raise UserError(f"optax.{path} cannot be benchmarked: {reason}")
    constructor: Any = optax
    module = optax
    for part in path.split("."):
        module, constructor = constructor, getattr(constructor, part, None)
        if constructor is None:
            known = [name for name in dir(module) if not name.startswith("_")]
            raise UserError(f"optax has no '{path}'.{near_matches(part, known)}")
    if not callable(constructor) or inspect.isclass(constructor):
        raise UserError(f"optax.{path} is not an optimizer: it is a {type(constructor).__name__}")
    origin = constructor.func if isinstance(constructor, functools.partial) else constructor  # nadam is adam's partial
    if str(getattr(origin, "__module__", None)).partition(".")[0] != "optax":  # a name never leads out of it
        raise UserError(f"optax.{path} is not an optimizer of optax: it comes from elsewhere")
    return from_constructor(f"optax.{path}", constructor, "DeepMind JAX Ecosystem, optax")


def from_attribute(module_name: str, attribute: str) -> OptimizerSpec:
    """``module:attribute``: an OptimizerSpec, an optax-style constructor, or a gradient transformation."""
    name = f"{module_name}:{attribute}"
    value = plugins.load_attribute("optimizer", name)
    return dataclasses.replace(from_value(name, value), digest=plugins.source_digest(sys.modules[module_name]))


def from_object(value: Any) -> OptimizerSpec:
    """A Python object where a name is expected: an optax constructor, a transformation, a spec, a function.

    What a file tells is what ``module:attribute`` means. Of anything else (a notebook's function, one with captured
    variables, a built transformation) the digest is None, so that stored results are never taken for it.
    """
    function = value.func if isinstance(value, functools.partial) else value
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", type(function).__name__)
    if callable(value) and function is value and str(module).partition(".")[0] == "optax":
        return from_optax(name if getattr(optax, name, None) is value else f"contrib.{name}")
    place = plugins.place_of(value, value.make if isinstance(value, OptimizerSpec) else None)
    if place is not None:
        return dataclasses.replace(from_attribute(*place.split(":")), name=place)
    if isinstance(value, OptimizerSpec):
        name = value.name
    elif callable(function):
        name = f"{module}:{name}"
    return dataclasses.replace(from_value(name, value), digest=None)


def bound_settings(value: functools.partial[Any]) -> tuple[tuple[str, Any], ...] | None:
    """What a partial binds, as settings in a name; None where it binds what those cannot be, such as functions."""
    try:
        signature = inspect.signature(value.func)
        bound = signature.bind_partial(*value.args, **value.keywords).arguments
    except (TypeError, ValueError):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for key, setting in bound.items():
        plain = setting is None or isinstance(setting, bool | int | float | str)
        if key in FILLED or not plain or signature.parameters[key].kind not in by_name:
            return None
    return tuple(sorted(bound.items()))


def from_value(name: str, value: Any) -> OptimizerSpec:
    """Make a spec of whatever a module or a plug-in offers under a name."""
    if isinstance(value, OptimizerSpec):
        # Its own name may be a shipped optimizer's, whose tuned settings are not meant for it.
        return dataclasses.replace(value, tuned_as=value.tuned_as or name)
    if isinstance(value, optax.GradientTransformation):
        acting = _schedule_free_params if _is_schedule_free(lambda: value) else None
        return OptimizerSpec(name, f"{name}, as built there", lambda theta, length: value, eval_params=acting)
    if callable(value):
        return from_constructor(name, value)
    raise UserError(
        f"optimizer '{name}' is a {type(value).__name__}: expected an OptimizerSpec, a function that returns an "
        "optax.GradientTransformation, or such a transformation"
    )


# --- functions -------------------------------------------------------------------------------------------------------


def from_constructor(name: str, constructor: Callable[..., Any], citation: str = "") -> OptimizerSpec:
    """A spec from an optax-style constructor; its arguments become hyperparameters (see the module's docstring)."""
    parameters = {
        key: parameter
        for key, parameter in _signature(name, constructor).items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    build = functools.partial(_build, name, constructor, [key for key in FILLED if key in parameters])
    defaults = {key: _default(parameter) for key, parameter in parameters.items() if key not in FILLED}
    traced, free = _try(build, defaults)
    spaces = getattr(constructor, "search", {})
    hyperparameters = {
        key: Hyperparameter(
            default,
            _describe(name, parameters[key]),
            traced=key in traced,
            search=spaces.get(key) or _default_search(parameters[key], default),
        )
        for key, default in defaults.items()
    }
    unknown = sorted(set(spaces) - set(hyperparameters))
    if unknown:
        raise UserError(f"{name}: searchable names {', '.join(unknown)}, and its arguments are {', '.join(defaults)}")
    own = "anneal_learning_rate" in hyperparameters  # the function has such an argument itself
    if not own:
        annealed = "learning_rate" in defaults and "length" not in parameters and not free
        hyperparameters["anneal_learning_rate"] = Hyperparameter(annealed, "anneal the updates linearly to 0")

    def make(theta: Any, length: TrainingLength, **values: Any) -> Any:
        enabled = False if own else values.pop("anneal_learning_rate")
        if enabled and free:
            raise UserError(
                f"{name} is schedule-free: scaled updates would leave its average behind, so anneal_learning_rate=true "
                "means nothing there; schedule-free-adamw has that setting, and anneals the iterate"
            )
        return anneal(build(theta, length, values), length, enabled)

    description = (inspect.getdoc(constructor) or name).strip().splitlines()[0].rstrip(".")
    eval_params = _schedule_free_params if free else None
    return OptimizerSpec(name, description, make, citation, hyperparameters=hyperparameters, eval_params=eval_params)


def _signature(name: str, constructor: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(constructor).parameters
    except (TypeError, ValueError):
        raise UserError(f"optimizer '{name}': its arguments cannot be read") from None


def _build(
    name: str, constructor: Callable[..., Any], filled: Sequence[str], theta: Any, length: Any, values: dict[str, Any]
) -> optax.GradientTransformation:
    """Call the constructor; UserError where it lacks a value or returns something else."""
    missing = [key for key, value in values.items() if value is inspect.Parameter.empty]
    if missing:
        raise UserError(f"{name} needs a value for {', '.join(missing)}: write {name}:{missing[0]}=…")
    given = {"length": length, "theta": theta}
    made = constructor(**values, **{key: given[key] for key in filled})
    if not isinstance(made, optax.GradientTransformation):
        raise UserError(f"{name} returned a {type(made).__name__}, not an optax.GradientTransformation")
    return made


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.default is inspect.Parameter.empty and parameter.name == "learning_rate":
        return DEFAULT_LEARNING_RATE
    return parameter.default


def _describe(name: str, parameter: inspect.Parameter) -> str:
    if parameter.default is not inspect.Parameter.empty:
        return f"argument of {name}"
    return f"argument of {name}{OWN_DEFAULT if parameter.name == 'learning_rate' else ' (required)'}"


def _default_search(parameter: inspect.Parameter, default: Any) -> Search | None:
    if parameter.name != "learning_rate" or not isinstance(default, float) or default <= 0:
        return None
    if parameter.default is inspect.Parameter.empty:  # open-bench's own default: the space of Adam's relatives, too
        return Search(*OWN_SEARCH, "log")
    return Search(default / SEARCH_FACTOR, default * SEARCH_FACTOR, "log")


def _try(build: Callable[..., Any], defaults: dict[str, Any]) -> tuple[set[str], bool]:
    """``(which arguments may be tracers, whether it is schedule-free)``, by tracing one step on a tiny agent.

    Nothing is run. A function that fails whatever it is given fails again, with an explanation, where it is used.
    """
    numbers = [key for key, default in defaults.items() if isinstance(default, float)]

    def works(names: Sequence[str]) -> bool:
        traced = {key: jnp.float32(defaults[key]) for key in names}
        for acting in TINY_AGENTS:
            try:
                dry_step(lambda values: build({}, TrainingLength(2, 2, 2), {**defaults, **values}), traced, acting)
            except Exception:  # any branch on a tracer; each library has its own words for it
                continue
            return True
        return False

    if not works([]):
        return set(), False
    free = _is_schedule_free(lambda: build({}, TrainingLength(2, 2, 2), defaults))
    if works(numbers):
        return set(numbers), free
    single = [key for key in numbers if works([key])]
    return (set(single) if works(single) else set()), free


def dry_step(make: Callable[[Any], optax.GradientTransformation], inputs: Any, acting: str, params: Any = None) -> Any:
    """One update of an agent, traced and never run: shapes of ``(params, state before, updates, state after)``.

    Args:
        make: ``inputs``, as tracers, → the optimizer.
        acting: name of the network that acts.
        params: of the agent, or their shapes; by default those of a tiny one.
    """

    def step(params: Any, inputs: Any) -> Any:
        optimizer, zero = optax.with_extra_args_support(make(inputs)), jnp.float32(0)
        activations = {
            network: {
                layer: jnp.ones(jax.tree.leaves(leaves)[0].shape[-1:])
                for layer, leaves in layers.items()
                if isinstance(leaves, Mapping)
            }
            for network, layers in params.items()
        }
        state = optimizer.init(params)
        updates, after = optimizer.update(
            params, state, params, training_fraction=zero, epoch_fraction=zero, new_rollout=jnp.bool_(True),
            activations=activations, loss=zero, value=zero, key=jax.random.key(0), acting_network=acting,
        )  # fmt: skip
        return params, state, updates, after

    return jax.eval_shape(step, TINY_AGENTS[acting] if params is None else params, inputs)


# --- schedule-free methods -------------------------------------------------------------------------------------------


def _schedule_free_states(state: Any) -> list[Any]:
    found = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, optax.contrib.ScheduleFreeState))
    return [node for node in found if isinstance(node, optax.contrib.ScheduleFreeState)]


def _is_schedule_free(make: Callable[[], optax.GradientTransformation]) -> bool:
    """Whether the state holds a schedule-free iterate, so that the agent acts at another point than y."""
    try:
        return bool(_schedule_free_states(jax.eval_shape(lambda params: make().init(params), TINY_AGENTS["actor"])))
    except Exception:  # said where it is used
        return False


def _schedule_free_params(state: Any, params: Any) -> Any:
    """x of the schedule-free method: where the agent acts (Defazio et al. 2024, arXiv 2405.15682)."""
    return optax.contrib.schedule_free_eval_params(_schedule_free_states(state)[0], params)
