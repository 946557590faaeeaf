"""What a results folder holds for a report. Reading it runs no code of it; what is damaged is named and left out."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from open_bench.errors import UserError
from open_bench.evaluation.leaderboard import Leaderboard
from open_bench.evaluation.schema import Runs
from open_bench.evaluation.trials import read_trials
from open_bench.experiments.session import load_runs, stored_board
from open_bench.experiments.store import DESCRIPTION, EXPERIMENTS
from open_bench.files import read_json
from open_bench.generalization.run import REQUEST
from open_bench.weights.format import load_weights

_POINTS = {"axis", "point", "x", "optimizer", "mean", "score", "score_low", "score_high", "distribution"}
_HISTORY = {"generation", "fitness_mean", "fitness_std", "fitness_best", "sigma", "lifetimes", "env_steps", "seconds"}


class Source(NamedTuple):
    """Where an experiment's rows come from: what determines them, and each shard's provenance."""

    identity: dict[str, Any]
    shards: list[dict[str, Any]]


class Study(NamedTuple):
    """A study of generalization as it was written."""

    name: str
    points: pd.DataFrame
    summary: pd.DataFrame
    scale: str
    notes: tuple[str, ...]
    request: dict[str, Any] | None = None  # how it was asked for, where that is known


class Contents(NamedTuple):
    """Everything that a report shows."""

    board: Leaderboard | None
    runs: Runs
    sources: dict[str, Source]  # by experiment
    trials: pd.DataFrame
    tuned: dict[str, dict[str, Any]]  # identities of those trials, by the name of their folder
    studies: tuple[Study, ...]
    histories: dict[str, pd.DataFrame]  # of evolutions, by name
    weights: dict[str, dict[str, Any]]  # metadata of their weights, {} where they are not there


def read(results: Path, budget: str | None = None, aliases: Mapping[str, str] | None = None) -> Contents:
    """Everything below ``results``; ``budget``: only its boards; ``aliases``: see ``stored_board``.

    Raises:
        UserError: there is nothing to show, the budget is unknown, or experiments do not compare.
    """
    if not results.is_dir():
        raise UserError(f"{results}: there is no such folder")
    runs = load_runs(results) if (results / EXPERIMENTS).is_dir() else Runs.empty()
    ranked = (runs.experiments["algorithm"] != "random").any()
    board = stored_board(results, runs, budget, aliases=aliases) if ranked or budget is not None else None
    sources = {name: _source(results / EXPERIMENTS / name) for name in runs.experiments["experiment"]}
    studies = [_study(path.parent) for path in sorted(results.glob("generalization/*/points.csv"))]
    histories = {path.parent.name: _history(path) for path in sorted(results.glob("meta/*/history.csv"))}
    trials = read_trials(results)
    tuned = {name: _identity(results / "tuning" / name / "tuning.json") for name in trials["tuning"].unique()}
    contents = Contents(
        board, runs, sources, trials, tuned, tuple(each for each in studies if each is not None),
        {name: frame for name, frame in histories.items() if frame is not None},
        {name: _metadata(results / "meta" / name / "latest.safetensors") for name in histories},
    )  # fmt: skip
    if board is None and contents.trials.empty and not contents.studies and not contents.histories:
        raise UserError(f"{results}: nothing to report: no stored runs, trials, generalization or meta-training")
    return contents


def _source(path: Path) -> Source:
    """Of an experiment that has been read: its shards' provenance is what its rows' digests were checked with."""
    shards = []
    for file in sorted(path.glob("shard-*/provenance.json")):
        try:
            shard = read_json(file)
            shards.append({"shard": file.parent.name, **shard, "files": dict(shard["files"])})
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged shard, which loading has named
    return Source(_identity(path / DESCRIPTION), shards)


def _identity(path: Path) -> dict[str, Any]:
    """What a description that has been read holds as identity, with the settings that are none as {}."""
    identity = read_json(path)["identity"]
    settings = identity.get("settings")
    return {**identity, "settings": settings if isinstance(settings, dict) else {}}


def _study(folder: Path) -> Study | None:
    try:
        points, summary = (pd.read_csv(folder / f"{name}.csv") for name in ("points", "summary"))
        told = (folder / "generalization.md").read_text(encoding="utf-8")
        missing = _POINTS - set(points) or {"optimizer", "in_score", "out_score", "gap"} - set(summary)
        if missing:
            raise ValueError(f"columns are missing: {', '.join(sorted(missing))}")
        texts = dict.fromkeys(("axis", "point", "optimizer", "distribution"), "string")
        points = points.astype(texts).astype(dict.fromkeys(texts, object))
        if points[list(texts)].isna().any(axis=None) or summary["optimizer"].isna().any():
            raise ValueError("a row does not say what it is of")
        if points.duplicated(["axis", "point", "optimizer"]).any():
            raise ValueError("an optimizer appears twice at a point")
        numbers = sorted(_POINTS - set(texts))
        points[numbers] = points[numbers].astype(float)
        scores = [name for name in summary if name.startswith(("in_score", "out_score", "gap"))]
        summary[scores] = summary[scores].astype(float)
    except (OSError, ValueError, TypeError) as problem:
        warnings.warn(f"skipped {folder}: {problem}", stacklevel=2)
        return None
    scale = re.search(r"^Scores: .*$", told, re.MULTILINE)
    notes = told.partition("## Notes\n")[2]
    found = tuple(re.findall(r"^- (.*)$", notes, re.MULTILINE))
    return Study(folder.name, points, summary, scale[0] if scale else "", found, _request(folder / REQUEST))


def _request(path: Path) -> dict[str, Any] | None:
    try:
        request = read_json(path)
        return {**request, "optimizers": [str(name) for name in request["optimizers"]]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _metadata(path: Path) -> dict[str, Any]:
    try:
        return dict(load_weights(path).metadata)
    except UserError:
        return {}


def _history(path: Path) -> pd.DataFrame | None:
    try:
        history = pd.read_csv(path, float_precision="round_trip").astype(float)
        if history.empty or not set(history) >= _HISTORY:
            raise ValueError(f"its columns are {', '.join(history)}")
    except (OSError, ValueError, TypeError) as problem:
        warnings.warn(f"skipped {path}: {problem}", stacklevel=2)
        return None
    return history
