"""Where the files that ship are found (``configs/`` and ``baselines/``), and how files are written."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent


def _find(name: str) -> Path:
    """The folder inside the installed package (put there by the wheel), else beside it in the checkout."""
    installed = _PACKAGE / "_shipped" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def configs_dir() -> Path:
    """Folder with ``environments/``, ``studies/`` and ``meta/``."""
    return _find("configs")


def baselines_dir() -> Path:
    """Folder with tuned hyperparameters, baseline returns, and weights."""
    return _find("baselines")


def write_atomically(path: str | Path, data: str | bytes) -> Path:
    """Write ``data`` (text as UTF-8) under a temporary name beside ``path``, then rename it; returns ``path``.

    Parent folders are made. A reader sees the old file or the new one, never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_toml(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write tables as TOML, whole or not at all; equal content in equal order gives equal bytes."""
    import tomli_w

    return write_atomically(path, tomli_w.dumps(content))
