"""Scores of a generalization study: what an optimizer reaches inside and outside of what it was trained or tuned on.

A *task* is an environment (with its changes) and a budget; a *point* is a task on an axis, and one task may be a point
of several axes. Aggregates are over tasks, so nothing counts twice.

**Scores**, by choice; missing returns, scales and pairing are those of every leaderboard (``evaluation.metrics``):

- ``adam``: 0 is the random policy and 1 Adam, both at the same task and paired by seed, so that the luck of a seed's
  level is in no score.
- ``optimal``: (x − r)/(s − r) with r the random policy's mean return and s the mean of the optimal returns of the
  levels (absolute, gridworlds with fixed places only).
- ``none``: no scores at all.

**Left out.** A task without a scale is reported by returns, left out of every score, and named in the notes.

**In, out, gap.** IQM of the scores over the tasks inside, IQM over those outside, and the first minus the second; all
with 95 % bootstrap intervals, seeds drawn again within each task. Of Adam relative to itself there is no gap.

**Paired differences.** Score minus Adam's score of the same seed, which met the same level; with Student's interval
(``bootstrap.difference_interval``).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from open_bench.errors import check_known
from open_bench.evaluation import bootstrap, metrics
from open_bench.evaluation.bootstrap import NO_ESTIMATE, RESAMPLES, Estimate
from open_bench.evaluation.metrics import RandomReturns, Scale, ScoreTable
from open_bench.evaluation.schema import Runs

NORMALIZERS = ("adam", "optimal", "none")
PLACEMENTS = ("in", "out", "unknown")
TASK = ["environment", "budget"]
POINT = ["axis", "point", "x", "environment", "algorithm", "budget", "env_steps", "num_updates"]
SUMMARY_ESTIMATES = (
    "in_score", "out_score", "gap", "in_difference", "out_difference", "in_win", "out_win", "all_score",
)  # fmt: skip

Key = tuple[str, str]  # environment, budget


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What was measured.

    Attributes:
        name: of the study.
        points: a row a point, in order: axis, point, x (NaN where it is no number), environment, algorithm, budget,
            env_steps, num_updates.
        placements: a row an optimizer and task: optimizer, environment, budget, distribution (in ``PLACEMENTS``),
            shifts (what differs from training, joined by "; ").
        runs: the experiments of all optimizers at all tasks.
        random: final returns of the random policy by task, (seeds,) or a Series by seed, NaN where no episode ended.
        optimal: optimal returns by task, (seeds,), where they are known.
        notes: what a reader has to know.
    """

    name: str
    points: pd.DataFrame
    placements: pd.DataFrame
    runs: Runs
    random: Mapping[Key, Any]
    optimal: Mapping[Key, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Generalization:
    """A scored study.

    Attributes:
        name, normalize, baseline: the study's name, what 1 is, and optimizer that all are compared with.
        optimizers: the baseline first, the others by name.
        rows: a row a point, optimizer and seed; ``random`` and ``one`` are the returns that score 0 and 1.
        points: a row a point and optimizer, with intervals over seeds.
        axes: a row an axis and optimizer.
        summary: a row an optimizer: inside, outside, gap, worst point.
        notes: what a reader has to know.
    """

    name: str
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


def generalization(
    evidence: Evidence, normalizer: str = "adam", baseline: str = metrics.ADAM, resamples: int = RESAMPLES
) -> Generalization:
    """Score a study.

    Args:
        evidence: what was measured.
        normalizer: one of ``NORMALIZERS``.
        baseline: label of the optimizer that all are compared with; it must have run at every task.
        resamples: bootstrap resamples of each interval.

    Raises:
        UserError: the normalizer is unknown.
        ValueError: the baseline has not run.
    """
    check_known("normalizer", normalizer, NORMALIZERS)
    names = set(evidence.runs.scores["optimizer"])
    if baseline not in names:
        raise ValueError(f"{baseline} has not run")
    scorer = _Scorer(evidence, normalizer, baseline, (baseline, *sorted(names - {baseline})), resamples)
    return scorer.study()


class _Scorer:
    """A study at work: its lifetimes with their scores, and the scales of its tasks or why there are none."""

    def __init__(self, evidence: Evidence, normalizer: str, baseline: str, optimizers: tuple[str, ...], resamples: int):
        self.evidence, self.normalizer, self.baseline = evidence, normalizer, baseline
        self.optimizers, self.resamples = optimizers, resamples
        self.relative = normalizer == baseline
        self.random = {key: RandomReturns.of(returns) for key, returns in evidence.random.items()}
        self.scales: dict[Key, Scale] = {}
        self.reasons: dict[Key, str] = {}
        self.rows = self._scored()
        self.table = ScoreTable(self.rows, TASK)

    def study(self) -> Generalization:
        """Everything that is reported."""
        points = self._points()
        summary = [self._summary(name, points[points["optimizer"] == name]) for name in self.optimizers]
        axes = [
            self._axis(name, axis, points[(points["optimizer"] == name) & (points["axis"] == axis)])
            for axis in points["axis"].unique()
            for name in self.optimizers
        ]
        return Generalization(
            self.evidence.name, self.normalizer, self.baseline, self.optimizers, self._tidy(), points,
            pd.DataFrame(axes), pd.DataFrame(summary), (*self.evidence.notes, *self._notes(points)),
        )  # fmt: skip

    # --- rows ---

    def _scored(self) -> pd.DataFrame:
        """A row an optimizer, task and seed, with ``value`` (filled in), ``score``, and where the task lies."""
        runs = self.evidence.runs
        facts = runs.experiments.set_index("experiment")[["hyperparameter_origin", "hyperparameters", "theta"]]
        placed = self.evidence.placements.set_index(["optimizer", *TASK])[["distribution", "shifts"]]
        rows = metrics.lifetimes(runs.scores.join(facts, on="experiment"), "final_return")
        parts = [self._scored_task(key, mine) for key, mine in rows.groupby(TASK)]
        joined = pd.concat(parts).sort_values(["optimizer", *TASK, "seed"], ignore_index=True)
        return joined.join(placed, on=["optimizer", *TASK])

    def _scored_task(self, key: Key, rows: pd.DataFrame) -> pd.DataFrame:
        rows = rows.assign(value=metrics.filled(rows, self.random[key]), score=np.nan)
        scale = self._scale(key, rows)
        if isinstance(scale, Scale):
            self.scales[key] = scale
            return rows.assign(score=metrics.scored(rows, scale, paired=self.relative))
        if scale:
            self.reasons[key] = scale
        return rows

    def _scale(self, key: Key, rows: pd.DataFrame) -> Scale | str:
        """The scale of a task, or the reason why there is none; "" where none is wanted."""
        if self.normalizer == "none":
            return ""
        if self.normalizer == "adam":
            return metrics.own_scale(
                rows[rows["optimizer"] == metrics.ADAM].set_index("seed")["value"], self.random[key]
            )
        if key not in self.evidence.optimal:
            return "the optimal return can not be computed"
        scale = metrics.usable(Scale(self.random[key].mean, float(self.evidence.optimal[key].mean())))
        return scale or "the optimal return is not above the random policy's"

    def _with_ends(self, rows: pd.DataFrame) -> pd.DataFrame:
        """With the returns that score 0 and 1 at each row's task."""
        keys = list(zip(rows["environment"], rows["budget"], strict=True))
        ones = [self.scales[key].one if key in self.scales else np.nan for key in keys]
        return rows.assign(random=[self.random[key].mean for key in keys], one=ones)

    def _at_points(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows of tasks at every point, in the order of the points and optimizers."""
        order = self.evidence.points.assign(place=range(len(self.evidence.points)))
        merged = order.merge(rows.drop(columns=["algorithm", "env_steps"], errors="ignore"), on=TASK, how="left")
        merged["rank"] = merged["optimizer"].map(self.optimizers.index)
        by = ["place", "rank", *(["seed"] if "seed" in merged else [])]
        return merged.sort_values(by, ignore_index=True).drop(columns=["place", "rank"])

    def _tidy(self) -> pd.DataFrame:
        """Every seed at every point."""
        theirs = self.rows[self.rows["optimizer"] == self.baseline].set_index([*TASK, "seed"])[["value", "score"]]
        paired = self.rows.join(theirs, on=[*TASK, "seed"], rsuffix="_baseline")
        rows = self._with_ends(self.rows).assign(
            difference=paired["value"] - paired["value_baseline"],
            score_difference=paired["score"] - paired["score_baseline"],
        )
        columns = [*POINT, "optimizer", "seed", "final_return", "mean_return", "diverged", "value", "random", "one",
                   "score", "difference", "score_difference", "distribution", "shifts", "hyperparameter_origin",
                   "hyperparameters", "theta", "experiment"]  # fmt: skip
        return self._at_points(rows)[columns]

    # --- points, axes, summary ---

    def _points(self) -> pd.DataFrame:
        parts = []
        for optimizer in self.optimizers:
            facts = self.rows[self.rows["optimizer"] == optimizer].groupby(TASK).agg(
                distribution=("distribution", "first"),
                shifts=("shifts", "first"),
                hyperparameter_origin=("hyperparameter_origin", "first"),
                theta=("theta", "first"),
                num_seeds=("seed", "size"),
                diverged=("diverged", "sum"),
            )  # fmt: skip
            parts.append(self._task_estimates(optimizer).join(facts).reset_index().assign(optimizer=optimizer))
        merged = self._at_points(self._with_ends(pd.concat(parts, ignore_index=True)))
        first = [*POINT, "optimizer"]
        return merged[[*first, *(name for name in merged if name not in first)]]

    def _task_estimates(self, optimizer: str) -> pd.DataFrame:
        """Means over seeds by task with intervals: return, score, and both minus the baseline's, pair by pair."""
        value, score = (self.table.frame(optimizer, column) for column in ("value", "score"))
        frames = {
            "mean": value,
            "score": score,
            "difference": value - self.table.frame(self.baseline, "value"),
            "score_difference": score - self.table.frame(self.baseline, "score"),
        }
        columns: dict[str, np.ndarray] = {}
        for name, frame in frames.items():
            frame = frame.reindex(columns=value.columns)
            frame = frame.loc[frame.notna().any(axis=1)] if frame.notna().any(axis=None) else frame
            numbers = frame.to_numpy(float)
            paired = name.endswith("difference")
            bands = bootstrap.difference_bands(numbers) if paired else bootstrap.mean_bands(numbers, self.resamples)
            columns |= {name + end: each for end, each in zip(("", "_low", "_high"), bands, strict=True)}
        return pd.DataFrame(columns, index=value.columns)

    def _summary(self, optimizer: str, mine: pd.DataFrame) -> dict[str, Any]:
        keys = {place: _keys(mine[mine["distribution"] == place]) for place in PLACEMENTS}
        itself = self.relative and optimizer == self.baseline
        estimates = dict.fromkeys(SUMMARY_ESTIMATES, NO_ESTIMATE)
        for place in ("in", "out"):
            estimates[f"{place}_score"] = self._iqm(optimizer, keys[place])
            if optimizer != self.baseline:
                estimates[f"{place}_difference"] = self._difference(optimizer, keys[place])
                estimates[f"{place}_win"] = self._win(optimizer, keys[place])
        estimates["all_score"] = self._iqm(optimizer, _keys(mine))
        if not itself:
            inside, outside = (self._matrix(optimizer, keys[place]) for place in ("in", "out"))
            estimates["gap"] = bootstrap.iqm_gap(inside, outside, self.resamples)
        tasks = mine.drop_duplicates(TASK)
        return {
            "optimizer": optimizer,
            **{f"{place}_tasks": len(keys[place]) for place in PLACEMENTS},
            "scored_tasks": int(tasks["score"].notna().sum()),
            **bootstrap.columns_of(estimates),
            **_worst(mine.iloc[:0] if itself else mine),
            "lifetimes": int(tasks["num_seeds"].sum()),
            "diverged": int(tasks["diverged"].sum()),
        }

    def _axis(self, optimizer: str, axis: str, mine: pd.DataFrame) -> dict[str, Any]:
        keys = _keys(mine)
        difference = NO_ESTIMATE if optimizer == self.baseline else self._difference(optimizer, keys)
        estimates = {"score": self._iqm(optimizer, keys), "difference": difference}
        counts = {"points": len(mine), "scored_points": int(mine["score"].notna().sum())}
        return {"axis": axis, "optimizer": optimizer, **counts, **bootstrap.columns_of(estimates)}

    def _matrix(self, optimizer: str, keys: list[Key], column: str = "score") -> bootstrap.ScoreMatrix | None:
        """Over those of ``keys`` that have a scale, or, for returns, a result: who wins needs no scale."""
        frame = self.table.frame(optimizer, column)
        there = [key for key in keys if key in frame and frame[key].notna().any()]
        return self.table.matrix(optimizer, there, column)

    def _iqm(self, optimizer: str, keys: list[Key]) -> Estimate:
        return bootstrap.iqm_estimate(self._matrix(optimizer, keys), self.resamples)

    def _difference(self, optimizer: str, keys: list[Key]) -> Estimate:
        mine, theirs = (self._matrix(name, keys) for name in (optimizer, self.baseline))
        return bootstrap.paired_difference(mine, theirs)

    def _win(self, optimizer: str, keys: list[Key]) -> Estimate:
        mine, theirs = (self._matrix(name, keys, "value") for name in (optimizer, self.baseline))
        return bootstrap.probability_of_improvement(mine, theirs, self.resamples)

    # --- notes ---

    def _notes(self, points: pd.DataFrame) -> list[str]:
        baseline = self.baseline
        notes = [{
            "adam": f"scores are relative to {baseline} at the same point (0: random policy), so {baseline} is 1 by "
                    "construction and has no gap",
            "optimal": "scores are absolute: 0 is the random policy, 1 an optimal one on the same levels",
            "none": "returns of different tasks share no scale, so without a normalizer nothing but wins is aggregated",
        }[self.normalizer], *self._left_out()]  # fmt: skip
        if self.rows["seed"].nunique() == 1:
            notes.append("one seed, so no intervals")
        for optimizer, mine in points.groupby("optimizer", sort=True):
            places = set(mine["distribution"])
            if "unknown" in places:
                notes.append(f"{optimizer}: it is not known where it was trained or tuned; say so with --train-on")
            elif "in" not in places:
                notes.append(f"{optimizer}: no point lies in what it was trained or tuned on, so it has no score there "
                             "and no gap")  # fmt: skip
            failed = int(mine.drop_duplicates(TASK)["diverged"].sum())
            if failed:
                notes.append(f"{optimizer}: {failed} diverged lifetimes count as the random policy")
        return notes

    def _left_out(self) -> list[str]:
        notes, points = [], self.evidence.points
        why = [self.reasons.get(key, "") for key in zip(points["environment"], points["budget"], strict=True)]
        names = points["axis"] + " " + points["point"]
        for reason in sorted(set(why) - {""}):
            named = names[[each == reason for each in why]]
            notes.append(f"returns only, left out of scores ({len(named)} of {len(points)} points), since {reason}: "
                         f"{', '.join(named)}")  # fmt: skip
        return notes


def _keys(points: pd.DataFrame) -> list[Key]:
    return list(dict.fromkeys(zip(points["environment"], points["budget"], strict=True)))


def _worst(points: pd.DataFrame) -> dict[str, Any]:
    """The point with the lowest mean score."""
    scored = points.dropna(subset=["score"])
    if scored.empty:
        return {"worst_axis": "", "worst_point": ""} | dict.fromkeys(("worst", "worst_low", "worst_high"), np.nan)
    worst = scored.loc[scored["score"].idxmin()]
    ends = {"worst": worst["score"], "worst_low": worst["score_low"], "worst_high": worst["score_high"]}
    return {"worst_axis": worst["axis"], "worst_point": worst["point"], **ends}
