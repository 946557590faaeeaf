"""The uniformly random policy as an algorithm that never learns: the zero of normalized scores."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from open_bench.algorithms.base import AgentState, Algorithm, AlgorithmConfig, Learning, Params
from open_bench.algorithms.networks import Categorical
from open_bench.algorithms.rollout import collect
from open_bench.environments.base import Continuous, Discrete, Environment
from open_bench.environments.wrappers import VectorEnvironment


class RandomConfig(AlgorithmConfig):
    """How many copies act, and for how many steps an update; there is nothing else to set."""


class Uniform(NamedTuple):
    """Uniform over the box of a continuous action space; ``batch`` actions at a time."""

    space: Continuous
    batch: int

    def sample(self, key: Key[Array, ""]) -> Float[Array, "batch size"]:
        return jax.random.uniform(key, (self.batch, self.space.size), minval=self.space.low, maxval=self.space.high)


class RandomPolicy(Algorithm):
    """Acts uniformly at random; has no parameters."""

    name = "random"
    description = "the uniformly random policy, which never learns"
    Config = RandomConfig
    acting_network = ""
    learns = False

    def __init__(self, config: RandomConfig, environment: Environment):
        super().__init__(config, environment)
        self.vector = VectorEnvironment(environment, config.num_envs)

    def init(self, networks_key: Key[Array, ""], environment_key: Key[Array, ""], learning: Learning) -> AgentState:
        del networks_key, learning
        observation, environment = self.vector.reset(environment_key)
        return AgentState({}, (), environment, observation, jnp.bool_(True))

    def update(
        self,
        rollout_key: Key[Array, ""],
        learning_key: Key[Array, ""],
        state: AgentState,
        training_fraction: Float[Array, ""],
        learning: Learning,
    ) -> tuple[AgentState, dict[str, Float[Array, ""]]]:
        del learning_key, training_fraction, learning

        def act(key: Array, observation: Array) -> tuple[Array, None]:
            return self.policy({}, observation).sample(key), None

        _, observation, environment = collect(
            act, self.vector, self.config.num_steps, state.observation, state.environment, rollout_key
        )
        return state._replace(environment=environment, observation=observation), {"loss": jnp.float32(0.0)}

    def policy(self, params: Params, observation: Array) -> Any:
        del params
        space = self.environment.action_space
        if isinstance(space, Discrete):
            return Categorical(jnp.zeros((len(observation), space.n)))
        return Uniform(space, len(observation))
