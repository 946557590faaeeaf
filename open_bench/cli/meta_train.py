"""``openbench meta-train``."""

from typing import TYPE_CHECKING, Any

import click

from open_bench.cli import console
from open_bench.cli.options import ALGORITHM, SET, STEPS, optimizer_names, reports, root_seed, shipped, trains
from open_bench.config import Execution

if TYPE_CHECKING:
    from open_bench.meta_training.run import MetaTrained


@click.command("meta-train")
@click.argument("optimizer", shell_complete=optimizer_names)
@click.option("--env", "-e", "environments", multiple=True, shell_complete=shipped("environments"),
              help="Environment to train on; repeatable.")  # fmt: skip
@click.option("--held-out", multiple=True, help="Environment that is only evaluated; repeatable.")
@click.option("--study", metavar="NAME|FILE", shell_complete=shipped("meta"),
              help="Settings that ship, or a .toml of yours; options replace its values.")  # fmt: skip
@click.option("--strategy", help="An evosax strategy (Open_ES by default).")
@click.option("--population", type=int, help="Members of a generation.")
@click.option("--generations", type=int, help="More than before continue a finished evolution.")
@click.option("--sigma", type=float, help="Standard deviation of the search distribution.")
@click.option("--learning-rate", type=float, help="Of Adam on the mean.")
@click.option("--rollouts", type=int, help="Lifetimes of a member on each environment.")
@click.option("--fitness", help="final_return or mean_return.")
@click.option("--task-sampling", help="common, or antithetic: each mirrored pair has a gridworld level of its own.")
@click.option("--budget", help="Length of a lifetime by name: quick, short or full.")
@STEPS
@click.option("--evaluate-every", type=int, help="Compare the mean with Adam every so many generations.")
@root_seed()
@ALGORITHM
@SET
@click.option("--name", help="Name of the weights; by default it follows from the settings.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard event files beside the history.")
@click.option("--wandb", metavar="PROJECT", help="Log to this project of Weights & Biases.")
@trains
@reports
def meta_train(
    environments: tuple[str, ...], held_out: tuple[str, ...], execution: Execution, as_json: bool, **request: Any
) -> None:
    """Evolve the weights of OPTIMIZER, a learned one, and keep them in your library.

    \b
    openbench meta-train open --study open-cartpole --name mine
    openbench train open@mine -e cartpole

    Killed at any moment, the same command goes on and ends with the same weights.
    """
    from open_bench import api

    done = api.meta_train(
        environments=environments or None, held_out=held_out or None, execution=execution, **request
    )  # fmt: skip
    if as_json:
        paths = {"weights": done.path, "folder": done.folder}
        console.show_json({"optimizer": done.optimizer, "hash": done.hash, **paths,
                           "history": console.records(done.history)})  # fmt: skip
    else:
        console.say(meta_report(done))


def meta_report(done: "MetaTrained") -> str:
    """What a meta-training ended with: the course of fitness, the cost, and where the weights lie."""
    from open_bench.meta_training.logging import FIGURE
    from open_bench.text import duration

    first, last = done.history.iloc[0], done.history.iloc[-1]
    return (
        f"fitness {first['fitness_mean']:.4g} → {last['fitness_mean']:.4g} over {int(last['generation'])} generations, "
        f"{int(last['lifetimes']):,} lifetimes, {int(last['env_steps']):,} env steps, {duration(last['seconds'])}\n"
        f"weights {done.hash[:12]}: {done.path}, to be used as {done.optimizer}\n"
        f"history and checkpoints: {done.folder}; figure: {done.folder / (FIGURE + '.png')}"
    )
