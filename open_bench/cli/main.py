"""The command line: parse, call one function, print."""

import functools
import os
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
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    # XLA logs an error for every cached CPU program, about two tuning flags that no processor reports.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path.insert(0, os.getcwd())  # so that package.module:attribute finds a file beside the user
    try:
        cli(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):  # click makes the one into the other, and ends the line
        ERR.print("Interrupted. What was finished is stored; the same command goes on from here.", highlight=False)
        sys.exit(EXIT_INTERRUPTED)


def _fail(message: str) -> None:
    ERR.print(f"[bold red]error:[/] {_escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(EXIT_USER_ERROR)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _show_warning(message: Any, category: Any, filename: str, *_: Any) -> None:
    """Our own warnings in one line; those of libraries stay out of the user's way."""
    if Path(__file__).resolve().parents[1] in Path(filename).resolve().parents:
        ERR.print(f"[yellow]warning:[/] {_escape(str(message))}", highlight=False, soft_wrap=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="open-bench", prog_name="openbench")
def cli() -> None:
    """Compare optimizers for reinforcement learning: one PPO harness, the same num_seeds, interval estimates.

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


Command = Callable[..., None]


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in order."""
    return lambda command: functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


_SET = click.option("--set", "settings", multiple=True, callback=_settings, metavar="KEY=VALUE",
                    help="Change a PPO setting, such as num_envs=32 or hidden=[128,128]. Repeatable.")  # fmt: skip
_RESULTS = click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
                        help="Folder of runs, tables and figures.")  # fmt: skip
# What every command that trains has.
_training_options = _options(
    _RESULTS,
    click.option("--devices", type=int, help="Devices to use. On CPU every core is one by default."),
    click.option("--vmap-size", type=int, help="Lifetimes in a vmapped group (1 on CPU by default)."),
    click.option("--quiet", "-q", is_flag=True, help="Print nothing but the result."),
    click.option("--plain", is_flag=True, help="Lines instead of bars (the default when not in a terminal)."),
)
_cluster_options = _options(
    click.option("--coordinator", metavar="HOST:PORT", help="Join a jax.distributed cluster at this address."),
    click.option("--num-processes", type=int, help="Processes in the cluster; they share the results folder."),
    click.option("--process-id", type=int, help="This process's number in the cluster, from 0."),
)
# What train and compare share.
_run_options = _options(
    click.option("--steps", type=int, help="Env steps of a lifetime, instead of a budget."),
    _SET,
    click.option("--save-agents", is_flag=True, help="Keep the trained agents' parameters."),
    _training_options,
    _cluster_options,
)


def _run_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``train`` and ``compare`` from the shared options."""
    progress = _progress(quiet=options.pop("quiet"), plain=options.pop("plain"))
    cluster = _cluster(options)
    return {**options, "cluster": cluster, "progress": progress}


def _cluster(options: dict[str, Any]) -> Any:
    """Take the cluster out of a command's options."""
    from open_bench.api import Cluster

    return Cluster(*(options.pop(key) for key in ("coordinator", "num_processes", "process_id")))


def _progress(quiet: bool, plain: bool) -> Any:
    if quiet:
        return None
    from open_bench.cli.console import Bars, Lines

    return Lines(ERR) if plain or not ERR.is_terminal else Bars(ERR)


def _meta_progress(quiet: bool, plain: bool) -> Any:
    if quiet:
        return None
    from open_bench.cli.console import MetaBars, MetaLines

    return MetaLines(ERR) if plain or not ERR.is_terminal else MetaBars(ERR)


@cli.command()
@click.argument("optimizer")
@click.option("--env", "-e", "environment", required=True, help="Environment: a shipped name, a .toml, a gymnax id.")
@click.option("--budget", default="quick", show_default=True, help="One of the environment's budgets.")
@click.option("--num-seeds", "--seeds", "num_seeds", type=int, default=1, show_default=True, help="Seeds.")
@click.option(
    "--root-seed",
    "--seed",
    "root_seed",
    type=int,
    default=0,
    show_default=True,
    help="root seed: the root of all keys.",
)
@_run_options
def train(**options: Any) -> None:
    """Train OPTIMIZER on one environment and print its returns, a row a seed.

    \b
    openbench train adam -e breakout --seeds 4
    openbench train lion:learning_rate=3e-4+dpo -e cartpole --steps 200000
    """
    from open_bench import api
    from open_bench.evaluation.tables import rich_scores

    scores = api.train(**_run_arguments(options))
    OUT.print(rich_scores(scores))


