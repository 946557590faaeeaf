"""OPEN's network as one kernel for GPUs (Pallas, Triton): does it agree with the rule, and what does it save?

    python benchmarks/fused_open.py                      on a GPU: agreement, then lifetimes against Adam's
    python benchmarks/fused_open.py                      on a CPU: agreement alone, the kernel being interpreted

XLA computes the rule's features, two gates and three dense layers as kernels of their own, whose intermediate rows go
through memory. Here a program of the kernel takes a few blocks of columns from parameters, gradient, momenta and carry
to outputs and new carry without leaving registers. Momenta, mean squares, noise and the mean over parameters stay
XLA's. The kernel is a candidate: it joins the package when it is measured to be worth it.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from timed import experiment, median_interval, timing

from open_bench.optimizers.learned import open as rule_of_open
from open_bench.optimizers.learned.open import OPEN, Rule, Variant, open_optimizer, random_theta
from open_bench.optimizers.learned.per_parameter import LANES, Layout, matmul
from open_bench.optimizers.spec import TrainingLength
from open_bench.training.devices import start
from open_bench.training.mesh import compile_program

Array = jax.Array
BLOCKS, WARPS = (1, 2, 4), (1, 2, 4)  # that are tried: blocks of columns of a program, and warps that share them
MOMENTA = len(rule_of_open.DECAYS)


def kernel(
    params: Any, gradient: Any, momenta: Any, carry: Any, dormancy: Any, factors: Any, offset: Any, wide: Any,
    recurrent: Any, candidate: Any, first: Any, first_norm: Any, second: Any, second_norm: Any, head: Any,
    outputs: Any, new_carry: Any,
) -> None:  # fmt: skip
    """Some blocks of columns, (blocks, LANES) a row. ``factors`` are by row and block, all that follow are θ's.

    ``offset`` has the input's bias with what is one number a block, (3G, blocks); matrices have their bias last.
    """
    rows = _features(params, gradient, momenta, factors)
    rows.append(dormancy[...])
    old = [carry[unit] for unit in range(carry.shape[0])]
    size = len(old)

    def gate(unit: int) -> Array:
        return _product(wide, unit, rows) + offset[unit][:, None]

    def memory(unit: int) -> Array:
        return _product(recurrent, unit, old)

    state = []
    for unit in range(size):
        reset = 0.5 + 0.5 * jnp.tanh(gate(unit) + memory(unit))
        update = 0.5 + 0.5 * jnp.tanh(gate(size + unit) + memory(size + unit))
        new = jnp.tanh(gate(2 * size + unit) + reset * (memory(2 * size + unit) + candidate[unit]))
        state.append(new + update * (old[unit] - new))
    for unit, row in enumerate(state):
        new_carry[unit] = row
    hidden = _norm_relu(_dense(first, state), first_norm)
    hidden = _norm_relu(_dense(second, hidden), second_norm)
    for unit, row in enumerate(_dense(head, hidden)):
        outputs[unit] = row


def _features(params: Any, gradient: Any, momenta: Any, factors: Any) -> list[Array]:
    """The normalized rows, in the rule's order. The padding's differ from the rule's, and nobody reads them."""
    pairs = [*(momenta[row] for row in range(MOMENTA)), gradient[...]]
    logs = [jnp.log(jnp.abs(row) + rule_of_open.LOG_FLOOR) for row in pairs]
    signs = [jnp.sign(row) for row in pairs]
    rows = [params[...], *signs[:-1], *logs[:-1], signs[-1], logs[-1]]
    return [row * factors[index][:, None] for index, row in enumerate(rows)]


def _product(weights: Any, unit: int, rows: list[Array]) -> Array:
    """A unit's sum of products over rows."""
    total = weights[unit, 0] * rows[0]
    for index, row in enumerate(rows[1:], start=1):
        total = total + weights[unit, index] * row
    return total


def _dense(weights: Any, rows: list[Array]) -> list[Array]:
    """kernel·rows + bias, a row a unit."""
    return [_product(weights, unit, rows) + weights[unit, len(rows)] for unit in range(weights.shape[0])]


def _norm_relu(rows: list[Array], norm: Any) -> list[Array]:
    """relu(LayerNorm(rows)), whose mean over units is already 0; ``norm`` (units, 2) has scale and bias."""
    variance = sum(row * row for row in rows) / len(rows)
    inverse = jax.lax.rsqrt(variance + rule_of_open.NORM_EPSILON)
    return [jnp.maximum(row * inverse * norm[unit, 0] + norm[unit, 1], 0.0) for unit, row in enumerate(rows)]


