"""What stored trials of tuning say: expected best of k, sensitivity, and whether ranks are stable in K.

Trials are a data frame, one row a trial and seed (``schema.TRIALS``); trial 0, the published or default setting, is no
point of the search and takes no part. A trial's score is its final return. A lifetime without one (diverged, or no
episode finished) makes its trial the worst, and scores the lowest return of any lifetime in the environment.

**Cross-fitting.** Who is chosen by the scores that he is then judged by wins by luck too. So each seed in turn is left
out: trials are ranked by their mean over the other seeds and judged by the one left out; the results are averaged. With
two tuning seeds that is one for ranking and one for judging, and the reverse.

**Expected best of k** of N trials (Dodge et al. 2019, arXiv 1909.03004): Σⱼ C(N − j, k − 1)/C(N, k)·s₍ⱼ₎, where s₍ⱼ₎ is
the score of the trial of rank j, best first: what tuning with k of these trials brings, on average over their choice.
Equally ranked trials share their mean score, in each draw of the bootstrap those that it holds.

**Sensitivity** (Adkins et al. 2024, arXiv 2412.07165): Γ = (score − p5)/(p95 − p5) in each environment, percentiles
over all trials of all optimizers there; Φ = mean over environments of the best Γ − the best mean of Γ over
environments: what tuning for each environment brings over the best single setting. Performance is the first term.

Intervals are 95 % percentile bootstrap intervals over trials, drawn again with all their seeds, the same in all
environments. A draw holds fewer different trials than there are, so they are honest for k well below N, and low at N.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from open_bench.evaluation.bootstrap import CONFIDENCE, RESAMPLES, Estimate, columns_of
from open_bench.evaluation.schema import TRIAL_LABELS, TRIALS, BadRows, check_trials
from open_bench.evaluation.schema import read_trials as read_table
from open_bench.files import read_json

ALL = "all environments"  # in place of an environment: means of Γ over all
BOARD = ["algorithm", "budget"]
_TASK = ("environment_version", "protocol", "settings", "options", "num_updates")  # of an identity
_SEED = 2407


class Searched(NamedTuple):
    """Trials of one optimizer in some environments, the same in each.

    ``values`` (environments, trials, seeds) are final returns, or Γ, with what stands in for a missing one;
    ``failed`` says where one does. ``settings`` (trials,) are the trials', as text.
    """

    environments: tuple[str, ...]
    values: np.ndarray
    failed: np.ndarray
    settings: tuple[str, ...]


def read_trials(results: str | Path) -> pd.DataFrame:
    """All trials below ``<results>/tuning``; ``tuning`` is the folder. What is damaged is named in a warning."""
    found: dict[tuple[str, ...], Path] = {}
    tasks: dict[tuple[str, ...], tuple[Path, str]] = {}  # what trials of an environment have to share
    frames = []
    for path in sorted((Path(results) / "tuning").glob("*/trials.csv")):
        try:
            identity = read_json(path.parent / "tuning.json")["identity"]
            frame = check_trials(labeled(read_table(path, TRIALS, ["trial", "seed"]), path.parent.name, identity))
            key = tuple(str(identity[name]) for name in TRIAL_LABELS)
            if key in found:
                raise BadRows(f"{found[key]} has trials of {' '.join(key)} too: move one of the two away")
            task = json.dumps([identity.get(name) for name in _TASK], sort_keys=True)
            other, its = tasks.setdefault(key[:-1], (path, task))
            if its != task:
                raise BadRows(f"they are of another task than {other} ({', '.join(_TASK)}): move one of the two away")
        except (BadRows, OSError, ValueError, KeyError, TypeError, OverflowError) as problem:
            warnings.warn(f"skipped {path}: {problem}", stacklevel=2)
            continue
        found[key] = path
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["tuning", *TRIAL_LABELS, *TRIALS])


def labeled(frame: pd.DataFrame, name: str, identity: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of one folder with its name and what they are trials of in front."""
    labels = {"tuning": name, **{key: identity[key] for key in TRIAL_LABELS}}
    return pd.concat([pd.DataFrame(labels, index=frame.index), frame], axis=1)


