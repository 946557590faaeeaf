"""Evolution: its direction, ranks and pairs, schedules, and what stops it."""

from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
from tiny_meta import TARGET, fitness_of, quadratic, theta_of, vector

from open_bench.errors import UserError
from open_bench.events import Event, Started
from open_bench.meta_training import evolution
from open_bench.meta_training.checkpoint import Checkpoints
from open_bench.meta_training.evolution import Strategy, evolve
from open_bench.meta_training.fitness import Fitness, pair_scores
from open_bench.meta_training.spec import ANTITHETIC, MetaConfig


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["Open_ES", "SNES", "CMA_ES", "PGPE"])
def test_evolution_climbs_towards_higher_fitness(strategy: str) -> None:
    config = MetaConfig(strategy=strategy, population=16, generations=40, sigma=0.1, learning_rate=0.1, b1=0.9)
    evolved = evolve(config, theta_of(0, 0, 0), quadratic)
    assert np.linalg.norm(vector(evolved.theta) - TARGET) < 0.5 < np.linalg.norm(TARGET)
    fitness = [row["fitness_mean"] for row in evolved.history]
    assert fitness[-1] > fitness[0] + 1.0
    assert evolved.best_fitness == max(fitness)
    assert [row["generation"] for row in evolved.history] == list(range(1, 41))
    assert evolved.history[-1]["lifetimes"] == 40 * 16
    assert evolved.history[-1]["env_steps"] == 40 * 160


def test_the_best_theta_is_where_the_fittest_generation_was_sampled() -> None:
    """Fitness falls after the third generation, so the best mean is the one before it."""
    seen: list[np.ndarray] = []

    def evaluate(population: Any, generation: int) -> Fitness:
        members = np.asarray(population["optimizer"]["a"])
        seen.append(members.mean(axis=0))  # antithetic pairs cancel
        return Fitness(members[:, 0] + (100.0 if generation == 2 else 0.0))

    evolved = evolve(MetaConfig(population=8, generations=6), theta_of(0, 0), evaluate)
    np.testing.assert_allclose(vector(evolved.best), seen[2], atol=1e-6)
    assert not np.allclose(vector(evolved.theta), seen[2], atol=1e-6)


