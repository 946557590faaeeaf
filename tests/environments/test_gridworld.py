"""The gridworld: golden episodes of the original, the table of distributions, exact returns, places, bad input."""

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from commands import Answer, OpenBench
from hypothesis import given, settings

from open_bench import config
from open_bench.cli.main import cli
from open_bench.environments.gridworld.distributions import DISTRIBUTIONS
from open_bench.environments.gridworld.environment import GridworldEnvironment, State, move
from open_bench.environments.gridworld.episodes import play
from open_bench.environments.gridworld.levels import Level, draw_cells, make_level, sample_level
from open_bench.environments.gridworld.mazes import mazes, read_maze
from open_bench.environments.gridworld.optimal import (
    move_table,
    optimal_policy,
    optimal_return,
    random_return,
    solve,
)
from open_bench.environments.gridworld.pictures import level_figure, level_text
from open_bench.environments.registry import load_environment, make, make_environment
from open_bench.environments.wrappers import VectorEnvironment
from open_bench.errors import UserError

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


# --- the original's episodes ------------------------------------------------------------------------------------------


def golden_level(data: Any, name: str) -> Level:
    p = {key.rsplit("/", 1)[1]: data[key] for key in data if key.startswith(f"{name}/params/")}
    types = p["obj_ids"]
    return make_level(
        p["grid_size"], p["max_steps_in_episode"], jnp.asarray(p["walls"]), p["start_pos"], p["obj_positions"],
        np.arange(len(types)) < p["n_objs"], p["obj_rewards"][types], p["obj_p_terminate"][types],
        p["obj_p_respawn"][types],
    )  # fmt: skip


def dense(rows: np.ndarray, steps: int, size: int) -> np.ndarray:
    """``obs_nonzero`` rows (step, index, value) → observations (steps + 1, size)."""
    observations = np.zeros((steps + 1, size), np.float32)
    observations[rows[:, 0].astype(int), rows[:, 1].astype(int)] = rows[:, 2]
    return observations


@pytest.mark.parametrize("name", [*GOLDEN, *(f"collect_{name}" for name in COLLECT)])
def test_the_originals_episodes(name: str, golden: Path) -> None:
    data = np.load(golden / "gridworld.npz")
    # The recorded rand_all kept its places, so that what follows from its actions is certain.
    environment = gridworld(name.removeprefix("collect_"), random_places=False)
    level = golden_level(data, name)
    assert environment.observation_size == data[f"{name}/obs_size"]
    assert environment.distribution.tabular == data[f"{name}/tabular"]

    def one_step(state: State, action: jax.Array) -> Any:
        _, after, reward, terminated, truncated, info = environment.step(jax.random.key(0), state, action)
        return after, (info["final_observation"], reward, terminated | truncated, after.cell, after.exists)

    actions = data[f"{name}/actions"]
    first, start = environment.begin(jax.random.key(0), level)
    _, (after, rewards, dones, cells, exists) = jax.jit(lambda: jax.lax.scan(one_step, start, jnp.asarray(actions)))()
    expected = dense(data[f"{name}/obs_nonzero"], len(actions), environment.observation_size)
    np.testing.assert_allclose(first, expected[0], rtol=1e-6)
    np.testing.assert_allclose(after, expected[1:], rtol=1e-6)
    np.testing.assert_allclose(rewards, data[f"{name}/rewards"], rtol=1e-6)
    np.testing.assert_array_equal(dones, data[f"{name}/dones"])
    inside = slice(None, -1) if dones[-1] else slice(None)  # after the end the state is that of the next episode
    np.testing.assert_array_equal(cells[inside], data[f"{name}/positions"][1:][inside])
    np.testing.assert_array_equal(exists[inside], data[f"{name}/exists"][1:][inside])
    np.testing.assert_array_equal(start.exists, data[f"{name}/exists"][0])


@pytest.mark.parametrize("name", ["sparse", "small"])
def test_the_originals_optimal_returns(name: str, golden: Path) -> None:
    data = np.load(golden / "gridworld.npz")
    level = golden_level(data, f"optimal_{name}")
    assert optimal_return(level) == pytest.approx(float(data[f"optimal_{name}/optimal_return"]), abs=1e-4)


# --- the table of distributions ---------------------------------------------------------------------------------------

PROCEDURAL = {  # sizes, steps, objects used, random walls, M
    "small": ((4, 6), (20, 100), (1, 3), 7),
    "medium": ((6, 8), (100, 250), (2, 4), 10),
    "large": ((8, 10), (250, 750), (2, 5), 15),
    "all": ((4, 10), (20, 750), (1, 5), 15),
    "rand_all": ((4, 10), (20, 750), (1, 5), 15),
    "labyrinth": ((13, 13), (25, 50), (3, 3), 0),
}


