"""The public functions: objects where a name is welcome, algorithms from outside, one entry for a new statistic."""

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from commands import OpenBench
from probes import Probe
from tiny import PQN_SETTINGS, SETTINGS, STEPS, TINY, Log

import open_bench
from open_bench.algorithms.ppo import PPO
from open_bench.config import StudyConfig
from open_bench.errors import UserError
from open_bench.optimizers.registry import known
from open_bench.optimizers.spec import OptimizerSpec
from open_bench.training.record import METRICS, Metric

REQUEST: dict[str, Any] = {"steps": STEPS, "settings": SETTINGS, "devices": 1}


# --- what is public ---------------------------------------------------------------------------------------------------


def test_importing_does_nothing_and_shows_what_is_public() -> None:
    code = "import sys, open_bench; print(*dir(open_bench)); print('jax' in sys.modules, 'pandas' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names, loaded = out.splitlines()
    assert loaded == "False False"
    assert set(names.split()) == {*open_bench.__all__, "__version__", "__doc__", "__name__"}
    for name in open_bench.__all__:
        assert getattr(open_bench, name).__doc__
    assert open_bench.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="has no attribute 'comprae'"):
        _ = open_bench.comprae


def test_an_unknown_argument_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown argument 'result'; where and how to run is results, devices"):
        open_bench.train("adam", "cartpole", result=tmp_path)


# --- objects in place of names ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_optax_constructor_is_the_optimizer_of_its_name(tmp_path: Path) -> None:
    log = Log()
    given = open_bench.train(optax.adabelief, "cartpole", results=tmp_path, progress=log, **REQUEST)
    named = open_bench.train("optax.adabelief", "cartpole", results=tmp_path, progress=log, **REQUEST)
    pd.testing.assert_frame_equal(given, named, check_exact=True)
    assert log.started == [("optax.adabelief", [0])]  # trained once
    of_a_folder = open_bench.train(optax.contrib.prodigy, "cartpole", results=tmp_path, **REQUEST)
    assert set(of_a_folder["optimizer"]) == {"optax.contrib.prodigy"}


def mine(learning_rate: float = 1e-2) -> optax.GradientTransformation:
    """SGD, of this file; the same program as other optimizers here, so that they compile once."""
    return optax.sgd(learning_rate)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("thing", "taken_again"),
    [
        (mine, True),
        (known()["sgd"], True),
        (OptimizerSpec("own-sgd", "as shipped", lambda theta, length: optax.sgd(0.1)), False),
        (optax.sgd(0.1), False),
        (lambda learning_rate=0.1: optax.sgd(learning_rate), False),
    ],
    ids=["function", "shipped spec", "own spec", "transformation", "lambda"],
)
def test_python_objects_are_welcome_where_a_name_is(thing: Any, taken_again: bool, tmp_path: Path) -> None:
    """What a file tells is stored as what it is; anything else is trained anew whenever it is asked for."""
    log = Log()
    for _ in range(2):
        scores = open_bench.train(thing, "cartpole", results=tmp_path, progress=log, **REQUEST)
        assert len(scores) == 1
        assert np.isfinite(scores["final_return"]).all()
    assert len(log.started) == (1 if taken_again else 2)


