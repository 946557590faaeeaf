"""Experiments that differ in traced values alone share a program, and no others do."""

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import SETTINGS, STEPS

import open_bench
from open_bench.events import Compiled, Event
from open_bench.experiments import execute
from open_bench.experiments.programs import KEPT, forget
from open_bench.training import mesh

CODE = "import optax\n\ndef rule(learning_rate=1e-3):\n    return optax.sgd({}learning_rate)\n"


def compiled(optimizer: str, folder: Path, **arguments: object) -> bool:
    """Whether training an optimizer compiles a program."""
    seconds: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, Compiled):
            seconds.append(event.seconds)

    few = {"steps": STEPS, "settings": SETTINGS, "num_seeds": 1, "devices": 1, "environment": "cartpole"}
    open_bench.train(optimizer, results=folder, progress=watch, **(few | arguments))  # type: ignore[arg-type]
    return seconds != [0.0]


def test_traced_values_share_a_program(tmp_path: Path) -> None:
    forget()
    assert compiled("adam:learning_rate=1e-3", tmp_path)
    assert not compiled("adam:learning_rate=1e-2", tmp_path)
    assert not compiled("adam:learning_rate=1e-3,b1=0.5", tmp_path)
    shared = open_bench.load_runs(tmp_path)
    forget()
    assert compiled("adam:learning_rate=1e-2", tmp_path / "alone")
    alone = open_bench.load_runs(tmp_path / "alone")
    (name,) = alone.experiments["experiment"]
    mine = shared.scores[shared.scores["experiment"] == name].reset_index(drop=True)
    np.testing.assert_array_equal(mine["final_return"], alone.scores["final_return"])
    assert len(set(shared.scores["final_return"])) > 1


@pytest.mark.slow
def test_whatever_else_differs_has_a_program_of_its_own(tmp_path: Path) -> None:
    forget()
    assert compiled("adam", tmp_path)
    for other in ({"steps": 2 * STEPS}, {"settings": {**SETTINGS, "gamma": 0.9}}, {"num_seeds": 3, "devices": 2},
                  {"optimizer": "sgd"}, {"optimizer": "adam:anneal_learning_rate=false"}):  # fmt: skip
        assert compiled(**{"optimizer": "adam", "folder": tmp_path, **other}), other  # type: ignore[arg-type]
    for count in range(KEPT - 1):
        assert compiled("adam", tmp_path, steps=(3 + count) * STEPS)
    assert compiled("adam:learning_rate=1e-2", tmp_path)  # the first is forgotten


def test_an_edited_file_has_a_program_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    returns = []
    for sign in ("", "-"):
        (tmp_path / "shared_rule.py").write_text(CODE.format(sign))
        monkeypatch.delitem(sys.modules, "shared_rule", raising=False)
        assert compiled("shared_rule:rule", tmp_path / sign)
        returns.append(list(open_bench.load_runs(tmp_path / sign).curves["episode_return"]))
    assert returns[0] != returns[1]


@pytest.mark.slow
def test_the_next_program_is_compiled_while_another_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, events = [], []  # type: ignore[var-annotated]

    def compile_program(*arguments: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return mesh.compile_program(*arguments)

    monkeypatch.setattr(execute, "compile_program", compile_program)
    few = {"steps": STEPS, "settings": SETTINGS, "num_seeds": 1, "devices": 1, "environments": "cartpole"}
    optimizers = ["sgd", "adam", "adam:learning_rate=1e-2", "lion"]
    forget()
    open_bench.compare(optimizers=optimizers, results=tmp_path / "several", progress=events.append, **few)
    assert threads == [True, False, False, False]  # the last is that of the random policy
    seconds = [event.seconds for event in events if isinstance(event, Compiled)]
    assert [each > 0 for each in seconds] == [True, True, False, True, True]  # who asks first is told what it took
    for optimizer in optimizers:
        forget()
        open_bench.compare(optimizers=optimizer, results=tmp_path / "alone", progress=False, **few)
    one, other = (open_bench.load_runs(tmp_path / name) for name in ("several", "alone"))
    for column in ("final_return", "mean_return"):
        np.testing.assert_array_equal(*(each.scores.sort_values("experiment")[column] for each in (one, other)))


@pytest.mark.slow
def test_a_program_that_cannot_be_compiled_ahead_is_compiled_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_program(lifetime: Any, *arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("ahead")
        return mesh.compile_program(lifetime, *arguments)

    monkeypatch.setattr(execute, "compile_program", compile_program)
    forget()
    open_bench.compare(optimizers=["sgd", "adam"], environments="cartpole", steps=STEPS, settings=SETTINGS,
                              num_seeds=1, devices=1, results=tmp_path, progress=False)  # fmt: skip
    assert {"sgd", "adam"} <= set(open_bench.load_runs(tmp_path).experiments["optimizer"])
