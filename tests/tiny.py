"""Tiny settings, fakes and helpers that the tests of algorithms, training and experiments share."""

import glob
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import optax
import pandas as pd

from open_bench.algorithms.base import Algorithm, AlgorithmConfig, Learning
from open_bench.algorithms.policy_losses import PPO as PPO_LOSS
from open_bench.algorithms.ppo import PPO, PPOConfig
from open_bench.algorithms.pqn import PQN, PQNConfig
from open_bench.config import load_study
from open_bench.environments.base import Environment
from open_bench.events import Advanced, Compiling, Event, Watcher, silent
from open_bench.experiments.execute import execute
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.plan import adjust, make_plan, random_experiments
from open_bench.experiments.store import Store
from open_bench.optimizers.spec import params_themselves
from open_bench.training.lifetime import Lifetime, LifetimeState, make_lifetime
from open_bench.training.runner import Finished, run_lifetimes

TINY = PPOConfig(num_envs=2, num_steps=4, update_epochs=2, num_minibatches=2, hidden=(4,))
TINY_PQN = PQNConfig(num_envs=2, num_steps=4, num_epochs=2, num_minibatches=2, hidden=(4,), greedy_envs=2)
UPDATES = 12  # of a lifetime that is made by hand

# Settings as they are given by name, and the experiments that they make: 40 updates of 4 copies on CartPole.
SETTINGS: dict[str, Any] = {"num_steps": 8, "update_epochs": 1, "num_minibatches": 2, "hidden": [8]}
PQN_SETTINGS: dict[str, Any] = {
    "num_envs": 4, "num_steps": 8, "num_epochs": 1, "num_minibatches": 2, "hidden": [8], "greedy_envs": 2,
}  # fmt: skip
STEPS = 4 * 8 * 40
SEEDS = 4


# --- lifetimes by hand ----------------------------------------------------------------------------------------------


def learning(optimizer: Any = None, eval_params: Any = params_themselves) -> Learning:
    """What an algorithm receives; Adam, and PPO's own policy loss."""
    chosen = optax.with_extra_args_support(optimizer or optax.adam(1e-2))
    return Learning(chosen, eval_params, lambda *arguments: PPO_LOSS({}, *arguments))


def algorithm_of(environment: Environment, config: AlgorithmConfig = TINY) -> Algorithm:
    """PPO or PQN, by the kind of its settings."""
    return (PQN if isinstance(config, PQNConfig) else PPO)(config, environment)


def lifetime_of(
    environment: Environment, config: AlgorithmConfig = TINY, updates: int = UPDATES, optimizer: Any = None,
    eval_params: Any = params_themselves,
) -> Lifetime:  # fmt: skip
    """A lifetime of an optax optimizer on an environment."""
    chosen = learning(optimizer, eval_params)
    return make_lifetime(algorithm_of(environment, config), updates, lambda inputs: chosen)


def run_jitted(lifetime: Lifetime, root_seed: int = 0) -> LifetimeState:
    """One whole lifetime, without meshes and the runner."""
    state = jax.jit(lifetime.init)(jax.random.key(root_seed), {})
    return jax.device_get(jax.jit(lifetime.run)(state, {}, lifetime.num_updates)[0])


def finished(program: Any, keys: jax.Array, **options: Any) -> list[Finished]:
    """Every batch of a program without inputs."""
    return list(run_lifetimes(program, keys, {}, **options))


def equal(one: Sequence[Any], two: Sequence[Any]) -> None:
    """Bitwise equality of two lists of arrays, NaN included."""
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


# --- experiments ----------------------------------------------------------------------------------------------------


def experiments(
    *optimizers: Any, steps: int = STEPS, vmap_size: int | None = None, changes: Any = None, **study: Any
) -> list[Experiment]:
    """Experiments of the tiny settings, by default of Adam on CartPole."""
    values = {"optimizers": optimizers or ("adam",), "environments": ("cartpole",), **study}
    own = PQN_SETTINGS if study.get("algorithm") == "pqn" else SETTINGS
    chosen = adjust(load_study("quick"), **values)
    return list(make_plan(chosen, jax.devices(), steps, {**own, **(changes or {})}, vmap_size).experiments)


def random_policy() -> Experiment:
    """The random policy on CartPole: the experiment that is made fastest."""
    return random_experiments(experiments())[0]


class Log:
    """Notes what was trained now: ``started`` has (optimizer, seeds), ``updates`` are summed over lifetimes."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def started(self) -> list[tuple[str, list[int]]]:
        found = [event for event in self.events if isinstance(event, Compiling)]
        return [(event.work.label.rpartition(" · ")[2], list(event.seeds)) for event in found]

    @property
    def updates(self) -> int:
        """Those that a checkpoint held are told too, as having taken no time, and left out."""
        return sum(event.updates for event in self.events if isinstance(event, Advanced) and event.seconds > 0)


class Stop:
    """Dies in the middle of a device batch: at its ``after``-th segment."""

    def __init__(self, after: int):
        self.left = after

    def __call__(self, event: Event) -> None:
        self.left -= isinstance(event, Advanced)
        if self.left == 0:
            raise KeyboardInterrupt


def train(
    folder: Path, chosen: Sequence[Experiment], num_seeds: int = SEEDS, devices: int = 4, watcher: Watcher = silent,
    **options: Any,
) -> Store:  # fmt: skip
    """Run experiments into a folder."""
    store = Store(folder)
    store.check_writable()
    execute(chosen, num_seeds, store, jax.devices()[:devices], watcher, **options)
    return store


def tables(store: Store, chosen: Sequence[Experiment] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and curves in a fixed order; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs = store.load(chosen)
    scores = runs.scores.sort_values(["experiment", "seed"], ignore_index=True)
    return scores, runs.curves.sort_values(["experiment", "seed", "env_steps"], ignore_index=True)


def same(one: Any, two: Any) -> None:
    """Bitwise equality of two lists of tables."""
    for a, b in zip(one, two, strict=True):
        pd.testing.assert_frame_equal(a, b, check_exact=True)


def lies(folder: Path, pattern: str) -> list[str]:
    """What of a pattern is in a folder that others write to; ``Path.glob`` trips over what goes meanwhile."""
    return glob.glob(pattern, root_dir=folder)


def shards(folder: Path) -> list[Path]:
    """Every shard of a results folder."""
    return sorted(folder / path for path in lies(folder, "experiments/*/shard-*"))
