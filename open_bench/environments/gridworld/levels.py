"""A level of the gridworld, how one is drawn from a distribution, and how cells are drawn within it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from open_bench.environments.gridworld.distributions import Distribution, Range

Array = jax.Array


class Level(NamedTuple):
    """One gridworld. M is the largest side in its distribution, K the largest number of objects.

    Cells are numbered row·N + column with N the level's own side, so a level smaller than M uses the first N² entries.
    """

    size: Array  # () int32: N
    horizon: Array  # () int32: env steps of an episode
    walls: Array  # (M²,) bool; False from N² on
    free: Array  # (M²,) int32: the cells without a wall in ascending order, then the others
    rank: Array  # (M²,) int32: free cells before each cell, so free[rank[c]] = c for a free cell c
    free_cells: Array  # () int32: how many cells are free
    start: Array  # () int32: cell where episodes start, unless places are random
    cells: Array  # (K,) int32: cell of each object, unless places are random
    used: Array  # (K,) bool: the objects that this level has
    rewards: Array  # (K,) float32: for collecting each object
    terminate: Array  # (K,) float32: probability that collecting it ends the episode
    respawn: Array  # (K,) float32: probability per env step that it comes back when absent


_DRAWS = ("size", "horizon", "walls", "used", "rewards", "terminate", "respawn", "places")


def sample_level(distribution: Distribution, key: Array) -> Level:
    """Draw a level; jittable."""
    keys = dict(zip(_DRAWS, jax.random.split(key, len(_DRAWS)), strict=True))
    low, high = distribution.sizes
    size = jax.random.randint(keys["size"], (), low, high + 1)
    used = jax.random.randint(keys["used"], (), distribution.used[0], distribution.used[1] + 1)
    types = np.asarray(distribution.types)
    level = make_level(
        size=size,
        horizon=_log_uniform_integer(keys["horizon"], distribution.horizons),
        walls=_draw_walls(distribution, keys["walls"], size),
        start=jnp.int32(0),
        cells=jnp.zeros(len(types), jnp.int32),
        used=jnp.arange(len(types)) < used,
        rewards=_uniform(keys["rewards"], distribution.rewards)[types],
        terminate=_log_uniform(keys["terminate"], distribution.terminate)[types],
        respawn=_log_uniform(keys["respawn"], distribution.respawn)[types],
    )
    places = draw_places(level, jax.random.uniform(keys["places"], (1 + len(types),)))
    return level._replace(start=places[0], cells=places[1:])


def make_level(
    size: Array, horizon: Array, walls: Array, start: Array, cells: Array, used: Array, rewards: Array,
    terminate: Array, respawn: Array,
) -> Level:  # fmt: skip
    """A level from its fields in ``Level``'s shapes; walls outside the grid are dropped."""
    inside = jnp.arange(walls.shape[0]) < size**2
    free = inside & ~walls
    return Level(
        size=jnp.asarray(size, jnp.int32),
        horizon=jnp.asarray(horizon, jnp.int32),
        walls=inside & walls,
        free=jnp.argsort(~free, stable=True).astype(jnp.int32),
        rank=(jnp.cumsum(free) - free).astype(jnp.int32),
        free_cells=free.sum(dtype=jnp.int32),
        start=jnp.asarray(start, jnp.int32),
        cells=jnp.asarray(cells, jnp.int32),
        used=jnp.asarray(used, bool),
        rewards=jnp.asarray(rewards, jnp.float32),
        terminate=jnp.asarray(terminate, jnp.float32),
        respawn=jnp.asarray(respawn, jnp.float32),
    )


def draw_places(level: Level, uniforms: Array) -> Array:
    """Distinct free cells for the start and the K objects, (1 + K,), from as many numbers in [0, 1)."""
    return draw_cells(level, uniforms, jnp.zeros(0, jnp.int32))[0]


