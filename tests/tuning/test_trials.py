"""Trials as they are run and stored: one program, resumed and grown, the numbers of an ordinary experiment."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from tiny import STEPS, Log, Stop, experiments, lies, tables, train

from open_bench.evaluation.trials import read_trials
from open_bench.events import Compiling, Finished, Started, Watcher, silent
from open_bench.experiments.execute import execute_jobs
from open_bench.optimizers import Search, searchable
from open_bench.optimizers.resolve import UNTUNED, resolve
from open_bench.training.task import make_task
from open_bench.tuning.trials import ROOT_SEED, Trials, read_provenance


@searchable(learning_rate=Search(1e-3, 1e-1), nesterov=Search(choices=(False, True)))
def mine(learning_rate: float = 1e-2, nesterov: bool = False) -> optax.GradientTransformation:
    """Momentum, of two kinds: ``nesterov`` is static."""
    return optax.sgd(learning_rate, 0.9, nesterov)


def trials_of(folder: Path, trials: int = 2, num_seeds: int = 1, optimizer: str = "sgd", **options: Any) -> Trials:
    (each,) = experiments(optimizer, **options)
    chosen = resolve(optimizer, each.task, track=UNTUNED)
    return Trials(dataclasses.replace(each, optimizer=chosen, root_seed=ROOT_SEED), trials, num_seeds, folder)


def run(*jobs: Trials, watcher: Watcher = silent, **options: Any) -> list[pd.DataFrame]:
    """Rows and curves of the last job."""
    execute_jobs(jobs, jax.devices()[:2], watcher, title="tuning", **options)
    return list(jobs[-1].load())


def stored(folder: Path) -> list[bytes]:
    (path,) = folder.glob("tuning/*/tuning.json")
    return [(path.parent / name).read_bytes() for name in ("tuning.json", "trials.csv", "curves.csv")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trials with two seeds each, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run(trials_of(folder, 3, 2))
    return folder


def test_trials_mean_the_same_settings_in_all_environments(tmp_path: Path) -> None:
    one, other = (trials_of(tmp_path, 4, optimizer="adam", environments=(name,)) for name in ("cartpole", "acrobot"))
    assert one.settings[1:] == other.settings[1:]
    assert one.name != other.name
    assert trials_of(tmp_path, 2, optimizer="adam").settings == one.settings[:3]


def test_the_first_trial_is_published_or_else_the_default(tmp_path: Path) -> None:
    """Never the tuned one that ships."""
    task = make_task("cartpole", budget="quick")
    assert resolve("adam", task).origin == "tuned"
    published, default = (resolve(name, task, track=UNTUNED) for name in ("adam", "adamw"))
    assert (published.origin, published.track, default.origin) == ("published", "", "default")
    assert (
        trials_of(tmp_path, optimizer="adam").values[0]["learning_rate"] == published.hyperparameters["learning_rate"]
    )


def test_rows_say_what_was_tried(whole: Path) -> None:
    frame = read_trials(whole)
    assert list(frame.columns[:10]) == [
        "tuning", "environment", "algorithm", "budget", "optimizer", "trial", "seed", "settings", "env_steps",
        "diverged",
    ]  # fmt: skip
    assert list(zip(frame["trial"], frame["seed"], strict=True)) == [(t, s) for t in range(4) for s in range(2)]
    job = trials_of(whole, 3, 2)
    assert list(frame["settings"]) == [job.settings[trial] for trial in frame["trial"]]
    assert frame["mean_return"].nunique() == 8
    assert set(frame["env_steps"]) == {STEPS}
    batches = json.loads((job.path / "provenance.json").read_text())
    assert [batch["lifetimes"] for batch in batches] == [[[t, 0], [t, 1]] for t in range(4)]
    assert all(batch["run_seconds"] > 0 and batch["revision"] for batch in batches)


@pytest.mark.slow
def test_a_trial_is_an_ordinary_experiment(whole: Path, tmp_path: Path) -> None:
    """Bitwise: the same setting, root seed and vmap size."""
    job = trials_of(whole, 3, 2)
    rows, curves = job.load()
    for trial in (0, 2):
        experiment = dataclasses.replace(job.experiment, optimizer=job.optimizer(trial))
        scores, own = tables(train(tmp_path, [experiment], num_seeds=2, devices=2), [experiment])
        mine = rows[rows["trial"] == trial]
        for name in ("seed", "final_return", "mean_return", "diverged", "env_steps"):
            np.testing.assert_array_equal(mine[name], scores[name])
        np.testing.assert_array_equal(curves.loc[curves["trial"] == trial, "episode_return"], own["episode_return"])


@pytest.mark.slow
def test_a_trial_is_an_ordinary_experiment_when_lifetimes_are_vmapped(tmp_path: Path) -> None:
    rows, _ = run(job := trials_of(tmp_path, 1, 2, vmap_size=2))
    experiment = dataclasses.replace(job.experiment, optimizer=job.optimizer(1))
    scores, _ = tables(train(tmp_path, [experiment], num_seeds=2, devices=1), [experiment])
    assert list(rows.loc[rows["trial"] == 1, "mean_return"]) == list(scores["mean_return"])


def test_trials_that_were_vmapped_otherwise_are_not_trained_again(whole: Path) -> None:
    one, wide = trials_of(whole, 3, 2), trials_of(whole, 3, 2, vmap_size=64)
    assert wide.path == one.path
    assert wide.stored() == one.stored() == set(range(8))
    assert {batch["vmap_size"] for batch in read_provenance(one.path)} == {1}


@pytest.mark.slow
def test_more_trials_and_seeds_train_only_what_is_missing(whole: Path, tmp_path: Path) -> None:
    log = Log()
    run(trials_of(tmp_path, 1, 2), watcher=log)
    assert log.updates == 4 * 40
    run(trials_of(tmp_path, 3, 1), watcher=log)
    assert log.updates == 6 * 40
    run(trials_of(tmp_path, 3, 2), watcher=log)
    assert log.updates == 8 * 40
    rows, curves = run(trials_of(tmp_path, 1, 1), watcher=log)  # fewer: nothing to do, and nothing else is loaded
    assert log.updates == 8 * 40
    assert (len(rows), set(curves["trial"])) == (2, {0, 1})
    assert stored(tmp_path) == stored(whole)


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 4])
def test_interrupted_tuning_goes_on(after: int, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(trials_of(tmp_path, 3, 2), watcher=Stop(after), checkpoint_seconds=0.0)
    run(trials_of(tmp_path, 3, 2))
    assert stored(tmp_path) == stored(whole)
    assert not list(tmp_path.glob("tuning/*/partial-*"))


@pytest.mark.slow
def test_a_setting_that_has_changed_is_tried_anew(whole: Path, tmp_path: Path) -> None:
    """Published settings may be corrected: what was stored of trial 0 is no trial of them."""
    run(before := trials_of(tmp_path, 1, 2))
    changed = trials_of(tmp_path, 1, 2)
    changed.values[0] = {**changed.values[0], "momentum": 0.5}
    assert changed.name == before.name
    log = Log()
    rows, curves = run(changed, watcher=log)
    assert log.updates == 2 * 40
    assert list(rows["settings"].unique()) == changed.settings
    assert len(curves) == 4 * 40


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_trials_without_curves_are_made_again(damage: str, whole: Path, tmp_path: Path) -> None:
    """To the same numbers."""
    shutil.copytree(whole, tmp_path / "copy")
    (path,) = (tmp_path / "copy").glob("tuning/*/curves.csv")
    if damage == "missing":
        path.unlink()
        run(trials_of(tmp_path / "copy", 3, 2))
    else:
        path.write_bytes(path.read_bytes()[:-3] + b"e\n")
        with pytest.warns(UserWarning, match="is damaged; moved to"):
            run(trials_of(tmp_path / "copy", 3, 2))
    assert stored(tmp_path / "copy") == stored(whole)


@pytest.mark.slow
def test_a_damaged_table_is_named_and_set_aside(tmp_path: Path) -> None:
    run(job := trials_of(tmp_path, 1, 1))
    (job.path / "trials.csv").write_text("trial,seed\n0,zero\n")
    with pytest.warns(UserWarning, match=r"skipped .*trials\.csv"):
        assert read_trials(tmp_path).empty
    with pytest.warns(UserWarning, match="is damaged; moved to"):
        rows, _ = run(trials_of(tmp_path, 1, 1))
    assert len(rows) == 2
    assert len(list(job.path.glob(".damaged-*"))) == 2


def test_all_trials_are_one_program(tmp_path: Path) -> None:
    log = Log()
    run(trials_of(tmp_path, 5, 1), watcher=log)
    assert sum(isinstance(event, Compiling) for event in log.events) == 1
    (started,) = (event for event in log.events if isinstance(event, Started))
    assert [(work.lifetimes, work.counted) for work in started.work] == [(6, "lifetime")]
    assert [event.trained for event in log.events if isinstance(event, Finished)] == [6]


@pytest.mark.slow
def test_a_static_hyperparameter_means_a_program_for_each_of_its_values(tmp_path: Path) -> None:
    """And a user's function is tuned like any other."""
    log = Log()
    rows, _ = run(job := trials_of(tmp_path, 3, optimizer=f"{__name__}:mine"), watcher=log)
    assert {json.loads(text)["nesterov"] for text in rows["settings"]} == {True, False}
    assert sum(isinstance(event, Compiling) for event in log.events) == 2
    assert rows["mean_return"].nunique() == 4
    assert [json.loads(text) for text in rows["settings"]] == job.values


