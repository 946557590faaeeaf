"""Optim4RL and L2LGD2: recurrent learned optimizers (Lan et al., RLC 2024, arXiv 2302.01470).

Both apply one small recurrent rule to every parameter by itself. With MLP = Dense(16) → relu → Dense(16) → relu →
Dense(1) and GRUs of 8 units:

    Optim4RL   m = sign(g)·exp(MLP₁(GRU₁(g))),  v = exp(MLP₂(GRU₂(g²))),  update = −lr·m·rsqrt(v + 1e-8)
    L2LGD2     update = −lr·exp(MLP(GRU(x)))·g,  x = (log(|g| + 1e-8)/10, sign g) where the first is ≥ −1,
               else (−1, e¹⁰·g)

L2LGD2's inputs are those of Andrychowicz et al. 2016 (arXiv 1606.04474), appendix A, with p = 10.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from open_bench.optimizers.learned import per_parameter
from open_bench.optimizers.learned.per_parameter import Affine, Gru, Layout
from open_bench.optimizers.spec import Hyperparameter, Learned, OptimizerSpec, Search, TrainingLength

Array = jax.Array

CITATION = "Lan et al. 2024, arXiv 2302.01470"

CARRY = 8  # units of each GRU where θ begins; the rules read θ's arrays
HIDDEN = 16  # units of each dense layer
EPSILON = 1e-8
LOG_SCALE = 10.0  # p of L2LGD2's inputs
MLP_LAYERS = ("layers_0", "layers_2", "layers_4")


class Optim4RLState(NamedTuple):
    """State of Optim4RL; columns are the parameters in ``Layout``'s order, padding included."""

    first: Float[Array, "G columns"]  # float32, carry of the GRU that reads g
    second: Float[Array, "G columns"]  # float32, carry of the GRU that reads g²


class L2LGD2State(NamedTuple):
    """State of L2LGD2."""

    carry: Float[Array, "G columns"]  # float32


class Recurrent(NamedTuple):
    """A GRU followed by an MLP with one output, for rows."""

    cell: Gru
    layers: tuple[Affine, ...]

    def start(self, layout: Layout) -> Float[Array, "G columns"]:
        """The carry before the first step."""
        return jnp.zeros((self.cell.hidden.shape[1], layout.columns), jnp.float32)

    def __call__(
        self, rows: Float[Array, "inputs columns"], carry: Float[Array, "G columns"]
    ) -> tuple[Float[Array, " columns"], Float[Array, "G columns"]]:
        """Output and the new carry."""
        hidden = carry = per_parameter.gru_step(self.cell, rows, carry)
        for layer in self.layers[:-1]:
            hidden = jax.nn.relu(per_parameter.dense(layer, hidden))
        return per_parameter.dense(self.layers[-1], hidden)[0], carry


