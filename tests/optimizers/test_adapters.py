"""Optimizers from elsewhere: all of optax or a reason, traced arguments, annealing, digests, Python objects."""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from open_bench import plugins
from open_bench.errors import UserError
from open_bench.optimizers import OptimizerSpec, Search, TrainingLength, adapters, anneal, registry, searchable
from open_bench.optimizers.resolve import resolve
from open_bench.training.task import make_task

LENGTH = TrainingLength(4, 2, 2)
PARAMS = {"actor": {"layer_00_dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "log_std": jnp.zeros(2)}}


def public(module: Any, prefix: str) -> list[str]:
    """Names of the module's functions that give a transformation."""
    names = []
    for name, value in sorted(vars(module).items()):
        given = getattr(value, "func", value)  # nadam is a partial of adam
        if name.startswith("_") or not inspect.isfunction(given):
            continue
        if "GradientTransformation" in str(inspect.signature(given).return_annotation):
            names.append(prefix + name)
    return names


# The last two are wrapped, so that their signature says nothing.
CONSTRUCTORS = [*public(optax, ""), *public(optax.contrib, "contrib."), "contrib.dog", "contrib.dowg"]


def test_the_constructors_are_found() -> None:
    assert len(CONSTRUCTORS) > 110
    assert {"adam", "nadam", "lbfgs", "scale_by_adam", "contrib.muon", "contrib.dog"} <= set(CONSTRUCTORS)


@pytest.mark.parametrize("path", CONSTRUCTORS)
def test_all_of_optax_trains_or_is_refused_with_a_reason(path: str) -> None:
    """Three steps on a tiny agent: finite, some parameter moved, the same types; or a sentence that says why not."""
    try:
        spec = resolve(f"optax.{path}").spec
    except UserError as error:
        assert f"optax.{path} cannot be benchmarked: it " in str(error)
        assert path in adapters.REFUSED or ".scale_by_" in f".{path}"
        return

    @jax.jit
    def lifetime(params: Any) -> Any:
        optimizer = spec.build(length=LENGTH)
        state = optimizer.init(params)
        for step in range(3):
            updates, state = optimizer.update(
                params, state, params, training_fraction=jnp.float32(0), value=jnp.float32(1), loss=jnp.float32(1),
                key=jax.random.key(step), new_rollout=jnp.bool_(step == 0), acting_network="actor",
            )  # fmt: skip
            params = optax.apply_updates(params, updates)
        return params, params if spec.eval_params is None else spec.eval_params(state, params)

    for found in lifetime(PARAMS):
        kinds = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (found, PARAMS)]
        assert kinds[0] == kinds[1]
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(PARAMS), strict=True))


def test_everything_else_in_optax_is_refused_too() -> None:
    """Losses, schedules, classes: a sentence for each, no other exception."""
    for prefix, module in (("", optax), ("contrib.", optax.contrib)):
        for name in dir(module):
            if not name.startswith("_") and prefix + name not in CONSTRUCTORS:
                with pytest.raises(UserError, match="optax"):
                    resolve(f"optax.{prefix}{name}")


@pytest.mark.parametrize("path", ["adabelief", "contrib.muon", "contrib.prodigy"])
def test_numbers_of_optax_are_traced(path: str) -> None:
    spec = resolve(f"optax.{path}").spec
    for setting in spec.hyperparameters.values():
        assert setting.traced == isinstance(setting.default, float)


# --- functions -------------------------------------------------------------------------------------------------------


def plain(learning_rate: float = 1e-2, decay: float = 0.9, steps: int = 1, kind: str = "x") -> Any:
    """Momentum."""
    return optax.sgd(learning_rate, momentum=decay)


def branches(learning_rate: float, boost: float = 0.0, floor: float = 0.5) -> Any:
    """Looks at the value of one argument, so that it cannot be a tracer."""
    return optax.sgd(learning_rate * 2 if boost > 0 else learning_rate + floor)


def scheduled(length: TrainingLength, learning_rate: float = 1.0) -> Any:
    """A schedule of its own."""
    return anneal(optax.sgd(learning_rate), length)


