"""The published form of LPO's drift network: an ``.npz`` with ``kernel_0`` (8, H) and ``kernel_1`` (H, 1).

The policy loss itself is ``open_bench.algorithms.policy_losses.lpo``.
"""

from pathlib import Path
from typing import Any

from open_bench.optimizers.spec import Reader
from open_bench.weights.format import read_npz

NAME = "lpo"
ARRAYS = ("kernel_0", "kernel_1")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """θ["policy_loss"] of a file, and no metadata; WeightsError when it holds anything else."""
    return read_npz(path, ARRAYS), {}


READERS = (Reader(".npz", "LPO drift network", read),)
