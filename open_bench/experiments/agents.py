"""Trained agents on disk: one safetensors file a shard, arrays named ``<seed>/<network>/<layer>/<array>``."""

from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from open_bench.errors import UserError

AGENTS = "agents.safetensors"


def write_agents(path: Path, params: Any, seeds: list[int]) -> None:
    """Save parameters with a leading axis of lifetimes, the first of which are the seeds'."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    arrays = {
        f"{seed}/{name}": np.ascontiguousarray(array[index])
        for index, seed in enumerate(seeds)
        for name, array in flat.items()
    }
    safetensors.numpy.save_file(arrays, path)


def saved_agents(experiment: str | Path) -> set[int]:
    """Seeds whose trained agents are stored in an experiment's directory."""
    found: set[int] = set()
    for path in Path(experiment).glob(f"shard-*/{AGENTS}"):
        with safetensors.safe_open(path, framework="numpy") as file:
            found |= {int(name.partition("/")[0]) for name in file.keys()}  # noqa: SIM118
    return found


def load_agent(experiment: str | Path, seed: int = 0) -> dict[str, Any]:
    """Parameters of a trained agent, ``{"actor": {layer: …}, "critic": {layer: …}}``, from an experiment's directory.

    Raises:
        UserError: the experiment holds no agent of that seed (train with ``--save-agents``).
    """
    prefix = f"{seed}/"
    for path in sorted(Path(experiment).glob(f"shard-*/{AGENTS}")):
        arrays = safetensors.numpy.load_file(path)
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        if own:
            return flax.traverse_util.unflatten_dict(own, sep="/")
    raise UserError(f"{experiment}: no saved agent of seed {seed}; train it with --save-agents")
