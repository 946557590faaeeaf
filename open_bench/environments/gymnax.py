"""The adapter for gymnax ≥ 1.0: any registered id as an ``Environment``."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from open_bench.environments.base import (
    ActionSpace,
    Continuous,
    Discrete,
    Environment,
    check_options,
    check_time_limit,
    with_strong_types,
)
from open_bench.environments.deferred import deferred
from open_bench.errors import UserError

with deferred("matplotlib.pyplot", "seaborn"):  # that it draws with
    import gymnax
    from gymnax.environments import spaces
    from gymnax.environments.minatar import asterix


def free_slot(key: jax.Array, filled: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The slot where Asterix's next entity comes in, and whether it is free, without a loop.

    gymnax looks through the slots in a random order, all but the first, and takes the first free one or the last.
    """
    order = jax.random.permutation(key, jnp.arange(filled.size))
    free = filled[order[1:]] == 0
    found = free.any()
    return order[jnp.where(found, 1 + jnp.argmax(free), filled.size - 1)], found.astype(jnp.int32)


# An accelerator waits for the host at every turn of gymnax's own loop. The numbers are the same.
asterix.while_sample_slots = free_slot

MAX_SIZE = 10_000  # of what a constructor is given, such as the side of a grid


class GymnaxEnvironment(Environment):
    """A gymnax task with flat observations.

    Args:
        environment_id: such as "Breakout-MinAtar".
        binary_observations: observations hold only 0 and 1, so they are stored as booleans.
        **options: settings of the environment: fields of its parameters (``max_steps_in_episode``), else arguments
            of its constructor (``size`` of DeepSea).
    """

    def __init__(self, environment_id: str, /, binary_observations: bool = False, **options: Any):
        self._environment, self._params = _make(environment_id, options)
        self._observation_space = self._environment.observation_space(self._params)
        self._one_hot = isinstance(self._observation_space, spaces.Discrete)
        self.observation_dtype = jnp.bool_ if binary_observations or self._one_hot else jnp.float32
        self.observation_size = _observation_size(self._observation_space, environment_id)
        self.action_space, self._bounds = _action_space(self._environment.action_space(self._params), environment_id)

    @staticmethod
    def identifiers() -> list[str]:
        """All registered gymnax ids."""
        return list(gymnax.registered_envs)

    @property
    def shortest_episode(self) -> int | None:  # type: ignore[override]
        """The time limit, where nothing else ends an episode: where ``is_terminated`` is the constant False."""
        _, state = jax.eval_shape(self._environment.reset, jax.random.key(0), self._params)
        traced = jax.make_jaxpr(lambda state: self._environment.is_terminated(state, self._params))(state)
        (ended,) = traced.jaxpr.outvars
        return None if getattr(ended, "val", True) else int(self._params.max_steps_in_episode)

    def reset(self, key: jax.Array) -> tuple[jax.Array, Any]:
        observation, state = self._environment.reset(key, self._params)
        return self._flat(observation), with_strong_types(state)

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, ...]:
        if self._bounds is not None:
            low, high, shape = self._bounds
            action = jnp.clip(action.reshape(shape), low, high)
        observation, state, reward, terminated, truncated, info = self._environment.step(
            key, state, action, self._params
        )
        final = {"final_observation": self._flat(info["final_observation"])}
        reward, ended = jnp.asarray(reward, jnp.float32).reshape(()), (jnp.bool_(terminated), jnp.bool_(truncated))
        return self._flat(observation), with_strong_types(state), reward, *ended, final

    def _flat(self, observation: jax.Array) -> jax.Array:
        if self._one_hot:
            return jax.nn.one_hot(observation, self.observation_size, dtype=jnp.bool_).reshape(-1)
        return jnp.asarray(observation).reshape(-1).astype(self.observation_dtype)


def _make(environment_id: str, options: dict[str, Any]) -> tuple[Any, Any]:
    try:
        _, params = gymnax.make(environment_id)
        fields = {field.name for field in dataclasses.fields(params)} & set(options)
        arguments = {key: value for key, value in options.items() if key not in fields}
        _check_sizes(environment_id, arguments)
        environment, params = gymnax.make(environment_id, **arguments)
    except UserError:
        raise
    except Exception as error:  # whatever a constructor makes of its options, or a task that downloads its data
        raise UserError(f"gymnax cannot make {environment_id} with {options}: {error}") from None
    chosen = {name: options[name] for name in options if name in fields}
    numbers = {name: getattr(params, name) for name in chosen if isinstance(getattr(params, name), int | float)}
    check_options(environment_id, {name: chosen[name] for name in numbers}, numbers)
    if "max_steps_in_episode" in chosen:
        check_time_limit(environment_id, "max_steps_in_episode", chosen["max_steps_in_episode"])
    return environment, params.replace(**chosen)


def _check_sizes(environment_id: str, arguments: dict[str, Any]) -> None:
    """Raise UserError for a size whose square does not fit into memory: XLA would end the process."""
    for name, value in arguments.items():
        if isinstance(value, int | float) and abs(value) > MAX_SIZE:
            raise UserError(f"{environment_id}: {name} = {value!r} is too large: at most {MAX_SIZE:,}")


def _observation_size(space: Any, environment_id: str) -> int:
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.Box):
        return math.prod(map(int, space.shape))
    raise UserError(
        f"{environment_id} has observations of a kind that open-bench does not support: {type(space).__name__}"
    )


def _action_space(space: Any, environment_id: str) -> tuple[ActionSpace, tuple[Any, Any, tuple[int, ...]] | None]:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n)), None
    if isinstance(space, spaces.Box):
        # One scalar bound is what a uniformly random policy needs; tasks with other shapes clip to their own.
        bounds = float(jnp.min(jnp.asarray(space.low))), float(jnp.max(jnp.asarray(space.high)))
        return Continuous(math.prod(map(int, space.shape)), *bounds), (space.low, space.high, tuple(space.shape))
    raise UserError(f"{environment_id} has actions of a kind that open-bench does not support: {type(space).__name__}")
