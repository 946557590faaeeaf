"""VeLO and Celo: numbers of the original implementation, the transformation's contract, and reading checkpoints."""

import functools
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest
from flax import serialization
from flax.traverse_util import unflatten_dict

from open_bench.optimizers.learned import velo
from open_bench.optimizers.spec import TrainingLength

GOLDEN = Path(__file__).parents[2] / "golden"
CHECKPOINT = GOLDEN / "velo_small_checkpoint"


@pytest.fixture(scope="module")
def theta():
    return velo.read_checkpoint(CHECKPOINT)[0]


@pytest.fixture(scope="module")
def celo():
    """A small θ of Celo."""
    shapes = jax.eval_shape(lambda: velo.init_theta(jax.random.key(0), velo.CELO, hidden=8))
    draw = np.random.default_rng(0).normal
    return jax.tree.map(lambda leaf: 0.3 * draw(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "velo_small.npz") as file:
        return dict(file)


def subtree(arrays, prefix):
    flat = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    return unflatten_dict(flat, sep="/")


def run(optimizer, params, gradients, losses):
    """Apply one update per gradient; the updates, in order."""
    state, updates = optimizer.init(params), []
    step = jax.jit(lambda g, s, p, loss: optimizer.update(g, s, p, loss=loss))
    for gradient, loss in zip(gradients, losses, strict=True):
        update, state = step(gradient, state, params, loss)
        params = optax.apply_updates(params, update)
        updates.append(update)
    return updates, params, state


def check_against_the_original(optimizer, golden, steps):
    """Section by section: the updates from the original's parameters, and the parameters that follow."""
    params = subtree(golden, "params0/")
    state = optimizer.init(params)
    step = jax.jit(lambda g, s, p, loss: optimizer.update(g, s, p, loss=loss))
    for t in range(steps):
        wanted = subtree(golden, f"step{t}/params/")
        update, state = step(subtree(golden, f"step{t}/grads/"), state, params, golden[f"step{t}/loss"])
        moved = optax.apply_updates(params, update)
        difference = jax.tree.map(lambda new, old: new - old, wanted, params)
        largest = max(float(np.abs(d).max()) for d in jax.tree.leaves(difference))
        for u, d in zip(jax.tree.leaves(update), jax.tree.leaves(difference), strict=True):
            np.testing.assert_allclose(u, d, atol=1e-3 * largest, rtol=0)
        for new, w in zip(jax.tree.leaves(moved), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(new, w, rtol=1e-5, atol=1e-7)
        params = wanted


@pytest.mark.slow
def test_reproduces_the_original(theta, golden):
    check_against_the_original(velo.scale_by_velo(theta, int(golden["num_steps"])), golden, 8)


@pytest.mark.slow
@pytest.mark.skipif("OPEN_BENCH_REFERENCE_WEIGHTS" not in os.environ, reason="OPEN_BENCH_REFERENCE_WEIGHTS is not set")
def test_celo_reproduces_the_original():
    with np.load(GOLDEN / "celo.npz") as file:
        golden = dict(file)
    theta, _ = velo.read_celo(Path(os.environ["OPEN_BENCH_REFERENCE_WEIGHTS"]) / "celo_theta.state")
    assert sum(leaf.size for leaf in jax.tree.leaves(theta)) == 37_089
    length = TrainingLength(int(golden["num_steps"]), 1, 1)
    check_against_the_original(velo.celo(theta, length), golden, 12)


@pytest.mark.slow
def test_celo_is_a_velo_whose_lstm_writes_a_constant(theta, celo):
    """With controls of 1/100, and the step size of Celo's bias, VeLO takes Celo's steps."""
    size = {"w": jnp.zeros((8, 1)), "b": jnp.array([0.7])}
    celo = {**celo, "rnn_params": {**celo["rnn_params"], "step_size": size}}
    rnn = jax.tree.map(jnp.zeros_like, theta["rnn_params"])
    rnn["rnn_to_controls"] = {"w": jnp.zeros((8, 1)), "b": jnp.array([0.01])}
    rnn["step_size"] = {"w": jnp.zeros((8, 1)), "b": jnp.array([0.1 * np.exp(0.7)])}
    constant = {**theta, "rnn_params": rnn, "ff_mod_stack": celo["ff_mod_stack"]}
    velo.validate(constant)
    params, length = {name: jax.tree.map(jnp.asarray, PARAMS[name]) for name in "ab"}, TrainingLength(4, 1, 1)
    losses = [np.float32(loss) for loss in (1.0, 0.5, 0.2, 0.3)]
    wanted, _, _ = run(velo.velo(constant, length), params, [params] * 4, losses)
    updates, _, state = run(velo.celo(celo, length), params, [params] * 4, losses)
    assert state.hidden.shape == (1, 8)
    for update, other in zip(jax.tree.leaves(updates), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(update, other, rtol=1e-4, atol=1e-8)


@pytest.mark.slow
def test_reproduces_the_original_in_one_scan(theta, golden):
    params = subtree(golden, "params0/")
    optimizer = velo.velo(theta, TrainingLength(10, 1, 1))
    steps = [(subtree(golden, f"step{t}/grads/"), golden[f"step{t}/loss"]) for t in range(8)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *steps)

    def body(carry, step):
        update, state = optimizer.update(step[0], carry[1], carry[0], loss=step[1])
        return (optax.apply_updates(carry[0], update), state), None

    (params, _), _ = jax.lax.scan(body, (params, optimizer.init(params)), stacked)
    for new, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(subtree(golden, "step7/params/")), strict=True):
        np.testing.assert_allclose(new, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


PARAMS = {
    "a": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "empty": np.zeros((0, 4), np.float32)},
    "b": np.float32(0.5),
    "c": np.full((2, 3, 2, 2), 0.1, np.float32),
    "d": np.full((1, 1), 0.1, np.float32),
}


@pytest.mark.slow
def test_any_rank_and_dtype_under_strict_promotion(theta):
    params = jax.tree.map(jnp.asarray, PARAMS) | {"half": jnp.ones((2, 2), jnp.bfloat16)}
    with jax.numpy_dtype_promotion("strict"):
        optimizer = velo.velo(theta, TrainingLength(2, 2, 1))
        updates, _, state = run(optimizer, params, [params] * 3, [np.float32(1), 1, jnp.float32(-1)])
    for update in updates:
        assert jax.tree.map(lambda x: (x.shape, x.dtype), update) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(update))
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (state, optimizer.init(params))]
    assert kinds[0] == kinds[1]


