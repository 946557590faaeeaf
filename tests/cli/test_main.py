"""How the command line starts and ends: help, versions, errors, streams that cannot show everything, pipes."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import jax
import pytest
from commands import OpenBench, subprocess_of

import open_bench
from open_bench.cli import console
from open_bench.cli import main as cli


def run(*command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, **options)


def test_help_and_version(openbench: OpenBench) -> None:
    assert "openbench compare" in openbench("-h").out
    assert "--devices" in openbench("train", "--help").out
    first, second = openbench("--version").out.splitlines()
    assert first == f"openbench, version {open_bench.__version__}"
    python = ".".join(map(str, sys.version_info[:3]))
    assert second.startswith(f"jax {jax.__version__}, jaxlib {version('jaxlib')}, Python {python}, ")
    assert "cpu" in second


def test_the_version_does_not_wait_for_jax() -> None:
    code = "import sys; sys.argv = ['openbench', '--version']; import atexit; from open_bench.cli.main import main; " \
           "atexit.register(lambda: print('jax' in sys.modules)); main()"  # fmt: skip
    assert run("-c", code).stdout.splitlines()[-1] == "False"


COMPLETED = {
    "bash": ({"COMP_WORDS": "openbench lead", "COMP_CWORD": "1"}, "plain,leaderboard"),
    "zsh": ({"COMP_WORDS": "openbench train adam -e cartp", "COMP_CWORD": "4"}, "plain\ncartpole\n_"),
    "fish": ({"COMP_WORDS": "openbench compare qui", "COMP_CWORD": "qui"}, "plain,quick"),
}


@pytest.mark.parametrize("shell", COMPLETED)
def test_shells_complete_commands_and_names(shell: str, openbench: OpenBench) -> None:
    assert "_OPENBENCH_COMPLETE" in openbench("completion", shell).out
    words, expected = COMPLETED[shell]
    program = str(Path(sys.executable).with_name("openbench"))
    done = run("-c", f"import sys; sys.argv = [{program!r}]; from open_bench.cli.main import main; main()",
               env={**os.environ, **words, "_OPENBENCH_COMPLETE": f"{shell}_complete"})  # fmt: skip
    assert done.stdout.splitlines()[0] == expected.splitlines()[0], done
    assert done.stdout.startswith(expected), done


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_read_what_completes_them(shell: str, openbench: OpenBench) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    script = openbench("completion", shell).out
    done = subprocess.run([program, "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


TRAINING = ("train", "compare", "meta-train", "generalize")


def names(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("command", TRAINING)
def test_commands_that_train_share_their_options(command: str) -> None:
    shared = ["--results", "--devices", "--vmap-size", "--coordinator", "--num-processes", "--process-id"]
    shared += ["--quiet", "--plain", "--dry-run", "--json", "--root-seed", "--seed"]
    assert set(shared) <= names(cli.cli.commands[command])
    if command != "generalize":  # algorithms are one of its axes
        assert "--algorithm" in names(cli.cli.commands[command])
    if command != "meta-train":  # its lifetimes keep no agents
        assert {"--save-agents", "--diagnose", "--num-seeds", "--seeds"} <= names(cli.cli.commands[command])


def test_every_option_and_command_has_a_help() -> None:
    def check(command: click.Command) -> None:
        assert command.help, command.name
        for option in command.params:
            assert isinstance(option, click.Argument) or option.help, (command.name, option.name)
        for below in getattr(command, "commands", {}).values():
            check(below)

    check(cli.cli)


def test_what_click_refuses(openbench: OpenBench) -> None:
    for arguments in (
        ["train", "adam"],
        ["train", "adam", "-e", "cartpole", "--seeds", "many"],
        ["list", "x"],
        ["trai"],
    ):
        answer = openbench(*arguments)
        assert answer.code == 2
        assert "Error: " in answer.err
        assert "Traceback" not in answer.err


@pytest.mark.slow
def test_the_program_itself_exits_with_2() -> None:
    """What the other tests check inside this process holds for the installed command, and for the module."""
    program = str(Path(sys.executable).with_name("openbench"))
    for command in ([program], [sys.executable, "-m", "open_bench"]):
        done = subprocess.run([*command, "compare", "quik"], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: unknown study 'quik'. Did you mean quick?")
        assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_file_that_is_called_like_a_package_is_not_run(tmp_path: Path) -> None:
    """A folder of results may come from anywhere, and reading it runs no code from it."""
    for name in ("numpy.py", "pandas.py", "jax.py", "rich.py"):
        (tmp_path / name).write_text("import pathlib\npathlib.Path(__file__).with_name('was_imported').touch()\n")
    program = str(Path(sys.executable).with_name("openbench"))
    done = subprocess.run([program, "leaderboard", "--results", "."], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"no stored runs" in done.stderr
    assert not (tmp_path / "was_imported").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", [["train", "adam", "-e", "cartpole"], ["doctor"]])
def test_a_platform_that_is_not_there_is_no_traceback(command: list[str], tmp_path: Path) -> None:
    done = run("-m", "open_bench", *command, cwd=tmp_path, env={**os.environ, "JAX_PLATFORMS": "nosuch"})
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if command == ["doctor"] else 2)
    assert "JAX_PLATFORMS" in done.stdout + done.stderr


# --- a hostile surrounding ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["list", "algorithms"], ["list", "environments"], ["-h"], ["compare", "quik—"]])
def test_a_stream_of_ascii_gets_what_it_can_show(arguments: list[str]) -> None:
    done = run("-m", "open_bench", *arguments, env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if arguments[0] == "compare" else 0)
    assert (done.stdout + done.stderr).isascii()
    if arguments == ["list", "algorithms"]:
        assert "epsilon-greedy rollouts, lambda-returns" in done.stdout


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.rmdir(os.getcwd()); sys.argv = ['openbench', 'list', 'optimizers']; "
        "from open_bench.cli.main import main; main()"
    )
    gone = tmp_path / "gone"
    gone.mkdir()
    done = run("-P", "-c", code, cwd=gone, env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the folder that this was started in does not exist any more")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_reader_that_has_seen_enough() -> None:
    process = subprocess_of("list", "environments", "--json")
    assert process.stdout is not None
    process.stdout.close()
    process.wait(timeout=60)
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [["train", "adma", "-e", "cartpole"], ["list", "studies"]])
def test_a_log_on_a_full_disk_leaves_the_exit_code(arguments: list[str], tmp_path: Path) -> None:
    """The error can't be read, or what was asked for; it is no success, and no traceback of another kind."""
    code = "import sys; from open_bench.cli.main import main; sys.argv[0] = 'openbench'; main()"
    with open("/dev/full", "wb") as full:
        found = subprocess.run(
            [sys.executable, "-c", code, *arguments], stdout=full, stderr=full, cwd=tmp_path, timeout=120
        )
    assert found.returncode == cli.EXIT_USER_ERROR


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."),
        jax.errors.JaxRuntimeError("INTERNAL: Error dispatching computation: Out of memory allocating 4 bytes."),
    ],
    ids=["Python", "GPU", "CPU"],
)
def test_out_of_memory_says_what_to_do(error: Exception, openbench: OpenBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(**_: Any) -> None:
        raise error

    monkeypatch.setattr("open_bench.api.train", train)
    answer = openbench("train", "adam", "-e", "cartpole")
    assert answer.code == 2
    assert answer.err.startswith("error: out of memory. Make the agents smaller (--set hidden=")
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_is_named(number: int, openbench: OpenBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(**_: Any) -> None:
        raise OSError(number, os.strerror(number), "results/scores.csv")

    monkeypatch.setattr("open_bench.api.train", train)
    answer = openbench("train", "adam", "-e", "cartpole")
    assert answer.code == 2
    assert answer.err.startswith(f"error: results/scores.csv: {os.strerror(number)}. What is stored is whole")
    assert answer.err.count("\n") == 1


def test_other_errors_keep_their_traceback(openbench: OpenBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(**_: Any) -> None:
        raise RuntimeError("Out of memory of a library's own")

    monkeypatch.setattr("open_bench.api.train", train)
    with pytest.raises(RuntimeError, match="library's own"):
        openbench("train", "adam", "-e", "cartpole")


@pytest.mark.slow
def test_an_interrupt_before_anything_is_stored_says_so(tmp_path: Path) -> None:
    settings = ["--set=num_steps=8", "--set=update_epochs=1", "--set=num_minibatches=2", "--set=hidden=[8]"]
    process = subprocess_of(
        "meta-train", "open", "-e", "cartpole", "--steps", 4 * 8 * 20_000, "--population", 512, *settings, "--plain",
        "--devices", 1, "--results", tmp_path, env={"OPEN_BENCH_WEIGHTS": str(tmp_path / "weights")},
    )  # fmt: skip
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "cartpole · ppo: " in line and "generation 1/" in line:  # lifetimes are under way
            break
    assert "θ has 1,211 numbers" in seen[0] + seen[1]
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130, seen
    assert "Interrupted before the first generation ended: nothing is stored yet." in err
    assert "Traceback" not in err


def test_an_interrupt_elsewhere(openbench: OpenBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaderboard(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("open_bench.api.leaderboard", leaderboard)
    answer = openbench("leaderboard")
    assert answer.code == 130
    assert answer.err.strip() == "Interrupted."


def test_settings_of_optimizers_are_pointed_to_their_names(openbench: OpenBench, tmp_path: Path) -> None:
    answer = openbench("train", "adam", "-e", "cartpole", "--set", "learning_rate=3", "--results", tmp_path / "x")
    assert answer.code == 2
    assert "adam:learning_rate=3" in answer.err
    assert answer.err.count("\n") == 1


def test_nearest_characters() -> None:
    error = UnicodeEncodeError("ascii", "θ é 囲 …", 0, 7, "")
    assert console._nearest(error) == ("theta e ? ...", 7)


# --- the package ----------------------------------------------------------------------------------------------------


def test_the_package_shows_its_public_names_alone() -> None:
    shown = {name for name in dir(open_bench) if not name.startswith("__")}
    assert shown == set(open_bench.__all__)
    assert {"train", "compare", "Execution"} <= shown
    assert all(getattr(open_bench, name).__doc__ for name in shown)
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        open_bench.trane  # noqa: B018


@pytest.mark.slow
def test_the_version_and_help_are_there() -> None:
    done = run("-c", "import open_bench, sys; print(open_bench.__version__, 'pydantic' in sys.modules)")
    assert done.stdout.split() == [open_bench.__version__, "False"]
    done = run("-c", "import open_bench; help(open_bench); help(open_bench.train)")
    assert done.returncode == 0, done.stderr
    assert "Train one optimizer on one environment" in done.stdout


def test_types_travel_with_the_package() -> None:
    assert (Path(open_bench.__file__).parent / "py.typed").is_file()


def test_the_end_does_not_wait_for_a_program_that_nobody_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_bench.cli import main as cli
    from open_bench.experiments.programs import Ahead, compiling_ahead

    left: list[int] = []
    compiled = threading.Event()
    monkeypatch.setattr(cli, "answer", lambda: sys.exit(130))
    monkeypatch.setattr(os, "_exit", left.append)
    with Ahead() as ahead:
        ahead.begin(lambda: compiled.wait() and None)
        with pytest.raises(SystemExit):
            cli.main()
        assert left == [130]
        compiled.set()
        ahead.wait()
    for thread in threading.enumerate():
        if thread.name.startswith("compile ahead"):
            thread.join()
    assert not compiling_ahead()
    with pytest.raises(SystemExit):
        cli.main()
    assert left == [130]
