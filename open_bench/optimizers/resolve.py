"""What the harness gets of an optimizer for one environment and budget: three values and nothing else."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from open_bench import config, files
from open_bench.errors import UserError
from open_bench.optimizers.registry import FETCHED, check_value, own_weights
from open_bench.optimizers.spec import EMPTY_THETA, OptimizerSpec, TrainingLength


@dataclasses.dataclass(frozen=True)
class ResolvedOptimizer:
    """An optimizer with the hyperparameters that it will use.

    Attributes:
        spec: the resolved spec.
        hyperparameters: every setting's value.
        origin: where they come from: given, published, tuned or default.
        theta: θ, possibly with empty parts.
        tuned_on: environment and budget that published or tuned hyperparameters were found on, else None.
    """

    spec: OptimizerSpec
    hyperparameters: dict[str, Any]
    origin: str
    theta: dict[str, Any]
    tuned_on: tuple[str, str] | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """The traced arguments of a lifetime: θ and the traced hyperparameters, as float32 arrays."""
        traced = {key: np.float32(value) for key, value in self.hyperparameters.items() if self._is_traced(key)}
        return {**self.theta, "hyperparameters": traced}

    def make(self, budget: TrainingLength, inputs: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
        """The gradient transformation; ``inputs`` may be tracers."""
        static = {key: value for key, value in self.hyperparameters.items() if not self._is_traced(key)}
        theta = {"optimizer": inputs["optimizer"], "policy_loss": inputs["policy_loss"]}
        return self.spec.make(theta, budget, **static, **inputs["hyperparameters"])

    def policy_loss(self, inputs: dict[str, Any], *arguments: Any) -> jax.Array:
        """The policy loss, reading its part of θ."""
        return self.spec.policy_loss(inputs["policy_loss"], *arguments)

    def _is_traced(self, key: str) -> bool:
        return self.spec.hyperparameters[key].traced

    @functools.cached_property
    def theta_hash(self) -> str:
        """Identity of θ by content (12 hexadecimal digits), '' when there is none."""
        from open_bench import weights

        return weights.content_hash(self.theta)[:12] if jax.tree.leaves(self.theta) else ""


def prepare(spec: OptimizerSpec, environment: str, budget: str, like: str | None = None) -> ResolvedOptimizer:
    """Choose hyperparameters: those given in the name, else the shipped ones for this task, else the defaults.

    Args:
        spec: the resolved optimizer.
        environment, budget: the task.
        like: the budget whose shipped settings apply, where ``budget`` names a number of env steps.

    Raises:
        UserError: the optimizer is learned and has no weights.
    """
    if spec.needs_theta and spec.theta is None:
        raise UserError(_how_to_get_weights(spec, environment, budget))
    values = {key: hyperparameter.default for key, hyperparameter in spec.hyperparameters.items()}
    origin, tuned_on = "default", None
    chosen = _chosen(shipped_hyperparameters(spec.tuned_as or spec.name), environment, like or budget)
    if chosen:
        found_at, table = chosen
        values |= {key: check_value(spec, key, value) for key, value in table["values"].items()}
        # Published settings, for any budget, were tuned at the full one; a family's on one of its environments.
        origin, tuned_on = table["origin"], (table.get("environment", environment), found_at.replace("any", "full"))
    if spec.given:
        values |= spec.given
        origin, tuned_on = "given", None
    return ResolvedOptimizer(spec, values, origin, jax.tree.map(jnp.asarray, spec.theta or EMPTY_THETA), tuned_on)


def _how_to_get_weights(spec: OptimizerSpec, environment: str, budget: str) -> str:
    from open_bench import weights

    own, place = own_weights(spec), weights.library_dir()
    if own is None:  # optimizer and policy_loss are both learned
        absent, name = "no weights were named", "mine"
        use, others = spec.name, ""
    else:
        absent, name = f"no weights named '{own}' ship or lie in {place}", own
        use, others = own, f"`openbench weights import FILE --optimizer {own}` keeps published ones there as '{own}', "
    message = f"{spec.name} is a learned optimizer, and {absent}. Name some with {use}@NAME or {use}@FILE; "
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
    path = files.baselines_dir() / "hyperparameters" / f"{optimizer}.toml"
    return config.read_toml(path).get("environments", {}) if path.is_file() else {}


def identity(resolved: ResolvedOptimizer) -> dict[str, Any]:
    """Everything about the optimizer that determines results, as JSON values."""
    text = json.dumps(resolved.hyperparameters, sort_keys=True, default=_stable_name)
    version = {"code": resolved.spec.digest} if resolved.spec.digest else {}
    return {
        **version,
        "optimizer": resolved.spec.name,
        "policy_loss": resolved.spec.policy_loss.name,
        "hyperparameters": json.loads(text),
        "theta": resolved.theta_hash,
    }


def _stable_name(value: Any) -> str:
    """A name for a setting that is no JSON value; never a memory address, which differs from process to process."""
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    text = repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__}" if " at 0x" in text else text