@searchable(learning_rate=Search(1e-3, 1.0), decay=Search(choices=(0.0, 0.9)))
def with_spaces(learning_rate: float = 1e-2, decay: float = 0.9) -> Any:
    return optax.sgd(learning_rate, momentum=decay)


def sizes(spec: OptimizerSpec, **settings: Any) -> list[float]:
    """Size of the update of a unit gradient in each PPO update of a lifetime."""
    optimizer = spec.build(length=LENGTH, **settings)
    params = {"w": jnp.ones(())}
    state = optimizer.init(params)
    return [
        -float(optimizer.update(params, state, params, training_fraction=jnp.float32(u / 3))[0]["w"]) for u in range(4)
    ]


def test_numbers_are_traced_and_the_rest_is_static() -> None:
    found = adapters.from_value("plain", plain).hyperparameters
    assert [name for name, setting in found.items() if setting.traced] == ["learning_rate", "decay"]
    assert (found["steps"].default, found["kind"].default, found["anneal_learning_rate"].default) == (1, "x", True)


def test_what_cannot_be_traced_is_static() -> None:
    spec = adapters.from_value("branches", branches)
    assert {name: setting.traced for name, setting in spec.hyperparameters.items()} == {
        "learning_rate": True, "boost": False, "floor": True, "anneal_learning_rate": False,
    }  # fmt: skip
    np.testing.assert_allclose(sizes(spec, boost=1.0, learning_rate=0.5)[0], 1.0)


def test_a_learning_rate_without_a_default_is_said_to_be_ours() -> None:
    found = adapters.from_value("branches", branches).hyperparameters["learning_rate"]
    assert found.default == adapters.DEFAULT_LEARNING_RATE
    assert "it has none itself: open-bench's default is 0.0003" in found.description
    assert (found.search.low, found.search.high) == (1e-4, 3e-2)  # as of Adam's relatives, which optax's defaults are
    named = adapters.from_value("plain", lambda learning_rate=1e-3: optax.sgd(learning_rate))
    own = named.hyperparameters["learning_rate"].search
    assert (own.low, own.high) == pytest.approx((1e-3 / 30, 1e-3 * 30))


def test_users_functions_anneal_like_shipped_ones_and_not_twice() -> None:
    falling = [1.0, 0.75, 0.5, 0.25]
    np.testing.assert_allclose(sizes(adapters.from_value("plain", plain), learning_rate=1.0), falling, rtol=1e-6)
    own = adapters.from_value("scheduled", scheduled)
    assert "length" not in own.hyperparameters
    np.testing.assert_allclose(sizes(own), falling, rtol=1e-6)
    np.testing.assert_allclose(sizes(own, anneal_learning_rate=True), np.square(falling), rtol=1e-6)
    flat = adapters.from_value("plain", plain)
    np.testing.assert_allclose(sizes(flat, learning_rate=1.0, anneal_learning_rate=False), [1.0] * 4, rtol=1e-6)


