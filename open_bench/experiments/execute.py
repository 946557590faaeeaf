"""Running the missing seeds of a list of experiments, sharing the work with other processes through locks."""

import dataclasses
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
import pandas as pd

from open_bench.environments.registry import make_environment
from open_bench.experiments.agents import saved_agents
from open_bench.experiments.checkpoint import Checkpoint, remove_all
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.provenance import provenance
from open_bench.experiments.store import Store
from open_bench.optimizers.spec import TrainingLength
from open_bench.training import mesh as parallel
from open_bench.training.estimate import warn_of_long_run
from open_bench.training.keys import lifetime_keys
from open_bench.training.lifetime import Lifetime, Metrics, Record, make_lifetime


class Progress:
    """What a run tells its watcher. Every method does nothing: watchers override those that they care for."""

    def watch(self) -> AbstractContextManager[Any]:
        """Entered around the whole run."""
        return nullcontext()

    def planned(self, experiments: Sequence[Experiment], seeds: int) -> None:
        """The work is known; ``seeds`` are wanted of each experiment."""

    def experiment_started(self, experiment: Experiment, seeds: list[int]) -> None:
        """These seeds are missing and compilation begins."""

    def compiled(self, experiment: Experiment, seconds: float) -> None:
        """The experiment's program is ready."""

    def advanced(self, experiment: Experiment, updates: int, episode_return: float, diverged: int) -> None:
        """So many PPO updates were made, over all seeds at work; their mean return, NaN if none is known."""

    def experiment_finished(self, experiment: Experiment, trained: int) -> None:
        """All seeds are stored, ``trained`` of them by this process."""

    def measuring(self, what: str, done: int, total: int) -> None:
        """Beside the experiments: ``done`` of ``total`` measurements are made, and the next is of ``what``."""

    def waiting(self, experiments: list[Experiment]) -> None:
        """Other processes are at work on all experiments that are left."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, none of which changes results.

    Attributes:
        devices: the devices of the mesh.
        checkpoint_seconds: how often a round under way is saved.
        save_agents: keep the trained agents' parameters in the shards.
    """

    devices: Sequence[jax.Device]
    checkpoint_seconds: float = 30.0
    save_agents: bool = False


def execute(experiments: Sequence[Experiment], seeds: int, store: Store, options: Options, progress: Progress) -> None:
    """Train what is missing of seeds 0 … n−1 of every experiment.

    An experiment that another process is training is left to it and looked at again; when that process dies, its lock falls
    free and its experiment is continued here.
    """
    warn_of_long_runs(experiments, seeds, store, options.devices)
    if options.save_agents:
        _warn_of_absent_agents(experiments, seeds, store)
    with progress.watch():
        progress.planned(experiments, seeds)
        pending = list(experiments)
        while pending:
            left = [experiment for experiment in pending if not _attend(experiment, seeds, store, options, progress)]
            if len(left) == len(pending):
                progress.waiting(left)
                time.sleep(0.5)
            pending = left


def warn_of_long_runs(
    experiments: Sequence[Experiment], seeds: int, store: Store, devices: Sequence[jax.Device]
) -> None:
    """Warn, an environment at a time, when what is missing of seeds 0 … n−1 would take a CPU long."""
    for config in {experiment.environment.name: experiment.environment for experiment in experiments}.values():
        here = [experiment for experiment in experiments if experiment.environment.name == config.name]
        missing = [len(set(range(seeds)) - store.seeds(experiment)) * experiment.lifetime_steps for experiment in here]
        warn_of_long_run(config, sum(missing), devices)


def _warn_of_absent_agents(experiments: Sequence[Experiment], seeds: int, store: Store) -> None:
    """What is stored is not trained again, not for its agents either."""
    for experiment in experiments:
        stored = store.seeds(experiment) & set(range(seeds))
        if stored - saved_agents(store.path(experiment)):
            warnings.warn(
                f"{store.path(experiment)} was trained without --save-agents and is stored already, so its agents are not "
                "there: remove that folder, or name other --results, to have them",
                stacklevel=2,
            )


def _attend(experiment: Experiment, seeds: int, store: Store, options: Options, progress: Progress) -> bool:
    """Run an experiment unless somebody else is at it; says whether it is done."""
    leader = jax.process_index() == 0
    # With several hosts the first decides and writes, and the others follow it round by round.
    with store.lock(experiment, wait=jax.process_count() > 1) if leader else _nobody() as free:
        if not free:
            return False
        done = store.seeds(experiment) if leader else set()
        missing = _agree([r for r in range(seeds) if r not in done], seeds)
        if missing:
            if leader:
                store.create(experiment, _description(experiment))
            _run(experiment, missing, store, options, progress, leader)
        progress.experiment_finished(experiment, len(missing))
        return True


class _nobody:
    """A lock that is always free: followers in a cluster do not touch the store."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        return None


def _agree(missing: list[int], seeds: int) -> list[int]:
    """The first process's list of missing seeds, on every process."""
    if jax.process_count() == 1:
        return missing
    mask = np.zeros(seeds, np.int32)
    mask[missing] = 1
    mask = np.asarray(parallel.multihost_utils.broadcast_one_to_all(mask))
    return [int(r) for r in np.flatnonzero(mask)]


def _description(experiment: Experiment) -> dict[str, Any]:
    return {
        "family": experiment.environment.family,
        "hyperparameter_origin": experiment.resolved.origin,
        "theta_source": experiment.resolved.spec.theta_source,
        "env_steps": experiment.env_steps,
    }


