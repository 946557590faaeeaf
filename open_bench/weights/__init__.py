"""θ on disk: one safe file format, readers of published formats, a local library and a verified download.

Nothing here unpickles anything, and nothing touches the network except ``fetch_velo`` when it is called.
"""

from open_bench.weights.fetch import VELO_BYTES, VELO_URL, fetch_velo
from open_bench.weights.format import (
    Weights,
    WeightsError,
    content_hash,
    flatten,
    load_weights,
    save_weights,
    unflatten,
    validate,
)
from open_bench.weights.importers import export, import_file, inspect
from open_bench.weights.library import (
    SUFFIXES,
    Listed,
    check_can_keep,
    find,
    kept,
    library_dir,
    list_weights,
    load_reference,
    locate,
    save_named,
    search_path,
    validate_name,
)

__all__ = [
    "SUFFIXES",
    "VELO_BYTES",
    "VELO_URL",
    "Listed",
    "Weights",
    "WeightsError",
    "check_can_keep",
    "content_hash",
    "export",
    "fetch_velo",
    "find",
    "flatten",
    "import_file",
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
    "validate",
    "validate_name",
]
