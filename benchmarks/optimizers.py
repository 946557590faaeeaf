"""What optimizers cost: one update on Breakout's 59,908 parameters, and a lifetime on Breakout, relative to Adam.

    python benchmarks/optimizers.py                      every spec of the registry
    python benchmarks/optimizers.py -o open -o velo      some of them
    python benchmarks/optimizers.py --no-lifetimes       updates only

Learned specs run with freshly initialized θ: the cost does not depend on the numbers in it. Lifetimes are two seeds
on two devices (as many as there are), each optimizer alternated with Adam; the median ratio counts.
"""

import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from open_bench.environments.registry import load_environment
from open_bench.experiments.execute import build_lifetime
from open_bench.experiments.experiment import Experiment
from open_bench.optimizers import OptimizerSpec, available, registry, resolve
from open_bench.optimizers.conformance import cost
from open_bench.optimizers.resolve import prepare
from open_bench.training import mesh as parallel
from open_bench.training.devices import start
from open_bench.training.keys import lifetime_keys


def entry_of(name: str) -> OptimizerSpec:
    """The spec, with initial θ where it is learned and no weights are named."""
    known = registry.known()
    return resolve(f"{name}@init" if name in known and known[name].needs_theta else name)


def lifetime(spec: OptimizerSpec, devices: list[Any], updates: int) -> tuple[Callable[[], float], float]:
    """A function that times ``updates`` PPO updates of a seed a device, and the seconds to compile."""
    settings = load_environment("breakout")
    experiment = Experiment(settings, "full", settings.budget_steps("full"), prepare(spec, "breakout", "full"), 0, 1)
    theta = experiment.resolved.inputs
    program = parallel.compile_program(build_lifetime(experiment), theta, devices, 1, len(devices))
    keys = lifetime_keys(0, "breakout", list(range(program.slots)))
    held = [program.run(program.init(keys, theta), theta, 1)[0]]

    def run() -> float:
        begin = time.perf_counter()
        held[0], metrics = program.run(held[0], theta, updates)
        parallel.gather(metrics)
        return time.perf_counter() - begin

    return run, program.compile_seconds


@click.command()
@click.option("--optimizer", "-o", "optimizers", multiple=True, help="Default: every spec of the registry.")
@click.option("--updates", default=6, show_default=True, help="PPO updates in a timing of a lifetime.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--no-lifetimes", is_flag=True)
def main(optimizers: tuple[str, ...], updates: int, repeats: int, no_lifetimes: bool) -> None:
    """Print the table."""
    devices = start()
    adam = resolve("adam")
    reference = None if no_lifetimes else lifetime(adam, devices, updates)[0]
    table = Table("optimizer", "update", "× Adam", "state bytes/parameter", "lifetime × Adam", "env steps/s", "compile",
                  box=None, title=f"{len(devices)} devices; update on 59,908 parameters")  # fmt: skip
    for name in track(optimizers or available(), console=Console(stderr=True), transient=True):
        spec = entry_of(name)
        step = cost(spec, adam, repeats=repeats)
        row = [
            name,
            f"{1e3 * step.seconds_per_step:.2f} ms",
            f"{step.relative:.0f}",
            f"{step.state_bytes / step.parameters:.0f}",
        ]
        if reference is not None:
            run, compile_seconds = lifetime(spec, devices, updates)
            pairs = np.asarray([(run(), reference()) for _ in range(repeats)])
            steps = updates * len(devices) * load_environment("breakout").ppo.batch_size
            row += [
                f"{np.median(pairs[:, 0] / pairs[:, 1]):.2f}",
                f"{steps / np.median(pairs[:, 0]):,.0f}",
                f"{compile_seconds:.1f} s",
            ]
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
