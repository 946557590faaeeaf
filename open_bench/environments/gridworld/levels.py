"""Levels of the gridworld: the published distributions, the mazes, and how a level is drawn.

Source: Oh et al. 2020, "Discovering reinforcement learning algorithms" (arXiv 2007.08794), appendix; the distributions
"small" to "all" and the mazes come with Jackson et al. 2024 (arXiv 2402.05828).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from open_bench import files
from open_bench.config import Config, Fraction, build
from open_bench.errors import UserError, near_matches

Array = jax.Array
Range = tuple[float, float]  # lowest and highest value, both included; equal ends: a constant

MAX_SIZE = 64  # cells a side
MAX_OBSERVATION = 1 << 20  # entries; a tabular one doubles with every object
Size = Annotated[int, Field(ge=2, le=MAX_SIZE, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Steps = Annotated[int, Field(ge=1, lt=2**31, strict=True)]  # an int32 counts them
Count = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
SMALLEST = 1e-30  # a probability above 0, so that float32 holds it and its ratio to 1


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


@dataclasses.dataclass(frozen=True)
class Distribution:
    """What levels are drawn from. Ranges include both ends.

    Attributes:
        sizes: side N of the grid, uniform.
        horizons: env steps of an episode, log-uniform.
        types: type of each of the K objects.
        used: how many objects a level has, uniform; it has the first ones.
        rewards: by type, uniform.
        terminate: by type, log-uniform: probability that collecting an object ends the episode.
        respawn: by type, log-uniform: probability per env step that an absent object comes back.
        fixed_walls: cells that are walls in every level.
        random_walls: walls drawn without replacement from the M² cells of the largest grid; those that fall outside a
            smaller one have no effect.
        random_places: every episode draws the start and the objects' cells anew, and objects come back anywhere;
            otherwise these belong to the level.
        tabular: observations are one-hot over (cell, existing objects); otherwise maps of agent and objects.
    """

    sizes: tuple[int, int]
    horizons: tuple[int, int]
    types: tuple[int, ...]
    used: tuple[int, int]
    rewards: tuple[Range, ...]
    terminate: tuple[Range, ...]
    respawn: tuple[Range, ...]
    fixed_walls: tuple[int, ...] = ()
    random_walls: int = 0
    random_places: bool = False
    tabular: bool = True

    @property
    def max_size(self) -> int:
        """M: side of the largest grid."""
        return self.sizes[1]

    @property
    def max_objects(self) -> int:
        """K: the largest number of objects."""
        return len(self.types)

    @property
    def observation_size(self) -> int:
        """Length of an observation: the one-hot part and one entry for time."""
        rows = 1 << self.max_objects if self.tabular else 1 + len(self.rewards)
        return self.max_size**2 * rows + 1


class LevelOptions(Config):
    """Changes to a distribution, as in the ``[options]`` of an environment's TOML; None leaves what is published.

    ``maze`` is a shipped maze, a file, or the map itself (rows of ``.`` and ``#`` with newlines between); the other
    names are the ends of the ranges of ``Distribution``. Object types repeat in order when there are to be more
    objects. The probabilities' ends hold for all types.
    """

    maze: str | None = None
    min_size: Size | None = None
    max_size: Size | None = None
    min_steps: Steps | None = None
    max_steps: Steps | None = None
    min_objects: Count | None = None
    max_objects: Count | None = None
    min_terminate: Fraction | None = None
    max_terminate: Fraction | None = None
    min_respawn: Fraction | None = None
    max_respawn: Fraction | None = None
    walls: Count | None = None  # number of random walls
    random_places: Flag | None = None
    tabular: Flag | None = None
    level_per_copy: Flag = False  # each environment copy has a level of its own, instead of one for all


# --- the published distributions --------------------------------------------------------------------------------------


def _constant(*values: float) -> tuple[Range, ...]:
    return tuple((value, value) for value in values)


def _hand_made(
    size: int, steps: int, types: tuple[int, ...], rewards: tuple[float, ...], terminate: tuple[float, ...],
    respawn: tuple[float, ...], random: bool, walls: tuple[int, ...] = (),
) -> Distribution:  # fmt: skip
    """Everything but the places is fixed; the random ones are observed as maps."""
    return Distribution(
        sizes=(size, size),
        horizons=(steps, steps),
        types=types,
        used=(len(types), len(types)),
        rewards=_constant(*rewards),
        terminate=_constant(*terminate),
        respawn=_constant(*respawn),
        fixed_walls=walls,
        random_places=random,
        tabular=not random,
    )


def _procedural(
    sizes: tuple[int, int], steps: tuple[int, int], objects: int, fewest: int, walls: int, random: bool = False
) -> Distribution:
    """Everything is drawn; each object has a type of its own, and the first type's reward is positive."""
    return Distribution(
        sizes=sizes,
        horizons=steps,
        types=tuple(range(objects)),
        used=(fewest, objects),
        rewards=((0.0, 1.0), *[(-1.0, 1.0)] * (objects - 1)),
        terminate=((0.01, 1.0),) * objects,
        respawn=((0.001, 0.1),) * objects,
        random_walls=walls,
        random_places=random,
        tabular=not random,
    )


_MAZE = dataclasses.replace(_procedural((13, 13), (25, 50), 3, 3, 0), rewards=((0.0, 1.0),) * 3)
_LONGER_WALLS = tuple(9 * row + 4 for row in range(9) if row not in (1, 7))
_LONG_DENSE_WALLS = tuple(
    sorted(
        {11 * row + 5 for row in range(11) if row not in (0, 7)}
        | {11 * 4 + column for column in range(11) if column not in (2, 8)}
    )
)

DISTRIBUTIONS: dict[str, Distribution] = {
    "dense": _hand_made(11, 500, (0, 0, 1, 2), (1, -1, -1), (0, 0.5, 0), (0.05, 0.1, 0.5), False),
    "rand_dense": _hand_made(11, 500, (0, 0, 1, 2), (1, -1, -1), (0, 0.5, 0), (0.05, 0.1, 0.5), True),
    "sparse": _hand_made(13, 50, (0, 1), (1, -1), (1, 1), (0, 0), False),
    "rand_sparse": _hand_made(7, 50, (0, 1, 1), (1, -1), (1, 1), (1, 1), True),
    "long": _hand_made(11, 1000, (0, 0, 1, 1), (1, -1), (0, 0.5), (0.01, 1), False),
    "rand_long": _hand_made(11, 1000, (0, 0, 1, 1), (1, -1), (0, 0.5), (0.01, 1), True),
    "longer": _hand_made(9, 2000, (0, 0, 1, 1, 1), (1, -1), (0.1, 0.8), (0.01, 1), False, _LONGER_WALLS),
    "long_dense": _hand_made(11, 2000, (0, 0, 0, 0), (1,), (0,), (0.005,), False, _LONG_DENSE_WALLS),
    "rand_small": _hand_made(7, 500, (0, 0, 1, 1), (1, -1), (0, 0.5), (0.05, 0.1), True, (9, 25)),
    "rand_very_dense": _hand_made(11, 2000, (0,), (1,), (0,), (1,), True),
    "small": _procedural((4, 6), (20, 100), 3, 1, walls=7),
    "medium": _procedural((6, 8), (100, 250), 4, 2, walls=10),
    "large": _procedural((8, 10), (250, 750), 5, 2, walls=15),
    "all": _procedural((4, 10), (20, 750), 5, 1, walls=15),
    "rand_all": _procedural((4, 10), (20, 750), 5, 1, walls=15, random=True),
}


def mazes() -> dict[str, Path]:
    """Maps of the mazes that ship, by name."""
    return {path.stem: path for path in sorted((files.configs_dir() / "mazes").glob("*.txt"))}


def named_distribution(name: str, values: dict[str, bool | int | float | str]) -> tuple[Distribution, LevelOptions]:
    """A distribution by name ("rand_all", "labyrinth", or "maze" with a map of the user's), changed by options.

    Raises:
        UserError: for an unknown name, with near matches; a bad option, naming it; a maze that cannot be used; or
            options that leave no level.
    """
    origin = f"options of gridworld:{name}"
    options = build(LevelOptions, dict(values), origin)
    known = [*DISTRIBUTIONS, *mazes(), "maze"]
    if name not in known:
        raise UserError(f"unknown gridworld '{name}'.{near_matches(name, known)} Known: {', '.join(known)}")
    if name in DISTRIBUTIONS:
        base = DISTRIBUTIONS[name]
    elif name == "maze":
        if options.maze is None:
            raise UserError(f"{origin}: key 'maze' is missing: the name of a shipped maze, or the path of a map")
        base = _MAZE
    else:
        base = _with_maze(_MAZE, name)
    return _changed(base, options, origin), options


def _with_maze(base: Distribution, maze: str) -> Distribution:
    size, walls = read_maze(maze)
    return dataclasses.replace(base, sizes=(size, size), fixed_walls=walls)


def read_maze(maze: str) -> tuple[int, tuple[int, ...]]:
    """The map of a maze: ``(side, cells that are walls)``.

    Args:
        maze: a shipped name, the path of a text file, or (with a newline in it) the map itself. A map has as many
            rows as columns, "." for a free cell and "#" for a wall.

    Raises:
        UserError: for an unknown maze, an unreadable file, a map of a wrong size or with other characters.
    """
    origin, text = ("the map", maze) if "\n" in maze else _read_map(maze)
    rows = [line.rstrip() for line in text.strip().splitlines()]
    if not 2 <= len(rows) <= MAX_SIZE:
        raise UserError(f"maze {origin}: it has {len(rows)} rows; from 2 to {MAX_SIZE} are possible")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows):
            raise UserError(
                f"maze {origin}, row {number}: {len(row)} cells, but a maze is square and this one has {len(rows)} rows"
            )
        unknown = sorted(set(row) - {".", "#"})
        if unknown:
            raise UserError(f"maze {origin}, row {number}: unknown character '{unknown[0]}'; known: . free, # wall")
    return len(rows), tuple(cell for cell, character in enumerate("".join(rows)) if character == "#")


