"""Where named weights live: those that ship in ``baselines/weights``, then a folder of the user's.

What ships comes first, so that ``open`` means the same everywhere; the user's folder cannot take such a name.

The user's folder is ``~/.local/share/open-bench/weights`` (``$XDG_DATA_HOME`` is honored), or whatever the
environment variable ``OPEN_BENCH_WEIGHTS`` names. The weights NAME are ``NAME.safetensors``, or a file or directory
in a format that its optimizer's authors publish: the optimizer's own readers (``Learned.readers``) read it.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from open_bench.errors import near_matches
from open_bench.optimizers import registry
from open_bench.optimizers.spec import OptimizerSpec, Reader
from open_bench.optimizers.theta import readers, validate
from open_bench.weights.format import (
    PARTS,
    Theta,
    Weights,
    WeightsError,
    content_hash,
    existing_file,
    flatten,
    load_weights,
    make_weights,
    save_weights,
    write,
)

OWN = ".safetensors"
VARIABLE = "OPEN_BENCH_WEIGHTS"
SUFFIXES = (".safetensors", ".npy", ".npz", ".state")
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
    belongs_to: str = ""  # optimizers that it fits

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Names of the environments that the metadata name; empty where they do not say."""
        named = self.metadata.get("environments")
        return tuple(map(str, named)) if isinstance(named, Mapping) else ()


# --- reading and writing any format --------------------------------------------------------------------------------


def import_file(path: str | Path, spec: OptimizerSpec) -> Weights:
    """Read weights for an optimizer, from a file of open-bench or in a format that the optimizer has a reader for.

    Raises:
        WeightsError: unreadable, unsafe, not finite, or of another optimizer.
    """
    path = Path(path)
    weights = load_weights(path) if _kind(path) == OWN else _read_published(path, spec)[1]
    try:
        validate(weights.theta, spec, path)
    except WeightsError as error:
        owner = weights.metadata.get("optimizer")
        if owner in (None, spec.name) or owner not in registry.known():
            raise
        raise WeightsError(f"{error}; they are weights of {owner}: use them as {owner}@{path.stem}") from error
    return weights


def _kind(path: Path) -> str:
    return "directory" if path.is_dir() else path.suffix


def _read_published(path: Path, spec: OptimizerSpec) -> tuple[Reader, Weights]:
    """Read a file with the reader that the optimizer has for its suffix."""
    if not path.is_dir():
        existing_file(path)
    part, reader = next(((p, r) for p, r in readers(spec) if r.suffix == _kind(path)), (None, None))
    if part is None or reader is None:
        own = [OWN, *(f"{reader.suffix} ({reader.description})" for _, reader in readers(spec))]
        reads = ", ".join(own) if spec.needs_theta else "no weights"
        others = sorted({name for name, _, _ in _fitting(path)})
        hint = f"; it is a file of {', '.join(others)}" if others else ""
        raise WeightsError(
            f"{path} does not fit {spec.name}, which reads {reads}{hint}. Other formats, pickles among them, are not "
            "opened because they may run code"
        )
    try:
        value, facts = reader.read(path)
        return reader, make_weights({part: value}, {"imported_from": path.name, **facts})
    except WeightsError as error:
        message = str(error)
        raise (error if str(path) in message else WeightsError(f"{path}: {message}")) from error
    except ValueError as error:
        raise WeightsError(f"{path} does not fit {spec.name}: {error}") from error


def _fitting(path: Path) -> Iterator[tuple[str, Reader, Weights]]:
    """(name, reader, weights) for every registered optimizer that can read the file; nothing where none can."""
    for name, spec in registry.known().items():
        if all(reader.suffix != _kind(path) for _, reader in readers(spec)):
            continue
        try:
            reader, weights = _read_published(path, spec)
            validate(weights.theta, spec, path)
        except WeightsError:
            continue
        yield name, reader, weights


