"""From names to experiments: everything that can be wrong is found before anything trains."""

from typing import Any

import jax
import pytest
from tiny import SETTINGS, STEPS, experiments

from open_bench.config import StudyConfig, load_study
from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import load_baseline_returns
from open_bench.experiments.plan import Plan, adjust, make_plan, random_experiments

BASE = StudyConfig(name="x", optimizers=("adam",), environments=("cartpole",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizers": ("adam", "adam")}, "optimizer 'adam' is listed twice"),
        ({"environments": ("cartpole", "cartpole")}, "environment 'cartpole' is listed twice"),
        ({"optimizers": ("adam:b1=0.9,b2=0.9", "adam:b2=0.9,b1=0.9")}, "asked for twice, perhaps in two spellings"),
        ({"budget": "quik"}, "has no budget 'quik'"),
        ({"optimizers": ("adm",)}, "unknown optimizer 'adm'"),
        ({"environments": ("cartpoll",)}, "unknown environment 'cartpoll'"),
        ({"algorithm": "pqm"}, "unknown algorithm 'pqm'"),
        ({"algorithm": "pqn", "environments": ("cartpole", "pendulum")}, "pendulum has continuous actions"),
        ({"algorithm": "pqn", "optimizers": ("adam+dpo",)}, "adam[+]dpo: pqn has no policy loss, so dpo means nothing"),
        ({"algorithm": "pqn", "optimizers": ("lpo",)}, "lpo: pqn has no policy loss"),
        ({"algorithm": "pqn", "optimizers": ("adam+ppo",)}, "pqn has no policy loss, so ppo means nothing there"),
    ],
)
def test_a_plan_checks_everything_before_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(BASE.model_copy(update=changes), jax.devices())


@pytest.mark.parametrize("vmap_size", [0, -1, 5000])
def test_a_bad_vmap_size_is_refused(vmap_size: int) -> None:
    with pytest.raises(UserError, match=f"--vmap-size must be from 1 to 4096, not {vmap_size}"):
        make_plan(BASE, jax.devices(), vmap_size=vmap_size)
    assert [experiment.vmap_size for experiment in make_plan(BASE, jax.devices()).experiments] == [1]


def test_a_setting_of_another_algorithm_is_refused() -> None:
    study = BASE.model_copy(update={"algorithm": "pqn"})
    with pytest.raises(UserError, match="'clip' is a setting of ppo, not of pqn"):
        make_plan(study, jax.devices(), settings={"clip": 0.1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seeds": 0}, "num_seeds = 0: .*greater than 0"),
        ({"num_seeds": -3}, "num_seeds = -3"),
        ({"root_seed": -1}, "root_seed = -1"),
        ({"root_seed": 1_000_000}, "root_seed: 1000000 is a root seed kept"),
        ({"optimizers": ()}, "optimizers"),
        ({"environments": ()}, "environments"),
        ({"optimizer": ("adam",)}, r"unknown key 'optimizer'\. Did you mean optimizers"),
    ],
)
def test_a_bad_study_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adjust(load_study("quick"), **changes)


# --- budgets and scales -----------------------------------------------------------------------------------------------


def planned(steps: int | None = None, settings: Any = None, **study: Any) -> Plan:
    chosen = adjust(BASE, **study)
    return make_plan(chosen, jax.devices(), steps, settings, baseline_returns=load_baseline_returns())


def test_steps_equal_to_a_budget_are_that_budget() -> None:
    named, counted = planned(), planned(steps=100_000)
    assert [each.name for each in counted.experiments] == [each.name for each in named.experiments]
    assert counted.scales == named.scales
    assert counted.scales[0].kind == "stored"
    assert counted.random == ()


def test_steps_that_are_a_budget_of_some_environments_alone_are_none() -> None:
    """A board has one budget."""
    plan = planned(steps=100_000, environments=("cartpole", "breakout"))
    assert {each.task.budget for each in plan.experiments} == {"steps-100000"}


def test_where_no_stored_returns_fit_scores_need_adam_and_the_random_policy() -> None:
    plan = planned(steps=STEPS, settings=SETTINGS, optimizers=("adam", "sgd"))
    assert plan.scales[0].kind == "own"
    (random,) = plan.random
    first = plan.experiments[0]
    assert (random.label, random.task.algorithm, random.optimizer) == ("random", "random", None)
    assert (random.task.name, random.task.budget) == (first.task.name, first.task.budget)
    assert random.task.lifetime_steps == first.task.lifetime_steps
    keys = lambda each: jax.random.key_data(each.keys([0, 1])).tolist()
    assert keys(random) == keys(first)


def test_adam_joins_where_scores_need_it() -> None:
    """Its own default, on the keys of the others; not where stored returns fit, and not where it is not wanted."""
    request: Any = {"steps": STEPS, "settings": SETTINGS, "environments": ("cartpole",)}
    named, joined = planned(**request, optimizers=("sgd", "adam")), planned(**request, optimizers=("sgd",))
    assert (named.joined, [each.label for each in joined.joined]) == ((), ["adam"])
    assert joined.joined[0].name == named.experiments[1].name
    assert joined.random[0].name == named.random[0].name
    assert joined.scales[0].kind == "own"
    assert joined.scales[0].reason.endswith("; adam was not named: it joins as what scores are measured against")
    other = planned(**request, optimizers=("adam:learning_rate=0.5",))
    assert [each.label for each in other.joined] == ["adam"]
    assert planned(optimizers=("sgd",), environments=("cartpole",)).joined == ()  # at a budget
    chosen = adjust(BASE, optimizers=("sgd",), environments=("cartpole",))
    left_out = make_plan(chosen, jax.devices(), STEPS, SETTINGS, baseline_returns={}, baseline=False)
    assert (left_out.joined, left_out.random, left_out.scales[0].kind) == ((), (), "none")


def test_the_random_policy_is_measured_once_a_task() -> None:
    both = experiments("adam", "sgd", "lion", environments=("cartpole", "acrobot"), changes={"num_envs": 4})
    assert [each.task.base for each in random_experiments(both)] == ["cartpole", "acrobot"]
