"""What commands share: options, and how a request to train becomes an ``Execution``."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from open_bench.cli.console import ERR, say, show_json
from open_bench.config import Cluster, Execution
from open_bench.errors import UserError

Command = Callable[..., None]
Decorator = Callable[[Command], Command]


class Stopped(Exception):
    """Ctrl-C; the message says what is stored."""


class _Planned(Exception):
    """The plan is known, and nothing but the plan was wanted."""


def options(*several: Decorator) -> Decorator:
    """Several options as one decorator, in order."""
    return lambda command: functools.reduce(lambda decorated, option: option(decorated), reversed(several), command)


def _settings(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """``--set key=value`` → settings of the algorithm."""
    from open_bench.optimizers.names import parse_value

    settings: dict[str, Any] = {}
    for item in values:
        key, equals, value = item.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise UserError(f"--set {item}: expected KEY=VALUE, such as --set num_envs=32")
        settings[key.strip()] = parse_value(value)
    return settings


def _aliases(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """``--alias NAME=SHORT`` → short names by name, which may have settings."""
    split = {item: item.rpartition("=") for item in values}
    for item, (name, _equals, short) in split.items():
        if not name.strip() or not short.strip():
            raise UserError(f"--alias {item}: expected NAME=SHORT, such as --alias mine:signed_momentum=SM")
    return {name.strip(): short.strip() for name, _, short in split.values()}


def shipped(kind: str) -> Callable[[Any, Any, str], list[str]]:
    """Completes names that ship: environments, studies, meta or generalize."""

    def complete(_: Any, __: Any, incomplete: str) -> list[str]:
        from open_bench import config

        return [name for name in config.shipped(kind) if name.startswith(incomplete)]

    return complete


def optimizer_names(_: Any, __: Any, incomplete: str) -> list[str]:
    """Completes names of registered optimizers."""
    from open_bench.optimizers.registry import available

    return [name for name in available() if name.startswith(incomplete)]


SET = click.option("--set", "settings", multiple=True, callback=_settings, metavar="KEY=VALUE",
                   help="Change a setting of the algorithm, as num_envs=32 or hidden=[64,64]; repeatable.")  # fmt: skip
ALIAS = click.option("--alias", "aliases", multiple=True, callback=_aliases, metavar="NAME=SHORT",
                     help="Show an optimizer or environment under a short name of yours; repeatable.")  # fmt: skip
RESULTS = click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
                       help="Folder of experiments, tables and figures.")  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON in place of tables.")
BUDGET = click.option("--budget", help="Length of a lifetime by name: quick, short or full.")
STEPS = click.option("--steps", type=int, help="Env steps of a lifetime, in place of a budget.")
ALGORITHM = click.option("--algorithm", help="ppo, pqn, or module:Class; by default the environment's own.")


def num_seeds(default: int | None = None, of: str = "each experiment") -> Decorator:
    """How many lifetimes."""
    return click.option("--num-seeds", "--seeds", "num_seeds", type=int, default=default,
                        show_default=default is not None, help=f"Lifetimes of {of}.")  # fmt: skip


def root_seed(default: int | None = None) -> Decorator:
    """Where keys come from."""
    return click.option("--root-seed", "--seed", "root_seed", type=int, default=default,
                        show_default=default is not None, help="The root of all keys.")  # fmt: skip


DEVICES = click.option("--devices", type=int, help="Devices to use. On a CPU every core is one by default.")
_SHOWN = options(
    click.option("--quiet", "-q", is_flag=True, help="Print nothing but the result."),
    click.option("--plain", is_flag=True, help="Lines instead of bars (the default when not in a terminal)."),
    click.option("--dry-run", is_flag=True, help="Print the plan with an estimate, and train nothing."),
    JSON,
)
_CLUSTER = options(
    click.option("--coordinator", metavar="HOST:PORT", help="Join a jax.distributed cluster at this address."),
    click.option("--num-processes", type=int, help="Processes in the cluster; they share the results folder."),
    click.option("--process-id", type=int, help="This process's number in the cluster, from 0."),
    click.option("--executor", metavar="ray", help="Send the work to the workers of a Ray cluster."),
    click.option("--address", metavar="HOST:PORT",
                 help="The Ray cluster's; by default the one this machine is in, else one of this machine alone."),
)  # fmt: skip
HYPERPARAMETERS = click.option("--hyperparameters", metavar="FOLDER",
                               help="Results of tune: its settings come before those that ship.")  # fmt: skip
VMAP_SIZE = click.option("--vmap-size", type=int, help="Lifetimes vmapped on one device (1 on a CPU by default).")
KEEP = options(
    click.option("--save-agents", is_flag=True, help="Keep the trained agents' parameters."),
    click.option("--diagnose", is_flag=True, help="Record why an optimizer wins or collapses: KL, entropy, norms, …"),
)

LOGS = options(
    click.option("--tensorboard", is_flag=True, help="Write TensorBoard event files, too."),
    click.option("--wandb", metavar="PROJECT", help="Log to this project of Weights & Biases."),
)


def runs(command: Command) -> Command:
    """A command that runs lifetimes: it receives ``execution`` in place of the options that say where and how."""

    @functools.wraps(command)
    def run(
        results: Path, devices: int | None, quiet: bool, plain: bool, dry_run: bool, as_json: bool,
        vmap_size: int | None = None, coordinator: str | None = None, num_processes: int | None = None,
        process_id: int | None = None, executor: str | None = None, address: str | None = None,
        save_agents: bool = False, diagnose: bool = False, **request: Any,
    ) -> None:  # fmt: skip
        from open_bench.progress import Tally

        joined = any(each is not None for each in (coordinator, num_processes, process_id))
        if joined and executor:
            raise UserError("--executor and --coordinator are two ways to use several hosts: take one")
        cluster: Any = Cluster(coordinator, num_processes, process_id) if joined else executor
        tally = Tally()
        watcher = _plan_only(as_json) if dry_run else _watcher(tally, quiet, plain)
        execution = Execution(results, devices, vmap_size, save_agents, cluster, watcher, diagnose, address)
        with _explained(tally, request.get("settings") or {}), contextlib.suppress(_Planned):
            command(execution=execution, as_json=as_json, **request)

    return options(RESULTS, DEVICES, _SHOWN)(run)


def trains(command: Command) -> Command:
    """Options of every command that trains."""
    return options(VMAP_SIZE, _CLUSTER)(runs(command))


def reports(command: Command) -> Command:
    """The option of a command that trains to write the results folder's page in the end."""

    @click.option("--report", "page", is_flag=True, help="Write the results folder's report.html, too.")
    @functools.wraps(command)
    def run(execution: Execution, page: bool, **request: Any) -> None:
        command(execution=execution, **request)
        if page:
            from open_bench import api

            ERR.print(f"Written: {api.report(execution.folder)}", markup=False, highlight=False, soft_wrap=True)

    return run


