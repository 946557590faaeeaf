"""Where numbers come from: package versions, hardware and the git revision."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from open_bench.training.devices import processor_says

CODE = ("open_bench", "configs", "baselines/hyperparameters", "pyproject.toml")  # what results depend on
PACKAGES = ("open-bench", "jax", "jaxlib", "flax", "optax", "gymnax", "brax", "numpy")


@functools.cache
def provenance() -> dict[str, Any]:
    """Facts about this machine and these packages, as JSON values."""
    devices = jax.devices()
    processor = processor_says("model name").partition(":")[2].strip() or platform.processor() or platform.machine()
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": f"{len(devices)} × {devices[0].device_kind} ({processor})",
        "platform": devices[0].platform,
        "revision": revision(),
    }


@functools.cache
def revision() -> str:
    """Git revision of the checkout that this package runs from ("-dirty" if its code differs), else its version."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return f"v{_version('open-bench')}"
    try:
        run = functools.partial(subprocess.run, cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        head = run(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changes = run(["git", "status", "--porcelain", "--untracked-files=no", "--", *CODE]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"v{_version('open-bench')}"
    return head + ("-dirty" if changes else "")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