def frequencies(values: np.ndarray, low: int, high: int) -> np.ndarray:
    assert low <= values.min() <= values.max() <= high
    return np.bincount(values - low, minlength=high - low + 1) / len(values)


def near(found: Any, expected: Any, samples: int = SAMPLES) -> bool:
    """Relative frequencies within 4.5 standard errors of their probabilities."""
    expected = np.asarray(expected)
    return bool((np.abs(found - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / samples) + 1e-9).all())


def uniformity(values: np.ndarray, low: float, high: float) -> float:
    """Kolmogorov's distance to the uniform distribution, in units of what one sample in a million exceeds."""
    ordered = np.sort((values - low) / (high - low))
    assert ordered[0] >= -1e-6
    assert ordered[-1] <= 1 + 1e-6
    steps = np.arange(1, len(ordered) + 1) / len(ordered)
    return float(np.abs(steps - ordered).max() * math.sqrt(len(ordered)) / 2.7)


@pytest.mark.parametrize("name", PROCEDURAL)
def test_procedural_distributions(name: str) -> None:
    (low, high), steps, (fewest, most), walls = PROCEDURAL[name]
    levels = samples(name)
    assert levels.walls.shape == (SAMPLES, high**2)
    assert near(frequencies(levels.size, low, high), np.full(high - low + 1, 1 / (high - low + 1)))
    assert steps[0] <= levels.horizon.min() < steps[0] * 1.2
    assert steps[1] / 1.2 < levels.horizon.max() <= steps[1]
    # A horizon n stands for the interval [n, n + 1) of a continuous log-uniform variable.
    smooth = np.log(levels.horizon + np.random.default_rng(0).random(SAMPLES))
    assert uniformity(smooth, math.log(steps[0]), math.log(steps[1] + 1)) < 1
    used = levels.used.sum(1)
    assert near(frequencies(used, fewest, most), np.full(most - fewest + 1, 1 / (most - fewest + 1)))
    np.testing.assert_array_equal(levels.used, np.arange(most) < used[:, None])  # the first ones
    for i in range(most):
        positive = i == 0 or name == "labyrinth"
        assert uniformity(levels.rewards[:, i], 0 if positive else -1, 1) < 1
        assert uniformity(np.log(levels.terminate[:, i]), math.log(0.01), 0) < 1
        assert uniformity(np.log(levels.respawn[:, i]), math.log(0.001), math.log(0.1)) < 1
    if walls:
        largest = levels.walls[levels.size == high]
        assert (largest.sum(1) == walls).all()  # drawn without replacement
        assert near(largest.mean(0), np.full(high**2, walls / high**2), len(largest))
        smallest = levels.walls[levels.size == low]
        assert near(smallest.mean(0)[: low**2], np.full(low**2, walls / high**2), len(smallest))
        assert not smallest[:, low**2 :].any()


FIXED = {  # size, steps, rewards, terminate and respawn of each object, walls
    "dense": (11, 500, (1, 1, -1, -1), (0, 0, 0.5, 0), (0.05, 0.05, 0.1, 0.5), 0),
    "rand_dense": (11, 500, (1, 1, -1, -1), (0, 0, 0.5, 0), (0.05, 0.05, 0.1, 0.5), 0),
    "sparse": (13, 50, (1, -1), (1, 1), (0, 0), 0),
    "long": (11, 1000, (1, 1, -1, -1), (0, 0, 0.5, 0.5), (0.01, 0.01, 1, 1), 0),
    "rand_long": (11, 1000, (1, 1, -1, -1), (0, 0, 0.5, 0.5), (0.01, 0.01, 1, 1), 0),
    "longer": (9, 2000, (1, 1, -1, -1, -1), (0.1, 0.1, 0.8, 0.8, 0.8), (0.01, 0.01, 1, 1, 1), 7),
    "long_dense": (11, 2000, (1, 1, 1, 1), (0,) * 4, (0.005,) * 4, 17),
    "rand_small": (7, 500, (1, 1, -1, -1), (0, 0, 0.5, 0.5), (0.05, 0.05, 0.1, 0.1), 2),
    "rand_sparse": (7, 50, (1, -1, -1), (1, 1, 1), (1, 1, 1), 0),
    "rand_very_dense": (11, 2000, (1,), (0,), (1,), 0),
}


def test_every_distribution_is_in_a_table() -> None:
    assert set(FIXED) | set(PROCEDURAL) == {*DISTRIBUTIONS, "labyrinth"}
    assert len(mazes()) == 9
    shipped = {name for name in config.shipped("environments") if name.startswith("gridworld/")}
    assert shipped == {f"gridworld/{name}" for name in NAMES}


