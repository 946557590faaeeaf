"""Tune optimizers by random search, every one with the same number of trials.

    python tooling/tune.py -o rmsprop -o lion -e breakout --budget quick --trials 12

Trial 0 is what ships now (or the default); the others are drawn from the search space of the registry spec. Each
trial trains the same seeds; the highest mean final return wins. Writes baselines/hyperparameters/<optimizer>.toml.
"""

import json
import zlib
from typing import Any

import click
import numpy as np
import tomlkit

from open_bench import files
from open_bench.experiments.experiment import task_lifetime
from open_bench.experiments.provenance import revision
from open_bench.optimizers import Search
from open_bench.optimizers.resolve import ResolvedOptimizer, resolve
from open_bench.training.devices import start
from open_bench.training.keys import lifetime_keys
from open_bench.training.mesh import compile_program
from open_bench.training.runner import run_lifetimes
from open_bench.training.task import Task, make_task

TUNING_SEED = 1_000_001  # no study may use it


def draw(optimizer: ResolvedOptimizer, generator: np.random.Generator) -> dict[str, Any]:
    """One point of the search space; every searched setting is drawn anew."""
    return {
        name: _draw_one(hyperparameter.search, generator)
        for name, hyperparameter in optimizer.spec.hyperparameters.items()
        if hyperparameter.search is not None
    }


def _draw_one(search: Search, generator: np.random.Generator) -> Any:
    if search.choices:
        return search.choices[generator.integers(len(search.choices))]
    assert search.low is not None and search.high is not None
    if search.scale == "log":
        return float(f"{np.exp(generator.uniform(np.log(search.low), np.log(search.high))):.3g}")
    return float(f"{generator.uniform(search.low, search.high):.3g}")


def tune(optimizer: ResolvedOptimizer, task: Task, trials: int, num_seeds: int, devices: list[Any]) -> dict[str, Any]:
    """The best of ``trials`` settings: ``{"values", "final_return"}``. All trials are lifetimes of one program."""
    name = optimizer.label if task.algorithm == "ppo" else f"{optimizer.label} {task.algorithm}"
    generator = np.random.default_rng(zlib.crc32(f"{name} {task.name} {task.budget}".encode()))
    drawn = [draw(optimizer, generator) if trial else {} for trial in range(trials)]
    values = [dict(optimizer.hyperparameters) | point for point in drawn]
    traced = [key for key, hyperparameter in optimizer.spec.hyperparameters.items() if hyperparameter.traced]
    columns = {key: np.repeat(np.float32([point[key] for point in values]), num_seeds) for key in traced}
    inputs = {"optimizer": {}, "policy_loss": {}, "hyperparameters": columns}
    lifetimes = trials * num_seeds
    program = compile_program(task_lifetime(task, optimizer), optimizer.inputs, devices, 1, lifetimes, own_inputs=True)
    keys = lifetime_keys(TUNING_SEED, task.name, list(range(num_seeds)))[np.tile(np.arange(num_seeds), trials)]
    batches = run_lifetimes(program, keys, inputs)
    returns = np.concatenate([batch.metrics["final_return"] for batch in batches]).reshape(trials, num_seeds)
    # A diverged or never-finishing lifetime makes the trial the worst.
    scores = np.where(np.isfinite(returns).all(axis=1), returns.mean(axis=1), -np.inf)
    for trial, (point, score) in enumerate(zip(values, scores, strict=True)):
        click.echo(f"{task.name} {optimizer.label} trial {trial}: {score:.4g}  {json.dumps(point)}")
    best = int(scores.argmax())
    return {"values": values[best], "final_return": float(scores[best])}


def write(optimizer: str, place: tuple[str, str, str], table: dict[str, Any]) -> None:
    """Put a table at (environment, algorithm, budget) of the optimizer's file; all else there stays as it is."""
    path = files.baselines_dir() / "hyperparameters" / f"{optimizer}.toml"
    document = (
        tomlkit.parse(path.read_text("utf-8")) if path.exists() else tomlkit.parse(f'optimizer = "{optimizer}"\n')
    )
    inside: Any = document
    for key in ("environments", *place[:-1]):
        inside = inside.setdefault(key, tomlkit.table(is_super_table=True))
    values = tomlkit.inline_table()
    values.update(table.pop("values"))
    inside[place[-1]] = {**table, "values": values}
    files.write_atomically(path, tomlkit.dumps(document))


@click.command()
@click.option("--optimizer", "-o", "optimizers", multiple=True, required=True)
@click.option("--env", "-e", "environments", multiple=True, required=True)
@click.option("--algorithm", help="By default each environment's own.")
@click.option("--budget", default="quick", show_default=True)
@click.option("--trials", default=12, show_default=True)
@click.option("--num-seeds", "--seeds", "num_seeds", default=2, show_default=True)
@click.option("--family", is_flag=True, help="Let the result hold for everything under the environment's folder.")
def main(
    optimizers: tuple[str, ...], environments: tuple[str, ...], algorithm: str | None, budget: str, trials: int,
    num_seeds: int, family: bool,
) -> None:  # fmt: skip
    """Tune each optimizer on each environment."""
    devices = start()
    for environment in environments:
        task = make_task(environment, algorithm=algorithm, budget=budget)
        for name in optimizers:
            best = tune(resolve(name, task), task, trials, num_seeds, devices)
            source = f"random search, {trials} trials × {num_seeds} seeds, final return {best['final_return']:.4g}"
            table = {"origin": "tuned", **({"environment": environment} if family else {})}
            table |= {"source": f"{source}, {revision()}", "values": best["values"]}
            where = f"{environment.rpartition('/')[0]}/*" if family else environment
            write(name, (where, task.algorithm, budget), table)


if __name__ == "__main__":
    main()
