"""The bridge to learned_optimization, against a stand-in with its interface and, where installed, the library."""

import collections
import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from open_bench.errors import UserError
from open_bench.optimizers import learned_optimization as bridge
from open_bench.optimizers.spec import TrainingLength

State = collections.namedtuple("State", ["params", "momentum", "iteration", "num_steps"])
PARAMS = {"layer": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
GRADIENTS = jax.tree.map(jnp.ones_like, PARAMS)


class Momentum:
    """Heavy-ball SGD whose step also depends on loss, key and num_steps, so that passing them on is visible."""

    def __init__(self, learning_rate=0.1, decay=0.9):
        self.learning_rate, self.decay = learning_rate, decay

    def init(self, params, model_state=None, num_steps=None, key=None):
        assert key.shape == (2,)
        return State(params, jax.tree.map(jnp.zeros_like, params), 0, float(num_steps))

    def get_params(self, state):
        return state.params

    def set_params(self, state, params):
        return state._replace(params=params)

    @functools.partial(jax.jit, static_argnums=(0,))
    def update(self, opt_state, grad, loss=None, model_state=None, is_valid=False, key=None):
        scale = self.learning_rate * (1.0 if loss is None else loss) / opt_state.num_steps
        if key is not None:
            assert key.shape == (2,)
            scale = scale + 0.0 * jax.random.normal(key)
        momentum = jax.tree.map(lambda m, g: self.decay * m + g, opt_state.momentum, grad)
        params = jax.tree.map(lambda p, m: p - scale * m, opt_state.params, momentum)
        return State(params, momentum, opt_state.iteration + 1, opt_state.num_steps)


class LearnedRate:
    """A learned optimizer: θ scales the gradient; its names hold "/" as haiku's do."""

    def __init__(self, initial=0.5):
        self.initial = initial

    def init(self, key):
        return {
            "mlp/~/linear": {"w": jnp.full((2,), self.initial), "b": jax.random.normal(key, ())},
            "extra": [jnp.zeros(3)],
        }

    def opt_fn(self, theta, is_training=False):
        return Momentum(learning_rate=theta["mlp/~/linear"]["w"].sum() + theta["extra"][0].sum(), decay=0.0)


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """A stand-in package learned_optimization with one module."""
    package, module = types.ModuleType("learned_optimization"), types.ModuleType("learned_optimization.stand_in")
    package.__path__ = []
    module.Momentum, module.instance, module.LearnedRate = Momentum, Momentum(0.2), LearnedRate
    module.learned_instance = LearnedRate(0.25)
    module.make = lambda learning_rate: Momentum(learning_rate)
    module.make_learned = lambda: LearnedRate()
    module.number, module.text = 3, lambda: "text"

    def fails():
        raise RuntimeError("nothing works")

    module.fails = fails
    monkeypatch.setitem(sys.modules, "learned_optimization", package)
    monkeypatch.setitem(sys.modules, "learned_optimization.stand_in", module)


def one_update(optimizer, **extras):
    state = optimizer.init(PARAMS)
    return jax.jit(lambda g, s, p: optimizer.update(g, s, p, **extras))(GRADIENTS, state, PARAMS)


@pytest.mark.parametrize(
    ("attribute", "settings", "rate"),
    [
        ("Momentum", {}, 0.1),
        ("Momentum", {"learning_rate": 0.3, "decay": 0.0}, 0.3),
        ("instance", {}, 0.2),
        ("make", {"learning_rate": 0.4}, 0.4),
    ],
)
def test_optimizers(attribute, settings, rate):
    spec = bridge.resolve_bridge(f"learned_optimization.stand_in:{attribute}")
    assert not spec.needs_theta
    updates, _ = one_update(
        spec.build(length=TrainingLength(2, 5, 1), **settings), loss=jnp.float32(3), key=jax.random.key(1)
    )
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(leaf, -rate * 3 / 10, rtol=1e-5)


def test_arguments_become_hyperparameters():
    spec = bridge.resolve_bridge("learned_optimization.stand_in:Momentum")
    assert {k: v.default for k, v in spec.hyperparameters.items()} == {"learning_rate": 0.1, "decay": 0.9}
    required = bridge.resolve_bridge("learned_optimization.stand_in:make")
    assert "required" in required.hyperparameters["learning_rate"].description
    with pytest.raises(bridge.BridgeError, match="learning_rate"):
        required.build(length=TrainingLength(1, 1, 1))


def test_scan_with_state_and_parameters_of_the_caller():
    """Parameters moved from outside win over the copy in the state; shapes and dtypes of the state stay."""
    optimizer = bridge.resolve_bridge("learned_optimization.stand_in:Momentum").build(length=TrainingLength(10, 1, 1))

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(GRADIENTS, state, params, loss=jnp.float32(1))
        return (optax.apply_updates(jax.tree.map(lambda p: 0.5 * p, params), updates), state), None

    (params, state), _ = jax.lax.scan(body, (PARAMS, optimizer.init(PARAMS)), None, length=4)
    wanted, momentum = 1.0, 0.0
    for _ in range(4):
        momentum = 0.9 * momentum + 1
        wanted = 0.5 * wanted - 0.01 * momentum
    np.testing.assert_allclose(params["layer"]["kernel"], wanted, rtol=1e-4)
    assert int(state.inner.iteration) == 4


def test_params_are_required():
    optimizer = bridge.to_optax(Momentum(), 3)
    with pytest.raises(ValueError, match="parameters"):
        optimizer.update(GRADIENTS, optimizer.init(PARAMS))


@pytest.mark.parametrize("attribute", ["LearnedRate", "learned_instance", "make_learned"])
def test_learned_optimizers(attribute):
    spec = bridge.resolve_bridge(f"learned_optimization.stand_in:{attribute}")
    assert spec.needs_theta
    theta = spec.init_theta(jax.random.key(0))
    assert set(theta["optimizer"]) == {"extra.0", "mlp.~.linear.b", "mlp.~.linear.w"}
    spec.learned.validate(theta["optimizer"])
    rate = float(theta["optimizer"]["mlp.~.linear.w"].sum())
    updates, _ = one_update(spec.build(theta, TrainingLength(5, 2, 1)), loss=jnp.float32(2))
    np.testing.assert_allclose(updates["layer"]["bias"], -rate * 2 / 10, rtol=1e-5)
    with pytest.raises(ValueError, match="needs weights"):
        spec.build(length=TrainingLength(1, 1, 1))
    with pytest.raises(ValueError, match=r"extra\.0: expected \(3,\), found none"):
        spec.learned.validate({k: v for k, v in theta["optimizer"].items() if k != "extra.0"})


def test_theta_may_carry_a_vmap_axis():
    spec = bridge.resolve_bridge("learned_optimization.stand_in:LearnedRate")
    thetas = jax.vmap(spec.init_theta)(jax.random.split(jax.random.key(0), 2))
    thetas["optimizer"]["mlp.~.linear.w"] *= jnp.array([[1.0], [2.0]])

    def one(theta):
        optimizer = spec.build(theta, TrainingLength(10, 1, 1))
        return optimizer.update(GRADIENTS, optimizer.init(PARAMS), PARAMS, loss=jnp.float32(1))[0]

    updates = jax.vmap(one)(thetas)
    np.testing.assert_allclose(updates["layer"]["bias"][:, 0], [-0.1, -0.2], rtol=1e-5)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("learned_optimization.stand_in", "MODULE:ATTRIBUTE"),
        ("another.stand_in:Momentum", "MODULE:ATTRIBUTE"),
        ("learned_optimization_other:x", "MODULE:ATTRIBUTE"),
        ("learned_optimization.stand_in:Absent", "no attribute"),
        ("learned_optimization.absent:Momentum", "module's name"),
        ("learned_optimization.stand_in:number", "is int"),
        ("learned_optimization.stand_in:text", "returns str"),
        ("learned_optimization.stand_in:fails", "nothing works"),
    ],
)
def test_wrong_names(path, message):
    with pytest.raises(bridge.BridgeError, match=message) as error:
        bridge.resolve_bridge(path)
    assert isinstance(error.value, UserError)


def test_absent_library_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "learned_optimization", None)
    monkeypatch.delitem(sys.modules, "learned_optimization.stand_in")
    with pytest.raises(ImportError, match=r"--no-deps.*dm-haiku gin-config tensorflow-cpu"):
        bridge.resolve_bridge("learned_optimization.stand_in:Momentum")


def test_the_library_itself(monkeypatch):
    for name in ("learned_optimization", "learned_optimization.stand_in"):
        monkeypatch.delitem(sys.modules, name)
    pytest.importorskip("learned_optimization.optimizers.base", exc_type=Exception)
    spec = bridge.resolve_bridge("learned_optimization.optimizers.base:SGD")
    updates, _ = one_update(spec.build(length=TrainingLength(2, 5, 1)), loss=jnp.float32(3))
    np.testing.assert_allclose(updates["layer"]["bias"], -0.01, rtol=1e-5)
