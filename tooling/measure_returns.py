"""Measure the returns that scores are normalized with, and write baselines/returns/<environment>.toml.

    python tooling/measure_returns.py -e breakout --budget quick --budget short

The random policy is measured once an environment; Adam runs with its shipped hyperparameters. Both are ordinary
experiments under a root seed that no study can use.
"""

from pathlib import Path
from typing import Any

import click
import pandas as pd

from open_bench import config, files
from open_bench.evaluation.baseline_returns import (
    BaselineReturn,
    EnvironmentReturns,
    ReturnInterval,
    load_baseline_returns,
    write_returns,
)
from open_bench.evaluation.bootstrap import mean_bands
from open_bench.experiments.execute import execute
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.plan import random_experiments
from open_bench.experiments.store import Store
from open_bench.optimizers.resolve import resolve
from open_bench.progress import default_watcher
from open_bench.training.devices import start
from open_bench.training.task import Task, make_task

BASELINE_SEED = 1_000_000  # no study may use it
RUNS = Path(__file__).resolve().parents[1] / "results" / "baseline"
PUBLISHED = {
    "asterix": 15.0353, "freeway": 61.8369, "breakout": 50.0822, "spaceinvaders": 167.0913, "ant": 6517.31,
}  # fmt: skip
SOURCE = "Goldie et al. 2024, arXiv 2407.07082: PPO with tuned Adam"


def interval(values: pd.Series) -> ReturnInterval:
    """Mean over seeds with its 95 % bootstrap interval."""
    mean, low, high = (float(f"{float(each[0]):.6g}") for each in mean_bands(values.to_numpy(float)[:, None], 10_000))
    return ReturnInterval(mean=mean, low=min(low, mean), high=max(high, mean))


def measure(experiment: Experiment, num_seeds: int, devices: list[Any]) -> BaselineReturn:
    """An experiment's returns over its seeds."""
    store = Store(RUNS)
    store.check_writable()
    execute([experiment], num_seeds, store, devices, default_watcher())
    stored = store.load([experiment], num_seeds)
    optimizer = experiment.optimizer
    numbers = (int, float, bool, str)
    values = {key: x for key, x in optimizer.hyperparameters.items() if isinstance(x, numbers)} if optimizer else {}
    return BaselineReturn(
        optimizer=optimizer.label if optimizer else "",
        hyperparameters=values,
        num_seeds=num_seeds,
        env_steps=experiment.task.lifetime_steps,
        origin="measured",
        revision=stored.experiments["revision"].iloc[0],
        final_return=interval(stored.scores["final_return"]),
        mean_return=interval(stored.scores["mean_return"]),
    )


def adam_on(task: Task) -> Experiment:
    """Adam with its shipped hyperparameters."""
    return Experiment(task, resolve("adam", task), BASELINE_SEED, 1)


def published(name: str) -> BaselineReturn:
    """What OPEN's authors publish for PPO at the full budget."""
    return BaselineReturn(
        optimizer="adam",
        hyperparameters=dict(resolve("adam", make_task(name, algorithm="ppo", budget="full")).hyperparameters),
        origin="published",
        source=SOURCE,
        final_return=ReturnInterval(mean=PUBLISHED[name]),
    )


@click.command()
@click.option("--env", "-e", "environments", multiple=True, help="Default: every shipped environment.")
@click.option("--algorithm", help="By default each environment's own.")
@click.option("--budget", "budgets", multiple=True, default=("quick",), show_default=True)
@click.option("--num-seeds", "--seeds", "num_seeds", default=8, show_default=True)
@click.option("--random", "again", is_flag=True, help="Measure the random policy anew.")
def main(
    environments: tuple[str, ...], algorithm: str | None, budgets: tuple[str, ...], num_seeds: int, again: bool
) -> None:
    """Measure and write; what a file holds for other algorithms and budgets stays."""
    devices = start()
    folder = files.baselines_dir() / "returns"
    for name in environments or tuple(config.shipped("environments")):
        known = load_baseline_returns(folder).get(name) or EnvironmentReturns(environment=name)
        if known.random is None or again:
            (random,) = random_experiments([adam_on(make_task(name, budget="quick"))])
            known = EnvironmentReturns(environment=name, random=measure(random, num_seeds, devices), **known.algorithms)
        if name in PUBLISHED:
            known = known.with_adam("ppo", "full", published(name))
        for budget in budgets:
            task = make_task(name, algorithm=algorithm, budget=budget)
            known = known.with_adam(task.algorithm, budget, measure(adam_on(task), num_seeds, devices))
            write_returns(folder, known)


if __name__ == "__main__":
    main()
