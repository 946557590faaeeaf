"""Key streams: all different, by name, and the same whatever else is asked for."""

import jax
import numpy as np
import pytest

from open_bench.training.keys import PURPOSES, lifetime_keys, stream


def test_key_streams_are_all_different() -> None:
    found = {
        tuple(np.asarray(jax.random.key_data(stream(key, purpose))).tolist())
        for root_seed in (0, 1)
        for environment in ("breakout", "cartpole")
        for key in lifetime_keys(root_seed, environment, [0, 1, 2])
        for purpose in PURPOSES
    }
    assert len(found) == 2 * 2 * 3 * len(PURPOSES)
    with pytest.raises(ValueError, match="unknown purpose"):
        stream(jax.random.key(0), "network")


def test_a_seed_has_the_same_key_whatever_else_is_asked_for() -> None:
    together = np.asarray(jax.random.key_data(lifetime_keys(3, "acrobot", [0, 1, 2, 3])))
    np.testing.assert_array_equal(jax.random.key_data(lifetime_keys(3, "acrobot", [3, 1])), together[[3, 1]])
