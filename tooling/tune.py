"""Tune optimizers by random search, every one with the same number of trials.

    python tooling/tune.py -o rmsprop -o lion -e breakout --budget quick --trials 12

Trial 0 is what ships now (or the default); the others are drawn from the search space of the registry spec. Each
trial trains the same seeds; the highest mean final return wins. Writes baselines/hyperparameters/<optimizer>.toml.
"""

import json
import re
import zlib
from pathlib import Path
from typing import Any

import click
import numpy as np

from open_bench import config, files
from open_bench.environments.registry import load_environment
from open_bench.experiments.execute import build_lifetime, rows
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.provenance import revision
from open_bench.files import write_atomically
from open_bench.optimizers import OptimizerSpec, Search, resolve
from open_bench.optimizers.resolve import ResolvedOptimizer, prepare
from open_bench.training import mesh as parallel
from open_bench.training.devices import start
from open_bench.training.keys import lifetime_keys

TUNING_SEED = 1_000_001  # no study may use it


def draw(spec: OptimizerSpec, trial: int, generator: np.random.Generator) -> dict[str, Any]:
    """One point of the search space; every searched setting is drawn anew."""
    return {
        name: _draw_one(hyperparameter.search, generator)
        for name, hyperparameter in spec.hyperparameters.items()
        if hyperparameter.search is not None
    }


def _draw_one(search: Search, generator: np.random.Generator) -> Any:
    if search.choices:
        return search.choices[generator.integers(len(search.choices))]
    assert search.low is not None and search.high is not None
    if search.scale == "log":
        return float(f"{np.exp(generator.uniform(np.log(search.low), np.log(search.high))):.3g}")
    return float(f"{generator.uniform(search.low, search.high):.3g}")


def tune(
    optimizer: str, environment: str, budget: str, trials: int, num_seeds: int, devices: list[Any]
) -> dict[str, Any]:
    """The best of ``trials`` settings: ``{"values", "final_return", …}``. All share one compiled program."""
    settings = load_environment(environment)
    resolved = prepare(resolve(optimizer), environment, budget)
    experiment = Experiment(settings, budget, settings.budget_steps(budget), resolved, TUNING_SEED, 1)
    lifetime = build_lifetime(experiment)
    program = parallel.compile_program(lifetime, resolved.inputs, devices, 1, num_seeds)
    generator = np.random.default_rng(zlib.crc32(f"{optimizer} {environment} {budget}".encode()))
    best: dict[str, Any] = {"final_return": -np.inf}
    for trial in range(trials):
        values = dict(resolved.hyperparameters) | (draw(resolved.spec, trial, generator) if trial else {})
        inputs = ResolvedOptimizer(resolved.spec, values, "tuned", resolved.theta).inputs
        score = _score(experiment, program, inputs, num_seeds)
        click.echo(f"{environment} {optimizer} trial {trial}: {score:.4g}  {json.dumps(values)}")
        if score > best["final_return"]:
            best = {"values": values, "final_return": score, "trial": trial}
    return best


def _score(experiment: Experiment, program: parallel.Program, inputs: Any, num_seeds: int) -> float:
    """Mean final return; a diverged or never-finishing lifetime makes the trial the worst."""
    returns: list[float] = []
    for first in range(0, num_seeds, program.slots):
        chosen = list(range(first, min(first + program.slots, num_seeds)))
        padded = chosen + [chosen[-1]] * (program.slots - len(chosen))
        state = parallel.run_whole(program, lifetime_keys(TUNING_SEED, experiment.environment.name, padded), inputs)
        scores, _ = rows(experiment, program.lifetime, chosen, parallel.gather((state.record, state.learner.finite)))
        returns += list(scores["final_return"])
    return float(np.mean(returns)) if np.isfinite(returns).all() else -np.inf


def _key(name: str) -> str:
    """A TOML key, quoted where it must be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def write(path: Path, optimizer: str, found: dict[tuple[str, str], str]) -> None:
    """Merge ``{(environment, budget): TOML lines}`` into the optimizer's file, after what it holds already."""
    text = (
        path.read_text()
        if path.exists()
        else f'# Settings of {optimizer} by environment and budget.\noptimizer = "{optimizer}"\n'
    )
    for (environment, budget), lines in found.items():
        header = f"[environments.{_key(environment)}.{budget}]"
        blocks = [block for block in text.split("\n\n") if not block.startswith(header)]
        text = "\n\n".join([*(block.rstrip("\n") for block in blocks), f"{header}\n{lines}"]) + "\n"
    write_atomically(path, text)


@click.command()
@click.option("--optimizer", "-o", "optimizers", multiple=True, required=True)
@click.option("--env", "-e", "environments", multiple=True, required=True)
@click.option("--budget", default="quick", show_default=True)
@click.option("--trials", default=12, show_default=True)
@click.option("--num-seeds", "--seeds", "num_seeds", default=2, show_default=True)
@click.option("--family", is_flag=True, help="Let the result hold for everything under the environment's folder.")
def main(
    optimizers: tuple[str, ...], environments: tuple[str, ...], budget: str, trials: int, num_seeds: int, family: bool
) -> None:
    """Tune each optimizer on each environment."""
    devices = start()
    for environment in environments:
        for optimizer in optimizers:
            best = tune(optimizer, environment, budget, trials, num_seeds, devices)
            values = ", ".join(f"{key} = {json.dumps(value)}" for key, value in best["values"].items())
            source = f"random search, {trials} trials × {num_seeds} seeds, final return {best['final_return']:.4g}, {revision()}"
            on = f'environment = "{environment}"\n' if family else ""
            lines = f'origin = "tuned"\n{on}source = "{source}"\nvalues = {{ {values} }}'
            path = files.baselines_dir() / "hyperparameters" / f"{optimizer}.toml"
            name = f"{environment.rpartition('/')[0]}/*" if family else environment
            write(path, optimizer, {(name, budget): lines})
            config.read_toml(path)


if __name__ == "__main__":
    main()
