"""What every optimizer must do to be comparable: checks that anyone can run on their own (``openbench check NAME``).

Each check is a function of a ``Subject`` that returns a detail for people, or raises ``Violation`` saying what broke.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from open_bench.optimizers.resolve import ResolvedOptimizer, prepare
from open_bench.optimizers.spec import OptimizerSpec, TrainingLength

LENGTH = TrainingLength(updates=4, epochs=2, minibatches=2)
BREAKOUT_LAYERS = ((400, 64), (64, 64))  # and heads of 3 actions and 1 value: 59,908 parameters


class Violation(AssertionError):
    """A check failed; the message says how."""


class Result(NamedTuple):
    """Outcome of one check."""

    name: str
    passed: bool
    detail: str


@dataclasses.dataclass(frozen=True)
class Subject:
    """An optimizer under test, with the tree that it is tested on."""

    resolved: ResolvedOptimizer
    params: Any

    def make(self) -> optax.GradientTransformationExtraArgs:
        return self.resolved.make(LENGTH, self.resolved.inputs)

    def step(self, carry: tuple[Any, Any], index: Any, **changes: Any) -> tuple[tuple[Any, Any], Any]:
        """One optimizer step from ``(params, state)`` with made-up but lifelike inputs: ``(carry, updates)``."""
        params, state = carry
        extras = {**example_extras(params, index), **changes}
        gradients = extras.pop("gradients", None)
        gradients = example_gradients(params, index) if gradients is None else gradients
        updates, state = self.make().update(gradients, state, params, **extras)
        return (optax.apply_updates(params, updates), state), updates

    def start(self) -> tuple[Any, Any]:
        return self.params, self.make().init(self.params)


def small_params(key: jax.Array) -> Any:
    """An agent's tree with continuous actions: two hidden layers, heads and ``log_std``."""
    keys = iter(jax.random.split(key, 8))

    def network(outputs: int) -> dict[str, Any]:
        sizes = ((5, 4), (4, 4), (4, outputs))
        return {
            f"dense_{i:02d}": {
                "kernel": 0.5 * jax.random.normal(next(keys), size),
                "bias": jnp.full(size[1], 0.1, jnp.float32),
            }
            for i, size in enumerate(sizes)
        }

    return {"actor": {**network(3), "log_std": jnp.zeros(3)}, "critic": network(1)}


def breakout_params() -> Any:
    """Actor and critic of MinAtar Breakout: 59,908 parameters."""

    def network(outputs: int) -> dict[str, Any]:
        return {
            f"dense_{i:02d}": {"kernel": jnp.full(size, 0.01, jnp.float32), "bias": jnp.zeros(size[1])}
            for i, size in enumerate((*BREAKOUT_LAYERS, (64, outputs)))
        }

    return {"actor": network(3), "critic": network(1)}


def example_gradients(params: Any, index: Any) -> Any:
    """Gradients that differ from step to step and from leaf to leaf."""
    leaves, structure = jax.tree.flatten(params)
    made = [
        0.1 * jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape) * 0.7 + number + index)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, [g.astype(leaf.dtype) for g, leaf in zip(made, leaves, strict=True)])


def example_extras(params: Any, index: Any) -> dict[str, Any]:
    """The keyword arguments that the harness passes."""
    activations = {
        network: {
            name: jnp.linspace(0.0, 1.0, layer["kernel"].shape[-1])
            for name, layer in layers.items()
            if name != "log_std"
        }
        for network, layers in params.items()
    }
    loss = 1.0 / (1.0 + jnp.float32(index))
    return {
        "training_fraction": jnp.float32(index) / 16,
        "epoch_fraction": jnp.float32(index) % 2,
        "activations": activations,
        "loss": loss,
        "value": loss,
        "key": jax.random.fold_in(jax.random.key(7), index),
    }


def scan_equals_steps(subject: Subject) -> str:
    """Inside jit and scan the same numbers come out as step by step."""
    (scanned, _), _ = jax.jit(lambda: jax.lax.scan(subject.step, subject.start(), jnp.arange(3)))()
    carry = subject.start()
    for index in range(3):
        carry, _ = jax.jit(subject.step)(carry, index)
    _same(scanned, carry[0], 2e-5, "three steps inside lax.scan differ from three separate steps")
    return "three steps agree"


