"""Running experiments: the same numbers alone or shared, whole or killed; what is stored is not trained again."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from commands import subprocess_of
from tiny import (
    PQN_SETTINGS,
    SEEDS,
    SETTINGS,
    STEPS,
    Log,
    Stop,
    experiments,
    lies,
    random_policy,
    same,
    shards,
    tables,
    train,
)

import open_bench
from open_bench.algorithms.ppo import PPO
from open_bench.errors import UserError
from open_bench.evaluation.schema import DIAGNOSIS
from open_bench.events import Ended, Event, Finished, Started, Waiting, several
from open_bench.experiments.agents import load_agent
from open_bench.experiments.estimate import estimate
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.store import Store
from open_bench.training.lifetime import Lifetime
from open_bench.training.mesh import compile_program

ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}


def breaking() -> optax.GradientTransformation:
    """An optimizer whose updates are not numbers."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * np.nan, updates))


def late() -> optax.GradientTransformation:
    """SGD whose updates are not numbers from half of the 80 steps on."""
    rate = lambda count: jnp.where(count < 41, -0.1, jnp.nan)
    return optax.scale_by_schedule(rate)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One experiment with four seeds."""
    return train(tmp_path_factory.mktemp("finished"), experiments())


# --- what is trained --------------------------------------------------------------------------------------------------


def test_an_experiment_says_where_it_comes_from(finished: Store) -> None:
    row = finished.load().experiments.iloc[0]
    assert (row["environment"].split("[")[0], row["optimizer"], row["env_steps"]) == ("cartpole", "adam", STEPS)
    assert (row["algorithm"], row["root_seed"], row["vmap_size"], row["protocol"]) == ("ppo", 0, 1, 2)
    assert row["hyperparameter_origin"] in {"tuned", "published"}
    assert json.loads(row["hyperparameters"])["learning_rate"] > 0
    assert json.loads(row["settings"])["algorithm"]["hidden"] == [8]
    assert set(json.loads(row["metrics"])) == {"final_return", "mean_return"}
    content = json.loads(next(finished.experiments.glob("cartpole*/shard-*/provenance.json")).read_text())
    assert content["packages"]["jax"] == jax.__version__
    assert content["seeds"] == [0, 1, 2, 3]
    assert content["env_steps"] == SEEDS * STEPS
    assert content["run_seconds"] > 0
    assert {"hardware", "revision", "compile_seconds", "platform", "python"} <= set(content)


def test_seeds_differ(finished: Store) -> None:
    """Four seeds, four different returns."""
    scores, curves = tables(finished)
    assert list(scores["seed"]) == [0, 1, 2, 3]
    assert scores["mean_return"].nunique() == SEEDS
    assert len(curves) == SEEDS * 40
    assert list(curves["env_steps"][:2]) == [32, 64]


@pytest.mark.slow
def test_more_seeds_add_a_shard_and_train_only_what_is_missing(finished: Store, tmp_path: Path) -> None:
    log = Log()
    train(tmp_path, experiments(), num_seeds=2, watcher=log)
    first = shards(tmp_path)
    written = first[0].stat().st_mtime_ns
    assert [path.name for path in first] == ["shard-0000-0001"]
    store = train(tmp_path, experiments(), num_seeds=4, watcher=log)
    assert [path.name for path in shards(tmp_path)] == ["shard-0000-0001", "shard-0002-0003"]
    assert first[0].stat().st_mtime_ns == written
    assert log.started == [("adam", [0, 1]), ("adam", [2, 3])]
    same(tables(store), tables(finished))
    train(tmp_path, experiments(), num_seeds=3, watcher=log)  # fewer than there are: nothing to do
    assert log.updates == 4 * 40


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_devices_and_company_do_not_change_an_experiment(devices: int, finished: Store, tmp_path: Path) -> None:
    study = experiments("sgd", "adam")
    store = train(tmp_path, study, devices=devices)
    assert len(shards(tmp_path)) == 2 * SEEDS // devices
    adam = [experiment for experiment in study if experiment.label == "adam"]
    same(tables(store, adam), tables(finished))
    scores = tables(store)[0]
    assert scores.groupby("optimizer")["mean_return"].mean().nunique() == 2


@pytest.mark.slow
def twins(*others: str) -> list[Experiment]:
    """Adam's defaults, and the same given one by one."""
    optimizer = experiments("adam:track=default")[0].optimizer
    assert optimizer is not None
    given = ",".join(f"{key}={value}" for key, value in optimizer.hyperparameters.items())
    return experiments("adam:track=default", f"adam:{given}", *others)