@pytest.mark.parametrize("name", FIXED)
def test_hand_made_distributions(name: str) -> None:
    size, steps, rewards, terminate, respawn, walls = FIXED[name]
    levels = samples(name)
    assert (levels.size == size).all()
    assert (levels.horizon == steps).all()
    assert levels.used.all()
    for found, expected in ((levels.rewards, rewards), (levels.terminate, terminate), (levels.respawn, respawn)):
        np.testing.assert_array_equal(found, np.broadcast_to(np.float32(expected), found.shape))
    assert (levels.walls.sum(1) == walls).all()


def test_walls_of_the_hand_made_distributions() -> None:
    picture = {
        name: samples(name).walls[0].reshape(FIXED[name][0], -1) for name in ("longer", "long_dense", "rand_small")
    }
    assert picture["longer"][:, 4].tolist() == [row not in (1, 7) for row in range(9)]
    assert picture["long_dense"][:, 5].tolist() == [row not in (0, 7) for row in range(11)]
    assert picture["long_dense"][4].tolist() == [column not in (2, 8) for column in range(11)]
    assert np.flatnonzero(picture["rand_small"]).tolist() == [9, 25]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_environments_have_the_published_settings(name: str) -> None:
    shipped = load_environment(f"gridworld/{name}")
    ppo = shipped.ppo
    assert (ppo.num_envs, ppo.num_steps, ppo.update_epochs, ppo.num_minibatches) == (1024, 20, 2, 16)
    assert (ppo.hidden, ppo.activation, ppo.entropy_coefficient) == ((16, 16), "tanh", 0.01)
    assert (shipped.family, shipped.budgets["full"]) == ("gridworld", 30_000_000)
    environment = make_environment(shipped)
    assert isinstance(environment, GridworldEnvironment)
    distribution = environment.distribution
    # The longest episode fits into every budget: without a finished one there is no return to report.
    assert shipped.num_updates(shipped.budgets["quick"]) * ppo.num_steps > distribution.horizons[1]
    assert distribution.tabular == (not name.startswith("rand_")) == (not distribution.random_places)


@pytest.mark.parametrize("name", NAMES)
def test_places_of_levels(name: str) -> None:
    """Start and objects lie in distinct free cells, and the table of free cells is right."""
    levels = samples(name)
    for index in range(64):
        level: Level = jax.tree.map(lambda leaf, index=index: leaf[index], levels)
        area = int(level.size) ** 2
        free = [cell for cell in range(area) if not level.walls[cell]]
        assert level.free[: level.free_cells].tolist() == free
        assert [level.rank[cell] for cell in free] == list(range(len(free)))
        places = [int(level.start), *level.cells[level.used].tolist()]
        assert len(set(places)) == len(places)
        assert set(places) <= set(free)


def test_start_and_objects_are_uniform() -> None:
    levels = samples("sparse")
    for cells in (levels.start, levels.cells[:, 0], levels.cells[:, 1]):
        assert near(frequencies(cells, 0, 168), np.full(169, 1 / 169))


def test_mazes_equal_their_maps() -> None:
    size, walls = read_maze("labyrinth")
    assert size == 13
    assert len(walls) == 72
    level = jax.device_get(samples("labyrinth"))
    assert (np.flatnonzero(level.walls[0]) == walls).all()
    assert len({read_maze(name)[1] for name in mazes()}) == 9


# --- places of objects that come back ---------------------------------------------------------------------------------


@cache
def drawing() -> Any:
    """Draws 5 cells from each row of numbers, with up to 6 taken (others −1), on a level of at most 6 × 6 cells."""

    def draw(size: Any, walls: Any, taken: Any, uniforms: Any) -> Any:
        zeros = jnp.zeros(1)
        level = make_level(size, 1, walls, 0, zeros, zeros, zeros, zeros, zeros)
        return jax.vmap(lambda row: draw_cells(level, row, taken))(uniforms)

    return jax.jit(draw)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.floats(0, 0.9), st.integers(0, 6))
def test_drawn_cells(seed: int, size: int, density: float, number: int) -> None:
    """Distinct free cells that are not taken, as long as there are any; the lowest and the highest possible too."""
    generator = np.random.default_rng(seed)
    walls = generator.random(36) < density
    free = set(np.flatnonzero(~walls[: size**2]).tolist())
    taken = np.full(6, -1, np.int32)
    taken[:number] = generator.choice([*free, -1], number)
    generator.shuffle(taken)
    left = free - set(taken.tolist())
    below_one = np.nextafter(np.float32(1), np.float32(0))
    uniforms = np.concatenate([generator.random((100, 5)), np.zeros((1, 5)), np.full((1, 5), below_one)])
    cells, found = jax.device_get(drawing()(size, walls, taken, uniforms.astype(np.float32)))
    assert (found.sum(1) == min(5, len(left))).all()
    for row, there in zip(cells, found, strict=True):
        chosen = row[there].tolist()
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= left
    if left:
        assert (cells[-2, 0], cells[-1, 0]) == (min(left), max(left))


