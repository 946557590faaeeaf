"""Environments by name or as Python objects: what ships, a TOML, ids of suites, classes of the user's, plug-ins."""

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from open_bench import plugins
from open_bench.config import build, load, shipped
from open_bench.environments import user_classes
from open_bench.environments.base import Environment, Options
from open_bench.environments.config import EnvironmentConfig
from open_bench.errors import UserError, near_matches

# What a source begins with → the class that takes the rest and the options; a suite is imported when first used.
ADAPTERS = {
    "gymnax": "open_bench.environments.gymnax:GymnaxEnvironment",
    "gridworld": "open_bench.environments.gridworld.environment:GridworldEnvironment",
    "brax": "open_bench.environments.brax:BraxEnvironment",
    "craftax": "open_bench.environments.craftax:CraftaxEnvironment",
}
ENTRY_POINTS = "open_bench.environments"  # name → Environment class, in packages that are installed
BRAX = "brax/"  # begins the name of a Brax task: brax/TASK, or brax/TASK/BACKEND
BRAX_LIKE = "ant"  # shipped environment whose settings and budgets every Brax task gets
BUDGETS = {"quick": 100_000, "short": 500_000, "full": 5_000_000}  # of what has no configuration


def load_environment(given: str | EnvironmentConfig | Environment | type[Environment]) -> EnvironmentConfig:
    """The configuration of an environment.

    Args:
        given: a shipped environment; the path of a TOML; a gymnax id or a class of the user's, ``module:Class`` or a
            plug-in's name (which get the default settings); a Brax task as in brax/reacher or brax/reacher/spring
            (which gets those of the shipped Brax environments). Or a configuration, an environment, or its class.

    Raises:
        UserError: for an unknown name, with near matches, a bad file, naming the key, or a class without the interface.
    """
    if isinstance(given, str):
        return _named(given)
    if isinstance(given, EnvironmentConfig):
        return _own(given, f"environment {given.name}", Path())
    return _of_object(given)


def _named(name: str) -> EnvironmentConfig:
    files = shipped("environments")
    if name in files:
        return load(EnvironmentConfig, files[name])
    if name.endswith(".toml"):
        return _of_file(Path(name))
    if name in (found := plugins.installed(ENTRY_POINTS)):
        return _own(_default(name, f"{name}, a plug-in", "plug-in", found[name]), f"plug-in '{name}'", Path())
    if _is_class(name):
        return _of_class(name, user_classes.check_class(name, plugins.load_attribute("environment", name)))
    if name in identifiers("gymnax"):
        return _default(name, f"gymnax {name} with the default settings", "gymnax", f"gymnax:{name}")
    if name.startswith(BRAX) and name.split("/")[1] in identifiers("brax"):
        return _brax_environment(name, load(EnvironmentConfig, files[BRAX_LIKE]))
    known = [*files, *found, *identifiers("gymnax"), *(f"{BRAX}{task}" for task in identifiers("brax"))]
    raise UserError(
        f"unknown environment '{name}'.{near_matches(name, known)} `openbench list environments` shows all of them."
    )


def identifiers(adapter: str) -> list[str]:
    """All tasks of a suite; that of Brax takes seconds to import."""
    return plugins.load_attribute("adapter", ADAPTERS[adapter]).identifiers()


# --- making one -------------------------------------------------------------------------------------------------------


def make_environment(config: EnvironmentConfig) -> Environment:
    """The task that a configuration names; raises UserError where its options do not fit."""
    thing = config._object
    if isinstance(thing, type):
        return user_classes.construct(config.source, thing, config.options)
    if thing is None:
        return make(config.source, **config.options)
    if config.options:
        raise UserError(f"{config.name} was given as an object, so it has no options: {', '.join(config.options)}")
    return thing