def test_only_empty_tensors(theta):
    params = {"empty": jnp.zeros((0, 3))}
    optimizer = velo.velo(theta, TrainingLength(1, 1, 2))
    updates, _, _ = run(optimizer, params, [params], [1.0])
    assert updates[0]["empty"].shape == (0, 3)


@pytest.mark.slow
def test_one_trace_serves_all_steps(theta):
    optimizer, traces = velo.velo(theta, TrainingLength(5, 1, 1)), []

    @jax.jit
    def step(params, state, loss):
        traces.append(1)
        update, state = optimizer.update(params, state, params, loss=loss, unexpected=3)
        return optax.apply_updates(params, update), state

    params = jax.tree.map(jnp.asarray, PARAMS)
    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state, jnp.float32(1))
    assert len(traces) == 1


@pytest.mark.slow
def test_theta_and_seeds_may_carry_a_vmap_axis(theta):
    params = {"kernel": jnp.linspace(-1, 1, 6).reshape(3, 2), "bias": jnp.ones(2)}

    def one(theta, params):
        optimizer = velo.velo(theta, TrainingLength(4, 1, 1), longest=2)
        state = optimizer.init(params)
        for _ in range(2):
            update, state = optimizer.update(params, state, params, loss=jnp.float32(1))
        return update

    thetas = jax.tree.map(lambda x: jnp.stack([x, 1.5 * x]), theta)
    batched = jax.jit(jax.vmap(one, in_axes=(0, None)))(thetas, params)
    single_run = jax.jit(one)
    for i in range(2):
        single = single_run(jax.tree.map(lambda x, i=i: x[i], thetas), params)
        for b, s in zip(jax.tree.leaves(batched), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(b[i], s, rtol=2e-5, atol=1e-8)


def test_missing_loss_params_or_theta_are_said(theta):
    params = {"w": jnp.ones(2)}
    for longest in (100, 1):
        optimizer = velo.velo(theta, TrainingLength(2, 1, 1), longest=longest)
        with pytest.raises(TypeError, match="loss"):
            jax.eval_shape(lambda p, o=optimizer: o.update(p, o.init(p), p), params)
    optimizer = velo.velo(theta, TrainingLength(2, 1, 1))
    with pytest.raises(ValueError, match="params"):
        optimizer.update(params, optimizer.init(params), loss=1.0)
    with pytest.raises(ValueError, match="weights"):
        velo.velo({}, TrainingLength(1, 1, 1))


def test_loss_features_follow_the_definition():
    """A direct transcription in float64 over 30 losses, with an outlier and negative values."""
    steps = 1000
    decays = np.exp(-1 / np.logspace(1, 3, 10))
    np.testing.assert_allclose(velo.loss_decays(steps), decays, rtol=1e-6)
    mean, minimum, averages = np.zeros(10), np.full(10, 999999999999.0), velo.init_loss()
    losses = np.random.default_rng(0).normal(0.5, 0.3, 30)
    losses[20] = 1e4
    for k, loss in enumerate(losses):
        cap = loss if k == 0 else (mean / (1 - decays ** (k + 1))).max()
        capped = min(2 * abs(cap), loss)
        mean = mean * decays + capped * (1 - decays)
        minimum = np.minimum(minimum, mean / (1 - decays ** (k + 1)))
        hat = mean / (1 - decays ** (k + 1))
        wanted = np.clip((hat[:-1] - minimum[:-1]) / np.maximum(1e-8, hat[1:] - minimum[:-1]) - 1, -1, 1)
        averages = velo.update_loss(averages, jnp.float32(loss), velo.loss_decays(steps))
        seen = velo.loss_features(averages, velo.loss_decays(steps))
        if k < 2:
            assert not np.asarray(seen).any()
        else:
            np.testing.assert_allclose(seen, wanted, atol=2e-2)


@pytest.mark.parametrize(
    ("shape", "axes"), [((), None), ((5,), None), ((5, 4), (1, 0)), ((3, 3), (0, 1)), ((2, 9, 1, 4), (3, 1))]
)
def test_largest_dimensions_are_factored(shape, axes):
    assert velo.factored_axes(shape) == axes


@pytest.mark.slow
def test_long_lifetimes_average_over_groups(theta):
    """9 steps with at most 4 for VeLO: groups of 3, so VeLO takes 3 steps with the groups' means."""
    params = {"w": jnp.array([[0.5, -0.2], [0.1, 0.3]]), "b": jnp.float32(1)}
    rng = np.random.default_rng(1)
    gradients = [jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params) for _ in range(9)]
    losses = [jnp.float32(x) for x in rng.normal(size=9)]
    updates, final, _ = run(velo.velo(theta, TrainingLength(9, 1, 1), longest=4), params, gradients, losses)
    for i, update in enumerate(updates):
        assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(update)) == (i % 3 == 2)
    means = [jax.tree.map(lambda *g: sum(g) / 3, *gradients[i : i + 3]) for i in (0, 3, 6)]
    mean_losses = [sum(losses[i : i + 3]) / 3 for i in (0, 3, 6)]
    _, wanted, _ = run(velo.scale_by_velo(theta, 3), params, means, mean_losses)
    for a, b in zip(jax.tree.leaves(final), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_the_threshold_is_150000_steps(theta):
    params = {"w": jnp.ones(2)}
    assert isinstance(velo.velo(theta, TrainingLength(150_000, 1, 1)).init(params), velo.VeloState)
    assert isinstance(velo.velo(theta, TrainingLength(150_001, 1, 1)).init(params), velo.AveragingState)


@pytest.mark.parametrize(("spec", "size"), list(zip(velo.SPECS, (2_320_385, 37_089), strict=True)))
def test_entry_needs_weights_and_has_the_official_size(spec, size):
    assert spec.needs_theta
    with pytest.raises(ValueError, match="weights"):
        spec.build(length=TrainingLength(1, 1, 1))
    shapes = jax.eval_shape(spec.learned.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == size
    spec.learned.validate(shapes)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "inits"), [(velo.VELO, 8), (velo.CELO, 1)])
