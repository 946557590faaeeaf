"""Configuration: what ships is consistent, and whatever is wrong is named with its file and key."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pydantic
import pytest

from open_bench.algorithms.ppo import PPOConfig
from open_bench.algorithms.registry import available
from open_bench.config import Config, StudyConfig, load, load_study, shipped
from open_bench.environments.base import Discrete
from open_bench.environments.config import EnvironmentConfig
from open_bench.environments.registry import load_environment, make_environment
from open_bench.errors import UserError, near_matches
from open_bench.optimizers import names, registry
from open_bench.optimizers.resolve import resolve
from open_bench.training.task import make_task
from open_bench.weights.fetch import OFFICIAL

ENVIRONMENTS, STUDIES = tuple(shipped("environments")), tuple(shipped("studies"))

GOOD = """
name = "mine"
description = "my task"
family = "classic"
source = "gymnax:CartPole-v1"

[algorithms.ppo]
num_envs = 4
num_steps = 16

[algorithms.pqn]
num_envs = 8
num_steps = 16

[budgets]
quick = 1000
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_good_file_loads(tmp_path: Path) -> None:
    path = str(write(tmp_path, GOOD))
    found = load_environment(path)
    assert (found.name, found.algorithm, found.budgets) == ("mine", "ppo", {"quick": 1000})
    assert make_task(path).settings.env_steps_per_update == 64
    assert make_task(path, algorithm="pqn").settings.env_steps_per_update == 128


def test_an_environment_names_its_own_algorithm(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace('family = "classic"', 'family = "classic"\nalgorithm = "pqn"'))
    assert make_task(str(path)).algorithm == "pqn"
    assert make_task(str(path), algorithm="ppo").algorithm == "ppo"


PPO, PQN = r"\[algorithms\.ppo\]: ", r"\[algorithms\.pqn\]: "


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_envs = 4", "num_env = 4", PPO + r"unknown key 'num_env'\. Did you mean num_envs"),
        ("family", "famly", r".*unknown key 'famly'\. Did you mean family"),
        ("[budgets]", "[budget]", r".*unknown key 'budget'\. Did you mean budgets"),
        ("num_envs = 4", 'num_envs = "four"', PPO + r"num_envs = 'four': .*integer"),
        ("num_envs = 4", "num_envs = 4.5", PPO + r"num_envs = 4\.5: .*integer"),
        ("num_envs = 4", "num_envs = 0", PPO + r"num_envs = 0: .*greater than 0"),
        ("num_steps = 16", "num_steps = 16\ngamma = 1.5", PPO + r"gamma = 1\.5: .*less than or equal to 1"),
        ("num_steps = 16", 'num_steps = 16\nactivation = "relo"', PPO + r"activation = 'relo': .*'relu' or 'tanh'"),
        ("num_steps = 16", "num_steps = 16\nhidden = [64, -1]", PPO + r"hidden\.1 = -1: .*greater than 0"),
        ("quick = 1000", "quick = -1000", r"budgets\.quick = -1000: .*greater than 0"),
        ('name = "mine"', 'name = "mi ne"', r"name = 'mi ne': "),
        ('source = "gymnax:CartPole-v1"', "", r"key 'source' is missing"),
        (
            "num_envs = 4",
            "num_envs = 5\nnum_minibatches = 3",
            PPO + r"num_minibatches = 3 does not divide .*5 × 16 = 80",
        ),
        # Tables of algorithms that are not asked for are checked as well.
        ("num_envs = 8", "num_envs = 0", PQN + r"num_envs = 0: .*greater than 0"),
        ("num_envs = 8", "clip = 0.1", PQN + r"'clip' is a setting of ppo, not of pqn"),
        ("num_envs = 4", "td_lambda = 0.1", PPO + r"'td_lambda' is a setting of pqn, not of ppo"),
        ("[algorithms.pqn]", "[algorithms.pqm]", r"\[algorithms\.pqm\]: unknown algorithm 'pqm'\. Did you mean pqn"),
        ('family = "classic"', 'family = "classic"\nalgorithm = "pqm"', r"unknown algorithm 'pqm'\. Did you mean pqn"),
    ],
)
def test_a_bad_value_names_file_and_key(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(str(path)) + "(: |, )" + message):
        make_task(str(path))


def test_every_bad_key_is_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("[budgets]", "[budget]").replace("family", "famly"))
    with pytest.raises(UserError) as problem:
        load_environment(str(path))
    assert all(word in str(problem.value) for word in ("'budget'", "'famly'", "'family' is missing"))
    path = write(tmp_path, GOOD.replace("num_envs = 4", "num_env = 4\ngamma = 2"))
    with pytest.raises(UserError) as problem:
        make_task(str(path))
    assert all(word in str(problem.value) for word in ("'num_env'", "gamma = 2"))


