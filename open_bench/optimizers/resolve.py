"""From what a user names to what trains: spec, hyperparameters, policy loss and weights for one task.

Everything that can be wrong with a name is found here, before anything trains.
"""

import dataclasses
import functools
import json
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from open_bench import plugins
from open_bench.algorithms.base import Learning
from open_bench.algorithms.policy_losses import PPO, PolicyLoss
from open_bench.algorithms.registry import ALGORITHMS, find_algorithm
from open_bench.config import TrainingLength
from open_bench.errors import UserError
from open_bench.optimizers import adapters, hyperparameters, names, registry
from open_bench.optimizers.spec import EMPTY_THETA, OptimizerSpec, Theta, params_themselves
from open_bench.training.task import Task
from open_bench.weights import fetch, library
from open_bench.weights.format import Weights, content_hash

UNTRAINED = ("zero", "init")  # sources of a θ that nothing has trained
UNTUNED = "untuned"  # a track that no name says: published settings, or else the defaults
BY_ENVIRONMENT = "{environment}"  # in a source: weights of their own on every environment


@dataclasses.dataclass(frozen=True)
class ResolvedOptimizer:
    """What a name means for one task.

    Attributes:
        label: as rows show it.
        spec: what is registered.
        hyperparameters: every setting's value.
        origin: where they come from: given, published, tuned, one setting or default.
        tuned_on: environment, algorithm and budget that published or tuned hyperparameters were found on, else None.
        policy_loss: None where the algorithm has none.
        weights: θ with its metadata; None where there is none to learn, or (with ``needs_weights``) none was found.
        source: where the weights came from, for people.
        track: where the name says that hyperparameters come from, "" where it does not.
        tuning_trials, tuning_env_steps: that finding them took, where that is known.
    """

    label: str
    spec: OptimizerSpec
    hyperparameters: Mapping[str, Any]
    origin: str
    tuned_on: tuple[str, str, str] | None
    policy_loss: PolicyLoss | None
    weights: Weights | None = None
    source: str | None = None
    track: str = ""
    tuning_trials: int = 0
    tuning_env_steps: int = 0

    @property
    def theta(self) -> Theta:
        """θ, its parts empty where nothing is learned."""
        return self.weights.theta if self.weights else EMPTY_THETA

    @property
    def needs_weights(self) -> bool:
        """Whether it is learned."""
        return self.spec.learned is not None or (self.policy_loss is not None and self.policy_loss.init is not None)

    @property
    def inputs(self) -> dict[str, Any]:
        """The traced arguments of a lifetime: θ and the traced hyperparameters, as float32 arrays."""
        traced = {key: np.float32(value) for key, value in self.hyperparameters.items() if self._is_traced(key)}
        return {**self.theta, "hyperparameters": traced}

    @property
    def static(self) -> dict[str, Any]:
        """The hyperparameters that a program is compiled for."""
        return {key: value for key, value in self.hyperparameters.items() if not self._is_traced(key)}

    def learning(self, length: TrainingLength, inputs: Mapping[str, Any]) -> Learning:
        """What an algorithm receives; ``inputs`` may be tracers."""
        optimizer = self.spec.build(dict(inputs), length, **self.static, **inputs["hyperparameters"])
        loss = self.policy_loss
        of_theta = functools.partial(loss, inputs["policy_loss"]) if loss is not None else None
        return Learning(optimizer, self.spec.eval_params or params_themselves, of_theta)

    def with_theta(self, theta: Theta) -> "ResolvedOptimizer":
        """The same with another θ."""
        return dataclasses.replace(self, weights=Weights(theta, {}, ""), source=None)

    def _is_traced(self, key: str) -> bool:
        return self.spec.hyperparameters[key].traced

    @functools.cached_property
    def theta_hash(self) -> str:
        """Identity of θ by content (12 hexadecimal digits), '' when there is none."""
        return content_hash(self.theta)[:12] if jax.tree.leaves(self.theta) else ""

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Everything about the optimizer that determines results, as JSON values."""
        text = json.dumps(dict(self.hyperparameters), sort_keys=True, default=_stable_name)
        digest = self.spec.digest
        code = {"code": uuid.uuid4().hex if digest is None else digest} if digest != "" else {}
        return {
            **code,
            **({"track": self.track} if self.track else {}),
            "optimizer": self.label,
            "policy_loss": self.policy_loss.name if self.policy_loss else None,
            "hyperparameters": json.loads(text),
            "theta": self.theta_hash,
        }


def resolve(
    optimizer: Any, task: Task | None = None, require_weights: bool = True, tuned_for: str | None = None,
    track: str | None = None, folder: pathlib.Path | None = None, stored: Mapping[str, Any] | None = None,
) -> ResolvedOptimizer:  # fmt: skip
    """The optimizer that a name means for a task.

    Args:
        optimizer: a name (``open_bench.optimizers.names`` has the grammar), or what a name may stand for: a spec, an
            optax constructor, a function that returns a gradient transformation, or such a transformation.
        task: where it will be used; None: nowhere in particular, so no hyperparameters that ship apply.
        require_weights: a learned optimizer without weights is an error; else its ``weights`` are None.
        tuned_for: algorithm whose shipped hyperparameters apply, in place of the task's own.
        track: where hyperparameters come from (``names.TRACKS``), as if the name said so; or ``UNTUNED``.
        folder: of hyperparameter files that come before those that ship.
        stored: hyperparameters of a stored experiment, in place of all but the name's own.

    Raises:
        UserError: unknown name or setting (with near matches), a value of the wrong kind, weights that are absent or do
            not fit, a policy loss where the algorithm has none, a track of which there are no settings, or an optimizer
            that cannot run on gradients alone.
    """
    if isinstance(optimizer, str):
        parsed = names.parse(optimizer)
        spec = registry.find(parsed)
    else:
        parsed, spec = registry.find_object(optimizer)
    spec, policy_loss = _with_policy_loss(spec, parsed, task)
    given = registry.check_settings(spec, {**(stored or {}), **dict(parsed.settings)})
    parsed = dataclasses.replace(parsed, settings=tuple((key, given[key]) for key, _ in parsed.settings))  # 1 is 1.0
    track = parsed.track or track
    found = ResolvedOptimizer(_label(spec, parsed), spec, _defaults(spec), "default", None, policy_loss)
    if task is not None and track != "default" and stored is None:
        found = _with_shipped(found, task, tuned_for or task.algorithm, track, folder)
    if given:
        found = dataclasses.replace(
            found, hyperparameters={**found.hyperparameters, **given}, origin="given", tuned_on=None,
            tuning_trials=0, tuning_env_steps=0,
        )  # fmt: skip
    found = dataclasses.replace(found, track=track if track in names.TRACKS else "")
    found = _with_weights(found, parsed, task)
    if found.needs_weights and found.weights is None:
        if require_weights:
            raise UserError(how_to_get_weights(found, task))
        return found
    _dry_run(found, task)
    return found


def _with_policy_loss(
    spec: OptimizerSpec, parsed: names.ParsedName, task: Task | None
) -> tuple[OptimizerSpec, PolicyLoss | None]:
    """The spec with the policy loss of the name, and the loss; None where the task's algorithm has none."""
    if parsed.policy_loss is not None:
        spec = dataclasses.replace(spec, policy_loss=registry.find_policy_loss(parsed.policy_loss))
    if task is None or find_algorithm(task.algorithm).has_policy_loss:
        return spec, spec.policy_loss
    if spec.policy_loss is not PPO or parsed.policy_loss is not None:
        raise UserError(
            f"{parsed}: {task.algorithm} has no policy loss, so {spec.policy_loss.name} means nothing there: leave it "
            "out, or take --algorithm ppo"
        )
    return spec, None


