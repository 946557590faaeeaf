"""Environments by name: the configurations that ship, a TOML of the user's, any gymnax id, or any Brax task."""

from pathlib import Path

from open_bench.config import load, shipped
from open_bench.environments import brax_names, gymnax_ids, make
from open_bench.environments.base import Environment
from open_bench.environments.config import EnvironmentConfig
from open_bench.environments.gridworld.levels import inlined
from open_bench.errors import UserError, near_matches

BRAX = "brax/"  # begins the name of a Brax task: brax/TASK, or brax/TASK/BACKEND
BRAX_LIKE = "ant"  # shipped environment whose PPO settings and budgets every Brax task gets


def load_environment(name: str | EnvironmentConfig) -> EnvironmentConfig:
    """The configuration of an environment.

    Args:
        name: a shipped environment, a path to a TOML, a gymnax id (which gets the default PPO settings), or a Brax task
            as in brax/reacher or brax/reacher/spring (which gets those of the shipped Brax environments).

    Raises:
        UserError: for an unknown name, with near matches, or a bad file, naming the key.
    """
    if isinstance(name, EnvironmentConfig):
        return name
    files = shipped("environments")
    if name in files:
        return load(EnvironmentConfig, files[name])
    if name.endswith(".toml"):
        return _own(load(EnvironmentConfig, Path(name)), Path(name), files)
    ids = gymnax_ids()
    if name in ids:
        return _default_environment(name)
    tasks = brax_names()
    if name.startswith(BRAX) and name.split("/")[1] in tasks:
        return _brax_environment(name, load(EnvironmentConfig, files[BRAX_LIKE]))
    known = [*files, *ids, *(f"{BRAX}{task}" for task in tasks)]
    raise UserError(
        f"unknown environment '{name}'.{near_matches(name, known)} `openbench list environments` shows all of them."
    )


def _own(config: EnvironmentConfig, path: Path, files: dict[str, Path]) -> EnvironmentConfig:
    """A user's environment, whose name must not claim a shipped one's references and tuned hyperparameters.

    The path of a maze is relative to the file; the map takes its place, so that an edited one is another task.
    """
    if config.source.startswith("gridworld:"):
        config = config.model_copy(update={"options": inlined(config.options, path.parent)})
    if config.name in files and config != load(EnvironmentConfig, files[config.name]):
        raise UserError(
            f"{path}: '{config.name}' is the name of a shipped environment that differs; choose another name"
        )
    return config


def make_environment(config: EnvironmentConfig) -> Environment:
    """The task that a configuration names."""
    return make(config.source, **config.options)


def _default_environment(gymnax_id: str) -> EnvironmentConfig:
    return EnvironmentConfig(
        name=gymnax_id,
        description=f"gymnax {gymnax_id} with the default PPO settings",
        family="gymnax",
        source=f"gymnax:{gymnax_id}",
        budgets={"quick": 100_000, "short": 500_000, "full": 5_000_000},
    )


def _brax_environment(name: str, like: EnvironmentConfig) -> EnvironmentConfig:
    """brax/TASK or brax/TASK/BACKEND, with the PPO settings and budgets of ``like``."""
    task, slash, backend = name.removeprefix(BRAX).partition("/")
    return EnvironmentConfig(
        name=name,
        description=f"Brax {task} with the PPO settings of {like.name}",
        family=like.family,
        source=f"brax:{task}",
        options={**like.options, **({"backend": backend} if slash else {})},
        algorithms=like.algorithms,
        budgets=like.budgets,
    )
