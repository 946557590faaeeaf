"""What every optimizer must do to be comparable: checks that anyone can run on their own (``openbench check NAME``).

Each check is a function of a ``Subject`` that returns a detail for people, or raises ``Violation`` saying what broke.
Most run on an actor-critic agent with continuous actions; ``q_network`` runs on the other kind of agent.
"""

import dataclasses
import functools
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from open_bench.config import TrainingLength
from open_bench.optimizers.adapters import OWN_DEFAULT
from open_bench.optimizers.resolve import ResolvedOptimizer, kinds
from open_bench.plugins import line_of

LENGTH = TrainingLength(updates=4, epochs=2, minibatches=2)
BREAKOUT_LAYERS = (400, 64, 64)  # and heads of 3 actions and 1 value: 59,908 parameters
BOWL_STEPS, BOWL_DISTANCE = 16, 10.0
MAX_GRAD_NORM = 0.5  # what PPO clips gradients to
ODD_LEAVES = ("zz_empty", "zz_scalar")

# Programs of the checks run a few times each: what takes long is to compile them, so XLA need not make them fast.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


class Violation(AssertionError):
    """A check failed; the message says how."""


class Result(NamedTuple):
    """Outcome of one check."""

    name: str
    passed: bool
    detail: str


@dataclasses.dataclass(frozen=True)
class Subject:
    """An optimizer under test, with the agent that it is tested on and the network of it that acts.

    Programs serve all checks that can share them: ``compiled``, ``composes`` and ``other_leaves`` are a step each.
    """

    optimizer: ResolvedOptimizer
    params: Any
    acting_network: str = "actor"
    traces: list[int] = dataclasses.field(default_factory=list)  # one entry whenever ``compiled`` is traced

    def make(self) -> optax.GradientTransformationExtraArgs:
        return self.optimizer.learning(LENGTH, self.optimizer.inputs).optimizer

    def apply(self, carry: tuple[Any, Any], gradients: Any, extras: Any) -> tuple[tuple[Any, Any], Any]:
        """One optimizer step from ``(params, state)``: ``(carry, updates)``."""
        params, state = carry
        updates, state = self.make().update(gradients, state, params, **extras, acting_network=self.acting_network)
        return (optax.apply_updates(params, updates), state), updates

    def step(self, carry: tuple[Any, Any], index: Any, **unknown: Any) -> tuple[tuple[Any, Any], Any]:
        """``apply`` with made-up but lifelike inputs, for use inside other transformations."""
        return self.apply(carry, example_gradients(self.params, index), example_extras(self.params, index) | unknown)

    @functools.cached_property
    def compiled(self) -> Callable[..., Any]:
        """``apply``, compiled."""

        def step(carry: tuple[Any, Any], gradients: Any, extras: Any) -> Any:
            self.traces.append(1)
            return self.apply(carry, gradients, extras)

        return jit(step)

    @functools.cached_property
    def inputs(self) -> Callable[[Any], tuple[Any, Any]]:
        """Index of a step → its gradients and extras, compiled."""
        return jit(lambda index: (example_gradients(self.params, index), example_extras(self.params, index)))

    def run(self, carry: tuple[Any, Any], index: int, **changes: Any) -> tuple[tuple[Any, Any], Any]:
        """The compiled step with lifelike inputs; ``changes`` replace gradients or extras."""
        gradients, extras = self.inputs(np.int32(index))
        gradients = changes.pop("gradients", gradients)
        return self.compiled(carry, gradients, extras | changes)

    @functools.cached_property
    def start(self) -> tuple[Any, Any]:
        return self.params, jit(lambda params: self.make().init(params))(self.params)

    @functools.cached_property
    def walked(self) -> tuple[Any, Any]:
        """``(params, state)`` after three steps."""
        carry = self.start
        for index in range(3):
            carry, _ = self.run(carry, index)
        return carry

    @functools.cached_property
    def is_finite(self) -> bool:
        """Whether the agent as it is stays finite; where it does not, one check says so and no other."""
        return _finite(self.walked[0])

    @functools.cached_property
    def pair(self) -> list[tuple[Any, Any]]:
        """``(params, state)`` of two agents before their first step."""
        return [self.start, (jax.tree.map(lambda x: -0.5 * x, self.params), self.start[1])]

    @functools.cached_property
    def composes(self) -> bool:
        """Whether three steps of two agents, by vmap inside scan, are what the compiled step makes of each agent.

        It proves both transformations at once; where it fails, the check of each alone says which is wrong.
        """
        other = self.pair[1]
        for index in range(3):
            other, _ = self.run(other, index)
        step = jax.vmap(self.step, in_axes=(0, None))
        try:
            (params, _), _ = jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(3)))(_stack(self.pair))
        except Exception:
            return False
        return _difference(params, _stack([self.walked[0], other[0]]), 2e-5) is None

    @functools.cached_property
    def programs(self) -> list[Any]:
        """Two traces of the first update, by one optimizer: what it keeps in Python would begin anew with another."""
        optimizer = self.make()
        return [_program(self, optimizer) for _ in range(2)]

    @functools.cached_property
    def q(self) -> "Subject":
        """The optimizer on a Q-network with norms."""
        return dataclasses.replace(self, params=q_agent(jax.random.key(1)), acting_network="q", traces=[])

    @functools.cached_property
    def odd(self) -> "Subject":
        """The optimizer on the agent with a scalar and an array without elements besides."""
        network = self.acting_network
        odd = dict(zip(ODD_LEAVES, (jnp.zeros((0,)), jnp.float32(0.3)), strict=True))
        return dataclasses.replace(self, params={**self.params, network: {**self.params[network], **odd}}, traces=[])

    @functools.cached_property
    def other_leaves(self) -> Any:
        """Parameters of a Q-network after three steps with odd leaves beside it; None unless all keep kind and finite.

        Where it is None, the check of each alone says what is wrong.
        """
        subject = self.q.odd

        def walk(params: Any) -> Any:
            return jax.lax.scan(subject.step, (params, subject.make().init(params)), jnp.arange(3))[0][0]

        try:
            params = jit(walk)(subject.params)
        except Exception:
            return None
        if not _finite(params) or kinds(params) != kinds(subject.params):
            return None
        return {"q": {name: layer for name, layer in params["q"].items() if name not in ODD_LEAVES}}


