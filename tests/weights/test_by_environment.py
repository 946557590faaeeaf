"""``OPTIMIZER@{environment}``: weights of their own on every environment, in one row."""

from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from commands import OpenBench, check_refused

import open_bench
from open_bench.errors import UserError
from open_bench.experiments.rebuild import rebuild
from open_bench.files import read_json
from open_bench.optimizers.resolve import resolve
from open_bench.training.task import make_task
from open_bench.weights import library
from open_bench.weights.format import content_hash, save_weights

NAME = "open-feedforward@{environment}"
TINY = ["--seeds", "2", "--steps", "640", "--set=num_steps=8", "--set=num_minibatches=2", "--set=hidden=[8]"]


def theta_of(scale: float) -> dict[str, object]:
    zero = resolve("open-feedforward@zero").theta
    return jax.tree.map(lambda leaf: np.full(leaf.shape, scale, np.float32), dict(zero))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Short hash by environment of what the library keeps."""
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "library"))
    thetas = {"cartpole": theta_of(0.001), "catch": theta_of(0.002), "gridworld-rand_all": theta_of(0.003)}
    for name, theta in thetas.items():
        library.save_named(name, theta, {"optimizer": "open-feedforward"})
    return {name: content_hash(theta)[:12] for name, theta in thetas.items()}


def test_each_task_has_its_own(kept: dict[str, str], tmp_path: Path) -> None:
    for name, environment in (("cartpole", "cartpole"), ("gridworld-rand_all", "gridworld/rand_all")):
        found = resolve(NAME, make_task(environment))
        assert (found.theta_hash, found.label) == (kept[name], NAME)
    save_weights(tmp_path / "catch_OPEN.safetensors", theta_of(0.5), {})
    in_files = resolve(f"open-feedforward@{tmp_path}/{{environment}}_OPEN.safetensors", make_task("catch"))
    assert in_files.label == "open-feedforward@{environment}_OPEN"
    assert in_files.theta_hash == content_hash(theta_of(0.5))[:12]


@pytest.mark.slow
def test_one_row_of_a_board(kept: dict[str, str], openbench: OpenBench, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    named = ["-o", "adam", "-o", NAME, "-e", "cartpole", "-e", "catch"]
    answer = openbench("compare", *named, *TINY, "--results", folder, "--no-baseline")
    assert answer.code == 0, answer.err
    rows = open_bench.load_runs(folder).experiments
    theirs = rows[rows["optimizer"] == NAME].set_index("environment")["theta"]
    tasks = dict(zip(("cartpole", "catch"), sorted(theirs.index), strict=True))  # named with their settings
    assert theirs.to_dict() == {tasks[name]: kept[name] for name in tasks}
    board = pd.read_csv(folder / "leaderboard.csv").set_index("optimizer")
    assert set(board.index) == {"adam", NAME}
    assert board.loc[NAME, "theta"] == f"{kept['cartpole']}/{kept['catch']}"
    assert board.loc[NAME, [f"final_return:{task}" for task in tasks.values()]].notna().all()
    for path in (folder / "experiments").glob("*--open*/experiment.json"):
        again = rebuild(read_json(path)).optimizer
        assert again is not None
        assert again.theta_hash in kept.values()


def test_an_environment_without_weights(kept: dict[str, str], openbench: OpenBench, tmp_path: Path) -> None:
    answer = openbench("train", NAME, "-e", "acrobot", "--results", tmp_path / "results")
    check_refused(answer, "acrobot", tmp_path / "results")


def test_where_one_theta_is_needed(kept: dict[str, str], openbench: OpenBench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a learned optimizer"):
        resolve("adam@{environment}", make_task("cartpole"))
    message = "has weights of its own on every environment, and here one θ is asked for: name the weights"
    for command in (["check", NAME], ["meta-train", NAME, "-e", "cartpole"], ["generalize", NAME]):
        at = [] if command[0] == "check" else ["--results", tmp_path / "results"]
        check_refused(openbench(*command, *at), message, tmp_path / "results")
