"""Experiments on disk: stored is what was trained, whole or killed, alone or shared; damage is named and mended."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import optax
import pandas as pd
import pytest
from hypothesis import given, settings

import open_bench
from open_bench.config import PPOConfig, StudyConfig, load_study
from open_bench.errors import UserError
from open_bench.experiments import execute as execution
from open_bench.experiments.agents import load_agent
from open_bench.experiments.execute import Options, Progress, execute
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.plan import adjust, make_plan
from open_bench.experiments.store import Store
from open_bench.training import mesh as parallel
from open_bench.training.keys import lifetime_keys

TINY = {"num_steps": 8, "update_epochs": 1, "num_minibatches": 2, "hidden": [8]}
STEPS = 4 * 8 * 40  # 40 updates
SEEDS = 4
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}


def breaking() -> optax.GradientTransformation:
    """An optimizer whose updates are not numbers."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * np.nan, updates))


def experiments(
    *optimizers: str, steps: int = STEPS, vmap_size: int | None = None, changes: Any = None, **study: Any
) -> list[Experiment]:
    values = {"optimizers": optimizers or ("adam",), "environments": ("cartpole",), **study}
    chosen = adjust(load_study("quick"), **values)
    return list(make_plan(chosen, jax.devices(), steps, {**TINY, **(changes or {})}, vmap_size).experiments)


class Log(Progress):
    """Notes what was trained."""

    def __init__(self) -> None:
        self.started: list[tuple[str, list[int]]] = []
        self.updates = 0
        self.returns: list[float] = []

    def experiment_started(self, experiment: Experiment, seeds: list[int]) -> None:
        self.started.append((experiment.optimizer, seeds))

    def advanced(self, experiment: Experiment, updates: int, episode_return: float, diverged: int) -> None:
        self.updates += updates


