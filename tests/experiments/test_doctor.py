"""What the doctor finds in a sound installation, and in others."""

import json
import os
from pathlib import Path

import pytest
from commands import OpenBench
from packaging.requirements import Requirement

from open_bench import machine
from open_bench.experiments.doctor import examine, unmet, unwritable


def test_a_sound_installation_has_nothing_wrong(openbench: OpenBench, tmp_path: Path) -> None:
    answer = openbench("doctor", "--results", tmp_path / "results", "--json")
    assert answer.code == 0, answer
    found = {each["name"]: each for each in json.loads(answer.out)}
    assert {"packages", "devices", "memory", "compiled programs", "results", "weights", "extra craftax"} <= set(found)
    assert "4 × cpu" in found["devices"]["detail"]
    assert "MiB" in found["compiled programs"]["detail"]
    assert all(each["advice"] for each in found.values() if each["status"] != "ok")
    assert not (tmp_path / "results").exists()


def test_what_is_wrong_says_what_to_do(openbench: OpenBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "file" / "weights"))
    answer = openbench("doctor", "--results", tmp_path / "file")
    assert answer.code == 1
    lines = {line.split()[0]: line for line in answer.out.splitlines()}
    assert "WRONG" in lines["results"]
    assert "name another --results folder" in lines["results"]
    assert "set OPEN_BENCH_WEIGHTS to a folder of yours" in lines["weights"]


@pytest.mark.parametrize(
    ("requirement", "version", "advice"),
    [
        ("jaxlib>=0.9,!=0.10.*", "0.10.1", "jaxlib 0.10 deadlocks on a CPU"),
        ("jaxlib>=0.9,!=0.10.*", "0.8.0", "pip install 'jaxlib"),
        ("pandas>=2.2,<3", "3.0.1", "pip install 'pandas"),
        ("six", "absent", "pip install 'six'"),
        ("jaxlib>=0.9,!=0.10.*", "0.9.2", None),
        ("six", "1.0", None),
    ],
)
def test_versions_that_do_not_work_are_known(requirement: str, version: str, advice: str | None) -> None:
    found = unmet(Requirement(requirement), version)
    assert (found is None) == (advice is None)
    assert found is None or (found.status == "wrong" and advice is not None and found.advice.startswith(advice))


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    assert unwritable(tmp_path / "a" / "b") == ""
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    assert "irectory" in unwritable(tmp_path / "file")
    if os.getuid():
        tmp_path.chmod(0o500)
        assert unwritable(tmp_path) == "Permission denied"


def test_examining_says_each_thing_once(tmp_path: Path) -> None:
    names = [each.name for each in examine(tmp_path)]
    assert len(names) == len(set(names))


# --- the machine ------------------------------------------------------------------------------------------------------


def test_cards_are_told_by_their_driver(tmp_path: Path) -> None:
    assert machine.graphics_cards(tmp_path / "absent") == []
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 48\n")
    assert machine.graphics_cards(tmp_path) == ["NVIDIA H100 80GB HBM3"] * 2


def test_the_devices_ahead_are_told_without_jax() -> None:
    assert machine.devices_ahead() == f"{machine.available_cores()} × cpu ({machine.processor_name()})"
    assert machine.installed_version("no-such-package") == "absent"
