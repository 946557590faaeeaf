"""Readers of the formats in which learned optimizers are published, and the way back.

- ``.safetensors``: open-bench's own.
- ``.npy``: a flat vector, OPEN's format; the spec knows the order of its arrays.
- ``.npz`` with ``kernel_0`` (8, H) and ``kernel_1`` (H, 1): the drift network of LPO.
- a directory with ``params``: a VeLO checkpoint.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from open_bench.optimizers.spec import OptimizerSpec, Theta
from open_bench.weights.format import (
    Weights,
    WeightsError,
    as_float32,
    existing_file,
    flatten,
    load_weights,
    make_weights,
    save_weights,
    validate,
    write_atomically,
)

FLAT_SIZES = {
    1211: "OPEN (GRU 8, hidden 16)",
    3571: "large OPEN (GRU 16, hidden 32), which is also the multi-environment one",
    707: "feed-forward OPEN (hidden 16)",
    514: "the 'no features' optimizer (hidden 16)",
}
LPO_ARRAYS = ("kernel_0", "kernel_1")
MAX_UNPACKED = 1 << 28  # bytes; an .npz is compressed, and a drift network is far smaller


class Contents(NamedTuple):
    """What a file holds: θ, or a flat vector whose order only the optimizer knows."""

    kind: str
    theta: Theta | None
    vector: np.ndarray | None
    metadata: dict[str, Any]


def read(path: str | Path) -> Contents:
    """Read any supported file or directory, without knowing the optimizer; WeightsError says what is wrong."""
    path = Path(path)
    if path.is_dir():
        return _read_velo(path)
    path = existing_file(path)
    readers = {".safetensors": _read_safetensors, ".npy": _read_npy, ".npz": _read_npz}
    if path.suffix not in readers:
        raise WeightsError(
            f"{path}: weights are read from .safetensors, .npy (flat vector), .npz (LPO) or a VeLO checkpoint "
            "directory; other formats, pickles among them, are not opened because they may run code"
        )
    return readers[path.suffix](path)


def _read_safetensors(path: Path) -> Contents:
    weights = load_weights(path)
    return Contents("safetensors", weights.theta, None, weights.metadata)


def _read_npy(path: Path) -> Contents:
    try:
        # a memory map compares the header with the file's length before anything is allocated
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, OverflowError, MemoryError, SyntaxError) as error:
        raise WeightsError(
            f"{path} is not a plain .npy array of numbers ({error}); pickled and object arrays are never loaded: "
            "save it again as a float32 vector"
        ) from error
    if not isinstance(array, np.ndarray):
        raise WeightsError(f"{path} is an archive; an .npy file holds one array")
    if array.ndim != 1 or not array.size:
        raise WeightsError(f"{path} has shape {array.shape}; a flat vector of weights is expected, as (1211,)")
    return Contents("flat vector", None, as_float32(array, str(path)), {"imported_from": path.name})


def _read_npz(path: Path) -> Contents:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info.file_size for info in archive.infolist()}
        if sorted(members) != [f"{name}.npy" for name in LPO_ARRAYS] or sum(members.values()) > MAX_UNPACKED:
            raise WeightsError(f"{path} holds {sorted(members)[:8]}; LPO's drift network is kernel_0 and kernel_1")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: as_float32(archive[name], f"{path}: {name}") for name in LPO_ARRAYS}
    except WeightsError:
        raise
    except Exception as error:  # zip, zlib and numpy each have their own ways to report damage
        raise WeightsError(
            f"{path} is not a readable .npz of numbers ({error}); pickled and object arrays are never loaded"
        ) from error
    return Contents("LPO drift network", {"optimizer": {}, "policy_loss": arrays}, None, {"imported_from": path.name})


def _read_velo(path: Path) -> Contents:
    from open_bench.optimizers.learned.velo import read_checkpoint

    try:
        theta, origin = read_checkpoint(path)
    except ValueError as error:
        raise WeightsError(f"{error} (a directory of weights is a VeLO checkpoint with a file params)") from error
    return Contents(
        "VeLO checkpoint", {"optimizer": theta, "policy_loss": {}}, None, {"imported_from": path.name, **origin}
    )


def import_file(path: str | Path, spec: OptimizerSpec) -> Weights:
    """Read weights in any supported format for an optimizer.

    Raises:
        WeightsError: unreadable, unsafe, not finite, or of another optimizer.
    """
    contents = read(path)
    theta = contents.theta
    if contents.vector is not None:
        theta = {"optimizer": _from_vector(contents.vector, spec, Path(path)), "policy_loss": {}}
    assert theta is not None
    try:
        weights = make_weights(theta, contents.metadata)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    validate(weights.theta, spec, path)
    return weights


def _from_vector(vector: np.ndarray, spec: OptimizerSpec, path: Path) -> Any:
    belongs = FLAT_SIZES.get(vector.size)
    size = f"{path} holds {vector.size} numbers" + (f", the size of {belongs}" if belongs else "")
    if spec.learned is None or spec.learned.from_flat is None:
        raise WeightsError(f"{size}; {spec.name} does not read flat vectors")
    try:
        return spec.learned.from_flat(vector)
    except ValueError as error:
        known = "" if belongs else f" Known sizes: {', '.join(f'{n} {what}' for n, what in FLAT_SIZES.items())}."
        raise WeightsError(f"{size}, which does not fit {spec.name}: {error}.{known}") from error


def export(
    theta: Mapping[str, Any],
    path: str | Path,
    format: Literal["safetensors", "npy"] = "safetensors",
    *,
    spec: OptimizerSpec | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write θ for others: safetensors, or a flat float32 ``.npy`` in the order in which ``spec`` reads one.

    Raises:
        WeightsError: unknown format, or the optimizer has no flat order, or θ has an policy_loss part too.
    """
    if format == "safetensors":
        save_weights(path, theta, metadata)
    elif format == "npy":
        buffer = io.BytesIO()
        np.save(buffer, to_vector(theta, spec), allow_pickle=False)
        write_atomically(Path(path), buffer.getvalue())
    else:
        raise WeightsError(f"unknown format {format!r}; weights are exported as safetensors or npy")


