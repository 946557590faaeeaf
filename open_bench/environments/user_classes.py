"""Environment classes from outside the package: what they must have, and what ``reset`` and ``step`` must return."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from open_bench.environments.base import Continuous, Discrete, Environment, Options
from open_bench.errors import UserError, near_matches

_ATTRIBUTES = ("observation_size", "action_space")
_RETURNED = "(observation, state, reward, terminated, truncated, info)"


def check_class(name: str, value: Any) -> type[Environment]:
    """``value``, if it is a class that is derived from ``Environment``; raises UserError naming what it lacks."""
    if not isinstance(value, type):
        raise UserError(f"environment '{name}' is a {type(value).__name__}, not a class of environments")
    constructs = any("__init__" in vars(kind) for kind in value.__mro__[:-1])
    attributes = () if constructs else _ATTRIBUTES  # what a constructor sets is seen later
    found = {method: getattr(value, method, None) for method in ("reset", "step")}
    methods = [name for name, each in found.items() if each is None or getattr(each, "__isabstractmethod__", False)]
    _refuse_missing(name, [*methods, *(attribute for attribute in attributes if not hasattr(value, attribute))])
    if not issubclass(value, Environment):
        raise UserError(f"environment '{name}' is not derived from open_bench.environments.Environment")
    return value


def construct(name: str, kind: type[Environment], options: Options) -> Environment:
    """An instance of a user's class, checked; options are its arguments.

    Raises:
        UserError: options that it does not take or needs, a constructor that fails, or a broken contract.
    """
    _check_options(name, kind, options)
    try:
        environment = kind(**options)
    except UserError:
        raise
    except Exception as error:  # whatever the author's code raises
        raise UserError(
            f"environment {name} cannot be made with {dict(options)}: {type(error).__name__}: {error}"
        ) from error
    return check_instance(name, environment)


def check_instance(name: str, environment: Environment) -> Environment:
    """The environment, if ``reset`` and ``step`` return what they must; nothing is run. Raises UserError otherwise."""
    _refuse_missing(name, [attribute for attribute in _ATTRIBUTES if not hasattr(environment, attribute)])
    space = environment.action_space
    if not isinstance(space, Discrete | Continuous):
        raise UserError(f"environment {name}: action_space is a {type(space).__name__}, not a Discrete or Continuous")
    if type(environment.observation_size) is not int:
        raise UserError(f"environment {name}: observation_size = {environment.observation_size!r} is no whole number")
    key = jax.random.key(0)
    action = jnp.int32(0) if isinstance(space, Discrete) else jnp.zeros(space.size)
    observation, state = _trace(name, "reset", 2, "(observation, state)", environment.reset, key)
    stepped = _trace(name, "step", 6, _RETURNED, environment.step, key, state, action)
    after, later, reward, terminated, truncated, info = stepped
    vector = jax.ShapeDtypeStruct((environment.observation_size,), environment.observation_dtype)
    number, flag = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_)
    if not isinstance(info, dict) or "final_observation" not in info:
        raise UserError(f'environment {name}: info of step lacks "final_observation", the last one of the old episode')
    expected = {
        "the observation of reset": (observation, vector),
        "the observation of step": (after, vector),
        'info["final_observation"] of step': (info["final_observation"], vector),
        "the state of step, as reset began it,": (later, state),
        "the reward of step": (reward, number),
        "terminated of step": (terminated, flag),
        "truncated of step": (truncated, flag),
    }
    for what, (found, wanted) in expected.items():
        if _kind(found) != _kind(wanted):
            raise UserError(f"environment {name}: {what} is {_spell(found)}; it must be {_spell(wanted)}")
    return environment


def _refuse_missing(name: str, missing: list[str]) -> None:
    if missing:
        raise UserError(
            f"environment '{name}' lacks {', '.join(missing)}: see open_bench.environments.Environment for what every "
            "environment has"
        )


def _check_options(name: str, kind: type[Environment], options: Options) -> None:
    parameters = inspect.signature(kind).parameters
    known = [key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in options:
        if key == "self" or (key not in known and not takes_any):
            raise UserError(
                f"environment {name} has no option '{key}'.{near_matches(key, known)} It has: "
                f"{', '.join(known) or 'none'}."
            )
    needed = [key for key in known if parameters[key].default is inspect.Parameter.empty and key not in options]
    if needed:
        raise UserError(f"environment {name} needs a value for the option {', '.join(needed)}")


def _trace(name: str, method: str, length: int, returned: str, function: Any, *arguments: Any) -> Any:
    try:
        found = jax.eval_shape(function, *arguments)
    except Exception as error:  # whatever the author's code raises
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise UserError(f"environment {name}: {method} fails with {reason}") from error
    if not isinstance(found, tuple) or len(found) != length:
        raise UserError(f"environment {name}: {method} must return {returned}")
    return found


def _kind(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _spell(tree: Any) -> str:
    """Shapes and dtypes: "float32[3]"."""
    return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)).replace("'", "")
