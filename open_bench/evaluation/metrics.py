"""What a stored lifetime is worth, defined once: missing returns, "above random", scales, pairing and matrices.

**Missing returns.** A lifetime that diverged, or in which no episode finished, gets the random policy's return: that of
its own seed where it was measured, else the mean. Where that is not known, the lowest return that any lifetime of the
task reached stands in. Where no lifetime at all finished an episode, the task has no result.

**Scores.** 0 is the random policy and 1 is Adam; nothing is clipped. By stored returns, score = (x − random)/(adam −
random). By the Adam of the same study, score = 1 + (x − adam of the same seed)/(mean adam − mean random): the mean is
the same, but the luck of a seed, which both share, is in no score, and Adam has 1 in each.

**Above random.** Where Adam is not above random there is no scale. By pairs of one seed: the 95 % percentile bootstrap
interval of the difference is above 0 (Student's would refuse nearly all pairs of two seeds), and its mean above half of
the standard deviation of random's returns over seeds, as a difference that is small against the noise is no unit to
measure in. Of stored returns only summaries are known: Adam's interval, or its mean where that is all there is, is
above random's.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from open_bench.evaluation.baseline_returns import BaselineReturns, EnvironmentReturns, returns_of
from open_bench.evaluation.bootstrap import ScoreMatrix, mean_bands
from open_bench.text import listed

ADAM = "adam"  # the label whose lifetimes are 1
JOINED = f"{ADAM} was not named: it joins as what scores are measured against"
NOISE = 0.5  # standard deviations of random's returns


class Scale(NamedTuple):
    """The two returns that score 0 and 1."""

    zero: float
    one: float


class ScalePlan(NamedTuple):
    """What scores of a board are measured against: stored returns, its own Adam and random policy, or nothing."""

    kind: Literal["stored", "own", "none"]
    reason: str


class RandomReturns(NamedTuple):
    """The random policy at a task: its mean return, NaN where it is not known, and each measured seed's."""

    mean: float = math.nan
    by_seed: pd.Series = pd.Series(dtype=float)

    @classmethod
    def of(cls, returns: Any) -> "RandomReturns":
        """From returns by seed, a Series or (seeds,), NaN where no episode ended."""
        by_seed = pd.Series(returns, dtype=float)
        return cls(float(by_seed.mean()), by_seed)


# --- scales ------------------------------------------------------------------------------------------------------


def scale_plan(
    environments: Collection[str],
    algorithm: str,
    budget: str,
    optimizers: Collection[str],
    baseline_returns: BaselineReturns,
    metric: str = "final_return",
    env_steps: Mapping[str, int] | None = None,
    own: str = ADAM,
) -> ScalePlan:
    """Which scale a board with these environments and optimizers has: one for all of it.

    Args:
        environments, algorithm, budget: what is trained on.
        optimizers: labels of what is trained.
        baseline_returns: stored returns by environment.
        metric: column that is scored.
        env_steps: length of a lifetime by environment; stored returns of another length do not fit.
        own: label of the Adam among ``optimizers`` that may be the 1.
    """
    lacking = []
    for name in sorted(environments):
        known = returns_of(baseline_returns, name)
        adam = known.adam(algorithm, budget)
        fits = adam is not None and (not env_steps or adam.env_steps in (None, env_steps[name]))
        if not fits or _mean(adam, metric) is None or _mean(known.random, metric) is None:
            lacking.append(name)
    if not lacking:
        return ScalePlan("stored", "scores: 0 is the random policy and 1 is Adam, by stored returns")
    why = f"no stored returns fit {listed(lacking)} ({algorithm} at {budget})"
    if own in optimizers:
        who = "Adam" if own == ADAM else own
        return ScalePlan(
            "own", f"scores: 0 is the random policy and 1 is {who}, of these runs and paired by seed, as {why}"
        )
    return ScalePlan("none", f"no scores, only returns, ranked by mean rank: {why}, and {ADAM} has not run here")


def stored_scale(known: EnvironmentReturns, algorithm: str, budget: str, metric: str) -> Scale | str:
    """The scale that stored returns give, or the reason why they give none."""
    adam = known.adam(algorithm, budget)
    one, zero = _mean(adam, metric), _mean(known.random, metric)
    if one is None:
        return "Adam's return is not known" + ("" if metric == "final_return" else f" by {metric}")
    if zero is None:
        return "the random policy's return is not known"
    assert known.random is not None
    interval = known.random.of(metric)
    high = interval.high if interval is not None and interval.high is not None else zero
    assert adam is not None
    own = adam.of(metric)
    low = own.low if own is not None and own.low is not None else one
    if not low > high:
        return f"Adam's return, {low:.4g} or more, is not above random's interval, which ends at {high:.4g}"
    return Scale(zero, one)


def own_scale(adam: pd.Series, random: RandomReturns) -> Scale | str:
    """The scale that Adam's returns by seed (filled in) and the random policy's give, or why they give none."""
    if math.isnan(random.mean):
        return "the random policy has not run, or no episode of it ended"
    if adam.dropna().empty:
        return f"{ADAM} has not run"
    if not above_random(adam, random.by_seed):
        return f"{ADAM} is not above the random policy"
    return usable(Scale(random.mean, float(adam.mean()))) or f"{ADAM} is not above the random policy"


def above_random(returns: pd.Series, random: pd.Series) -> bool:
    """Whether returns by seed are above the random policy's, pair by pair; a single pair has no noise to be above."""
    random = random.reindex(returns.index).dropna()
    difference = (returns - random).dropna().to_numpy(float)
    if not len(difference):
        return False
    mean, low, _ = (float(each[0]) for each in mean_bands(difference[:, None]))
    several = len(difference) > 1
    return (low if several else mean) > 0 and mean > NOISE * (random.std() if several else 0.0)


