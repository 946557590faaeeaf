"""Checkpoints of batches under way: exact, atomic, and ignored when damaged."""

import itertools
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from tiny import SEEDS, Log, Stop, equal, experiments, same, shards, tables, train

from open_bench.errors import UserError
from open_bench.events import Advanced, several
from open_bench.experiments.checkpoint import BatchCheckpoint, read, remove_batches, write
from open_bench.experiments.execute import description
from open_bench.experiments.store import Store

CONTENT = {"b": np.arange(6, dtype=np.int32).reshape(2, 3), "a": np.float32([1.5, np.nan])}
FACTS = {"update": 3, "seconds": 0.1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One experiment with four seeds."""
    return train(tmp_path_factory.mktemp("finished"), experiments())


# --- the file ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text("abc/_0", min_size=1, max_size=8),
        hnp.arrays(st.sampled_from([np.float32, np.int32, np.uint32, np.bool_]), hnp.array_shapes(min_dims=0)),
        max_size=4,
    ),
    st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False) | st.text(), max_size=3),
)
def test_what_is_written_comes_back(
    tmp_path_factory: Any, arrays: dict[str, np.ndarray], facts: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "c.safetensors"
    write(path, arrays, facts)
    saved = read(path)
    assert saved is not None
    assert saved.facts == facts
    assert saved.arrays.keys() == arrays.keys()
    equal([saved.arrays[name] for name in arrays], list(arrays.values()))


@pytest.mark.parametrize("where", range(0, 100, 7))
def test_a_damaged_file_counts_as_none(where: int, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write(path, CONTENT, FACTS)
    data = bytearray(path.read_bytes())
    place = where * (len(data) - 1) // 100
    for damaged in (data[:place], data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]):
        path.write_bytes(damaged)
        assert read(path) is None
    assert read(tmp_path / "absent") is None


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "file" / "c.safetensors", CONTENT, FACTS)
    write(tmp_path / "c.safetensors", CONTENT, FACTS)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ""] == ["c.safetensors"]


def test_a_batch_is_kept_in_the_order_of_its_leaves(tmp_path: Path) -> None:
    leaves = [np.full(2, index) for index in range(12)]
    checkpoint = BatchCheckpoint(tmp_path, [2, 3], 0.0)
    assert checkpoint.load() is None
    assert checkpoint.due()
    checkpoint.save(leaves, FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["partial-0002-0003-of-2.safetensors"]
    loaded = BatchCheckpoint(tmp_path, [2, 3], 1000.0).load()
    assert loaded is not None
    equal(loaded[0], leaves)
    assert loaded[1] == FACTS
    assert not BatchCheckpoint(tmp_path, [2, 3], 1000.0).due()
    assert BatchCheckpoint(tmp_path, [2, 3, 4], 0.0).load() is None  # another batch
    checkpoint.remove()
    checkpoint.save(leaves, FACTS)
    remove_batches(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [{"revision": "another"}, {"threads": 64}, {"processor": "arm64-1234"}, {"packages": None}, {"platform": "gpu"}],
)
def test_only_the_same_code_on_the_same_kind_of_machine_goes_on(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of which half were made elsewhere are no machine's, and provenance tells of one."""
    from open_bench.experiments import checkpoint

    BatchCheckpoint(tmp_path, [0], 0.0).save([np.zeros(2)], FACTS)
    assert BatchCheckpoint(tmp_path, [0], 0.0).load() is not None
    here = {**checkpoint.provenance(), **changes}
    monkeypatch.setattr(checkpoint, "provenance", lambda: here)
    with pytest.warns(UserWarning, match=r"\d+ updates of a batch were made on another kind of machine, or by another"):
        assert BatchCheckpoint(tmp_path, [0], 0.0).load() is None


def test_batches_with_the_same_ends_are_told_apart(tmp_path: Path) -> None:
    BatchCheckpoint(tmp_path, [0, 1, 3], 0.0).save([np.zeros(2)], FACTS)
    assert BatchCheckpoint(tmp_path, [0, 2, 3], 0.0).load() is None


# --- in use -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 4])
def test_a_checkpoint_in_the_middle_of_a_batch_is_exact(after: int, finished: Store, tmp_path: Path) -> None:
    first = Log()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, experiments(), devices=2, watcher=several([first, Stop(after)]), checkpoint_seconds=0.0)
    assert [path.name for path in tmp_path.glob("experiments/*/partial-*")] == ["partial-0000-0001-of-2.safetensors"]
    assert not shards(tmp_path)
    log = Log()
    store = train(tmp_path, experiments(), devices=2, watcher=log, checkpoint_seconds=0.0)
    segments = [event.updates for event in first.events if isinstance(event, Advanced)]
    assert len(segments) == after
    assert log.updates == SEEDS * 40 - sum(segments[:-1])  # all but the last, in which it died, were kept
    same(tables(store), tables(finished))
    assert not list(tmp_path.glob("experiments/*/partial-*"))