def test_equal_experiments_are_trained_once_and_stored_twice(tmp_path: Path) -> None:
    chosen = twins("sgd:track=default")
    assert [each.computation == chosen[0].computation for each in chosen] == [True, True, False]
    assert estimate(chosen, 2, Store(tmp_path), jax.devices()).lifetimes == 4
    log = Log()
    store = train(tmp_path, chosen, 2, watcher=log)
    assert [name for name, _ in log.started] == [chosen[0].label, chosen[2].label]
    one, two = (tables(store, [each]) for each in chosen[:2])
    same([frame.drop(columns=["experiment", "optimizer"], errors="ignore") for frame in one],
         [frame.drop(columns=["experiment", "optimizer"], errors="ignore") for frame in two])  # fmt: skip
    (copy,) = store.path(chosen[1]).glob("shard-*")
    assert json.loads((copy / "provenance.json").read_text())["trained_as"] == chosen[0].name


def test_an_equal_experiment_gives_what_is_asked_for_or_nothing(tmp_path: Path) -> None:
    chosen = twins()
    train(tmp_path, chosen[:1], 3)  # without agents
    log = Log()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first has none, which is said
        store = train(tmp_path, chosen, 2, watcher=log, save_agents=True)
    assert log.started == [(chosen[1].label, [0, 1])]
    assert load_agent(store.path(chosen[1])) is not None


def test_divergence_is_stored_as_nan_and_true(tmp_path: Path) -> None:
    log = Log()
    store = train(tmp_path, experiments(f"{__name__}:breaking"), num_seeds=2, watcher=log)
    scores, curves = tables(store)
    assert scores["diverged"].dtype == bool
    assert scores["diverged"].all()
    assert scores[["final_return", "mean_return"]].isna().all(axis=None)
    assert len(curves) == 2 * 40
    header, first, _ = next(tmp_path.glob("experiments/*/shard-*/scores.csv")).read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert row == {"seed": "0", "final_return": "", "mean_return": "", "diverged": "True", "env_steps": "1280"}


@pytest.mark.slow
def test_the_random_policy_is_an_experiment(tmp_path: Path) -> None:
    """Stored as the others, with their keys; never learned, so nothing but the returns is there."""
    store = train(tmp_path, [random_policy()])
    runs = store.load()
    row = runs.experiments.iloc[0]
    assert (row["algorithm"], row["optimizer"], row["hyperparameters"]) == ("random", "random", "{}")
    assert (row["hyperparameter_origin"], row["theta"], row["env_steps"]) == ("none", "", STEPS)
    assert 10 < runs.scores["mean_return"].mean() < 40  # about 22 on CartPole
    assert not runs.scores["diverged"].any()
    log = Log()
    train(tmp_path, [random_policy()], watcher=log)
    assert not log.started


@pytest.mark.slow
def test_another_algorithm_has_its_own_metrics(finished: Store, tmp_path: Path) -> None:
    """The greedy policy's return is there for PQN, and absent for PPO."""
    store = train(tmp_path, [*experiments(algorithm="pqn"), *experiments()], num_seeds=2, devices=2)
    runs = store.load()
    assert set(runs.scores["algorithm"]) == {"ppo", "pqn"}
    by_algorithm = runs.scores.groupby("algorithm")["greedy_return"]
    assert by_algorithm.apply(lambda values: values.notna().all()).to_dict() == {"ppo": False, "pqn": True}
    assert "greedy_return" in runs.metrics
    assert "greedy_return" not in finished.load().scores
    files = {json.loads(path.read_text())["identity"]["algorithm"]: path for path in tmp_path.rglob("experiment.json")}
    for algorithm, described in files.items():
        header = next(described.parent.glob("shard-*/scores.csv")).read_text().splitlines()[0]
        assert ("greedy_return" in header) == (algorithm == "pqn")


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_events_tell_the_work_from_beginning_to_end(finished: Store, tmp_path: Path) -> None:
    train(tmp_path, experiments(), num_seeds=2)
    log = Log()
    train(tmp_path, experiments("adam", "sgd"), watcher=log)
    first, last = log.events[0], log.events[-1]
    assert isinstance(first, Started)
    assert [(work.lifetimes, work.stored, work.updates, work.env_steps) for work in first.work] == [
        (4, 2, 40, STEPS),
        (4, 0, 40, STEPS),
    ]
    assert last == Ended(True)
    assert [event.trained for event in log.events if isinstance(event, Finished)] == [2, 4]
    assert log.started == [("adam", [2, 3]), ("sgd", [0, 1, 2, 3])]
    assert log.updates == 6 * 40


