"""Celo2: numbers of the original implementation, what is left open there, and reading its file."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from open_bench.optimizers import registry
from open_bench.optimizers.learned import celo2
from open_bench.optimizers.spec import TrainingLength

SPECS = {spec.name: spec for spec in celo2.SPECS}


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "celo2.npz") as file:
        return dict(file)


def subtree(arrays, prefix):
    flat = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    return unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def theta(arrays):
    return subtree(arrays, "theta/")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prefix"), [("celo2", "full"), ("celo2-base", "base")])
def test_reproduces_the_original(name, prefix, arrays, theta):
    """Parameters to 1e-5 relative, updates to 1e-3 of the largest."""
    params = subtree(arrays, "params0/")
    rates = np.atleast_1d(arrays["learning_rate"])

    @jax.jit
    def step(gradients, state, params, rate):
        rule = SPECS[name].make(theta, TrainingLength(1, 1, 1), learning_rate=rate, anneal_learning_rate=False)
        return rule.update(gradients, state, params)

    state = SPECS[name].build({"optimizer": theta, "policy_loss": {}}).init(params)
    for t, rate in enumerate(rates):
        wanted = subtree(arrays, f"{prefix}/step{t}/params/")
        updates, state = step(subtree(arrays, f"step{t}/grads/"), state, params, rate)
        moved = optax.apply_updates(params, updates)
        difference = jax.tree.map(lambda new, old: new - old, wanted, params)
        largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(difference))
        for update, other in zip(jax.tree.leaves(updates), jax.tree.leaves(difference), strict=True):
            np.testing.assert_allclose(update, other, atol=1e-3 * largest, rtol=0)
        for new, other in zip(jax.tree.leaves(moved), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(new, other, rtol=1e-5, atol=1e-7)
        params = wanted
    assert len(rates) == 8


@pytest.mark.slow
def test_directions_have_root_mean_square_one(theta):
    """Over the last two axes, whatever the rank; a matrix of celo2 is nearly orthogonal."""
    shapes = {"scalar": (), "bias": (7,), "kernel": (6, 4), "filter": (2, 3, 5, 4)}
    draw = np.random.default_rng(0).normal
    params = {name: jnp.asarray(draw(size=shape), jnp.float32) for name, shape in shapes.items()}
    gradients = {name: np.sin(leaf) for name, leaf in params.items()}
    for orthogonal in (False, True):
        rule = celo2.scale_by_celo2(theta, orthogonal)
        found, _ = jax.jit(rule.update)(gradients, rule.init(params), params)
        for name, leaf in found.items():
            assert leaf.shape == shapes[name]
            axes = tuple(range(leaf.ndim))[-2:]
            np.testing.assert_allclose(jnp.sqrt(jnp.square(leaf).mean(axes)), 1.0, rtol=1e-3)
    values = np.linalg.svd(found["kernel"], compute_uv=False)
    assert values.max() / values.min() < 3.0


@pytest.mark.parametrize("shape", [(5, 5), (9, 3), (3, 9), (2, 4, 6)])
def test_orthogonalizing_moves_singular_values_to_one(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    found = jax.jit(celo2.orthogonalize)(x)
    assert found.shape == shape
    values = np.linalg.svd(found, compute_uv=False)
    assert values.min() > 0.3
    assert values.max() < 1.3


@pytest.mark.slow
def test_only_celo2_gives_vectors_to_adam(theta):
    params = {"bias": jnp.ones(3), "kernel": jnp.ones((3, 2)), "empty": jnp.zeros((0, 2))}
    steps = {}
    for name, spec in SPECS.items():
        rule = spec.build({"optimizer": theta, "policy_loss": {}}, TrainingLength(2, 1, 1), learning_rate=0.01)
        gradients = jax.tree.map(lambda x: x * jnp.arange(1.0, x.size + 1).reshape(x.shape), params)
        steps[name], _ = jax.jit(rule.update)(gradients, rule.init(params), params, training_fraction=0.0)
    np.testing.assert_allclose(steps["celo2"]["bias"], -0.2, rtol=1e-5)  # Adam's first step is ±20·lr
    assert np.sqrt(np.mean(np.square(steps["celo2-base"]["bias"]))) == pytest.approx(0.01, rel=1e-3)
    halved, _ = rule.update(gradients, rule.init(params), params, training_fraction=1.0)
    np.testing.assert_allclose(halved["kernel"], 0.5 * steps["celo2-base"]["kernel"], rtol=1e-5)


def test_random_theta_and_theta_of_another_width_fit(theta):
    random = celo2.init_theta(jax.random.key(0))
    celo2.validate(random)
    assert sum(leaf.size for leaf in jax.tree.leaves(random)) == 30 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3
    stack = jax.tree.map(lambda x: x[tuple(slice(4) for _ in x.shape)], theta["ff_mod_stack"])
    narrow = {"ff_mod_stack": stack}
    celo2.validate(narrow)
    short = flatten_dict(theta, sep="/")
    del short["ff_mod_stack/~/w0__13"]
    for broken, message in ((unflatten_dict(short, sep="/"), "w0__13"), ({}, "lacks the array ff_mod_stack")):
        with pytest.raises(ValueError, match=message):
            celo2.validate(broken)
    with pytest.raises(ValueError, match="weights"):
        SPECS["celo2"].build()


def test_reading_the_published_file(tmp_path, theta):
    path = tmp_path / "theta.state"
    path.write_bytes(serialization.msgpack_serialize(theta))
    found, facts = celo2.read(path)
    assert facts == {}
    assert jax.tree.all(jax.tree.map(np.array_equal, found, theta))
    for data in (
        b"",
        path.read_bytes()[:-3],
        serialization.msgpack_serialize({"ff_mod_stack": {}}),
        b"\x93\x01\x02\x03",
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError):
            celo2.read(path)


def test_both_are_registered():
    assert {"celo", *SPECS} <= set(registry.known())
