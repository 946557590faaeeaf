"""The adapter for Craftax-Classic (Matthews et al. 2024, arXiv 2402.16801), an optional suite: open-bench[craftax]."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from open_bench.environments.base import (
    Discrete,
    Environment,
    check_options,
    check_time_limit,
    restart_finished,
    with_strong_types,
)
from open_bench.errors import UserError, check_known, installed_with

IDS = ("Craftax-Classic-Symbolic-v1",)
NEVER = 2**31 - 1  # env steps: a time limit that no episode reaches
WORLDS_SHARE = 64  # copies for one world that is drawn at a time: few wait long, few are drawn for nothing
# What two idle CPU cores made of lifetimes with the shipped settings; the networks take most of it.
CPU_STEPS_PER_SECOND = 4_000.0


class CraftaxEnvironment(Environment):
    """Craftax-Classic with symbolic observations: survive, gather, craft and fight in a world that is drawn anew.

    Observation: 1,345 numbers, maps of what is in view, then inventory, needs, direction, light and sleep. Actions: 17.
    Reward: 1 for each of 22 achievements when first reached, and a tenth of every change of health. Each episode has a
    world of its own.

    Args:
        environment_id: "Craftax-Classic-Symbolic-v1".
        **options: scalar fields of the task's parameters, such as ``max_timesteps`` (env steps until the time limit).

    Raises:
        UserError: Craftax is not installed, or the id or an option is unknown.
    """

    cpu_steps_per_second = CPU_STEPS_PER_SECOND

    def __init__(self, environment_id: str, /, **options: bool | int | float | str):
        check_known("Craftax environment", environment_id, IDS)
        self._environment = _maker()(environment_id, auto_reset=False)
        self._params = _with_options(self._environment.default_params, options)
        (self.observation_size,) = self._environment.observation_space(self._params).shape
        self.action_space = Discrete(int(self._environment.action_space(self._params).n))

    @staticmethod
    def identifiers() -> list[str]:
        """The tasks that are supported."""
        return list(IDS)

    def reset(self, key: jax.Array) -> tuple[jax.Array, Any]:
        observation, state = self._environment.reset_env(key, self._params)
        return observation.astype(jnp.float32), with_strong_types(state)

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, ...]:
        copies = jax.tree.map(lambda x: x[None], (key, state, action))
        return jax.tree.map(lambda x: x[0], self.step_copies(*copies))

    def step_copies(self, keys: jax.Array, state: Any, action: Any) -> tuple[Any, ...]:
        """Worlds are drawn for those copies alone whose episode is over: a world costs as much as many steps."""
        step_keys, reset_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        final, after, reward, terminated, truncated = jax.vmap(self._advance)(step_keys, state, action)
        at_once = max(1, len(reward) // WORLDS_SHARE)
        done = terminated | truncated
        observation, after = restart_finished(self.reset, reset_keys, done, (final, after), at_once)
        return observation, after, reward, terminated, truncated, {"final_observation": final}

    def _advance(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, ...]:
        """A step of one copy without the next episode."""
        observation, after, reward, _, _ = self._environment.step_env(key, state, action, self._params)
        terminated = jnp.bool_(self._environment.is_terminal(after, self._params.replace(max_timesteps=NEVER)))
        truncated = (after.timestep >= self._params.max_timesteps) & ~terminated
        reward = jnp.asarray(reward, jnp.float32)
        return observation.astype(jnp.float32), with_strong_types(after), reward, terminated, truncated


def _maker() -> Callable[..., Any]:
    """Craftax's function from an id to a task; raises UserError when the suite is absent."""
    try:
        from craftax.craftax_env import make_craftax_env_from_name
    except ModuleNotFoundError as error:
        raise UserError(f"Craftax is not installed ({error}): {installed_with('craftax')}") from None
    return make_craftax_env_from_name


def _with_options(params: Any, options: dict[str, bool | int | float | str]) -> Any:
    defaults = {name: value for name, value in vars(params).items() if isinstance(value, bool | int | float)}
    check_options("Craftax", options, defaults)
    if "max_timesteps" in options:
        check_time_limit("Craftax", "max_timesteps", options["max_timesteps"])
    return params.replace(**options)
