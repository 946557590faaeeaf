"""Calling the command line: what it answers, and a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """Exit code and both streams."""

    code: int
    out: str
    err: str


OpenBench = Callable[..., Answer]  # openbench("train", "adam", …)


def subprocess_of(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """``openbench`` in a process of its own, that Ctrl-C reaches."""
    # A shell that starts tests in the background has SIGINT ignored, and children inherit that.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "sys.argv[0] = 'openbench'; from open_bench.cli.main import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **options.pop("env", {})},
        **options,
    )


def check_refused(answer: Answer, message: str, folder: Path) -> None:
    """Code 2, one line on stderr that says what is wrong, and nothing trained."""
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert answer.err.endswith("\n")
    assert message in answer.err
    assert "Traceback" not in answer.err
    assert not folder.exists()