def compiles_once(subject: Subject) -> str:
    """The second and third step compile nothing new."""
    traces = []

    @jax.jit
    def step(carry: Any, index: Any) -> Any:
        traces.append(1)
        return subject.step(carry, index)[0]

    carry = subject.start()
    for index in range(3):
        carry = step(carry, jnp.int32(index))
    if len(traces) != 1:
        raise Violation(f"update was traced {len(traces)} times in 3 steps: its state changes type or shape")
    return "one trace for three steps"


def hides_no_state(subject: Subject) -> str:
    """The same inputs give the same updates again: what changes between steps lies in the state, not in Python."""
    params, extras = subject.params, example_extras(subject.params, 1)
    optimizer = subject.make()

    def update() -> Any:  # traced at each call: a compiled step would not run the author's Python again
        return optimizer.update(example_gradients(params, 1), optimizer.init(params), params, **extras)[0]

    first, again = (jax.jit(lambda: update())() for _ in range(2))
    _same(first, again, 0.0, "called again with the same inputs it gives other updates: keep what changes in its state")
    return "called twice, the same updates"


def state_is_stable(subject: Subject) -> str:
    """Structure, shapes and dtypes of state and updates stay as they are."""
    params, state = subject.start()
    (_, after), updates = jax.eval_shape(subject.step, (params, state), jnp.int32(0))
    kinds = [[(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(tree)] for tree in (state, after)]
    if jax.tree.structure(state) != jax.tree.structure(after) or kinds[0] != kinds[1]:  # type: ignore[operator]
        raise Violation("the state that update returns has another structure, shape or dtype than init's")
    if jax.tree.structure(updates) != jax.tree.structure(params):  # type: ignore[operator]
        raise Violation("updates have another structure than the parameters")
    for update, leaf in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        if (update.shape, update.dtype) != (leaf.shape, leaf.dtype):
            raise Violation(f"an update is {update.dtype}{update.shape}, its parameter {leaf.dtype}{leaf.shape}")
    return f"{len(kinds[0])} arrays of state"


def vmap_equals_loop(subject: Subject) -> str:
    """A batch of agents is optimized as each of them alone."""
    trees = [subject.params, jax.tree.map(lambda x: -0.5 * x, subject.params)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *trees)

    def two_steps(params: Any) -> Any:
        carry = (params, subject.make().init(params))
        return subject.step(subject.step(carry, 0)[0], 1)[0][0]

    batch = jax.jit(jax.vmap(two_steps))(stacked)
    for number, tree in enumerate(trees):
        alone = jax.jit(two_steps)(tree)
        _same(
            jax.tree.map(lambda x, n=number: x[n], batch),
            alone,
            2e-5,
            "under vmap an agent gets other updates than alone",
        )
    return "two agents under vmap agree with each alone"


def unknown_extras_are_ignored(subject: Subject) -> str:
    """A keyword that the optimizer does not know is no error."""
    jax.eval_shape(lambda carry: subject.step(carry, 0, not_known_to_anyone=jnp.float32(1)), subject.start())
    return "an unknown keyword is accepted"


def odd_leaves(subject: Subject) -> str:
    """Scalars and arrays without elements are parameters too."""
    params = subject.params
    params = {**params, "actor": {**params["actor"], "zz_empty": jnp.zeros((0,)), "zz_scalar": jnp.float32(0.3)}}
    extras = example_extras(subject.params, 0)
    gradients = {**example_gradients(params, 0)}

    def step(params: Any) -> Any:
        optimizer = subject.make()
        return optimizer.update(gradients, optimizer.init(params), params, **extras)[0]

    updates = jax.jit(step)(params)
    if updates["actor"]["zz_scalar"].shape != () or updates["actor"]["zz_empty"].shape != (0,):
        raise Violation("a scalar or an empty parameter comes back in another shape")
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(updates)):
        raise Violation("with a scalar and an empty parameter in the tree some updates are not finite")
    return "scalar and empty parameters keep their shapes"


def nan_gradients(subject: Subject) -> str:
    """NaN gradients do not break the program; the harness records divergence."""
    gradients = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), subject.params)
    (_, _), updates = jax.jit(lambda carry: subject.step(carry, 0, gradients=gradients))(subject.start())
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(updates))
    return "filtered out" if finite else "passed on, so the lifetime is recorded as diverged"


