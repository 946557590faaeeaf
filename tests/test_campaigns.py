"""A small part of every campaign (``python -m tooling.campaigns``), and that campaigns can find something."""

import dataclasses
import functools
import hashlib
import os
import shutil
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from open_bench.errors import UserError
from open_bench.weights import fetch
from open_bench.weights.format import load_weights
from tooling.campaigns import disturb, downloads, fuzz, mutations
from tooling.campaigns.commands import SUBJECTS, Subject, differences, outcome
from tooling.campaigns.tally import COLUMNS, Tally, dice, write_row

SEED = 14
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def faults(kind: str, case: Any, cases: int) -> list[str]:
    """What the first cases of a campaign find."""
    tally = Tally(kind, SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(cases):
            tally.judge(number, case)
    assert tally.cases == cases
    return tally.faults


# --- nonsense ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "cases"), [("Names", 40), ("Tomls", 15), ("Weights", 80), ("Results", 6), ("Archives", 12)]
)
def test_nonsense_is_read_or_refused(kind: str, cases: int, tmp_path: Path) -> None:
    assert faults(kind.lower(), getattr(fuzz, kind)(tmp_path), cases) == []


def test_a_server_may_do_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIMEOUT", "MAX_BYTES"):  # the campaign sets them
        monkeypatch.setattr(fetch, name, getattr(fetch, name))
    assert faults("downloads", downloads.Downloads(tmp_path), 12) == []


# --- disturbances -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where disturbed runs of this module lie; programs are compiled once for all."""
    yield tmp_path_factory.mktemp("campaigns")


def of(kind: type[disturb.Disturbed], folder: Path, *names: str) -> disturb.Disturbed:
    """A campaign on some of the commands."""
    chosen = type(kind.__name__, (kind,), {"subjects": tuple(each for each in SUBJECTS if each.name in names)})
    return chosen(folder / "-".join([kind.__name__, *names]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [disturb.Kills, disturb.FullDisk, disturb.ReadOnly, disturb.Clock, disturb.Shared])
def test_export_is_disturbed(kind: type[disturb.Disturbed], folder: Path) -> None:
    assert faults("export", of(kind, folder, "export"), 1) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generalize", "meta-train"])
def test_a_killed_command_goes_on(name: str, folder: Path) -> None:
    """Of compare and tune there are tests of their own."""
    assert faults("kills", of(disturb.Kills, folder, name), 1) == []


@pytest.mark.slow
def test_a_study_on_a_full_disk_goes_on(folder: Path) -> None:
    assert faults("full disk", of(disturb.FullDisk, folder, "compare"), 1) == []


def without_devices(subject: Subject, folder: Path) -> list[object]:
    words = subject.arguments(folder)
    place = words.index("--devices")
    return words[:place] + words[place + 2 :]


IMITATION = [
    "--imitate", "lion", "--imitation-rounds", 2, "--imitation-lifetimes", 2, "--imitation-windows", 2,
    "--imitation-window-steps", 8, "--imitation-burn-in", 2, "--imitation-batches", 60,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("imitation", [[], IMITATION], ids=["evolution", "imitation too"])
def test_two_processes_of_a_cluster_give_the_same_bits_as_one(folder: Path, imitation: list[object]) -> None:
    folder = folder / ("imitation" if imitation else "evolution")
    (subject,) = (each for each in SUBJECTS if each.name == "meta-train")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    disturb.expect(subject.start(folder / "one", None, *imitation), 0)
    subject = dataclasses.replace(subject, arguments=functools.partial(without_devices, subject))  # a cluster takes all
    cluster = ["--coordinator", address, "--num-processes", 2, "--process-id"]
    workers = [subject.start(folder / "two", None, *imitation, *cluster, number) for number in (0, 1)]
    with disturb.several(workers):
        for worker in workers:
            disturb.expect(worker, 0)
    one, two = (load_weights(folder / name / "library" / "campaign.safetensors") for name in ("one", "two"))
    assert one.hash == two.hash
    assert [each.metadata["cost"]["devices"] for each in (one, two)] == [1, 2]
    assert one.metadata["cost"]["env_steps"] == two.metadata["cost"]["env_steps"] > 0


# --- campaigns can find something -------------------------------------------------------------------------------------


def test_faults_are_told_from_refusals(tmp_path: Path) -> None:
    def case(dice: Random) -> None:
        if (number := dice.random()) < 0.3:
            raise UserError("no")
        if number < 0.6:
            raise ValueError("broken")

    tally = Tally("any", 3)
    for number in range(50):
        tally.judge(number, case)
    expected = [dice("any", 3, number).random() for number in range(50)]
    assert tally.refused == sum(each < 0.3 for each in expected) > 0
    assert len(tally.faults) == sum(0.3 <= each < 0.6 for each in expected) > 0
    assert "broken" in tally.faults[0]
    assert tally.cases == 50
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n| other | 1 |\n\nafter\n")
    for _ in range(2):
        write_row(tally, page)
    assert page.read_text().count("| any | 50 |") == 1
    assert [line for line in page.read_text().splitlines() if line][0::5] == ["before", "after"]


def test_whatever_differs_is_seen(tmp_path: Path) -> None:
    (subject,) = (each for each in SUBJECTS if each.name == "export")
    subject.prepare(tmp_path / "one")
    shutil.copytree(tmp_path / "one" / "runs", tmp_path / "one" / "results")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one = outcome(tmp_path / "one")
    assert differences(one, outcome(tmp_path / "two")) == []
    scores = next((tmp_path / "two" / "results").rglob("scores.csv"))
    scores.write_text(scores.read_text().replace("1", "2", 1))
    provenance = next((tmp_path / "two" / "results").rglob("provenance.json"))
    provenance.write_text(provenance.read_text().replace('"run_seconds": ', '"run_seconds": 1'))
    found = outcome(tmp_path / "two")
    assert differences(one, found) == [scores.relative_to(tmp_path / "two").as_posix()]


def test_damage_is_drawn_from_dice() -> None:
    table = ((mutations.spoiled_bytes, b"0123456789"), (mutations.spoiled_text, "adam:learning_rate=1"),
             (mutations.spoiled_json, b'{"a": [1, {"b": 2}]}'), (mutations.spoiled_table, b"a,b\n1,2\n"))  # fmt: skip
    for spoil, sound in table:
        twice = [[spoil(sound, dice("x", 0, number)) for number in range(30)] for _ in range(2)]
        assert twice[0] == twice[1]
        assert len({hashlib.sha256(repr(each).encode()).digest() for each in twice[0]}) > 10
