"""What one fitness evaluation is: every member of a population trains agents on every environment.

Members × rollouts is one axis of lifetimes, the rollouts of a member side by side. It is cut into groups of a fixed
vmap_size and run in rounds (``harness.parallel``), so a member's fitness does not depend on the number of devices. In one
generation rollout r has the same key for every member: differences between members are paired, and the mirrored
members of an antithetic pair meet the same networks and environments.

Antithetic task sampling (Jackson et al. 2024, arXiv 2402.05828) gives every pair keys, and with them a level, of its
own. Returns on different levels say nothing about each other, so only the two members of a pair are compared.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from open_bench.config import PROTOCOL_VERSION, EnvironmentConfig, MetaConfig
from open_bench.environments.registry import has_levels, make_environment
from open_bench.errors import UserError
from open_bench.evaluation.metrics import References, Scale, normalize, scale_of
from open_bench.optimizers.resolve import ResolvedOptimizer, identity, prepare
from open_bench.optimizers.spec import OptimizerSpec, Theta, TrainingLength
from open_bench.training import mesh as parallel
from open_bench.training.keys import name_to_int
from open_bench.training.lifetime import make_lifetime

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
class Task:
    """One environment that lifetimes are run on.

    Attributes:
        environment: with the PPO settings in force.
        num_updates: PPO updates in a lifetime.
        resolved: the optimizer with its hyperparameters there; its θ is only an example of shapes.
        scale: the returns that become 0 and 1; None: fitness is the raw return.
    """

    environment: EnvironmentConfig
    num_updates: int
    resolved: ResolvedOptimizer
    scale: Scale | None = None

    @property
    def env_steps(self) -> int:
        """Env steps of a lifetime."""
        return self.num_updates * self.environment.ppo.batch_size

    @property
    def identity(self) -> dict[str, Any]:
        """Everything about the task that determines fitness, as JSON values."""
        config, optimizer = self.environment, identity(self.resolved)
        return {
            **config.task_identity,
            "version": config.version,
            "ppo": json.loads(config.ppo.model_dump_json()),
            "num_updates": self.num_updates,
            "protocol": PROTOCOL_VERSION,
            "hyperparameters": optimizer["hyperparameters"],
            "scale": list(self.scale) if self.scale else None,
        }


def make_tasks(
    spec: OptimizerSpec,
    theta: Theta,
    environments: Sequence[EnvironmentConfig],
    config: MetaConfig,
    references: References,
) -> tuple[Task, ...]:
    """The tasks of an optimizer.

    Args:
        spec: whose θ is evolved; an spec without θ works as well.
        theta: an example of θ.
        environments: what to train on.
        config: gives the length of a lifetime and what fitness is.
        references: reference returns by environment. With several environments each return is normalized,
            (x − random)/(reference − random), by the values of ``config.budget``, whatever the lifetime's length:
            the scale makes environments commensurable, and returns may be negative, so they are not merely divided.
            Antithetic pairs need none: they are compared within each environment.

    Raises:
        UserError: too short a lifetime, or several environments of which one has no usable reference.
    """
    tasks = []
    for environment in environments:
        env_steps = config.env_steps or environment.budget_steps(config.budget)
        resolved = prepare(dataclasses.replace(spec, theta=theta), environment.name, config.budget)
        several = len(environments) > 1 and config.task_sampling == "common"  # pairs are compared on one task at a time
        scale = _scale(environment.name, config, references) if several else None
        tasks.append(Task(environment, environment.num_updates(env_steps), resolved, scale))
    return tuple(tasks)


def _scale(environment: str, config: MetaConfig, references: References) -> Scale:
    scale, reason = scale_of(references.get(environment), config.budget, config.fitness)
    if scale is None:
        raise UserError(
            f"{environment} cannot be meta-trained on together with others: at the budget '{config.budget}' its "
            f"returns cannot be normalized ({reason}). Leave it out, or name a budget that has a reference."
        )
    return scale


def check_levels(environments: Sequence[EnvironmentConfig]) -> None:
    """Refuse antithetic task sampling, with a UserError, where a lifetime does not draw a level from its key."""
    others = [environment.name for environment in environments if not has_levels(environment)]
    if others:
        raise UserError(
            f'task_sampling = "antithetic" gives each pair of members a level of its own, and {", ".join(others)} '
            f"{'draws' if len(others) == 1 else 'draw'} none: train on environments with levels alone, such as "
            'gridworlds, or take task_sampling = "common" (--task-sampling common)'
        )


def rollout_keys(root_seed: int, purpose: str, environment: str, generation: int, rollouts: int) -> jax.Array:
    """Keys (rollouts,) of one generation's lifetimes on one environment, the same for every member."""
    root = jax.random.key(root_seed)
    for number in (name_to_int(purpose), name_to_int(environment), generation):
        root = jax.random.fold_in(root, number)
    return jax.vmap(lambda rollout: jax.random.fold_in(root, rollout))(np.arange(rollouts, dtype=np.uint32))


