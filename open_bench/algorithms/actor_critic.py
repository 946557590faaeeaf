"""An actor-critic agent as pure functions of its parameters."""

import dataclasses
from typing import Any

import jax

from open_bench.algorithms.networks import MLP, Activations, Categorical, DiagonalGaussian
from open_bench.config import PPOConfig
from open_bench.environments.base import Discrete, Environment

Array = jax.Array
Params = dict[str, Any]  # {"actor": {layer: …}, "critic": {layer: …}}


@dataclasses.dataclass(frozen=True)
class Agent:
    """Separate actor and critic networks for one environment's observations and actions."""

    actor: MLP
    critic: MLP
    observation_size: int

    def init(self, key: Array) -> Params:
        """Parameters drawn from ``key``; actor and critic get keys of their own."""
        actor_key, critic_key = jax.random.split(key)
        observation = jax.numpy.zeros((1, self.observation_size))
        return {
            "actor": self.actor.init(actor_key, observation)["params"],
            "critic": self.critic.init(critic_key, observation)["params"],
        }

    def policy(self, params: Params, observation: Array) -> tuple[Categorical | DiagonalGaussian, Activations]:
        """Action distribution for observations (batch, observation_size)."""
        output, activations = _apply(self.actor, params["actor"], observation)
        if self.actor.gaussian:
            return DiagonalGaussian(output, params["actor"]["log_std"]), activations
        return Categorical(output), activations

    def value(self, params: Params, observation: Array) -> tuple[Array, Activations]:
        """State values (batch,)."""
        output, activations = _apply(self.critic, params["critic"], observation)
        return output[..., 0], activations


def _apply(network: MLP, params: Any, observation: Array) -> tuple[Array, Activations]:
    result: Any = network.apply({"params": params}, observation)
    return result


def make_agent(environment: Environment, ppo: PPOConfig) -> Agent:
    """The agent that PPO settings describe."""
    space = environment.action_space
    outputs = space.n if isinstance(space, Discrete) else space.size
    return Agent(
        actor=MLP(ppo.hidden, outputs, 0.01, ppo.activation, gaussian=not isinstance(space, Discrete)),
        critic=MLP(ppo.hidden, 1, 1.0, ppo.activation),
        observation_size=environment.observation_size,
    )