def test_an_interrupted_stream_says_so(tmp_path: Path) -> None:
    log = Log()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, [random_policy()], watcher=several([log, Stop(1)]))
    assert log.events[-1] == Ended(False)


# --- agents -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "pqn"])
def test_agents_are_kept_when_asked_for(algorithm: str, tmp_path: Path) -> None:
    (chosen,) = experiments(algorithm=algorithm)
    store = train(tmp_path, [chosen], num_seeds=3, devices=2, save_agents=True)
    lifetime: Lifetime = chosen.make_lifetime()
    program = compile_program(lifetime, chosen.inputs, jax.devices(), 1, 1)
    state, _ = program.run(program.init(chosen.keys([2]), chosen.inputs), chosen.inputs, lifetime.num_updates)
    expected = jax.device_get(state.agent.params)
    found = load_agent(store.path(chosen), seed=2)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), found, expected)
    network = {"ppo": "actor", "pqn": "q"}[algorithm]
    first = load_agent(store.path(chosen))[network]["layer_00_dense"]["kernel"]
    assert not np.array_equal(first, found[network]["layer_00_dense"]["kernel"])
    with pytest.raises(UserError, match="no saved agent of seed 7; train it with --save-agents"):
        load_agent(store.path(chosen), 7)
    tables(store)  # the file of agents disturbs no table


@pytest.mark.slow
def test_agents_are_those_that_act(tmp_path: Path) -> None:
    """A schedule-free method acts at other parameters than it differentiates at."""
    (chosen,) = experiments("schedule-free-adamw:learning_rate=0.01")
    store = train(tmp_path, [chosen], num_seeds=1, save_agents=True)
    program = compile_program(chosen.make_lifetime(), chosen.inputs, jax.devices(), 1, 1)
    state, _ = program.run(program.init(chosen.keys([0]), chosen.inputs), chosen.inputs, 40)
    expected = jax.device_get(program.acting_params(state, chosen.inputs))
    found = load_agent(store.path(chosen))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), found, expected)
    differentiated = jax.device_get(state.agent.params)
    kernel = lambda params: np.asarray(params["actor"]["layer_00_dense"]["kernel"])
    assert not np.array_equal(kernel(found), kernel(differentiated)[0])


@pytest.mark.slow
def test_it_is_said_when_agents_are_wanted_of_what_is_stored_without(tmp_path: Path) -> None:
    train(tmp_path, experiments(), num_seeds=1)
    with pytest.warns(UserWarning, match="was trained without --save-agents and is stored already"):
        train(tmp_path, experiments(), num_seeds=1, save_agents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path / "another", experiments(), num_seeds=1, save_agents=True)
        train(tmp_path / "another", experiments(), num_seeds=1, save_agents=True)


def test_agents_are_not_kept_otherwise(finished: Store) -> None:
    with pytest.raises(UserError, match="no saved agent"):
        load_agent(finished.path(experiments()[0]))


# --- diagnosis --------------------------------------------------------------------------------------------------------


class Mute(PPO):
    """PPO by somebody who knows nothing of diagnosis."""

    diagnostics = ()

    def update(self, rollout_key: Any, learning_key: Any, state: Any, training_fraction: Any, learning: Any) -> Any:
        return super().update(rollout_key, learning_key, state, training_fraction, learning)


