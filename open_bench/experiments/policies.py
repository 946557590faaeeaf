"""Trained agents of a results folder, as policies to look at."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from open_bench.algorithms.actor_critic import make_agent
from open_bench.config import EnvironmentConfig, PPOConfig
from open_bench.environments.registry import make_environment
from open_bench.errors import UserError
from open_bench.experiments.agents import load_agent
from open_bench.experiments.store import Store
from open_bench.optimizers import names

Policy = Callable[[jax.Array, Any, jax.Array], jax.Array]  # (key, state, observation) → action


def trained_policy(results: Path, config: EnvironmentConfig, name: str, root_seed: int, seed: int) -> Policy:
    """What the agent of a stored seed does: actions are drawn from its policy, as in training.

    Args:
        results: the folder.
        config: the environment that it was trained on, with the PPO settings in its name.
        name: of its optimizer, or of its experiment where there are several.
        root_seed, seed: which lifetime.

    Raises:
        UserError: there is no such agent, there are several, or its observations were normalized.
    """
    experiment, ppo = _find(Store(results), config, name, root_seed)
    if ppo.normalize_observations:
        raise UserError(f"{experiment}: observations were normalized in training, and their statistics are not stored")
    params = load_agent(results / "experiments" / experiment, seed)
    agent = make_agent(make_environment(config), ppo)

    def act(key: jax.Array, state: Any, observation: jax.Array) -> jax.Array:
        del state
        return agent.policy(params, observation[None])[0].sample(key)[0]

    return act


def _find(store: Store, config: EnvironmentConfig, name: str, root_seed: int) -> tuple[str, PPOConfig]:
    """The one experiment that is meant, and its PPO settings."""
    experiments = store.load().experiments
    wanted = name if name in set(experiments["experiment"]) else str(names.parse(name))
    found = [
        (row.experiment, row.budget, settings["ppo"])
        for row in experiments.itertuples()
        if (row.environment, row.root_seed) == (config.name, root_seed) and wanted in (row.optimizer, row.experiment)
        for settings in [json.loads(row.settings)]
        if settings["options"] == config.options
    ]
    if not found:
        raise UserError(
            f"{store.results} holds no agent that {name} trained on {config.name} with root seed {root_seed}: "
            "train it there first, with --save-agents"
        )
    if len(found) > 1:
        choices = ", ".join(f"{experiment} ({budget})" for experiment, budget, _ in found)
        raise UserError(
            f"{store.results} holds several experiments of {name} on {config.name}, take one's name: {choices}"
        )
    ((experiment, _, ppo),) = found
    return experiment, PPOConfig(**ppo)
