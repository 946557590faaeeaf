"""Whether a θ fits an optimizer, and which published files it reads."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from open_bench.algorithms.policy_losses import LPO
from open_bench.optimizers import registry
from open_bench.optimizers.spec import Learned, OptimizerSpec
from open_bench.optimizers.theta import readers, validate
from open_bench.weights.format import WeightsError


def init(key):
    del key
    return {"gru": {"kernel": jnp.zeros((3, 337))}, "zero": {"bias": jnp.zeros(200)}}


def spec(name, **changes):
    return OptimizerSpec(name, "", lambda theta, length: None, **changes)


OPEN, ADAM, LPO_SPEC = spec("open", learned=Learned(init)), spec("adam"), spec("lpo", policy_loss=LPO)
THETA = {"optimizer": init(None), "policy_loss": {}}


def test_validate():
    drift = {"kernel_0": np.zeros((8, 4), np.float32), "kernel_1": np.zeros((4, 1), np.float32)}
    validate(THETA, OPEN)
    validate({"optimizer": {}, "policy_loss": drift}, LPO_SPEC)
    validate({**THETA, "policy_loss": drift}, dataclasses.replace(OPEN, policy_loss=LPO))
    for theta, whom, message in [
        (THETA, ADAM, "weights of an optimizer, and adam has none"),
        ({**THETA, "policy_loss": drift}, OPEN, "policy loss ppo of open has none"),
        ({"optimizer": {}, "policy_loss": drift}, OPEN, "no weights of an optimizer"),
        (THETA, dataclasses.replace(OPEN, policy_loss=LPO), "no weights of a policy loss"),
        ({"optimizer": {"gru": np.zeros(2)}, "policy_loss": {}}, OPEN, r"x.npy does not fit open: array \['gru'\]"),
        ({"optimizer": {}, "policy_loss": {"kernel_0": np.zeros((7, 4))}}, LPO_SPEC, "policy loss lpo of lpo"),
    ]:
        with pytest.raises(WeightsError, match=message):
            validate(theta, whom, "x.npy")


def test_readers_are_the_optimizers_and_the_policy_losses():
    found = {
        name: [(part, reader.suffix) for part, reader in readers(registry.known()[name])]
        for name in ("adam", "celo", "celo2", "lpo", "open", "velo")
    }
    assert found == {
        "adam": [],
        "celo": [("optimizer", ".state")],
        "celo2": [("optimizer", ".state")],
        "lpo": [("policy_loss", ".npz")],
        "open": [("optimizer", ".npy")],
        "velo": [("optimizer", "directory")],
    }
    both = dataclasses.replace(registry.known()["open"], policy_loss=LPO)
    assert [part for part, _ in readers(both)] == ["optimizer", "policy_loss"]
