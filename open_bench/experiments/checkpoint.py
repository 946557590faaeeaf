"""Arrays and facts on disk, so that interrupted work goes on with bitwise the same numbers. Never pickle.

One safetensors file holds arrays and, as JSON in its metadata, everything else, with a digest of both. It is written
under a temporary name and renamed, so it is whole or absent; a damaged one counts as none.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from open_bench.errors import UserError
from open_bench.experiments.provenance import provenance, same_kind
from open_bench.files import write_atomically


class Saved(NamedTuple):
    """What a checkpoint holds."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def write(path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all; raises UserError when the place cannot be written."""
    text = json.dumps(facts)
    content = {name: np.array(array, order="C") for name, array in arrays.items()}
    data = safetensors.numpy.save(content, {"facts": text, "digest": _digest(text, content)})
    try:
        write_atomically(path, data)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def read(path: Path) -> Saved | None:
    """What was written; None when there is no such file, or it is damaged."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["digest"] != _digest(metadata["facts"], arrays):
            return None
        return Saved(arrays, json.loads(metadata["facts"]))
    except (OSError, KeyError, ValueError, TypeError, RecursionError, safetensors.SafetensorError):
        return None


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


class BatchCheckpoint:
    """The state of a device batch under way: ``partial-<first>-<last seed>-of-<count><digest>.safetensors``.

    Only code of the same revision, on the same kind of machine, goes on from it: what was begun elsewhere would end as
    numbers that no machine gives, under the provenance of the last one.
    """

    def __init__(self, folder: Path, seeds: Sequence[int], interval: float, digest: str = ""):
        self._path = folder / f"partial-{seeds[0]:04d}-{seeds[-1]:04d}-of-{len(seeds)}{digest}.safetensors"
        self._seeds = [int(seed) for seed in seeds]
        self._interval = interval
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether the interval has passed since the last save."""
        return time.monotonic() - self._last >= self._interval

    def save(self, arrays: Sequence[np.ndarray], facts: dict[str, Any]) -> None:
        """Keep the leaves of the state, in order."""
        told = {**facts, "seeds": self._seeds, "provenance": provenance()}
        write(self._path, {f"{index:05d}": array for index, array in enumerate(arrays)}, told)
        self._last = time.monotonic()

    def load(self) -> tuple[list[np.ndarray], dict[str, Any]] | None:
        """What was kept, or None: nothing, or nothing that this process may go on from."""
        saved = read(self._path)
        if saved is None or saved.facts.get("seeds") != self._seeds:
            return None
        made, here = saved.facts.get("provenance", {}), provenance()
        if not same_kind(made, here) or made.get("revision") != here["revision"]:
            warnings.warn(
                f"{saved.facts['update']} updates of a batch were made on another kind of machine, or by another "
                f"revision ({made.get('hardware')}, {made.get('revision')}): it is begun anew",
                stacklevel=5,
            )
            return None
        facts = {key: x for key, x in saved.facts.items() if key not in ("seeds", "provenance")}
        return [saved.arrays[name] for name in sorted(saved.arrays)], facts

    def remove(self) -> None:
        """Forget the batch: its shard is stored."""
        self._path.unlink(missing_ok=True)


def remove_batches(folder: Path) -> None:
    """Clear batches that were cut differently (on another number of devices) and never ended under that name."""
    for path in [*folder.glob("partial-*"), *folder.glob(".partial-*")]:
        path.unlink(missing_ok=True)
