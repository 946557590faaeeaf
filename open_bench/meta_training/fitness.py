"""What one fitness evaluation is: every member of a population trains agents on every environment.

Members × rollouts is one axis of lifetimes, the rollouts of a member side by side. In one generation rollout r has the
same key for every member: differences between members are paired, and the mirrored members of an antithetic pair meet
the same networks and environments.

Antithetic task sampling (Jackson et al. 2024, arXiv 2402.05828) gives every pair keys, and with them a level, of its
own. Returns on different levels say nothing about each other, so only the two members of a pair are compared.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from open_bench.config import PROTOCOL_VERSION
from open_bench.evaluation.metrics import Scale, normalize
from open_bench.experiments.experiment import task_lifetime
from open_bench.meta_training.spec import MetaConfig
from open_bench.optimizers.resolve import ResolvedOptimizer
from open_bench.optimizers.spec import Theta
from open_bench.training import runner
from open_bench.training.keys import name_to_int
from open_bench.training.mesh import compile_program
from open_bench.training.task import Task

TRAINING, EVALUATION = "meta-training", "meta-evaluation"  # purposes of keys; neither meets the other's


class Fitness(NamedTuple):
    """What one generation's evaluation gives."""

    values: np.ndarray  # (population,) float64, higher is better, NaN where a member failed
    diverged: int = 0  # members with a lifetime whose parameters or loss were not finite
    unfinished: int = 0  # members that did not diverge, with a lifetime in which no episode ended
    lifetimes: int = 0
    env_steps: int = 0
    scores: np.ndarray | None = None  # (population,) what the strategy climbs, where it is not ``values``: pair_scores
    tied_pairs: int | None = None  # where pairs are compared: those of which neither member is the better


@dataclasses.dataclass(frozen=True)
class FitnessTask:
    """One task that members are evaluated on.

    Attributes:
        task: what lifetimes are run on.
        optimizer: with its hyperparameters there; its θ is only an example of shapes.
        scale: the returns that become 0 and 1; None: fitness is the raw return.
    """

    task: Task
    optimizer: ResolvedOptimizer
    scale: Scale | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Everything about the task that determines fitness, as JSON values."""
        return {
            **self.task.identity,
            "protocol": PROTOCOL_VERSION,
            "hyperparameters": self.optimizer.identity["hyperparameters"],
            "scale": list(self.scale) if self.scale else None,
        }


def generation_keys(config: MetaConfig, environment: str, generation: int) -> jax.Array:
    """Keys of a generation's lifetimes: (rollouts,), or (population, rollouts) where each pair has its own."""
    where = (config.root_seed, TRAINING, environment, generation, config.rollouts)
    return pair_keys(*where, config.population) if config.task_sampling == "antithetic" else rollout_keys(*where)


def rollout_keys(seed: int, purpose: str, environment: str, generation: int, rollouts: int) -> jax.Array:
    """Keys (rollouts,) of one generation's lifetimes on one environment, the same for every member."""
    root = jax.random.key(seed)
    for number in (name_to_int(purpose), name_to_int(environment), generation):
        root = jax.random.fold_in(root, number)
    return jax.vmap(lambda rollout: jax.random.fold_in(root, rollout))(np.arange(rollouts, dtype=np.uint32))


def pair_keys(seed: int, purpose: str, environment: str, generation: int, rollouts: int, population: int) -> jax.Array:
    """Keys (population, rollouts) for antithetic task sampling: those of members i and i + population/2 are equal."""
    pairs = population // 2
    keys = rollout_keys(seed, purpose, environment, generation, pairs * rollouts)
    return jnp.tile(keys.reshape(pairs, rollouts), (2, 1))


