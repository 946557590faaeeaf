"""A lifetime: where its keys go, what it carries, and what an optimizer is told and asked."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import Probe
from tiny import TINY, TINY_PQN, UPDATES, algorithm_of, equal, learning, lifetime_of, run_jitted

from open_bench.algorithms.base import Algorithm, AlgorithmConfig
from open_bench.algorithms.ppo import PPO
from open_bench.algorithms.pqn import PQN
from open_bench.environments.base import Environment
from open_bench.environments.registry import make
from open_bench.environments.wrappers import VectorEnvironment
from open_bench.optimizers.resolve import resolve
from open_bench.training.keys import stream
from open_bench.training.lifetime import make_lifetime

BOTH = pytest.mark.parametrize("config", [TINY, TINY_PQN], ids=["ppo", "pqn"])


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@BOTH
def test_networks_and_episodes_begin_from_streams_of_their_own(config: Any) -> None:
    environment, key = make("gymnax:CartPole-v1"), jax.random.key(5)
    algorithm: Any = algorithm_of(environment, config)

    def expected() -> Any:
        params = algorithm.init_params(stream(key, "networks"))
        return params, VectorEnvironment(environment, config.num_envs).reset(stream(key, "environment"))[0]

    state = jax.jit(lifetime_of(environment, config).init)(key, {})
    jax.tree.map(np.testing.assert_array_equal, (state.agent.params, state.agent.observation), jax.jit(expected)())


@pytest.mark.slow
def test_every_optimizer_meets_the_same_networks_and_episodes() -> None:
    environment = Probe(length=3, random_observation=True)
    states = []
    for optimizer in (optax.adam(1e-2), optax.sgd(1.0)):
        lifetime = lifetime_of(environment, TINY, optimizer=optimizer)
        start = jax.jit(lifetime.init)(jax.random.key(5), {})
        states.append((start.agent, jax.jit(lifetime.run)(start, {}, 1)[0].agent))
    (start, after), (other_start, other_after) = jax.device_get(states)
    same = lambda a, b: equal(jax.tree.leaves(a), jax.tree.leaves(b))
    same(start.params, other_start.params)
    same((start.observation, start.environment), (other_start.observation, other_start.environment))
    same((after.observation, after.environment), (other_after.observation, other_after.environment))
    different = zip(jax.tree.leaves(after.params), jax.tree.leaves(other_after.params), strict=True)
    assert any(not np.array_equal(a, b) for a, b in different)


# --- what it carries --------------------------------------------------------------------------------------------------


def state_bytes(updates: int) -> int:
    """Bytes of everything that a lifetime carries from one update to the next."""
    shapes = jax.eval_shape(lifetime_of(Probe(), updates=updates).init, jax.random.key(0), {})
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    assert state_bytes(200) == state_bytes(100_000) == state_bytes(10_000_000)
    assert state_bytes(200) - state_bytes(10) == 190 * (4 + 4)  # a float32 sum and an int32 count a curve point


# --- what an optimizer is told ----------------------------------------------------------------------------------------


class Recorded(NamedTuple):
    step: jax.Array  # () int32
    training: jax.Array  # (steps,)
    epoch: jax.Array  # (steps,)
    loss: jax.Array  # (steps,)
    value: jax.Array  # (steps,)
    key: jax.Array  # (steps, key words) uint32
    new_rollout: jax.Array  # (steps,) bool
    activations: Any  # {network: {layer: (steps, units)}, …}


def layers_of(config: Any, actions: int) -> dict[str, dict[str, int]]:
    """Units of every layer that has activations."""
    units = {f"layer_{i:02d}_dense": size for i, size in enumerate(config.hidden)}
    head = f"layer_{len(config.hidden):02d}_dense"
    if config is TINY_PQN or hasattr(config, "td_lambda"):
        norms = {f"layer_{i:02d}_norm": size for i, size in enumerate(config.hidden)}
        return {"q": {**units, **norms, head: actions}}
    return {"actor": {**units, head: actions}, "critic": {**units, head: 1}}


def recorder(environment: Environment, config: AlgorithmConfig, updates: int) -> optax.GradientTransformationExtraArgs:
    """Stores every extra that it is given, and changes no parameter."""
    length, space = config.training_length(updates), environment.action_space
    steps = length.optimizer_steps
    acting = "q" if hasattr(config, "td_lambda") else "actor"

    def init(params: Any) -> Recorded:
        del params
        zeros = jnp.zeros(steps)
        layers = layers_of(config, space.n)  # type: ignore[union-attr]
        activations = jax.tree.map(lambda size: jnp.zeros((steps, size)), layers)
        keys = jnp.zeros((steps, *jax.random.key_data(jax.random.key(0)).shape), jnp.uint32)
        return Recorded(jnp.int32(0), zeros, zeros, zeros, zeros, keys, jnp.zeros(steps, bool), activations)

    def update(
        updates: Any, state: Recorded, params: Any = None, *, training_fraction: Any, epoch_fraction: Any,
        activations: Any, loss: Any, value: Any, key: Any, new_rollout: Any, acting_network: Any,
    ) -> Any:  # fmt: skip
        del params
        assert acting_network == acting
        put = lambda array, told: array.at[state.step].set(told)
        told = (training_fraction, epoch_fraction, loss, value, jax.random.key_data(key), new_rollout, activations)
        new = jax.tree.map(put, tuple(state[1:]), told)
        return jax.tree.map(jnp.zeros_like, updates), Recorded(state.step + 1, *new)

    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "updates", "epochs"), [(TINY, 3, 3), (TINY, 1, 1), (TINY, 2, 1), (TINY_PQN, 3, 2)])
def test_extras_tell_where_in_the_lifetime_an_update_is(config: Any, updates: int, epochs: int) -> None:
    name = "num_epochs" if config is TINY_PQN else "update_epochs"
    config = config.model_copy(update={name: epochs})
    environment = Probe(length=3, random_observation=True)
    lifetime = lifetime_of(environment, config, updates, recorder(environment, config, updates))
    told: Recorded = run_jitted(lifetime).agent.optimizer_state
    steps = config.training_length(updates).optimizer_steps
    assert told.step == steps == updates * epochs * config.num_minibatches
    rows = [(u, e, m) for u in range(updates) for e in range(epochs) for m in range(config.num_minibatches)]
    proportion = lambda index, count: index / (count - 1) if count > 1 else 0.0
    np.testing.assert_allclose(told.training, [proportion(u, updates) for u, _, _ in rows], rtol=1e-6)
    np.testing.assert_allclose(told.epoch, [proportion(e, epochs) for _, e, _ in rows], rtol=1e-6)
    # A rollout is new exactly at the first optimizer step after it.
    assert told.new_rollout.tolist() == [e == m == 0 for _, e, m in rows]
    np.testing.assert_array_equal(told.loss, told.value)
    assert (told.loss != 0).all()
    assert len({tuple(key) for key in told.key.tolist()}) == steps


@pytest.mark.slow
@BOTH
def test_activations_and_loss_are_those_of_the_minibatches(config: Any) -> None:
    """Parameters never change here, so an epoch's minibatches average to the whole rollout, recomputed by hand."""
    environment, key = Probe(length=3, random_observation=True), jax.random.key(0)
    lifetime = lifetime_of(environment, config, 1, recorder(environment, config, 1))
    told: Recorded = run_jitted(lifetime).agent.optimizer_state
    algorithm: Any = algorithm_of(environment, config)
    if isinstance(algorithm, PQN):
        explored, networks = [algorithm.epsilon(jnp.float32(0))], {"q": algorithm.values}
    else:
        explored, networks = [], {"actor": algorithm.distribution, "critic": algorithm.value}

    @jax.jit
    def by_hand() -> Any:
        start = lifetime.init(key, {}).agent
        rollout_key = stream(jax.random.fold_in(key, 0), "rollout")
        rollout, last, _ = algorithm.collect(start.params, start, *explored, rollout_key)
        batch = algorithm.make_batch(start.params, rollout, last)
        units = {network: apply(start.params, batch.observation)[1] for network, apply in networks.items()}
        return units, algorithm.loss(start.params, batch)[0] if isinstance(algorithm, PQN) else None

    units_of, loss = by_hand()
    epochs, minibatches = config.training_length(1)[1:]
    for network, expected in units_of.items():
        assert set(told.activations[network]) == set(expected)
        for layer, units in expected.items():
            found = np.asarray(told.activations[network][layer])
            assert found.shape == (epochs * minibatches, *units.shape)
            for epoch in found.reshape(epochs, minibatches, -1):
                np.testing.assert_allclose(epoch.mean(0), units, rtol=1e-4, atol=1e-7)
    if isinstance(algorithm, PQN):  # whose loss is a mean over samples
        np.testing.assert_allclose(told.loss.reshape(epochs, minibatches).mean(1), loss, rtol=1e-4)


