"""Files are written whole or not at all, and what goes wrong says where."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from open_bench.files import file_written_whole, folder_written_whole, read_json, write_atomically


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may be longer than 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there_and_names_the_file(tmp_path: Path, full_disk: None) -> None:
    path = write_atomically(tmp_path / "a.csv", "before")
    with pytest.raises(OSError, match="File too large") as error:
        write_atomically(path, "x" * 1000)
    assert error.value.filename == str(path)
    with pytest.raises(OSError, match="File too large") as error, folder_written_whole(tmp_path / "shard") as folder:
        (folder / "small").write_text("x")
        (folder / "large").write_text("x" * 1000)
    assert error.value.filename == str(tmp_path / "shard")
    assert os.listdir(tmp_path) == ["a.csv"]
    assert path.read_text() == "before"


def test_what_killed_writers_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    left = tmp_path / ".a[1].csv.123-abcdef01.tmp"
    for name in (left.name, ".b.csv.123-abcdef01.tmp"):
        (tmp_path / name).write_bytes(b"half")
    with file_written_whole(tmp_path / "a[1].csv") as slow:
        assert not left.exists()
        slow.write(b"slow")
        write_atomically(tmp_path / "a[1].csv", "fast")
        assert len(list(tmp_path.glob(".a*"))) == 1
    assert (tmp_path / "a[1].csv").read_bytes() == b"slow"
    assert sorted(os.listdir(tmp_path)) == [".b.csv.123-abcdef01.tmp", "a[1].csv"]


def test_what_is_written_is_locked_until_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another writer of the same file may take it for a leftover just then."""
    replace = os.replace

    def disturbed(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        write_atomically(target, "another's")
        replace(source, target)

    monkeypatch.setattr(os, "replace", disturbed)
    write_atomically(tmp_path / "board.csv", "mine")
    assert (tmp_path / "board.csv").read_text() == "mine"
    assert os.listdir(tmp_path) == ["board.csv"]


def test_a_block_that_fails_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), file_written_whole(tmp_path / "file") as file:
        file.write(b"x")
        raise KeyError
    with pytest.raises(KeyError), folder_written_whole(tmp_path / "folder") as folder:
        (folder / "x").write_text("x")
        raise KeyError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json_is_a_value_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r".+"):
        read_json(tmp_path / "x.json")
    with pytest.raises(OSError, match="No such file"):
        read_json(tmp_path / "y.json")
