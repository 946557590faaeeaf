"""Hyperparameters that ship: which are chosen for an environment and budget."""

import pytest

import open_bench.optimizers.resolve as resolved
from open_bench import config
from open_bench.optimizers.registry import resolve
from open_bench.optimizers.resolve import prepare

GRIDWORLDS = tuple(name for name in config.shipped("environments") if name.startswith("gridworld/"))


@pytest.mark.parametrize(
    ("environment", "learning_rate", "b1", "b2"),
    [
        ("ant", 3e-4, 0.99, 0.99),
        ("humanoid", 3e-4, 0.9, 0.999),
        ("walker2d", 1e-3, 0.9, 0.999),
        ("hopper", 8e-4, 0.9, 0.999),
        *((name, 1e-4, 0.9, 0.999) for name in GRIDWORLDS),
    ],
)
def test_adam_has_the_published_settings(environment: str, learning_rate: float, b1: float, b2: float) -> None:
    found = prepare(resolve("adam"), environment, "full")
    assert found.origin == "published"
    values = found.hyperparameters
    assert (values["learning_rate"], values["b1"], values["b2"], values["eps"]) == (learning_rate, b1, b2, 1e-5)
    assert values["anneal_learning_rate"]


def test_the_gridworlds_are_all_there() -> None:
    assert len(GRIDWORLDS) == 24


def ships(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Adam's file holds these tables, whose learning rates are 1, 2, …"""
    tables: dict[str, dict[str, object]] = {}
    for number, name in enumerate(names, start=1):
        environment, budget = name.split(" ")
        tables.setdefault(environment, {})[budget] = {"origin": "tuned", "values": {"learning_rate": float(number)}}
    monkeypatch.setattr(resolved, "shipped_hyperparameters", lambda optimizer: tables)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [("grid/a", 2.0), ("grid/b", 1.0), ("grid/b/c", None), ("grid", None), ("gridworld", None), ("other/a", None)],
)
def test_a_family_stands_for_what_has_no_table(
    environment: str, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ships(monkeypatch, "grid/* any", "grid/a any")
    found = prepare(resolve("adam"), environment, "quick")
    assert (found.origin, found.hyperparameters["learning_rate"]) == (
        ("tuned", expected) if expected else ("default", resolve("adam").hyperparameters["learning_rate"].default)
    )


def test_a_budget_of_its_own_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ships(monkeypatch, "grid/* any", "grid/* quick")
    for budget, rate in (("quick", 2.0), ("full", 1.0)):
        assert prepare(resolve("adam"), "grid/a", budget).hyperparameters["learning_rate"] == rate


def test_what_is_given_comes_before_what_ships() -> None:
    found = prepare(resolve("adam:b1=0.5"), "gridworld/dense", "full")
    assert (found.origin, found.hyperparameters["b1"], found.hyperparameters["learning_rate"]) == ("given", 0.5, 1e-4)