def inlined(options: Mapping[str, bool | int | float | str], folder: Path) -> dict[str, bool | int | float | str]:
    """Options with the map itself in place of a file's path, relative to ``folder``: results belong to a map."""
    maze = options.get("maze")
    if not isinstance(maze, str) or "\n" in maze or maze in mazes():
        return dict(options)
    _, text = _read_map(str(folder / Path(maze).expanduser()))
    return {**options, "maze": "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"}


def _read_map(maze: str) -> tuple[str, str]:
    shipped = mazes()
    path = shipped.get(maze, Path(maze).expanduser())
    try:
        return str(path), path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"maze '{maze}': neither a file nor a maze that ships.{near_matches(maze, list(shipped))} "
            f"Known: {', '.join(shipped)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"maze {path}: {error}") from None


def _changed(base: Distribution, options: LevelOptions, origin: str) -> Distribution:
    """``base`` with the options applied and the result checked."""
    if options.maze is not None:
        base = _with_maze(base, options.maze)
    if base.fixed_walls and (options.min_size is not None or options.max_size is not None):
        raise UserError(f"{origin}: the walls of this gridworld fix its size at {base.max_size}")
    used = _ends(base.used, options.min_objects, options.max_objects, "objects", origin)
    changed = dataclasses.replace(
        base,
        sizes=_ends(base.sizes, options.min_size, options.max_size, "size", origin),
        horizons=_ends(base.horizons, options.min_steps, options.max_steps, "steps", origin),
        types=tuple(base.types[i % len(base.types)] for i in range(used[1])),
        used=used,
        terminate=_probabilities(base.terminate, options.min_terminate, options.max_terminate, "terminate", origin),
        respawn=_probabilities(base.respawn, options.min_respawn, options.max_respawn, "respawn", origin),
        random_walls=base.random_walls if options.walls is None else options.walls,
        random_places=base.random_places if options.random_places is None else options.random_places,
        tabular=base.tabular if options.tabular is None else options.tabular,
    )
    _check(changed, origin)
    return changed


