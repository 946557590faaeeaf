"""Experiments on disk: ``<results>/experiments/<experiment>/`` with ``experiment.json`` and a shard a device batch.

A shard (``shard-<seeds>/``) holds ``scores.csv``, ``curves.csv``, where asked for ``diagnosis.csv`` and
``agents.safetensors``, and ``provenance.json`` with their digests. It is
written under a temporary name and renamed whole, so it is complete or absent. Reading a folder runs no code of it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import filelock
import pandas as pd

from open_bench.errors import UserError
from open_bench.evaluation import schema
from open_bench.evaluation.schema import BadRows, Runs
from open_bench.experiments.agents import AGENTS, write_agents
from open_bench.experiments.experiment import Experiment, folder_name
from open_bench.files import TEMPORARY, folder_written_whole

EXPERIMENTS, DESCRIPTION, DIAGNOSIS = "experiments", "experiment.json", "diagnosis.csv"
CURVES = schema.without_labels(schema.CURVES)
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


class Damaged(Exception):
    """A folder that does not hold what an experiment or a shard holds; the message names it."""


class Shard(NamedTuple):
    """One device batch, read."""

    path: Path
    scores: pd.DataFrame
    curves: pd.DataFrame
    diagnosis: pd.DataFrame | None
    provenance: dict[str, Any]


class Named(Protocol):
    """What has a folder of its own: an experiment, the trials of one."""

    @property
    def name(self) -> str: ...


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
        path = self.path(experiment)
        for leftover in [*path.glob(f"{TEMPORARY}*"), *self.experiments.glob(f"{TEMPORARY}{experiment.name}-*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        if path.exists() and _description(path) is None:
            set_aside(path)
        if not path.exists():
            content = {"identity": experiment.identity, **description}
            with folder_written_whole(path) as folder:
                (folder / DESCRIPTION).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        return path

    def seeds(self, experiment: Experiment) -> set[int]:
        """Seeds that are stored for the experiment; damaged shards do not count."""
        return {int(seed) for shard in self._sound_shards(experiment) for seed in shard.scores["seed"]}

    def diagnosed_seeds(self, experiment: Experiment) -> set[int]:
        """Those of them that were trained with diagnosis."""
        frames = [shard.diagnosis for shard in self._sound_shards(experiment) if shard.diagnosis is not None]
        return {int(seed) for frame in frames for seed in frame["seed"]}

    def _sound_shards(self, experiment: Experiment) -> list[Shard]:
        path = self.path(experiment)
        content = _description(path)
        return [] if content is None else _shards(path, content, silent=True)

    def add(
        self, experiment: Experiment, scores: pd.DataFrame, curves: pd.DataFrame, provenance: dict[str, Any],
        agents: Any = None, diagnosis: pd.DataFrame | None = None,
    ) -> Path:  # fmt: skip
        """Store a device batch. Hold the lock; its seeds must not be stored yet.

        ``agents`` are trained parameters with a leading axis of lifetimes, the first of which are the seeds'.
        """
        path = self.path(experiment) / _shard_name(scores)
        if path.exists():  # only a damaged shard can be in the way
            set_aside(path)
        with folder_written_whole(path) as folder:
            schema.write_csv(scores, _scores_columns(_read_description(self.path(experiment))), folder / "scores.csv")
            schema.write_csv(curves, CURVES, folder / "curves.csv")
            if diagnosis is not None:
                schema.write_csv(diagnosis, schema.diagnosis_columns(diagnosis), folder / DIAGNOSIS)
            if agents:
                write_agents(folder / AGENTS, agents, list(scores["seed"]))
            digests = {file.name: _digest(file) for file in sorted(folder.iterdir())}
            content = {**provenance, "files": digests}
            (folder / "provenance.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        return path

    def load(self, experiments: Sequence[Experiment] | None = None, num_seeds: int | None = None) -> Runs:
        """Every stored row, or those of some experiments; what is damaged or foreign is named in a warning and skipped.

        ``num_seeds``: only seeds below it; a folder may hold more than were asked for now.
        """
        self.refuse_version_1()
        wanted = {each.name for each in experiments} if experiments is not None else None
        tables = []
        for path in sorted(self.experiments.iterdir()) if self.experiments.is_dir() else []:
            if path.name.startswith(".") or (wanted is not None and path.name not in wanted):
                continue
            try:
                tables.append(_read_experiment(path))
            except Damaged as problem:
                warnings.warn(f"skipped {problem}", stacklevel=2)
        found = Runs.join(each for each in tables if each is not None)
        if num_seeds is None:
            return found
        frames = (found.scores, found.curves, found.diagnosis)
        return Runs(found.experiments, *(frame[frame["seed"] < num_seeds] for frame in frames))


def _description(path: Path) -> dict[str, Any] | None:
    try:
        return _read_description(path)
    except Damaged:
        return None


def _read_description(path: Path) -> dict[str, Any]:
    """``experiment.json``, checked against the folder's name, which holds the identity's hash."""
    if not path.is_dir():
        raise Damaged(f"{path}: not an experiment's folder")
    try:
        content = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        name = folder_name(content["identity"])
        _row(name, content, [])  # whatever a row needs is there
    except _UNREADABLE as error:
        raise Damaged(f"{path}: no readable {DESCRIPTION} ({type(error).__name__}: {error})") from None
    if name != path.name:
        raise Damaged(f"{path}: its {DESCRIPTION} describes {name}")
    return content


def _shards(path: Path, content: dict[str, Any], silent: bool = False) -> list[Shard]:
    """The readable shards. Where two hold the same seeds (folders were merged), equal rows count once."""
    shards: list[Shard] = []
    known: dict[int, Any] = {}
    for folder in sorted(path.glob("shard-*")):
        try:
            shard = _without_known(_read_shard(folder, content), known)
        except Damaged as problem:
            if not silent:
                warnings.warn(f"skipped {problem}", stacklevel=4)
            continue
        shards.append(shard)
        known |= {int(row["seed"]): row for row in shard.scores.to_dict("records")}
    return shards


def _without_known(shard: Shard, known: dict[int, Any]) -> Shard:
    """The shard without seeds that are known; raises Damaged where such a seed's row differs."""
    rows = {int(row["seed"]): row for row in shard.scores.to_dict("records")}
    again = sorted(rows.keys() & known.keys())
    for seed in again:
        if str(rows[seed]) != str(known[seed]):  # as texts, in which NaN equals NaN
            raise Damaged(f"{shard.path}: seed {seed} is stored twice, with other scores")
    scores, curves, diagnosis = (
        None if frame is None else frame[~frame["seed"].isin(again)]
        for frame in (shard.scores, shard.curves, shard.diagnosis)
    )
    return shard._replace(scores=scores, curves=curves, diagnosis=diagnosis)


