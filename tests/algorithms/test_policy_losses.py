"""Policy losses against golden values."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from open_bench.algorithms.policy_losses import DPO, LPO, PPO, PolicyLoss


@pytest.mark.parametrize("policy_loss", [PPO, DPO, LPO], ids=lambda each: each.name)
def test_policy_losses_reproduce_golden(policy_loss: PolicyLoss, golden: Path) -> None:
    data, name = np.load(golden / "policy_losses.npz"), policy_loss.name
    raw = data["advantage"]
    advantage = (raw - raw.mean()) / (raw.std() + 1e-8)
    theta = {"kernel_0": data["lpo_kernel_0"], "kernel_1": data["lpo_kernel_1"]} if name == "lpo" else {}
    loss, gradient = jax.value_and_grad(
        lambda log_prob: policy_loss(theta, log_prob, data["log_prob_old"], advantage, float(data["clip"]))
    )(jnp.asarray(data["log_prob"]))
    np.testing.assert_allclose(loss, data[f"{name}_loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, data[f"{name}_grad"], rtol=1e-5, atol=1e-7)


def test_lpo_at_zero_is_almost_ppo() -> None:
    key = jax.random.key(0)
    log_prob, old, advantage = 0.3 * jax.random.normal(key, (3, 64))
    zero = LPO.init(key)
    assert abs(LPO(zero, log_prob, old, advantage, 0.2) - PPO({}, log_prob, old, advantage, 0.2)) < 2e-4
