"""Evolution of θ: ask for a population, evaluate it, tell the strategy; a checkpoint after every generation.

OpenAI-ES (Salimans et al. 2017, arXiv 1703.03864) as OPEN and LPO use it: members θ ± σz around a mean, centered ranks
of their fitness, and Adam on the mean, with σ and the learning rate decayed exponentially. Generation g (from 0)
samples with σ·decay^g and moves with learning_rate·decay^g.

Fitness is maximized here. evosax minimizes, so it is told the negative. With antithetic task sampling the strategy
climbs the scores of pairs (``tasks.pair_scores``) in place of ranks; fitness stays what the history shows.
"""

import inspect
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from open_bench.errors import UserError, near_matches
from open_bench.events import Generation, Started, Watcher, Work, silent
from open_bench.experiments.estimate import LONG_SECONDS
from open_bench.meta_training.checkpoint import Checkpoints, Saved
from open_bench.meta_training.fitness import Fitness
from open_bench.meta_training.spec import ANTITHETIC, MetaConfig
from open_bench.optimizers.spec import Theta
from open_bench.text import duration
from open_bench.training.keys import name_to_int

# Those of evosax that search around one mean and need nothing but a population size and a step. Population-based ones
# have no mean θ to keep, and learned ones bring weights of their own.
STRATEGIES = ("Open_ES", "ARS", "CMA_ES", "CR_FM_NES", "GuidedES", "PGPE", "SNES", "Sep_CMA_ES", "SimpleES", "xNES")
TIES = 5  # generations in a row without a difference between members after which evolution stops
MAX_DIMENSIONS = {"CMA_ES": 5_000, "xNES": 5_000}  # these keep a matrix of dimensions²


class Evolved(NamedTuple):
    """What an evolution ends with."""

    theta: Theta  # mean of the search distribution after the last generation
    best: Theta  # mean around which the fittest generation was sampled
    best_fitness: float  # mean fitness of that generation
    history: list[dict[str, Any]]
    seconds: float  # spent on generations, over all interruptions


