"""How long a CPU takes over tasks that are made for accelerators, said before it begins."""

import warnings
from collections.abc import Sequence

import jax

from open_bench.config import EnvironmentConfig
from open_bench.environments.registry import make_environment

LONG_SECONDS = 1_800.0  # shorter runs begin without a word


def warn_of_long_run(config: EnvironmentConfig, env_steps: int, devices: Sequence[jax.Device]) -> None:
    """Warn when ``env_steps`` of an environment would take a CPU long, at the speed that its adapter gives."""
    speed = make_environment(config).cpu_steps_per_second
    if devices[0].platform != "cpu" or speed is None or env_steps / speed < LONG_SECONDS:
        return
    warnings.warn(
        f"{config.name} is made for accelerators: a CPU makes about {speed:,.0f} env steps/s of it on two "
        f"cores, so the {env_steps:,} that are wanted would take about {_spell(env_steps / speed)}. "
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
