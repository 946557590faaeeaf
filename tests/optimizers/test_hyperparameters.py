"""Hyperparameters that ship: which are chosen for an environment and budget."""

import dataclasses
import functools
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from open_bench import config, files
from open_bench.errors import UserError
from open_bench.optimizers import hyperparameters
from open_bench.optimizers.resolve import resolve
from open_bench.training.task import Task, make_task


@functools.cache
def cartpole() -> Task:
    return make_task("cartpole")


def at(environment: str, budget: str, env_steps: int = 1, algorithm: str = "ppo") -> Task:
    """A task of that name, which is all that shipped settings are chosen by; nothing of it is built."""
    named = cartpole().environment.model_copy(update={"name": environment})
    return dataclasses.replace(
        cartpole(), environment=named, base=environment, budget=budget, env_steps=env_steps, algorithm=algorithm
    )


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
    file = hyperparameters.HyperparameterFile(optimizer="adam", environments=tables)
    monkeypatch.setattr(hyperparameters, "shipped", lambda optimizer: file)


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
        file = hyperparameters.shipped(path.stem)
        assert file is not None
        assert file.optimizer == path.stem
        for environment, algorithms in file.environments.items():
            for algorithm, budgets in algorithms.items():
                for budget, chosen in budgets.items():
                    task = at(environment, "full" if budget == "any" else budget, algorithm=algorithm)
                    found = resolve(path.stem, task)
                    assert found.origin == chosen.origin
                    assert found.hyperparameters.items() >= chosen.values.items()
                    if chosen.origin == "tuned":  # each row says what its settings took
                        assert min(chosen.trials, chosen.num_seeds, chosen.env_steps) > 0, (path, environment, budget)
        for algorithm, by_budget in file.one_setting.items():
            for budget, one in by_budget.items():
                found = resolve(path.stem, at(one.environments[0], budget, algorithm=algorithm), track="one_setting")
                assert found.hyperparameters.items() >= one.values.items()


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


# --- tracks -----------------------------------------------------------------------------------------------------------

ADAM = """
# What was found.
optimizer = "adam"

[environments.cartpole.ppo.any]
origin = "published"
values = { learning_rate = 0.1 }

[environments.cartpole.ppo.quick]
origin = "tuned"
values = { learning_rate = 0.2 }
trials = 16
num_seeds = 2
env_steps = 3400

[one_setting.ppo.quick]
environments = ["cartpole", "acrobot"]
values = { learning_rate = 0.3 }
trials = 16
env_steps = 6800
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's folder of hyperparameter files."""
    (tmp_path / "adam.toml").write_text(ADAM)
    return tmp_path


@pytest.mark.parametrize(
    ("track", "budget", "origin", "rate", "env_steps"),
    [
        (None, "quick", "tuned", 0.2, 3400),
        (None, "full", "published", 0.1, 0),
        ("tuned", "quick", "tuned", 0.2, 3400),
        ("published", "quick", "published", 0.1, 0),
        ("one_setting", "quick", "one setting", 0.3, 6800),
        ("default", "quick", "default", 1e-3, 0),
    ],
)
def test_a_track_chooses_where_settings_come_from(
    track: str | None, budget: str, origin: str, rate: float, env_steps: int, own: Path
) -> None:
    found = resolve("adam" + (f":track={track}" if track else ""), at("cartpole", budget), folder=own)
    assert (found.origin, found.hyperparameters["learning_rate"]) == (origin, rate)
    assert (found.tuning_trials, found.tuning_env_steps) == (16 if env_steps else 0, env_steps)
    assert found.label == "adam"
    assert found.identity.get("track") == track  # so experiments of names without a track keep their folders
    assert resolve("dpo" + (f":track={track}" if track else ""), at("cartpole", budget), folder=own).origin == origin


@pytest.mark.parametrize(
    ("name", "environment", "budget", "words"),
    [
        (
            "adam:track=tuned",
            "nowhere",
            "quick",
            "no settings of the track 'tuned' for nowhere.*openbench tune adam -e nowhere",
        ),
        ("adam:track=one_setting", "pendulum", "quick", "with every environment of the study"),
        ("adam:track=one_setting", "cartpole", "full", "--budget full"),
        ("sgd:track=published", "cartpole", "quick", "take track=default, or give settings in the name"),
    ],
)
def test_a_track_without_settings_says_what_to_run(
    name: str, environment: str, budget: str, words: str, own: Path
) -> None:
    with pytest.raises(UserError, match=words):
        resolve(name, at(environment, budget), folder=own)


