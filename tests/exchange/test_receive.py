"""Folders merge into what one folder would be; whatever is unsound is named, and then nothing is written.

What ``export`` writes is tested here too: it is what is received.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from exchanged import board, changed, chosen, contents, edit_json, invented, made, redigest, renamed
from tiny import experiments, shards

import open_bench
from open_bench.errors import UserError
from open_bench.evaluation.schema import ABSENT
from open_bench.experiments.agents import load_agent, saved_agents
from open_bench.experiments.session import stored_board
from open_bench.experiments.store import Store

EVIL = "import pathlib\npathlib.Path(__file__).with_name('was_imported').touch()\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three experiments with four seeds each."""
    return invented(tmp_path_factory.mktemp("whole") / "results", chosen(), range(4))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of them with three seeds, in shards of other sizes."""
    return invented(tmp_path_factory.mktemp("half") / "results", chosen()[1:], range(3), size=2)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "theirs"))


def archive(folder: Path, target: Path) -> Path:
    return open_bench.export(target, folder)


def refused(message: str, *sources: Path, results: Path) -> None:
    """The import fails and leaves the folder as it was."""
    before = contents(results) if results.exists() else None
    with pytest.raises(UserError, match=message):
        open_bench.import_results(*sources, results=results)
    assert (contents(results) if results.exists() else None) == before
    assert not list(results.glob(".tmp-*"))


# --- merging ----------------------------------------------------------------------------------------------------------


def added(found: pd.DataFrame) -> dict[str, list[int]]:
    """Seeds added and known, by source."""
    return {str(source): rows[["added", "known"]].sum().tolist() for source, rows in found.groupby("source")}


@pytest.mark.slow
def test_folders_trained_apart_merge_into_the_board_of_one(tmp_path: Path) -> None:
    """One machine trains both, and two machines, with other numbers of devices, train one each."""
    adam, _, random = chosen()
    one = made(tmp_path / "one", [adam, random], 4, devices=2)
    first, second = made(tmp_path / "first", [adam], 4, devices=1), made(tmp_path / "second", [random], 4, devices=2)
    sent = archive(first, tmp_path / "first.zip")
    found = open_bench.import_results(second, sent, results=tmp_path / "merged")
    assert added(found) == {str(second): [4, 0], str(sent): [4, 0]}
    assert board(tmp_path / "merged") == board(one)
    again = open_bench.import_results(one, sent, results=tmp_path / "merged")
    assert added(again) == {str(one): [0, 8], str(sent): [0, 4]}
    assert board(tmp_path / "merged") == board(one)


def test_shards_that_overlap_are_cut(whole: Path, half: Path, tmp_path: Path) -> None:
    """Seeds 0 to 2 are there; of a shard with 0 to 3 only seed 3 is new. Costs are counted once."""
    merged = Path(shutil.copytree(half, tmp_path / "merged"))
    found = open_bench.import_results(whole, results=merged)
    assert dict(zip(found["optimizer"], found[["added", "known"]].to_numpy().tolist(), strict=True)) == {
        "adam": [4, 0], "sgd": [1, 3], "random": [1, 3]
    }  # fmt: skip
    assert {shard.name for shard in shards(merged) if "--sgd--" in str(shard)} == {
        "shard-0000-0001", "shard-0002", "shard-0003"
    }  # fmt: skip
    assert board(merged) == board(whole)


def test_a_shard_in_the_way_with_other_seeds_between_is_no_obstacle(whole: Path, tmp_path: Path) -> None:
    """Both are called shard-0000-0003, and one of them holds the seeds 0 and 3 alone."""
    scattered = invented(tmp_path / "scattered", chosen(), [0, 3])
    assert {shard.name for shard in shards(scattered)} == {"shard-0000-0003"}
    assert added(open_bench.import_results(whole, results=scattered)) == {str(whole): [6, 6]}
    assert {shard.name for shard in shards(scattered)} == {"shard-0000-0003", "shard-0001-0002"}
    assert board(scattered) == board(whole)


def test_a_round_trip_keeps_every_file(whole: Path, tmp_path: Path) -> None:
    sent = archive(whole, tmp_path / "sent.zip")
    open_bench.import_results(sent, results=tmp_path / "received")
    sound = {name: data for name, data in contents(whole).items() if name.startswith("experiments/")}
    assert contents(tmp_path / "received") == sound
    assert archive(tmp_path / "received", tmp_path / "again.zip").read_bytes() == sent.read_bytes()
    with pytest.raises(UserError, match=r"sent.zip exists: name another file, or pass --overwrite"):
        archive(whole, sent)


def test_agents_and_diagnosis_travel_and_are_cut_too(tmp_path: Path) -> None:
    """Seed 0 is there without them, and stays so; of a shard with both seeds only seed 1 is new."""
    some = experiments()
    invented(tmp_path / "merged", some, [0])
    sent = archive(invented(tmp_path / "b", some, [0, 1], beside=True), tmp_path / "b.zip")
    assert added(open_bench.import_results(sent, results=tmp_path / "merged")) == {str(sent): [1, 1]}
    mine, theirs = (Store(tmp_path / name) for name in ("merged", "b"))
    assert saved_agents(mine.path(some[0])) == {1}
    one, other = (load_agent(store.path(some[0]), 1)["actor"]["layer_00_dense"]["bias"] for store in (mine, theirs))
    assert one == other
    rows = theirs.load().diagnosis
    pd.testing.assert_frame_equal(mine.load().diagnosis, rows[rows["seed"] == 1].reset_index(drop=True))


def test_a_diagnosis_that_differs_is_a_conflict_named(tmp_path: Path) -> None:
    mine, theirs = (invented(tmp_path / name, experiments(), range(2), beside=True) for name in ("mine", "theirs"))
    (shard,) = shards(theirs)
    table = pd.read_csv(shard / "diagnosis.csv")
    table.assign(entropy=table["entropy"] + (table["seed"] == 1)).to_csv(shard / "diagnosis.csv", index=False)
    redigest(shard)
    refused(rf"seed 1 has other numbers in {theirs} than in {mine}", theirs, results=mine)


def test_the_study_names_the_board_that_its_parts_make(tmp_path: Path, whole: Path, half: Path) -> None:
    copies = [Path(shutil.copytree(each, tmp_path / each.parent.name)) for each in (whole, half)]
    names = sorted(Store(whole).names())
    for each in copies:
        (each / "study.json").write_text(json.dumps({"study": "mine", "experiments": names, "joined": False}, indent=1))
    sent = [archive(each, tmp_path / f"{index}.zip") for index, each in enumerate(copies)]
    open_bench.import_results(*sent, results=tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "study.json").read_text())["study"] == "mine"
    merged, one = (stored_board(each, open_bench.load_runs(each)) for each in (tmp_path / "merged", copies[0]))
    assert (merged.to_csv(), merged.to_markdown()) == (one.to_csv(), one.to_markdown())
    assert merged.boards[0].study == "mine"


def test_short_names_survive_an_import_and_the_receivers_come_first(tmp_path: Path, whole: Path, half: Path) -> None:
    names = sorted(Store(whole).names())
    for place, (each, aliases) in enumerate(((half, {"adam": "ours"}), (whole, {"adam": "theirs", "sgd": "plain"}))):
        copy = Path(shutil.copytree(each, tmp_path / str(place)))
        study = {"study": "mine", "experiments": names, "joined": False, "aliases": aliases}
        (copy / "study.json").write_text(json.dumps(study))
    open_bench.import_results(tmp_path / "1", results=tmp_path / "0")
    assert json.loads((tmp_path / "0" / "study.json").read_text())["aliases"] == {"adam": "ours", "sgd": "plain"}


KILLED = """
import os, sys
from pathlib import Path
written = 0
rename = Path.rename
def dying(path, target):
    global written
    written += 1
    if written == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
    return rename(path, target)
