"""What meta-training costs: generations an hour, memory, and the cost of an env step relative to training with Adam.

    python benchmarks/meta.py                          OPEN on CartPole, populations of 8, 16, 32 and 64
    python benchmarks/meta.py -o lpo@zero -p 64 --vmap-size 8
    python benchmarks/meta.py --published --vmap-size 16   the published study's first updates on Breakout

Each population size has a process of its own, so that peak memory is its own. `× Adam` is the median, over alternated
repeats, of a generation's time (ask, lifetimes, tell, checkpoint) over the time of as many lifetimes with Adam, on the
same devices with the same vmap size, by the same code. The first generation warms up and is left out; compilation has
a column.

The published study (configs/meta/open.toml: 64 members, lifetimes of 1e7 env steps, 500 generations) is compiled
whole and runs the first updates of its first device batch. What the whole would take is computed from that, for this
machine, and for one GPU from the assumptions that the flags name; both are projections.
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import jax
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from open_bench.evaluation.baseline_returns import load_baseline_returns
from open_bench.events import Event, Generation, Started
from open_bench.meta_training.checkpoint import Checkpoints
from open_bench.meta_training.evolution import Strategy, evolve
from open_bench.meta_training.fitness import TRAINING, Evaluator, FitnessTask, combine, rollout_keys
from open_bench.meta_training.request import Request, make_request
from open_bench.meta_training.spec import MetaConfig, load_meta
from open_bench.optimizers.resolve import resolve
from open_bench.optimizers.spec import EMPTY_THETA
from open_bench.training.devices import start
from open_bench.training.mesh import gather

OUT = Console(width=140)


def in_a_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call it in a fresh process, whose peak memory is the call's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_bytes(devices: list[jax.Device]) -> int:
    """Peak memory: of the process, or of the fullest accelerator."""
    found = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in devices]
    return max(found) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- populations ------------------------------------------------------------------------------------------------------


class Alternating:
    """A watcher that times generations, each followed by as many lifetimes with Adam."""

    def __init__(self, adam: Callable[[], Any]):
        self._adam = adam
        self.pairs: list[tuple[float, float]] = []  # seconds of a generation, of Adam

    def __call__(self, event: Event) -> None:
        if isinstance(event, Generation):
            middle = time.perf_counter()
            self._adam()
            self.pairs.append((middle - self._begin, time.perf_counter() - middle))
        if isinstance(event, Started | Generation):
            self._begin = time.perf_counter()


def measure(optimizer: str, config: MetaConfig, count: int | None) -> dict[str, Any]:
    """A few generations against Adam."""
    devices = start(count)
    request = make_request(optimizer, config, load_baseline_returns(), devices)
    (task,) = request.tasks
    population, adam = (
        Evaluator(each, devices, request.vmap_size, config.population)
        for each in (task, FitnessTask(task.task, resolve("adam", task.task)))
    )

    def keys(generation: int, rollouts: int) -> jax.Array:
        return rollout_keys(config.root_seed, TRAINING, task.task.name, generation, rollouts)

    timed = Alternating(lambda: adam.returns(EMPTY_THETA, keys(0, config.population), config.fitness))
    with tempfile.TemporaryDirectory() as folder:
        evolve(
            config,
            request.start,
            lambda theta, generation: combine([task], [population.returns(theta, keys(generation, 1), config.fitness)]),
            checkpoints=Checkpoints(Path(folder), request.identity),
            watcher=timed,
        )
    pairs = np.asarray(timed.pairs[1:])
    return {
        "devices": len(devices),
        "vmap_size": request.vmap_size,
        "seconds": float(np.median(pairs[:, 0])),
        "env_steps": config.population * task.task.lifetime_steps,
        "relative": float(np.median(pairs[:, 0] / pairs[:, 1])),
        "compile": population.program.compile_seconds,
        "peak": peak_bytes(devices),
        "program": population.program.device_bytes,
    }


def populations_table(
    optimizer: str, environment: str, steps: int, sizes: tuple[int, ...], repeats: int, vmap_size: int | None,
    devices: int | None,
) -> Table:  # fmt: skip
    """A row a population size."""
    table = Table("population", "devices × vmap_size", "generation", "generations/h", "env steps/s", "cost × Adam",
                  "compile", "peak memory", "program a device",
                  box=None, title=f"{optimizer} on {environment}, lifetimes of {steps:,} env steps")  # fmt: skip
    for size in track(sizes, console=Console(stderr=True), transient=True):
        config = MetaConfig(population=size, generations=repeats + 1, env_steps=steps, vmap_size=vmap_size,
                            environments=(environment,), sigma=1.0)  # fmt: skip
        m = in_a_process(measure, optimizer, config, devices)
        table.add_row(
            str(size), f"{m['devices']} × {m['vmap_size']}", f"{m['seconds']:.2f} s", f"{3600 / m['seconds']:,.0f}",
            f"{m['env_steps'] / m['seconds']:,.0f}", f"{m['relative']:.2f}", f"{m['compile']:.1f} s",
            size_of(m["peak"]), size_of(m["program"]),
        )  # fmt: skip
    return table


# --- the published study ---------------------------------------------------------------------------------------------


def published(environment: str, vmap_size: int | None, count: int | None, updates: int) -> dict[str, Any]:
    """Compile the published study and run the first updates of its first device batch."""
    devices = start(count)
    config = load_meta("open").model_copy(update={"environments": (environment,), "vmap_size": vmap_size})
    request = make_request("open", config, load_baseline_returns(), devices)
    (task,) = request.tasks
    evaluator = Evaluator(task, devices, request.vmap_size, config.population)
    program, inputs = evaluator.program, first_batch(request, evaluator)
    keys = rollout_keys(config.root_seed, TRAINING, environment, 0, 1)[np.zeros(program.batch_size, int)]
    state, seconds = program.init(keys, inputs), []
    agent = state.agent  # donated to the next call: only shapes are asked of it
    shapes = [(leaf.shape, leaf.dtype.itemsize) for leaf in jax.tree.leaves((agent.params, agent.optimizer_state))]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(agent.params)) // program.batch_size
    for _ in range(updates + 1):
        begin = time.perf_counter()
        state, progress = program.run(state, inputs, 1)
        finite = gather(progress).finite
        seconds.append(time.perf_counter() - begin)
    held = sum(int(np.prod(shape)) * size for shape, size in shapes) // program.batch_size
    return {
        "config": config,
        "devices": program.mesh.size,
        "kind": devices[0].device_kind,
        "vmap_size": request.vmap_size,
        "batch_size": program.batch_size,
        "updates": task.task.num_updates,
        "steps_per_update": task.task.settings.env_steps_per_update,
        "optimizer_steps": task.task.length.optimizer_steps,
        "traffic": 2 * held + 4 * parameters,  # parameters and state are read and written, gradients read
        "seconds": float(np.median(seconds[1:])),
        "finite": bool(finite.all()),
        "compile": program.compile_seconds,
        "peak": peak_bytes(devices),
        "program": program.device_bytes,
    }


def first_batch(request: Request, evaluator: Evaluator) -> dict[str, Any]:
    """Inputs of the first device batch of generation 0: members' θ and the hyperparameters, one for each lifetime."""
    strategy = Strategy(request.config, request.start)
    population = jax.device_get(strategy.ask(0, strategy.start())[0])
    chosen = np.minimum(np.arange(evaluator.program.batch_size), request.config.population - 1)
    hyperparameters = evaluator.task.optimizer.inputs["hyperparameters"]
    return {
        **jax.tree.map(lambda leaf: leaf[chosen], population),
        "hyperparameters": {key: np.full(len(chosen), value) for key, value in hyperparameters.items()},
    }


