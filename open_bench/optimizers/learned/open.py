"""OPEN: learned optimization for reinforcement learning (Goldie et al., NeurIPS 2024, arXiv 2407.07082).

One learned rule updates every parameter of actor and critic. Per parameter it keeps six momenta and the carry of a
small GRU, and reads features of the gradient's history, of time, of the parameter's layer and of how active its unit
is. Variants of the paper are values of ``Variant``, not other code.

Features, in the order of the rule's inputs; x is a row over parameters:

    1       p, the parameter
    2–7     sign(m₁…m₆)          m_i ← β_i·m_i + (1 − β_i)·g,  β = 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999
    8–13    log(|m₁…m₆| + 1e-13)
    14, 15  sign(g), log(|g| + 1e-13)
    16–19   training proportion, layer proportion, batch proportion, dormancy

Rows 1 to 15 are divided by their root mean square over the tensor, x·rsqrt(1e-5 + mean(x²)). The network is GRU(G) →
[Dense(H) → LayerNorm → relu] twice → Dense(3), with outputs (m, e, δ) and

    û = 10⁻³·m·exp(10⁻³·e) + [actor] 10⁻³·δ·ε,  ε ~ N(0, 1);   update = −(û − mean of û over all parameters).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from open_bench.optimizers.learned import per_parameter
from open_bench.optimizers.learned.per_parameter import Affine, Gru, Layout
from open_bench.optimizers.spec import Hyperparameter, Imitation, Learned, OptimizerSpec, TrainingLength

Array = jax.Array

CITATION = "Goldie et al. 2024, arXiv 2407.07082"

DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
CONTEXT = ("training_proportion", "layer_proportion", "batch_proportion", "dormancy")  # features 16–19, in order
STEP_SIZE = 1e-3  # scale of m, of e inside its exponential, and of δ
LOG_FLOOR = 1e-13
RMS_FLOOR = 1e-5
DORMANCY_FLOOR = 1e-11
NORM_EPSILON = 1e-6  # LayerNorm


@dataclasses.dataclass(frozen=True)
class Variant:
    """What distinguishes the members of the OPEN family. Sizes here only say how θ begins; the rule reads θ's arrays.

    Attributes:
        carry: units G of the GRU; 0 for a feed-forward rule.
        hidden: units H of the two dense layers.
        signed_log: whether momenta and gradient enter as (sign, log) pairs, else as they are.
        context: which of features 16–19 there are. A feature that is left out is no input at all: θ is smaller.
        stochastic: whether there is an output δ.
    """

    carry: int = 8
    hidden: int = 16
    signed_log: bool = True
    context: tuple[str, ...] = CONTEXT
    stochastic: bool = True

    @property
    def inputs(self) -> int:
        """Number of features."""
        return 1 + (2 if self.signed_log else 1) * (len(DECAYS) + 1) + len(self.context)

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return 3 if self.stochastic else 2

    def shapes(self) -> per_parameter.Shapes:
        """Shapes of θ's arrays, under the names of the published weights."""
        width, hidden = self.carry or self.inputs, self.hidden
        norm = {"scale": (hidden,), "bias": (hidden,)}
        mlp = {
            "layers_0": per_parameter.dense_shapes(width, hidden),
            "layers_1": norm,
            "layers_3": per_parameter.dense_shapes(hidden, hidden),
            "layers_4": norm,
            "layers_6": per_parameter.dense_shapes(hidden, self.outputs),
        }
        cell = {"gru_params": per_parameter.gru_shapes(self.inputs, self.carry)} if self.carry else {}
        return {**cell, "params": mlp}


class OpenState(NamedTuple):
    """State of OPEN; columns are the parameters in ``Layout``'s order, padding included."""

    momenta: Float[Array, "6 columns"]  # float32, one row per decay; 0 in the padding
    carry: Float[Array, "G columns"]  # float32, of the GRU; G = 0 in a feed-forward rule


class Rule(NamedTuple):
    """θ rearranged for rows."""

    cell: Gru | None
    hidden: tuple[Affine, ...]  # two; centered: each column of units has mean 0, which is LayerNorm's subtraction
    norms: tuple[tuple[Array, ...], ...]  # scale and bias, (H, 1) each
    head: Affine


