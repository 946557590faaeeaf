"""``openbench tune``."""

import json
from typing import Any

import click

from open_bench.cli import console
from open_bench.cli.options import (
    ALGORITHM,
    BUDGET,
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


@click.command()
@click.argument("optimizers", nargs=-1, metavar="[OPTIMIZER]...", shell_complete=optimizer_names)
@click.option("--env", "-e", "environments", multiple=True, shell_complete=shipped("environments"),
              help="Environment; repeatable; replaces the study's.")  # fmt: skip
@click.option(
    "--study",
    shell_complete=shipped("studies"),
    help="Tune what its rows with track=tuned and track=one_setting need, optimizer by optimizer.",
)
@click.option("--trials", type=int, default=16, show_default=True, metavar="K",
              help="Points of each search space; the published setting, or the default, is one more.")  # fmt: skip
@num_seeds(2, of="each trial")
@click.option("--report-seeds", type=int, default=4, show_default=True,
              help="Fresh seeds that the winners are run on again; 0: none.")  # fmt: skip
@root_seed()
@click.option("--family", is_flag=True, help="Let the result hold for everything under the environment's folder.")
@click.option("--ship", is_flag=True, help="In a checkout: write to baselines/hyperparameters, too.")
@ALGORITHM
@BUDGET
@STEPS
@SET
@trains
@reports
def tune(optimizers: tuple[str, ...], environments: tuple[str, ...], execution: Execution, as_json: bool,
         **request: Any) -> None:  # fmt: skip
    """Find hyperparameters of OPTIMIZERs, with the same trials, seeds and env steps for every one.

    \b
    openbench tune adam lion -e cartpole -e acrobot --budget quick --trials 16
    openbench compare -o adam:track=tuned -o lion:track=tuned -e cartpole --hyperparameters results
    openbench tune --study minatar --trials 16 --num-seeds 2

    Trials are points of the optimizers' search spaces. The best of them on the tuning seeds is run again on fresh ones
    (root seed --root-seed, by default the study's or 0). Killed at any moment, the same command goes on; with more
    trials or seeds only what is missing is trained; several processes started on one results folder share the work.
    """
    from open_bench import api

    tuned = api.tune(optimizers or None, environments or None, execution=execution, **request)
    written = [f"{execution.folder}/{name}" for name in ("hyperparameters/", "tuning/")]
    if as_json:
        winners = [{**row, "settings": json.loads(row["settings"])} for row in console.records(tuned.winners)]
        console.show_json({"winners": winners, "notes": list(tuned.notes), "written": written})
        return
    from open_bench.tuning.report import rich_winners

    console.show(rich_winners(tuned, console.width()))
    console.say(f"Written: {', '.join(written)}")
