"""Environments by name and as objects: classes of the user's, plug-ins, files, and what environments can be asked."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import pytest
from commands import OpenBench
from hypothesis import given, settings
from probes import Probe

from open_bench import config as configs
from open_bench.environments import Environment, episodes_per_copy
from open_bench.environments.config import EnvironmentConfig
from open_bench.environments.registry import (
    ADAPTERS,
    has_levels,
    load_environment,
    make,
    make_environment,
    same_task,
    task_shifts,
)
from open_bench.environments.user_classes import check_instance
from open_bench.errors import UserError
from open_bench.training.task import make_task


def changed(
    config: EnvironmentConfig, settings: dict[str, Any] | None = None, options: dict[str, Any] | None = None
) -> EnvironmentConfig:
    """The configuration with settings of its algorithm and options replaced."""
    return make_task(config, settings=settings, options=options).environment


WALK = '''
import jax
import jax.numpy as jnp
from open_bench.environments import Discrete, Environment


class Walk(Environment):
    """Walk to the right end of a corridor."""

    action_space = Discrete(2)

    def __init__(self, length: int = 5, prize: float = 1.0):
        self.length, self.prize, self.observation_size = length, prize, length
        self.shortest_episode = length

    def reset(self, key):
        return jax.nn.one_hot(0, self.length), (jnp.int32(0), jnp.int32(0))

    def step(self, key, state, action):
        place, time = state
        place, time = jnp.clip(place + 2 * action - 1, 0, self.length - 1), time + 1
        final = jax.nn.one_hot(place, self.length)
        at_end = place == self.length - 1
        late = (time >= 4 * self.length) & ~at_end
        first, begun = self.reset(key)
        state = jax.tree.map(lambda a, b: jnp.where(at_end | late, a, b), begun, (place, time))
        observation = jnp.where(at_end | late, first, final)
        return observation, state, self.prize * at_end.astype(jnp.float32), at_end, late, {"final_observation": final}
'''
TOML = """
name = "corridor"
description = "mine"
family = "own"
source = "{source}"
[options]
{options}
[budgets]
quick = 8192
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, which is on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "corridors", raising=False)
    return tmp_path


@pytest.fixture
def corridors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the user's file ``corridors.py``, as if edited before a new process."""

    def write(code: str) -> Path:
        monkeypatch.delitem(sys.modules, "corridors", raising=False)
        (folder / "corridors.py").write_text(code)
        return folder

    return write


def toml(folder: Path, source: str, options: str = "") -> str:
    path = folder / "mine.toml"
    path.write_text(TOML.format(source=source, options=options))
    return str(path)


# --- classes of the user's --------------------------------------------------------------------------------------------


def test_a_class_from_outside_the_package_is_at_most_40_lines() -> None:
    assert len(WALK.strip().splitlines()) <= 40


def test_a_class_by_its_module(corridors: Callable[[str], Path]) -> None:
    corridors(WALK)
    found = load_environment("corridors:Walk")
    assert found.name.startswith("corridors:Walk#")
    assert (found.source, found.description, found.stored) == (
        "corridors:Walk",
        "Walk to the right end of a corridor",
        True,
    )
    environment = make_environment(found)
    observation, state = environment.reset(jax.random.key(0))
    for _ in range(4):
        observation, state, reward, terminated, truncated, info = environment.step(jax.random.key(0), state, 1)
    assert (float(reward), bool(terminated), bool(truncated)) == (1.0, True, False)
    assert (observation.argmax(), info["final_observation"].argmax()) == (0, 4)


@pytest.mark.slow
def test_a_class_is_trained_on_by_the_command_line(corridors: Callable[[str], Path], openbench: OpenBench) -> None:
    folder = corridors(WALK)
    chosen = ("--set", "num_envs=4", "--set", "num_steps=16", "--set", "num_minibatches=2", "--set", "hidden=[4]")
    answer = openbench(
        "train", "adam", "-e", "corridors:Walk", "--steps", 640, "-q", "--results", folder / "results", *chosen
    )
    assert answer.code == 0, answer.err
    (experiment,) = (folder / "results" / "experiments").glob("*--adam--*/experiment.json")
    assert experiment.parent.name.startswith("corridors_Walk_")


def test_a_class_by_an_entry_point(corridors: Callable[[str], Path]) -> None:
    installed = corridors(WALK) / "corridors-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: corridors\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[open_bench.environments]\nwalk = corridors:Walk\n")
    found = load_environment("walk")
    assert (found.name, found.source, found.stored) == ("walk", "corridors:Walk", True)
    assert "digest" in found.task_identity
    assert make_environment(found).observation_size == 5
    with pytest.raises(UserError, match=r"unknown environment 'wlak'\. Did you mean walk"):
        load_environment("wlak")


