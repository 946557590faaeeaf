"""Exact returns of levels: known values, Monte Carlo, and the original's."""

import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from gridworlds import golden_level, gridworld, random_action, scene
from hypothesis import given, settings

from open_bench.environments.gridworld.environment import GridworldEnvironment
from open_bench.environments.gridworld.episodes import play
from open_bench.environments.gridworld.levels import Level
from open_bench.environments.gridworld.optimal import (
    optimal_policy,
    optimal_return,
    random_return,
    solve,
)

# --- exact returns ----------------------------------------------------------------------------------------------------


def test_values_that_are_known() -> None:
    corridor = ("S.a", "###", "...")
    value = lambda horizon, thing: optimal_return(scene(*corridor, horizon=horizon, objects=(thing,)))
    assert value(1, (1.0, 0.0, 0.0)) == 0.0  # too far
    assert value(2, (1.0, 0.0, 0.0)) == pytest.approx(1.0)
    assert value(9, (-1.0, 0.0, 1.0)) == 0.0  # better left alone
    assert value(6, (1.0, 0.0, 1.0)) == pytest.approx(3.0)  # collected at steps 2, 4 and 6
    assert value(6, (1.0, 1.0, 1.0)) == pytest.approx(1.0)
    assert value(6, (1.0, 0.5, 1.0)) == pytest.approx(1 + 0.5 + 0.25)
    assert value(3, (1.0, 0.0, 0.3)) == pytest.approx(1.0)
    assert value(4, (1.0, 0.0, 0.3)) == pytest.approx(1.3)  # back in step 3, collected in step 4
    single = scene("Sa", "##", horizon=1, objects=((1.0, 0.0, 0.0),))
    assert random_return(single) == pytest.approx(0.2)  # one action of five


def returns_of(environment: GridworldEnvironment, level: Level, policy: Any, episodes: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(11), episodes)
    played = jax.jit(jax.vmap(lambda key: play(environment, level, policy, key)))(keys)
    return np.asarray(played.reward.sum(1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 4])
def test_policies_return_their_values(seed: int) -> None:
    """By Monte Carlo: the optimal policy what dynamic programming says, the random one its own value, far below."""
    environment = gridworld("small")
    level = environment.level(jax.random.key(seed))
    solution = solve(level)
    best = returns_of(environment, level, optimal_policy(solution), 4000)
    random = returns_of(environment, level, random_action, 4000)
    error = lambda values: 4 * values.std() / math.sqrt(len(values)) + 1e-4
    assert abs(best.mean() - solution.value) < error(best)
    assert abs(random.mean() - random_return(level)) < error(random)
    assert random_return(level) < solution.value
    assert random.mean() < best.mean() - error(best) - error(random)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_no_policy_beats_the_optimum(seed: int) -> None:
    environment = gridworld("small", max_steps=30)
    level = environment.level(jax.random.key(seed))
    solution = solve(level)
    assert random_return(level) <= solution.value + 1e-9
    assert solution.value == pytest.approx(optimal_return(level))
    # A good object nearby is worth at least a walk to it: doing nothing is never better.
    assert solution.value >= -1e-9


def test_an_optimal_policy_does_not_dawdle() -> None:
    environment = gridworld("small", min_size=3, max_size=3, min_objects=1, max_objects=1, walls=0, max_steps=40)
    level = scene("S..", "...", "..a", horizon=40, objects=((1.0, 1.0, 0.0),))
    episode = jax.jit(lambda: play(environment, level, optimal_policy(solve(level)), jax.random.key(0)))()
    assert int(episode.length) == 4
    assert bool(episode.terminated)


@pytest.mark.parametrize("name", ["sparse", "small"])
def test_the_originals_optimal_returns(name: str, golden: Path) -> None:
    data = np.load(golden / "gridworld.npz")
    level = golden_level(data, f"optimal_{name}")
    assert optimal_return(level) == pytest.approx(float(data[f"optimal_{name}/optimal_return"]), abs=1e-4)
