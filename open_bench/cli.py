"""The command line: parse, call one function, print."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from open_bench.errors import UserError

OUT = Console()
ERR = Console(stderr=True)
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main() -> None:
    """Entry point of ``openbench``: user errors become one line on stderr and exit code 2."""
    warnings.showwarning = _show_warning
    try:
        cli(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except click.exceptions.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        ERR.print("\nInterrupted. What was finished is stored; the same command goes on from here.", highlight=False)
        sys.exit(EXIT_INTERRUPTED)


def _fail(message: str) -> None:
    ERR.print(f"[bold red]error:[/] {_escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(EXIT_USER_ERROR)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _show_warning(message: Any, category: Any, filename: str, *_: Any) -> None:
    """Our own warnings in one line; those of libraries stay out of the user's way."""
    if Path(__file__).resolve().parent in Path(filename).resolve().parents:
        ERR.print(f"[yellow]warning:[/] {_escape(str(message))}", highlight=False, soft_wrap=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="open-bench", prog_name="openbench")
def cli() -> None:
    """Compare optimizers for reinforcement learning: one PPO harness, the same seeds, interval estimates.

    \b
    openbench compare                           the quick study: minutes on two cores
    openbench compare -o adam -o lion -e breakout --seeds 8
    openbench train adam:learning_rate=1e-3 -e cartpole
    openbench list optimizers
    """


def _settings(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """``--set key=value`` → PPO settings."""
    from open_bench.optimizers.names import parse_value

    settings: dict[str, Any] = {}
    for item in values:
        key, equals, value = item.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise UserError(f"--set {item}: expected KEY=VALUE, such as --set num_envs=32")
        settings[key.strip()] = parse_value(value)
    return settings


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that ``train`` and ``compare`` share."""
    options = [
        click.option("--steps", type=int, help="Env steps of a lifetime, instead of a budget."),
        click.option("--set", "settings", multiple=True, callback=_settings, metavar="KEY=VALUE",
                     help="Change a PPO setting, such as num_envs=32 or hidden=[128,128]. Repeatable."),
        click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
                     help="Folder that the runs, leaderboard and figures are written to."),
        click.option("--devices", type=int, help="Devices to use. On CPU every core is one by default."),
        click.option("--width", type=int, help="Lifetimes in a vmapped group (1 on CPU by default)."),
        click.option("--save-agents", is_flag=True, help="Keep the trained agents' parameters."),
        click.option("--quiet", "-q", is_flag=True, help="Print nothing but the result."),
        click.option("--plain", is_flag=True, help="Lines instead of bars (the default when not in a terminal)."),
        click.option("--coordinator", metavar="HOST:PORT", help="Join a jax.distributed cluster at this address."),
        click.option("--num-processes", type=int, help="Processes in the cluster."),
        click.option("--process-id", type=int, help="This process's number in the cluster, from 0."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _run_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``train`` and ``compare`` from the shared options."""
    from open_bench.api import Cluster

    cluster = Cluster(*(options.pop(key) for key in ("coordinator", "num_processes", "process_id")))
    progress = _progress(quiet=options.pop("quiet"), plain=options.pop("plain"))
    return {**options, "cluster": cluster, "progress": progress}


def _progress(quiet: bool, plain: bool) -> Any:
    if quiet:
        return None
    from open_bench.progress import Bars, Lines

    return Lines(ERR) if plain or not ERR.is_terminal else Bars(ERR)


@cli.command()
@click.argument("optimizer")
@click.option("--env", "-e", "environment", required=True, help="Environment: a shipped name, a .toml, a gymnax id.")
@click.option("--budget", default="quick", show_default=True, help="One of the environment's budgets.")
@click.option("--seeds", type=int, default=1, show_default=True, help="Repetitions.")
@click.option("--seed", type=int, default=0, show_default=True, help="Study seed: the root of all keys.")
@_run_options
def train(**options: Any) -> None:
    """Train OPTIMIZER on one environment and print its returns, a row a repetition.

    \b
    openbench train adam -e breakout --seeds 4
    openbench train lion:learning_rate=3e-4+dpo -e cartpole --steps 200000
    """
    from open_bench import api
    from open_bench.report.tables import rich_scores

    scores = api.train(**_run_arguments(options))
    OUT.print(rich_scores(scores))


@cli.command()
@click.argument("study", required=False)
@click.option("--optimizer", "-o", "optimizers", multiple=True, help="Optimizer; repeatable; replaces the study's.")
@click.option("--env", "-e", "environments", multiple=True, help="Environment; repeatable; replaces the study's.")
@click.option("--budget", help="Budget: quick, short or full.")
@click.option("--seeds", type=int, help="Repetitions of each cell.")
@click.option("--seed", type=int, help="Study seed: the root of all keys.")
@_run_options
def compare(optimizers: tuple[str, ...], environments: tuple[str, ...], **options: Any) -> None:
    """Train what is missing of STUDY (by default "quick") and print its leaderboard.

    STUDY is a shipped name or a .toml of yours. Killed at any moment, the same command goes on; several processes
    started on one results folder share the work.
    """
    from open_bench import api

    options["optimizers"], options["environments"] = optimizers or None, environments or None
    board = api.compare_board(**_run_arguments(options))
    OUT.print(board.to_rich(OUT.width))
    OUT.print(f"Written: {_escape(str(options['results']))}/leaderboard.csv, leaderboard.md, figures/", highlight=False)


@cli.command()
@click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True)
@click.option("--budget", help="Only this budget.")
def leaderboard(results: Path, budget: str | None) -> None:
    """Write the leaderboard and the figures of a results folder anew, from its stored runs."""
    from open_bench import api

    board = api.write_reports(results, budget)
    OUT.print(board.to_rich(OUT.width))
    OUT.print(f"Written: {_escape(str(results))}/leaderboard.csv, leaderboard.md, figures/", highlight=False)


@cli.command("list")
@click.argument("kind", type=click.Choice(["optimizers", "environments", "studies"]))
def list_command(kind: str) -> None:
    """Show what there is: optimizers, environments or studies."""
    from open_bench import listings

    OUT.print({"optimizers": listings.optimizers, "environments": listings.environments, "studies": listings.studies}[kind]())


if __name__ == "__main__":
    main()
