"""What the registry holds for each optimizer.

θ (the meta-parameters of a learned optimizer) is always ``{"optimizer": …, "policy_loss": …}``; either part
may be an empty dict. A factory and an policy_loss each receive their own part only.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import optax

from open_bench.algorithms.policy_losses import PPO, PolicyLoss
from open_bench.weights.format import Theta

EMPTY_THETA: Theta = {"optimizer": {}, "policy_loss": {}}


class TrainingLength(NamedTuple):
    """The static length of a lifetime, in the three units that an optimizer may need."""

    updates: int  # PPO updates (rollout + epochs)
    epochs: int  # passes over a rollout
    minibatches: int  # optimizer steps per epoch

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps in a lifetime: updates × epochs × minibatches."""
        return self.updates * self.epochs * self.minibatches


@dataclasses.dataclass(frozen=True)
class Search:
    """Where tuning looks for a hyperparameter: a range (``low``, ``high``) or a list of ``choices``."""

    low: float | None = None
    high: float | None = None
    scale: Literal["linear", "log"] = "log"
    choices: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """One setting of an optimizer.

    ``traced`` settings enter the compiled program as arrays, so trying another value compiles nothing;
    the others are Python values fixed at tracing time. ``minimum`` (included) and ``below`` (excluded) bound what
    makes sense at all, None where nothing does.
    """

    default: float | int | bool | str | None
    description: str
    traced: bool = False
    search: Search | None = None
    minimum: float | None = None
    below: float | None = None


class Reader(NamedTuple):
    """How a file in the format that an optimizer's authors publish is read, and written again."""

    suffix: str  # of the file's name, as ".npy"; "directory" for a folder
    description: str  # what such a file is called
    read: Callable[[Path], tuple[Any, dict[str, Any]]]  # → part of θ, metadata; raises ValueError on anything else
    write: Callable[[Any], bytes] | None = None  # part of θ → what the file holds


@dataclasses.dataclass(frozen=True)
class Learned:
    """The meta-learned part of an optimizer: how its θ begins, how published files are read, what θ fits."""

    init: Callable[[jax.Array], Any]  # key → θ["optimizer"], where evolution starts
    readers: tuple[Reader, ...] = ()
    validate: Callable[[Any], None] | None = None  # raises ValueError naming the array that does not fit


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer with the policy loss that it is used with.

    Attributes:
        name: registry name.
        description: one line.
        factory: ``factory(theta, length, **hyperparameters) → optax.GradientTransformationExtraArgs``; called
            inside the traced lifetime, so ``theta`` and traced hyperparameters may be tracers.
        citation: whom to cite.
        policy_loss: the policy loss.
        hyperparameters: every setting with its default and search space.
        learned: present when θ["optimizer"] is meta-learned.
        given: settings that the user wrote into the name; they win over shipped and default values.
        theta: loaded weights, or None when none were named.
        theta_source: where ``theta`` came from, for people.
        theta_metadata: what the weights' file says of how they were made; empty where nothing is said.
        digest: of the source of an optimizer that comes from a file of the user's; part of an experiment's identity.
            None where no file tells what it does: stored results are never taken for it.
        stochastic: whether updates may depend on the ``key`` that the harness passes.
        eval_params: ``eval_params(state, params) → params``, for methods that act at other parameters than those that
            gradients are taken at; None where they are the same.
        tuned_as: whose shipped hyperparameters apply, when not its own: ``dpo`` is trained with Adam's.
    """

    name: str
    description: str
    factory: Callable[..., optax.GradientTransformation]
    citation: str = ""
    policy_loss: PolicyLoss = PPO
    hyperparameters: Mapping[str, Hyperparameter] = dataclasses.field(default_factory=dict)
    learned: Learned | None = None
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    theta: Theta | None = None
    theta_source: str | None = None
    theta_metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tuned_as: str = ""
    stochastic: bool = False
    digest: str | None = ""
    eval_params: Callable[[Any, Any], Any] | None = None

    def make(
        self, theta: Theta | None = None, length: TrainingLength | None = None, **hyperparameters: Any
    ) -> optax.GradientTransformationExtraArgs:
        """Build the gradient transformation. Updates that it returns are *added* to the parameters.

        Args:
            theta: ``{"optimizer": …, "policy_loss": …}``; by default the spec's loaded weights.
            length: length of the lifetime; static.
            **hyperparameters: win over the settings in the name, which win over the defaults.
        """
        values = {name: hyperparameter.default for name, hyperparameter in self.hyperparameters.items()}
        values |= {**self.given, **hyperparameters}
        theta = theta or self.theta or EMPTY_THETA
        length = length or TrainingLength(1, 1, 1)
        return optax.with_extra_args_support(self.factory(theta["optimizer"], length, **values))

    @property
    def needs_theta(self) -> bool:
        """Whether this optimizer cannot run without meta-learned weights."""
        return self.learned is not None or self.policy_loss.init is not None

    def init_theta(self, key: jax.Array) -> Theta:
        """Where meta-training starts."""
        return {
            "optimizer": self.learned.init(key) if self.learned else {},
            "policy_loss": self.policy_loss.init(key) if self.policy_loss.init else {},
        }
