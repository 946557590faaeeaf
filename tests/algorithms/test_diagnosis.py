"""Diagnostics against plain numpy on tiny agents; training that is the same bit for bit with and without them."""

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from probes import Probe
from tiny import TINY, TINY_PQN, UPDATES, algorithm_of, equal, experiments, learning, lifetime_of, run_jitted

from open_bench.algorithms import ppo, pqn
from open_bench.algorithms.base import AgentState
from open_bench.algorithms.diagnosis import DORMANT, dormant_fraction, draw_samples, explained_variance, of_update
from open_bench.algorithms.networks import Categorical, DiagonalGaussian
from open_bench.algorithms.ppo import PPO
from open_bench.training.lifetime import make_lifetime
from open_bench.training.mesh import compile_program
from open_bench.training.record import MAX_MEASURED, curve_ends

PROBE = Probe(length=3, reward=lambda step, sign, action: step + 0.5 * action)
HIDDEN = {"hidden": (8, 6)}
KEY = jax.random.key(3)


# --- each against numpy -----------------------------------------------------------------------------------------------


def layers(params: Any, observation: np.ndarray, activation: Any) -> list[np.ndarray]:
    """What every layer of a network gives, the head's last; without scale and bias of norms, which are 1 and 0."""
    found, x = [], np.asarray(observation, np.float64)
    names = [name for name in sorted(params) if name.endswith("dense")]
    for name in names:
        x = x @ np.asarray(params[name]["kernel"], np.float64) + np.asarray(params[name]["bias"], np.float64)
        if name != names[-1]:
            if name.replace("dense", "norm") in params:
                x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            x = activation(x)
        found.append(x)
    return found


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def plain_dormant(hidden: list[np.ndarray]) -> float:
    units = [np.abs(x).mean(0) for x in hidden]
    dormant = [mean / layer.mean() <= 0.025 for layer in units for mean in layer]
    return sum(dormant) / len(dormant)


def plain_movement(gradient: Any, before: Any, after: Any) -> dict[str, float]:
    g, change = flat(gradient), flat(after) - flat(before)
    norm, moved = np.sqrt((g**2).sum()), np.sqrt((change**2).sum())
    return {
        "gradient_norm": norm,
        "update_ratio": moved / np.sqrt((flat(before) ** 2).sum()),
        "update_cosine": (-g * change).sum() / (norm * moved),
    }


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def states(agent: Any) -> tuple[AgentState, AgentState]:
    """An agent before and after an update that moved it at random; a unit of its first hidden layer is silent."""
    before = agent.init(KEY, KEY, learning())
    keys = iter(jax.random.split(KEY, 20))
    move = lambda x: x + 0.5 * jax.random.normal(next(keys), x.shape)
    after = {
        network: {name: jax.tree.map(move, layer) if "norm" not in name else layer for name, layer in layers.items()}
        for network, layers in before.params.items()
    }
    first = after[agent.acting_network]["layer_00_dense"]
    first |= {"kernel": first["kernel"].at[:, 0].set(0.0), "bias": first["bias"].at[0].set(-9.0 * ("q" in after))}
    return before, before._replace(params=after)


@pytest.mark.slow
def test_ppos_diagnostics_equal_plain_numpy() -> None:
    agent, generator = algorithm_of(PROBE, TINY.model_copy(update=HIDDEN)), np.random.default_rng(0)
    assert isinstance(agent, PPO)
    before, after = states(agent)
    draw = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)
    batch = ppo.Batch(draw(64, 4), jnp.asarray(generator.integers(2, size=64)), -abs(draw(64)), *draw(3, 64))
    found = agent.diagnose(batch, KEY, before, after, learning())
    rows = draw_samples(batch, 32, KEY)
    gradients, _ = jax.grad(agent.loss, has_aux=True)(before.params, rows, learning().policy_loss)
    *_, old = layers(before.params["actor"], rows.observation, np.tanh)
    *hidden, new = layers(after.params["actor"], rows.observation, np.tanh)
    old, new = log_softmax(old), log_softmax(new)
    target, value = (np.asarray(x, np.float64) for x in (rows.target, rows.value))
    expected = {
        **plain_movement(gradients["actor"], before.params["actor"], after.params["actor"]),
        "critic_gradient_norm": np.linalg.norm(flat(gradients["critic"])),
        "policy_kl": (np.exp(old) * (old - new)).sum(-1).mean(),
        "entropy": -(np.exp(new) * new).sum(-1).mean(),
        "dormant_fraction": plain_dormant(hidden),
        "explained_variance": 1 - np.var(target - value) / np.var(target),
    }
    assert set(found) == set(expected) == set(PPO.diagnostics)
    assert expected["dormant_fraction"] >= 1 / 14
    assert {name: float(x) for name, x in found.items()} == pytest.approx(expected, rel=2e-4)