def test_random_theta_makes_finite_steps(variant, inits):
    theta = jax.jit(functools.partial(velo.init_theta, variant=variant, hidden=16, inits=inits))(jax.random.key(1))
    velo.validate(theta, variant)
    params = jax.tree.map(jnp.asarray, PARAMS)
    updates, _, _ = run(velo.scale_by_velo(theta, 3, variant), params, [params] * 3, [1.0, 0.5, 0.2])
    sizes = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(updates[-1]) if leaf.size]
    assert all(0 < size < 1e-2 for size in sizes)


@pytest.mark.parametrize(
    ("path", "shape", "message"),
    [
        (
            ("rnn_params", "rnn", "linear", "w"),
            (16, 31),
            r"rnn/linear/w has shape \(16, 31\) where \(16, 32",
        ),
        (("ff_mod_stack", "~", "w0__13"), None, "w0__13 .* is missing"),
        (("rnn_params", "rnn_to_controls", "w"), (8,), "rnn_to_controls"),
        (("rnn_params", "step_size", "w"), (0, 1), "none of them empty"),
        (("extra",), (2,), "no array extra"),
    ],
)
def test_validate_names_what_does_not_fit(theta, path, shape, message):
    broken = jax.tree.map(lambda x: x, theta)
    *levels, last = path
    inside = broken
    for level in levels:
        inside = inside[level]
    inside.pop(last, None)
    if shape is not None:
        inside[last] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=message):
        velo.validate(broken)


