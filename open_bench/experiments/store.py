"""Experiments on disk: ``<results>/experiments/<experiment>/`` with ``experiment.json`` and a shard a round of seeds.

A shard (``shard-<seeds>/``) holds ``scores.csv``, ``curves.csv`` and ``provenance.json`` with their digests. It
is written under a temporary name and renamed whole, so it is complete or absent.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pandas as pd

from open_bench.errors import UserError
from open_bench.evaluation.schema import Runs
from open_bench.experiments.agents import AGENTS, write_agents
from open_bench.experiments.experiment import Experiment, directory_name

SCORES = {"seed": int, "final_return": float, "mean_return": float, "diverged": bool, "env_steps": int}
CURVES = {"seed": int, "env_steps": int, "episode_return": float}
_TEMPORARY = ".tmp-"


class Damaged(Exception):
    """A directory that does not hold what an experiment or a shard holds; the message names it."""


class Store:
    """The experiments below one results folder."""

    def __init__(self, results: str | Path):
        self.results = Path(results)
        self.runs = self.results / "experiments"

    def prepare(self) -> None:
        """Make the folder; raises UserError when nothing can be written there."""
        try:
            (self.runs / ".locks").mkdir(parents=True, exist_ok=True)
            probe = self.runs / f"{_TEMPORARY}{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"cannot write results to {self.results}: {error.strerror or error}") from None

    @contextlib.contextmanager
    def lock(self, experiment: Experiment, wait: bool = False) -> Iterator[bool]:
        """Hold the experiment's lock, yielding whether it was free. The system releases it when its owner dies."""
        lock = filelock.FileLock(self.runs / ".locks" / f"{experiment.name}.lock", timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def path(self, experiment: Experiment) -> Path:
        """The experiment's directory."""
        return self.runs / experiment.name

    def create(self, experiment: Experiment, description: dict[str, Any]) -> Path:
        """Make the experiment's directory if need be, and clear what a killed writer left. Hold the lock."""
        path = self.path(experiment)
        for leftover in [*path.glob(f"{_TEMPORARY}*"), *self.runs.glob(f"{_TEMPORARY}{experiment.name}-*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        if path.exists() and not _is_experiment(path):
            _set_aside(path)
        if not path.exists():
            content = {"identity": experiment.identity, **description}
            with _written_whole(path) as folder:
                (folder / "experiment.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        return path

    def seeds(self, experiment: Experiment) -> set[int]:
        """Seeds that are stored for the experiment; damaged shards do not count."""
        path = self.path(experiment)
        if not _is_experiment(path):
            return set()
        found: set[int] = set()
        for shard in _shards(path):
            with contextlib.suppress(Damaged):
                found |= set(_read_shard(shard)[0]["seed"])
        return found

    def add(
        self,
        experiment: Experiment,
        scores: pd.DataFrame,
        curves: pd.DataFrame,
        provenance: dict[str, Any],
        agents: Any = None,
    ) -> Path:
        """Store a round of seeds. Hold the lock; the seeds must not be stored yet.

        ``agents`` are trained parameters with a leading axis of slots, the first of which are the seeds'.
        """
        path = self.path(experiment) / _shard_name(scores)
        if path.exists():  # only a damaged shard can be in the way
            _set_aside(path)
        with _written_whole(path) as folder:
            scores.to_csv(folder / "scores.csv", index=False, columns=list(SCORES), lineterminator="\n")
            curves.to_csv(folder / "curves.csv", index=False, columns=list(CURVES), lineterminator="\n")
            if agents:
                write_agents(folder / AGENTS, agents, list(scores["seed"]))
            digests = {file.name: _digest(file) for file in sorted(folder.iterdir())}
            content = {**provenance, "files": digests}
            (folder / "provenance.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        return path

    def load(self, experiments: list[Experiment] | None = None) -> Runs:
        """Every stored row, or those of some experiments; what is damaged or foreign is named in a warning and skipped."""
        wanted = {experiment.name for experiment in experiments} if experiments is not None else None
        tables: list[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]] = []
        for path in sorted(self.runs.iterdir()) if self.runs.is_dir() else []:
            if path.name.startswith(".") or (wanted is not None and path.name not in wanted):
                continue
            try:
                tables += _read_experiment(path)
            except Damaged as problem:
                warnings.warn(f"skipped {problem}", stacklevel=2)
        if not tables:
            return Runs.empty()
        return Runs(
            pd.DataFrame([row for row, _, _ in tables]),
            pd.concat([scores for _, scores, _ in tables], ignore_index=True),
            pd.concat([curves for _, _, curves in tables], ignore_index=True),
        )


def _is_experiment(path: Path) -> bool:
    try:
        _read_description(path)
    except Damaged:
        return False
    return True


def _read_description(path: Path) -> dict[str, Any]:
    """An experiment's ``experiment.json``, checked against the directory's name, which holds the identity's hash."""
    if not path.is_dir():
        raise Damaged(f"{path}: not an experiment's directory")
    try:
        content = json.loads((path / "experiment.json").read_text(encoding="utf-8"))
        name = directory_name(content["identity"])
        _experiment_row(name, content, [])  # whatever a row needs is there
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path}: no readable experiment.json ({type(error).__name__}: {error})") from None
    if name != path.name:
        raise Damaged(f"{path}: its experiment.json describes {name}")
    return content


def _shards(path: Path) -> list[Path]:
    return sorted(path.glob("shard-*"))


def _shard_name(scores: pd.DataFrame) -> str:
    """``shard-<first>-<last seed>``."""
    seeds = sorted(scores["seed"])
    return "-".join(["shard", *(f"{seed:04d}" for seed in seeds[:: max(1, len(seeds) - 1)])])


def _read_shard(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    try:
        provenance = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
        for name in {"scores.csv", "curves.csv", *provenance["files"]}:
            if _digest(path / name) != provenance["files"][name]:
                raise Damaged(f"{path}: {name} is not what was written (its digest differs)")
        _cost([provenance])
        scores = pd.read_csv(path / "scores.csv", float_precision="round_trip", dtype=SCORES)
        curves = pd.read_csv(path / "curves.csv", float_precision="round_trip", dtype=CURVES)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path}: unreadable ({type(error).__name__}: {error})") from None
    if list(scores.columns) != list(SCORES) or list(curves.columns) != list(CURVES):
        raise Damaged(f"{path}: unexpected columns")
    if path.name != _shard_name(scores):
        raise Damaged(f"{path}: holds the seeds of {_shard_name(scores)}")
    return scores, curves, provenance


def _read_experiment(path: Path) -> list[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]]:
    """[(row of the experiments table, its scores, its curves)]; empty when no shard is complete."""
    content = _read_description(path)
    shards = []
    for shard in _shards(path):
        try:
            shards.append(_read_shard(shard))
        except Damaged as problem:
            warnings.warn(f"skipped {problem}", stacklevel=3)
    if not shards:
        return []
    row = _experiment_row(path.name, content, [provenance for _, _, provenance in shards])
    labels = {key: row[key] for key in ("experiment", "environment", "budget", "optimizer")}
    scores = pd.concat([scores for scores, _, _ in shards], ignore_index=True)
    if scores["seed"].duplicated().any():
        raise Damaged(f"{path}: a seed is stored twice")
    curves = pd.concat([curves for _, curves, _ in shards], ignore_index=True)
    return [(row, scores.assign(**labels), curves.assign(**labels))]


def _experiment_row(name: str, content: dict[str, Any], provenances: list[dict[str, Any]]) -> dict[str, Any]:
    identity = content["identity"]
    return {
        "experiment": name,
        "environment": identity["environment"],
        "family": content["family"],
        "budget": identity["budget"],
        "env_steps": identity["num_updates"] * identity["ppo"]["num_envs"] * identity["ppo"]["num_steps"],
        "optimizer": identity["optimizer"],
        "hyperparameters": json.dumps(identity["hyperparameters"], sort_keys=True),
        "hyperparameter_origin": content["hyperparameter_origin"],
        "theta": identity["theta"],
        "root_seed": identity["root_seed"],
        "vmap_size": identity["vmap_size"],
        "protocol": identity["protocol"],
        "settings": json.dumps({"ppo": identity["ppo"], "options": identity["options"]}, sort_keys=True),
        "environment_version": identity["environment_version"],
        **_cost(provenances),
    }


def _cost(provenances: list[dict[str, Any]]) -> dict[str, Any]:
    """What the shards took, and where."""
    seconds = sum(p["run_seconds"] for p in provenances)
    steps = sum(p["env_steps"] for p in provenances)
    return {
        "steps_per_second": steps / seconds if seconds > 0 else float("nan"),
        "run_seconds": seconds,
        "compile_seconds": sum(p["compile_seconds"] for p in provenances),
        "hardware": "; ".join(sorted({p["hardware"] for p in provenances})),
        "revision": "; ".join(sorted({p["revision"] for p in provenances})),
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _set_aside(path: Path) -> None:
    """Move something unreadable out of the way without losing it."""
    target = path.with_name(f".damaged-{uuid.uuid4().hex[:6]}-{path.name}")  # hidden, so named only once
    warnings.warn(f"{path} is damaged; moved to {target.name} and made anew", stacklevel=4)
    path.rename(target)


@contextlib.contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` which takes its name when the block ends well."""
    folder = path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex}")
    folder.mkdir(parents=True)
    try:
        yield folder
        for file in folder.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        folder.rename(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
