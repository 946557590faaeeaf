"""Learning curves in TensorBoard's files and Weights & Biases, as experiments are complete."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import OpenBench, check_refused
from tiny import SETTINGS, STEPS
from writers import FakeService, series

import open_bench
from open_bench.experiments.history import EVENTS

FEW: dict[str, Any] = {"steps": STEPS, "settings": SETTINGS, "devices": 2}


def test_a_curve_is_written_over_its_seeds_and_anew_with_more_of_them(tmp_path: Path, wandb: FakeService) -> None:
    pytest.importorskip("tensorboardX")
    for num_seeds in (2, 4, 4):  # trained, grown, and all there
        scores = open_bench.train(
            "adam", "cartpole", num_seeds=num_seeds, results=tmp_path, tensorboard=True, wandb="project", **FEW
        )
        (name,) = scores["experiment"].unique()
        curves = open_bench.load_runs(tmp_path).curves
        expected = curves.groupby("env_steps")["episode_return"].mean().dropna()
        found = series(tmp_path / EVENTS / name, "episode_return/mean")
        assert [step for step, _ in found] == list(expected.index)
        np.testing.assert_allclose([value for _, value in found], expected, rtol=1e-6)
        final = series(tmp_path / EVENTS / name, "score/final_return")
        assert final == [(STEPS, pytest.approx(scores["final_return"].mean(), rel=1e-6))]
    two, four = wandb.runs.values()
    assert four[STEPS]["score/final_return"] == pytest.approx(scores["final_return"].mean())
    assert two[STEPS] != four[STEPS]
    assert len(wandb.calls) == 3
    assert {call["id"] for call in wandb.calls} == set(wandb.runs)
    assert wandb.calls[0]["name"].startswith("cartpole")
    assert wandb.calls[0]["config"]["optimizer"] == "adam"
    assert [run.finished for run in wandb.opened] == [0, 0, 0]


def test_every_experiment_of_a_study_has_a_run(tmp_path: Path, wandb: FakeService) -> None:
    request = {"optimizers": ["adam", "sgd"], "environments": ["cartpole"], "num_seeds": 2, "results": tmp_path}
    open_bench.compare(**request, **FEW, wandb="project")
    assert {call["name"].rpartition(" · ")[2] for call in wandb.calls} >= {"adam", "sgd"}
    assert {call["group"] for call in wandb.calls} == {"custom"}
    assert len(wandb.runs) == len(open_bench.load_runs(tmp_path).experiments)


def test_a_service_that_cannot_be_reached_stops_nothing(
    tmp_path: Path, wandb: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**settings: Any) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.warns(UserWarning, match=r"Weights & Biases cannot be started: OSError: no connection\. Training goes"):
        scores = open_bench.train("adam", "cartpole", num_seeds=2, results=tmp_path, wandb="project", **FEW)
    assert len(scores) == 2


@pytest.mark.parametrize("command", [["train", "adam"], ["compare", "-o", "adam"]])
def test_an_absent_package_is_named_before_anything_trains(
    command: list[str], tmp_path: Path, openbench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    answer = openbench(*command, "-e", "cartpole", "--wandb", "project", "--results", tmp_path / "results")
    check_refused(answer, 'wandb is not installed: pip install ".[wandb]" in a clone', tmp_path / "results")


@pytest.mark.slow
def test_the_package_itself_takes_it_offline(tmp_path: Path) -> None:
    """In a process of its own, since it starts another one; nothing is asked of a network."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    code = (
        "import sys; from pathlib import Path; from open_bench.experiments.history import WeightsAndBiases as W\n"
        "folder = Path(sys.argv[1]); weights = folder / 'latest.safetensors'; weights.write_bytes(b'theta')\n"
        "writer = W('env_steps', lambda: [weights], project='project', dir=str(folder), name='mine', id='a1-2',"
        " config={'a': 1}, group='study')\n"
        "assert writer.begin() == 0\n"
        "writer.write([{'env_steps': step, 'episode_return.mean': 2.0} for step in (64, 128)])\n"
        "writer.end(True)\n"
    )
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (stored,) = (tmp_path / "wandb").glob("offline-run-*-a1-2/run-a1-2.wandb")
    content = stored.read_bytes()
    assert b"episode_return/mean" in content
    assert b"latest.safetensors" in content