def pair_keys(
    root_seed: int, purpose: str, environment: str, generation: int, rollouts: int, population: int
) -> jax.Array:
    """Keys (population, rollouts) for antithetic task sampling: those of members i and i + population/2 are equal."""
    pairs = population // 2
    keys = rollout_keys(root_seed, purpose, environment, generation, pairs * rollouts)
    return jnp.tile(keys.reshape(pairs, rollouts), (2, 1))


class Evaluator:
    """A task compiled for many θ at once.

    Args:
        task: what runs.
        devices: devices of all processes.
        vmap_size: lifetimes in a vmapped group.
        lifetimes: how many will be run at a time.
    """

    def __init__(self, task: Task, devices: Sequence[jax.Device], vmap_size: int, lifetimes: int):
        ppo, resolved = task.environment.ppo, task.resolved
        budget = TrainingLength(task.num_updates, ppo.update_epochs, ppo.num_minibatches)
        lifetime = make_lifetime(
            make_environment(task.environment),
            ppo,
            task.num_updates,
            lambda inputs: resolved.make(budget, inputs),
            resolved.policy_loss,
        )
        self.task = task
        self._segment = 1  # PPO updates
        self.program = parallel.compile_program(
            lifetime, resolved.inputs, devices, vmap_size, lifetimes, theta_per_slot=True
        )

    def returns(
        self, population: Theta, keys: jax.Array, metric: str, done: Callable[[int], None] = lambda lifetimes: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Train every member once on every key.

        Args:
            population: θ with a leading axis of members.
            keys: (rollouts,), the same for every member; or (members, rollouts).
            metric: final_return or mean_return.
            done: told how many lifetimes each round has finished.

        Returns:
            Returns (members, rollouts), NaN where no episode ended or the lifetime diverged; and where it diverged.
        """
        population = jax.device_get(population)
        leaves, rollouts = jax.tree.leaves(population), keys.shape[-1]
        members = len(leaves[0]) if leaves else 1  # an optimizer without θ
        count, slots = members * rollouts, self.program.slots
        keys = jnp.broadcast_to(keys, (members, rollouts)).reshape(count)
        values, diverged = np.empty(count), np.empty(count, bool)
        for start in range(0, count, slots):
            chosen = np.minimum(np.arange(start, start + slots), count - 1)  # spare slots repeat the last lifetime
            real = min(slots, count - start)
            state = self._run(keys[chosen], self._inputs(population, chosen, rollouts))
            record, finite = parallel.gather((state.record, state.learner.finite))
            total, known = _sums(record, metric)
            with np.errstate(invalid="ignore", divide="ignore"):
                values[start : start + real] = np.where(known > 0, total / known, np.nan)[:real]
            diverged[start : start + real] = ~finite[:real]
            done(real)
        values[diverged] = np.nan
        return values.reshape(members, rollouts), diverged.reshape(members, rollouts)

    def _run(self, keys: jax.Array, inputs: dict[str, Any]) -> Any:
        """Whole lifetimes in segments of about a second, between which an interrupt is heard; numbers do not change."""
        total, done = self.program.lifetime.num_updates, 0
        state = self.program.init(keys, inputs)
        while done < total:
            start, segment = time.perf_counter(), min(self._segment, total - done)
            state, metrics = self.program.run(state, inputs, segment)
            jax.block_until_ready(metrics)
            done += segment
            if segment == self._segment:  # the rest of a lifetime is no measure
                self._segment = parallel.next_segment(segment, time.perf_counter() - start, total)
        return state

    def _inputs(self, population: Theta, chosen: np.ndarray, rollouts: int) -> dict[str, Any]:
        hyperparameters = self.task.resolved.inputs["hyperparameters"]
        own = {part: jax.tree.map(lambda leaf: leaf[chosen // rollouts], tree) for part, tree in population.items()}
        return {**own, "hyperparameters": {key: np.full(len(chosen), x) for key, x in hyperparameters.items()}}


def _sums(record: Any, metric: str) -> tuple[np.ndarray, np.ndarray]:
    if metric == "final_return":
        return record.final_sum.astype(np.float64), record.final_count
    return record.total_sum.astype(np.float64), record.total_count


def combine(tasks: Sequence[Task], results: Sequence[tuple[np.ndarray, np.ndarray]], pairs: bool = False) -> Fitness:
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
    return Fitness(
        fitness,
        int(diverged.sum()),
        int((np.isnan(fitness) & ~diverged).sum()),
        sum(values.size for values, _ in results),
        sum(values.size * task.env_steps for task, (values, _) in zip(tasks, results, strict=True)),
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
