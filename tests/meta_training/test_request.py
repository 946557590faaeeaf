"""Requests of meta-training: everything that can be wrong is one line before anything is compiled."""

import warnings
from pathlib import Path
from typing import Any

import jax
import pytest
from commands import OpenBench
from tiny_meta import meta_train

from open_bench import files
from open_bench.config import build
from open_bench.errors import UserError
from open_bench.meta_training.request import Request, _check_memory, make_request
from open_bench.meta_training.spec import ImitationConfig, MetaConfig
from open_bench.training.task import make_task


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["open", "-e", "cartpole", "--population", 5], "population = 5 is odd, and Open_ES samples antithetic pairs"),
        (["open", "-e", "cartpole", "--population", 0], "population = 0: Input should be greater than or equal to 2"),
        (
            ["open", "-e", "cartpole", "--population", 4, "--vmap-size", 8],
            "vmap_size 8 is larger than the population: a gener",
        ),
        (["adam", "-e", "cartpole"], "adam cannot be meta-trained: it has no meta-parameters"),
        (["open", "-e", "cartpole", "--strategy", "OpenES"], "strategy 'OpenES' is unknown. Did you mean Open_ES"),
        (["open", "-e", "cartpole", "--strategy", "PSO"], "strategy 'PSO' is population-based"),
        (["open"], "no environment to meta-train on"),
        (["open", "-e", "cartpol"], "unknown environment 'cartpol'. Did you mean cartpole"),
        (["open", "-e", "cartpole", "--steps", 10], "10 steps on cartpole are fewer than one update of ppo"),
        (["open", "-e", "cartpole", "--sigma", -1], "sigma = -1.0: Input should be greater than 0"),
        (["open", "-e", "cartpole", "--fitness", "best"], "unknown fitness 'best'."),
        (
            ["open", "-e", "cartpole", "--fitness", "greedy_return"],
            "fitness 'greedy_return' is not measured on cartpole with ppo: take final_return or mean_return",
        ),
        (["open", "-e", "cartpole", "-e", "cartpole"], "environment 'cartpole' is named twice, to train on or to hold"),
        (["open", "-e", "cartpole", "--name", "mine.npy"], "OPTIMIZER@mine.npy means a file; leave .npy out"),
        (["open", "-e", "cartpole", "--held-out", "cartpole"], "'cartpole' is both trained on and held out"),
        (["open", "-e", "cartpole", "--held-out", "catch"], "held_out is evaluated every evaluate_every generations"),
        (
            ["open", "-e", "cartpole", "-e", "UmbrellaChain-bsuite"],
            "UmbrellaChain-bsuite cannot be meta-trained on together with others",
        ),
        (["open", "--study", "opn"], "unknown study 'opn'. Did you mean open"),
        (["opne", "-e", "cartpole"], "unknown optimizer 'opne'. Did you mean open"),
        (["open", "-e", "cartpole", "--name", "../up"], "is no name of weights"),
        (["open", "-e", "cartpole", "--name", "zero"], "'zero' cannot name weights: NAME@zero means θ = zero"),
        (
            ["open", "-e", "gridworld/rand_all", "-e", "cartpole", "--task-sampling", "antithetic"],
            "cartpole draws none: train on environments with levels alone, such as gridworlds, or take task_sampling",
        ),
        (
            ["open", "-e", "gridworld/rand_all", "--task-sampling", "antithetic", "--strategy", "SNES"],
            "compares mirrored members, and SNES draws none: take Open_ES",
        ),
        (["open", "-e", "cartpole", "--task-sampling", "pairs"], "task_sampling = 'pairs': Input should be 'common'"),
    ],
)
def test_a_bad_request_is_one_line_and_exit_code_2(
    arguments: list[object], message: str, openbench: OpenBench, tmp_path: Path
) -> None:
    answer = openbench("meta-train", *arguments, "--results", tmp_path / "results")
    assert answer.code == 2
    assert message in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_an_unknown_setting_comes_with_near_matches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown key 'popluation'\. Did you mean population"):
        meta_train(tmp_path, popluation=4)


