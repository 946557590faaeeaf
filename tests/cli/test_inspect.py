"""``check`` and ``show`` (whose pictures are tested with the gridworlds)."""

from pathlib import Path

import pytest
from commands import OpenBench

BAD = """
import jax, optax
from open_bench.optimizers.spec import OptimizerSpec

def make(theta, length):
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: 0 * u, updates))

SPEC = OptimizerSpec("lazy", "never moves", make)
"""


@pytest.mark.slow
def test_check_passes_what_conforms(openbench: OpenBench) -> None:
    answer = openbench("check", "sgd")
    assert answer.code == 0, answer.err
    assert "FAIL" not in answer.out
    *_, state, step = answer.out.splitlines()
    assert state.startswith("state ")
    assert "× Adam's" in step


def test_check_fails_with_1_and_leaves_the_timing_out(tmp_path: Path, openbench: OpenBench, monkeypatch) -> None:
    (tmp_path / "lazy_optimizer.py").write_text(BAD)
    monkeypatch.chdir(tmp_path)
    answer = openbench("check", "lazy_optimizer:SPEC")
    assert answer.code == 1
    assert "FAIL  moves the parameters" in answer.out
    assert "× Adam's" not in answer.out
    assert openbench("check", "adm").code == 2


def test_show_says_where_the_picture_is(tmp_path: Path, openbench: OpenBench) -> None:
    answer = openbench("show", "gridworld/small", "--png", tmp_path / "level.png")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == f"Written: {tmp_path / 'level.png'}"
    assert (tmp_path / "level.png").read_bytes().startswith(b"\x89PNG")
    assert "Written" not in openbench("show", "gridworld/small").out


def test_show_takes_the_settings_that_an_agent_was_trained_with(openbench: OpenBench) -> None:
    """They are part of the environment's name, from which keys derive."""
    answer = openbench("show", "gridworld/small", "--algorithm", "pqn", "--set", "hidden=[4]")
    assert answer.code == 0, answer.err
    assert "gridworld/small[hidden=4]" in answer.out
    assert "gridworld/small[" not in openbench("show", "gridworld/small").out
