"""What the harness gets of an optimizer for one environment and budget: three values and nothing else."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from open_bench import assets, config
from open_bench.errors import UserError
from open_bench.optimizers.entry import EMPTY_THETA, Budget, OptimizerEntry
from open_bench.optimizers.registry import check_value


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An optimizer with the hyperparameters that it will use.

    Attributes:
        entry: the resolved entry.
        hyperparameters: every setting's value.
        origin: where they come from: given, published, tuned or default.
        theta: θ, possibly with empty parts.
    """

    entry: OptimizerEntry
    hyperparameters: dict[str, Any]
    origin: str
    theta: dict[str, Any]

    @property
    def inputs(self) -> dict[str, Any]:
        """The traced arguments of a lifetime: θ and the traced hyperparameters, as float32 arrays."""
        traced = {key: np.float32(value) for key, value in self.hyperparameters.items() if self._is_traced(key)}
        return {**self.theta, "hyperparameters": traced}

    def make(self, budget: Budget, inputs: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
        """The gradient transformation; ``inputs`` may be tracers."""
        static = {key: value for key, value in self.hyperparameters.items() if not self._is_traced(key)}
        theta = {"optimizer": inputs["optimizer"], "objective": inputs["objective"]}
        return self.entry.make(theta, budget, **static, **inputs["hyperparameters"])

    def objective(self, inputs: dict[str, Any], *arguments: Any) -> jax.Array:
        """The policy objective, reading its part of θ."""
        return self.entry.objective(inputs["objective"], *arguments)

    def _is_traced(self, key: str) -> bool:
        return self.entry.hyperparameters[key].traced

    @functools.cached_property
    def theta_hash(self) -> str:
        """Identity of θ by content (12 hexadecimal digits), '' when there is none."""
        from open_bench import weights

        return weights.content_hash(self.theta)[:12] if jax.tree.leaves(self.theta) else ""


def prepare(entry: OptimizerEntry, environment: str, budget: str) -> Candidate:
    """Choose hyperparameters: those given in the name, else the shipped ones for this task, else the defaults.

    Raises:
        UserError: the optimizer is learned and has no weights.
    """
    if entry.needs_theta and entry.theta is None:
        raise UserError(_how_to_get_weights(entry))
    values = {key: spec.default for key, spec in entry.hyperparameters.items()}
    origin = "default"
    shipped = shipped_hyperparameters(entry.tuned_as or entry.name)
    chosen = shipped.get(environment, {}).get(budget) or shipped.get(environment, {}).get("any")
    if chosen:
        values |= {key: check_value(entry, key, value) for key, value in chosen["values"].items()}
        origin = chosen["origin"]
    if entry.given:
        values |= entry.given
        origin = "given"
    return Candidate(entry, values, origin, jax.tree.map(jnp.asarray, entry.theta or EMPTY_THETA))


def _how_to_get_weights(entry: OptimizerEntry) -> str:
    from open_bench import weights

    name = entry.tuned_as if entry.learned else entry.objective.name
    message = (
        f"{entry.name} is a learned optimizer, and no weights named '{name}' ship or lie in {weights.library_dir()}. "
        f"Name some with {name}@NAME or {name}@FILE; "
    )
    if entry.tuned_as == "velo":
        return message + "`openbench weights fetch velo` downloads the official ones."
    return message + (
        f"`openbench weights import FILE --optimizer {name}` keeps published ones there as '{name}', "
        f"`openbench meta-train {name} -e ENVIRONMENT --name {name}` evolves some, and {name}@zero has θ = 0."
    )


@functools.cache
def shipped_hyperparameters(optimizer: str) -> dict[str, Any]:
    """``{environment: {budget or "any": {"origin", "source", "values"}}}`` from ``baselines/hyperparameters``."""
    path = assets.baselines_dir() / "hyperparameters" / f"{optimizer}.toml"
    return config.read_toml(path).get("environments", {}) if path.is_file() else {}


def identity(candidate: Candidate) -> dict[str, Any]:
    """Everything about the optimizer that determines results, as JSON values."""
    text = json.dumps(candidate.hyperparameters, sort_keys=True, default=_stable_name)
    version = {"code": candidate.entry.version} if candidate.entry.version else {}
    return {
        **version,
        "optimizer": candidate.entry.name,
        "objective": candidate.entry.objective.name,
        "hyperparameters": json.loads(text),
        "theta": candidate.theta_hash,
    }


def _stable_name(value: Any) -> str:
    """A name for a setting that is no JSON value; never a memory address, which differs from process to process."""
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    text = repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__}" if " at 0x" in text else text