def test_bad_syntax_names_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "mine"\ndescription = \n')
    with pytest.raises(UserError, match=re.escape(str(path)) + r".*line 2"):
        load_environment(str(path))


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000], ids=["deep", "long"])
def test_what_no_parser_takes_is_named(value: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"{GOOD}full = {value}\n")
    with pytest.raises(UserError, match=re.escape(f"{path}: ")):
        load_environment(str(path))
    assert names.parse_value(value) in (value, float("inf"))
    with pytest.raises(UserError, match="learning_rate"):
        resolve(f"adam:learning_rate={value}")


def test_a_file_that_is_not_text_or_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    with pytest.raises(UserError, match=re.escape(str(path)) + ": no such file"):
        load_study(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_study(str(path))
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        load(StudyConfig, tmp_path)


def test_unknown_names_come_with_near_matches() -> None:
    with pytest.raises(UserError, match=r"unknown environment 'brekout'\. Did you mean breakout"):
        load_environment("brekout")
    with pytest.raises(UserError, match=r"unknown environment 'CartPole-v0'\. Did you mean .*CartPole-v1"):
        load_environment("CartPole-v0")
    with pytest.raises(UserError, match=r"unknown study 'quik'\. Did you mean quick\? Known studies: .*quick"):
        load_study("quik")
    with pytest.raises(UserError, match=r"breakout has no budget 'quik' .*Did you mean quick"):
        load_environment("breakout").budget_steps("quik")


def test_nothing_near_is_not_guessed() -> None:
    assert near_matches("zzzzzz", ["breakout", "cartpole"]) == ""


def test_configuration_is_frozen() -> None:
    study, environment = load_study("quick"), load_environment("cartpole")
    for model, field in ((study, "num_seeds"), (environment, "name"), (make_task("cartpole").settings, "num_envs")):
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(model, field, getattr(model, field))


def test_each_configuration_is_strict() -> None:
    for model in (PPOConfig, EnvironmentConfig, StudyConfig):
        assert issubclass(model, Config)
        assert model.model_config.get("extra") == "forbid"
        assert model.model_config.get("frozen")


@pytest.mark.parametrize("value", [3, True, None, {"name": "adam"}, 0.5])
def test_what_names_nothing_is_no_optimizer(value: Any) -> None:
    with pytest.raises(pydantic.ValidationError, match="names nothing"):
        StudyConfig(name="x", optimizers=(value,), environments=("cartpole",))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_shipped_environment(name: str) -> None:
    found = load_environment(name)
    assert found.name == name
    assert found.description
    assert set(found.budgets) == {"quick", "short", "full"}
    sizes = list(found.budgets.values())
    assert sizes == sorted(sizes)
    if found.family == "craftax":  # which is optional
        return
    environment = make_environment(found)
    assert environment.observation_size > 0
    assert set(found.algorithms) <= set(available())
    # Every shipped algorithm that can run there has a table.
    assert set(found.algorithms) == ({"ppo", "pqn"} if isinstance(environment.action_space, Discrete) else {"ppo"})
    for algorithm in found.algorithms:
        task = make_task(name, algorithm=algorithm, budget="quick")
        assert task.num_updates >= 20  # enough for a final window of its own


@pytest.mark.parametrize("name", STUDIES)
def test_shipped_study(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert study.description
    assert all(load_environment(environment).budget_steps(study.budget) for environment in study.environments)
    for optimizer in study.optimizers:
        parsed = names.parse(optimizer)
        if parsed.source or parsed.head in OFFICIAL:  # of weights that are fetched first
            assert name == "minatar-learned"
            assert registry.find(parsed).learned
        else:
            assert resolve(optimizer).label == str(dataclasses.replace(parsed, track=None))


def test_the_quick_study_is_what_it_promises() -> None:
    study = load_study("quick")
    families = [load_environment(name).family for name in study.environments]
    assert len(study.optimizers) >= 5
    assert study.num_seeds >= 4
    assert families.count("minatar") >= 2
    assert "classic" in families


def test_a_gymnax_id_gets_default_settings() -> None:
    found = load_environment("Catch-bsuite")
    assert (found.source, make_task("Catch-bsuite").settings) == ("gymnax:Catch-bsuite", PPOConfig())
    assert {"quick", "short", "full"} == set(found.budgets)
