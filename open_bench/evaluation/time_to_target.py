"""How soon optimizers reach Adam's final return, and profiles of it, as AlgoPerf (v0.6) scores time to result.

A workload is an environment. Its target is the median over seeds of the final return of the board's Adam (the tuned one
where there is one), whatever the board ranks by. A lifetime's time is the env steps at the first recorded point of its
learning curve that reaches the target; ∞ if none does, or if it diverged. An optimizer's time is the median over its
seeds, so it has missed the target where half of its lifetimes have.

r = own time / best time of any optimizer, shown or not; ∞ if missed. ρ(τ) is the share of workloads with r ≤ τ, and the
score is 1/(r_max − 1)·∫₁^{r_max} ρ(τ) dτ with r_max = 4: 1 for the fastest everywhere, 0 for one that needs four times
as long.
"""

import numpy as np
import pandas as pd

from open_bench.evaluation.boards import BoardScores

LONGEST = 4.0  # r_max


def steps_to_target(scores: BoardScores, curves: pd.DataFrame) -> pd.DataFrame:
    """Median env steps (∞: missed), environments × optimizers; NaN where the optimizer has not run there.

    Empty where Adam has not run, or where no curves are stored. Only environments with a result have a target.
    """
    found = targets(scores)
    mine = curves.merge(scores.experiments[["experiment", "optimizer"]], on="experiment", suffixes=("_stored", ""))
    mine = mine[mine["episode_return"].notna() & (mine["episode_return"] >= mine["environment"].map(found))]
    if not found or not curves["experiment"].isin(scores.experiments["experiment"]).any():
        return pd.DataFrame()
    place = ["environment", "optimizer", "seed"]
    rows = scores.rows[scores.rows["environment"].isin(found)]
    first = mine.groupby(place)["env_steps"].min().rename("steps")
    steps = rows.join(first, on=place)["steps"].fillna(np.inf).mask(rows["diverged"], np.inf)
    return steps.groupby([rows["environment"], rows["optimizer"]]).median().unstack()


def targets(scores: BoardScores) -> dict[str, float]:
    """Adam's median final return by environment, where it has run; a failed lifetime is below all others."""
    adam = scores.rows[(scores.rows["optimizer"] == scores.adam) & scores.rows["environment"].isin(scores.observed)]
    final = adam["final_return"].fillna(-np.inf).groupby(adam["environment"]).median()
    return {str(name): float(value) for name, value in final.items() if np.isfinite(value)}


def ratios(steps: pd.DataFrame) -> pd.DataFrame:
    """r of each optimizer in each environment, from env steps; ∞ where it missed the target."""
    best = steps.min(axis=1)
    return steps.div(best, axis=0).where(np.isfinite(steps), np.inf).where(steps.notna())


def profile(ratios: pd.Series, limits: np.ndarray) -> np.ndarray:
    """ρ at each of ``limits`` (n,): the share of environments that an optimizer's r is not above."""
    return (ratios.to_numpy(float)[:, None] <= np.asarray(limits)).mean(axis=0)


def score(ratios: pd.Series, longest: float = LONGEST) -> float:
    """1/(r_max − 1)·∫₁^{r_max} ρ: each environment adds what its r leaves of r_max. NaN where one was not run."""
    if ratios.isna().any():
        return float("nan")
    return float(((longest - ratios.clip(upper=longest)) / (longest - 1.0)).mean())
