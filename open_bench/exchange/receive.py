"""Results received from others. Reading what a stranger sends runs no code of it.

Folders merge experiment by experiment and seed by seed: a seed that is there already with the same numbers counts once,
and with other numbers it is a conflict, which is named. Trials of tuning merge likewise. Nothing is written unless
everything is sound.
"""

import contextlib
import json
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import pandas as pd
from safetensors import SafetensorError

from open_bench.config import PROTOCOL_VERSION
from open_bench.errors import UserError
from open_bench.exchange import trials
from open_bench.exchange.archive import unpack
from open_bench.exchange.merge import Incoming, merged, refusal, seeds_in, write
from open_bench.experiments.session import STUDY_FILE, checked_aliases
from open_bench.experiments.store import EXPERIMENTS, Damaged, Shard, Store, Stored
from open_bench.files import TEMPORARY, read_json, write_atomically
from open_bench.tuning.trials import FOLDER

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def import_results(*sources: str | Path, results: str | Path = "results") -> pd.DataFrame:
    """Merge archives of ``export`` and results folders into one folder: everything, or nothing where a part is unsound.

    Nothing in them is run. Killed at any moment, the same call goes on.

    Returns:
        A row a source and experiment: source, experiment, environment, optimizer, ``added`` and ``known`` seeds. For
        trials of tuning too, where ``counted`` is "lifetime" in place of "seed".

    Raises:
        UserError: naming what is damaged, follows another protocol or conflicts; then nothing was written.
    """
    if not sources:
        raise UserError("nothing to import: name archives or results folders")
    store, tuning = Store(results), Store(results, FOLDER)
    store.check_writable()
    with _unpacked([Path(source) for source in sources], store.results) as folders:
        experiments, tuned = _read(folders, store)
        problems = [problem for name, group in experiments.items() for problem in merged(store, name, group).conflicts]
        problems += [problem for group in tuned.values() for problem in trials.gain(tuning, group).conflicts]
        if problems:
            raise refusal(problems)
        rows = [row for name, group in experiments.items() for row in write(store, name, group)]
        rows += [row for group in tuned.values() for row in trials.write(tuning, group)]
        _write_study(store, list(filter(None, map(_study, folders.values()))))
    return pd.DataFrame(rows).sort_values(["source", "counted", "experiment"], ascending=[True, False, True],
                                          ignore_index=True)  # fmt: skip


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


_Groups = tuple[dict[str, list[Incoming]], dict[str, list[tuple[str, trials.Stored]]]]


def _read(folders: dict[str, Path], store: Store) -> _Groups:
    """Every experiment and all trials by name, from each source that has them; raises UserError."""
    experiments: dict[str, list[Incoming]] = {}
    tuned: dict[str, list[tuple[str, trials.Stored]]] = {}
    problems: list[str] = []
    for source, folder in folders.items():
        theirs = Store(folder)
        theirs.refuse_version_1()
        if folder.resolve() == store.results.resolve():
            raise UserError(f"{source} is the folder that is imported into")
        searched = trials.paths(Store(folder, FOLDER))
        if not theirs.names() and not searched:
            raise UserError(f"{source} holds no runs (no experiments below {EXPERIMENTS}/)")
        for name in theirs.names():
            with _told(problems, folder, source):
                experiments.setdefault(name, []).append(Incoming(source, _sound(theirs, name)))
        for path in searched:
            with _told(problems, folder, source):
                tuned.setdefault(path.name, []).append((source, _sound_trials(path)))
    if problems:
        raise refusal([f"{problem} (remove it from the source, or get it again)" for problem in problems])
    return dict(sorted(experiments.items())), dict(sorted(tuned.items()))


@contextlib.contextmanager
def _told(problems: list[str], folder: Path, source: str) -> Iterator[None]:
    """What is unsound in a folder is added to the problems, under its source's name."""
    try:
        yield
    except (Damaged, UserError) as problem:
        problems.append(str(problem).replace(str(folder), source))


def _sound(store: Store, name: str) -> Stored:
    """An experiment of somebody else's; raises Damaged or UserError for anything that is not as it must be."""
    _check_plain(store.experiments / name)
    stored = store.read(name)
    if stored.damaged:
        raise Damaged(stored.damaged[0])
    if not stored.shards:
        raise Damaged(f"{stored.path} holds no seeds")
    for shard in stored.shards:
        _check_files(shard)
    _check_identity(stored.path, stored.content["identity"])
    return stored


def _sound_trials(path: Path) -> trials.Stored:
    """The same for trials of tuning."""
    _check_plain(path)
    stored = trials.read(path)
    _check_identity(path, stored.identity)
    return stored


def _check_plain(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        kind = path.lstat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise Damaged(f"{path} is neither a file nor a folder, but a link or a device")


def _check_identity(path: Path, identity: dict[str, Any]) -> None:
    if identity.get("protocol") != PROTOCOL_VERSION:
        raise UserError(f"{path} follows protocol {identity.get('protocol')}, and this is {PROTOCOL_VERSION}")
    if not _WORD.fullmatch(identity["budget"]) or not _WORD.match(identity["environment"]):
        raise Damaged(f"{path}: environment or budget has no name that open-bench gives")


def _check_files(shard: Shard) -> None:
    """Raise Damaged where a shard's further files (saved agents, further tables) have no seeds, or other ones than its
    scores, of which an overlapping shard may count some already."""
    for file in shard.provenance["files"].keys() - {"scores.csv", "curves.csv"}:
        try:
            if seeds_in(shard.path / file) - seeds_in(shard.path / "scores.csv"):
                raise ValueError("it has other seeds than the scores")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise Damaged(f"{shard.path}: {file}: {error}") from None


# --- which study the runs are of --------------------------------------------------------------------------------------


def _study(folder: Path) -> dict[str, Any] | None:
    """The study that a folder tells of; None where it tells of none, or of one that has no proper name."""
    try:
        content = read_json(folder / STUDY_FILE)
        study = {"study": content["study"], "joined": bool(content["joined"]),
                 "experiments": sorted(map(str, content["experiments"])),
                 "aliases": checked_aliases(content.get("aliases"))}  # fmt: skip
        return study if _WORD.fullmatch(study["study"]) else None
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


def _write_study(store: Store, studies: Sequence[dict[str, Any]]) -> None:
    """Where all are parts of one study, its board is named after it, as if it had been run in one folder."""
    mine = _study(store.results)
    if not studies or (not mine and {*store.names()} - {name for each in studies for name in each["experiments"]}):
        return
    both = [*([mine] if mine else []), *studies]
    if len({(each["study"], each["joined"]) for each in both}) == 1:
        names = sorted({name for each in both for name in each["experiments"]} & {*store.names()})
        content = {"study": both[0]["study"], "experiments": names, "joined": both[0]["joined"]}
        aliases = {name: short for each in reversed(both) for name, short in each["aliases"].items()}  # ours last
        content |= {"aliases": aliases} if aliases else {}
        write_atomically(store.results / STUDY_FILE, json.dumps(content, indent=1) + "\n")
