"""The public functions that send, receive and check results; like ``api``, they load what they need when called."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_bench.config import Execution, quiet_xla

if TYPE_CHECKING:
    import pandas as pd

    from open_bench.experiments.verify import Verification

HERE = Execution()


def export(target: str | Path, results: str | Path = "results", overwrite: bool = False) -> Path:
    """Write a folder's runs to one file: an archive to send (.zip), or a tidy table with a row a seed (.csv)."""
    quiet_xla()
    from open_bench.experiments.exchange import export as write

    return write(Path(target), Path(results), overwrite)


def import_results(*sources: str | Path, results: str | Path = "results") -> "pd.DataFrame":
    """Merge archives of ``export`` and results folders into one folder: everything, or nothing where a part is unsound.

    Nothing in them is run. Returns a row a source and experiment, with the seeds ``added`` and those ``known`` before.
    """
    quiet_xla()
    from open_bench.experiments.exchange import import_results as merge

    return merge([Path(source) for source in sources], Path(results))


def verify(
    num_seeds: int = 4,
    *,
    root_seed: int | None = None,
    own_code: bool = False,
    execution: Execution = HERE,
    **where: Any,
) -> "Verification":
    """Run a random sample of the stored seeds again and compare; ``passed`` says whether all agree. Writes nothing.

    Args:
        num_seeds: of all experiments together.
        root_seed: of the sample; by default another one each time.
        own_code: import optimizers, algorithms and environments from outside open-bench; else they are ``skipped``.
        execution: the folder and the devices; see ``train``. The vmap size is always the stored one.
    """
    quiet_xla()
    from open_bench.experiments.session import watcher_of
    from open_bench.experiments.store import Store
    from open_bench.experiments.verify import verify as run
    from open_bench.training.devices import start

    here = execution.but(where)
    store, devices = Store(here.folder), start(here.devices, here.executor)
    return run(store, num_seeds, devices, root_seed=root_seed, own_code=own_code, watcher=watcher_of(here))
