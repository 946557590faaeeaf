"""Where named weights live: those that ship in ``baselines/weights``, then a folder of the user's.

What ships comes first, so that ``open`` means the same everywhere; the user's folder cannot take such a name.

The user's folder is ``~/.local/share/open-bench/weights`` (``$XDG_DATA_HOME`` is honored), or whatever the
environment variable ``OPEN_BENCH_WEIGHTS`` names. The weights NAME are ``NAME.safetensors``, or a file or directory
in a format that its optimizer's authors publish: the optimizer's own readers (``Learned.readers``) read it.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from open_bench.errors import UserError, near_matches
from open_bench.optimizers import names, registry
from open_bench.optimizers.spec import OptimizerSpec, Reader
from open_bench.optimizers.theta import readers, validate
from open_bench.weights.format import (
    PARTS,
    Damaged,
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
        WeightsError: unreadable, unsafe, not finite, or of another optimizer: as they say, or because they do not fit.
    """
    weights = _read(Path(path), spec)
    if (owner := _other_owner(weights, spec)) is not None:
        raise WeightsError(
            f"{path} holds weights of {owner}, not of {spec.name}: use them as {owner}@{_called(Path(path))}, or keep "
            f"them as {spec.name}'s by `openbench weights import {path} --optimizer {spec.name} --name ANOTHER`"
        )
    return weights


def _read(path: Path, spec: OptimizerSpec) -> Weights:
    """Weights that fit an optimizer, whosever they say they are."""
    weights = load_weights(path) if _kind(path) == OWN else _read_published(path, spec)[1]
    try:
        validate(weights.theta, spec, path)
    except WeightsError as error:
        owner = _stated_owner(weights.metadata)
        if owner is None or (owner.head == spec.name and owner.policy_loss in (None, spec.policy_loss.name)):
            raise
        raise WeightsError(f"{error}; they are weights of {owner}: use them as {owner}@{_called(path)}") from error
    return weights


def _stated_owner(metadata: Mapping[str, Any]) -> names.ParsedName | None:
    """Whose weights metadata say that they are, such as ``open+lpo``; None where that is nothing registered with θ."""
    stated = metadata.get("optimizer")  # metadata of other hands say what they like
    if not isinstance(stated, str):
        return None
    try:
        owner = dataclasses.replace(names.parse(stated), source=None)
        return owner if registry.is_ours(owner) and _spec_of(owner).needs_theta else None
    except UserError:
        return None


def _other_owner(weights: Weights, spec: OptimizerSpec) -> names.ParsedName | None:
    """The other optimizer that weights say they are of.

    A policy loss's alone serve any optimizer that uses it, and who writes a spec knows whose weights it takes.
    """
    if spec.name not in registry.known() or not weights.theta.get("optimizer"):
        return None
    owner = _stated_owner(weights.metadata)
    return None if owner is None or owner.head == spec.name else owner


def stem(path: Path) -> str:
    """Name of weights, which may have a dot, or of a file of theirs without what tells its format."""
    return path.name.removesuffix(path.suffix) if path.suffix in SUFFIXES else path.name


def _called(path: Path) -> str:
    """What stands after "@" for weights: their name where they have one, else their path."""
    return stem(path) if kept(stem(path)) == path else str(path)


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
        if path.is_dir() and not others:
            raise WeightsError(f"{path} is a folder that holds no weights; {spec.name} reads {reads}")
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
        plain = path.is_dir() and not (path / "params").is_file()
        problem = "is a folder that holds no weights" if plain else f"does not fit {spec.name}"
        raise WeightsError(f"{path} {problem}: {error}") from error


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
        owners = [str(weights.metadata["optimizer"])] if "optimizer" in weights.metadata else []
    else:
        fitting = list(_fitting(path))
        if not fitting:
            raise _unreadable(path)
        owners = [name for name, _, _ in fitting]
        kind, weights = fitting[0][1].description, fitting[0][2]
    arrays = flatten(weights.theta)
    return {
        "path": str(path),
        "kind": kind,
        "hash": weights.hash,
        "parameters": sum(int(array.size) for array in arrays.values()),
        "arrays": {name: list(array.shape) for name, array in arrays.items()},
        "metadata": weights.metadata,
        "belongs_to": ", ".join(owners),
    }


