"""The state of a round under way, so that a killed study goes on where it was. Never pickle."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy


class Saved(NamedTuple):
    arrays: list[np.ndarray]  # the leaves of the round's state, in order
    update: int  # PPO updates done
    seconds: float  # run time so far


class Checkpoint:
    """``<experiment>/partial-<seeds>.safetensors``, replaced whole; a damaged one counts as none."""

    def __init__(self, experiment: Path, seeds: list[int], interval: float):
        self._path = experiment / f"partial-{seeds[0]:04d}-{seeds[-1]:04d}-of-{len(seeds)}.safetensors"
        self._interval = interval
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether the interval has passed since the last save."""
        return time.monotonic() - self._last >= self._interval

    def save(self, arrays: list[np.ndarray], update: int, seconds: float) -> None:
        """Write the state under a temporary name and rename it."""
        temporary = self._path.with_suffix(".tmp")
        facts = {"update": json.dumps(update), "seconds": json.dumps(seconds), "count": json.dumps(len(arrays))}
        content = {f"{index:05d}": np.ascontiguousarray(array) for index, array in enumerate(arrays)}
        safetensors.numpy.save_file(content, temporary, metadata=facts)
        os.replace(temporary, self._path)
        self._last = time.monotonic()

    def load(self) -> Saved | None:
        """What was saved, or None."""
        try:
            with safetensors.safe_open(self._path, framework="numpy") as file:
                facts = {key: json.loads(value) for key, value in file.metadata().items()}
                arrays = [file.get_tensor(f"{index:05d}") for index in range(facts["count"])]
        except (OSError, KeyError, ValueError, AttributeError, safetensors.SafetensorError):
            return None
        return Saved(arrays, facts["update"], facts["seconds"])

    def remove(self) -> None:
        """Forget the round: its shard is stored."""
        for path in (self._path, self._path.with_suffix(".tmp")):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def remove_all(experiment: Path) -> None:
    """Clear rounds that were cut differently (on another number of devices) and never ended under that name."""
    for path in experiment.glob("partial-*"):
        path.unlink(missing_ok=True)
