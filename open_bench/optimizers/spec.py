"""What is registered of an optimizer.

θ (the meta-parameters of a learned optimizer) is always ``{"optimizer": …, "policy_loss": …}``; either part may be an
empty dict. A spec's ``make`` and its policy loss each receive their own part only.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import optax

from open_bench.algorithms.policy_losses import PPO, PolicyLoss
from open_bench.config import TrainingLength
from open_bench.weights.format import Theta

EMPTY_THETA: Theta = {"optimizer": {}, "policy_loss": {}}


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


class Imitation(NamedTuple):
    """How a rule that acts on each parameter by itself is fitted to another optimizer's updates.

    Columns are the parameters as ``learned.per_parameter.Layout`` lays them out, and inputs all that the rule reads.
    """

    start: Callable[[jax.Array], Any]  # key → θ["optimizer"] where a fit begins: random, as at 0 there is no gradient
    init: Callable[[Any], Any]  # params → the observer's state
    # (gradients, state, params, **extras) → inputs (rows, columns), state
    observe: Callable[..., tuple[jax.Array, Any]]
    # (θ["optimizer"], inputs (steps, rows, columns)) → updates and standard deviation of their noise (steps, columns)
    unroll: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    timed: bool  # whether the rule knows how far the lifetime is, and so can anneal


@dataclasses.dataclass(frozen=True)
class Learned:
    """The meta-learned part of an optimizer: how its θ begins, how published files are read, what θ fits.

    ``imitation`` is how it learns from another optimizer's updates, or the reason why it cannot.
    """

    init: Callable[[jax.Array], Any]  # key → θ["optimizer"], where evolution starts
    readers: tuple[Reader, ...] = ()
    validate: Callable[[Any], None] | None = None  # raises ValueError naming the array that does not fit
    imitation: Imitation | str = "its spec does not say how (Learned.imitation)"


def params_themselves(state: Any, params: Any) -> Any:
    """The acting parameters of an optimizer that acts at those it differentiates at."""
    del state
    return params


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer with the policy loss that it is used with.

    Attributes:
        name: registry name.
        description: one line.
        make: ``make(theta, length, **hyperparameters) → optax.GradientTransformation``; called inside the traced
            lifetime, so ``theta`` and traced hyperparameters may be tracers. Its updates are *added*.
        citation: whom to cite.
        policy_loss: for algorithms that have one.
        hyperparameters: every setting with its default and search space.
        learned: present when θ["optimizer"] is meta-learned.
        eval_params: (optimizer state, params) → the parameters that act, for methods that act at other parameters than
            they differentiate at; None: they are the same.
        stochastic: whether updates may depend on the ``key`` that the harness passes.
        tuned_as: whose shipped hyperparameters apply, when not its own: ``dpo`` is trained with Adam's.
        digest: of the source of an optimizer that comes from a user's file, part of an experiment's identity; None
            where there is no file (a notebook), so that nothing stored is ever taken for it.
    """

    name: str
    description: str
    make: Callable[..., optax.GradientTransformation]
    citation: str = ""
    policy_loss: PolicyLoss = PPO
    hyperparameters: Mapping[str, Hyperparameter] = dataclasses.field(default_factory=dict)
    learned: Learned | None = None
    eval_params: Callable[[Any, Any], Any] | None = None
    stochastic: bool = False
    tuned_as: str = ""
    digest: str | None = ""

    def build(
        self, theta: Theta | None = None, length: TrainingLength | None = None, **hyperparameters: Any
    ) -> optax.GradientTransformationExtraArgs:
        """The gradient transformation.

        Args:
            theta: ``{"optimizer": …, "policy_loss": …}``.
            length: of the lifetime; static.
            **hyperparameters: win over the defaults.
        """
        values = {key: hyperparameter.default for key, hyperparameter in self.hyperparameters.items()}
        values |= hyperparameters
        part = (theta or EMPTY_THETA)["optimizer"]
        return optax.with_extra_args_support(self.make(part, length or TrainingLength(1, 1, 1), **values))

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
