"""One file that holds a results folder's runs: a zip archive whose members, order and times are always the same.

    open-bench.json           format, protocol, where the runs were made, and the SHA-256 of every other member
    leaderboard.csv, .md      the board
    runs.csv                  a row a seed, with everything that is known of its experiment
    study.json                which study the runs are of, where it is known
    experiments/<experiment>/experiment.json
    experiments/<experiment>/<shard>/…
    tuning/<trials>/…         tuning.json, trials.csv, curves.csv, provenance.json

Whoever sends an archive is not trusted: no member may lie elsewhere, be anything but a file, or be larger than what
such files are; nothing is unpacked before all names and sizes are known.
"""

import hashlib
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from open_bench.config import PROTOCOL_VERSION
from open_bench.errors import UserError
from open_bench.files import file_written_whole

SUFFIX, MANIFEST, FORMAT = ".zip", "open-bench.json", 1
_MEMBER = re.compile(
    r"experiments/\w[\w.=+-]*/(experiment\.json|shard-[0-9-]+/[\w-]+\.(csv|json|safetensors))"
    r"|tuning/\w[\w.=+-]*/(tuning\.json|trials\.csv|curves\.csv|provenance\.json)"
)
_BESIDE = (MANIFEST, "study.json", "leaderboard.csv", "leaderboard.md", "runs.csv")
MOST_MEMBERS = 1_000_000
MOST_BYTES = 8 << 30  # of all members
_LARGEST = {".json": 4 << 20, ".csv": 256 << 20, ".md": 256 << 20}  # of one; agents may be as large as they are
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can hold
_ASK = "get it again, or have it made again by `openbench export`"


def write_archive(target: Path, members: Mapping[str, Path | bytes], facts: Mapping[str, Any]) -> None:
    """Write files or bytes under their names, then a manifest; equal members give equal bytes.

    Each is read once, as others may be at work in the folder. Raises UserError for what ``unpack`` would refuse.
    """
    digests = {}
    with file_written_whole(target) as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in sorted(members.items()):
            data = content if isinstance(content, bytes) else content.read_bytes()
            digests[name] = hashlib.sha256(data).hexdigest()
            _add(archive, name, data)
        manifest = {"format": FORMAT, "protocol": PROTOCOL_VERSION, **facts, "files": digests}
        _add(archive, MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())
        check_members(target, archive.infolist(), done="nothing is exported", ask="export less in one file")


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _TIME)
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    archive.writestr(info, data, zipfile.ZIP_DEFLATED)


def unpack(path: Path, folder: Path) -> None:
    """Unpack an archive of ``write_archive`` into an empty folder, checking every member against the manifest.

    Raises:
        UserError: naming the member, for anything else; the folder may then hold a part.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            check_members(path, infos)
            digests = _manifest(path, archive, {info.filename for info in infos})
            for info in infos:
                if info.filename != MANIFEST:
                    _unpack_member(path, archive, info, folder, digests[info.filename])
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is no whole zip archive ({error}): {_ASK}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be unpacked: {error.strerror or error}") from None


def check_members(
    path: Path, infos: Iterable[zipfile.ZipInfo], most_members: int = MOST_MEMBERS, most_bytes: int = MOST_BYTES,
    done: str = "nothing was unpacked", ask: str = _ASK,
) -> None:  # fmt: skip
    """Raise UserError for names, kinds and sizes that no archive of ours has; nothing is read for it."""
    seen: set[str] = set()
    total = 0
    for info in infos:
        reason = _refused(info)
        total += info.file_size
        if info.filename in seen:
            reason = "is there twice"
        elif len(seen) >= most_members:
            reason = f"is one of more than {most_members:,} members"
        elif total > most_bytes:
            reason = f"would unpack to more than {most_bytes / 2**30:g} GiB with those before it"
        if reason:
            raise UserError(f"{path}: the member {info.filename!r} {reason}, so {done}: {ask}")
        seen.add(info.filename)


def _refused(info: zipfile.ZipInfo) -> str:
    """What is wrong with a member, "" when nothing is."""
    name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
    if name.startswith(("/", "\\")) or ":" in name[:2] or "\\" in name or ".." in name.split("/"):
        return "leads out of the archive"
    if kind not in (0, stat.S_IFREG) or info.is_dir():
        return "is not a plain file (a link, a device or a folder)"
    if name not in _BESIDE and not (_MEMBER.fullmatch(name) and name.isascii()):
        return "is nothing that `openbench export` writes"
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is encrypted, or packed by another method"
    largest = _LARGEST.get(Path(name).suffix, MOST_BYTES) if name != MANIFEST else _LARGEST[".csv"]
    if info.file_size > largest:
        return f"would unpack to {info.file_size:,} bytes, and {largest:,} are allowed"
    return ""


def _manifest(path: Path, archive: zipfile.ZipFile, names: set[str]) -> dict[str, str]:
    """Digests by name, which must be those of the members."""
    if MANIFEST not in names:
        raise UserError(f"{path} is no archive of `openbench export`: it has no {MANIFEST}; import the folder itself")
    try:
        content = json.loads(archive.read(MANIFEST))
        version, protocol, digests = content["format"], content["protocol"], dict(content["files"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: {MANIFEST} cannot be read ({type(error).__name__}): {_ASK}") from None
    if version != FORMAT:
        raise UserError(f"{path} has format {version!r}, and this open-bench reads format {FORMAT}: update open-bench")
    if protocol != PROTOCOL_VERSION:
        raise UserError(
            f"{path} follows protocol {protocol!r}, and this open-bench protocol {PROTOCOL_VERSION}: results of "
            "different protocols are never ranked together"
        )
    differing = sorted(map(str, digests.keys() ^ (names - {MANIFEST})))
    if differing:
        raise UserError(f"{path}: {differing[0]!r} is in the archive or in its {MANIFEST}, not in both: {_ASK}")
    return digests


def _unpack_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path, digest: str) -> None:
    target, found = folder / info.filename, hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(info) as source, target.open("xb") as file:
            while block := source.read(1 << 20):
                found.update(block)
                file.write(block)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: the member {info.filename!r} is damaged ({error}): {_ASK}") from None
    if found.hexdigest() != digest:
        raise UserError(f"{path}: {info.filename} is not what was written (its digest differs): {_ASK}")
