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
from tiny import TINY, TINY_PQN, UPDATES, equal, learning, lifetime_of

from open_bench.algorithms.ppo import PPO
from open_bench.algorithms.pqn import PQN
from open_bench.experiments.execute import rows
from open_bench.training.lifetime import Lifetime, make_lifetime
from open_bench.training.mesh import Program, compile_program
from open_bench.training.record import (
    MAX_CURVE_POINTS,
    METRICS,
    Metric,
    curve_ends,
    final_window,
    metrics_of,
)
from open_bench.training.runner import run_lifetimes


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


def compiled(lifetime: Lifetime, inputs: Any = None) -> Program:
    """For one lifetime after the other."""
    return compile_program(lifetime, inputs or {}, jax.devices()[:1], 1, 1)


def key(number: int) -> jax.Array:
    """Of a batch of one."""
    return jax.random.key(number)[None]


def scored(program: Program, number: int = 0, inputs: Any = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that the store would get of the lifetime with this key."""
    (batch,) = run_lifetimes(program, key(number), inputs or {})
    return rows(program.lifetime, list(batch.indices), batch)


def by_updates(program: Program, number: int = 0) -> tuple[Any, list[float]]:
    """The last state of a lifetime that runs an update at a time, and the return of every update."""
    state, returns = program.init(key(number), {}), []
    for _ in range(program.lifetime.num_updates):
        state, progress = program.run(state, {}, 1)
        returns.append(float(progress.episode_return[0]))
    return jax.device_get(state), returns


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 19, 21, 450])
def test_scores_equal_those_of_the_returns_update_by_update(updates: int) -> None:
    """An episode is 11 steps and the rollout 4, so the first updates have no return."""
    environment = Probe(length=11, reward=lambda step, sign, action: sign + 0.37 * action * step)
    program = compiled(lifetime_of(environment, updates=updates))
    state, returns = by_updates(program, 1)
    assert state.update == updates
    whole, _ = program.run(program.init(key(1), {}), {}, updates)
    equal(jax.tree.leaves(state.record), jax.tree.leaves(jax.device_get(whole.record)))
    scores, curves = scored(program, 1)
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


@pytest.mark.slow
def test_episodes_that_never_finish_give_nan_and_no_divergence() -> None:
    scores, curves = scored(compiled(lifetime_of(Probe(never_ends=True), updates=30)))
    assert scores[["final_return", "mean_return"]].isna().all(axis=None)
    assert curves["episode_return"].isna().all()
    assert not scores["diverged"].any()


LAST_STEP = TINY.training_length(UPDATES).optimizer_steps - 1


class Count(NamedTuple):
    steps: jax.Array


def breaking(bad: jax.Array, when: jax.Array) -> optax.GradientTransformation:
    """SGD whose updates have something bad added in one step."""

    def update(updates: Any, state: Count, params: Any = None) -> Any:
        del params
        broken = jnp.where(state.steps == when, bad, 0.0)
        return jax.tree.map(lambda u: -1e-2 * u + broken, updates), Count(state.steps + 1)

    return optax.GradientTransformation(lambda params: Count(jnp.int32(0)), update)


@pytest.fixture(scope="module")
def broken() -> Program:
    """Lifetimes whose inputs say what is added when."""
    algorithm = PPO(TINY, Probe(length=1))
    lifetime = make_lifetime(algorithm, UPDATES, lambda inputs: learning(breaking(**inputs)))
    return compiled(lifetime, {"bad": jnp.float32(0), "when": jnp.int32(0)})


@pytest.mark.parametrize(("bad", "when"), [(np.nan, 20), (np.inf, 20), (np.nan, LAST_STEP), (np.nan, LAST_STEP + 1)])
def test_an_optimizer_that_breaks_down_is_recorded_as_diverged(bad: float, when: int, broken: Program) -> None:
    """Late, so that finite returns were seen before; in the last step only the parameters can tell; after it none."""
    inputs = {"bad": np.float32(bad), "when": np.int32(when)}
    scores, curves = scored(broken, 0, inputs)
    state, _ = broken.run(broken.init(key(0), inputs), inputs, UPDATES)
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.agent.params)))
    assert curves["episode_return"].iloc[0] == 1.0  # before the breakdown
    if when > LAST_STEP:
        assert finite
        assert list(scores["diverged"]) == [False]
        assert list(scores.loc[0, ["final_return", "mean_return"]]) == [1.0, 1.0]
    else:
        assert not finite
        assert list(scores["diverged"]) == [True]
        assert scores.loc[0, ["final_return", "mean_return"]].isna().all()


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


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, TINY_PQN], ids=["ppo", "pqn"])
def test_a_new_statistic_is_one_entry(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made of the returns update by update, as the others; what nobody reports has no column."""
    monkeypatch.setitem(METRICS, "best_return", highest("episode_return"))
    monkeypatch.setitem(METRICS, "best_temperature", highest("temperature"))
    environment = Probe(length=3, reward=lambda step, sign, action: sign + action)
    program = compiled(lifetime_of(environment, config))
    _, returns = by_updates(program)
    scores, _ = scored(program)
    assert scores["best_return"][0] == pytest.approx(np.nanmax(returns), rel=1e-6)
    assert "best_temperature" not in scores
