"""Gridworlds for tests: levels from maps, samples of distributions, the original's levels, frequencies."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from open_bench.environments.gridworld.distributions import DISTRIBUTIONS
from open_bench.environments.gridworld.environment import GridworldEnvironment
from open_bench.environments.gridworld.levels import Level, make_level, sample_level
from open_bench.environments.gridworld.mazes import mazes
from open_bench.environments.registry import make

UP, DOWN, LEFT, RIGHT, STAY = range(5)
GOLDEN = ("dense", "sparse", "small", "rand_all", "labyrinth")
COLLECT = ("sparse", "small", "rand_all", "labyrinth")
NAMES = (*DISTRIBUTIONS, *mazes())
SAMPLES = 2000


def gridworld(name: str, **options: Any) -> GridworldEnvironment:
    environment = make(f"gridworld:{name}", **options)
    assert isinstance(environment, GridworldEnvironment)
    return environment


def random_action(key: jax.Array, state: Any, observation: Any) -> jax.Array:
    return jax.random.randint(key, (), 0, 5)


def scene(*rows: str, horizon: int = 10, objects: tuple[tuple[float, float, float], ...] = ()) -> Level:
    """A level from a map: S the start, a, b, … objects of (reward, terminate, respawn)."""
    text = "".join(rows)
    cells = [text.index(chr(ord("a") + i)) for i in range(len(objects))]
    reward, terminate, respawn = np.asarray(objects, np.float32).T
    walls = jnp.asarray([character == "#" for character in text])
    used = jnp.ones(len(objects), bool)
    return make_level(len(rows), horizon, walls, text.index("S"), cells, used, reward, terminate, respawn)


def free_cells(level: Any) -> set[int]:
    return set(np.asarray(level.free)[: int(level.free_cells)].tolist())


@cache
def samples(name: str) -> Level:
    """Levels of a distribution, stacked, on the host."""
    keys = jax.random.split(jax.random.key(7), SAMPLES)
    return jax.device_get(jax.jit(jax.vmap(lambda key: sample_level(gridworld(name).distribution, key)))(keys))


def first_level(name: str) -> Level:
    """The first of ``samples``, on the device."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), samples(name))


def golden_level(data: Any, name: str) -> Level:
    p = {key.rsplit("/", 1)[1]: data[key] for key in data if key.startswith(f"{name}/params/")}
    types = p["obj_ids"]
    return make_level(
        p["grid_size"], p["max_steps_in_episode"], jnp.asarray(p["walls"]), p["start_pos"], p["obj_positions"],
        np.arange(len(types)) < p["n_objs"], p["obj_rewards"][types], p["obj_p_terminate"][types],
        p["obj_p_respawn"][types],
    )  # fmt: skip


def frequencies(values: np.ndarray, low: int, high: int) -> np.ndarray:
    assert low <= values.min() <= values.max() <= high
    return np.bincount(values - low, minlength=high - low + 1) / len(values)


def near(found: Any, expected: Any, samples: int = SAMPLES) -> bool:
    """Relative frequencies within 4.5 standard errors of their probabilities."""
    expected = np.asarray(expected)
    return bool((np.abs(found - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / samples) + 1e-9).all())