def inspect(path: str | Path) -> dict[str, Any]:
    """What a file holds, as JSON values: path, kind, hash, parameters, arrays (name → shape), metadata, belongs_to.

    ``belongs_to`` names the optimizers that can read a published file, or the one that the metadata name.
    """
    path = Path(path)
    if _kind(path) == OWN:
        kind, weights = "safetensors", load_weights(path)
        names = [str(weights.metadata["optimizer"])] if "optimizer" in weights.metadata else []
    else:
        fitting = list(_fitting(path))
        if not fitting:
            raise _unreadable(path)
        names = [name for name, _, _ in fitting]
        kind, weights = fitting[0][1].description, fitting[0][2]
    arrays = flatten(weights.theta)
    return {
        "path": str(path),
        "kind": kind,
        "hash": weights.hash,
        "parameters": sum(int(array.size) for array in arrays.values()),
        "arrays": {name: list(array.shape) for name, array in arrays.items()},
        "metadata": weights.metadata,
        "belongs_to": ", ".join(names),
    }


def _unreadable(path: Path) -> WeightsError:
    """Why no registered optimizer can read a file: in the words of the first whose format it is."""
    for spec in registry.known().values():
        if any(reader.suffix == _kind(path) for _, reader in readers(spec)):
            try:
                import_file(path, spec)
            except WeightsError as error:
                return error
    known = {(r.suffix, r.description) for spec in registry.known().values() for _, r in readers(spec)}
    formats = ", ".join(f"{suffix} ({description})" for suffix, description in sorted(known))
    return WeightsError(
        f"{path}: weights are read from {OWN}, {formats}; other formats, pickles among them, are not opened"
    )


