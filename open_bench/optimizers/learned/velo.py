"""VeLO, a learned optimizer trained at scale (Metz et al. 2022, arXiv 2211.09760), and Celo, its small successor
(Moudgil et al. 2025, arXiv 2501.12670).

VeLO: an LSTM reads a summary of every tensor and of the loss, and writes for each tensor the weights of a tiny network
that turns per-parameter features into a step. Celo: the LSTM reads the time and the loss alone and sets the step size;
one network serves all tensors. Every size comes from the arrays of θ, so any checkpoint works.

θ is the ``params`` of an official checkpoint of VeLO, or the whole file of Celo, as a nested dict; the key
``rnn/linear`` becomes two levels. With D the inputs of the LSTM (30, Celo 18), H its hidden size, I the number of
weight initializations that a control vector mixes (Celo: 1), the 14 feature groups of c_i channels and (a, b) the
hidden sizes of the per-parameter network::

    lstm_init_state    hidden, cell (1, H)
    rnn_params         linear_1, linear_2: w (D, H), b (H,) · rnn.linear: w (2H, 4H), b (4H,)
                       rnn_to_controls: w (H, I), b (I,), without effect in Celo · step_size: w (H, 1), b (1,)
                       linear: like linear_1; it is in published checkpoints and has no effect
    ff_mod_stack.~     w0__i (I, c_i, a), b0 (I, a), w1 (I, a, b), b1 (I, b), w2 (I, b, outputs), b2 (I, outputs)
"""

import functools
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

from open_bench.optimizers.learned import flax_files
from open_bench.optimizers.learned.tensor_features import (
    COLUMN_GROUPS,
    ELEMENT_GROUPS,
    GROUP_CHANNELS,
    NO_IMITATION,
    ROW_GROUPS,
    TensorState,
    clipped_tensors,
    dot,
    element_features,
    factored_axes,
    from_tensors,
    init_tensor,
    to_tensors,
    update_tensor,
)
from open_bench.optimizers.spec import Hyperparameter, Learned, OptimizerSpec, Reader, TrainingLength

Array = jax.Array

RMS_DECAY, RMS_FLOOR = 0.999, 1e-6
TIME_CENTRES = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)  # fractions of the lifetime
LOSS_AVERAGES = 10
DIMENSION_CLASSES = 5
SHARED_FEATURES = len(TIME_CENTRES) + (LOSS_AVERAGES - 1)  # 18: time and loss
TENSOR_FEATURES = SHARED_FEATURES + 1 + DIMENSION_CLASSES + 3 + 3  # 30
TRAINED_STEPS = 150_000  # VeLO was meta-trained on lifetimes up to about this length
WIDTH, OUTPUTS = 4, 3  # of the published per-parameter networks


class Variant(NamedTuple):
    """What distinguishes VeLO and Celo. Sizes here only say how θ begins; the rule reads θ's arrays."""

    name: str
    per_tensor: bool  # the LSTM reads statistics of each tensor and writes its network; else one row serves all
    hidden: int  # of the LSTM
    inits: int

    @property
    def inputs(self) -> int:
        """Inputs of the LSTM."""
        return TENSOR_FEATURES if self.per_tensor else SHARED_FEATURES


VELO, CELO = Variant("VeLO", True, 512, 256), Variant("Celo", False, 64, 1)


class LossAverages(NamedTuple):
    """Running means of the loss over ten horizons."""

    mean: Float[Array, "10"]  # biased towards its initial 0
    minimum: Float[Array, "10"]  # of the debiased means
    count: Int[Array, ""]  # type: ignore[assignment]


class VeloState(NamedTuple):
    """State over the T non-empty tensors, in tree-leaf order; the LSTM has R = T rows, in Celo R = 1."""

    count: Int[Array, ""]  # type: ignore[assignment]  # steps taken
    loss: LossAverages
    hidden: Float[Array, "R H"]
    cell: Float[Array, "R H"]
    tensors: tuple[TensorState, ...]


class AveragingState(NamedTuple):
    """Gradients gathered for one VeLO step over a group of optimizer steps."""

    velo: VeloState
    gradient: tuple[Array, ...]  # sums, a leaf per leaf of the parameters, float32
    loss: Float[Array, ""]  # sum
    count: Int[Array, ""]  # type: ignore[assignment]  # optimizer steps in this group so far