def _defaults(spec: OptimizerSpec) -> dict[str, Any]:
    return {key: hyperparameter.default for key, hyperparameter in spec.hyperparameters.items()}


def _with_shipped(
    found: ResolvedOptimizer, task: Task, algorithm: str, track: str | None, folder: pathlib.Path | None
) -> ResolvedOptimizer:
    """With the hyperparameters of a track, or the best known ones, for a task."""
    spec, owner = found.spec, found.spec.tuned_as or found.spec.name
    place = hyperparameters.Place(
        tuple(dict.fromkeys((task.name, task.base))),
        algorithm,
        tuple(dict.fromkeys((task.budget, task.nearest_budget))),
    )
    chosen = hyperparameters.find(owner, place, "published" if track == UNTUNED else track, folder)
    if chosen is None and track in names.TRACKS:
        raise UserError(_how_to_get_settings(owner, task, algorithm, track))
    if chosen is None:
        return found
    origin, table, tuned_on = chosen
    values = {**found.hyperparameters, **registry.check_settings(spec, table.values)}
    return dataclasses.replace(
        found, hyperparameters=values, origin=origin, tuned_on=tuned_on, tuning_trials=table.trials,
        tuning_env_steps=table.env_steps,
    )  # fmt: skip


def _how_to_get_settings(owner: str, task: Task, algorithm: str, track: str) -> str:
    """What a user can do about a track of which there are no settings."""
    known = f"{owner} has no settings of the track '{track}' for {task.name} ({algorithm}, {task.budget})"
    if track == "published":
        return f"{known}: take track=default, or give settings in the name"
    steps = task.budget.removeprefix("steps-")
    length = f"--budget {task.budget}" if steps == task.budget else f"--steps {steps}"
    more = " with every environment of the study" if track == "one_setting" else ""
    return (
        f"{known}: `openbench tune {owner} -e {task.base} --algorithm {algorithm} {length} --results FOLDER`{more} "
        "finds some, and --hyperparameters FOLDER uses them"
    )