class Silent(PPO):
    """Computes no activations."""

    def loss(self, *arguments: Any) -> Any:
        return super().loss(*arguments)[0], {}


@pytest.mark.slow
def test_optimizers_that_ignore_activations_do_not_pay_for_them() -> None:
    """The compiled program is that of a loss which never computes them; one that reads them does more."""
    plain = optax.with_extra_args_support(optax.sgd(1e-2))

    def update(updates: Any, state: Any, params: Any = None, *, activations: Any, **extras: Any) -> Any:
        total = sum(units.sum() for units in jax.tree.leaves(activations))
        return plain.update(jax.tree.map(lambda u: u + total, updates), state, params, **extras)

    def compiled(optimizer: Any, algorithm: type[Algorithm] = PPO) -> tuple[float, int]:
        chosen = learning(optimizer)
        lifetime = make_lifetime(algorithm(TINY, Probe(length=3)), UPDATES, lambda inputs: chosen)
        state = jax.eval_shape(lifetime.init, jax.random.key(0), {})
        program = jax.jit(lifetime.run).lower(state, {}, 1).compile()
        cost = program.cost_analysis()
        assert cost is not None
        return cost["flops"], sum(" = " in line for line in program.as_text().splitlines())

    offered = compiled(plain)
    assert compiled(optax.GradientTransformationExtraArgs(plain.init, update)) > offered
    assert compiled(plain, Silent) == offered


