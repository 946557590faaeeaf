"""What θ must be for an optimizer: which published files it reads, and whether a θ fits it."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from open_bench.optimizers.learned import lpo
from open_bench.optimizers.spec import OptimizerSpec, Reader
from open_bench.weights.format import Theta, WeightsError


def readers(spec: OptimizerSpec) -> list[tuple[str, Reader]]:
    """``(part of θ, reader)`` for every published format of what the optimizer has learned."""
    of_loss = lpo.READERS if spec.policy_loss.name == lpo.NAME else ()
    of_optimizer = spec.learned.readers if spec.learned else ()
    return [("optimizer", reader) for reader in of_optimizer] + [("policy_loss", reader) for reader in of_loss]


def validate(theta: Theta, spec: OptimizerSpec, where: str | Path = "θ") -> None:
    """Check θ against what the optimizer and its policy loss need.

    Raises:
        WeightsError: a part is missing, superfluous or of other shapes; ``where`` says whose θ it is.
    """
    learned, loss = spec.learned, spec.policy_loss
    parts = (
        ("optimizer", "an optimizer", spec.name, learned and learned.init, learned and learned.validate),
        ("policy_loss", "a policy loss", f"the policy loss {loss.name} of {spec.name}", loss.init, loss.validate),
    )
    for part, what, owner, init, check in parts:
        found = theta.get(part) or {}
        if found and init is None:
            raise WeightsError(f"{where} holds weights of {what}, and {owner} has none to learn")
        if init is None:
            continue
        if not found:
            raise WeightsError(f"{where} holds no weights of {what}, and {owner} needs them")
        try:
            check(found) if check else _same_shapes(found, init)
        except ValueError as error:
            raise WeightsError(f"{where} does not fit {owner}: {error}") from error


def _same_shapes(found: Any, init: Any) -> None:
    """Compare with the shapes that meta-training would start from, which are computed without running anything."""
    expected = jax.eval_shape(init, jax.ShapeDtypeStruct((2,), np.uint32))
    wanted, present = (
        {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (expected, found)
    )
    for name in sorted(wanted | present):
        if wanted.get(name) != present.get(name):
            raise ValueError(f"array {name}: expected {wanted.get(name, 'none')}, found {present.get(name, 'none')}")
