"""The gridworld: golden episodes of the original, places, steps, observations, and levels under many copies."""

from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gridworlds import (
    COLLECT,
    DOWN,
    GOLDEN,
    RIGHT,
    STAY,
    first_level,
    free_cells,
    frequencies,
    golden_level,
    gridworld,
    near,
    random_action,
    scene,
)
from hypothesis import given, settings

from open_bench.environments.gridworld.environment import State, move
from open_bench.environments.gridworld.episodes import play
from open_bench.environments.gridworld.levels import Level, draw_cells, make_level
from open_bench.environments.gridworld.optimal import (
    move_table,
)
from open_bench.environments.registry import load_environment, make_environment
from open_bench.environments.wrappers import VectorEnvironment

# --- the original's episodes ------------------------------------------------------------------------------------------


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_copies_share_one_level_of_the_lifetimes_key() -> None:
    environment = gridworld("rand_all")
    vector = VectorEnvironment(environment, 16)
    _, state = jax.jit(vector.reset)(jax.random.key(5))
    level = jax.jit(environment.level)(jax.random.key(5))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.broadcast_to(b, a.shape)), state[0].level, level)
    assert len(set(state.environment.cell.tolist())) > 1  # but each starts in a place of its own
    _, other = jax.jit(vector.reset)(jax.random.key(6))
    assert not np.array_equal(other.environment.level.rewards, state.environment.level.rewards)


@pytest.mark.slow
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