def test_search_spaces_beside_a_function() -> None:
    found = adapters.from_value("x", with_spaces).hyperparameters
    assert (found["learning_rate"].search, found["decay"].search) == (Search(1e-3, 1.0), Search(choices=(0.0, 0.9)))
    assert adapters.from_value("x", plain).hyperparameters["learning_rate"].search == Search(1e-2 / 30, 1e-2 * 30)
    with pytest.raises(UserError, match="searchable names rate, and its arguments are learning_rate, decay"):
        adapters.from_value("x", searchable(rate=Search(1, 2))(with_spaces))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda learning_rate=1.0: 3, "returned a int"),
        (lambda gain, learning_rate=1.0: optax.sgd(gain), "needs a value for gain"),
    ],
)
def test_functions_that_do_not_make_a_transformation_are_explained(function: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapters.from_value("mine", function).build(length=LENGTH)


# --- schedule-free methods -------------------------------------------------------------------------------------------


def averaging(learning_rate: float = 0.1) -> Any:
    return optax.chain(optax.clip(1.0), optax.contrib.schedule_free(optax.sgd(learning_rate), learning_rate))


@pytest.mark.parametrize("value", [optax.contrib.schedule_free_adamw, averaging, averaging()])
def test_schedule_free_methods_act_at_x(value: Any) -> None:
    """x is (y − (1 − b1)·z) / b1 … whatever wraps it; and the updates are not annealed by default."""
    spec = adapters.from_value("free", value)
    assert spec.eval_params is not None
    assert all(setting.default is False for name, setting in spec.hyperparameters.items() if "anneal" in name)
    optimizer = spec.build(length=LENGTH)
    params, state = {"w": jnp.ones(3)}, optimizer.init({"w": jnp.ones(3)})
    for _ in range(3):
        updates, state = optimizer.update({"w": jnp.asarray([1.0, -0.5, 0.2])}, state, params)
        params = optax.apply_updates(params, updates)
    (inner,) = adapters._schedule_free_states(state)
    expected = (params["w"] - (1 - inner.b1) * inner.z["w"]) / inner.b1
    np.testing.assert_allclose(spec.eval_params(state, params)["w"], expected, rtol=1e-6)
    assert not np.allclose(expected, params["w"], atol=1e-7)


def test_a_schedule_free_method_is_not_annealed_from_outside() -> None:
    """Its average would be left behind by updates that are scaled after it."""
    with pytest.raises(UserError, match=r"is schedule-free.*schedule-free-adamw has that setting"):
        resolve("optax.contrib.schedule_free_adamw:anneal_learning_rate=true", make_task("cartpole"))
    assert resolve("optax.contrib.schedule_free_adamw", make_task("cartpole")).spec.eval_params is not None


def test_other_methods_act_at_their_parameters() -> None:
    assert resolve("optax.adabelief").spec.eval_params is None
    assert adapters.from_value("x", optax.sgd(0.1)).eval_params is None


# --- objects and digests ---------------------------------------------------------------------------------------------


def test_objects_are_welcome_where_a_name_is() -> None:
    assert adapters.from_object(optax.adabelief).name == "optax.adabelief"
    assert adapters.from_object(optax.contrib.muon).name == "optax.contrib.muon"
    with pytest.raises(UserError, match=r"optax.lbfgs cannot be benchmarked"):
        adapters.from_object(optax.lbfgs)
    assert resolve(resolve("adam").spec).identity == resolve("adam").identity
    spec = adapters.from_object(plain)
    assert spec.name == f"{__name__}:plain"
    assert spec.digest == plugins.source_digest(sys.modules[__name__])
    with pytest.raises(UserError, match="is a int"):
        adapters.from_object(3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.adam(1e-3),
        lambda: lambda learning_rate=1.0: optax.sgd(learning_rate),
        lambda: plain.__get__(1),  # a bound method: what it is bound to is unknown
        lambda: functools.partial(plain, optax.constant_schedule(0.1)),
        lambda: functools.partial(optax.sgd, learning_rate=lambda step: 0.1),
        lambda: typed_into_a_session("def rule(learning_rate=1.0):\n    return optax.sgd(learning_rate)\n", "<stdin>"),
        lambda: typed_into_a_session("def rule(learning_rate=1.0):\n    return optax.sgd(learning_rate)\n", "<string>"),
        lambda: OptimizerSpec("mine", "", lambda theta, length: optax.sgd(0.1)),
        lambda: notebook("def rule(learning_rate=1.0):\n    return optax.sgd(learning_rate)")["rule"],
    ],
)
def test_what_no_file_tells_has_no_digest(make: Callable[[], Any]) -> None:
    assert adapters.from_object(make()).digest is None


def typed_into_a_session(code: str, source: str) -> Any:
    """What is typed after a file, here this one, has begun a session: ``python -i``, ``%run``."""
    names = vars(sys.modules[__name__])
    exec(compile(code, source, "exec"), names)
    return names["rule"]


