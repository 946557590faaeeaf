"""What lies ahead, before it begins: lifetimes, env steps, a rough duration, and whether it fits."""

import os
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from open_bench.environments.base import episodes_per_copy
from open_bench.errors import UserError
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.store import Store
from open_bench.text import duration
from open_bench.training.devices import Device, is_remote
from open_bench.training.task import Task

LONG_SECONDS = 3_600.0  # work that is longer is announced
# Env steps a second of one core training PPO with Adam, where an environment says nothing of its own: MinAtar and
# classic control lie around it. On accelerators speed depends on too much to be guessed.
CPU_STEPS_PER_SECOND = 35_000.0
LEARNED_FACTOR = 2.0  # a lifetime of a learned optimizer costs about so many of Adam's
ENOUGH_EPISODES = 3  # of every copy in a lifetime
COMPILE_SECONDS = 8.0  # of a program on a CPU, cold


class Estimate(NamedTuple):
    """The work ahead."""

    lifetimes: int  # that are not stored
    env_steps: int  # of them all
    seconds: float | None  # rough; None on accelerators


def estimate(experiments: Sequence[Experiment], num_seeds: int, store: Store, devices: Sequence[Device]) -> Estimate:
    """The work ahead for seeds 0 … n−1 of some experiments."""
    return estimate_missing(missing_of(experiments, num_seeds, store), devices)


def missing_of(experiments: Sequence[Experiment], num_seeds: int, store: Store) -> list[tuple[Experiment, int]]:
    """How many of seeds 0 … n−1 of each experiment are not stored."""
    return [(each, num_seeds - sum(seed < num_seeds for seed in store.seeds(each))) for each in experiments]


def estimate_missing(work: Iterable[tuple[Experiment, int]], devices: Sequence[Device]) -> Estimate:
    """The work ahead for experiments with so many lifetimes missing; those that have the same numbers count once."""
    lifetimes, env_steps, total = 0, 0, 0.0
    least: dict[str, tuple[Experiment, int]] = {}
    for each, wanted in work:
        if each.computation not in least or wanted < least[each.computation][1]:
            least[each.computation] = each, wanted
    for each, missing in least.values():
        learned = each.optimizer is not None and each.optimizer.spec.learned is not None
        seconds = lifetime_seconds(each.task, learned, devices)
        lifetimes, env_steps = lifetimes + missing, env_steps + missing * each.task.lifetime_steps
        if seconds is not None and missing:
            total += missing * seconds / min(len(devices), missing) + COMPILE_SECONDS
    return Estimate(lifetimes, env_steps, total if devices[0].platform == "cpu" else None)


def lifetime_seconds(task: Task, learned: bool, devices: Sequence[Device]) -> float | None:
    """Rough duration of one lifetime on one CPU device; None on accelerators."""
    if devices[0].platform != "cpu":
        return None
    whole_machine = task.make_environment().cpu_steps_per_second  # of two cores
    speed = whole_machine / 2 if whole_machine else CPU_STEPS_PER_SECOND
    return task.lifetime_steps / speed * (LEARNED_FACTOR if learned else 1.0)


def announce(work: Sequence[tuple[Experiment, int]], devices: Sequence[Device]) -> Estimate:
    """What is ahead for experiments with so many lifetimes missing, with a warning of work that takes hours.

    Raises:
        UserError: work that does not fit in memory.
    """
    ahead = estimate_missing(work, devices)
    for task in {each.task.name: each.task for each, _ in work}.values():
        _warn_of_few_episodes(task)
    for each, missing in work:
        check_memory(each, devices, missing)
    if ahead.seconds is not None and ahead.seconds > LONG_SECONDS:
        warnings.warn(
            f"{ahead.lifetimes:,} lifetimes with {ahead.env_steps:,} env steps are ahead: about "
            f"{duration(ahead.seconds)} on this CPU. Fewer --seeds or --steps take less; what is finished is kept if "
            "you interrupt it",
            stacklevel=3,
        )
    return ahead


def _warn_of_few_episodes(task: Task) -> None:
    """What is learned after the last episode has begun is never scored."""
    finished = episodes_per_copy(task.make_environment(), task.settings.num_envs, task.lifetime_steps)
    if finished is not None and finished < ENOUGH_EPISODES:
        warnings.warn(
            f"{task.name}: in {task.lifetime_steps:,} env steps each of {task.settings.num_envs} copies finishes "
            f"{int(finished)} episodes at most, so what is learned late is hardly scored: take a longer budget or "
            "fewer copies (--set num_envs=…)",
            stacklevel=4,
        )


def check_memory(experiment: Experiment, devices: Sequence[Device], lifetimes: int | None = None) -> None:
    """Raise UserError unless lifetimes vmapped on a CPU's devices fit in the machine's memory, which they share.

    ``lifetimes``: how many are ahead; so few may leave devices idle.
    """
    if devices[0].platform != "cpu" or is_remote(devices) or lifetimes == 0:
        return
    used = len(devices) if lifetimes is None else min(len(devices), -(-lifetimes // experiment.vmap_size))
    needed = experiment.task.lifetime_bytes * experiment.vmap_size * used
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(
            f"{experiment.task.name}: lifetimes on {used} devices, {experiment.vmap_size} on each, need about "
            f"{needed / 2**30:.0f} GiB, and this machine has {there / 2**30:.0f}: lower --devices or --vmap-size, or "
            "num_envs, num_steps and the sizes of networks with --set"
        )