@cli.command()
@click.argument("study", required=False)
@click.option("--optimizer", "-o", "optimizers", multiple=True, help="Optimizer; repeatable; replaces the study's.")
@click.option("--env", "-e", "environments", multiple=True, help="Environment; repeatable; replaces the study's.")
@click.option("--budget", help="TrainingLength: quick, short or full.")
@click.option("--num-seeds", "--seeds", "num_seeds", type=int, help="Seeds of each experiment.")
@click.option("--root-seed", "--seed", "root_seed", type=int, help="root seed: the root of all keys.")
@click.option("--meta-train", is_flag=False, flag_value="", metavar="[RECIPE]",
              help="Meta-train learned optimizers that have no weights first, with a recipe's settings.")  # fmt: skip
@_run_options
def compare(optimizers: tuple[str, ...], environments: tuple[str, ...], **options: Any) -> None:
    """Train what is missing of STUDY (by default "quick") and print its leaderboard.

    \b
    openbench compare quick -o adam -o lion --seeds 8
    openbench compare -e cartpole -o adam -o optim4rl --meta-train open-cartpole

    STUDY is a shipped name or a .toml of yours. Killed at any moment, the same command goes on; several processes
    started on one results folder share the work.
    """
    from open_bench import api

    options["optimizers"], options["environments"] = optimizers or None, environments or None
    recipe = options.pop("meta_train")
    options["meta_train"] = True if recipe == "" else recipe
    options["meta_progress"] = _meta_progress(options["quiet"], options["plain"])
    board = api.compare_board(**_run_arguments(options))
    OUT.print(board.to_rich(OUT.width))
    OUT.print(f"Written: {_escape(str(options['results']))}/leaderboard.csv, leaderboard.md, figures/", highlight=False)


@cli.command("meta-train")
@click.argument("optimizer")
@click.option("--env", "-e", "environments", multiple=True, help="Environment to train on; repeatable.")
@click.option("--held-out", multiple=True, help="Environment that is only evaluated; repeatable.")
@click.option("--config", metavar="NAME|FILE", help="A shipped recipe or a .toml of yours; options replace its values.")
@click.option("--strategy", help="An evosax strategy (Open_ES by default).")
@click.option("--population", type=int, help="Members of a generation.")
@click.option("--generations", type=int, help="More than before continue a finished evolution.")
@click.option("--sigma", type=float, help="Standard deviation of the search distribution.")
@click.option("--learning-rate", type=float, help="Of Adam on the mean.")
@click.option("--rollouts", type=int, help="Lifetimes of a member on each environment.")
@click.option("--fitness", help="final_return or mean_return.")
@click.option("--task-sampling", help="common, or antithetic: each mirrored pair has a gridworld level of its own.")
@click.option("--budget", help="TrainingLength of a lifetime: quick, short or full.")
@click.option("--steps", type=int, help="Env steps of a lifetime, instead of a budget.")
@click.option("--evaluate-every", type=int, help="Compare the mean with Adam every so many generations.")
@click.option("--root-seed", "--seed", "root_seed", type=int, help="The root of all keys.")
@_SET
@click.option("--name", help="Name of the weights; by default it follows from the settings.")
@_training_options
@_cluster_options
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard event files beside the history.")
@click.option("--wandb", metavar="PROJECT", help="Log to this project of Weights & Biases.")
def meta_train(
    environments: tuple[str, ...], held_out: tuple[str, ...], quiet: bool, plain: bool, **options: Any
) -> None:
    """Evolve the weights of OPTIMIZER, a learned one, and keep them in your library.

    \b
    openbench meta-train open --config open-cartpole --name mine
    openbench train open@mine -e cartpole

    Killed at any moment, the same command goes on and ends with the same weights.
    """
    from open_bench import api
    from open_bench.cli.console import meta_report

    cluster = _cluster(options)
    done = api.meta_train(
        environments=environments or None, held_out=held_out or None, cluster=cluster,
        progress=_meta_progress(quiet, plain), **options
    )  # fmt: skip
    OUT.print(meta_report(done), highlight=False, soft_wrap=True, markup=False)