def make(source: str, /, **options: bool | int | float | str) -> Environment:
    """An environment from its source: "gymnax:Breakout-MinAtar", "brax:ant", …, or "module:Class" of the user's."""
    adapter, _, identifier = source.partition(":")
    kind = _class_of(source)
    if adapter not in ADAPTERS:
        return user_classes.construct(source, kind, options)
    try:
        return kind(identifier, **options)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # what a suite makes of odd numbers
        raise UserError(f"{source} cannot be made with {options}: {type(error).__name__}: {error}") from None


def _is_class(source: str) -> bool:
    """Whether a source is of the form ``module:Class``."""
    module, _, attribute = source.partition(":")
    words = [*module.split("."), *attribute.split(".")]
    return module not in ADAPTERS and all(word.isidentifier() for word in words)


def _class_of(source: str) -> Any:
    """The class that makes a source's environments; an adapter's takes the identifier first."""
    adapter = source.partition(":")[0]
    if adapter in ADAPTERS:
        return plugins.load_attribute("adapter", ADAPTERS[adapter])
    if _is_class(source):
        return user_classes.check_class(source, plugins.load_attribute("environment", source))
    raise UserError(
        f"unknown environment source '{source}': it must begin with {', '.join(f'{name}:' for name in ADAPTERS)} or be "
        f"module:Class.{near_matches(adapter, ADAPTERS)}"
    )


def is_ours(source: str) -> bool:
    """Whether making an environment imports no code from outside."""
    return source.partition(":")[0] in ADAPTERS


def stored_environment(
    name: str, source: str, options: Options, version: int, family: str, budgets: Mapping[str, int]
) -> EnvironmentConfig:
    """The configuration that a stored experiment tells of; a class of the user's is imported.

    The version is the shipped one's where the environment ships, so that an older one is told apart.
    """
    base = re.split(r"[\[{]", name)[0]
    if base in (files := shipped("environments")):
        version = load(EnvironmentConfig, files[base]).version
    values = {"name": "stored", "description": "stored", "family": family, "source": source, "version": version,
              "options": dict(options), "budgets": dict(budgets)}  # fmt: skip
    config = build(EnvironmentConfig, values, f"environment {name}").model_copy(update={"name": name})
    return config.made_by(plugins.file_digest(_class_of(source))) if _is_class(source) else config


# --- environments of the user's ---------------------------------------------------------------------------------------


def _of_file(path: Path) -> EnvironmentConfig:
    """A user's TOML. That its environment can be made is found here, where the file's name is known."""
    config = load(EnvironmentConfig, path)
    with _naming(str(path)):
        config = _own(config, str(path), path.parent)
        user_classes.check_instance(config.source, make_environment(config))
    return config


