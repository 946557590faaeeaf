"""Points of generalization studies as data, and the tasks that their sweeps describe."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from studies import placed, study_of

from open_bench.config import shipped
from open_bench.environments.gridworld.mazes import mazes
from open_bench.environments.registry import make_environment
from open_bench.errors import UserError
from open_bench.generalization.study import AXES, Point, load_generalization, make_points

SEVEN = ("sixteen_rooms", "labyrinth", "rand_sparse", "rand_dense", "rand_long", "standard_maze", "rand_all")


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped("generalize"))
def test_every_point_of_a_shipped_study_can_be_made(name: str) -> None:
    study = load_generalization(name)
    assert study.name == name
    points = make_points(study)
    for point in points:
        environment = make_environment(point.task.environment)
        assert environment.observation_size > 0
        assert point.task.num_updates >= 2
    assert {point.axis for point in points} <= set(AXES)


@pytest.mark.slow
def test_the_studies_hold_what_they_are_for() -> None:
    levels = make_points(load_generalization("gridworld"))
    assert [point.task.name for point in levels] == [f"gridworld/{name}" for name in SEVEN]
    full = make_points(load_generalization("full"))
    assert {point.axis for point in full} == set(AXES)
    swept = {point.label for point in full if point.axis == "levels"}
    assert set(SEVEN) | set(mazes()) <= swept
    assert {point.task.environment.family for point in full} >= {"gridworld", "minatar", "classic"}
    smoke = {point.key for point in make_points(load_generalization("smoke"))}
    assert len(smoke) <= 16


def test_a_sweep_varies_one_thing() -> None:
    points = make_points(study_of(vary=["settings.hidden"], values=[[16, 16], [64, 64]]))
    assert [(point.label, point.x) for point in points] == [("16×16", 16.0), ("64×64", 64.0)]
    names = [point.task.name for point in points]
    assert names == ["cartpole[hidden=16x16]", "cartpole"]  # the second is the base itself
    first, second = (point.task for point in points)
    assert first.settings.model_dump() | {"hidden": (64, 64)} == second.settings.model_dump()
    both = ["options.min_size", "options.max_size"]
    sizes = make_points(study_of(axis="size", environments=["gridworld/rand_sparse"], vary=both, values=[5, 7]))
    names = [point.task.name for point in sizes]
    assert names == ["gridworld/rand_sparse{max_size=5,min_size=5}", "gridworld/rand_sparse"]  # its size is 7
    depths = make_points(study_of(axis="depth", vary=["settings.hidden"], values=[[8], [8, 8]]))
    assert [(point.label, point.x) for point in depths] == [("1", 1.0), ("2", 2.0)]


@pytest.mark.slow
def test_the_size_sweep_keeps_the_density_of_walls() -> None:
    sizes = [point for point in make_points(load_generalization("full")) if point.axis == "size"]
    assert [point.label for point in sizes] == ["4", "7", "10", "13", "16"]
    for point in sizes:
        levels = make_environment(point.task.environment).distribution  # type: ignore[attr-defined]
        assert levels.random_walls / levels.max_size**2 == pytest.approx(0.15, abs=0.03)
        assert "walls" not in placed("adam:b1=0.5", point.task, "gridworld/rand_all")[1]


def test_a_map_in_a_sweep_has_a_short_name(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("..#\n.#.\n...\n")
    sweep = {"axis": "walls", "environments": ["gridworld/rand_dense"], "vary": ["options.maze"]}
    (point,) = make_points(study_of(**sweep, values=[str(tmp_path / "mine.txt")]))
    assert re.fullmatch(r"gridworld/rand_dense\{maze=map-[0-9a-f]{8}\}", point.task.name)
    assert "..#" in str(point.task.environment.options["maze"])


def test_the_algorithm_may_vary() -> None:
    points = make_points(study_of(axis="algorithm", vary=["algorithm"], values=["ppo", "pqn"]))
    assert [(point.label, point.key) for point in points] == [
        ("ppo", ("cartpole", "steps-20480")), ("pqn", ("cartpole · pqn", "steps-20480")),
    ]  # fmt: skip
    assert [point.task.algorithm for point in points] == ["ppo", "pqn"]


def test_lifetimes_of_a_budgets_length_have_its_name() -> None:
    lifetimes = make_points(study_of(axis="lifetime", vary=["env_steps"], values=[20_480, 100_000], env_steps=None))
    assert [point.key for point in lifetimes] == [("cartpole", "steps-20480"), ("cartpole", "quick")]
    several = make_points(study_of(axis="families", environments=["breakout", "cartpole"], env_steps=[16_384, 512]))
    assert [point.task.env_steps for point in several] == [16_384, 512]
    by_budget = make_points(study_of(axis="families", budget="quick", env_steps=None))
    assert [point.key for point in by_budget] == [("cartpole", "quick")]


def test_the_documented_study_can_be_made(tmp_path: Path) -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "generalization.md").read_text()
    (code,) = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "mine.toml").write_text(code)
    points = make_points(load_generalization(str(tmp_path / "mine.toml")))
    assert [point.axis for point in points] == ["levels"] * 2 + ["respawn"] * 3 + ["width"] * 2


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"axis": "widht"}, "sweeps.0.axis = 'widht'"),
        ({"budget": "quick"}, "one of env_steps and budget"),
        ({"env_steps": None}, "one of env_steps and budget"),
        ({"vary": ["settings.hidden"]}, "vary and values go together"),
        ({"vary": ["hidden"], "values": [1]}, "vary = 'hidden' is neither"),
        ({"axis": "algorithm", "vary": ["algorithm"], "values": ["pqm"]}, "unknown algorithm 'pqm'"),
        ({"vary": ["settings.hidden"], "values": [[8]], "environments": ["cartpole", "breakout"]}, "not of several"),
        ({"env_steps": [512, 512]}, "2 env_steps for 1 environments"),
        ({"environments": ["cartpoel"]}, "mine, axis width: unknown environment 'cartpoel'. Did you mean"),
        ({"vary": ["settings.hiden"], "values": [[8]]}, "unknown key 'hiden'"),
        ({"vary": ["options.magnetism"], "values": [0]}, "gymnax cannot make"),
        ({"vary": ["options.max_steps_in_episode"], "values": [[1, 2]]}, "max_steps_in_episode"),
        ({"vary": ["options.max_steps_in_episode"], "values": ["a"]}, "max_steps_in_episode = 'a' does not fit"),
        ({"vary": ["options.max_steps_in_episode"], "values": [0]}, "is no number of env steps"),
        ({"vary": ["options.gravity"], "values": [True]}, "gravity = True does not fit"),
        ({"env_steps": 10**30}, "more than can be counted"),
        ({"vary": ["settings.hidden"], "values": [[8], [8]]}, "the point 8 is there twice"),
        ({"vary": ["env_steps"], "values": ["many"], "env_steps": None}, "'many' is no number of env steps"),
        ({"env_steps": 100}, "fewer than one update of ppo"),
        ({"color": "red"}, "unknown key 'sweeps.0.color'"),
    ],
)
def test_bad_studies_are_refused(sweep: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_points(study_of(**sweep))
    assert message in str(error.value)


def test_points_are_values() -> None:
    first, second = make_points(load_generalization("smoke")), make_points(load_generalization("smoke"))
    assert [point.key for point in first] == [point.key for point in second]
    with pytest.raises(dataclasses.FrozenInstanceError):
        first[0].axis = "size"  # type: ignore[misc]
    assert isinstance(first[0], Point)
