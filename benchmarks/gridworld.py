"""Env steps a second of gridworlds: the environment alone, and a PPO lifetime with Adam on it.

    python benchmarks/gridworld.py                                 rand_dense, rand_all, a maze and a tabular level
    python benchmarks/gridworld.py -e gridworld/large -e breakout  any environments with discrete actions

`environment` steps 1,024 copies with random actions, a compiled scan on one device that builds and reads every
observation; `lifetime` is one seed with the environment's settings (1,024 copies in gridworlds) on the same device.
Both are warm, and their timings alternate, so that `share`, the part of a lifetime that its env steps would take by
themselves, compares like with like. `device` may use every core inside an operation.
"""

import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from timed import experiment, harness

from open_bench.environments.base import Discrete, Environment
from open_bench.experiments.experiment import Experiment
from open_bench.training.devices import start

ENVIRONMENTS = ("gridworld/rand_dense", "gridworld/rand_all", "gridworld/standard_maze", "gridworld/dense")


def environment_alone(environment: Environment, copies: int, steps: int, device: Any) -> Callable[[], float]:
    """A function that times ``steps`` steps of all copies: seconds."""
    space = environment.action_space
    if not isinstance(space, Discrete):
        raise click.ClickException("this benchmark draws discrete actions only")

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        state, total = carry
        action_key, step_key = jax.random.split(key)
        actions = jax.random.randint(action_key, (copies,), 0, space.n)
        observation, state, reward, *_ = jax.vmap(environment.step)(jax.random.split(step_key, copies), state, actions)
        return (state, total + reward.sum() + observation.sum()), None  # an observation that nobody reads is not built

    def walk(state: Any, key: jax.Array) -> Any:
        return jax.lax.scan(step, (state, jnp.float32(0.0)), jax.random.split(key, steps))[0]

    with jax.default_device(device):
        _, state = jax.jit(environment.reset_copies, static_argnums=1)(jax.random.key(0), copies)
        compiled = jax.jit(walk, donate_argnums=0)
        held = [compiled(state, jax.random.key(1))[0]]

    def run() -> float:
        begin = time.perf_counter()
        held[0], total = compiled(held[0], jax.random.key(2))
        jax.block_until_ready(total)
        return time.perf_counter() - begin

    return run


def measure(chosen: Experiment, copies: int, steps: int, updates: int, repeats: int, device: Any) -> dict[str, float]:
    """Every figure of one row; the speeds in env steps a second."""
    lifetime, compile_seconds = harness(chosen, [device], 1, updates)
    runs = {
        "environment": environment_alone(chosen.task.make_environment(), copies, steps, device),
        "lifetime": lifetime,
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(run())
    counts = {"environment": copies * steps, "lifetime": updates * chosen.task.settings.env_steps_per_update}
    speeds = {name: counts[name] / np.asarray(values) for name, values in times.items()}
    return {
        **{name: float(np.median(values)) for name, values in speeds.items()},
        "share": float(np.median(speeds["lifetime"] / speeds["environment"])),
        "compile": compile_seconds,
    }


@click.command()
@click.option("--env", "-e", "environments", multiple=True, default=ENVIRONMENTS, show_default=True)
@click.option("--copies", default=1024, show_default=True, help="Of the environment alone.")
@click.option("--steps", default=100, show_default=True, help="Of each copy in a timing of the environment alone.")
@click.option("--updates", default=3, show_default=True, help="Updates in a timing of the lifetime.")
@click.option("--repeats", default=5, show_default=True)
def main(environments: tuple[str, ...], copies: int, steps: int, updates: int, repeats: int) -> None:
    """Print the table."""
    device = start()[0]
    columns = ("level", "observation", "environment", "lifetime", "share", "compile")
    table = Table(*columns, box=None, title=f"env steps/s on one {device.platform} device, {copies:,} copies")
    for name in environments:
        chosen = experiment("adam", name)
        m = measure(chosen, copies, steps, updates, repeats, device)
        size = chosen.task.make_environment().observation_size
        table.add_row(
            name, str(size), f"{m['environment']:,.0f}", f"{m['lifetime']:,.0f}",
            f"{m['share']:.0%}", f"{m['compile']:.1f} s",
        )  # fmt: skip
    console = Console(width=120)
    console.print(table)
    if hasattr(os, "getloadavg"):
        console.print(f"load average of the last minute: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
