"""Seconds and memory of a leaderboard over a folder of many stored experiments, whose numbers are invented.

python benchmarks/many_experiments.py                          10,000: 100 environments × 50 optimizers × 2 root seeds
python benchmarks/many_experiments.py --environments 4 --optimizers 3 --root-seeds 1
"""

import itertools
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd

from open_bench.config import PROTOCOL_VERSION
from open_bench.evaluation import schema
from open_bench.experiments.experiment import folder_name
from open_bench.experiments.store import CURVES, Store, new_shard

STEPS = 100_000


def invent(folder: Path, environment: int, optimizer: int, root_seed: int, num_seeds: int, points: int) -> None:
    """An experiment as training would leave it."""
    names = ["adam", *(f"rule_{number}" for number in range(1, 1000))]
    identity = {
        "environment": f"world/{environment:03d}", "optimizer": names[optimizer], "algorithm": "ppo", "budget": "quick",
        "root_seed": root_seed, "vmap_size": 1, "protocol": PROTOCOL_VERSION, "environment_version": 1, "theta": "",
        "policy_loss": "ppo", "hyperparameters": {"learning_rate": 1e-3}, "settings": {"num_envs": 64}, "options": {},
    }  # fmt: skip
    content = {
        "identity": identity, "family": "world", "env_steps": STEPS, "hyperparameter_origin": "default",
        "metrics": dict(schema.METRICS),
    }  # fmt: skip
    drawn = np.random.default_rng([environment, optimizer, root_seed]).normal(10 + optimizer, 3, (num_seeds, points))
    scores = pd.DataFrame({"seed": range(num_seeds), "final_return": drawn[:, -1], "mean_return": drawn.mean(axis=1),
                           "diverged": False, "env_steps": STEPS})  # fmt: skip
    curves = pd.DataFrame({"seed": np.repeat(range(num_seeds), points), "episode_return": drawn.ravel(),
                           "env_steps": np.tile(STEPS * np.arange(1, points + 1) // points, num_seeds)})  # fmt: skip
    path = folder / "experiments" / folder_name(identity)
    facts = {"seeds": list(range(num_seeds)), "env_steps": STEPS * num_seeds, "run_seconds": 60.0,
             "compile_seconds": 5.0, "hardware": "2 × cpu (invented)", "revision": "invented"}  # fmt: skip
    Store(folder).create_described(content)
    with new_shard(path, range(num_seeds), facts) as shard:
        columns = schema.without_labels(schema.score_columns())
        schema.write_csv(scores, columns, shard / "scores.csv")
        schema.write_csv(curves, CURVES, shard / "curves.csv")


@click.command()
@click.option("--environments", default=100, show_default=True)
@click.option("--optimizers", default=50, show_default=True)
@click.option("--root-seeds", default=2, show_default=True)
@click.option("--num-seeds", default=4, show_default=True)
@click.option("--points", default=20, show_default=True, help="Of each learning curve.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the results here, or use those that lie here.")
def main(environments: int, optimizers: int, root_seeds: int, num_seeds: int, points: int, folder: Path | None) -> None:
    """Invent experiments, and time `openbench leaderboard` over them in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        results = folder or Path(temporary)
        if not (results / "experiments").exists():
            for place in itertools.product(range(environments), range(optimizers), range(root_seeds)):
                invent(results, *place, num_seeds, points)
        count = len(Store(results).names())
        begin = time.perf_counter()
        command = [sys.executable, "-m", "open_bench", "leaderboard", "--results", str(results)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall, used = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        click.echo(f"{count:,} experiments: {wall:.1f} s ({used.ru_utime + used.ru_stime:.1f} s of processor time), "
                   f"{used.ru_maxrss / 2**20:.2f} GiB at most")  # fmt: skip


if __name__ == "__main__":
    main()
