"""The errors that a user can mend; the command line prints them without a traceback and exits with 2."""

from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Something the user asked for cannot be done; the message says what, where and what to do."""


def near_matches(word: str, known: Iterable[str]) -> str:
    """' Did you mean a, b?' for a misspelt word, or '' when nothing is close."""
    import difflib

    close = difflib.get_close_matches(word, list(known), cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else ""


def check_known(kind: str, name: Any, known: Iterable[str]) -> None:
    """Raise UserError, with near matches, for a ``name`` that is none of those known."""
    names = list(known)
    if name not in names:
        raise UserError(f"unknown {kind} '{name}'.{near_matches(str(name), names)} Known: {', '.join(names)}")


def installed_with(extra: str) -> str:
    """What brings an extra of this package: ``pip install ".[ray]" in a clone of open-bench``."""
    return f'pip install ".[{extra}]" in a clone of open-bench'