class Strategy:
    """An evosax strategy over θ.

    Args:
        config: which one, and its settings.
        theta: where it starts.

    Raises:
        UserError: unknown strategy, θ too large for it, or antithetic task sampling without mirrored members.
    """

    def __init__(self, config: MetaConfig, theta: Theta):
        self.mean = theta
        self._config = config
        algorithm = _strategy_class(config.strategy)
        _check_pairs(config)
        from evosax.core import fitness_shaping

        vector, self.unravel = ravel_pytree(theta)
        if vector.size > MAX_DIMENSIONS.get(config.strategy, vector.size):
            raise UserError(
                f"{config.strategy} keeps a matrix of {vector.size:,} × {vector.size:,} numbers for this θ; "
                "take another strategy, such as Open_ES or Sep_CMA_ES"
            )
        settings = {"optimizer": mean_optimizer(config), "std_schedule": sigma_schedule(config)}
        accepted = inspect.signature(algorithm).parameters
        if config.task_sampling == "antithetic":
            settings["fitness_shaping_fn"] = centered_scores
        elif accepted["fitness_shaping_fn"].default is fitness_shaping.centered_rank_fitness_shaping_fn:
            settings["fitness_shaping_fn"] = centered_ranks
        self._scheduled = "std_schedule" in accepted
        self._algorithm = algorithm(
            population_size=config.population,
            solution=theta,
            **{key: value for key, value in settings.items() if key in accepted},
        )
        self._params = self._algorithm.default_params
        if hasattr(self._params, "std_init"):
            self._params = self._params.replace(std_init=jnp.float32(config.sigma))

    def start(self) -> Any:
        """The state before generation 0."""
        state = self._algorithm.init(_key(self._config.root_seed, "start", 0), self.mean, self._params)
        if self._scheduled:
            # evosax sets σ of the next generation from the number of the one that ends, so its first two would be
            # equal; the schedule is moved by one, and the first value is put here.
            state = state.replace(std=jnp.full_like(state.std, self._config.sigma))
        return state

    def ask(self, generation: int, state: Any) -> tuple[Theta, Any]:
        """θ with a leading axis of members."""
        return self._algorithm.ask(_key(self._config.root_seed, "ask", generation), state, self._params)

    def tell(self, generation: int, population: Theta, fitness: np.ndarray, state: Any) -> Any:
        """Move towards higher ``fitness`` (population,); NaN ranks last."""
        key = _key(self._config.root_seed, "tell", generation)
        cost = jnp.asarray(to_minimize(fitness))
        return self._algorithm.tell(key, population, cost, state, self._params)[0]

    def theta(self, state: Any) -> Theta:
        """The mean of the search distribution."""
        return jax.device_get(self.unravel(state.mean))

    def save(self, state: Any) -> dict[str, np.ndarray]:
        """The state's arrays by position."""
        return {f"state/{index:05d}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(state))}

    def restore(self, arrays: dict[str, np.ndarray]) -> Any:
        """The inverse of ``save``; raises ValueError when the arrays are not such a state's."""
        expected, structure = jax.tree.flatten(jax.eval_shape(self.start))
        found = [arrays[name] for name in sorted(arrays) if name.startswith("state/")]
        if [(x.shape, x.dtype) for x in found] != [(x.shape, x.dtype) for x in expected]:
            raise ValueError("the checkpoint holds another strategy's state")
        return jax.tree.unflatten(structure, [jnp.asarray(x) for x in found])


def _strategy_class(name: str) -> Any:
    import evosax.algorithms

    if name not in STRATEGIES:
        of_population = name in evosax.algorithms.population_based_algorithms
        reason = "is population-based: it has no mean to keep" if of_population else "is unknown"
        raise UserError(f"strategy '{name}' {reason}.{near_matches(name, STRATEGIES)} Known: {', '.join(STRATEGIES)}")
    return getattr(evosax.algorithms, name)


_OWN = {"optimizer": ("learning_rate", "learning_rate_decay", "b1"), "std_schedule": ("sigma_decay",)}


def warn_of_ignored(config: MetaConfig) -> None:
    """Some strategies move their mean, or shrink σ, by rules of their own."""
    accepted = inspect.signature(_strategy_class(config.strategy)).parameters
    fields = MetaConfig.model_fields
    idle = [name for taken, names in _OWN.items() if taken not in accepted for name in names]
    idle = [name for name in idle if getattr(config, name) != fields[name].default]
    if idle and config.generations:
        warnings.warn(
            f"{config.strategy} has rules of its own in place of {', '.join(idle)}, which do nothing here", stacklevel=3
        )


def _check_pairs(config: MetaConfig) -> None:
    if config.task_sampling == "antithetic" and config.strategy not in ANTITHETIC:
        raise UserError(
            f'task_sampling = "antithetic" compares mirrored members, and {config.strategy} draws none: take '
            f'{", ".join(ANTITHETIC)}, or task_sampling = "common" (--task-sampling common)'
        )


def mean_optimizer(config: MetaConfig) -> optax.GradientTransformation:
    """Adam whose learning rate at generation g is learning_rate·decay^g."""
    schedule = optax.exponential_decay(config.learning_rate, 1, config.learning_rate_decay)
    return optax.adam(schedule, b1=config.b1)


def sigma_schedule(config: MetaConfig) -> Callable[[Any], Any]:
    """Number of a generation → σ of the *next* one, as evosax asks for it."""
    return lambda generation: config.sigma * config.sigma_decay ** (jnp.float32(generation) + 1.0)


def centered_ranks(population: Any, cost: jax.Array, state: Any, params: Any) -> jax.Array:
    """Ranks of costs (population,) from −½, the lowest, to ½; ties share theirs, and NaN ranks last.

    evosax divides before it centers, which leaves a rounding error where all members tie, as they do while no member
    learns anything; Adam would turn that error into a step.
    """
    del population, state, params
    last = cost.shape[-1] - 1
    ranks = jax.scipy.stats.rankdata(jnp.where(jnp.isnan(cost), jnp.inf, cost)) - 1.0
    return (2.0 * ranks - last) / (2.0 * last)


def centered_scores(population: Any, cost: jax.Array, state: Any, params: Any) -> jax.Array:
    """Costs of pairs' members, 0 (won) to 1 (lost), moved to −½ … ½ and shaped no further.

    A constant cancels within a pair, whose members are mirror images, but for a rounding error, which Adam would turn
    into a step where all pairs tie.
    """
    del population, state, params
    return cost - 0.5


def to_minimize(fitness: np.ndarray) -> np.ndarray:
    """−fitness in float32; a member without fitness costs more than any other, by a finite amount.

    Not every strategy copes with NaN or infinity; those that rank only see that it is the last. Where all members
    failed, all cost the same.
    """
    known = np.isfinite(fitness)
    cost = np.where(known, -np.where(known, fitness, 0.0), 0.0)
    if known.any():
        worst, spread = cost[known].max(), np.ptp(cost[known])
        # At least a part of the worst, so that float32 keeps the two apart.
        cost[~known] = worst + max(1.0, spread, 1e-3 * abs(worst))
    return cost.astype(np.float32)


def evolve(
    config: MetaConfig,
    theta: Theta,
    evaluate: Callable[[Theta, int], Fitness],
    checkpoints: Checkpoints | None = None,
    watcher: Watcher = silent,
    begin: Callable[[], None] = lambda: None,
    prepare: Callable[[], None] = lambda: None,
    evaluate_mean: Callable[[Theta], dict[str, float]] | None = None,
    keep: Callable[[Evolved], None] = lambda evolved: None,
    writes: bool = True,
    work: tuple[Work, ...] = (),
    generation_seconds: float | None = None,
    later: tuple[Started, ...] = (),
) -> Evolved:
    """Run the generations that are missing.

    Args:
        config: the settings.
        theta: where the mean starts.
        evaluate: (population with a leading axis of members, generation from 0) → fitness.
        checkpoints: where to go on from and to write to.
        watcher: of the events.
        begin: called once the work is told, before anything is written: takes the folder.
        prepare: called once if there are generations to run, before the clock starts: compilation is no part of the
            cost.
        evaluate_mean: θ → named numbers for the history, asked every ``evaluate_every`` and after the last generation.
        keep: told what there is every ``save_every`` generations, before their checkpoint is written.
        writes: whether this process writes checkpoints; one of a cluster's does.
        work: a generation's lifetimes, for the watcher.
        generation_seconds: a guess of what a generation takes, None where there is none.
        later: what comes after it, for the watcher.

    Raises:
        UserError: a checkpoint of other settings or of more generations, no member that ever ended an episode,
            members that do not differ, or a mean that does not move or is not finite any more.
    """
    strategy = Strategy(config, theta)
    saved = _begin(strategy, checkpoints, config)
    size, missing = ravel_pytree(theta)[0].size, config.generations - saved.generation
    if saved.generation:  # measured is better than guessed
        generation_seconds = saved.facts["seconds"] / saved.generation
    ahead = None if generation_seconds is None else generation_seconds * missing
    if ahead is not None and ahead > LONG_SECONDS:
        warnings.warn(
            f"{missing:,} generations are ahead: about {duration(ahead)} on this CPU. Fewer --generations, a smaller "
            "--population or shorter lifetimes (--steps) take less; each generation is kept if you interrupt it",
            stacklevel=2,
        )
    watcher(Started(config.name, work, config.generations, saved.generation, size, ahead, later=later))
    begin()
    saved = _begin(strategy, checkpoints, config)  # another process may have gone on until just now
    if saved.generation < config.generations:
        prepare()
    before, here = saved.generation, time.perf_counter()
    for generation in range(before, config.generations):
        saved = _generation(strategy, config, saved, evaluate, evaluate_mean)
        if checkpoints is not None and writes:
            if config.save_every and saved.generation % config.save_every == 0:
                keep(_evolved(strategy, saved))
            checkpoints.save(saved)
        pace = (time.perf_counter() - here) / (generation + 1 - before)
        watcher(Generation(saved.history[-1], pace * (config.generations - generation - 1)))
    return _evolved(strategy, saved)


def _evolved(strategy: Strategy, saved: Saved) -> Evolved:
    theta = strategy.theta(strategy.restore(saved.arrays))
    best = jax.device_get(strategy.unravel(jnp.asarray(saved.arrays["best"])))
    return Evolved(theta, best, saved.facts["best_fitness"], saved.history, saved.facts["seconds"])


def _begin(strategy: Strategy, checkpoints: Checkpoints | None, config: MetaConfig) -> Saved:
    saved = checkpoints.load() if checkpoints is not None else None
    if saved is None:
        state = strategy.start()
        facts = {"best_fitness": float("-inf"), "seconds": 0.0}
        return Saved(0, {**strategy.save(state), "best": np.asarray(state.mean)}, [], facts)
    check_generations(saved.generation, config, checkpoints.folder if checkpoints else "the checkpoint")
    return saved


def check_generations(done: int, config: MetaConfig, where: object) -> None:
    """Refuse to go on from more generations than were asked for."""
    if done > config.generations:
        raise UserError(
            f"{where} has {done} generations already, and {config.generations} were asked for: "
            f"ask for {done} or more, or use what is there"
        )


def _generation(
    strategy: Strategy,
    config: MetaConfig,
    saved: Saved,
    evaluate: Callable[[Theta, int], Fitness],
    evaluate_mean: Callable[[Theta], dict[str, float]] | None,
) -> Saved:
    """One generation. The state comes from saved arrays and goes to them: resumed or not, the steps are the same."""
    start, number = time.perf_counter(), saved.generation
    before = strategy.restore(saved.arrays)
    population, state = strategy.ask(number, before)
    found = evaluate(population, number)
    _check_fitness(found, config)
    state = strategy.tell(number, population, found.values if found.scores is None else found.scores, state)
    if not np.isfinite(np.asarray(state.mean)).all():
        raise UserError(
            f"the mean θ is not finite after generation {number + 1}: lower sigma ({config.sigma}) or "
            f"learning_rate ({config.learning_rate})"
        )
    row = _row(config, saved, found, before, state)
    _check_progress([*saved.history, row], np.array_equal(before.mean, state.mean), config)
    arrays = strategy.save(state)
    facts = dict(saved.facts)
    fitness = _pessimistic_mean(found.values)
    if fitness > facts["best_fitness"]:
        facts["best_fitness"], arrays["best"] = fitness, np.asarray(before.mean)
    else:
        arrays["best"] = saved.arrays["best"]
    if evaluate_mean is not None and _evaluates(config, number + 1):
        row |= evaluate_mean(strategy.theta(state))
    facts["seconds"] += time.perf_counter() - start
    row["seconds"] = round(facts["seconds"], 3)
    return Saved(number + 1, arrays, [*saved.history, row], facts)


def _evaluates(config: MetaConfig, done: int) -> bool:
    """Whether the mean is compared with Adam after so many generations: now and then, and at the end."""
    every = config.evaluate_every
    return every > 0 and (done % every == 0 or done == config.generations)


def _check_fitness(found: Fitness, config: MetaConfig) -> None:
    if found.values.shape != (config.population,):
        raise ValueError(f"fitness has shape {found.values.shape}, not ({config.population},)")
    if found.unfinished == config.population:
        raise UserError(
            "no member has ended an episode within its lifetime, so there is no fitness: ask for more --steps"
        )


def _check_progress(history: list[dict[str, Any]], stays: bool, config: MetaConfig) -> None:
    """Refuse to go on without a signal: the next generation would only draw other keys.

    One generation in which all members tie may be chance, but not where it leaves the mean as it is (momentum would
    move it), nor ``TIES`` of them in a row.
    """
    row, ties = history[-1], [_all_tie(each, config) for each in history[-TIES:]]
    if not stays and not (all(ties) and len(ties) == TIES):
        return
    where = f"generation {row['generation']}: {'the mean θ does not move:' if stays else f'{TIES} times in a row'} "
    if not ties[-1]:
        raise UserError(f"{where}learning_rate ({config.learning_rate}) is too small beside θ{_kept(history)}")
    failed = f"{row['diverged']} of {config.population} members diverge and {row['unfinished']} end no episode"
    no_better = f"no member is better than {'its mirror image' if 'tied_pairs' in row else 'another'}"
    raise UserError(
        f"{where}{failed if row['diverged'] + row['unfinished'] == config.population else no_better}. Raise sigma "
        f"({config.sigma}), begin where agents learn (--imitate TEACHER, or optimizer@WEIGHTS), or ask for longer "
        f"lifetimes (--steps){_kept(history)}"
    )


def _kept(history: list[dict[str, Any]]) -> str:
    """How to get θ of the generations before the one that stops evolution."""
    before = history[-1]["generation"] - 1
    return f". To keep θ as it was before, ask for --generations {before}" if before else ""


def _all_tie(row: dict[str, Any], config: MetaConfig) -> bool:
    """Whether a generation has told the strategy nothing: no member, or of compared pairs none, beats another."""
    if "tied_pairs" in row:
        return bool(row["tied_pairs"] == config.population // 2)
    failed = row["diverged"] + row["unfinished"]
    return failed == config.population or (failed == 0 and row["fitness_best"] == row["fitness_worst"])


def _pessimistic_mean(values: np.ndarray) -> float:
    """Mean fitness of a generation where failed members count as much as the worst of the others."""
    known = values[np.isfinite(values)]
    if not known.size:
        return float("-inf")
    return float(np.where(np.isfinite(values), values, known.min()).mean())


def _row(config: MetaConfig, saved: Saved, found: Fitness, before: Any, after: Any) -> dict[str, Any]:
    """A generation's line of the history. Counts of lifetimes and env steps are cumulative."""
    known = found.values[np.isfinite(found.values)]
    last = saved.history[-1] if saved.history else {"lifetimes": 0, "env_steps": 0}

    def of(statistic: Callable[[np.ndarray], Any]) -> float:
        return float(statistic(known)) if known.size else float("nan")

    sigma = getattr(before, "std", config.sigma)
    return {
        "generation": saved.generation + 1,
        "fitness_mean": of(np.mean),
        "fitness_std": of(np.std),
        "fitness_best": of(np.max),
        "fitness_worst": of(np.min),
        "diverged": found.diverged,
        "unfinished": found.unfinished,
        **({} if found.tied_pairs is None else {"tied_pairs": found.tied_pairs}),
        "sigma": float(np.mean(np.asarray(sigma))),
        "theta_norm": float(np.linalg.norm(np.asarray(after.mean))),
        "lifetimes": last["lifetimes"] + found.lifetimes,
        "env_steps": last["env_steps"] + found.env_steps,
    }


def _key(root_seed: int, purpose: str, generation: int) -> jax.Array:
    """Key of a generation's draw; ``purpose`` is start, ask or tell."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(root_seed), name_to_int(f"meta-{purpose}")), generation)
