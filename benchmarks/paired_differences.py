"""How often intervals of a paired difference miss the truth: 5 % is nominal.

    python benchmarks/paired_differences.py                   2,000 simulated studies of each kind
    python benchmarks/paired_differences.py --studies 200     a quick look

Every study has two optimizers, some seeds and environments. In the twins' studies both draw from one distribution: a
normal one; Student's t with 3 degrees of freedom; a lognormal one; `capped` (CartPole's: 70 % at 500, the others
anywhere below). `shapes`: an exponential one against a normal one of the same mean. `noise`: twins whose environments
differ in noise, each a quarter of the one before. `effects`: differences of −3 to 3 standard deviations between
environments that cancel. `power`: twins moved apart by 2.8 standard errors; 0 is missed there, so more is better.

Methods: `percentile` draws pairs again within each environment; `bootstrap-t` does so with the studentized mean;
`sign flips` flips residuals of the environments' means, studentized (exact for one environment and symmetric
differences, up to the estimated mean); `Student` is the package's (`bootstrap.difference_interval`).
"""

from collections.abc import Callable

import click
import numpy as np

from open_bench.evaluation.bootstrap import difference_interval

RESAMPLES = 1000
TAILS = (0.025, 0.975)
SHAPES = ((4, 1), (4, 3), (10, 1), (10, 4), (10, 6))
Interval = tuple[float, float]
Method = Callable[[np.ndarray, np.random.Generator], Interval]


def _statistics(difference: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and their standard errors of weighted differences; weights (resamples, seeds, environments) ≥ 0 or ±1."""
    seeds, environments = difference.shape
    means = (weights * difference).sum(axis=1) / seeds
    squares = (np.abs(weights) * difference**2).sum(axis=1) / seeds
    variances = np.maximum(squares - means**2, 0.0) / (seeds - 1)
    return means.mean(axis=1), np.sqrt(variances.sum(axis=1)) / environments


def _counts(difference: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    seeds = len(difference)
    drawn = generator.integers(seeds, size=(RESAMPLES, *difference.shape))
    return np.stack([(drawn == seed).sum(axis=1) for seed in range(seeds)], axis=1).astype(float)


def _studentized(away: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Deviations over errors; infinite where a resample has no spread, and 0 where it is not away either."""
    away, errors = np.where(np.abs(away) < 1e-12, 0.0, away), np.where(errors < 1e-12, 0.0, errors)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(away == 0, 0.0, away / errors)


def percentile(difference: np.ndarray, generator: np.random.Generator) -> Interval:
    """Quantiles of resampled means."""
    means, _ = _statistics(difference, _counts(difference, generator))
    low, high = np.quantile(means, TAILS)
    return low, high


def bootstrap_t(difference: np.ndarray, generator: np.random.Generator) -> Interval:
    """Quantiles of resampled t statistics, turned around."""
    mean, error = (each[0] for each in _statistics(difference, np.ones((1, *difference.shape))))
    means, errors = _statistics(difference, _counts(difference, generator))
    low, high = np.quantile(_studentized(means - mean, errors), TAILS, method="nearest")
    return mean - high * error if error else mean, mean - low * error if error else mean


def sign_flips(difference: np.ndarray, generator: np.random.Generator) -> Interval:
    """The 95 % quantile of |t| when residuals change their signs at random."""
    mean, error = (each[0] for each in _statistics(difference, np.ones((1, *difference.shape))))
    signs = generator.choice([-1.0, 1.0], (RESAMPLES, *difference.shape))
    half = np.quantile(np.abs(_studentized(*_statistics(difference - difference.mean(axis=0), signs))), 0.95)
    return mean - half * error if error else mean, mean + half * error if error else mean


def student(difference: np.ndarray, _: np.random.Generator) -> Interval:
    """What boards show."""
    return difference_interval(difference)[1:]


METHODS: dict[str, Method] = {
    "percentile": percentile,
    "bootstrap-t": bootstrap_t,
    "sign flips": sign_flips,
    "Student": student,
}


def _capped(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.where(generator.random(shape) < 0.7, 500.0, generator.uniform(100.0, 500.0, shape))


def _difference(kind: str, generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """X − Y (seeds, environments), whose mean over environments is 0, except for ``power``."""
    seeds, environments = shape
    twins: dict[str, Callable[[], np.ndarray]] = {
        "t3": lambda: generator.standard_t(3, shape),
        "lognormal": lambda: generator.lognormal(0.0, 1.0, shape),
        "capped": lambda: _capped(generator, shape),
    }
    if kind == "shapes":
        return generator.exponential(1.0, shape) - generator.normal(1.0, 0.1, shape)
    draw = twins.get(kind, lambda: generator.normal(size=shape))
    difference = draw() - draw()
    if kind == "noise":
        difference *= 4.0 ** -np.arange(environments)
    if kind == "effects" and environments > 1:
        difference += np.linspace(-3.0, 3.0, environments)
    if kind == "power":
        difference += 2.8 * np.sqrt(2 / (seeds * environments))
    return difference


KINDS = ("normal", "t3", "lognormal", "capped", "shapes", "noise", "effects", "power")


def miss_rates(kind: str, shape: tuple[int, int], studies: int, root_seed: int = 0) -> dict[str, float]:
    """How often each method's interval leaves 0 out."""
    generator = np.random.default_rng([root_seed, *shape])
    missed = dict.fromkeys(METHODS, 0)
    for _ in range(studies):
        difference = _difference(kind, generator, shape)
        for name, method in METHODS.items():
            low, high = method(difference, generator)
            missed[name] += not low <= 0.0 <= high
    return {name: count / studies for name, count in missed.items()}


@click.command()
@click.option("--studies", default=2000, show_default=True)
@click.option("--root-seed", default=0, show_default=True)
def main(studies: int, root_seed: int) -> None:
    """Print, in percent, how often intervals leave 0 out."""
    click.echo(f"| studies | seeds × environments | {' | '.join(METHODS)} |")
    click.echo("|---" * (2 + len(METHODS)) + "|")
    for kind in KINDS:
        for shape in SHAPES:
            rates = miss_rates(kind, shape, studies, root_seed)
            cells = " | ".join(f"{100 * rate:.1f}" for rate in rates.values())
            click.echo(f"| {kind} | {shape[0]} × {shape[1]} | {cells} |")


if __name__ == "__main__":
    main()
