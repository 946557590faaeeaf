"""This machine and its packages, without starting JAX, which takes seconds where there are accelerators."""

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

CUDA_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")  # without one JAX sees no graphics card
_NVIDIA = Path("/proc/driver/nvidia/gpus")


def installed_version(package: str) -> str:
    """Version of an installed package, "absent" where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def xla_threads(devices: int) -> int:
    """Threads that XLA computes with on a CPU, all devices of the process together.

    It divides matrix products among them, and so decides in which order sums are rounded. ``NPROC`` is a variable that
    XLA reads too.
    """
    told = os.environ.get("NPROC", "")
    return max(int(told) if told.isdigit() else available_cores(), devices)


def processor_name() -> str:
    """What the processor calls itself."""
    return _processor_says("model name").partition(":")[2].strip() or platform.processor() or platform.machine()


def processor_kind() -> str:
    """A short name for this processor's instruction set: CPU programs of one kind may not run on another."""
    flags = _processor_says("flags", "Features")
    return f"{platform.machine()}-{hashlib.sha256(' '.join(sorted(flags.split())).encode()).hexdigest()[:8]}"


def graphics_cards(folder: Path = _NVIDIA) -> list[str]:
    """Models of the NVIDIA cards that the driver (or ``folder``, in its format) tells of."""
    found = []
    for path in sorted(folder.glob("*/information")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return found


def devices_ahead() -> str:
    """The devices that JAX will use by default, as far as can be told before it starts: ``2 × cpu (AMD EPYC)``."""
    cards = graphics_cards() if any(installed_version(name) != "absent" for name in CUDA_PLUGINS) else []
    if cards and os.environ.get("JAX_PLATFORMS", "") != "cpu":
        return ", ".join(f"{cards.count(card)} × {card}" for card in dict.fromkeys(cards))
    return f"{available_cores()} × cpu ({processor_name()})"


def _processor_says(*names: str) -> str:
    """The first line of /proc/cpuinfo that begins with one of ``names``; "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(names)), "")
