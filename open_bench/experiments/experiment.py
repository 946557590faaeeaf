"""An experiment: one optimizer on one environment at one budget, with everything that determines its numbers."""

import dataclasses
import hashlib
import json
import re
from typing import Any

from open_bench.config import PROTOCOL_VERSION, EnvironmentConfig
from open_bench.optimizers.resolve import ResolvedOptimizer, identity


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The unit of work and of storage; its seeds are not part of its identity.

    Attributes:
        environment: configuration with the PPO settings in force.
        budget: name of the budget, or "steps-N" when steps were asked for.
        env_steps: length of a lifetime as asked for.
        resolved: the optimizer with its hyperparameters and θ.
        root_seed: root of all keys.
        vmap_size: lifetimes in a vmapped group.
        keys_of: name of the environment whose keys are used, "" for this one's own; variants of one environment that
            share its keys meet the same levels and resets.
    """

    environment: EnvironmentConfig
    budget: str
    env_steps: int
    resolved: ResolvedOptimizer
    root_seed: int
    vmap_size: int
    keys_of: str = ""

    @property
    def optimizer(self) -> str:
        """The optimizer's name as the leaderboard shows it."""
        return self.resolved.spec.name

    @property
    def keys_name(self) -> str:
        """What keys derive from, beside the root seed and the seed."""
        return self.keys_of or self.environment.name

    @property
    def num_updates(self) -> int:
        """PPO updates in a lifetime."""
        return self.environment.num_updates(self.env_steps)

    @property
    def lifetime_steps(self) -> int:
        """Env steps in a lifetime: whole updates only."""
        return self.num_updates * self.environment.ppo.batch_size

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the results, as JSON values."""
        config = self.environment
        keys = {"keys_of": self.keys_name} if self.keys_name != config.name else {}
        return {
            **keys,
            "environment": config.name,
            "environment_version": config.version,
            **config.task_identity,
            "ppo": json.loads(config.ppo.model_dump_json()),
            "budget": self.budget,
            "num_updates": self.num_updates,
            "protocol": PROTOCOL_VERSION,
            "root_seed": self.root_seed,
            "vmap_size": self.vmap_size,
            **identity(self.resolved),
        }

    @property
    def name(self) -> str:
        """The experiment's directory: environment, optimizer and a short hash of the identity."""
        return directory_name(self.identity)


def directory_name(identity: dict[str, Any]) -> str:
    """``<environment>--<optimizer>--<hash>``, made of characters that are safe in file names."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    words = [re.sub(r"[^A-Za-z0-9.=+-]+", "_", identity[key])[:48] for key in ("environment", "optimizer")]
    return "--".join([*words, digest])
