"""An experiment: one resolved optimizer on one task, with everything that determines its numbers."""

import dataclasses
import functools
import hashlib
import json
import re
from typing import Any

import jax

from open_bench.algorithms.base import Learning
from open_bench.algorithms.registry import RANDOM, find_algorithm
from open_bench.config import PROTOCOL_VERSION
from open_bench.optimizers.resolve import ResolvedOptimizer
from open_bench.optimizers.spec import params_themselves
from open_bench.training.keys import lifetime_keys
from open_bench.training.lifetime import Lifetime, make_lifetime
from open_bench.training.task import Task


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The unit of work and of storage; its seeds are not part of its identity.

    Attributes:
        task: environment, algorithm, length.
        optimizer: None for the random policy, which has none.
        root_seed: root of all keys.
        vmap_size: lifetimes vmapped on one device.
        keys_of: name of the environment whose keys are used, "" for this one's own; variants of one environment that
            share its keys meet the same levels and resets.
    """

    task: Task
    optimizer: ResolvedOptimizer | None
    root_seed: int
    vmap_size: int
    keys_of: str = ""

    @property
    def label(self) -> str:
        """The optimizer's name as rows show it."""
        return self.optimizer.label if self.optimizer is not None else RANDOM

    @property
    def keys_name(self) -> str:
        """What keys derive from, beside the root seed and the seed."""
        return self.keys_of or self.task.name

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the results, as JSON values."""
        keys = {"keys_of": self.keys_name} if self.keys_name != self.task.name else {}
        optimizer = self.optimizer.identity if self.optimizer is not None else NO_OPTIMIZER
        return {
            **keys,
            **self.task.identity,
            "budget": self.task.budget,
            "protocol": PROTOCOL_VERSION,
            "root_seed": self.root_seed,
            "vmap_size": self.vmap_size,
            **optimizer,
        }

    @functools.cached_property
    def computation(self) -> str:
        """What its numbers follow from, equal where only names differ: one setting may be the tuned one."""
        spec = self.optimizer.spec.name if self.optimizer is not None else RANDOM
        return json.dumps([spec, {key: x for key, x in self.identity.items() if key not in _NAMES}], sort_keys=True)

    @functools.cached_property
    def name(self) -> str:
        """The experiment's folder: environment, optimizer and a short hash of the identity."""
        return folder_name(self.identity)

    @property
    def inputs(self) -> dict[str, Any]:
        """Traced inputs of its lifetimes."""
        return self.optimizer.inputs if self.optimizer is not None else {}

    def keys(self, seeds: list[int]) -> jax.Array:
        """Keys (len(seeds),) of its lifetimes."""
        return lifetime_keys(self.root_seed, self.keys_name, seeds)

    def make_lifetime(self, diagnose: bool = False) -> Lifetime:
        """The lifetime that it describes; ``diagnose`` records diagnostics too and changes no number."""
        return task_lifetime(self.task, self.optimizer, diagnose)


_NAMES = ("optimizer", "track")  # in an identity, what an optimizer was asked for by
NO_OPTIMIZER: dict[str, Any] = {"optimizer": RANDOM, "policy_loss": None, "hyperparameters": {}, "theta": ""}


def task_lifetime(task: Task, optimizer: ResolvedOptimizer | None, diagnose: bool = False) -> Lifetime:
    """A lifetime of an optimizer on a task; without an optimizer nothing is learned."""
    if optimizer is None:
        assert not find_algorithm(task.algorithm).learns
        nothing = Learning(None, params_themselves, None)
        return make_lifetime(task.make_algorithm(), task.num_updates, lambda inputs: nothing)
    return make_lifetime(
        task.make_algorithm(), task.num_updates, lambda inputs: optimizer.learning(task.length, inputs), diagnose
    )


def folder_name(identity: dict[str, Any]) -> str:
    """``<environment>--<optimizer>--<hash>``, made of characters that are safe in file names."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    words = [re.sub(r"[^A-Za-z0-9.=+-]+", "_", identity[key])[:48] for key in ("environment", "optimizer")]
    return "--".join([*words, digest])
