"""Experiments on disk: what is stored comes back, folders merge, damage is named and mended, nothing is lost."""

import dataclasses
import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from tiny import SEEDS, STEPS, Log, random_policy, same, shards, tables, train

import open_bench
from open_bench.errors import UserError
from open_bench.experiments.execute import description
from open_bench.experiments.store import Store

# The random policy: nothing here depends on what was trained.
CHOSEN = random_policy()
DESCRIPTION = description(CHOSEN)
FACTS = {"run_seconds": 2.0, "compile_seconds": 1.0, "env_steps": 10, "hardware": "abacus", "revision": "r"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One experiment with four seeds."""
    return train(tmp_path_factory.mktemp("finished"), [CHOSEN])


@pytest.fixture
def copy(finished: Store, tmp_path: Path) -> Store:
    """A copy of it to spoil."""
    shutil.copytree(finished.results, tmp_path / "copy")
    return Store(tmp_path / "copy")


# --- what is stored ---------------------------------------------------------------------------------------------------


def frames(seeds: Sequence[int], returns: Sequence[float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    scores = pd.DataFrame(
        {
            "seed": seeds,
            "final_return": returns,
            "mean_return": list(returns)[::-1],
            "diverged": [bool(np.isnan(value)) for value in returns],
            "env_steps": STEPS,
        }
    )
    return scores, pd.DataFrame({"seed": seeds, "env_steps": STEPS, "episode_return": returns})


@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(st.floats(-1e11, 1e11), st.just(float("nan"))), min_size=1, max_size=5), st.data())
def test_what_is_stored_comes_back_bit_for_bit(returns: list[float], data: Any) -> None:
    seeds = data.draw(st.lists(st.integers(0, 50), min_size=len(returns), max_size=len(returns), unique=True))
    scores, curves = frames(seeds, returns)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.check_writable()
        store.create(CHOSEN, DESCRIPTION)
        store.add(CHOSEN, scores, curves, FACTS)
        assert store.seeds(CHOSEN) == set(seeds)
        runs = store.load()
        assert not list(store.experiments.glob("**/.tmp-*"))
    pd.testing.assert_frame_equal(runs.scores[list(scores)], scores, check_exact=True)
    pd.testing.assert_frame_equal(runs.curves[list(curves)], curves, check_exact=True)
    assert set(runs.scores["experiment"]) == {CHOSEN.name} == set(runs.experiments["experiment"])
    assert (runs.experiments["steps_per_second"] == 5.0).all()


def test_only_the_seeds_that_were_asked_for_are_read(finished: Store) -> None:
    runs = finished.load([CHOSEN], num_seeds=2)
    assert set(runs.scores["seed"]) == set(runs.curves["seed"]) == {0, 1}
    assert len(runs.experiments) == 1


def test_a_folder_that_cannot_be_written_is_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write results to .*file/results: "):
        Store(tmp_path / "file" / "results").check_writable()
    with pytest.raises(UserError, match="no stored runs"):
        open_bench.load_runs(tmp_path)


def test_a_folder_of_version_1_is_refused_by_name(tmp_path: Path) -> None:
    cell = tmp_path / "runs" / "cartpole--adam--0123456789" / "cell.json"
    cell.parent.mkdir(parents=True)
    cell.write_text("{}")
    message = rf"{tmp_path} holds runs of version 1 .*name another --results folder"
    for use in (
        Store(tmp_path).check_writable,
        Store(tmp_path).load,
        lambda: open_bench.load_runs(tmp_path),
        lambda: open_bench.leaderboard(tmp_path),
        lambda: open_bench.train("adam", "cartpole", results=tmp_path, steps=512),
        lambda: open_bench.compare(environments=["cartpole"], results=tmp_path, steps=5_120),
        lambda: open_bench.generalize("adam", results=tmp_path),
        lambda: open_bench.meta_train("open", ["cartpole"], results=tmp_path),
    ):
        with warnings.catch_warnings(), pytest.raises(UserError, match=message):
            warnings.simplefilter("error")  # nothing is said of a study that is not run
            use()
    with pytest.raises(UserError, match="runs holds runs of version 1"):
        open_bench.leaderboard(tmp_path / "runs")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [cell]


# --- merged folders ---------------------------------------------------------------------------------------------------


def merged(finished: Store, tmp_path: Path) -> Store:
    """Another machine's folder, whose shards have other sizes, copied over it."""
    other = train(tmp_path / "other", [CHOSEN], num_seeds=3, devices=2)
    shutil.copytree(finished.results, tmp_path / "merged")
    shutil.copytree(other.results, tmp_path / "merged", dirs_exist_ok=True)
    return Store(tmp_path / "merged")


@pytest.mark.slow
def test_overlapping_shards_of_other_sizes_merge_when_equal(finished: Store, tmp_path: Path) -> None:
    store = merged(finished, tmp_path)
    assert [path.name for path in shards(store.results)] == ["shard-0000-0001", "shard-0000-0003", "shard-0002"]
    same(tables(store), tables(finished))
    assert store.seeds(CHOSEN) == {0, 1, 2, 3}
    log = Log()
    train(store.results, [CHOSEN], num_seeds=5, watcher=log)
    assert log.started == [("random", [4])]


def test_shards_that_differ_are_named(finished: Store, tmp_path: Path) -> None:
    """The first by name stands; nothing is averaged or counted twice."""
    store = merged(finished, tmp_path)
    late = store.path(CHOSEN) / "shard-0002"
    edit_scores(late, final_return=7.0)
    redigest(late)
    with pytest.warns(UserWarning, match=f"{late}: seed 2 is stored twice, with other numbers"):
        runs = store.load()
    expected = finished.load()
    by_seed = lambda frame: frame.sort_values("seed", ignore_index=True)
    pd.testing.assert_frame_equal(by_seed(runs.scores), by_seed(expected.scores), check_exact=True)


# --- damage -----------------------------------------------------------------------------------------------------------


def redigest(shard: Path) -> None:
    """Make the digests fit what was changed."""
    digest = lambda name: hashlib.sha256((shard / name).read_bytes()).hexdigest()
    edit_json(shard / "provenance.json", lambda content: content.update(files={n: digest(n) for n in content["files"]}))


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_scores(shard: Path, **columns: Any) -> None:
    pd.read_csv(shard / "scores.csv").assign(**columns).to_csv(shard / "scores.csv", index=False)


def redigested(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def spoil(shard: Path) -> None:
        change(shard)
        redigest(shard)

    return spoil


def _truncate(shard: Path) -> None:
    path = shard / "scores.csv"
    path.write_bytes(path.read_bytes()[:-30])


def _missing_row(shard: Path) -> None:
    pd.read_csv(shard / "scores.csv")[1:].to_csv(shard / "scores.csv", index=False)


def _curve_of_nobody(shard: Path) -> None:
    pd.read_csv(shard / "curves.csv").assign(seed=9).to_csv(shard / "curves.csv", index=False)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a directory")


SHARD_DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated scores": _truncate,
    "wrong return": lambda shard: edit_scores(shard, final_return=500.0),
    "extra column": redigested(lambda shard: edit_scores(shard, mood="good")),
    "text for a number": redigested(lambda shard: edit_scores(shard, final_return="high")),
    "missing row": redigested(_missing_row),
    "no curves": lambda shard: (shard / "curves.csv").unlink(),
    "no provenance": lambda shard: (shard / "provenance.json").unlink(),
    "broken provenance": lambda shard: (shard / "provenance.json").write_text("{"),
    "deep provenance": lambda shard: (shard / "provenance.json").write_text("[" * 100_000),
    "provenance of nothing": lambda shard: (shard / "provenance.json").write_text('{"files": {}}'),
    "provenance without times": lambda shard: edit_json(shard / "provenance.json", lambda c: c.pop("run_seconds")),
    "a time that is text": lambda shard: edit_json(shard / "provenance.json", lambda c: c.update(run_seconds="long")),
    "empty shard": _empty,
    "file for a shard": _file_instead,
}
EXPERIMENT_DAMAGE: dict[str, Callable[[Path], Any]] = {
    "broken description": lambda folder: (folder / "experiment.json").write_text('{"identity": '),
    "description of another kind": lambda folder: (folder / "experiment.json").write_text("[]"),
    "no description": lambda folder: (folder / "experiment.json").unlink(),
    "binary description": lambda folder: (folder / "experiment.json").write_bytes(b"\xff\xfe"),
    "another experiment's description": lambda folder: edit_json(
        folder / "experiment.json", lambda content: content["identity"].update(root_seed=5)
    ),
    "description without family": lambda folder: edit_json(
        folder / "experiment.json", lambda content: content.pop("family")
    ),
    "description without metrics": lambda folder: edit_json(
        folder / "experiment.json", lambda content: content.pop("metrics")
    ),
    "steps that nobody can count": lambda folder: edit_json(
        folder / "experiment.json", lambda content: content.update(env_steps=10**400)
    ),
    "empty experiment": _empty,
    "file for an experiment": _file_instead,
}


@pytest.mark.parametrize("kind", [*SHARD_DAMAGE, *EXPERIMENT_DAMAGE])
def test_damage_is_named_skipped_and_mended(kind: str, copy: Store, finished: Store) -> None:
    experiment = copy.path(CHOSEN)
    spoiled = next(experiment.glob("shard-*")) if kind in SHARD_DAMAGE else experiment
    {**SHARD_DAMAGE, **EXPERIMENT_DAMAGE}[kind](spoiled)
    with pytest.warns(UserWarning, match=r"^skipped ") as found:
        runs = copy.load()
    assert any(str(spoiled) in str(warning.message) for warning in found)
    assert len(runs.scores) == len(runs.curves) == len(runs.experiments) == 0
    log = Log()
    with pytest.warns(UserWarning, match=r"is damaged; moved to .*damaged-"):
        train(copy.results, [CHOSEN], watcher=log)
    assert log.started == [("random", [0, 1, 2, 3])]
    assert list(copy.experiments.glob("**/.damaged-*"))  # nothing was deleted
    same(tables(copy), tables(finished))


# With digests that fit, as whoever edits a file can make them.
OUT_OF_RANGE: dict[str, Callable[[Path], Any]] = {
    "a return of 1e20": redigested(lambda shard: edit_scores(shard, final_return=1e20)),
    "an infinite return": redigested(lambda shard: edit_scores(shard, mean_return=np.inf)),
    "a huge seed": redigested(lambda shard: edit_scores(shard, seed=[0, 1, 2, 10**17])),
    "a negative seed": redigested(lambda shard: edit_scores(shard, seed=[-1, 1, 2, 3])),
    "a seed twice": redigested(lambda shard: edit_scores(shard, seed=[0, 0, 2, 3])),
    "steps beyond integers": redigested(lambda shard: edit_scores(shard, env_steps=10**25)),
    "no steps": redigested(lambda shard: edit_scores(shard, env_steps=0)),
    "a curve of no seed": redigested(_curve_of_nobody),
    "years of 1e300 seconds": lambda shard: edit_json(
        shard / "provenance.json", lambda content: content.update(run_seconds=1e300)
    ),
    "a revision that is a list": lambda shard: edit_json(
        shard / "provenance.json", lambda content: content.update(revision=[1])
    ),
}


@pytest.mark.parametrize("kind", OUT_OF_RANGE)
def test_what_breaks_the_schema_is_named_and_skipped(kind: str, finished: Store, tmp_path: Path) -> None:
    """One experiment never stops the board of the others."""
    other = dataclasses.replace(CHOSEN, root_seed=1)
    shutil.copytree(finished.results, tmp_path / "results")
    store = Store(tmp_path / "results")
    store.create(other, description(other))
    scores, curves = frames([0, 1, 2, 3], [1.0, 2.0, 3.0, 4.0])
    shard = store.add(other, scores, curves, FACTS)
    OUT_OF_RANGE[kind](shard)
    with pytest.warns(UserWarning, match=rf"^skipped {store.path(other)}"):
        runs = store.load()
    pd.testing.assert_frame_equal(runs.scores, finished.load().scores, check_exact=True)
    assert list(runs.experiments["experiment"]) == [CHOSEN.name]
    assert store.seeds(other) == set()  # so that it would be made anew, and not be called stored already


def test_a_description_becomes_todays(finished: Store, tmp_path: Path) -> None:
    """The same settings may have come from nowhere, and be found again by tuning."""
    shutil.copytree(finished.results, tmp_path / "results")
    store = Store(tmp_path / "results")
    before = (store.path(CHOSEN) / "experiment.json").read_bytes()
    store.refresh(CHOSEN, DESCRIPTION)
    assert (store.path(CHOSEN) / "experiment.json").read_bytes() == before
    store.refresh(CHOSEN, DESCRIPTION | {"hyperparameter_origin": "tuned", "tuning_trials": 32})
    (row,) = store.load().experiments.to_dict("records")
    assert (row["hyperparameter_origin"], row["tuning_trials"]) == ("tuned", 32)
    assert store.seeds(CHOSEN) == finished.seeds(CHOSEN) != set()


def test_what_a_theta_cost_and_what_shards_hold_stays(finished: Store, tmp_path: Path) -> None:
    """The same θ may be given without its metadata, and a later version may measure more."""
    shutil.copytree(finished.results, tmp_path / "results")
    store = Store(tmp_path / "results")
    edit_json(store.path(CHOSEN) / "experiment.json", lambda content: content.update(meta_env_steps=10**9))
    store.refresh(CHOSEN, DESCRIPTION | {"meta_env_steps": 0, "metrics": {**DESCRIPTION["metrics"], "more": "more"}})
    (row,) = store.load().experiments.to_dict("records")
    assert row["meta_env_steps"] == 10**9
    assert store.seeds(CHOSEN) == finished.seeds(CHOSEN) != set()


def test_a_copy_of_a_shard_that_overlaps_is_whole(finished: Store, tmp_path: Path) -> None:
    """Of two that share seeds the second counts fewer than its files hold."""
    shutil.copytree(finished.results, tmp_path / "results")
    store = Store(tmp_path / "results")
    whole = store.read(CHOSEN.name).shards[0]
    seeds = [int(seed) for seed in whole.scores["seed"]]
    reduced = whole._replace(scores={name: column[1:] for name, column in whole.scores.items()})
    other = dataclasses.replace(CHOSEN, root_seed=1)
    store.create(other, description(other))
    store.add_copy(other, reduced)
    assert store.seeds(other) == {*seeds}
    assert store.read(other.name).damaged == []


def test_one_damaged_shard_leaves_the_others(tmp_path: Path, finished: Store) -> None:
    store = train(tmp_path, [CHOSEN], devices=2)
    bad, good = shards(tmp_path)
    edit_scores(bad, final_return=500.0)
    with pytest.warns(UserWarning, match=f"{bad}: scores.csv is not what was written"):
        assert list(store.load().scores["seed"]) == [2, 3]
    log = Log()
    with pytest.warns(UserWarning, match="is damaged; moved to"):
        train(tmp_path, [CHOSEN], watcher=log)
    assert log.started == [("random", [0, 1])]
    assert good.is_dir()
    same(tables(store), tables(finished))


@pytest.mark.parametrize("kind", ["file", "empty folder", "copy of an experiment", "folder of something else"])
def test_what_is_foreign_is_named_and_left_alone(kind: str, copy: Store, finished: Store) -> None:
    foreign = copy.experiments / "a-stranger"
    if kind == "file":
        foreign.write_text("notes")
    elif kind == "copy of an experiment":
        shutil.copytree(copy.path(CHOSEN), foreign)
    else:
        foreign.mkdir()
        if kind == "folder of something else":
            (foreign / "scores.csv").write_text("seed,final_return\n0,1e9\n")
    with pytest.warns(UserWarning, match=f"skipped {foreign}"):
        runs = copy.load()
    pd.testing.assert_frame_equal(runs.scores, finished.load().scores)
    log = Log()
    train(copy.results, [CHOSEN], watcher=log)
    assert not log.started
    assert foreign.exists()


def test_a_copied_shard_neither_counts_twice_nor_hides_the_experiment(copy: Store, finished: Store) -> None:
    original = next(copy.path(CHOSEN).glob("shard-*"))
    foreign = original.with_name("shard-0004-0007")
    shutil.copytree(original, foreign)
    with pytest.warns(UserWarning, match=f"skipped {foreign}"):
        runs = copy.load()
    pd.testing.assert_frame_equal(runs.scores, finished.load().scores)
    assert copy.seeds(CHOSEN) == {0, 1, 2, 3}


def test_what_a_killed_writer_left_is_invisible_and_cleared(copy: Store, finished: Store) -> None:
    own = copy.experiments / f".tmp-{CHOSEN.name}-2"
    for leftover in (copy.experiments / ".tmp-1", copy.path(CHOSEN) / ".tmp-2", own):
        leftover.mkdir()
        (leftover / "scores.csv").write_text("seed")
    same(tables(copy), tables(finished))
    train(copy.results, [CHOSEN], num_seeds=SEEDS + 1)
    assert not (copy.path(CHOSEN) / ".tmp-2").exists()
    assert not own.exists()


class Full(pd.DataFrame):
    """A table that cannot be written."""

    def to_csv(self, *arguments: Any, **options: Any) -> Any:
        raise OSError("disk full")


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.check_writable()
    store.create(CHOSEN, DESCRIPTION)
    scores, curves = frames([0], [1.0])
    for tables_given in ((Full(scores), curves), (scores, Full(curves))):
        with pytest.raises(OSError, match="disk full"):
            store.add(CHOSEN, *tables_given, FACTS)
    assert [path.name for path in store.path(CHOSEN).iterdir()] == ["experiment.json"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.load().scores.empty


# --- diagnosis --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(width=32), min_size=2, max_size=6), st.booleans())
def test_diagnosis_comes_back_bit_for_bit(values: list[float], infinite: bool) -> None:
    """Whatever the diagnostics are called; NaN and infinite ones too."""
    values = [*values, np.inf] if infinite else values
    scores, curves = frames([3], [1.0])
    steps = np.arange(1, len(values) + 1) * 10
    diagnosis = pd.DataFrame({"seed": 3, "env_steps": steps, "policy_kl": values, "mood": values[::-1]})
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.check_writable()
        store.create(CHOSEN, DESCRIPTION)
        store.add(CHOSEN, scores, curves, FACTS, diagnosis=diagnosis)
        assert store.diagnosed_seeds(CHOSEN) == {3}
        found = store.load().diagnosis
    pd.testing.assert_frame_equal(found[list(diagnosis)], diagnosis, check_exact=True)
    assert set(found["experiment"]) == {CHOSEN.name}


def _with_diagnosis(tmp_path: Path) -> tuple[Store, Path]:
    store, (scores, curves) = Store(tmp_path), frames([0, 1], [1.0, 2.0])
    store.create(CHOSEN, DESCRIPTION)
    diagnosis = pd.DataFrame({"seed": [0, 1], "env_steps": STEPS, "entropy": [0.1, 0.2]})
    return store, store.add(CHOSEN, scores, curves, FACTS, diagnosis=diagnosis)


DIAGNOSIS_DAMAGE: dict[str, tuple[str, str]] = {
    "tampered": ("seed,env_steps,entropy\n0,1280,0.3\n1,1280,0.2\n", "diagnosis.csv is not what was written"),
    "of nobody": ("seed,env_steps,entropy\n7,1280,0.3\n", "diagnosis: these seeds have no scores .*seed 7"),
    "a point twice": ("seed,env_steps,entropy\n1,1280,0.3\n1,1280,0.3\n", "diagnosis: a point appears twice"),
    "no number": ("seed,env_steps,entropy\n1,1280,high\n", "diagnosis.csv: .*high"),
    "other columns": ("seed,entropy\n1,0.3\n", "diagnosis.csv: its columns are seed, entropy"),
    "a label": ("seed,env_steps,optimizer\n1,1280,0.3\n", "diagnosis.csv: its columns are seed"),
}


@pytest.mark.parametrize("damage", DIAGNOSIS_DAMAGE)
def test_a_damaged_diagnosis_is_named_and_its_shard_skipped(damage: str, tmp_path: Path) -> None:
    store, shard = _with_diagnosis(tmp_path)
    text, message = DIAGNOSIS_DAMAGE[damage]
    (shard / "diagnosis.csv").write_text(text)
    if damage != "tampered":
        redigest(shard)
    with pytest.warns(UserWarning, match=f"skipped {shard}: {message}"):
        assert store.load().scores.empty
    assert store.seeds(CHOSEN) == store.diagnosed_seeds(CHOSEN) == set()


def test_shards_with_and_without_diagnosis_stand_together(tmp_path: Path) -> None:
    store, _ = _with_diagnosis(tmp_path)
    store.add(CHOSEN, *frames([2], [3.0]), FACTS)
    runs = store.load()
    assert sorted(runs.scores["seed"]) == [0, 1, 2]
    assert list(runs.diagnosis["seed"]) == [0, 1]
    assert list(store.load(num_seeds=1).diagnosis["entropy"]) == [0.1]
    assert list(runs.select(optimizer="random").diagnosis["entropy"]) == [0.1, 0.2]
    assert runs.select(optimizer="adam").diagnosis.empty


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_an_experiment_brings_the_columns_that_it_lists(tmp_path: Path) -> None:
    """Whoever reads needs no list of metrics: an unknown one is a column, NaN where an experiment lacks it."""
    store, other = Store(tmp_path), dataclasses.replace(CHOSEN, root_seed=1)
    store.check_writable()
    scores, curves = frames([0, 1], [1.0, 2.0])
    store.create(CHOSEN, DESCRIPTION)
    store.add(CHOSEN, scores, curves, FACTS)
    own = {**DESCRIPTION, "metrics": {**DESCRIPTION["metrics"], "steadiness": "how steady"}}
    store.create(other, own)
    store.add(other, scores.assign(steadiness=[0.5, np.nan]), curves, FACTS)
    runs = store.load()
    assert runs.metrics["steadiness"] == "how steady"
    found = runs.scores.set_index(["experiment", "seed"])["steadiness"]
    assert found[other.name, 0] == 0.5
    assert found.isna().sum() == 3
