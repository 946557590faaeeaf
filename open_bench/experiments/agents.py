"""Trained agents on disk: one safetensors file a shard, arrays named ``<seed>/<network>/<layer>/<array>``."""

import contextlib
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from open_bench.errors import UserError

AGENTS = "agents.safetensors"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError)


def write_agents(path: Path, params: Any, seeds: list[int]) -> None:
    """Save parameters with a leading axis of lifetimes, the first of which are the seeds'."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    arrays = {
        f"{seed}/{name}": np.ascontiguousarray(array[index])
        for index, seed in enumerate(seeds)
        for name, array in flat.items()
    }
    path.write_bytes(safetensors.numpy.save(arrays))  # which raises OSError where the disk is full


def saved_agents(experiment: str | Path) -> set[int]:
    """Seeds whose trained agents are stored in an experiment's directory; a file that cannot be read has none."""
    found: set[int] = set()
    for path in Path(experiment).glob(f"shard-*/{AGENTS}"):
        with contextlib.suppress(*_UNREADABLE), safetensors.safe_open(path, framework="numpy") as file:
            found |= {int(name.partition("/")[0]) for name in file.keys()}  # noqa: SIM118
    return found


def load_agent(experiment: str | Path, seed: int = 0) -> dict[str, Any]:
    """Parameters of a trained agent, ``{"actor": {layer: …}, "critic": {layer: …}}``, from an experiment's directory.

    Raises:
        UserError: the experiment holds no agent of that seed (train with ``--save-agents``), or a file is damaged.
    """
    prefix = f"{seed}/"
    for path in sorted(Path(experiment).glob(f"shard-*/{AGENTS}")):
        try:
            arrays = safetensors.numpy.load_file(path)
            own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            if own:
                return flax.traverse_util.unflatten_dict(own, sep="/")
        except _UNREADABLE as error:
            raise UserError(
                f"{path} is damaged ({error}): remove its folder, and the same command with --save-agents makes it anew"
            ) from None
    raise UserError(f"{experiment}: no saved agent of seed {seed}; train it with --save-agents")
