"""Where commands print: tables and results on stdout, everything else on stderr."""

import codecs
import io
import json
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

OUT = Console()
ERR = Console(stderr=True)
UNBOUNDED = 100_000  # columns of what is no terminal: nothing wraps in a pipe
_PLAIN = {"·": "-", "–": "-", "—": "-", "−": "-", "→": "->", "×": "x", "±": "+-", "θ": "theta", "σ": "sigma",
          "λ": "lambda", "ε": "epsilon", "≥": ">=", "≤": "<=", "█": "#", "░": ".", "━": "=", "…": "..."}  # fmt: skip


def width() -> int:
    """Columns there are for a table."""
    return OUT.width if OUT.is_terminal else UNBOUNDED


def show(renderable: Any) -> None:
    """Print a table, or whatever rich can draw; in a pipe each row is one line, without blanks at its end."""
    if OUT.is_terminal:
        OUT.print(renderable)
        return
    drawn = Console(file=io.StringIO(), width=UNBOUNDED, color_system=None)
    drawn.print(renderable)
    say("\n".join(line.rstrip() for line in drawn.file.getvalue().rstrip("\n").split("\n")))  # type: ignore[attr-defined]


def say(text: str) -> None:
    """Print text as it is."""
    OUT.print(text, markup=False, highlight=False, soft_wrap=True)


def show_json(value: Any) -> None:
    """Print a value for programs; numbers that are none become null."""
    say(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def records(frame: Any) -> list[dict[str, Any]]:
    """A data frame as JSON values, a row each."""
    found: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return found


def complain(kind: str, text: str) -> None:
    """Print an error or a warning in one line on stderr."""
    style = {"error": "bold red", "warning": "yellow"}[kind]
    ERR.print(f"[{style}]{kind}:[/] {escape(text)}", highlight=False, soft_wrap=True)


@contextmanager
def download_bars() -> Iterator[Any]:
    """A callback (file, bytes done, bytes in all or None) that draws a bar a file in a terminal."""
    from rich.progress import Progress

    with Progress(console=ERR, transient=True, disable=not ERR.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def update(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file)
            bars.update(tasks[file], completed=done, total=total)

        yield update


def make_streams_robust() -> None:
    """A terminal or a pipe that cannot show a character gets one that is near it."""
    codecs.register_error("open-bench", _nearest)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="open-bench")


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    shown = []
    for character in error.object[error.start : error.end]:
        plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
        shown.append(_PLAIN.get(character) or plain or "?")
    return "".join(shown), error.end
