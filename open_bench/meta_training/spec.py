"""What a meta-training is: settings, and a request that has been checked."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from open_bench.config import Config, Name, Positive, RootSeed, build, check_count, load_named

ANTITHETIC = ("Open_ES", "ARS", "PGPE", "GuidedES")  # strategies that sample mirrored pairs


class ImitationConfig(Config):
    """How θ is fitted to the updates of hand-designed optimizers, before it is evolved or instead."""

    teachers: tuple[str, ...] = Field(min_length=1)  # one for all environments, or one for each in their order
    rounds: Positive = 3  # of recording and fitting: the teacher drives lifetimes of the first, the student the others'
    lifetimes: Positive = 2  # recorded in a round on each environment
    windows: Positive = 16  # recorded of a lifetime, at most
    window_steps: Positive = 64  # optimizer steps in a window
    burn_in: Annotated[int, Field(ge=0)] = 16  # first steps of a window, which only warm up the carry
    parameters: Annotated[int, Field(ge=2)] = 128  # recorded in a window, from all tensors alike
    batches: Positive = 600  # of a round
    batch_size: Positive = 16  # windows in a batch
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-2  # Adam's, to 0 along one cosine over all rounds

    @pydantic.field_validator("teachers", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _some_steps_count(self) -> "ImitationConfig":
        if self.burn_in >= self.window_steps:
            raise ValueError(f"burn_in = {self.burn_in} leaves nothing of a window of {self.window_steps} steps")
        return self


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
    generations: Annotated[int, Field(ge=0, strict=True)] = 500  # 0: imitation alone
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
    save_every: Annotated[int, Field(ge=0)] = 0  # generations between copies of the mean θ that stay; 0: none
    imitation: ImitationConfig | None = None  # where the mean starts; None: at the optimizer's own beginning
    # Tables of settings that differ, one a stage; each begins at the θ that the one before ends with.
    stages: tuple[dict[str, Any], ...] = ()

    @property
    def in_stages(self) -> tuple["MetaConfig", ...]:
        """The stages, whole: imitation first, at the settings of the study itself. Without stages all is one.

        A stage is called after the study and itself, and has a root seed of its own.

        Raises:
            UserError: a stage's settings are wrong.
        """
        if not self.stages:
            return (self,)
        tables = [{"name": number, **table} for number, table in enumerate(self.stages, 1)]
        shared = self.model_dump() | {"stages": (), "imitation": None}
        if self.imitation is not None:
            tables.insert(0, {"name": "imitation", "imitation": self.imitation.model_dump(), "generations": 0})
        return tuple(
            build(
                MetaConfig,
                {
                    **shared,
                    **_of_stage(table),
                    "root_seed": table.get("root_seed", self.root_seed + index),
                    "name": f"{self.name}-{table['name']}",
                },
                f"meta-training {self.name}, stage {table['name']}",
            )
            for index, table in enumerate(tables)
        )

    @pydantic.model_validator(mode="after")
    def _stages_are_sound(self) -> "MetaConfig":
        if any({"stages", "imitation"} & table.keys() for table in self.stages):
            raise ValueError("a stage has neither stages nor imitation, which is the study's and comes first")
        names = [each.name for each in self.in_stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages have the same name: {', '.join(names)}")
        return self

    @pydantic.model_validator(mode="after")
    def _something_is_done(self) -> "MetaConfig":
        if not self.generations and self.imitation is None:
            raise ValueError("generations = 0 is imitation alone, and there is no teacher: name one (--imitate)")
        return self

    @pydantic.model_validator(mode="after")
    def _every_environment_has_a_teacher(self) -> "MetaConfig":
        teachers = len(self.imitation.teachers) if self.imitation is not None else 1
        if teachers > 1 and teachers != len(self.environments):
            raise ValueError(
                f"{teachers} teachers for {len(self.environments)} environments: name one for all, or one for each in "
                "their order"
            )
        return self

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


def _of_stage(table: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings; a budget of its own replaces the study's number of env steps."""
    return {"env_steps": None, **table} if "budget" in table else dict(table)


def load_meta(name: str) -> MetaConfig:
    """Settings of meta-training by name or by path to a TOML."""
    return load_named(MetaConfig, "meta", name)


def adjusted(config: str | MetaConfig | None, changes: Mapping[str, Any]) -> MetaConfig:
    """Settings of meta-training with a user's changes; None is none, and a budget replaces a number of env steps.

    A table of imitation is changed key by key. What is changed holds in all stages; of 0 generations none are left.
    """
    base = config if isinstance(config, MetaConfig) else load_meta(config) if config else MetaConfig()
    given = {key: tuple(x) if isinstance(x, list) else x for key, x in changes.items() if x is not None}
    if "budget" in given and "env_steps" not in given:
        given["env_steps"] = None
    table: Any = given.get("imitation")
    if isinstance(table, Mapping):
        given["imitation"] = {**(base.imitation.model_dump() if base.imitation else {}), **table}
    taken = given.keys() | ({"budget"} if given.get("env_steps") else set())  # a stage's budget would come before it
    stages = base.stages if given.get("generations") != 0 else ()
    given["stages"] = tuple({key: x for key, x in table.items() if key not in taken} for table in stages)
    return build(MetaConfig, base.model_dump() | given, f"meta-training {base.name}")
