"""Archives: the same bytes from the same runs, and nothing but what export writes is ever unpacked."""

import hashlib
import io
import json
import re
import stat
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from exchanged import contents
from hypothesis import example, given, settings

from open_bench.errors import UserError
from open_bench.exchange import archive
from open_bench.exchange.archive import MANIFEST, check_members, unpack, write_archive

MEMBERS: dict[str, Path | bytes] = {
    "runs.csv": b"seed\n0\n",
    "experiments/cartpole--adam--0123456789/experiment.json": b"{}",
    "experiments/cartpole--adam--0123456789/shard-0000/scores.csv": b"seed,final_return\n0,1.5\n",
}
SCORES = "experiments/cartpole--adam--0123456789/shard-0000/scores.csv"


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    write_archive(tmp_path / "sent.zip", MEMBERS, {"seeds": 1})
    return tmp_path / "sent.zip"


def test_what_is_packed_is_unpacked(sent: Path, tmp_path: Path) -> None:
    unpack(sent, tmp_path / "there")
    assert contents(tmp_path / "there") == MEMBERS
    write_archive(tmp_path / "again.zip", dict(reversed(MEMBERS.items())), {"seeds": 1})
    assert (tmp_path / "again.zip").read_bytes() == sent.read_bytes()


def test_what_changes_while_it_is_packed_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody tunes in the folder: each file is read once, and its digest is of what was read."""

    class Growing(type(tmp_path)):  # type: ignore[misc]
        reads = 0

        def read_bytes(self) -> bytes:
            Growing.reads += 1
            return b"{" + b" " * Growing.reads + b"}"

    name = "experiments/cartpole--adam--0123456789/experiment.json"
    write_archive(tmp_path / "sent.zip", {**MEMBERS, name: Growing(tmp_path / "x.json")}, {})
    unpack(tmp_path / "sent.zip", tmp_path / "there")
    assert (tmp_path / "there" / name).read_bytes() == b"{ }"


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(archive._LARGEST, ".csv", 5)
    with pytest.raises(
        UserError, match=r"would unpack to \d+ bytes, and 5 are allowed, so nothing is exported: export le"
    ):
        write_archive(tmp_path / "sent.zip", MEMBERS, {})
    assert list(tmp_path.iterdir()) == []


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def manifest(**changes: object) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.update({MANIFEST: json.dumps(json.loads(members[MANIFEST]) | changes).encode()})


UNSOUND = {
    "no manifest": (lambda members: members.pop(MANIFEST), "no archive of `openbench export`"),
    "manifest of nothing": (lambda members: members.update({MANIFEST: b"[1"}), "cannot be read"),
    "deep manifest": (lambda members: members.update({MANIFEST: b"[" * 100_000}), "cannot be read"),
    "another format": (manifest(format=2), "has format 2, and this open-bench reads format 1: update"),
    "another protocol": (manifest(protocol=1), "follows protocol 1, and this open-bench protocol 2"),
    "a member less": (lambda members: members.pop(SCORES), f"'{SCORES}' is in the archive or in its"),
    "a member more": (lambda members: members.update({"leaderboard.md": b""}), "'leaderboard.md' is in the archive or"),
    "other content": (lambda members: members.update({SCORES: b"seed\n"}), f"{SCORES} is not what was written"),
    "up": (lambda members: members.update({"../x": b""}), r"the member '\.\./x' leads out of the archive"),
    "up inside": (lambda members: members.update({"experiments/../../x": b""}), "leads out of the archive"),
    "absolute": (lambda members: members.update({"/etc/x": b""}), "the member '/etc/x' leads out"),
    "a drive": (lambda members: members.update({"C:/x": b""}), "the member 'C:/x' leads out"),
    "a folder": (lambda members: members.update({"experiments/": b""}), "is not a plain file"),
    "code": (lambda members: members.update({"experiments/a/x.py": b""}), "is nothing that `openbench export` writes"),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_what_is_unsound_is_named(kind: str, sent: Path, tmp_path: Path) -> None:
    change, message = UNSOUND[kind]
    rewritten(sent, change)
    with pytest.raises(UserError, match=message):
        unpack(sent, tmp_path / "there")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFDIR])
def test_links_and_devices_are_refused(kind: int, tmp_path: Path) -> None:
    info = zipfile.ZipInfo("runs.csv")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match=r"the member 'runs.csv' is not a plain file \(a link"):
        unpack(tmp_path / "x.zip", tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_bombs_are_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("runs.csv", bytes((256 << 20) + 1))
    assert (tmp_path / "x.zip").stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"'runs.csv' would unpack to 268,435,457 bytes, and 268,435,456 are allowed"):
        unpack(tmp_path / "x.zip", tmp_path / "there")
    assert not (tmp_path / "there").exists()
    infos = [zipfile.ZipInfo(name) for name in ("runs.csv", "study.json", "leaderboard.md")]
    with pytest.raises(UserError, match=r"'leaderboard.md' is one of more than 2 members"):
        check_members(tmp_path, infos, most_members=2)
    infos[2].file_size = 1 << 20
    with pytest.raises(UserError, match=r"'leaderboard.md' would unpack to more than .* GiB with those before"):
        check_members(tmp_path, infos, most_bytes=1 << 10)
    with pytest.raises(UserError, match=r"'runs.csv' is there twice"):
        check_members(tmp_path, [infos[0], infos[0]])


def test_a_size_that_lies_is_found(sent: Path, tmp_path: Path) -> None:
    """The directory at the archive's end says fewer bytes than there are."""
    data = bytearray(sent.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(SCORES.encode()))
    data[entry + 24 : entry + 28] = (3).to_bytes(4, "little")
    sent.write_bytes(data)
    with pytest.raises(UserError, match=f"'{SCORES}' is damaged"):
        unpack(sent, tmp_path / "there")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_truncated_or_spoiled_archive_is_a_user_error(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.zip"
        write_archive(path, MEMBERS, {})
        sound = path.read_bytes()
        place = data.draw(st.integers(0, len(sound) - 1))
        spoiled = sound[:place] + data.draw(st.sampled_from([b"", bytes([sound[place] ^ 255]) + sound[place + 1 :]]))
        path.write_bytes(spoiled)
        try:
            unpack(path, Path(folder) / "there")
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert contents(Path(folder) / "there") == MEMBERS  # a byte that no number depends on, such as a time


names = st.text(st.sampled_from("ab./\\:-_0 \n=é~"), min_size=1, max_size=20) | st.sampled_from(
    [*MEMBERS, "experiments/x/../../../y", "experiments/a/shard-0/../scores.csv", "a" * 300, "experiments//scores.csv"]
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, st.binary(max_size=10), min_size=1, max_size=4))
@example({"experiments/a/shard-0/scores.csv\n": b""})
def test_no_name_of_a_member_leads_elsewhere(members: dict[str, bytes]) -> None:
    """With a manifest that knows them all: what is unpacked lies where its name says, below the folder."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path, there = Path(folder) / "x.zip", Path(folder) / "inner" / "there"
        there.mkdir(parents=True)
        write_archive(path, {}, {})
        with zipfile.ZipFile(path) as archive:
            content = json.loads(archive.read(MANIFEST))
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        known = zipfile.ZipFile(buffer).namelist()
        content["files"] = {n: hashlib.sha256(d).hexdigest() for n, d in zip(known, members.values(), strict=True)}
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(MANIFEST, json.dumps(content))
        path.write_bytes(buffer.getvalue())
        try:
            unpack(path, there)
        except UserError as error:
            assert re.search("member|archive", str(error))
        assert {each.name for each in Path(folder).iterdir()} == {"x.zip", "inner"}
        assert [each.name for each in (Path(folder) / "inner").iterdir()] == ["there"]
        assert {*contents(there)} <= {*MEMBERS, *members}
