"""VeLO, a learned optimizer trained at scale (Metz et al. 2022, arXiv 2211.09760).

An LSTM reads a summary of every tensor and of the loss, and writes for each tensor the weights of a tiny network
that turns per-parameter features into a step. Every size comes from the arrays of θ, so any checkpoint works.

θ is the ``params`` of an official checkpoint as a nested dict; the key ``rnn/linear`` becomes two levels. With
H the LSTM's hidden size, I the number of weight initializations that a control vector mixes, F the 14 feature
groups of c_i channels and (a, b) the hidden sizes of the per-parameter network::

    lstm_init_state    hidden, cell (1, H)
    rnn_params         linear_1, linear_2: w (30, H), b (H,) · rnn.linear: w (2H, 4H), b (4H,)
                       rnn_to_controls: w (H, I), b (I,) · step_size: w (H, 1), b (1,)
                       linear: like linear_1; it is in published checkpoints and has no effect
    ff_mod_stack.~     w0__i (I, c_i, a), b0 (I, a), w1 (I, a, b), b1 (I, b), w2 (I, b, outputs), b2 (I, outputs)
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float, Int, Key

from open_bench.optimizers.spec import Hyperparameter, Learned, OptimizerSpec, Reader, TrainingLength

Array = jax.Array

MOMENTUM_DECAYS = (0.9, 0.99, 0.999)
RMS_DECAY = 0.999
SECOND_MOMENT_DECAYS = (0.9, 0.99, 0.999)
TIME_CENTRES = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)  # fractions of the lifetime
LOSS_AVERAGES = 10
DIMENSION_CLASSES = 5
TENSOR_FEATURES = len(TIME_CENTRES) + (LOSS_AVERAGES - 1) + 1 + DIMENSION_CLASSES + 3 + 3  # 30
GROUP_CHANNELS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)  # channels of the 14 feature groups, 30 in all
ROW_GROUPS, COLUMN_GROUPS = (9, 11), (10, 12)  # groups that a factored tensor holds per row, per column
ELEMENT_GROUPS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 13)
TRAINED_STEPS = 150_000  # VeLO was meta-trained on lifetimes up to about this length
OFFICIAL_HIDDEN, OFFICIAL_INITS, OFFICIAL_WIDTH, OFFICIAL_OUTPUTS = 512, 256, 4, 3


class LossAverages(NamedTuple):
    """Running means of the loss over ten horizons."""

    mean: Float[Array, "10"]  # biased towards its initial 0
    minimum: Float[Array, "10"]  # of the debiased means
    count: Int[Array, ""]  # type: ignore[assignment]


class TensorState(NamedTuple):
    """Accumulators of one tensor of shape S (a scalar counts as shape (1,))."""

    momentum: Float[Array, " 3 *S"]
    rms: Float[Array, " *S"]
    second: tuple[Array, ...]  # float32: rows and columns, (3, *S) with one dimension kept at 1; or the whole (3, *S)


class VeloState(NamedTuple):
    """State of VeLO over the T non-empty tensors, in tree-leaf order."""

    count: Int[Array, ""]  # type: ignore[assignment]  # steps taken
    loss: LossAverages
    hidden: Float[Array, "T H"]
    cell: Float[Array, "T H"]
    tensors: tuple[TensorState, ...]


class AveragingState(NamedTuple):
    """Gradients gathered for one VeLO step over a group of optimizer steps."""

    velo: VeloState
    gradient: tuple[Array, ...]  # sums, a leaf per leaf of the parameters, float32
    loss: Float[Array, ""]  # sum
    count: Int[Array, ""]  # type: ignore[assignment]  # optimizer steps in this group so far


class Scheme(NamedTuple):
    """The weights that the LSTM gives to the per-parameter network of each of T tensors."""

    first: tuple[Array, ...]  # 14 × (T, c_i, a)
    weights: tuple[Float[Array, "T a b"], Float[Array, "T b outputs"]]
    biases: tuple[Float[Array, "T a"], Float[Array, "T b"], Float[Array, "T outputs"]]
    scale: Float[Array, " T"]  # multiplies every step of the tensor


# --- loss features -------------------------------------------------------------------------------------------------


def loss_decays(steps: int) -> np.ndarray:
    """Ten decays exp(−1/h) for horizons h log-spaced from 10 to ``steps``; (10,) float32."""
    return np.exp(-1.0 / np.geomspace(10.0, steps, LOSS_AVERAGES)).astype(np.float32)


def init_loss() -> LossAverages:
    """Averages before the first step."""
    return LossAverages(
        mean=jnp.zeros(LOSS_AVERAGES, jnp.float32),
        minimum=jnp.full(LOSS_AVERAGES, 999999999999.0, jnp.float32),
        count=jnp.zeros((), jnp.int32),
    )


def update_loss(averages: LossAverages, loss: Float[Array, ""], decays: np.ndarray) -> LossAverages:
    """Take in a loss, capped at twice the largest debiased average so that an outlier cannot swamp the averages."""
    rates = jnp.asarray(decays)
    debias = 1.0 - rates ** (averages.count + 1).astype(jnp.float32)
    cap = jnp.where(averages.count == 0, loss, (averages.mean / debias).max())
    loss = jnp.minimum(2.0 * jnp.abs(cap), loss)
    mean = averages.mean * rates + loss * (1.0 - rates)
    return LossAverages(mean, jnp.minimum(averages.minimum, mean / debias), averages.count + 1)


def loss_features(averages: LossAverages, decays: np.ndarray) -> Float[Array, "9"]:
    """How each average stands between its best value and the next slower average; in [−1, 1]."""
    count = jnp.maximum(averages.count, 1).astype(jnp.float32)
    mean = averages.mean / (1.0 - jnp.asarray(decays) ** count)
    best = averages.minimum[:-1]
    ratio = (mean[:-1] - best) / jnp.maximum(1e-8, mean[1:] - best)
    return jnp.where(averages.count <= 2, 0.0, jnp.clip(ratio - 1.0, -1.0, 1.0))


# --- accumulators --------------------------------------------------------------------------------------------------


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """(second-largest, largest) dimension, over which second moments are factored; None below two dimensions."""
    if len(shape) < 2:
        return None
    second, largest = np.argsort(shape, kind="stable")[-2:]
    return int(second), int(largest)


def init_tensor(shape: Sequence[int]) -> TensorState:
    """Zero accumulators of one tensor."""
    shape = tuple(shape)
    axes = factored_axes(shape)
    if axes is None:
        kept = (shape,)
    else:
        second, largest = axes
        kept = tuple(tuple(1 if d == gone else n for d, n in enumerate(shape)) for gone in (largest, second))  # type: ignore[assignment]
    return TensorState(
        momentum=jnp.zeros((3, *shape), jnp.float32),
        rms=jnp.zeros(shape, jnp.float32),
        second=tuple(jnp.zeros((3, *k), jnp.float32) for k in kept),
    )


def _decay(
    old: Float[Array, "decays *S"], new: Float[Array, " *S"], decays: Sequence[float]
) -> Float[Array, "decays *S"]:
    """decay·old + (1 − decay)·new for each of the decays, which lie along the leading axis of ``old``."""
    beta = jnp.asarray(decays, jnp.float32).reshape(-1, *(1,) * new.ndim)
    return beta * old + (1.0 - beta) * new[None]


def update_tensor(state: TensorState, gradient: Float[Array, " *S"]) -> TensorState:
    """Accumulate one gradient: momenta, mean square, and (factored) second moments."""
    squared = jnp.square(gradient)
    axes = factored_axes(gradient.shape)
    fresh = squared + 1e-30
    if axes is None:
        parts = (fresh,)
    else:
        second, largest = axes
        parts = (fresh.mean(largest, keepdims=True), fresh.mean(second, keepdims=True))  # type: ignore[assignment]
    return TensorState(
        momentum=_decay(state.momentum, gradient, MOMENTUM_DECAYS),
        rms=RMS_DECAY * state.rms + (1.0 - RMS_DECAY) * squared,
        second=tuple(_decay(o, n, SECOND_MOMENT_DECAYS) for o, n in zip(state.second, parts, strict=True)),
    )


def _inverse_root(x: Float[Array, " *S"]) -> Float[Array, " *S"]:
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))


def _mean_square(x: Float[Array, "channels *S"]) -> Float[Array, " channels"]:
    """Mean of x² over all but the leading axis."""
    return jnp.square(x).reshape(x.shape[0], -1).mean(-1)


# --- tensor features and LSTM --------------------------------------------------------------------------------------


def _log_size(x: Float[Array, " *S"]) -> Float[Array, " *S"]:
    return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(10.0 * x)), -5.0, 5.0)


def tensor_features(
    state: TensorState, parameter: Float[Array, " *S"], time: Float[Array, "9"], loss: Float[Array, "9"]
) -> Float[Array, "30"]:
    """What the LSTM sees of one tensor.

    Args:
        state: accumulators before this step's gradient.
        parameter: the tensor.
        time: features of the fraction of the lifetime.
        loss: features of the loss.
    """
    inverse = jax.lax.rsqrt(jnp.maximum(1e-9, jnp.square(parameter).mean()))
    momentum = state.momentum.reshape(3, -1) * inverse
    rms = state.rms.reshape(-1) * inverse
    center = momentum.mean(1)
    rank = sum(n > 1 for n in parameter.shape)
    return jnp.concatenate(
        [
            time,
            loss,
            _log_size(rms.mean())[None],
            jnp.asarray(np.arange(DIMENSION_CLASSES) == rank, jnp.float32),
            _log_size(jnp.square(momentum - center[:, None]).mean(1)),
            # published checkpoints were trained with the momenta's means subtracted from rms
            _log_size(jnp.square(rms[None] - center[:, None]).mean(1)),
        ]
    )


def _dot(a: Any, b: Any) -> Array:
    """Σ over the last axis of ``a`` and the first of ``b``, in full float32 (GPUs round to fewer bits by default)."""
    return jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)


def _linear(layer: Any, x: Float[Array, "T inputs"]) -> Float[Array, "T outputs"]:
    return _dot(x, layer["w"]) + layer["b"]


def lstm(
    rnn: Any, x: Float[Array, "T 30"], hidden: Float[Array, "T H"], cell: Float[Array, "T H"]
) -> tuple[Float[Array, "T H"], Float[Array, "T H"]]:
    """One LSTM step for tensor features, which see each other through a maximum: new (hidden, cell)."""
    pooled = jax.nn.relu(_linear(rnn["linear_1"], x)).max(0, keepdims=True)
    x = _linear(rnn["linear_2"], x) + pooled
    i, g, f, o = jnp.split(_linear(rnn["rnn"]["linear"], jnp.concatenate([x, hidden], 1)), 4, axis=1)
    cell = jax.nn.sigmoid(f + 1.0) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def make_scheme(theta: Any, hidden: Float[Array, "T H"]) -> Scheme:
    """The per-parameter networks: 100 × the mean over initializations of control · initialization."""
    controls = _linear(theta["rnn_params"]["rnn_to_controls"], hidden)
    stack = theta["ff_mod_stack"]["~"]
    names = sorted(stack)
    rows = jnp.concatenate([stack[name].reshape(controls.shape[1], -1) for name in names], axis=1)
    mixed = _dot(controls, rows) * (100.0 / controls.shape[1])
    ends = np.cumsum([math.prod(stack[name].shape[1:]) for name in names])
    parts = jnp.split(mixed, ends[:-1], axis=1)
    w = {name: part.reshape(-1, *stack[name].shape[1:]) for name, part in zip(names, parts, strict=True)}
    return Scheme(
        first=tuple(w[f"w0__{i}"] for i in range(len(GROUP_CHANNELS))),
        weights=(w["w1"], w["w2"]),
        biases=(w["b0"], w["b1"], w["b2"]),
        scale=_linear(theta["rnn_params"]["step_size"], hidden)[:, 0],
    )


# --- the step of one tensor ----------------------------------------------------------------------------------------


def _second_moment_factors(
    state: TensorState, axes: tuple[int, int] | None
) -> tuple[Float[Array, "3 ..."], Float[Array, "3 ..."]]:
    """What turns a gradient, and a momentum, into its normalized form."""
    if axes is None:
        (full,) = state.second
        return _inverse_root(full + 1e-9), jax.lax.rsqrt(full)
    row, column = state.second
    relative = row / (row.mean(axes[0] + 1, keepdims=True) + 1e-9)
    factor = _inverse_root(relative) * _inverse_root(column)
    return factor, factor


def element_features(
    state: TensorState, gradient: Float[Array, " *S"], parameter: Float[Array, " *S"]
) -> list[Float[Array, "_ ..."]]:
    """The 14 feature groups of one tensor, as channels first: (c_i, *S), or 1 for a dimension they do not vary in."""
    momentum, rms = state.momentum, state.rms[None]
    gradient, parameter = gradient[None], parameter[None]
    inverse = jax.lax.rsqrt(rms + 1e-6)
    on_gradient, on_momentum = _second_moment_factors(state, factored_axes(parameter.shape[1:]))
    row, column = state.second[0], state.second[-1]
    return [
        gradient,
        jnp.clip(gradient, -0.1, 0.1),
        parameter,
        momentum,
        rms,
        momentum * inverse,
        inverse,
        gradient * on_gradient,
        gradient * inverse,
        row,
        column,
        jax.lax.rsqrt(row + 1e-8),
        jax.lax.rsqrt(column + 1e-8),
        momentum * on_momentum,
    ]


def _first_layer(
    features: list[Array], weights: Sequence[Float[Array, "_ a"]], groups: Sequence[int]
) -> Float[Array, "a ..."]:
    """Σ w0·feature over some groups, each divided by its root mean square over the tensor; (a, *S)."""
    x = jnp.concatenate([features[i] for i in groups])
    w = jnp.concatenate([weights[i] for i in groups])
    w = w * jax.lax.rsqrt(1e-5 + _mean_square(x))[:, None]  # scaling the weights spares a pass over the features
    return _dot(w.T, x)


def tensor_step(
    scheme: Scheme, tensor: int, state: TensorState, gradient: Float[Array, " *S"], parameter: Float[Array, " *S"]
) -> Float[Array, " *S"]:
    """The update of one tensor, to be added; shape of the tensor.

    Second moments of a factored tensor vary along rows or columns only, so their share of the first layer is
    computed there and broadcast.
    """
    features = element_features(state, gradient, parameter)
    first = [w[tensor] for w in scheme.first]
    column = (slice(None), *(None,) * parameter.ndim)
    b0, b1, b2 = (b[tensor][column] for b in scheme.biases)
    w1, w2 = (w[tensor].T for w in scheme.weights)
    if factored_axes(parameter.shape) is None:
        x = _first_layer(features, first, range(len(GROUP_CHANNELS)))
    else:
        x = sum(_first_layer(features, first, g) for g in (ELEMENT_GROUPS, ROW_GROUPS, COLUMN_GROUPS))  # type: ignore[assignment]
    x = jax.nn.relu(x + b0)
    x = jax.nn.relu(_dot(w1, x) + b1)
    direction, magnitude = _dot(w2[:2], x) + b2[:2]  # a third output of published θ is not used
    size = jnp.sqrt(jnp.square(parameter).mean() + 1e-9)
    return -scheme.scale[tensor] * direction * size * jnp.exp(1e-3 * magnitude) * 1e-3


# --- the transformation --------------------------------------------------------------------------------------------


def _tensors(tree: Any) -> list[Array]:
    """Non-empty leaves as float32 tensors, in tree order; a scalar has shape (1,)."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [jnp.atleast_1d(leaf.astype(jnp.float32)) for leaf in leaves if leaf.size]


