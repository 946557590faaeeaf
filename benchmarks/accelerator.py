"""What a device does, as a ladder of measurements within a time limit: JSON after each, and a Markdown table.

    python benchmarks/accelerator.py --minutes 10 --out build/accelerator

1. Throughput of Adam and OPEN against the vmap size, with compile time and memory.
2. Overhead of the harness over a bare PPO loop, vmapped alike, alternated.
3. A lifetime with each learned optimizer (initial theta) over one with Adam, alternated.

Run again, the same command goes on: what is measured is not measured again. A rung that does not fit the device's
memory ends its ladder. It runs on a CPU, too, with small vmap sizes. With ``--compile-jobs`` N, N programs are compiled
at once before they are measured: sooner done, but the compile times are then of N at once, as the table says.
"""

import functools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import jax
import numpy as np
from throughput import bare
from timed import experiment, median_interval, timing

from open_bench.experiments.experiment import Experiment
from open_bench.experiments.provenance import provenance, same_kind
from open_bench.files import write_atomically
from open_bench.optimizers import registry
from open_bench.training.devices import start
from open_bench.training.mesh import Program, compile_program

VMAP_SIZES = {"cpu": (1, 2, 4), "other": (1, 4, 16, 64, 256, 1024)}
DEFAULT_SIZE = {"cpu": 1, "other": 64}  # where optimizers are compared, as users have it
SECONDS = 1.0  # that a timing lasts, about
Figures = dict[str, Any]
Key = tuple[str, int]  # of a program: optimizer and vmap size


class Rung(NamedTuple):
    """One measurement; those of a ladder ascend, and the first that does not fit ends it."""

    ladder: str
    name: str
    needs: tuple[Key, ...]
    measure: Callable[[], Figures]


class Timed(NamedTuple):
    """A compiled lifetime that is ready to be timed."""

    run: Callable[[], float]
    env_steps: int  # of a timing
    figures: Figures


class Programs:
    """The compiled lifetimes of an environment on a device; each is compiled once."""

    def __init__(self, environment: str, device: Any) -> None:
        self.environment, self.device = environment, device
        self._compiled: dict[Key, tuple[Experiment, Program]] = {}

    def compile(self, keys: list[Key], jobs: int) -> None:
        """Compile what is not compiled of ``keys``, ``jobs`` at once."""
        missing = [key for key in keys if key not in self._compiled]
        with ThreadPoolExecutor(jobs) as pool:
            self._compiled |= dict(zip(missing, pool.map(self._compile, missing), strict=True))

    def has(self, keys: Iterable[Key]) -> bool:
        """Whether all are compiled."""
        return self._compiled.keys() >= set(keys)

    def _compile(self, key: Key) -> tuple[Experiment, Program]:
        name, size = key
        chosen = experiment(f"{name}@init" if name in registry.learned_names() else name, self.environment)
        return chosen, compile_program(chosen.make_lifetime(), chosen.inputs, [self.device], size, size)

    def timed(self, name: str, size: int, updates: int | None = None) -> Timed:
        """An optimizer's lifetimes at a vmap size; ``updates``: of a timing, by default what takes a second."""
        self.compile([(name, size)], 1)
        chosen, program = self._compiled[name, size]
        if updates is None:
            once = timing(chosen, program, size, 1)
            updates = max(1, min(50, round(SECONDS / min(once(), once()))))
        memory = program.device_bytes
        figures = {"updates": updates, "compile_seconds": round(program.compile_seconds, 2),
                   "gib": None if memory is None else round(memory / 2**30, 4)}  # fmt: skip
        steps = updates * size * chosen.task.settings.env_steps_per_update
        return Timed(timing(chosen, program, size, updates), steps, figures)


def throughput(programs: Programs, name: str, size: int, repeats: int) -> Figures:
    timed = programs.timed(name, size)
    seconds = float(np.median([timed.run() for _ in range(repeats)]))
    return {**timed.figures, "env_steps_per_second": round(timed.env_steps / seconds)}


def against_adam(programs: Programs, name: str, size: int, repeats: int) -> Figures:
    """The ratio of two lifetimes' times, alternated."""
    adam = programs.timed("adam", size)
    other = programs.timed(name, size, adam.figures["updates"])
    return {**other.figures, **ratio(other.run, adam.run, repeats)}


def overhead(programs: Programs, size: int, repeats: int) -> Figures:
    """The harness over the bare loop, both with Adam."""
    adam = programs.timed("adam", size)
    loop = bare(experiment("adam", programs.environment), adam.figures["updates"], size)
    return {**adam.figures, **ratio(adam.run, loop, repeats)}


def ratio(one: Callable[[], float], other: Callable[[], float], repeats: int) -> Figures:
    pairs = np.asarray([(one(), other()) for _ in range(repeats)])
    ratios = pairs[:, 0] / pairs[:, 1]
    low, high = median_interval(ratios)
    return {"ratio": round(float(np.median(ratios)), 3), "low": round(low, 3), "high": round(high, 3)}


