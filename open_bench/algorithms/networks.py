"""Actor and critic: multilayer perceptrons that also report their units' activations.

Parameters are ``{"actor": {"dense_00": {"kernel", "bias"}, …, "log_std"}, "critic": {…}}``: sorted order is forward
order, which optimizers that look at a layer's depth rely on.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
Activations = dict[str, Array]  # layer name → (units,): mean |activation| over the batch


class MLP(nn.Module):
    """Dense layers with orthogonal initialization: gain √2 for hidden layers, ``head_gain`` for the last.

    Attributes:
        hidden: width of each hidden layer.
        outputs: width of the head.
        head_gain: gain of the head's initialization.
        activation: "relu" or "tanh".
        gaussian: also hold ``log_std`` (outputs,), initialized to 0.
    """

    hidden: tuple[int, ...]
    outputs: int
    head_gain: float
    activation: str
    gaussian: bool = False

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Activations]:
        """``x`` (batch, inputs) → (head's output (batch, outputs), activations of every layer)."""
        nonlinearity = {"relu": nn.relu, "tanh": jnp.tanh}[self.activation]
        x = x.astype(jnp.float32)
        activations: Activations = {}
        for index, width in enumerate((*self.hidden, self.outputs)):
            is_head = index == len(self.hidden)
            gain = self.head_gain if is_head else 2.0**0.5
            name = f"dense_{index:02d}"
            x = nn.Dense(width, kernel_init=nn.initializers.orthogonal(gain), name=name)(x)
            x = x if is_head else nonlinearity(x)
            activations[name] = jnp.abs(x).mean(0)
        if self.gaussian:
            self.param("log_std", nn.initializers.zeros, (self.outputs,))
        return x, activations


class Categorical(NamedTuple):
    """Distribution over actions 0 … n−1 given logits (…, n)."""

    logits: Array

    def sample(self, key: Array) -> Array:
        return jax.random.categorical(key, self.logits)

    def log_prob(self, action: Array) -> Array:
        log_probabilities = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probabilities, action[..., None], axis=-1)[..., 0]

    def entropy(self) -> Array:
        log_probabilities = jax.nn.log_softmax(self.logits)
        return -(jnp.exp(log_probabilities) * log_probabilities).sum(-1)


class DiagonalGaussian(NamedTuple):
    """Independent normals with mean (…, size) and a state-independent log standard deviation (size,)."""

    mean: Array
    log_std: Array

    def sample(self, key: Array) -> Array:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def log_prob(self, action: Array) -> Array:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return -0.5 * (z**2 + jnp.log(2.0 * jnp.pi)).sum(-1) - self.log_std.sum()

    def entropy(self) -> Array:
        return jnp.broadcast_to((self.log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e)).sum(), self.mean.shape[:-1])
