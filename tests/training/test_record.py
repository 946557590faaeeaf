"""The record of a lifetime: its arithmetic against plain Python, what diverged, and metrics as one table."""

import itertools
from typing import Any, NamedTuple

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from hypothesis import given
from probes import Probe
from tiny import TINY, TINY_PQN, UPDATES, equal, finished, lifetime_of, run_jitted

from open_bench.algorithms.ppo import PPO
from open_bench.algorithms.pqn import PQN
from open_bench.experiments.execute import rows
from open_bench.training.lifetime import Lifetime
from open_bench.training.mesh import compile_program
from open_bench.training.record import (
    MAX_CURVE_POINTS,
    METRICS,
    Metric,
    curve_ends,
    final_window,
    metrics_of,
)


@given(st.integers(1, 10**7))
def test_curve_points_cover_the_lifetime(updates: int) -> None:
    ends = curve_ends(updates)
    assert ends[-1] == updates
    assert len(ends) == min(updates, MAX_CURVE_POINTS)
    assert (np.diff(ends) > 0).all()
    assert ends[0] >= 1


@given(st.integers(1, 10**7))
def test_the_final_window_is_five_per_cent_rounded_up(updates: int) -> None:
    window = final_window(updates)
    assert window >= 1
    assert (window - 1) * 20 < updates <= window * 20


def scored(lifetime: Lifetime, keys: list[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that the store would get of lifetimes with these keys."""
    program = compile_program(lifetime, {}, jax.devices()[:1], 1, len(keys))
    batches = finished(program, jax.vmap(jax.random.key)(jnp.asarray(keys)))
    tables = [rows(lifetime, list(batch.indices), batch) for batch in batches]
    scores, curves = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    return scores, curves


@pytest.mark.parametrize("updates", [1, 19, 21, 450])
def test_scores_equal_those_of_the_returns_update_by_update(updates: int) -> None:
    """An episode is 11 steps and the rollout 4, so the first updates have no return."""
    environment = Probe(length=11, reward=lambda step, sign, action: sign + 0.37 * action * step)
    lifetime = lifetime_of(environment, updates=updates)
    run = jax.jit(lifetime.run)
    state, returns = jax.jit(lifetime.init)(jax.random.key(1), {}), []
    for _ in range(updates):
        state, progress = run(state, {}, 1)
        returns.append(float(progress.episode_return))
    assert int(state.update) == updates
    whole = run_jitted(lifetime, root_seed=1)
    equal(jax.tree.leaves(jax.device_get(state.record)), jax.tree.leaves(whole.record))
    scores, curves = scored(lifetime, [1])
    values = np.asarray(returns, np.float64)
    assert np.isnan(values[:2]).all()
    mean = lambda part: np.nan if np.isnan(part).all() else np.nanmean(part)
    window = max(1, int(np.ceil(0.05 * updates)))
    np.testing.assert_allclose(scores["final_return"], [mean(values[-window:])], rtol=1e-5)
    np.testing.assert_allclose(scores["mean_return"], [mean(values)], rtol=1e-5)
    assert list(scores["env_steps"]) == [updates * TINY.env_steps_per_update]
    assert not scores["diverged"].any()
    ends = [0, *(-(-(i + 1) * updates // min(updates, 200)) for i in range(min(updates, 200)))]
    expected = [mean(values[a:b]) for a, b in itertools.pairwise(ends)]
    assert list(curves["env_steps"]) == [end * TINY.env_steps_per_update for end in ends[1:]]
    np.testing.assert_allclose(curves["episode_return"], expected, rtol=1e-5)


def test_episodes_that_never_finish_give_nan_and_no_divergence() -> None:
    scores, curves = scored(lifetime_of(Probe(never_ends=True), updates=30), [0])
    assert scores[["final_return", "mean_return"]].isna().all(axis=None)
    assert curves["episode_return"].isna().all()
    assert not scores["diverged"].any()


LAST_STEP = TINY.training_length(UPDATES).optimizer_steps - 1


@pytest.mark.parametrize(("bad", "when"), [(np.nan, 20), (np.inf, 20), (np.nan, LAST_STEP)])
def test_an_optimizer_that_breaks_down_is_recorded_as_diverged(bad: float, when: int) -> None:
    """Late, so that finite returns were seen before; in the last step only the parameters can tell."""

    class Count(NamedTuple):
        steps: jax.Array

    def update(updates: Any, state: Count, params: Any = None) -> Any:
        del params
        broken = jnp.where(state.steps == when, bad, 0.0)
        return jax.tree.map(lambda u: -1e-2 * u + broken, updates), Count(state.steps + 1)

    optimizer = optax.GradientTransformation(lambda params: Count(jnp.int32(0)), update)
    lifetime = lifetime_of(Probe(length=1), optimizer=optimizer)
    scores, curves = scored(lifetime, [0])
    assert list(scores["diverged"]) == [True]
    assert scores.loc[0, ["final_return", "mean_return"]].isna().all()
    assert curves["episode_return"].iloc[0] == 1.0  # before the breakdown
    params = run_jitted(lifetime).agent.params
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    healthy, _ = scored(lifetime_of(Probe(length=1)), [0])
    assert list(healthy["diverged"]) == [False]
    assert list(healthy.loc[0, ["final_return", "mean_return"]]) == [1.0, 1.0]


# --- the table of metrics ---------------------------------------------------------------------------------------------


def test_an_algorithm_has_the_metrics_of_what_it_reports() -> None:
    assert metrics_of(PPO.reports) == ("final_return", "mean_return")
    assert metrics_of(PQN.reports) == ("final_return", "mean_return", "greedy_return")


def highest(value: str) -> Metric:
    """The highest of a reported value."""
    return Metric(
        "best return",
        value,
        lambda: jnp.float32(-jnp.inf),
        lambda best, shown: jnp.fmax(best, shown.values[value]),
        lambda best: np.where(np.isfinite(best), best, np.nan).astype(np.float64),
    )


@pytest.mark.parametrize("config", [TINY, TINY_PQN], ids=["ppo", "pqn"])
def test_a_new_statistic_is_one_entry(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made of the returns update by update, as the others; what nobody reports has no column."""
    monkeypatch.setitem(METRICS, "best_return", highest("episode_return"))
    monkeypatch.setitem(METRICS, "best_temperature", highest("temperature"))
    environment = Probe(length=3, reward=lambda step, sign, action: sign + action)
    lifetime = lifetime_of(environment, config)
    run, returns = jax.jit(lifetime.run), []
    state = jax.jit(lifetime.init)(jax.random.key(0), {})
    for _ in range(UPDATES):
        state, progress = run(state, {}, 1)
        returns.append(float(progress.episode_return))
    scores, _ = scored(lifetime, [0])
    assert scores["best_return"][0] == pytest.approx(np.nanmax(returns), rel=1e-6)
    assert "best_temperature" not in scores