class Scheme(NamedTuple):
    """Per-parameter networks: one for each of R = T tensors, or one for all."""

    first: tuple[Array, ...]  # 14 × (R, c_i, a)
    weights: tuple[Float[Array, "R a b"], Float[Array, "R b outputs"]]
    biases: tuple[Float[Array, "R a"], Float[Array, "R b"], Float[Array, "R outputs"]]
    scale: Float[Array, " R"]  # multiplies every step of the tensor


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


# --- tensor features and LSTM --------------------------------------------------------------------------------------


def _log_size(x: Float[Array, " *S"]) -> Float[Array, " *S"]:
    return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(10.0 * x)), -5.0, 5.0)


def tensor_features(
    state: TensorState, parameter: Float[Array, " *S"], shared: Float[Array, "18"]
) -> Float[Array, "30"]:
    """What VeLO's LSTM sees of one tensor.

    Args:
        state: accumulators before this step's gradient.
        parameter: the tensor.
        shared: features of the fraction of the lifetime (9) and of the loss (9).
    """
    inverse = jax.lax.rsqrt(jnp.maximum(1e-9, jnp.square(parameter).mean()))
    momentum = state.momentum.reshape(3, -1) * inverse
    rms = state.rms.reshape(-1) * inverse
    center = momentum.mean(1)
    rank = sum(n > 1 for n in parameter.shape)
    return jnp.concatenate(
        [
            shared,
            _log_size(rms.mean())[None],
            jnp.asarray(np.arange(DIMENSION_CLASSES) == rank, jnp.float32),
            _log_size(jnp.square(momentum - center[:, None]).mean(1)),
            # published checkpoints were trained with the momenta's means subtracted from rms
            _log_size(jnp.square(rms[None] - center[:, None]).mean(1)),
        ]
    )


def _linear(layer: Any, x: Float[Array, "T inputs"]) -> Float[Array, "T outputs"]:
    return dot(x, layer["w"]) + layer["b"]


def lstm(
    rnn: Any, x: Float[Array, "R D"], hidden: Float[Array, "R H"], cell: Float[Array, "R H"]
) -> tuple[Float[Array, "R H"], Float[Array, "R H"]]:
    """One LSTM step for rows of features, which see each other through a maximum: new (hidden, cell)."""
    pooled = jax.nn.relu(_linear(rnn["linear_1"], x)).max(0, keepdims=True)
    x = _linear(rnn["linear_2"], x) + pooled
    i, g, f, o = jnp.split(_linear(rnn["rnn"]["linear"], jnp.concatenate([x, hidden], 1)), 4, axis=1)
    cell = jax.nn.sigmoid(f + 1.0) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def make_scheme(theta: Any, hidden: Float[Array, "R H"], variant: Variant) -> Scheme:
    """The per-parameter networks and scales of steps.

    VeLO: 100 × the mean over initializations of control · initialization, scale s. Celo: the network as θ holds it, and
    0.1·exp(s). Controls and s are linear in the LSTM's hidden state.
    """
    stack = theta["ff_mod_stack"]["~"]
    size = _linear(theta["rnn_params"]["step_size"], hidden)[:, 0]
    if variant.per_tensor:
        w, scale = _mixed(stack, _linear(theta["rnn_params"]["rnn_to_controls"], hidden)), size
    else:
        w, scale = jax.tree.map(jnp.asarray, stack), 0.1 * jnp.exp(size)
    return Scheme(
        first=tuple(w[f"w0__{i}"] for i in range(len(GROUP_CHANNELS))),
        weights=(w["w1"], w["w2"]),
        biases=(w["b0"], w["b1"], w["b2"]),
        scale=scale,
    )


def _mixed(stack: Any, controls: Float[Array, "R I"]) -> dict[str, Array]:
    """100 × the mean over initializations of control · initialization, as one product; each array (R, …)."""
    names = sorted(stack)
    rows = jnp.concatenate([stack[name].reshape(controls.shape[1], -1) for name in names], axis=1)
    mixed = dot(controls, rows) * (100.0 / controls.shape[1])
    ends = np.cumsum([math.prod(stack[name].shape[1:]) for name in names])
    parts = jnp.split(mixed, ends[:-1], axis=1)
    return {name: part.reshape(-1, *stack[name].shape[1:]) for name, part in zip(names, parts, strict=True)}