def test_objects_come_back_in_any_free_cell_but_those_taken() -> None:
    """The original takes the wall mask for indices: it never uses cell 0, and walls may be used."""
    environment = gridworld("rand_small", min_respawn=1.0, max_respawn=1.0)
    level = first_level("rand_small")._replace(respawn=np.ones(4, np.float32))
    exists = jnp.asarray([False, True, False, True])
    state = State(level, jnp.int32(12), jnp.asarray([3, 40, 17, 5], jnp.int32), exists, jnp.int32(1))
    keys = jax.random.split(jax.random.key(0), 20_000)
    after = jax.device_get(jax.jit(jax.vmap(lambda key: environment.step(key, state, STAY)[1]))(keys))
    assert after.exists.all()
    np.testing.assert_array_equal(after.cells[:, [1, 3]], np.broadcast_to([40, 5], (len(keys), 2)))
    allowed = free_cells(level) - {12, 3, 40, 17, 5}  # the agent's, and those that hold or held an object
    assert 0 in allowed
    expected = np.zeros(49)
    expected[sorted(allowed)] = 1 / len(allowed)
    for i in (0, 2):
        assert near(frequencies(after.cells[:, i], 0, 48), expected, len(keys))
    assert (after.cells[:, 0] != after.cells[:, 2]).all()


def test_random_places_change_from_episode_to_episode_and_fixed_ones_do_not() -> None:
    for name, moves in (("rand_small", True), ("small", False)):
        environment = gridworld(name)
        level = first_level(name)
        begin = jax.jit(jax.vmap(environment.begin, in_axes=(0, None)))
        _, states = begin(jax.random.split(jax.random.key(0), 500), level)
        starts = set(states.cell.tolist())
        assert starts == (free_cells(level) if moves else {int(level.start)})
        together = np.concatenate([states.cell[:, None], states.cells], 1)
        assert all(len(set(row)) == len(row) for row in together.tolist())


def test_what_has_no_place_stays_away() -> None:
    """On four cells with an agent and three objects nothing can move, and nothing lands on the agent."""
    environment = gridworld("rand_sparse", min_size=2, max_size=2, min_respawn=1.0)
    level = environment.level(jax.random.key(0))
    state = State(level, jnp.int32(0), jnp.asarray([1, 2, 3], jnp.int32), jnp.zeros(3, bool), jnp.int32(0))
    _, after, *_ = environment.step(jax.random.key(1), state, jnp.int32(STAY))
    assert not after.exists.any()


# --- steps and observations -------------------------------------------------------------------------------------------


def test_moves() -> None:
    level = scene("S.a", ".#.", "...", objects=((1, 0, 0),))
    table = {
        0: (0, 3, 0, 1, 0), 1: (1, 1, 0, 2, 1), 2: (2, 5, 1, 2, 2), 3: (0, 6, 3, 3, 3), 5: (2, 8, 5, 5, 5),
        6: (3, 6, 6, 7, 6), 7: (7, 7, 6, 8, 7), 8: (5, 8, 7, 8, 8),
    }  # fmt: skip
    for cell, targets in table.items():
        assert [int(move(level, jnp.int32(cell), jnp.int32(action))) for action in range(5)] == list(targets)
    np.testing.assert_array_equal(
        np.delete(move_table(jax.device_get(level)), 4, 1).T, [targets for _, targets in sorted(table.items())]
    )


def test_a_small_level_uses_its_own_rows() -> None:
    """Cells count by the level's side, not by the largest one."""
    environment = gridworld("rand_all", random_places=False)
    wide = scene("S..", "...", "a..", objects=((1, 0, 0),))
    pad = lambda x, n: np.pad(np.asarray(x), (0, n - len(x)))
    level = make_level(
        3, 10, jnp.asarray(pad(wide.walls, 100)), wide.start, pad(wide.cells, 5), pad(wide.used, 5),
        pad(wide.rewards, 5), pad(wide.terminate, 5), pad(wide.respawn, 5),
    )  # fmt: skip
    observation, state = environment.begin(jax.random.key(0), level)
    assert np.flatnonzero(observation).tolist() == [0, 100 + 6]
    _, state, *_ = environment.step(jax.random.key(0), state, jnp.int32(DOWN))
    observation, state, reward, *_ = environment.step(jax.random.key(0), state, jnp.int32(DOWN))
    assert (int(state.cell), float(reward)) == (6, 1.0)
    assert np.flatnonzero(observation).tolist() == [6, 600]
    assert float(observation[-1]) == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("dense", 121 * 16 + 1), ("rand_dense", 121 * 4 + 1), ("sparse", 169 * 4 + 1), ("rand_sparse", 49 * 3 + 1),
        ("longer", 81 * 32 + 1), ("rand_very_dense", 121 * 2 + 1), ("small", 36 * 8 + 1), ("all", 100 * 32 + 1),
        ("rand_all", 100 * 6 + 1), ("labyrinth", 169 * 8 + 1),
    ],
)  # fmt: skip
def test_observation_sizes(name: str, size: int) -> None:
    assert gridworld(name).observation_size == size