# --- parameters that act ----------------------------------------------------------------------------------------------


def still() -> optax.GradientTransformation:
    """An optimizer that changes nothing."""
    return optax.GradientTransformation(
        lambda params: (), lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), state)
    )


def twice(state: Any, params: Any) -> Any:
    """Acting parameters other than those that are differentiated at."""
    del state
    return jax.tree.map(lambda p: 2.0 * p + 0.1, params)


@pytest.mark.slow
@BOTH
def test_rollouts_use_the_acting_parameters(config: Any) -> None:
    """The parameters that are differentiated at choose action 0, which is worth nothing; those that act choose 1."""
    environment, key = Probe(length=3, reward=lambda step, sign, action: action), jax.random.key(3)
    config = config.model_copy(update={"num_steps": 24})
    algorithm = algorithm_of(environment, config)
    state = jax.jit(lambda: algorithm.init(key, key, learning(still())))()
    head = state.params[algorithm.acting_network][f"layer_{len(config.hidden):02d}_dense"]
    head["bias"] = jnp.array([50.0, -50.0])
    late = jnp.float32(1.0)  # where PQN hardly explores

    @jax.jit
    def update(sign: jax.Array) -> Any:
        """Where the head's bias decides, −1 makes acting parameters that do the opposite."""
        acting = lambda optimizer_state, params: jax.tree.map(lambda leaf: sign * leaf, params)
        return algorithm.update(key, key, state, late, learning(still(), acting))[0]

    returns = []
    for sign in (1.0, -1.0):
        after = update(sign)
        returns.append(float(after.environment.statistics.last.mean()))
        jax.tree.map(np.testing.assert_array_equal, after.params, state.params)  # acted by, but not replaced
    assert returns[0] < 1
    assert returns[1] > 2