def test_what_is_no_optimizer_is_refused(tmp_path: Path) -> None:
    for thing, message in ((object(), "is a object: expected an OptimizerSpec"), (3, "3 names nothing")):
        with pytest.raises(UserError, match=message):
            open_bench.train(thing, "cartpole", results=tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_objects_stand_in_studies_too(tmp_path: Path) -> None:
    """Environment objects as well."""
    study = StudyConfig(name="objects", optimizers=(mine, optax.adam), environments=(Probe(length=3),), num_seeds=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = open_bench.compare(
            study, results=tmp_path, steps=STEPS, settings={**SETTINGS, "num_envs": 4}, devices=1
        )
    joined = {"adam"}  # no stored returns fit, so Adam is the measure
    assert set(table["optimizer"].str.partition("#")[0]) == {f"{__name__}:mine", "optax.adam"} | joined


def labels(optimizers: Any, environments: Any = "cartpole", **request: Any) -> list[tuple[str, str]]:
    """Rows that a study would have."""
    from open_bench.api import prepare

    experiments = prepare(optimizers=optimizers, environments=environments, devices=1, **request).plan.experiments
    return [(each.label, each.task.name) for each in experiments]


def test_one_is_as_good_as_a_list_of_one() -> None:
    """Also a transformation, which is a tuple itself."""
    assert labels("adam") == labels(["adam"], ["cartpole"]) == [("adam", "cartpole")]
    assert labels(optax.sgd(0.1)) == [("GradientTransformationExtraArgs", "cartpole")]


def test_objects_that_no_file_tells_are_numbered() -> None:
    kind = "GradientTransformationExtraArgs"
    built = [optax.sgd(0.1), "adam", optax.adam(1e-3)]
    assert [label for label, _ in labels(built)] == [f"{kind}#1", "adam", f"{kind}#2"]
    rules = [lambda learning_rate=rate: optax.sgd(learning_rate) for rate in (0.1, 0.2)]
    names = [label for label, _ in labels(rules)]
    assert [name.rpartition("#")[2] for name in names] == ["1", "2"]
    assert labels("adam", [Probe(length=2), Probe(length=3)]) == [("adam", "Probe#1"), ("adam", "Probe#2")]
    same = optax.sgd(0.1)
    with pytest.raises(UserError, match="listed twice"):
        labels([same, same])


@pytest.mark.slow
def test_numbered_objects_train(tmp_path: Path) -> None:
    """Each under its own name."""
    small = {"settings": {**SETTINGS, "num_envs": 4}, "steps": STEPS, "devices": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_bench.compare(
            optimizers=[optax.sgd(0.0), optax.sgd(1.0)], environments=[Probe(length=3)], num_seeds=1, results=tmp_path,
            **small,
        )  # fmt: skip
    optimizers = open_bench.load_runs(tmp_path).scores["optimizer"]
    assert {"GradientTransformationExtraArgs#1", "GradientTransformationExtraArgs#2"} <= set(optimizers)


def test_settings_are_welcome_as_an_object() -> None:
    """They replace all of the algorithm's."""
    from open_bench.api import prepare

    tasks = [
        prepare(optimizers="adam", environments="cartpole", settings=settings).plan.experiments[0].task
        for settings in (TINY, TINY.model_dump())
    ]
    assert tasks[0] == tasks[1]
    assert tasks[0].settings == TINY
    with pytest.raises(UserError, match="PPOConfig is not of pqn, which cartpole is trained with: give a PQNConfig"):
        labels("adam", settings=TINY, algorithm="pqn")
    with pytest.raises(UserError, match="settings: 3 is no table"):
        labels("adam", settings=3)


def test_progress_is_checked() -> None:
    with pytest.raises(UserError, match="progress: 3 is neither"):
        labels("adam", progress=3)


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_steps_that_equal_a_budget_are_that_budget(tmp_path: Path) -> None:
    from open_bench.api import prepare

    names = []
    for length in ({"budget": "short"}, {"steps": 250_000}):
        session = prepare(optimizers=["adam"], environments=["cartpole"], results=tmp_path, **length)
        names.append([(each.name, each.task.budget) for each in session.plan.experiments])
    assert names[0] == names[1]
    assert names[0][0][1] == "short"


# --- meta-training ---


def test_a_spec_is_meta_trained_by_its_name(tmp_path: Path) -> None:
    from open_bench.optimizers.registry import name_of

    optimizers = known()
    assert name_of(optimizers["open"]) == "open"
    for thing in (optax.sgd(0.1), mine, optimizers["adam"], OptimizerSpec("own", "", lambda theta, length: None)):
        with pytest.raises(UserError, match="cannot be meta-trained: it has no meta-parameters"):
            open_bench.meta_train(thing, "cartpole", results=tmp_path)
    with pytest.raises(UserError, match="own is an object that no file tells"):
        name_of(dataclasses.replace(optimizers["open"], name="own"))


# --- another algorithm ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"optimizer": "adam+dpo"}, "pqn has no policy loss, so dpo means nothing there"),
        ({"optimizer": "lpo"}, "pqn has no policy loss"),
        ({"environment": "pendulum"}, "pendulum has continuous actions, and pqn"),
        ({"settings": {"clip": 0.1}}, r"'clip' is a setting of ppo, not of pqn"),
        ({"algorithm": "pqm"}, "unknown algorithm 'pqm'"),
    ],
)
def test_what_pqn_cannot_do_is_refused(request_: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = {"optimizer": "adam", "environment": "cartpole", "algorithm": "pqn", **request_}
    with pytest.raises(UserError, match=message):
        open_bench.train(**values, results=tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_learned_optimizer_trains_with_pqn(tmp_path: Path) -> None:
    """The Q-network is the network that acts, so its noise goes there."""
    scores = open_bench.train(
        "open", "cartpole", algorithm="pqn", steps=STEPS, settings=PQN_SETTINGS, results=tmp_path, devices=1
    )
    assert set(scores["algorithm"]) == {"pqn"}
    assert np.isfinite(scores[["final_return", "greedy_return"]]).all(axis=None)


REINFORCE = '''
import jax
import jax.numpy as jnp
from open_bench.algorithms.base import AgentState, Algorithm, AlgorithmConfig, mark_finite
from open_bench.algorithms.epochs import learn
from open_bench.algorithms.networks import MLP, Categorical
from open_bench.algorithms.rollout import collect, flat
from open_bench.environments.wrappers import VectorEnvironment

class Reinforce(Algorithm):
    """Policy gradient on rewards to go."""
    name, description, Config, acting_network = "reinforce", "policy gradient", AlgorithmConfig, "actor"
    def __init__(self, config, environment):
        super().__init__(config, environment)
        self.network = MLP((8,), environment.action_space.n, 0.01, "tanh")
        self.vector = VectorEnvironment(environment, config.num_envs)
    def init(self, networks_key, environment_key, learning):
        observation, environment = self.vector.reset(environment_key)
        params = {"actor": self.network.init(networks_key, observation)["params"]}
        return AgentState(params, learning.optimizer.init(params), environment, observation, jnp.bool_(True))
    def policy(self, params, observation):
        return Categorical(self.network.apply({"params": params["actor"]}, observation)[0])
    def loss(self, params, rows):
        logits, activations = self.network.apply({"params": params["actor"]}, rows[0])
        return -(Categorical(logits).log_prob(rows[1]) * rows[2]).mean(), {"actor": activations}
    def update(self, rollout_key, learning_key, state, training_fraction, learning):
        act = lambda key, observation: (self.policy(state.params, observation).sample(key), None)
        rollout, observation, environment = collect(
            act, self.vector, self.config.num_steps, state.observation, state.environment, rollout_key)
        back = lambda later, now: (now[0] + 0.9 * later * (1.0 - now[1]),) * 2
        ended = (rollout.reward, rollout.terminated.astype(jnp.float32))
        returns = jax.lax.scan(back, jnp.zeros(self.config.num_envs), ended, reverse=True)[1]
        params, optimizer_state, loss, finite = learn(
            self.loss, learning, "actor", state.params, state.optimizer_state,
            flat((rollout.observation, rollout.action, returns - returns.mean())), epochs=1, minibatches=1,
            max_grad_norm=1.0, training_fraction=training_fraction, key=learning_key)
        after = AgentState(params, optimizer_state, environment, observation, state.finite)
        return mark_finite(after, finite), {"loss": loss}
'''


@pytest.fixture
def reinforce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An algorithm from outside the package, in at most 40 lines."""
    assert len(REINFORCE.strip().splitlines()) <= 40
    path = tmp_path / "my_reinforce.py"
    path.write_text(REINFORCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_reinforce", raising=False)
    return path


@pytest.mark.slow
def test_an_algorithm_from_outside_trains(reinforce: Path, tmp_path: Path, openbench: OpenBench) -> None:
    answer = openbench(
        "train", "adam", "-e", "cartpole", "--algorithm", "my_reinforce:Reinforce", "--steps", 512, "--num-seeds", 2,
        "--set", "num_envs=4", "--set", "num_steps=16", "--results", tmp_path / "results", "--plain",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    runs = open_bench.load_runs(tmp_path / "results")
    assert set(runs.scores["algorithm"]) == {"my_reinforce:Reinforce"}
    assert (runs.scores["env_steps"] == 512).all()
    assert np.isfinite(runs.scores["final_return"]).all()
    # The same by the function, which finds it stored.
    log = Log()
    request = {"steps": 512, "settings": {"num_envs": 4, "num_steps": 16}, "num_seeds": 2, "progress": log}
    scores = open_bench.train(
        "adam", "cartpole", algorithm="my_reinforce:Reinforce", results=tmp_path / "results", **request
    )
    assert not log.started
    assert len(scores) == 2


def test_an_algorithm_is_welcome_as_its_class(reinforce: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import my_reinforce

    from open_bench.api import prepare

    kind = my_reinforce.Reinforce
    for given, name in ((PPO, "ppo"), (kind, "my_reinforce:Reinforce")):
        session = prepare(optimizers="adam", environments="cartpole", algorithm=given)
        assert session.plan.experiments[0].task.algorithm == name
    settings = kind.Config(num_envs=4, num_steps=16)
    assert labels("adam", algorithm=kind, settings=settings) == [("adam", "cartpole[num_envs=4,num_steps=16]")]
    for thing, message in ((TINY, "PPOConfig object is neither a name nor a class"), (int, "is no subclass of")):
        with pytest.raises(UserError, match=message):
            labels("adam", algorithm=thing)
    monkeypatch.delattr(my_reinforce, "Reinforce")
    with pytest.raises(UserError, match="define the class at the top of a module"):
        labels("adam", algorithm=kind)


def test_an_algorithm_from_outside_refuses_what_it_has_not(reinforce: Path, tmp_path: Path) -> None:
    for optimizer, settings, message in (
        ("adam", {"gamma": 0.9}, "'gamma' is a setting of ppo and pqn, not of my_reinforce:Reinforce"),
        ("adam", {"num_step": 9}, "unknown key 'num_step'. Did you mean num_steps"),
        ("adam+dpo", {}, "my_reinforce:Reinforce has no policy loss"),
    ):
        with pytest.raises(UserError, match=message):
            open_bench.train(
                optimizer, "cartpole", algorithm="my_reinforce:Reinforce", settings=settings, results=tmp_path / "r"
            )


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_new_statistic_is_one_entry_of_the_table(
    tmp_path: Path, openbench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored, described, read and labeled; what was stored without it stays readable beside it."""
    without = open_bench.train("adam", "cartpole", results=tmp_path, **REQUEST)
    best = Metric(
        "best return",
        "episode_return",
        lambda: jnp.float32(-jnp.inf),
        lambda best, shown: jnp.fmax(best, shown.values["episode_return"]),
        lambda best: np.asarray(best, np.float64),
    )
    monkeypatch.setitem(METRICS, "best_return", best)
    scores = open_bench.train("sgd", "cartpole", results=tmp_path, **REQUEST)
    assert "best_return" not in without
    assert (scores["best_return"] >= scores["final_return"]).all()
    runs = open_bench.load_runs(tmp_path)
    by_optimizer = runs.scores.set_index("optimizer")["best_return"]
    assert by_optimizer["sgd"] == scores["best_return"][0]
    assert np.isnan(by_optimizer["adam"])
    assert runs.metrics["best_return"] == "best return"
    (folder,) = (tmp_path / "experiments").glob("*--sgd--*")
    assert json.loads((folder / "experiment.json").read_text())["metrics"]["best_return"] == "best return"
    given = ["--steps", STEPS, "--devices", 1, *(f"--set={key}={value}" for key, value in SETTINGS.items())]
    answer = openbench("train", "sgd", "-e", "cartpole", "--results", tmp_path, *given)
    assert "best return" in answer.out
    header = next(folder.glob("shard-*/scores.csv")).read_text().splitlines()[0]
    assert "best_return" in header.split(",")


# --- diagnosis --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_diagnosis_is_stored_and_drawn_by_the_commands_that_are_asked_for_it(
    tmp_path: Path, openbench: OpenBench
) -> None:
    given = ["--steps", STEPS, "--devices", 1, *(f"--set={key}={value}" for key, value in SETTINGS.items())]
    request = ["-o", "adam", "-e", "cartpole", "--no-baseline", "--num-seeds", 2, "--results", tmp_path]
    openbench("compare", *request, *given, "--diagnose")
    rows = open_bench.load_runs(tmp_path).diagnosis
    assert len(rows) == 2 * 40
    assert set(PPO.diagnostics) <= set(rows.columns)
    (figure,) = (tmp_path / "figures").glob("*_diagnosis_cartpole*.png")
    drawn = figure.read_bytes()
    figure.unlink()
    openbench("leaderboard", "--results", tmp_path)
    (again,) = (tmp_path / "figures").glob("*_diagnosis_cartpole*.png")
    assert again.read_bytes() == drawn


def test_no_public_name_is_a_part_of_the_package() -> None:
    """Importing ``open_bench.NAME.…`` would put the part in the name's place."""
    parts = {path.stem for path in Path(open_bench.__file__).parent.iterdir()}
    assert not parts & set(open_bench.__all__)
