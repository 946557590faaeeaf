"""The gridworld of Oh et al. 2020 (arXiv 2007.08794) in JAX: walk over a grid and collect objects.

Observation: one-hot over (cell, existing objects) in tabular gridworlds, else maps of the agent and of each type of
object; the last entry is 0.001·time. Actions: 0 up, 1 down, 2 left, 3 right, 4 stay.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from open_bench.environments.base import Discrete, Environment, Options
from open_bench.environments.gridworld.distributions import DISTRIBUTIONS, named_distribution, uncovered
from open_bench.environments.gridworld.levels import Level, draw_cells, draw_places, sample_level
from open_bench.environments.gridworld.mazes import inlined, mazes

Array = jax.Array
ACTIONS = ("up", "down", "left", "right", "stay")
TIME_SCALE = 0.001  # of the observation's last entry, per env step


class State(NamedTuple):
    """One copy between two steps. K is the largest number of objects."""

    level: Level
    cell: Array  # () int32: where the agent is
    cells: Array  # (K,) int32: where each object is, or was before it vanished
    exists: Array  # (K,) bool
    time: Array  # () int32: env steps of this episode


Policy = Callable[[Array, State, Array], Array]  # (key, state, observation) → action


class _Draws(NamedTuple):
    """The random numbers of a step, uniform in [0, 1)."""

    terminate: Array  # ()
    respawn: Array  # (K,)
    places: Array  # (K,) of objects that come back
    starts: Array  # (1 + K,) of the next episode


class GridworldEnvironment(Environment):
    """Levels of one distribution.

    Copies that are started together (``reset_copies``) share one level, so a lifetime trains on one level, drawn from
    its key, as published; with the option ``level_per_copy`` each copy draws its own. The level stays the same from
    episode to episode.

    Args:
        name: "rand_all", "labyrinth", …, or "maze" with a map of the user's.
        **options: see ``gridworld.distributions.LevelOptions``.

    Raises:
        UserError: for an unknown name or bad options.
    """

    def __init__(self, name: str, /, **options: bool | int | float | str):
        self.distribution, chosen = named_distribution(name, options)
        self.level_per_copy = chosen.level_per_copy
        self.observation_size = self.distribution.observation_size
        self.action_space = Discrete(len(ACTIONS))
        if not self.distribution.has_terminating_objects:
            self.shortest_episode = self.distribution.horizons[0]

    @staticmethod
    def identifiers() -> list[str]:
        """Names of the distributions and of the mazes that ship."""
        return [*DISTRIBUTIONS, *mazes()]

    @classmethod
    def read_files(cls, options: Options, folder: Path) -> dict[str, bool | int | float | str]:
        return inlined(options, folder)

    def level(self, key: Array) -> Level:
        """The level that ``reset`` and (unless each copy has its own) ``reset_copies`` draw from ``key``."""
        return sample_level(self.distribution, jax.random.split(key)[0])

    def reset(self, key: Array) -> tuple[Array, State]:
        return self.begin(jax.random.split(key)[1], self.level(key))

    def reset_copies(self, key: Array, copies: int) -> tuple[Array, State]:
        return self.reset_more_copies(key, key, copies)

    def reset_more_copies(self, key: Array, began: Array, copies: int) -> tuple[Array, State]:
        if self.level_per_copy:
            return super().reset_copies(key, copies)
        keys = jax.random.split(jax.random.split(key)[1], copies)
        return jax.vmap(self.begin, in_axes=(0, None))(keys, self.level(began))

    def begin(self, key: Array, level: Level) -> tuple[Array, State]:
        """Start an episode on a given level: ``(observation, state)``."""
        state = self._start(level, self._draws(key).starts)
        return self.observe(state), state

    def optimal_return(self, level: Level) -> float | None:
        """By dynamic programming; None where places are random, there are too many states, or copies' levels differ."""
        from open_bench.environments.gridworld import optimal

        known = optimal.solvable(self.distribution) and not self.level_per_copy
        return optimal.optimal_return(level) if known else None

    def shifts_from(self, trained: Environment) -> tuple[str, ...]:
        """See ``distributions.uncovered``, and "level_per_copy"."""
        assert isinstance(trained, GridworldEnvironment)
        shared = () if self.level_per_copy == trained.level_per_copy else ("level_per_copy",)
        return (*uncovered(self.distribution, trained.distribution), *shared)

    def draw(self, name: str, key: Array, path: Any = None, png: Path | None = None) -> str:
        from open_bench.environments.gridworld.pictures import show_level

        return show_level(self, name, key, path, png)

    def step(self, key: Array, state: State, action: Array) -> tuple[Any, ...]:
        draws = self._draws(key)
        after, reward, terminated = self._advance(draws, state, action)
        truncated = (after.time >= state.level.horizon) & ~terminated
        done = terminated | truncated
        info = {"final_observation": self.observe(after)}
        fresh = self._start(state.level, draws.starts)
        # The level is left out of the choice: it never changes, so it is never copied either.
        chosen = jax.tree.map(lambda a, b: jnp.where(done, a, b), fresh[1:], after[1:])
        state = State(state.level, *chosen)
        return self.observe(state), state, reward, terminated, truncated, info

    def observe(self, state: State) -> Array:
        """The observation (observation_size,) float32 of a state."""
        distribution = self.distribution
        area = distribution.max_size**2
        objects = distribution.max_objects
        if distribution.tabular:
            existing = (state.exists * (1 << np.arange(objects, dtype=np.int32))).sum(dtype=jnp.int32)
            indices = (state.cell + area * existing)[None]
        else:
            maps = area * (1 + np.asarray(distribution.types, np.int32)) + state.cells
            indices = jnp.concatenate([state.cell[None], jnp.where(state.exists, maps, self.observation_size)])
        ones = jnp.zeros(self.observation_size).at[indices].set(1.0, mode="drop")
        return ones.at[-1].set(TIME_SCALE * state.time.astype(jnp.float32))

    def _start(self, level: Level, uniforms: Array) -> State:
        if self.distribution.random_places:
            places = draw_places(level, uniforms)
            start, cells = places[0], places[1:]
        else:
            start, cells = level.start, level.cells
        return State(level, start, cells, level.used, jnp.int32(0))

    def _advance(self, draws: _Draws, state: State, action: Array) -> tuple[State, Array, Array]:
        """One step within an episode: ``(state, reward, terminated)``.

        In this order: move; collect what existed before the step; absent objects come back; remove what was collected;
        draw the termination. So an object that comes back under the agent is collected one step later.
        """
        level = state.level
        cell = move(level, state.cell, action)
        collected = state.exists & (state.cells == cell)
        reward = jnp.where(collected, level.rewards, 0.0).sum()
        back = level.used & ~state.exists & (draws.respawn < level.respawn)
        cells = state.cells
        if self.distribution.random_places:
            # Every object's last place is taken too: an object does not land where another may come back.
            taken = jnp.concatenate([cell[None], jnp.where(level.used, state.cells, -1)])
            places, found = draw_cells(level, draws.places, taken)
            back &= found
            cells = jnp.where(back, places, cells)
        # Objects have cells of their own, so at most one was collected.
        terminated = draws.terminate < jnp.where(collected, level.terminate, 0.0).sum()
        exists = (state.exists & ~collected) | back
        return State(level, cell, cells, exists, state.time + 1), reward, terminated

    def _draws(self, key: Array) -> _Draws:
        objects = self.distribution.max_objects
        if not self.distribution.random_places:
            uniforms = jax.random.uniform(key, (1 + objects,))
            return _Draws(uniforms[0], uniforms[1:], uniforms[:0], uniforms[:0])
        uniforms = jax.random.uniform(key, (2 + 3 * objects,))
        respawn, places, starts = jnp.split(uniforms[1:], (objects, 2 * objects))
        return _Draws(uniforms[0], respawn, places, starts)


def move(level: Level, cell: Array, action: Array) -> Array:
    """The cell that an action leads to; a move into a wall or over the border stays."""
    size = level.size
    column = cell % size
    steps = jnp.stack([-size, size, jnp.int32(-1), jnp.int32(1), jnp.int32(0)])
    inside = jnp.stack(
        [cell >= size, cell < size * (size - 1), column > 0, column < size - 1, jnp.bool_(True)]
    )  # fmt: skip
    target = jnp.where(inside[action], cell + steps[action], cell)
    return jnp.where(level.walls[target], cell, target)