def fused(
    rule: Rule, layout: Layout, rows: tuple[Array, Array, Array], factors: Array, context: list[Any], carry: Array,
    blocks: int, warps: int, interpret: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Outputs (2 or 3, columns) and the new carry, of parameters, gradient and momenta ``rows``.

    Args:
        factors: (15, tensors), what features are multiplied with.
        context: the values of the rule's context; only the last, dormancy, differs within a tensor.
        blocks: of columns, that a program of the kernel has; must divide the layout's.
        warps: that a program has.
    """
    assert rule.cell is not None
    total, size = layout.columns // LANES, carry.shape[0]
    wide = rule.cell.input.kernel
    features = wide.shape[1] - len(context)
    by_block = lambda value: jnp.asarray(value).reshape(total, LANES)[:, 0] if jnp.ndim(value) else value
    offset = jnp.broadcast_to(rule.cell.input.bias, (3 * size, total))
    for column, value in enumerate(context[:-1], start=features):
        offset = offset + wide[:, column, None] * by_block(value)
    blocked = lambda array: array.reshape(*array.shape[:-1], total, LANES)
    columns = [*map(blocked, (*rows, carry, jnp.broadcast_to(context[-1], (layout.columns,))))]
    of_blocks = [matmul(factors, layout.membership.T), offset]
    theta = [jnp.concatenate([wide[:, :features], wide[:, -1:]], axis=1), rule.cell.hidden,
             rule.cell.candidate_bias[:, 0]]  # fmt: skip
    for layer, norm in zip(rule.hidden, rule.norms, strict=True):
        theta += [jnp.concatenate(layer, axis=1), jnp.concatenate(norm, axis=1)]
    theta.append(jnp.concatenate(rule.head, axis=1))
    outputs = rule.head.kernel.shape[0]
    found = pl.pallas_call(
        kernel,
        grid=(total // blocks,),
        in_specs=[*(_block(each, blocks, 2) for each in columns), *(_block(each, blocks, 1) for each in of_blocks),
                  *(pl.BlockSpec(each.shape, lambda i, n=each.ndim: (0,) * n) for each in theta)],
        out_specs=[_block(np.empty((count, total, LANES)), blocks, 2) for count in (outputs, size)],
        out_shape=[jax.ShapeDtypeStruct((count, total, LANES), jnp.float32) for count in (outputs, size)],
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
    )(*columns, *of_blocks, *theta)  # fmt: skip
    return found[0].reshape(outputs, -1), found[1].reshape(size, -1)


def _block(array: Any, blocks: int, axis_from_end: int) -> pl.BlockSpec:
    """Some blocks of an array whose axis of blocks is that one from the end."""
    axis = array.ndim - axis_from_end
    shape = tuple(blocks if place == axis else size for place, size in enumerate(array.shape))
    return pl.BlockSpec(shape, lambda i, n=array.ndim: tuple(i if place == axis else 0 for place in range(n)))


def fused_optimizer(
    theta: Mapping[str, Any], length: TrainingLength, *, variant: Variant, deterministic: bool = False,
    blocks: int = 2, warps: int = 2, interpret: bool = False,
) -> optax.GradientTransformationExtraArgs:  # fmt: skip
    """``open_optimizer`` with the kernel; for variants with a GRU, (sign, log) pairs and dormancy."""
    assert variant.carry and variant.signed_log and variant.context[-1] == "dormancy"
    plain, rule = open_optimizer(theta, length, variant=variant, deterministic=deterministic), rule_of_open._rule(theta)
    noisy = variant.stochastic and not deterministic

    def update(
        updates: Any, state: Any, params: Any = None, *, training_fraction: Any = 0.0, epoch_fraction: Any = 0.0,
        activations: Any = None, key: Any = None, acting_network: str = "actor", **extras: Any,
    ) -> Any:  # fmt: skip
        del extras
        layout = Layout.of(params)
        if sum(layout.blocks) % blocks:
            raise ValueError(f"{blocks} blocks a program do not divide the agent's {sum(layout.blocks)}")
        gradient, vector = layout.flatten(updates), layout.flatten(params)
        momenta = rule_of_open._advance(state.momenta, gradient)
        signs, log = jnp.sign, functools.partial(rule_of_open._log, layout)
        features = jnp.concatenate([vector[None], signs(momenta), log(momenta), signs(gradient[None]),
                                    log(gradient[None])])  # fmt: skip
        factors = jax.lax.rsqrt(rule_of_open.RMS_FLOOR + layout.mean_square(features))
        context = rule_of_open._context(variant, layout, training_fraction, epoch_fraction, activations)
        outputs, carry = fused(rule, layout, (vector, gradient, momenta), factors, context, state.carry, blocks, warps,
                               interpret)  # fmt: skip
        step = rule_of_open._step(outputs)
        if noisy:
            step = rule_of_open._explore(layout, acting_network, step, outputs[2], key)
        mean = jnp.sum(jnp.where(layout.mask, step, 0.0)) / max(layout.count, 1)
        return layout.unflatten(mean - step), rule_of_open.OpenState(momenta, carry)

    return optax.GradientTransformationExtraArgs(plain.init, update)


def disagreement(params: Any, interpret: bool, variant: Variant = OPEN, updates: int = 3, **shape: int) -> float:
    """The largest difference between both rules' updates of an agent, relative to the largest update."""
    theta = random_theta(variant, jax.random.key(0))
    length = TrainingLength(1, 1, 1)
    active = {
        network: {layer: 1.0 + jnp.arange(leaves["bias"].shape[0]) for layer, leaves in layers.items()}
        for network, layers in params.items()
    }
    optimizers = (open_optimizer(theta, length, variant=variant),
                  fused_optimizer(theta, length, variant=variant, interpret=interpret, **shape))  # fmt: skip
    found = []
    for optimizer in optimizers:
        state, mine, told = optimizer.init(params), params, []
        step = jax.jit(optimizer.update)
        for number in range(updates):
            gradients = jax.tree.map(lambda leaf, n=number: jnp.sin(40.0 * leaf + n) * 0.01, params)
            change, state = step(
                gradients, state, mine, key=jax.random.key(number), activations=active, training_fraction=0.3,
                epoch_fraction=0.1 * number,
            )  # fmt: skip
            mine = optax.apply_updates(mine, change)
            told.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(change)]))
        found.append(np.stack(told))
    return float(np.abs(found[0] - found[1]).max() / np.abs(found[0]).max())


