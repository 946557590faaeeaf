"""Files: where those that ship are found, and how others are written, whole or not at all."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where nobody can remove a file that is open
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp-"  # begins the names of folders that are being written
_PACKAGE = Path(__file__).resolve().parent


def configs_dir() -> Path:
    """Folder with ``environments/``, ``studies/``, ``generalize/`` and ``meta/``."""
    return _find("configs")


def baselines_dir() -> Path:
    """Folder with tuned hyperparameters, baseline returns, and weights."""
    return _find("baselines")


def _find(name: str) -> Path:
    """The folder inside the installed package (put there by the wheel), else beside it in the checkout."""
    installed = _PACKAGE / "_shipped" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def read_json(path: Path) -> Any:
    """What a JSON file holds, whoever wrote it; raises OSError, or ValueError for anything that is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def write_atomically(path: str | Path, data: str | bytes) -> Path:
    """Write ``data`` (text as UTF-8) under a temporary name beside ``path``, then rename it; returns ``path``.

    Parent folders are made. A reader sees the old file or the new one, never a part. Raises OSError that names a file.
    """
    with file_written_whole(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)
    return Path(path)


@contextlib.contextmanager
def file_written_whole(path: str | Path) -> Iterator[BinaryIO]:
    """The same for what is written piece by piece: a file that takes its name when the block ends well.

    What killed writers of ``path`` left is removed; one that is at work holds a lock on what it writes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with _begun(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a machine that stops leaves the old file or the new one, too
            if fcntl is not None:
                os.replace(temporary, path)  # while it is locked: else another writer may take it for a leftover
        if fcntl is None:  # Windows renames no file that is open
            os.replace(temporary, path)
    except OSError as error:
        _name_file(error, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _begun(temporary: Path) -> BinaryIO:
    """A new file, open and locked."""
    while True:
        file = temporary.open("wb")
        with contextlib.suppress(OSError):  # a file system without locks
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():  # nobody has taken it for a leftover before it was locked
            return file
        file.close()


def _clear_leftovers(path: Path) -> None:
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name}.") and left.name.endswith(".tmp"):
            with contextlib.suppress(OSError), left.open("rb") as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()


def write_toml(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write tables as TOML, whole or not at all; equal content in equal order gives equal bytes."""
    import tomli_w

    return write_atomically(path, tomli_w.dumps(content))


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` which takes its name when the block ends well."""
    folder = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex}")
    folder.mkdir(parents=True)
    try:
        yield folder
        for file in folder.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        folder.rename(path)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            _name_file(error, path)
        raise


def _name_file(error: OSError, path: Path) -> None:
    """Let the error say what could not be written: a full disk's does not."""
    if error.errno is not None:
        error.filename = error.filename or str(path)