# --- agents to test on -----------------------------------------------------------------------------------------------


def actor_critic(key: jax.Array, inputs: int = 5, hidden: int = 4, actions: int = 3) -> Any:
    """PPO's parameters for continuous actions: two hidden layers and a head in each network, and ``log_std``."""
    keys = jax.random.split(key, 2)
    sizes = (inputs, hidden, hidden)
    actor = {**_network(keys[0], (*sizes, actions)), "log_std": jnp.zeros(actions)}
    return {"actor": actor, "critic": _network(keys[1], (*sizes, 1))}


def q_agent(key: jax.Array) -> Any:
    """PQN's parameters: one network whose hidden layers are each followed by a norm."""
    layers = _network(key, (5, 4, 4, 3))
    norms = {f"layer_{i:02d}_norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)} for i in range(2)}
    return {"q": dict(sorted({**layers, **norms}.items()))}


def breakout_agent() -> Any:
    """Actor and critic of MinAtar Breakout: 59,908 parameters."""
    keys = jax.random.split(jax.random.key(0), 2)
    return {"actor": _network(keys[0], (*BREAKOUT_LAYERS, 3)), "critic": _network(keys[1], (*BREAKOUT_LAYERS, 1))}


def _network(key: jax.Array, sizes: tuple[int, ...]) -> dict[str, Any]:
    keys = jax.random.split(key, len(sizes) - 1)
    return {
        f"layer_{i:02d}_dense": {
            "kernel": 0.5 * jax.random.normal(keys[i], (fan_in, fan_out)),
            "bias": jnp.full(fan_out, 0.1, jnp.float32),
        }
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes))
    }


def example_gradients(params: Any, index: Any) -> Any:
    """Gradients that differ from step to step and from leaf to leaf."""
    leaves, structure = jax.tree.flatten(params)
    made = [
        0.1 * jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape) * 0.7 + number + index)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, [g.astype(leaf.dtype) for g, leaf in zip(made, leaves, strict=True)])


def example_extras(params: Any, index: Any) -> dict[str, Any]:
    """The keyword arguments that the harness passes, but for the acting network's name."""
    activations = {
        network: {
            name: jnp.linspace(0.0, 1.0, layer["bias"].shape[-1])
            for name, layer in layers.items()
            if isinstance(layer, dict)
        }
        for network, layers in params.items()
    }
    loss = 1.0 / (1.0 + jnp.float32(index))
    return {
        "training_fraction": jnp.float32(index) / 16,
        "epoch_fraction": jnp.float32(index) % 2,
        "new_rollout": jnp.equal(jnp.asarray(index) % 4, 0),
        "activations": activations,
        "loss": loss,
        "value": loss,
        "key": jax.random.fold_in(jax.random.key(7), index),
    }


# --- checks ----------------------------------------------------------------------------------------------------------


