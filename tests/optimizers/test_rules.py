"""Hand-designed rules of our own making against plain versions, and what they choose."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from open_bench.optimizers import TrainingLength, anneal
from open_bench.optimizers.conformance import actor_critic, example_gradients, q_agent
from open_bench.optimizers.resolve import resolve
from open_bench.optimizers.rules import is_hidden_kernel

LENGTH = TrainingLength(updates=3, epochs=2, minibatches=2)
STEPS = 12  # of the lifetime
SMALL = {"actor": {"layer_00_dense": {"kernel": jnp.asarray([[0.3, -0.2]]), "bias": jnp.asarray([0.1, 0.4])}}}


def wavy(params: Any, index: Any) -> Any:
    """Gradients that depend on step, leaf and parameter."""
    return jax.tree.map(lambda g, p: 0.1 * (g + 0.1 * p), example_gradients(params, index), params)


def lifetime(optimizer: Any, params: Any, length: TrainingLength = LENGTH, gradients_at: Any = wavy) -> Any:
    """Parameters after every step of a lifetime, and the gradients there."""
    per_update = length.epochs * length.minibatches

    def step(carry: Any, index: Any) -> Any:
        params, state = carry
        gradients = gradients_at(params, index)
        fraction = (index // per_update) / max(1, length.updates - 1)
        updates, state = optimizer.update(
            gradients, state, params, training_fraction=fraction, new_rollout=index % per_update == 0
        )
        params = optax.apply_updates(params, updates)
        return (params, state), (params, gradients)

    steps = jnp.arange(length.updates * per_update)
    return jax.jit(lambda: jax.lax.scan(step, (params, optimizer.init(params)), steps)[1])()


def build(name: str, length: TrainingLength = LENGTH, **settings: Any) -> Any:
    return resolve(name).spec.build(length=length, **settings)


def close(found: Any, expected: Any, rtol: float = 2e-5) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7)


# --- Adam's relatives -------------------------------------------------------------------------------------------------


def test_adam_rel_is_the_published_formula() -> None:
    """In plain NumPy, annealed; t' begins at 1 with each of three rollouts of four steps, the moments do not."""
    rate, b1, b2, eps = 1e-2, 0.9, 0.99, 1e-5
    params, gradients = lifetime(build("adam-rel", learning_rate=rate, b1=b1, b2=b2, eps=eps), SMALL)
    for found, gradient, start in zip(*map(jax.tree.leaves, (params, gradients, SMALL)), strict=True):
        m, v, x = (np.zeros(start.shape), np.zeros(start.shape), np.asarray(start, np.float64))
        for step in range(STEPS):
            t, g = step % 4 + 1, np.asarray(gradient[step], np.float64)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            update = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
            x = x - rate * (1 - (step // 4) / 3) * update
            np.testing.assert_allclose(found[step], x, rtol=2e-5, atol=1e-6)


def test_adam_rel_is_adam_in_a_lifetime_of_one_update_only() -> None:
    one, three = TrainingLength(1, 4, 3), LENGTH
    for length, same in ((one, True), (three, False)):
        relative, adam = (lifetime(build(name, length), SMALL, length)[0] for name in ("adam-rel", "adam"))
        pairs = list(zip(jax.tree.leaves(relative), jax.tree.leaves(adam), strict=True))
        assert all((a == b).all() for a, b in pairs) == same


def test_adam_with_equal_betas_is_adam() -> None:
    found = lifetime(build("adam-equal-betas", beta=0.95), SMALL)
    close(found, lifetime(build("adam", b1=0.95, b2=0.95), SMALL))


def test_rmsprop_is_no_sgd_on_clipped_gradients() -> None:
    """A gradient of 0.003 and one of 0.0003 move a parameter alike; with eps = 1e-5 inside the root they would not."""

    def moved(**settings: Any) -> float:
        """How much further the larger gradient moves its parameter, in steps after the first moments have settled."""
        optimizer = build("rmsprop", anneal_learning_rate=False, **settings)
        gradients = {"w": jnp.asarray([3e-3, 3e-4])}
        state = optimizer.init(gradients)
        for _ in range(50):
            updates, state = optimizer.update(gradients, state, gradients)
        return float(updates["w"][0] / updates["w"][1])

    assert moved(decay=0.9) == pytest.approx(1, rel=0.1)
    assert moved(decay=0.9, eps=1e-5) > 7


def test_ademamix_warms_up_over_the_lifetime() -> None:
    """In plain NumPy: s = step/steps; α and the half-life of the slow momentum rise with s."""
    rate, b1, b2, b3, alpha, eps = 1e-2, 0.9, 0.99, 0.999, 5.0, 1e-5
    settings = {"learning_rate": rate, "b1": b1, "b2": b2, "b3": b3, "alpha": alpha, "eps": eps}
    params, gradients = lifetime(build("ademamix", anneal_learning_rate=False, **settings), SMALL)
    found, gradient = params["actor"]["layer_00_dense"]["bias"], gradients["actor"]["layer_00_dense"]["bias"]
    fast, slow, v, x = np.zeros(2), np.zeros(2), np.zeros(2), np.asarray(SMALL["actor"]["layer_00_dense"]["bias"])
    for step in range(STEPS):
        g, s = np.asarray(gradient[step], np.float64), step / STEPS
        halves = 1 / ((1 - s) / np.log(b1) + s / np.log(b3))  # logarithm of the decay whose half-life is in between
        decay = np.exp(halves)
        fast, slow, v = b1 * fast + (1 - b1) * g, decay * slow + (1 - decay) * g, b2 * v + (1 - b2) * g**2
        step_size = rate / (np.sqrt(v / (1 - b2 ** (step + 1))) + eps)
        x = x - step_size * (fast / (1 - b1 ** (step + 1)) + alpha * s * slow)
        np.testing.assert_allclose(found[step], x, rtol=5e-5, atol=1e-6)


# --- Muon -------------------------------------------------------------------------------------------------------------


def test_muon_takes_the_hidden_kernels() -> None:
    def chosen(params: Any) -> list[str]:
        flat = jax.tree_util.tree_flatten_with_path(is_hidden_kernel(params))[0]
        return [jax.tree_util.keystr(path, simple=True, separator="/") for path, hidden in flat if hidden]

    assert chosen(actor_critic(jax.random.key(0))) == ["actor/layer_01_dense/kernel", "critic/layer_01_dense/kernel"]
    assert chosen(q_agent(jax.random.key(0))) == ["q/layer_01_dense/kernel"]
    assert chosen(SMALL) == []


@pytest.mark.slow
def test_muon_orthogonalizes_hidden_kernels_and_is_adam_elsewhere() -> None:
    params = actor_critic(jax.random.key(0))
    settings = {"learning_rate": 1e-2, "b1": 0.95, "b2": 0.99, "eps": 1e-6}
    after, by_adam = (
        jax.tree.map(lambda x: x[0], lifetime(build(name, **settings), params)[0]) for name in ("muon", "adam")
    )
    hidden = is_hidden_kernel(params)
    for choice, found, adam, start in zip(*map(jax.tree.leaves, (hidden, after, by_adam, params)), strict=True):
        if not choice:
            np.testing.assert_array_equal(found, adam)
            continue
        # All singular values of an update are about √4·muon_rms·learning_rate, which Newton-Schulz meets within 1/2.
        values = np.linalg.svd(np.asarray(found - start), compute_uv=False) / (2 * 0.2 * 1e-2)
        significant = np.linalg.svd(np.asarray(adam - start), compute_uv=False) > 1e-5
        assert ((values[significant] > 0.5) & (values[significant] < 1.5)).any()
        assert (values < 1.5).all()


def test_muon_is_adam_where_nothing_is_hidden() -> None:
    close(lifetime(build("muon"), SMALL), lifetime(build("adam"), SMALL))


# --- methods with learning rates of their own -------------------------------------------------------------------------


def test_prodigy_is_optax_with_the_schedule_inside() -> None:
    """Annealed, it is optax's with a rate that falls from 1 by one step an update; scaled updates are another rule."""
    length, params = TrainingLength(10, 4, 4), {"actor": {"w": jnp.asarray([10.0, -5.0])}}
    settings = {"betas": (0.9, 0.99), "eps": 1e-5, "estim_lr_coef": 2.0}
    inside = optax.contrib.prodigy(lambda count: 1.0 - (count // 16) / 10, **settings)
    outside = anneal(optax.contrib.prodigy(1.0, **settings), length)
    found, expected, other = (
        lifetime(optimizer, params, length, gradients_at=lambda params, index: params)[0]["actor"]["w"]
        for optimizer in (build("prodigy", length, b2=0.99, d_coef=2.0), inside, outside)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, other, rtol=1e-2, atol=1e-2)


def test_schedule_free_is_optax_with_a_warmup() -> None:
    """A quarter of the lifetime is three steps."""
    settings = {"learning_rate": 1e-2, "b1": 0.95, "b2": 0.99, "eps": 1e-5, "weight_decay": 1e-2}
    for warmup, steps in ((0.25, 3), (0.0, None)):
        expected = optax.contrib.schedule_free_adamw(warmup_steps=steps, **settings)
        close(lifetime(build("schedule-free-adamw", warmup=warmup, **settings), SMALL), lifetime(expected, SMALL))


def test_annealed_schedule_free_steps_of_z_fall() -> None:
    """With b1 = 1 − tiny and z far from the average: the last z step is a third of an unannealed one."""
    params = {"w": jnp.asarray(1.0)}

    def last_step(annealed: bool) -> float:
        optimizer = build("schedule-free-adamw", warmup=0.0, weight_decay=0.0, anneal_learning_rate=annealed)
        state = optimizer.init(params)
        for fraction in (0.0, 1.0):
            before = state
            _, state = optimizer.update({"w": jnp.asarray(1.0)}, state, params, training_fraction=jnp.float32(fraction))
        return float(state.z["w"] - before.z["w"])

    assert last_step(True) == pytest.approx(last_step(False) / 3, rel=1e-4)
