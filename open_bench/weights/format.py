"""The file format of θ: safetensors, with flat names, JSON metadata and a content hash that is its identity.

θ is ``{"optimizer": nested dict of arrays, "policy_loss": nested dict of arrays}``; on disk a name is the path of keys
joined by "/", as in ``optimizer/gru/kernel``. Arrays are float32 throughout.

Here are also the safe ways to read numpy's files, in which others publish weights: ``read_npy`` and ``read_npz``. This
module knows no optimizer; what fits one is told in ``open_bench.optimizers.theta``.
"""

import hashlib
import io
import json
import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from open_bench import files
from open_bench.errors import UserError

Theta = dict[str, Any]  # {"optimizer": nested dict of arrays, "policy_loss": nested dict of arrays}

PARTS = ("optimizer", "policy_loss")
FORMER_PARTS = {"objective": "policy_loss"}  # how files of version 1 name a part
MAX_DEPTH = 32  # levels of names; deeper files are made to hurt
MAX_UNPACKED = 1 << 28  # bytes of all arrays of an .npz, which is compressed
METADATA_KEY = "open_bench"  # one key only: the format does not fix the order of several, and bytes shall be stable


class WeightsError(UserError, ValueError):
    """Weights that cannot be read, written, found or used; the message says what, where and what to do."""


class Damaged(WeightsError):
    """A file of weights that is cut short or altered, so that nothing is lost when another takes its place."""


class Weights(NamedTuple):
    """θ with where it came from."""

    theta: Theta  # float32 numpy arrays
    metadata: dict[str, Any]  # optimizer, sizes, how it was trained, versions, parent
    hash: str  # content_hash(theta)