def best_of_k(trials: pd.DataFrame, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Expected best of k, cross-fitted: algorithm, budget, environment, optimizer, k, value, low, high.

    In each environment it is a return; for ``ALL`` it is the mean of Γ, of optimizers with trials in every environment.
    Optimizers with a single tuning seed are left out, as nothing can be cross-fitted.
    """
    rows = []
    for board, found in _boards(trials):
        units = [
            (name, {key: one for key, one in found.items() if one.environments == (name,)}) for name in _names(found)
        ]
        for environment, searched in [*units, (ALL, _normalized(found))]:
            for (_, optimizer), one in searched.items():
                curves = _curves(one, resamples)
                rows += [
                    {**board, "environment": environment, "optimizer": optimizer, "k": k + 1, **_columns(values)}
                    for k, values in enumerate(zip(*curves, strict=True))
                ]
    return pd.DataFrame(rows)


def sensitivity(trials: pd.DataFrame, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Performance and Φ, cross-fitted: a row an algorithm, budget and optimizer with trials in every environment.

    Columns: num_environments, trials; performance (mean Γ of the settings chosen in each environment), one_setting (of
    the single setting chosen over all) and sensitivity (their difference), each with ``_low`` and ``_high``.
    """
    rows = []
    for board, found in _boards(trials):
        for (_, optimizer), one in _normalized(found).items():
            counts = {"num_environments": len(one.environments), "trials": one.values.shape[1]}
            rows.append({**board, "optimizer": optimizer, **counts, **columns_of(_sensitivity(one, resamples))})
    return pd.DataFrame(rows)


def rank_stability(best: pd.DataFrame) -> pd.DataFrame:
    """Whether more trials would change the order: ranks of optimizers by ``best_of_k`` over ``ALL``, for each k.

    Columns: algorithm, budget, k, optimizer, rank (1 is best, ties share the average) and kendall_tau, the agreement of
    all ranks at k with those at the largest k that all optimizers have (1: the same order).
    """
    from scipy.stats import kendalltau

    rows = []
    for key, mine in best[best["environment"] == ALL].groupby(BOARD) if len(best) else ():
        values = mine.pivot(index="k", columns="optimizer", values="value").dropna()
        if values.shape[1] < 2:
            continue
        ranks = values.round(10).rank(axis=1, ascending=False)  # sums that are equal differ in their last bits
        for k, row in ranks.iterrows():
            tau = float(kendalltau(row, ranks.iloc[-1]).statistic)
            told = dict(zip(BOARD, key, strict=True))
            rows += [told | {"k": k, "optimizer": name, "rank": rank, "kendall_tau": tau} for name, rank in row.items()]
    return pd.DataFrame(rows)


def expected_best(ranking: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Expected best of k = 1 … N trials, (N,), from (N,) values to rank by (higher is better) and scores."""
    return _in_order(ranking[None], scores[None])[0]


# --- trials as arrays --------------------------------------------------------------------------------------------


def _boards(trials: pd.DataFrame) -> Iterator[tuple[dict[str, str], dict[tuple[str, str], Searched]]]:
    """For each algorithm and budget: trials by (environment, optimizer) that can be cross-fitted."""
    for key, mine in trials[trials["trial"] > 0].groupby(BOARD) if len(trials) else ():
        found = {}
        for environment, rows in mine.groupby("environment"):
            returns = rows["final_return"].mask(rows["diverged"].astype(bool))
            if returns.isna().all():
                warnings.warn(f"no trial in {environment} ({' at '.join(key)}) has a return: left out", stacklevel=3)
                continue
            filled = rows.assign(value=returns.fillna(returns.min()), failed=returns.isna())
            for optimizer, own in filled.groupby("optimizer"):
                tables = [own.pivot(index="trial", columns="seed", values=name) for name in ("value", "failed")]
                values, failed = (table.loc[tables[0].notna().all(axis=1)] for table in tables)
                if values.shape[1] < 2 or values.empty:
                    name = f"{optimizer} in {environment} ({' at '.join(key)})"
                    warnings.warn(f"{name} has no trials with two seeds or more: left out", stacklevel=3)
                    continue
                said = tuple(own.groupby("trial")["settings"].first().loc[values.index])
                found[environment, optimizer] = Searched(
                    (environment,), values.to_numpy(float)[None], failed.to_numpy(bool)[None], said
                )
        yield dict(zip(BOARD, key, strict=True)), found


def _names(found: dict[tuple[str, str], Searched]) -> list[str]:
    return sorted({environment for environment, _ in found})


def _normalized(found: dict[tuple[str, str], Searched]) -> dict[tuple[str, str], Searched]:
    """Γ of optimizers that have the same trials and seeds in all environments, over all of them together."""
    names = _names(found)
    scaled = {}
    for environment in names:
        here = {optimizer: one for (name, optimizer), one in found.items() if name == environment}
        low, high = np.percentile(np.concatenate([one.values[0].mean(axis=1) for one in here.values()]), [5, 95])
        if high > low:
            for optimizer, one in here.items():
                scaled[environment, optimizer] = one._replace(values=(one.values - low) / (high - low))
        else:
            warnings.warn(f"all trials in {environment} score alike: left out of {ALL}", stacklevel=3)
    names = _names(scaled)
    joined = {}
    for optimizer in sorted({optimizer for _, optimizer in scaled}):
        parts = [scaled[name, optimizer] for name in names if (name, optimizer) in scaled]
        alike = len({(part.values.shape, part.settings) for part in parts}) == 1
        if len(parts) == len(names) and alike:
            values, failed = (np.concatenate([getattr(part, each) for part in parts]) for each in ("values", "failed"))
            joined[ALL, optimizer] = Searched(tuple(names), values, failed, parts[0].settings)
        else:
            lacks = (
                "has other trials in one environment than in another"
                if len(parts) == len(names)
                else ("lacks trials that others have")
            )
            warnings.warn(f"{optimizer} {lacks}: left out of {ALL}", stacklevel=3)
    return joined


def _folds(one: Searched) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(environments, trials) means over all seeds but one, −∞ where one of those failed, and what that one scored."""
    for seed in range(one.values.shape[2]):
        others, failed = (np.delete(each, seed, axis=2) for each in (one.values, one.failed))
        yield np.where(failed.any(axis=2), -np.inf, others.mean(axis=2)), one.values[:, :, seed]


def _draws(trials: int, resamples: int) -> np.ndarray:
    """(resamples, trials) indices of trials drawn again."""
    return np.random.default_rng(_SEED).integers(trials, size=(resamples, trials))


def _interval(values: np.ndarray) -> np.ndarray:
    """(2, …) from (resamples, …)."""
    return np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)


def _columns(values: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), map(float, values), strict=True))


