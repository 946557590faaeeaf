"""Typed, frozen configuration read from TOML. Unknown keys and bad values are errors naming the file and the key."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field

from open_bench import files
from open_bench.errors import UserError, near_matches

Positive = Annotated[int, Field(gt=0, strict=True)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]

PROTOCOL_VERSION = 1  # raised whenever results stop being comparable; see CHANGELOG.md


class Config(pydantic.BaseModel):
    """Base of every configuration: immutable, and strict about keys and types."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PPOConfig(Config):
    """Settings of the PPO agent and its networks. All are static: they shape the compiled program."""

    num_envs: Positive = 64
    num_steps: Positive = 128  # rollout length, env steps per environment
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

    @pydantic.model_validator(mode="after")
    def _minibatches_divide_the_batch(self) -> "PPOConfig":
        if self.batch_size % self.num_minibatches:
            raise ValueError(
                f"num_minibatches = {self.num_minibatches} does not divide "
                f"num_envs × num_steps = {self.num_envs} × {self.num_steps} = {self.batch_size}"
            )
        return self

    @property
    def batch_size(self) -> int:
        """Env steps collected per update."""
        return self.num_envs * self.num_steps


class EnvironmentConfig(Config):
    """An environment with its PPO settings and budgets (env steps by name)."""

    name: Name
    description: str
    family: str
    source: str  # "<adapter>:<id>", such as "gymnax:Breakout-MinAtar", or "module:Class" of the user's
    version: Positive = 1  # raised when the task itself changes
    options: dict[str, bool | int | float | str] = {}
    ppo: PPOConfig = PPOConfig()
    budgets: dict[str, Positive]
    # Of a class of the user's; set by load_environment, never by a TOML.
    _digest: str | None = pydantic.PrivateAttr("")  # of its file; None: it has none
    _object: Any = pydantic.PrivateAttr(None)  # the class or instance itself, where no other process could import it

    @property
    def stored(self) -> bool:
        """Whether results belong to the configuration: not so where code or arguments are known to this process alone.

        What is not stored must never be taken from the store.
        """
        return self._digest is not None

    @property
    def task_identity(self) -> dict[str, Any]:
        """What makes the task what it is, apart from its version, as JSON values."""
        digest = {"digest": self._digest} if self._digest else {}
        return {"source": self.source, "options": self.options, **digest}

    def made_by(self, digest: str | None, thing: Any = None) -> "EnvironmentConfig":
        """A copy whose task is made by code of the user's: a file's ``digest``, and a class or instance at hand."""
        copy = self.model_copy()
        copy._digest, copy._object = digest, thing
        return copy

    def num_updates(self, env_steps: int) -> int:
        """PPO updates in a lifetime of ``env_steps``; raises UserError when there is not even one."""
        updates = env_steps // self.ppo.batch_size
        if env_steps <= 0 or updates < 1:
            raise UserError(
                f"{env_steps} steps on {self.name} are fewer than one PPO update: it needs "
                f"num_envs × num_steps = {self.ppo.num_envs} × {self.ppo.num_steps} = {self.ppo.batch_size} env steps. "
                "Ask for more steps, or make the rollout smaller with --set num_envs=… or --set num_steps=…"
            )
        if updates >= 2**31:
            raise UserError(f"{env_steps} steps on {self.name} are {updates} PPO updates, more than can be counted")
        return updates

    def budget_steps(self, budget: str) -> int:
        """Env steps of a named budget."""
        if budget not in self.budgets:
            raise UserError(
                f"{self.name} has no budget '{budget}' (it has {', '.join(self.budgets)})."
                f"{near_matches(budget, list(self.budgets))}"
            )
        return self.budgets[budget]

    def with_settings(self, settings: dict[str, Any]) -> "EnvironmentConfig":
        """A copy with some PPO settings replaced, as ``--set`` does."""
        values = self.ppo.model_dump() | settings
        return self.model_copy(update={"ppo": build(PPOConfig, values, f"PPO settings of {self.name} (--set)")})


ANTITHETIC = ("Open_ES", "ARS", "PGPE", "GuidedES")  # strategies that sample mirrored pairs


