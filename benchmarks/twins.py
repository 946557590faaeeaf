"""The statistical self-test: twins of one optimizer are declared different at most as often as is said, 5 %.

    python benchmarks/twins.py results/published/quick
    python benchmarks/twins.py results/mine --studies 500 --num-seeds 10 --difference 0.3

A simulated study has the environments of a board. Every optimizer has a twin there; both draw their seeds' scores, each
its own, from the optimizer's real ones. `declared` is how often the paired difference of twins is declared not 0 (its
95 % interval leaves 0 out), `any` how often some pair of twins in a study is told apart by ranges of ranks, which
correct for the number of pairs. `found` is how often a twin that is better by `--difference` (a score: 1 is Adam − the
random policy) is declared better.
"""

from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import pandas as pd

from open_bench.evaluation.baseline_returns import load_baseline_returns
from open_bench.evaluation.boards import BoardScores, boards
from open_bench.evaluation.bootstrap import difference_interval, p_value
from open_bench.evaluation.ranks import holm

Pools = Mapping[str, list[np.ndarray]]  # real scores of an optimizer, one array an environment


def pools_of(scores: BoardScores) -> Pools:
    """Returns in the unit of scores, of the optimizers that ran in every environment of the board."""
    found: dict[str, list[np.ndarray]] = {}
    for optimizer in scores.optimizers:
        if scores.lacking(optimizer, scores.observed):
            continue
        rows = scores.rows[scores.rows["optimizer"] == optimizer]
        returns = {name: rows.loc[rows["environment"] == name, "value"].to_numpy(float) for name in scores.observed}
        units = {name: scale.one - scale.zero for name, scale in scores.scales.items()}
        found[optimizer] = [values / units.get(name, values.std() or 1.0) for name, values in returns.items()]
    return found


def self_test(pools: Pools, studies: int, num_seeds: int, difference: float, root_seed: int = 0) -> pd.DataFrame:
    """declared and found (shares of studies) by optimizer, and any (of studies, the same in each row)."""
    generator = np.random.default_rng(root_seed)
    declared, found, told_apart = dict.fromkeys(pools, 0), dict.fromkeys(pools, 0), 0
    for _ in range(studies):
        p_values = []
        for optimizer, environments in pools.items():
            own, twin = (
                np.stack([generator.choice(pool, num_seeds) for pool in environments], axis=1) for _ in range(2)
            )
            p_values.append(p_value(own - twin))
            declared[optimizer] += _is_not_0(own - twin)
            found[optimizer] += difference_interval(own - twin + difference).low > 0
        pairs = len(pools) * (2 * len(pools) - 1)  # of all optimizers and twins; others may be different indeed
        told_apart += holm([*p_values, *[1.0] * (pairs - len(p_values))])[: len(p_values)].count(True) > 0
    rows = {"declared": declared, "found": found}
    return pd.DataFrame(rows).div(studies).assign(any=told_apart / studies)


def _is_not_0(difference: np.ndarray) -> bool:
    _, low, high = difference_interval(difference)
    return not low <= 0 <= high


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--budget", help="Only this budget.")
@click.option("--studies", default=500, show_default=True)
@click.option("--num-seeds", type=int, help="Seeds of a simulated study; by default as many as are stored.")
@click.option("--difference", default=0.3, show_default=True, help="What is to be found, as a score.")
def main(results: Path, budget: str | None, studies: int, num_seeds: int | None, difference: float) -> None:
    """Simulate studies of twins from the real scores of RESULTS; exit with 1 if 5 % is exceeded beyond chance."""
    from scipy.stats import binom

    from open_bench import load_runs

    limit = binom.ppf(0.999, studies, 0.05) / studies
    failed = False
    for scores in boards(load_runs(results), load_baseline_returns(), budget):
        pools = pools_of(scores)
        seeds = num_seeds or min(len(pool) for environments in pools.values() for pool in environments)
        table = self_test(pools, studies, seeds, difference)
        failed |= bool((table["declared"] > limit).any() or (table["any"] > limit).any())
        click.echo(f"{' · '.join(map(str, scores.key))}: {studies} studies of {seeds} seeds × {len(scores.observed)}")
        click.echo(table.to_string(float_format="{:.3f}".format))
        click.echo(f"twins declared different: {table['declared'].mean():.3f} of all; with chance up to {limit:.3f}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