@pytest.mark.slow
def test_diagnosis_is_stored_beside_the_same_numbers(finished: Store, tmp_path: Path) -> None:
    """No part of the identity; the random policy, which never learns, has none."""
    store = train(tmp_path, [*experiments(), random_policy()], num_seeds=2, diagnose=True)
    rows = store.load().diagnosis
    assert set(rows.columns) == {*DIAGNOSIS, *PPO.diagnostics}
    assert list(rows["env_steps"]) == [32 * update for update in range(1, 41)] * 2
    assert rows[list(PPO.diagnostics)].notna().all(axis=None)
    assert set(rows["optimizer"]) == {"adam"}
    same(tables(store, experiments()), [table[table["seed"] < 2] for table in tables(finished)])
    assert not list(finished.results.rglob("diagnosis.csv"))
    assert finished.load().diagnosis.empty


@pytest.mark.slow
def test_what_was_measured_before_a_divergence_stays(tmp_path: Path) -> None:
    store = train(tmp_path, experiments(f"{__name__}:late"), num_seeds=1, diagnose=True)
    ratio = store.load().diagnosis.set_index("env_steps")["update_ratio"]
    assert np.isfinite(ratio.loc[:640]).all()
    assert ratio.loc[704:].isna().all()
    assert store.load().scores["diverged"].all()


@pytest.mark.slow
def test_it_is_said_when_diagnosis_is_wanted_of_what_is_stored_without(tmp_path: Path) -> None:
    log, both = Log(), [*experiments(), random_policy()]
    train(tmp_path, both, num_seeds=1)
    with pytest.warns(UserWarning, match="was trained without --diagnose and is stored already, so its") as told:
        train(tmp_path, both, num_seeds=2, watcher=log, diagnose=True)
    assert len(told) == 1
    assert log.started == [("adam", [1]), ("random", [1])]
    assert set(Store(tmp_path).load().diagnosis["seed"]) == {1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path / "another", both, num_seeds=1, diagnose=True)
        train(tmp_path / "another", both, num_seeds=1, diagnose=True)
        train(tmp_path, both, num_seeds=2)  # and it stays


@pytest.mark.slow
def test_an_algorithm_without_diagnostics_trains_and_says_so(tmp_path: Path) -> None:
    chosen = experiments(algorithm=f"{__name__}:Mute")
    with pytest.warns(UserWarning, match="Mute reports no diagnostics: --diagnose stores nothing of it"):
        store = train(tmp_path, chosen, num_seeds=1, diagnose=True)
    assert store.load().diagnosis.empty
    assert not store.load().scores["diverged"].any()


# --- killed and gone on -----------------------------------------------------------------------------------------------

# A study by the public functions, with a checkpoint after every segment instead of twice a minute; afterwards whatever
# of it is there is ranked, as ``compare`` does.
STUDY = """
import sys, json
from open_bench.api import prepare
from open_bench.events import Compiling
from open_bench.experiments.execute import execute
def say(event):
    if isinstance(event, Compiling):
        print("begins", event.work.name, list(event.seeds), flush=True)
algorithm, steps, settings, *optimizers = sys.argv[2:]
session = prepare(optimizers=optimizers, environments=["cartpole"], algorithm=algorithm, num_seeds=2, steps=int(steps),
                  settings=json.loads(settings), results=sys.argv[1], devices=1)
session.store.check_writable()
execute(session.plan.experiments, 2, session.store, session.devices, say, checkpoint_seconds=0.0)
runs = session.store.load(session.plan.experiments)
session.write(runs, session.board(runs))
"""
KILLED_STEPS = 4 * 8 * 400
OPTIMIZERS = {"ppo": ("adam", "sgd"), "pqn": ("adam",)}


def study_process(folder: Path, algorithm: str = "ppo") -> "subprocess.Popen[str]":
    settings = json.dumps(SETTINGS if algorithm == "ppo" else PQN_SETTINGS)
    request = [str(folder), algorithm, str(KILLED_STEPS), settings, *OPTIMIZERS[algorithm]]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", STUDY, *request],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
    )  # fmt: skip


