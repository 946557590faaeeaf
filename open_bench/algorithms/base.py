"""The contract of an algorithm: how an agent acts and learns.

An algorithm is a value: its class with frozen settings and an environment. Everything it does is pure. It receives an
optimizer as a ``Learning`` and knows neither its name nor where it comes from. What others need to know of its
settings (length, batch size, networks) it says itself.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pydantic
from jaxtyping import Array, Bool, Float, Key, Num

from open_bench.config import Config, Positive, TrainingLength
from open_bench.environments.base import Environment
from open_bench.environments.wrappers import VectorState

Params = dict[str, Any]  # {network: {layer: {"kernel", "bias"} or {"scale", "bias"} or array}}
Activations = dict[str, Array]  # layer → (units,): mean |activation| over the batch
PolicyLossFunction = Callable[[Array, Array, Array, Any], Array]  # log_prob, log_prob_old, advantage, clip → scalar


class AlgorithmConfig(Config):
    """Settings of an algorithm and its networks. All are static: they shape the compiled program."""

    num_envs: Positive = 64
    num_steps: Positive = 128  # rollout length, env steps per environment copy

    @property
    def env_steps_per_update(self) -> int:
        """Env steps collected per update."""
        return self.num_envs * self.num_steps

    @property
    def observes_as_given(self) -> bool:
        """Whether the networks see observations as the environment gives them, so that stored parameters suffice."""
        return True

    @pydantic.model_validator(mode="after")
    def _minibatches_divide_the_rollout(self) -> "AlgorithmConfig":
        count = getattr(self, "num_minibatches", 1)
        if self.env_steps_per_update % count:
            raise ValueError(
                f"num_minibatches = {count} does not divide "
                f"num_envs × num_steps = {self.num_envs} × {self.num_steps} = {self.env_steps_per_update}"
            )
        return self

    def training_length(self, num_updates: int) -> TrainingLength:
        """A lifetime of ``num_updates`` in the units that an optimizer may need."""
        return TrainingLength(num_updates, 1, 1)


class Learning(NamedTuple):
    """What an algorithm receives of an optimizer, for one lifetime."""

    optimizer: optax.GradientTransformationExtraArgs
    eval_params: Callable[[Any, Params], Params]  # (optimizer state, params) → the parameters that act
    policy_loss: PolicyLossFunction | None


class AgentState(NamedTuple):
    """An agent between two updates, with the environment copies that it acts in."""

    params: Params
    optimizer_state: Any
    environment: VectorState
    observation: Num[Array, "num_envs observation_size"] | Bool[Array, "num_envs observation_size"]
    finite: Bool[Array, ""]  # no loss and no parameter has been NaN or infinite
    extra: Any = ()  # whatever else the algorithm keeps


class Algorithm(abc.ABC):
    """Base of every algorithm; a subclass is one file and one line in ``registry.ALGORITHMS``.

    Attributes:
        name: as in ``--algorithm``.
        description: one line.
        citation: whom to cite.
        Config: class of its settings.
        acting_network: top-level key of ``params`` whose network chooses the actions; learned noise goes there.
        has_policy_loss: whether a policy loss (ppo, dpo, lpo) means anything to it.
        learns: False for a policy that never changes.
        reports: names in ``update``'s info beside ``loss``; those that are metrics (``training.record.METRICS``) become
            columns.
        diagnostics: names that ``update`` also reports where diagnosis is on (see there).
    """

    name: ClassVar[str]
    description: ClassVar[str]
    citation: ClassVar[str] = ""
    Config: ClassVar[type[AlgorithmConfig]]
    acting_network: ClassVar[str]
    has_policy_loss: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    reports: ClassVar[tuple[str, ...]] = ()
    diagnostics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, environment: Environment):
        self.config, self.environment = config, environment

    @classmethod
    def check(cls, environment: Environment, name: str) -> None:
        """Raise UserError where the algorithm cannot run on ``environment``, which people call ``name``."""
        del environment, name

    @abc.abstractmethod
    def init(self, networks_key: Key[Array, ""], environment_key: Key[Array, ""], learning: Learning) -> AgentState:
        """The agent before its first update."""

    @abc.abstractmethod
    def update(
        self,
        rollout_key: Key[Array, ""],
        learning_key: Key[Array, ""],
        state: AgentState,
        training_fraction: Float[Array, ""],
        learning: Learning,
    ) -> tuple[AgentState, dict[str, Float[Array, ""]]]:
        """Collect a rollout and learn from it: ``(state, info)``.

        ``training_fraction`` is update / (updates − 1), 0 where that would be 0/0. ``info`` holds ``loss`` (mean over
        the last epoch) and what ``reports`` names, NaN where a number is not known.

        An algorithm that has ``diagnostics`` takes a sixth argument, ``measured``: None, or where diagnosis is on a
        flag, shape (), that says whether they are wanted of this update; it then adds them to ``info``.
        """

    @abc.abstractmethod
    def policy(self, params: Params, observation: Array) -> Any:
        """The distribution that a trained agent draws its actions from, for observations (batch, observation_size)."""


def mark_finite(state: AgentState, losses_finite: Bool[Array, ""]) -> AgentState:
    """``state`` with ``finite`` brought up to date."""
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)]).all()
    return state._replace(finite=state.finite & losses_finite & finite)