def _like(tensors: Sequence[Array], tree: Any) -> Any:
    """The inverse of ``_tensors``: shapes and dtypes of ``tree``, empty leaves back in their places."""
    remaining = iter(tensors)
    leaves, structure = jax.tree.flatten(tree)
    shaped = [
        next(remaining).reshape(jnp.shape(leaf)).astype(jnp.result_type(leaf)) if jnp.size(leaf) else jnp.asarray(leaf)
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, shaped)


def _rows(initial: Any, count: int) -> Array:
    """The initial state of the LSTM for each of ``count`` tensors; (count, H)."""
    return jnp.tile(jnp.asarray(initial, jnp.float32).reshape(1, -1), (count, 1))


def scale_by_velo(theta: Any, steps: int) -> optax.GradientTransformationExtraArgs:
    """VeLO for a lifetime of ``steps`` optimizer steps.

    Args:
        theta: the arrays described above, float32; may be tracers.
        steps: length of the lifetime; static.

    Returns:
        A transformation whose ``update(gradients, state, params, *, loss)`` gives updates to be *added*. It raises
        TypeError without ``loss``, the scalar whose gradients these are, and ValueError without ``params``.
    """
    decays = loss_decays(steps)

    def init(params: Any) -> VeloState:
        tensors = _tensors(params)
        initial = theta["lstm_init_state"]
        return VeloState(
            count=jnp.zeros((), jnp.int32),
            loss=init_loss(),
            hidden=_rows(initial["hidden"], len(tensors)),
            cell=_rows(initial["cell"], len(tensors)),
            tensors=tuple(init_tensor(tensor.shape) for tensor in tensors),
        )

    def update(gradients: Any, state: VeloState, params: Any = None, *, loss: Any = None, **extras: Any) -> Any:
        del extras
        loss = _required_loss(loss)
        if params is None:
            raise ValueError("VeLO reads the parameters: call update(gradients, state, params, loss=...)")
        parameters = _tensors(params)
        averages = update_loss(state.loss, loss, decays)
        if not parameters:
            return gradients, state._replace(count=state.count + 1, loss=averages)
        clipped = [jnp.clip(g, -1000.0, 1000.0) for g in _tensors(gradients)]
        time = jnp.tanh(10.0 * (state.count.astype(jnp.float32) / steps - np.asarray(TIME_CENTRES, np.float32)))
        seen = loss_features(averages, decays)
        x = jnp.stack([tensor_features(t, p, time, seen) for t, p in zip(state.tensors, parameters, strict=True)])
        hidden, cell = lstm(theta["rnn_params"], x, state.hidden, state.cell)
        scheme = make_scheme(theta, hidden)
        tensors = tuple(update_tensor(t, g) for t, g in zip(state.tensors, clipped, strict=True))
        rows = zip(range(len(tensors)), tensors, clipped, parameters, strict=True)
        updates = _like([tensor_step(scheme, *row) for row in rows], params)
        return updates, VeloState(state.count + 1, averages, hidden, cell, tensors)

    return optax.GradientTransformationExtraArgs(init, update)


