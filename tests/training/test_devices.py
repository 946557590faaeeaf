"""The persistent compilation cache: a study in a new process and an empty results folder compiles nothing again."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
import jax
counts = {"misses": 0, "hits": 0}
def listen(event, **_):
    for kind in counts:
        counts[kind] += event == f"/jax/compilation_cache/cache_{kind}"
jax.monitoring.register_event_listener(listen)
import open_bench
small = {"num_envs": 4, "num_steps": 16, "update_epochs": 1, "num_minibatches": 2}
open_bench.compare(optimizers=["adam", "sgd"], environments=["cartpole"], steps=256, num_seeds=2, settings=small,
                   results=sys.argv[1], devices=2)
print(counts["misses"], counts["hits"])
"""


def run(tmp_path: Path, results: str) -> tuple[int, int]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # the tests' own cache would be full already
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / results)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600).stdout
    misses, hits = out.split()[-2:]
    return int(misses), int(hits)


def test_second_study_compiles_nothing_new(tmp_path: Path) -> None:
    cold, _ = run(tmp_path, "first")
    assert cold > 0
    misses, hits = run(tmp_path, "second")
    assert misses == 0
    assert hits >= cold
    assert (tmp_path / "cache" / "open-bench").is_dir()