@pytest.mark.parametrize(("every", "at"), [(0, []), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_the_mean_is_compared_now_and_then_and_at_the_end(every: int, at: list[int]) -> None:
    config = MetaConfig(population=4, generations=5, sigma=0.1, evaluate_every=every)
    evolved = evolve(config, theta_of(0, 0, 0), quadratic, evaluate_mean=lambda theta: {"return.cartpole": 1.0})
    assert [row["generation"] for row in evolved.history if "return.cartpole" in row] == at


@pytest.mark.parametrize("strategy", ANTITHETIC)
def test_member_i_and_the_one_half_a_population_later_are_mirror_images(strategy: str) -> None:
    """What antithetic task sampling relies on, of the populations that evosax really draws."""
    strategy_ = Strategy(MetaConfig(strategy=strategy, population=8, sigma=0.3), theta_of(3.0, -2.0))
    state = strategy_.start()
    for generation in range(2):
        population, state = strategy_.ask(generation, state)
        drawn, mean = vector(population).reshape(8, 2), vector(strategy_.theta(state))
        np.testing.assert_allclose(drawn[:4] + drawn[4:], np.tile(2 * mean, (4, 1)), atol=1e-5)
        assert len(np.unique(drawn, axis=0)) == 8
        state = strategy_.tell(generation, population, np.arange(8.0), state)


def test_antithetic_pairs_are_mirror_images_of_the_right_spread() -> None:
    config = MetaConfig(population=400, sigma=0.25)
    strategy = Strategy(config, theta_of(3.0, -2.0))
    members = np.asarray(strategy.ask(0, strategy.start())[0]["optimizer"]["a"])
    np.testing.assert_allclose(members[:200] + members[200:], np.tile([6.0, -4.0], (200, 1)), atol=1e-5)
    assert np.std(members, axis=0) == pytest.approx(0.25, rel=0.15)
    assert len(np.unique(members, axis=0)) == 400


def test_every_generation_draws_anew_and_the_seed_decides() -> None:
    strategy, other = (Strategy(MetaConfig(population=4, root_seed=seed), theta_of(0.0)) for seed in (0, 1))
    state = strategy.start()
    draws = [np.asarray(s.ask(g, state)[0]["optimizer"]["a"]) for s, g in ((strategy, 0), (strategy, 1), (other, 0))]
    assert all(not np.array_equal(draws[i], draws[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_centered_ranks_put_the_failed_last() -> None:
    cost = evolution.to_minimize(np.asarray([5.0, np.nan, -1e6, 7.0, np.nan]))
    assert np.isfinite(cost).all()
    ranks = np.asarray(evolution.centered_ranks(None, cost, None, None))
    np.testing.assert_allclose(ranks, [-0.25, 0.375, 0.0, -0.5, 0.375])
    direct = np.asarray(evolution.centered_ranks(None, np.asarray([-5.0, np.nan, 1e6]), None, None))
    np.testing.assert_allclose(direct, [-0.5, 0.5, 0.0])


def test_the_mean_moves_away_from_a_failed_member() -> None:
    strategy = Strategy(MetaConfig(population=2, sigma=0.1), theta_of(0.0))
    population, state = strategy.ask(0, strategy.start())
    first = float(population["optimizer"]["a"][0, 0])
    after = strategy.theta(strategy.tell(0, population, np.asarray([np.nan, -1e9]), state))
    assert np.sign(vector(after)[0]) == -np.sign(first)


@pytest.mark.parametrize("value", [9.5, np.nan])
@pytest.mark.parametrize("population", [4, 6, 64])
def test_where_all_members_tie_the_mean_stays(value: float, population: int) -> None:
    strategy = Strategy(MetaConfig(population=population), theta_of(0.1, 0.2, 0.3))
    members, state = strategy.ask(0, strategy.start())
    after = strategy.tell(0, members, np.full(population, value), state)
    np.testing.assert_array_equal(vector(strategy.theta(after)), np.float32([0.1, 0.2, 0.3]))


def test_sigma_and_learning_rate_decay_by_the_generation() -> None:
    config = MetaConfig(population=4, generations=5, sigma=0.2, sigma_decay=0.5, learning_rate=0.1,
                        learning_rate_decay=0.25)  # fmt: skip
    history = evolve(config, theta_of(0, 0, 0), quadratic).history
    np.testing.assert_allclose([row["sigma"] for row in history], 0.2 * 0.5 ** np.arange(5), rtol=1e-6)
    optimizer = evolution.mean_optimizer(config)
    state, steps = optimizer.init(np.float32(0.0)), []
    for _ in range(4):  # Adam's step under a constant gradient is its learning rate
        step, state = optimizer.update(np.float32(1.0), state)
        steps.append(float(step))
    np.testing.assert_allclose(steps, -0.1 * 0.25 ** np.arange(4), rtol=1e-4)


def test_b1_is_adams() -> None:
    ours, adam = evolution.mean_optimizer(MetaConfig(b1=0.5, learning_rate=1.0)), optax.adam(1.0, b1=0.5)
    states = [optimizer.init(np.float32(0.0)) for optimizer in (ours, adam)]
    for gradient in (1.0, -3.0):
        steps = []
        for index, optimizer in enumerate((ours, adam)):
            step, states[index] = optimizer.update(np.float32(gradient), states[index])
            steps.append(float(step))
    assert steps[0] == pytest.approx(steps[1] * 0.999)


def test_a_mean_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(UserError, match=r"mean θ is not finite after generation 1: lower sigma"):
        evolve(MetaConfig(population=4), theta_of(np.inf), fitness_of(lambda x: np.arange(4.0)))


def test_lifetimes_without_an_episodes_end_are_an_error() -> None:
    with pytest.raises(UserError, match=r"no member has ended an episode .* --steps"):
        evolve(MetaConfig(population=4), theta_of(0.0), lambda *_: Fitness(np.full(4, np.nan), unfinished=4))


@pytest.mark.parametrize(
    ("fitness", "settings", "message"),
    [
        (
            lambda x: np.full(4, 9.5),
            {},
            "1: the mean θ does not move: no member is better than another. Raise sigma .0.0",
        ),
        (lambda x: np.full(4, np.nan), {}, "the mean θ does not move: 4 of 4 members diverge and 0 end no episode"),
        (
            lambda x: x[:, 0],
            {"learning_rate": 1e-9},
            r"1: the mean θ does not move: learning_rate \(1e-09\) is too small",
        ),
    ],
)
def test_a_run_without_a_signal_stops_at_once(fitness: Any, settings: dict[str, Any], message: str) -> None:
    def evaluate(population: Any, generation: int) -> Fitness:
        values = fitness(np.asarray(population["optimizer"]["a"], np.float64))
        return Fitness(values, diverged=int(np.isnan(values).sum()))

    with pytest.raises(UserError, match=message):
        evolve(MetaConfig(population=4, **settings), theta_of(1.0, 2.0), evaluate)


@pytest.mark.parametrize("pairs", [False, True])
def test_ties_that_go_on_stop_a_run_and_a_few_do_not(pairs: bool, tmp_path: Path) -> None:
    """Momentum still moves the mean. What was made before is there, and goes on to the same end."""
    tied = {1, 2, 4, 5, 6, 7, 8}

    def evaluate(population: Any, generation: int) -> Fitness:
        values = np.asarray(population["optimizer"]["a"], np.float64)[:, 0] * (generation not in tied)
        scores = pair_scores(values[:, None]) if pairs else None
        return Fitness(values, scores=scores, tied_pairs=2 * (generation in tied) if pairs else None)

    image = "its mirror image" if pairs else "another"
    for _ in range(2):
        with pytest.raises(UserError, match=f"generation 9: 5 times in a row no member is better than {image}"):
            evolve(MetaConfig(population=4), theta_of(1.0), evaluate, Checkpoints(tmp_path, {}))
    saved = Checkpoints(tmp_path, {}).load()
    assert saved is not None
    assert saved.generation == 8


def test_every_so_many_generations_theta_is_kept(tmp_path: Path) -> None:
    kept: list[Any] = []
    config = MetaConfig(population=4, generations=5, save_every=2)
    ended = evolve(config, theta_of(0, 0, 0), quadratic, Checkpoints(tmp_path, {}), keep=kept.append)
    assert [len(each.history) for each in kept] == [2, 4]
    two = evolve(MetaConfig(population=4, generations=2), theta_of(0, 0, 0), quadratic)
    np.testing.assert_array_equal(vector(kept[0].theta), vector(two.theta))
    assert not np.array_equal(vector(kept[1].theta), vector(ended.theta))


def test_what_is_stored_says_how_long_the_rest_takes(tmp_path: Path) -> None:
    def begin(generations: int) -> Started:
        events: list[Event] = []
        config = MetaConfig(population=4, generations=generations)
        checkpoints = Checkpoints(tmp_path, {})
        evolve(config, theta_of(0, 0, 0), quadratic, checkpoints, events.append, generation_seconds=900.0)
        return next(event for event in events if isinstance(event, Started))

    assert begin(2).seconds == 2 * 900.0  # a guess
    two = Checkpoints(tmp_path, {}).load()
    assert two is not None
    assert begin(5).seconds == pytest.approx(two.facts["seconds"] / 2 * 3)


# --- antithetic task sampling -----------------------------------------------------------------------------------------


def pairs_on_levels(members: np.ndarray, generation: int) -> Fitness:
    """A quadratic, plus what can be earned on each pair's level: far more than any member differs from another."""
    level = np.tile(np.random.default_rng(generation).normal(scale=1e3, size=len(members) // 2), 2)
    values = level - ((members - TARGET) ** 2).sum(axis=1)
    return Fitness(values, scores=pair_scores(values[:, None]))


@pytest.mark.parametrize("strategy", ANTITHETIC)
def test_with_levels_of_their_own_pairs_climb_towards_the_better_member(strategy: str) -> None:
    """With the sign of the scores turned round the mean moves away from every winner."""
    config = MetaConfig(strategy=strategy, population=16, generations=60, sigma=0.1, learning_rate=0.05, b1=0.9,
                        task_sampling="antithetic")  # fmt: skip
    evaluate = lambda population, g: pairs_on_levels(np.asarray(population["optimizer"]["a"], np.float64), g)
    evolved = evolve(config, theta_of(0, 0, 0), evaluate)
    assert np.linalg.norm(vector(evolved.theta) - TARGET) < 0.5 < np.linalg.norm(TARGET)


def test_scores_are_climbed_and_fitness_is_shown() -> None:
    def evaluate(population: Any, generation: int) -> Fitness:
        quality = -((np.asarray(population["optimizer"]["a"], np.float64) - TARGET) ** 2).sum(axis=1)
        return Fitness(-quality, scores=pair_scores(quality[:, None]), tied_pairs=0)

    config = MetaConfig(population=16, generations=40, sigma=0.1, learning_rate=0.1, b1=0.9, task_sampling="antithetic")
    evolved = evolve(config, theta_of(0, 0, 0), evaluate)
    assert np.linalg.norm(vector(evolved.theta) - TARGET) < 0.5
    fitness = [row["fitness_mean"] for row in evolved.history]
    assert fitness[-1] < fitness[0] - 1.0
    assert evolved.history[0]["tied_pairs"] == 0


@pytest.mark.parametrize("better", [0, 1])
def test_one_pair_moves_the_mean_towards_its_better_member(better: int) -> None:
    strategy = Strategy(MetaConfig(population=2, sigma=0.1, task_sampling="antithetic"), theta_of(0.5))
    population, state = strategy.ask(0, strategy.start())
    members = np.asarray(population["optimizer"]["a"])[:, 0]
    scores = pair_scores(np.where(np.arange(2) == better, 7.0, 6.9)[:, None])
    after = vector(strategy.theta(strategy.tell(0, population, scores, state)))[0]
    assert np.sign(after - 0.5) == np.sign(members[better] - 0.5)


@pytest.mark.parametrize("strategy", ANTITHETIC)
@pytest.mark.parametrize("population", [4, 6, 64])
def test_where_all_pairs_tie_the_mean_stays(strategy: str, population: int) -> None:
    config = MetaConfig(strategy=strategy, population=population, task_sampling="antithetic")
    made = Strategy(config, theta_of(0.1, 0.2, 0.3))
    members, state = made.ask(0, made.start())
    scores = pair_scores(np.tile(np.arange(population / 2), 2)[:, None])
    after = made.tell(0, members, scores, state)
    np.testing.assert_array_equal(vector(made.theta(after)), np.float32([0.1, 0.2, 0.3]))