def optim4rl(
    theta: Mapping[str, Any], length: TrainingLength, *, learning_rate: Any = 3e-4, gradient_clip: Any = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Optim4RL with meta-parameters ``theta``: a learned ratio of a first to the root of a second moment.

    Args:
        theta: ``{rnn1, mlp1, rnn2, mlp2}``; arrays may be tracers.
        length: not used.
        learning_rate: step size; the paper uses 3e-4 on Brax.
        gradient_clip: gradients are first clipped elementwise to ±this; ``inf`` leaves them as they are.

    Returns:
        The gradient transformation; its updates are added to the parameters.

    References:
        Lan et al. 2024, arXiv 2302.01470.
    """
    del length
    _require(theta, "optim4rl")
    first, second = (_recurrent(theta[f"rnn{i}"], theta[f"mlp{i}"]) for i in (1, 2))

    def init(params: Any) -> Optim4RLState:
        layout = Layout.of(params)
        return Optim4RLState(first.start(layout), second.start(layout))

    def update(updates: Any, state: Optim4RLState, params: Any = None, **extras: Any) -> tuple[Any, Optim4RLState]:
        del params, extras
        layout = Layout.of(updates)
        gradient = jnp.clip(layout.flatten(updates), -gradient_clip, gradient_clip)
        log_first, first_carry = first(gradient[None], state.first)
        log_second, second_carry = second(jnp.square(gradient)[None], state.second)
        moment = jnp.sign(gradient) * jnp.exp(log_first)
        step = learning_rate * moment * jax.lax.rsqrt(jnp.exp(log_second) + EPSILON)
        return layout.unflatten(-step), Optim4RLState(first_carry, second_carry)

    return optax.GradientTransformationExtraArgs(init, update)


def l2lgd2(
    theta: Mapping[str, Any], length: TrainingLength, *, learning_rate: Any = 3e-4
) -> optax.GradientTransformationExtraArgs:
    """L2LGD2 with meta-parameters ``theta``: a learned positive factor on the gradient.

    Args:
        theta: ``{rnn, mlp}``; arrays may be tracers.
        length: not used.
        learning_rate: step size.

    Returns:
        The gradient transformation; its updates are added to the parameters.

    References:
        Lan et al. 2024, arXiv 2302.01470 (a baseline there); Andrychowicz et al. 2016, arXiv 1606.04474.
    """
    del length
    _require(theta, "l2lgd2")
    rule = _recurrent(theta["rnn"], theta["mlp"])

    def init(params: Any) -> L2LGD2State:
        return L2LGD2State(rule.start(Layout.of(params)))

    def update(updates: Any, state: L2LGD2State, params: Any = None, **extras: Any) -> tuple[Any, L2LGD2State]:
        del params, extras
        layout = Layout.of(updates)
        gradient = layout.flatten(updates)
        log_factor, carry = rule(_signed_log(gradient), state.carry)
        return layout.unflatten(-learning_rate * jnp.exp(log_factor) * gradient), L2LGD2State(carry)

    return optax.GradientTransformationExtraArgs(init, update)


def _signed_log(gradient: Float[Array, " columns"]) -> Float[Array, "2 columns"]:
    """L2LGD2's inputs: magnitude and sign of a large gradient, −1 and a scaled copy of a tiny one."""
    magnitude = jnp.log(jnp.abs(gradient) + EPSILON) / LOG_SCALE
    large = magnitude >= -1.0
    scaled = jnp.exp(LOG_SCALE) * gradient
    return jnp.stack([jnp.where(large, magnitude, -1.0), jnp.where(large, jnp.sign(gradient), scaled)])


def _recurrent(cell: Mapping[str, Any], mlp: Mapping[str, Any]) -> Recurrent:
    return Recurrent(per_parameter.gru(cell), tuple(per_parameter.affine(mlp[name]) for name in MLP_LAYERS))


def _require(theta: Mapping[str, Any], name: str) -> None:
    if not theta:
        raise ValueError(f"{name} needs meta-parameters: name weights ({name}@FILE), or meta-train it first")


# --- θ -------------------------------------------------------------------------------------------------------------


def _mlp_shapes(inputs: int, hidden: int) -> per_parameter.Shapes:
    sizes = zip(MLP_LAYERS, (inputs, hidden, hidden), (hidden, hidden, 1), strict=True)
    return {name: per_parameter.dense_shapes(fan_in, fan_out) for name, fan_in, fan_out in sizes}


def optim4rl_shapes(carry: int = CARRY, hidden: int = HIDDEN) -> per_parameter.Shapes:
    """Shapes of Optim4RL's θ."""
    cells = {f"rnn{i}": per_parameter.gru_shapes(1, carry) for i in (1, 2)}
    return cells | {f"mlp{i}": _mlp_shapes(carry, hidden) for i in (1, 2)}


def l2lgd2_shapes(carry: int = CARRY, hidden: int = HIDDEN) -> per_parameter.Shapes:
    """Shapes of L2LGD2's θ."""
    return {"rnn": per_parameter.gru_shapes(2, carry), "mlp": _mlp_shapes(carry, hidden)}


def init_theta(shapes: per_parameter.Shapes, key: Array) -> Any:
    """Where meta-training starts: a random rule close to sign descent (Optim4RL) or gradient descent (L2LGD2).

    Recurrent kernels are orthogonal, the others LeCun normal, biases 0. θ = 0 would do as the first update, but its
    zero kernels would keep every unit of a layer alike and cut the carry off from the output.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes, is_leaf=lambda node: isinstance(node, tuple))
    keys = jax.random.split(key, len(leaves))
    pairs = zip(leaves, keys, strict=True)
    return jax.tree.unflatten(treedef, [_initial(path[-2].key, shape, leaf_key) for (path, shape), leaf_key in pairs])


def _initial(layer: str, shape: tuple[int, ...], key: Array) -> Array:
    if len(shape) == 1:
        return jnp.zeros(shape, jnp.float32)
    recurrent = layer in ("hr", "hz", "hn")
    initializer = jax.nn.initializers.orthogonal() if recurrent else jax.nn.initializers.lecun_normal()
    return initializer(key, shape, jnp.float32)


def _validate(name: str, shapes: Callable[..., per_parameter.Shapes], part: str, theta: Any) -> None:
    """Raise ValueError, naming the array, unless ``theta`` fits for some sizes of GRU and MLP."""
    carry = per_parameter.shape_at(theta, f"rnn{part}", "hn", "bias")
    hidden = per_parameter.shape_at(theta, f"mlp{part}", "layers_0", "bias")
    expected = shapes(carry=carry[0] if any(carry) else CARRY, hidden=hidden[0] if any(hidden) else HIDDEN)
    per_parameter.check(name, expected, theta)


def _learned(name: str, shapes: Callable[..., per_parameter.Shapes], part: str) -> Learned:
    return Learned(
        init=functools.partial(init_theta, shapes()),
        readers=(per_parameter.flat_reader(functools.partial(per_parameter.from_flat, name, shapes())),),
        validate=functools.partial(_validate, name, shapes, part),
        imitation="it sees neither momenta nor time, on which the updates of hand-designed optimizers depend",
    )


LEARNING_RATE = Hyperparameter(3e-4, "step size", traced=True, search=Search(1e-5, 1e-1), minimum=0.0)

SPECS: tuple[OptimizerSpec, ...] = (
    OptimizerSpec(
        name="optim4rl",
        description="Optim4RL: a learned Adam-like ratio of two recurrent moments",
        make=optim4rl,
        citation=CITATION,
        hyperparameters={
            "learning_rate": LEARNING_RATE,
            "gradient_clip": Hyperparameter(
                1.0, "elementwise bound on gradients; inf for none", traced=True, minimum=0.0
            ),
        },
        learned=_learned("optim4rl", optim4rl_shapes, "1"),
    ),
    OptimizerSpec(
        name="l2lgd2",
        description="L2LGD2: a recurrent rule that scales the gradient by a learned positive factor",
        make=l2lgd2,
        citation=CITATION,
        hyperparameters={"learning_rate": LEARNING_RATE},
        learned=_learned("l2lgd2", l2lgd2_shapes, ""),
    ),
)