def test_layers_without_effect_may_be_absent(theta, celo):
    def without(theta, layer):
        return {**theta, "rnn_params": {k: v for k, v in theta["rnn_params"].items() if k != layer}}

    velo.validate(without(theta, "linear"))
    with pytest.raises(ValueError, match=r"rnn_to_controls.* is missing"):
        velo.validate(without(theta, "rnn_to_controls"))
    velo.validate(without(celo, "rnn_to_controls"), velo.CELO)


def test_celo_has_one_network(theta, celo):
    two = {**celo, "ff_mod_stack": jax.tree.map(lambda x: np.concatenate([x, x]), celo["ff_mod_stack"])}
    with pytest.raises(ValueError, match=r"Celo's array .*b0 has shape \(2, 4\) where \(1, 4\)"):
        velo.validate(two, velo.CELO)
    with pytest.raises(ValueError, match=r"Celo's array .*linear/w has shape \(30, 8\) where \(18, 8\)"):
        velo.validate({**theta, "ff_mod_stack": celo["ff_mod_stack"]}, velo.CELO)


def test_read_checkpoint(theta, tmp_path):
    assert velo.read_checkpoint(CHECKPOINT)[1] == {"gen_id": "gen", "step": 3}
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(theta))
    shutil.copy(CHECKPOINT / "params", tmp_path)  # config.gin is optional
    again = velo.read_checkpoint(tmp_path)[0]
    assert jax.tree.all(jax.tree.map(np.array_equal, theta, again))
    (tmp_path / "config.gin").write_text("HyperV2.use_bugged_loss_features = True\n")
    with pytest.raises(ValueError, match="use_bugged_loss_features"):
        velo.read_checkpoint(tmp_path)


def hostile_array(dtype: bytes, shape=(1,), data=b"\0" * 8) -> bytes:
    array = msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))
    return msgpack.packb({"params": {"a": array}, "gen_id": "", "step": 0})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95garbage",
        (CHECKPOINT / "params").read_bytes()[:1000],
        (CHECKPOINT / "params").read_bytes() + b"\0",
        hostile_array(b"O"),
        hostile_array(b"object"),
        hostile_array(b"V8"),
        hostile_array(b"int64"),
        hostile_array(b"complex64"),
        hostile_array(b"float32", shape=(10**12,)),
        hostile_array(b"float32", shape=(-1, 10**6)),
        b"\x81\xa6params" * 2000,
        b"\xdd\xff\xff\xff\xff",
        msgpack.packb({"params": {"__msgpack_chunked_array__": True, "shape": {}, "chunks": {}}}),
        msgpack.packb({"params": {"a": 1}}),
        msgpack.packb({"params": {}}),
        msgpack.packb({"params": {1: {2: 3}}}),
        msgpack.packb([1, 2, 3]),
        serialization.msgpack_serialize({"params": {"a": np.zeros(3, np.float32)}}),
    ],
    ids=range(19),
)
def test_hostile_or_damaged_checkpoints_are_refused(tmp_path, data):
    (tmp_path / "params").write_bytes(data)
    for read, path in ((velo.read_checkpoint, tmp_path), (velo.read_celo, tmp_path / "params")):
        with pytest.raises(ValueError, match="params"):
            read(path)


def test_read_celo(tmp_path, celo):
    layers = {name: layer for name, layer in celo["rnn_params"].items() if name != "rnn"}
    flat = {**celo, "rnn_params": {**layers, "rnn/linear": celo["rnn_params"]["rnn"]["linear"]}}
    (tmp_path / "theta.state").write_bytes(serialization.msgpack_serialize(flat))
    found, facts = velo.read_celo(tmp_path / "theta.state")
    assert facts == {}
    assert jax.tree.all(jax.tree.map(np.array_equal, found, celo))


def test_missing_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="params cannot be read: No such file"):
        velo.read_checkpoint(tmp_path / "absent")
