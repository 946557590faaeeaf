"""What a point's returns are measured against: a uniformly random policy there, and what an optimal one would get."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from open_bench.algorithms.random_policy import make_random_lifetime
from open_bench.config import PROTOCOL_VERSION
from open_bench.environments.registry import make_environment
from open_bench.experiments.execute import rows
from open_bench.experiments.experiment import Experiment
from open_bench.files import write_atomically
from open_bench.training import mesh as parallel
from open_bench.training.keys import lifetime_keys, stream


def random_returns(experiment: Experiment, seeds: int, devices: Sequence[jax.Device], folder: Path) -> np.ndarray:
    """Final returns (seeds,) of the random policy in lifetimes like an experiment's, from its keys; NaN: no episode.

    What was measured before is read from ``folder``. Two processes at once measure the same, so the last may write.
    """
    identity = _identity(experiment)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    path = folder / f"{digest}.json"
    known = _read(path, identity)
    if len(known) < seeds:
        known = _measure(experiment, seeds, devices)
        content = {"identity": identity, "final_return": [None if math.isnan(x) else x for x in known]}
        write_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return np.asarray(known[:seeds], float)


def optimal_returns(experiment: Experiment, seeds: int) -> np.ndarray | None:
    """Expected returns (seeds,) of an optimal policy on each seed's level; None where they are not known."""
    environment = make_environment(experiment.environment)
    keys = lifetime_keys(experiment.root_seed, experiment.keys_name, list(range(seeds)))
    returns = []
    for key in keys:
        value = environment.optimal_return(environment.level(stream(key, "environment")))
        if value is None:
            return None
        returns.append(value)
    return np.array(returns)


def _identity(experiment: Experiment) -> dict[str, Any]:
    """Everything that determines the returns: not the agent, so variants of it share a measurement."""
    config = experiment.environment
    return {
        **config.task_identity,
        "version": config.version,
        "num_envs": config.ppo.num_envs,
        "num_steps": config.ppo.num_steps,
        "num_updates": experiment.num_updates,
        "keys_of": experiment.keys_name,
        "root_seed": experiment.root_seed,
        "vmap_size": experiment.vmap_size,
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


def _measure(experiment: Experiment, seeds: int, devices: Sequence[jax.Device]) -> list[float]:
    lifetime = make_random_lifetime(
        make_environment(experiment.environment), experiment.environment.ppo, experiment.num_updates
    )
    program = parallel.compile_program(lifetime, {}, devices, experiment.vmap_size, seeds)
    finals: list[float] = []
    for first in range(0, seeds, program.slots):
        chosen = list(range(first, first + program.slots))
        state = parallel.run_whole(program, lifetime_keys(experiment.root_seed, experiment.keys_name, chosen), {})
        scores, _ = rows(experiment, lifetime, chosen, parallel.gather((state.record, state.learner.finite)))
        finals += scores["final_return"].tolist()
    return finals[:seeds]
