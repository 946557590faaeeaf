"""What figures and the report draw of a board, as numbers: learning curves, diagnostics, profiles of scores and times.

Each is a table of ``Curve`` by what it is of; intervals are 95 % bootstrap intervals.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from open_bench.evaluation import time_to_target
from open_bench.evaluation.baseline_returns import BaselineReturns, returns_of
from open_bench.evaluation.bootstrap import RESAMPLES, mean_bands, performance_profile
from open_bench.evaluation.leaderboard import Board
from open_bench.evaluation.schema import DIAGNOSIS, Runs

_SMOOTHED = 80  # points of a curve a step of the window's half


class Curve(NamedTuple):
    """A line with an interval at each of its points, (points,) each; NaN where there is none."""

    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def learning_curves(
    board: Board, runs: Runs, resamples: int = RESAMPLES, points: int | None = None
) -> dict[str, dict[str, Curve]]:
    """Mean episode return over seeds against env steps, by environment and optimizer, best first.

    Curves of many points are smoothed lightly. A diverged seed counts with its stand-in return (the random policy's)
    from where it diverged. A point has a value once half of the seeds have finished an episode.

    Args:
        points: at most about so many of a curve's points; its last is among them.
    """
    scores = board.scores
    lifetimes = scores.rows.groupby(["environment", "optimizer"]).indices  # sorted by seed
    seeds, diverged = (scores.rows[name].to_numpy() for name in ("seed", "diverged"))
    mine = runs.curves[runs.curves["experiment"].isin(scores.experiments["experiment"])]
    stored = mine.groupby("experiment").indices
    own, env_steps, returns = (mine[name].to_numpy() for name in ("seed", "env_steps", "episode_return"))
    found = {}
    columns = (scores.experiments[name] for name in ("experiment", "environment", "optimizer"))
    for experiment, environment, optimizer in zip(*columns, strict=True):
        if experiment in stored and optimizer in scores.optimizers:
            at, of = stored[experiment], lifetimes[environment, optimizer]
            steps, values = _matrix(own[at], env_steps[at], returns[at], seeds[of])
            for row in np.flatnonzero(diverged[of]):
                values[row] = _after_divergence(values[row], scores.stand_in[environment])
            found[environment, optimizer] = _curve(steps, smoothed(values), resamples, points)
    return {
        environment: {
            name: found[environment, name] for name in board.table["optimizer"] if (environment, name) in found
        }
        for environment in board.scores.environments
    }


def diagnosis(
    board: Board, runs: Runs, resamples: int = RESAMPLES, points: int | None = None
) -> dict[str, dict[str, dict[str, Curve]]]:
    """What was measured of the updates, by environment, diagnostic and optimizer; environments without any are absent.

    Means over the seeds that were trained with diagnosis; a seed counts until it diverges.
    """
    labels = board.scores.experiments.set_index("experiment")
    stored = runs.diagnosis[runs.diagnosis["experiment"].isin(labels.index)]
    stored = stored.assign(optimizer=stored["experiment"].map(labels["optimizer"]))
    found: dict[str, dict[str, dict[str, Curve]]] = {}
    for environment, rows in stored.groupby("environment"):
        rows = rows.replace([np.inf, -np.inf], np.nan).dropna(axis="columns", how="all")
        for name in (each for each in rows.columns if each not in DIAGNOSIS):
            drawn = {
                optimizer: _matrix(*(mine[each].to_numpy() for each in ("seed", "env_steps", name)))
                for optimizer, mine in rows.groupby("optimizer")
            }
            found.setdefault(str(environment), {})[name] = {
                optimizer: _curve(*drawn[optimizer], resamples, points)
                for optimizer in board.table["optimizer"]
                if optimizer in drawn
            }
    return found


def needs_log(curves: Mapping[str, Curve]) -> bool:
    """Whether values are all positive and vary by more than 100 times."""
    values = np.concatenate([np.concatenate([curve.value, curve.low, curve.high]) for curve in curves.values()])
    values = values[np.isfinite(values)]
    return bool(len(values)) and bool(values.min() > 0) and bool(values.max() > 100 * values.min())


def levels(board: Board, baseline_returns: BaselineReturns, environment: str) -> dict[str, float]:
    """Returns of the random policy and of Adam's stored runs in an environment, where known."""
    scores, known = board.scores, returns_of(baseline_returns, environment)
    adam = known.adam(scores.key.algorithm, scores.key.budget)
    found = {"Adam (stored)": adam.final_return.mean} if adam is not None else {}
    if environment in scores.scales:
        found["random policy"] = scores.scales[environment].zero
    elif known.random is not None:
        found["random policy"] = known.random.final_return.mean
    return found


def profiles(board: Board, resamples: int = RESAMPLES, points: int = 401) -> dict[str, Curve]:
    """Fraction of lifetimes above each score, by optimizer, best first; none where nothing has a score."""
    scores = board.scores
    found = {name: scores.matrix(name, scores.normalized) for name in board.table["optimizer"]}
    matrices = {name: matrix for name, matrix in found.items() if matrix is not None}
    if not matrices:
        return {}
    limits = _thresholds(np.concatenate([matrix.values.ravel() for matrix in matrices.values()]), points)
    return {name: Curve(limits, *performance_profile(matrix, limits, resamples)) for name, matrix in matrices.items()}


def time_profiles(board: Board, points: int = 301) -> dict[str, Curve]:
    """Share of environments in which an optimizer needs at most τ times the fewest env steps to the target."""
    ratios = board.per_environment.pivot(index="environment", columns="optimizer", values="time_ratio")
    ratios = ratios.dropna(axis="index", how="all")
    limits = np.linspace(1.0, time_to_target.LONGEST, points)
    nothing = np.full(points, np.nan)
    return {
        name: Curve(limits, time_to_target.profile(ratios[name], limits), nothing, nothing)
        for name in board.table["optimizer"]
        if len(ratios) and ratios[name].notna().all()
    }


def smoothed(values: np.ndarray) -> np.ndarray:
    """Running means along the points of curves (seeds, points), over about 2.5 % of them; NaN stays, and counts not.

    Curves of up to 79 points stay as they are: each of theirs is a mean over many episodes already.
    """
    half = values.shape[1] // _SMOOTHED
    if half == 0:
        return values
    known = ~np.isnan(values)
    sums, counts = (
        np.cumsum(np.pad(each, ((0, 0), (half + 1, half))), axis=1) for each in (np.where(known, values, 0.0), known)
    )
    window = 2 * half + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (sums[:, window:] - sums[:, :-window]) / (counts[:, window:] - counts[:, :-window])
    return np.where(known, means, np.nan)


def _matrix(
    own: np.ndarray, steps: np.ndarray, values: np.ndarray, seeds: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(points,) env steps and (seeds, points) values, NaN where there is none, from values by seed and env steps.

    ``seeds``, sorted: by default all that have a value.
    """
    wanted, points = np.unique(own) if seeds is None else seeds, np.unique(steps)
    known = np.isin(own, wanted)
    found = np.full((len(wanted), len(points)), np.nan)
    found[np.searchsorted(wanted, own[known]), np.searchsorted(points, steps[known])] = values[known]
    return points.astype(float), found


def _curve(x: np.ndarray, values: np.ndarray, resamples: int, points: int | None) -> Curve:
    """From values (seeds, x), NaN where a seed has none."""
    step = 1 if points is None else max(1, -(-len(x) // points))
    kept = slice((len(x) - 1) % step, None, step)
    return Curve(x[kept], *mean_bands(values[:, kept], resamples))


def _after_divergence(curve: np.ndarray, stand_in: float) -> np.ndarray:
    """A curve (points,) whose missing end, all of it if nothing is there, is filled with ``stand_in``."""
    known = np.flatnonzero(~np.isnan(curve))
    end = known[-1] + 1 if len(known) else 0
    return np.concatenate([curve[:end], np.full(len(curve) - end, stand_in)])


def _thresholds(scores: np.ndarray, points: int) -> np.ndarray:
    """From the lowest score (at least −1) to a little above the highest (at most 3), 0 and 1 always inside."""
    return np.linspace(max(min(0.0, scores.min()), -1.0), min(max(1.1, scores.max() * 1.05), 3.0), points)
