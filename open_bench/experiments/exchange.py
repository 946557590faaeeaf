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
from typing import Any, NamedTuple

import filelock
import pandas as pd
import safetensors.numpy

from open_bench.config import PROTOCOL_VERSION
from open_bench.errors import UserError
from open_bench.evaluation.schema import LABELS, Runs
from open_bench.experiments.agents import AGENTS
from open_bench.experiments.archive import SUFFIX, unpack, write_archive
from open_bench.experiments.session import STUDY_FILE, stored_board
from open_bench.experiments.store import DESCRIPTION, EXPERIMENTS, PROVENANCE, Damaged, Shard, Store, Stored, new_shard
from open_bench.files import TEMPORARY, write_atomically
from open_bench.text import listed

_FREE = ("theta_source",)  # of a description: for people, so that it may differ
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


class _Incoming(NamedTuple):
    """One experiment of one source."""

    source: str
    stored: Stored


class _Merge(NamedTuple):
    """What an experiment gains."""

    content: dict[str, Any]
    added: list[tuple[str, Shard, list[int]]]  # source, shard, and those of its seeds that are new
    known: dict[str, int]  # by source: how many seeds are there already
    conflicts: list[str]


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
        problems = [problem for name, group in groups.items() for problem in _merged(store, name, group).conflicts]
        if problems:
            raise _refusal(problems)
        rows = [row for name, group in groups.items() for row in _write(store, name, group)]
        _write_study(store, studies)
    return pd.DataFrame(rows).sort_values(["source", "experiment"], ignore_index=True)


def _refusal(problems: list[str]) -> UserError:
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return UserError(f"nothing was imported: {'; '.join(problems[:3])}{more}")


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


def _read(folders: dict[str, Path], store: Store) -> tuple[dict[str, list[_Incoming]], list[dict[str, Any]]]:
    """Every experiment by name, from each source that has it, and the sources' studies; raises UserError."""
    groups: dict[str, list[_Incoming]] = {}
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
            groups.setdefault(name, []).append(_Incoming(source, stored))
        studies += _study(folder)
    if problems:
        raise _refusal([f"{problem} (remove it from the source, or get it again)" for problem in problems])
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
    identity = stored.content["identity"]
    if identity["protocol"] != PROTOCOL_VERSION:
        raise UserError(f"{stored.path} follows protocol {identity['protocol']}, and this is {PROTOCOL_VERSION}")
    if not _WORD.fullmatch(identity["budget"]) or not _WORD.match(identity["environment"]):
        raise Damaged(f"{stored.path}: environment or budget has no name that open-bench gives")
    return stored


def _merged(store: Store, name: str, group: Sequence[_Incoming]) -> _Merge:
    """What the store's experiment gains from others of its name. Hold the lock to be sure of it."""
    try:
        mine: Stored | None = store.read(name)
    except Damaged:  # as training does, a damaged folder is set aside
        mine = None
    content = mine.content if mine is not None else group[0].stored.content
    at = str(store.experiments / name) if mine is not None else group[0].source
    there = [(at, shard) for shard in (mine.shards if mine is not None else [])]
    merge = _Merge(content, [], {}, [])
    for source, stored in group:
        differing = [
            key for key in {*content, *stored.content} - {*_FREE} if content.get(key) != stored.content.get(key)
        ]
        if differing:
            merge.conflicts.append(f"{name} has another {', '.join(sorted(differing))} in {source} than in {at}")
            continue
        for shard in stored.shards:
            new = _new_seeds(name, source, shard, there, merge)
            if new:
                merge.added.append((source, shard, new))
                there.append((source, shard))
    return merge


def _new_seeds(name: str, source: str, shard: Shard, there: Sequence[tuple[str, Shard]], merge: _Merge) -> list[int]:
    """Those of a shard's seeds that are not there yet; those that are must have the same rows."""
    left = [int(seed) for seed in shard.scores["seed"]]
    for origin, other in there:
        common = sorted({*left} & {*map(int, other.scores["seed"])})
        differing = [seed for seed in common if _text(shard, seed) != _text(other, seed)]
        if differing:
            seeds = listed([str(seed) for seed in differing])
            merge.conflicts.append(
                f"{name}: seed {seeds} has other numbers in {source} than in {origin}: `openbench verify` says which "
                "are right; keep one, or import into another folder"
            )
        merge.known[source] = merge.known.get(source, 0) + len(common)
        left = [seed for seed in left if seed not in common]
    return left


def _text(shard: Shard, seed: int) -> str:
    """A seed's rows, in which NaN equals NaN."""
    return "".join(frame[frame["seed"] == seed].to_csv(index=False) for frame in (shard.scores, shard.curves))


def _write(store: Store, name: str, group: Sequence[_Incoming]) -> Iterator[dict[str, Any]]:
    """Add what is new, and say what was."""
    with store.lock(name, wait=True):
        merge = _merged(store, name, group)  # again: somebody may have trained meanwhile
        if merge.conflicts:
            raise _refusal(merge.conflicts)
        if merge.added:
            path = store.create_described(merge.content)
            for _, shard, seeds in merge.added:
                _add(path, shard, seeds)
    told = {key: merge.content["identity"][key] for key in ("environment", "optimizer")}
    for source, _ in group:
        added = sum(len(seeds) for at, _, seeds in merge.added if at == source)
        yield {"source": source, "experiment": name, **told, "added": added, "known": merge.known.get(source, 0)}


def _add(experiment: Path, shard: Shard, seeds: list[int]) -> None:
    """Copy a shard; of one that overlaps others only what is new."""
    provenance = dict(shard.provenance)
    files = provenance.pop("files")
    stored = len(pd.read_csv(shard.path / "scores.csv", usecols=["seed"]))
    if len(seeds) < stored:
        share = len(seeds) / stored
        provenance |= {"seeds": seeds, "env_steps": round(provenance["env_steps"] * share),
                       "run_seconds": provenance["run_seconds"] * share}  # fmt: skip
    with new_shard(experiment, seeds, provenance) as folder:
        for file in files:
            if len(seeds) == stored:
                shutil.copyfile(shard.path / file, folder / file)
            else:
                _cut(shard.path / file, folder / file, seeds)


def _cut(file: Path, target: Path, seeds: list[int]) -> None:
    """A shard's file with some of its seeds."""
    if file.name == AGENTS:
        arrays = safetensors.numpy.load_file(file)
        kept = {name: array for name, array in arrays.items() if int(name.partition("/")[0]) in seeds}
        safetensors.numpy.save_file(kept, target)
        return
    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    frame[frame["seed"].astype(int).isin(seeds)].to_csv(target, index=False, lineterminator="\n")


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
