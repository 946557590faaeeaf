"""Seconds for bootstrap intervals of IQM, and that they are rliable's on the same resamples.

python benchmarks/bootstrap.py                       50,000 resamples, 16 optimizers × 6 environments × 16 seeds
python benchmarks/bootstrap.py --resamples 10000 --optimizers 4
"""

import time

import click
import numpy as np
from rliable import library, metrics

from open_bench.evaluation import bootstrap
from open_bench.evaluation.bootstrap import ScoreMatrix


def rliables(values: np.ndarray, resamples: int) -> np.ndarray:
    """(value, low, high) of the IQM as rliable computes it, from the resamples that this package draws."""
    np.random.seed(bootstrap._SEED)  # noqa: NPY002 - rliable draws from numpy's global generator
    value, interval = library.get_interval_estimates(
        {"x": values}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=resamples, confidence_interval_size=0.95
    )
    return np.array([value["x"][0], *interval["x"][:, 0]])


@click.command()
@click.option("--resamples", default=50_000, show_default=True)
@click.option("--optimizers", default=16, show_default=True)
@click.option("--environments", default=6, show_default=True)
@click.option("--num-seeds", default=16, show_default=True)
def main(resamples: int, optimizers: int, environments: int, num_seeds: int) -> None:
    """Time the IQM's interval, all optimizers one after the other, and rliable's of one of them."""
    names = tuple(f"environment {place}" for place in range(environments))
    generator = np.random.default_rng(0)
    matrices = [
        ScoreMatrix(generator.normal(1.0, 0.3, (num_seeds, environments)), tuple(range(num_seeds)), names)
        for _ in range(optimizers)
    ]
    begin, began = time.perf_counter(), time.process_time()
    found = [bootstrap.iqm_estimate(each, resamples) for each in matrices]
    wall, cpu = time.perf_counter() - begin, time.process_time() - began
    click.echo(f"{resamples:,} resamples, {optimizers} optimizers × {environments} environments × {num_seeds} seeds")
    click.echo(f"open-bench: {wall:.2f} s ({cpu:.2f} s of processor time)")
    begin = time.perf_counter()
    theirs = rliables(matrices[0].values, resamples)
    click.echo(f"rliable: {time.perf_counter() - begin:.2f} s for one optimizer")
    click.echo(f"largest difference on the same resamples: {np.abs(theirs - np.array(found[0])).max():.1e}")


if __name__ == "__main__":
    main()