@pytest.mark.slow
def test_a_batch_begun_on_other_devices_is_begun_anew(finished: Store, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, experiments(), devices=2, watcher=Stop(3), checkpoint_seconds=0.0)
    log = Log()
    store = train(tmp_path, experiments(), devices=4, watcher=log)
    assert log.updates == SEEDS * 40
    same(tables(store), tables(finished))
    assert not list(tmp_path.glob("experiments/*/partial-*"))


@pytest.mark.slow
def test_diagnosis_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    stopped, whole = tmp_path / "stopped", train(tmp_path / "whole", experiments(), num_seeds=2, diagnose=True)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, experiments(), num_seeds=2, watcher=Stop(4), checkpoint_seconds=0.0, diagnose=True)
    log = Log()
    store = train(stopped, experiments(), num_seeds=2, watcher=log, diagnose=True)
    assert 0 < log.updates < 2 * 40
    same([store.load().diagnosis, *tables(store)], [whole.load().diagnosis, *tables(whole)])


@pytest.mark.slow
@pytest.mark.parametrize("diagnose", [False, True])
def test_a_batch_begun_with_or_without_diagnosis_is_begun_anew_where_that_changes(
    diagnose: bool, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, experiments(), num_seeds=2, watcher=Stop(3), checkpoint_seconds=0.0, diagnose=diagnose)
    log = Log()
    with pytest.warns(UserWarning, match="begun with other devices, or with or without --diagnose"):
        store = train(tmp_path, experiments(), num_seeds=2, watcher=log, diagnose=not diagnose)
    assert log.updates == 2 * 40
    assert store.load().diagnosis.empty == diagnose


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_checkpoint_is_begun_anew(content: bytes, finished: Store, tmp_path: Path) -> None:
    store, (chosen,) = Store(tmp_path), experiments()
    store.check_writable()
    folder = store.create(chosen, description(chosen))
    (folder / "partial-0000-0003-of-4.safetensors").write_bytes(content)
    log = Log()
    train(tmp_path, [chosen], watcher=log)
    assert log.updates == SEEDS * 40
    same(tables(store), tables(finished))
    assert not list(tmp_path.glob("experiments/*/partial-*"))


def test_a_checkpoint_of_another_state_is_begun_anew(finished: Store, tmp_path: Path) -> None:
    """Whole, and of the right name, but not what this program carries."""
    store, (chosen,) = Store(tmp_path), experiments()
    store.check_writable()
    folder = store.create(chosen, description(chosen))
    BatchCheckpoint(folder, list(range(SEEDS)), 0.0).save(list(CONTENT.values()), FACTS)
    log = Log()
    train(tmp_path, [chosen], watcher=log)
    assert log.updates == SEEDS * 40
    same(tables(store), tables(finished))


def test_segments_double_while_they_are_short(finished: Store, tmp_path: Path) -> None:
    """So that an interrupt, a checkpoint and a watcher wait for a second at most."""
    log = Log()
    train(tmp_path, experiments(), devices=4, watcher=log)
    lengths = [event.updates // SEEDS for event in log.events if isinstance(event, Advanced)]
    assert sum(lengths) == 40
    assert lengths[0] == 1
    assert all(after <= 2 * before for before, after in itertools.pairwise(lengths))
