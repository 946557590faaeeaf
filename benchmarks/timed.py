"""Lifetimes that are timed, for the benchmarks beside this file."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from open_bench.experiments.experiment import Experiment
from open_bench.optimizers.resolve import resolve
from open_bench.training.mesh import Program, compile_program, gather
from open_bench.training.task import make_task


def experiment(optimizer: str, environment: str, **task: Any) -> Experiment:
    """An optimizer on an environment, at the full budget unless ``task`` says otherwise."""
    chosen = make_task(environment, **{"budget": "full", **task})
    return Experiment(chosen, resolve(optimizer, chosen), 0, 1)


def harness(
    chosen: Experiment, devices: list[Any], lifetimes: int, updates: int, vmap_size: int = 1
) -> tuple[Callable[[], float], float]:
    """A function that times ``updates`` updates of ``lifetimes`` lifetimes, and the seconds to compile."""
    program = compile_program(chosen.make_lifetime(), chosen.inputs, devices, vmap_size, lifetimes)
    return timing(chosen, program, lifetimes, updates), program.compile_seconds


def timing(chosen: Experiment, program: Program, lifetimes: int, updates: int) -> Callable[[], float]:
    """A function that runs ``updates`` more updates of ``lifetimes`` lifetimes: seconds."""
    inputs = chosen.inputs
    batches = -(-lifetimes // program.batch_size)
    keys = chosen.keys(list(range(program.batch_size)))
    states = [program.run(program.init(keys, inputs), inputs, 1)[0] for _ in range(batches)]

    def run() -> float:
        begin = time.perf_counter()
        for index in range(batches):
            states[index], progress = program.run(states[index], inputs, updates)
            gather(progress)
        return time.perf_counter() - begin

    return run


def median_interval(ratios: np.ndarray) -> tuple[float, float]:
    """A 95 % bootstrap interval of the median of ratios (pairs,)."""
    drawn = np.random.default_rng(0).integers(len(ratios), size=(10_000, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
    return float(low), float(high)
