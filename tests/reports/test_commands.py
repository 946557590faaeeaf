"""The command of a stored experiment makes that experiment again, and no other."""

import shlex
from typing import Any

import pytest

import open_bench.api
from open_bench.cli.generalize import generalize
from open_bench.cli.meta_train import meta_train
from open_bench.cli.run import train
from open_bench.cli.tune import tune
from open_bench.meta_training.spec import MetaConfig, adjusted
from open_bench.reports.commands import commands, generalize_command, meta_train_command, tune_commands

IDENTITY = {
    "environment": "cartpole", "algorithm": "ppo", "budget": "quick", "optimizer": "adam", "settings": {"num_envs": 4},
    "root_seed": 0, "vmap_size": 1,
}  # fmt: skip


def command(num_seeds: int = 2, **changes: Any) -> str:
    identity = {**IDENTITY, **changes}
    (line,) = commands([identity], {identity["environment"]: num_seeds})
    return line


def test_environments_that_need_the_same_share_a_command() -> None:
    identities = [{**IDENTITY, "environment": name} for name in ("cartpole", "breakout", "acrobot")]
    identities[2]["vmap_size"] = 8
    several = commands(identities, {"cartpole": 2, "breakout": 2, "acrobot": 2})
    assert [shlex.split(line)[1] for line in several] == ["compare", "train"]
    assert "-e cartpole -e breakout" in several[0]
    assert len(commands(identities[:2], {"cartpole": 2, "breakout": 3})) == 2


def test_names_are_quoted_and_digests_and_tracks_said_as_options_say_them() -> None:
    assert shlex.split(command(optimizer="x; rm -rf ~"))[2] == "x; rm -rf ~"
    assert shlex.split(command(optimizer="mine:rule#cddb1c18+dpo"))[2] == "mine:rule+dpo"
    assert shlex.split(command(optimizer="adam+dpo", track="tuned"))[2] == "adam:track=tuned+dpo"
    assert commands([{**IDENTITY, "environment": "grid{size=5}"}], {"grid{size=5}": 2}) == ()


@pytest.mark.parametrize(
    "request_",
    [
        {"optimizers": "adam", "environments": "cartpole", "budget": "quick"},
        {"optimizers": "lion:learning_rate=3e-4+dpo", "environments": "breakout", "steps": 200_000, "root_seed": 3},
        {"optimizers": "adam:track=default", "environments": "cartpole", "algorithm": "pqn", "budget": "full"},
        {"optimizers": "sgd", "environments": "cartpole", "budget": "quick", "vmap_size": 4,
         "settings": {"hidden": [8, 8], "num_envs": 32, "activation": "relu"}},
    ],
    ids=["plain", "steps", "algorithm", "settings"],
)  # fmt: skip
def test_what_it_asks_for_is_the_same_experiment(request_: dict[str, Any]) -> None:
    (experiment,) = open_bench.api.prepare(**request_, num_seeds=3, baseline=False).plan.experiments
    identity = {**experiment.identity, "budget": experiment.task.budget}
    (line,) = commands([identity], {identity["environment"]: 3})
    _, name, *arguments = shlex.split(line)
    asked = train.make_context(name, list(arguments)).params
    given = {
        key: asked[key] for key in ("algorithm", "budget", "steps", "num_seeds", "root_seed", "settings", "vmap_size")
    }
    again = open_bench.api.prepare(optimizers=asked["optimizer"], environments=asked["environment"], **given)
    assert [each.name for each in again.plan.experiments] == [experiment.name]
    assert again.study.num_seeds == 3


def test_trials_are_run_again_by_tune() -> None:
    trials = {key: value for key, value in IDENTITY.items() if key != "vmap_size"}  # of any width
    identities = [{**trials, "environment": name} for name in ("cartpole", "acrobot[num_envs=4]", "breakout")]
    amounts = {"cartpole": (16, 2), "acrobot[num_envs=4]": (16, 2), "breakout": (16, 2)}
    several = tune_commands(identities, amounts)
    assert several == (
        "openbench tune adam -e cartpole -e breakout --algorithm ppo --budget quick --trials 16 --num-seeds 2",
        "openbench tune adam -e acrobot --algorithm ppo --budget quick --set num_envs=4 --trials 16 --num-seeds 2",
    )
    for line in several:
        _, _, *arguments = shlex.split(line)
        assert tune.make_context("tune", arguments).params["trials"] == 16


def test_studies_of_generalization_are_asked_for_as_they_were() -> None:
    request = {"optimizers": ["adam", "x; rm -rf ~"], "study": "my study.toml", "train_on": ["cartpole", "breakout"],
               "axes": ["width", "depth"], "num_seeds": 3, "root_seed": 7, "normalize": "none", "steps": 9000,
               "budget": None, "vmap_size": 2, "settings": {"hidden": [8, 8]}, "else": "ignored"}  # fmt: skip
    (line,) = generalize_command(request)
    assert generalize_command(request, "width") == (line.replace("--axis width --axis depth", "--axis width"),)
    _, name, *arguments = shlex.split(line)
    asked = generalize.make_context(name, list(arguments)).params
    wanted = {key: tuple(x) if isinstance(x, list) else x for key, x in request.items() if key != "else"}
    assert {key: asked[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    "changes",
    [
        {"environments": ("cartpole",), "generations": 3, "population": 4, "sigma_decay": 0.5, "env_steps": 4096},
        {"environments": ("gridworld/rand_all",), "task_sampling": "antithetic", "save_every": 2, "budget": "full"},
        {"environments": ("cartpole", "breakout"), "held_out": ("acrobot",), "evaluate_every": 2, "algorithm": "ppo",
         "settings": {"hidden": [8, 8], "activation": "relu"},
         "imitation": {"teachers": ("adam", "lion:learning_rate=2e-3"), "burn_in": 4, "learning_rate": 0.5}},
    ],
)  # fmt: skip
def test_evolutions_are_asked_for_as_they_were(changes: dict[str, Any]) -> None:
    config = adjusted(None, changes)
    told = {"optimizer": "open", "parent": None, "config": config.model_dump(mode="json"), "identity": {"vmap_size": 2}}
    (line,) = meta_train_command("mine", told, config.generations)
    _, name, *arguments = shlex.split(line)
    asked = {key: x for key, x in meta_train.make_context(name, list(arguments)).params.items() if x not in (None, ())}
    assert (asked["optimizer"], asked["name"], asked["vmap_size"]) == ("open", "mine", 2)
    imitation = {key.removeprefix("imitation_"): x for key, x in asked.items() if key.startswith("imitation_")}
    given = {key: x for key, x in asked.items() if key in MetaConfig.model_fields and key not in ("name", "vmap_size")}
    again = adjusted(None, {**given, "env_steps": asked.get("steps"), "imitation": imitation or None})
    assert again == config
    child = told | {"parent": "0123", "ancestors": [{"name": "first"}, {"name": "second"}]}
    assert shlex.split(meta_train_command("mine", child, 3)[0])[2] == "open@second"
    assert meta_train_command("mine", {**told, "config": {"population": "many"}}, 3) == ()
    assert meta_train_command("mine", {}, 3) == ()
