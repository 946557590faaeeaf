"""Code from outside the package: ``module:attribute``, entry points of installed packages, and digests of files."""

import ast
import hashlib
import importlib
import importlib.metadata
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
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
    except (Exception, SystemExit) as error:  # whatever the author's file raises
        reason = f"{type(error).__name__}: {error}{line_of(error)}"
        raise UserError(f"{kind} '{name}': importing {module_name} fails with {reason}") from error


def line_of(error: BaseException) -> str:
    """The line of the user's own file that an exception came through last, as " (FILE, line N)"; "" if through none."""
    others = (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), str(Path(__file__).parent), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def installed(group: str) -> dict[str, str]:
    """``module:attribute`` of every entry point of a group, by name."""
    return {point.name: point.value.partition(" ")[0] for point in importlib.metadata.entry_points(group=group)}


def is_importable(value: Any) -> bool:
    """Whether another process finds this class or function under its module and name."""
    return value.__module__ != "__main__" and is_held(value)


def is_held(value: Any) -> bool:
    """Whether this process finds this class or function under its module and name."""
    found: Any = sys.modules.get(value.__module__)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def file_digest(value: Any, code: Any = None) -> str | None:
    """The digest of the source that ``place_of`` finds (``source_digest``), so that an edited file is told apart."""
    place = place_of(value, code)
    return source_digest(sys.modules[place.partition(":")[0]]) if place is not None else None


def place_of(value: Any, code: Any = None) -> str | None:
    """``module:attribute`` of a class or function that a file tells; or of a value that has one as its ``code``.

    None where no file holds all of it: a notebook's, one that was typed into a session that had begun with a file, one
    that is defined inside a function, one that goes by no name of its module.
    """
    code = value if code is None else code
    name = getattr(code, "__module__", None) or ""
    module = sys.modules.get(name)
    path = getattr(module, "__file__", None)
    if path is None or not Path(path).is_file():
        return None
    members = vars(code).values() if isinstance(code, type) else [code]
    functions = [getattr(inspect.unwrap(member), "__code__", None) for member in members if callable(member)]
    sources = {function.co_filename for function in functions if function is not None}
    sources = sources - {"<string>"} or sources  # what dataclasses generate
    if any(Path(source).resolve() != Path(path).resolve() for source in sources):
        return None
    if value is not code:
        return next((f"{name}:{key}" for key, held in vars(module).items() if held is value), None)
    return f"{name}:{value.__qualname__}" if hasattr(value, "__qualname__") and is_held(value) else None


def told_apart(values: Sequence[Any], name_of: Callable[[Any], str | None], renamed: Callable[[Any, str], Any]) -> Any:
    """The values, those of which several go by one name renamed NAME#1, NAME#2, …; None is no name to be changed."""
    names = [name_of(value) for value in values]
    alike: dict[str | None, list[int]] = {name: [] for name in names}
    for value, name in zip(values, names, strict=True):
        alike[name] += [id(value)] if id(value) not in alike[name] else []
    return tuple(
        value if name is None or len(alike[name]) == 1 else renamed(value, f"{name}#{alike[name].index(id(value)) + 1}")
        for value, name in zip(values, names, strict=True)
    )


def source_digest(module: Any) -> str | None:
    """Eight hexadecimal digits of a module's source and of the modules beside it that it imports.

    None without a file, or in a session, where anybody may have typed what its file does not hold.
    An edited file, or an edited helper, is another optimizer.
    """
    path = Path(getattr(module, "__file__", None) or "")
    if not path.is_file() or (module.__name__ == "__main__" and hasattr(sys, "ps1")):
        return None
    depth = module.__name__.count(".") + (path.name == "__init__.py")
    root = path.resolve().parents[depth]
    digest = hashlib.sha256()
    for source in sorted(_sources(path.resolve(), root, module.__name__.split(".")[0] if depth else "")):
        digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def _sources(path: Path, root: Path, package: str) -> set[Path]:
    """A file and what it imports from below ``root``: of its own package, or, outside of packages, from its folder."""
    found, waiting = {path}, [path]
    installed = root.name in ("site-packages", "dist-packages")
    while waiting:
        source = waiting.pop()
        for folder, names in _imports(source, root):
            beside = not installed or (package and names[:1] == [package]) or folder != root
            for end in range(1, len(names) + 1) if beside else ():
                stem = folder.joinpath(*names[:end])
                for file in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
                    if file.is_file() and file not in found:
                        found.add(file)
                        waiting.append(file)
    return found


def _imports(source: Path, root: Path) -> Iterator[tuple[Path, list[str]]]:
    """``(folder where the search begins, names)`` of every import in a file, those inside functions too."""
    try:
        tree = ast.parse(source.read_bytes())
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((root, alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = source.parents[node.level - 1] if node.level else root
            names = node.module.split(".") if node.module else []
            yield from ((folder, [*names, alias.name]) for alias in node.names if alias.name != "*")
            if names:
                yield folder, names
