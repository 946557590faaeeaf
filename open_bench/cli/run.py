"""``openbench train`` and ``openbench compare``."""

from typing import Any

import click

from open_bench.cli import console
from open_bench.cli.options import (
    ALGORITHM,
    ALIAS,
    BUDGET,
    HYPERPARAMETERS,
    KEEP,
    LOGS,
    SET,
    STEPS,
    num_seeds,
    optimizer_names,
    options,
    reports,
    root_seed,
    shipped,
    trains,
)
from open_bench.cli.results import print_board
from open_bench.config import Execution
from open_bench.errors import UserError

_REQUEST = options(ALGORITHM, STEPS, SET, HYPERPARAMETERS, KEEP, LOGS, trains)


def _one(_: click.Context, __: click.Parameter, names: tuple[str, ...]) -> str:
    """The environment; of several click would train on the last and say nothing."""
    if len(names) > 1:
        several = " ".join(f"-e {name}" for name in names)
        raise UserError(
            f"train takes one environment, not {', '.join(names)}: openbench compare -o OPTIMIZER {several}"
        )
    return names[0]


@click.command()
@click.argument("optimizer", shell_complete=optimizer_names)
@click.option("--env", "-e", "environment", required=True, multiple=True, callback=_one,
              shell_complete=shipped("environments"),
              help="Environment: a shipped name, a .toml, a gymnax id.")  # fmt: skip
@click.option("--budget", default="quick", show_default=True, help="One of the environment's budgets.")
@num_seeds(1)
@root_seed(0)
@_REQUEST
def train(execution: Execution, as_json: bool, **request: Any) -> None:
    """Train OPTIMIZER on one environment and print its returns, a row a seed.

    \b
    openbench train adam -e breakout --num-seeds 4
    openbench train lion:learning_rate=3e-4+dpo -e cartpole --steps 200000
    """
    from open_bench import api
    from open_bench.evaluation.tables import rich_scores
    from open_bench.training.record import METRICS

    scores = api.train(execution=execution, **request)
    folders = [str(execution.folder / "experiments" / name) for name in scores["experiment"].unique()]
    if as_json:
        console.show_json({"folder": folders[0], "scores": console.records(scores)})
    else:
        console.show(rich_scores(scores, {key: each.label for key, each in METRICS.items() if key in scores}))
        console.say(f"Stored in {', '.join(folders)}")


@click.command()
@click.argument("study", required=False, shell_complete=shipped("studies"))
@click.option("--optimizer", "-o", "optimizers", multiple=True, shell_complete=optimizer_names,
              help="Optimizer; repeatable; replaces the study's.")  # fmt: skip
@click.option("--env", "-e", "environments", multiple=True, shell_complete=shipped("environments"),
              help="Environment; repeatable; replaces the study's.")  # fmt: skip
@BUDGET
@num_seeds()
@root_seed()
@click.option("--no-baseline", is_flag=True,
              help="Adam does not join where scores need it: rank raw returns.")  # fmt: skip
@click.option("--meta-train", is_flag=False, flag_value="", metavar="[STUDY]",
              help="Meta-train learned optimizers that have no weights first, with a study's settings.")  # fmt: skip
@ALIAS
@_REQUEST
@reports
def compare(
    optimizers: tuple[str, ...], environments: tuple[str, ...], meta_train: str | None, no_baseline: bool,
    execution: Execution, as_json: bool, **request: Any,
) -> None:  # fmt: skip
    """Train what is missing of STUDY (by default "quick") and print its leaderboard.

    \b
    openbench compare quick -o adam -o lion --num-seeds 8
    openbench compare -e cartpole -o adam -o optim4rl --meta-train open-cartpole

    STUDY is a shipped name or a .toml of yours. Adam joins where scores need it. Killed at any moment, the same command
    goes on; several processes started on one results folder share the work.
    """
    from open_bench import api

    board = api.compare_board(
        optimizers=optimizers or None, environments=environments or None,
        meta_train=True if meta_train == "" else meta_train, baseline=not no_baseline, execution=execution, **request,
    )  # fmt: skip
    print_board(board, execution.folder, as_json)