def _label(spec: OptimizerSpec, parsed: names.ParsedName) -> str:
    """The name as rows show it; of code that lies in a file, with a digest, so that an edited file is another row."""
    name = str(dataclasses.replace(parsed, track=None))
    return f"{name}#{spec.digest}" if spec.digest else name


# --- weights -------------------------------------------------------------------------------------------------------


def _with_weights(found: ResolvedOptimizer, parsed: names.ParsedName, task: Task | None) -> ResolvedOptimizer:
    """Attach the weights that the name asks for, or those that are kept under what is learned (``own_weights``)."""
    if not found.needs_weights:
        if parsed.source is not None:
            raise UserError(
                f"'{parsed}': {parsed.head} is not a learned optimizer, so '@{parsed.source}' has no meaning"
            )
        return found
    if parsed.source is None:
        own = own_weights(found)
        kept = library.kept(own) if own is not None else None
        if kept is None:
            return found
        return dataclasses.replace(found, weights=library.import_file(kept, found.spec), source=kept.name)
    if parsed.source in UNTRAINED:
        if parsed.source == "zero":  # of its shapes: nothing is drawn
            shapes = jax.eval_shape(found.spec.init_theta, jax.random.key(0))
            theta = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        else:
            theta = found.spec.init_theta(jax.random.key(0))
        return dataclasses.replace(found, weights=Weights(theta, {}, ""), source=parsed.source)
    weights = library.load_source(_on_environment(parsed, task), found.spec)
    # Rows and folders show the weights' name; what they hold is told by their hash, wherever the file lies.
    short = pathlib.PurePath(parsed.source).name
    for suffix in library.SUFFIXES:
        short = short.removesuffix(suffix)
    label = _label(found.spec, dataclasses.replace(parsed, source=short))
    return dataclasses.replace(found, label=label, weights=weights, source=short)


def _on_environment(parsed: names.ParsedName, task: Task | None) -> str:
    """The source of weights on a task: ``{environment}`` stands for its environment, with "-" in place of "/"."""
    source = str(parsed.source)
    if BY_ENVIRONMENT not in source:
        return source
    if task is None:
        raise UserError(
            f"'{parsed}' has weights of its own on every environment, and here one θ is asked for: name the weights, "
            f"as in {parsed.head}@{source.replace(BY_ENVIRONMENT, 'breakout')}"
        )
    base = task.base.partition("[")[0]  # a task that is made again from a stored one has its changed settings in it
    return source.replace(BY_ENVIRONMENT, base.replace("/", "-"))


