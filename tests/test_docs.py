"""The documentation's code runs: the guide's optimizers conform and train, the README's example works."""

import re
import sys
from pathlib import Path

import pytest

import open_bench
from open_bench.optimizers import resolve
from open_bench.optimizers.conformance import check

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "add_an_optimizer.md").read_text()
README = (ROOT / "README.md").read_text()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The code blocks that name a file, written to it, importable."""
    for text in (GUIDE, README):
        for name, code in re.findall(r"```python\n# file: (\S+)\n(.*?)```", text, re.DOTALL):
            (tmp_path / name).write_text(code)
            monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def names_in(text: str) -> set[str]:
    """Optimizers of the user's own files that a text passes to openbench."""
    return set(re.findall(r"(?:openbench (?:check|train)|-o) ((?:my_optimizers|wake_up|signed)\S*:\S+)", text))


@pytest.mark.parametrize(
    "name", ["open_bench.optimizers.template:SPEC", "wake_up:SPEC", *sorted(names_in(GUIDE) | names_in(README))]
)
def test_documented_optimizers_conform(name: str, files: Path) -> None:
    assert [result for result in check(resolve(name)) if not result.passed] == []


def test_documented_optimizer_trains(files: Path) -> None:
    settings = {"num_envs": 4, "num_steps": 16, "update_epochs": 1, "num_minibatches": 2}
    rows = open_bench.train(
        "wake_up:SPEC", "cartpole", steps=256, settings=settings, results=files / "results", devices=1
    )
    assert not rows["diverged"].any()


def test_guide_names_every_extra() -> None:
    for keyword in ("training_fraction", "epoch_fraction", "activations", "loss", "value", "key"):
        assert f"`{keyword}`" in GUIDE


def test_readme_commands_exist() -> None:
    from open_bench.cli.main import cli

    used = set(re.findall(r"openbench ([a-z-]+)", README + GUIDE))
    assert used
    assert used <= set(cli.commands)