def inspect_source(source: str) -> dict[str, Any]:
    """``inspect`` for a path, a name or OPTIMIZER@either, whose weights must then be that optimizer's."""
    label, _ = split_label(source)
    path = path_of(source)
    if label is not None:
        import_file(path, learned_optimizer(label))
    return inspect(path)


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
        format: "safetensors", or a published one that ``spec`` can write, as "npy" or ".npy"; by default the suffix's.
        spec: the optimizer that θ belongs to.
        metadata: kept in a safetensors file.
        overwrite: whether an existing file may be replaced.

    Raises:
        WeightsError: unknown format, one that is not the suffix's, a folder or a file in the way, or a θ that has no
            such form.
    """
    path = _possible(Path(path))
    if path.is_dir():
        raise WeightsError(f"{path} is a folder: name the file to write, such as {path / 'mine'}{OWN}")
    suffix = f".{format.removeprefix('.')}" if format else path.suffix
    _check_form(suffix, spec)
    if path.suffix and suffix != path.suffix:
        raise WeightsError(
            f"{path} would hold {suffix[1:]}: name it {path.with_suffix(suffix).name}, or choose its format"
        )
    if path.exists() and not overwrite:
        raise WeightsError(f"{path} exists already; remove it, choose another name, or say that it may be replaced")
    if suffix == OWN:
        save_weights(path, theta, metadata)
    else:
        write(path, _published(theta, suffix, spec))


def _writers(spec: OptimizerSpec | None) -> dict[str, tuple[str, Callable[[Any], bytes]]]:
    """Suffix → (part of θ, what writes it), of the published formats that an optimizer can write."""
    return {r.suffix: (part, r.write) for part, r in (readers(spec) if spec else ()) if r.write}


def _check_form(suffix: str, spec: OptimizerSpec | None) -> None:
    forms = [OWN, *_writers(spec)]
    if suffix not in forms:
        whose = spec.name if spec else "this θ"
        raise WeightsError(f"{whose} has no form '{suffix}'; it can be written as {', '.join(forms)}")


def _published(theta: Theta, suffix: str, spec: OptimizerSpec | None) -> bytes:
    """θ in the format of a suffix."""
    assert spec is not None  # or it has no such form
    validate(theta, spec)
    part, writer = _writers(spec)[suffix]
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
    """The user's folder of weights; it need not exist. WeightsError where it cannot."""
    if chosen := os.environ.get(VARIABLE):
        try:
            return _possible(Path(chosen).expanduser())
        except (RuntimeError, WeightsError) as error:  # "~" of nobody's; what is no path
            reason = str(error).rstrip(".")
            raise WeightsError(f"{VARIABLE}={chosen[:80]} names no folder ({reason}): set it to another") from error
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "open-bench" / "weights"


def search_path() -> list[Path]:
    """Folders in which names are looked up, first the shipped weights, then the user's."""
    from open_bench.files import baselines_dir

    return [baselines_dir() / "weights", library_dir()]


def kept(name: str) -> Path | None:
    """Where the weights of that name lie, or None when there are none."""
    for folder in search_path():
        if name in (found := names_in(folder)):
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
    known = [known for folder in search_path() for known in names_in(folder)]
    places = " nor in ".join(map(str, search_path()))
    raise WeightsError(
        f"no weights named {name!r} in {places}.{near_matches(name, known)} Known: {', '.join(known) or 'none'}. "
        "Put a file there, or give a path."
    )


def load_source(source: str, spec: OptimizerSpec) -> Weights:
    """Load what stands after "@" in an optimizer's name (``path_of``)."""
    return import_file(_place(source), spec)


def learned_optimizer(label: str) -> OptimizerSpec:
    """The learned optimizer that a name without weights means, with its policy loss: ``open``, ``open+lpo``.

    Raises:
        UserError: an unknown name or setting, with near matches, or nothing that has θ.
    """
    parsed = names.parse(label)
    if parsed.source is not None:
        raise UserError(f"'{label}': name the optimizer alone, without @{parsed.source}")
    spec = _spec_of(parsed)
    registry.check_settings(spec, dict(parsed.settings))
    return spec if spec.needs_theta else registry.learned_spec(label)  # which says that it is none


