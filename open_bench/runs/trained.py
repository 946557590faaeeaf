"""Trained agents of a results folder, as policies to look at."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from open_bench.agents.agent import make_agent
from open_bench.config import EnvironmentConfig, PPOConfig
from open_bench.environments.catalogue import make_environment
from open_bench.errors import UserError
from open_bench.optimizers import names
from open_bench.runs.agents import load_agent
from open_bench.runs.store import Store

Policy = Callable[[jax.Array, Any, jax.Array], jax.Array]  # (key, state, observation) → action


def trained_policy(results: Path, config: EnvironmentConfig, name: str, study_seed: int, repetition: int) -> Policy:
    """What the agent of a stored repetition does: actions are drawn from its policy, as in training.

    Args:
        results: the folder.
        config: the environment that it was trained on, with the PPO settings in its name.
        name: of its optimizer, or of its cell where there are several.
        study_seed, repetition: which lifetime.

    Raises:
        UserError: there is no such agent, there are several, or its observations were normalised.
    """
    cell, ppo = _find(Store(results), config, name, study_seed)
    if ppo.normalize_observations:
        raise UserError(f"{cell}: observations were normalised in training, and their statistics are not stored")
    params = load_agent(results / "runs" / cell, repetition)
    agent = make_agent(make_environment(config), ppo)

    def act(key: jax.Array, state: Any, observation: jax.Array) -> jax.Array:
        del state
        return agent.policy(params, observation[None])[0].sample(key)[0]

    return act


def _find(store: Store, config: EnvironmentConfig, name: str, study_seed: int) -> tuple[str, PPOConfig]:
    """The one cell that is meant, and its PPO settings."""
    cells = store.load().cells
    wanted = name if name in set(cells["cell"]) else str(names.parse(name))
    found = [
        (row.cell, row.budget, settings["ppo"])
        for row in cells.itertuples()
        if (row.environment, row.study_seed) == (config.name, study_seed) and wanted in (row.optimizer, row.cell)
        for settings in [json.loads(row.settings)]
        if settings["options"] == config.options
    ]
    if not found:
        raise UserError(
            f"{store.results} holds no agent that {name} trained on {config.name} with study seed {study_seed}: "
            "train it there first, with --save-agents"
        )
    if len(found) > 1:
        choices = ", ".join(f"{cell} ({budget})" for cell, budget, _ in found)
        raise UserError(f"{store.results} holds several cells of {name} on {config.name}, take one's name: {choices}")
    ((cell, _, ppo),) = found
    return cell, PPOConfig(**ppo)
