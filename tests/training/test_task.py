"""A task: its length in updates, its budget's name, its settings, and everything about it that can be wrong."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from open_bench.algorithms.ppo import PPOConfig
from open_bench.algorithms.pqn import PQNConfig
from open_bench.environments.config import EnvironmentConfig
from open_bench.errors import UserError
from open_bench.training.task import Task, make_task


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 10**7))
def test_num_updates_is_the_whole_number_that_fits(num_envs: int, num_steps: int, env_steps: int) -> None:
    config = PPOConfig(num_envs=num_envs, num_steps=num_steps, num_minibatches=1)
    environment = EnvironmentConfig(
        name="x", description="", family="", source="gymnax:x", budgets={"quick": env_steps}
    )
    task = Task(environment, "ppo", config, "quick", env_steps, "x")
    per_update = config.env_steps_per_update
    if env_steps < per_update:
        with pytest.raises(UserError, match="fewer than one update of ppo"):
            _ = task.num_updates
        return
    updates = task.num_updates
    assert updates >= 1
    assert updates * per_update <= env_steps < (updates + 1) * per_update
    assert task.lifetime_steps == updates * per_update
    assert task.length == (updates, config.update_epochs, 1)


@pytest.mark.parametrize("steps", [-5, 0, 1, 511])
def test_fewer_steps_than_one_update_is_an_error(steps: int) -> None:
    with pytest.raises(UserError, match=rf"^{steps} steps on cartpole are fewer than one update of ppo.*4 × 128 = 512"):
        make_task("cartpole", steps=steps)


@pytest.mark.parametrize("steps", [1e5, np.int64(100_000)])
def test_steps_may_be_any_whole_number(steps: Any) -> None:
    task = make_task("cartpole", steps=steps)
    assert (task.num_updates, task.budget) == (make_task("cartpole").num_updates, "quick")
    assert isinstance(task.env_steps, int)


@pytest.mark.parametrize("steps", [1e5 + 0.5, "1000", True, float("nan"), float("inf")])
def test_steps_that_are_none_are_refused(steps: Any) -> None:
    with pytest.raises(UserError, match="is no whole number of env steps"):
        make_task("cartpole", steps=steps)


def test_more_updates_than_can_be_counted_are_an_error() -> None:
    with pytest.raises(UserError, match="more than can be counted"):
        make_task("cartpole", steps=2**41)


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_as_many_steps_as_a_budget_has_are_that_budget() -> None:
    assert make_task("cartpole", steps=100_000) == make_task("cartpole", budget="quick")
    assert make_task("cartpole", steps=500_000).budget == "full"
    assert make_task("cartpole", steps=100_001).budget == "steps-100001"
    # Other settings leave a budget what it is.
    assert make_task("cartpole", steps=100_000, settings={"num_envs": 8}).budget == "quick"


@given(st.integers(512, 10**9))
@settings(deadline=None)
def test_the_nearest_budget_is_the_nearest_by_ratio(steps: int) -> None:
    task = make_task("cartpole", steps=steps)
    budgets = task.environment.budgets
    ratio = lambda name: max(budgets[name] / steps, steps / budgets[name])
    assert ratio(task.nearest_budget) == min(map(ratio, budgets))


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_environments_table_for_the_algorithm() -> None:
    ppo, pqn = make_task("cartpole"), make_task("cartpole", algorithm="pqn")
    assert isinstance(ppo.settings, PPOConfig)
    assert isinstance(pqn.settings, PQNConfig)
    assert (ppo.algorithm, pqn.algorithm) == ("ppo", "pqn")
    assert (ppo.settings.num_envs, pqn.settings.num_envs, pqn.settings.reward_scale) == (4, 32, 0.1)
    assert ppo.name == pqn.name == "cartpole"


def test_settings_are_replaced_and_checked() -> None:
    shipped = make_task("cartpole")
    changed = make_task("cartpole", settings={"num_envs": 8, "hidden": [32, 32]})
    assert isinstance(changed.settings, PPOConfig)
    assert isinstance(shipped.settings, PPOConfig)
    assert (changed.settings.num_envs, changed.settings.hidden, changed.settings.num_steps) == (8, (32, 32), 128)
    assert shipped.settings.num_envs == 4
    assert (changed.name, changed.base) == ("cartpole[hidden=32x32,num_envs=8]", "cartpole")
    with pytest.raises(UserError, match=r"settings of cartpole \(--set\): unknown key 'num_env'\. .*num_envs"):
        make_task("cartpole", settings={"num_env": 8})


def test_settings_that_change_nothing_rename_nothing() -> None:
    assert make_task("cartpole", settings={"num_envs": 4}) == make_task("cartpole")


def test_options_make_another_environment() -> None:
    task = make_task("gridworld/rand_dense", options={"max_steps": 777})
    assert task.environment.options["max_steps"] == 777
    assert (task.name, task.base) == ("gridworld/rand_dense{max_steps=777}", "gridworld/rand_dense")


@pytest.mark.parametrize(
    ("algorithm", "values", "message"),
    [
        ("pqn", {"clip": 0.1}, r"'clip' is a setting of ppo, not of pqn"),
        ("pqn", {"update_epochs": 2}, r"'update_epochs' is a setting of ppo, not of pqn"),
        ("ppo", {"td_lambda": 0.5}, r"'td_lambda' is a setting of pqn, not of ppo"),
        ("pqn", {"num_minibatches": 5}, r"num_minibatches = 5 does not divide .*32 × 64"),
        ("pqn", {"eps_decay": 0.0}, r"eps_decay = 0\.0: "),
        ("pqn", {"eps_fnish": 0.1}, r"unknown key 'eps_fnish'\. Did you mean eps_finish"),
    ],
)
def test_a_setting_of_another_algorithm_or_a_bad_one_is_named(
    algorithm: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_task("cartpole", algorithm=algorithm, settings=values)


def test_an_algorithm_that_cannot_run_there_is_refused() -> None:
    for name in ("pendulum", "ant"):
        with pytest.raises(UserError, match=f"{name} has continuous actions, and pqn"):
            make_task(name, algorithm="pqn")
    with pytest.raises(UserError, match=r"unknown algorithm 'pqm'\. Did you mean pqn"):
        make_task("cartpole", algorithm="pqm")


def test_the_random_policy_has_the_same_copies_lengths_and_name() -> None:
    task = make_task("cartpole", settings={"num_envs": 8, "num_steps": 16})
    random = task.random()
    assert random.algorithm == "random"
    assert (random.name, random.budget, random.lifetime_steps) == (task.name, task.budget, task.lifetime_steps)
    assert (random.settings.num_envs, random.settings.num_steps) == (8, 16)


# --- identity ---------------------------------------------------------------------------------------------------------


def test_what_determines_results_is_part_of_the_identity() -> None:
    task = make_task("cartpole")
    base = task.identity
    assert base["algorithm"] == "ppo"
    assert make_task("cartpole", algorithm="pqn").identity != base
    assert make_task("cartpole", steps=100_001).identity == base  # the same whole updates
    assert make_task("cartpole", settings={"gamma": 0.5}).identity != base
