"""What optimizers cost: one update on Breakout's 59,908 parameters, and a lifetime on Breakout, relative to Adam.

    python benchmarks/optimizers.py                      every optimizer of the registry
    python benchmarks/optimizers.py -o open -o velo      some of them
    python benchmarks/optimizers.py --no-lifetimes       updates only

Learned ones run with freshly initialized θ: the cost does not depend on the numbers in it. Lifetimes are two seeds
on two devices (as many as there are), each optimizer alternated with Adam; the median ratio counts.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timed import experiment, harness

from open_bench.optimizers import available, registry
from open_bench.optimizers.conformance import cost
from open_bench.optimizers.resolve import resolve
from open_bench.training.devices import start


def name_of(optimizer: str) -> str:
    """The name, with initial θ where it is learned and no weights are named."""
    return f"{optimizer}@init" if optimizer in registry.learned_names() else optimizer


@click.command()
@click.option("--optimizer", "-o", "optimizers", multiple=True, help="Default: every optimizer of the registry.")
@click.option("--updates", default=6, show_default=True, help="Updates in a timing of a lifetime.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--no-lifetimes", is_flag=True)
def main(optimizers: tuple[str, ...], updates: int, repeats: int, no_lifetimes: bool) -> None:
    """Print the table."""
    devices = start()
    adam = resolve("adam")
    compared = None if no_lifetimes else harness(experiment("adam", "breakout"), devices, len(devices), updates)[0]
    table = Table("optimizer", "update", "× Adam", "state bytes/parameter", "lifetime × Adam", "env steps/s", "compile",
                  box=None, title=f"{len(devices)} devices; update on 59,908 parameters")  # fmt: skip
    for name in track(optimizers or available(), console=Console(stderr=True), transient=True):
        step = cost(resolve(name_of(name)), adam, repeats=repeats)
        row = [
            name,
            f"{1e3 * step.seconds_per_step:.2f} ms",
            f"{step.relative:.0f}",
            f"{step.state_bytes / step.parameters:.0f}",
        ]
        if compared is not None:
            chosen = experiment(name_of(name), "breakout")
            run, compile_seconds = harness(chosen, devices, len(devices), updates)
            pairs = np.asarray([(run(), compared()) for _ in range(repeats)])
            steps = updates * len(devices) * chosen.task.settings.env_steps_per_update
            row += [
                f"{np.median(pairs[:, 0] / pairs[:, 1]):.2f}",
                f"{steps / np.median(pairs[:, 0]):,.0f}",
                f"{compile_seconds:.1f} s",
            ]
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
