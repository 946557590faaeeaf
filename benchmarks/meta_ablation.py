"""What imitation and evolution each give OPEN, and which strategy and σ to evolve with, at equal env steps.

    python benchmarks/meta_ablation.py                      all arms; two hours of one core
    python benchmarks/meta_ablation.py --arm imitation --arm evolution --devices 1
    python benchmarks/meta_ablation.py --small              a minute: that it works, no result

The small setting is that of the study ``open-breakout-small``, with 20 generations: Breakout with 16 environments and
hidden layers of 16. Arms: ``imitation`` (of Lion) alone; ``evolution`` alone, from θ = 0, with the study's σ and
learning rate; and both, with fewer generations, as imitation's lifetimes count, for two strategies × two σ. Each θ then
trains agents on Breakout and on two games that it has never seen, in the small setting, beside Adam. It goes on where
it was interrupted; arms may run in processes of their own, on one ``--results`` folder, and the last call prints all
that is there.
"""

import itertools
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import pandas as pd

import open_bench
from open_bench import Execution
from open_bench.errors import UserError
from open_bench.evaluation.tables import markdown_table
from open_bench.meta_training.spec import ImitationConfig, MetaConfig, load_meta
from open_bench.text import compact, interval

TEACHER = "lion:learning_rate=1e-3"  # that of the study open-campaign
NEVER_SEEN = ("asterix", "spaceinvaders")
STRATEGIES, SIGMAS = ("Open_ES", "PGPE"), (0.03, 0.1)
GENERATIONS = 20
# Of the mean, from an imitated θ, as in open-campaign: the study's 0.05, for θ = 0, would be longer than the smaller σ.
LEARNING_RATE = 0.02


class Arm(NamedTuple):
    """One way to a θ."""

    imitates: bool
    strategy: str | None = None  # None: no evolution
    sigma: float | None = None  # None: the study's


ARMS = {
    "imitation": Arm(True),
    "evolution": Arm(False, "Open_ES"),
    **{f"both-{s}-{x}": Arm(True, s, x) for s, x in itertools.product(STRATEGIES, SIGMAS)},
}
TINY = {"population": 4, "generations": 3, "env_steps": 16 * 128 * 4}


def study(small: bool) -> MetaConfig:
    """The setting that all arms share; without evaluations, as all θ are compared in the end."""
    changed = {"generations": GENERATIONS, "evaluate_every": 0, "held_out": ()}
    shared = load_meta("open-breakout-small").model_dump() | changed
    return MetaConfig.model_validate(shared | (TINY if small else {}))


def changes(arm: Arm, shared: MetaConfig, small: bool) -> dict[str, Any]:
    """What an arm changes of it: as many lifetimes as ``generations`` × ``population`` for each that evolves."""
    tiny = {"rounds": 1, "lifetimes": 1, "batches": 20} if small else {}
    imitation = ImitationConfig(teachers=(TEACHER,), **tiny)
    spent = imitation.lifetimes * (imitation.rounds + 1) if arm.imitates else 0
    found: dict[str, Any] = {"generations": 0}
    if arm.strategy is not None:
        found["generations"] = shared.generations - math.ceil(spent / shared.population)
        found["strategy"] = arm.strategy
    if arm.sigma is not None:
        found |= {"sigma": arm.sigma, "learning_rate": LEARNING_RATE}
    return found | ({"imitation": imitation.model_dump()} if arm.imitates else {})


def compared(names: list[str], shared: MetaConfig, num_seeds: int, execution: Execution) -> pd.DataFrame:
    """Rows of all θ and of Adam in the small setting, one per lifetime."""
    weights = {f"open@{name}": name for name in names}
    open_bench.compare(
        optimizers=["adam", *weights], environments=[*shared.environments, *NEVER_SEEN], num_seeds=num_seeds,
        steps=shared.env_steps, settings=shared.settings, aliases=weights, execution=execution,
    )  # fmt: skip
    return open_bench.load_runs(execution.results).scores


def table(scores: pd.DataFrame, trained: dict[str, Any]) -> str:
    """Cost of each θ and its mean final returns."""
    from open_bench.evaluation.bootstrap import mean_bands

    mine = scores[scores["algorithm"] != "random"]
    cells = {
        key: interval(*(float(each[0]) for each in mean_bands(rows["final_return"].to_numpy(float)[:, None])))
        for key, rows in mine.groupby(["optimizer", "environment"])
    }
    places = sorted(mine["environment"].unique())
    rows = []
    for label in mine["optimizer"].unique():
        name = label.removeprefix("open@")
        cost = trained[name].metadata["cost"] if name in trained else {"env_steps": 0, "generations": ""}
        told = [name, str(cost["generations"]), compact(cost["env_steps"])]
        rows.append(told + [cells[label, place] for place in places])
    return markdown_table(["θ", "generations", "env steps", *(place.partition("[")[0] for place in places)], rows)


@click.command()
@click.option("--arm", "arms", multiple=True, type=click.Choice(list(ARMS)), help="Default: all.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("results/ablation"), show_default=True)
@click.option("--num-seeds", default=10, show_default=True, help="Of the comparison.")
@click.option("--devices", type=int)
@click.option("--small", is_flag=True, help="Tiny evolutions: only that it works.")
@click.option("--no-compare", is_flag=True, help="Make θ and stop.")
def main(
    arms: tuple[str, ...], results: Path, num_seeds: int, devices: int | None, small: bool, no_compare: bool
) -> None:
    """Make the arms' θ and compare them."""
    os.environ["OPEN_BENCH_WEIGHTS"] = str(results / "weights")
    shared, execution = study(small), Execution(results=results, devices=devices, progress=True)
    trained = {}
    for name in arms or ARMS:
        try:
            trained[name] = open_bench.meta_train(
                "open", study=shared, name=name, execution=execution, **changes(ARMS[name], shared, small)
            )
        except UserError as error:  # evolution that gets no signal stops, and that is a result
            click.echo(f"{name}: {error}", err=True)
    if not no_compare:
        click.echo(table(compared(list(trained), shared, num_seeds, execution), trained))


if __name__ == "__main__":
    main()