def draw_cells(level: Level, uniforms: Array, taken: Array) -> tuple[Array, Array]:
    """Distinct cells, uniform over the free cells that are not taken.

    The number of steps depends on the number of cells drawn and taken only, not on the grid: this runs at every step.

    Args:
        level: where.
        uniforms: (n,) numbers in [0, 1), one a cell.
        taken: (m,) free cells that may not be drawn, in any order, repeated or not; negative ones are ignored.

    Returns:
        ``(cells (n,) int32, found (n,) bool)``; not found: there was no cell left, and the value means nothing.
    """
    # Ranks that are out, ascending; unused entries at the end are beyond any rank. Loops rather than unrolled code: XLA
    # would fuse that and compute shared parts again and again (a step of rand_all took 15 times as long).
    capacity = taken.shape[0] + uniforms.shape[0]
    beyond = level.walls.shape[0] + capacity  # so that no index makes up for it below
    out = jnp.full(capacity, beyond, jnp.int32)

    def take(carry: tuple[Array, Array], cell: Array) -> tuple[tuple[Array, Array], None]:
        out, left = carry
        rank = level.rank[jnp.maximum(cell, 0)]
        ignored = (cell < 0) | (out == rank).any()
        return (_insert(out, jnp.where(ignored, beyond, rank)), left - jnp.where(ignored, 0, 1)), None

    def draw(carry: tuple[Array, Array], uniform: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        out, left = carry
        rank = jnp.floor(uniform * left).astype(jnp.int32)  # among the cells left
        rank += (out - jnp.arange(capacity) <= rank).sum(dtype=jnp.int32)  # among all: skip those that are out
        found = left > 0
        return (_insert(out, jnp.where(found, rank, beyond)), jnp.maximum(left - 1, 0)), (rank, found)

    carry, _ = jax.lax.scan(take, (out, level.free_cells), taken)
    _, (ranks, found) = jax.lax.scan(draw, carry, uniforms)
    return level.free[ranks], found


def _insert(ordered: Array, value: Array) -> Array:
    """Insert into an ascending vector; its last entry drops out."""
    before = jnp.concatenate([jnp.full(1, -1, jnp.int32), ordered[:-1]])
    return jnp.minimum(ordered, jnp.maximum(value, before))


def _draw_walls(distribution: Distribution, key: Array, size: Array) -> Array:
    """Fixed and random walls (M²,). Once they would leave no room for start and objects, no more are drawn."""
    total = distribution.max_size**2
    drawn = jax.random.permutation(key, total)[: distribution.random_walls]
    fixed = np.zeros(total, bool)
    fixed[list(distribution.fixed_walls)] = True
    extra = ~jnp.asarray(fixed)[drawn] & (drawn < size**2)
    room = size**2 - fixed.sum() - (1 + distribution.max_objects)
    return jnp.asarray(fixed).at[drawn].max(extra & (jnp.cumsum(extra) <= room))


def _uniform(key: Array, ranges: tuple[Range, ...]) -> Array:
    low, high = np.asarray(ranges, np.float32).T
    return low + jax.random.uniform(key, low.shape) * (high - low)


def _log_uniform(key: Array, ranges: tuple[Range, ...]) -> Array:
    low, high = np.asarray(ranges, np.float32).T
    constant = low == high  # exactly, and also 0, which has no logarithm
    safe_low, safe_high = np.where(constant, 1.0, low), np.where(constant, 1.0, high)
    drawn = jnp.exp(np.log(safe_low) + jax.random.uniform(key, low.shape) * np.log(safe_high / safe_low))
    return jnp.where(constant, low, jnp.clip(drawn, low, high))


def _log_uniform_integer(key: Array, ends: tuple[int, int]) -> Array:
    """An integer n from ``ends``, both included, with probability proportional to log((n+1)/n)."""
    low, high = ends
    drawn = jnp.exp(np.log(low) + jax.random.uniform(key) * np.log((high + 1) / low))
    return jnp.clip(jnp.floor(drawn).astype(jnp.int32), low, high)
