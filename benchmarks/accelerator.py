"""What a device does, as a ladder of measurements within a time limit: JSON after each, and a Markdown table.

    python benchmarks/accelerator.py --minutes 10 --out build/accelerator

1. Throughput of Adam and OPEN against the vmap size, with compile time and memory.
2. Overhead of the harness over a bare PPO loop, vmapped alike, alternated.
3. A lifetime with each learned optimizer (initial theta) over one with Adam, alternated.

Run again, the same command goes on: what is measured is not measured again. A rung that does not fit the device's
memory ends its ladder. It runs on a CPU, too, with small vmap sizes.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import jax
import numpy as np
from throughput import bare
from timed import experiment, median_interval, timing

from open_bench.experiments.provenance import provenance, same_kind
from open_bench.files import write_atomically
from open_bench.optimizers import registry
from open_bench.training.devices import start
from open_bench.training.mesh import compile_program

VMAP_SIZES = {"cpu": (1, 2, 4), "other": (1, 4, 16, 64, 256, 1024)}
DEFAULT_SIZE = {"cpu": 1, "other": 64}  # where optimizers are compared, as users have it
SECONDS = 1.0  # that a timing lasts, about
Figures = dict[str, Any]


class Rung(NamedTuple):
    """One measurement; those of a ladder ascend, and the first that does not fit ends it."""

    ladder: str
    name: str
    measure: Callable[[], Figures]


class Timed(NamedTuple):
    """A compiled lifetime that is ready to be timed."""

    run: Callable[[], float]
    env_steps: int  # of a timing
    figures: Figures


def prepared(name: str, environment: str, lifetimes: int, device: Any, updates: int | None = None) -> Timed:
    """Compile an optimizer's lifetime at a vmap size; ``updates``: of a timing, by default what takes a second."""
    chosen = experiment(f"{name}@init" if name in registry.learned_names() else name, environment)
    program = compile_program(chosen.make_lifetime(), chosen.inputs, [device], lifetimes, lifetimes)
    if updates is None:
        once = timing(chosen, program, lifetimes, 1)
        updates = max(1, min(50, round(SECONDS / min(once(), once()))))
    steps = updates * lifetimes * chosen.task.settings.env_steps_per_update
    memory = program.device_bytes
    figures = {"updates": updates, "compile_seconds": round(program.compile_seconds, 2),
               "gib": None if memory is None else round(memory / 2**30, 4)}  # fmt: skip
    return Timed(timing(chosen, program, lifetimes, updates), steps, figures)


def throughput(name: str, environment: str, lifetimes: int, device: Any, repeats: int) -> Figures:
    timed = prepared(name, environment, lifetimes, device)
    seconds = float(np.median([timed.run() for _ in range(repeats)]))
    return {**timed.figures, "env_steps_per_second": round(timed.env_steps / seconds)}


def against_adam(name: str, environment: str, lifetimes: int, device: Any, repeats: int) -> Figures:
    """The ratio of two lifetimes' times, alternated."""
    adam = prepared("adam", environment, lifetimes, device)
    other = prepared(name, environment, lifetimes, device, adam.figures["updates"])
    return {**other.figures, **ratio(other.run, adam.run, repeats)}


def overhead(environment: str, lifetimes: int, device: Any, repeats: int) -> Figures:
    """The harness over the bare loop, both with Adam."""
    adam = prepared("adam", environment, lifetimes, device)
    loop = bare(experiment("adam", environment), adam.figures["updates"], lifetimes)
    return {**adam.figures, **ratio(adam.run, loop, repeats)}


def ratio(one: Callable[[], float], other: Callable[[], float], repeats: int) -> Figures:
    pairs = np.asarray([(one(), other()) for _ in range(repeats)])
    ratios = pairs[:, 0] / pairs[:, 1]
    low, high = median_interval(ratios)
    return {"ratio": round(float(np.median(ratios)), 3), "low": round(low, 3), "high": round(high, 3)}


def ladder(environment: str, device: Any, sizes: tuple[int, ...], repeats: int) -> Iterator[Rung]:
    """All measurements, the most valuable first."""
    usual = DEFAULT_SIZE.get(device.platform, DEFAULT_SIZE["other"])
    for size in sizes:
        for name in ("adam", "open"):
            yield Rung(f"throughput of {name}", f"{environment}: {name}, vmap size {size}",
                       lambda name=name, size=size: throughput(name, environment, size, device, repeats))  # fmt: skip
    yield Rung(
        "OPEN",
        f"{environment}: open over adam, vmap size {usual}",
        lambda: against_adam("open", environment, usual, device, repeats),
    )
    for size in sorted({1, usual}):
        yield Rung("overhead", f"{environment}: harness over bare loop, vmap size {size}",
                   lambda size=size: overhead(environment, size, device, repeats))  # fmt: skip
    for name in registry.learned_names():
        if name != "open":
            yield Rung(name, f"{environment}: {name} over adam, vmap size {usual}",
                       lambda name=name: against_adam(name, environment, usual, device, repeats))  # fmt: skip


def climb(rungs: Iterator[Rung], known: dict[str, Figures], seconds: float, save: Callable[[], None]) -> str:
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
    lines = [f"{facts['hardware']}, JAX {facts['packages']['jax']}, revision {facts['revision']}.", "",
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
def main(minutes: float, out: Path, environment: str, sizes: tuple[int, ...], repeats: int) -> None:
    """Climb the ladder, and print the table."""
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are of an empty cache
    device = start(1)[0]
    facts = provenance()
    stored = out / "measurements.json"
    content = json.loads(stored.read_text()) if stored.exists() else {"provenance": facts, "measurements": {}}
    if not same_kind(content["provenance"], facts) or content["provenance"]["revision"] != facts["revision"]:
        raise click.UsageError(f"{stored} is of another machine or revision: name another --out")

    def save() -> None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(stored, json.dumps(content, indent=1) + "\n")
        write_atomically(out / "measurements.md", markdown(facts, content["measurements"]))

    usual = VMAP_SIZES.get(device.platform, VMAP_SIZES["other"])
    rungs = ladder(environment, device, tuple(sorted(sizes)) or usual, repeats)
    ended = climb(rungs, content["measurements"], 60.0 * minutes, save)
    save()
    click.echo(markdown(facts, content["measurements"]))
    click.echo(ended)


if __name__ == "__main__":
    main()
