"""What makes an experiment another one, and what does not."""

import dataclasses
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import optax
import pytest
from hypothesis import given, settings
from tiny import STEPS, experiments, random_policy

from open_bench.algorithms.ppo import PPOConfig
from open_bench.algorithms.pqn import PQNConfig
from open_bench.experiments.experiment import Experiment

ADAM = experiments()[0]
ADAM_PQN = experiments(algorithm="pqn")[0]

OTHER_SETTINGS = {
    "num_envs": st.sampled_from([2, 8]),
    "num_steps": st.sampled_from([4, 16]),
    "update_epochs": st.integers(2, 9),
    "num_minibatches": st.sampled_from([1, 4]),
    "gamma": st.floats(0, 0.98),
    "gae_lambda": st.floats(0, 0.94),
    "clip": st.floats(0.21, 1),
    "entropy_coefficient": st.floats(0.02, 1),
    "value_coefficient": st.floats(0.6, 1),
    "max_grad_norm": st.floats(0.6, 1),
    "hidden": st.lists(st.integers(1, 7), min_size=1, max_size=3),
    "activation": st.just("relu"),
    "normalize_observations": st.just(True),
    "normalize_rewards": st.just(True),
    "bootstrap_on_truncation": st.just(True),
}
OTHER_PQN_SETTINGS = {
    **{key: OTHER_SETTINGS[key] for key in ("num_steps", "num_minibatches", "gamma", "hidden", "max_grad_norm")},
    "num_envs": st.sampled_from([2, 8]),
    "num_epochs": st.integers(2, 9),
    "td_lambda": st.floats(0, 0.9),
    "eps_start": st.floats(0, 0.9),
    "eps_finish": st.floats(0.06, 1),
    "eps_decay": st.floats(0.3, 1),
    "reward_scale": st.floats(0.2, 2),
    "activation": st.just("tanh"),
    "greedy_envs": st.integers(3, 9),
}


def test_every_setting_is_known_here() -> None:
    assert set(OTHER_SETTINGS) == set(PPOConfig.model_fields)
    assert set(OTHER_PQN_SETTINGS) == set(PQNConfig.model_fields)


def _changes(settings: dict[str, Any]) -> Any:
    return st.sampled_from(sorted(settings)).flatmap(lambda key: st.tuples(st.just(key), settings[key]))


@settings(max_examples=40, deadline=None)
@given(_changes(OTHER_SETTINGS), _changes(OTHER_PQN_SETTINGS))
def test_any_changed_setting_makes_another_experiment(change: tuple[str, Any], of_pqn: tuple[str, Any]) -> None:
    for (key, value), base, algorithm in ((change, ADAM, "ppo"), (of_pqn, ADAM_PQN, "pqn")):
        (changed,) = experiments(changes={key: value}, algorithm=algorithm)
        assert changed.name != base.name
        assert changed.name == experiments(changes={key: value}, algorithm=algorithm)[0].name


@pytest.mark.parametrize(
    "other",
    [
        lambda: experiments(root_seed=1),
        lambda: experiments(steps=STEPS + 32),
        lambda: experiments(vmap_size=2),
        lambda: experiments("adam:learning_rate=0.002"),
        lambda: experiments("adam+dpo"),
        lambda: experiments("sgd"),
        lambda: experiments(environments=("acrobot",), changes={"num_envs": 4}),
        lambda: [ADAM_PQN],
        lambda: [random_policy()],
    ],
    ids=["seed", "steps", "vmap_size", "hyperparameter", "policy_loss", "optimizer", "environment", "pqn", "random"],
)
def test_any_changed_request_makes_another_experiment(other: Callable[[], list[Experiment]]) -> None:
    assert other()[0].name != ADAM.name


def test_versions_and_options_are_part_of_the_identity() -> None:
    def changed(**update: Any) -> str:
        task = dataclasses.replace(ADAM.task, environment=ADAM.task.environment.model_copy(update=update))
        return dataclasses.replace(ADAM, task=task).name

    assert changed() == ADAM.name
    names = {changed(version=2), changed(options={"max_steps_in_episode": 7}), changed(source="gymnax:Acrobot-v1")}
    assert len(names | {ADAM.name}) == 4


def test_the_number_of_seeds_and_the_spelling_are_not_part_of_the_identity() -> None:
    assert experiments(num_seeds=1)[0].name == experiments(num_seeds=99)[0].name == ADAM.name
    assert (
        experiments("adam:b1=0.8,learning_rate=1e-3")[0].name == experiments("adam:learning_rate=0.001,b1=0.8")[0].name
    )


def test_an_experiment_has_a_readable_name_that_any_file_system_takes() -> None:
    assert ADAM.name.startswith("cartpole")
    name = experiments("adam:learning_rate=1e-3+dpo")[0].name
    assert "--adam_learning_rate=0.001+dpo--" in name
    assert len(name) < 120


# --- Python objects ---------------------------------------------------------------------------------------------------


def in_this_file(learning_rate: float = 1e-2) -> optax.GradientTransformation:
    """An optimizer whose file tells what it does."""
    return optax.sgd(learning_rate)


@pytest.mark.slow
def test_what_no_file_tells_is_another_experiment_every_time() -> None:
    """A function of a notebook may have been written anew under its name, so nothing stored is taken for it."""
    local = lambda learning_rate=1e-2: optax.sgd(learning_rate)
    for unknown in (local, optax.sgd(1e-2)):
        one, two = (experiments(unknown)[0] for _ in range(2))
        assert one.optimizer is not None
        assert one.optimizer.spec.digest is None
        assert one.name != two.name
        assert one.name == one.name  # but one experiment stays what it is
    for known in (in_this_file, optax.sgd, f"{__name__}:in_this_file"):
        assert experiments(known)[0].name == experiments(known)[0].name
