"""The conformance checks: over everything in the registry, and that each of them can fail."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from open_bench.optimizers import OptimizerSpec, TrainingLength, available, registry
from open_bench.optimizers.conformance import Subject, actor_critic, check, cost, q_agent
from open_bench.optimizers.resolve import ResolvedOptimizer, resolve

FROM_OPTAX = ["optax.adabelief", "optax.noisy_sgd"]


def with_theta(name: str) -> str:
    """Learned specs are checked at θ = 0 where nothing else is at hand."""
    return f"{name}@zero" if registry.known()[name].needs_theta else name


def or_slow(name: str) -> Any:
    """``make check`` is content with a few."""
    return name if name in ("adam", "muon", "no-features") else pytest.param(name, marks=pytest.mark.slow)


NAMES = [*available(), *FROM_OPTAX, "lion+dpo", "adam:learning_rate=1e-3"]


@pytest.mark.parametrize("name", [or_slow(name) for name in NAMES])
def test_every_optimizer_conforms(name: str) -> None:
    optimizer = resolve(with_theta(name) if name in available() else name)
    failures = [result for result in check(optimizer) if not result.passed]
    assert not failures


def of(spec: OptimizerSpec) -> ResolvedOptimizer:
    """A spec as it is, without the checks that a name undergoes."""
    return ResolvedOptimizer(spec.name, spec, {}, "default", None, spec.policy_loss)


def broken(change: Any, **changes: Any) -> ResolvedOptimizer:
    """SGD with a defect."""

    def factory(theta: Any, length: TrainingLength) -> Any:
        inner = optax.sgd(0.1, momentum=0.9)
        return optax.GradientTransformationExtraArgs(inner.init, change(inner.update))

    return of(OptimizerSpec("broken", "a defect", factory, **changes))


def grows(update: Any) -> Any:
    return lambda g, s, p=None, **e: (update(g, s, p)[0], (update(g, s, p)[1], jnp.zeros(1)))


def casts(update: Any) -> Any:
    return lambda g, s, p=None, **e: (jax.tree.map(lambda x: x.astype(jnp.bfloat16), g), s)


def uses_key(update: Any) -> Any:
    def noisy(g: Any, s: Any, p: Any = None, *, key: Any, **e: Any) -> Any:
        return jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), g), s

    return noisy


def mixes_agents(update: Any) -> Any:
    def on_the_host(x: Any) -> Any:
        return np.asarray(x / np.abs(x).max(), np.float32)  # over the batch too, when vmap hands it over whole

    def mixed(x: Any) -> Any:
        return jax.pure_callback(on_the_host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="broadcast_all")

    return lambda g, s, p=None, **e: (jax.tree.map(lambda x, y: mixed(x * y), g, p), s)


def counts_on_the_host(update: Any) -> Any:
    calls: list[int] = []

    def on_the_host(x: Any) -> Any:
        calls.append(1)
        return np.asarray(x * len(calls), np.float32)

    def counted(x: Any) -> Any:
        return jax.pure_callback(on_the_host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")

    return lambda g, s, p=None, **e: (jax.tree.map(counted, g), s)


def counts_in_python(update: Any) -> Any:
    calls: list[int] = []

    def counted(g: Any, s: Any, p: Any = None, **e: Any) -> Any:
        calls.append(1)
        return jax.tree.map(lambda x: x / len(calls), g), s

    return counted


def stands_still(update: Any) -> Any:
    return lambda g, s, p=None, **e: (jax.tree.map(jnp.zeros_like, g), s)


def reads_names(update: Any) -> Any:
    return lambda g, s, p=None, **e: (
        jax.tree.map(lambda x: x * (2.0 if "layer_00_dense" in p["actor"] else 1.0), g),
        s,
    )


def strict_extras(update: Any) -> Any:
    def strict(g: Any, s: Any, p: Any = None, *, loss: Any, value: Any, key: Any, activations: Any, new_rollout: Any,
               training_fraction: Any, epoch_fraction: Any, acting_network: Any) -> Any:  # fmt: skip
        return update(g, s, p)

    return strict


def scalars_grow(update: Any) -> Any:
    return lambda g, s, p=None, **e: (jax.tree.map(jnp.atleast_1d, g), s)


def ascends(update: Any) -> Any:
    def uphill(g: Any, s: Any, p: Any = None, **e: Any) -> Any:
        updates, s = update(g, s, p)
        return jax.tree.map(jnp.negative, updates), s

    return uphill


def needs_an_actor(update: Any) -> Any:
    return lambda g, s, p=None, **e: update({**g, "actor": g["actor"]}, s, p)


def reads_the_actors_name(update: Any) -> Any:
    def scaled(g: Any, s: Any, p: Any = None, **e: Any) -> Any:
        return {name: optax.tree.scale(2.0 if name == "actor" else 1.0, tree) for name, tree in g.items()}, s

    return scaled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (ascends, "descends"),
        (needs_an_actor, "Q-network with norms"),
        (reads_the_actors_name, "names"),
        (grows, "stable state"),
        (grows, "no recompilation"),
        (casts, "stable state"),
        (counts_in_python, "no hidden state"),
        (counts_on_the_host, "jit and scan"),
        (mixes_agents, "vmap"),
        (uses_key, "key"),
        (stands_still, "moves the parameters"),
        (reads_names, "names"),
        (strict_extras, "unknown extras"),
        (scalars_grow, "scalar and empty parameters"),
    ],
)
def test_conformance_finds_defects(change: Any, found: str) -> None:
    """Every check can fail: an optimizer with the defect is caught by it."""
    assert not next(check(broken(change), [found])).passed
    assert next(check(broken(lambda update: update), [found])).passed


@pytest.mark.slow
def test_other_acting_parameters_must_be_like_the_parameters() -> None:
    def checked(eval_params: Any) -> bool:
        return next(check(broken(lambda update: update, eval_params=eval_params), ["acting parameters"])).passed

    assert checked(lambda state, params: params)
    for wrong in (lambda state, params: params["actor"], lambda state, params: jax.tree.map(jnp.ravel, params),
                  lambda state, params: jax.tree.map(lambda x: x.astype(jnp.bfloat16), params),
                  lambda state, params: jax.tree.map(lambda x: x / 0.0, params)):  # fmt: skip
        assert not checked(wrong)


@pytest.mark.slow
def test_nan_is_reported_once() -> None:
    spec = broken(lambda update: lambda g, s, p=None, **e: (jax.tree.map(lambda x: x * jnp.nan, g), s))
    failures = [result for result in check(spec) if not result.passed]
    assert [result.name for result in failures] == ["moves the parameters"]
    assert "not finite" in failures[0].detail


def test_a_failure_names_the_line_of_the_authors_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """import jax
import optax

