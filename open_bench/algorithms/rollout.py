"""Acting: a rollout of all environment copies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Key

from open_bench.environments.wrappers import VectorEnvironment, VectorState

Act = Callable[[Array, Array], tuple[Array, Any]]  # (key, observation) → (action, whatever is to be kept of the choice)


class Rollout(NamedTuple):
    """Experience of one update; every field has leading axes (num_steps, num_envs)."""

    observation: Array
    action: Array
    choice: Any  # what ``act`` kept
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: Array | None  # kept only on demand


def collect(
    act: Act,
    environment: VectorEnvironment,
    num_steps: int,
    observation: Array,
    state: VectorState,
    key: Key[Array, ""],
    keep_final: bool = False,
) -> tuple[Rollout, Array, VectorState]:
    """Act for ``num_steps`` in every copy: ``(rollout, last observation, state)``."""

    def step(carry: tuple[Array, VectorState], key: Array) -> tuple[tuple[Array, VectorState], Rollout]:
        observation, state = carry
        action_key, environment_key = jax.random.split(key)
        action, choice = act(action_key, observation)
        transition, state = environment.step(environment_key, state, action)
        row = Rollout(
            observation,
            action,
            choice,
            transition.reward,
            transition.terminated,
            transition.truncated,
            transition.final_observation if keep_final else None,
        )
        return (transition.observation, state), row

    (observation, state), rollout = jax.lax.scan(step, (observation, state), jax.random.split(key, num_steps))
    return rollout, observation, state


def flat(tree: Any) -> Any:
    """(num_steps, num_envs, …) → (num_steps · num_envs, …) in every array."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
