"""The file format of θ: safetensors, with flat names, JSON metadata and a content hash that is its identity.

θ is ``{"optimizer": nested dict of arrays, "policy_loss": nested dict of arrays}``; on disk a name is the path of keys
joined by "/", as in ``optimizer/gru/kernel``. Arrays are float32 throughout.
"""

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from open_bench.errors import UserError
from open_bench.optimizers.spec import OptimizerSpec, Theta

PARTS = ("optimizer", "policy_loss")
METADATA_KEY = "open_bench"  # one key only: the format does not fix the order of several, and bytes shall be stable


class WeightsError(UserError, ValueError):
    """Weights that cannot be read, written, found or used; the message says what, where and what to do."""


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
            raise WeightsError(f"array {name!r}: names of θ begin with optimizer/ or policy_loss/")
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
    digest = hashlib.sha256(b"open-bench theta 1\n")
    for name, array in flatten(theta).items():
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
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: metadata is not JSON: {error}") from error
    arrays = {name: np.array(array, order="C") for name, array in flat.items()}
    write_atomically(Path(path), safetensors.numpy.save(arrays, {METADATA_KEY: text}))
    return identity


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it; WeightsError when the place cannot be written."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # temporary files are private; what is kept is an ordinary file
        temporary.replace(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def load_weights(path: str | Path) -> Weights:
    """Read a safetensors file, of open-bench or of others who use the same names.

    Raises:
        WeightsError: missing, empty, truncated or altered file; arrays that are no θ.
    """
    path = existing_file(path)
    flat, comments = _read_safetensors(path)
    if not flat:
        raise WeightsError(f"{path} holds no arrays")
    recorded, metadata = _read_metadata(path, comments.get(METADATA_KEY))
    try:
        weights = make_weights(unflatten(flat), metadata)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    if recorded not in (None, weights.hash):
        raise WeightsError(
            f"{path} was altered: its numbers have hash {weights.hash[:12]} and it was written as {recorded[:12]}; "
            "take it from its source again"
        )
    return weights


def existing_file(path: str | Path) -> Path:
    """The path of a non-empty file; WeightsError otherwise."""
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
        raise WeightsError(f"{path} is empty")
    return path


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # the reader's own exception class derives from Exception alone
        raise WeightsError(
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
        raise WeightsError(f"{path}: its metadata is damaged ({error})") from error
    if not isinstance(recorded, str) or not isinstance(metadata, dict):
        raise WeightsError(f"{path}: its metadata is damaged")
    return recorded, metadata


def validate(theta: Theta, spec: OptimizerSpec, where: str | Path = "θ") -> None:
    """Check θ against what the optimizer and its policy_loss need.

    Raises:
        WeightsError: a part is missing, superfluous or of other shapes; ``where`` says whose θ it is.
    """
    learned, policy_loss = spec.learned, spec.policy_loss
    parts = (
        ("optimizer", learned is not None, learned and learned.validate, learned and learned.init),
        ("policy_loss", policy_loss.init is not None, policy_loss.validate, policy_loss.init),
    )
    for part, needed, check, init in parts:
        found = theta.get(part) or {}
        owner = spec.name if part == "optimizer" else f"the policy_loss {policy_loss.name} of {spec.name}"
        if found and not needed:
            raise WeightsError(f"{where} holds weights of an {part}, and {owner} has none to learn")
        if needed and not found:
            raise WeightsError(f"{where} holds no weights of an {part}, and {owner} needs them")
        if not needed:
            continue
        try:
            check(found) if check else _same_shapes(found, init)
        except ValueError as error:
            raise WeightsError(f"{where} does not fit {owner}: {error}") from error


def _same_shapes(found: Any, init: Any) -> None:
    """Compare with the shapes that meta-training would start from, which are computed without running anything."""
    import jax

    expected = jax.eval_shape(init, jax.ShapeDtypeStruct((2,), np.uint32))
    wanted, present = ({n: tuple(a.shape) for n, a in _named(tree)} for tree in (expected, found))
    for name in sorted(wanted | present):
        if wanted.get(name) != present.get(name):
            raise ValueError(f"array {name}: expected {wanted.get(name, 'none')}, found {present.get(name, 'none')}")


def _named(tree: Any) -> list[tuple[str, Any]]:
    import jax

    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
