"""Seconds, memory and size of the report and the board of many synthetic experiments.

    python benchmarks/report.py --optimizers 50 --environments 100 --boards 2 --results FOLDER

The folder is made where it is not there.
"""

import argparse
import itertools
import json
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd

from open_bench.config import PROTOCOL_VERSION
from open_bench.evaluation.schema import METRICS
from open_bench.experiments.experiment import folder_name
from open_bench.experiments.store import _digest

POINTS = 50


def make(results: Path, optimizers: int, environments: int, boards: int, seeds: int) -> None:
    """Experiments as the store writes them, with returns that are drawn."""
    generator = np.random.default_rng(0)
    names = ["adam", *(f"optimizer{i}:learning_rate=0.{i:03d}" for i in range(1, optimizers))]
    for board, environment, optimizer in itertools.product(range(boards), range(environments), names):
        identity = {
            "environment": f"environment{environment}", "environment_version": 1, "algorithm": "ppo",
            "budget": f"steps-{100_000 * (board + 1)}", "optimizer": optimizer, "policy_loss": "ppo", "theta": "",
            "hyperparameters": {"learning_rate": 0.001, "b1": 0.9}, "settings": {"num_envs": 64, "num_steps": 128},
            "options": {}, "source": "gymnax:Breakout-MinAtar", "num_updates": 12, "protocol": PROTOCOL_VERSION,
            "root_seed": 0, "vmap_size": 1,
        }  # fmt: skip
        folder = results / "experiments" / folder_name(identity)
        shard = folder / (f"shard-0000-{seeds - 1:04d}" if seeds > 1 else "shard-0000")
        shard.mkdir(parents=True)
        told = {"identity": identity, "family": "gymnax", "hyperparameter_origin": "default", "theta_source": None,
                "env_steps": 100_000, "metrics": METRICS}  # fmt: skip
        (folder / "experiment.json").write_text(json.dumps(told))
        level, noise = 10 + hash_of(optimizer) % 7, generator.normal(size=seeds)
        steps = np.linspace(2000, 100_000, POINTS).astype(int)
        rise = level * (1 - np.exp(-steps / 30_000)) + generator.normal(size=(seeds, POINTS)) / 2
        pd.DataFrame(
            {"seed": range(seeds), "final_return": level + noise, "mean_return": level / 2 + noise, "diverged": False,
             "env_steps": 100_000}
        )[["seed", "diverged", "env_steps", *METRICS]].to_csv(shard / "scores.csv", index=False)  # fmt: skip
        pd.DataFrame(
            {
                "seed": np.repeat(range(seeds), POINTS),
                "env_steps": np.tile(steps, seeds),
                "episode_return": rise.ravel(),
            }
        ).to_csv(shard / "curves.csv", index=False, float_format="%.8g")
        provenance = {
            "files": {name: _digest(shard / name) for name in ("curves.csv", "scores.csv")}, "hardware": "none",
            "packages": {"jax": "0"}, "platform": "cpu", "python": "3", "revision": "synthetic", "devices": 1,
            "env_steps": 100_000 * seeds, "run_seconds": 10.0, "compile_seconds": 1.0, "seeds": list(range(seeds)),
        }  # fmt: skip
        (shard / "provenance.json").write_text(json.dumps(provenance))


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("optimizers", 50), ("environments", 100), ("boards", 2), ("seeds", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--results", type=Path, default=Path("results/synthetic"))
    arguments = parser.parse_args()
    if not arguments.results.exists():
        make(arguments.results, arguments.optimizers, arguments.environments, arguments.boards, arguments.seeds)

    from open_bench.evaluation.baseline_returns import load_baseline_returns
    from open_bench.report.contents import read
    from open_bench.report.page import render

    start = time.perf_counter()
    contents = read(arguments.results)
    loaded = time.perf_counter()
    page = render(contents, load_baseline_returns())
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(contents.runs.experiments)} experiments: board {loaded - start:.1f} s, report {done - start:.1f} s, "
          f"{len(page) / 1e6:.2f} MB, {peak:.2f} GiB")  # fmt: skip


if __name__ == "__main__":
    main()
