"""Networks: initialization, order and names of layers, activations; the distributions that they parametrize."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from open_bench.algorithms.networks import MLP, Categorical, DiagonalGaussian, EpsilonGreedy


def test_networks_start_as_published() -> None:
    network = MLP((32, 32), 3, 0.01, "tanh", gaussian=True, layer_norm=True)
    params = network.init(jax.random.key(0), jnp.zeros((1, 5)))["params"]
    hidden = np.asarray(params["layer_01_dense"]["kernel"])
    np.testing.assert_allclose(hidden @ hidden.T, 2.0 * np.eye(32), atol=1e-4)
    head = np.asarray(params["layer_02_dense"]["kernel"])
    np.testing.assert_allclose(head.T @ head, 0.01**2 * np.eye(3), atol=1e-5)
    assert not np.any(params["log_std"])
    for name, layer in params.items():
        if name != "log_std":
            assert not np.any(layer["bias"])
        if name.endswith("norm"):
            assert (layer["scale"] == 1).all()


def test_sorted_order_is_forward_order() -> None:
    network = MLP((4,) * 11, 2, 1.0, "relu", gaussian=True, layer_norm=True)
    params = network.init(jax.random.key(0), jnp.zeros((1, 3)))["params"]
    blocks = [name for index in range(11) for name in (f"layer_{index:02d}_dense", f"layer_{index:02d}_norm")]
    assert sorted(params) == [*blocks, "layer_11_dense", "log_std"]


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_outputs_and_activations_are_those_of_plain_numpy(layer_norm: bool, activation: str) -> None:
    """Dense → norm → non-linearity; a norm shares its block's activations, and the head's are raw."""
    network = MLP((6, 5), 2, 1.0, activation, layer_norm=layer_norm)
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    params = network.init(jax.random.key(0), jnp.asarray(x))["params"]
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + noise.normal(size=p.shape).astype(np.float32), params)
    output, activations = network.apply({"params": params}, jnp.asarray(x))
    nonlinear = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh}[activation]
    expected = {}
    for index in range(3):
        dense = params[f"layer_{index:02d}_dense"]
        x = x @ dense["kernel"] + dense["bias"]
        if index < 2:
            if layer_norm:
                norm = params[f"layer_{index:02d}_norm"]
                x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
                x = x * norm["scale"] + norm["bias"]
            x = nonlinear(x)
        expected[f"layer_{index:02d}_dense"] = np.abs(x).mean(0)
        if layer_norm and index < 2:
            expected[f"layer_{index:02d}_norm"] = expected[f"layer_{index:02d}_dense"]
    np.testing.assert_allclose(output, x, rtol=2e-4, atol=2e-5)
    assert set(activations) == set(expected)
    for name, units in expected.items():
        np.testing.assert_allclose(activations[name], units, rtol=2e-4, atol=2e-5)


def test_binary_observations_are_taken_as_they_are() -> None:
    network = MLP((4,), 2, 1.0, "relu")
    params = network.init(jax.random.key(0), jnp.zeros((1, 3)))
    bits = jnp.array([[True, False, True]])
    np.testing.assert_array_equal(network.apply(params, bits)[0], network.apply(params, bits.astype(jnp.float32))[0])


def test_distributions_match_their_definitions() -> None:
    mean, log_std = jnp.array([[0.5, -1.0]]), jnp.array([0.2, -0.3])
    gaussian = DiagonalGaussian(mean, log_std)
    action = jnp.array([[0.1, 0.4]])
    expected = jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum()
    assert gaussian.log_prob(action)[0] == pytest.approx(float(expected), rel=1e-5)
    assert gaussian.entropy()[0] == pytest.approx(float((0.5 * jnp.log(2 * jnp.pi * jnp.e) + log_std).sum()), rel=1e-5)
    categorical = Categorical(jnp.log(jnp.array([[0.25, 0.75]])))
    assert float(jnp.exp(categorical.log_prob(jnp.array([1])))[0]) == pytest.approx(0.75, rel=1e-5)
    assert categorical.entropy()[0] == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)), rel=1e-5)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.floats(0, 1))
def test_epsilon_greedy_takes_the_best_action_but_for_epsilon(seed: int, n: int, epsilon: float) -> None:
    """Frequencies over 2,000 draws: the best action has 1 − ε + ε/n, every other ε/n, within five deviations."""
    values = jax.random.normal(jax.random.key(seed), (n,))
    draws = EpsilonGreedy(jnp.broadcast_to(values, (2000, n)), epsilon).sample(jax.random.key(seed + 1))
    found = np.bincount(np.asarray(draws), minlength=n) / 2000
    expected = np.full(n, epsilon / n)
    expected[int(values.argmax())] += 1 - epsilon
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / 2000) + 1e-6).all()