def _required_loss(loss: Any) -> Float[Array, ""]:
    if loss is None:
        raise TypeError("VeLO reads the loss: call update(gradients, state, params, loss=...) with the scalar loss")
    return jnp.asarray(loss).astype(jnp.float32).reshape(())


def averaged(inner: optax.GradientTransformationExtraArgs, every: int) -> optax.GradientTransformationExtraArgs:
    """Call ``inner`` once per ``every`` steps, with the mean gradient and mean loss; updates between are 0.

    A last group that the lifetime leaves incomplete is never applied.
    """

    def init(params: Any) -> AveragingState:
        return AveragingState(
            velo=inner.init(params),
            gradient=tuple(jnp.zeros(jnp.shape(p), jnp.float32) for p in jax.tree.leaves(params)),
            loss=jnp.zeros((), jnp.float32),
            count=jnp.zeros((), jnp.int32),
        )

    def update(gradients: Any, state: AveragingState, params: Any = None, *, loss: Any = None, **extras: Any) -> Any:
        del extras
        leaves, structure = jax.tree.flatten(gradients)
        sums = tuple(s + jnp.asarray(g).astype(jnp.float32) for s, g in zip(state.gradient, leaves, strict=True))
        total, count = state.loss + _required_loss(loss), state.count + 1

        def apply(_: None) -> Any:
            mean = jax.tree.unflatten(structure, [s / every for s in sums])
            updates, velo = inner.update(mean, state.velo, params, loss=total / every)
            zeros = jax.tree.map(jnp.zeros_like, (sums, total, count))
            return updates, AveragingState(velo, *zeros)

        def gather(_: None) -> Any:
            return jax.tree.map(jnp.zeros_like, params), AveragingState(state.velo, sums, total, count)

        return jax.lax.cond(count == every, apply, gather, None)

    return optax.GradientTransformationExtraArgs(init, update)