def _watcher(tally: Any, quiet: bool, plain: bool) -> Any:
    from open_bench.events import several
    from open_bench.progress import Lines, default_watcher

    shown = [] if quiet else [Lines(ERR) if plain else default_watcher(ERR)]
    return several([tally, *shown])


@contextlib.contextmanager
def _explained(tally: Any, settings: dict[str, Any]) -> Iterator[None]:
    """What goes wrong, in the words of the command line."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(tally.interrupted()) from None
    except UserError as error:
        for key, value in settings.items():
            if f"unknown key '{key}'" not in str(error):
                continue
            from open_bench.optimizers.registry import known

            if any(key in spec.hyperparameters for spec in known().values()):
                raise UserError(
                    f"--set {key}={value}: '{key}' is no setting of the algorithm but of optimizers, and stands in "
                    f"their names: adam:{key}={value}"
                ) from None
        raise


def _plan_only(as_json: bool) -> Any:
    """A watcher that prints what is ahead and goes no further: every stream begins with it, before anything is made."""
    from open_bench.events import Event, Started
    from open_bench.progress import plan_report

    def watch(event: Event) -> None:
        if isinstance(event, Started):
            if as_json:
                show_json(dataclasses.asdict(event))
            else:
                say(plan_report(event))
            raise _Planned

    return watch
