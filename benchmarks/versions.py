"""Lifetimes of this checkout against another one, such as version 1, in alternating pairs.

    python benchmarks/versions.py PATH_OF_THE_OTHER_CHECKOUT -o adam -o open -e breakout --pairs 24

Each side is a process of its own that compiles once and then times the same number of updates whenever it is asked. The
ratio is of this checkout over the other; below 1 this one is faster. Compile times are with an empty cache.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from timed import median_interval

HERE = Path(__file__).resolve().parents[1]
SERVE = """
import json, sys, time
import jax
try:
    from open_bench.training.devices import start
    from open_bench.training.mesh import compile_program, gather
    from open_bench.training.task import make_task
    from open_bench.optimizers.resolve import resolve
    from open_bench.experiments.experiment import Experiment

    def build(optimizer, environment, devices):
        task = make_task(environment, budget="full")
        chosen = Experiment(task, resolve(optimizer, task), 0, 1)
        lifetime, inputs = chosen.make_lifetime(), chosen.inputs
        program = compile_program(lifetime, inputs, devices, 1, len(devices))
        return program, chosen.keys(list(range(len(devices)))), inputs, gather
except ImportError:
    from open_bench.config import StudyConfig
    from open_bench.harness import parallel
    from open_bench.harness.devices import start
    from open_bench.harness.seeds import repetition_keys
    from open_bench.runs.execute import build_lifetime
    from open_bench.runs.plan import make_plan

    def build(optimizer, environment, devices):
        study = StudyConfig(name="timed", optimizers=(optimizer,), environments=(environment,), budget="full")
        (cell,) = make_plan(study, devices).cells
        inputs = cell.candidate.inputs
        program = parallel.compile_program(build_lifetime(cell), inputs, devices, 1, len(devices))
        return program, repetition_keys(0, environment, list(range(len(devices)))), inputs, parallel.gather

devices = start()
program, keys, inputs, gather = build(sys.argv[1], sys.argv[2], devices)
state = program.init(keys, inputs)
state, shown = program.run(state, inputs, 2)
gather(shown)
print(json.dumps(program.compile_seconds), flush=True)
for line in sys.stdin:
    begin = time.perf_counter()
    state, shown = program.run(state, inputs, int(line))
    gather(shown)
    print(json.dumps(time.perf_counter() - begin), flush=True)
"""


class Side:
    """A checkout's process."""

    def __init__(self, checkout: Path, optimizer: str, environment: str, cache: str):
        settings = {"PYTHONPATH": str(checkout), "JAX_COMPILATION_CACHE_DIR": cache, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVE, optimizer, environment], cwd=checkout, env={**os.environ, **settings},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.compile_seconds = self._answer()

    def time(self, updates: int) -> float:
        """Seconds for so many updates of a lifetime a device."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{updates}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException("a side has ended: does its checkout import?")
        return float(json.loads(line))


def compare(other: Path, optimizer: str, environment: str, updates: int, pairs: int) -> dict[str, Any]:
    """Times (pairs, 2) of this checkout and the other, and compile times."""
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
        sides = Side(HERE, optimizer, environment, ours), Side(other, optimizer, environment, theirs)
        try:
            times = np.array([[side.time(updates) for side in sides] for _ in range(pairs)])
        finally:
            for side in sides:
                side.close()
    return {"times": times, "compile": [side.compile_seconds for side in sides]}


@click.command()
@click.argument("other", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--optimizer", "-o", "optimizers", multiple=True, default=("adam", "open"), show_default=True)
@click.option("--env", "-e", "environment", default="breakout", show_default=True)
@click.option("--updates", default=12, show_default=True, help="Updates in a timing.")
@click.option("--pairs", default=24, show_default=True)
def main(other: Path, optimizers: tuple[str, ...], environment: str, updates: int, pairs: int) -> None:
    """Print the ratios with 95 % bootstrap intervals of their median."""
    for optimizer in optimizers:
        found = compare(other.resolve(), optimizer, environment, updates, pairs)
        ratios = found["times"][:, 0] / found["times"][:, 1]
        low, high = median_interval(ratios)
        here, there = found["compile"]
        click.echo(
            f"{optimizer} on {environment}: {np.median(ratios):.3f} [{low:.3f}, {high:.3f}] × the other's time over "
            f"{pairs} pairs ({np.median(found['times'][:, 0]):.3f} s for {updates} updates); "
            f"compile {here:.1f} s, the other {there:.1f} s"
        )


if __name__ == "__main__":
    main()
