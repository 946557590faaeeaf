"""``openbench meta-train``."""

from typing import TYPE_CHECKING, Any

import click

from open_bench.cli import console
from open_bench.cli.options import (
    ALGORITHM,
    LOGS,
    SET,
    STEPS,
    optimizer_names,
    options,
    reports,
    root_seed,
    shipped,
    trains,
)
from open_bench.config import Execution

if TYPE_CHECKING:
    from open_bench.meta_training.run import MetaTrained


_IMITATION = options(
    click.option("--imitate", "imitation_teachers", multiple=True, metavar="TEACHER", shell_complete=optimizer_names,
                 help="Fit to this optimizer's updates first; repeat it to name one for each environment."),
    *(
        click.option(f"--imitation-{key.replace('_', '-')}", type=kind, help=text)
        for key, kind, text in (
            ("rounds", int, "Of recording and fitting."),
            ("lifetimes", int, "Recorded in a round on each environment."),
            ("windows", int, "Recorded of a lifetime, at most."),
            ("window_steps", int, "Optimizer steps in a window."),
            ("burn_in", int, "First steps of a window, which only warm up the carry."),
            ("parameters", int, "Recorded in a window."),
            ("batches", int, "Of a round."),
            ("batch_size", int, "Windows in a batch."),
            ("learning_rate", float, "Of Adam, which fits."),
        )
    ),
)  # fmt: skip


@click.command("meta-train")
@click.argument("optimizer", shell_complete=optimizer_names)
@click.option("--env", "-e", "environments", multiple=True, shell_complete=shipped("environments"),
              help="Environment to train on; repeatable.")  # fmt: skip
@click.option("--held-out", multiple=True, help="Environment that is only evaluated; repeatable.")
@click.option("--study", metavar="NAME|FILE", shell_complete=shipped("meta"),
              help="Settings that ship, or a .toml of yours; options replace its values.")  # fmt: skip
@_IMITATION
@click.option("--strategy", help="An evosax strategy (Open_ES by default).")
@click.option("--population", type=int, help="Members of a generation.")
@click.option("--generations", type=int, help="More than before continue a finished evolution; 0: imitation alone.")
@click.option("--sigma", type=float, help="Standard deviation of the search distribution.")
@click.option("--sigma-decay", type=float, help="Factor of sigma, a generation.")
@click.option("--learning-rate", type=float, help="Of Adam on the mean.")
@click.option("--learning-rate-decay", type=float, help="Factor of the learning rate, a generation.")
@click.option("--b1", type=float, help="Of Adam on the mean.")
@click.option("--rollouts", type=int, help="Lifetimes of a member on each environment.")
@click.option("--fitness", help="final_return or mean_return.")
@click.option("--task-sampling", help="common, or antithetic: each mirrored pair has a gridworld level of its own.")
@click.option("--budget", help="Length of a lifetime by name: quick, short or full.")
@STEPS
@click.option("--evaluate-every", type=int, help="Compare the mean with Adam every so many generations.")
@click.option("--evaluation-rollouts", type=int, help="Lifetimes of an evaluation on each environment.")
@click.option("--save-every", type=int, metavar="K", help="Keep θ of every K-th generation.")
@root_seed()
@ALGORITHM
@SET
@click.option("--name", help="Name of the weights; by default it follows from the settings.")
@LOGS
@trains
@reports
def meta_train(
    environments: tuple[str, ...], held_out: tuple[str, ...], execution: Execution, as_json: bool, **request: Any
) -> None:
    """Evolve the weights of OPTIMIZER, a learned one, and keep them in your library.

    \b
    openbench meta-train open --study open-cartpole --name mine
    openbench meta-train open --imitate lion:learning_rate=2e-3 -e breakout --generations 0 --name imitated
    openbench meta-train open --study open-campaign --name campaign
    openbench train open@mine -e cartpole

    Options hold in all stages of a study that has stages. Killed at any moment, the same command goes on and ends with
    the same weights.
    """
    from open_bench import api

    keys = [key for key in request if key.startswith("imitation_")]
    given = {key.removeprefix("imitation_"): value for key in keys if (value := request.pop(key)) not in (None, ())}
    done = api.meta_train(
        environments=environments or None, held_out=held_out or None, execution=execution, imitation=given or None,
        **request,
    )  # fmt: skip
    if as_json:
        before = {"stages": [_in_json(each) for each in done.stages]} if done.stages else {}
        console.show_json(_in_json(done) | before)
    else:
        console.say("\n".join(meta_report(each) for each in (*done.stages, done)))


def _in_json(done: "MetaTrained") -> dict[str, Any]:
    histories = {name: console.records(getattr(done, name)) for name in ("history", "imitation")}
    return {"optimizer": done.optimizer, "hash": done.hash, "weights": done.path, "folder": done.folder, **histories}


def meta_report(done: "MetaTrained") -> str:
    """What a meta-training ended with: losses, the course of fitness, the cost, and where the weights lie."""
    from open_bench.meta_training.logging import FIGURE

    lines, figures = [], []
    if len(done.imitation):
        last = done.imitation.iloc[-1]
        share = last["of_teacher"]  # NaN where the random policy's return is not known
        check = "" if share != share else f", {share:.2f} of the teacher's normalized return"
        lines.append(f"imitation: loss at held-out parameters {last['held_out_loss']:.4g}{check}, {_cost(last)}")
        figures.append("imitation.png")
    if len(done.history):
        first, last = done.history.iloc[0], done.history.iloc[-1]
        lines.append(
            f"fitness {first['fitness_mean']:.4g} → {last['fitness_mean']:.4g} over {int(last['generation'])} "
            f"generations, {_cost(last)}"
        )
        figures.append(f"{FIGURE}.png")
    return "\n".join([
        *lines,
        f"weights {done.hash[:12]}: {done.path}, to be used as {done.optimizer}",
        f"history and checkpoints: {done.folder}; figure: {', '.join(str(done.folder / name) for name in figures)}",
    ])  # fmt: skip


def _cost(last: Any) -> str:
    """Lifetimes, env steps and time in a history's last row."""
    from open_bench.text import duration

    return f"{int(last['lifetimes']):,} lifetimes, {int(last['env_steps']):,} env steps, {duration(last['seconds'])}"
