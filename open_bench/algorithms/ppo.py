"""Proximal policy optimization (Schulman et al. 2017) in named stages: collect → advantages → epochs."""

from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, Shaped
from pydantic import Field

from open_bench.algorithms.base import (
    Activations,
    AgentState,
    Algorithm,
    AlgorithmConfig,
    Learning,
    Params,
    PolicyLossFunction,
    mark_finite,
)
from open_bench.algorithms.diagnosis import (
    Diagnosis,
    dormant_fraction,
    draw_samples,
    explained_variance,
    of_update,
    when,
)
from open_bench.algorithms.epochs import learn
from open_bench.algorithms.networks import MLP, Categorical, DiagonalGaussian
from open_bench.algorithms.rollout import Rollout, collect, flat
from open_bench.config import Fraction, Positive, TrainingLength
from open_bench.environments.base import Discrete, Environment
from open_bench.environments.wrappers import VectorEnvironment


class PPOConfig(AlgorithmConfig):
    """Settings of PPO and its networks."""

    update_epochs: Positive = 4
    num_minibatches: Positive = 8
    gamma: Fraction = 0.99
    gae_lambda: Fraction = 0.95
    clip: Annotated[float, Field(gt=0.0)] = 0.2
    entropy_coefficient: float = 0.01
    value_coefficient: float = 0.5
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 0.5  # actor and critic are clipped separately
    hidden: tuple[Positive, ...] = Field(default=(64, 64), min_length=1)
    activation: Literal["relu", "tanh"] = "tanh"
    normalize_observations: bool = False
    normalize_rewards: bool = False
    bootstrap_on_truncation: bool = False  # the published protocol treats a time limit as a termination

    @property
    def observes_as_given(self) -> bool:
        return not self.normalize_observations

    def training_length(self, num_updates: int) -> TrainingLength:
        return TrainingLength(num_updates, self.update_epochs, self.num_minibatches)


class Batch(NamedTuple):
    """Training data; every field has a leading axis of samples."""

    observation: Shaped[Array, "samples observation_size"]
    action: Shaped[Array, "samples ..."]
    log_prob: Float[Array, " samples"]
    advantage: Float[Array, " samples"]
    target: Float[Array, " samples"]  # of the value
    value: Float[Array, " samples"]  # of the critic before the update


