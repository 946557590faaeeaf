"""Trained agents on disk: one safetensors file a shard, arrays named ``<repetition>/<network>/<layer>/<array>``."""

from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from open_bench.errors import UserError

AGENTS = "agents.safetensors"


def write_agents(path: Path, params: Any, repetitions: list[int]) -> None:
    """Save parameters whose leading axis is slots; the first ``len(repetitions)`` slots are kept."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    arrays = {
        f"{repetition}/{name}": np.ascontiguousarray(array[slot])
        for slot, repetition in enumerate(repetitions)
        for name, array in flat.items()
    }
    safetensors.numpy.save_file(arrays, path)


def saved_agents(cell: str | Path) -> set[int]:
    """Repetitions whose trained agents are stored in a cell's directory."""
    found: set[int] = set()
    for path in Path(cell).glob(f"shard-*/{AGENTS}"):
        with safetensors.safe_open(path, framework="numpy") as file:
            found |= {int(name.partition("/")[0]) for name in file.keys()}  # noqa: SIM118
    return found


def load_agent(cell: str | Path, repetition: int = 0) -> dict[str, Any]:
    """Parameters of a trained agent, ``{"actor": {layer: …}, "critic": {layer: …}}``, from a cell's directory.

    Raises:
        UserError: the cell holds no agent of that repetition (train with ``--save-agents``).
    """
    prefix = f"{repetition}/"
    for path in sorted(Path(cell).glob(f"shard-*/{AGENTS}")):
        arrays = safetensors.numpy.load_file(path)
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        if own:
            return flax.traverse_util.unflatten_dict(own, sep="/")
    raise UserError(f"{cell}: no saved agent of repetition {repetition}; train it with --save-agents")
