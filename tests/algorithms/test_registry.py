"""Algorithms by name: those that ship, a class of the user's, and whatever is not one."""

import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pydantic
import pytest
from hypothesis import given

from open_bench.algorithms.base import Algorithm
from open_bench.algorithms.ppo import PPO, PPOConfig
from open_bench.algorithms.pqn import PQN
from open_bench.algorithms.registry import ALGORITHMS, available, build_config, code_identity, find_algorithm
from open_bench.config import Config, build
from open_bench.errors import UserError


def test_those_that_ship_are_found_by_name_and_say_what_they_are() -> None:
    assert available()[:2] == ["ppo", "pqn"]
    for name, algorithm in ALGORITHMS.items():
        assert find_algorithm(name) is algorithm
        assert algorithm.name == name
        assert algorithm.description
        assert issubclass(algorithm.Config, Config)
        assert algorithm.Config.model_config.get("extra") == "forbid"
        assert algorithm.Config.model_config.get("frozen")
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            algorithm.Config().num_envs = 1  # type: ignore[misc]
    assert (PPO.has_policy_loss, PQN.has_policy_loss) == (True, False)
    assert (PPO.acting_network, PQN.acting_network) == ("actor", "q")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ppp", r"unknown algorithm 'ppp'\. Did you mean ppo.* Known: ppo, pqn.*module:Class"),
        ("nowhere:Thing", r"algorithm 'nowhere:Thing': cannot import nowhere"),
        ("open_bench.algorithms.ppo:PPOO", r"no such attribute\. Did you mean .*PPO"),
        ("open_bench.algorithms.ppo:PPOConfig", r"is no subclass of open_bench\.algorithms\.base\.Algorithm"),
        ("open_bench.algorithms.ppo:advantages", r"is no subclass"),
        ("open_bench.algorithms.base:Algorithm", r"lacks name, Config, acting_network, init, policy, update"),
    ],
)
def test_what_is_no_algorithm_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_algorithm(name)


def test_a_class_that_lacks_a_method_is_told_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_done.py").write_text(
        "from open_bench.algorithms.base import Algorithm, AlgorithmConfig\n"
        "class Mine(Algorithm):\n"
        "    name, Config = 'mine', AlgorithmConfig\n"
        "    def policy(self, params, observation): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="'half_done:Mine' lacks acting_network, init, update"):
        find_algorithm("half_done:Mine")
    del sys.modules["half_done"]


def test_code_of_a_users_file_is_part_of_what_it_is() -> None:
    assert code_identity("ppo") == {}

    class Local(PPO):
        """No file holds all of it."""

    sys.modules[__name__].Local = Local  # type: ignore[attr-defined]
    assert issubclass(find_algorithm(f"{__name__}:Local"), Algorithm)
    one, two = (code_identity(f"{__name__}:Local") for _ in range(2))
    assert one != two  # so nothing stored is ever taken for it


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_minibatches_must_divide_the_rollout(num_envs: int, num_steps: int, minibatches: int) -> None:
    values = {"num_envs": num_envs, "num_steps": num_steps, "num_minibatches": minibatches}
    for name in ("ppo", "pqn"):
        config: Any = ALGORITHMS[name].Config
        if num_envs * num_steps % minibatches:
            with pytest.raises(UserError, match="does not divide"):
                build(config, values, "here")
        else:
            assert build(config, values, "here").num_minibatches == minibatches


def test_a_setting_of_another_algorithm_is_named() -> None:
    with pytest.raises(UserError, match="here: 'clip' is a setting of ppo, not of pqn"):
        build_config("pqn", {"clip": 0.1}, "here")
    with pytest.raises(UserError, match="here: 'gamma' is a setting of ppo and pqn, not of random"):
        build_config("random", {"gamma": 0.1}, "here")
    assert build_config("ppo", {"clip": 0.1}, "here") == PPOConfig(clip=0.1)
