"""Parallelized Q-networks (Gallici et al. 2024, arXiv 2407.04811): Q-learning without replay and target network.

One Q-network, with LayerNorm after every hidden dense layer, acts ε-greedily in all copies. Its targets are λ-returns
of the rollout, and it learns from them as PPO does: epochs of shuffled minibatches.
"""

from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped
from pydantic import Field

from open_bench.algorithms.base import (
    Activations,
    AgentState,
    Algorithm,
    AlgorithmConfig,
    Learning,
    Params,
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
from open_bench.algorithms.networks import MLP, EpsilonGreedy
from open_bench.algorithms.rollout import Rollout, collect, flat
from open_bench.config import Fraction, Positive, TrainingLength
from open_bench.environments.base import Discrete, Environment
from open_bench.environments.wrappers import EpisodeStatistics, VectorEnvironment, VectorState, episode_return
from open_bench.errors import UserError

GREEDY_FROM = 0.8  # share of the lifetime after which the greedy policy is measured, so that long episodes can end


class PQNConfig(AlgorithmConfig):
    """Settings of PQN and its network."""

    num_envs: Positive = 128
    num_steps: Positive = 32
    num_epochs: Positive = 2
    num_minibatches: Positive = 32
    gamma: Fraction = 0.99
    td_lambda: Fraction = 0.65
    eps_start: Fraction = 1.0
    eps_finish: Fraction = 0.05
    eps_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1  # share of the updates over which ε falls
    reward_scale: Annotated[float, Field(gt=0.0)] = 1.0  # of what is learned from; returns are reported unscaled
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 10.0
    hidden: tuple[Positive, ...] = Field(default=(64, 64), min_length=1)
    activation: Literal["relu", "tanh"] = "relu"
    greedy_envs: Annotated[int, Field(ge=0)] = 16  # copies in which the greedy policy is measured at the end; 0: not

    def training_length(self, num_updates: int) -> TrainingLength:
        return TrainingLength(num_updates, self.num_epochs, self.num_minibatches)


class Batch(NamedTuple):
    """Training data; every field has a leading axis of samples."""

    observation: Shaped[Array, "samples observation_size"]
    action: Int[Array, " samples"]
    target: Float[Array, " samples"]  # λ-return


class Greedy(NamedTuple):
    """Copies in which the greedy policy is measured."""

    observation: Array
    environment: VectorState


class PQN(Algorithm):
    """Q-learning in parallel copies; returns are those of the ε-greedy policy that trains."""

    name = "pqn"
    description = "parallelized Q-network: ε-greedy rollouts, λ-returns, LayerNorm; discrete actions"
    citation = "Gallici et al. 2024, arXiv 2407.04811"
    Config = PQNConfig
    acting_network = "q"
    reports = ("greedy_return",)
    diagnostics = (
        "greedy_change",
        "update_ratio",
        "update_cosine",
        "gradient_norm",
        "dormant_fraction",
        "explained_variance",
    )

    def __init__(self, config: PQNConfig, environment: Environment):
        super().__init__(config, environment)
        self.check(environment, type(environment).__name__)
        space = environment.action_space
        assert isinstance(space, Discrete)
        self.network = MLP(config.hidden, space.n, 1.0, config.activation, layer_norm=True)
        self.vector = VectorEnvironment(environment, config.num_envs)
        self.greedy = VectorEnvironment(environment, config.greedy_envs) if config.greedy_envs else None

    @classmethod
    def check(cls, environment: Environment, name: str) -> None:
        if not isinstance(environment.action_space, Discrete):
            raise UserError(
                f"{name} has continuous actions, and pqn chooses among discrete ones: take --algorithm ppo, or another "
                "environment"
            )

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Parameters drawn from ``key``."""
        observation = jnp.zeros((1, self.environment.observation_size))
        return {"q": self.network.init(key, observation)["params"]}

    def init(self, networks_key: Key[Array, ""], environment_key: Key[Array, ""], learning: Learning) -> AgentState:
        params = self.init_params(networks_key)
        observation, environment = self.vector.reset(environment_key)
        greedy: Any = ()
        if self.greedy:
            greedy = Greedy(*self.greedy.reset(jax.random.fold_in(environment_key, 1), environment_key))
        optimizer_state = learning.optimizer.init(params)
        return AgentState(params, optimizer_state, environment, observation, jnp.bool_(True), greedy)

    def update(
        self,
        rollout_key: Key[Array, ""],
        learning_key: Key[Array, ""],
        state: AgentState,
        training_fraction: Float[Array, ""],
        learning: Learning,
        measured: Bool[Array, ""] | None = None,
    ) -> tuple[AgentState, dict[str, Float[Array, ""]]]:
        config = self.config
        acting = learning.eval_params(state.optimizer_state, state.params)
        rollout, observation, environment = self.collect(acting, state, self.epsilon(training_fraction), rollout_key)
        batch = self.make_batch(acting, rollout, observation)
        params, optimizer_state, loss, finite = learn(
            self.loss,
            learning,
            self.acting_network,
            state.params,
            state.optimizer_state,
            batch,
            epochs=config.num_epochs,
            minibatches=config.num_minibatches,
            max_grad_norm=config.max_grad_norm,
            training_fraction=training_fraction,
            key=learning_key,
        )
        greedy, returns = self.measure_greedy(acting, state.extra, training_fraction, rollout_key)
        after = mark_finite(AgentState(params, optimizer_state, environment, observation, state.finite, greedy), finite)
        info = {"loss": loss, "greedy_return": returns}
        if measured is not None:
            measure = lambda: self.diagnose(batch, learning_key, state, after, learning)
            info |= when(measured, self.diagnostics, measure)
        return after, info

    def diagnose(
        self, batch: Batch, key: Key[Array, ""], before: AgentState, after: AgentState, learning: Learning
    ) -> Diagnosis:
        """``diagnostics`` of an update, on as many samples of its rollout as a minibatch has."""
        rows = draw_samples(batch, len(batch.target) // self.config.num_minibatches, key)
        gradients, _ = jax.grad(self.loss, has_aux=True)(before.params, rows)
        acted, acts = (learning.eval_params(each.optimizer_state, each.params) for each in (before, after))
        collected, _ = self.values(acted, rows.observation)
        values, activations = self.values(acts, rows.observation)
        chosen = jnp.take_along_axis(collected, rows.action[:, None], axis=-1)[:, 0]
        return {
            **of_update(gradients["q"], before.params["q"], after.params["q"]),
            "greedy_change": (collected.argmax(-1) != values.argmax(-1)).mean(dtype=jnp.float32),
            "dormant_fraction": dormant_fraction(activations),
            "explained_variance": explained_variance(rows.target, chosen),
        }

    def policy(self, params: Params, observation: Array) -> EpsilonGreedy:
        return EpsilonGreedy(self.values(params, observation)[0], self.config.eps_finish)

    def values(self, params: Params, observation: Array) -> tuple[Float[Array, "batch n"], Activations]:
        """Q of every action for observations (batch, observation_size), and the network's activations."""
        result: Any = self.network.apply({"params": params["q"]}, observation)
        return result

    def epsilon(self, training_fraction: Float[Array, ""]) -> Float[Array, ""]:
        """ε falls linearly from ``eps_start`` to ``eps_finish`` over the first ``eps_decay`` of the lifetime."""
        config = self.config
        share = jnp.minimum(1.0, training_fraction / config.eps_decay)
        return config.eps_start + (config.eps_finish - config.eps_start) * share

    def collect(
        self, params: Params, state: AgentState, epsilon: Float[Array, ""], key: Key[Array, ""]
    ) -> tuple[Rollout, Array, VectorState]:
        """An ε-greedy rollout whose ``choice`` is max Q, the last observation, and the copies' state."""

        def act(key: Array, observation: Array) -> tuple[Array, Array]:
            values, _ = self.values(params, observation)
            return EpsilonGreedy(values, epsilon).sample(key), values.max(-1)

        return collect(act, self.vector, self.config.num_steps, state.observation, state.environment, key)

    def make_batch(self, params: Params, rollout: Rollout, last_observation: Array) -> Batch:
        """λ-returns from the values at collection, flattened to (num_steps · num_envs, …)."""
        config = self.config
        last_value = self.values(params, last_observation)[0].max(-1)
        done = rollout.terminated | rollout.truncated
        reward = rollout.reward * config.reward_scale
        target = lambda_returns(reward, rollout.choice, last_value, done, config.gamma, config.td_lambda)
        rows = flat(rollout)
        return Batch(rows.observation, rows.action, target.reshape(-1))

    def loss(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], dict[str, Activations]]:
        """½·mean (Q(s, a) − G)² and the network's activations."""
        values, activations = self.values(params, batch.observation)
        chosen = jnp.take_along_axis(values, batch.action[:, None], axis=-1)[:, 0]
        return 0.5 * jnp.square(chosen - batch.target).mean(), {"q": activations}

    def measure_greedy(
        self, params: Params, greedy: Any, training_fraction: Float[Array, ""], key: Key[Array, ""]
    ) -> tuple[Any, Float[Array, ""]]:
        """Late in the lifetime the greedy policy acts in copies of its own, which nobody learns from."""
        vector = self.greedy
        if vector is None:
            return greedy, jnp.float32(jnp.nan)

        def act(_: Array, observation: Array) -> tuple[Array, None]:
            return self.values(params, observation)[0].argmax(-1), None

        def advance(before: Greedy) -> Greedy:
            _, observation, environment = collect(
                act, vector, self.config.num_steps, before.observation, before.environment, jax.random.fold_in(key, 1)
            )
            return Greedy(observation, environment)

        greedy = jax.lax.cond(training_fraction >= GREEDY_FROM, advance, lambda before: before, greedy)
        statistics: EpisodeStatistics = greedy.environment.statistics
        return greedy, episode_return(statistics)


def lambda_returns(
    reward: Float[Array, "num_steps num_envs"],
    value: Float[Array, "num_steps num_envs"],
    last_value: Float[Array, " num_envs"],
    done: Bool[Array, "num_steps num_envs"],
    gamma: float,
    td_lambda: float,
) -> Float[Array, "num_steps num_envs"]:
    """G_t = r_t + γ(1 − d_t)·[λ·G_{t+1} + (1 − λ)·v_{t+1}] (Gallici et al. 2024, Algorithm 1).

    Args:
        value: v_t = max_a Q(s_t, a) at collection.
        last_value: the same of the observation after the last step, which stands for G there too.
        done: (num_steps, num_envs); ``done[t]`` says that step t ended its episode.
    """

    def step(carry: tuple[Array, Array], row: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        following, next_value = carry
        reward, value, done = row
        ahead = td_lambda * following + (1.0 - td_lambda) * next_value
        target = reward + gamma * (1.0 - done) * ahead
        return (target, value), target

    rows = (reward, value, done.astype(jnp.float32))
    _, result = jax.lax.scan(step, (last_value, last_value), rows, reverse=True)
    return result
