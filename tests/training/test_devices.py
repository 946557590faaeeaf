"""Start-up of JAX: devices, the default vmap size, and the persistent cache, with which nothing compiles twice."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import jax
import pytest

from open_bench.config import Cluster
from open_bench.errors import UserError
from open_bench.training import devices

SCRIPT = """
import sys
import jax
counts = {"misses": 0, "hits": 0}
def listen(event, **_):
    for kind in counts:
        counts[kind] += event == f"/jax/compilation_cache/cache_{kind}"
jax.monitoring.register_event_listener(listen)
import open_bench
small = {"num_envs": 4, "num_steps": 16, "update_epochs": 1, "num_minibatches": 2, "hidden": [8]}
open_bench.compare(optimizers=["adam"], environments=["cartpole"], steps=256, num_seeds=2, settings=small,
                   results=sys.argv[1], devices=2)
print(counts["misses"], counts["hits"])
"""


def test_the_default_vmap_size_is_one_on_cpu_and_follows_memory_elsewhere() -> None:
    assert devices.default_vmap_size(jax.devices(), 1) == 1
    gpu = Mock(jax.Device, platform="gpu", memory_stats=lambda: {"bytes_limit": 32 << 30})
    assert devices.default_vmap_size([gpu], 1 << 20) == 64
    for lifetime_bytes, expected in ((3 << 30, 4), (64 << 30, 1)):
        with pytest.warns(UserWarning, match=f"fits {expected} lifetimes at once: --vmap-size {expected}"):
            assert devices.default_vmap_size([gpu], lifetime_bytes) == expected


def test_devices_are_chosen_and_bad_requests_refused() -> None:
    assert devices.start(2) == jax.devices()[:2]
    for number in (0, -1, 5000):
        with pytest.raises(UserError, match=f"--devices must be from 1 to 4096, not {number}"):
            devices.start(number)
    with pytest.raises(UserError, match="go together"):
        devices.start(None, Cluster("127.0.0.1:1234"))
    with pytest.warns(UserWarning, match="JAX had started with 4 CPU devices"):
        assert devices.start(64) == jax.devices()


def test_more_devices_than_cores_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=f"64 devices on {devices.available_cores()} cores share them"):
        devices.start(64)


def run(tmp_path: Path, results: str) -> tuple[int, int]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # else it is the load that says what is kept
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # the tests' own cache would be full already
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / results)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600).stdout
    misses, hits = out.split()[-2:]
    return int(misses), int(hits)


@pytest.mark.slow
def test_a_second_study_in_a_new_process_and_folder_compiles_nothing_new(tmp_path: Path) -> None:
    cold, _ = run(tmp_path, "first")
    assert cold > 0
    misses, hits = run(tmp_path, "second")
    assert misses == 0
    assert hits >= cold
    assert (tmp_path / "cache" / "open-bench").is_dir()