def velo(theta: Any, length: TrainingLength, *, longest: int = TRAINED_STEPS) -> optax.GradientTransformationExtraArgs:
    """VeLO for a length.

    A lifetime of N > ``longest`` optimizer steps is cut into groups of ⌈N/longest⌉: gradients (and the loss) are
    averaged over a group and VeLO takes one step for it, in a lifetime that it believes to be ⌊N/group⌋ steps.

    Args:
        theta: the arrays described above; ValueError when empty, for VeLO never runs with made-up weights.
        length: static length of the lifetime.
        longest: the most steps that VeLO is told of.
    """
    if not theta:
        raise ValueError("VeLO needs weights: name a checkpoint, as in velo@DIRECTORY")
    steps = length.optimizer_steps
    every = math.ceil(steps / longest)
    inner = scale_by_velo(theta, max(1, steps // every))
    return inner if every == 1 else averaged(inner, every)


# --- θ -------------------------------------------------------------------------------------------------------------


def expected_shapes(hidden: int, inits: int, width: tuple[int, int], outputs: int) -> dict[str, tuple[int, ...]]:
    """Shape of every array of θ by its flat name ("/" between levels)."""
    a, b = width
    layers = {
        "linear": (TENSOR_FEATURES, hidden),
        "linear_1": (TENSOR_FEATURES, hidden),
        "linear_2": (TENSOR_FEATURES, hidden),
        "rnn/linear": (2 * hidden, 4 * hidden),
        "rnn_to_controls": (hidden, inits),
        "step_size": (hidden, 1),
    }
    stack: dict[str, tuple[int, ...]] = {f"w0__{i}": (channels, a) for i, channels in enumerate(GROUP_CHANNELS)}
    stack |= {"b0": (a,), "w1": (a, b), "b1": (b,), "w2": (b, outputs), "b2": (outputs,)}
    return (
        {f"lstm_init_state/{name}": (1, hidden) for name in ("hidden", "cell")}
        | {f"rnn_params/{name}/w": shape for name, shape in layers.items()}
        | {f"rnn_params/{name}/b": shape[1:] for name, shape in layers.items()}
        | {f"ff_mod_stack/~/{name}": (inits, *shape) for name, shape in stack.items()}
    )


def validate(theta: Any) -> None:
    """Raise ValueError, naming the first array that does not fit, unless ``theta`` is a θ of VeLO of some size."""
    found = {name: tuple(np.shape(value)) for name, value in flatten_dict(theta, sep="/").items()}
    sizes = [found.get(name, ()) for name in ("rnn_params/rnn_to_controls/w", "ff_mod_stack/~/w1", "ff_mod_stack/~/b2")]
    if [len(size) for size in sizes] != [2, 3, 2] or not all(map(all, sizes)) or sizes[2][1] < 2:
        raise ValueError(
            "VeLO needs rnn_params/rnn_to_controls/w (H, I), ff_mod_stack/~/w1 (I, a, b) and ff_mod_stack/~/b2 "
            f"(I, ≥ 2), none of them empty; found shapes {dict(list(found.items())[:8])}"
        )
    (hidden, inits), (_, *width), (_, outputs) = sizes
    expected = expected_shapes(hidden, inits, (width[0], width[1]), outputs)
    for name in sorted(expected | found):
        optional = name.startswith("rnn_params/linear/")
        if name not in expected:
            raise ValueError(f"VeLO has no array {name}")
        if name not in found and not optional:
            raise ValueError(f"VeLO's array {name} {expected[name]} is missing")
        if name in found and found[name] != expected[name]:
            raise ValueError(f"VeLO's array {name} has shape {found[name]} where {expected[name]} is expected")


def init_theta(
    key: Key[Array, ""], *, hidden: int = OFFICIAL_HIDDEN, inits: int = OFFICIAL_INITS, width: int = OFFICIAL_WIDTH
) -> dict[str, Any]:
    """Random θ, for meta-training and tests: normal weights of variance 1/fan-in, zero biases and initial state.

    ``ff_mod_stack`` is scaled so that what the controls mix from it, 100 times a mean, has that variance as well: a
    fresh optimizer takes small random steps. 2,320,385 numbers at the official sizes.
    """
    shapes = expected_shapes(hidden, inits, (width, width), OFFICIAL_OUTPUTS)
    keys = dict(zip(sorted(shapes), jax.random.split(key, len(shapes)), strict=True))

    def draw(name: str, shape: tuple[int, ...]) -> Float[Array, "..."]:
        if "/b" in name or name.startswith("lstm_init_state"):
            return jnp.zeros(shape, jnp.float32)
        fan_in = sum(GROUP_CHANNELS) if "/w0__" in name else shape[-2]
        scale = math.sqrt(inits) / 100.0 if name.startswith("ff_mod_stack") else 1.0
        return scale / math.sqrt(fan_in) * jax.random.normal(keys[name], shape, jnp.float32)

    return unflatten_dict({name: draw(name, shape) for name, shape in shapes.items()}, sep="/")


# --- published checkpoints -----------------------------------------------------------------------------------------


def read_checkpoint(directory: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint directory in the published format: ``params`` and, optionally, ``config.gin``.

    ``params`` is flax's msgpack of {params, gen_id, step}. Decoding it builds numbers, text, dicts, lists and
    plain numeric arrays and nothing else: no code runs, and an object dtype is an error.

    Returns:
        θ as numpy float32 arrays, and {"gen_id", "step"} where the file has them.

    Raises:
        ValueError: a file is missing or not a VeLO checkpoint, or its config asks for what is not built here.
    """
    directory = Path(directory)
    try:
        data = (directory / "params").read_bytes()
    except OSError as error:
        raise ValueError(f"{directory} holds no readable VeLO checkpoint with a file params: {error}") from error
    _check_gin(directory / "config.gin")
    content = _decode(data, directory / "params")
    flat = _flat_arrays(content["params"], directory / "params")
    theta = unflatten_dict(flat, sep="/")
    try:
        validate(theta)
    except ValueError as error:
        raise ValueError(f"{directory / 'params'}: {error}") from error
    origin = {name: content[name] for name in ("gen_id", "step") if isinstance(content.get(name), (str, int))}
    return theta, origin


def _decode(data: bytes, path: Path) -> dict[str, Any]:
    from flax import serialization

    try:
        content = serialization.msgpack_restore(data)
    except Exception as error:  # whatever a damaged file makes the decoder raise means the same to the reader
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not a flax msgpack file, or is damaged ({reason})") from error
    if not isinstance(content, dict) or not isinstance(content.get("params"), dict):
        raise ValueError(f"{path} holds no dict with an entry 'params'; expected {{params, gen_id, step}}")
    return content


def _flat_arrays(tree: dict[Any, Any], path: Path) -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for keys, leaf in flatten_dict(tree).items():
        name = "/".join(map(str, keys))
        if not isinstance(leaf, np.ndarray) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{path}: {name} is no array of floats but {getattr(leaf, 'dtype', type(leaf).__name__)}")
        flat[name] = np.array(leaf, np.float32)
    return flat


def _check_gin(path: Path) -> None:
    """The one setting of a published config that changes the rule; sizes are in the arrays."""
    text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    if re.search(r"^[^#\n]*use_bugged_loss_features\s*=\s*True", text, re.MULTILINE):
        raise ValueError(f"{path} sets use_bugged_loss_features = True: that variant of VeLO is not implemented")


VELO = OptimizerSpec(
    name="velo",
    description="VeLO: an LSTM over tensors writes the weights of a per-parameter network",
    make=velo,
    citation="Metz et al. 2022, arXiv 2211.09760",
    hyperparameters={
        "longest": Hyperparameter(
            TRAINED_STEPS, "most optimizer steps VeLO is told of; a longer lifetime averages gradients over groups"
        )
    },
    learned=Learned(
        init_theta,
        (Reader("directory", "VeLO checkpoint", read_checkpoint),),
        validate,
        "its steps come from networks of whole tensors, not from one rule for every parameter",
    ),
)

SPECS = (VELO,)