@cli.command()
@click.argument("optimizers", nargs=-1, required=True, metavar="OPTIMIZER...")
@click.option("--preset", default="smoke", show_default=True, help="smoke, gridworld, full, or a .toml of yours.")
@click.option(
    "--train-on", multiple=True, metavar="ENV", help="Where weights were trained that do not say; repeatable."
)
@click.option("--axis", "axes", multiple=True, help="Only this axis of the preset; repeatable.")
@click.option("--num-seeds", "--seeds", "num_seeds", type=int, help="Seeds of each point.")
@click.option("--root-seed", "--seed", "root_seed", type=int, help="root seed: the root of all keys.")
@click.option("--normalize", default="adam", show_default=True, help="Scores against adam, optimal or none.")
@_training_options
def generalize(optimizers: tuple[str, ...], quiet: bool, plain: bool, **options: Any) -> None:
    """Study how OPTIMIZERs carry over to what they were not trained or tuned on.

    \b
    openbench generalize open --preset gridworld
    openbench generalize open@mine lion --axis width --axis lifetime --seeds 8

    Adam joins as the comparison. Killed at any moment, the same command goes on.
    """
    from open_bench import api
    from open_bench.generalization.report import rich_tables
    from open_bench.generalization.run import folder_of

    study = api.generalize(optimizers, progress=_progress(quiet, plain), **options)
    OUT.print(rich_tables(study))
    folder = folder_of(options["results"], study.preset)
    OUT.print(
        f"Written: {_escape(str(folder))}/generalization.csv, points.csv, axes.csv, summary.csv, generalization.md, "
        "figures/",
        highlight=False,
    )


@cli.command()
@_RESULTS
@click.option("--budget", help="Only this budget.")
def leaderboard(results: Path, budget: str | None) -> None:
    """Write the leaderboard and the figures of a results folder anew, from its stored runs."""
    from open_bench import api

    board = api.write_reports(results, budget)
    OUT.print(board.to_rich(OUT.width))
    OUT.print(f"Written: {_escape(str(results))}/leaderboard.csv, leaderboard.md, figures/", highlight=False)


@cli.command("list")
@click.argument("kind", type=click.Choice(["optimizers", "environments", "studies", "recipes", "presets"]))
def list_command(kind: str) -> None:
    """Show what there is: optimizers, environments, studies, meta-training recipes, presets of generalize."""
    from open_bench.cli import listings

    tables = {
        "optimizers": listings.optimizers,
        "environments": listings.environments,
        "studies": listings.studies,
        "recipes": listings.recipes,
        "presets": listings.presets,
    }
    OUT.print(tables[kind]())


@cli.command()
@click.argument("environment")
@click.option(
    "--root-seed",
    type=click.IntRange(0, 1_000_001),
    default=0,
    show_default=True,
    help="root seed: the root of all keys.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Whose level to show.")
@click.option("--path", metavar="POLICY",
              help="Play an episode and draw it: optimal, random, or an optimizer whose agent is stored.")  # fmt: skip
@click.option("--png", type=click.Path(path_type=Path), metavar="FILE", help="Draw a picture as well.")
@_SET
@_RESULTS
def show(
    environment: str, root_seed: int, seed: int, path: Any, png: Path | None, settings: dict[str, Any], results: Path
) -> None:
    """Show the level that a seed trains on, such as a gridworld's.

    \b
    openbench show gridworld/labyrinth --path optimal
    openbench show gridworld/rand_all --seed 1 --seed 3 --png level.png
    openbench train adam -e gridworld/labyrinth --save-agents
    openbench show gridworld/labyrinth --path adam
    """
    from open_bench.environments.registry import load_environment, make_environment
    from open_bench.experiments.plan import changed
    from open_bench.experiments.policies import trained_policy
    from open_bench.training.keys import lifetime_keys, stream

    config = changed(load_environment(environment), settings)
    if path not in (None, "optimal", "random"):
        path = (f"the agent that {path} trained", trained_policy(results, config, path, root_seed, seed))
    key = stream(lifetime_keys(root_seed, config.name, [seed])[0], "environment")
    OUT.print(make_environment(config).draw(config.name, key, path, png), markup=False, highlight=False, soft_wrap=True)


@cli.command()
@click.argument("optimizer")
@click.option("--no-cost", is_flag=True, help="Leave out the timing against Adam.")
def check(optimizer: str, no_cost: bool) -> None:
    """Check that OPTIMIZER follows the contract: for anyone who writes one. Exits with 1 when a check fails."""
    from open_bench.evaluation.tables import check_line, cost_lines
    from open_bench.optimizers import conformance
    from open_bench.optimizers.registry import resolve

    spec = resolve(optimizer)
    passed = True
    for result in conformance.check(spec):
        passed &= result.passed
        OUT.print(check_line(result.name, result.passed, result.detail), highlight=False, soft_wrap=True)
    if passed and not no_cost:
        cost = conformance.cost(spec, resolve("adam"))
        for line in cost_lines(cost.parameters, cost.state_bytes, cost.seconds_per_step, cost.relative):
            OUT.print(line, highlight=False, soft_wrap=True)
    if not passed:
        sys.exit(1)


