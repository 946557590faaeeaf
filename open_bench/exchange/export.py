"""Results sent to others: one archive with everything, or one tidy table."""

import warnings
from pathlib import Path
from typing import Any

from open_bench.errors import UserError
from open_bench.evaluation.schema import LABELS, Runs
from open_bench.exchange import trials
from open_bench.exchange.archive import SUFFIX, write_archive
from open_bench.experiments.session import STUDY_FILE, stored_board
from open_bench.experiments.store import DESCRIPTION, EXPERIMENTS, PROVENANCE, Damaged, Store
from open_bench.files import write_atomically
from open_bench.tuning.trials import FOLDER

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run what begins with one


def export(target: str | Path, results: str | Path = "results", overwrite: bool = False) -> Path:
    """Write a folder's sound runs to one file: an archive to send (.zip), or a tidy table with a row a seed (.csv).

    Raises:
        UserError: another suffix, nothing stored, or a file in the way.
    """
    target = Path(target)
    if target.suffix not in (SUFFIX, ".csv"):
        raise UserError(f"{target}: end it in {SUFFIX} for an archive, or in .csv for a table with a row a seed")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists: name another file, or pass --overwrite")
    store = Store(results)
    store.check_there()
    runs = store.load()
    if runs.scores.empty:
        raise UserError(f"{results}: no stored runs, so there is nothing to export")
    try:
        if target.suffix == SUFFIX:
            write_archive(target, {**_members(store, runs), **_trials(store)}, _facts(runs))
        else:
            write_atomically(target, tidy(runs))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
    return target


def tidy(runs: Runs) -> str:
    """One table as CSV: a row a seed with its metrics and all that is known of its experiment, in a fixed order."""
    metrics = list(runs.metrics)
    own = ["diverged", "env_steps", *(name for name in metrics if name in runs.scores)]
    more = [name for name in runs.experiments if name not in (*LABELS, *own, "metrics")]
    table = runs.scores.merge(runs.experiments[["experiment", *more]], on="experiment")
    table = table.sort_values([*LABELS[1:], "experiment", "seed"])[[*LABELS, "seed", *own, *more]]
    texts = table.select_dtypes("object").columns
    table[texts] = table[texts].map(lambda text: f"'{text}" if str(text).startswith(_FORMULA) else text)
    return table.to_csv(index=False, lineterminator="\n")


def _members(store: Store, runs: Runs) -> dict[str, Path | bytes]:
    members: dict[str, Path | bytes] = {"runs.csv": tidy(runs).encode()}
    try:
        board = stored_board(store.results, runs)
        members |= {"leaderboard.csv": board.to_csv().encode(), "leaderboard.md": board.to_markdown().encode()}
    except UserError as error:
        warnings.warn(f"the archive has no leaderboard: {error}", stacklevel=4)
    if (store.results / STUDY_FILE).is_file():
        members[STUDY_FILE] = store.results / STUDY_FILE
    for name in sorted(runs.experiments["experiment"]):
        stored, folder = store.read(name), f"{EXPERIMENTS}/{name}"
        members[f"{folder}/{DESCRIPTION}"] = stored.path / DESCRIPTION
        for shard in stored.shards:
            for file in (PROVENANCE, *shard.provenance["files"]):
                members[f"{folder}/{shard.path.name}/{file}"] = shard.path / file
    return members


def _trials(store: Store) -> dict[str, Path | bytes]:
    members: dict[str, Path | bytes] = {}
    for path in trials.paths(Store(store.results, FOLDER)):
        try:
            trials.read(path)
        except Damaged as problem:
            warnings.warn(f"left out {problem}", stacklevel=4)
            continue
        # Somebody may be at it: curves are written before rows, so what is read after the rows has them.
        there = [file for file in trials.FILES if (path / file).is_file()]
        members |= {f"{FOLDER}/{path.name}/{file}": (path / file).read_bytes() for file in there}
    return members


def _facts(runs: Runs) -> dict[str, Any]:
    """What a reader of the archive's manifest wants to know first."""
    each = {key: sorted(set(runs.experiments[key])) for key in ("hardware", "revision")}
    return {"experiments": len(runs.experiments), "seeds": len(runs.scores), **each}