def hyperparameters(subject: Subject) -> str:
    """What it runs with; never fails. A value that nobody chose is named as such."""
    spec, values = subject.optimizer.spec, subject.optimizer.hyperparameters
    told = [f"{name}={values[name]!r}" for name in spec.hyperparameters]
    for number, setting in enumerate(spec.hyperparameters.values()):
        if setting.description.endswith(OWN_DEFAULT):
            told[number] += OWN_DEFAULT
    searched = [name for name, setting in spec.hyperparameters.items() if setting.search]
    return f"{', '.join(told) or 'none'}; tuning searches {', '.join(searched) or 'nothing'}"


def scan_equals_steps(subject: Subject) -> str:
    """Inside jit and scan the same numbers come out as step by step."""
    if not subject.composes:
        (scanned, _), _ = jit(lambda carry: jax.lax.scan(subject.step, carry, jnp.arange(3)))(subject.start)
        _same(scanned, subject.walked[0], 2e-5, "three steps inside lax.scan differ from three separate steps")
    return "three steps agree"


def compiles_once(subject: Subject) -> str:
    """The second and third step compile nothing new."""
    _ = subject.walked
    if len(subject.traces) != 1:
        raise Violation(f"update was traced {len(subject.traces)} times in 3 steps: its state changes type or shape")
    return "one trace for three steps"


def hides_no_state(subject: Subject) -> str:
    """The same inputs give the same updates again: what changes between steps lies in the state, not in Python."""
    if _same_program(*subject.programs):
        return "traced twice, the same program"
    optimizer = subject.make()
    # Traced at each call: a compiled step would not run the author's Python again.
    inputs = (subject.params, *subject.inputs(np.int32(1)))
    one, other = (jit(_first_update(subject, optimizer))(*inputs) for _ in range(2))
    _same(one, other, 0.0, "called again with the same inputs it gives other updates: keep what changes in its state")
    return "called twice, the same updates"


def state_is_stable(subject: Subject) -> str:
    """Structure, shapes and dtypes of state and updates stay as they are."""
    params, state = subject.start
    (_, after), updates = jax.eval_shape(subject.step, (params, state), jnp.int32(0))
    if kinds(state) != kinds(after):
        raise Violation("the state that update returns has another structure, shape or dtype than init's")
    if jax.tree.structure(updates) != jax.tree.structure(params):  # type: ignore[operator]
        raise Violation("updates have another structure than the parameters")
    for update, leaf in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        if (update.shape, update.dtype) != (leaf.shape, leaf.dtype):
            raise Violation(f"an update is {update.dtype}{update.shape}, its parameter {leaf.dtype}{leaf.shape}")
    return f"{len(jax.tree.leaves(state))} arrays of state"


def vmap_equals_loop(subject: Subject) -> str:
    """A batch of agents is optimized as each of them alone."""
    if not subject.composes:
        carries, batch = subject.pair, _stack(subject.pair)
        step = jit(jax.vmap(subject.apply, in_axes=(0, None, None)))
        for index in range(2):
            batch, _ = step(batch, *subject.inputs(np.int32(index)))
            carries = [subject.run(carry, index)[0] for carry in carries]
        alone = _stack([params for params, _ in carries])
        _same(batch[0], alone, 2e-5, "under vmap an agent gets other updates than alone")
        if next(check(subject.optimizer, ["jit and scan"])).passed:
            raise Violation("under vmap inside lax.scan an agent gets other updates than alone")
    return "two agents under vmap agree with each alone"


def unknown_extras_are_ignored(subject: Subject) -> str:
    """A keyword that the optimizer does not know is no error."""
    jax.eval_shape(lambda carry: subject.step(carry, 0, not_known_to_anyone=jnp.float32(1)), subject.start)
    return "an unknown keyword is accepted"


def odd_leaves(subject: Subject) -> str:
    """Scalars and arrays without elements are parameters too."""
    if subject.other_leaves is None:
        inputs = (subject.odd.params, *subject.odd.inputs(np.int32(0)))
        updates = jit(_first_update(subject, subject.make()))(*inputs)
        leaves = [updates[subject.acting_network][name].shape for name in ODD_LEAVES]
        if leaves != [(0,), ()]:
            raise Violation("a scalar or an empty parameter comes back in another shape")
        if subject.is_finite and not _finite(updates):
            raise Violation("with a scalar and an empty parameter in the tree some updates are not finite")
    return "scalar and empty parameters keep their shapes"


def nan_gradients(subject: Subject) -> str:
    """NaN gradients do not break the program; the harness records divergence."""
    gradients = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), subject.params)
    _, updates = subject.run(subject.start, 0, gradients=gradients)
    return "filtered out" if _finite(updates) else "passed on, so the lifetime is recorded as diverged"