# --- the step of one tensor ----------------------------------------------------------------------------------------


def _mean_square(x: Float[Array, "channels *S"]) -> Float[Array, " channels"]:
    """Mean of x² over all but the leading axis."""
    return jnp.square(x).reshape(x.shape[0], -1).mean(-1)


def _first_layer(
    features: list[Array], weights: Sequence[Float[Array, "_ a"]], groups: Sequence[int]
) -> Float[Array, "a ..."]:
    """Σ w0·feature over some groups, each divided by its root mean square over the tensor; (a, *S)."""
    x = jnp.concatenate([features[i] for i in groups])
    w = jnp.concatenate([weights[i] for i in groups])
    w = w * jax.lax.rsqrt(1e-5 + _mean_square(x))[:, None]  # scaling the weights spares a pass over the features
    return dot(w.T, x)


def tensor_step(
    scheme: Scheme, row: int, state: TensorState, gradient: Float[Array, " *S"], parameter: Float[Array, " *S"]
) -> Float[Array, " *S"]:
    """The update of one tensor, to be added; shape of the tensor. ``row`` of the scheme is its network.

    Second moments of a factored tensor vary along rows or columns only, so their share of the first layer is
    computed there and broadcast.
    """
    features = element_features(state, gradient, parameter, RMS_FLOOR)
    first = [w[row] for w in scheme.first]
    column = (slice(None), *(None,) * parameter.ndim)
    b0, b1, b2 = (b[row][column] for b in scheme.biases)
    w1, w2 = (w[row].T for w in scheme.weights)
    if factored_axes(parameter.shape) is None:
        x = _first_layer(features, first, range(len(GROUP_CHANNELS)))
    else:
        x = sum(_first_layer(features, first, g) for g in (ELEMENT_GROUPS, ROW_GROUPS, COLUMN_GROUPS))  # type: ignore[assignment]
    x = jax.nn.relu(x + b0)
    x = jax.nn.relu(dot(w1, x) + b1)
    direction, magnitude = dot(w2[:2], x) + b2[:2]  # a third output of published θ is not used
    size = jnp.sqrt(jnp.square(parameter).mean() + 1e-9)
    return -scheme.scale[row] * direction * size * jnp.exp(1e-3 * magnitude) * 1e-3


# --- the transformation --------------------------------------------------------------------------------------------


def _rows(initial: Any, count: int) -> Array:
    """The initial state of the LSTM for each of ``count`` rows; (count, H)."""
    return jnp.tile(jnp.asarray(initial, jnp.float32).reshape(1, -1), (count, 1))


def scale_by_velo(theta: Any, steps: int, variant: Variant = VELO) -> optax.GradientTransformationExtraArgs:
    """VeLO or Celo for a lifetime of ``steps`` optimizer steps.

    Args:
        theta: the arrays described above, float32; may be tracers.
        steps: length of the lifetime; static.
        variant: which of the two.

    Returns:
        A transformation whose ``update(gradients, state, params, *, loss)`` gives updates to be *added*. It raises
        TypeError without ``loss``, the scalar whose gradients these are, and ValueError without ``params``.
    """
    decays = loss_decays(steps)

    def init(params: Any) -> VeloState:
        states = tuple(init_tensor(tensor.shape) for tensor in to_tensors(params))
        initial, rows = theta["lstm_init_state"], len(states) if variant.per_tensor else 1
        return VeloState(
            count=jnp.zeros((), jnp.int32),
            loss=init_loss(),
            hidden=_rows(initial["hidden"], rows),
            cell=_rows(initial["cell"], rows),
            tensors=states,
        )

    def update(gradients: Any, state: VeloState, params: Any = None, *, loss: Any = None, **extras: Any) -> Any:
        del extras
        loss = _required_loss(loss, variant)
        if params is None:
            raise ValueError(f"{variant.name} reads the parameters: call update(gradients, state, params, loss=...)")
        parameters, gradient = to_tensors(params), clipped_tensors(gradients)
        averages = update_loss(state.loss, loss, decays)
        if not parameters:
            return gradients, state._replace(count=state.count + 1, loss=averages)
        time = jnp.tanh(10.0 * (state.count.astype(jnp.float32) / steps - np.asarray(TIME_CENTRES, np.float32)))
        shared = jnp.concatenate([time, loss_features(averages, decays)])
        if variant.per_tensor:
            x = jnp.stack([tensor_features(t, p, shared) for t, p in zip(state.tensors, parameters, strict=True)])
        else:
            x = shared[None]
        hidden, cell = lstm(theta["rnn_params"], x, state.hidden, state.cell)
        scheme = make_scheme(theta, hidden, variant)
        states = tuple(update_tensor(t, g, RMS_DECAY) for t, g in zip(state.tensors, gradient, strict=True))
        rows = range(len(states)) if variant.per_tensor else [0] * len(states)
        updates = [tensor_step(scheme, *each) for each in zip(rows, states, gradient, parameters, strict=True)]
        return from_tensors(updates, params), VeloState(state.count + 1, averages, hidden, cell, states)

    return optax.GradientTransformationExtraArgs(init, update)


