"""Experiments on disk: ``<results>/experiments/<experiment>/`` with ``experiment.json`` and a shard a device batch.

A shard (``shard-<seeds>/``) holds ``scores.csv``, ``curves.csv``, where asked for ``diagnosis.csv`` and
``agents.safetensors``, and ``provenance.json`` with their digests. It is written under a temporary name and renamed
whole, so it is complete or absent. Reading a folder runs no code of it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import filelock
import numpy as np
import pandas as pd

from open_bench.errors import UserError
from open_bench.evaluation import schema
from open_bench.evaluation.schema import BadRows, Runs
from open_bench.experiments.agents import AGENTS, write_agents
from open_bench.experiments.experiment import Experiment, folder_name
from open_bench.files import TEMPORARY, folder_written_whole, write_atomically

EXPERIMENTS, DESCRIPTION, PROVENANCE, DIAGNOSIS = "experiments", "experiment.json", "provenance.json", "diagnosis.csv"
_TABLES = {"scores.csv", "curves.csv"}  # that every shard has
CURVES = schema.without_labels(schema.CURVES)
_OF_SETTINGS = ("hyperparameter_origin", "tuning_trials", "tuning_env_steps")  # which follow what is known of tuning
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


class Damaged(Exception):
    """A folder that does not hold what an experiment or a shard holds; the message names it."""


class Shard(NamedTuple):
    """One device batch, read: its tables by column."""

    path: Path
    scores: Mapping[str, np.ndarray]
    curves: Mapping[str, np.ndarray]
    diagnosis: Mapping[str, np.ndarray] | None
    provenance: dict[str, Any]


class Named(Protocol):
    """What has a folder of its own: an experiment, the trials of one."""

    @property
    def name(self) -> str: ...


class Stored(NamedTuple):
    """One experiment's folder, read.

    Attributes:
        path: the folder.
        content: ``experiment.json``.
        row: of the experiments table, with the cost of no shard.
        shards: the readable ones. Where two hold the same seeds (folders were merged), equal rows count once.
        damaged: what is wrong with the others, which are named.
    """

    path: Path
    content: dict[str, Any]
    row: dict[str, Any]
    shards: list[Shard]
    damaged: list[str]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


class Store:
    """The experiments below one results folder; with another ``folder``, what else has folders and locks there."""

    def __init__(self, results: str | Path, folder: str = EXPERIMENTS):
        self.results = Path(results)
        self.experiments = self.results / folder

    def check_writable(self) -> None:
        """Raise UserError when nothing can be written there, or it is version 1's folder. Makes nothing."""
        self.refuse_version_1()
        try:
            there = next(path for path in (self.experiments, *self.experiments.parents) if path.exists())
        except (OSError, StopIteration):
            raise self._unwritable("Permission denied") from None
        if not there.is_dir():
            raise self._unwritable("Not a directory")
        if not os.access(there, os.W_OK | os.X_OK):
            raise self._unwritable("Permission denied")

    def _unwritable(self, why: object) -> UserError:
        return UserError(f"cannot write results to {self.results}: {why}; name another --results folder")

    def refuse_version_1(self) -> None:
        """Raise UserError for a folder of version 1, or its ``runs``, whose protocol and layout were others."""
        if self.experiments.is_dir():
            return
        runs = self.results if any(self.results.glob("*/cell.json")) else self.results / "runs"
        if runs.is_dir():
            raise UserError(
                f"{self.results} holds runs of version 1 (protocol 1) in {runs}, which do not compare with today's: "
                "name another --results folder, or read it with version 1 (revision 9a82065)"
            )

    def check_there(self) -> None:
        """Raise UserError where no experiments are, or version 1's."""
        self.refuse_version_1()
        if not self.experiments.is_dir():
            raise UserError(f"{self.results}: no stored runs (there is no folder {self.experiments})")

    @contextlib.contextmanager
    def lock(self, experiment: Named, wait: bool = False) -> Iterator[bool]:
        """Hold the experiment's lock, yielding whether it was free. The system releases it when its owner dies."""
        folder = self.experiments / ".locks"
        lock = filelock.FileLock(folder / f"{experiment.name}.lock", timeout=-1 if wait else 0)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            yield False
            return
        except OSError as error:
            raise self._unwritable(error.strerror or error) from None
        try:
            yield True
        finally:
            lock.release()

    def path(self, experiment: Named) -> Path:
        """The experiment's folder."""
        return self.experiments / experiment.name

    def create(self, experiment: Experiment, description: dict[str, Any]) -> Path:
        """Make the experiment's folder if need be, and clear what a killed writer left. Hold the lock."""
        return self.create_described({"identity": experiment.identity, **description})

    def create_described(self, content: dict[str, Any]) -> Path:
        """The same for what ``experiment.json`` will hold."""
        name = folder_name(content["identity"])
        path = self.experiments / name
        for leftover in [*path.glob(f"{TEMPORARY}*"), *self.experiments.glob(f"{TEMPORARY}{name}-*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        if path.exists() and _description(path) is None:
            set_aside(path)
        if not path.exists():
            with folder_written_whole(path) as folder:
                _write_json(folder / DESCRIPTION, content)
        return path

    def refresh(self, experiment: Experiment, description: dict[str, Any]) -> None:
        """Where the experiment is stored, say today's origin of its settings: a tuning that went on may have found the
        same again. What shards were written by, and what a θ cost, stays. Hold the lock.
        """
        path = self.path(experiment)
        before = _description(path)
        if before is not None:
            content = before | {key: description[key] for key in _OF_SETTINGS}
            if content != before:
                write_atomically(path / DESCRIPTION, _json(content))

    def seeds(self, experiment: Experiment) -> set[int]:
        """Seeds that are stored for the experiment; damaged shards do not count."""
        return {int(seed) for shard in self._sound_shards(experiment) for seed in shard.scores["seed"]}

    def diagnosed_seeds(self, experiment: Experiment) -> set[int]:
        """Those of them that were trained with diagnosis."""
        tables = [shard.diagnosis for shard in self._sound_shards(experiment) if shard.diagnosis is not None]
        return {int(seed) for table in tables for seed in table["seed"]}

    def _sound_shards(self, experiment: Experiment) -> list[Shard]:
        path = self.path(experiment)
        content = _description(path)
        return [] if content is None else _shards(path, content)[0]

    def add(
        self, experiment: Experiment, scores: pd.DataFrame, curves: pd.DataFrame, provenance: dict[str, Any],
        agents: Any = None, diagnosis: pd.DataFrame | None = None,
    ) -> Path:  # fmt: skip
        """Store a device batch. Hold the lock; its seeds must not be stored yet.

        ``agents`` are trained parameters with a leading axis of lifetimes, the first of which are the seeds'.
        """
        with new_shard(self.path(experiment), scores["seed"], provenance) as folder:
            content, _ = _read_description(self.path(experiment))
            schema.write_csv(scores, _scores_columns(content), folder / "scores.csv")
            schema.write_csv(curves, CURVES, folder / "curves.csv")
            if diagnosis is not None:
                schema.write_csv(diagnosis, schema.diagnosis_columns(diagnosis), folder / DIAGNOSIS)
            if agents:
                write_agents(folder / AGENTS, agents, list(scores["seed"]))
        return self.path(experiment) / shard_name(scores["seed"])

    def shards_with(self, experiment: Experiment, among: set[int], agents: bool, diagnosis: bool) -> list[Shard]:
        """The experiment's shards whose seeds are all ``among`` those, with agents or diagnosis where wanted."""
        wanted = {AGENTS} if agents else set()
        wanted |= {DIAGNOSIS} if diagnosis else set()
        sound = self._sound_shards(experiment)
        return [each for each in sound if wanted <= each.provenance["files"].keys() and among >= {*each.scores["seed"]}]

    def add_copy(self, experiment: Experiment, shard: Shard) -> None:
        """Store another experiment's shard for one that has the same numbers; the provenance says so. Hold the lock."""
        told = {**shard.provenance, "trained_as": shard.path.parent.name}
        whole = pd.read_csv(shard.path / "scores.csv", usecols=["seed"])  # where shards overlap, it tells of fewer
        with new_shard(self.path(experiment), whole["seed"], told) as folder:
            for name in shard.provenance["files"]:
                shutil.copyfile(shard.path / name, folder / name)

    def read(self, name: str) -> Stored:
        """One experiment; raises Damaged where the folder is none."""
        path = self.experiments / name
        content, row = _read_description(path)
        return Stored(path, content, row, *_shards(path, content))

    def names(self) -> list[str]:
        """Names of what lies among the experiments, sorted."""
        there = self.experiments.iterdir() if self.experiments.is_dir() else ()
        return sorted(path.name for path in there if not path.name.startswith("."))

    def load(self, experiments: Sequence[Experiment] | None = None, num_seeds: int | None = None) -> Runs:
        """Every stored row, or those of some experiments; what is damaged or foreign is named in a warning and skipped.

        ``num_seeds``: only seeds below it; a folder may hold more than were asked for now.
        """
        self.refuse_version_1()
        wanted = None if experiments is None else sorted({each.name for each in experiments})
        there = self.names() if wanted is None else [name for name in wanted if (self.experiments / name).exists()]
        tables = []
        for name in there:
            try:
                stored = self.read(name)
                for problem in stored.damaged:
                    warnings.warn(f"skipped {problem}", stacklevel=2)
                tables.append(_tables(stored))
            except Damaged as damage:
                warnings.warn(f"skipped {damage}", stacklevel=2)
        found = Runs.join(each for each in tables if each is not None)
        if num_seeds is None:
            return found
        frames = (found.scores, found.curves, found.diagnosis)
        return Runs(found.experiments, *(frame[frame["seed"] < num_seeds] for frame in frames))


def _description(path: Path) -> dict[str, Any] | None:
    try:
        return _read_description(path)[0]
    except Damaged:
        return None


def _read_description(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``experiment.json``, checked against the folder's name, which holds the identity's hash; and ``Stored.row``."""
    try:
        content = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        name = folder_name(content["identity"])
        row = _row(name, content)  # whatever a row needs is there
    except UNREADABLE as error:
        if not path.is_dir():
            raise Damaged(f"{path}: not an experiment's folder") from None
        raise Damaged(f"{path}: no readable {DESCRIPTION} ({type(error).__name__}: {error})") from None
    if name != path.name:
        raise Damaged(f"{path}: its {DESCRIPTION} describes {name}")
    return content, row


def _shards(path: Path, content: dict[str, Any]) -> tuple[list[Shard], list[str]]:
    """``Stored.shards`` and ``Stored.damaged``."""
    shards: list[Shard] = []
    damaged = []
    known: dict[int, Shard] = {}
    columns = _scores_columns(content)
    for folder in sorted(path.glob("shard-*")):
        try:
            shard = _without_known(_read_shard(folder, content["metrics"], columns), known)
        except Damaged as problem:
            damaged.append(str(problem))
            continue
        shards.append(shard)
        known |= dict.fromkeys(shard.scores["seed"].tolist(), shard)
    return [shard for shard in shards if len(shard.scores["seed"])], damaged


def _without_known(shard: Shard, known: dict[int, Shard]) -> Shard:
    """The shard without seeds that are known; raises Damaged where such a seed's rows differ."""
    again = sorted(known.keys() & {*shard.scores["seed"].tolist()})
    if not again:
        return shard
    for seed in again:
        if not same_rows(shard, known[seed], seed):
            raise Damaged(f"{shard.path}: seed {seed} is stored twice, with other numbers")
    tables = (shard.scores, shard.curves, shard.diagnosis)
    scores, curves, diagnosis = (
        None if table is None else _rows(table, ~np.isin(table["seed"], again)) for table in tables
    )
    assert scores is not None and curves is not None
    return shard._replace(scores=scores, curves=curves, diagnosis=diagnosis)


def same_rows(one: Shard, other: Shard, seed: int) -> bool:
    """Whether a seed's rows are the same, in which NaN equals NaN; a diagnosis that only one has says nothing."""
    for name in ("scores", "curves", "diagnosis"):
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine is not None and theirs is not None:
            here, there = _rows(mine, mine["seed"] == seed), _rows(theirs, theirs["seed"] == seed)
            if here.keys() != there.keys() or not all(_equal(here[key], there[key]) for key in here):
                return False
    return True


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _rows(table: Mapping[str, np.ndarray], which: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[which] for name, column in table.items()}


@contextlib.contextmanager
def new_shard(experiment: Path, seeds: Iterable[int], provenance: dict[str, Any]) -> Iterator[Path]:
    """A folder to write a shard's files into; provenance and digests join them, and it takes its place in the end.

    Hold the experiment's lock; the seeds must not be stored yet.
    """
    path = experiment / shard_name(seeds)
    if path.exists():  # only a damaged shard can be in the way
        set_aside(path)
    with folder_written_whole(path) as folder:
        yield folder
        digests = {file.name: digest(file) for file in sorted(folder.iterdir())}
        _write_json(folder / PROVENANCE, {**provenance, "files": digests})


def shard_name(seeds: Iterable[int]) -> str:
    """``shard-<first>-<last seed>``."""
    ordered = sorted(seeds)
    return "-".join(["shard", *(f"{seed:04d}" for seed in ordered[:: max(1, len(ordered) - 1)])])


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(_json(content))


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _scores_columns(content: dict[str, Any]) -> dict[str, schema.Column]:
    return schema.without_labels(schema.score_columns(content["metrics"]))


def _read_shard(path: Path, metrics: Iterable[str], columns: Mapping[str, schema.Column]) -> Shard:
    """A shard that is whole and, as an experiment of its own, within the schema; raises Damaged."""
    try:
        provenance = json.loads((path / PROVENANCE).read_bytes())
        data = {name: _read_file(path, name, provenance["files"]) for name in _TABLES | provenance["files"].keys()}
        schema.check_values(_cost([provenance]))  # what the experiment's sums are made of is there
        scores = schema.read_csv("scores.csv", data["scores.csv"], columns)
        schema.check_scores(scores, metrics)
        curves = schema.read_csv("curves.csv", data["curves.csv"], CURVES)
        schema.check_curves(curves, scores)
        diagnosis = schema.read_diagnosis(DIAGNOSIS, data[DIAGNOSIS]) if DIAGNOSIS in data else None
        if diagnosis is not None:
            schema.check_diagnosis(diagnosis, scores)
    except BadRows as problem:
        raise Damaged(f"{path}: {problem}") from None
    except UNREADABLE as error:
        raise Damaged(f"{path}: unreadable ({type(error).__name__}: {error})") from None
    name = shard_name(scores["seed"].tolist())
    if path.name != name:
        raise Damaged(f"{path}: holds the seeds of {name}")
    return Shard(path, scores, curves, diagnosis, provenance)


def _read_file(shard: Path, name: str, digests: dict[str, str]) -> bytes:
    """A file of a shard, as it was written; raises Damaged."""
    if name not in _TABLES and Path(name).name != name:  # nothing outside is a part of a shard
        raise Damaged(f"{shard}: {name!r} is no name of a file")
    data = (shard / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != digests[name]:
        raise Damaged(f"{shard}: {name} is not what was written (its digest differs)")
    return data


def _tables(stored: Stored) -> tuple[dict[str, Any], *tuple[schema.Table | None, ...]] | None:
    """(row of the experiments table, its scores, curves and diagnosis); None when no shard is complete."""
    path, _, row, shards, _ = stored
    if not shards:
        return None
    cost = _cost([shard.provenance for shard in shards])
    try:
        schema.check_values(cost)
    except BadRows as problem:  # each shard's is within the schema, their sum is not
        raise Damaged(f"{path}: {problem}") from None
    diagnosed = [each.diagnosis for each in shards if each.diagnosis is not None]
    scores, curves = schema.stacked([each.scores for each in shards]), schema.stacked([each.curves for each in shards])
    return row | cost, scores, curves, schema.stacked(diagnosed) if diagnosed else None


def _row(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """``Stored.row``; a value of another kind than the schema's is BadRows."""
    identity = content["identity"]
    told = ("environment", "algorithm", "budget", "optimizer", "theta", "root_seed", "vmap_size", "protocol",
            "environment_version")  # fmt: skip
    beside = ("family", "env_steps", "hyperparameter_origin")
    return schema.experiment_row(
        **{"experiment": name, **{key: identity[key] for key in told}, **{key: content[key] for key in beside}},
        hyperparameters=json.dumps(identity["hyperparameters"], sort_keys=True),
        settings=json.dumps({"algorithm": identity["settings"], "options": identity["options"]}, sort_keys=True),
        metrics=json.dumps(content["metrics"], sort_keys=True),
        **{name: content[name] for name in schema.ABSENT if name in content},
        **_cost([]),
    )


def _cost(provenances: list[dict[str, Any]]) -> dict[str, Any]:
    """What the shards took, and where."""
    seconds = float(sum(each["run_seconds"] for each in provenances))
    steps = sum(each["env_steps"] for each in provenances)
    return {
        "steps_per_second": steps / seconds if seconds > 0 else float("nan"),
        "run_seconds": seconds,
        "compile_seconds": float(sum(each["compile_seconds"] for each in provenances)),
        "hardware": "; ".join(sorted({each["hardware"] for each in provenances})),
        "revision": "; ".join(sorted({each["revision"] for each in provenances})),
    }


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def set_aside(path: Path) -> None:
    """Move something unreadable out of the way without losing it."""
    target = path.with_name(f".damaged-{uuid.uuid4().hex[:6]}-{path.name}")  # hidden, so named only once
    warnings.warn(f"{path} is damaged; moved to {target.name} and made anew", stacklevel=4)
    path.rename(target)