def open_optimizer(
    theta: Mapping[str, Any], length: TrainingLength, *, variant: Variant, deterministic: bool = False
) -> optax.GradientTransformationExtraArgs:
    """OPEN with meta-parameters ``theta``.

    ``update`` reads the extras ``training_fraction``, ``epoch_fraction`` (scalars, 0 by default), ``activations``
    ({network: {layer: (units,)}}, mean |activation|; a layer without an entry has its block's, and where that has none
    dormancy 1), ``acting_network`` (name of the network that noise goes to, "actor" by default) and ``key`` (needed
    unless there is no noise). It takes them as they come and counts nothing itself.

    Args:
        theta: arrays named as in ``Variant.shapes``; they may be tracers, and their sizes set G and H.
        length: not used: time arrives in the extras.
        variant: which inputs and outputs the rule has.
        deterministic: leave out the noise (δ·ε) at evaluation.

    Returns:
        The gradient transformation; its updates are added to the parameters. Networks are the top level of the
        parameters.

    Raises:
        ValueError: when ``theta`` is empty; in ``update`` when ``params`` or a needed ``key`` is missing, or an
            activation does not fit its layer.

    References:
        Goldie et al. 2024, arXiv 2407.07082.
    """
    del length
    if not theta:
        raise ValueError("OPEN needs meta-parameters: name weights (open@FILE), or meta-train it first")
    rule = _rule(theta)
    noisy = variant.stochastic and not deterministic

    def init(params: Any) -> OpenState:
        columns = Layout.of(params).columns
        size = rule.cell.hidden.shape[1] if rule.cell else 0
        return OpenState(jnp.zeros((len(DECAYS), columns), jnp.float32), jnp.zeros((size, columns), jnp.float32))

    def update(
        updates: Any,
        state: OpenState,
        params: Any = None,
        *,
        training_fraction: Any = 0.0,
        epoch_fraction: Any = 0.0,
        activations: Any = None,
        key: Array | None = None,
        acting_network: str = "actor",
        **extras: Any,
    ) -> tuple[Any, OpenState]:
        del extras
        if params is None:
            raise ValueError("OPEN reads the parameters: pass params to update")
        if noisy and key is None:
            raise ValueError("OPEN draws noise: pass key=… to update, or make it with deterministic=True")
        layout = Layout.of(params)
        gradient = layout.flatten(updates)
        momenta = _advance(state.momenta, gradient)
        inputs = _features(variant, layout, layout.flatten(params), momenta, gradient)
        context = _context(variant, layout, training_fraction, epoch_fraction, activations)
        outputs, carry = _apply(rule, inputs, context, state.carry)
        step = _step(outputs)
        if noisy:
            step = _explore(layout, acting_network, step, outputs[2], key)
        mean = jnp.sum(jnp.where(layout.mask, step, 0.0)) / max(layout.count, 1)
        return layout.unflatten(mean - step), OpenState(momenta, carry)

    return optax.GradientTransformationExtraArgs(init, update)


def _rule(theta: Mapping[str, Any]) -> Rule:
    mlp = theta["params"]
    norms = [(mlp[name]["scale"], mlp[name]["bias"]) for name in ("layers_1", "layers_4")]
    return Rule(
        cell=per_parameter.gru(theta["gru_params"]) if "gru_params" in theta else None,
        hidden=tuple(_center(per_parameter.affine(mlp[name])) for name in ("layers_0", "layers_3")),
        norms=tuple(tuple(jnp.asarray(part, jnp.float32)[:, None] for part in norm) for norm in norms),
        head=per_parameter.affine(mlp["layers_6"]),
    )


def _center(layer: Affine) -> Affine:
    """Subtract the mean over units from the weights, so that outputs have mean 0 over units."""
    return Affine(*(part - part.mean(axis=0, keepdims=True) for part in layer))


def _advance(momenta: Float[Array, "6 columns"], gradient: Float[Array, " columns"]) -> Float[Array, "6 columns"]:
    """The momenta with the current gradient in them."""
    decays = jnp.asarray(DECAYS, jnp.float32)[:, None]
    return decays * momenta + (1.0 - decays) * gradient