@contextlib.contextmanager
def _naming(origin: str) -> Iterator[None]:
    """User errors say where they come from."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(origin) else f"{origin}: {error}") from None


def _own(config: EnvironmentConfig, origin: str, folder: Path) -> EnvironmentConfig:
    """A user's configuration, whose name must not claim a shipped one's baseline returns and tuned hyperparameters.

    What files say (a maze's map, relative to ``folder``) takes the place of their paths, and a class gets the digest of
    its file: an edited one is another task.
    """
    if config._object is None:
        kind = _class_of(config.source)
        config = config.model_copy(update={"options": kind.read_files(config.options, folder)})
        if _is_class(config.source):
            config = config.made_by(plugins.file_digest(kind))
    files = shipped("environments")
    if config.name in files and config != load(EnvironmentConfig, files[config.name]):
        raise UserError(
            f"{origin}: '{config.name}' is the name of a shipped environment that differs; choose another name"
        )
    return config


def _of_object(given: Any) -> EnvironmentConfig:
    """An environment or its class. Arguments of an instance are not known, so it is never taken from the store."""
    kind = given if isinstance(given, type) else type(given)
    source = f"{kind.__module__}:{kind.__qualname__}"
    if given is kind:
        kind = user_classes.check_class(source, kind)
        return _of_class(source, kind) if plugins.is_importable(kind) else _of_class(kind.__name__, kind, kind)
    if not isinstance(given, Environment):
        raise UserError(
            f"a {source} is no environment of open-bench: give a name ('CartPole-v1'), the path of a TOML, or an "
            "object or class derived from open_bench.environments.Environment"
        )
    user_classes.check_instance(source, given)
    return _default(kind.__name__, _description(kind), "own", source).made_by(None, given)


def _of_class(name: str, kind: type[Environment], thing: type[Environment] | None = None) -> EnvironmentConfig:
    """A class with the default settings; rows show the digest of its file, so that an edited one is another row.

    ``thing`` is the class again where it cannot be imported by its name.
    """
    digest = plugins.file_digest(kind)
    config = _default(kind.__name__, _description(kind), "own", f"{kind.__module__}:{kind.__qualname__}")
    return config.model_copy(update={"name": f"{name}#{digest}" if digest else name}).made_by(digest, thing)


def told_apart(environments: Sequence[Any]) -> Any:
    """The environments, objects that are known to this process alone numbered where they would have one name."""

    def name_of(given: Any) -> str | None:
        config = None if isinstance(given, str) else load_environment(given)
        return config.name if config is not None and not config.stored else None

    return plugins.told_apart(
        environments, name_of, lambda given, name: load_environment(given).model_copy(update={"name": name})
    )


def _description(kind: type) -> str:
    return (inspect.getdoc(kind) or kind.__name__).strip().splitlines()[0].rstrip(".")


def _default(name: str, description: str, family: str, source: str) -> EnvironmentConfig:
    return EnvironmentConfig(name=name, description=description, family=family, source=source, budgets=BUDGETS)


def _brax_environment(name: str, like: EnvironmentConfig) -> EnvironmentConfig:
    """brax/TASK or brax/TASK/BACKEND, with the settings and budgets of ``like``."""
    task, slash, backend = name.removeprefix(BRAX).partition("/")
    return EnvironmentConfig(
        name=name,
        description=f"Brax {task} with the settings of {like.name}",
        family=like.family,
        source=f"brax:{task}",
        options={**like.options, **({"backend": backend} if slash else {})},
        algorithms=like.algorithms,
        budgets=like.budgets,
    )


# --- what an environment is asked -------------------------------------------------------------------------------------


def read_files(config: EnvironmentConfig, options: Options) -> dict[str, bool | int | float | str]:
    """Options for an environment with what files say in place of their paths."""
    return _class_of(config.source).read_files(options, Path())


def has_levels(config: EnvironmentConfig) -> bool:
    """Whether a lifetime draws a level from its key."""
    level = make_environment(config).level
    return bool(jax.tree.leaves(jax.eval_shape(level, jax.random.key(0))))


def same_task(config: EnvironmentConfig, other: EnvironmentConfig) -> bool:
    """Whether two configurations make one task: the same options, or others that spell out what holds anyway."""
    here, there = (config.source, config.options), (other.source, other.options)
    return here == there or _shifts(here, there) == _shifts(there, here) == ()


def task_shifts(config: EnvironmentConfig, source: str, options: Options) -> tuple[str, ...]:
    """What of a task lies outside of another one: "environment", what the environment says of itself, or options."""
    found = _shifts((config.source, config.options), (source, options))
    if found is not None:
        return found
    if config.source != source:
        return ("environment",)
    keys = {*config.options, *options}
    return tuple(sorted(key for key in keys if config.options.get(key) != options.get(key)))


def _shifts(task: tuple[str, Options], trained: tuple[str, Options]) -> tuple[str, ...] | None:
    """What the environment of ``task`` (source and options) says lies outside of another; None: it does not say."""
    try:
        kinds = {_class_of(task[0]), _class_of(trained[0])}
        if len(kinds) > 1 or kinds.pop().shifts_from is Environment.shifts_from:  # making one may take seconds
            return None
        return make(task[0], **task[1]).shifts_from(make(trained[0], **trained[1]))
    except UserError:  # a maze or a class of the user's that is not here
        return None
