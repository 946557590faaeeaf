"""``openbench generalize``."""

from typing import Any

import click

from open_bench.cli import console
from open_bench.cli.options import (
    ALGORITHM,
    BUDGET,
    HYPERPARAMETERS,
    KEEP,
    SET,
    STEPS,
    num_seeds,
    optimizer_names,
    reports,
    root_seed,
    shipped,
    trains,
)
from open_bench.config import Execution

WRITTEN = ("generalization.csv", "points.csv", "axes.csv", "summary.csv", "generalization.md", "figures/")


@click.command()
@click.argument("optimizers", nargs=-1, required=True, metavar="OPTIMIZER...", shell_complete=optimizer_names)
@click.option("--study", default="smoke", show_default=True, shell_complete=shipped("generalize"),
              help="smoke, gridworld, full, or a .toml of yours.")  # fmt: skip
@click.option("--train-on", multiple=True, metavar="ENV",
              help="Where weights were trained that do not say; repeatable.")  # fmt: skip
@click.option("--axis", "axes", multiple=True, help="Only this axis of the study; repeatable.")
@num_seeds(of="each point")
@root_seed()
@click.option("--normalize", default="adam", show_default=True, help="Scores against adam, optimal or none.")
@ALGORITHM
@BUDGET
@STEPS
@SET
@HYPERPARAMETERS
@KEEP
@trains
@reports
def generalize(optimizers: tuple[str, ...], execution: Execution, as_json: bool, **request: Any) -> None:
    """Study how OPTIMIZERs carry over to what they were not trained or tuned on.

    \b
    openbench generalize open --study gridworld
    openbench generalize open@mine lion --axis width --axis lifetime --num-seeds 8

    Adam joins as the comparison. A point keeps what it varies, whatever the options say. Killed at any moment, the
    same command goes on.
    """
    from open_bench import api
    from open_bench.generalization.report import rich_tables
    from open_bench.generalization.run import folder_of

    study = api.generalize(list(optimizers), execution=execution, **request)
    folder = folder_of(execution.folder, study.name)
    if as_json:
        tables = {name: console.records(getattr(study, name)) for name in ("summary", "axes", "points")}
        console.show_json({**tables, "notes": list(study.notes), "written": [str(folder / name) for name in WRITTEN]})
        return
    console.show(rich_tables(study, console.width()))
    console.say(f"Written: {folder}/{', '.join(WRITTEN)}")
