"""Every hand-designed optimizer: its search space, that numbers are traced, and what is documented of it."""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from open_bench import config, files
from open_bench.optimizers import OptimizerSpec, Search, TrainingLength, hand_designed, registry
from open_bench.optimizers.conformance import actor_critic, example_extras, example_gradients

LENGTH = TrainingLength(updates=4, epochs=2, minibatches=2)
PAGE = (Path(__file__).parents[2] / "docs/optimizers.md").read_text("utf-8")
ALL = pytest.mark.parametrize("spec", hand_designed.SPECS, ids=lambda spec: spec.name)


def searched(spec: OptimizerSpec) -> dict[str, Search]:
    return {key: each.search for key, each in spec.hyperparameters.items() if each.search is not None}


def corner(search: Search, high: bool) -> Any:
    """An end of a range, the first or last of the choices."""
    return (search.choices or (search.low, search.high))[-1 if high else 0]


# --- search spaces ----------------------------------------------------------------------------------------------------


@ALL
def test_the_search_space_is_valid_and_of_a_fair_size(spec: OptimizerSpec) -> None:
    spaces = searched(spec)
    assert 2 <= len(spaces) <= 4
    assert len(set(spaces) - {"weight_decay"}) <= 3
    for key, search in spaces.items():
        assert spec.hyperparameters[key].traced  # so that tuning compiles one program
        values = search.choices or (search.low, search.high)
        assert list(values) == sorted(values)
        for value in (*values, spec.hyperparameters[key].default):
            assert registry.check_value(spec, key, value) == value
        default = spec.hyperparameters[key].default
        assert default in search.choices if search.choices else search.low <= default <= search.high
    if "learning_rate" in spaces:
        rate = spaces["learning_rate"]
        assert rate.scale == "log"
        assert rate.low is not None and rate.high is not None and 290 < rate.high / rate.low < 340


@pytest.mark.parametrize(
    "path", sorted((files.baselines_dir() / "hyperparameters").glob("*.toml")), ids=lambda p: p.stem
)
def test_published_settings_lie_in_the_search_space(path: Path) -> None:
    spec, found = registry.known()[path.stem], config.read_toml(path)["environments"]
    tables = [table for algorithms in found.values() for budgets in algorithms.values() for table in budgets.values()]
    for table in tables:
        values = registry.check_settings(spec, table["values"])
        for key, search in searched(spec).items():
            if key in values and table["origin"] == "published" and not search.choices:
                assert search.low <= values[key] <= search.high


def test_published_settings_of_open_ship() -> None:
    """Tables 4 to 7 of Goldie et al. 2024: RMSProp's rate, decay and annealing, Lion's rate, SGD's rate, and Adam's."""
    tables = {
        name: config.read_toml(files.baselines_dir() / f"hyperparameters/{name}.toml")["environments"]
        for name in ("adam", "rmsprop", "lion", "sgd")
    }

    def published(name: str, environment: str, *keys: str) -> tuple[Any, ...]:
        table = tables[name][environment]["ppo"]["any"]
        assert (table["origin"], table["source"]) == ("published", "Goldie et al. 2024")
        return tuple(table["values"][key] for key in keys)

    for environment, rms, lion, sgd in (
        ("asterix", (2e-3, 0.99, True), (3e-4, 0.99, 0.9, True), 0.52),
        ("freeway", (1e-3, 0.999, True), (3e-4, 0.9, 0.9, True), 0.56),
        ("breakout", (2e-3, 0.99, False), (8e-4, 0.9, 0.9, False), 1.017),
        ("spaceinvaders", (9e-3, 0.99, True), (8e-4, 0.9, 0.99, True), 1.17),
        ("ant", (8e-4, 0.99, False), (1.5e-4, 0.9, 0.9, True), 0.17),
    ):
        assert published("rmsprop", environment, "learning_rate", "decay", "anneal_learning_rate") == rms
        assert published("rmsprop", environment, "eps") == (1e-8,)
        assert published("lion", environment, "learning_rate", "b1", "b2", "anneal_learning_rate") == lion
        assert published("lion", environment, "weight_decay") == (1e-3,)
        assert published("sgd", environment, "learning_rate", "momentum", "anneal_learning_rate") == (sgd, 0.0, True)
    assert published("adam", "craftax-classic", "learning_rate", "b1", "b2") == (5e-4, 0.9, 0.999)


# --- documentation ----------------------------------------------------------------------------------------------------


def space_text(key: str, search: Search) -> str:
    if search.choices:
        return f"`{key}` {', '.join(f'{value:g}' for value in search.choices)}"
    return f"`{key}` {search.low:g} to {search.high:g}"


@ALL
def test_the_page_has_what_the_spec_says(spec: OptimizerSpec) -> None:
    (row,) = re.findall(rf"^\| `{spec.name}` \|(.*)\|$", PAGE, re.MULTILINE)
    description, citation, space = (cell.strip() for cell in row.split(" | "))
    assert (description, citation) == (spec.description, spec.citation)
    expected = "; ".join(space_text(key, search) for key, search in searched(spec).items())
    assert space == (f"{spec.tuned_as}'s" if spec.tuned_as else expected)


# --- tracing ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@ALL
def test_traced_numbers_compile_once_and_give_the_same_as_python_values(spec: OptimizerSpec) -> None:
    """Updates at two corners of the space are finite and come from one program; at Python numbers they are the same."""
    params, traces = {"actor": actor_critic(jax.random.key(0))["actor"]}, []

    def three_steps(values: Any) -> Any:
        optimizer = spec.build(length=LENGTH, **values)

        def step(carry: Any, index: Any) -> Any:
            params, state = carry
            extras = example_extras(params, index)
            updates, state = optimizer.update(
                example_gradients(params, index), state, params, **extras, acting_network="actor"
            )
            return (optax.apply_updates(params, updates), state), updates

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(3))[1]

    @jax.jit
    def traced(values: Any) -> Any:
        traces.append(1)
        return three_steps(values)

    numbers = {key: each.default for key, each in spec.hyperparameters.items() if each.traced}
    points = [numbers | {key: corner(each, high) for key, each in searched(spec).items()} for high in (False, True)]
    low, high = (traced({key: np.float32(value) for key, value in point.items()}) for point in points)
    assert len(traces) == 1
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((low, high)))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True))
    plain = jax.jit(functools.partial(three_steps, points[0]))()
    for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=3e-7)
