"""What levels are drawn from: the published distributions, and options that change them.

Source: Oh et al. 2020, "Discovering reinforcement learning algorithms" (arXiv 2007.08794), appendix; the distributions
"small" to "all" and the mazes come with Jackson et al. 2024 (arXiv 2402.05828).
"""

import dataclasses
from typing import Annotated

from pydantic import Field

from open_bench.config import Config, Fraction, build
from open_bench.environments.gridworld.mazes import MAX_SIZE, mazes, read_maze
from open_bench.errors import UserError, check_known

Range = tuple[float, float]  # lowest and highest value, both included; equal ends: a constant

MAX_OBSERVATION = 1 << 20  # entries; a tabular one doubles with every object
Size = Annotated[int, Field(ge=2, le=MAX_SIZE, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Steps = Annotated[int, Field(ge=1, lt=2**31, strict=True)]  # an int32 counts them
Count = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
SMALLEST = 1e-30  # a probability above 0, so that float32 holds it and its ratio to 1


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
    def has_terminating_objects(self) -> bool:
        """Whether an episode can end before its horizon."""
        return any(self.terminate[kind][1] > 0.0 for kind in self.types)

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


# --- distributions by name, changed by options ------------------------------------------------------------------------


def named_distribution(name: str, values: dict[str, bool | int | float | str]) -> tuple[Distribution, LevelOptions]:
    """A distribution by name ("rand_all", "labyrinth", or "maze" with a map of the user's), changed by options.

    Raises:
        UserError: for an unknown name, with near matches; a bad option, naming it; a maze that cannot be used; or
            options that leave no level.
    """
    origin = f"options of gridworld:{name}"
    options = build(LevelOptions, dict(values), origin)
    check_known("gridworld", name, [*DISTRIBUTIONS, *mazes(), "maze"])
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


# --- one distribution within another ----------------------------------------------------------------------------------


def uncovered(levels: Distribution, trained: Distribution) -> tuple[str, ...]:
    """What of ``levels`` lies outside the ranges that training drew from; empty when it is a part of them.

    "observation" means that agents see vectors of another length or kind, so their networks have another shape.
    """
    types = range(max(levels.types, default=-1) + 1)
    per_type = {
        name: all(_within(ours[kind], theirs[kind]) if kind < len(theirs) else False for kind in types)
        for name, ours, theirs in (
            ("rewards", levels.rewards, trained.rewards),
            ("terminate", levels.terminate, trained.terminate),
            ("respawn", levels.respawn, trained.respawn),
        )
    }
    # As many walls a cell, whatever the size.
    as_dense = round(trained.random_walls * (levels.max_size / trained.max_size) ** 2)
    inside = {
        "size": _within(levels.sizes, trained.sizes),
        "horizon": _within(levels.horizons, trained.horizons),
        "density": _within(levels.used, trained.used) and levels.types == trained.types[: len(levels.types)],
        **per_type,
        "walls": (levels.fixed_walls, levels.random_walls) == (trained.fixed_walls, as_dense),
        "places": levels.random_places == trained.random_places,
        "observation": (levels.observation_size, levels.tabular) == (trained.observation_size, trained.tabular),
    }
    return tuple(name for name, is_inside in inside.items() if not is_inside)


def _within(ours: Range, theirs: Range) -> bool:
    return theirs[0] <= ours[0] and ours[1] <= theirs[1]