def _spec_of(parsed: names.ParsedName) -> OptimizerSpec:
    spec = registry.find(parsed)
    if parsed.policy_loss is None:
        return spec
    return dataclasses.replace(spec, policy_loss=registry.find_policy_loss(parsed.policy_loss))


def split_label(source: str) -> tuple[str | None, str]:
    """``open+lpo@mine`` as ("open+lpo", "mine"); (None, ``source``) for a path or a name.

    Raises:
        UserError: no learned optimizer stands before the "@", and there is no such path.
    """
    label, at, rest = source.partition("@")
    if not at or not label or os.sep in label or label.startswith(("~", ".")):
        return None, source
    try:
        learned_optimizer(label)
    except UserError:
        if _expanded(source).exists():
            return None, source
        raise
    return label, rest


def path_of(source: str) -> Path:
    """The file or directory that a path, a name or OPTIMIZER@either means; WeightsError where it means nothing.

    What looks like a path is one. Anything else is a name, and a path only where no weights have that name: files that
    happen to lie where a command is run change the meaning of none.
    """
    return _place(split_label(source)[1])


def _place(source: str) -> Path:
    if not source:
        raise WeightsError("name a file of weights, or weights that `openbench weights list` shows")
    path = _expanded(source)
    if os.sep in source or path.suffix in SUFFIXES or source.startswith(("~", ".")):
        return path
    try:
        return locate(source)
    except WeightsError:
        if not path.exists():
            raise
        return path


def owner_of(source: str) -> OptimizerSpec:
    """The optimizer whose weights ``source`` (a path, a name or OPTIMIZER@either) are: as it says, or as they say.

    Raises:
        WeightsError: no such weights, or neither says it.
    """
    label, _ = split_label(source)
    if label is not None:
        return learned_optimizer(label)
    path = path_of(source)
    stated = inspect(path)["belongs_to"]
    owner = _stated_owner({"optimizer": stated})
    if owner is None:
        raise WeightsError(f"{path} may be weights of {stated or 'any optimizer'}: say whose with --optimizer")
    return _spec_of(owner)


def _expanded(source: str) -> Path:
    """The path with "~" expanded; WeightsError when it cannot be a path."""
    try:
        return _possible(Path(source).expanduser())
    except RuntimeError as error:
        raise WeightsError(f"{source[:80]!r} is no path of weights: {error}") from None


def _possible(path: Path) -> Path:
    """The path; WeightsError when there can be none, as it is too long or holds what no path may."""
    try:
        path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # the error itself repeats a path of any length
        raise WeightsError(f"{str(path)[:80]!r} is no path of weights: {reason}") from None
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
    if validate_name(name) in names_in(shipped):
        raise WeightsError(
            f"'{name}' names weights that ship with open-bench ({names_in(shipped)[name]}), and those come first; "
            "choose another --name and use yours as OPTIMIZER@NAME"
        )
    return name


def held(name: str, folder: Path) -> Weights | None:
    """The weights that a name means in a folder, in any format; None where there are none, or they are damaged.

    Raises:
        WeightsError: what has the name cannot be read, and may be somebody's nevertheless.
    """
    path = names_in(folder).get(name)
    if path is None:
        return None
    try:
        if _kind(path) == OWN:
            return load_weights(path)
        fitting = next(_fitting(path), None)
        if fitting is None:
            raise _unreadable(path)
    except Damaged:
        return None
    except WeightsError as error:
        raise WeightsError(f"{path} has the name '{name}' and cannot be read ({error}): remove it") from error
    return fitting[2]


