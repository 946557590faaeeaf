"""The documentation's code runs, its commands and links exist, and the README stays short."""

import ast
import dataclasses
import importlib
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import click
import pytest

import open_bench
from open_bench import events
from open_bench.optimizers.conformance import check
from open_bench.optimizers.resolve import resolve

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
README, EXTENDING = PAGES["README.md"], PAGES["docs/extending.md"]
TINY = {"num_envs": 4, "num_steps": 16}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def documented_files() -> dict[str, str]:
    """Code blocks that name a file, of all pages."""
    found: dict[str, str] = {}
    for text in PAGES.values():
        for name, code in re.findall(r"```(?:python|toml)\n# file: (\S+)\n(.*?)```", text, re.DOTALL):
            assert name not in found, f"two blocks are called {name}"
            found[name] = code
    return found


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those blocks as files in the folder that the user works in, the Python ones importable."""
    for name, code in documented_files().items():
        (tmp_path / name).write_text(code)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(files: Path, optimizer: str, environment: str, settings: dict[str, Any], **arguments: Any) -> Any:
    here = open_bench.Execution(results=files / "results", devices=1)
    return open_bench.train(optimizer, environment, steps=256, settings=settings, execution=here, **arguments)


def commands(text: str) -> list[list[str]]:
    """Every call of openbench in a shell block or a table, as its arguments."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    lines += re.findall(r"`(openbench [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = []
    for line in lines:
        if line.startswith("openbench ") and "`" not in line:
            words = shlex.split(line.replace("…", ""), comments=True)
            found.append(words[1:])
    return found


def own_optimizers(text: str) -> set[str]:
    """Optimizers of the user's own files that a page passes to openbench."""
    modules = {name.removesuffix(".py") for name in documented_files() if name.endswith(".py")}
    return {word for words in commands(text) for word in words[1:] if word.partition(":")[0] in modules}


# --- what the pages say runs ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "open_bench.optimizers.template:SPEC",
        *sorted((own_optimizers(EXTENDING) | own_optimizers(README)) - {"reinforce:Reinforce"}),
    ],
)
def test_documented_optimizers_conform(name: str, files: Path) -> None:
    assert [result for result in check(resolve(name)) if not result.passed] == []


@pytest.mark.slow
def test_the_documented_optimizer_trains(files: Path) -> None:
    rows = train(files, "wake_up:SPEC", "cartpole", {**TINY, "update_epochs": 1, "num_minibatches": 2})
    assert not rows["diverged"].any()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "pqn"])
def test_the_documented_environment_trains(algorithm: str, files: Path) -> None:
    rows = train(files, "adam", "corridor.toml", {**TINY, "num_minibatches": 2}, algorithm=algorithm)
    assert not rows["diverged"].any()


@pytest.mark.slow
def test_the_documented_algorithm_trains(files: Path) -> None:
    rows = train(files, "adam", "cartpole", TINY, algorithm="reinforce:Reinforce")
    assert not rows["diverged"].any()


@pytest.mark.slow
def test_the_documented_statistic_is_a_column(files: Path) -> None:
    from open_bench.training.record import METRICS

    try:
        importlib.import_module("best_return")
        rows = train(files, "adam", "cartpole", {**TINY, "update_epochs": 1, "num_minibatches": 2})
    finally:
        METRICS.pop("best_return", None)
    assert (rows["best_return"] >= rows["mean_return"]).all()


@pytest.mark.slow
def test_the_documented_watcher_is_told(files: Path) -> None:
    assert importlib.import_module("watch_returns").returns


def test_every_event_and_its_fields_are_in_the_table() -> None:
    for event in get_args(events.Event):
        (row,) = re.findall(rf"^\| `{event.__name__}` \|.*$", EXTENDING, re.MULTILINE)
        assert [f"`{field.name}`" in row for field in dataclasses.fields(event)].count(False) == 0, row
        assert getattr(open_bench, event.__name__) is event


def test_the_documented_studies_are_accepted(files: Path) -> None:
    from open_bench.config import load_study
    from open_bench.generalization.study import load_generalization

    assert load_study("my_study.toml").num_seeds == 4
    assert load_generalization("my_generalization.toml").num_seeds == 8


# --- what they name exists --------------------------------------------------------------------------------------------


def test_blocks_parse() -> None:
    for page, text in PAGES.items():
        for code in blocks(text, "python"):
            ast.parse(code, page)
        for code in blocks(text, "toml"):
            tomllib.loads(code)


def test_public_names_exist() -> None:
    for page, text in PAGES.items():
        used = {name for code in blocks(text, "python") for name in re.findall(r"\bopen_bench\.([a-z_]+)\(", code)}
        assert not {name for name in used if not hasattr(open_bench, name)}, page


def options(words: list[str]) -> tuple[str, set[str], set[str]]:
    """Name of a command, the options that it is given, and those that it has."""
    from open_bench.cli.main import cli

    command: click.Command = cli
    context = click.Context(command)
    path = []
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        path.append(words.pop(0))
        found = command.get_command(context, path[-1])
        assert found is not None, f"openbench {' '.join(path)} does not exist"
        command = found
    given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    return " ".join(path), given, {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if commands(text) and page != "CHANGELOG.md"])
def test_commands_and_their_options_exist(page: str) -> None:
    for words in commands(PAGES[page]):
        name, given, known = options(words)
        assert given <= {*known, "-h", "--help", "--version"}, f"{page}: openbench {name}"


def test_the_table_of_options_says_which_commands_have_them() -> None:
    from open_bench.cli.main import cli

    commands: dict[str, click.Command] = {}
    for name, command in cli.commands.items():
        below = command.commands if isinstance(command, click.Group) else {}
        commands |= {f"{name} {other}": found for other, found in below.items()} or {name: command}
    training = ["train", "compare", "tune", "generalize", "meta-train"]
    table = PAGES["docs/install.md"].partition("## Options")[2].partition("\n## ")[0]
    listed = set()
    for flags, _, where in (
        re.split(r" \| ", line.strip("| ")) for line in table.splitlines() if line.startswith("| `")
    ):
        told = set(where.replace("all that train", ", ".join(training)).split(", "))
        for flag in re.findall(r"`(--?[a-z-]+)", flags):
            listed.add(flag)
            have = {name for name, found in commands.items() if flag in {o for p in found.params for o in p.opts}}
            assert told == have, flag
    shared = ("--coordinator", "--num-processes", "--process-id", "--seed")  # told below the table, and in a row of it
    several = [option for name in training for p in commands[name].params for option in p.opts if option[:2] == "--"]
    assert {option for option in several if several.count(option) > 1} <= {*listed, *shared}


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file.read_text()), f"{page}: {target}"


def test_extending_names_every_extra() -> None:
    extras = (
        "training_fraction",
        "epoch_fraction",
        "new_rollout",
        "activations",
        "acting_network",
        "loss",
        "value",
        "key",
    )
    assert not [extra for extra in extras if f"`{extra}`" not in EXTENDING]


def test_the_readme_is_short() -> None:
    assert len(re.sub(r"```.*?```", "", README, flags=re.DOTALL).split()) <= 500
