"""Bridge to Google's ``learned_optimization``: its optimizers, learned ones too, as optax transformations.

A name is ``learned_optimization.MODULE:ATTRIBUTE``, as in
``learned_optimization.optimizers.base:Adam`` or
``learned_optimization.learned_optimizers.adafac_mlp_lopt:AdafacMLPLOpt``. The attribute is an ``Optimizer``, a
``LearnedOptimizer``, a class of either, or a function that returns either.

The library is optional and imported only when such a name is resolved.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from open_bench.errors import UserError
from open_bench.optimizers.spec import Hyperparameter, Learned, OptimizerSpec, TrainingLength

LIBRARY = "learned_optimization"
INSTALL = (
    "Its release on the package index is from 2022, contains no VeLO and does not run on current JAX; install git "
    "main: pip install --no-deps git+https://github.com/google/learned_optimization && "
    "pip install chex dm-haiku gin-config tensorflow-cpu"
)


class BridgeError(UserError, ValueError):
    """A name of the bridge that leads to no usable optimizer."""


class LibraryMissing(BridgeError, ImportError):
    """``learned_optimization``, or something it imports, is not installed or does not import."""


class BridgeState(NamedTuple):
    """The library's own state, which carries a copy of the parameters."""

    inner: Any


def resolve_bridge(path: str) -> OptimizerSpec:
    """The spec for ``learned_optimization.MODULE:ATTRIBUTE``.

    Arguments of a class or function become hyperparameters. A learned optimizer is built with its defaults, because
    its settings shape its θ; to change them, name a function of your own that returns it.

    Raises:
        LibraryMissing: the library does not import; the message says how to install it.
        BridgeError: malformed name, no such module or attribute, or the attribute is nothing of the kind.
    """
    value = _load(path)
    built = _without_arguments(path, value)
    if _is_learned(built):
        return _learned_spec(path, built)
    if not _is_optimizer(built) and built is not None:
        raise BridgeError(
            f"{path} is or returns {type(built).__name__}, which is neither Optimizer nor LearnedOptimizer"
        )
    hyperparameters = {} if _is_optimizer(value) else _hyperparameters(value)

    def factory(theta: Any, length: TrainingLength, **settings: Any) -> optax.GradientTransformationExtraArgs:
        del theta
        return to_optax(value if _is_optimizer(value) else _build(path, value, settings), length.optimizer_steps)

    return OptimizerSpec(path, f"{path.partition(':')[2]} of {LIBRARY}", factory, hyperparameters=hyperparameters)


def _load(path: str) -> Any:
    module_path, colon, attribute = path.partition(":")
    if not colon or not attribute or module_path.split(".")[0] != LIBRARY:
        raise BridgeError(f"'{path}': expected {LIBRARY}.MODULE:ATTRIBUTE, as {LIBRARY}.optimizers.base:Adam")
    try:
        importlib.import_module(LIBRARY)
        value = importlib.import_module(module_path)
    except ImportError as error:
        if (error.name or "").startswith(f"{LIBRARY}."):  # the library is there, this module of it is not
            raise BridgeError(f"'{path}': {error}; check the module's name. {INSTALL}") from error
        raise LibraryMissing(f"'{path}' needs {LIBRARY}, which cannot be imported ({error}). {INSTALL}") from error
    except Exception as error:  # an old release fails on current JAX with AttributeError and others
        reason = f"{type(error).__name__}: {error}"
        raise LibraryMissing(f"'{path}': {LIBRARY} is installed but fails to import ({reason}). {INSTALL}") from error
    for step in attribute.split("."):
        if not hasattr(value, step):
            raise BridgeError(f"'{path}': {module_path} has no attribute '{attribute}'")
        value = getattr(value, step)
    return value


def _is_learned(value: Any) -> bool:
    return not isinstance(value, type) and hasattr(value, "opt_fn") and hasattr(value, "init")


def _is_optimizer(value: Any) -> bool:
    return not isinstance(value, type) and all(hasattr(value, name) for name in ("init", "update", "get_params"))