def key_matters_only_if_declared(subject: Subject) -> str:
    """Updates depend on the key exactly when the spec says ``stochastic``."""
    first, second = (subject.run(subject.start, 1, key=jax.random.key(seed))[1] for seed in (0, 1))
    same = _equal(first, second)
    declared = subject.optimizer.spec.stochastic
    if declared and same:
        # Zero weights make no noise; that is not a lie.
        return "declared stochastic; these weights make no noise"
    if not declared and not same:
        raise Violation("updates depend on the key, but the spec is not declared stochastic")
    return "depends on the key, as declared" if declared else "does not depend on the key"


def names_do_not_matter(subject: Subject) -> str:
    """The names of networks and layers do not change an update; only their order counts."""

    def rename(tree: Any) -> Any:
        return {f"n_{network}": {name.replace("layer_", "aa_block_"): layer for name, layer in layers.items()}
                for network, layers in tree.items()}  # fmt: skip

    acting = f"n_{subject.acting_network}"
    renamed = dataclasses.replace(subject, params=rename(subject.params), acting_network=acting, traces=[])
    if not _same_program(subject.programs[0], _program(renamed, renamed.make())):
        _, plain = subject.run(subject.start, 1)
        _, other = renamed.run(renamed.start, 1)
        message = (
            "renaming networks (acting_network says which one acts) and layers, their order kept, changes the updates"
        )
        _same(rename(plain), other, 0.0, message)
    return "names of environments, networks and layers change nothing"


def moves_parameters(subject: Subject) -> str:
    """Three steps change the parameters and keep them finite."""
    params, _ = subject.walked
    if not _finite(params):
        raise Violation("finite gradients give parameters that are not finite")
    return f"mean |change| {_moved(subject, params):.3g}"


def _moved(subject: Subject, params: Any) -> float:
    """Mean |change| of a parameter; Violation where there is none, unless θ = 0 asks for none."""
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(subject.params), strict=True))
    moved = sum(float(jnp.abs(a - b).sum()) for a, b in pairs)
    if moved == 0 and subject.optimizer.source != "zero":
        raise Violation("three steps with non-zero gradients do not change any parameter")
    return moved / sum(leaf.size for leaf, _ in pairs)


def descends(subject: Subject) -> str:
    """In a quadratic bowl whose bottom is far away the loss falls; learned rules are not asked."""
    if subject.optimizer.spec.learned is not None:
        return "learned rules are not asked"
    start = subject.params

    @jit
    def slope(params: Any) -> tuple[Any, Any]:
        gradients = jax.tree.map(lambda leaf, first: leaf - first + BOWL_DISTANCE, params, start)
        norm = optax.tree.norm(gradients)
        return jax.tree.map(lambda g: g * MAX_GRAD_NORM / norm, gradients), norm

    carry, path = subject.start, np.zeros(sum(leaf.size for leaf in jax.tree.leaves(start)))
    for index in range(BOWL_STEPS):
        gradients, norm = slope(carry[0])
        carry, updates = subject.run(carry, index, gradients=gradients, loss=norm, value=norm)
        path = path + np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(updates)])
    change = float((path * BOWL_DISTANCE + 0.5 * path**2).sum())  # of the loss, whose value itself is rounded
    if change > 0:
        raise Violation(f"in a quadratic bowl the loss rises by {change:.3g}: updates are added, so they need a minus")
    return f"in a quadratic bowl the loss changes by {change:.3g}"


def q_network(subject: Subject) -> str:
    """One network with norms, as PQN has, is optimized too."""
    params = subject.q.walked[0] if subject.other_leaves is None else subject.other_leaves
    if subject.is_finite and not _finite(params):
        raise Violation("on a Q-network with norms finite gradients give parameters that are not finite")
    return f"mean |change| {_moved(subject.q, params):.3g} of a Q-network with norms"


def acting_parameters(subject: Subject) -> str:
    """What the agent acts with has the structure, shapes and dtypes of the parameters."""
    eval_params = subject.optimizer.spec.eval_params
    if eval_params is None:
        return "acts with the parameters themselves"
    params, state = subject.walked
    acting = eval_params(state, params)
    if kinds(acting) != kinds(params):
        raise Violation("eval_params returns another structure, shape or dtype than the parameters have")
    if subject.is_finite and not _finite(acting):
        raise Violation("eval_params returns numbers that are not finite")
    return "acts with parameters of its own"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "hyperparameters": hyperparameters,
    "moves the parameters": moves_parameters,
    "descends": descends,
    "Q-network with norms": q_network,
    "acting parameters": acting_parameters,
    "jit and scan": scan_equals_steps,
    "no recompilation": compiles_once,
    "no hidden state": hides_no_state,
    "stable state": state_is_stable,
    "vmap": vmap_equals_loop,
    "unknown extras": unknown_extras_are_ignored,
    "scalar and empty parameters": odd_leaves,
    "NaN gradients": nan_gradients,
    "key": key_matters_only_if_declared,
    "names": names_do_not_matter,
}