def flatten(theta: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """θ as ``{"part/key/…/key": float32 array}``, sorted by name; empty dicts inside it vanish.

    Raises:
        WeightsError: another part than "optimizer" and "policy_loss", a key that is no text or holds "/", a leaf that
            is no array of floats, or a number that is not finite.
    """
    flat: dict[str, np.ndarray] = {}
    for part, value in theta.items():
        if part not in PARTS or not isinstance(value, Mapping):
            raise WeightsError(f"θ has the parts {', '.join(PARTS)}, each a dict of named arrays; found {part!r}")
        _flatten(value, part, flat)
    return dict(sorted(flat.items()))


def _flatten(tree: Mapping[str, Any], prefix: str, flat: dict[str, np.ndarray]) -> None:
    if prefix.count("/") > MAX_DEPTH:
        raise WeightsError(f"θ: {prefix[:60]}… is nested deeper than {MAX_DEPTH} levels")
    for key, value in tree.items():
        if not isinstance(key, str) or not key or "/" in key:
            raise WeightsError(f"θ: the key {key!r} under {prefix} is no name; keys are non-empty text without '/'")
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            _flatten(value, name, flat)
        else:
            flat[name] = as_float32(value, name)


def as_float32(value: Any, name: str) -> np.ndarray:
    """``value`` as a finite float32 array; WeightsError names it when it is of another kind.

    Wider floats are rounded, so that one θ has one identity whatever the precision it was written in.
    """
    array = np.asarray(value)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise WeightsError(f"{name} holds {array.dtype}, where θ is an array of floats")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise WeightsError(f"{name} holds {count} NaN or infinite numbers (of {array.size}); such a θ cannot be used")
    return array


def unflatten(flat: Mapping[str, Any]) -> Theta:
    """The inverse of ``flatten``; both parts are always there.

    Raises:
        WeightsError: a name that does not begin with a part, or that is both an array and a dict of arrays.
    """
    theta: Theta = {part: {} for part in PARTS}
    for name, value in flat.items():
        *levels, last = name.split("/")
        if not levels or levels[0] not in PARTS or not all(levels) or not last:
            raise WeightsError(f"array {name[:80]!r}: names of θ begin with optimizer/ or policy_loss/")
        if len(levels) > MAX_DEPTH:
            raise WeightsError(f"array {name[:60]!r}… is nested deeper than {MAX_DEPTH} levels")
        inside: Any = theta
        for level in levels:
            inside = inside.setdefault(level, {})
            if not isinstance(inside, dict):
                raise WeightsError(f"array {name!r}: {level!r} is an array already and cannot hold another")
        if last in inside:
            raise WeightsError(f"array {name!r} appears twice")
        inside[last] = value
    return theta


def content_hash(theta: Mapping[str, Any]) -> str:
    """Identity of θ: SHA-256 over names, shapes and float32 numbers, 64 hexadecimal digits.

    It depends neither on metadata nor on order, memory layout, file format or the floats' width.
    """
    return _hash(flatten(theta))


def _hash(flat: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(b"open-bench theta 1\n")
    for name, array in sorted(flat.items()):
        encoded = name.encode()
        digest.update(struct.pack(f"<2Q{array.ndim}Q", len(encoded), array.ndim, *array.shape))
        digest.update(encoded)
        digest.update(np.ascontiguousarray(array, "<f4").tobytes())
    return digest.hexdigest()


def make_weights(theta: Mapping[str, Any], metadata: Mapping[str, Any]) -> Weights:
    """Weights of a θ that may hold arrays of any library; checked and copied to numpy."""
    clean = unflatten(flatten(theta))
    return Weights(clean, dict(metadata), content_hash(clean))


def save_weights(path: str | Path, theta: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> str:
    """Write θ as safetensors, whole or not at all; folders are created. Returns the content hash.

    The same θ and metadata give the same bytes.

    Raises:
        WeightsError: θ is empty or unfit, metadata is not JSON, or the file cannot be written.
    """
    import safetensors.numpy

    flat = flatten(theta)
    if not flat:
        raise WeightsError(f"{path}: θ holds no arrays, there is nothing to save")
    identity = content_hash(theta)
    try:
        text = json.dumps({"hash": identity, "metadata": dict(metadata or {})}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: metadata is not JSON: {error}") from error
    arrays = {name: np.array(array, order="C") for name, array in flat.items()}
    write(path, safetensors.numpy.save(arrays, {METADATA_KEY: text}))
    return identity


def write(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all; WeightsError when the place cannot be written."""
    try:
        files.write_atomically(path, data)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror or error}") from error


def load_weights(path: str | Path) -> Weights:
    """Read a safetensors file, of open-bench or of others who use the same names.

    Names of version 1 (``objective/…``) are read as what they are called now.

    Raises:
        Damaged: empty, truncated or altered file.
        WeightsError: missing file; arrays that are no θ.
    """
    path = existing_file(path)
    flat, comments = _read_safetensors(path)
    if not flat:
        raise WeightsError(f"{path} holds no arrays")
    recorded, metadata = _read_metadata(path, comments.get(METADATA_KEY))
    try:
        flat = {name: as_float32(array, name) for name, array in flat.items()}
        found = _hash(flat)  # under the names of the file, which its own hash was made of
        weights = make_weights(unflatten(_renamed(flat)), metadata)
    except WeightsError as error:
        kind = WeightsError if recorded is None else Damaged  # what has a hash was whole when it was written
        raise kind(f"{path}: {error}") from error
    if recorded not in (None, found):
        raise Damaged(
            f"{path} was altered: its numbers have hash {found[:12]} and it was written as {recorded[:12]}; "
            "take it from its source again"
        )
    return weights


def _renamed(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Today's names of the parts; WeightsError where a file uses both the former and the present one."""
    renamed: dict[str, np.ndarray] = {}
    for name, array in flat.items():
        part, slash, rest = name.partition("/")
        name = f"{FORMER_PARTS.get(part, part)}{slash}{rest}"
        if name in renamed:
            raise WeightsError(f"array {name!r} appears twice")
        renamed[name] = array
    return renamed


def existing_file(path: str | Path) -> Path:
    """The path of a non-empty file; WeightsError otherwise (Damaged where it is empty)."""
    path = Path(path)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise WeightsError(f"{path} {what}; expected a file of weights")
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if not first:
        raise Damaged(f"{path} is empty")
    return path


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the reader's own exception class derives from Exception alone
        raise Damaged(
            f"{path} is not a readable safetensors file, or is cut short ({error}); take it from its source again"
        ) from error


def _read_metadata(path: Path, text: str | None) -> tuple[str | None, dict[str, Any]]:
    """(recorded hash, metadata) of a file; (None, {}) for files of others."""
    if text is None:
        return None, {}
    try:
        content = json.loads(text)
        recorded, metadata = content["hash"], content["metadata"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{path}: its metadata is damaged ({error})") from error
    if not isinstance(recorded, str) or not isinstance(metadata, dict):
        raise Damaged(f"{path}: its metadata is damaged")
    return recorded, metadata


# --- numpy's files ---------------------------------------------------------------------------------------------------


def read_npy(path: str | Path) -> np.ndarray:
    """The array of a plain ``.npy`` file as finite float32.

    Nothing is unpickled or mapped into memory; nothing is allocated before the header agrees with the file's length.

    Raises:
        WeightsError: no such file, a damaged header, object arrays, a length that the header does not promise.
    """
    path = existing_file(path)
    with path.open("rb") as file:
        return as_float32(_read_array(file, path.stat().st_size, str(path)), str(path))


def read_npz(path: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file that holds exactly these names, as finite float32; WeightsError otherwise."""
    path = existing_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if sorted(sizes) != sorted(f"{name}.npy" for name in names) or sum(sizes.values()) > MAX_UNPACKED:
                raise WeightsError(f"{path} holds {sorted(sizes)[:8]}; expected the arrays {' and '.join(names)}")
            members = {name: archive.read(f"{name}.npy") for name in names}
    except WeightsError:
        raise
    except Exception as error:  # zip and zlib each have their own ways to report damage
        raise WeightsError(f"{path} is not a readable .npz ({error})") from error
    arrays = {}
    for name, data in members.items():
        where = f"{path}: {name}"
        arrays[name] = as_float32(_read_array(io.BytesIO(data), len(data), where), where)
    return arrays


def _read_array(file: IO[bytes], length: int, where: str) -> np.ndarray:
    """One array in numpy's format that fills ``length`` bytes; WeightsError names what is wrong."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in read_header:
            raise ValueError(f"version {version} of the format")
        shape, fortran, dtype = read_header[version](file)
    except Exception as error:  # a damaged header is parsed as Python text, which can fail in many ways
        raise _no_array(where, f"{type(error).__name__}: {error}") from error
    if dtype.hasobject:
        raise _no_array(where, "it holds Python objects")
    count = math.prod(shape)
    if any(side < 0 for side in shape) or count * dtype.itemsize != length - file.tell():
        raise _no_array(where, f"its header promises {shape} {dtype}, and {length - file.tell()} bytes follow")
    if dtype.kind != "f":
        raise WeightsError(f"{where} holds {dtype}, where θ is an array of floats")
    try:
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")
    except (ValueError, OverflowError) as error:  # more dimensions than numpy has
        raise _no_array(where, str(error)) from error


def _no_array(where: str, reason: str) -> WeightsError:
    return WeightsError(
        f"{where} is not a plain .npy array of numbers ({reason[:200]}); pickled and object arrays are never loaded: "
        "save it again as float32"
    )