def test_a_class_in_a_toml_gets_its_options(corridors: Callable[[str], Path]) -> None:
    path = toml(corridors(WALK), "corridors:Walk", "length = 7\nprize = 2.0")
    found = load_environment(path)
    assert (found.name, make_environment(found).observation_size) == ("corridor", 7)
    assert make_environment(changed(found, None, {"length": 3})).observation_size == 3


def test_an_edited_file_is_another_task(corridors: Callable[[str], Path]) -> None:
    def load(code: str) -> tuple[EnvironmentConfig, EnvironmentConfig]:
        folder = corridors(code)
        found = load_environment("corridors:Walk"), load_environment(toml(folder, "corridors:Walk"))
        for config in found:  # the digest stays with it
            assert changed(config, {"num_envs": 8}).task_identity == config.task_identity
        return found

    first, again, edited = load(WALK), load(WALK), load(WALK.replace("prize: float = 1.0", "prize: float = 2.0"))
    for before, same, after in zip(first, again, edited, strict=True):
        assert before.task_identity == same.task_identity != after.task_identity
    assert first[0].name == again[0].name != edited[0].name


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("corridors:Walk", "class Walk: pass", "lacks reset, step, observation_size, action_space: see open_bench"),
        ("corridors:Walk", WALK.replace("def reset", "def begin"), "lacks reset: see"),
        ("corridors:Walk", WALK.replace("    action_space = Discrete(2)\n", ""), "lacks action_space: see"),
        ("corridors:Walk", WALK.replace("(Environment)", ""), "is not derived from open_bench.environments"),
        ("corridors:Walk", WALK.replace("Discrete(2)", "2"), "action_space is a int, not a Discrete or Continuous"),
        ("corridors:Walk", WALK.replace("prize, length\n", "prize, 9\n"),
         r"the observation of reset is float32\[5\]; it must be float32\[9\]"),
        ("corridors:Walk", WALK.replace("self.prize * at_end.astype(jnp.float32)", "at_end"),
         r"the reward of step is bool\[\]; it must be float32\[\]"),
        ("corridors:Walk", WALK.replace("time + 1\n", "1.0 * time\n"), "the state of step, as reset began it, is"),
        ("corridors:Walk", WALK.replace('{"final_observation": final}', "{}"), 'lacks "final_observation"'),
        ("corridors:Walk", WALK.replace("at_end, late, {", "at_end, {"), r"step must return \(observation, state,"),
        ("corridors:Walk", WALK.replace("place, time = state", "place = state.place"), "step fails with Attribute"),
        ("corridors:Walk", WALK.replace("self.shortest", "raise RuntimeError('no'); self.shortest"),
         r"cannot be made with \{\}: RuntimeError: no"),
        ("corridors:Walk", WALK.replace("length: int = 5", "length: int"), "needs a value for the option length"),
        ("corridors:Wolk", WALK, "environment 'corridors:Wolk': no such attribute. Did you mean Walk"),
        ("corridors:jax", WALK, "is a module, not a class"),
        ("corridors:Walk", "raise RuntimeError('broken')", r"RuntimeError: broken \(.*corridors.py, line 1\)"),
        ("corridor:Walk", WALK, "environment 'corridor:Walk': cannot import corridor"),
    ],
)  # fmt: skip
def test_a_class_that_does_not_fit_is_refused(
    corridors: Callable[[str], Path], source: str, code: str, message: str
) -> None:
    corridors(code)
    with pytest.raises(UserError, match=message):
        make_environment(load_environment(source))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["corridors:Walk", *(f"{name}:" for name in ADAPTERS if name != "craftax")])