def check(optimizer: ResolvedOptimizer, names: Iterable[str] = tuple(CHECKS)) -> Iterator[Result]:
    """Run checks, by default all."""
    subject = Subject(optimizer, actor_critic(jax.random.key(0)))
    for name in names:
        try:
            yield Result(name, True, CHECKS[name](subject))
        except Violation as problem:
            yield Result(name, False, str(problem))
        except Exception as error:  # whatever an author's code raises is the finding
            yield Result(name, False, f"{type(error).__name__}: {error}{line_of(error)}")


class Cost(NamedTuple):
    """What an optimizer costs on an agent of Breakout's size."""

    parameters: int
    state_bytes: int
    seconds_per_step: float
    adam_seconds_per_step: float

    @property
    def relative(self) -> float:
        """Time of a step relative to Adam's, measured in turn."""
        return self.seconds_per_step / self.adam_seconds_per_step


def cost(optimizer: ResolvedOptimizer, adam: ResolvedOptimizer, steps: int = 20, repeats: int = 5) -> Cost:
    """Measure state and time a step, alternating with Adam; the fastest of ``repeats`` counts."""
    params = breakout_agent()
    subjects = [Subject(one, params) for one in (optimizer, adam)]
    programs = [_timed_program(subject, steps) for subject in subjects]
    times: list[list[float]] = [[], []]
    for _ in range(repeats):
        for number, program in enumerate(programs):
            start = time.perf_counter()
            jax.block_until_ready(program())
            times[number].append((time.perf_counter() - start) / steps)
    state = subjects[0].start[1]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if not _is_key(leaf))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Cost(count, size, min(times[0]), min(times[1]))


def _timed_program(subject: Subject, steps: int) -> Callable[[], Any]:
    params, state = subject.start
    gradients = example_gradients(params, 0)

    def run(params: Any, state: Any, gradients: Any) -> Any:
        def step(carry: Any, index: Any) -> Any:
            return subject.apply(carry, gradients, example_extras(params, index))[0], None

        return jax.lax.scan(step, (params, state), jnp.arange(steps))[0]

    compiled = jax.jit(run)
    jax.block_until_ready(compiled(params, state, gradients))
    return lambda: compiled(params, state, gradients)


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _finite(tree: Any) -> bool:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not _is_key(leaf)]
    return all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)


def _equal(found: Any, expected: Any) -> bool:
    """Bit for bit, NaN where NaN is."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(np.array_equal(a, b, equal_nan=jnp.issubdtype(jnp.result_type(a), jnp.inexact)) for a, b in pairs)


def _difference(found: Any, expected: Any, tolerance: float) -> float | None:
    """The largest difference; None where all lie within the tolerance."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    if all(np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True) for a, b in pairs):
        return None
    return max(float(jnp.abs(jnp.asarray(a) - jnp.asarray(b)).max(initial=0.0)) for a, b in pairs)


def _same(found: Any, expected: Any, tolerance: float, message: str) -> None:
    if (worst := _difference(found, expected, tolerance)) is not None:
        raise Violation(f"{message} (by {worst:.3g})")


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _first_update(subject: Subject, optimizer: optax.GradientTransformationExtraArgs) -> Callable[..., Any]:
    """``(params, gradients, extras)`` → the updates after init."""

    def update(params: Any, gradients: Any, extras: Any) -> Any:
        state = optimizer.init(params)
        return optimizer.update(gradients, state, params, **extras, acting_network=subject.acting_network)[0]

    return update


def _program(subject: Subject, optimizer: optax.GradientTransformationExtraArgs) -> Any:
    """The first update as JAX traces it."""
    return jax.make_jaxpr(_first_update(subject, optimizer))(subject.params, *subject.inputs(np.int32(1)))


def _same_program(one: Any, other: Any) -> bool:
    """Whether two traces are the same operations on the same constants, and so give the same numbers."""
    texts = [re.sub(r" at 0x[0-9a-f]+", "", str(program)) for program in (one, other)]
    return texts[0] == texts[1] and _equal(one.consts, other.consts)
