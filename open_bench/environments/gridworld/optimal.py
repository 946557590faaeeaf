"""Exact returns of a gridworld level by dynamic programming over (cell, existing objects).

Undiscounted, in expectation, over a whole episode from the level's start; for levels whose places are fixed (all
tabular distributions). The optimal return is a normalizer that no agent can beat, the random one a zero.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from open_bench.environments.gridworld.distributions import Distribution
from open_bench.environments.gridworld.environment import ACTIONS, Policy, State
from open_bench.environments.gridworld.levels import Level

# Without it, an undiscounted policy with time to spare would as soon wait as go. Values lose a relative 1e-9 a step,
# far below what anything is compared to, far above rounding.
HASTE = 1e-9


MAX_STATES = 1 << 20  # cells times sets of existing objects
MAX_POLICY = 1 << 30  # states times env steps: bytes of a whole policy


def solvable(distribution: Distribution) -> bool:
    """Whether returns are known exactly: places are fixed, and there is not too much to sum over."""
    states = distribution.max_size**2 << distribution.max_objects
    return not distribution.random_places and states <= MAX_STATES and states * distribution.horizons[1] <= MAX_POLICY


class Solution(NamedTuple):
    """An optimal policy and what it returns."""

    value: float  # expected return of an episode
    actions: np.ndarray  # (horizon, M², 2^K) uint8: by time, cell and Σ existing objects 2^i


def optimal_return(level: Level) -> float:
    """Expected return of an optimal policy."""
    return _iterate(level, lambda options: options.max(0), None)


def random_return(level: Level) -> float:
    """Expected return of a uniformly random policy."""
    return _iterate(level, lambda options: options.mean(0), None)


def solve(level: Level) -> Solution:
    """An optimal policy with its return; of equally good actions, one that earns sooner."""
    level = jax.device_get(level)
    actions = np.zeros((int(level.horizon), level.walls.size, 1 << level.used.size), np.uint8)
    value = _iterate(level, lambda options: options.max(0), actions)
    return Solution(value, actions)


def optimal_policy(solution: Solution) -> Policy:
    """The policy of a solution, for ``episodes.play``."""
    actions = jnp.asarray(solution.actions)

    def policy(key: Any, state: State, observation: Any) -> jax.Array:
        del key, observation
        existing = (state.exists * (1 << jnp.arange(state.exists.size))).sum()
        time = jnp.minimum(state.time, actions.shape[0] - 1)
        return actions[time, state.cell, existing].astype(jnp.int32)

    return policy


def _iterate(level: Level, choose: Callable[[np.ndarray], np.ndarray], actions: np.ndarray | None) -> float:
    """Backward induction: the value of the start with all objects there.

    Args:
        level: with fixed places.
        choose: the values of all actions (5, cells, 2^K) → the value under the policy (cells, 2^K).
        actions: (horizon, cells, 2^K), filled with the best actions where given.
    """
    level = jax.device_get(level)
    cells, states = level.walls.size, 1 << level.used.size
    moves = move_table(level)
    reward, survival = _collection(level)
    value = np.zeros((cells, states))
    for time in reversed(range(int(level.horizon))):
        # Worth of arriving in each cell, with the objects that existed before; actions differ in the cell only.
        arrival = reward + survival * (1.0 - HASTE) * _after_the_objects(level, value)
        options = arrival[moves]
        if actions is not None:
            actions[time] = options.argmax(0)
        value = choose(options)
    everything = int((level.used * (1 << np.arange(level.used.size))).sum())
    return float(value[int(level.start), everything])


def move_table(level: Level) -> np.ndarray:
    """Where each action leads from each cell, (5, M²) int; cells that are walls or outside the grid stay."""
    size, area = int(level.size), np.asarray(level.walls).size
    table = np.tile(np.arange(area), (len(ACTIONS), 1))
    for cell in range(size * size):
        row, column = divmod(cell, size)
        for action, (down, right) in enumerate(((-1, 0), (1, 0), (0, -1), (0, 1))):
            inside = 0 <= row + down < size and 0 <= column + right < size
            target = cell + down * size + right
            if inside and not level.walls[target] and not level.walls[cell]:
                table[action, cell] = target
    return table


def _collection(level: Level) -> tuple[np.ndarray, np.ndarray]:
    """Reward and probability of going on, both (M², 2^K), on arriving in a cell while some objects exist."""
    shape = level.walls.size, 1 << level.used.size
    reward, survival = np.zeros(shape), np.ones(shape)
    for i in np.flatnonzero(level.used):
        there = (np.arange(shape[1]) >> i & 1).astype(bool)
        reward[level.cells[i], there] += level.rewards[i]
        survival[level.cells[i], there] *= 1.0 - float(level.terminate[i])
    return reward, survival


def _after_the_objects(level: Level, value: np.ndarray) -> np.ndarray:
    """Expectation over what objects do in a step: ``value`` after it → by (cell arrived in, objects before), (M², 2^K).

    Objects act independently, so one is averaged at a time: an absent one comes back with its probability, a present
    one vanishes if the agent is in its cell.
    """
    shape = value.shape
    for i in np.flatnonzero(level.used):
        split = value.reshape(shape[0], -1, 2, 1 << int(i))
        absent, present = split[:, :, 0], split[:, :, 1]
        back = float(level.respawn[i])
        stays = present.copy()
        stays[level.cells[i]] = absent[level.cells[i]]
        value = np.stack([absent + back * (present - absent), stays], axis=2).reshape(shape)
    return value