def test_own_files_come_before_those_that_ship_and_fall_back_on_them(own: Path) -> None:
    assert resolve("adam", at("cartpole", "quick")).hyperparameters["learning_rate"] != 0.2
    assert resolve("adam", at("breakout", "quick"), folder=own) == resolve("adam", at("breakout", "quick"))
    assert hyperparameters.folder_of(own) == own
    (own / "results" / "hyperparameters").mkdir(parents=True)
    (own / "adam.toml").rename(own / "results" / "hyperparameters" / "adam.toml")
    assert resolve("adam", at("cartpole", "quick"), folder=hyperparameters.folder_of(own / "results")).origin == "tuned"
    (own / "pyproject.toml").write_text("[project]\nname = 'mine'\n")
    (own / "folder.toml").mkdir()
    with pytest.raises(UserError, match="holds no hyperparameter files"):
        hyperparameters.folder_of(own)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"published"', '"guessed"', r"adam\.toml: .*origin = 'guessed'"),
        (
            "values = { learning_rate = 0.2 }",
            "value = 3",
            r"adam\.toml: .*'environments\.cartpole\.ppo\.quick\.values' is missing",
        ),
        ("env_steps = 3400", "env_steps = -1", "env_steps = -1"),
        ("learning_rate = 0.2", "lr = 0.2", "adam has no setting 'lr'"),
    ],
)
def test_a_bad_file_is_named(old: str, new: str, words: str, own: Path) -> None:
    (own / "adam.toml").write_text(ADAM.replace(old, new, 1))
    with pytest.raises(UserError, match=words):
        resolve("adam", at("cartpole", "quick"), folder=own)


def test_writing_keeps_everything_else(own: Path) -> None:
    path = own / "adam.toml"
    table = {"origin": "tuned", "trials": 3, "values": {"learning_rate": 0.5, "anneal_learning_rate": False}}
    hyperparameters.write(path, "adam", [(("environments", "gridworld/*", "ppo", "quick"), table)])
    assert "# What was found." in path.read_text()
    after, before = config.read_toml(path), tomllib.loads(ADAM)
    assert after["environments"].pop("gridworld/*") == {"ppo": {"quick": table}}
    assert after == before
    found = resolve("adam:track=tuned", at("gridworld/dense", "quick"), folder=own)
    assert (found.hyperparameters["learning_rate"], found.hyperparameters["anneal_learning_rate"]) == (0.5, False)
    hyperparameters.write(path, "adam", [(("environments", "cartpole", "ppo", "quick"), {**table, "trials": 32})])
    again = resolve("adam:track=tuned", at("cartpole", "quick"), folder=own)
    assert (again.tuning_trials, again.hyperparameters["learning_rate"]) == (32, 0.5)
    assert (
        resolve("adam:track=one_setting", at("cartpole", "quick"), folder=own).hyperparameters["learning_rate"] == 0.3
    )
    with pytest.raises(UserError, match=r"holds published settings at environments\.cartpole\.ppo\.any"):
        hyperparameters.write(path, "adam", [(("environments", "cartpole", "ppo", "any"), table)])
    hyperparameters.write(
        own / "new.toml", "new", [(("one_setting", "ppo", "quick"), {"environments": ["a"], "values": {}})]
    )
    assert config.read_toml(own / "new.toml")["optimizer"] == "new"


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    """As for whoever edits the settings while a notebook is open; so what another folder says is never remembered."""
    place = hyperparameters.Place(("cartpole",), "ppo", ("quick",))
    for modified, rate in enumerate((1.0, 2.0)):
        table = f'origin = "tuned"\nvalues = {{ learning_rate = {rate} }}\n'
        (tmp_path / "sgd.toml").write_text(f'optimizer = "sgd"\n[environments.cartpole.ppo.quick]\n{table}')
        os.utime(tmp_path / "sgd.toml", ns=(0, modified))
        found = hyperparameters.find("sgd", place, None, tmp_path)
        assert found is not None
        assert found.table.values["learning_rate"] == rate