# --- best of k ---------------------------------------------------------------------------------------------------


def _curves(one: Searched, resamples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, low and high (trials,) for k = 1 … N, averaged over environments and folds."""
    value, again = [], []
    draws = _draws(one.values.shape[1], resamples)
    for rankings, scores in _folds(one):
        for ranking, own in zip(rankings, scores, strict=True):
            value.append(expected_best(ranking, own))
            again.append(_in_order(ranking[draws], own[draws]))
    low, high = _interval(np.mean(again, axis=0))
    return np.mean(value, axis=0), low, high


def _in_order(ranking: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(rows, trials) → (rows, k)."""
    order = np.argsort(-ranking, axis=1, kind="stable")
    return np.take_along_axis(_sharing_ties(ranking, scores), order, axis=1) @ _weights(ranking.shape[1])


def _sharing_ties(ranking: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores (rows, trials), each the mean of those that rank equally in its row."""
    ranks, which = np.unique(ranking, return_inverse=True)
    group = which.reshape(ranking.shape) + len(ranks) * np.arange(len(ranking))[:, None]
    sums = np.bincount(group.ravel(), scores.ravel())
    return (sums / np.maximum(np.bincount(group.ravel()), 1))[group]


def _weights(trials: int) -> np.ndarray:
    """(ranks, k): the chance that the best of k trials is the one of rank j."""
    from scipy.special import comb

    place, k = np.arange(1, trials + 1)[:, None], np.arange(1, trials + 1)
    return comb(trials - place, k - 1) / comb(trials, k)


# --- sensitivity -------------------------------------------------------------------------------------------------


def _sensitivity(one: Searched, resamples: int) -> dict[str, Estimate]:
    trials = one.values.shape[1]
    value, again = _chosen(one, np.arange(trials)[None])[:, 0], _chosen(one, _draws(trials, resamples))
    low, high = _interval(again.T)
    names = ("performance", "one_setting", "sensitivity")
    return {name: Estimate(*map(float, each)) for name, *each in zip(names, value, low, high, strict=True)}


def _chosen(one: Searched, draws: np.ndarray) -> np.ndarray:
    """(3, draws): mean Γ of each environment's choice, of the single choice over all, and the difference."""
    found = []
    for rankings, scores in _folds(one):
        finite = np.where(np.isinf(rankings), one.values.min(axis=(1, 2))[:, None], rankings)
        drawn, over_all = scores[:, draws], finite.mean(axis=0)[draws]
        found.append([_of_the_best(rankings[:, draws], drawn).mean(axis=0), _of_the_best(over_all, drawn).mean(axis=0)])
    tuned, single_setting = np.mean(found, axis=0)
    return np.stack([tuned, single_setting, tuned - single_setting])


def _of_the_best(ranking: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(…, trials) → (…): the score of the trial that ranks highest; the mean of several that do."""
    best = ranking == ranking.max(axis=-1, keepdims=True)
    return np.where(best, scores, 0.0).sum(axis=-1) / best.sum(axis=-1)