def notebook(code: str) -> dict[str, Any]:
    """The names that a cell of a notebook defines."""
    names: dict[str, Any] = {"__name__": "a_module_without_a_file", "optax": optax}
    exec(code, names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("value", [functools.partial(plain, 0.5), functools.partial(plain, learning_rate=0.5)])
def test_what_a_partial_binds_are_settings(value: Any) -> None:
    found = resolve(value)
    assert found.label == f"{__name__}:plain:learning_rate=0.5#{plugins.source_digest(sys.modules[__name__])}"
    assert found.identity == resolve(f"{__name__}:plain:learning_rate=0.5").identity
    assert resolve(functools.partial(optax.sgd, 0.5)).identity == resolve("optax.sgd:learning_rate=0.5").identity


def test_other_bound_values_are_other_experiments() -> None:
    for values in ((0.5, 1e-9), (lambda step: 0.5, lambda step: 1e-9)):
        one, two = (resolve(functools.partial(optax.sgd, value)).identity for value in values)
        assert one != two


SPEC_OF_THIS_FILE = OptimizerSpec("mine", "", lambda theta, length: optax.sgd(0.1))


def test_a_spec_of_a_file_is_what_its_name_means() -> None:
    assert resolve(SPEC_OF_THIS_FILE).identity == resolve(f"{__name__}:SPEC_OF_THIS_FILE").identity


def test_nothing_passes_as_a_shipped_optimizer() -> None:
    """By its name, by a class of this name, or by parts of the shipped one."""
    adam = resolve("adam").spec
    make = lambda theta, length: optax.sgd(0.1)
    for spec in (OptimizerSpec("adam", "", make), dataclasses.replace(adam, make=make)):
        with pytest.raises(UserError, match=r"calls itself 'adam', .* name='my-adam'"):
            resolve(spec)
    other = resolve(
        dataclasses.replace(adam, name="my-adam", eval_params=lambda state, params: params), make_task("breakout")
    )
    assert (other.label, other.origin, other.spec.digest) == ("my-adam", "default", None)
    adam_of_a_cell = notebook("def adam(learning_rate=1.0):\n    return optax.sgd(learning_rate)")["adam"]
    assert resolve(adam_of_a_cell).label == "a_module_without_a_file:adam"
    with pytest.raises(UserError, match="mine has no setting"):
        resolve(OptimizerSpec("mine", "", make, tuned_as="adam"), make_task("breakout"))


def test_a_registered_spec_without_a_file_is_never_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    spec = registry.register(OptimizerSpec("mine", "", lambda theta, length: optax.sgd(0.1)))
    for given in (spec, "mine"):
        assert resolve(given).spec.digest is None
        assert resolve(given).label == "mine"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def test_the_digest_sees_helpers_beside_the_file(folder: Path) -> None:
    files = {
        "rule_of_mine.py": "import helper_one, numpy\nfrom helper_package import inner\nmake = helper_one.make\n",
        "helper_one.py": (
            "import optax\n\ndef make(learning_rate=1.0):\n    import helper_two\n    return optax.sgd(learning_rate)\n"
        ),
        "helper_two.py": "x = 1\n",
        "helper_package/__init__.py": "",
        "helper_package/inner.py": "from . import deep\nfrom .deep import y\n",
        "helper_package/deep.py": "y = 1\n",
        "unrelated.py": "z = 1\n",
    }
    for name, code in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    digest = resolve("rule_of_mine:make").spec.digest
    assert digest
    for name, code in files.items():
        (folder / name).write_text(code + "# edited\n")
        changed = resolve("rule_of_mine:make").spec.digest != digest
        assert changed == (name != "unrelated.py"), name
        (folder / name).write_text(code)
    assert resolve("rule_of_mine:make").spec.digest == digest


def test_the_digest_of_a_package_stays_inside_it(folder: Path) -> None:
    files = {
        "my_package/__init__.py": "",
        "my_package/rules.py": (
            "import optax\nfrom my_package.helper import rate\nmake = lambda learning_rate=1.0: optax.sgd(rate)\n"
        ),
        "my_package/helper.py": "rate = 1.0\n",
    }  # fmt: skip
    for name, code in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    digest = resolve("my_package.rules:make").spec.digest
    (folder / "my_package/helper.py").write_text("rate = 2.0\n")
    assert resolve("my_package.rules:make").spec.digest != digest


def test_installed_modules_do_not_count_their_neighbors() -> None:
    """A module in site-packages does not drag in everything that is installed."""
    import six

    path = Path(six.__file__)
    assert plugins._sources(path.resolve(), path.resolve().parent, "") == {path.resolve()}