def test_tabular_observation() -> None:
    environment = gridworld("dense")
    level = first_level("dense")
    exists = jnp.asarray([True, False, True, True])
    state = State(level, jnp.int32(37), jnp.asarray(level.cells), exists, jnp.int32(41))
    observation = environment.observe(state)
    assert np.flatnonzero(observation).tolist() == [37 + 121 * (1 + 4 + 8), 1936]
    assert float(observation[-1]) == pytest.approx(0.041)


def test_object_maps_share_a_types_map() -> None:
    environment = gridworld("rand_dense")
    level = first_level("rand_dense")
    cells, exists = jnp.asarray([3, 50, 0, 120], jnp.int32), jnp.asarray([True, True, True, False])
    observation = environment.observe(State(level, jnp.int32(37), cells, exists, jnp.int32(0)))
    assert np.flatnonzero(observation).tolist() == [37, 121 + 3, 121 + 50, 242 + 0]


def walk(level: Level, actions: list[int], key: int = 0) -> Any:
    """Observations aside, what follows from a sequence of actions in a tabular level without other levels' padding."""
    side, objects = int(level.size), level.used.shape[0]
    environment = gridworld("small", min_size=side, max_size=side, min_objects=objects, max_objects=objects, walls=0)
    step, rows = jax.jit(environment.step), []
    _, state = environment.begin(jax.random.key(key), level)
    for number, action in enumerate(actions):
        _, state, *rest, _ = step(jax.random.key(1000 * key + number), state, jnp.int32(action))
        rows.append((*(float(value) for value in rest), int(state.cell), state.exists.tolist()))
    return rows


def test_the_order_inside_a_step() -> None:
    """What comes back under the agent is collected one step later, and what was collected is absent for a step."""
    level = scene("Sa", "..", objects=((0.5, 0.0, 1.0),))
    rows = walk(level, [RIGHT, STAY, STAY, STAY])
    assert [row[0] for row in rows] == [0.5, 0.0, 0.5, 0.0]
    assert [row[-1] for row in rows] == [[False], [True], [False], [True]]


def test_an_object_terminates_and_the_horizon_truncates() -> None:
    rows = walk(scene("Sa", "..", horizon=3, objects=((1.0, 1.0, 0.0),)), [RIGHT, STAY, STAY, STAY, RIGHT])
    assert [row[1:3] for row in rows] == [(1.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0)]
    rows = walk(scene("Sa", "..", horizon=1, objects=((1.0, 1.0, 0.0),)), [RIGHT, STAY])
    assert [row[1:3] for row in rows] == [(1.0, 0.0), (0.0, 1.0)]  # never both
    assert rows[0][3:] == (0, [True])  # the next episode has begun


def test_probabilities_of_termination_and_return() -> None:
    environment = gridworld("small", min_size=2, max_size=2, min_objects=1, max_objects=1, walls=0)
    level = scene("Sa", "..", horizon=10, objects=((1.0, 0.3, 0.2),))
    keys = jax.random.split(jax.random.key(0), 20_000)
    _, state = environment.begin(jax.random.key(0), level)
    step = jax.jit(jax.vmap(environment.step, in_axes=(0, None, None)))
    terminated = step(keys, state, jnp.int32(RIGHT))[3]
    assert near(np.mean(terminated), 0.3, len(keys))
    absent = state._replace(exists=jnp.zeros(1, bool))
    assert near(np.mean(step(keys, absent, jnp.int32(DOWN))[1].exists), 0.2, len(keys))


def test_unused_objects_never_appear() -> None:
    environment = gridworld("all", max_objects=5, min_respawn=1.0, max_respawn=1.0)
    level = environment.level(jax.random.key(0))._replace(used=jnp.asarray([True, True, False, False, False]))
    episode = jax.jit(lambda: play(environment, level, random_action, jax.random.key(1)))()
    assert not episode.exists[:, 2:].any()
    assert episode.exists[:, :2].any()


# --- levels under many copies -----------------------------------------------------------------------------------------


def distinct_levels(state: Any) -> int:
    return len({np.asarray(row).tobytes() for row in state.environment.level.rewards})


def test_copies_share_one_level_of_the_lifetimes_key() -> None:
    environment = gridworld("rand_all")
    vector = VectorEnvironment(environment, 16)
    _, state = jax.jit(vector.reset)(jax.random.key(5))
    level = jax.jit(environment.level)(jax.random.key(5))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.broadcast_to(b, a.shape)), state[0].level, level)
    assert len(set(state.environment.cell.tolist())) > 1  # but each starts in a place of its own
    _, other = jax.jit(vector.reset)(jax.random.key(6))
    assert not np.array_equal(other.environment.level.rewards, state.environment.level.rewards)