class MetaConfig(Config):
    """How θ of a learned optimizer is evolved. The defaults are OPEN's published ones (Goldie et al. 2024)."""

    name: Name = "custom"
    description: str = ""
    environments: tuple[str, ...] = ()  # that fitness is measured on; with several it is the mean of normalized returns
    held_out: tuple[str, ...] = ()  # evaluated every ``evaluate_every`` generations, never trained on
    settings: dict[str, Any] = {}  # PPO settings to replace in all of them, such as smaller networks
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
    fitness: Literal["final_return", "mean_return"] = "final_return"
    root_seed: Annotated[int, Field(ge=0, lt=1_000_000)] = 0
    vmap_size: Positive | None = None  # lifetimes in a vmapped group; by default 1 on CPU, more on accelerators
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
    def _held_out_is_not_trained_on(self) -> "MetaConfig":
        both = [name for name in self.held_out if name in self.environments]
        if both:
            raise ValueError(f"environment '{both[0]}' is both trained on and held out")
        if self.held_out and not self.evaluate_every:
            raise ValueError("held_out is evaluated every evaluate_every generations, and that is 0: never")
        return self


class StudyConfig(Config):
    """A set of experiments: every optimizer on every environment, at one budget."""

    name: Name
    description: str = ""
    optimizers: tuple[str, ...] = Field(min_length=1)
    environments: tuple[str, ...] = Field(min_length=1)
    budget: str = "quick"
    num_seeds: Positive = 4  # seeds of each experiment
    root_seed: Annotated[int, Field(ge=0, lt=1_000_000, strict=True)] = (
        0  # root seed; larger ones are kept for references and tuning
    )
    meta: str | MetaConfig | None = None  # recipe, or settings, that optimizers without weights are meta-trained by

    @pydantic.field_validator("meta", mode="before")
    @classmethod
    def _settings_are_named(cls, value: Any) -> Any:
        """Errors name the key inside ``[meta]``, which those of a union of types would not."""
        if value is None or isinstance(value, str | MetaConfig):
            return value
        if not isinstance(value, dict):
            raise ValueError(f"meta = {value!r}: it is the name of a recipe, or a table of settings: [meta]")
        try:
            return build(MetaConfig, value, "[meta]")
        except UserError as error:
            raise ValueError(str(error)) from None


_Model = TypeVar("_Model", bound=Config)


def build(model: type[_Model], values: dict[str, Any], origin: str) -> _Model:
    """Validate ``values``; raises UserError naming ``origin`` and every key that is wrong."""
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        problems = "; ".join(_problem(model, detail) for detail in error.errors())
        raise UserError(f"{origin}: {problems}") from None


def _problem(model: type[Config], detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known: list[str] = list(model.model_fields)
        for part in detail["loc"][:-1]:
            annotation = model.model_fields[part].annotation if part in model.model_fields else None
            known = (
                list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, Config) else []
            )
        return f"unknown key '{key}'.{near_matches(str(detail['loc'][-1]), known)}"
    if detail["type"] == "missing":
        return f"key '{key}' is missing"
    message = detail["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")  # as TOML calls it
    return f"{key} = {detail['input']!r}: {message}" if key and detail["type"] != "value_error" else message


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; raises UserError with the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def load(model: type[_Model], path: Path) -> _Model:
    """Read one configuration file."""
    return build(model, read_toml(path), str(path))


def shipped(kind: str) -> dict[str, Path]:
    """Configuration files that ship, by name: ``kind`` is environments, studies, meta or generalize."""
    folder = files.configs_dir() / kind
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.toml"))}


def load_study(name: str) -> StudyConfig:
    """A study by name or by path to a TOML."""
    return load_named(StudyConfig, "studies", ("study", "studies"), name)


def load_meta(name: str) -> MetaConfig:
    """Settings of meta-training by name or by path to a TOML."""
    return load_named(MetaConfig, "meta", ("meta-training recipe", "recipes"), name)


def load_named(model: type[_Model], kind: str, words: tuple[str, str], name: str) -> _Model:
    """A configuration of some kind by name or by path to a TOML; ``words`` are what people call one and several."""
    files = shipped(kind)
    if name in files:
        return load(model, files[name])
    if name.endswith(".toml"):
        return load(model, Path(name))
    raise UserError(
        f"unknown {words[0]} '{name}'.{near_matches(name, list(files))} "
        f"Known {words[1]}: {', '.join(files)}; or give the path of a .toml file."
    )
