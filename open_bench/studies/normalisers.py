"""What a point's returns are measured against: a uniformly random policy there, and what an optimal one would get."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from open_bench.config import PROTOCOL_VERSION
from open_bench.environments.catalogue import make_environment
from open_bench.environments.gridworld import GridworldEnvironment
from open_bench.environments.gridworld_optimal import optimal_return, solvable
from open_bench.harness import parallel
from open_bench.harness.random_policy import make_random_lifetime
from open_bench.harness.seeds import repetition_keys, stream
from open_bench.runs.cell import Cell
from open_bench.runs.execute import rows
from open_bench.scores.files import write_atomically


def random_returns(cell: Cell, repetitions: int, devices: Sequence[jax.Device], folder: Path) -> np.ndarray:
    """Final returns (repetitions,) of the random policy in lifetimes like a cell's, from its keys; NaN: no episode.

    What was measured before is read from ``folder``. Two processes at once measure the same, so the last may write.
    """
    identity = _identity(cell)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    path = folder / f"{digest}.json"
    known = _read(path, identity)
    if len(known) < repetitions:
        known = _measure(cell, repetitions, devices)
        content = {"identity": identity, "final_return": [None if math.isnan(x) else x for x in known]}
        write_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return np.asarray(known[:repetitions], float)


def optimal_returns(cell: Cell, repetitions: int) -> np.ndarray | None:
    """Expected returns (repetitions,) of an optimal policy on each repetition's level, by dynamic programming.

    None where they can not be computed: outside gridworlds, where places are drawn anew in every episode or there are
    too many states, and where every environment copy has a level of its own.
    """
    environment = make_environment(cell.environment)
    if not isinstance(environment, GridworldEnvironment):
        return None
    if not solvable(environment.distribution) or environment.level_per_copy:
        return None
    keys = repetition_keys(cell.study_seed, cell.keys_name, list(range(repetitions)))
    return np.array([optimal_return(environment.level(stream(key, "environment"))) for key in keys])


def _identity(cell: Cell) -> dict[str, Any]:
    """Everything that determines the returns: not the agent, so variants of it share a measurement."""
    config = cell.environment
    return {
        "source": config.source,
        "options": config.options,
        "version": config.version,
        "num_envs": config.ppo.num_envs,
        "num_steps": config.ppo.num_steps,
        "num_updates": cell.num_updates,
        "keys_of": cell.keys_name,
        "study_seed": cell.study_seed,
        "width": cell.width,
        "protocol": PROTOCOL_VERSION,
    }


def _read(path: Path, identity: dict[str, Any]) -> list[float]:
    """What is stored; nothing when the file is not there, damaged or about something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["identity"] != identity:
            return []
        return [math.nan if value is None else float(value) for value in content["final_return"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _measure(cell: Cell, repetitions: int, devices: Sequence[jax.Device]) -> list[float]:
    lifetime = make_random_lifetime(make_environment(cell.environment), cell.environment.ppo, cell.num_updates)
    program = parallel.compile_program(lifetime, {}, devices, cell.width, repetitions)
    finals: list[float] = []
    for first in range(0, repetitions, program.slots):
        chosen = list(range(first, first + program.slots))
        state = parallel.run_whole(program, repetition_keys(cell.study_seed, cell.keys_name, chosen), {})
        scores, _ = rows(cell, lifetime, chosen, parallel.gather((state.record, state.learner.finite)))
        finals += scores["final_return"].tolist()
    return finals[:repetitions]
