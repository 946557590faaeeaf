"""Results sent to others and received from them. Reading what a stranger sends runs no code of it.

Folders merge experiment by experiment and seed by seed: a seed that is there already with the same numbers counts once,
and with other numbers it is a conflict, which is named. Nothing is written unless everything is sound.
"""

import contextlib
import json
import re
import shutil
import stat
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import pandas as pd
from safetensors import SafetensorError

from open_bench.config import PROTOCOL_VERSION
from open_bench.errors import UserError
from open_bench.evaluation.schema import LABELS, Runs
from open_bench.experiments.archive import SUFFIX, unpack, write_archive
from open_bench.experiments.merge import Incoming, merged, refusal, seeds_in, write
from open_bench.experiments.session import STUDY_FILE, stored_board
from open_bench.experiments.store import DESCRIPTION, EXPERIMENTS, PROVENANCE, Damaged, Shard, Store, Stored
from open_bench.files import TEMPORARY, write_atomically

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run what begins with one


# --- out --------------------------------------------------------------------------------------------------------------


def export(target: Path, results: Path, overwrite: bool = False) -> Path:
    """Write the sound runs of a folder to ``target``: an archive (.zip), or one tidy table (.csv).

    Raises:
        UserError: another suffix, nothing stored, or a file in the way.
    """
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
            write_archive(target, _members(store, runs), _facts(runs))
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


def _facts(runs: Runs) -> dict[str, Any]:
    """What a reader of the archive's manifest wants to know first."""
    each = {key: sorted(set(runs.experiments[key])) for key in ("hardware", "revision")}
    return {"experiments": len(runs.experiments), "seeds": len(runs.scores), **each}


# --- in ---------------------------------------------------------------------------------------------------------------


def import_results(sources: Sequence[Path], results: Path) -> pd.DataFrame:
    """Merge archives and results folders into one; killed at any moment, the same call goes on.

    Returns:
        A row a source and experiment: source, experiment, environment, optimizer, ``added`` and ``known`` seeds.

    Raises:
        UserError: naming what is damaged, follows another protocol or conflicts; then nothing was written.
    """
    if not sources:
        raise UserError("nothing to import: name archives or results folders")
    store = Store(results)
    store.check_writable()
    with _unpacked(sources, results) as folders:
        groups, studies = _read(folders, store)
        problems = [problem for name, group in groups.items() for problem in merged(store, name, group).conflicts]
        if problems:
            raise refusal(problems)
        rows = [row for name, group in groups.items() for row in write(store, name, group)]
        _write_study(store, studies)
    return pd.DataFrame(rows).sort_values(["source", "experiment"], ignore_index=True)


@contextlib.contextmanager
def _unpacked(sources: Sequence[Path], results: Path) -> Iterator[dict[str, Path]]:
    """A folder for each source; archives are unpacked into a temporary one below ``results``."""
    new = not results.exists()
    place = results / f"{TEMPORARY}import-{uuid.uuid4().hex}"
    folders: dict[str, Path] = {}
    with contextlib.ExitStack() as cleanup:
        for source in dict.fromkeys(sources):
            if not source.exists():
                raise UserError(f"{source}: there is no such archive or folder")
            if source.is_dir():
                folders[str(source)] = source
                continue
            if not place.exists():
                _clear_leftovers(results)
                cleanup.callback(_remove_if_empty, results) if new else None
                _make(place)
                cleanup.callback(shutil.rmtree, place, ignore_errors=True)
                cleanup.enter_context(filelock.FileLock(place / ".lock"))
            folder = place / str(len(folders))
            folder.mkdir()
            unpack(source, folder)
            folders[str(source)] = folder
        yield folders


def _make(place: Path) -> None:
    try:
        place.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write results to {place.parent}: {error.strerror or error}") from None


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _clear_leftovers(results: Path) -> None:
    """Remove what killed imports left; one that is at work holds its lock."""
    for place in results.glob(f"{TEMPORARY}import-*"):
        with contextlib.suppress(OSError, filelock.Timeout), filelock.FileLock(place / ".lock", timeout=0):
            shutil.rmtree(place, ignore_errors=True)


