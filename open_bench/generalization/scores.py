"""Scores of a generalization study: what an optimizer reaches inside and outside of what it was trained or tuned on.

A *task* is an environment (with its changes) and a budget; a *point* is a task on an axis, and one task may be a point
of several axes. Aggregates are over tasks, so nothing counts twice.

**Score** of a seed with final return x at a task where the random policy's mean return is r, by choice:

- ``adam``: 1 + (x − a)/(s − r), with a the return of Adam's same seed, which met the same level and seeds, and s
  the mean of Adam's returns there. The mean over seeds is (mean x − r)/(s − r), 0 for the random policy and 1
  for Adam; the luck of a seed's level, which both share, is in no score, and Adam has 1 in each.
- ``optimal``: (x − r)/(s − r) with s the mean of the optimal returns of the levels (absolute, gridworlds with fixed
  places only).
- ``none``: no scores at all.

**Left out.** Where the reference is not above random there is no scale: the task is reported raw, left out of every
score, and named in the notes. Adam counts as above random when the 95 % interval of the paired difference is above 0,
and its mean above half of the standard deviation of random's returns over seeds: a difference that is small
against the noise is no unit to measure in.

**In, out, gap.** IQM of the scores over the tasks inside, IQM over those outside, and the first minus the second; all
with 95 % bootstrap intervals, seeds drawn again within each task. Of Adam relative to itself there is no gap.

**Paired differences.** Score minus Adam's score of the same seed, which met the same seeds.

A seed that diverged, or in which no episode ended, gets the random policy's return of the same seed, or
its mean; where that is not known, the lowest return of any seed at the task.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from open_bench.errors import UserError, near_matches
from open_bench.evaluation import bootstrap as aggregate
from open_bench.evaluation.bootstrap import NO_ESTIMATE, RESAMPLES, Estimate, ScoreMatrix, mean_bands
from open_bench.evaluation.metrics import Scale, normalize
from open_bench.evaluation.schema import Runs

NORMALIZERS = ("adam", "optimal", "none")
PLACEMENTS = ("in", "out", "unknown")
TASK = ["environment", "budget"]
SMALL = 0.5  # standard deviations
SUMMARY_ESTIMATES = (
    "in_score",
    "out_score",
    "gap",
    "in_difference",
    "out_difference",
    "in_win",
    "out_win",
    "all_score",
)

Key = tuple[str, str]  # environment, budget


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What was measured.

    Attributes:
        preset: its name.
        points: a row a point, in order: axis, point, x (NaN where it is no number), environment, budget, env_steps,
            num_updates.
        placements: a row an optimizer and task: optimizer, environment, budget, distribution (in ``PLACEMENTS``),
            shifts (what differs from training, joined by "; ").
        runs: the experiments of all optimizers at all tasks.
        random: final returns of the random policy by task, (seeds,), NaN where no episode ended.
        optimal: optimal returns by task, (seeds,), where they are known.
        notes: what a reader has to know.
    """

    preset: str
    points: pd.DataFrame
    placements: pd.DataFrame
    runs: Runs
    random: Mapping[Key, np.ndarray]
    optimal: Mapping[Key, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Generalization:
    """A scored study.

    Attributes:
        preset, normalize, baseline: name, reference of scores, and optimizer that all are compared with.
        optimizers: the baseline first, the others by name.
        rows: a row a point, optimizer and seed.
        points: a row a point and optimizer, with intervals over seeds.
        axes: a row an axis and optimizer.
        summary: a row an optimizer: inside, outside, gap, worst point.
        notes: what a reader has to know.
    """

    preset: str
    normalize: str
    baseline: str
    optimizers: tuple[str, ...]
    rows: pd.DataFrame
    points: pd.DataFrame
    axes: pd.DataFrame
    summary: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def relative(self) -> bool:
        """Whether the baseline's scores are 1 by construction."""
        return self.normalize == self.baseline


class _Tables:
    """Scores by task: one matrix a column and optimizer, seeds × tasks."""

    def __init__(self, rows: pd.DataFrame):
        self._tables = {
            (optimizer, column): mine.pivot(index="seed", columns=TASK, values=column)
            for optimizer, mine in rows.groupby("optimizer")
            for column in ("value", "score")
        }

    def frame(self, optimizer: str, column: str) -> pd.DataFrame:
        """Seeds × tasks, NaN where there is no value."""
        return self._tables[(optimizer, column)]

    def matrix(self, optimizer: str, keys: Sequence[Key], column: str = "score") -> ScoreMatrix | None:
        """The seeds that have a value at all of ``keys`` that have any; None where nothing is left."""
        table = self.frame(optimizer, column)
        table = table[[key for key in keys if key in table and table[key].notna().any()]].dropna()
        if table.empty:
            return None
        names = tuple(" @ ".join(key) for key in table.columns)
        return ScoreMatrix(table.to_numpy(float), tuple(int(r) for r in table.index), names)


def generalization(
    evidence: Evidence, normalizer: str = "adam", baseline: str = "adam", resamples: int = RESAMPLES
) -> Generalization:
    """Score a study.

    Args:
        evidence: what was measured.
        normalizer: one of ``NORMALIZERS``.
        baseline: display name of the optimizer that all are compared with; it must have run at every task.
        resamples: bootstrap resamples of each interval.

    Raises:
        UserError: the normalizer is unknown.
        ValueError: the baseline has not run.
    """
    check_normalizer(normalizer)
    raw = _task_rows(evidence)
    names = set(raw["optimizer"])
    if baseline not in names:
        raise ValueError(f"{baseline} has not run")
    scales, reasons = _scales(evidence, raw, normalizer, baseline)
    rows = _with_scores(raw, evidence, scales, normalizer, baseline)
    tables = _Tables(rows)
    optimizers = (baseline, *sorted(names - {baseline}))
    points = _points(evidence, rows, tables, scales, optimizers, baseline, resamples)
    relative = normalizer == baseline
    summary = [_summary(name, baseline, relative, points, tables, resamples) for name in optimizers]
    axes = [_axis(name, axis, baseline, points, tables, resamples) for axis in points["axis"].unique()
            for name in optimizers]  # fmt: skip
    notes = (*evidence.notes, *_notes(evidence, points, reasons, normalizer, baseline))
    tidy = _tidy(evidence, rows, scales, baseline)
    return Generalization(
        evidence.preset,
        normalizer,
        baseline,
        optimizers,
        tidy,
        points,
        pd.DataFrame(axes),
        pd.DataFrame(summary),
        notes,
    )


def check_normalizer(name: str) -> None:
    """Raise UserError for a reference of scores that there is not."""
    if name not in NORMALIZERS:
        raise UserError(f"unknown normalizer '{name}'.{near_matches(name, list(NORMALIZERS))} "
                        f"Known: {', '.join(NORMALIZERS)}")  # fmt: skip


# --- rows --------------------------------------------------------------------------------------------------------


def _task_rows(evidence: Evidence) -> pd.DataFrame:
    """A row an optimizer, task and seed, with ``value``: the return, filled in where there is none."""
    runs = evidence.runs
    facts = runs.experiments.set_index("experiment")[["hyperparameter_origin", "hyperparameters", "theta"]]
    rows = runs.scores.join(facts, on="experiment").sort_values(["optimizer", *TASK, "seed"], ignore_index=True)
    parts = [mine.assign(value=_filled(evidence, key, mine)) for key, mine in rows.groupby(TASK)]
    return pd.concat(parts).sort_index()


def _filled(evidence: Evidence, key: Key, rows: pd.DataFrame) -> pd.Series:
    """Final returns at a task, with the random policy's, or the lowest, in place of what is missing."""
    random = rows["seed"].map(dict(enumerate(evidence.random[key])))
    returns = rows["final_return"]
    return returns.fillna(random).fillna(_random_mean(evidence, key)).fillna(returns.min())


def _random_mean(evidence: Evidence, key: Key) -> float:
    known = evidence.random[key]
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else float("nan")


def _scales(
    evidence: Evidence, rows: pd.DataFrame, normalizer: str, baseline: str
) -> tuple[dict[Key, Scale], dict[Key, str]]:
    """The scales of tasks, and of the others the reason why there is none."""
    scales: dict[Key, Scale] = {}
    reasons: dict[Key, str] = {}
    if normalizer == "none":
        return scales, reasons
    for key, mine in rows[rows["optimizer"] == baseline].groupby(TASK):
        values = mine.set_index("seed")["value"]
        found = _against_baseline(evidence, key, values, baseline) if normalizer == "adam" else _optimal(evidence, key)
        if isinstance(found, Scale):
            scales[key] = found
        else:
            reasons[key] = found
    return scales, reasons


def _against_baseline(evidence: Evidence, key: Key, values: pd.Series, baseline: str) -> Scale | str:
    random = pd.Series(evidence.random[key]).reindex(values.index)
    difference = (values - random).dropna().to_numpy(float)
    if not len(difference):
        return "no episode of the random policy ended"
    mean, low, _ = (float(each[0]) for each in mean_bands(difference[:, None]))
    several = len(difference) > 1
    noise = random.dropna().std() if several else 0.0
    if not ((low if several else mean) > 0 and mean > SMALL * noise):
        return f"{baseline} is not above the random policy"
    return _scale(_random_mean(evidence, key), float(values.mean())) or f"{baseline} is not above the random policy"


def _optimal(evidence: Evidence, key: Key) -> Scale | str:
    if key not in evidence.optimal:
        return "the optimal return can not be computed"
    random = _random_mean(evidence, key)
    return _scale(random, float(evidence.optimal[key].mean())) or "the optimal return is not above the random policy's"


def _scale(random: float, reference: float) -> Scale | None:
    return Scale(random, reference) if reference > random else None  # False for NaN too


def _with_scores(
    rows: pd.DataFrame, evidence: Evidence, scales: Mapping[Key, Scale], normalizer: str, baseline: str
) -> pd.DataFrame:
    theirs = rows[rows["optimizer"] == baseline].set_index([*TASK, "seed"])["value"]
    paired = rows.join(theirs, on=[*TASK, "seed"], rsuffix="_baseline")["value_baseline"].to_numpy(float)
    value, score = rows["value"].to_numpy(float), np.full(len(rows), np.nan)
    for key, scale in scales.items():
        here = ((rows["environment"] == key[0]) & (rows["budget"] == key[1])).to_numpy()
        score[here] = normalize(value[here], scale)
        if normalizer == baseline:
            score[here] += 1.0 - normalize(paired[here], scale)
    placed = evidence.placements.set_index(["optimizer", *TASK])[["distribution", "shifts"]]
    return rows.assign(score=score).join(placed, on=["optimizer", *TASK])


def _tidy(evidence: Evidence, rows: pd.DataFrame, scales: Mapping[Key, Scale], baseline: str) -> pd.DataFrame:
    """Every seed at every point, in the order of the points."""
    keys = list(zip(rows["environment"], rows["budget"], strict=True))
    theirs = rows[rows["optimizer"] == baseline].set_index([*TASK, "seed"])[["value", "score"]]
    paired = rows.join(theirs, on=[*TASK, "seed"], rsuffix="_baseline")
    rows = rows.assign(
        random=[_random_mean(evidence, key) for key in keys],
        reference=[scales[key].reference if key in scales else np.nan for key in keys],
        difference=paired["value"] - paired["value_baseline"],
        score_difference=paired["score"] - paired["score_baseline"],
    )
    order = evidence.points.assign(place=range(len(evidence.points)))
    tidy = order.merge(rows.drop(columns="env_steps"), on=TASK, how="left")
    columns = ["axis", "point", "x", "environment", "budget", "env_steps", "num_updates", "optimizer", "seed",
               "final_return", "mean_return", "diverged", "value", "random", "reference", "score", "difference",
               "score_difference", "distribution", "shifts", "hyperparameter_origin", "hyperparameters", "theta",
               "experiment"]  # fmt: skip
    return tidy.sort_values(["place", "optimizer", "seed"], ignore_index=True)[columns]


# --- points, axes, summary ---------------------------------------------------------------------------------------


def _points(
    evidence: Evidence, rows: pd.DataFrame, tables: _Tables, scales: Mapping[Key, Scale],
    optimizers: tuple[str, ...], baseline: str, resamples: int,
) -> pd.DataFrame:  # fmt: skip
    parts: list[pd.DataFrame] = []
    for optimizer in optimizers:
        estimates = _task_estimates(tables, optimizer, baseline, resamples)
        mine = rows[rows["optimizer"] == optimizer].groupby(TASK)
        facts = mine.agg(
            distribution=("distribution", "first"),
            shifts=("shifts", "first"),
            hyperparameter_origin=("hyperparameter_origin", "first"),
            theta=("theta", "first"),
            seeds=("seed", "size"),
            diverged=("diverged", "sum"),
        )
        parts.append(estimates.join(facts).reset_index().assign(optimizer=optimizer, rank=len(parts)))
    found = pd.concat(parts, ignore_index=True)
    keys = list(zip(found["environment"], found["budget"], strict=True))
    found["random"] = [_random_mean(evidence, key) for key in keys]
    found["reference"] = [scales[key].reference if key in scales else np.nan for key in keys]
    order = evidence.points.assign(place=range(len(evidence.points)))
    merged = order.merge(found, on=TASK, how="left").sort_values(["place", "rank"], ignore_index=True)
    first = ["axis", "point", "x", "environment", "budget", "env_steps", "num_updates", "optimizer"]
    return merged[[*first, *(name for name in merged if name not in {*first, "place", "rank"})]]


def _task_estimates(tables: _Tables, optimizer: str, baseline: str, resamples: int) -> pd.DataFrame:
    """Means over seeds by task with intervals: return, score, and both minus the baseline's, pair by pair."""
    value, score = tables.frame(optimizer, "value"), tables.frame(optimizer, "score")
    frames = {
        "mean": value,
        "score": score,
        "difference": value - tables.frame(baseline, "value"),
        "score_difference": score - tables.frame(baseline, "score"),
    }
    columns: dict[str, np.ndarray] = {}
    for name, frame in frames.items():
        frame = frame.reindex(columns=value.columns)
        frame = frame.loc[frame.notna().any(axis=1)] if frame.notna().any(axis=None) else frame
        for end, numbers in zip(("", "_low", "_high"), mean_bands(frame.to_numpy(float), resamples), strict=True):
            columns[name + end] = numbers
    return pd.DataFrame(columns, index=value.columns)


def _summary(
    optimizer: str, baseline: str, relative: bool, points: pd.DataFrame, tables: _Tables, resamples: int
) -> dict[str, Any]:
    mine = points[points["optimizer"] == optimizer]
    keys = {place: _keys(mine[mine["distribution"] == place]) for place in PLACEMENTS}
    estimates = dict.fromkeys(SUMMARY_ESTIMATES, NO_ESTIMATE)
    matrices = {place: tables.matrix(optimizer, keys[place]) for place in ("in", "out")}
    for place, matrix in matrices.items():
        estimates[f"{place}_score"] = _iqm(matrix, resamples)
        if optimizer != baseline:
            estimates[f"{place}_difference"] = _difference(tables, optimizer, baseline, keys[place], resamples)
            estimates[f"{place}_win"] = _win(tables, optimizer, baseline, keys[place], resamples)
    estimates["all_score"] = _iqm(tables.matrix(optimizer, _keys(mine)), resamples)
    itself = relative and optimizer == baseline
    inside, outside = matrices["in"], matrices["out"]
    if inside is not None and outside is not None and not itself:
        estimates["gap"] = aggregate.iqm_gap(inside, outside, resamples)
    tasks = mine.drop_duplicates(TASK)
    return {
        "optimizer": optimizer,
        **{f"{place}_tasks": len(keys[place]) for place in PLACEMENTS},
        "scored_tasks": int(tasks["score"].notna().sum()),
        **_flatten(estimates),
        **_worst(mine.iloc[:0] if itself else mine),
        "lifetimes": int(tasks["seeds"].sum()),
        "diverged": int(tasks["diverged"].sum()),
    }


def _axis(
    optimizer: str, axis: str, baseline: str, points: pd.DataFrame, tables: _Tables, resamples: int
) -> dict[str, Any]:
    mine = points[(points["optimizer"] == optimizer) & (points["axis"] == axis)]
    keys = _keys(mine)
    difference = NO_ESTIMATE if optimizer == baseline else _difference(tables, optimizer, baseline, keys, resamples)
    estimates = {"score": _iqm(tables.matrix(optimizer, keys), resamples), "difference": difference}
    counts = {"points": len(mine), "scored_points": int(mine["score"].notna().sum())}
    return {"axis": axis, "optimizer": optimizer, **counts, **_flatten(estimates)}


def _keys(points: pd.DataFrame) -> list[Key]:
    return list(dict.fromkeys(zip(points["environment"], points["budget"], strict=True)))


def _iqm(matrix: ScoreMatrix | None, resamples: int) -> Estimate:
    return NO_ESTIMATE if matrix is None else aggregate.iqm_estimate(matrix, resamples)


def _difference(tables: _Tables, optimizer: str, baseline: str, keys: list[Key], resamples: int) -> Estimate:
    mine, theirs = tables.matrix(optimizer, keys), tables.matrix(baseline, keys)
    if mine is None or theirs is None or not set(mine.seeds) & set(theirs.seeds):
        return NO_ESTIMATE
    return aggregate.paired_difference(mine, theirs, resamples)


def _win(tables: _Tables, optimizer: str, baseline: str, keys: list[Key], resamples: int) -> Estimate:
    """Over all tasks with returns, those without a scale too: who wins needs none."""
    mine, theirs = tables.matrix(optimizer, keys, "value"), tables.matrix(baseline, keys, "value")
    if mine is None or theirs is None:
        return NO_ESTIMATE
    return aggregate.probability_of_improvement(mine, theirs, resamples)


def _worst(points: pd.DataFrame) -> dict[str, Any]:
    """The point with the lowest mean score."""
    scored = points.dropna(subset=["score"])
    if scored.empty:
        return {"worst_axis": "", "worst_point": ""} | dict.fromkeys(("worst", "worst_low", "worst_high"), np.nan)
    worst = scored.loc[scored["score"].idxmin()]
    ends = {"worst": worst["score"], "worst_low": worst["score_low"], "worst_high": worst["score_high"]}
    return {"worst_axis": worst["axis"], "worst_point": worst["point"], **ends}


def _flatten(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    ends = (("", 0), ("_low", 1), ("_high", 2))
    return {f"{name}{end}": estimate[i] for name, estimate in estimates.items() for end, i in ends}


# --- notes -------------------------------------------------------------------------------------------------------


def _notes(
    evidence: Evidence, points: pd.DataFrame, reasons: Mapping[Key, str], normalizer: str, baseline: str
) -> list[str]:
    notes = []
    if normalizer == baseline:
        notes.append(f"scores are relative to {baseline} at the same point (0: random policy), so {baseline} is 1 by "
                     "construction and has no gap")  # fmt: skip
    elif normalizer == "optimal":
        notes.append("scores are absolute: 0 is the random policy, 1 an optimal one on the same levels")
    else:
        notes.append(
            "returns of different tasks share no scale, so without a normalizer nothing but wins is aggregated"
        )
    notes += _left_out(evidence, reasons)
    if evidence.runs.scores["seed"].nunique() == 1:
        notes.append("one seed, so no intervals")
    for optimizer, mine in points.groupby("optimizer", sort=True):
        places = set(mine["distribution"])
        if "unknown" in places:
            notes.append(f"{optimizer}: it is not known where it was trained or tuned; say so with --train-on")
        elif "in" not in places:
            notes.append(f"{optimizer}: no point lies in what it was trained or tuned on, so it has no score there and "
                         "no gap")  # fmt: skip
        failed = int(mine.drop_duplicates(TASK)["diverged"].sum())
        if failed:
            notes.append(f"{optimizer}: {failed} diverged lifetimes count as the random policy")
    return notes


def _left_out(evidence: Evidence, reasons: Mapping[Key, str]) -> list[str]:
    notes = []
    for reason in sorted(set(reasons.values())):
        keys = {key for key, why in reasons.items() if why == reason}
        points = evidence.points
        here = [key in keys for key in zip(points["environment"], points["budget"], strict=True)]
        named = (points["axis"] + " " + points["point"])[here]
        listed = ", ".join(named)
        notes.append(
            f"raw returns only, left out of scores ({len(named)} of {len(points)} points), since {reason}: {listed}"
        )
    return notes
