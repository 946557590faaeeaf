"""Trials of tuning travel and merge, trial by trial and seed by seed."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from exchanged import chosen, contents, edit_json, invented, searched
from tiny import random_policy

import open_bench
from open_bench.errors import UserError
from open_bench.evaluation.trials import read_trials
from open_bench.experiments.experiment import folder_name

PAIRS = [(trial, seed) for trial in range(4) for seed in range(2)]


def tables(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name.startswith("tuning/")}


def provenance(folder: Path) -> list[Any]:
    (path,) = folder.glob("tuning/*/provenance.json")
    return list(json.loads(path.read_text()))


def test_trials_made_apart_merge_into_those_of_one_folder(tmp_path: Path) -> None:
    searched(tmp_path / "one", PAIRS)
    searched(tmp_path / "first", PAIRS[:5])
    searched(tmp_path / "second", PAIRS[3:])
    invented(tmp_path / "second", [random_policy()], range(2))
    sent = open_bench.export(tmp_path / "second.zip", tmp_path / "second")
    found = open_bench.import_results(tmp_path / "first", sent, results=tmp_path / "merged")
    lifetimes = found[found["counted"] == "lifetime"].set_index("source")
    assert lifetimes[["added", "known"]].to_numpy().tolist() == [[5, 0], [3, 2]]
    assert set(lifetimes["optimizer"]) == {"sgd"}
    pd.testing.assert_frame_equal(read_trials(tmp_path / "merged"), read_trials(tmp_path / "one"))
    mine, one = tables(tmp_path / "merged"), tables(tmp_path / "one")
    assert mine.keys() == one.keys()
    assert [name for name in mine if mine[name] != one[name]] == [name for name in mine if "provenance" in name]
    assert [len(batch["lifetimes"]) for batch in provenance(tmp_path / "merged")] == [5, 5]
    again = open_bench.import_results(tmp_path / "one", results=tmp_path / "merged")
    assert again[["added", "known"]].to_numpy().tolist() == [[0, 8]]
    assert tables(tmp_path / "merged") == mine


def refused(message: str, source: Path, results: Path) -> None:
    before = contents(results) if results.exists() else None
    with pytest.raises(UserError, match=message):
        open_bench.import_results(source, results=results)
    assert (contents(results) if results.exists() else None) == before


def test_trials_that_differ_are_a_conflict_named_and_nothing_is_written(tmp_path: Path) -> None:
    job, mine = searched(tmp_path / "theirs", PAIRS), searched(tmp_path / "mine", PAIRS[:4])
    invented(tmp_path / "theirs", chosen(), range(2))
    rows = pd.read_csv(job.path / "trials.csv", float_precision="round_trip")
    rows.loc[3, "final_return"] += 1
    rows.to_csv(job.path / "trials.csv", index=False)
    message = f"{job.name}: trial 1 .seed 1. has other numbers in {tmp_path / 'theirs'} than in {mine.path}"
    refused(message, tmp_path / "theirs", tmp_path / "mine")
    assert not (tmp_path / "mine" / "experiments").exists()


def _identity(**changes: Any) -> Callable[[Path], None]:
    """Another identity, under the name that goes with it."""

    def spoil(path: Path) -> None:
        edit_json(path / "tuning.json", lambda content: content["identity"].update(changes))
        path.rename(path.with_name(folder_name(json.loads((path / "tuning.json").read_text())["identity"])))

    return spoil


def _link(path: Path) -> None:
    (path / "trials.csv").rename(path.parent.parent / "trials.csv")
    (path / "trials.csv").symlink_to(path.parent.parent / "trials.csv")


UNSOUND: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another protocol": (_identity(protocol=1), "follows protocol 1, and this is 2"),
    "a budget that leads elsewhere": (_identity(budget="../../quick"), "no name that open-bench gives"),
    "no identity": (lambda path: (path / "tuning.json").write_text("[]"), "no readable trials"),
    "another name": (lambda path: path.rename(path.with_name("cartpole--sgd--0123456789")), "describes cartpole"),
    "no rows": (lambda path: (path / "trials.csv").unlink(), "no readable trials"),
    "rows of something": (lambda path: (path / "trials.csv").write_text("trial\nx\n"), "no readable trials"),
    "no curve of theirs": (
        lambda path: (path / "curves.csv").write_text("trial,seed,env_steps,episode_return\n9,9,1,1\n"),
        "curves of others",
    ),
    "a link": (_link, "neither a file nor a folder"),
}


@pytest.mark.parametrize("what", UNSOUND)
def test_unsound_trials_are_refused_by_name(what: str, tmp_path: Path) -> None:
    spoil, message = UNSOUND[what]
    spoil(searched(tmp_path / "theirs", PAIRS).path)
    refused(f"{re.escape(str(tmp_path / 'theirs'))}.*{message}", tmp_path / "theirs", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_damaged_trials_are_left_out_of_an_archive_with_a_warning(tmp_path: Path) -> None:
    invented(tmp_path / "mine", [random_policy()], range(2))
    (searched(tmp_path / "mine", PAIRS).path / "trials.csv").write_text("trial\nx\n")
    with pytest.warns(UserWarning, match="left out .*no readable trials"):
        sent = open_bench.export(tmp_path / "mine.zip", tmp_path / "mine")
    open_bench.import_results(sent, results=tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "tuning").exists()