def _read(folders: dict[str, Path], store: Store) -> tuple[dict[str, list[Incoming]], list[dict[str, Any]]]:
    """Every experiment by name, from each source that has it, and the sources' studies; raises UserError."""
    groups: dict[str, list[Incoming]] = {}
    studies, problems = [], []
    for source, folder in folders.items():
        theirs = Store(folder)
        theirs.refuse_version_1()
        if folder.resolve() == store.results.resolve():
            raise UserError(f"{source} is the folder that is imported into")
        if not theirs.names():
            raise UserError(f"{source} holds no runs (no experiments below {EXPERIMENTS}/)")
        for name in theirs.names():
            try:
                stored = _sound(theirs, name)
            except (Damaged, UserError) as problem:
                problems.append(str(problem).replace(str(folder), source))
                continue
            groups.setdefault(name, []).append(Incoming(source, stored))
        studies += _study(folder)
    if problems:
        raise refusal([f"{problem} (remove it from the source, or get it again)" for problem in problems])
    return dict(sorted(groups.items())), studies


def _sound(store: Store, name: str) -> Stored:
    """An experiment of somebody else's; raises Damaged or UserError for anything that is not as it must be."""
    folder = store.experiments / name
    for path in [folder, *folder.rglob("*")]:
        kind = path.lstat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise Damaged(f"{path} is neither a file nor a folder, but a link or a device")
    stored = store.read(name)
    if stored.damaged:
        raise Damaged(stored.damaged[0])
    if not stored.shards:
        raise Damaged(f"{stored.path} holds no seeds")
    for shard in stored.shards:
        _check_files(shard)
    identity = stored.content["identity"]
    if identity["protocol"] != PROTOCOL_VERSION:
        raise UserError(f"{stored.path} follows protocol {identity['protocol']}, and this is {PROTOCOL_VERSION}")
    if not _WORD.fullmatch(identity["budget"]) or not _WORD.match(identity["environment"]):
        raise Damaged(f"{stored.path}: environment or budget has no name that open-bench gives")
    return stored


def _check_files(shard: Shard) -> None:
    """Raise Damaged where a shard's further files (saved agents, further tables) have no seeds, or other ones."""
    for file in shard.provenance["files"].keys() - {"scores.csv", "curves.csv"}:
        try:
            if seeds_in(shard.path / file) - {*shard.scores["seed"]}:
                raise ValueError("it has other seeds than the scores")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise Damaged(f"{shard.path}: {file}: {error}") from None


# --- which study the runs are of --------------------------------------------------------------------------------------


def _study(folder: Path) -> list[dict[str, Any]]:
    """The study that a folder tells of; nothing where it tells of none, or of one that has no proper name."""
    try:
        content = json.loads((folder / STUDY_FILE).read_text(encoding="utf-8"))
        study = {"study": content["study"], "joined": bool(content["joined"]),
                 "experiments": sorted(map(str, content["experiments"]))}  # fmt: skip
        return [study] if _WORD.fullmatch(study["study"]) else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _write_study(store: Store, studies: Sequence[dict[str, Any]]) -> None:
    """Where all are parts of one study, its board is named after it, as if it had been run in one folder."""
    mine = _study(store.results)
    if not studies or (not mine and {*store.names()} - {name for each in studies for name in each["experiments"]}):
        return
    both = [*mine, *studies]
    if len({(each["study"], each["joined"]) for each in both}) == 1:
        names = sorted({name for each in both for name in each["experiments"]} & {*store.names()})
        content = {"study": both[0]["study"], "experiments": names, "joined": both[0]["joined"]}
        write_atomically(store.results / STUDY_FILE, json.dumps(content, indent=1) + "\n")
