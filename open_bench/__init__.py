"""open-bench: compare optimizers for reinforcement learning in one harness.

``train`` one optimizer, ``tune`` it, ``compare`` several, ``meta_train`` a learned one, ``generalize``; ``load_runs``,
``load_agent``, ``leaderboard`` and ``report`` read what is stored; ``export``, ``import_results`` and ``verify``
exchange results. Importing does no work: functions load what they need.
"""

import importlib as _importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from open_bench.api import compare, generalize, leaderboard, meta_train, report, train, tune, verify
    from open_bench.config import Cluster, Execution
    from open_bench.errors import UserError
    from open_bench.events import (
        Advanced,
        Compiled,
        Compiling,
        Ended,
        Evaluated,
        Finished,
        Fitted,
        Generation,
        Started,
        Waiting,
        Watcher,
        Work,
    )
    from open_bench.exchange.export import export
    from open_bench.exchange.receive import import_results
    from open_bench.experiments.agents import load_agent
    from open_bench.experiments.session import load_runs
    from open_bench.optimizers.spec import Hyperparameter, OptimizerSpec, Search

__all__ = [
    "Advanced", "Cluster", "Compiled", "Compiling", "Ended", "Evaluated", "Execution", "Finished", "Fitted",
    "Generation", "Hyperparameter", "OptimizerSpec", "Search", "Started", "UserError", "Waiting", "Watcher", "Work",
    "compare", "export", "generalize", "import_results", "leaderboard", "load_agent", "load_runs", "meta_train",
    "report", "train", "tune", "verify",
]  # fmt: skip
# Where public names lie; looked through in this order, the heaviest to import last.
_HOMES = (
    "errors", "events", "config", "api", "optimizers.spec", "experiments.agents", "experiments.session",
    "exchange.export", "exchange.receive",
)  # fmt: skip


def __getattr__(name: str) -> object:
    if name in __all__:
        homes = (_importlib.import_module(f"open_bench.{home}") for home in _HOMES)
        return next(getattr(home, name) for home in homes if hasattr(home, name))
    if name == "__version__":
        from importlib.metadata import version

        return version("open-bench")
    raise AttributeError(f"module 'open_bench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__", "__doc__", "__name__"]
