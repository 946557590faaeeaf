"""Optimizers in files of the user's own: edits, clashes of names, and code that does not work."""

import sys
from pathlib import Path

import pytest

from open_bench.algorithms.registry import find_algorithm
from open_bench.errors import UserError
from open_bench.optimizers.adapters import TINY_AGENTS
from open_bench.optimizers.resolve import resolve
from open_bench.training.task import make_task

RULE = "import optax\n\n\ndef rule(learning_rate=1e-2):\n    return optax.sgd({sign}learning_rate)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, name: str = "mine:rule"):  # type: ignore[no-untyped-def]
    (folder / "mine.py").write_text(code)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return resolve(name)


def test_edited_file_is_another_optimizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [load(folder, monkeypatch, RULE.format(sign=sign)) for sign in ("", "2 * ", "")]
    identities = [optimizer.identity for optimizer in found]
    assert identities[0] == identities[2] != identities[1]
    assert found[0].label.startswith("mine:rule#")
    assert found[0].label != found[1].label


def test_identity_holds_no_memory_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import optax\ndef rule(learning_rate=optax.constant_schedule(1e-3)):\n    return optax.sgd(learning_rate)\n"
    assert "0x" not in str(load(folder, monkeypatch, code).identity)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('broken here')", "RuntimeError: broken here.*mine.py, line 1"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("def rule(:", "SyntaxError"),
        ("raise AttributeError('at import')", "AttributeError: at import"),
        ("rule = 3", "is a int"),
    ],
)
def test_code_that_does_not_import_is_explained(
    code: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=words):
        load(folder, monkeypatch, code)


@pytest.mark.parametrize(
    "body",
    [
        "jax.tree.map(lambda x: jnp.zeros(7), g), s",
        "jax.tree.map(lambda x: x.astype(jnp.float16), g), s",
        "g, jnp.zeros(s.size + 1)",
    ],
)
def test_wrong_shapes_are_found_before_training(body: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""import jax, optax
import jax.numpy as jnp
rule = optax.GradientTransformationExtraArgs(lambda p: jnp.zeros(1), lambda g, s, p=None, **e: ({body}))
"""
    with pytest.raises(UserError, match="another structure, shape or dtype"):
        load(folder, monkeypatch, code)


@pytest.mark.parametrize(("network", "algorithm", "other"), [("q", "pqn", "ppo"), ("actor", "ppo", "pqn")])
def test_what_looks_at_a_network_works_with_its_algorithm_alone(
    network: str, algorithm: str, other: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""import jax, optax
def rule(learning_rate=1e-2):
    def update(g, s, p=None, **extras):
        return jax.tree.map(lambda x: x * learning_rate * (1 + p["{network}"]["layer_00_dense"]["bias"].sum()), g), s
    return optax.GradientTransformationExtraArgs(lambda p: (), update)
"""
    load(folder, monkeypatch, code)
    assert resolve("mine:rule", make_task("cartpole", algorithm=algorithm)).spec.hyperparameters["learning_rate"].traced
    with pytest.raises(UserError, match=f"extras of {other}: KeyError"):
        resolve("mine:rule", make_task("cartpole", algorithm=other))


def test_tiny_agents_are_those_of_the_algorithms_that_ship() -> None:
    for algorithm in ("ppo", "pqn"):
        task = make_task("cartpole", algorithm=algorithm)
        assert task.params().keys() == TINY_AGENTS[find_algorithm(algorithm).acting_network].keys()


def test_entry_named_like_a_shipped_one_keeps_its_own_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """import optax
from open_bench.optimizers import Hyperparameter, OptimizerSpec
rule = OptimizerSpec("adam", "mine", lambda theta, length, *, boost: optax.sgd(boost),
                      hyperparameters={"boost": Hyperparameter(0.5, "step")})
"""
    load(folder, monkeypatch, code)
    chosen = resolve("mine:rule", make_task("breakout"))
    assert (chosen.origin, chosen.hyperparameters) == ("default", {"boost": 0.5})