def published_table(m: dict[str, Any], environment: str) -> Table:
    """What was measured."""
    table = Table("the published study's first updates", environment, box=None)
    for name, value in (
        ("devices × vmap_size", f"{m['devices']} × {m['vmap_size']} ({m['kind']})"),
        ("compilation", f"{m['compile']:.1f} s"),
        (f"one update of {m['batch_size']} lifetimes", f"{m['seconds']:.2f} s"),
        ("env steps/s", f"{m['batch_size'] * m['steps_per_update'] / m['seconds']:,.0f}"),
        ("finite", "yes" if m["finite"] else "no"),
        ("peak memory", size_of(m["peak"])),
        ("program on a device", size_of(m["program"])),
    ):
        table.add_row(name, value)
    return table


def projection_table(m: dict[str, Any], bandwidth: float, kernels: int, launch: float) -> Table:
    """What 500 generations would take."""
    config: MetaConfig = m["config"]
    here = -(-config.population // m["batch_size"]) * m["updates"] * m["seconds"]
    batches = -(-config.population // m["vmap_size"])
    moved = config.population * m["optimizer_steps"] * m["traffic"] / (bandwidth * 1e9)
    launched = batches * m["optimizer_steps"] * kernels * launch * 1e-6
    table = Table("projection, not measured", "a generation", f"{config.generations} generations", "assuming", box=None)
    table.add_row("this machine", *spans(here, config.generations),
                  f"every update takes what the first ones took; {m['updates']:,} updates a lifetime")  # fmt: skip
    table.add_row("one GPU", *spans(moved + launched, config.generations),
                  f"{bandwidth:,.0f} GB/s for {m['traffic'] / 1e6:.1f} MB an optimizer step and lifetime, and "
                  f"{kernels} kernels of {launch:g} µs an optimizer step and batch; rollouts not counted")  # fmt: skip
    return table


def spans(seconds: float, generations: int) -> tuple[str, str]:
    """Time of a generation, and of all."""
    whole = seconds * generations / 3600
    return f"{seconds / 60:,.1f} min", f"{whole:,.0f} h" if whole < 72 else f"{whole / 24:,.0f} days"


def size_of(number: int | None) -> str:
    """Bytes for people."""
    if number is None:
        return "–"
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


@click.command()
@click.option("--optimizer", "-o", default="open", show_default=True, help="A learned one.")
@click.option("--env", "-e", "environment", help="CartPole by default, Breakout for the published study.")
@click.option("--population", "-p", "sizes", type=int, multiple=True, default=(8, 16, 32, 64), show_default=True)
@click.option("--steps", default=5120, show_default=True, help="Env steps of a lifetime.")
@click.option("--repeats", default=3, show_default=True, help="Generations that count.")
@click.option("--vmap-size", type=int, help="Lifetimes vmapped on one device; by default as in meta-train.")
@click.option("--devices", type=int, help="All by default.")
@click.option("--published", "whole", is_flag=True, help="The published study in place of the table of populations.")
@click.option("--updates", default=2, show_default=True, help="Updates of the published study that count.")
@click.option("--gpu-bandwidth", default=2000.0, show_default=True, help="GB/s of memory, for the projection.")
@click.option("--gpu-kernels", default=100, show_default=True, help="Kernels in an optimizer step, for the projection.")
@click.option("--gpu-launch", default=5.0, show_default=True, help="Microseconds a kernel, for the projection.")
def main(
    optimizer: str, environment: str | None, sizes: tuple[int, ...], steps: int, repeats: int, vmap_size: int | None,
    devices: int | None, whole: bool, updates: int, gpu_bandwidth: float, gpu_kernels: int, gpu_launch: float,
) -> None:  # fmt: skip
    """Print the tables."""
    if not whole:
        OUT.print(populations_table(optimizer, environment or "cartpole", steps, sizes, repeats, vmap_size, devices))
        return
    environment = environment or "breakout"
    measured = in_a_process(published, environment, vmap_size, devices, updates)
    OUT.print(published_table(measured, environment))
    OUT.print(projection_table(measured, gpu_bandwidth, gpu_kernels, gpu_launch))


if __name__ == "__main__":
    main()
