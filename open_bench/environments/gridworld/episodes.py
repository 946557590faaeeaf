"""One episode in a level, played by a policy and kept whole: for pictures, and to check exact returns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from open_bench.environments.gridworld.environment import GridworldEnvironment, Policy, State
from open_bench.environments.gridworld.levels import Level

Array = jax.Array


class Episode(NamedTuple):
    """One episode as it went; entries after its end repeat the last state and have reward 0."""

    cell: Array  # (horizon + 1,) int32: where the agent was, from the start on
    cells: Array  # (horizon + 1, K) int32: where the objects were
    exists: Array  # (horizon + 1, K) bool
    action: Array  # (horizon,) int32
    reward: Array  # (horizon,) float32
    length: Array  # () int32: env steps until the end
    terminated: Array  # () bool: by an object; False: by the horizon


def play(environment: GridworldEnvironment, level: Level, policy: Policy, key: Array) -> Episode:
    """Play one episode; jittable.

    Args:
        environment: of the level's distribution.
        level: where.
        policy: what to do.
        key: of the episode.
    """
    start_key, steps_key = jax.random.split(key)
    _, start = environment.begin(start_key, level)

    def one_step(carry: tuple[State, Array, Array], key: Array) -> tuple[tuple[State, Array, Array], Any]:
        state, over, ended = carry
        policy_key, step_key = jax.random.split(key)
        action = policy(policy_key, state, environment.observe(state))
        after, reward, terminated = environment._advance(environment._draws(step_key), state, action)
        after = jax.tree.map(lambda old, new: jnp.where(over, old, new), state, after)
        ended |= terminated & ~over
        row = (after.cell, after.cells, after.exists, action, jnp.where(over, 0.0, reward))
        return (after, over | terminated | (after.time >= level.horizon), ended), row

    keys = jax.random.split(steps_key, environment.distribution.horizons[1])
    (last, _, ended), rows = jax.lax.scan(one_step, (start, jnp.bool_(False), jnp.bool_(False)), keys)
    firsts = (start.cell, start.cells, start.exists)
    cell, cells, exists = (jnp.concatenate([first[None], row]) for first, row in zip(firsts, rows[:3], strict=True))
    action, reward = rows[3:]
    return Episode(cell, cells, exists, action, reward, last.time, ended)