def export(
    theta: Theta,
    path: str | Path,
    format: str | None = None,
    *,
    spec: OptimizerSpec | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write θ for others, in the format that the suffix of ``path`` names or ``format`` says.

    Args:
        theta: θ.
        path: the file.
        format: "safetensors", or a published one that ``spec`` can write, as "npy"; by default the suffix's.
        spec: the optimizer that θ belongs to.
        metadata: kept in a safetensors file.
        overwrite: whether an existing file may be replaced.

    Raises:
        WeightsError: unknown format, one that is not the suffix's, a file in the way, or a θ that has no such form.
    """
    path = Path(path)
    suffix = f".{format}" if format else path.suffix
    if path.suffix and suffix != path.suffix:
        raise WeightsError(f"{path} would hold {format}: name it {path.with_suffix(suffix).name}, or choose its format")
    if path.exists() and not overwrite:
        raise WeightsError(f"{path} exists already; remove it, choose another name, or say that it may be replaced")
    if suffix == OWN:
        save_weights(path, theta, metadata)
    else:
        write(path, _published(theta, suffix, spec))


def _published(theta: Theta, suffix: str, spec: OptimizerSpec | None) -> bytes:
    """θ in the format of a suffix."""
    writers = {r.suffix: (part, r.write) for part, r in (readers(spec) if spec else ()) if r.write}
    if spec is None or suffix not in writers:
        own = ", ".join([OWN, *writers])
        raise WeightsError(f"{spec.name if spec else 'this θ'} has no form '{suffix}'; it can be written as {own}")
    validate(theta, spec)
    part, writer = writers[suffix]
    if any(theta.get(other) for other in PARTS if other != part):
        raise WeightsError(f"a {suffix} file holds the {part} alone; export this θ as {OWN}")
    return writer(theta[part])


# --- names ---------------------------------------------------------------------------------------------------------


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


def kept(name: str) -> Path | None:
    """Where the weights of that name lie, or None when there are none."""
    for folder in search_path():
        if name in (found := _names(folder)):
            return found[name]
    return None


def locate(name: str) -> Path:
    """The file or directory of named weights.

    Raises:
        WeightsError: no such weights, with near matches and the places that were searched.
    """
    validate_name(name)
    if found := kept(name):
        return found
    known = [known for folder in search_path() for known in _names(folder)]
    places = " nor in ".join(map(str, search_path()))
    raise WeightsError(
        f"no weights named {name!r} in {places}.{near_matches(name, known)} Known: {', '.join(known) or 'none'}. "
        "Put a file there, or give a path."
    )


def load_source(source: str, spec: OptimizerSpec) -> Weights:
    """Load what stands after "@" in an optimizer's name: a path when it looks like one or exists, else a name."""
    path = _expanded(source)
    if os.sep in source or path.suffix in SUFFIXES or source.startswith(("~", ".")):
        return import_file(path, spec)
    try:
        located = locate(source)
    except WeightsError:
        if not path.exists():
            raise
        located = path
    return import_file(located, spec)


def split_label(source: str) -> tuple[str | None, str]:
    """``open@mine`` as ("open", "mine"); (None, ``source``) where no learned optimizer stands before an "@"."""
    optimizer, at, rest = source.partition("@")
    return (optimizer, rest) if at and optimizer in registry.learned_names() else (None, source)


def path_of(source: str) -> Path:
    """The file or directory of a path, a name or OPTIMIZER@either; WeightsError where it means nothing."""
    _, source = split_label(source)
    if not source:
        raise WeightsError("name a file of weights, or weights that `openbench weights list` shows")
    path = _expanded(source)
    return path if path.exists() or os.sep in source or path.suffix in SUFFIXES else locate(source)


def owner_of(source: str) -> OptimizerSpec:
    """The optimizer whose weights ``source`` (a path, a name or OPTIMIZER@either) are: as it says, or as they say.

    Raises:
        WeightsError: no such weights, or neither says it.
    """
    optimizer, _ = split_label(source)
    if optimizer is None:
        path = path_of(source)
        optimizer = inspect(path)["belongs_to"]
        if optimizer not in registry.learned_names():
            raise WeightsError(f"{path} may be weights of {optimizer or 'any optimizer'}: say whose with --optimizer")
    return registry.learned_spec(optimizer)


def _expanded(source: str) -> Path:
    """The path with "~" expanded; WeightsError when it cannot be a path."""
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{source[:80]!r} is no path of weights: {error}") from None
    return path


def check_can_keep(name: str) -> str:
    """``name`` when weights of the user's can be kept under it, else WeightsError: no name, or one with a meaning."""
    if name in RESERVED:
        raise WeightsError(f"'{name}' cannot name weights: NAME@{name} means θ = {name}; choose another name")
    if Path(name).suffix in SUFFIXES:
        raise WeightsError(
            f"'{name}' cannot name weights: OPTIMIZER@{name} means a file; leave {Path(name).suffix} out"
        )
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


def import_named(
    file: str | Path, spec: OptimizerSpec, name: str | None = None, trained_on: Sequence[str] = ()
) -> tuple[Path, Weights]:
    """Check a file and keep it in the user's folder.

    Args:
        file: in any format that the optimizer reads.
        spec: the optimizer that it belongs to.
        name: by default the optimizer's, which makes it the optimizer's default weights.
        trained_on: environments that the weights were trained on, where their metadata do not say.

    Returns:
        The path in the library and the weights as they are kept.
    """
    name = name or spec.name
    others = [key for key, other in registry.known().items() if other.needs_theta and key != spec.name]
    if name in others:
        raise WeightsError(f"'{name}' would become the default weights of {name}, but these are {spec.name}'s")
    found = import_file(file, spec)
    metadata = {**found.metadata, "optimizer": spec.name}
    if trained_on:
        metadata["environments"] = {environment: {} for environment in trained_on}
    return save_named(name, found.theta, metadata), found._replace(metadata=metadata)


def list_weights() -> list[Listed]:
    """All named weights in the order of the search path, then by name; damaged ones are listed with their error."""
    listed = []
    for place, folder in zip(("shipped", "library"), search_path(), strict=True):
        for name, path in _names(folder).items():
            try:
                report = inspect(path)
            except WeightsError as error:
                listed.append(Listed(name, path, place, error=str(error)))
                continue
            facts = {key: report[key] for key in ("kind", "hash", "parameters", "metadata", "belongs_to")}
            listed.append(Listed(name, path, place, **facts))
    return listed


def _names(folder: Path) -> dict[str, Path]:
    """Name → path of everything in a folder that a name could mean; the preferred format wins."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda p: (p.is_dir(), [*SUFFIXES, p.suffix].index(p.suffix), p.name)):
        weights = (path / "params").is_file() if path.is_dir() else path.suffix in SUFFIXES
        name = path.name if path.is_dir() else path.name.removesuffix(path.suffix)
        if weights and _NAME.fullmatch(name):
            found.setdefault(name, path)
    return dict(sorted(found.items()))
