"""Code from outside the package: ``module:attribute``, entry points of installed packages, and digests of files."""

import hashlib
import importlib
import importlib.metadata
import inspect
import sys
import traceback
from pathlib import Path
from typing import Any

from open_bench.errors import UserError, near_matches


def load_attribute(kind: str, name: str) -> Any:
    """What ``module:attribute`` names; the module is imported from anywhere on ``sys.path``.

    Args:
        kind: what it should be, for messages: "environment".
        name: ``package.module:attribute``; the attribute may be dotted.

    Raises:
        UserError: it cannot be imported, whatever the author's file raises, or has no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    value = _import(kind, name, module_name)
    for part in attribute.split("."):
        if not hasattr(value, part):
            known = [key for key in dir(value) if not key.startswith("_")]
            raise UserError(f"{kind} '{name}': no such attribute.{near_matches(part, known)}")
        value = getattr(value, part)
    return value


def _import(kind: str, name: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{kind} '{name}': cannot import {module_name}: {error}") from None
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{kind} '{name}': importing {module_name} fails with {reason}{where}") from error


def installed(group: str) -> dict[str, str]:
    """``module:attribute`` of every entry point of a group, by name."""
    return {point.name: point.value.partition(" ")[0] for point in importlib.metadata.entry_points(group=group)}


def is_importable(value: Any) -> bool:
    """Whether another process finds this class or function under its module and name."""
    found: Any = sys.modules.get(value.__module__) if value.__module__ != "__main__" else None
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def file_digest(value: Any) -> str | None:
    """Eight hexadecimal digits of the source file of a class or function, so that an edited file is told apart.

    None where no file holds all of it: a notebook's, or one that is defined inside a function.
    """
    path = getattr(sys.modules.get(value.__module__), "__file__", None)
    if "<locals>" in value.__qualname__ or path is None or not Path(path).is_file():
        return None
    members = vars(value).values() if isinstance(value, type) else [value]
    codes = [getattr(inspect.unwrap(member), "__code__", None) for member in members if callable(member)]
    sources = {code.co_filename for code in codes if code is not None} - {"<string>"}  # what dataclasses generate
    if any(Path(source).resolve() != Path(path).resolve() for source in sources):
        return None  # typed into a session that had begun with a file
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]