@cli.group()
def weights() -> None:
    """Weights of learned optimizers: list, inspect, import, export, fetch."""


@weights.command("list")
def weights_list() -> None:
    """Show the weights that ship and those in your library."""
    from open_bench import weights as library
    from open_bench.cli.listings import weights_table

    OUT.print(weights_table(library.list_weights(), library.library_dir()))


@weights.command("inspect")
@click.argument("file")
def weights_inspect(file: str) -> None:
    """Show what FILE (or the weights of that name) holds: kind, hash, arrays, metadata."""
    from open_bench import weights as library
    from open_bench.cli.listings import weights_report

    OUT.print(weights_report(library.inspect(_weights_path(file))))


@weights.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--optimizer", "-o", required=True, help="The optimizer that the weights belong to, such as open.")
@click.option("--name", help="Name in your library; by default the optimizer's, which makes them its default weights.")
def weights_import(file: Path, optimizer: str, name: str | None) -> None:
    """Check FILE (.safetensors, OPEN's flat .npy, LPO's .npz, a VeLO folder) and keep it in your library."""
    from open_bench import weights as library

    spec = _learned_spec(optimizer)
    if name != optimizer and name in _learned_names():
        raise UserError(f"'{name}' would become the default weights of {name}, but these are {optimizer}'s")
    found = library.import_file(file, spec)
    metadata = {**found.metadata, "optimizer": spec.name}
    path = library.save_named(name or spec.name, found.theta, metadata)
    OUT.print(f"{_escape(str(path))}  {found.hash[:12]}", highlight=False, soft_wrap=True)


@weights.command("export")
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--optimizer", "-o", required=True, help="The optimizer that the weights belong to.")
@click.option("--format", "kind", help="By default what TARGET's suffix says: .safetensors or .npy.")
def weights_export(source: str, target: Path, optimizer: str, kind: Any) -> None:
    """Write the weights SOURCE (a name or a file) to TARGET, as .safetensors or a flat float32 .npy."""
    from open_bench import weights as library

    spec = _learned_spec(optimizer)
    found = library.load_reference(source, spec)
    library.export(found.theta, target, kind, spec=spec, metadata=found.metadata)
    OUT.print(f"{_escape(str(target))}  {found.hash[:12]}", highlight=False, soft_wrap=True)


@weights.command("fetch")
@click.argument("name")
@click.option("--url", help="Another address of the folder (http, https), or a local folder.")
@click.option("--any-size", is_flag=True, help="Accept other weights of the optimizer than the official ones.")
@click.option("--to", "destination", type=click.Path(path_type=Path), help="Folder; by default your library.")
def weights_fetch(name: str, url: str | None, any_size: bool, destination: Path | None) -> None:
    """Download the weights that are published as NAME (velo, open), verify them, and keep them in your library."""
    from rich.progress import Progress

    from open_bench import weights as library

    with Progress(console=ERR, transient=True, disable=not ERR.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(file: str, done: int, total: int | None) -> None:
            task = tasks.setdefault(file, bars.add_task(file)) if file not in tasks else tasks[file]
            bars.update(task, completed=done, total=total)

        paths = library.fetch_weights(name, url, destination, official=not any_size, progress=show)
    for path in paths:
        OUT.print(f"{_escape(str(path))}: verified", highlight=False, soft_wrap=True)


def _learned_names() -> list[str]:
    from open_bench.optimizers.registry import known

    return [key for key, spec in known().items() if spec.needs_theta]


def _learned_spec(name: str) -> Any:
    from open_bench.errors import near_matches
    from open_bench.optimizers.registry import known

    learned = _learned_names()
    if name not in learned:
        raise UserError(
            f"'{name}' is not a learned optimizer.{near_matches(name, learned)} Known: {', '.join(learned)}"
        )
    return known()[name]


def _weights_path(reference: str) -> Path:
    from open_bench import weights as library

    if not reference:
        raise UserError("name a file of weights, or weights that `openbench weights list` shows")
    path = Path(reference).expanduser()
    return path if path.exists() or os.sep in reference or path.suffix else library.locate(reference)


if __name__ == "__main__":
    main()
