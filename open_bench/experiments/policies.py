"""Trained agents of a results folder, as policies to look at."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from open_bench.algorithms.registry import RANDOM, build_config
from open_bench.environments.config import EnvironmentConfig
from open_bench.environments.registry import load_environment
from open_bench.errors import UserError
from open_bench.experiments.agents import load_agent
from open_bench.experiments.store import EXPERIMENTS, Store
from open_bench.optimizers import names
from open_bench.training.keys import lifetime_keys, stream
from open_bench.training.task import Task, make_task

Policy = Callable[[jax.Array, Any, jax.Array], jax.Array]  # (key, state, observation) → action


def draw_level(
    environment: Any, *, algorithm: str | None = None, settings: Mapping[str, Any] | None = None, root_seed: int = 0,
    seed: int = 0, path: str | None = None, png: Path | None = None, results: Path = Path("results"),
) -> str:  # fmt: skip
    """The level that a seed trains on, as text, with an episode where one is asked for.

    Args:
        environment: one that has levels; ``algorithm`` and ``settings`` as it was trained with.
        root_seed, seed: whose level.
        path: who plays an episode: "optimal", "random", or an optimizer whose agent lies in ``results``.
        png: also draw a picture into this file.

    Raises:
        UserError: no levels, no such agent, or the picture cannot be written.
    """
    config = load_environment(environment)
    longest = max(config.budgets.values())
    task = make_task(config, algorithm=algorithm, steps=longest, settings=settings)
    key = stream(lifetime_keys(root_seed, task.name, [seed])[0], "environment")
    player: Any = path
    if path not in (None, "optimal", "random"):
        policy = trained_policy(results, task.environment, path, root_seed, seed)
        player = (f"the agent that {path} trained", policy)
    return task.make_environment().draw(task.name, key, player, png)


def trained_policy(results: Path, config: EnvironmentConfig, name: str, root_seed: int, seed: int) -> Policy:
    """What the agent of a stored seed does: actions are drawn from its policy, as in training.

    Args:
        results: the folder.
        config: the environment that it was trained on, with the settings in its name.
        name: of its optimizer, or of its experiment where there are several.
        root_seed, seed: which lifetime.

    Raises:
        UserError: there is no such agent, there are several, or its observations were normalized.
    """
    experiment, task = _find(Store(results), config, name, root_seed)
    algorithm = task.make_algorithm()
    if not task.settings.observes_as_given:
        raise UserError(f"{experiment}: observations were normalized in training, and their statistics are not stored")
    params = load_agent(results / EXPERIMENTS / experiment, seed)

    def act(key: jax.Array, state: Any, observation: jax.Array) -> jax.Array:
        del state
        return algorithm.policy(params, observation[None]).sample(key)[0]

    return act


def _find(store: Store, config: EnvironmentConfig, name: str, root_seed: int) -> tuple[str, Task]:
    """The one experiment that is meant, and its task."""
    stored = store.load().experiments
    wanted = name if name in set(stored["experiment"]) else str(names.parse(name))
    found = [
        (row, json.loads(row.settings))
        for row in stored.itertuples()
        if (row.environment, row.root_seed) == (config.name, root_seed)
        and wanted in (row.optimizer, row.experiment)
        and row.algorithm != RANDOM
        and json.loads(row.settings)["options"] == config.options
    ]
    if not found:
        raise UserError(
            f"{store.results} holds no agent that {name} trained on {config.name} with root seed {root_seed}: "
            "train it there first, with --save-agents"
        )
    if len(found) > 1:
        choices = ", ".join(f"{row.experiment} ({row.budget})" for row, _ in found)
        raise UserError(f"{store.results} holds several experiments of {name} on {config.name}, take one: {choices}")
    ((row, settings),) = found
    chosen = build_config(row.algorithm, settings["algorithm"], row.experiment)
    return row.experiment, Task(config, row.algorithm, chosen, row.budget, row.env_steps, config.name)
