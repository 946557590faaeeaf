"""Experiments that differ in traced values alone share a program, and no others do."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import SETTINGS, STEPS

import open_bench
from open_bench.events import Compiled, Event
from open_bench.experiments.programs import KEPT, forget

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
