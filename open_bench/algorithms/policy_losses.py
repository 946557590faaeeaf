"""Policy losses: PPO-clip, DPO and LPO.

A policy loss is ``fn(theta, log_prob, log_prob_old, advantage, clip) → scalar`` to be minimized, over a minibatch:
``log_prob``, ``log_prob_old`` and ``advantage`` have shape (batch,), and ``advantage`` is already normalized.
r = π/π_old is the probability ratio, ρ = log r, A the advantage.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Samples = Float[Array, " batch"]
Loss = Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """A named policy loss; ``init(key)`` gives its θ when it is meta-learned."""

    name: str
    fn: Callable[[Any, Array, Array, Array, Any], Array]
    description: str
    citation: str = ""
    init: Callable[[Array], Any] | None = None
    validate: Callable[[Any], None] | None = None  # raises ValueError naming the array that does not fit

    def __call__(self, theta: Any, log_prob: Samples, log_prob_old: Samples, advantage: Samples, clip: Any) -> Loss:
        """Loss of a minibatch, a scalar to minimize."""
        return self.fn(theta, log_prob, log_prob_old, advantage, clip)


def ppo_clip(theta: Any, log_prob: Samples, log_prob_old: Samples, advantage: Samples, clip: Any) -> Loss:
    """−mean(min(r·A, clip(r, 1±ε)·A)) (Schulman et al. 2017, eq. 7)."""
    del theta
    ratio = jnp.exp(log_prob - log_prob_old)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantage).mean()


def dpo(theta: Any, log_prob: Samples, log_prob_old: Samples, advantage: Samples, clip: Any) -> Loss:
    """−mean(r·A − D) with DPO's closed-form drift D, α = 2, β = 0.6 (Lu et al. 2022, eq. 8)."""
    del theta, clip
    alpha, beta = 2.0, 0.6
    log_ratio = log_prob - log_prob_old
    ratio = jnp.exp(log_ratio)
    gain = (ratio - 1.0) * advantage
    log_gain = log_ratio * advantage
    drift = jnp.where(
        advantage >= 0.0,
        jax.nn.relu(gain - alpha * jnp.tanh(gain / alpha)),
        jax.nn.relu(log_gain - beta * jnp.tanh(log_gain / beta)),
    )
    return -(ratio * advantage - drift).mean()


LPO_HIDDEN = 128  # units of the drift network


def lpo(theta: Any, log_prob: Samples, log_prob_old: Samples, advantage: Samples, clip: Any) -> Loss:
    """−mean(r·A − D) with a learned drift D = relu(f_θ(x) − 1e-4 + relu((r − clip(r, 1±ε))·A)) (Lu et al. 2022).

    θ is ``{"kernel_0": (8, H), "kernel_1": (H, 1)}``; x = (r−1, (r−1)², ρ, ρ²) and the same four times A. The
    network's output is one number a sample and is added sample by sample: the published code let it broadcast to
    (batch, batch).
    """
    log_ratio = log_prob - log_prob_old
    ratio = jnp.exp(log_ratio)
    half = jnp.stack([ratio - 1.0, (ratio - 1.0) ** 2, log_ratio, log_ratio**2], axis=-1)
    x = jnp.concatenate([half, half * advantage[:, None]], axis=-1)
    network = (jnp.tanh(x @ theta["kernel_0"]) @ theta["kernel_1"])[:, 0]
    clipped_gain = jax.nn.relu((ratio - jnp.clip(ratio, 1.0 - clip, 1.0 + clip)) * advantage)
    drift = jax.nn.relu(network - 1e-4 + clipped_gain)
    return -(ratio * advantage - drift).mean()


def init_lpo(key: Key[Array, ""]) -> dict[str, Float[Array, "inputs units"]]:
    """Where evolution starts: a drift network whose output is 0, so almost PPO-clip.

    Only ``kernel_1`` is 0. The network is even in θ (changing the sign of both kernels changes nothing), so around
    θ = 0 the members of an antithetic pair always tie and evolution would see no gradient.
    """
    kernel_0 = jax.random.normal(key, (8, LPO_HIDDEN), jnp.float32) / 8**0.5
    return {"kernel_0": kernel_0, "kernel_1": jnp.zeros((LPO_HIDDEN, 1))}


def validate_lpo(theta: Any) -> None:
    """Raise ValueError unless ``theta`` holds the two kernels of the drift network."""
    shapes = {name: tuple(value.shape) for name, value in dict(theta).items()}
    hidden = (*shapes.get("kernel_0", ()), 0, 0)[1]
    expected = {"kernel_0": (8, hidden), "kernel_1": (hidden, 1)}
    if shapes != expected or hidden < 1:
        raise ValueError(f"LPO's drift network needs kernel_0 (8, H) and kernel_1 (H, 1); found {shapes}")


PPO = PolicyLoss("ppo", ppo_clip, "PPO-clip", "Schulman et al. 2017, arXiv 1707.06347")
DPO = PolicyLoss("dpo", dpo, "Discovered Policy Optimization: closed-form drift", "Lu et al. 2022, arXiv 2210.05639")
LPO = PolicyLoss(
    "lpo",
    lpo,
    "Learned Policy Optimization: meta-learned drift",
    "Lu et al. 2022, arXiv 2210.05639",
    init=init_lpo,
    validate=validate_lpo,
)
POLICY_LOSSES = {policy_loss.name: policy_loss for policy_loss in (PPO, DPO, LPO)}
