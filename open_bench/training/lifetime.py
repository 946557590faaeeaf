"""A lifetime: one agent trained from scratch, as two pure functions that may be jitted, vmapped and chained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from open_bench.algorithms import ppo as algorithm
from open_bench.algorithms.actor_critic import make_agent
from open_bench.config import PPOConfig
from open_bench.environments.base import Environment
from open_bench.environments.wrappers import VectorEnvironment, VectorState, episode_return
from open_bench.training.keys import stream

Array = jax.Array
MAX_CURVE_POINTS = 200  # a curve is thinned on the device to at most so many points, however long the lifetime


class Record(NamedTuple):
    """Returns of a lifetime, thinned as they arrive, so memory does not grow with the number of updates.

    Sums leave out updates at which no episode has finished; ``*_count`` counts the others.
    """

    curve_sum: Array  # (points,) float32
    curve_count: Array  # (points,) int32
    final_sum: Array  # () float32, over the last 5 % of updates
    final_count: Array  # () int32
    total_sum: Array  # () float32, over the lifetime
    total_count: Array  # () int32


class LifetimeState(NamedTuple):
    """Everything between two updates. ``update`` counts PPO updates done."""

    key: Array
    update: Array  # () int32
    learner: algorithm.Learner
    environment: VectorState
    observation: Array  # (num_envs, observation_size)
    record: Record


class Metrics(NamedTuple):
    """What the host sees between segments."""

    update: Array  # () int32
    episode_return: Array  # () float32, NaN before the first episode's end
    loss: Array  # () float32, mean over the last epoch
    finite: Array  # () bool


class Lifetime(NamedTuple):
    """The compiled unit: ``init(key, theta) → state``, ``run(state, theta, n_updates) → (state, metrics)``.

    ``theta`` is whatever pytree the optimizer reads (θ and traced hyperparameters); ``n_updates`` is traced, so
    segments of any length share one program.
    """

    init: Callable[[Array, Any], LifetimeState]
    run: Callable[[LifetimeState, Any, Array], tuple[LifetimeState, Metrics]]
    num_updates: int
    curve_ends: np.ndarray  # (points,) int: updates done at the end of each curve point


def curve_ends(num_updates: int) -> np.ndarray:
    """Updates at which the points of a thinned curve end, the last being ``num_updates``."""
    points = min(num_updates, MAX_CURVE_POINTS)
    return np.asarray([-(-(i + 1) * num_updates // points) for i in range(points)], np.int32)


def final_window(num_updates: int) -> int:
    """Number of last updates over which the final return is averaged: ⌈5 %⌉, at least 1."""
    return max(1, -(-num_updates // 20))


def make_lifetime(
    environment: Environment,
    ppo: PPOConfig,
    num_updates: int,
    make_optimizer: Callable[[Any], optax.GradientTransformationExtraArgs],
    policy_loss: Callable[[Any, Array, Array, Array, float], Array],
) -> Lifetime:
    """Build a lifetime.

    Args:
        environment: the task.
        ppo: settings; static.
        num_updates: PPO updates in the whole lifetime.
        make_optimizer: ``theta → GradientTransformationExtraArgs``, called inside the traced functions.
        policy_loss: ``(theta, log_prob, log_prob_old, advantage, clip) → scalar``.
    """
    agent = make_agent(environment, ppo)
    vector = VectorEnvironment(environment, ppo.num_envs, ppo.normalize_observations, ppo.normalize_rewards, ppo.gamma)
    ends = curve_ends(num_updates)
    final_start = num_updates - final_window(num_updates)

    def init(key: Array, theta: Any) -> LifetimeState:
        params = agent.init(stream(key, "networks"))
        observation, state = vector.reset(stream(key, "environment"))
        learner = algorithm.Learner(params, make_optimizer(theta).init(params), jnp.bool_(True))
        return LifetimeState(key, jnp.int32(0), learner, state, observation, empty_record(len(ends)))

    def one_update(theta: Any, state: LifetimeState) -> tuple[LifetimeState, Array]:
        update_key = jax.random.fold_in(state.key, state.update)
        rollout, observation, vector_state = algorithm.collect(
            agent, vector, ppo, state.learner.params, state.observation, state.environment,
            stream(update_key, "rollout"),
        )  # fmt: skip
        batch = algorithm.make_batch(agent, ppo, state.learner.params, rollout, observation)
        learner, loss = algorithm.epochs(
            agent,
            ppo,
            lambda *arguments: policy_loss(theta, *arguments),
            make_optimizer(theta),
            state.learner,
            batch,
            state.update / jnp.float32(max(1, num_updates - 1)),
            stream(update_key, "learning"),
        )
        record = add_return(state.record, state.update, episode_return(vector_state.statistics), ends, final_start)
        return LifetimeState(state.key, state.update + 1, learner, vector_state, observation, record), loss

    def run(state: LifetimeState, theta: Any, n_updates: Array) -> tuple[LifetimeState, Metrics]:
        def body(_: Array, carry: tuple[LifetimeState, Array]) -> tuple[LifetimeState, Array]:
            return one_update(theta, carry[0])

        state, loss = jax.lax.fori_loop(0, n_updates, body, (state, jnp.float32(jnp.nan)))
        returns = episode_return(state.environment.statistics)
        return state, Metrics(state.update, returns, loss, state.learner.finite)

    return Lifetime(init, run, num_updates, ends)


def empty_record(points: int) -> Record:
    zero, none = jnp.float32(0.0), jnp.int32(0)
    return Record(jnp.zeros(points), jnp.zeros(points, jnp.int32), zero, none, zero, none)


def add_return(record: Record, update: Array, value: Array, ends: np.ndarray, final_start: int) -> Record:
    """Add the episode return at the end of 0-based ``update``."""
    known = ~jnp.isnan(value)
    value = jnp.where(known, value, 0.0)
    count = known.astype(jnp.int32)
    point = jnp.searchsorted(jnp.asarray(ends), update, side="right")
    final = (update >= final_start).astype(jnp.int32)
    return Record(
        record.curve_sum.at[point].add(value),
        record.curve_count.at[point].add(count),
        record.final_sum + value * final,
        record.final_count + count * final,
        record.total_sum + value,
        record.total_count + count,
    )
