"""A trained agent lies between the random policy and the optimal one of its level."""

from pathlib import Path

import jax
import numpy as np
import pytest

import open_bench
from open_bench.environments.gridworld.environment import GridworldEnvironment
from open_bench.environments.gridworld.episodes import play
from open_bench.environments.gridworld.optimal import optimal_return, random_return
from open_bench.environments.registry import make_environment
from open_bench.experiments.policies import trained_policy
from open_bench.training.keys import lifetime_keys, stream
from open_bench.training.task import make_task

SETTINGS = {"num_envs": 64, "num_steps": 32, "num_minibatches": 4, "update_epochs": 4}
SEEDS = 4
NAME = "gridworld/small"
OPTIMIZER = "adam:learning_rate=5e-3"


@pytest.mark.slow
@pytest.mark.usefixtures("optimized_test")
def test_a_trained_agent_lies_between_random_and_optimal(tmp_path: Path) -> None:
    config = make_task(NAME, settings=SETTINGS).environment
    environment = make_environment(config)
    assert isinstance(environment, GridworldEnvironment)
    keys = lifetime_keys(0, config.name, list(range(SEEDS)))
    levels = [environment.level(stream(key, "environment")) for key in keys]
    random, optimal = (np.array([value(level) for level in levels]) for value in (random_return, optimal_return))
    scores = open_bench.train(
        OPTIMIZER, NAME, steps=300_000, num_seeds=SEEDS, settings=SETTINGS, results=tmp_path, save_agents=True
    )
    trained = scores["final_return"].to_numpy()
    # A return is a mean over episodes, so it may pass the expected optimum by its noise.
    assert (trained < optimal + 0.15 * (optimal - random)).all(), (random, trained, optimal)
    assert trained.mean() > random.mean() + 0.5 * (optimal - random).mean(), (random, trained, optimal)

    # The stored agents, taken up again, do what they had learned.
    for seed, level in enumerate(levels):
        policy = trained_policy(tmp_path, config, OPTIMIZER, 0, seed)
        episodes = jax.vmap(lambda key, level=level, policy=policy: play(environment, level, policy, key))
        played = jax.jit(episodes)(jax.random.split(jax.random.key(seed), 500)).reward.sum(1).mean()
        assert abs(played - trained[seed]) < 0.15 * (optimal - random)[seed]
