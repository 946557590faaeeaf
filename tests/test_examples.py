"""The examples run, with settings so small that they take seconds."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import SETTINGS, STEPS
from tiny_meta import SETTINGS as META_SETTINGS

import open_bench
from open_bench.optimizers.resolve import resolve
from open_bench.training.task import make_task

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[1] / "examples"
FEW: dict[str, Any] = {"steps": STEPS, "num_seeds": 2, "devices": 2, "progress": False}


@pytest.fixture(autouse=True)
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples are found by name, and write into a folder of the test's."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "weights"))


def main_of(name: str) -> Any:
    return importlib.import_module(name).main


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.iterdir() if path.is_file()} == {
        "compare_your_optimizer", "add_an_environment", "meta_train_open", "schedule_free_at_y", "schedule_free_at_z",
        "slurm", "tour"
    }  # fmt: skip


def test_compare_your_optimizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = main_of("compare_your_optimizer")(**FEW, results=tmp_path, environments=["cartpole"], settings=SETTINGS)
    assert {name.partition("#")[0] for name in board["optimizer"]} == {"adam", "compare_your_optimizer:signed_momentum"}
    assert "signed_momentum" in capsys.readouterr().out


def test_schedule_free_elsewhere_is_the_same_rule(tmp_path: Path) -> None:
    at_y, at_z = importlib.import_module("schedule_free_at_y").at_y, importlib.import_module("schedule_free_at_z").at_z
    task = make_task("breakout", budget="short")
    original, *changed = (resolve(each, task, track="tuned") for each in ("schedule-free-adamw", at_y, at_z))
    assert all(each.hyperparameters == original.hyperparameters for each in changed)
    assert {each.origin for each in changed} == {"tuned"}
    three = ["schedule-free-adamw", at_y, at_z]
    open_bench.compare(
        optimizers=three, environments="cartpole", settings=SETTINGS, results=tmp_path, baseline=False, **FEW
    )
    returns = open_bench.load_runs(tmp_path).scores.groupby("optimizer")["mean_return"].apply(tuple)
    assert len(returns) == len(set(returns)) == 3


def test_add_an_environment(tmp_path: Path) -> None:
    """An agent goes the shorter way: at most eight steps, four on average."""
    scores = main_of("add_an_environment")(**FEW | {"steps": 40_960, "num_seeds": 1}, results=tmp_path)
    assert (scores["final_return"] > 0.4).all()


def test_meta_train_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"settings": META_SETTINGS["settings"], "devices": 2}
    few = {"steps": META_SETTINGS["steps"], "population": 4, "generations": 2, "rollouts": 1, "evaluate_every": None}
    main = main_of("meta_train_open")
    board = main(**few, **own, results=tmp_path, compare={"num_seeds": 2, **own})
    assert set(board["optimizer"]) == {"adam", "open@open-example"}
    assert capsys.readouterr().out.count("generation ") == 2
    assert len(open_bench.load_runs(tmp_path).scores) == 6  # the random policy's too


def test_the_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook's cells in order, its settings made small after the first."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = [cell for cell in json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    first, *others = ("".join(cell["source"]) for cell in cells)
    seen: dict[str, Any] = {}
    exec(first, seen)
    few = {"steps": STEPS, "num_seeds": 2, "settings": SETTINGS}
    seen["HERE"] |= {"results": tmp_path, "devices": 2, "progress": False}
    seen["TASK"] |= few
    seen["TUNING"] |= few | {"trials": 2, "report_seeds": 1}
    seen["META"] |= {"steps": STEPS, "settings": SETTINGS, "population": 4, "generations": 2, "evaluate_every": None}
    for cell in others:
        exec(cell, seen)
    assert set(seen["tuned"].winners["track"]) == {"tuned"}
    assert len(seen["trained"].history) == 2
    assert list(seen["board"]["optimizer"]) and seen["trained"].optimizer in set(seen["board"]["optimizer"])
    assert (tmp_path / "report.html").is_file()


def test_slurm(tmp_path: Path) -> None:
    """Two processes of an array, here without SLURM, share a study: nothing is trained twice, and both end well."""
    command = tmp_path / "openbench"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m open_bench "$@"\n')
    command.chmod(0o755)
    few = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    study = ["-o", "adam", "-o", "sgd", "-o", "lion", "-e", "cartpole", "--steps", STEPS, "--num-seeds", 2, *few]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RESULTS": str(tmp_path / "results"),
                   "SLURM_CPUS_PER_TASK": "1"}  # fmt: skip
    processes = [
        subprocess.Popen(["bash", EXAMPLES / "slurm.sh", *map(str, study)], env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    trained = [line.split(": seeds ")[0] for _, said in told for line in said.splitlines() if ": seeds " in line]
    assert len(trained) == len({line.rpartition("] ")[2] for line in trained}) >= 3
    assert told[0][0] == told[1][0]
    assert len(list(tmp_path.glob("results/experiments/*/shard-*"))) == 2 * len(trained)