@pytest.mark.slow
def test_pqns_diagnostics_equal_plain_numpy() -> None:
    agent, generator = algorithm_of(PROBE, TINY_PQN.model_copy(update=HIDDEN)), np.random.default_rng(0)
    assert isinstance(agent, pqn.PQN)
    before, after = states(agent)
    draw = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)
    batch = pqn.Batch(draw(64, 4), jnp.asarray(generator.integers(2, size=64)), draw(64))
    found = agent.diagnose(batch, KEY, before, after, learning())
    rows = draw_samples(batch, 32, KEY)
    gradients, _ = jax.grad(agent.loss, has_aux=True)(before.params, rows)
    relu = lambda x: np.maximum(x, 0.0)
    *_, old = layers(before.params["q"], rows.observation, relu)
    *hidden, new = layers(after.params["q"], rows.observation, relu)
    target = np.asarray(rows.target, np.float64)
    expected = {
        **plain_movement(gradients["q"], before.params["q"], after.params["q"]),
        "greedy_change": np.mean(old.argmax(-1) != new.argmax(-1)),
        "dormant_fraction": plain_dormant(hidden),
        "explained_variance": 1 - np.var(target - old[np.arange(32), rows.action]) / np.var(target),
    }
    assert set(found) == set(expected) == set(pqn.PQN.diagnostics)
    assert expected["dormant_fraction"] >= 1 / 14
    assert 0 < expected["greedy_change"] < 1
    assert {name: float(x) for name, x in found.items()} == pytest.approx(expected, rel=2e-4)


def test_a_unit_is_dormant_up_to_the_threshold_and_a_silent_layer_wholly() -> None:
    shares = np.float32([DORMANT * 0.99, DORMANT * 1.01, 0.0, 1.9])  # of a mean of about 0.49
    first = jnp.asarray(shares * shares.mean())
    of = lambda *units: float(dormant_fraction({f"layer_{i:02d}_dense": x for i, x in enumerate(units)}))
    head, silent = jnp.zeros(5), jnp.zeros(4)
    scale = jnp.asarray(shares / shares.mean())
    assert of(first, head) == of(scale, head) == np.mean(scale / scale.mean() <= DORMANT)
    assert of(silent, head) == 1.0
    assert of(jnp.ones(4), silent, head) == 0.5
    assert np.isnan(of(jnp.full(4, jnp.nan), head))


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float32, (2, 5, 3), elements=st.floats(-3, 3, width=32)))
def test_kl_equals_plain_numpy_and_is_0_of_itself(logits: np.ndarray) -> None:
    one, two = (Categorical(jnp.asarray(each)) for each in logits)
    p, q = (log_softmax(each.astype(np.float64)) for each in logits)
    np.testing.assert_allclose(one.kl(two), (np.exp(p) * (p - q)).sum(-1), rtol=1e-4, atol=1e-5)
    assert not one.kl(one).any()


def test_kl_of_normals_equals_an_estimate_from_samples() -> None:
    one = DiagonalGaussian(jnp.float32([[0.3, -0.5]]), jnp.float32([0.1, -0.4]))
    two = DiagonalGaussian(jnp.float32([[-0.2, 0.1]]), jnp.float32([-0.3, 0.2]))
    actions = np.random.default_rng(0).normal(size=(400_000, 2)) * np.exp(one.log_std) + one.mean[0]
    estimate = (one.log_prob(jnp.asarray(actions)) - two.log_prob(jnp.asarray(actions))).mean()
    assert float(one.kl(two)[0]) == pytest.approx(float(estimate), rel=0.01)
    assert float(one.kl(one)[0]) == 0.0


def test_what_cannot_be_known_is_nan() -> None:
    params = {"layer_00_dense": {"kernel": jnp.ones((2, 2))}}
    assert np.isnan(of_update(params, params, params)["update_cosine"])  # nothing moved
    assert of_update(params, params, params)["update_ratio"] == 0
    assert not np.isfinite(explained_variance(jnp.ones(4), jnp.arange(4.0)))  # targets that do not vary


