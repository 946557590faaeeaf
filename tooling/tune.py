"""Tune optimizers by random search, every one with the same number of trials.

    python tooling/tune.py -o rmsprop -o lion -e breakout --budget quick --trials 12

Trial 0 is what ships now (or the default); the others are drawn from the search space of the registry entry. Each
trial trains the same seeds; the highest mean final return wins. Writes baselines/hyperparameters/<optimizer>.toml.
"""

import json
import re
import zlib
from pathlib import Path
from typing import Any

import click
import numpy as np

from open_bench import assets, config
from open_bench.environments.catalogue import load_environment
from open_bench.harness import parallel
from open_bench.harness.devices import start
from open_bench.harness.seeds import repetition_keys
from open_bench.optimizers import OptimizerEntry, Search, resolve
from open_bench.optimizers.candidate import Candidate, prepare
from open_bench.runs.cell import Cell
from open_bench.runs.execute import build_lifetime, rows
from open_bench.runs.provenance import revision
from open_bench.scores.files import write_atomically

TUNING_SEED = 1_000_001  # no study may use it


def draw(entry: OptimizerEntry, trial: int, generator: np.random.Generator) -> dict[str, Any]:
    """One point of the search space; every searched setting is drawn anew."""
    return {
        name: _draw_one(spec.search, generator)
        for name, spec in entry.hyperparameters.items()
        if spec.search is not None
    }


def _draw_one(search: Search, generator: np.random.Generator) -> Any:
    if search.choices:
        return search.choices[generator.integers(len(search.choices))]
    assert search.low is not None and search.high is not None
    if search.scale == "log":
        return float(f"{np.exp(generator.uniform(np.log(search.low), np.log(search.high))):.3g}")
    return float(f"{generator.uniform(search.low, search.high):.3g}")


def tune(optimizer: str, environment: str, budget: str, trials: int, seeds: int, devices: list[Any]) -> dict[str, Any]:
    """The best of ``trials`` settings: ``{"values", "final_return", …}``. All share one compiled program."""
    settings = load_environment(environment)
    candidate = prepare(resolve(optimizer), environment, budget)
    cell = Cell(settings, budget, settings.budget_steps(budget), candidate, TUNING_SEED, 1)
    lifetime = build_lifetime(cell)
    program = parallel.compile_program(lifetime, candidate.inputs, devices, 1, seeds)
    generator = np.random.default_rng(zlib.crc32(f"{optimizer} {environment} {budget}".encode()))
    best: dict[str, Any] = {"final_return": -np.inf}
    for trial in range(trials):
        values = dict(candidate.hyperparameters) | (draw(candidate.entry, trial, generator) if trial else {})
        inputs = Candidate(candidate.entry, values, "tuned", candidate.theta).inputs
        score = _score(cell, program, inputs, seeds)
        click.echo(f"{environment} {optimizer} trial {trial}: {score:.4g}  {json.dumps(values)}")
        if score > best["final_return"]:
            best = {"values": values, "final_return": score, "trial": trial}
    return best


def _score(cell: Cell, program: parallel.Program, inputs: Any, seeds: int) -> float:
    """Mean final return; a diverged or never-finishing lifetime makes the trial the worst."""
    returns: list[float] = []
    for first in range(0, seeds, program.slots):
        chosen = list(range(first, min(first + program.slots, seeds)))
        padded = chosen + [chosen[-1]] * (program.slots - len(chosen))
        state = parallel.run_whole(program, repetition_keys(TUNING_SEED, cell.environment.name, padded), inputs)
        scores, _ = rows(cell, program.lifetime, chosen, parallel.gather((state.record, state.learner.finite)))
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
@click.option("--seeds", default=2, show_default=True)
@click.option("--family", is_flag=True, help="Let the result hold for everything under the environment's folder.")
def main(
    optimizers: tuple[str, ...], environments: tuple[str, ...], budget: str, trials: int, seeds: int, family: bool
) -> None:
    """Tune each optimizer on each environment."""
    devices = start()
    for environment in environments:
        for optimizer in optimizers:
            best = tune(optimizer, environment, budget, trials, seeds, devices)
            values = ", ".join(f"{key} = {json.dumps(value)}" for key, value in best["values"].items())
            source = (
                f"random search, {trials} trials × {seeds} seeds, final return {best['final_return']:.4g}, {revision()}"
            )
            on = f'environment = "{environment}"\n' if family else ""
            lines = f'origin = "tuned"\n{on}source = "{source}"\nvalues = {{ {values} }}'
            path = assets.baselines_dir() / "hyperparameters" / f"{optimizer}.toml"
            name = f"{environment.rpartition('/')[0]}/*" if family else environment
            write(path, optimizer, {(name, budget): lines})
            config.read_toml(path)


if __name__ == "__main__":
    main()