def _shard_name(scores: pd.DataFrame) -> str:
    """``shard-<first>-<last seed>``."""
    seeds = sorted(scores["seed"])
    return "-".join(["shard", *(f"{seed:04d}" for seed in seeds[:: max(1, len(seeds) - 1)])])


def _scores_columns(content: dict[str, Any]) -> dict[str, schema.Column]:
    return schema.without_labels(schema.score_columns(content["metrics"]))


def _read_shard(path: Path, content: dict[str, Any]) -> Shard:
    """A shard that is whole and, as an experiment of its own, within the schema; raises Damaged."""
    try:
        provenance = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
        for name in {"scores.csv", "curves.csv", *provenance["files"]}:
            if _digest(path / name) != provenance["files"][name]:
                raise Damaged(f"{path}: {name} is not what was written (its digest differs)")
        scores = schema.read_csv(path / "scores.csv", _scores_columns(content))
        curves = schema.read_csv(path / "curves.csv", CURVES)
        schema.check_experiment(_row(path.parent.name, content, [provenance]), scores, curves)
        diagnosed = DIAGNOSIS in provenance["files"]
        diagnosis = schema.check_diagnosis(schema.read_diagnosis(path / DIAGNOSIS), scores) if diagnosed else None
    except BadRows as problem:
        raise Damaged(f"{path}: {problem}") from None
    except _UNREADABLE as error:
        raise Damaged(f"{path}: unreadable ({type(error).__name__}: {error})") from None
    if path.name != _shard_name(scores):
        raise Damaged(f"{path}: holds the seeds of {_shard_name(scores)}")
    return Shard(path, scores, curves, diagnosis, provenance)


def _read_experiment(path: Path) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame, pd.DataFrame | None] | None:
    """(row of the experiments table, its scores, curves and diagnosis); None when no shard is complete."""
    content = _read_description(path)
    shards = [shard for shard in _shards(path, content) if len(shard.scores)]
    if not shards:
        return None
    try:
        row = _row(path.name, content, [shard.provenance for shard in shards])
    except BadRows as problem:  # each shard's is within the schema, their sum is not
        raise Damaged(f"{path}: {problem}") from None
    scores, curves = (
        pd.concat([getattr(each, name) for each in shards], ignore_index=True) for name in ("scores", "curves")
    )
    diagnosed = [each.diagnosis for each in shards if each.diagnosis is not None]
    return row, scores, curves, pd.concat(diagnosed, ignore_index=True) if diagnosed else None


def _row(name: str, content: dict[str, Any], provenances: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the experiments table; a value of another kind than the schema's is BadRows."""
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
        **_cost(provenances),
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


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def set_aside(path: Path) -> None:
    """Move something unreadable out of the way without losing it."""
    target = path.with_name(f".damaged-{uuid.uuid4().hex[:6]}-{path.name}")  # hidden, so named only once
    warnings.warn(f"{path} is damaged; moved to {target.name} and made anew", stacklevel=4)
    path.rename(target)
