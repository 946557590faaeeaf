"""Results folders made by hand, with whatever names: what the store, tuning and meta-training would have written."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from open_bench.config import PROTOCOL_VERSION
from open_bench.evaluation.schema import METRICS
from open_bench.experiments.experiment import folder_name

STEPS = 1000
IMAGE, FORMULA, SCRIPT, TEMPLATE = (
    "<img src=x onerror=window.hacked=1>", "=1+1", "</script><script>window.hacked=2</script>", "{{7*7}}",
)  # fmt: skip


def write_experiment(
    results: Path, optimizer: str, environment: str, returns: Sequence[float], diagnosis: bool = False, **identity: Any
) -> Path:
    """An experiment with these final returns by seed, and curves that rise to them."""
    named = {
        "environment": environment, "environment_version": 1, "algorithm": "ppo", "budget": "quick",
        "optimizer": optimizer, "policy_loss": "ppo", "theta": "", "hyperparameters": {"learning_rate": 0.001},
        "settings": {"num_envs": 4}, "options": {}, "source": "gymnax:CartPole-v1", "num_updates": 4,
        "protocol": PROTOCOL_VERSION, "root_seed": 0, "vmap_size": 1,
    } | identity  # fmt: skip
    folder = results / "experiments" / folder_name(named)
    seeds = range(len(returns))
    shard = folder / (f"shard-0000-{seeds[-1]:04d}" if len(seeds) > 1 else "shard-0000")
    shard.mkdir(parents=True)
    told = {"identity": named, "family": "gymnax", "hyperparameter_origin": "default", "env_steps": STEPS,
            "metrics": dict(METRICS)}  # fmt: skip
    (folder / "experiment.json").write_text(json.dumps(told))
    final = np.array(returns, float)
    tables = {"scores": pd.DataFrame({"seed": seeds, "diverged": False, "env_steps": STEPS, "final_return": final,
                                      "mean_return": final / 2})}  # fmt: skip
    points = pd.DataFrame([(seed, step) for seed in seeds for step in (250, 500, 750, 1000)],
                          columns=["seed", "env_steps"])  # fmt: skip
    reached = final[points["seed"]] * points["env_steps"] / STEPS
    tables["curves"] = points.assign(episode_return=reached)
    if diagnosis:
        tables["diagnosis"] = points.assign(policy_kl=0.1 ** (points["env_steps"] / 250))
    order = [*tables["scores"].columns]
    for name, frame in tables.items():
        frame.to_csv(shard / f"{name}.csv", index=False, columns=order if name == "scores" else None)
    files = {f"{name}.csv": hashlib.sha256((shard / f"{name}.csv").read_bytes()).hexdigest() for name in tables}
    facts = {"hardware": "2 × cpu", "platform": "cpu", "python": "3.11", "revision": "abc", "packages": {"jax": "0.9"}}
    cost = {"env_steps": STEPS * len(returns), "run_seconds": 10.0, "compile_seconds": 1.0, "seeds": list(seeds)}
    (shard / "provenance.json").write_text(json.dumps({**facts, **cost, "files": files}))
    return folder


def write_trials(results: Path, optimizer: str, environment: str, returns: Mapping[int, Sequence[float]]) -> None:
    """Trials of tuning with these final returns by trial and seed."""
    folder = results / "tuning" / hashlib.sha256(f"{optimizer} {environment}".encode()).hexdigest()[:10]
    folder.mkdir(parents=True)
    identity = {"environment": environment, "algorithm": "ppo", "budget": "quick", "optimizer": optimizer,
                "vmap_size": 1, "settings": {}}  # fmt: skip
    (folder / "tuning.json").write_text(json.dumps({"identity": identity}))
    rows = [(trial, seed, "{}", STEPS, False, value, value / 2)
            for trial, values in returns.items() for seed, value in enumerate(values)]  # fmt: skip
    names = ["trial", "seed", "settings", "env_steps", "diverged", *METRICS]
    pd.DataFrame(rows, columns=names).to_csv(folder / "trials.csv", index=False)


def write_history(results: Path, name: str, environment: str) -> None:
    """Three generations of an evolution."""
    folder = results / "meta" / name
    folder.mkdir(parents=True)
    pd.DataFrame(
        {"generation": [1, 2, 3], "fitness_mean": [1.0, 2.0, 3.0], "fitness_std": 0.5, "fitness_best": [2.0, 3.0, 4.0],
         "sigma": 0.1, "lifetimes": [8, 16, 24], "env_steps": [80, 160, 240], "seconds": [1.0, 2.0, 3.0],
         "diverged": [0, 1, 0], "unfinished": 0, f"return.{environment}": [np.nan, 5.0, 6.0],
         f"adam.{environment}": [np.nan, 7.0, 7.0]}
    ).to_csv(folder / "history.csv", index=False)  # fmt: skip


def write_study(results: Path, optimizers: Sequence[str], axis: str = "width") -> None:
    """A study of generalization with two points on one axis."""
    folder = results / "generalization" / "mine"
    folder.mkdir(parents=True)
    pd.DataFrame(
        [
            {"axis": axis, "point": str(x), "x": x, "optimizer": name, "mean": 10.0 + x, "mean_low": 9.0,
             "mean_high": 99.0, "score": score, "score_low": score - 0.1, "score_high": score + 0.1,
             "distribution": place}
            for place, x in (("in", 16), ("out", 64))
            for name, score in zip(optimizers, (1.0, 0.5, 1.5), strict=False)
        ]
    ).to_csv(folder / "points.csv", index=False)  # fmt: skip
    pd.DataFrame(
        [{"optimizer": name, "in_score": 1.0, "in_score_low": 0.9, "in_score_high": 1.1, "out_score": 0.5, "gap": 0.5,
          "worst_axis": axis, "worst_point": "64"} for name in optimizers]
    ).to_csv(folder / "summary.csv", index=False)  # fmt: skip
    notes = "# Generalization\n\nScores: 0 is a random policy and 1 Adam.\n\n## Notes\n\n- a note\n"
    (folder / "generalization.md").write_text(notes)
    (folder / "request.json").write_text(json.dumps({"optimizers": list(optimizers), "study": SCRIPT, "num_seeds": 2}))


def write_everything(results: Path) -> Path:
    """A folder with all that a report may show, with names that mean harm among ordinary ones."""
    environments = ("breakout", FORMULA)
    for place, optimizer in enumerate(("adam", IMAGE, SCRIPT, TEMPLATE, "lion")):
        for environment in environments:
            returns = [10 + place + seed for seed in range(3)]
            write_experiment(results, optimizer, environment, returns, diagnosis=environment == "breakout")
            if place < 2:
                write_trials(results, optimizer, environment, {trial: [trial + place, trial + 1] for trial in range(5)})
    for environment in environments:
        write_experiment(results, "random", environment, [0, 1, 2], algorithm="random", hyperparameters={})
    write_history(results, SCRIPT.replace("/", "_"), IMAGE.replace(" ", "_"))
    write_study(results, ("adam", IMAGE), axis=SCRIPT)
    return results
