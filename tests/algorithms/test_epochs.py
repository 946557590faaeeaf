"""Learning from a batch: every sample once an epoch, gradients clipped network by network, extras in order."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import learning

from open_bench.algorithms.epochs import clip_gradients, learn

SAMPLES, EPOCHS, MINIBATCHES = 12, 3, 4
STEPS = EPOCHS * MINIBATCHES


def test_gradients_of_each_network_are_clipped_separately() -> None:
    gradients = {"actor": {"w": jnp.full(4, 10.0)}, "critic": {"w": jnp.full(4, 0.1)}}
    clipped = clip_gradients(gradients, 0.5)
    assert optax.tree.norm(clipped["actor"]) == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_array_equal(clipped["critic"]["w"], gradients["critic"]["w"])


def test_clipping_hides_no_nan() -> None:
    assert np.isnan(clip_gradients({"q": {"w": jnp.array([jnp.nan, 1.0])}}, 0.5)["q"]["w"]).any()


class Told(NamedTuple):
    step: Any
    gradients: Any  # (steps, samples): which samples a step saw
    epoch_fraction: Any
    new_rollout: Any


def test_every_sample_is_seen_once_an_epoch_and_a_rollout_is_new_once() -> None:
    """The loss is linear in one parameter a sample, so its gradient marks the samples of the minibatch."""

    def init(params: Any) -> Told:
        return Told(jnp.int32(0), jnp.zeros((STEPS, SAMPLES)), jnp.zeros(STEPS), jnp.zeros(STEPS, bool))

    def update(gradients: Any, state: Told, params: Any = None, *, epoch_fraction: Any, new_rollout: Any,
               acting_network: str, **extras: Any) -> Any:  # fmt: skip
        assert acting_network == "q"  # static, as it chooses what is traced
        put = lambda array, value: array.at[state.step].set(value)
        told = (gradients["q"]["w"], epoch_fraction, new_rollout)
        return gradients, Told(state.step + 1, *map(put, state[1:], told))

    optimizer = optax.GradientTransformationExtraArgs(init, update)
    params = {"q": {"w": jnp.zeros(SAMPLES)}}
    loss = lambda params, rows: (params["q"]["w"][rows].sum(), {"q": {}})
    learned = learn(
        loss, learning(optimizer), "q", params, init(params), jnp.arange(SAMPLES), epochs=EPOCHS,
        minibatches=MINIBATCHES, max_grad_norm=1e6, training_fraction=jnp.float32(0), key=jax.random.key(0),
    )  # fmt: skip
    told: Told = learned[1]
    seen = np.asarray(told.gradients).reshape(EPOCHS, MINIBATCHES, SAMPLES)
    assert (seen.sum(1) == 1).all()
    assert (seen.sum(2) == SAMPLES // MINIBATCHES).all()
    assert not np.array_equal(seen[0], seen[1])  # a fresh permutation
    np.testing.assert_allclose(told.epoch_fraction, np.repeat([0, 0.5, 1], MINIBATCHES))
    assert list(told.new_rollout) == [True] + [False] * (STEPS - 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_loss_that_is_no_number_is_noticed(bad: float) -> None:
    params = {"q": {"w": jnp.zeros(1)}}
    loss = lambda params, rows: (0.0 * params["q"]["w"].sum() + jnp.where((rows == 5).any(), bad, 1.0), {"q": {}})
    chosen = learning(optax.sgd(0.0))
    arguments = ("q", params, chosen.optimizer.init(params))
    options: Any = {
        "epochs": 1, "minibatches": 4, "max_grad_norm": 1.0, "training_fraction": jnp.float32(0),
        "key": jax.random.key(0),
    }  # fmt: skip
    assert not learn(loss, chosen, *arguments, jnp.arange(SAMPLES), **options)[3]
    assert learn(loss, chosen, *arguments, jnp.arange(4), **options)[3]
