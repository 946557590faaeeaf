"""Cells on disk: ``<results>/runs/<cell>/`` with ``cell.json`` and a shard a round of repetitions.

A shard (``shard-<repetitions>/``) holds ``scores.csv``, ``curves.csv`` and ``provenance.json`` with their digests. It
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
from open_bench.runs.agents import AGENTS, write_agents
from open_bench.runs.cell import Cell, directory_name
from open_bench.scores.rows import Runs

SCORES = {"repetition": int, "final_return": float, "mean_return": float, "diverged": bool, "env_steps": int}
CURVES = {"repetition": int, "env_steps": int, "episode_return": float}
_TEMPORARY = ".tmp-"


class Damaged(Exception):
    """A directory that does not hold what a cell or a shard holds; the message names it."""


class Store:
    """The cells below one results folder."""

    def __init__(self, results: str | Path):
        self.results = Path(results)
        self.runs = self.results / "runs"

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
    def lock(self, cell: Cell, wait: bool = False) -> Iterator[bool]:
        """Hold the cell's lock, yielding whether it was free. The system releases it when its owner dies."""
        lock = filelock.FileLock(self.runs / ".locks" / f"{cell.name}.lock", timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def path(self, cell: Cell) -> Path:
        """The cell's directory."""
        return self.runs / cell.name

    def create(self, cell: Cell, description: dict[str, Any]) -> Path:
        """Make the cell's directory if need be, and clear what a killed writer left. Hold the lock."""
        path = self.path(cell)
        for leftover in [*path.glob(f"{_TEMPORARY}*"), *self.runs.glob(f"{_TEMPORARY}{cell.name}-*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        if path.exists() and not _is_cell(path):
            _set_aside(path)
        if not path.exists():
            content = {"identity": cell.identity, **description}
            with _written_whole(path) as folder:
                (folder / "cell.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        return path

    def repetitions(self, cell: Cell) -> set[int]:
        """Repetitions that are stored for the cell; damaged shards do not count."""
        path = self.path(cell)
        if not _is_cell(path):
            return set()
        found: set[int] = set()
        for shard in _shards(path):
            with contextlib.suppress(Damaged):
                found |= set(_read_shard(shard)[0]["repetition"])
        return found

    def add(
        self, cell: Cell, scores: pd.DataFrame, curves: pd.DataFrame, provenance: dict[str, Any], agents: Any = None
    ) -> Path:
        """Store a round of repetitions. Hold the lock; the repetitions must not be stored yet.

        ``agents`` are trained parameters with a leading axis of slots, the first of which are the repetitions'.
        """
        path = self.path(cell) / _shard_name(scores)
        if path.exists():  # only a damaged shard can be in the way
            _set_aside(path)
        with _written_whole(path) as folder:
            scores.to_csv(folder / "scores.csv", index=False, columns=list(SCORES), lineterminator="\n")
            curves.to_csv(folder / "curves.csv", index=False, columns=list(CURVES), lineterminator="\n")
            if agents:
                write_agents(folder / AGENTS, agents, list(scores["repetition"]))
            digests = {file.name: _digest(file) for file in sorted(folder.iterdir())}
            content = {**provenance, "files": digests}
            (folder / "provenance.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        return path

    def load(self, cells: list[Cell] | None = None) -> Runs:
        """Every stored row, or those of some cells; what is damaged or foreign is named in a warning and skipped."""
        wanted = {cell.name for cell in cells} if cells is not None else None
        tables: list[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]] = []
        for path in sorted(self.runs.iterdir()) if self.runs.is_dir() else []:
            if path.name.startswith(".") or (wanted is not None and path.name not in wanted):
                continue
            try:
                tables += _read_cell(path)
            except Damaged as problem:
                warnings.warn(f"skipped {problem}", stacklevel=2)
        if not tables:
            return Runs.empty()
        return Runs(
            pd.DataFrame([row for row, _, _ in tables]),
            pd.concat([scores for _, scores, _ in tables], ignore_index=True),
            pd.concat([curves for _, _, curves in tables], ignore_index=True),
        )


def _is_cell(path: Path) -> bool:
    try:
        _read_description(path)
    except Damaged:
        return False
    return True


def _read_description(path: Path) -> dict[str, Any]:
    """A cell's ``cell.json``, checked against the directory's name, which holds the identity's hash."""
    if not path.is_dir():
        raise Damaged(f"{path}: not a cell's directory")
    try:
        content = json.loads((path / "cell.json").read_text(encoding="utf-8"))
        name = directory_name(content["identity"])
        _cell_row(name, content, [])  # whatever a row needs is there
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path}: no readable cell.json ({type(error).__name__}: {error})") from None
    if name != path.name:
        raise Damaged(f"{path}: its cell.json describes {name}")
    return content


def _shards(path: Path) -> list[Path]:
    return sorted(path.glob("shard-*"))


def _shard_name(scores: pd.DataFrame) -> str:
    """``shard-<first>-<last repetition>``."""
    repetitions = sorted(scores["repetition"])
    return "-".join(["shard", *(f"{repetition:04d}" for repetition in repetitions[:: max(1, len(repetitions) - 1)])])


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
        raise Damaged(f"{path}: holds the repetitions of {_shard_name(scores)}")
    return scores, curves, provenance


def _read_cell(path: Path) -> list[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]]:
    """[(row of the cells table, its scores, its curves)]; empty when no shard is complete."""
    content = _read_description(path)
    shards = []
    for shard in _shards(path):
        try:
            shards.append(_read_shard(shard))
        except Damaged as problem:
            warnings.warn(f"skipped {problem}", stacklevel=3)
    if not shards:
        return []
    row = _cell_row(path.name, content, [provenance for _, _, provenance in shards])
    labels = {key: row[key] for key in ("cell", "environment", "budget", "optimizer")}
    scores = pd.concat([scores for scores, _, _ in shards], ignore_index=True)
    if scores["repetition"].duplicated().any():
        raise Damaged(f"{path}: a repetition is stored twice")
    curves = pd.concat([curves for _, curves, _ in shards], ignore_index=True)
    return [(row, scores.assign(**labels), curves.assign(**labels))]


def _cell_row(name: str, content: dict[str, Any], provenances: list[dict[str, Any]]) -> dict[str, Any]:
    identity = content["identity"]
    return {
        "cell": name,
        "environment": identity["environment"],
        "family": content["family"],
        "budget": identity["budget"],
        "env_steps": identity["num_updates"] * identity["ppo"]["num_envs"] * identity["ppo"]["num_steps"],
        "optimizer": identity["optimizer"],
        "hyperparameters": json.dumps(identity["hyperparameters"], sort_keys=True),
        "hyperparameter_origin": content["hyperparameter_origin"],
        "theta": identity["theta"],
        "study_seed": identity["study_seed"],
        "width": identity["width"],
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
