"""Configuration: what ships is consistent, and whatever is wrong is named with its file and key."""

import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pydantic
import pytest
from hypothesis import given

from open_bench import config
from open_bench.config import Config, EnvironmentConfig, PPOConfig, StudyConfig, load, load_study, shipped
from open_bench.environments.registry import load_environment, make_environment
from open_bench.errors import UserError, near_matches
from open_bench.experiments.plan import adjust
from open_bench.optimizers import resolve

ENVIRONMENTS, STUDIES = tuple(shipped("environments")), tuple(shipped("studies"))

GOOD = """
name = "mine"
description = "my task"
family = "classic"
source = "gymnax:CartPole-v1"

[ppo]
num_envs = 4
num_steps = 16

[budgets]
quick = 1000
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_good_file_loads(tmp_path: Path) -> None:
    found = load_environment(str(write(tmp_path, GOOD)))
    assert (found.name, found.ppo.batch_size, found.budgets) == ("mine", 64, {"quick": 1000})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_envs = 4", "num_env = 4", r"unknown key 'ppo\.num_env'\. Did you mean num_envs"),
        ("family", "famly", r".*unknown key 'famly'\. Did you mean family"),
        ("[budgets]", "[budget]", r".*unknown key 'budget'\. Did you mean budgets"),
        ("num_envs = 4", 'num_envs = "four"', r"ppo\.num_envs = 'four': .*integer"),
        ("num_envs = 4", "num_envs = 4.5", r"ppo\.num_envs = 4\.5: .*integer"),
        ("num_envs = 4", "num_envs = 0", r"ppo\.num_envs = 0: .*greater than 0"),
        ("num_steps = 16", "num_steps = 16\ngamma = 1.5", r"ppo\.gamma = 1\.5: .*less than or equal to 1"),
        ("num_steps = 16", 'num_steps = 16\nactivation = "relo"', r"ppo\.activation = 'relo': .*'relu' or 'tanh'"),
        ("num_steps = 16", "num_steps = 16\nhidden = [64, -1]", r"ppo\.hidden\.1 = -1: .*greater than 0"),
        ("quick = 1000", "quick = -1000", r"budgets\.quick = -1000: .*greater than 0"),
        ('name = "mine"', 'name = "mi ne"', r"name = 'mi ne': "),
        ('source = "gymnax:CartPole-v1"', "", r"key 'source' is missing"),
        (
            "num_envs = 4",
            "num_envs = 5\nnum_minibatches = 3",
            r"ppo: num_minibatches = 3 does not divide .*5 × 16 = 80",
        ),
    ],
)
def test_a_bad_value_names_file_and_key(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(str(path)) + ": " + message):
        load_environment(str(path))


def test_every_bad_key_is_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("num_envs = 4", "num_env = 4").replace("family", "famly"))
    with pytest.raises(UserError) as problem:
        load_environment(str(path))
    assert all(word in str(problem.value) for word in ("'ppo.num_env'", "'famly'", "'family' is missing"))


def test_bad_syntax_names_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "mine"\ndescription = \n')
    with pytest.raises(UserError, match=re.escape(str(path)) + r".*line 2"):
        load_environment(str(path))


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


@pytest.mark.parametrize("steps", [-5, 0, 1, 511])
def test_fewer_steps_than_one_update_is_an_error(steps: int) -> None:
    with pytest.raises(UserError, match=rf"^{steps} steps on cartpole are fewer than one PPO update.*4 × 128 = 512"):
        load_environment("cartpole").num_updates(steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seeds": 0}, "num_seeds = 0: .*greater than 0"),
        ({"num_seeds": -3}, "num_seeds = -3"),
        ({"root_seed": -1}, "root_seed = -1"),
        ({"root_seed": 1_000_000}, "root_seed = 1000000"),
        ({"optimizers": ()}, "optimizers"),
        ({"environments": ()}, "environments"),
        ({"optimizers": ("adam",)}, "unknown key 'optimizers'. Did you mean optimizers"),
    ],
)
def test_a_bad_study_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adjust(load_study("quick"), **changes)


def test_set_replaces_settings_and_checks_them() -> None:
    shipped_one = load_environment("cartpole")
    changed = shipped_one.with_settings({"num_envs": 8, "hidden": [32, 32]})
    assert (changed.ppo.num_envs, changed.ppo.hidden, changed.ppo.num_steps) == (8, (32, 32), 128)
    assert shipped_one.ppo.num_envs == 4
    with pytest.raises(UserError, match=r"PPO settings of cartpole \(--set\): unknown key 'num_env'\. .*num_envs"):
        shipped_one.with_settings({"num_env": 8})


def test_configuration_is_frozen() -> None:
    study, environment = load_study("quick"), load_environment("cartpole")
    for model, field in ((study, "num_seeds"), (environment, "name"), (environment.ppo, "num_envs")):
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(model, field, getattr(model, field))


def test_each_configuration_is_strict() -> None:
    for model in (PPOConfig, EnvironmentConfig, StudyConfig):
        assert issubclass(model, Config)
        assert model.model_config.get("extra") == "forbid"
        assert model.model_config.get("frozen")


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_shipped_environment(name: str) -> None:
    found = load_environment(name)
    assert found.name == name
    assert found.description
    assert set(found.budgets) == {"quick", "short", "full"}
    sizes = list(found.budgets.values())
    assert sizes == sorted(sizes)
    assert found.num_updates(sizes[0]) >= 20  # enough for a final window of its own
    if found.family != "craftax":  # which is optional
        assert make_environment(found).observation_size > 0


@pytest.mark.parametrize("name", STUDIES)
def test_shipped_study(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert study.description
    assert all(load_environment(environment).budget_steps(study.budget) for environment in study.environments)
    assert all(resolve(optimizer).name == optimizer for optimizer in study.optimizers)


def test_the_quick_study_is_what_it_promises() -> None:
    study = load_study("quick")
    families = [load_environment(name).family for name in study.environments]
    assert len(study.optimizers) >= 5
    assert study.num_seeds >= 4
    assert families.count("minatar") >= 2
    assert "classic" in families


def test_a_gymnax_id_gets_default_settings() -> None:
    found = load_environment("Catch-bsuite")
    assert (found.ppo, found.source) == (PPOConfig(), "gymnax:Catch-bsuite")
    assert {"quick", "short", "full"} == set(found.budgets)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 10**7))
def test_num_updates_is_the_whole_number_that_fits(num_envs: int, num_steps: int, env_steps: int) -> None:
    ppo = PPOConfig(num_envs=num_envs, num_steps=num_steps, num_minibatches=1)
    environment = EnvironmentConfig(
        name="x", description="", family="", source="gymnax:x", ppo=ppo, budgets={"quick": env_steps}
    )
    if env_steps < ppo.batch_size:
        with pytest.raises(UserError, match="fewer than one PPO update"):
            environment.num_updates(env_steps)
        return
    updates = environment.num_updates(env_steps)
    assert updates >= 1
    assert updates * ppo.batch_size <= env_steps < (updates + 1) * ppo.batch_size


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_minibatches_must_divide_the_batch(num_envs: int, num_steps: int, minibatches: int) -> None:
    values = {"num_envs": num_envs, "num_steps": num_steps, "num_minibatches": minibatches}
    if num_envs * num_steps % minibatches:
        with pytest.raises(UserError, match="does not divide"):
            config.build(PPOConfig, values, "here")
    else:
        assert config.build(PPOConfig, values, "here").num_minibatches == minibatches
