"""Where named weights live: those that ship in ``baselines/weights``, then a folder of the user's.

What ships comes first, so that ``open`` means the same everywhere; the user's folder cannot take such a name.

The user's folder is ``~/.local/share/open-bench/weights`` (``$XDG_DATA_HOME`` is honoured), or whatever the
environment variable ``OPEN_BENCH_WEIGHTS`` names. The weights NAME are ``NAME.safetensors``, or a file or directory
in another format that can be imported.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from open_bench.errors import near_matches
from open_bench.optimizers.spec import OptimizerSpec
from open_bench.weights.format import Weights, WeightsError, content_hash, load_weights, save_weights
from open_bench.weights.importers import import_file, inspect

VARIABLE = "OPEN_BENCH_WEIGHTS"
SUFFIXES = (".safetensors", ".npy", ".npz")
RESERVED = ("zero", "init")  # sources that an optimizer's name gives another meaning
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class Listed(NamedTuple):
    """A line of the list of weights; ``error`` says why a file cannot be used, and the rest is then empty."""

    name: str
    path: Path
    place: str  # "shipped" or "library"
    kind: str = ""
    hash: str | None = None
    parameters: int = 0
    metadata: Mapping[str, Any] = {}
    error: str | None = None


def validate_name(name: str) -> str:
    """``name`` when it is a plain name (letters, digits, '.', '_', '-', no leading '.'), else WeightsError."""
    if not _NAME.fullmatch(name):
        raise WeightsError(
            f"{name!r} is no name of weights: names are letters, digits, '.', '_' and '-', and do not begin with '.'"
        )
    return name


def library_dir() -> Path:
    """The user's folder of weights; it need not exist."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "open-bench" / "weights"


def search_path() -> list[Path]:
    """Folders in which names are looked up, first the shipped weights, then the user's."""
    from open_bench.files import baselines_dir

    return [baselines_dir() / "weights", library_dir()]


def kept(name: str, folders: Sequence[Path] | None = None) -> Path | None:
    """Where the weights of that name lie, or None when there are none."""
    for folder in search_path() if folders is None else folders:
        if name in (found := _names(folder)):
            return found[name]
    return None


def locate(name: str, folders: Sequence[Path] | None = None) -> Path:
    """The file or directory of named weights.

    Raises:
        WeightsError: no such weights, with near matches and the places that were searched.
    """
    validate_name(name)
    folders = search_path() if folders is None else folders
    if found := kept(name, folders):
        return found
    known = [known for folder in folders for known in _names(folder)]
    places = " nor in ".join(str(folder) for folder in folders)
    raise WeightsError(
        f"no weights named {name!r} in {places}.{near_matches(name, known)} Known: {', '.join(known) or 'none'}. "
        "Put a file there, or give a path."
    )


def find(name: str, spec: OptimizerSpec, folders: Sequence[Path] | None = None) -> Weights:
    """Load named weights for an optimizer; WeightsError when there are none or they do not fit."""
    return import_file(locate(name, folders), spec)


def load_reference(reference: str, spec: OptimizerSpec, folders: Sequence[Path] | None = None) -> Weights:
    """Load what stands after "@" in an optimizer's name: a path when it looks like one or exists, else a name."""
    path = _expanded(reference)
    if os.sep in reference or path.suffix in SUFFIXES or reference.startswith(("~", ".")):
        return import_file(path, spec)
    try:
        located = locate(reference, folders)
    except WeightsError:
        if not path.exists():
            raise
        located = path
    return import_file(located, spec)


def _expanded(reference: str) -> Path:
    """The path with "~" expanded; WeightsError when it cannot be a path."""
    try:
        path = Path(reference).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{reference[:80]!r} is no path of weights: {error}") from None
    return path


def check_can_keep(name: str) -> str:
    """``name`` when weights of the user's can be kept under it, else WeightsError: no name, or one with a meaning."""
    if name in RESERVED:
        raise WeightsError(f"'{name}' cannot name weights: NAME@{name} means θ = {name}; choose another name")
    shipped = search_path()[0]
    if validate_name(name) in _names(shipped):
        raise WeightsError(
            f"'{name}' names weights that ship with open-bench ({_names(shipped)[name]}), and those come first; "
            "choose another --name and use yours as OPTIMIZER@NAME"
        )
    return name


def save_named(name: str, theta: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> Path:
    """Keep weights in the user's folder; WeightsError when the name has a meaning or is taken by other weights."""
    path = library_dir() / f"{check_can_keep(name)}.safetensors"
    if path.exists() and load_weights(path).hash != content_hash(theta):
        raise WeightsError(f"{path} holds other weights; choose another name or remove that file")
    save_weights(path, theta, metadata)
    return path


def list_weights(folders: Sequence[Path] | None = None) -> list[Listed]:
    """All named weights in the order of the search path, then by name; damaged ones are listed with their error."""
    shipped, *others = search_path() if folders is None else folders
    listed = []
    for place, folder in [("shipped", shipped), *(("library", other) for other in others)]:
        for name, path in _names(folder).items():
            try:
                report = inspect(path)
            except WeightsError as error:
                listed.append(Listed(name, path, place, error=str(error)))
                continue
            listed.append(
                Listed(name, path, place, report["kind"], report["hash"], report["parameters"], report["metadata"])
            )
    return listed


def _names(folder: Path) -> dict[str, Path]:
    """Name → path of everything in a folder that a name could mean; the preferred format wins."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda p: (p.is_dir(), _rank(p), p.name)):
        weights = (path / "params").is_file() if path.is_dir() else path.suffix in SUFFIXES
        name = path.name if path.is_dir() else path.name.removesuffix(path.suffix)
        if weights and _NAME.fullmatch(name):
            found.setdefault(name, path)
    return dict(sorted(found.items()))


def _rank(path: Path) -> int:
    return SUFFIXES.index(path.suffix) if path.suffix in SUFFIXES else len(SUFFIXES)
