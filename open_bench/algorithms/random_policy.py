"""A lifetime of the uniformly random policy, scored like any other: the zero of normalized scores."""

from typing import Any

import jax
import jax.numpy as jnp

from open_bench.algorithms import ppo as algorithm
from open_bench.algorithms.networks import Activations, Categorical
from open_bench.config import PPOConfig
from open_bench.environments.base import Continuous, Discrete, Environment
from open_bench.environments.wrappers import VectorEnvironment, episode_return
from open_bench.training.keys import stream
from open_bench.training.lifetime import (
    Lifetime,
    LifetimeState,
    Metrics,
    add_return,
    curve_ends,
    empty_record,
    final_window,
)

Array = jax.Array


class Uniform:
    """Uniform over the box of a continuous action space; ``batch`` actions at a time."""

    def __init__(self, space: Continuous, batch: int):
        self._space, self._batch = space, batch

    def sample(self, key: Array) -> Array:
        return jax.random.uniform(key, (self._batch, self._space.size), minval=self._space.low, maxval=self._space.high)

    def log_prob(self, action: Array) -> Array:
        return jnp.zeros(action.shape[:-1])


class RandomAgent:
    """Acts uniformly at random; has no parameters and no values."""

    def __init__(self, environment: Environment):
        self._space = environment.action_space

    def policy(self, params: Any, observation: Array) -> tuple[Any, Activations]:
        del params
        batch = observation.shape[0]
        if isinstance(self._space, Discrete):
            return Categorical(jnp.zeros((batch, self._space.n))), {}
        return Uniform(self._space, batch), {}


def make_random_lifetime(environment: Environment, ppo: PPOConfig, num_updates: int) -> Lifetime:
    """A lifetime of ``num_updates`` rollouts without learning; θ is ignored."""
    agent: Any = RandomAgent(environment)
    vector = VectorEnvironment(environment, ppo.num_envs)
    ends = curve_ends(num_updates)
    final_start = num_updates - final_window(num_updates)

    def init(key: Array, theta: Any) -> LifetimeState:
        del theta
        observation, state = vector.reset(stream(key, "environment"))
        learner = algorithm.Learner({}, (), jnp.bool_(True))
        return LifetimeState(key, jnp.int32(0), learner, state, observation, empty_record(len(ends)))

    def one_update(_: Array, state: LifetimeState) -> LifetimeState:
        key = stream(jax.random.fold_in(state.key, state.update), "rollout")
        _rollout, observation, vector_state = algorithm.collect(
            agent, vector, ppo, {}, state.observation, state.environment, key
        )
        record = add_return(state.record, state.update, episode_return(vector_state.statistics), ends, final_start)
        return LifetimeState(state.key, state.update + 1, state.learner, vector_state, observation, record)

    def run(state: LifetimeState, theta: Any, n_updates: Array) -> tuple[LifetimeState, Metrics]:
        del theta
        state = jax.lax.fori_loop(0, n_updates, one_update, state)
        returns = episode_return(state.environment.statistics)
        return state, Metrics(state.update, returns, jnp.float32(0.0), state.learner.finite)

    return Lifetime(init, run, num_updates, ends)
