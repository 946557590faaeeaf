"""Optim4RL and L2LGD2: golden updates of the original, clipping, initial θ and edge cases."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from open_bench.optimizers.learned.optim4rl import SPECS

GOLDEN = Path(__file__).parents[2] / "golden"
SPEC = {spec.name: spec for spec in SPECS}
SETTINGS = {"optim4rl": {"gradient_clip": np.inf}, "l2lgd2": {}}  # the golden runs clip nothing


def nested(arrays, prefix):
    """The arrays under a prefix as nested dicts."""
    tree = {}
    for path in arrays.files:
        if path.startswith(prefix):
            *parents, leaf = path.removeprefix(prefix).split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = arrays[path]
    return tree


def biggest(tree):
    return max(float(np.max(np.abs(leaf), initial=0.0)) for leaf in jax.tree.leaves(tree))


def read_vector(spec, vector):
    """θ of a flat vector, by the way of a file."""
    (reader,) = spec.learned.readers
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", vector)
        theta, _ = reader.read(Path(folder) / "x.npy")
        np.save(Path(folder) / "y.npy", vector)
        assert reader.write(theta) == (Path(folder) / "y.npy").read_bytes()
    return theta


def make(name, theta=None, **settings):
    theta = SPEC[name].learned.init(jax.random.key(0)) if theta is None else theta
    return SPEC[name].build({"optimizer": theta}, **settings)


def tensors(seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    shapes = {"actor": {"dense_00": {"kernel": (5, 3), "bias": (3,)}, "log_std": (3,)}}
    draw = lambda shape: jnp.asarray(scale * generator.normal(size=shape), jnp.float32)
    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


@pytest.mark.parametrize("name", SPEC)
def test_reproduces_the_original(name):
    arrays = np.load(GOLDEN / f"{name}.npz")
    theta = nested(arrays, "theta/")
    SPEC[name].learned.validate(theta)
    optimizer = make(name, theta, learning_rate=0.01, **SETTINGS[name])
    state, update = optimizer.init(nested(arrays, "step0/grads/")), jax.jit(optimizer.update)
    for step in range(6):
        updates, state = update(nested(arrays, f"step{step}/grads/"), state)
        for part, expected in nested(arrays, f"step{step}/updates/").items():
            np.testing.assert_allclose(updates[part], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_optim4rl_clips_gradients_elementwise():
    optimizer = make("optim4rl")
    gradients = tensors(scale=10.0)
    clipped = jax.tree.map(lambda g: jnp.clip(g, -1.0, 1.0), gradients)
    state = optimizer.init(gradients)
    update = jax.jit(optimizer.update)
    given, expected = (update(g, state)[0] for g in (gradients, clipped))
    jax.tree.map(np.testing.assert_array_equal, given, expected)
    free = jax.jit(make("optim4rl", gradient_clip=np.inf).update)(gradients, state)[0]
    assert biggest(jax.tree.map(jnp.subtract, free, given)) > 1e-6


@pytest.mark.parametrize("name", SPEC)
def test_initial_theta_descends_and_depends_on_its_key(name):
    learned = SPEC[name].learned
    theta, again, other = (learned.init(jax.random.key(seed)) for seed in (0, 0, 1))
    learned.validate(theta)
    assert biggest(jax.tree.map(jnp.subtract, theta, again)) == 0.0
    assert biggest(jax.tree.map(jnp.subtract, theta, other)) > 0.1
    optimizer, gradients = make(name, theta), tensors()
    updates, state = jax.jit(optimizer.update)(gradients, optimizer.init(gradients))
    jax.tree.map(lambda u, g: np.testing.assert_array_equal(jnp.sign(u), -jnp.sign(g)), updates, gradients)
    assert biggest(state) > 1e-3  # the carry lives


@pytest.mark.parametrize(("name", "size"), [("optim4rl", 1362), ("l2lgd2", 705)])
def test_flat_vectors_round_trip_and_wrong_sizes_are_named(name, size):
    arrays = np.load(GOLDEN / f"{name}.npz")
    assert size == sum(arrays[path].size for path in arrays.files if path.startswith("theta/"))
    vector = np.arange(size, dtype=np.float32)
    leaves = jax.tree.leaves(read_vector(SPEC[name], vector))
    np.testing.assert_array_equal(np.concatenate([leaf.ravel() for leaf in leaves]), vector)
    with pytest.raises(ValueError, match=rf"\({size},\).*\({size + 1},\)"):
        read_vector(SPEC[name], np.zeros(size + 1, np.float32))


@pytest.mark.parametrize(("name", "cell"), [("optim4rl", "rnn1"), ("l2lgd2", "rnn")])
def test_validate_names_the_array_that_does_not_fit(name, cell):
    learned = SPEC[name].learned
    theta = learned.init(jax.random.key(0))
    broken = theta | {cell: theta[cell] | {"hr": {"kernel": np.zeros((3, 8))}}}
    with pytest.raises(ValueError, match=rf"{cell}/hr/kernel.*\(3, 8\).*\(8, 8\)"):
        learned.validate(broken)
    with pytest.raises(ValueError, match="lacks"):
        learned.validate({})
    with pytest.raises(ValueError, match="meta-parameters"):
        SPEC[name].build()


@pytest.mark.slow
@pytest.mark.parametrize("name", SPEC)
def test_edges(name):
    optimizer = make(name)
    odd = {"scalar": jnp.float32(0.0), "empty": jnp.zeros((0, 3)), "half": jnp.zeros(3, jnp.bfloat16)}
    updates, state = optimizer.update(odd, optimizer.init(odd), odd, activations=None, key=None, anything=1)
    assert [(u.shape, u.dtype) for u in jax.tree.leaves(updates)] == [(g.shape, g.dtype) for g in jax.tree.leaves(odd)]
    assert biggest(jax.tree.map(lambda u: u.astype(jnp.float32), updates)) == 0.0
    assert np.isfinite(biggest(state))
    gradients = tensors()
    gradients["actor"]["log_std"] = jnp.full(3, jnp.nan)
    updates, _ = optimizer.update(gradients, optimizer.init(gradients))
    assert np.isnan(updates["actor"]["log_std"]).all()
    assert np.isfinite(biggest(updates["actor"]["dense_00"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", SPEC)
def test_jit_scan_strict_promotion_and_batches_of_theta(name):
    gradients, traces = tensors(), []

    def lifetime(theta, learning_rate):
        traces.append(1)
        optimizer = make(name, theta, learning_rate=learning_rate)

        def step(state, _):
            updates, state = optimizer.update(gradients, state)
            return state, updates

        return jax.lax.scan(step, optimizer.init(gradients), length=3)[1]

    thetas = [SPEC[name].learned.init(jax.random.key(seed)) for seed in range(2)]
    rates = jnp.asarray([1e-3, 1e-2])
    with jax.numpy_dtype_promotion("strict"):
        together = jax.jit(jax.vmap(lifetime))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *thetas), rates)
        single = jax.jit(lifetime)
        alone = [single(theta, rate) for theta, rate in zip(thetas, rates, strict=True)]
    assert len(traces) == 2  # once for the batch, once for both single lifetimes
    for i, expected in enumerate(alone):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-9), together, expected)
