"""Many small experiments on a Ray cluster of several nodes of one CPU on this machine, some of which are killed.

python benchmarks/ray_cluster.py                                   40 experiments, four nodes, two killed
python benchmarks/ray_cluster.py --experiments 10000 --kills 0 --steps 1280 --no-verify

Prints, as JSON, the time for each experiment, the driver's part of it and its memory, and whether scores and curves are
byte for byte those of one process.
"""

import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np

from open_bench.config import StudyConfig, build
from open_bench.events import Event, Finished
from open_bench.experiments.execute import execute
from open_bench.experiments.plan import make_plan
from open_bench.experiments.remote import connect
from open_bench.experiments.store import Store

SETTINGS = {"num_steps": 8, "update_epochs": 1, "num_minibatches": 2, "hidden": [8]}


def study(count: int, seeds: int) -> StudyConfig:
    """Adam with so many learning rates on CartPole: one program."""
    names = [f"adam:learning_rate={rate:.6g}" for rate in np.geomspace(1e-5, 1e-1, count)]
    values = {"name": "many", "optimizers": tuple(names), "environments": ("cartpole",), "num_seeds": seeds}
    return build(StudyConfig, values, "many")


def cluster_of(nodes: int) -> Any:
    """A head that computes nothing, and nodes of one CPU, on loopback."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read when Ray is imported: it keeps to loopback
    from ray.cluster_utils import Cluster

    size = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **size})
    cluster.workers = [cluster.add_node(num_cpus=1, **size) for _ in range(nodes)]
    return cluster


def rows(store: Store) -> list[bytes]:
    """Scores and curves as bytes, in a fixed order."""
    runs = store.load()
    keys = ["experiment", "seed", "env_steps"]
    return [frame.sort_values(keys).to_csv(index=False).encode() for frame in (runs.scores, runs.curves)]


@click.command()
@click.option("--experiments", default=40, show_default=True)
@click.option("--num-seeds", default=2, show_default=True)
@click.option("--steps", default=64_000, show_default=True, help="Env steps of a lifetime.")
@click.option("--nodes", default=4, show_default=True)
@click.option("--kills", default=2, show_default=True, help="Nodes that are killed, at random moments.")
@click.option("--root-seed", default=0, show_default=True, help="Of those moments.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Train all again in one process.")
def main(
    experiments: int, num_seeds: int, steps: int, nodes: int, kills: int, root_seed: int, verify: bool
) -> None:  # fmt: skip
    cluster = cluster_of(nodes)
    devices = connect(cluster.address)
    plan = make_plan(study(experiments, num_seeds), devices, steps, SETTINGS).experiments
    moments = sorted(np.random.default_rng(root_seed).integers(1, max(2, experiments - nodes), kills).tolist())
    killed, done = [], 0

    def kill(event: Event) -> None:
        nonlocal done
        done += isinstance(event, Finished)
        while moments and done >= moments[0]:
            killed.append(moments.pop(0))
            cluster.remove_node(cluster.workers.pop(), allow_graceful=False)

    with tempfile.TemporaryDirectory() as folder:
        stores = [Store(Path(folder) / name) for name in ("cluster", "one")]
        begin, processor = time.perf_counter(), time.process_time()
        execute(plan, num_seeds, stores[0], devices, kill)
        seconds = time.perf_counter() - begin
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        processor = time.process_time() - processor
        told = {"experiments": experiments, "num_seeds": num_seeds, "steps": steps, "nodes": nodes,
                "killed_after": killed, "seconds": round(seconds, 1), "driver_gib": round(memory, 2),
                "milliseconds_each": round(1e3 * seconds / experiments, 1),
                "driver_processor_milliseconds_each": round(1e3 * processor / experiments, 1)}  # fmt: skip
        if verify:
            execute(plan, num_seeds, stores[1], jax.devices())
            told["identical"] = rows(stores[0]) == rows(stores[1])
        click.echo(json.dumps(told))
    import ray

    ray.shutdown()  # a cluster does not remove the node that its driver is at
    cluster.shutdown()


if __name__ == "__main__":
    main()
