"""Environments by name: the configurations that ship, a TOML of the user's, or any gymnax id."""

from pathlib import Path

from open_bench.config import EnvironmentConfig, load, shipped
from open_bench.environments import gymnax_ids, make
from open_bench.environments.base import Environment
from open_bench.errors import UserError, near_matches


def load_environment(name: str) -> EnvironmentConfig:
    """The configuration of an environment.

    Args:
        name: a shipped environment, a path to a TOML, or a gymnax id (which gets the default PPO settings).

    Raises:
        UserError: for an unknown name, with near matches, or a bad file, naming the key.
    """
    files = shipped("environments")
    if name in files:
        return load(EnvironmentConfig, files[name])
    if name.endswith(".toml"):
        return _own(load(EnvironmentConfig, Path(name)), name, files)
    ids = gymnax_ids()
    if name in ids:
        return _default_environment(name)
    raise UserError(
        f"unknown environment '{name}'.{near_matches(name, [*files, *ids])} "
        "`openbench list environments` shows all of them."
    )


def _own(config: EnvironmentConfig, path: str, files: dict[str, Path]) -> EnvironmentConfig:
    """A user's environment, whose name must not claim a shipped one's references and tuned hyperparameters."""
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
