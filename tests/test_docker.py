"""The container's recipe, checked without a container: its steps run here as plain commands."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEPS = [line.partition(" ")[::2] for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1].isupper()]
COPIED = [source for step, words in STEPS if step == "COPY" for source in words.split()[:-1]]
INSTALL = next(words for step, words in STEPS if step == "RUN" and words.startswith("pip install"))


def target(extras: str) -> str:
    """What the step of installation tells pip to install."""
    code = f'pip() {{ for word; do :; done; printf %s "$word"; }}; {INSTALL}'
    environment = {**os.environ, "EXTRAS": extras}
    return subprocess.run(["sh", "-c", code], capture_output=True, text=True, check=True, env=environment).stdout


def test_it_installs_as_the_readme_does() -> None:
    told = re.search(r'^pip install (\.) +# or "(\.\[cuda12\])"', (ROOT / "README.md").read_text(), re.MULTILINE)
    assert told is not None
    assert told.groups() == (target(""), target("cuda12"))


def test_the_extras_that_it_names_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"EXTRAS=([\w,]+)|such as ([\w,]+);", (ROOT / "Dockerfile").read_text())
    assert {extra for either in named for extra in "".join(either).split(",")} <= set(extras)


def test_it_works_as_a_user_without_rights() -> None:
    users = [words for step, words in STEPS if step == "USER"]
    assert users == ["$UID"]
    assert ("ARG", "UID=1000") in STEPS
    assert not any(step == "RUN" for step, _ in STEPS[STEPS.index(("USER", "$UID")) :])


def test_what_it_copies_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == set(COPIED)


@pytest.mark.slow
def test_what_it_copies_is_enough_to_install(tmp_path: Path) -> None:
    """The very step, in a folder with no more than the image has, but for the dependencies."""
    source, there = tmp_path / "source", tmp_path / "there"
    source.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = {"NO_DEPS": "1", "NO_BUILD_ISOLATION": "0", "NO_INDEX": "1", "TARGET": str(there)}  # 0: it is off
    environment = {**os.environ, "PATH": path, "EXTRAS": "", **{f"PIP_{key}": value for key, value in options.items()}}
    subprocess.run(["sh", "-c", INSTALL], check=True, cwd=source, env=environment, capture_output=True)
    assert (there / "bin" / "openbench").is_file()
    for name in ("configs/studies/quick.toml", "baselines/weights/open.safetensors"):
        assert (there / "open_bench" / "_shipped" / name).is_file()
