"""Celo2, a learned optimizer without recurrence (Moudgil et al. 2026, arXiv 2602.19142).

One network of two hidden layers reads the features of every parameter and gives a direction d. With RMS(x) over the
last two axes of a tensor, which the original batches over the others:

    celo2-base  update = −lr·d/RMS(d), for every tensor
    celo2       tensors of two and more dimensions: d is orthogonalized before it is normalized;
                the others: Adam with 20·lr, b1 0.9, b2 0.95, eps 1e-8

θ, for feature groups of c_i channels and hidden sizes (a, b)::

    ff_mod_stack.~     w0__i (c_i, a), b0 (a,), w1 (a, b), b1 (b,), w2 (b, outputs), b2 (outputs,)

Only the first output is used. A tensor of one dimension has the first nine groups only, with the same weights.
"""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Key

from open_bench.optimizers.learned import flax_files, per_parameter
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
    from_tensors,
    init_tensor,
    to_tensors,
    update_tensor,
)
from open_bench.optimizers.schedules import anneal
from open_bench.optimizers.spec import Hyperparameter, Learned, OptimizerSpec, Reader, Search, TrainingLength

Array = jax.Array

RMS_DECAY, RMS_FLOOR = 0.95, 1e-8
UNFACTORED_GROUPS = 9
WIDTH, OUTPUTS = 8, 3  # published
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
ADAM_RATIO = 20.0  # learning rate of Adam's part over that of the learned part


class Celo2State(NamedTuple):
    """Accumulators of the non-empty tensors, in tree-leaf order."""

    tensors: tuple[TensorState, ...]


def _normalize(x: Float[Array, "channels *S"]) -> Float[Array, "channels *S"]:
    """x over its root mean square over the last two axes of a tensor of shape S, or the only one."""
    axes = tuple(range(1, x.ndim))[-2:]
    return x * jax.lax.rsqrt(1e-9 + jnp.square(x).mean(axes, keepdims=True))


def orthogonalize(x: Float[Array, "*batch rows columns"]) -> Float[Array, "*batch rows columns"]:
    """Singular values moved towards 1 by five steps of a Newton-Schulz iteration, as in Muon."""
    a, b, c = NEWTON_SCHULZ
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-8)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = product(x, x.mT)
        x = a * x + product(b * square + c * product(square, square), x)
    return x.mT if tall else x


def direction(
    theta: Any, state: TensorState, gradient: Float[Array, " *S"], parameter: Float[Array, " *S"], orthogonal: bool
) -> Float[Array, " *S"]:
    """The normalized direction of one tensor, uphill; rows and columns of a factored one are computed by themselves."""
    w = theta["ff_mod_stack"]["~"]
    features = element_features(state, gradient, parameter, RMS_FLOOR)
    factored = parameter.ndim > 1
    parts: Any = (ELEMENT_GROUPS, ROW_GROUPS, COLUMN_GROUPS) if factored else (range(UNFACTORED_GROUPS),)
    column = (slice(None), *(None,) * parameter.ndim)
    x: Any = w["b0"][column]
    for groups in parts:
        weights = jnp.concatenate([w[f"w0__{group}"] for group in groups])
        x = x + dot(weights.T, _normalize(jnp.concatenate([features[group] for group in groups])))
    x = jax.nn.relu(x)
    x = jax.nn.relu(dot(w["w1"].T, x) + w["b1"][column])
    x = dot(w["w2"][:, :1].T, x) + w["b2"][0]
    return _normalize(orthogonalize(x) if orthogonal and factored else x)[0]


def scale_by_celo2(theta: Any, orthogonal: bool) -> optax.GradientTransformation:
    """Gradients → directions, uphill, of root mean square 1.

    Args:
        theta: the arrays described above, float32; may be tracers.
        orthogonal: whether directions of two and more dimensions are orthogonalized.

    Raises:
        ValueError: in ``update``, when ``params`` is missing.
    """

    def init(params: Any) -> Celo2State:
        return Celo2State(tuple(init_tensor(tensor.shape) for tensor in to_tensors(params)))

    def update(gradients: Any, state: Celo2State, params: Any = None) -> tuple[Any, Celo2State]:
        if params is None:
            raise ValueError("Celo2 reads the parameters: call update(gradients, state, params)")
        clipped = clipped_tensors(gradients)
        states = tuple(update_tensor(t, g, RMS_DECAY) for t, g in zip(state.tensors, clipped, strict=True))
        each = zip(states, clipped, to_tensors(params), strict=True)
        return from_tensors([direction(theta, *tensor, orthogonal) for tensor in each], params), Celo2State(states)

    return optax.GradientTransformation(init, update)


