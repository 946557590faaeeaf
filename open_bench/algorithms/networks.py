"""Networks of agents: multilayer perceptrons that also report their units' activations, and what they parametrize.

Parameters are ``{"layer_00_dense": {"kernel", "bias"}, "layer_00_norm": {"scale", "bias"}, …, "log_std"}``: sorted
order is forward order, which optimizers that look at a layer's depth rely on.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

Activations = dict[str, Float[Array, " units"]]  # layer name → mean |activation| over the batch


def dense_name(index: int) -> str:
    """Name of the ``index``-th dense layer."""
    return f"layer_{index:02d}_dense"


def norm_name(index: int) -> str:
    """Name of the norm that follows it."""
    return f"layer_{index:02d}_norm"


class MLP(nn.Module):
    """Dense layers with orthogonal initialization: gain √2 for hidden layers, ``head_gain`` for the last.

    Attributes:
        hidden: width of each hidden layer.
        outputs: width of the head.
        head_gain: gain of the head's initialization.
        activation: "relu" or "tanh".
        gaussian: also hold ``log_std`` (outputs,), initialized to 0.
        layer_norm: normalize the units of every hidden layer before its non-linearity (scale 1, bias 0 at first).
    """

    hidden: tuple[int, ...]
    outputs: int
    head_gain: float
    activation: str
    gaussian: bool = False
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Shaped[Array, "batch inputs"]) -> tuple[Float[Array, "batch outputs"], Activations]:
        """The head's output, and every layer's activations: hidden ones after the non-linearity, the head's raw."""
        nonlinearity = {"relu": nn.relu, "tanh": jnp.tanh}[self.activation]
        x = x.astype(jnp.float32)
        activations: Activations = {}
        for index, width in enumerate((*self.hidden, self.outputs)):
            is_head = index == len(self.hidden)
            gain = self.head_gain if is_head else 2.0**0.5
            x = nn.Dense(width, kernel_init=nn.initializers.orthogonal(gain), name=dense_name(index))(x)
            if not is_head:
                x = nonlinearity(nn.LayerNorm(name=norm_name(index))(x) if self.layer_norm else x)
            activations[dense_name(index)] = jnp.abs(x).mean(0)
            if self.layer_norm and not is_head:
                activations[norm_name(index)] = activations[dense_name(index)]
        if self.gaussian:
            self.param("log_std", nn.initializers.zeros, (self.outputs,))
        return x, activations


class Categorical(NamedTuple):
    """Distribution over actions 0 … n−1 given logits (…, n)."""

    logits: Float[Array, "*batch n"]

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*batch"]:
        return jax.random.categorical(key, self.logits)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        log_probabilities = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probabilities, action[..., None], axis=-1)[..., 0]

    def entropy(self) -> Float[Array, "*batch"]:
        log_probabilities = jax.nn.log_softmax(self.logits)
        return -(jnp.exp(log_probabilities) * log_probabilities).sum(-1)

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """KL(self ‖ other) in nats."""
        own, others = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return (jnp.exp(own) * (own - others)).sum(-1)


class DiagonalGaussian(NamedTuple):
    """Independent normals with mean (…, size) and a state-independent log standard deviation (size,)."""

    mean: Float[Array, "*batch size"]
    log_std: Float[Array, " size"]

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*batch size"]:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def log_prob(self, action: Float[Array, "*batch size"]) -> Float[Array, "*batch"]:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return -0.5 * (z**2 + jnp.log(2.0 * jnp.pi)).sum(-1) - self.log_std.sum()

    def entropy(self) -> Float[Array, "*batch"]:
        return jnp.broadcast_to((self.log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e)).sum(), self.mean.shape[:-1])

    def kl(self, other: "DiagonalGaussian") -> Float[Array, "*batch"]:
        """KL(self ‖ other) in nats."""
        ratio, shift = self.log_std - other.log_std, (self.mean - other.mean) * jnp.exp(-other.log_std)
        return 0.5 * (jnp.exp(2.0 * ratio) - 1.0 - 2.0 * ratio + shift**2).sum(-1)


class EpsilonGreedy(NamedTuple):
    """The best action, but with probability ε any of the n; given values (…, n)."""

    values: Float[Array, "*batch n"]
    epsilon: Float[Array, ""] | float

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*batch"]:
        explore_key, action_key = jax.random.split(key)
        best = self.values.argmax(-1)
        explore = jax.random.uniform(explore_key, best.shape) < self.epsilon
        return jnp.where(explore, jax.random.randint(action_key, best.shape, 0, self.values.shape[-1]), best)