def usable(scale: Scale) -> Scale | None:
    """The scale itself when 1 lies above 0."""
    return scale if scale.one > scale.zero else None  # False for NaN too


def _mean(returns: Any, metric: str) -> float | None:
    interval = returns.of(metric) if returns is not None else None
    return interval.mean if interval is not None else None


# --- rows --------------------------------------------------------------------------------------------------------


def normalize(returns: np.ndarray, scale: Scale) -> np.ndarray:
    """(x − zero) / (one − zero), elementwise; raises ValueError unless one > zero."""
    if not scale.one > scale.zero:
        raise ValueError(f"the return that scores 1, {scale.one}, is not above the one that scores 0, {scale.zero}")
    return (np.asarray(returns, dtype=float) - scale.zero) / (scale.one - scale.zero)


def lifetimes(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Stored scores with ``value``, the return that counts (NaN where there is none), and ``unfinished``."""
    diverged = scores["diverged"].astype(bool)
    value = scores[metric].astype(float).mask(diverged)  # what a diverged lifetime reached before does not count
    return scores.assign(value=value, diverged=diverged, unfinished=value.isna() & ~diverged)


def filled(rows: pd.DataFrame, random: RandomReturns) -> pd.Series:
    """``value`` of all lifetimes of one task with what stands in where there is none; NaN where nothing can."""
    if rows["unfinished"].all() or rows["value"].notna().all():
        return rows["value"]
    own = rows["seed"].map(random.by_seed)
    return rows["value"].fillna(own).fillna(stand_in(rows, random))


def stand_in(rows: pd.DataFrame, random: RandomReturns) -> float:
    """What a lifetime of a task counts as that has no return, and of whose seed the random policy has none either."""
    return float(rows["value"].min()) if math.isnan(random.mean) else random.mean


def scored(rows: pd.DataFrame, scale: Scale, paired: bool, adam: str = ADAM) -> np.ndarray:
    """Scores of one task's lifetimes (filled in); ``paired``: by Adam's of the same seed, NaN where it has none."""
    if not paired:
        return normalize(rows["value"].to_numpy(), scale)
    its = rows["seed"].map(rows[rows["optimizer"] == adam].set_index("seed")["value"])
    return (1.0 + (rows["value"] - its) / (scale.one - scale.zero)).to_numpy()


def acting(experiment: Any) -> str:
    """How its agents act, as far as the random policy's returns follow from it: the environment's version and options,
    copies and steps of an update. ``experiment`` is a row of the experiments table."""
    text, version = (experiment.get(name) for name in ("settings", "environment_version"))
    told = json.loads(text) if isinstance(text, str) else {}
    settings = told.get("algorithm", {})
    known = [None if version is None or math.isnan(version) else int(version), told.get("options", {})]
    return json.dumps([*known, settings.get("num_envs"), settings.get("num_steps")], sort_keys=True)


def random_returns(runs: Any, metric: str = "final_return") -> dict[tuple[str, str, int, int, str], RandomReturns]:
    """The random policy's lifetimes among stored ``Runs``, by environment, budget, protocol, root seed and ``acting``.

    Those of PPO's task and of PQN's are two.
    """
    experiments = runs.experiments[runs.experiments["algorithm"] == "random"].sort_values("experiment")
    experiments = experiments.assign(acting=[acting(row) for _, row in experiments.iterrows()])
    found = {}
    for key, group in experiments.groupby(["environment", "budget", "protocol", "root_seed", "acting"]):
        mine = lifetimes(runs.scores[runs.scores["experiment"].isin(group["experiment"])], metric)
        once = mine.sort_values(["experiment", "seed"]).drop_duplicates("seed")
        found[key] = RandomReturns.of(once.set_index("seed")["value"].sort_index())
    return found


class ScoreTable:
    """Lifetimes as matrices of seeds × tasks, an optimizer and column each; a task is one column or several."""

    def __init__(self, rows: pd.DataFrame, task: str | list[str] = "environment"):
        self._frames = {
            (optimizer, column): mine.pivot(index="seed", columns=task, values=column)
            for optimizer, mine in rows.groupby("optimizer")
            for column in ("value", "score")
        }
        # The same as arrays, with the place of each task: a board asks for as many matrices as it has cells.
        self._arrays = {
            key: (frame.to_numpy(float), frame.index.to_numpy(), {task: place for place, task in enumerate(frame)})
            for key, frame in self._frames.items()
        }

    def frame(self, optimizer: str, column: str = "score") -> pd.DataFrame:
        """Seeds × tasks, NaN where there is no value."""
        return self._frames[(optimizer, column)]

    def matrix(self, optimizer: str, tasks: Sequence[Any], column: str = "score") -> ScoreMatrix | None:
        """Scores, or returns (``column="value"``), of the seeds that all of ``tasks`` have.

        None when there are none, or when the optimizer lacks one of the tasks.
        """
        values, seeds, places = self._arrays.get((optimizer, column), (np.empty((0, 0)), np.empty(0), {}))
        if not tasks or any(task not in places for task in tasks):
            return None
        chosen = values[:, [places[task] for task in tasks]]
        known = ~np.isnan(chosen).any(axis=1)
        if not known.any():
            return None
        labels = tuple(task if isinstance(task, str) else " @ ".join(task) for task in tasks)
        return ScoreMatrix(chosen[known], tuple(int(seed) for seed in seeds[known]), labels)
