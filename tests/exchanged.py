"""Results folders that are sent and received; what they cost follows from env steps, not from the clock."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tiny import STEPS, experiments, shards, train

import open_bench
from open_bench.evaluation.baseline_returns import load_baseline_returns
from open_bench.evaluation.leaderboard import leaderboard
from open_bench.evaluation.schema import TRIAL_CURVES, TRIALS
from open_bench.experiments.execute import description
from open_bench.experiments.experiment import Experiment, folder_name
from open_bench.experiments.plan import random_experiments
from open_bench.experiments.store import Store
from open_bench.optimizers.resolve import UNTUNED, resolve
from open_bench.tuning import trials


def chosen() -> list[Experiment]:
    """Two optimizers and the random policy on one task."""
    trained = experiments("adam", "sgd")
    return [*trained, *random_experiments(trained)]


def made(folder: Path, some: Sequence[Experiment], num_seeds: int, devices: int = 4, **options: Any) -> Path:
    """A folder in which these experiments have been trained."""
    train(folder, some, num_seeds=num_seeds, devices=devices, **options)
    for shard in shards(folder):
        edit_json(shard / "provenance.json", lambda facts: facts.update(_cost(facts["env_steps"]), devices=1))
    return folder


def invented(
    folder: Path, some: Sequence[Experiment], seeds: Sequence[int], size: int = 4, beside: bool = False
) -> Path:
    """A folder as training would leave it, with numbers that follow from experiment and seed.

    ``beside``: with agents and a diagnosis.
    """
    store = Store(folder)
    for experiment in some:
        store.create(experiment, description(experiment))
        for first in range(0, len(seeds), size):
            batch = list(seeds[first : first + size])
            returns = [_number(experiment.name, seed) for seed in batch]
            scores = pd.DataFrame({"seed": batch, "final_return": returns, "mean_return": returns})
            scores = scores.assign(diverged=False, env_steps=STEPS)
            points = [(seed, step, value * step) for seed, value in zip(batch, returns, strict=True) for step in (1, 2)]
            curves = pd.DataFrame(points, columns=["seed", "env_steps", "episode_return"])
            facts = {"hardware": "abacus", "revision": "r", "seeds": batch, "env_steps": STEPS * len(batch)}
            agents = {"actor": {"layer_00_dense": {"bias": np.array(returns, np.float32)[:, None]}}}
            more = {"agents": agents, "diagnosis": curves.rename(columns={"episode_return": "entropy"})}
            store.add(experiment, scores, curves, facts | _cost(STEPS * len(batch)), **(more if beside else {}))
    return folder


def searched(folder: Path, pairs: Iterable[tuple[int, int]], optimizer: str = "sgd") -> trials.Trials:
    """Trials as tuning would leave them, with numbers that follow from trial and seed."""
    (each,) = experiments(optimizer)
    first = resolve(optimizer, each.task, track=UNTUNED)
    job = trials.Trials(dataclasses.replace(each, optimizer=first, root_seed=trials.ROOT_SEED), 3, 2, folder)
    job.create()
    rows = pd.DataFrame(list(pairs), columns=trials.KEYS)
    returns = [_number(job.name, *pair) for pair in zip(rows["trial"], rows["seed"], strict=True)]
    scores = rows.assign(settings=[job.settings[trial] for trial in rows["trial"]], env_steps=STEPS, diverged=False,
                         final_return=returns, mean_return=returns)  # fmt: skip
    curves = rows.assign(env_steps=STEPS, episode_return=returns)
    trials.write_provenance(job.path, [{"lifetimes": rows.to_numpy().tolist(), "hardware": "abacus"}])
    for name, frame, keys, columns in ((trials.TRIALS, scores, [], TRIALS),
                                       (trials.CURVES, curves, ["env_steps"], TRIAL_CURVES)):  # fmt: skip
        trials.write_joined(job.path / name, frame.iloc[:0], frame, [*trials.KEYS, *keys], columns)
    return job


def _number(*words: object) -> float:
    return int(hashlib.sha256(repr(words).encode()).hexdigest()[:4], 16) / 7


def _cost(env_steps: int) -> dict[str, float]:
    return {"run_seconds": env_steps / 1024, "compile_seconds": 0.0}


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def changed(shard: Path, row: int, **columns: float) -> None:
    """Change numbers of a row of scores, and the digest with them."""
    table = pd.read_csv(shard / "scores.csv", float_precision="round_trip")
    for name, value in columns.items():
        table.loc[row, name] = value
    table.to_csv(shard / "scores.csv", index=False, lineterminator="\n")
    redigest(shard)


def redigest(shard: Path) -> None:
    """Make the digests fit what was changed."""
    digest = lambda name: hashlib.sha256((shard / name).read_bytes()).hexdigest()
    edit_json(
        shard / "provenance.json", lambda facts: facts.update(files={name: digest(name) for name in facts["files"]})
    )


def renamed(experiment: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change an experiment's description; its folder gets the name that goes with it."""
    edit_json(experiment / "experiment.json", change)
    identity = json.loads((experiment / "experiment.json").read_text())["identity"]
    return experiment.rename(experiment.with_name(folder_name(identity)))


def board(folder: Path) -> tuple[str, str]:
    """The board's files, with few resamples."""
    found = leaderboard(open_bench.load_runs(folder), load_baseline_returns(), resamples=60)
    return found.to_csv(), found.to_markdown()


def contents(folder: Path) -> dict[str, bytes]:
    """Every visible file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in found.items() if not any(part.startswith(".") for part in name.split("/"))}
