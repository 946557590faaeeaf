"""Proximal policy optimization (Schulman et al. 2017) in named stages: collect → advantages → epochs.

The optimizer and the policy loss arrive as values; this module knows neither.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from open_bench.algorithms.actor_critic import Agent, Params
from open_bench.config import PPOConfig
from open_bench.environments.wrappers import VectorEnvironment, VectorState

Array = jax.Array
PolicyLoss = Callable[[Array, Array, Array, float], Array]  # (log_prob, log_prob_old, advantage, clip) → scalar loss


class Rollout(NamedTuple):
    """Experience of one update; every field has leading axes (num_steps, num_envs)."""

    observation: Array
    action: Array
    log_prob: Array
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: Array | None  # kept only when bootstrapping on truncation


class Batch(NamedTuple):
    """Training data; every field has a leading axis of samples."""

    observation: Array
    action: Array
    log_prob: Array
    advantage: Array
    target: Array  # of the value
    value: Array  # of the critic before the update


class Clock(NamedTuple):
    """Where in its lifetime an update is; both are 0 where a proportion would be 0/0."""

    training_fraction: Array  # update / (updates − 1), float32 scalar
    epoch_fraction: Array  # epoch / (epochs − 1), float32 scalar


def collect(
    agent: Agent, environment: VectorEnvironment, ppo: PPOConfig, params: Params, observation: Array,
    state: VectorState, key: Array,
) -> tuple[Rollout, Array, VectorState]:  # fmt: skip
    """Act for ``num_steps`` in every environment: ``(rollout, last observation, state)``."""

    def step(carry: tuple[Array, VectorState], key: Array) -> tuple[tuple[Array, VectorState], Rollout]:
        observation, state = carry
        action_key, environment_key = jax.random.split(key)
        distribution, _ = agent.policy(params, observation)
        action = distribution.sample(action_key)
        transition, state = environment.step(environment_key, state, action)
        row = Rollout(
            observation,
            action,
            distribution.log_prob(action),
            transition.reward,
            transition.terminated,
            transition.truncated,
            transition.final_observation if ppo.bootstrap_on_truncation else None,
        )
        return (transition.observation, state), row

    (observation, state), rollout = jax.lax.scan(step, (observation, state), jax.random.split(key, ppo.num_steps))
    return rollout, observation, state


def advantages(reward: Array, value: Array, last_value: Array, done: Array, gamma: float, gae_lambda: float) -> Array:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16).

    Args:
        reward, value, done: (num_steps, num_envs); ``done[t]`` says that step t ended its episode.
        last_value: (num_envs,), value of the observation after the last step.

    Returns:
        Advantages (num_steps, num_envs); the value targets are advantages + value.
    """

    def step(carry: tuple[Array, Array], row: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        advantage, next_value = carry
        reward, value, done = row
        alive = 1.0 - done
        delta = reward + gamma * next_value * alive - value
        advantage = delta + gamma * gae_lambda * alive * advantage
        return (advantage, value), advantage

    start = (jnp.zeros_like(last_value), last_value)
    _, result = jax.lax.scan(step, start, (reward, value, done.astype(jnp.float32)), reverse=True)
    return result


def make_batch(agent: Agent, ppo: PPOConfig, params: Params, rollout: Rollout, last_observation: Array) -> Batch:
    """Values, advantages and targets of a rollout, flattened to (num_steps · num_envs, …)."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
    value = agent.value(params, flat.observation)[0]
    last_value = agent.value(params, last_observation)[0]
    reward = rollout.reward
    if ppo.bootstrap_on_truncation:
        # The episode was cut, not finished: its future is worth what the critic says of the last observation.
        final_value = agent.value(params, flat.final_observation)[0].reshape(reward.shape)
        cut = rollout.truncated & ~rollout.terminated
        reward = reward + ppo.gamma * final_value * cut
    done = rollout.terminated | rollout.truncated
    value_rows = value.reshape(reward.shape)
    advantage = advantages(reward, value_rows, last_value, done, ppo.gamma, ppo.gae_lambda).reshape(-1)
    return Batch(flat.observation, flat.action, flat.log_prob, advantage, advantage + value, value)


def loss(
    agent: Agent, ppo: PPOConfig, policy_loss: PolicyLoss, params: Params, batch: Batch
) -> tuple[Array, dict[str, Any]]:
    """Total PPO loss of a minibatch and the activations of both networks."""
    distribution, actor_activations = agent.policy(params, batch.observation)
    value, critic_activations = agent.value(params, batch.observation)
    advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
    surrogate = policy_loss(distribution.log_prob(batch.action), batch.log_prob, advantage, ppo.clip)
    clipped_value = batch.value + jnp.clip(value - batch.value, -ppo.clip, ppo.clip)
    value_errors = jnp.maximum((value - batch.target) ** 2, (clipped_value - batch.target) ** 2)
    value_loss = 0.5 * value_errors.mean()
    entropy = distribution.entropy().mean()
    total = surrogate + ppo.value_coefficient * value_loss - ppo.entropy_coefficient * entropy
    return total, {"actor": actor_activations, "critic": critic_activations}


def clip_gradients(gradients: Params, max_norm: float) -> Params:
    """Scale the gradients of each network separately to a global norm of at most ``max_norm``."""

    def clip(tree: Any) -> Any:
        # A NaN norm compares false with everything and so leaves the NaN visible to the divergence check.
        scale = jnp.minimum(1.0, max_norm / jnp.maximum(optax.tree.norm(tree), 1e-16))
        return jax.tree.map(lambda g: g * scale, tree)

    return {network: clip(tree) for network, tree in gradients.items()}


class Learner(NamedTuple):
    """What learning changes."""

    params: Params
    optimizer_state: Any
    finite: Array  # () bool: no loss and no parameter has been NaN or infinite


def epochs(
    agent: Agent, ppo: PPOConfig, policy_loss: PolicyLoss, optimizer: optax.GradientTransformationExtraArgs,
    learner: Learner, batch: Batch, training_fraction: Array, key: Array,
) -> tuple[Learner, Array]:  # fmt: skip
    """``update_epochs`` passes over the batch in fresh permutations: ``(learner, mean loss of the last epoch)``."""
    gradient = jax.value_and_grad(lambda params, rows: loss(agent, ppo, policy_loss, params, rows), has_aux=True)

    def minibatch(carry: tuple[Learner, Clock], row: tuple[Array, Array]) -> tuple[tuple[Learner, Clock], Array]:
        learner, clock = carry
        indices, key = row
        rows = jax.tree.map(lambda x: x[indices], batch)
        (value, activations), gradients = gradient(learner.params, rows)
        updates, optimizer_state = optimizer.update(
            clip_gradients(gradients, ppo.max_grad_norm),
            learner.optimizer_state,
            learner.params,
            training_fraction=clock.training_fraction,
            epoch_fraction=clock.epoch_fraction,
            activations=activations,
            loss=value,
            value=value,
            key=key,
        )
        params = optax.apply_updates(learner.params, updates)
        return (Learner(params, optimizer_state, learner.finite & jnp.isfinite(value)), clock), value

    def epoch(learner: Learner, row: tuple[Array, Array]) -> tuple[Learner, Array]:
        index, key = row
        shuffle_key, optimizer_key = jax.random.split(key)
        order = jax.random.permutation(shuffle_key, ppo.batch_size).reshape(ppo.num_minibatches, -1)
        clock = Clock(training_fraction, index / max(1, ppo.update_epochs - 1))
        keys = jax.random.split(optimizer_key, ppo.num_minibatches)
        (learner, _), losses = jax.lax.scan(minibatch, (learner, clock), (order, keys))
        return learner, losses.mean()

    numbers = jnp.arange(ppo.update_epochs, dtype=jnp.float32)
    learner, losses = jax.lax.scan(epoch, learner, (numbers, jax.random.split(key, ppo.update_epochs)))
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(learner.params)]).all()
    return learner._replace(finite=learner.finite & finite), losses[-1]