@pytest.mark.parametrize("option", ["self", "name", "source", "environment_id", "options", "replace"])
def test_an_unknown_option_names_the_file_and_the_key(
    corridors: Callable[[str], Path], source: str, option: str
) -> None:
    tasks = {"gymnax:": "CartPole-v1", "gridworld:": "small", "brax:": "inverted_pendulum"}
    path = toml(corridors(WALK), source + tasks.get(source, ""), f"{option} = 1")
    with pytest.raises(UserError) as error:
        load_environment(path)
    assert str(error.value).startswith(f"{path}: ")
    assert f"'{option}'" in str(error.value)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("gridworld:maze", 'maze = "nowhere.txt"', "neither a file nor a maze that ships"),
        ("gridworld:maze", "maze = 3", "maze = 3"),
        ("gymnax:CartPole-v1", "max_steps_in_episode = 0", "max_steps_in_episode = 0"),
        ("gymnax:DeepSea-bsuite", 'size = "big"', "size"),
        ("gymnax:DeepSea-bsuite", "size = 2147483648", r"size = 2147483648 is too large: at most 10,000"),
        ("gymnax:Catch-bsuite", "rows = -1", "fails with|cannot be made"),
        ("gymnax:CartPole-v1", "gravity = 1180591620717411303424", "fails with OverflowError|cannot be made"),
        ("brax:ant", "backend = 3", "unknown Brax backend '3'"),
        ("corridors:Walk", "length = -1", r"\{'length': -1\}|fails with"),
        ("gymnx:CartPole", "", "cannot import gymnx"),
        ("CartPole-v1", "", r"unknown environment source 'CartPole-v1': it must begin with gymnax:, gridworld:"),
    ],
)
def test_a_bad_file_is_named(corridors: Callable[[str], Path], source: str, options: str, message: str) -> None:
    path = toml(corridors(WALK), source, options)
    with pytest.raises(UserError, match=message) as error:
        load_environment(path)
    assert str(error.value).startswith(path)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["gymnax:CartPole-v1", "gymnax:DeepSea-bsuite", "gymnax:Catch-bsuite", "gridworld:small"]),
    st.sampled_from(["self", "name", "source", "env_id", "size", "rows", "gravity", "maze", "max_size", "replace"]),
    st.booleans() | st.integers(-3, 3) | st.sampled_from([2**31, 2**70, 1e30, -0.5, "", "labyrinth", "..\n..\n"]),
)
def test_whatever_an_option_is_the_answer_is_an_environment_or_a_user_error(source: str, key: str, value: Any) -> None:
    with contextlib.suppress(UserError):
        check_instance(source, make(source, **{key: value}))


def test_own_environment_must_not_claim_a_shipped_name(tmp_path: Path) -> None:
    shipped = configs.shipped("environments")["cartpole"].read_text()
    same, other = tmp_path / "same.toml", tmp_path / "other.toml"
    same.write_text(shipped)
    other.write_text(shipped.replace("num_steps = 128", "num_steps = 16"))
    assert load_environment(str(same)) == load_environment("cartpole")
    assert load_environment(load_environment("cartpole")) == load_environment("cartpole")
    changed = load_environment("cartpole").model_copy(update={"options": {"max_steps_in_episode": 7}})
    for claims in (str(other), changed):
        with pytest.raises(UserError, match="name of a shipped environment"):
            load_environment(claims)


# --- Python objects ---------------------------------------------------------------------------------------------------


def test_an_instance_is_never_taken_from_the_store() -> None:
    environment = Probe(length=3)
    found = load_environment(environment)
    assert make_environment(found) is environment
    assert (found.name, found.stored) == ("Probe", False)
    assert make_environment(changed(found, {"num_envs": 8})) is environment
    with pytest.raises(UserError, match="was given as an object, so it has no options: length"):
        make_environment(changed(found, None, {"length": 2}))


def test_a_class_of_a_file_is_what_its_name_means(corridors: Callable[[str], Path]) -> None:
    corridors(WALK)
    by_name = load_environment("corridors:Walk")
    assert load_environment(sys.modules["corridors"].Walk) == by_name
    assert by_name.stored


def test_a_class_without_a_file_is_never_taken_from_the_store(corridors: Callable[[str], Path]) -> None:
    corridors(WALK)
    load_environment("corridors:Walk")
    session: dict[str, Any] = {"__name__": "corridors"}
    exec(compile(WALK, "<stdin>", "exec"), session)  # typed into a session that imported the file
    typed = load_environment(session["Walk"])
    assert (typed.name, typed.stored) == ("Walk", False)
    assert type(make_environment(typed)) is session["Walk"]
    assert make_environment(changed(typed, None, {"length": 3})).observation_size == 3

    class Inner(Probe):
        """What it is may depend on the function around it."""

    assert not load_environment(Inner).stored


def test_other_objects_are_refused() -> None:
    import gymnax

    for thing in (gymnax.make("CartPole-v1")[0], 3, None):
        with pytest.raises(UserError, match=r"is no environment of open-bench: give a name \('CartPole-v1'\)"):
            load_environment(thing)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="lacks reset, step"):
        load_environment(int)  # type: ignore[arg-type]


def test_a_configuration_made_in_python_is_completed(corridors: Callable[[str], Path], tmp_path: Path) -> None:
    corridors(WALK)
    values = {"description": "", "family": "own", "budgets": {"quick": 8192}}
    made = load_environment(EnvironmentConfig(name="mine", source="corridors:Walk", **values))  # type: ignore[arg-type]
    assert made.task_identity["digest"] == load_environment("corridors:Walk").task_identity["digest"]
    (tmp_path / "map.txt").write_text("..\n..\n")
    options = {"maze": str(tmp_path / "map.txt")}
    made = load_environment(EnvironmentConfig(name="maze", source="gridworld:maze", options=options, **values))  # type: ignore[arg-type]
    assert made.options == {"maze": "..\n..\n"}


# --- what an environment says of itself -------------------------------------------------------------------------------