class PPO(Algorithm):
    """Separate actor and critic networks; a clipped policy loss, or another one that arrives with the optimizer."""

    name = "ppo"
    description = "proximal policy optimization: actor and critic, generalized advantages"
    citation = "Schulman et al. 2017, arXiv 1707.06347"
    Config = PPOConfig
    acting_network = "actor"
    has_policy_loss = True
    diagnostics = (
        "policy_kl",
        "entropy",
        "update_ratio",
        "update_cosine",
        "gradient_norm",
        "critic_gradient_norm",
        "dormant_fraction",
        "explained_variance",
    )

    def __init__(self, config: PPOConfig, environment: Environment):
        super().__init__(config, environment)
        space = environment.action_space
        discrete = isinstance(space, Discrete)
        outputs = space.n if isinstance(space, Discrete) else space.size
        self.actor = MLP(config.hidden, outputs, 0.01, config.activation, gaussian=not discrete)
        self.critic = MLP(config.hidden, 1, 1.0, config.activation)
        self.vector = VectorEnvironment(
            environment, config.num_envs, config.normalize_observations, config.normalize_rewards, config.gamma
        )

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Parameters drawn from ``key``; actor and critic get keys of their own."""
        actor_key, critic_key = jax.random.split(key)
        observation = jnp.zeros((1, self.environment.observation_size))
        return {
            "actor": self.actor.init(actor_key, observation)["params"],
            "critic": self.critic.init(critic_key, observation)["params"],
        }

    def init(self, networks_key: Key[Array, ""], environment_key: Key[Array, ""], learning: Learning) -> AgentState:
        params = self.init_params(networks_key)
        observation, environment = self.vector.reset(environment_key)
        return AgentState(params, learning.optimizer.init(params), environment, observation, jnp.bool_(True))

    def update(
        self,
        rollout_key: Key[Array, ""],
        learning_key: Key[Array, ""],
        state: AgentState,
        training_fraction: Float[Array, ""],
        learning: Learning,
        measured: Bool[Array, ""] | None = None,
    ) -> tuple[AgentState, dict[str, Float[Array, ""]]]:
        config, policy_loss = self.config, learning.policy_loss
        assert policy_loss is not None
        acting = learning.eval_params(state.optimizer_state, state.params)
        rollout, observation, environment = self.collect(acting, state, rollout_key)
        batch = self.make_batch(acting, rollout, observation)
        params, optimizer_state, loss, finite = learn(
            lambda params, rows: self.loss(params, rows, policy_loss),
            learning,
            self.acting_network,
            state.params,
            state.optimizer_state,
            batch,
            epochs=config.update_epochs,
            minibatches=config.num_minibatches,
            max_grad_norm=config.max_grad_norm,
            training_fraction=training_fraction,
            key=learning_key,
        )
        after = mark_finite(AgentState(params, optimizer_state, environment, observation, state.finite), finite)
        info = {"loss": loss}
        if measured is not None:
            measure = lambda: self.diagnose(batch, learning_key, state, after, learning)
            info |= when(measured, self.diagnostics, measure)
        return after, info

    def diagnose(
        self, batch: Batch, key: Key[Array, ""], before: AgentState, after: AgentState, learning: Learning
    ) -> Diagnosis:
        """``diagnostics`` of an update, on as many samples of its rollout as a minibatch has."""
        assert learning.policy_loss is not None
        rows = draw_samples(batch, len(batch.target) // self.config.num_minibatches, key)
        gradients, _ = jax.grad(self.loss, has_aux=True)(before.params, rows, learning.policy_loss)
        acted, acts = (learning.eval_params(each.optimizer_state, each.params) for each in (before, after))
        policy, activations = self.distribution(acts, rows.observation)
        collected: Any = self.policy(acted, rows.observation)
        return {
            **of_update(gradients["actor"], before.params["actor"], after.params["actor"]),
            "policy_kl": collected.kl(policy).mean(),
            "entropy": policy.entropy().mean(),
            "critic_gradient_norm": optax.tree.norm(gradients["critic"]),
            "dormant_fraction": dormant_fraction(activations),
            "explained_variance": explained_variance(rows.target, rows.value),
        }

    def policy(self, params: Params, observation: Array) -> Categorical | DiagonalGaussian:
        return self.distribution(params, observation)[0]

    def distribution(self, params: Params, observation: Array) -> tuple[Categorical | DiagonalGaussian, Activations]:
        """Action distribution for observations (batch, observation_size), and the actor's activations."""
        output, activations = _apply(self.actor, params["actor"], observation)
        if self.actor.gaussian:
            return DiagonalGaussian(output, params["actor"]["log_std"]), activations
        return Categorical(output), activations

    def value(self, params: Params, observation: Array) -> tuple[Float[Array, " batch"], Activations]:
        """State values, and the critic's activations."""
        output, activations = _apply(self.critic, params["critic"], observation)
        return output[..., 0], activations

    def collect(self, params: Params, state: AgentState, key: Key[Array, ""]) -> tuple[Rollout, Array, Any]:
        """A rollout whose ``choice`` is the actions' log-probabilities, the last observation, and the copies' state."""

        def act(key: Array, observation: Array) -> tuple[Array, Array]:
            distribution, _ = self.distribution(params, observation)
            action = distribution.sample(key)
            return action, distribution.log_prob(action)

        config = self.config
        return collect(
            act, self.vector, config.num_steps, state.observation, state.environment, key,
            keep_final=config.bootstrap_on_truncation,
        )  # fmt: skip

    def make_batch(self, params: Params, rollout: Rollout, last_observation: Array) -> Batch:
        """Values, advantages and targets of a rollout, flattened to (num_steps · num_envs, …)."""
        config, rows = self.config, flat(rollout)
        value = self.value(params, rows.observation)[0]
        last_value = self.value(params, last_observation)[0]
        reward = rollout.reward
        if config.bootstrap_on_truncation:
            # The episode was cut, not finished: its future is worth what the critic says of the last observation.
            final_value = self.value(params, rows.final_observation)[0].reshape(reward.shape)
            cut = rollout.truncated & ~rollout.terminated
            reward = reward + config.gamma * final_value * cut
        done = rollout.terminated | rollout.truncated
        estimates = advantages(
            reward, value.reshape(reward.shape), last_value, done, config.gamma, config.gae_lambda
        ).reshape(-1)
        return Batch(rows.observation, rows.action, rows.choice, estimates, estimates + value, value)

    def loss(
        self, params: Params, batch: Batch, policy_loss: PolicyLossFunction
    ) -> tuple[Float[Array, ""], dict[str, Activations]]:
        """Total loss of a minibatch and the activations of both networks."""
        config = self.config
        distribution, actor_activations = self.distribution(params, batch.observation)
        value, critic_activations = self.value(params, batch.observation)
        advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
        of_policy = policy_loss(distribution.log_prob(batch.action), batch.log_prob, advantage, config.clip)
        clipped_value = batch.value + jnp.clip(value - batch.value, -config.clip, config.clip)
        value_errors = jnp.maximum((value - batch.target) ** 2, (clipped_value - batch.target) ** 2)
        value_loss = 0.5 * value_errors.mean()
        entropy = distribution.entropy().mean()
        total = of_policy + config.value_coefficient * value_loss - config.entropy_coefficient * entropy
        return total, {"actor": actor_activations, "critic": critic_activations}


def advantages(
    reward: Float[Array, "num_steps num_envs"],
    value: Float[Array, "num_steps num_envs"],
    last_value: Float[Array, " num_envs"],
    done: Bool[Array, "num_steps num_envs"],
    gamma: float,
    gae_lambda: float,
) -> Float[Array, "num_steps num_envs"]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16); the value targets are advantages + value.

    Args:
        done: (num_steps, num_envs); ``done[t]`` says that step t ended its episode.
        last_value: value of the observation after the last step.
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


def _apply(network: MLP, params: Any, observation: Array) -> tuple[Array, Activations]:
    result: Any = network.apply({"params": params}, observation)
    return result
