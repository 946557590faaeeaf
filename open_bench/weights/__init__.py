"""θ on disk: one safe file format, a local library that reads published formats too, and verified downloads.

Importing this package loads none of its parts: ``format`` lies below the optimizers, ``library`` and ``fetch`` above.
Nothing here unpickles anything, and nothing touches the network except ``fetch_weights`` when it is called.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from open_bench.weights.fetch import PUBLISHED, Published, fetch_weights
    from open_bench.weights.format import (
        Weights,
        WeightsError,
        content_hash,
        flatten,
        load_weights,
        save_weights,
        unflatten,
    )
    from open_bench.weights.library import (
        SUFFIXES,
        Listed,
        check_can_keep,
        export,
        import_file,
        import_named,
        inspect,
        kept,
        library_dir,
        list_weights,
        load_reference,
        locate,
        save_named,
        search_path,
        validate_name,
    )

_HOMES = {
    "Listed": "library",
    "PUBLISHED": "fetch",
    "Published": "fetch",
    "SUFFIXES": "library",
    "Weights": "format",
    "WeightsError": "format",
    "check_can_keep": "library",
    "content_hash": "format",
    "export": "library",
    "fetch_weights": "fetch",
    "flatten": "format",
    "import_file": "library",
    "import_named": "library",
    "inspect": "library",
    "kept": "library",
    "library_dir": "library",
    "list_weights": "library",
    "load_reference": "library",
    "load_weights": "format",
    "locate": "library",
    "save_named": "library",
    "save_weights": "format",
    "search_path": "library",
    "unflatten": "format",
    "validate_name": "library",
}
__all__ = [
    "PUBLISHED",
    "SUFFIXES",
    "Listed",
    "Published",
    "Weights",
    "WeightsError",
    "check_can_keep",
    "content_hash",
    "export",
    "fetch_weights",
    "flatten",
    "import_file",
    "import_named",
    "inspect",
    "kept",
    "library_dir",
    "list_weights",
    "load_reference",
    "load_weights",
    "locate",
    "save_named",
    "save_weights",
    "search_path",
    "unflatten",
    "validate_name",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"open_bench.weights.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'open_bench.weights' has no attribute {name!r}")