def test_only_some_environments_have_levels() -> None:
    names = ("gridworld/rand_all", "gridworld/labyrinth", "cartpole", "deepsea")
    assert [has_levels(load_environment(name)) for name in names] == [True, True, False, False]


@pytest.mark.slow
def test_optimal_returns_are_asked_for_without_knowing_the_kind() -> None:
    key = jax.random.key(0)
    found = {
        source: environment.optimal_return(environment.level(key))
        for source, options in (("gridworld:small", {}), ("gridworld:rand_small", {}), ("gymnax:CartPole-v1", {}))
        for environment in [make(source, **options)]
    }
    assert found.pop("gridworld:small") > 0.0  # type: ignore[operator]
    assert set(found.values()) == {None}
    shared = make("gridworld:small", level_per_copy=True)
    assert shared.optimal_return(shared.level(key)) is None


def test_options_that_spell_out_what_holds_anyway_make_one_task() -> None:
    base = load_environment("gridworld/rand_all")
    assert same_task(base, changed(base, None, {"max_size": 10, "level_per_copy": False}))
    assert not same_task(base, changed(base, None, {"max_size": 9}))
    assert not same_task(base, changed(base, None, {"level_per_copy": True}))
    cartpole = load_environment("cartpole")
    assert same_task(cartpole, cartpole)
    assert not same_task(cartpole, changed(cartpole, None, {"max_steps_in_episode": 500}))  # it does not say


def test_what_is_shifted() -> None:
    wide = load_environment("gridworld/rand_all")
    narrow = changed(wide, None, {"max_size": 8, "walls": 10})
    assert task_shifts(changed(wide, None, {"max_size": 12, "walls": 22}), wide.source, {}) == ("size", "observation")
    assert "size" in task_shifts(wide, narrow.source, narrow.options)
    assert task_shifts(load_environment("cartpole"), wide.source, {}) == ("environment",)
    assert task_shifts(wide, "gridworld:maze", {"maze": "not/here.txt"}) == ("environment",)
    assert task_shifts(wide, "gone:Walk", {}) == ("environment",)


def test_what_draws_no_level_has_nothing_to_show() -> None:
    with pytest.raises(UserError, match="probe draws no levels"):
        Probe().draw("probe", jax.random.key(0))


# --- episodes in a budget ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "steps"),
    [
        ("gymnax:Freeway-MinAtar", {}, 2500),
        ("gymnax:Pendulum-v1", {"max_steps_in_episode": 30}, 30),
        ("gymnax:CartPole-v1", {}, None),
        ("gymnax:Breakout-MinAtar", {}, None),
        ("gymnax:SimpleBandit-bsuite", {}, None),  # always over
        ("gridworld:long_dense", {}, 2000),
        ("gridworld:long_dense", {"min_steps": 100}, 100),
        ("gridworld:long", {}, None),
        ("gridworld:rand_all", {}, None),
        ("brax:halfcheetah", {"episode_length": 50}, 50),
        ("brax:ant", {}, None),
        ("brax:ant", {"terminate_when_unhealthy": False}, 1000),
    ],
)
def test_the_shortest_episode(source: str, options: dict[str, Any], steps: int | None) -> None:
    assert make(source, **options).shortest_episode == steps


def test_nothing_ends_an_episode_of_a_fixed_length_before_its_time() -> None:
    environment = make("gymnax:Freeway-MinAtar", max_steps_in_episode=40)

    def step(state: Any, key: jax.Array) -> Any:
        _, state, _, terminated, truncated, _ = environment.step(key, state, jax.random.randint(key, (), 0, 3))
        return state, (terminated, truncated)

    keys = jax.random.split(jax.random.key(0), 80)
    terminated, truncated = jax.jit(lambda: jax.lax.scan(step, environment.reset(keys[0])[1], keys)[1])()
    assert not terminated.any()
    assert truncated.nonzero()[0].tolist() == [39, 79]


# Budgets of Brax are those of the published protocol.
SHORT = {("halfcheetah", "quick"), ("halfcheetah", "short")}


@pytest.mark.slow
def test_every_copy_finishes_three_episodes_of_a_fixed_length() -> None:
    found = set()
    for name in configs.shipped("environments"):
        shipped = load_environment(name)
        if shipped.family == "craftax":  # optional, and episodes end at any time
            continue
        environment = make_environment(shipped)
        for budget, env_steps in shipped.budgets.items():
            task = make_task(shipped, steps=env_steps)
            episodes = episodes_per_copy(environment, task.settings.num_envs, task.lifetime_steps)
            if episodes is not None and episodes < 3:
                found.add((name, budget))
    assert found == SHORT


def test_episodes_per_copy() -> None:
    class Fixed(Probe):
        shortest_episode = 50

    assert episodes_per_copy(Fixed(), 4, 500) == 2.5
    assert episodes_per_copy(Probe(), 4, 500) is None
    assert issubclass(Fixed, Environment)
