"""Env steps a second of the harness, per optimizer and environment, against a bare PPO loop in the same run.

    python benchmarks/throughput.py                       Adam and Lion on Breakout and CartPole
    python benchmarks/throughput.py -o adam -e freeway --updates 20

Columns: `bare` is benchmarks/bare_ppo.py with Adam; `harness` is one seed in the same process, both confined to one
core; `overhead` is bare/harness − 1 over alternated repeats (Adam's row compares like with like); `1 device` and `all`
are four seeds, batch after batch on one device (which may use every core inside an operation) or spread over all of
them. Compile times are of a cold and of a warm persistent cache.
"""

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from timed import experiment, harness

from open_bench.experiments.experiment import Experiment
from open_bench.training.devices import start

SEEDS = 4


def bare(chosen: Experiment, updates: int, lifetimes: int = 1) -> Callable[[], float]:
    """A function that times ``updates`` updates of the bare loop, vmapped where there are several: seconds."""
    from bare_ppo import make_bare_ppo  # gymnax starts JAX when imported, which must wait for start()

    task, ppo = chosen.task, chosen.task.settings
    init, train = make_bare_ppo(
        task.environment.source.partition(":")[2], ppo.num_envs, ppo.num_steps, ppo.update_epochs, ppo.num_minibatches,
        ppo.hidden, ppo.activation == "relu", bool(task.environment.options.get("binary_observations")),
        task.num_updates, float(chosen.optimizer.hyperparameters.get("learning_rate", 1e-3)),
    )  # fmt: skip
    key = jax.device_put(jax.random.key(0), jax.devices()[0])
    if lifetimes > 1:
        key, init, train = jax.random.split(key, lifetimes), jax.vmap(init), jax.vmap(train, (0, None))
    compiled = jax.jit(train, donate_argnums=0)
    state, _ = compiled(jax.jit(init)(key), 1)
    held = [state]

    def run() -> float:
        begin = time.perf_counter()
        held[0], result = compiled(held[0], updates)
        jax.block_until_ready(result)
        return time.perf_counter() - begin

    return run


def on_one_core(run: Callable[[], float]) -> float:
    """Run with every thread of this process confined to one core, so that one loop cannot borrow another's."""
    cores = os.sched_getaffinity(0)
    tasks = [int(task) for task in os.listdir("/proc/self/task")]
    for task in tasks:
        os.sched_setaffinity(task, {min(cores)})
    try:
        return run()
    finally:
        for task in tasks:
            os.sched_setaffinity(task, cores)


def cold_and_warm(chosen: Experiment, devices: list[Any]) -> tuple[float, float, int]:
    """Seconds to compile with an empty cache, then with a full one, and how many programs the latter compiled."""
    from jax.experimental.compilation_cache import compilation_cache

    misses = [0]
    jax.monitoring.register_event_listener(
        lambda event, **_: misses.__setitem__(0, misses[0] + event.endswith("/cache_misses"))
    )
    before = jax.config.jax_compilation_cache_dir
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        seconds = []
        for _ in range(2):
            compilation_cache.reset_cache()
            jax.clear_caches()
            misses[0] = 0
            seconds.append(harness(chosen, devices, len(devices), 1)[1])
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()
    return seconds[0], seconds[1], misses[0]


def measure(chosen: Experiment, devices: list[Any], updates: int, repeats: int) -> dict[str, float]:
    """Every figure of one row, in env steps a second, the timings alternated."""
    cold, warm, misses = cold_and_warm(chosen, devices)
    runs = {
        "bare": bare(chosen, updates),
        "harness": harness(chosen, devices[:1], 1, updates)[0],
        "one": harness(chosen, devices[:1], SEEDS, updates)[0],
        "all": harness(chosen, devices, SEEDS, updates)[0],
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(on_one_core(run) if name in ("bare", "harness") else run())
    steps = updates * chosen.task.settings.env_steps_per_update
    counts = {"bare": 1, "harness": 1, "one": SEEDS, "all": SEEDS}
    speeds = {name: steps * counts[name] / float(np.median(values)) for name, values in times.items()}
    pairs = np.asarray(times["harness"]) / np.asarray(times["bare"])
    sharded = np.asarray(times["one"]) / np.asarray(times["all"])
    return {
        **speeds,
        "overhead": float(np.median(pairs)) - 1.0,
        "speedup": float(np.median(sharded)),
        "cold": cold,
        "warm": warm,
        "misses": misses,
    }


@click.command()
@click.option("--optimizer", "-o", "optimizers", multiple=True, default=("adam", "lion"), show_default=True)
@click.option("--env", "-e", "environments", multiple=True, default=("breakout", "cartpole"), show_default=True)
@click.option("--updates", default=0, help="Updates a timing; by default about 100,000 env steps.")
@click.option("--repeats", default=5, show_default=True)
def main(optimizers: tuple[str, ...], environments: tuple[str, ...], updates: int, repeats: int) -> None:
    """Print the table."""
    devices = start()
    columns = ("environment", "optimizer", "bare", "harness", "overhead", "1 device", f"{len(devices)} devices",
               "speed-up", "compile cold", "warm", "compiled again")  # fmt: skip
    table = Table(*columns, box=None, title=f"env steps/s; {SEEDS} seeds in the device columns")
    for environment in environments:
        for name in optimizers:
            chosen = experiment(name, environment)
            m = measure(
                chosen, devices, updates or max(1, 100_000 // chosen.task.settings.env_steps_per_update), repeats
            )
            table.add_row(
                environment, name, f"{m['bare']:,.0f}", f"{m['harness']:,.0f}", f"{m['overhead']:+.1%}",
                f"{m['one']:,.0f}", f"{m['all']:,.0f}", f"{m['speedup']:.2f} ×", f"{m['cold']:.1f} s",
                f"{m['warm']:.1f} s", f"{m['misses']:.0f}",
            )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
