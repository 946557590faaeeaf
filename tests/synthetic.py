"""Synthetic runs, baseline returns and generalization studies, whose scores can be worked out by hand."""

import json

import numpy as np
import pandas as pd

from open_bench.evaluation.baseline_returns import BaselineReturn, EnvironmentReturns, ReturnInterval
from open_bench.evaluation.bootstrap import ScoreMatrix
from open_bench.evaluation.schema import METRICS, Runs
from open_bench.generalization.scores import Evidence

NAN = float("nan")


def make_runs(results: dict, curves: bool = False, metrics: dict | None = None, **experiment: object) -> Runs:
    """Runs from {(optimizer, environment): [final returns]}; a None has diverged, NaN finished no episode.

    ``mean_return`` is half of ``final_return``, and so is every metric of ``metrics`` (label by column).
    ``experiment`` overrides columns of the experiments.
    """
    parts = []
    for (optimizer, environment), returns in results.items():
        row = {
            "experiment": f"{environment}-{optimizer}",
            "environment": environment,
            "family": "gymnax",
            "algorithm": "ppo",
            "budget": "quick",
            "env_steps": 1000,
            "optimizer": optimizer,
            "hyperparameters": "{}",
            "hyperparameter_origin": "default",
            "theta": "",
            "root_seed": 0,
            "vmap_size": 1,
            "protocol": 1,
            "metrics": json.dumps(METRICS | (metrics or {})),
            "steps_per_second": 100.0,
            "run_seconds": 10.0 * len(returns),
            "compile_seconds": 5.0,
            "hardware": "2 cores",
            "revision": "abc",
        } | experiment
        row["experiment"] += "".join(f"-{key}{value}" for key, value in experiment.items())
        scores, points = [], []
        for seed, value in enumerate(returns):
            final, diverged = NAN if value is None else float(value), value is None
            numbers = {"final_return": final, "mean_return": final / 2} | dict.fromkeys(metrics or (), final / 2)
            scores.append({"seed": seed, "diverged": diverged, "env_steps": 1000} | numbers)
            for step in (250, 500, 750, 1000) if curves else ():
                known = step > 250 and not (diverged and step > 500)
                episode = (final if not diverged else 1.0) * step / 1000 if known else NAN
                points.append({"seed": seed, "env_steps": step, "episode_return": episode})
        empty = Runs.empty().curves[["seed", "env_steps", "episode_return"]]
        parts.append((row, pd.DataFrame(scores), pd.DataFrame(points) if points else empty))
    return Runs.join(parts)


def random_runs(**returns: list) -> Runs:
    """Lifetimes of the random policy: environment=[final returns]."""
    return make_runs({("random", name): values for name, values in returns.items()}, algorithm="random",
                     hyperparameter_origin="none")  # fmt: skip


def join(*several: Runs) -> Runs:
    """All rows together."""
    experiments, scores, curves = (
        pd.concat([getattr(r, n) for r in several], ignore_index=True) for n in ("experiments", "scores", "curves")
    )
    return Runs(experiments, scores, curves)


def shuffled(runs: Runs, root_seed: int) -> Runs:
    """The same rows in another order, with other index labels."""
    return Runs(
        *(
            getattr(runs, n).sample(frac=1, random_state=root_seed + i).reset_index(drop=True)
            for i, n in enumerate(("experiments", "scores", "curves"))
        )
    )


def measured(mean: float, optimizer: str = "", spread: float = 1.0, **fields: object) -> BaselineReturn:
    """A measured return whose mean_return is half its final_return."""
    final = ReturnInterval(mean=mean, low=mean - spread, high=mean + spread)
    half = ReturnInterval(mean=mean / 2, low=(mean - spread) / 2, high=(mean + spread) / 2)
    values = {"num_seeds": 8, "env_steps": 1000, "revision": "abc", "origin": "measured", "optimizer": optimizer}
    return BaselineReturn(final_return=final, mean_return=half, **values | fields)


def make_returns(**scales: tuple[float, float]) -> dict[str, EnvironmentReturns]:
    """Baseline returns of PPO at budget quick from environment=(random, Adam)."""
    return {
        name: EnvironmentReturns(environment=name, random=measured(random), ppo={"quick": measured(adam, "adam")})
        for name, (random, adam) in scales.items()
    }


def matrix(values: object) -> ScoreMatrix:
    """Labelled runs × tasks."""
    array = np.asarray(values, dtype=float)
    return ScoreMatrix(array, tuple(range(array.shape[0])), tuple(f"e{i}" for i in range(array.shape[1])))


def evidence(
    returns: dict[str, dict[str, list[float]]],
    random: dict[str, list[float]],
    places: dict[str, str],
    optimal: dict[str, list[float]] | None = None,
    points: list[tuple[str, str, str]] | None = None,
) -> Evidence:
    """A study by hand: returns by optimizer and task, NaN for a diverged seed; places by task.

    ``points`` are (axis, label, task); by default every task is a point of one axis.
    """
    experiments, rows = [], []
    for optimizer, tasks in returns.items():
        for task, values in tasks.items():
            identity = {
                "experiment": f"{task}--{optimizer}",
                "environment": task,
                "budget": "b",
                "optimizer": optimizer,
            }
            experiments.append({**identity, "hyperparameter_origin": "default", "hyperparameters": "{}", "theta": ""})
            for seed, value in enumerate(values):
                numbers = {"final_return": value, "mean_return": value, "diverged": np.isnan(value), "env_steps": 10}
                rows.append({**identity, "seed": seed, **numbers})
    frames = pd.DataFrame(experiments), pd.DataFrame(rows)
    points = points or [("levels", task, task) for task in random]
    return Evidence(
        "hand",
        pd.DataFrame(
            [
                {"axis": axis, "point": label, "x": float(i), "environment": task, "algorithm": "ppo",
                 "budget": "b", "env_steps": 10, "num_updates": 1}
                for i, (axis, label, task) in enumerate(points)
            ]
        ),
        pd.DataFrame(
            [
                {"optimizer": name, "environment": task, "budget": "b", "distribution": places[task], "shifts": ""}
                for name in returns
                for task in random
            ]
        ),
        Runs(*frames, Runs.empty().curves),
        {(task, "b"): np.asarray(values, float) for task, values in random.items()},
        {(task, "b"): np.asarray(values, float) for task, values in (optimal or {}).items()},
    )  # fmt: skip