def test_a_level_per_copy() -> None:
    vector = VectorEnvironment(gridworld("small", level_per_copy=True), 16)
    _, state = jax.jit(vector.reset)(jax.random.key(5))
    assert distinct_levels(state) == 16
    step = jax.jit(vector.step)
    levels = state.environment.level
    for key in jax.random.split(jax.random.key(0), 150):  # longer than any episode
        _, state = step(key, state, jnp.zeros(16, jnp.int32))
    assert state.statistics.finished.all()
    jax.tree.map(np.testing.assert_array_equal, levels, state.environment.level)  # each keeps its own


def test_other_environments_are_started_as_before() -> None:
    environment = make_environment(load_environment("cartpole"))
    key = jax.random.key(0)
    expected = jax.vmap(environment.reset)(jax.random.split(key, 3))
    jax.tree.map(np.testing.assert_array_equal, environment.reset_copies(key, 3), expected)


# --- exact returns ----------------------------------------------------------------------------------------------------


def test_values_that_are_known() -> None:
    corridor = ("S.a", "###", "...")
    value = lambda horizon, thing: optimal_return(scene(*corridor, horizon=horizon, objects=(thing,)))
    assert value(1, (1.0, 0.0, 0.0)) == 0.0  # too far
    assert value(2, (1.0, 0.0, 0.0)) == pytest.approx(1.0)
    assert value(9, (-1.0, 0.0, 1.0)) == 0.0  # better left alone
    assert value(6, (1.0, 0.0, 1.0)) == pytest.approx(3.0)  # collected at steps 2, 4 and 6
    assert value(6, (1.0, 1.0, 1.0)) == pytest.approx(1.0)
    assert value(6, (1.0, 0.5, 1.0)) == pytest.approx(1 + 0.5 + 0.25)
    assert value(3, (1.0, 0.0, 0.3)) == pytest.approx(1.0)
    assert value(4, (1.0, 0.0, 0.3)) == pytest.approx(1.3)  # back in step 3, collected in step 4
    single = scene("Sa", "##", horizon=1, objects=((1.0, 0.0, 0.0),))
    assert random_return(single) == pytest.approx(0.2)  # one action of five


def returns_of(environment: GridworldEnvironment, level: Level, policy: Any, episodes: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(11), episodes)
    played = jax.jit(jax.vmap(lambda key: play(environment, level, policy, key)))(keys)
    return np.asarray(played.reward.sum(1))


@pytest.mark.parametrize("seed", [0, 4])
def test_policies_return_their_values(seed: int) -> None:
    """By Monte Carlo: the optimal policy what dynamic programming says, the random one its own value, far below."""
    environment = gridworld("small")
    level = environment.level(jax.random.key(seed))
    solution = solve(level)
    best = returns_of(environment, level, optimal_policy(solution), 4000)
    random = returns_of(environment, level, random_action, 4000)
    error = lambda values: 4 * values.std() / math.sqrt(len(values)) + 1e-4
    assert abs(best.mean() - solution.value) < error(best)
    assert abs(random.mean() - random_return(level)) < error(random)
    assert random_return(level) < solution.value
    assert random.mean() < best.mean() - error(best) - error(random)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_no_policy_beats_the_optimum(seed: int) -> None:
    environment = gridworld("small", max_steps=30)
    level = environment.level(jax.random.key(seed))
    solution = solve(level)
    assert random_return(level) <= solution.value + 1e-9
    assert solution.value == pytest.approx(optimal_return(level))
    # A good object nearby is worth at least a walk to it: doing nothing is never better.
    assert solution.value >= -1e-9


def test_an_optimal_policy_does_not_dawdle() -> None:
    environment = gridworld("small", min_size=3, max_size=3, min_objects=1, max_objects=1, walls=0, max_steps=40)
    level = scene("S..", "...", "..a", horizon=40, objects=((1.0, 1.0, 0.0),))
    episode = jax.jit(lambda: play(environment, level, optimal_policy(solve(level)), jax.random.key(0)))()
    assert int(episode.length) == 4
    assert bool(episode.terminated)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_text_of_a_level_and_of_an_episode() -> None:
    environment = gridworld("small", min_size=3, max_size=3, min_objects=1, max_objects=1, walls=0)
    level = scene("S.#", "#..", "..a", horizon=20, objects=((0.25, 1.0, 0.05),))
    assert level_text(level).splitlines() == [
        "+-------+", "| S . # |", "| # . . |", "| . . a |", "+-------+", "",
        "a  reward +0.25    ends the episode: 100 %    comes back: 5 % a step",
    ]  # fmt: skip
    actions = jnp.asarray([RIGHT, DOWN, DOWN, LEFT, *[STAY] * 20])
    episode = play(environment, level, lambda key, state, observation: actions[state.time], jax.random.key(0))
    assert level_text(level, episode).splitlines()[1:4] == ["| S v # |", "| # v . |", "| E < a |"]