Path.rename = dying
import open_bench
open_bench.import_results(sys.argv[1], results=sys.argv[2])
"""


@pytest.mark.slow
def test_killed_in_between_the_same_import_goes_on(whole: Path, tmp_path: Path) -> None:
    """Killed before the second experiment's seeds take their place; what is there is whole, and the rest follows."""
    sent, merged = archive(whole, tmp_path / "sent.zip"), tmp_path / "merged"
    done = subprocess.run([sys.executable, "-c", KILLED, str(sent), str(merged), "4"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(open_bench.load_runs(merged).scores) == 4
    open_bench.import_results(sent, results=merged)
    assert contents(merged) == {n: d for n, d in contents(whole).items() if n.startswith("experiments/")}
    assert not list(merged.glob("**/.tmp-*"))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_seeds_that_differ_are_a_conflict_named(whole: Path, copy: Path, tmp_path: Path) -> None:
    shard = next(shard for shard in shards(copy) if "--sgd--" in str(shard))
    changed(shard, 2, final_return=7.5)
    mine = Path(shutil.copytree(whole, tmp_path / "mine"))
    name = shard.parent.name
    refused(
        rf"{name}: seed 2 has other numbers in {copy} than in {mine}.*{name}: `openbench verify`", copy, results=mine
    )
    refused(rf"seed 2 has other numbers in {copy} than in {whole}", whole, copy, results=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_descriptions_that_differ_are_a_conflict_named(whole: Path, copy: Path) -> None:
    (experiment,) = copy.glob("experiments/*--adam--*")
    edit_json(experiment / "experiment.json", lambda content: content.update(hyperparameter_origin="given"))
    refused(f"{experiment.name} has another hyperparameter_origin in {copy} than in {whole}", copy, results=whole)


def test_a_tampered_row_is_found_by_its_digest_and_named(copy: Path, tmp_path: Path) -> None:
    shard = shards(copy)[0]
    text = (shard / "scores.csv").read_text()
    (shard / "scores.csv").write_text(text.replace("0,False", "0,True", 1))
    refused(f"{shard}: scores.csv is not what was written .its digest differs", copy, results=tmp_path / "new")


def test_another_protocol_is_refused_by_name(copy: Path, tmp_path: Path) -> None:
    (experiment,) = copy.glob("experiments/*--adam--*")
    other = renamed(experiment, lambda content: content["identity"].update(protocol=1))
    refused(f"{other} follows protocol 1, and this is 2", copy, results=tmp_path / "new")


def test_folders_of_nothing_are_refused(tmp_path: Path, whole: Path) -> None:
    results = tmp_path / "new"
    (tmp_path / "empty").mkdir()
    (tmp_path / "old" / "runs").mkdir(parents=True)
    refused("holds no runs", tmp_path / "empty", results=results)
    refused("holds runs of version 1", tmp_path / "old", results=results)
    refused("there is no such archive or folder", tmp_path / "nowhere", results=results)
    refused("is the folder that is imported into", whole, results=whole)
    refused("nothing to import", results=results)
    assert not results.exists()
    for target, message in (("x.tar", "end it in .zip"), ("x.zip", "no stored runs")):
        with pytest.raises(UserError, match=message):
            open_bench.export(tmp_path / target, tmp_path / "empty")


def test_columns_that_earlier_versions_lack_are_no_conflict(whole: Path, copy: Path) -> None:
    """What an experiment does not say is nothing: no tuning, no meta-training."""
    popped: list[str] = []

    def forget(content: dict[str, object]) -> None:
        names = [name for name, nothing in ABSENT.items() if content[name] == nothing]
        for name in names:
            del content[name]
        popped.extend(names)

    for path in copy.glob("experiments/*/experiment.json"):
        edit_json(path, forget)
    assert set(popped) == set(ABSENT)  # the random policy was not tuned
    assert added(open_bench.import_results(whole, results=copy)) == {str(whole): [0, 12]}


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_is_refused(kind: str, copy: Path, tmp_path: Path) -> None:
    path = shards(copy)[0] / "scores.csv"
    path.unlink()
    if kind == "link":
        (tmp_path / "elsewhere.csv").write_text("seed\n0\n")
        path.symlink_to(tmp_path / "elsewhere.csv")
    else:
        os.mkfifo(path)
    refused(f"{path} is neither a file nor a folder, but a link or a device", copy, results=tmp_path / "new")


def test_a_shard_tells_of_no_files_elsewhere(copy: Path, tmp_path: Path) -> None:
    shard = shards(copy)[0]
    (shard.parent / "secret.csv").write_text("seed\n0\n")
    edit_json(shard / "provenance.json", lambda facts: facts["files"].update({"../secret.csv": "0"}))
    refused(r"'../secret.csv' is no name of a file", copy, results=tmp_path / "new")


@pytest.mark.parametrize(
    ("file", "content"), [("agents.safetensors", b"no"), ("more.csv", b"a\n1\n"), ("x.csv", b"seed\n9\n")]
)
def test_further_files_must_tell_of_the_shards_seeds(file: str, content: bytes, copy: Path, tmp_path: Path) -> None:
    shard = shards(copy)[0]
    (shard / file).write_bytes(content)
    edit_json(shard / "provenance.json", lambda facts: facts["files"].update({file: ""}))
    redigest(shard)
    refused(f"{shard}: {file}: ", copy, results=tmp_path / "new")


def test_a_strangers_folder_runs_no_code(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer, an algorithm and an environment of modules that could be imported: they are only names."""
    (tmp_path / "evil_code.py").write_text(EVIL)
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = (
        {"optimizer": "evil_code:SPEC#0123", "code": "0123"},
        {"algorithm": "evil_code:Algorithm"},
        {"source": "evil_code:Environment", "environment": "evil_code:Environment"},
    )
    for name, change in zip(Store(copy).names(), changes, strict=True):
        renamed(copy / "experiments" / name, lambda content, change=change: content["identity"].update(change))
    sent = archive(copy, tmp_path / "sent.zip")
    open_bench.import_results(sent, results=tmp_path / "merged")
    open_bench.export(tmp_path / "table.csv", tmp_path / "merged")
    with pytest.raises(UserError, match=r"\(evil_code:SPEC\): --own-code.*evil_code:Algorithm.*evil_code:Env"):
        open_bench.verify(results=tmp_path / "merged")
    assert not (tmp_path / "was_imported").exists()
    with pytest.raises(UserError, match="nothing can be run again"):
        open_bench.verify(results=tmp_path / "merged", own_code=True)
    assert (tmp_path / "was_imported").exists()  # so the test could have seen it


# --- a table ----------------------------------------------------------------------------------------------------------


def test_the_tidy_table_has_a_row_a_seed_and_no_formula(copy: Path, tmp_path: Path) -> None:
    (experiment,) = copy.glob("experiments/*--sgd--*")
    renamed(experiment, lambda content: content["identity"].update(optimizer="=1+1"))
    table = pd.read_csv(open_bench.export(tmp_path / "runs.csv", copy))
    assert len(table) == 12
    assert set(table["optimizer"]) == {"adam", "random", "'=1+1"}
    one = open_bench.load_runs(copy).scores.set_index(["experiment", "seed"])["final_return"]
    pd.testing.assert_series_equal(
        table.set_index(["experiment", "seed"])["final_return"].sort_index(), one.sort_index()
    )
    assert {"root_seed", "hyperparameters", "hardware", "revision", "diverged"} <= set(table)
