"""What a meta-training is: settings, and a request that has been checked."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from open_bench.config import Config, Name, Positive, RootSeed, build, check_count, load_named

ANTITHETIC = ("Open_ES", "ARS", "PGPE", "GuidedES")  # strategies that sample mirrored pairs


class MetaConfig(Config):
    """How θ of a learned optimizer is evolved. The defaults are OPEN's published ones (Goldie et al. 2024)."""

    name: Name = "custom"
    description: str = ""
    environments: tuple[str, ...] = ()  # that fitness is measured on; with several it is the mean of normalized returns
    held_out: tuple[str, ...] = ()  # evaluated every ``evaluate_every`` generations, never trained on
    algorithm: str | None = None  # each environment's own by default
    # Settings of the algorithm to replace in all of them, such as smaller networks.
    settings: dict[str, Any] = Field(default_factory=dict)
    budget: str = "quick"  # of a lifetime
    env_steps: Positive | None = None  # of a lifetime, in place of the budget's
    strategy: str = "Open_ES"  # an evosax strategy
    population: Annotated[int, Field(ge=2)] = 64
    generations: Positive = 500
    sigma: Annotated[float, Field(gt=0.0)] = 0.03  # standard deviation of the search distribution
    sigma_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.999  # a generation
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.03  # Adam on the mean of the search distribution
    learning_rate_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.999  # a generation
    b1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    rollouts: Positive = 1  # lifetimes of a member on each environment
    # Levels and keys of a generation: "common" to all members, or "antithetic": each mirrored pair has its own, and
    # only the two are compared (Jackson et al. 2024, arXiv 2402.05828); for gridworlds, whose levels differ.
    task_sampling: Literal["common", "antithetic"] = "common"
    fitness: str = "final_return"  # a metric of the record
    root_seed: RootSeed = 0
    vmap_size: Positive | None = None  # lifetimes vmapped on one device; by default 1 on CPU, more on accelerators
    evaluate_every: Annotated[int, Field(ge=0)] = 0  # generations between evaluations of the mean θ; 0: never
    evaluation_rollouts: Positive = 4

    @pydantic.model_validator(mode="after")
    def _pairs_are_whole(self) -> "MetaConfig":
        if self.strategy in ANTITHETIC and self.population % 2:
            raise ValueError(
                f"population = {self.population} is odd, and {self.strategy} samples antithetic pairs: "
                f"take {self.population - 1} or {self.population + 1}"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _a_generation_can_be_listed(self) -> "MetaConfig":
        check_count(self.population * self.rollouts, "lifetimes of a generation (population × rollouts)")
        return self

    @pydantic.model_validator(mode="after")
    def _held_out_is_not_trained_on(self) -> "MetaConfig":
        both = [name for name in self.held_out if name in self.environments]
        if both:
            raise ValueError(f"environment '{both[0]}' is both trained on and held out")
        if self.held_out and not self.evaluate_every:
            raise ValueError("held_out is evaluated every evaluate_every generations, and that is 0: never")
        return self


def load_meta(name: str) -> MetaConfig:
    """Settings of meta-training by name or by path to a TOML."""
    return load_named(MetaConfig, "meta", name)


def adjusted(config: str | MetaConfig | None, changes: Mapping[str, Any]) -> MetaConfig:
    """Settings of meta-training with a user's changes; None is none, and a budget replaces a number of env steps."""
    base = config if isinstance(config, MetaConfig) else load_meta(config) if config else MetaConfig()
    given = {key: tuple(x) if isinstance(x, list) else x for key, x in changes.items() if x is not None}
    if "budget" in given and "env_steps" not in given:
        given["env_steps"] = None
    return build(MetaConfig, base.model_dump() | given, f"meta-training {base.name}")
