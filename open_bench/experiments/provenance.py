"""Where numbers come from: package versions, hardware and the git revision."""

import functools
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from open_bench.machine import installed_version, processor_kind, processor_name, xla_threads

CODE = ("open_bench", "configs", "pyproject.toml")  # an experiment's own description holds its hyperparameters
PACKAGES = ("open-bench", "jax", "jaxlib", "flax", "optax", "gymnax", "brax", "numpy")
COMPUTING = PACKAGES[1:]  # another version of these may round differently


@functools.cache
def provenance() -> dict[str, Any]:
    """Facts about this machine and these packages, as JSON values."""
    devices = jax.devices()
    return {
        "packages": {name: installed_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": f"{len(devices)} × {devices[0].device_kind} ({processor_name()})",
        "processor": processor_kind(),
        "platform": devices[0].platform,
        **({"threads": xla_threads(len(devices))} if devices[0].platform == "cpu" else {}),
        "revision": revision(),
    }


@functools.cache
def revision() -> str:
    """Git revision of the checkout that this package runs from ("-dirty" if its code differs), else its version."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return f"v{installed_version('open-bench')}"
    try:
        run = functools.partial(subprocess.run, cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        head = run(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changes = run(["git", "status", "--porcelain", "--untracked-files=no", "--", *CODE]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"v{installed_version('open-bench')}"
    return head + ("-dirty" if changes else "")


def same_kind(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two provenances promise the same bits: the same devices, and versions of what computes.

    The number of devices never matters, nor does the processor beside an accelerator. Of a CPU the number of threads
    does, since XLA divides sums among them. Shards of earlier versions do not tell it, and count as having had one a
    device; where one of both tells no ``processor``, it is taken to be equal.
    """
    packages = [each.get("packages") for each in (one, other)]
    versions = [
        {name: found.get(name) for name in COMPUTING} if isinstance(found, Mapping) else {} for found in packages
    ]
    return _kind(one) == _kind(other) and versions[0] == versions[1] and _same_processor(one, other)


def _kind(facts: Mapping[str, Any]) -> tuple[str, str]:
    """Platform, and what the devices call themselves: of "2 × cpu (AMD EPYC)" all but the number."""
    devices = str(facts.get("hardware", "")).partition(" × ")[2]
    platform_ = str(facts.get("platform", ""))
    return platform_, devices if platform_ == "cpu" else devices.rpartition(" (")[0]


def _same_processor(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    kinds = {each["processor"] for each in (one, other) if "processor" in each}
    return one.get("platform") != "cpu" or (len(kinds) < 2 and _threads(one) == _threads(other))


def _threads(facts: Mapping[str, Any]) -> str:
    return str(facts["threads"] if "threads" in facts else str(facts.get("hardware", "")).partition(" × ")[0])
