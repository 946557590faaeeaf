"""The registry: names, settings and errors."""

import itertools
import sys
import types
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

from open_bench import plugins
from open_bench.errors import UserError
from open_bench.optimizers import (
    OptimizerSpec,
    TrainingLength,
    available,
    names,
    register,
    registry,
)
from open_bench.optimizers.conformance import actor_critic
from open_bench.optimizers.resolve import resolve


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["adam", "optax.contrib.muon", "my-plugin"]),
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.one_of(
        st.floats(allow_nan=False, allow_infinity=False), st.integers(-9, 9), st.booleans(), st.none()), max_size=3),
    st.sampled_from([None, "ppo", "dpo"]),
    st.one_of(st.none(), st.text(min_size=1).map(str.strip).filter(bool)),
)  # fmt: skip
def test_names_survive_spelling_and_parsing(head: str, values: dict[str, Any], policy_loss: Any, source: Any) -> None:
    parsed = names.ParsedName(head, None, tuple(sorted(values.items())), policy_loss, source)
    assert names.parse(str(parsed)) == parsed


def test_name_grammar() -> None:
    parsed = names.parse("open:learning_rate=1e+3,b1=.9+dpo@dir/a:b=c+lpo@x.npy")
    assert parsed.settings == (("b1", 0.9), ("learning_rate", 1000.0))
    assert (parsed.head, parsed.policy_loss, parsed.source) == ("open", "dpo", "dir/a:b=c+lpo@x.npy")
    assert names.parse("package.module:make").attribute == "make"
    assert names.parse("package.module:make:k=1").settings == (("k", 1),)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.from_regex(r"[a-z0-9.+-]{1,6}", fullmatch=True), min_size=1, max_size=3), min_size=1, max_size=3
    )
)
def test_a_grid_is_a_name_for_each_combination(values: list[list[str]]) -> None:
    name = "adam:" + ",".join(f"k{place}={{{', '.join(each)}}}" for place, each in enumerate(values)) + "+dpo@a{b}"
    expected = [
        "adam:" + ",".join(f"k{place}={value}" for place, value in enumerate(chosen)) + "+dpo@a{b}"
        for chosen in itertools.product(*values)
    ]
    assert names.expand(name) == expected


def test_grids_are_written_out_in_a_study() -> None:
    from open_bench.config import StudyConfig
    from open_bench.experiments.plan import told_apart

    study = StudyConfig(name="x", optimizers=("adam:learning_rate={1e-3,3e-3}", "sgd"), environments=("cartpole",))
    assert told_apart(study).optimizers == ("adam:learning_rate=1e-3", "adam:learning_rate=3e-3", "sgd")
    assert names.expand("adam:track={tuned,default}") == ["adam:track=tuned", "adam:track=default"]
    assert names.expand("optax.contrib.muon") == ["optax.contrib.muon"]


@pytest.mark.parametrize(
    "name", ["adam:b1={}", "adam:b1={0.9,}", "adam:b1={ , }", "adam:b1={0.9", "adam:b1=0.9}", "adam:b1={{1}}"]
)
def test_bad_grids_are_explained(name: str) -> None:
    with pytest.raises(UserError, match=r"a grid is empty|braces do not match"):
        names.expand(name)


def test_spellings_of_one_value_are_one_name() -> None:
    from open_bench.config import StudyConfig
    from open_bench.experiments.plan import make_plan, told_apart

    one, other = (resolve(f"sgd:learning_rate={value}") for value in ("1", "1.0"))
    assert one.label == other.label == "sgd:learning_rate=1.0"
    study = StudyConfig(name="mine", optimizers=("sgd:learning_rate={1,1e0}",), environments=("cartpole",))
    with pytest.raises(UserError, match="twice"):
        make_plan(told_apart(study), jax.devices())