def own_weights(found: ResolvedOptimizer) -> str | None:
    """Name of the weights that an optimizer uses when none are named, such as "open"; "lpo" for ``adam+lpo``.

    None where optimizer and policy loss are both learned: no weights can go by the name of one of them.
    """
    spec, loss = found.spec, found.policy_loss
    if spec.learned is None:
        return loss.name if loss is not None else None
    return None if loss is not None and loss.init is not None else (spec.tuned_as or spec.name)


def how_to_get_weights(found: ResolvedOptimizer, task: Task | None) -> str:
    """What a user can do about a learned optimizer that has no weights."""
    own, place = own_weights(found), library.library_dir()
    if own is None:  # optimizer and policy loss are both learned
        absent, name, use, others = "no weights were named", "mine", found.label, ""
    else:
        absent, name, use = f"no weights named '{own}' ship or lie in {place}", own, own
        others = f"`openbench weights import FILE --optimizer {own}` keeps published ones there as '{own}', "
    message = f"{found.label} is a learned optimizer, and {absent}. Name some with {use}@NAME or {use}@FILE; "
    if own in fetch.OFFICIAL:
        return message + f"`openbench weights fetch {own}` downloads the official ones."
    for theirs, command in fetch.ways_to_fetch(own or "").items():
        others += f"`{command}` downloads {theirs}, "
    where = "-e ENVIRONMENT"
    if task is not None:
        steps = task.budget.removeprefix("steps-")
        where = f"-e {task.base} " + (f"--budget {task.budget}" if steps == task.budget else f"--steps {steps}")
    return message + (
        f"{others}`openbench meta-train {use} {where} --name {name}` evolves some, as does "
        f"`openbench compare` with --meta-train, and {use}@zero has θ = 0."
    )


# --- checks --------------------------------------------------------------------------------------------------------


_dry_runs: set[tuple[Any, ...]] = set()  # what has passed


def _dry_run(found: ResolvedOptimizer, task: Task | None) -> None:
    """Trace one step on an agent of the task's algorithm, so that what cannot work says so before anything trains."""
    algorithm = find_algorithm(task.algorithm) if task is not None else None
    static = tuple(sorted((key, str(x)) for key, x in found.static.items()))
    done = (found.spec.name, found.spec.make, static, tuple(found.hyperparameters), found.theta_hash, algorithm)
    if done in _dry_runs:
        return
    params = task.params() if task is not None and task.algorithm not in ALGORITHMS else None
    problem: Exception | None = None
    for acting in [algorithm.acting_network] if algorithm is not None else adapters.TINY_AGENTS:
        try:
            params, before, updates, after = adapters.dry_step(
                lambda inputs: found.learning(TrainingLength(2, 2, 2), inputs).optimizer, found.inputs, acting, params
            )
            break
        except UserError:
            raise
        except Exception as error:
            problem = problem or error
    else:
        reason = f"{type(problem).__name__}: {problem}{plugins.line_of(problem)}" if problem else ""
        where = f" of {task.algorithm}" if task is not None else ""
        raise UserError(
            f"{found.label} cannot make an update from the gradients and extras{where}: {reason}"
        ) from problem
    for what, shown, expected in (("updates", updates, params), ("state", after, before)):
        if kinds(shown) != kinds(expected):
            whose = "the parameters" if what == "updates" else "the state of init"
            raise UserError(
                f"{found.label} returns {what} of another structure, shape or dtype than {whose}; "
                f"`openbench check` says more"
            )
    _dry_runs.add(done)


def kinds(tree: Any) -> Any:
    """Structure, shapes and dtypes."""
    return jax.tree.structure(tree), [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)]


def _stable_name(value: Any) -> str:
    """A name for a setting that is no JSON value; never a memory address, which differs from process to process."""
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    text = repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__}" if " at 0x" in text else text