def celo2(
    theta: Any, length: TrainingLength, *, base: bool, learning_rate: Any, anneal_learning_rate: bool
) -> optax.GradientTransformationExtraArgs:
    """Celo2, or with ``base`` Celo2-base; ValueError when ``theta`` is empty."""
    if not theta:
        raise ValueError("Celo2 needs weights: name some, as in celo2@FILE")
    rule: Any = optax.chain(scale_by_celo2(theta, not base), optax.scale_by_learning_rate(learning_rate))
    if not base:
        adam = optax.adam(ADAM_RATIO * learning_rate, b1=0.9, b2=0.95, eps=1e-8)
        rule = optax.partition(
            {"learned": rule, "adam": adam},
            lambda params: jax.tree.map(lambda p: "learned" if jnp.ndim(p) > 1 else "adam", params),
        )
    return anneal(rule, length, anneal_learning_rate)


# --- θ -------------------------------------------------------------------------------------------------------------


def expected_shapes(width: tuple[int, int] = (WIDTH, WIDTH), outputs: int = OUTPUTS) -> per_parameter.Shapes:
    """Shapes of θ's arrays."""
    a, b = width
    first = {f"w0__{i}": (channels, a) for i, channels in enumerate(GROUP_CHANNELS)}
    return {
        "ff_mod_stack": {"~": {**first, "b0": (a,), "w1": (a, b), "b1": (b,), "w2": (b, outputs), "b2": (outputs,)}}
    }


def validate(theta: Any) -> None:
    """Raise ValueError, naming the array, unless ``theta`` is a θ of Celo2 of some width."""
    width = per_parameter.shape_at(theta, "ff_mod_stack", "~", "w1")
    fitted = width if len(width) == 2 and all(width) else (WIDTH, WIDTH)
    per_parameter.check("Celo2", expected_shapes((fitted[0], fitted[1])), theta)


def init_theta(key: Key[Array, ""]) -> dict[str, Any]:
    """Random θ of the published size: normal weights of variance 1/fan-in, zero biases."""
    shapes = expected_shapes()["ff_mod_stack"]["~"]
    keys = dict(zip(sorted(shapes), jax.random.split(key, len(shapes)), strict=True))

    def draw(name: str, shape: tuple[int, ...]) -> Float[Array, "..."]:
        if name.startswith("b"):
            return jnp.zeros(shape, jnp.float32)
        fan_in = sum(GROUP_CHANNELS) if name.startswith("w0__") else shape[0]
        return jax.random.normal(keys[name], shape, jnp.float32) / math.sqrt(fan_in)

    return {"ff_mod_stack": {"~": {name: draw(name, shape) for name, shape in shapes.items()}}}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the published file, flax's msgpack of θ: (θ as numpy float32 arrays, {}); ValueError on anything else."""
    theta = flax_files.arrays(flax_files.read(path), path)
    validate(theta)
    return theta, {}


def _spec(name: str, description: str, base: bool) -> OptimizerSpec:
    return OptimizerSpec(
        name=name,
        description=description,
        make=functools.partial(celo2, base=base),
        citation="Moudgil et al. 2026, arXiv 2602.19142",
        hyperparameters={
            "learning_rate": Hyperparameter(1e-3, "step size", traced=True, search=Search(1e-4, 3e-2), minimum=0.0),
            "anneal_learning_rate": Hyperparameter(True, "anneal the learning rate linearly to 0 over the lifetime"),
        },
        learned=Learned(init_theta, (Reader(".state", "Celo2's flax file", read),), validate, NO_IMITATION),
    )


SPECS = (
    _spec(
        "celo2", "Celo2: a learned per-parameter direction, orthogonalized; Adam for tensors of one dimension", False
    ),
    _spec("celo2-base", "Celo2-base: a learned per-parameter direction for every tensor", True),
)