def test_a_track_is_part_of_a_name_and_of_no_label() -> None:
    parsed = names.parse("adam:track=one_setting+dpo")
    assert (parsed.track, parsed.settings, str(parsed)) == ("one_setting", (), "adam:track=one_setting+dpo")
    assert names.parse(str(parsed)) == parsed
    assert resolve("adam:track=default").label == "adam"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adma", ["unknown optimizer 'adma'", "adam"]),
        ("adam:lr=1", ["no setting 'lr'", "learning_rate"]),
        ("adam:learning_rate=fast", ["learning_rate", "float"]),
        ("adam:learning_rate=nan", ["learning_rate", "float"]),
        ("adam:b1", ["no attribute", "cannot import", "adam"]),
        ("adam:b1=0.9,b1=0.8", ["'b1' is set twice"]),
        ("adam:track=tunned", ["unknown track 'tunned'", "Did you mean tuned"]),
        ("adam:track=tuned,b1=0.9", ["a track says where all settings come from: leave out b1"]),
        ("adam:b1={0.9,0.99}", ["expected key=value"]),  # a grid is several names
        ("adam+pop", ["policy_loss 'pop'", "ppo"]),
        ("adam@weights", ["not a learned optimizer"]),
        ("optax.adma", ["optax has no 'adma'", "adam"]),
        ("optax.lbfgs", ["loss as a function", "gradients only"]),
        ("optax.l2_loss", ["needs a value for predictions"]),
        ("optax.lars:learning_rate=1.0,x=2", ["no setting 'x'"]),
        ("", ["begins with a letter"]),
        ("1adam", ["begins with a letter"]),
        ("adam lion", ["character 5"]),
        ("lpo@", ["after '@'"]),
        ("no.such.module:thing", ["cannot import no.such.module"]),
        ("math:pi", ["float"]),
    ],
)
def test_bad_names_are_explained(name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        resolve(name)
    assert any(word in str(caught.value) for word in words), str(caught.value)
    assert words[0] in str(caught.value) or words[-1] in str(caught.value)


def built(found: Any, length: TrainingLength | None = None) -> optax.GradientTransformationExtraArgs:
    """The transformation that a resolved optimizer is."""
    return found.learning(length or TrainingLength(1, 1, 1), found.inputs).optimizer


def test_register_refuses_a_taken_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    mine = OptimizerSpec("mine", "mine", lambda theta, length: optax.sgd(0.1))
    register(mine)
    assert "mine" in available()
    assert resolve("mine").spec.description == "mine"
    with pytest.raises(UserError, match="registered already"):
        register(mine)


def test_module_attribute_and_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_optimizers")

    def fast(learning_rate: float = 0.5, scale: float = 2.0) -> optax.GradientTransformation:
        """Fast."""
        return optax.sgd(learning_rate * scale)

    module.fast = fast  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_optimizers", module)
    found = resolve("my_optimizers:fast:scale=3.0")
    assert found.spec.description == "Fast"
    params = {"w": jnp.ones(2)}
    optimizer = built(found, TrainingLength(1, 1, 1))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -1.5)

    monkeypatch.setattr(plugins, "installed", lambda group: {"plugged": "my_optimizers:fast"})
    assert resolve("plugged").spec.description == "Fast"
    assert "plugged" in available()


def test_learning_rate_anneals_linearly_to_zero() -> None:
    """Update u of N is scaled by 1 − u/N, unless annealing is switched off."""
    params = {"w": jnp.ones(())}
    for name, expected in (("sgd:momentum=0.0,learning_rate=1.0", [1.0, 0.75, 0.5, 0.25]),
                           ("sgd:momentum=0.0,learning_rate=1.0,anneal_learning_rate=false", [1.0] * 4)):  # fmt: skip
        optimizer = built(resolve(name), TrainingLength(4, 2, 2))
        state = optimizer.init(params)
        sizes = [
            -float(optimizer.update(params, state, params, training_fraction=jnp.float32(u / 3))[0]["w"])
            for u in range(4)
        ]
        np.testing.assert_allclose(sizes, expected, rtol=1e-6)


def test_traced_hyperparameters_do_not_recompile() -> None:
    params = actor_critic(jax.random.key(0))
    traces = []

    @jax.jit
    def first_update(inputs: Any) -> Any:
        traces.append(1)
        optimizer = resolved.learning(TrainingLength(2, 1, 1), inputs).optimizer
        return optimizer.update(params, optimizer.init(params), params, training_fraction=jnp.float32(0))[0]

    found = []
    for rate in ("1e-3", "2e-3"):
        resolved = resolve(f"adam:learning_rate={rate}")
        found.append(first_update(resolved.inputs))
    assert len(traces) == 1
    np.testing.assert_allclose(
        found[1]["critic"]["layer_00_dense"]["bias"], 2 * found[0]["critic"]["layer_00_dense"]["bias"], rtol=1e-5
    )


def test_adam_is_the_textbook_rule() -> None:
    """Two steps against Kingma & Ba's equations in numpy."""
    optimizer = built(resolve("adam:learning_rate=0.1,b1=0.9,b2=0.99,eps=1e-5,anneal_learning_rate=false"))
    params = {"w": jnp.array([1.0, -2.0])}
    state = optimizer.init(params)
    m = v = np.zeros(2)
    expected = np.array([1.0, -2.0])
    for t, g in enumerate(([0.5, -0.1], [-0.2, 0.3]), start=1):
        updates, state = optimizer.update({"w": jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.9 * m + 0.1 * np.array(g), 0.99 * v + 0.01 * np.square(g)
        expected = expected - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-5)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5)


def test_learned_optimizer_without_weights_says_what_to_do() -> None:
    with pytest.raises(UserError, match="no weights"):
        resolve("optim4rl")
