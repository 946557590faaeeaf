"""One experiment from several folders: seed by seed, equal ones once, and conflicts named."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import safetensors
import safetensors.numpy

from open_bench.errors import UserError
from open_bench.evaluation.schema import ABSENT
from open_bench.experiments.agents import AGENTS
from open_bench.experiments.store import Damaged, Shard, Store, Stored, new_shard, same_rows
from open_bench.text import listed

_FREE = ("theta_source",)  # of a description: for people, so that it may differ


class Incoming(NamedTuple):
    """One experiment of one source."""

    source: str
    stored: Stored


class Merge(NamedTuple):
    """What an experiment gains."""

    content: dict[str, Any]
    added: list[tuple[str, Shard, list[int]]]  # source, shard, and those of its seeds that are new
    known: dict[str, int]  # by source: how many seeds are there already
    conflicts: list[str]


def merged(store: Store, name: str, group: Sequence[Incoming]) -> Merge:
    """What the store's experiment gains from others of its name. Hold the lock to be sure of it."""
    try:
        mine: Stored | None = store.read(name)
    except Damaged:  # as training does, a damaged folder is set aside
        mine = None
    content = mine.content if mine is not None else group[0].stored.content
    at = str(store.experiments / name) if mine is not None else group[0].source
    there = [(at, shard) for shard in (mine.shards if mine is not None else [])]
    merge = Merge(content, [], {}, [])
    for source, stored in group:
        differing = [
            key for key in {*content, *stored.content} - {*_FREE} if _said(content, key) != _said(stored.content, key)
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


def _new_seeds(name: str, source: str, shard: Shard, there: Sequence[tuple[str, Shard]], merge: Merge) -> list[int]:
    """Those of a shard's seeds that are not there yet; those that are must have the same rows."""
    left = [int(seed) for seed in shard.scores["seed"]]
    for origin, other in there:
        common = sorted({*left} & {*map(int, other.scores["seed"])})
        differing = [seed for seed in common if not same_rows(shard, other, seed)]
        if differing:
            seeds = listed([str(seed) for seed in differing])
            merge.conflicts.append(
                f"{name}: seed {seeds} has other numbers in {source} than in {origin}: `openbench verify` says which "
                "are right; keep one, or import into another folder"
            )
        merge.known[source] = merge.known.get(source, 0) + len(common)
        left = [seed for seed in left if seed not in common]
    return left


def _said(content: Mapping[str, Any], key: str) -> Any:
    return content.get(key, ABSENT.get(key))


def write(store: Store, name: str, group: Sequence[Incoming]) -> Iterator[dict[str, Any]]:
    """Add what is new, and say what was."""
    with store.lock(group[0].stored, wait=True):
        merge = merged(store, name, group)  # again: somebody may have trained meanwhile
        if merge.conflicts:
            raise refusal(merge.conflicts)
        if merge.added:
            path = store.create_described(merge.content)
            for _, shard, seeds in merge.added:
                _add(path, shard, seeds)
    told = {key: merge.content["identity"][key] for key in ("environment", "optimizer")}
    for source, _ in group:
        added = sum(len(seeds) for at, _, seeds in merge.added if at == source)
        yield {"source": source, "experiment": name, **told, "counted": "seed", "added": added,
               "known": merge.known.get(source, 0)}  # fmt: skip


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


def seeds_in(file: Path) -> set[int]:
    """Seeds that a shard's file has rows or arrays of; raises ValueError where it tells of none."""
    if file.name == AGENTS:
        with safetensors.safe_open(file, framework="numpy") as agents:
            return {int(name.partition("/")[0]) for name in agents.keys()}  # noqa: SIM118
    return {int(seed) for seed in pd.read_csv(file, usecols=["seed"], dtype=str)["seed"]}


def _cut(file: Path, target: Path, seeds: list[int]) -> None:
    """A shard's file with some of its seeds."""
    if file.name == AGENTS:
        arrays = safetensors.numpy.load_file(file)
        kept = {name: array for name, array in arrays.items() if int(name.partition("/")[0]) in seeds}
        target.write_bytes(safetensors.numpy.save(kept))
        return
    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    frame[frame["seed"].astype(int).isin(seeds)].to_csv(target, index=False, lineterminator="\n")


def refusal(problems: list[str]) -> UserError:
    """An error that names the first of the problems."""
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return UserError(f"nothing was imported: {'; '.join(problems[:3])}{more}")
