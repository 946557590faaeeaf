"""The candidate of a GPU kernel for OPEN (benchmarks/fused_open.py): interpreted, it agrees; it lowers for GPUs."""

import runpy
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from open_bench.optimizers.learned.open import Variant, random_theta
from open_bench.optimizers.spec import TrainingLength

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = Variant(carry=2, hidden=4)


@pytest.fixture(scope="module")
def fused_open() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield runpy.run_path(str(BENCHMARKS / "fused_open.py"))
    sys.modules.pop("timed", None)


def agent() -> Any:
    """Tensors that do and do not fill their blocks of 64 columns, ten blocks in all."""
    shapes = {"Dense_0": {"kernel": (9, 8), "bias": (8,)}, "Dense_1": {"kernel": (8, 8), "bias": (8,)}}
    keys = iter(jax.random.split(jax.random.key(3), 8))
    draw = lambda shape: 0.3 * jax.random.normal(next(keys), shape)
    network = lambda: jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))
    return {"actor": network(), "critic": network()}


@pytest.mark.parametrize("blocks", [1, 2])
def test_it_agrees_with_the_rule(fused_open: Any, blocks: int) -> None:
    assert 0 < fused_open["disagreement"](agent(), True, SMALL, blocks=blocks) < 1e-5


def test_a_shape_that_does_not_fit_is_refused(fused_open: Any) -> None:
    with pytest.raises(ValueError, match="4 blocks a program do not divide the agent's 10"):
        fused_open["disagreement"](agent(), True, SMALL, blocks=4)


def test_it_lowers_for_gpus_alone_and_vmapped(fused_open: Any) -> None:
    def update(theta: Any, params: Any, state: Any, key: Any) -> Any:
        optimizer = fused_open["fused_optimizer"](theta, TrainingLength(1, 1, 1), variant=SMALL)
        return optimizer.update(params, state, params, key=key)

    theta, params = random_theta(SMALL, jax.random.key(0)), agent()
    state = fused_open["fused_optimizer"](theta, TrainingLength(1, 1, 1), variant=SMALL).init(params)
    several = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), tree)
    keys = jax.random.split(jax.random.key(0), 3)
    calls = (
        (update, (theta, params, state, keys[0])),
        (jax.vmap(update, (None, 0, 0, 0)), (theta, several(params), several(state), keys)),
        (jax.vmap(update), (several(theta), several(params), several(state), keys)),
    )
    for function, arguments in calls:
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
        assert "triton" in lowered.as_text()
