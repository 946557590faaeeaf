"""Weights that ship are put in place with a card that stored runs have written (tooling/publish_weights.py)."""

import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from open_bench.weights.format import load_weights

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "baselines" / "weights"
OPEN_MINATAR = ROOT / "results" / "published" / "open-minatar"
QUICK = ROOT / "results" / "published" / "quick"


@pytest.fixture
def evolution(tmp_path: Path) -> Path:
    """As meta-training leaves it, with the weights that ship."""
    folder = tmp_path / "meta" / "mine"
    folder.mkdir(parents=True)
    shutil.copy(SHIPPED / "open.safetensors", folder / "latest.safetensors")
    shutil.copy(SHIPPED / "open.history.csv", folder / "history.csv")
    for generation in (2, 10):
        (folder / f"checkpoint-{generation:06}.safetensors").write_text(str(generation))
    return folder


@pytest.fixture
def publish(tmp_path: Path) -> Any:
    """The tool, which writes below ``tmp_path``."""
    main = runpy.run_path(str(ROOT / "tooling" / "publish_weights.py"))["main"]
    main.callback.__globals__.update(TARGET=tmp_path / "target", EVOLUTIONS=tmp_path / "evolutions")

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(main, list(map(str, arguments)))

    return run


def test_a_card_says_what_was_stored(publish: Any, evolution: Path, tmp_path: Path) -> None:
    answer = publish(evolution, "--as", "given", "--results", QUICK, "--note", "A note.")
    assert answer.exit_code == 0, answer.output
    target, weights = tmp_path / "target", load_weights(SHIPPED / "open.safetensors")
    assert load_weights(target / "given.safetensors").hash == weights.hash
    card = (target / "given.md").read_text().splitlines()
    assert card[0] == "# given" and "A note." in card
    assert f"hash `{weights.hash[:12]}`" in card[2]
    (row,) = (line for line in card if line.startswith("| breakout | trained on |"))
    own, adam = (float(cell) for cell in row.split(" | ")[4:6])
    assert own > 1 and adam > 1 and own != adam
    assert [path.name for path in sorted((tmp_path / "evolutions" / "mine").iterdir())] == [
        "checkpoint-000010.safetensors",
        "figures",
        "history.csv",
    ]


def test_a_card_shows_the_curves_of_imitation_and_evolution(publish: Any, evolution: Path, tmp_path: Path) -> None:
    imitated = evolution.with_name("mine-imitation")
    shutil.copytree(ROOT / "results" / "published" / "meta" / "open-campaign-imitation", imitated)
    shutil.rmtree(imitated / "figures")
    assert publish(evolution, "--as", "given", "--results", QUICK).exit_code == 0
    target, kept = tmp_path / "target", tmp_path / "evolutions" / "mine-imitation"
    links = re.findall(r"!\[\w+\]\((.*)\)", (target / "given.md").read_text())
    assert [Path(link).name for link in links] == ["imitation.png", "history.png"]
    assert all((target / link).is_file() for link in links)
    assert sorted(path.name for path in kept.iterdir()) == ["figures", "imitation.csv", "latest.safetensors"]


def test_an_imitation_alone_is_published(publish: Any, tmp_path: Path) -> None:
    imitated = tmp_path / "meta" / "mine"
    shutil.copytree(ROOT / "results" / "published" / "meta" / "open-campaign-imitation", imitated)
    assert publish(imitated, "--as", "given").exit_code == 0
    assert load_weights(tmp_path / "target" / "given.safetensors").metadata["cost"]["generations"] == 0
    assert sorted(path.name for path in (tmp_path / "evolutions" / "mine").iterdir()) == [
        "figures",
        "imitation.csv",
        "latest.safetensors",
    ]
    answer = publish(imitated, "--as", "given", "--results", OPEN_MINATAR)
    assert answer.exit_code == 0, answer.output
    card = (tmp_path / "target" / "given.md").read_text()
    assert "Weights of `open`, fitted by this project." in card
    assert "imitation of `lion:learning_rate=0.001` in 3 rounds of 600 batches, no evolution.\n" in card
    assert "population" not in card
    rounds = re.findall(r"^\| (\d) \| (\d+) \|", card, re.MULTILINE)
    assert rounds == [("1", "600"), ("2", "1200"), ("3", "1800")]


def test_runs_of_other_weights_are_refused(publish: Any, evolution: Path) -> None:
    answer = publish(evolution, "--as", "given", "--results", ROOT / "results" / "published" / "ppo-pqn")
    assert answer.exit_code != 0
    assert "no run with the weights" in str(answer.exception)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.safetensors")), ids=lambda path: path.stem)
def test_a_card_is_of_the_weights_beside_it(path: Path) -> None:
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert f"hash `{load_weights(path).hash[:12]}`" in card
    assert all((path.parent / link).is_file() for link in re.findall(r"!\[\w+\]\((.*)\)", card))