def _parameters(value: Callable[..., Any]) -> list[inspect.Parameter]:
    """Arguments that may be given by name."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _hyperparameters(value: Callable[..., Any]) -> dict[str, Hyperparameter]:
    described = f"argument of {getattr(value, '__name__', 'the optimizer')}"
    return {
        each.name: Hyperparameter(None, f"{described} (required)")
        if each.default is each.empty
        else Hyperparameter(each.default, described)
        for each in _parameters(value)
    }


def _without_arguments(path: str, value: Any) -> Any:
    """The object that ``value`` is or makes by default; None where it needs arguments."""
    if _is_optimizer(value) or _is_learned(value):
        return value
    if not callable(value):
        raise BridgeError(f"{path} is {type(value).__name__}; expected Optimizer, LearnedOptimizer, class or function")
    if any(parameter.default is parameter.empty for parameter in _parameters(value)):
        if hasattr(value, "opt_fn"):
            raise BridgeError(f"{path} needs arguments; name a function without arguments that returns it")
        return None
    return _build(path, value, {})


def _build(path: str, value: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    required = {p.name for p in _parameters(value) if p.default is p.empty}
    try:
        return value(**{k: v for k, v in settings.items() if not (v is None and k in required)})
    except Exception as error:
        raise BridgeError(f"{path} cannot be built: {type(error).__name__}: {error}") from error


# --- optimizers ----------------------------------------------------------------------------------------------------


def _accepted(function: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Those arguments that ``function`` takes; names of a few differ between the library's versions."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return arguments
    return {name: value for name, value in arguments.items() if name in {p.name for p in parameters}}


def _raw_key(key: Any) -> Any:
    """The library was written for keys that are plain (2,) uint32 arrays."""
    if key is not None and jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        return jax.random.key_data(key)
    return key


def to_optax(optimizer: Any, num_steps: int) -> optax.GradientTransformationExtraArgs:
    """An ``Optimizer`` of the library as a gradient transformation; updates are new − old parameters.

    Args:
        optimizer: has ``init``, ``update``, ``get_params`` and ``set_params``.
        num_steps: optimizer steps in the lifetime; static.

    Returns:
        A transformation that passes the extras ``loss`` and ``key`` on (None when absent) and raises ValueError
        without ``params``: these win over the copy that the library's state holds.
    """

    def init(params: Any) -> BridgeState:
        key = np.zeros(2, np.uint32)  # optax hands no key to init, and a fixed one keeps it reproducible
        extras = _accepted(optimizer.init, num_steps=num_steps, key=key)
        return BridgeState(jax.tree.map(jnp.asarray, optimizer.init(params, **extras)))

    def update(
        gradients: Any, state: BridgeState, params: Any = None, *, loss: Any = None, key: Any = None, **extras: Any
    ) -> tuple[Any, BridgeState]:
        del extras
        if params is None:
            raise ValueError("this optimizer reads the parameters: call update(gradients, state, params)")
        before = optimizer.set_params(state.inner, params)
        passed = _accepted(optimizer.update, loss=loss, key=_raw_key(key))
        after = optimizer.update(before, gradients, **passed)
        updates = jax.tree.map(lambda new, old: (new - old).astype(old.dtype), optimizer.get_params(after), params)
        inner = jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), after, state.inner)
        return updates, BridgeState(inner)

    return optax.GradientTransformationExtraArgs(init, update)


# --- learned optimizers --------------------------------------------------------------------------------------------


class _Layout:
    """θ of the library (any pytree) ↔ a dict with a name for every array, which is what files and evolution hold.

    The name is the path inside the pytree; "/", which separates names in files, becomes ".".
    """

    def __init__(self, init: Callable[[Any], Any]):
        self._init = init

    @functools.cached_property
    def _shapes(self) -> Any:
        return jax.eval_shape(self._init, jax.ShapeDtypeStruct((2,), np.uint32))  # runs nothing

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every array by name, in the pytree's order; BridgeError when two names are the same."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._shapes):
            name = jax.tree_util.keystr(path, simple=True, separator=".").replace("/", ".") or "theta"
            if name in shapes:
                raise BridgeError(f"two arrays of θ would both be named {name}")
            shapes[name] = tuple(leaf.shape)
        return shapes

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        """Where meta-training starts."""
        return dict(zip(self.shapes, jax.tree.leaves(self._init(_raw_key(key))), strict=True))

    def validate(self, theta: Mapping[str, Any]) -> None:
        """Raise ValueError naming the first array that does not fit."""
        for name in sorted({*self.shapes, *theta}):
            wanted = self.shapes.get(name, "none")
            found = tuple(np.shape(theta[name])) if name in theta else "none"
            if wanted != found:
                raise BridgeError(f"array {name}: expected {wanted}, found {found}")

    def restore(self, theta: Mapping[str, Any]) -> Any:
        """The library's pytree."""
        self.validate(theta)
        return jax.tree.structure(self._shapes).unflatten([theta[name] for name in self.shapes])  # type: ignore[attr-defined]


def _learned_spec(path: str, learned: Any) -> OptimizerSpec:
    layout = _Layout(learned.init)

    def factory(theta: Any, length: TrainingLength) -> optax.GradientTransformationExtraArgs:
        if not theta:
            raise BridgeError(f"{path} is a learned optimizer and needs weights: {path}@NAME-or-FILE")
        return to_optax(learned.opt_fn(layout.restore(theta)), length.optimizer_steps)

    own = Learned(init=layout.init, validate=layout.validate)
    return OptimizerSpec(path, f"{path.partition(':')[2]} of {LIBRARY}", factory, learned=own)