def _ends(ends: tuple[int, int], low: int | None, high: int | None, word: str, origin: str) -> tuple[int, int]:
    changed = ends[0] if low is None else low, ends[1] if high is None else high
    if changed[0] > changed[1]:
        raise UserError(f"{origin}: no {word} left: min_{word} = {changed[0]} is above max_{word} = {changed[1]}")
    return changed


def _probabilities(
    ranges: tuple[Range, ...], low: float | None, high: float | None, word: str, origin: str
) -> tuple[Range, ...]:
    changed = tuple((a if low is None else low, b if high is None else high) for a, b in ranges)
    for a, b in changed:
        if 0.0 < a < SMALLEST or 0.0 < b < SMALLEST:
            raise UserError(f"{origin}: probabilities of {word} below {SMALLEST:g} can only be 0")
        if a > b:
            raise UserError(f"{origin}: no probability left: min_{word} = {a} is above max_{word} = {b}")
        if a == 0.0 < b:
            raise UserError(f"{origin}: min_{word} = 0 with max_{word} = {b}: a log-uniform range cannot begin at 0")
    return changed


def _check(distribution: Distribution, origin: str) -> None:
    """Raise UserError unless every level that can be drawn has room and an observation of bearable length."""
    if distribution.used[0] == 0:
        raise UserError(f"{origin}: levels without objects: min_objects must be at least 1")
    smallest, needed = distribution.sizes[0] ** 2, 1 + distribution.max_objects
    if smallest - len(distribution.fixed_walls) < needed:
        raise UserError(
            f"{origin}: {smallest - len(distribution.fixed_walls)} free cells, but the start and "
            f"{distribution.max_objects} objects need {needed}"
        )
    if distribution.random_walls > distribution.max_size**2:
        raise UserError(
            f"{origin}: walls = {distribution.random_walls}, but there are {distribution.max_size**2} cells"
        )
    if distribution.observation_size > MAX_OBSERVATION:
        raise UserError(
            f"{origin}: observations would have {distribution.observation_size:,} entries (at most "
            f"{MAX_OBSERVATION:,}): fewer objects, a smaller grid, or tabular = false"
        )


# --- drawing a level --------------------------------------------------------------------------------------------------

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
