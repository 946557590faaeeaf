"""What diagnosis costs: lifetimes with it against lifetimes without, in alternating pairs.

    python benchmarks/diagnosis.py                          Adam and OPEN on Breakout, at the budget quick
    python benchmarks/diagnosis.py --updates 20 --pairs 8   lifetimes of 20 updates, of which every one is measured

A lifetime measures at most 50 of its updates, so diagnosis costs most, per update, where there are no more than those.
Both sides end with the same parameters, bit for bit, which is checked.
"""

import os
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import jax
import numpy as np
from timed import experiment, median_interval

from open_bench.experiments.experiment import Experiment
from open_bench.training.devices import start
from open_bench.training.mesh import compile_program, gather


def side(chosen: Experiment, diagnose: bool) -> tuple[Callable[[], tuple[float, list[np.ndarray]]], float]:
    """A function that trains a lifetime: (seconds, parameters at its end); and the seconds to compile."""
    program = compile_program(chosen.make_lifetime(diagnose), chosen.inputs, jax.devices()[:1], 1, 1)

    def run() -> tuple[float, list[np.ndarray]]:
        state = program.init(chosen.keys([0]), chosen.inputs)
        jax.block_until_ready(state.agent.params)
        begin = time.perf_counter()
        state, progress = program.run(state, chosen.inputs, program.lifetime.num_updates)
        gather(progress)
        return time.perf_counter() - begin, jax.tree.leaves(gather(state.agent.params))

    return run, program.compile_seconds


@click.command()
@click.option("--optimizer", "-o", "optimizers", multiple=True, default=("adam", "open"), show_default=True)
@click.option("--env", "-e", "environment", default="breakout", show_default=True)
@click.option("--algorithm", help="By default the environment's own.")
@click.option("--updates", type=int, help="Updates of a lifetime; by default those of the budget quick.")
@click.option("--pairs", default=8, show_default=True)
def main(optimizers: tuple[str, ...], environment: str, algorithm: str | None, updates: int | None, pairs: int) -> None:
    """Print the ratios with 95 % bootstrap intervals of their median."""
    start()
    for optimizer in optimizers:
        usual = experiment(optimizer, environment, budget="quick", algorithm=algorithm)
        steps = (updates or usual.task.num_updates) * usual.task.settings.env_steps_per_update
        chosen = experiment(optimizer, environment, steps=steps, algorithm=algorithm)
        (off, compiled_off), (on, compiled_on) = side(chosen, False), side(chosen, True)
        times = []
        for _ in range(pairs):
            (without, trained), (with_it, trained_too) = off(), on()
            assert all(a.tobytes() == b.tobytes() for a, b in zip(trained, trained_too, strict=True))
            times.append((with_it, without))
        ratios = np.divide(*np.transpose(times))
        low, high = median_interval(ratios)
        click.echo(
            f"{optimizer} on {environment}, {chosen.task.num_updates} updates: {np.median(ratios):.3f} [{low:.3f}, "
            f"{high:.3f}] × the time without diagnosis over {pairs} pairs ({np.median(times):.2f} s); compile "
            f"{compiled_on:.1f} s, without {compiled_off:.1f} s"
        )


if __name__ == "__main__":
    main()
