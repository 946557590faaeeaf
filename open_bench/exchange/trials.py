"""Trials of tuning in an exchange: they merge trial by trial and seed by seed, as experiments do seed by seed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from open_bench.evaluation.schema import TRIAL_CURVES, TRIALS, BadRows, check_trials
from open_bench.evaluation.trials import labeled
from open_bench.exchange.merge import refusal
from open_bench.experiments.experiment import folder_name
from open_bench.experiments.store import UNREADABLE, Damaged, Store
from open_bench.files import read_json, write_atomically
from open_bench.text import listed
from open_bench.tuning import trials
from open_bench.tuning.trials import KEYS

FILES = (trials.DESCRIPTION, trials.TRIALS, trials.CURVES, trials.PROVENANCE)


class Stored(NamedTuple):
    """One folder of trials, read."""

    path: Path
    identity: dict[str, Any]
    rows: pd.DataFrame
    curves: pd.DataFrame

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


class Gain(NamedTuple):
    """What trials gain: by source the new lifetimes (trial, seed) and how many are there already; conflicts."""

    added: dict[str, list[tuple[int, int]]]
    known: dict[str, int]
    conflicts: list[str]


def paths(store: Store) -> list[Path]:
    """Folders of trials below a store of ``tuning``, sorted."""
    return sorted(path.parent for path in store.experiments.glob(f"[!.]*/{trials.DESCRIPTION}"))


def read(path: Path) -> Stored:
    """A folder of trials that is as tuning leaves it; raises Damaged."""
    try:
        identity = read_json(path / trials.DESCRIPTION)["identity"]
        name, rows, curves = folder_name(identity), trials.read_rows(path), trials.read_curves(path)
        check_trials(labeled(rows, name, identity))
    except (BadRows, *UNREADABLE) as error:
        raise Damaged(f"{path}: no readable trials ({type(error).__name__}: {error})") from None
    if name != path.name:
        raise Damaged(f"{path}: its {trials.DESCRIPTION} describes {name}")
    if rows.empty or not {*_pairs(curves)} <= {*_pairs(rows)}:
        raise Damaged(f"{path}: it has no trials, or curves of others")
    return Stored(path, identity, rows, curves)


def gain(store: Store, group: Sequence[tuple[str, Stored]]) -> Gain:
    """What the store's trials gain from others of their name. Hold the lock to be sure of it."""
    path = store.path(group[0][1])
    try:
        there = [(str(path), _texts(read(path)))]
    except Damaged:  # as tuning does, what is damaged is set aside
        there = []
    found = Gain({}, {}, [])
    for source, stored in group:
        texts = _texts(stored)
        left = {*texts}
        for origin, others in there:
            common = sorted(left & others.keys())
            differing = [key for key in common if texts[key] != others[key]]
            if differing:
                shown = listed([f"{trial} (seed {seed})" for trial, seed in differing])
                found.conflicts.append(f"{stored.name}: trial {shown} has other numbers in {source} than in {origin}")
            found.known[source] = found.known.get(source, 0) + len(common)
            left -= {*common}
        found.added[source] = sorted(left)
        there.append((source, texts))
    return found


def write(store: Store, group: Sequence[tuple[str, Stored]]) -> Iterator[dict[str, Any]]:
    """Add what is new, and say what was."""
    first = group[0][1]
    path = store.path(first)
    with store.lock(first, wait=True):
        found = gain(store, group)  # again: somebody may have tuned meanwhile
        if found.conflicts:
            raise refusal(found.conflicts)
        trials.set_damaged_aside(path)
        write_atomically(path / trials.DESCRIPTION, (first.path / trials.DESCRIPTION).read_bytes())
        for source, stored in group:
            _add(path, stored, found.added[source])
    for source, stored in group:
        told = {key: stored.identity[key] for key in ("environment", "optimizer")}
        yield {"source": source, "experiment": stored.name, **told, "counted": "lifetime",
               "added": len(found.added[source]), "known": found.known.get(source, 0)}  # fmt: skip


def _add(path: Path, stored: Stored, pairs: list[tuple[int, int]]) -> None:
    """The curves first: a lifetime is there once its row is."""
    before = trials.read_provenance(path)
    new = [each for each in trials.read_provenance(stored.path) if each not in before]
    if not pairs:
        return
    trials.write_provenance(path, [*before, *new])
    rows, curves = (frame[[pair in {*pairs} for pair in _pairs(frame)]] for frame in (stored.rows, stored.curves))
    trials.write_joined(path / trials.CURVES, trials.read_curves(path), curves, [*KEYS, "env_steps"], TRIAL_CURVES)
    trials.write_joined(path / trials.TRIALS, trials.read_rows(path), rows, KEYS, TRIALS)


def _pairs(frame: pd.DataFrame) -> Iterator[tuple[int, int]]:
    return zip(frame["trial"].tolist(), frame["seed"].tolist(), strict=True)


def _texts(stored: Stored) -> dict[tuple[int, int], str]:
    """Row and curve of each trial and seed as text, in which NaN equals NaN."""
    found: dict[tuple[int, int], str] = {}
    for frame in (stored.rows, stored.curves):
        for pair, mine in frame.groupby(KEYS):
            trial, seed = pair
            found[trial, seed] = found.get((trial, seed), "") + mine.to_csv(index=False)
    return found