def to_vector(theta: Mapping[str, Any], spec: OptimizerSpec | None) -> np.ndarray:
    """θ["optimizer"] as the flat vector that ``spec.learned.from_flat`` reads; (n,) float32.

    The order is found by reading the vector 0, 1, 2, … and looking where each number went.
    """
    flat = flatten(theta)
    if spec is None or spec.learned is None or spec.learned.from_flat is None:
        raise WeightsError(f"{spec.name if spec else 'this θ'} has no flat order; export it as safetensors")
    if not flat or any(name.startswith("policy_loss/") for name in flat):
        raise WeightsError("a flat vector holds the weights of an optimizer alone; export this θ as safetensors")
    size = sum(array.size for array in flat.values())
    try:
        places = flatten({"optimizer": spec.learned.from_flat(np.arange(size, dtype=np.float32))})
    except ValueError as error:
        raise WeightsError(f"θ does not fit {spec.name}: {error}") from error
    if {n: a.shape for n, a in places.items()} != {n: a.shape for n, a in flat.items()}:
        raise WeightsError(f"θ does not have the arrays of {spec.name}")
    vector = np.empty(size, np.float32)
    for name, array in flat.items():
        vector[places[name].astype(np.int64).ravel()] = array.ravel()
    return vector


def inspect(path: str | Path) -> dict[str, Any]:
    """What a file holds, as JSON values: path, kind, hash, parameters, arrays (name → shape) and metadata.

    A flat vector has no hash, because its arrays are known only together with an optimizer; ``belongs_to`` says
    whose size it has, or None.
    """
    contents = read(path)
    report: dict[str, Any] = {"path": str(path), "kind": contents.kind, "metadata": contents.metadata, "hash": None}
    if contents.vector is not None:
        size = int(contents.vector.size)
        return report | {"parameters": size, "arrays": {"": [size]}, "belongs_to": FLAT_SIZES.get(size)}
    assert contents.theta is not None
    weights = make_weights(contents.theta, contents.metadata)
    flat = flatten(weights.theta)
    return report | {
        "hash": weights.hash,
        "parameters": sum(int(array.size) for array in flat.values()),
        "arrays": {name: list(array.shape) for name, array in flat.items()},
    }