def undisturbed(folder: Path, algorithm: str = "ppo") -> Store:
    """What the study of the processes gives when nobody disturbs it."""
    study = experiments(*OPTIMIZERS[algorithm], steps=KILLED_STEPS, algorithm=algorithm)
    return train(folder, study, num_seeds=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.slow
def test_killed_at_any_moment_the_study_goes_on(whole: Store, tmp_path: Path) -> None:
    folder, generator = tmp_path / "results", random.Random(int(time.time()))
    moments: list[Callable[[], bool]] = [
        lambda: bool(lies(folder, "experiments/*/partial-*.safetensors")),  # in the middle of the first batch
        lambda: len(shards(folder)) >= 1,  # between two batches, or a little later
        lambda: len(shards(folder)) >= 3,  # in the second experiment
    ]
    kept: dict[Path, tuple[int, int]] = {}
    for moment in moments:
        process = study_process(folder)
        deadline = time.monotonic() + 240
        while not moment():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept |= {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards(folder)}
    process = study_process(folder)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    same(tables(Store(folder)), tables(whole))
    assert kept
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept} == kept
    assert len(shards(folder)) == 4
    assert not [path for pattern in ("partial-*", ".tmp-*") for path in folder.glob(f"experiments/*/{pattern}")]
    assert (folder / "leaderboard.csv").is_file()


@pytest.mark.slow
def test_killed_with_another_algorithm_the_study_goes_on(tmp_path: Path) -> None:
    """PQN's state, with the copies of the greedy policy, is restored bit for bit."""
    folder = tmp_path / "results"
    process, deadline = study_process(folder, "pqn"), time.monotonic() + 240
    while not lies(folder, "experiments/*/partial-*.safetensors"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = study_process(folder, "pqn")
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    same(tables(Store(folder)), tables(undisturbed(tmp_path / "undisturbed", "pqn")))


@pytest.mark.slow
def test_two_processes_share_the_work(whole: Store, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    processes = [study_process(folder) for _ in range(2)]
    output = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    same(tables(Store(folder)), tables(whole))
    begun = sorted(line for text in output for line in text.splitlines() if line.startswith("begins"))
    assert len(begun) == len(set(begun)) == 2, output  # each experiment was trained by one of them


HOLD = """
import sys, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_lock_falls_free_when_its_owner_is_killed(tmp_path: Path) -> None:
    """The experiment is left to its owner, and gone on with when that is dead."""
    store, chosen = Store(tmp_path), experiments("sgd", "adam")
    store.check_writable()
    path = store.experiments / ".locks" / f"{chosen[0].name}.lock"
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    with store.lock(chosen[0]) as free:
        assert not free
    log, waited = Log(), []

    def watch(event: Event) -> None:
        log(event)
        if isinstance(event, Waiting):
            waited.append(event.parts)
            owner.kill()
            owner.wait()

    train(tmp_path, chosen, num_seeds=1, watcher=watch)
    assert waited[0] == 1
    assert log.started == [("adam", [0]), ("sgd", [0])]
    assert len(shards(tmp_path)) == 2
    owner.communicate()


@pytest.mark.slow
def test_two_hosts_give_the_same_bits_as_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    request = ["train", "adam", "-e", "cartpole", "--steps", STEPS, "--num-seeds", 2,
               *(f"--set={key}={value}" for key, value in SETTINGS.items())]  # fmt: skip
    workers = [
        subprocess_of(*request, "--quiet", "--results", tmp_path / "two", "--coordinator", address, "--num-processes",
                      2, "--process-id", number)
        for number in (0, 1)
    ]  # fmt: skip
    try:
        output = [worker.communicate(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], output
    alone = open_bench.train(
        "adam", "cartpole", steps=STEPS, num_seeds=2, settings=SETTINGS, results=tmp_path / "one", devices=4
    )
    together = open_bench.load_runs(tmp_path / "two")
    pd.testing.assert_frame_equal(together.scores, alone, check_exact=True)
    curves = open_bench.load_runs(tmp_path / "one").curves
    pd.testing.assert_frame_equal(together.curves, curves, check_exact=True)
    assert len(curves) == 2 * 40
