"""How long a CPU takes over tasks that are made for accelerators, said before it begins."""

import warnings
from collections.abc import Sequence

import jax

from open_bench.environments.catalogue import make_environment
from open_bench.runs.cell import Cell
from open_bench.runs.store import Store

LONG_SECONDS = 1_800.0  # shorter runs begin without a word


def warn_of_long_runs(cells: Sequence[Cell], repetitions: int, store: Store, devices: Sequence[jax.Device]) -> None:
    """Warn, an environment at a time, when what is missing of repetitions 0 … n−1 would take a CPU long.

    The estimate counts env steps alone, at the speed that the adapter gives for two cores.
    """
    if devices[0].platform != "cpu":
        return
    for environment in dict.fromkeys(cell.environment.name for cell in cells):
        chosen = [cell for cell in cells if cell.environment.name == environment]
        speed = make_environment(chosen[0].environment).cpu_steps_per_second
        if speed is None:
            continue
        missing = sum(cell.lifetime_steps * len(set(range(repetitions)) - store.repetitions(cell)) for cell in chosen)
        if missing / speed >= LONG_SECONDS:
            warnings.warn(
                f"{environment} is made for accelerators: a CPU makes about {speed:,.0f} env steps/s of it on two "
                f"cores, so the {missing:,} that are wanted would take about {_spell(missing / speed)}. "
                "To see it work, ask for fewer --steps and copies, as in --steps 400 --set num_envs=4 "
                "--set num_minibatches=2",
                stacklevel=2,
            )


def _spell(seconds: float) -> str:
    """7200 → "2.0 hours"."""
    for unit, length in (("days", 86_400), ("hours", 3_600)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60:.0f} minutes"
