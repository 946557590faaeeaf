"""Entry point of ``openbench``: the commands, and how errors reach people."""

import errno
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import click

from open_bench.cli import console, generalize, inspect, meta_train, results, run, tune, weights
from open_bench.cli.options import Stopped
from open_bench.config import quiet_xla
from open_bench.errors import UserError

# What can become true of a disk at any moment: full, over quota, too large a file, read-only, not ours.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
MEND = "What is stored is whole: mend that, and the same command goes on"
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
OUT_OF_MEMORY = (
    "out of memory. Make the agents smaller (--set hidden=[64,64]), take fewer copies (--set num_envs=…), or fewer "
    "lifetimes at once (--vmap-size 1, --devices 1)"
)


def main() -> None:
    """The process: runs a command and ends, at once where Python would wait for XLA to compile what nobody needs."""
    try:
        answer()
    except SystemExit as ended:
        if _compiling_ahead():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1)
        raise


def answer() -> None:
    """Run a command: user errors become one line on stderr and exit code 2."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    quiet_xla()
    console.make_streams_robust()
    try:
        # So that package.module:attribute finds a file beside the user; last, as a folder of results from elsewhere may
        # hold a file that is called like a package.
        sys.path.append(os.getcwd())
    except FileNotFoundError:
        _fail("the folder that this was started in does not exist any more: change to one that does")
    try:
        cli(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (Stopped, KeyboardInterrupt, click.exceptions.Abort) as stopped:
        console.ERR.print(str(stopped) or "Interrupted.", markup=False, highlight=False, soft_wrap=True)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            _fail(f"{error.filename or 'writing'}: {error.strerror}. {MEND}")
        if not _out_of_memory(error):
            raise
        _fail(OUT_OF_MEMORY)


def _compiling_ahead() -> bool:
    programs = sys.modules.get("open_bench.experiments.programs")  # if it is not there, nothing is compiled
    return programs is not None and programs.compiling_ahead()


def _fail(message: str) -> NoReturn:
    try:
        console.complain("error", message)
    except OSError:  # what people see goes to a disk that is full: the exit code is all that is left to say
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(EXIT_USER_ERROR)


def _out_of_memory(error: Exception) -> bool:
    """Whether Python or XLA had no memory left; XLA's error has no class of its own."""
    words = ("RESOURCE_EXHAUSTED", "Out of memory")
    return isinstance(error, MemoryError) or (
        type(error).__module__.startswith("jax") and any(word in str(error) for word in words)
    )


def _show_warning(message: Any, category: Any, filename: str, *_: Any) -> None:
    """Our own warnings in one line; those of libraries stay out of the user's way."""
    if Path(__file__).resolve().parents[1] in Path(filename).resolve().parents:
        console.complain("warning", str(message))


def _print_versions(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    import platform

    import open_bench
    from open_bench.machine import devices_ahead, installed_version

    console.say(f"openbench, version {open_bench.__version__}")
    versions = [f"{name} {installed_version(name)}" for name in ("jax", "jaxlib")]
    console.say(f"{', '.join(versions)}, Python {platform.python_version()}, {devices_ahead()}")
    context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_versions,
              help="Show the versions of open-bench, JAX and Python, and the devices.")  # fmt: skip
def cli() -> None:
    """Compare optimizers for reinforcement learning: one harness, the same seeds, interval estimates.

    \b
    openbench compare                           the quick study: minutes on two cores
    openbench compare -o adam -o lion -e breakout --num-seeds 8
    openbench train adam:learning_rate=1e-3 -e cartpole
    openbench list optimizers
    """


COMMANDS: tuple[click.Command, ...] = (
    run.train,
    run.compare,
    tune.tune,
    meta_train.meta_train,
    generalize.generalize,
    results.leaderboard,
    results.report,
    results.export,
    results.import_,
    results.verify,
    inspect.list_,
    inspect.show,
    inspect.check,
    inspect.doctor,
    inspect.completion,
    weights.weights,
)
for command in COMMANDS:
    cli.add_command(command)


if __name__ == "__main__":
    main()
