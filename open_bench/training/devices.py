"""Start-up of JAX: a device per CPU core, the persistent compilation cache, several hosts."""

import dataclasses
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, TypeGuard

import jax

from open_bench.config import Cluster
from open_bench.errors import UserError
from open_bench.machine import available_cores, processor_kind


@dataclasses.dataclass(frozen=True)
class RemoteDevice:
    """What one task of a cluster has, as far as planning needs to know; ``count`` devices of a kind."""

    platform: str  # "cpu", "gpu", …
    bytes_limit: int | None  # of one device's memory, where it says
    count: int = 1

    def memory_stats(self) -> dict[str, int]:
        """As ``jax.Device`` has it."""
        return {} if self.bytes_limit is None else {"bytes_limit": self.bytes_limit}


Device: TypeAlias = jax.Device | RemoteDevice


def is_remote(devices: Sequence[Device]) -> TypeGuard[Sequence[RemoteDevice]]:
    """Whether they are workers' of a cluster."""
    return isinstance(devices[0], RemoteDevice)


def start(devices: int | None = None, cluster: Cluster | str | None = None) -> list[jax.Device]:
    """Prepare JAX for training and return the devices to use. Called when something is about to train.

    Args:
        devices: how many devices to use; by default all. On CPU this many devices are made of the cores, by default
            one a core, if JAX has not started yet; otherwise a warning is given and what exists is used.
        cluster: several hosts to join.

    Raises:
        UserError: fewer devices exist than were asked for, or the cluster cannot be joined.
    """
    if isinstance(cluster, str):
        raise UserError(
            f"executor {cluster} is for train, compare, tune and generalize; meta-train joins hosts by --coordinator"
        )
    if devices is not None and not 1 <= devices <= MAX_DEVICES:
        raise UserError(f"--devices must be from 1 to {MAX_DEVICES}, not {devices}")
    _use_compilation_cache()
    _ask_for_cpu_devices(devices)
    if cluster is not None and cluster != Cluster():
        _join(cluster)
    try:
        found = jax.devices()
    except RuntimeError as error:  # a platform that was asked for and is not there
        first = str(error).partition("\n")[0]
        raise UserError(
            f"JAX cannot start ({first}): unset JAX_PLATFORMS, or set it to cpu; `openbench doctor` says what is there"
        ) from None
    if devices is None:
        return found
    if jax.process_count() > 1 and devices != len(found):
        raise UserError("with several processes all devices are used: leave --devices out")
    if len(found) < devices:
        if found[0].platform != "cpu":
            raise UserError(f"--devices {devices}: only {len(found)} {found[0].platform} devices exist")
        warnings.warn(
            f"JAX had started with {len(found)} CPU devices already; using those, not {devices}", stacklevel=2
        )
    return found[:devices]


def _ask_for_cpu_devices(devices: int | None) -> None:
    # The flag of the environment wins: whoever sets it has chosen.
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    wanted = devices or available_cores()
    if wanted > available_cores():
        warnings.warn(f"{wanted} devices on {available_cores()} cores share them, and are no faster", stacklevel=3)
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:  # JAX has started; start() warns when that leaves fewer devices than were asked for
        if devices is None and jax.default_backend() == "cpu" and len(jax.devices()) < wanted:
            warnings.warn(
                f"JAX had started already with {len(jax.devices())} CPU device(s); {wanted} cores could be used. "
                "Call open_bench first, or set jax.config.update('jax_num_cpu_devices', …) before using JAX.",
                stacklevel=3,
            )


MAX_DEFAULT_VMAP_SIZE = 64
MAX_DEVICES = 4096


def default_vmap_size(devices: Sequence[Device], lifetime_bytes: int) -> int:
    """1 on CPU; on accelerators the largest power of two up to 64 whose lifetimes fit half of a device's memory.

    It does not depend on how many lifetimes are asked for: the vmap size is part of an experiment's identity.
    """
    if devices[0].platform == "cpu":
        return 1
    statistics = devices[0].memory_stats() or {}
    fitting = int(statistics.get("bytes_limit", 8 << 30)) // 2 // max(1, lifetime_bytes)
    size = MAX_DEFAULT_VMAP_SIZE
    while size > max(1, fitting):
        size //= 2
    if size < MAX_DEFAULT_VMAP_SIZE:
        warnings.warn(f"a device's memory fits {size} lifetimes at once: --vmap-size {size}", stacklevel=2)
    return size


def _use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the user has chosen a place (or none) already."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "open-bench" / f"jax-{processor_kind()}"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _join(cluster: Cluster) -> None:
    if None in (cluster.coordinator, cluster.num_processes, cluster.process_id):
        raise UserError("--coordinator, --num-processes and --process-id go together")
    try:
        jax.distributed.initialize(cluster.coordinator, cluster.num_processes, cluster.process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the cluster at {cluster.coordinator}: {error}") from None
