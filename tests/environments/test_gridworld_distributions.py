"""What levels are drawn from: the table of distributions, options that change one, mazes, and bad input."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from gridworlds import NAMES, SAMPLES, frequencies, gridworld, near, samples

from open_bench import config
from open_bench.environments.gridworld.distributions import DISTRIBUTIONS
from open_bench.environments.gridworld.environment import GridworldEnvironment
from open_bench.environments.gridworld.levels import Level
from open_bench.environments.gridworld.mazes import mazes, read_maze
from open_bench.environments.registry import load_environment, make_environment
from open_bench.errors import UserError
from open_bench.training.task import make_task

# --- the table of distributions ---------------------------------------------------------------------------------------

PROCEDURAL = {  # sizes, steps, objects used, random walls, M
    "small": ((4, 6), (20, 100), (1, 3), 7),
    "medium": ((6, 8), (100, 250), (2, 4), 10),
    "large": ((8, 10), (250, 750), (2, 5), 15),
    "all": ((4, 10), (20, 750), (1, 5), 15),
    "rand_all": ((4, 10), (20, 750), (1, 5), 15),
    "labyrinth": ((13, 13), (25, 50), (3, 3), 0),
}


def uniformity(values: np.ndarray, low: float, high: float) -> float:
    """Kolmogorov's distance to the uniform distribution, in units of what one sample in a million exceeds."""
    ordered = np.sort((values - low) / (high - low))
    assert ordered[0] >= -1e-6
    assert ordered[-1] <= 1 + 1e-6
    steps = np.arange(1, len(ordered) + 1) / len(ordered)
    return float(np.abs(steps - ordered).max() * math.sqrt(len(ordered)) / 2.7)


@pytest.mark.slow
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


@pytest.mark.slow
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
    task = make_task(shipped, budget="quick")
    ppo: Any = task.settings
    assert (ppo.num_envs, ppo.num_steps, ppo.update_epochs, ppo.num_minibatches) == (1024, 20, 2, 16)
    assert (ppo.hidden, ppo.activation, ppo.entropy_coefficient) == ((16, 16), "tanh", 0.01)
    assert (shipped.family, shipped.budgets["full"]) == ("gridworld", 30_000_000)
    environment = make_environment(shipped)
    assert isinstance(environment, GridworldEnvironment)
    distribution = environment.distribution
    # The longest episode fits into every budget: without a finished one there is no return to report.
    assert task.num_updates * ppo.num_steps > distribution.horizons[1]
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


@pytest.mark.slow
def test_walls_that_leave_no_room_are_dropped_anywhere() -> None:
    """Not from the end of the grid alone, so that no row is filled for sure."""
    environment = gridworld("rand_all", min_size=4, max_size=4)
    walls = np.asarray(jax.jit(jax.vmap(environment.level))(jax.random.split(jax.random.key(0), 200)).walls)
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