def _features(
    variant: Variant, layout: Layout, params: Float[Array, " columns"], momenta: Float[Array, "6 columns"],
    gradient: Float[Array, " columns"],
) -> Float[Array, "features columns"]:  # fmt: skip
    """The normalized rows (15, columns), or (8, columns) without the (sign, log) pairs; 0 in the padding."""
    gradient = gradient[None]
    if variant.signed_log:
        rows = [params[None], jnp.sign(momenta), _log(layout, momenta), jnp.sign(gradient), _log(layout, gradient)]
    else:
        rows = [params[None], momenta, gradient]
    features = jnp.concatenate(rows)
    return layout.scale(features, jax.lax.rsqrt(RMS_FLOOR + layout.mean_square(features)))


def _log(layout: Layout, rows: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    return jnp.log(jnp.abs(rows) + LOG_FLOOR) * layout.mask.astype(np.float32)


def _context(
    variant: Variant, layout: Layout, training_fraction: Any, epoch_fraction: Any, activations: Any
) -> list[Any]:
    """The values of ``variant.context``, () or (columns,) each."""
    values: dict[str, Callable[[], Any]] = {
        "training_proportion": lambda: jnp.asarray(training_fraction, jnp.float32),
        "layer_proportion": lambda: _layer_proportion(layout),
        "batch_proportion": lambda: jnp.asarray(epoch_fraction, jnp.float32),
        "dormancy": lambda: _dormancy(layout, activations or {}),
    }
    return [values[name]() for name in variant.context]


def _layer_proportion(layout: Layout) -> np.ndarray:
    """(columns,): i/(n−1) for the i-th of a network's n blocks; 0 when n = 1. Bare arrays (log_std) come last.

    A block is a dense layer with the norm that follows it (``Layout.layer_blocks``).
    """
    order: dict[str, list[str]] = {}
    for leaf in sorted(range(len(layout.layers)), key=lambda leaf: (layout.bare[leaf], leaf)):
        network, block = layout.layer_blocks[leaf]
        if block not in order.setdefault(network, []):
            order[network].append(block)
    proportions = [order[name].index(block) / max(len(order[name]) - 1, 1) for name, block in layout.layer_blocks]
    widths = np.diff(layout.offsets)
    return np.repeat(np.asarray(proportions, np.float32), widths)


def _dormancy(layout: Layout, activations: Mapping[str, Mapping[str, Any]]) -> Float[Array, " columns"]:
    """(columns,): a·width/Σa of the unit that a parameter feeds, a = mean |activation| + 1e-11; 1 where unknown."""
    values: list[Any] = []
    by_block = {
        (network, block): activations[network][layer]
        for (network, layer), (_, block) in zip(layout.layers, layout.layer_blocks, strict=True)
        if layer in activations.get(network, {})
    }
    for (network, layer), block, shape in zip(layout.layers, layout.layer_blocks, layout.shapes, strict=True):
        activation = activations.get(network, {}).get(layer, by_block.get(block))
        if activation is None or not shape:
            values.append(1.0)
            continue
        if jnp.shape(activation) != shape[-1:]:
            raise ValueError(
                f"activations of {network}/{layer} have shape {jnp.shape(activation)}, expected {shape[-1:]}"
            )
        active = jnp.asarray(activation, jnp.float32) + DORMANCY_FLOOR
        values.append(active / active.sum() * active.size)
    return layout.spread(values)


def _apply(
    rule: Rule, inputs: Float[Array, "features columns"], context: list[Any], carry: Float[Array, "G columns"]
) -> tuple[Float[Array, "outputs columns"], Float[Array, "G columns"]]:
    """The network's outputs (2 or 3, columns) and the new carry."""
    if rule.cell:
        inputs = carry = per_parameter.gru_step(rule.cell, inputs, carry, context)
        context = []
    return _read_out(rule, inputs, context), carry


def _read_out(rule: Rule, inputs: Float[Array, "units columns"], context: list[Any]) -> Float[Array, "outputs columns"]:
    """The outputs (2 or 3, columns) that the dense layers make of the carry, or of a feed-forward rule's features."""
    for layer, (scale, bias) in zip(rule.hidden, rule.norms, strict=True):
        inputs = _norm_relu(*per_parameter.apply(layer, inputs, context), scale, bias)
        context = []
    return per_parameter.dense(rule.head, inputs)


def _step(outputs: Float[Array, "outputs *columns"]) -> Float[Array, " *columns"]:
    """10⁻³·m·exp(10⁻³·e)."""
    return STEP_SIZE * outputs[0] * jnp.exp(STEP_SIZE * outputs[1])


def _norm_relu(
    product: Float[Array, "H columns"], offset: Array, scale: Float[Array, "H 1"], bias: Float[Array, "H 1"]
) -> Float[Array, "H columns"]:
    """relu(LayerNorm(product + offset)) over rows, whose mean over rows is already 0.

    The variance is written as a sum of rows: XLA's CPU backend turns that into one vectorized loop, while a reduction
    over the leading axis is many times slower.
    """
    units = product.shape[0]
    variance = sum(jnp.square(product[unit] + offset[unit]) for unit in range(units)) / units
    return jax.nn.relu((product + offset) * jax.lax.rsqrt(variance + NORM_EPSILON) * scale + bias)


def _explore(
    layout: Layout, network: str, step: Float[Array, " columns"], spread: Float[Array, " columns"], key: Any
) -> Float[Array, " columns"]:
    """Add 10⁻³·δ·ε to the columns of the network that acts; only they draw noise."""
    start, stop = layout.span(network)
    noise = STEP_SIZE * spread[start:stop] * jax.random.normal(key, (stop - start,), jnp.float32)
    return jnp.concatenate([step[:start], step[start:stop] + noise, step[stop:]])


# --- Imitation -----------------------------------------------------------------------------------------------------


def random_theta(variant: Variant, key: Array) -> Any:
    """θ where a fit begins: kernels N(0, 1/inputs), scales 1, biases 0. At θ = 0 there is no gradient."""
    start, keys = per_parameter.zeros(variant.shapes()), itertools.count()

    def draw(path: Any, leaf: Array) -> Array:
        own = jax.random.fold_in(key, next(keys))
        match path[-1].key:
            case "kernel":
                return jax.random.normal(own, leaf.shape) / np.sqrt(leaf.shape[0])
            case "scale":
                return jnp.ones_like(leaf)
        return leaf

    return jax.tree_util.tree_map_with_path(draw, start)


def observe(
    variant: Variant,
    gradients: Any,
    momenta: Float[Array, "6 columns"],
    params: Any,
    *,
    training_fraction: Any = 0.0,
    epoch_fraction: Any = 0.0,
    activations: Any = None,
    **extras: Any,
) -> tuple[Float[Array, "features columns"], Float[Array, "6 columns"]]:
    """All inputs of the rule in order, context included, and the momenta; extras as for ``open_optimizer``."""
    del extras
    layout = Layout.of(params)
    gradient = layout.flatten(gradients)
    momenta = _advance(momenta, gradient)
    features = _features(variant, layout, layout.flatten(params), momenta, gradient)
    context = _context(variant, layout, training_fraction, epoch_fraction, activations)
    return jnp.concatenate([features, *(jnp.broadcast_to(row, (1, layout.columns)) for row in context)]), momenta


def unroll(
    theta: Mapping[str, Any], inputs: Float[Array, "steps features columns"]
) -> tuple[Float[Array, "steps columns"], Float[Array, "steps columns"]]:
    """Updates of the rule on sequences of its inputs, the carry being 0 before the first.

    Returns:
        The updates without noise, and the noise's standard deviation where the network acts. The mean over all
        parameters, which OPEN subtracts, is not known of a part of them and stays.
    """
    rule = _rule(theta)
    if rule.cell:
        cell, size = rule.cell, rule.cell.hidden.shape[1]

        def advance(carry: Array, rows: Array) -> tuple[Array, Array]:
            carry = per_parameter.gru_step(cell, rows, carry)
            return carry, carry

        _, inputs = jax.lax.scan(advance, jnp.zeros((size, inputs.shape[2]), jnp.float32), inputs)
    steps, units, columns = inputs.shape
    outputs = _read_out(rule, inputs.swapaxes(0, 1).reshape(units, steps * columns), [])
    outputs = outputs.reshape(-1, steps, columns)
    spread = STEP_SIZE * outputs[2] if outputs.shape[0] > 2 else jnp.zeros_like(outputs[0])
    return -_step(outputs), spread


# --- Entries -------------------------------------------------------------------------------------------------------


def _without(feature: str) -> Variant:
    return Variant(context=tuple(name for name in CONTEXT if name != feature))


OPEN = Variant()
VARIANTS: dict[str, tuple[Variant, str]] = {
    "open": (OPEN, "OPEN: a GRU over gradient history, time, layer and dormancy features, with learned noise"),
    "open-large": (Variant(carry=16, hidden=32), "OPEN with twice the units, as in its multi-environment optimizer"),
    "open-feedforward": (Variant(carry=0), "OPEN without recurrence: its features straight into the MLP"),
    "no-features": (
        Variant(carry=0, signed_log=False, context=(), stochastic=False),
        "feed-forward rule on parameter, momenta and gradient only, without noise",
    ),
    "open-no-dormancy": (_without("dormancy"), "OPEN without the dormancy feature"),
    "open-no-layer-proportion": (_without("layer_proportion"), "OPEN without the layer proportion feature"),
    "open-no-training-proportion": (_without("training_proportion"), "OPEN without the training proportion feature"),
    "open-no-batch-proportion": (_without("batch_proportion"), "OPEN without the batch proportion feature"),
    "open-no-stochasticity": (Variant(stochastic=False), "OPEN without learned noise: it has no output δ"),
}

DETERMINISTIC = Hyperparameter(False, "leave out the learned noise at evaluation")


def init_theta(variant: Variant, key: Array) -> Any:
    """θ = 0, where evolution starts: an optimizer that does nothing."""
    del key
    return per_parameter.zeros(variant.shapes())


def theta_from_flat(name: str, variant: Variant, vector: Any) -> Any:
    """θ from the published form, one float32 vector with the leaves in sorted-key order.

    Raises:
        ValueError: when the size is another one; it says which variant has that size.
    """
    try:
        return per_parameter.from_flat(name, variant.shapes(), vector)
    except ValueError as error:
        size = int(np.size(vector))
        fits = [other for other, (resolved, _) in VARIANTS.items() if per_parameter.size_of(resolved.shapes()) == size]
        known = ", ".join(f"{per_parameter.size_of(other.shapes()):,} {key}" for key, (other, _) in VARIANTS.items())
        hint = f"{size:,} is the size of {', '.join(fits)}" if fits and name not in fits else f"Known sizes: {known}"
        raise ValueError(f"{error}; {hint}") from None


def validate(name: str, variant: Variant, theta: Any) -> None:
    """Raise ValueError, naming the array, unless ``theta`` fits ``variant`` for some G and H (G, H are free)."""
    hidden = per_parameter.shape_at(theta, "params", "layers_3", "bias")
    carry = per_parameter.shape_at(theta, "gru_params", "hn", "bias")
    fitted = dataclasses.replace(
        variant,
        hidden=hidden[0] if any(hidden) else variant.hidden,
        carry=carry[0] if variant.carry and any(carry) else variant.carry,
    )
    per_parameter.check(name, fitted.shapes(), theta)


def _spec(name: str, variant: Variant, description: str) -> OptimizerSpec:
    return OptimizerSpec(
        name=name,
        description=description,
        make=functools.partial(open_optimizer, variant=variant),
        citation=CITATION,
        stochastic=variant.stochastic,
        hyperparameters={"deterministic": DETERMINISTIC} if variant.stochastic else {},
        learned=Learned(
            init=functools.partial(init_theta, variant),
            readers=(per_parameter.flat_reader(functools.partial(theta_from_flat, name, variant)),),
            validate=functools.partial(validate, name, variant),
            imitation=Imitation(
                start=functools.partial(random_theta, variant),
                init=lambda params: jnp.zeros((len(DECAYS), Layout.of(params).columns), jnp.float32),
                observe=functools.partial(observe, variant),
                unroll=unroll,
                timed="training_proportion" in variant.context,
            ),
        ),
    )


SPECS: tuple[OptimizerSpec, ...] = tuple(
    _spec(name, variant, description) for name, (variant, description) in VARIANTS.items()
)