def timed(device: Any, optimizer: Any, size: int, updates: int) -> Any:
    """A function that times ``updates`` updates of ``size`` vmapped lifetimes: seconds."""
    chosen = experiment("open@init" if optimizer else "adam", "breakout")
    if optimizer:
        spec = dataclasses.replace(chosen.optimizer.spec, make=optimizer)
        chosen = dataclasses.replace(chosen, optimizer=dataclasses.replace(chosen.optimizer, spec=spec))
    return timing(chosen, compile_program(chosen.make_lifetime(), chosen.inputs, [device], size, size), size, updates)


@click.command()
@click.option("--vmap-size", "sizes", multiple=True, type=int, default=(64,), show_default=True)
@click.option("--updates", default=20, show_default=True, help="Updates of a timing.")
@click.option("--repeats", default=5, show_default=True, help="Timings of each, alternated.")
def main(sizes: tuple[int, ...], updates: int, repeats: int) -> None:
    """Say how far the kernel agrees and what it saves."""
    device = start(1)[0]
    interpret = device.platform == "cpu"
    shapes = experiment("adam", "breakout").task.params()
    params = jax.tree.map(lambda leaf: 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), shapes)
    found = disagreement(params, interpret)
    click.echo(f"{device.device_kind}: updates of an agent of Breakout differ by {found:.1e} of the largest")
    if interpret:
        return
    makes = {"OPEN, XLA's kernels": functools.partial(open_optimizer, variant=OPEN)}
    for blocks in BLOCKS:
        for warps in WARPS:
            makes[f"OPEN, {blocks} blocks, {warps} warps"] = functools.partial(
                fused_optimizer, variant=OPEN, blocks=blocks, warps=warps
            )
    for size in sizes:
        runs = {"adam": timed(device, None, size, updates)}
        for name, make in makes.items():
            try:
                runs[name] = timed(device, make, size, updates)
            except Exception as error:  # a shape that the compiler refuses is a finding
                click.echo(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        seconds = [{name: run() for name, run in runs.items()} for _ in range(repeats)]
        for name in makes:
            if name in runs:
                ratios = np.array([each[name] / each["adam"] for each in seconds])
                low, high = median_interval(ratios)
                click.echo(f"vmap size {size}, {name}: {np.median(ratios):.2f} [{low:.2f}, {high:.2f}] x Adam")


if __name__ == "__main__":
    main()
