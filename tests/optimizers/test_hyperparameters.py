"""Hyperparameters that ship: which are chosen for an environment and budget."""

import dataclasses
import functools
from typing import Any

import pytest

import open_bench.optimizers.resolve as resolved
from open_bench import config, files
from open_bench.optimizers.resolve import resolve
from open_bench.training.task import Task, make_task


@functools.cache
def cartpole() -> Task:
    return make_task("cartpole")


def at(environment: str, budget: str, env_steps: int = 1, algorithm: str = "ppo") -> Task:
    """A task of that name, which is all that shipped settings are chosen by; nothing of it is built."""
    return dataclasses.replace(cartpole(), base=environment, budget=budget, env_steps=env_steps, algorithm=algorithm)


GRIDWORLDS = tuple(name for name in config.shipped("environments") if name.startswith("gridworld/"))


@pytest.mark.parametrize(
    ("environment", "learning_rate", "b1", "b2"),
    [
        ("ant", 3e-4, 0.99, 0.99),
        ("humanoid", 3e-4, 0.9, 0.999),
        ("walker2d", 1e-3, 0.9, 0.999),
        ("hopper", 8e-4, 0.9, 0.999),
        ("craftax-classic", 5e-4, 0.9, 0.999),
        *((name, 1e-4, 0.99, 0.99) for name in GRIDWORLDS),
    ],
)
def test_adam_has_the_published_settings(environment: str, learning_rate: float, b1: float, b2: float) -> None:
    found = resolve("adam", at(environment, "full"))
    assert found.origin == "published"
    values = found.hyperparameters
    assert (values["learning_rate"], values["b1"], values["b2"], values["eps"]) == (learning_rate, b1, b2, 1e-5)
    assert values["anneal_learning_rate"]


def test_the_gridworlds_are_all_there() -> None:
    assert len(GRIDWORLDS) == 24


def ships(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Adam's file holds these tables, whose learning rates are 1, 2, …"""
    tables: dict[str, Any] = {}
    for number, name in enumerate(names, start=1):
        environment, budget = name.split(" ")
        chosen = {"origin": "tuned", "values": {"learning_rate": float(number)}}
        tables.setdefault(environment, {"ppo": {}})["ppo"][budget] = chosen
    monkeypatch.setattr(resolved, "shipped_hyperparameters", lambda optimizer: tables)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [("grid/a", 2.0), ("grid/b", 1.0), ("grid/b/c", None), ("grid", None), ("gridworld", None), ("other/a", None)],
)
def test_a_family_stands_for_what_has_no_table(
    environment: str, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ships(monkeypatch, "grid/* any", "grid/a any")
    found = resolve("adam", at(environment, "quick"))
    assert (found.origin, found.hyperparameters["learning_rate"]) == (
        ("tuned", expected) if expected else ("default", resolve("adam").hyperparameters["learning_rate"])
    )


def test_a_budget_of_its_own_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ships(monkeypatch, "grid/* any", "grid/* quick")
    for budget, rate in (("quick", 2.0), ("full", 1.0)):
        assert resolve("adam", at("grid/a", budget)).hyperparameters["learning_rate"] == rate


def test_what_is_given_comes_before_what_ships() -> None:
    found = resolve("adam:b1=0.5", at("gridworld/dense", "full"))
    assert (found.origin, found.hyperparameters["b1"], found.hyperparameters["learning_rate"]) == ("given", 0.5, 1e-4)


def test_hyperparameters_come_from_name_then_baselines_then_defaults() -> None:
    published = resolve("adam", at("breakout", "full"))
    assert (published.origin, published.hyperparameters["learning_rate"]) == ("published", 1e-2)
    given = resolve("adam:b1=0.8", at("breakout", "full"))
    assert (given.origin, given.hyperparameters["b1"], given.hyperparameters["learning_rate"]) == ("given", 0.8, 1e-2)
    default = resolve("adam", at("nowhere", "full"))
    assert (default.origin, default.hyperparameters["learning_rate"]) == ("default", 1e-3)
    assert resolve("dpo", at("breakout", "full")).hyperparameters == published.hyperparameters


def test_shipped_hyperparameters_fit_their_optimizers() -> None:
    paths = sorted((files.baselines_dir() / "hyperparameters").glob("*.toml"))
    assert paths
    for path in paths:
        for environment, algorithms in config.read_toml(path)["environments"].items():
            for algorithm, budgets in algorithms.items():
                for budget, chosen in budgets.items():
                    task = at(environment, "full" if budget == "any" else budget, algorithm=algorithm)
                    found = resolve(path.stem, task)
                    assert found.origin == chosen["origin"] in {"tuned", "published"}
                    assert found.hyperparameters.items() >= chosen["values"].items()


def test_a_length_of_its_own_takes_the_settings_of_the_nearest_budget() -> None:
    lengths = {20_480: "quick", 150_000: "quick", 160_000: "short", 10_000_000: "full"}
    for steps, nearest in lengths.items():  # CartPole's quick is 100,000, short 250,000, full 500,000
        assert at("cartpole", f"steps-{steps}", steps).nearest_budget == nearest
    assert at("cartpole", "full", 500_000).nearest_budget == "full"
    assert resolve("adam", at("cartpole", "steps-20480", 20_480)).origin == "tuned"


def test_settings_say_what_they_were_tuned_on() -> None:
    assert resolve("adam", at("cartpole", "quick")).tuned_on == ("cartpole", "ppo", "quick")
    assert resolve("adam", at("cartpole", "full")).tuned_on == ("cartpole", "ppo", "full")
    assert resolve("adam", at("gridworld/rand_dense", "quick")).tuned_on == ("gridworld/rand_all", "ppo", "quick")
    assert resolve("adam:b1=0.8", at("cartpole", "quick")).tuned_on is None
    assert resolve("sgd", at("nowhere", "quick")).tuned_on is None