# --- in a lifetime ----------------------------------------------------------------------------------------------------


def diagnosed(config: Any, updates: int = UPDATES) -> Any:
    chosen = learning()
    return make_lifetime(algorithm_of(PROBE, config), updates, lambda inputs: chosen, diagnose=True)


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, TINY_PQN], ids=["ppo", "pqn"])
def test_the_last_update_of_each_point_is_measured(config: Any) -> None:
    """120 updates are 50 points; what is kept is the movement of just those updates."""
    lifetime = diagnosed(config, updates=120)
    network = lifetime.diagnostics and {PPO.diagnostics: "actor"}.get(lifetime.diagnostics, "q")
    run, state = jax.jit(lifetime.run), jax.jit(lifetime.init)(jax.random.key(0), {})
    params = [flat(state.agent.params[network])]
    for _ in range(120):
        state, _ = run(state, {}, 1)
        params.append(flat(state.agent.params[network]))
    ends = curve_ends(120, MAX_MEASURED)
    expected = [np.linalg.norm(params[end] - params[end - 1]) / np.linalg.norm(params[end - 1]) for end in ends]
    np.testing.assert_allclose(state.record.diagnosis["update_ratio"], expected, rtol=1e-4)
    assert len(ends) == MAX_MEASURED
    assert set(state.record.diagnosis) == set(lifetime.diagnostics)
    unknown = {name for name, values in state.record.diagnosis.items() if not np.isfinite(values).all()}
    assert unknown <= {"explained_variance"}  # four samples may have one target
    whole = jax.device_get(jax.jit(lifetime.run)(jax.jit(lifetime.init)(jax.random.key(0), {}), {}, 120)[0])
    equal(jax.tree.leaves(whole.record), jax.tree.leaves(jax.device_get(state.record)))


class Mute(PPO):
    """PPO by somebody who knows nothing of diagnosis."""

    name, diagnostics = "mute", ()

    def update(self, rollout_key: Any, learning_key: Any, state: Any, training_fraction: Any, learning: Any) -> Any:
        return super().update(rollout_key, learning_key, state, training_fraction, learning)


@pytest.mark.slow
def test_without_diagnosis_the_program_is_that_of_an_algorithm_that_has_none() -> None:
    chosen = learning()

    def program(algorithm: type[PPO], diagnose: bool) -> str:
        lifetime = make_lifetime(algorithm(TINY, PROBE), UPDATES, lambda inputs: chosen, diagnose)
        state = jax.eval_shape(lifetime.init, jax.random.key(0), {})
        return jax.jit(lifetime.run).lower(state, {}, 1).as_text()

    assert program(PPO, False) == program(Mute, False) == program(Mute, True)
    assert program(PPO, True) != program(PPO, False)


@pytest.mark.slow
def test_a_lifetime_without_diagnosis_carries_nothing_of_it() -> None:
    state = run_jitted(lifetime_of(PROBE))
    assert state.record.diagnosis == {}


@pytest.mark.parametrize(
    ("optimizer", "algorithm", "vmap_size"),
    [
        ("adam", "ppo", 1),
        ("adam", "pqn", 1),
        pytest.param("adam", "ppo", 2, marks=pytest.mark.slow),
        pytest.param("open", "ppo", 1, marks=pytest.mark.slow),
    ],
)
def test_diagnosis_changes_no_number_of_the_training(optimizer: str, algorithm: str, vmap_size: int) -> None:
    changes = {"hidden": [64, 64], "num_envs": 8, "num_minibatches": 4, "num_steps": 16}
    (chosen,) = experiments(optimizer, steps=8 * 16 * 12, algorithm=algorithm, vmap_size=vmap_size, changes=changes)
    saved = []
    for diagnose in (False, True):
        lifetime = chosen.make_lifetime(diagnose)
        program = compile_program(lifetime, chosen.inputs, jax.devices()[:1], vmap_size, vmap_size)
        state = program.init(chosen.keys(list(range(vmap_size))), chosen.inputs)
        state, _ = program.run(state, chosen.inputs, lifetime.num_updates)
        assert bool(state.record.diagnosis) == diagnose
        saved.append(program.save(state._replace(record=state.record._replace(diagnosis={}))))
    equal(*saved)
