"""A batch of environment copies with episode statistics and optional normalization of observations and rewards."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from open_bench.environments.base import Environment

Array = jax.Array


class EpisodeStatistics(NamedTuple):
    """Unnormalized returns of each environment copy, in the units of the task's reward."""

    running: Array  # (num_envs,) float32: return of the episode under way
    last: Array  # (num_envs,) float32: return of the last finished episode
    finished: Array  # (num_envs,) bool: whether any episode has finished


class Moments(NamedTuple):
    """Running mean and variance."""

    mean: Array
    variance: Array
    count: Array  # type: ignore[assignment]  # () float32


class VectorState(NamedTuple):
    environment: Any  # the task's own state, leading axis num_envs
    statistics: EpisodeStatistics
    observation_moments: Moments | None  # of shape (observation_size,), when observations are normalized
    reward_moments: Moments | None  # of the discounted return, shape (), when rewards are normalized
    discounted_return: Array | None  # (num_envs,)


class Transition(NamedTuple):
    """What one step of all copies gives; every field has a leading axis num_envs."""

    observation: Array
    reward: Array  # normalized when the settings say so
    terminated: Array
    truncated: Array
    final_observation: Array


@dataclasses.dataclass(frozen=True)
class VectorEnvironment:
    """``num_envs`` copies of an environment, stepped together.

    Attributes:
        environment: the task.
        num_envs: number of copies.
        normalize_observations: subtract the running mean, divide by √(running variance + 1e-8).
        normalize_rewards: divide by √(running variance of the discounted return + 1e-8).
        gamma: discount of that return.
    """

    environment: Environment
    num_envs: int
    normalize_observations: bool = False
    normalize_rewards: bool = False
    gamma: float = 0.99

    def reset(self, key: Array, began: Array | None = None) -> tuple[Array, VectorState]:
        """Start every copy: ``(observation (num_envs, observation_size), state)``; with ``began`` as further copies of
        those that were started from that key."""
        if began is None:
            observation, inner = self.environment.reset_copies(key, self.num_envs)
        else:
            observation, inner = self.environment.reset_more_copies(key, began, self.num_envs)
        zeros = jnp.zeros(self.num_envs)
        statistics = EpisodeStatistics(zeros, zeros, jnp.zeros(self.num_envs, bool))
        observation_moments = None
        if self.normalize_observations:
            observation_moments = update_moments(initial_moments(observation.shape[1:]), observation)
            observation = normalize(observation_moments, observation)
        reward_moments = initial_moments(()) if self.normalize_rewards else None
        discounted = zeros if self.normalize_rewards else None
        return observation, VectorState(inner, statistics, observation_moments, reward_moments, discounted)

    def step(self, key: Array, state: VectorState, action: Array) -> tuple[Transition, VectorState]:
        """Step every copy; ``action`` has a leading axis num_envs."""
        keys = jax.random.split(key, self.num_envs)
        observation, inner, reward, terminated, truncated, info = self.environment.step_copies(
            keys, state.environment, action
        )
        done = terminated | truncated
        final = info["final_observation"]
        statistics = update_statistics(state.statistics, reward, done)
        observation_moments = state.observation_moments
        if observation_moments is not None:
            observation_moments = update_moments(observation_moments, observation)
            observation = normalize(observation_moments, observation)
            final = normalize(observation_moments, final)
        reward_moments, discounted = state.reward_moments, state.discounted_return
        if reward_moments is not None and discounted is not None:
            discounted = discounted * self.gamma + reward
            reward_moments = update_moments(reward_moments, discounted)
            reward = reward / jnp.sqrt(reward_moments.variance + 1e-8)
            discounted = jnp.where(done, 0.0, discounted)
        state = VectorState(inner, statistics, observation_moments, reward_moments, discounted)
        return Transition(observation, reward, terminated, truncated, final), state


def update_statistics(statistics: EpisodeStatistics, reward: Array, done: Array) -> EpisodeStatistics:
    """Add one step's rewards (num_envs,) and close the episodes that ended."""
    running = statistics.running + reward
    return EpisodeStatistics(
        running=jnp.where(done, 0.0, running),
        last=jnp.where(done, running, statistics.last),
        finished=statistics.finished | done,
    )


def episode_return(statistics: EpisodeStatistics) -> Array:
    """Mean return of the last finished episode over copies that have finished one; NaN when none has."""
    finished = statistics.finished.sum()
    total = jnp.where(statistics.finished, statistics.last, 0.0).sum()
    return jnp.where(finished > 0, total / jnp.maximum(finished, 1), jnp.nan)


def initial_moments(shape: tuple[int, ...]) -> Moments:
    """Mean 0, variance 1, counted as 1e-4 samples (the published start)."""
    return Moments(jnp.zeros(shape), jnp.ones(shape), jnp.float32(1e-4))


def update_moments(moments: Moments, batch: Array) -> Moments:
    """Merge a batch (n, …) into running moments (Chan et al. 1983, parallel variance)."""
    batch = batch.astype(jnp.float32)
    n = batch.shape[0]
    delta = batch.mean(0) - moments.mean
    total = moments.count + n
    spread = moments.variance * moments.count + batch.var(0) * n + delta**2 * moments.count * n / total
    return Moments(moments.mean + delta * n / total, spread / total, total)


def normalize(moments: Moments, x: Array) -> Array:
    """(x − mean) / √(variance + 1e-8)."""
    return (x.astype(jnp.float32) - moments.mean) / jnp.sqrt(moments.variance + 1e-8)