def _required_loss(loss: Any, variant: Variant = VELO) -> Float[Array, ""]:
    if loss is None:
        call = "call update(gradients, state, params, loss=...) with the scalar loss"
        raise TypeError(f"{variant.name} reads the loss: {call}")
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
    _check_given(theta, VELO)
    steps = length.optimizer_steps
    every = math.ceil(steps / longest)
    inner = scale_by_velo(theta, max(1, steps // every))
    return inner if every == 1 else averaged(inner, every)


def celo(theta: Any, length: TrainingLength) -> optax.GradientTransformationExtraArgs:
    """Celo for a length; ValueError when ``theta`` is empty."""
    _check_given(theta, CELO)
    return scale_by_velo(theta, length.optimizer_steps, CELO)


def _check_given(theta: Any, variant: Variant) -> None:
    if not theta:
        name = variant.name
        raise ValueError(f"{name} needs weights: name some, as in {name.lower()}@FILE")


# --- θ -------------------------------------------------------------------------------------------------------------


def expected_shapes(
    inputs: int, hidden: int, inits: int, width: tuple[int, int], outputs: int
) -> dict[str, tuple[int, ...]]:
    """Shape of every array of θ by its flat name ("/" between levels)."""
    a, b = width
    layers = {
        "linear": (inputs, hidden),
        "linear_1": (inputs, hidden),
        "linear_2": (inputs, hidden),
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


def validate(theta: Any, variant: Variant = VELO) -> None:
    """Raise ValueError, naming the first array that does not fit, unless ``theta`` is a θ of some size."""
    name = variant.name
    found = {key: tuple(np.shape(value)) for key, value in flatten_dict(theta, sep="/").items()}
    sizes = [found.get(key, ()) for key in ("rnn_params/step_size/w", "ff_mod_stack/~/w1", "ff_mod_stack/~/b2")]
    if [len(size) for size in sizes] != [2, 3, 2] or not all(map(all, sizes)) or sizes[2][1] < 2:
        raise ValueError(
            f"{name} needs rnn_params/step_size/w (H, 1), ff_mod_stack/~/w1 (I, a, b) and ff_mod_stack/~/b2 "
            f"(I, ≥ 2), none of them empty; found shapes {dict(list(found.items())[:8])}"
        )
    (hidden, _), (inits, *width), (_, outputs) = sizes
    inits = inits if variant.per_tensor else CELO.inits
    expected = expected_shapes(variant.inputs, hidden, inits, (width[0], width[1]), outputs)
    without_effect = ("rnn_params/linear/", *(() if variant.per_tensor else ("rnn_params/rnn_to_controls/",)))
    for key in sorted(expected | found):
        if key not in expected:
            raise ValueError(f"{name} has no array {key}")
        if key not in found and not key.startswith(without_effect):
            raise ValueError(f"{name}'s array {key} {expected[key]} is missing")
        if key in found and found[key] != expected[key]:
            raise ValueError(f"{name}'s array {key} has shape {found[key]} where {expected[key]} is expected")


def init_theta(
    key: Key[Array, ""],
    variant: Variant = VELO,
    *,
    hidden: int | None = None,
    inits: int | None = None,
    width: int = WIDTH,
) -> dict[str, Any]:
    """Random θ, for meta-training and tests: normal weights of variance 1/fan-in, zero biases and initial state.

    What VeLO's controls mix from ``ff_mod_stack``, 100 times a mean, has that variance as well: a fresh optimizer takes
    small random steps. Sizes are the published ones, 2,320,385 numbers for VeLO and 37,089 for Celo.
    """
    inits = inits or variant.inits
    shapes = expected_shapes(variant.inputs, hidden or variant.hidden, inits, (width, width), OUTPUTS)
    keys = dict(zip(sorted(shapes), jax.random.split(key, len(shapes)), strict=True))

    def draw(name: str, shape: tuple[int, ...]) -> Float[Array, "..."]:
        if "/b" in name or name.startswith("lstm_init_state"):
            return jnp.zeros(shape, jnp.float32)
        fan_in = sum(GROUP_CHANNELS) if "/w0__" in name else shape[-2]
        mixed = variant.per_tensor and name.startswith("ff_mod_stack")
        scale = math.sqrt(inits) / 100.0 if mixed else 1.0
        return scale / math.sqrt(fan_in) * jax.random.normal(keys[name], shape, jnp.float32)

    return unflatten_dict({name: draw(name, shape) for name, shape in shapes.items()}, sep="/")


# --- published checkpoints -----------------------------------------------------------------------------------------


def read_checkpoint(directory: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint directory of VeLO: ``params``, flax's msgpack of {params, gen_id, step}, and ``config.gin``.

    Returns:
        θ as numpy float32 arrays, and {"gen_id", "step"} where the file has them.

    Raises:
        ValueError: ``params`` is missing or not a VeLO checkpoint, or the config asks for what is not built here.
    """
    path = Path(directory) / "params"
    _check_gin(path.with_name("config.gin"))
    content = flax_files.read(path)
    if not isinstance(content.get("params"), dict):
        raise ValueError(f"{path} holds no dict with an entry 'params'; expected {{params, gen_id, step}}")
    origin = {name: content[name] for name in ("gen_id", "step") if isinstance(content.get(name), (str, int))}
    return _fitting(content["params"], path, VELO), origin


def read_celo(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read Celo's published file, flax's msgpack of θ: (θ as numpy float32 arrays, {}).

    Raises:
        ValueError: it is no such file.
    """
    return _fitting(flax_files.read(path), path, CELO), {}


def _fitting(tree: dict[str, Any], path: Path, variant: Variant) -> dict[str, Any]:
    theta = flax_files.arrays(tree, path)
    try:
        validate(theta, variant)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return theta


def _check_gin(path: Path) -> None:
    """The one setting of a published config that changes the rule; sizes are in the arrays."""
    text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    if re.search(r"^[^#\n]*use_bugged_loss_features\s*=\s*True", text, re.MULTILINE):
        raise ValueError(f"{path} sets use_bugged_loss_features = True: that variant of VeLO is not implemented")


SPECS = (
    OptimizerSpec(
        name="velo",
        description="VeLO: an LSTM over tensors writes the weights of a per-parameter network",
        make=velo,
        citation="Metz et al. 2022, arXiv 2211.09760",
        hyperparameters={
            "longest": Hyperparameter(
                TRAINED_STEPS,
                "most optimizer steps VeLO is told of; a longer lifetime averages gradients over groups",
                minimum=1,
            )
        },
        learned=Learned(init_theta, (Reader("directory", "VeLO checkpoint", read_checkpoint),), validate, NO_IMITATION),
    ),
    OptimizerSpec(
        name="celo",
        description="Celo: an LSTM over time and loss scales the steps of one per-parameter network",
        make=celo,
        citation="Moudgil et al. 2025, arXiv 2501.12670",
        learned=Learned(
            init=functools.partial(init_theta, variant=CELO),
            readers=(Reader(".state", "Celo's flax file", read_celo),),
            validate=functools.partial(validate, variant=CELO),
            imitation=NO_IMITATION,
        ),
    ),
)