def test_figures_are_drawn_without_pyplot(tmp_path: Path) -> None:
    environment = gridworld("rand_all")
    level = environment.level(jax.random.key(0))
    episode = jax.jit(lambda: play(environment, level, random_action, jax.random.key(1)))()
    for shown in (None, episode):
        figure = level_figure("a level", level, shown, ["a note"])
        figure.savefig(tmp_path / "level.png")
        assert (tmp_path / "level.png").stat().st_size > 5000


def test_show(tmp_path: Path) -> None:
    png = tmp_path / "labyrinth.png"
    arguments = ["show", "gridworld/labyrinth", "--path", "optimal", "--png", str(png)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "| . # # # # # # # # # # # . |" in result.output.replace("v", ".").replace("^", ".")
    assert "Expected return: optimal" in result.output
    assert png.read_bytes().startswith(b"\x89PNG")
    other = CliRunner().invoke(cli, ["show", "gridworld/labyrinth", "--seed", "1"]).output
    assert other.splitlines()[-5:] != result.output.splitlines()[-5:]


def test_show_plays_a_trained_agent(openbench: OpenBench, tmp_path: Path) -> None:
    """By its optimizer's name, or by its experiment's where there are several."""
    common = ["--results", tmp_path, "--set", "num_envs=16", "--set", "hidden=[4]"]

    def show(path: str, *more: str) -> Answer:
        return openbench("show", "gridworld/small", "--path", path, *common, *more)

    def train(steps: int) -> None:
        answer = openbench("train", "adam", "-e", "gridworld/small", "--steps", steps, "--save-agents", "-q", *common)
        assert answer.code == 0, answer.err

    absent = show("adam")
    assert (absent.code, "holds no agent that adam trained on gridworld/small[" in absent.err) == (2, True)
    train(320)
    shown = show("adam")
    assert "An episode of the agent that adam trained: return" in shown.out and " E " in shown.out
    assert "no saved agent of seed 1" in show("adam", "--seed", "1").err
    train(640)
    several = show("adam")
    assert (several.code, "holds several experiments of adam" in several.err) == (2, True)
    experiments = re.findall(r"gridworld_small\S*--adam--\w+", several.err)
    pictures = [show(experiment).out.splitlines()[:-1] for experiment in experiments]
    assert len(pictures) == 2 and shown.out.splitlines()[:-1] in pictures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "cartpole"], "cartpole draws no levels, so there is nothing to show"),
        (["show", "gridworld/rand_all", "--path", "optimal"], "random places"),
        (["show", "gridworld/labyrint"], r"Did you mean gridworld/labyrinth"),
        (["show", "gridworld/small", "--png", "no/such/folder.png"], r"no/such/folder\.png"),
    ],
)
def test_show_refuses(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)


# --- options and bad input --------------------------------------------------------------------------------------------


def test_options_change_a_distribution() -> None:
    changed = gridworld("rand_dense", min_objects=6, max_objects=6, walls=9, max_steps=80, min_steps=40).distribution
    assert changed.types == (0, 0, 1, 2, 0, 0)
    assert (changed.horizons, changed.random_walls) == ((40, 80), 9)
    changed = gridworld("all", min_size=12, max_size=12, min_respawn=0.5, max_respawn=0.5, tabular=False).distribution
    assert changed.sizes == (12, 12)
    assert changed.respawn == ((0.5, 0.5),) * 5
    assert changed.observation_size == 144 * 6 + 1
    assert gridworld("rand_dense").distribution == DISTRIBUTIONS["rand_dense"]