def save_named(name: str, theta: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> Path:
    """Keep weights in the user's folder; WeightsError when the name has a meaning or is taken by other weights."""
    folder = library_dir()
    path = folder / f"{check_can_keep(name)}{OWN}"
    there = held(name, folder)
    if there is not None and there.hash != content_hash(theta):
        raise WeightsError(f"{names_in(folder)[name]} holds other weights; choose another name or remove that file")
    save_weights(path, theta, metadata)
    return path


def import_named(
    file: str | Path, optimizer: str, name: str | None = None, trained_on: Sequence[str] = ()
) -> tuple[Path, Weights]:
    """Check a file and keep it in the user's folder. What its weights say there already stays, if they are the same.

    Args:
        file: in any format that the optimizer reads.
        optimizer: whose they are from now on, as ``learned_optimizer`` takes it, whatever they say.
        name: by default the optimizer's, which makes it the optimizer's default weights.
        trained_on: environments that the weights were trained on, where their metadata do not say.

    Returns:
        The path in the library and the weights as they are kept.

    Raises:
        UserError: ``optimizer`` means none with θ.
        WeightsError: a file that cannot be used, a name that is taken or not the optimizer's, other environments.
    """
    spec, folder = learned_optimizer(optimizer), library_dir()
    name = check_can_keep(_name_for(optimizer, spec, name))
    found = _read(_possible(Path(file)), spec)
    metadata, place = {**found.metadata, "optimizer": str(names.parse(optimizer))}, Path(file)
    there = held(name, folder)
    if there is not None and there.hash == found.hash:
        place = names_in(folder)[name]
        if (owner := _other_owner(there, spec)) is not None:
            raise WeightsError(f"{place} holds these weights as {owner}'s; choose another --name")
        metadata.pop("imported_from", None)  # they were there before
        metadata |= there.metadata
    metadata = _with_environments(metadata, trained_on, place)
    return save_named(name, found.theta, metadata), found._replace(metadata=metadata)


def _name_for(label: str, spec: OptimizerSpec, name: str | None) -> str:
    """The name to keep weights under: none that makes them the default weights of another optimizer."""
    default: str | None = spec.tuned_as or spec.name
    if spec.learned is None:
        default = spec.policy_loss.name
    elif spec.policy_loss.init is not None:  # both are learned: they go by the name of none of the two
        default = None
    if name is None and default is None:
        raise WeightsError(
            f"{label} has no default weights, as optimizer and policy loss are both learned: give a --name"
        )
    name = name or str(default)
    if name != default and name in registry.learned_names():
        raise WeightsError(f"'{name}' would become the default weights of {name}, but these are {label}'s")
    return name


def _with_environments(metadata: dict[str, Any], trained_on: Sequence[str], place: Path) -> dict[str, Any]:
    """Metadata with what weights were trained on, unless they say it; WeightsError where they say another thing."""
    stated = metadata.get("environments")
    said = [str(each) for each in stated] if isinstance(stated, Mapping | list) else [str(stated)] if stated else []
    if said and trained_on and set(said) != set(trained_on):
        raise WeightsError(
            f"{place} says that its weights were trained on {', '.join(said)}, and --train-on says "
            f"{', '.join(trained_on)}: leave --train-on out"
        )
    if not trained_on or (said and isinstance(stated, Mapping)):
        return metadata
    return {**metadata, "environments": {environment: {} for environment in trained_on}}


def list_weights() -> list[Listed]:
    """All named weights in the order of the search path, then by name; damaged ones are listed with their error."""
    listed = []
    for place, folder in zip(("shipped", "library"), search_path(), strict=True):
        for name, path in names_in(folder).items():
            try:
                report = inspect(path)
            except WeightsError as error:
                listed.append(Listed(name, path, place, error=str(error)))
                continue
            facts = {key: report[key] for key in ("kind", "hash", "parameters", "metadata", "belongs_to")}
            listed.append(Listed(name, path, place, **facts))
    return listed


def names_in(folder: Path) -> dict[str, Path]:
    """Name → path of everything in a folder that a name could mean; the preferred format wins.

    Raises:
        WeightsError: it is a file.
    """
    if not folder.is_dir():
        if folder.exists():
            hint = f": set {VARIABLE} to a folder" if folder == library_dir() else ""
            raise WeightsError(f"{folder} is a file, where a folder of weights is expected{hint}")
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda p: (p.is_dir(), [*SUFFIXES, p.suffix].index(p.suffix), p.name)):
        weights = (path / "params").is_file() if path.is_dir() else path.suffix in SUFFIXES
        name = path.name if path.is_dir() else path.name.removesuffix(path.suffix)
        if weights and _NAME.fullmatch(name):
            found.setdefault(name, path)
    return dict(sorted(found.items()))