def update(gradients, state, params=None, *, loss, **extras):
    return jax.tree.map(lambda g, s: g @ s, gradients, state), state

rule = optax.GradientTransformationExtraArgs(lambda params: params, update)
"""
    (tmp_path / "with_a_line.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import with_a_line  # type: ignore[import-not-found]

    spec = OptimizerSpec("mine", "", lambda theta, length: with_a_line.rule)
    result = next(check(of(spec), ["moves the parameters"]))
    assert not result.passed
    assert result.detail.endswith("with_a_line.py, line 5)")


def test_a_learning_rate_that_nobody_chose_is_said() -> None:
    detail = next(check(resolve("optax.adabelief"), ["hyperparameters"])).detail
    assert "learning_rate=0.0003 (it has none itself: open-bench's default is 0.0003), b1=0.9" in detail
    assert detail.endswith("tuning searches learning_rate")
    assert "none itself" not in next(check(resolve("adam"), ["hyperparameters"])).detail


def test_the_agents_are_lifelike() -> None:
    """What the checks run on has what agents have."""
    params = actor_critic(jax.random.key(0))
    assert list(params["actor"]) == ["layer_00_dense", "layer_01_dense", "layer_02_dense", "log_std"]
    names = ["layer_00_dense", "layer_00_norm", "layer_01_dense", "layer_01_norm", "layer_02_dense"]
    assert list(q_agent(jax.random.key(0))["q"]) == names
    subject = Subject(resolve("adam"), params)
    assert subject.acting_network == "actor"
    _, extras = subject.inputs(0)
    assert set(extras["activations"]["actor"]) == {"layer_00_dense", "layer_01_dense", "layer_02_dense"}


@pytest.mark.slow
def test_cost_is_measured_against_adam() -> None:
    found = cost(resolve("sgd"), resolve("adam"), steps=2, repeats=1)
    assert found.parameters == 59_908
    assert found.state_bytes == 4 * 59_908
    assert found.relative > 0
