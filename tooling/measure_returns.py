"""Measure the returns that scores are normalized with, and write baselines/returns/<environment>.toml.

    python tooling/measure_returns.py -e breakout --budget quick --budget short

The random policy is measured once an environment; the reference is Adam with its shipped hyperparameters. Reference
runs are ordinary experiments under a root seed that no study can use; they are kept in results/published/reference.
"""

import dataclasses
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from open_bench import config, files
from open_bench.algorithms.random_policy import make_random_lifetime
from open_bench.api import load_runs
from open_bench.cli.console import Lines
from open_bench.environments.registry import load_environment, make_environment
from open_bench.evaluation.baseline_returns import (
    BaselineReturn,
    EnvironmentReturns,
    ReturnInterval,
    load_references,
    write_returns,
)
from open_bench.experiments.execute import Options, execute, rows
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.provenance import revision
from open_bench.experiments.store import Store
from open_bench.optimizers.registry import resolve
from open_bench.optimizers.resolve import prepare
from open_bench.training import mesh as parallel
from open_bench.training.devices import start
from open_bench.training.keys import lifetime_keys

REFERENCE_SEED = 1_000_000  # no study may use it
RUNS = Path(__file__).resolve().parents[1] / "results" / "published" / "reference"
PUBLISHED = {
    "asterix": 15.0353, "freeway": 61.8369, "breakout": 50.0822, "spaceinvaders": 167.0913, "ant": 6517.31,
}  # fmt: skip
SOURCE = "Goldie et al. 2024, arXiv 2407.07082: PPO with tuned Adam"


def interval(values: np.ndarray, resamples: int = 10_000) -> ReturnInterval:
    """Mean over seeds with a 95 % bootstrap interval."""
    generator = np.random.default_rng(0)
    means = values[generator.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    mean = float(values.mean())
    return ReturnInterval(*(float(f"{x:.6g}") for x in (mean, min(low, mean), max(high, mean))))


def measure_random(name: str, seeds: int, devices: list[Any]) -> BaselineReturn:
    """The uniformly random policy over the quick budget's number of env steps."""
    settings = load_environment(name)
    updates = settings.num_updates(settings.budget_steps("quick"))
    lifetime = make_random_lifetime(make_environment(settings), settings.ppo, updates)
    program = parallel.compile_program(lifetime, {}, devices, 1, seeds)
    resolved = prepare(resolve("adam"), name, "quick")
    experiment = Experiment(settings, "quick", settings.budget_steps("quick"), resolved, REFERENCE_SEED, 1)
    finals, means = [], []
    for first in range(0, seeds, program.slots):
        chosen = list(range(first, first + program.slots))
        state = parallel.run_whole(program, lifetime_keys(REFERENCE_SEED, name, chosen), {})
        scores, _ = rows(experiment, lifetime, chosen, parallel.gather((state.record, state.learner.finite)))
        finals += list(scores["final_return"])
        means += list(scores["mean_return"])
    return BaselineReturn(
        interval(np.asarray(finals)[:seeds]),
        interval(np.asarray(means)[:seeds]),
        seeds,
        updates * settings.ppo.batch_size,
        revision=revision(),
    )


def measure_reference(name: str, budget: str, seeds: int, devices: list[Any]) -> BaselineReturn:
    """Adam with its shipped hyperparameters."""
    settings = load_environment(name)
    resolved = prepare(resolve("adam"), name, budget)
    experiment = Experiment(settings, budget, settings.budget_steps(budget), resolved, REFERENCE_SEED, 1)
    store = Store(RUNS)
    store.prepare()
    execute([experiment], seeds, store, Options(devices), Lines(Console(stderr=True)))
    stored = load_runs(RUNS).select(experiment=experiment.name)
    scores = stored.scores
    return BaselineReturn(
        interval(scores["final_return"].to_numpy()),
        interval(scores["mean_return"].to_numpy()),
        seeds,
        experiment.num_updates * settings.ppo.batch_size,
        revision=stored.experiments["revision"].iloc[0],
        optimizer="adam",
        hyperparameters=resolved.hyperparameters,
    )


@click.command()
@click.option("--env", "-e", "environments", multiple=True, help="Default: every shipped environment.")
@click.option("--budget", "budgets", multiple=True, default=("quick",), show_default=True)
@click.option("--seeds", default=8, show_default=True)
def main(environments: tuple[str, ...], budgets: tuple[str, ...], seeds: int) -> None:
    """Measure and write; what a file holds for other budgets stays."""
    devices = start()
    folder = files.baselines_dir() / "returns"
    for name in environments or tuple(config.shipped("environments")):
        known = load_references(folder).get(name) or EnvironmentReturns(name)
        random = known.random or measure_random(name, seeds, devices)
        reference = dict(known.reference)
        if name in PUBLISHED:
            values = prepare(resolve("adam"), name, "full").hyperparameters
            reference["full"] = BaselineReturn(
                ReturnInterval(PUBLISHED[name]),
                origin="published",
                source=SOURCE,
                optimizer="adam",
                hyperparameters=values,
            )
        known = EnvironmentReturns(name, random, reference)
        write_returns(folder, known)
        for budget in budgets:
            reference[budget] = measure_reference(name, budget, seeds, devices)
            known = dataclasses.replace(known, reference={key: reference[key] for key in sorted(reference)})
            write_returns(folder, known)


if __name__ == "__main__":
    main()