class Evaluator:
    """A task compiled for many θ at once.

    Args:
        task: what runs.
        devices: devices of all processes.
        vmap_size: lifetimes vmapped on one device.
        lifetimes: how many will be run at a time.
    """

    def __init__(self, task: FitnessTask, devices: Sequence[jax.Device], vmap_size: int, lifetimes: int):
        self.task = task
        lifetime = task_lifetime(task.task, task.optimizer)
        self.program = compile_program(lifetime, task.optimizer.inputs, devices, vmap_size, lifetimes, own_inputs=True)

    def returns(
        self,
        population: Theta,
        keys: jax.Array,
        metric: str,
        done: Callable[[int], None] = lambda lifetimes: None,
        on_segment: Callable[[runner.Segment], None] = lambda segment: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Train every member once on every key.

        Args:
            population: θ with a leading axis of members.
            keys: (rollouts,), the same for every member; or (members, rollouts).
            metric: name of a metric of the record.
            done: told how many lifetimes each device batch has finished.
            on_segment: told about once a second.

        Returns:
            Returns (members, rollouts), NaN where no episode ended or the lifetime diverged; and where it diverged.
        """
        population = jax.device_get(population)
        leaves, rollouts = jax.tree.leaves(population), keys.shape[-1]
        members = len(leaves[0]) if leaves else 1  # an optimizer without θ
        shape = (members, rollouts)
        values, diverged = np.empty(members * rollouts), np.empty(members * rollouts, bool)
        flat = jnp.broadcast_to(keys, shape).reshape(-1)
        for batch in runner.run_lifetimes(self.program, flat, self._inputs(population, *shape), on_segment):
            place = slice(batch.indices.start, batch.indices.stop)
            values[place], diverged[place] = batch.metrics[metric], batch.diverged
            done(len(batch.indices))
        return values.reshape(shape), diverged.reshape(shape)

    def _inputs(self, population: Theta, members: int, rollouts: int) -> dict[str, Any]:
        """Inputs with a leading axis of lifetimes: a member's rollouts lie side by side."""
        hyperparameters = self.task.optimizer.inputs["hyperparameters"]
        own = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf), rollouts, axis=0), population)
        return {**own, "hyperparameters": {key: np.full(members * rollouts, x) for key, x in hyperparameters.items()}}


def combine(
    tasks: Sequence[FitnessTask], results: Sequence[tuple[np.ndarray, np.ndarray]], pairs: bool = False
) -> Fitness:
    """Fitness of each member: the mean over its rollouts, normalized where there is a scale, then over environments.

    A member with a failed lifetime anywhere is NaN: what the others would have given it is not its fitness.

    Args:
        tasks: the environments.
        results: what ``Evaluator.returns`` gave for each.
        pairs: compare members i and i + population/2 alone (antithetic task sampling).
    """
    per_task = []
    for task, (values, _) in zip(tasks, results, strict=True):
        mean = values.mean(axis=1)
        per_task.append(normalize(mean, task.scale) if task.scale else mean)
    fitness = np.mean(per_task, axis=0)
    diverged = np.any([lost.any(axis=1) for _, lost in results], axis=0)
    scores = pair_scores(np.concatenate([values for values, _ in results], axis=1)) if pairs else None
    steps = [values.size * task.task.lifetime_steps for task, (values, _) in zip(tasks, results, strict=True)]
    return Fitness(
        fitness,
        int(diverged.sum()),
        int((np.isnan(fitness) & ~diverged).sum()),
        sum(values.size for values, _ in results),
        sum(steps),
        scores,
        int((scores == -0.5).sum()) // 2 if scores is not None else None,
    )


def pair_scores(returns: np.ndarray) -> np.ndarray:
    """Scores (population,) of the members of antithetic pairs: 0 for the better of the two, −1 for the other.

    Args:
        returns: (population, lifetimes); members i and i + population/2 are a pair and meet the same tasks.

    The two are compared lifetime by lifetime, since levels differ in what can be earned there, and a member's score is
    the mean. Both have −½ where they tie. A member with a failed lifetime (NaN) loses everywhere, unless both failed.
    """
    failed = np.isnan(returns).any(axis=1, keepdims=True)
    first, second = np.split(np.where(failed, -np.inf, returns), 2)
    ahead = ((first > second).astype(np.float64) - (first < second)).mean(axis=1)
    return (np.concatenate([ahead, -ahead]) - 1.0) / 2.0
