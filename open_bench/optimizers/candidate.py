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
from open_bench.optimizers.registry import FETCHED, check_value, own_weights


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An optimizer with the hyperparameters that it will use.

    Attributes:
        entry: the resolved entry.
        hyperparameters: every setting's value.
        origin: where they come from: given, published, tuned or default.
        theta: θ, possibly with empty parts.
        tuned_on: environment and budget that published or tuned hyperparameters were found on, else None.
    """

    entry: OptimizerEntry
    hyperparameters: dict[str, Any]
    origin: str
    theta: dict[str, Any]
    tuned_on: tuple[str, str] | None = None

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


def prepare(entry: OptimizerEntry, environment: str, budget: str, like: str | None = None) -> Candidate:
    """Choose hyperparameters: those given in the name, else the shipped ones for this task, else the defaults.

    Args:
        entry: the resolved optimizer.
        environment, budget: the task.
        like: the budget whose shipped settings apply, where ``budget`` names a number of env steps.

    Raises:
        UserError: the optimizer is learned and has no weights.
    """
    if entry.needs_theta and entry.theta is None:
        raise UserError(_how_to_get_weights(entry, environment, budget))
    values = {key: spec.default for key, spec in entry.hyperparameters.items()}
    origin, tuned_on = "default", None
    chosen = _chosen(shipped_hyperparameters(entry.tuned_as or entry.name), environment, like or budget)
    if chosen:
        found_at, table = chosen
        values |= {key: check_value(entry, key, value) for key, value in table["values"].items()}
        # Published settings, for any budget, were tuned at the full one; a family's on one of its environments.
        origin, tuned_on = table["origin"], (table.get("environment", environment), found_at.replace("any", "full"))
    if entry.given:
        values |= entry.given
        origin, tuned_on = "given", None
    return Candidate(entry, values, origin, jax.tree.map(jnp.asarray, entry.theta or EMPTY_THETA), tuned_on)


def _how_to_get_weights(entry: OptimizerEntry, environment: str, budget: str) -> str:
    from open_bench import weights

    own, place = own_weights(entry), weights.library_dir()
    if own is None:  # optimizer and objective are both learned
        absent, name = "no weights were named", "mine"
        use, others = entry.name, ""
    else:
        absent, name = f"no weights named '{own}' ship or lie in {place}", own
        use, others = own, f"`openbench weights import FILE --optimizer {own}` keeps published ones there as '{own}', "
    message = f"{entry.name} is a learned optimizer, and {absent}. Name some with {use}@NAME or {use}@FILE; "
    if own in FETCHED:
        return message + f"`openbench weights fetch {own}` downloads the official ones."
    length = f"--steps {budget.removeprefix('steps-')}" if budget.startswith("steps-") else f"--budget {budget}"
    return message + (
        f"{others}`openbench meta-train {use} -e {environment} {length} --name {name}` evolves some, as does "
        f"`openbench compare` with --meta-train, and {use}@zero has θ = 0."
    )


def _chosen(shipped: dict[str, Any], environment: str, budget: str) -> tuple[str, dict[str, Any]] | None:
    """What ships for an environment and budget, and under which budget or "any".

    "gridworld/*" stands for what lies under gridworld/ without a table.
    """
    folder, slash, _ = environment.rpartition("/")
    for name in (environment, f"{folder}/*") if slash else (environment,):
        if name in shipped:
            return next(((key, shipped[name][key]) for key in (budget, "any") if key in shipped[name]), None)
    return None


@functools.cache
def shipped_hyperparameters(optimizer: str) -> dict[str, Any]:
    """``{environment or "family/*": {budget or "any": {"origin", "source", "values"}}}`` of the baselines that ship."""
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