@pytest.fixture(autouse=True, scope="module")
def compiled_once() -> Iterator[None]:
    """Every program of this file is compiled once: compilation is not what is tested here."""
    lifetimes: dict[str, Any] = {}
    programs: dict[Any, Any] = {}
    build, compile_program = execution.build_lifetime, parallel.compile_program

    def built(experiment: Experiment) -> Any:
        if experiment.name not in lifetimes:
            lifetimes[experiment.name] = build(experiment)
        return lifetimes[experiment.name]

    def compiled(lifetime: Any, theta: Any, devices: Any, vmap_size: int, lifetimes: int) -> Any:
        key = (id(lifetime), min(len(devices), -(-lifetimes // vmap_size)), vmap_size)
        if key not in programs:
            programs[key] = compile_program(lifetime, theta, devices, vmap_size, lifetimes)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "build_lifetime", built)
        patch.setattr(parallel, "compile_program", compiled)
        yield


def train(
    folder: Path,
    chosen: list[Experiment],
    num_seeds: int = SEEDS,
    devices: int = 4,
    progress: Progress | None = None,
    **options: Any,
) -> Store:
    store = Store(folder)
    store.prepare()
    execute(chosen, num_seeds, store, Options(jax.devices()[:devices], **options), progress or Progress())
    return store


def tables(store: Store, chosen: list[Experiment] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and curves in a fixed order; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs = store.load(chosen)
    scores = runs.scores.sort_values(["experiment", "seed"], ignore_index=True)
    return scores, runs.curves.sort_values(["experiment", "seed", "env_steps"], ignore_index=True)


def same(one: Any, two: Any) -> None:
    for a, b in zip(one, two, strict=True):
        pd.testing.assert_frame_equal(a, b, check_exact=True)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("experiments/*/shard-*"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One experiment with four seeds."""
    return train(tmp_path_factory.mktemp("finished"), experiments())


@pytest.fixture
def copy(finished: Store, tmp_path: Path) -> Store:
    """A copy of it to spoil."""
    shutil.copytree(finished.results, tmp_path / "copy")
    return Store(tmp_path / "copy")


# --- what is stored ---------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(st.floats(-1e30, 1e30), st.just(float("nan"))), min_size=1, max_size=5), st.data())
def test_what_is_stored_comes_back_bit_for_bit(returns: list[float], data: Any) -> None:
    seeds = data.draw(st.lists(st.integers(0, 50), min_size=len(returns), max_size=len(returns), unique=True))
    scores = pd.DataFrame(
        {
            "seed": seeds,
            "final_return": returns,
            "mean_return": returns[::-1],
            "diverged": [bool(np.isnan(value)) for value in returns],
            "env_steps": STEPS,
        }
    )
    curves = pd.DataFrame({"seed": seeds, "env_steps": STEPS, "episode_return": returns})
    facts = {"run_seconds": 2.0, "compile_seconds": 1.0, "env_steps": 10, "hardware": "abacus", "revision": "r"}
    experiment = CELL
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.prepare()
        store.create(experiment, {"family": "classic", "hyperparameter_origin": "default"})
        store.add(experiment, scores, curves, facts)
        assert store.seeds(experiment) == set(seeds)
        runs = store.load()
        assert not list(store.runs.glob("**/.tmp-*"))
    pd.testing.assert_frame_equal(runs.scores[list(scores)], scores, check_exact=True)
    pd.testing.assert_frame_equal(runs.curves[list(curves)], curves, check_exact=True)
    assert set(runs.scores["experiment"]) == {experiment.name} == set(runs.experiments["experiment"])
    assert (runs.experiments["steps_per_second"] == 5.0).all()


CELL = experiments()[0]


def test_a_experiment_says_where_it_comes_from(finished: Store) -> None:
    row = finished.load().experiments.iloc[0]
    assert (row["environment"].split("[")[0], row["optimizer"], row["env_steps"]) == ("cartpole", "adam", STEPS)
    assert row["hyperparameter_origin"] in {"tuned", "published"}
    assert json.loads(row["hyperparameters"])["learning_rate"] > 0
    content = json.loads(next(finished.runs.glob("cartpole*/shard-*/provenance.json")).read_text())
    assert content["packages"]["jax"] == jax.__version__
    assert content["seeds"] == [0, 1, 2, 3]
    assert content["env_steps"] == SEEDS * STEPS
    assert content["run_seconds"] > 0
    assert {"hardware", "revision", "compile_seconds", "platform", "python"} <= set(content)


def test_the_trained_thing_learns_nothing_from_the_store(finished: Store) -> None:
    """Four seeds, four different returns."""
    scores, curves = tables(finished)
    assert list(scores["seed"]) == [0, 1, 2, 3]
    assert scores["mean_return"].nunique() == SEEDS
    assert len(curves) == SEEDS * 40
    assert list(curves["env_steps"][:2]) == [32, 64]


def test_more_seeds_add_a_shard_and_train_only_what_is_missing(finished: Store, tmp_path: Path) -> None:
    log = Log()
    train(tmp_path, experiments(), num_seeds=2, progress=log)
    first = shards(tmp_path)
    written = first[0].stat().st_mtime_ns
    assert [path.name for path in first] == ["shard-0000-0001"]
    store = train(tmp_path, experiments(), num_seeds=4, progress=log)
    assert [path.name for path in shards(tmp_path)] == ["shard-0000-0001", "shard-0002-0003"]
    assert first[0].stat().st_mtime_ns == written
    assert log.started == [("adam", [0, 1]), ("adam", [2, 3])]
    same(tables(store), tables(finished))
    train(tmp_path, experiments(), num_seeds=3, progress=log)  # fewer than there are: nothing to do
    assert log.updates == 4 * 40


@pytest.mark.parametrize("devices", [1, 2])
def test_devices_and_company_do_not_change_a_experiment(devices: int, finished: Store, tmp_path: Path) -> None:
    study = experiments("sgd", "adam")
    store = train(tmp_path, study, devices=devices)
    assert len(shards(tmp_path)) == 2 * SEEDS // devices
    adam = [experiment for experiment in study if experiment.optimizer == "adam"]
    same(tables(store, adam), tables(finished))
    scores = tables(store)[0]
    assert scores.groupby("optimizer")["mean_return"].mean().nunique() == 2


def test_divergence_is_stored_as_nan_and_true(tmp_path: Path) -> None:
    log = Log()
    store = train(tmp_path, experiments(f"{__name__}:breaking"), num_seeds=2, progress=log)
    scores, curves = tables(store)
    assert scores["diverged"].dtype == bool
    assert scores["diverged"].all()
    assert scores[["final_return", "mean_return"]].isna().all(axis=None)
    assert len(curves) == 2 * 40
    assert "0,,,True,1280" in next(tmp_path.glob("experiments/*/shard-*/scores.csv")).read_text()


def test_agents_are_kept_when_asked_for(tmp_path: Path) -> None:
    chosen = experiments()
    store = train(tmp_path, chosen, num_seeds=3, devices=2, save_agents=True)
    program = parallel.compile_program(
        execution.build_lifetime(chosen[0]), chosen[0].resolved.inputs, jax.devices(), 1, 1
    )
    keys = lifetime_keys(0, chosen[0].environment.name, [2])
    expected = jax.device_get(parallel.run_whole(program, keys, chosen[0].resolved.inputs).learner.params)
    found = load_agent(store.path(chosen[0]), seed=2)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), found, expected)
    first = load_agent(store.path(chosen[0]))["actor"]["dense_00"]["kernel"]
    assert not np.array_equal(first, found["actor"]["dense_00"]["kernel"])
    with pytest.raises(UserError, match="no saved agent of seed 7; train it with --save-agents"):
        load_agent(store.path(chosen[0]), 7)
    tables(store)  # the file of agents disturbs no table


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
        load_agent(finished.path(CELL))


# --- identity ---------------------------------------------------------------------------------------------------------

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


def test_every_ppo_setting_is_known_here() -> None:
    assert set(OTHER_SETTINGS) == set(PPOConfig.model_fields)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(OTHER_SETTINGS)).flatmap(lambda key: st.tuples(st.just(key), OTHER_SETTINGS[key])))
def test_any_changed_setting_makes_another_experiment(change: tuple[str, Any]) -> None:
    key, value = change
    assert experiments(changes={key: value})[0].name != CELL.name
    assert experiments(changes={key: value})[0].name == experiments(changes={key: value})[0].name


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
    ],
    ids=["seed", "steps", "vmap_size", "hyperparameter", "policy_loss", "optimizer", "environment"],
)
def test_any_changed_request_makes_another_experiment(other: Callable[[], list[Experiment]]) -> None:
    assert other()[0].name != CELL.name


def test_versions_and_options_are_part_of_the_identity() -> None:
    def changed(**update: Any) -> str:
        return Experiment(
            CELL.environment.model_copy(update=update), CELL.budget, CELL.env_steps, CELL.resolved, 0, 1
        ).name

    assert changed() == CELL.name
    names = {changed(version=2), changed(options={"max_steps_in_episode": 7}), changed(source="gymnax:Acrobot-v1")}
    assert len(names | {CELL.name}) == 4


def test_the_number_of_seeds_and_the_spelling_are_not_part_of_the_identity() -> None:
    assert experiments(num_seeds=1)[0].name == experiments(num_seeds=99)[0].name == CELL.name
    assert (
        experiments("adam:b1=0.8,learning_rate=1e-3")[0].name == experiments("adam:learning_rate=0.001,b1=0.8")[0].name
    )


def test_a_experiment_has_a_readable_name_that_any_file_system_takes() -> None:
    assert CELL.name.startswith("cartpole")
    name = experiments("adam:learning_rate=1e-3+dpo")[0].name
    assert "--adam_learning_rate=0.001+dpo--" in name
    assert len(name) < 120


# --- killed and gone on -----------------------------------------------------------------------------------------------


class Stop(Progress):
    """Dies in the middle of a round."""

    def __init__(self, after: int):
        self.left = after

    def advanced(self, experiment: Experiment, updates: int, episode_return: float, diverged: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [2, 4])
def test_a_checkpoint_in_the_middle_of_a_round_is_exact(after: int, finished: Store, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, experiments(), devices=2, progress=Stop(after), checkpoint_seconds=0.0)
    assert [path.name for path in tmp_path.glob("experiments/*/partial-*")] == ["partial-0000-0001-of-2.safetensors"]
    assert not shards(tmp_path)
    log = Log()
    store = train(tmp_path, experiments(), devices=2, progress=log, checkpoint_seconds=0.0)
    assert log.updates == SEEDS * 40 - 2 * (2 ** (after - 1) - 1)  # segments of 1, 2, 4, … updates were kept
    same(tables(store), tables(finished))
    assert not list(tmp_path.glob("experiments/*/partial-*"))


def test_a_round_begun_on_other_devices_is_begun_anew(finished: Store, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, experiments(), devices=2, progress=Stop(3), checkpoint_seconds=0.0)
    log = Log()
    store = train(tmp_path, experiments(), devices=4, progress=log)
    assert log.updates == SEEDS * 40
    same(tables(store), tables(finished))
    assert not list(tmp_path.glob("experiments/*/partial-*"))


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_checkpoint_counts_as_none(content: bytes, finished: Store, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    folder = store.create(CELL, execution._description(CELL))
    (folder / "partial-0000-0003-of-4.safetensors").write_bytes(content)
    log = Log()
    train(tmp_path, experiments(), progress=log)
    assert log.updates == SEEDS * 40
    same(tables(store), tables(finished))
    assert not list(tmp_path.glob("experiments/*/partial-*"))


# ``compare`` as the command line runs it, but for saving a checkpoint after every segment instead of twice a minute.
COMPARE = """
import sys
from open_bench.experiments import execute
execute.Options.__init__.__defaults__ = (0.0, False)
from open_bench.cli import main as cli
sys.argv[0] = "openbench"
cli.main()
"""
STUDY = 'name = "killed"\noptimizers = ["adam", "sgd"]\nenvironments = ["cartpole"]\nseeds = 2\n'
KILLED_STEPS = 4 * 8 * 400


def compare_process(folder: Path, study: Path) -> "subprocess.Popen[str]":
    changes = [f"--set={key}={value}".replace(" ", "") for key, value in TINY.items()]
    return subprocess.Popen(
        [sys.executable, "-c", COMPARE, "compare", str(study), "--plain", "--devices", "1",
         "--steps", str(KILLED_STEPS), "--results", str(folder), *changes],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What the study of the processes below gives when nobody disturbs it."""
    return train(tmp_path_factory.mktemp("undisturbed"), experiments("adam", "sgd", steps=KILLED_STEPS), num_seeds=2)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "killed.toml"
    path.write_text(STUDY)
    return path


def test_killed_at_any_moment_the_study_goes_on(undisturbed: Store, study: Path, tmp_path: Path) -> None:
    folder, generator = tmp_path / "results", random.Random(int(time.time()))
    moments: list[Callable[[], bool]] = [
        lambda: bool(list(folder.glob("experiments/*/partial-*.safetensors"))),  # in the middle of the first round
        lambda: len(shards(folder)) >= 1,  # between two rounds, or a little later
        lambda: len(shards(folder)) >= 3,  # in the second experiment
    ]
    kept: dict[Path, tuple[int, int]] = {}
    for moment in moments:
        process = compare_process(folder, study)
        deadline = time.monotonic() + 120
        while not moment():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept |= {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards(folder)}
    process = compare_process(folder, study)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    same(tables(Store(folder)), tables(undisturbed))
    assert kept
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept} == kept
    assert len(shards(folder)) == 4
    assert not [path for pattern in ("partial-*", ".tmp-*") for path in folder.glob(f"experiments/*/{pattern}")]
    assert (folder / "leaderboard.csv").is_file()


def test_two_processes_share_the_work(undisturbed: Store, study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    processes = [compare_process(folder, study) for _ in range(2)]
    output = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    same(tables(Store(folder)), tables(undisturbed))
    started = sorted(line.partition("]")[2] for text in output for line in text.splitlines() if "seeds 0" in line)
    assert len(started) == len(set(started)) == 2, output  # each experiment was trained by one of them


HOLD = """
import sys, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_falls_free_when_its_owner_is_killed(tmp_path: Path) -> None:
    """The experiment is left to its owner, and gone on with when that is dead."""
    store, chosen = Store(tmp_path), experiments("sgd", "adam")
    store.prepare()
    path = store.runs / ".locks" / f"{chosen[0].name}.lock"
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    with store.lock(chosen[0]) as free:
        assert not free
    waited: list[list[str]] = []

    class Watch(Log):
        def waiting(self, experiments: list[Experiment]) -> None:
            waited.append([experiment.optimizer for experiment in experiments])
            owner.kill()
            owner.wait()

    log = Watch()
    train(tmp_path, chosen, num_seeds=1, progress=log)
    assert waited[0] == ["sgd"]
    assert log.started == [("adam", [0]), ("sgd", [0])]
    assert len(shards(tmp_path)) == 2
    owner.communicate()


def test_a_folder_that_cannot_be_written_is_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write results to .*file/results: "):
        Store(tmp_path / "file" / "results").prepare()
    with pytest.raises(UserError, match="no stored runs"):
        open_bench.load_runs(tmp_path)


# --- damage -----------------------------------------------------------------------------------------------------------


def redigest(shard: Path) -> None:
    """Make the digests fit what was changed."""
    import hashlib

    path = shard / "provenance.json"
    content = json.loads(path.read_text())
    content["files"] = {name: hashlib.sha256((shard / name).read_bytes()).hexdigest() for name in content["files"]}
    path.write_text(json.dumps(content))


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _truncate(shard: Path) -> None:
    path = shard / "scores.csv"
    path.write_bytes(path.read_bytes()[:-30])


def _extra_column(shard: Path) -> None:
    frame = pd.read_csv(shard / "scores.csv")
    frame.assign(mood="good").to_csv(shard / "scores.csv", index=False)
    redigest(shard)


def _text_for_number(shard: Path) -> None:
    frame = pd.read_csv(shard / "scores.csv")
    frame.assign(final_return="high").to_csv(shard / "scores.csv", index=False)
    redigest(shard)


def _wrong_return(shard: Path) -> None:
    frame = pd.read_csv(shard / "scores.csv")
    frame.assign(final_return=500.0).to_csv(shard / "scores.csv", index=False)


def _missing_row(shard: Path) -> None:
    frame = pd.read_csv(shard / "scores.csv")
    frame[1:].to_csv(shard / "scores.csv", index=False)
    redigest(shard)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a directory")


SHARD_DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated scores": _truncate,
    "wrong return": _wrong_return,
    "extra column": _extra_column,
    "text for a number": _text_for_number,
    "missing row": _missing_row,
    "no curves": lambda shard: (shard / "curves.csv").unlink(),
    "no provenance": lambda shard: (shard / "provenance.json").unlink(),
    "broken provenance": lambda shard: (shard / "provenance.json").write_text("{"),
    "provenance of nothing": lambda shard: (shard / "provenance.json").write_text('{"files": {}}'),
    "provenance without times": lambda shard: edit_json(shard / "provenance.json", lambda c: c.pop("run_seconds")),
    "empty shard": _empty,
    "file for a shard": _file_instead,
}
CELL_DAMAGE: dict[str, Callable[[Path], Any]] = {
    "broken description": lambda experiment: (experiment / "experiment.json").write_text('{"identity": '),
    "description of another kind": lambda experiment: (experiment / "experiment.json").write_text("[]"),
    "no description": lambda experiment: (experiment / "experiment.json").unlink(),
    "binary description": lambda experiment: (experiment / "experiment.json").write_bytes(b"\xff\xfe"),
    "another experiment's description": lambda experiment: edit_json(
        experiment / "experiment.json", lambda content: content["identity"].update(root_seed=5)
    ),
    "description without family": lambda experiment: edit_json(
        experiment / "experiment.json", lambda content: content.pop("family")
    ),
    "empty experiment": _empty,
    "file for an experiment": _file_instead,
}


@pytest.mark.parametrize("kind", [*SHARD_DAMAGE, *CELL_DAMAGE])
def test_damage_is_named_skipped_and_mended(kind: str, copy: Store, finished: Store) -> None:
    experiment = copy.path(CELL)
    spoiled = next(experiment.glob("shard-*")) if kind in SHARD_DAMAGE else experiment
    {**SHARD_DAMAGE, **CELL_DAMAGE}[kind](spoiled)
    with pytest.warns(UserWarning, match=r"^skipped ") as found:
        runs = copy.load()
    assert any(str(spoiled) in str(warning.message) for warning in found)
    assert len(runs.scores) == len(runs.curves) == len(runs.experiments) == 0
    log = Log()
    with pytest.warns(UserWarning, match="is damaged; moved to .*damaged-"):
        train(copy.results, experiments(), progress=log)
    assert log.started == [("adam", [0, 1, 2, 3])]
    assert list(copy.runs.glob("**/*.damaged-*"))  # nothing was deleted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what was set aside is named from now on
        repaired = copy.load(experiments())
    expected = finished.load()
    pd.testing.assert_frame_equal(repaired.scores, expected.scores, check_exact=True)
    pd.testing.assert_frame_equal(repaired.curves, expected.curves, check_exact=True)


def test_one_damaged_shard_leaves_the_others(tmp_path: Path, finished: Store) -> None:
    store = train(tmp_path, experiments(), devices=2)
    bad, good = shards(tmp_path)
    _wrong_return(bad)
    with pytest.warns(UserWarning, match=f"{bad}: scores.csv is not what was written"):
        assert list(store.load().scores["seed"]) == [2, 3]
    log = Log()
    with pytest.warns(UserWarning, match="is damaged; moved to"):
        train(tmp_path, experiments(), progress=log)
    assert log.started == [("adam", [0, 1])]
    assert good.is_dir()
    same(tables(store), tables(finished))


@pytest.mark.parametrize("kind", ["file", "empty folder", "copy of an experiment", "folder of something else"])
def test_what_is_foreign_is_named_and_left_alone(kind: str, copy: Store, finished: Store) -> None:
    foreign = copy.runs / "a-stranger"
    if kind == "file":
        foreign.write_text("notes")
    elif kind == "copy of an experiment":
        shutil.copytree(copy.path(CELL), foreign)
    else:
        foreign.mkdir()
        if kind == "folder of something else":
            (foreign / "scores.csv").write_text("seed,final_return\n0,1e9\n")
    with pytest.warns(UserWarning, match=f"skipped {foreign}"):
        runs = copy.load()
    pd.testing.assert_frame_equal(runs.scores, finished.load().scores)
    log = Log()
    train(copy.results, experiments(), progress=log)
    assert not log.started
    assert foreign.exists()


def test_a_copied_shard_neither_counts_twice_nor_hides_the_experiment(copy: Store, finished: Store) -> None:
    original = next(copy.path(CELL).glob("shard-*"))
    foreign = original.with_name("shard-0004-0007")
    shutil.copytree(original, foreign)
    with pytest.warns(UserWarning, match=f"skipped {foreign}"):
        runs = copy.load()
    pd.testing.assert_frame_equal(runs.scores, finished.load().scores)
    assert copy.seeds(CELL) == {0, 1, 2, 3}


def test_what_a_killed_writer_left_is_invisible_and_cleared(copy: Store, finished: Store) -> None:
    for leftover in (copy.runs / ".tmp-1", copy.path(CELL) / ".tmp-2"):
        leftover.mkdir()
        (leftover / "scores.csv").write_text("seed")
    same(tables(copy), tables(finished))
    train(copy.results, experiments(), num_seeds=5)
    assert not (copy.path(CELL) / ".tmp-2").exists()


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.prepare()
    store.create(CELL, {})

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    frame = pd.DataFrame({"seed": [0]})
    with pytest.raises(OSError, match="disk full"):
        store.add(CELL, frame, frame, {})
    assert [path.name for path in store.path(CELL).iterdir()] == ["experiment.json"]


def test_a_plan_checks_everything_before_training() -> None:
    base = StudyConfig(name="x", optimizers=("adam",), environments=("cartpole",))
    for changes, message in (
        ({"optimizers": ("adam", "adam")}, "optimizer 'adam' is listed twice"),
        ({"environments": ("cartpole", "cartpole")}, "environment 'cartpole' is listed twice"),
        ({"budget": "quik"}, "has no budget 'quik'"),
    ):
        with pytest.raises(UserError, match=message):
            make_plan(base.model_copy(update=changes), jax.devices())
    with pytest.raises(UserError, match="--vmap-size must be at least 1, not 0"):
        make_plan(base, jax.devices(), vmap_size=0)
    assert [experiment.vmap_size for experiment in make_plan(base, jax.devices()).experiments] == [1]