@pytest.mark.slow
def test_old_log_probabilities_and_values_are_the_acting_parameters() -> None:
    """At the parameters that act the ratio π/π_old would be 1; the loss, taken elsewhere, sees another."""
    environment, key = Probe(length=3), jax.random.key(3)
    config = TINY.model_copy(update={"num_minibatches": 1, "update_epochs": 1})
    algorithm = PPO(config, environment)
    chosen = learning(still(), twice)
    loss = chosen.policy_loss
    assert loss is not None
    rollout_key = jax.random.key(1)

    @jax.jit
    def compared() -> Any:
        state = algorithm.init(key, key, chosen)
        told = algorithm.update(rollout_key, jax.random.key(2), state, jnp.float32(0), chosen)[1]["loss"]
        acting = twice((), state.params)
        rollout, last, _ = algorithm.collect(acting, state, rollout_key)
        batch = algorithm.make_batch(acting, rollout, last)
        log_prob = algorithm.policy(acting, batch.observation).log_prob(batch.action)
        value = algorithm.value(acting, batch.observation)[0]
        losses = [algorithm.loss(params, batch, loss)[0] for params in (state.params, acting)]
        return batch, log_prob, value, (told, *losses)

    batch, log_prob, value, (told, expected, elsewhere) = jax.device_get(compared())
    np.testing.assert_allclose(batch.log_prob, log_prob, rtol=1e-5)
    np.testing.assert_allclose(batch.value, value, rtol=1e-5)
    assert told == pytest.approx(expected, rel=1e-4)
    assert told != pytest.approx(elsewhere, rel=1e-3)


@pytest.mark.slow
def test_a_schedule_free_optimizer_acts_at_its_average() -> None:
    """Third update: the rollout and the old log-probabilities are x's, the loss and its gradient y's."""
    config = TINY.model_copy(update={"num_minibatches": 1, "update_epochs": 1})
    found, algorithm = resolve("schedule-free-adamw:learning_rate=0.1,warmup=0.0"), PPO(config, Probe(length=3))
    chosen = found.learning(config.training_length(UPDATES), found.inputs)
    update = jax.jit(functools.partial(algorithm.update, learning=chosen))
    keys, late = jax.random.split(jax.random.key(1), 3), jnp.float32(0.5)
    state = algorithm.init(keys[0], keys[0], chosen)
    for key in keys[1:]:
        state, _ = update(key, key, state, late)
    _, info = update(keys[0], keys[0], state, late)

    def loss_of(acting: Any) -> float:
        rollout, last, _ = algorithm.collect(acting, state, keys[0])
        batch = algorithm.make_batch(acting, rollout, last)
        assert chosen.policy_loss is not None
        return float(algorithm.loss(state.params, batch, chosen.policy_loss)[0])

    average = optax.contrib.schedule_free_eval_params(state.optimizer_state, state.params)
    assert float(info["loss"]) == pytest.approx(loss_of(average), rel=1e-4)
    assert float(info["loss"]) != pytest.approx(loss_of(state.params), rel=1e-3)


def test_trained_agents_are_the_acting_parameters() -> None:
    lifetime = lifetime_of(Probe(), optimizer=still(), eval_params=twice)
    state = jax.jit(lifetime.init)(jax.random.key(0), {})
    expected = twice((), state.agent.params)
    jax.tree.map(np.testing.assert_array_equal, lifetime.acting_params(state, {}), expected)
