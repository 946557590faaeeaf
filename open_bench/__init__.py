"""open-bench: compare optimizers for reinforcement learning on one PPO harness.

Importing does no work: the functions load what they need when they are called.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from open_bench.api import compare, generalize, leaderboard, load_runs, meta_train, train
    from open_bench.config import Cluster, Execution
    from open_bench.errors import UserError
    from open_bench.experiments.agents import load_agent

_HOMES = {
    "Cluster": "open_bench.config",
    "Execution": "open_bench.config",
    "UserError": "open_bench.errors",
    "compare": "open_bench.api",
    "generalize": "open_bench.api",
    "load_agent": "open_bench.experiments.agents",
    "load_runs": "open_bench.api",
    "leaderboard": "open_bench.api",
    "meta_train": "open_bench.api",
    "train": "open_bench.api",
}
__all__ = [
    "Cluster",
    "Execution",
    "UserError",
    "compare",
    "generalize",
    "leaderboard",
    "load_agent",
    "load_runs",
    "meta_train",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'open_bench' has no attribute {name!r}")
