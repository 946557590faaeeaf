"""Typed, frozen configuration read from TOML. Unknown keys and bad values are errors naming the file and the key."""

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import pydantic
from pydantic import AfterValidator, Field

from open_bench import files
from open_bench.errors import UserError, check_known, near_matches
from open_bench.events import Watcher

MOST_LIFETIMES = 1_000_000  # of an experiment or a generation
RESERVED_ROOT_SEEDS = 1_000_000  # from here on


def check_count(count: int, what: str = "seeds") -> int:
    """``count``, or ValueError where it is absurd: lifetimes are listed before the first is trained."""
    if count > MOST_LIFETIMES:
        raise ValueError(f"{count:,} {what} are too many: ask for at most {MOST_LIFETIMES:,}")
    return count


def check_root_seed(root_seed: int) -> int:
    """``root_seed``, or ValueError for one that is not for studies, so that their seeds are nobody else's."""
    if root_seed >= RESERVED_ROOT_SEEDS:
        raise ValueError(
            f"{root_seed} is a root seed kept for baseline returns and tuning: take one below {RESERVED_ROOT_SEEDS:,}"
        )
    return root_seed


Positive = Annotated[int, Field(gt=0, strict=True)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[Positive, AfterValidator(check_count)]  # of seeds
RootSeed = Annotated[int, Field(ge=0, strict=True), AfterValidator(check_root_seed)]


def _check_alias(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > 60:
        raise ValueError(f"{text!r} is no short name: it has 1 to 60 printable characters")
    return text


Alias = Annotated[str, AfterValidator(_check_alias)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")]
StudyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # part of names of files and folders

PROTOCOL_VERSION = 2  # raised whenever results stop being comparable; see CHANGELOG.md


class Config(pydantic.BaseModel):
    """Base of every configuration: immutable, and strict about keys and types."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainingLength(NamedTuple):
    """The static length of a lifetime, in the three units that an optimizer may need."""

    updates: int  # rollout + epochs
    epochs: int  # passes over a rollout
    minibatches: int  # optimizer steps per epoch

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps in a lifetime: updates × epochs × minibatches."""
        return self.updates * self.epochs * self.minibatches


class Aliases(Config):
    """Short names of optimizers and environments on boards and figures, by what they are called else."""

    aliases: dict[str, Alias] = Field(default_factory=dict)


class StudyConfig(Aliases):
    """A set of experiments: every optimizer on every environment, with one algorithm, at one budget."""

    name: StudyName
    description: str = ""
    optimizers: tuple[Any, ...] = Field(min_length=1)  # names; in Python also whatever a name may stand for
    environments: tuple[Any, ...] = Field(min_length=1)  # likewise
    algorithm: str | None = None  # each environment's own by default
    budget: str = "quick"
    num_seeds: Count = 4
    root_seed: RootSeed = 0  # of all keys
    meta: str | dict[str, Any] | None = None  # study, or settings, that optimizers without weights are meta-trained by

    @pydantic.field_validator("optimizers", "environments", mode="after")
    @classmethod
    def _names_are_texts_in_files(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        wrong = [value for value in values if isinstance(value, bool | int | float | dict | list) or value is None]
        if wrong:
            raise ValueError(f"{wrong[0]!r} names nothing: write it as a text")
        return values

    @pydantic.field_validator("meta", mode="before")
    @classmethod
    def _settings_are_named(cls, value: Any) -> Any:
        if value is None or isinstance(value, str | dict):
            return value
        if isinstance(value, Config):
            return value.model_dump(exclude_unset=True)
        raise ValueError(f"{value!r} is neither the name of a study nor a table of settings ([meta])")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several hosts joined by ``jax.distributed``; an executor."""

    coordinator: str | None = None  # host:port of the first process
    num_processes: int | None = None
    process_id: int | None = None


RAY = "ray"
EXECUTORS = (RAY,)  # by name


@dataclasses.dataclass(frozen=True)
class Execution:
    """Where and how to run; nothing here but the vmap size can change a number, and that by rounding alone.

    Attributes:
        results: folder to write to.
        devices: how many devices to use; by default all, and on CPU every core is one. With Ray: of each task, 1.
        vmap_size: lifetimes vmapped on one device; by default 1 on CPU, more on accelerators.
        save_agents: keep the trained agents' parameters (``open_bench.load_agent`` reads them).
        executor: None is this process; a ``Cluster`` joins several hosts; "ray" sends the work to a Ray cluster.
        progress: True shows what a terminal or notebook can, False and None nothing; else a watcher of events.
        diagnose: record and store what the algorithm can say of its updates (``load_runs(…).diagnosis``).
        address: of the Ray cluster, HOST:PORT; None: the one that this machine belongs to, else one of this machine.
    """

    results: str | Path = Path("results")
    devices: int | None = None
    vmap_size: int | None = None
    save_agents: bool = False
    executor: Cluster | Literal["ray"] | None = None
    progress: bool | Watcher | None = None
    diagnose: bool = False
    address: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.executor, str):
            check_known("executor", self.executor, EXECUTORS)
        elif not isinstance(self.executor, Cluster | None):
            raise UserError(f"executor: {self.executor!r} is neither None nor a Cluster nor {' or '.join(EXECUTORS)}")
        if self.address is not None and self.executor != RAY:
            raise UserError(f"address {self.address}: it is a Ray cluster's, and goes with executor ray")
        if not (self.progress is None or isinstance(self.progress, bool) or callable(self.progress)):
            raise UserError(f"progress: {self.progress!r} is neither True nor False nor a function that takes an event")

    @property
    def folder(self) -> Path:
        """``results`` as a path."""
        return Path(self.results)

    def but(self, changes: Mapping[str, Any]) -> "Execution":
        """A copy with some fields replaced; raises UserError for a field that there is not."""
        known = [field.name for field in dataclasses.fields(self)]
        for key in changes:
            if key not in known:
                raise UserError(f"unknown argument '{key}'; where and how to run is {', '.join(known)}")
        return dataclasses.replace(self, **changes)


def quiet_xla() -> None:
    """XLA logs what no user can act on, such as tuning flags of cached programs. Must come before JAX is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


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
    if detail["type"] == "value_error":  # our own words, which show the value where that helps
        return f"{key}: {message}" if key and not message.startswith("[") else message
    return f"{key} = {detail['input']!r}: {message}" if key else message


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; raises UserError with the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:  # no text, no TOML, thousands of digits; nested too deeply
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
    return load_named(StudyConfig, "studies", name)


def load_named(model: type[_Model], kind: str, name: str) -> _Model:
    """A study of some kind by name or by path to a TOML."""
    files = shipped(kind)
    if name in files:
        return load(model, files[name])
    if name.endswith(".toml"):
        return load(model, Path(name))
    raise UserError(
        f"unknown study '{name}'.{near_matches(name, files)} "
        f"Known studies: {', '.join(files)}; or give the path of a .toml file."
    )


def several(values: Any) -> Any:
    """One or several as a tuple; None as it is. A gradient transformation is a tuple itself, and one."""
    if isinstance(values, list | tuple) and not hasattr(values, "update"):
        return tuple(values)
    return None if values is None else (values,)
