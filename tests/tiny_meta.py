"""Meta-trainings so small that a test can afford them, and watchers that remember or interrupt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import open_bench
from open_bench.events import Evaluated, Event, Generation
from open_bench.meta_training.fitness import Fitness

TINY = {"num_envs": 4, "num_steps": 16, "update_epochs": 2, "num_minibatches": 2, "hidden": (8,)}
STEPS_PER_UPDATE = 4 * 16
UPDATES = 20
# σ is large, so that the members of so small a generation differ in so short a life.
SETTINGS: dict[str, Any] = {
    "steps": STEPS_PER_UPDATE * UPDATES,
    "settings": TINY,
    "population": 6,
    "rollouts": 2,
    "generations": 10,
    "sigma": 1.0,
    "fitness": "mean_return",
    "vmap_size": 1,
}
GENERATION = 6 * 2  # lifetimes


def meta_train(folder: Path, optimizer: str = "open", name: str = "mine", **changes: Any) -> Any:
    """``open_bench.meta_train`` on CartPole with ``SETTINGS`` and changes to them."""
    return open_bench.meta_train(
        optimizer, ["cartpole"], results=folder, name=name, **{**SETTINGS, "devices": 2, **changes}
    )


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings of the algorithm as the command line takes them."""
    return [f"--set={key}={list(value) if isinstance(value, tuple) else value}" for key, value in settings.items()]


def theta_of(*numbers: float) -> dict[str, Any]:
    return {"optimizer": {"a": np.asarray(numbers, np.float32)}, "policy_loss": {}}


def vector(theta: Any) -> np.ndarray:
    """Every number of θ."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(theta)])


def fitness_of(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any, int], Fitness]:
    """A fitness function of members' numbers (population, dimensions) in place of lifetimes."""

    def evaluate(population: Any, generation: int) -> Fitness:
        members = np.asarray(population["optimizer"]["a"], np.float64)
        return Fitness(function(members), lifetimes=len(members), env_steps=10 * len(members))

    return evaluate


TARGET = np.asarray([1.0, -1.0, 0.5])
quadratic = fitness_of(lambda x: -((x - TARGET) ** 2).sum(axis=1))


class Watch:
    """Remembers the generations that were made, and interrupts after one of them, as Ctrl-C would."""

    def __init__(self, stop_after: int | None = None):
        self.generations: list[int] = []
        self._stop_after = stop_after

    def __call__(self, event: Event) -> None:
        if isinstance(event, Generation):
            self.generations.append(event.row["generation"])
            if event.row["generation"] == self._stop_after:
                raise KeyboardInterrupt


class StopWithin:
    """Interrupts between two device batches of the third generation."""

    def __init__(self) -> None:
        self._begun = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Evaluated):
            self._begun += event.lifetimes == 2
            if self._begun == 3 and event.lifetimes == 6:
                raise KeyboardInterrupt