def ladder(programs: Programs, sizes: tuple[int, ...], repeats: int) -> Iterator[Rung]:
    """All measurements, the most valuable first."""
    environment = programs.environment
    usual = DEFAULT_SIZE.get(programs.device.platform, DEFAULT_SIZE["other"])
    for size in sizes:
        for name in ("adam", "open"):
            yield Rung(f"throughput of {name}", f"{environment}: {name}, vmap size {size}", ((name, size),),
                       functools.partial(throughput, programs, name, size, repeats))  # fmt: skip
    yield _over_adam(programs, "open", usual, repeats)
    for size in sorted({1, usual}):
        yield Rung("overhead", f"{environment}: harness over bare loop, vmap size {size}", (("adam", size),),
                   functools.partial(overhead, programs, size, repeats))  # fmt: skip
    for name in registry.learned_names():
        if name != "open":
            yield _over_adam(programs, name, usual, repeats)


def _over_adam(programs: Programs, name: str, size: int, repeats: int) -> Rung:
    title = f"{programs.environment}: {name} over adam, vmap size {size}"
    return Rung(
        name, title, (("adam", size), (name, size)), functools.partial(against_adam, programs, name, size, repeats)
    )


def compiled_ahead(rungs: list[Rung], known: dict[str, Figures], programs: Programs, jobs: int) -> Iterator[Rung]:
    """The rungs that are not ``known``, each after its programs; with several ``jobs`` those of later rungs, too."""
    left = [rung for rung in rungs if rung.name not in known]
    for index, rung in enumerate(left):
        if jobs > 1 and not programs.has(rung.needs):
            keys = list(dict.fromkeys(key for later in left[index:] for key in later.needs if not programs.has([key])))
            click.echo(f"compiling {', '.join(f'{name} × {size}' for name, size in keys[:jobs])} ...", err=True)
            programs.compile(keys[:jobs], jobs)
        yield rung


def climb(rungs: Iterable[Rung], known: dict[str, Figures], seconds: float, save: Callable[[], None]) -> str:
    """Measure what is not ``known``, and say why it ended: "complete", or what there was no time for."""
    end, ended, last = time.monotonic() + seconds, set(), 0.0
    for rung in rungs:
        if rung.name in known or rung.ladder in ended:
            if "error" in known.get(rung.name, {}):
                ended.add(rung.ladder)
            continue
        if time.monotonic() + last > end:  # the next takes about as long as the last
            return f"out of time before {rung.name}: run it again to go on"
        begin = time.monotonic()
        click.echo(f"{rung.name} ...", err=True)
        try:
            known[rung.name] = rung.measure()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            known[rung.name] = {"error": "does not fit the device's memory"}
            ended.add(rung.ladder)
        save()
        last = time.monotonic() - begin
    return "complete"


def markdown(facts: Figures, known: dict[str, Figures]) -> str:
    """The table, with where and by what it was measured."""
    compiling = f" {jobs} programs were compiled at once." if (jobs := facts.get("compile_jobs", 1)) > 1 else ""
    lines = [f"{facts['hardware']}, JAX {facts['packages']['jax']}, revision {facts['revision']}.{compiling}", "",
             "| | env steps/s | ratio of times | compile | memory |", "|---|---|---|---|---|"]  # fmt: skip
    for name, each in known.items():
        speed = f"{each['env_steps_per_second']:,}" if "env_steps_per_second" in each else each.get("error", "")
        times = f"{each['ratio']:.2f} [{each['low']:.2f}, {each['high']:.2f}]" if "ratio" in each else ""
        compiled = f"{each['compile_seconds']:.1f} s" if "compile_seconds" in each else ""
        memory = f"{each['gib']:.2f} GiB" if each.get("gib") is not None else ""
        lines.append(f"| {name} | {speed} | {times} | {compiled} | {memory} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(min=0, min_open=True))
@click.option("--out", default=Path("build/accelerator"), show_default=True, type=click.Path(path_type=Path))
@click.option("--env", "-e", "environment", default="breakout", show_default=True)
@click.option("--vmap-size", "sizes", multiple=True, type=click.IntRange(min=1), help="In place of the usual ones.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--compile-jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Programs at once.")
def main(minutes: float, out: Path, environment: str, sizes: tuple[int, ...], repeats: int, compile_jobs: int) -> None:
    """Climb the ladder, and print the table."""
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are of an empty cache
    device = start(1)[0]
    facts = provenance() | {"compile_jobs": compile_jobs}
    stored = out / "measurements.json"
    content = json.loads(stored.read_text()) if stored.exists() else {"provenance": facts, "measurements": {}}
    before = content["provenance"]
    alike = all(before.get(key) == facts[key] for key in ("revision", "compile_jobs"))
    if not (alike and same_kind(before, facts)):
        raise click.UsageError(f"{stored} is of another machine, revision or --compile-jobs: name another --out")

    def save() -> None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(stored, json.dumps(content, indent=1) + "\n")
        write_atomically(out / "measurements.md", markdown(facts, known))

    usual = VMAP_SIZES.get(device.platform, VMAP_SIZES["other"])
    programs, known = Programs(environment, device), content["measurements"]
    rungs = list(ladder(programs, tuple(sorted(sizes)) or usual, repeats))
    ended = climb(compiled_ahead(rungs, known, programs, compile_jobs), known, 60.0 * minutes, save)
    save()
    click.echo(markdown(facts, known))
    click.echo(ended)


if __name__ == "__main__":
    main()