# --- killed -----------------------------------------------------------------------------------------------------------

# A tuning by the public function; before it its trials, with a checkpoint after every segment, not twice a minute.
TUNE = """
import dataclasses, json, sys
import open_bench
from open_bench.config import StudyConfig
from open_bench.experiments.execute import execute_jobs
from open_bench.experiments.plan import make_plan
from open_bench.training.devices import start
from open_bench.tuning.trials import ROOT_SEED, Trials
from pathlib import Path
folder, steps, settings = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
study = StudyConfig(name="tuning", optimizers=("sgd",), environments=("cartpole",))
(experiment,) = make_plan(study, start(1), steps, settings).experiments
job = Trials(dataclasses.replace(experiment, root_seed=ROOT_SEED), 3, 2, folder)
execute_jobs([job], start(1), title="tuning", checkpoint_seconds=0.0)
open_bench.tune("sgd", "cartpole", trials=3, report_seeds=1, steps=steps, settings=settings, results=folder, devices=1)
"""
KILLED_STEPS = 4 * 8 * 400


def tune_process(folder: Path) -> "subprocess.Popen[str]":
    settings = {"num_steps": 8, "update_epochs": 1, "num_minibatches": 2, "hidden": [8]}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", TUNE, str(folder), str(KILLED_STEPS), json.dumps(settings)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip


def finish(processes: Sequence["subprocess.Popen[str]"]) -> None:
    output = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), output


@pytest.mark.slow
def test_killed_at_any_moment_tuning_goes_on_and_is_shared(tmp_path: Path) -> None:
    whole, killed, shared = (tmp_path / name for name in ("whole", "killed", "shared"))
    finish([tune_process(whole)])
    for moment in ("tuning/*/partial-*", "tuning/*/trials.csv", "hyperparameters/*.toml"):
        process, deadline = tune_process(killed), time.monotonic() + 240
        while not lies(killed, moment):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish([tune_process(killed)])
    finish([tune_process(shared), tune_process(shared)])
    for folder in (killed, shared):
        assert stored(folder) == stored(whole)
        for name in ("tuning/trials.csv", "tuning/winners.csv", "hyperparameters/sgd.toml"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes()