@pytest.mark.parametrize("how", ["file", "text"])
def test_a_maze_of_the_users(tmp_path: Path, how: str) -> None:
    text = "..#\n.#.\n...\n"
    path = tmp_path / "mine.txt"
    path.write_text(text)
    environment = gridworld("maze", maze=str(path) if how == "file" else text)
    level = environment.level(jax.random.key(0))
    assert np.flatnonzero(level.walls).tolist() == [2, 4]
    assert int(level.size) == 3
    walled = gridworld("rand_dense", maze=text).distribution
    assert (walled.sizes, walled.fixed_walls, walled.random_places) == ((3, 3), (2, 4), True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("labyrint", {}, r"unknown gridworld 'labyrint'\. Did you mean labyrinth"),
        ("", {}, r"unknown gridworld ''"),
        ("rand_all", {"max_sise": 5}, r"options of gridworld:rand_all: unknown key 'max_sise'\. Did you mean max_size"),
        ("rand_all", {"max_size": "big"}, r"max_size = 'big': .*integer"),
        ("rand_all", {"max_size": 1}, r"max_size = 1: .*greater than or equal to 2"),
        ("rand_all", {"min_size": 8, "max_size": 7}, r"no size left: min_size = 8 is above max_size = 7"),
        ("rand_all", {"max_size": 3}, r"no size left: min_size = 4 is above max_size = 3"),
        ("rand_all", {"min_steps": 800}, r"no steps left"),
        ("rand_all", {"max_objects": 0, "min_objects": 0}, r"levels without objects"),
        ("dense", {"max_objects": 2}, r"no objects left: min_objects = 4 is above max_objects = 2"),
        ("all", {"min_terminate": 0.5, "max_terminate": 0.2}, r"no probability left: min_terminate = 0\.5"),
        ("all", {"min_respawn": 0.0}, r"min_respawn = 0 with max_respawn = 0\.1: .*cannot begin at 0"),
        ("all", {"max_respawn": 1.5}, r"max_respawn = 1\.5"),
        ("all", {"walls": 101}, r"walls = 101, but there are 100 cells"),
        ("all", {"max_objects": 15}, r"observations would have .* tabular = false|free cells"),
        ("dense", {"min_objects": 20, "max_objects": 20}, r"observations would have 126,877,697 entries"),
        ("longer", {"max_size": 12}, r"the walls of this gridworld fix its size at 9"),
        ("all", {"walls": True}, r"walls = True"),
        ("all", {"max_objects": "7"}, r"max_objects = '7'"),
        ("all", {"tabular": "no"}, r"tabular = 'no'"),
        ("all", {"max_steps": 3_000_000_000}, r"max_steps = 3000000000: .*less than 2147483648"),
        ("all", {"min_terminate": 1e-46}, r"probabilities of terminate below 1e-30 can only be 0"),
        ("maze", {}, r"key 'maze' is missing"),
        ("maze", {"maze": "labirynth"}, r"neither a file nor a maze that ships\. Did you mean labyrinth"),
        ("maze", {"maze": "...\n..\n...\n"}, r"row 2: 2 cells, but a maze is square and this one has 3 rows"),
        ("maze", {"maze": "....\n....\n"}, r"row 1: 4 cells"),
        ("maze", {"maze": "\n"}, r"it has 0 rows"),
        ("maze", {"maze": "...\n.x.\n...\n"}, r"row 2: unknown character 'x'; known: \. free, # wall"),
        ("maze", {"maze": "###\n###\n###\n"}, r"0 free cells, but the start and 3 objects need 4"),
        ("maze", {"maze": "..\n#.\n"}, r"3 free cells, but the start and 3 objects need 4"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        gridworld(name, **options)


def test_results_belong_to_the_map_and_not_to_the_files_name(tmp_path: Path) -> None:
    """A path is relative to its TOML, and an edited map is another task."""
    (tmp_path / "mine.txt").write_text("..#\n.#.\n...\n")
    toml = tmp_path / "mine.toml"
    toml.write_text(
        'name = "mine"\ndescription = "a maze"\nfamily = "gridworld"\nsource = "gridworld:maze"\n'
        '[options]\nmaze = "mine.txt"\n[budgets]\nquick = 20480\n'
    )
    before = load_environment(str(toml))
    assert before.options == {"maze": "..#\n.#.\n...\n"}
    level = make_environment(before).level(jax.random.key(0))  # type: ignore[attr-defined]
    assert np.flatnonzero(level.walls).tolist() == [2, 4]
    (tmp_path / "mine.txt").write_text("...\n.#.\n...\n")
    assert load_environment(str(toml)).options != before.options
    toml.write_text(toml.read_text().replace("mine.txt", "labyrinth"))
    assert load_environment(str(toml)).options == {"maze": "labyrinth"}
    toml.write_text(toml.read_text().replace("labyrinth", "labirynth"))
    with pytest.raises(UserError, match="neither a file nor a maze that ships"):
        load_environment(str(toml))


def test_walls_that_leave_no_room_are_dropped_anywhere() -> None:
    """Not from the end of the grid alone, so that no row is filled for sure."""
    environment = gridworld("rand_all", min_size=4, max_size=4)
    walls = np.stack([environment.level(jax.random.key(i)).walls for i in range(200)])
    assert (walls.sum(1) == 10).all()  # the start and five objects need the other six
    np.testing.assert_allclose(walls.mean(0), 10 / 16, atol=5 * np.sqrt(10 / 16 * 6 / 16 / 200))


def test_returns_that_take_too_much_to_compute_are_left_out() -> None:
    objects = {"random_places": False, "min_objects": 20, "max_objects": 20}
    config = load_environment("gridworld/rand_dense").model_copy(update={"name": "big", "options": objects})
    environment = make_environment(config)
    assert "Expected return" not in environment.draw("big", jax.random.key(0))
    with pytest.raises(UserError, match="big has too many states"):
        environment.draw("big", jax.random.key(0), "optimal")


def test_a_maze_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "binary.txt"):
        with pytest.raises(UserError, match=str(path)):
            gridworld("maze", maze=str(path))