def build_lifetime(experiment: Experiment) -> Lifetime:
    """The lifetime that an experiment describes."""
    ppo = experiment.environment.ppo
    budget = TrainingLength(experiment.num_updates, ppo.update_epochs, ppo.num_minibatches)
    return make_lifetime(
        make_environment(experiment.environment),
        ppo,
        experiment.num_updates,
        lambda inputs: experiment.resolved.make(budget, inputs),
        experiment.resolved.policy_loss,
    )


def _run(
    experiment: Experiment, missing: list[int], store: Store, options: Options, progress: Progress, leader: bool
) -> None:
    """Train the missing seeds round by round; every finished round is stored."""
    progress.experiment_started(experiment, missing)
    theta = experiment.resolved.inputs
    program = parallel.compile_program(
        build_lifetime(experiment), theta, options.devices, experiment.vmap_size, len(missing)
    )
    progress.compiled(experiment, program.compile_seconds)
    compile_seconds = program.compile_seconds
    for start in range(0, len(missing), program.slots):
        chosen = missing[start : start + program.slots]
        checkpoint = Checkpoint(store.path(experiment), chosen, options.checkpoint_seconds) if leader else None
        record, agents, seconds = _round(experiment, program, theta, chosen, checkpoint, progress, options.save_agents)
        if leader:
            scores, curves = rows(experiment, program.lifetime, chosen, record)
            facts = {
                **provenance(),
                "seeds": chosen,
                "devices": program.mesh.size,
                "env_steps": len(chosen) * experiment.num_updates * experiment.environment.ppo.batch_size,
                "run_seconds": seconds,
                "compile_seconds": compile_seconds,
            }
            store.add(experiment, scores, curves, facts, agents)
            assert checkpoint is not None
            checkpoint.remove()
        compile_seconds = 0.0  # it belongs to the first round alone
    if leader:
        remove_all(store.path(experiment))


def _round(
    experiment: Experiment, program: parallel.Program, theta: Any, chosen: list[int], checkpoint: Checkpoint | None,
    progress: Progress, save_agents: bool,
) -> tuple[tuple[Record, np.ndarray], dict[str, np.ndarray], float]:  # fmt: skip
    """Train one round: ``((record, finite), agents' parameters, seconds)``; the arrays have a leading axis of slots."""
    padded = chosen + [chosen[-1]] * (program.slots - len(chosen))  # spare slots repeat the last seed
    done, seconds, state = 0, 0.0, None
    saved = checkpoint.load() if checkpoint is not None and jax.process_count() == 1 else None
    if saved is not None:
        try:
            state, done, seconds = program.restore(saved.arrays, theta), saved.update, saved.seconds
        except ValueError:  # written on another number of devices: begin this round anew
            state = None
    if state is None:
        state = program.init(lifetime_keys(experiment.root_seed, experiment.keys_name, padded), theta)
    total, segment = program.lifetime.num_updates, 1
    while done < total:
        segment = min(segment, total - done)
        start = time.perf_counter()
        state, metrics = program.run(state, theta, segment)
        shown: Metrics = parallel.gather(metrics)
        elapsed = time.perf_counter() - start
        done, seconds = done + segment, seconds + elapsed
        real = slice(0, len(chosen))
        progress.advanced(
            experiment, segment * len(chosen), _mean(shown.episode_return[real]), int((~shown.finite[real]).sum())
        )
        if checkpoint is not None and jax.process_count() == 1 and done < total and checkpoint.due():
            checkpoint.save(program.save(state), done, seconds)
        segment = parallel.next_segment(segment, elapsed, total)
    record, finite = parallel.gather((state.record, state.learner.finite))
    agents = parallel.gather(state.learner.params) if save_agents else {}
    return (record, finite), agents, seconds


def rows(
    experiment: Experiment, lifetime: Lifetime, chosen: list[int], result: tuple[Record, np.ndarray]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of ``scores.csv`` and ``curves.csv``; a diverged seed's returns are NaN."""
    record, finite = result
    batch_size = experiment.environment.ppo.batch_size
    count = len(chosen)
    diverged = ~np.asarray(finite)[:count]
    final = np.where(diverged, np.nan, _divide(record.final_sum, record.final_count)[:count])
    mean = np.where(diverged, np.nan, _divide(record.total_sum, record.total_count)[:count])
    scores = pd.DataFrame(
        {
            "seed": chosen,
            "final_return": final,
            "mean_return": mean,
            "diverged": diverged,
            "env_steps": lifetime.num_updates * batch_size,
        }
    )
    curve = _divide(record.curve_sum, record.curve_count)[:count]
    curves = pd.DataFrame(
        {
            "seed": np.repeat(chosen, curve.shape[1]),
            "env_steps": np.tile(lifetime.curve_ends.astype(np.int64) * batch_size, count),
            "episode_return": curve.reshape(-1),
        }
    )
    return scores, curves


def _divide(total: Any, count: Any) -> np.ndarray:
    """Means in float64, NaN where nothing was counted; rounded to what float32 sums can hold."""
    total, count = np.asarray(total, np.float64), np.asarray(count)
    means = np.full(total.shape, np.nan)
    np.divide(total, count, out=means, where=count > 0)
    return np.vectorize(lambda x: float(f"{x:.8g}"))(means)


def _mean(values: Any) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