def key_matters_only_if_declared(subject: Subject) -> str:
    """Updates depend on the key exactly when the spec says ``stochastic``."""
    first, second = (
        jax.jit(lambda carry, key: subject.step(carry, 1, key=key))(subject.start(), jax.random.key(seed))[1]
        for seed in (0, 1)
    )
    same = all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    declared = subject.resolved.spec.stochastic
    if declared and same:
        # Zero weights make no noise; that is not a lie.
        return "declared stochastic; these weights make no noise"
    if not declared and not same:
        raise Violation("updates depend on the key, but the spec is not declared stochastic")
    return "depends on the key, as declared" if declared else "does not depend on the key"


def names_do_not_matter(subject: Subject) -> str:
    """Neither the environment's name nor the layers' names change an update; only the layers' order counts."""
    spec = subject.resolved.spec
    inputs = [prepare(spec, name, "no such length").inputs for name in ("no such environment", "another")]
    if not all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, inputs), strict=True)):
        raise Violation("an environment's name changes what the optimizer is given")

    def rename(tree: Any) -> Any:
        return {network: {name.replace("dense_", "aa_layer_"): layer for name, layer in layers.items()}
                for network, layers in tree.items()}  # fmt: skip

    renamed = dataclasses.replace(subject, params=rename(subject.params))
    _, plain = jax.jit(subject.step)(subject.start(), 1)
    _, other = jax.jit(renamed.step)(renamed.start(), 1)
    _same(rename(plain), other, 0.0, "renaming layers, their order kept, changes the updates")
    return "environment and layer names change nothing"


def moves_parameters(subject: Subject) -> str:
    """Three steps change the parameters and keep them finite."""
    carry = subject.start()
    for index in range(3):
        carry, _ = jax.jit(subject.step)(carry, index)
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(carry[0])):
        raise Violation("finite gradients give parameters that are not finite")
    moved = sum(
        float(jnp.abs(a - b).sum()) for a, b in zip(*map(jax.tree.leaves, (carry[0], subject.params)), strict=True)
    )
    if moved == 0 and subject.resolved.spec.theta_source != "zero":
        raise Violation("three steps with non-zero gradients do not change any parameter")
    return f"mean |change| {moved / sum(leaf.size for leaf in jax.tree.leaves(subject.params)):.3g}"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "moves the parameters": moves_parameters,
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


def check(spec: OptimizerSpec, names: Iterable[str] = tuple(CHECKS)) -> Iterator[Result]:
    """Run checks (by default all) on a resolved spec; raises UserError when it is learned and has no weights."""
    subject = Subject(prepare(spec, "no such environment", "no such length"), small_params(jax.random.key(0)))
    for name in names:
        try:
            yield Result(name, True, CHECKS[name](subject))
        except Violation as problem:
            yield Result(name, False, str(problem))
        except Exception as error:  # whatever an author's code raises is the finding
            yield Result(name, False, f"{type(error).__name__}: {error}")


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


def cost(spec: OptimizerSpec, adam: OptimizerSpec, steps: int = 20, repeats: int = 5) -> Cost:
    """Measure state and time a step, alternating with Adam; the fastest of ``repeats`` counts."""
    params = breakout_params()
    subjects = [Subject(prepare(e, "no such environment", "no such length"), params) for e in (spec, adam)]
    programs = [_timed_program(subject, steps) for subject in subjects]
    times: list[list[float]] = [[], []]
    for _ in range(repeats):
        for number, program in enumerate(programs):
            start = time.perf_counter()
            jax.block_until_ready(program())
            times[number].append((time.perf_counter() - start) / steps)
    state = jax.eval_shape(subjects[0].start)[1]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if not _is_key(leaf))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Cost(count, size, min(times[0]), min(times[1]))


def _timed_program(subject: Subject, steps: int) -> Callable[[], Any]:
    params, state = jax.jit(subject.start)()
    gradients = example_gradients(params, 0)

    def run(params: Any, state: Any, gradients: Any) -> Any:
        def step(carry: Any, index: Any) -> Any:
            return subject.step(carry, index, gradients=gradients)[0], None

        return jax.lax.scan(step, (params, state), jnp.arange(steps))[0]

    compiled = jax.jit(run)
    jax.block_until_ready(compiled(params, state, gradients))
    return lambda: compiled(params, state, gradients)


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _same(found: Any, expected: Any, tolerance: float, message: str) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if not np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
            worst = float(jnp.abs(jnp.asarray(a) - jnp.asarray(b)).max())
            raise Violation(f"{message} (by {worst:.3g})")