def test_a_studys_settings_of_the_algorithm_hold_unless_others_are_given() -> None:
    study = MetaConfig(environments=("cartpole",), settings={"num_envs": 8, "hidden": [4, 4]}, env_steps=20_480)

    def request(config: MetaConfig, given: dict[str, Any]) -> Request:
        return make_request("open", config, {}, jax.devices(), given)

    def found(given: dict[str, Any]) -> tuple[int, tuple[int, ...]]:
        settings: Any = request(study, given).tasks[0].task.settings
        return settings.num_envs, settings.hidden

    assert found({}) == (8, (4, 4))
    assert found({"num_envs": 2}) == (2, (4, 4))
    with pytest.raises(UserError, match="unknown key 'num_env'"):
        found({"num_env": 2})
    plain = MetaConfig(environments=("cartpole",), env_steps=20_480)
    assert request(study, {}).identity == request(plain, {"num_envs": 8, "hidden": [4, 4]}).identity


def test_environments_of_one_name_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """An edited copy keeps the name that is in it, and keys and programs are found by that."""
    (tmp_path / "mine.toml").write_text((files.configs_dir() / "environments" / "cartpole.toml").read_text())
    config = MetaConfig(environments=("cartpole",), held_out=(str(tmp_path / "mine.toml"),), evaluate_every=1)
    with pytest.raises(UserError, match="'cartpole' is named twice"):
        make_request("open", config, {}, jax.devices())


def test_imitation_alone_needs_no_baseline_returns() -> None:
    """Nothing is normalized but by the teachers."""
    settings: dict[str, Any] = {"environments": ("cartpole", "UmbrellaChain-bsuite"), "env_steps": 20_480}
    imitation = {"teachers": ("lion:learning_rate=1e-3",)}
    alone = build(MetaConfig, {**settings, "imitation": imitation, "generations": 0}, "mine")
    assert [each.scale for each in make_request("open", alone, {}, jax.devices()).tasks] == [None, None]
    with pytest.raises(UserError, match="cannot be meta-trained on together with others"):
        make_request("open", build(MetaConfig, {**settings, "imitation": imitation}, "mine"), {}, jax.devices())


@pytest.mark.parametrize(
    ("strategy", "idle"),
    [("SNES", "sigma_decay"), ("PGPE", "sigma_decay"), ("CMA_ES", "b1, sigma_decay"), ("Open_ES", "")],
)
def test_settings_that_a_strategy_does_not_take_are_named(strategy: str, idle: str) -> None:
    changed = {"b1": 0.5} if "b1" in idle else {}
    config = MetaConfig(environments=("cartpole",), env_steps=20_480, strategy=strategy, sigma_decay=0.9, **changed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_request("open", config, {}, jax.devices())
    said = [str(each.message) for each in caught]
    assert said == ([f"{strategy} has rules of its own in place of {idle}, which do nothing here"] if idle else [])


def test_theta_may_be_evolved_under_another_algorithm() -> None:
    config = MetaConfig(environments=("cartpole",), algorithm="pqn", env_steps=20_480)
    request = make_request("open", config, {}, jax.devices())
    assert request.identity["environments"]["cartpole"]["algorithm"] == "pqn"
    assert request.policy_loss is None
    with pytest.raises(UserError, match="pqn has no policy loss, so lpo means nothing there"):
        make_request("lpo", config, {}, jax.devices())


def test_recordings_need_as_much_memory_as_windows_fit_and_batches_count() -> None:
    task = make_task("cartpole", steps=2560)
    _check_memory(ImitationConfig(teachers=("lion",), windows=10**6), [task])
    with pytest.raises(UserError, match=r"may need .* GiB, and this machine has .* window_steps, parameters or batch"):
        _check_memory(ImitationConfig(teachers=("lion",), batch_size=10**9), [task])
