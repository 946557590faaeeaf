"""Generalization studies: known scores, points and presets, in and out of training, and a whole study by command."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from commands import OpenBench

import open_bench
from open_bench.config import build, shipped
from open_bench.environments.gridworld.mazes import mazes
from open_bench.environments.gridworld.optimal import optimal_return
from open_bench.environments.registry import load_environment, make_environment
from open_bench.errors import UserError
from open_bench.experiments.plan import Task, changed, make_experiments
from open_bench.generalization import run as study
from open_bench.generalization import scales as normalizers
from open_bench.generalization.distribution import place, trained_on
from open_bench.generalization.study import AXES, GeneralizationConfig, Point, load_preset, make_points, make_task
from open_bench.optimizers.registry import resolve
from open_bench.training.keys import lifetime_keys, stream
from open_bench.weights.format import load_weights, save_weights

SEVEN = ("sixteen_rooms", "labyrinth", "rand_sparse", "rand_dense", "rand_long", "standard_maze", "rand_all")


# --- points -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped("generalize"))
def test_every_point_of_a_shipped_preset_can_be_made(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    points = make_points(preset)
    for point in points:
        environment = make_environment(point.task.environment)
        assert environment.observation_size > 0
        assert point.task.environment.num_updates(point.task.env_steps) >= 2
    assert {point.axis for point in points} <= set(AXES)


def test_the_presets_hold_what_they_are_for() -> None:
    levels = make_points(load_preset("gridworld"))
    assert [point.task.environment.name for point in levels] == [f"gridworld/{name}" for name in SEVEN]
    full = make_points(load_preset("full"))
    assert {point.axis for point in full} == set(AXES)
    swept = {point.label for point in full if point.axis == "levels"}
    assert set(SEVEN) | set(mazes()) <= swept
    assert {point.task.environment.family for point in full} >= {"gridworld", "minatar", "classic"}
    smoke = {point.key for point in make_points(load_preset("smoke"))}
    assert len(smoke) <= 16


def preset_of(**sweep: Any) -> GeneralizationConfig:
    values = {"axis": "width", "environments": ["cartpole"], "env_steps": 20_480} | sweep
    kept = {key: value for key, value in values.items() if value is not None}
    return build(GeneralizationConfig, {"name": "mine", "sweeps": [kept]}, "mine.toml")


def test_a_sweep_varies_one_thing() -> None:
    points = make_points(preset_of(vary=["ppo.hidden"], values=[[16, 16], [64, 64]]))
    assert [(point.label, point.x) for point in points] == [("16×16", 16.0), ("64×64", 64.0)]
    names = [point.task.environment.name for point in points]
    assert names == ["cartpole[hidden=16x16]", "cartpole"]  # the second is the base itself
    first, second = (point.task.environment for point in points)
    assert first.ppo.model_dump() | {"hidden": (64, 64)} == second.ppo.model_dump()
    both = ["options.min_size", "options.max_size"]
    sizes = make_points(preset_of(axis="size", environments=["gridworld/rand_sparse"], vary=both, values=[5, 7]))
    names = [point.task.environment.name for point in sizes]
    assert names == ["gridworld/rand_sparse{max_size=5,min_size=5}", "gridworld/rand_sparse"]  # its size is 7
    depths = make_points(preset_of(axis="depth", vary=["ppo.hidden"], values=[[8], [8, 8]]))
    assert [(point.label, point.x) for point in depths] == [("1", 1.0), ("2", 2.0)]


def test_the_size_sweep_keeps_the_density_of_walls() -> None:
    sizes = [point for point in make_points(load_preset("full")) if point.axis == "size"]
    assert [point.label for point in sizes] == ["4", "7", "10", "13", "16"]
    for point in sizes:
        levels = make_environment(point.task.environment).distribution  # type: ignore[attr-defined]
        assert levels.random_walls / levels.max_size**2 == pytest.approx(0.15, abs=0.03)
        assert "walls" not in placed("adam:b1=0.5", point.task, "gridworld/rand_all")[1]


def test_a_map_in_a_sweep_has_a_short_name(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("..#\n.#.\n...\n")
    sweep = {"axis": "walls", "environments": ["gridworld/rand_dense"], "vary": ["options.maze"]}
    (point,) = make_points(preset_of(**sweep, values=[str(tmp_path / "mine.txt")]))
    assert re.fullmatch(r"gridworld/rand_dense\{maze=map-[0-9a-f]{8}\}", point.task.environment.name)
    assert "..#" in str(point.task.environment.options["maze"])


def test_a_training_environment_named_twice_is_one_point() -> None:
    plan = study.make_plan(load_preset("smoke"), ["adam"], jax.devices(), train_on=["acrobot", "acrobot"])
    assert [point.label for point in plan.points if point.axis == "training"] == ["acrobot 200,000"]
    both = ["brax/inverted_pendulum/spring", "brax/inverted_double_pendulum/spring"]
    labels = [point.label for point in make_points(preset_of(axis="families", environments=both))]
    assert labels == [name.removeprefix("brax/") for name in both]


def test_lifetimes_of_a_budgets_length_have_its_name() -> None:
    lifetimes = make_points(preset_of(axis="lifetime", vary=["env_steps"], values=[20_480, 100_000], env_steps=None))
    assert [point.key for point in lifetimes] == [("cartpole", "steps-20480"), ("cartpole", "quick")]
    several = make_points(preset_of(axis="families", environments=["breakout", "cartpole"], env_steps=[16_384, 512]))
    assert [point.task.env_steps for point in several] == [16_384, 512]
    by_budget = make_points(preset_of(axis="families", budget="quick", env_steps=None))
    assert [point.key for point in by_budget] == [("cartpole", "quick")]


def test_the_documented_preset_can_be_made(tmp_path: Path) -> None:
    guide = (Path(__file__).resolve().parents[1] / "docs" / "generalization.md").read_text()
    (code,) = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "mine.toml").write_text(code)
    points = make_points(load_preset(str(tmp_path / "mine.toml")))
    assert [point.axis for point in points] == ["levels"] * 2 + ["respawn"] * 3 + ["width"] * 2


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"axis": "widht"}, "sweeps.0.axis = 'widht'"),
        ({"budget": "quick"}, "one of env_steps and budget"),
        ({"env_steps": None}, "one of env_steps and budget"),
        ({"vary": ["ppo.hidden"]}, "vary and values go together"),
        ({"vary": ["hidden"], "values": [1]}, "vary = 'hidden' is neither"),
        ({"vary": ["ppo.hidden"], "values": [[8]], "environments": ["cartpole", "breakout"]}, "not of several"),
        ({"env_steps": [512, 512]}, "2 env_steps for 1 environments"),
        ({"environments": ["cartpoel"]}, "mine, axis width: unknown environment 'cartpoel'. Did you mean"),
        ({"vary": ["ppo.hiden"], "values": [[8]]}, "unknown key 'hiden'"),
        ({"vary": ["options.magnetism"], "values": [0]}, "gymnax cannot make"),
        ({"vary": ["options.max_steps_in_episode"], "values": [[1, 2]]}, "max_steps_in_episode"),
        ({"vary": ["options.max_steps_in_episode"], "values": ["a"]}, "max_steps_in_episode = 'a' does not fit"),
        ({"vary": ["options.max_steps_in_episode"], "values": [0]}, "is no number of env steps"),
        ({"vary": ["options.gravity"], "values": [True]}, "gravity = True does not fit"),
        ({"env_steps": 10**30}, "more than can be counted"),
        ({"vary": ["ppo.hidden"], "values": [[8], [8]]}, "the point 8 is there twice"),
        ({"vary": ["env_steps"], "values": ["many"], "env_steps": None}, "'many' is no number of env steps"),
        ({"env_steps": 100}, "fewer than one PPO update"),
        ({"color": "red"}, "unknown key 'sweeps.0.color'"),
    ],
)
def test_bad_presets_are_refused(sweep: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_points(preset_of(**sweep))
    assert message in str(error.value)


def test_variants_share_the_keys_of_their_base_and_the_base_its_runs_with_compare() -> None:
    points = make_points(preset_of(vary=["ppo.hidden"], values=[[16, 16], [64, 64]]))
    specs = [resolve("adam")]
    variant, base = make_experiments(specs, [point.task for point in points], jax.devices(), 0, share_keys=True)
    assert variant.keys_name == base.keys_name == "cartpole"
    (alone,) = make_experiments(specs, [points[1].task], jax.devices(), 0)
    assert alone.name == base.name
    (unshared,) = make_experiments(specs, [points[0].task], jax.devices(), 0)
    assert unshared.name != variant.name


# --- in and out of training -------------------------------------------------------------------------------------------


def task(name: str = "cartpole", steps: int = 20_480, options: dict[str, Any] | None = None, **ppo: Any) -> Task:
    return make_task(changed(load_environment(name), ppo, options), name, steps)


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Any]:
    """An optimizer whose weights say that they were trained on some tasks."""

    def make(*tasks: Task, **metadata: Any) -> Any:
        found = {
            each.base: {
                "source": each.environment.source,
                "options": each.environment.options,
                "version": each.environment.version,
                "ppo": json.loads(each.environment.ppo.model_dump_json()),
                "num_updates": each.environment.num_updates(each.env_steps),
            }
            for each in tasks
        }
        theta = resolve("open-feedforward@zero").theta
        said = {"environments": {name: {"env_steps": 1} for name in found}, "identity": {"environments": found}}
        save_weights(tmp_path / "mine.safetensors", theta, said | metadata)
        return str(tmp_path / "mine.safetensors")

    return make


def placed(optimizer: str, point: Task, *train_on: str) -> tuple[str, tuple[str, ...]]:
    (experiment,) = make_experiments([resolve(optimizer)], [point], jax.devices(), 0)
    return place(point, trained_on(experiment.resolved, point, train_on))


def test_weights_say_what_theta_was_trained_on(trained: Callable[..., Any]) -> None:
    mine = f"open-feedforward@{trained(task(), task('breakout', 98_304))}"
    assert placed(mine, task()) == ("in", ())
    assert placed(mine, task("breakout", 98_304)) == ("in", ())
    assert placed(mine, task("breakout", 300_000)) == ("out", ("lifetime",))
    assert placed(mine, task(hidden=[32])) == ("out", ("hidden",))
    assert placed(mine, task(hidden=[32], activation="relu")) == ("out", ("activation", "hidden"))
    assert placed(mine, task("acrobot", 20_480)) == ("out", ("environment",))
    assert placed(mine, task(options={"max_steps_in_episode": 200})) == ("out", ("max_steps_in_episode",))


def test_a_part_of_a_level_distribution_is_inside_of_it(trained: Callable[..., Any]) -> None:
    mine = f"open-feedforward@{trained(task('gridworld/rand_all', 40_960))}"

    def of_options(**options: float) -> tuple[str, tuple[str, ...]]:
        return placed(mine, task("gridworld/rand_all", 40_960, options))

    assert of_options(min_respawn=0.01, max_respawn=0.1) == ("in", ())
    assert of_options(min_steps=100, max_steps=100) == ("in", ())
    assert of_options(min_respawn=0.5, max_respawn=0.5) == ("out", ("respawn",))
    assert of_options(max_steps=1000) == ("out", ("horizon",))
    assert of_options(walls=3) == ("out", ("walls",))
    assert of_options(min_size=12, max_size=12) == (
        "out",
        ("size", "walls", "observation"),
    )  # fewer walls an experiment
    assert of_options(min_size=12, max_size=12, walls=22) == ("out", ("size", "observation"))
    assert of_options(max_objects=6) == ("out", ("density",))
    _, shifts = placed(mine, task("gridworld/labyrinth", 40_960))
    assert set(shifts) == {"size", "walls", "places", "observation"}


def test_a_level_for_each_copy_is_another_distribution() -> None:
    own = task("gridworld/rand_all", 204_800, {"level_per_copy": True})
    assert placed("adam:b1=0.5", own, "gridworld/rand_all") == ("out", ("level_per_copy",))


def test_theta_of_unknown_origin_or_none(trained: Callable[..., Any], tmp_path: Path) -> None:
    assert placed("open-feedforward@zero", task()) == ("out", ("never trained",))
    for metadata in ({"identity": None, "environments": None}, {"identity": {"environments": {"cartpole": {}}}}):
        assert placed(f"open-feedforward@{trained(task(), **metadata)}", task()) == ("unknown", ())
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(resolve("open-feedforward@zero").theta["optimizer"])])
    np.save(tmp_path / "theirs.npy", flat.astype(np.float32))
    theirs = f"open-feedforward@{tmp_path / 'theirs.npy'}"
    assert placed(theirs, task()) == ("unknown", ())
    assert placed(theirs, task(), "cartpole") == ("in", ())
    assert placed(theirs, task(steps=512), "cartpole", "breakout") == ("in", ())
    assert placed(theirs, task(hidden=[8]), "cartpole") == ("out", ("hidden",))
    by_name = trained(task(), identity=None, environments={"cartpole": {"env_steps": 20_480}})
    assert placed(f"open-feedforward@{by_name}", task()) == ("in", ())
    assert placed(f"open-feedforward@{by_name}", task(steps=1024)) == ("out", ("lifetime",))


def test_what_the_first_weights_were_trained_on_counts(trained: Callable[..., Any]) -> None:
    def facts(*tasks: Task) -> dict[str, Any]:
        return dict(load_weights(Path(trained(*tasks))).metadata)

    first = facts(task())
    descendant = f"open-feedforward@{trained(task('breakout', 98_304), ancestors=[first])}"
    assert placed(descendant, task()) == ("in", ())
    assert placed(descendant, task("breakout", 98_304)) == ("in", ())
    assert placed(descendant, task("acrobot", 20_480)) == ("out", ("environment",))
    silent = f"open-feedforward@{trained(task('breakout', 98_304), ancestors=[{'environments': {}}])}"
    assert placed(silent, task("breakout", 98_304)) == ("unknown", ())


def test_classic_optimizers_were_tuned_where_their_hyperparameters_come_from() -> None:
    assert placed("adam", task(steps=100_000)) == ("in", ())  # tuned at the quick budget
    assert placed("adam", task(steps=500_000)) == ("in", ())  # published, tuned at the full one
    assert placed("adam", task(steps=20_480)) == ("out", ("lifetime",))
    assert placed("adam", task(steps=100_000, hidden=[8])) == ("out", ("hidden",))
    assert placed("optax.adabelief", task(steps=100_000)) == ("out", ("never trained",))
    assert placed("adam:learning_rate=0.1", task()) == ("unknown", ())
    assert placed("adam:learning_rate=0.1", task(), "cartpole") == ("in", ())
    assert placed("adam", task(steps=20_480), "cartpole") == ("out", ("lifetime",))  # what is known counts


def test_training_environments_are_points_too(trained: Callable[..., Any]) -> None:
    mine = f"open-feedforward@{trained(task('acrobot', 20_480, hidden=[8]))}"
    preset = preset_of()
    plan = study.make_plan(preset, [mine], jax.devices())
    assert [(point.axis, point.label) for point in plan.points] == [
        ("training", "acrobot[hidden=8] 20,480"), ("width", "cartpole"),
    ]  # fmt: skip
    assert {experiment.optimizer for experiment in plan.experiments} == {"adam", "open-feedforward@mine"}
    assert any("adam was not named" in note for note in plan.notes)
    short = preset.model_copy(update={"longest_training": 10_000})
    plan = study.make_plan(short, [mine, "adam"], jax.devices())
    assert [point.axis for point in plan.points] == ["width"]
    assert any("longer than the preset's longest_training" in note for note in plan.notes)
    plan = study.make_plan(short, ["adam"], jax.devices(), train_on=["cartpole", "breakout"])
    added = [point for point in plan.points if point.axis == "training"]
    assert [(point.task.base, point.task.env_steps) for point in added] == [("breakout", 10_000)]


# --- what returns are measured against --------------------------------------------------------------------------------


def test_optimal_returns_are_those_of_each_seeds_level() -> None:
    points = [task("gridworld/small", 40_960), task("gridworld/rand_sparse", 40_960), task()]
    experiments = make_experiments([resolve("adam")], points, jax.devices(), 3)
    found = normalizers.optimal_returns(experiments[0], 2)
    assert found is not None
    environment: Any = make_environment(points[0].environment)
    keys = [stream(key, "environment") for key in lifetime_keys(3, "gridworld/small", [0, 1])]
    assert list(found) == [optimal_return(environment.level(key)) for key in keys]
    assert normalizers.optimal_returns(experiments[1], 2) is None
    assert normalizers.optimal_returns(experiments[2], 2) is None


# --- the command ------------------------------------------------------------------------------------------------------


TINY = """
name = "tiny"
num_seeds = 2
[[sweeps]]
axis = "width"
environments = ["cartpole"]
vary = ["ppo.hidden"]
values = [[4], [8]]
settings = { num_steps = 8, update_epochs = 1, num_minibatches = 2 }
env_steps = 1_280
"""


def test_a_study_from_end_to_end(tmp_path: Path, openbench: OpenBench) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    request = ["sgd", "--preset", tmp_path / "tiny.toml", "--results", tmp_path / "results", "--plain"]
    answer = openbench("generalize", *request)
    assert answer.code == 0, answer.err
    assert "adam was not named" in answer.out
    assert "4 experiments, 2 seeds each" in answer.err
    assert "random policy: 2 of 2" in answer.err
    folder = tmp_path / "results" / "generalization" / "tiny"
    rows = pd.read_csv(folder / "generalization.csv")
    assert len(rows) == 2 * 2 * 2
    assert set(rows["optimizer"]) == {"adam", "sgd"}
    assert rows["random"].between(8, 40).all()
    assert rows["random"].nunique() == 1  # both widths meet one random policy: same task, same keys
    assert set(rows["hyperparameter_origin"]) == {"tuned"}  # so short a lifetime takes those of the quick budget
    runs = open_bench.load_runs(tmp_path / "results")
    stored = runs.scores.set_index(["experiment", "seed"])["final_return"]
    for row in rows.itertuples():
        assert stored[(row.experiment, row.seed)] == row.final_return
    adam = rows[rows["optimizer"] == "adam"].set_index(["point", "seed"])["value"]
    others = rows[rows["optimizer"] == "sgd"].set_index(["point", "seed"])
    pd.testing.assert_series_equal(others["value"] - adam, others["difference"], check_names=False)
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    measured = sorted((folder.parent / "random").iterdir())
    assert len(measured) == 1
    stamp = measured[0].stat().st_mtime_ns
    answer = openbench("generalize", *request, "--normalize", "adam")
    assert answer.code == 0, answer.err
    assert answer.err.count("stored already") == 4
    assert {path: path.read_bytes() for path in before} == before
    assert measured[0].stat().st_mtime_ns == stamp
    found = measured[0].read_text()
    measured[0].write_text(found[:-20])  # damaged: measured anew, and the same
    assert openbench("generalize", *request).code == 0
    assert measured[0].read_text() == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'OPTIMIZER...'"),
        (["adam", "--preset", "smok"], "unknown preset 'smok'. Did you mean smoke"),
        (["adam", "--preset", "mine.toml"], "mine.toml: no such file"),
        (["adam", "--axis", "widht"], "unknown axis 'widht'. Did you mean width"),
        (["adam", "--preset", "gridworld", "--axis", "width"], "preset gridworld has no axis 'width'; it has levels"),
        (["adam", "--train-on", "cartpoel"], "unknown environment 'cartpoel'. Did you mean cartpole"),
        (["l2lgd2"], "l2lgd2 is a learned optimizer, and no weights"),
        (["open@nowhere.npy"], "nowhere.npy"),
        (["adamm"], "unknown optimizer 'adamm'"),
        (["lion", "lion"], "optimizer 'lion' is listed twice"),
        (["adam", "--normalize", "best"], "unknown normalizer 'best'"),
        (["adam", "--seeds", "0"], "num_seeds = 0"),
        (["adam", "--seed", "-1"], "root_seed = -1"),
        (["adam", "--width", "0"], "--width must be at least 1"),
        (["adam", "--devices", "0"], "--devices must be at least 1"),
    ],
)
def test_bad_requests_are_refused_before_anything_trains(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    openbench: OpenBench,
) -> None:
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "none"))
    answer = openbench("generalize", *arguments, "--results", tmp_path / "results")
    assert answer.code == 2
    assert message in answer.err
    assert not (tmp_path / "results").exists()


def test_no_optimizer_is_refused_from_python_too() -> None:
    with pytest.raises(UserError, match="no optimizer"):
        open_bench.generalize([])


def test_points_are_values() -> None:
    first, second = make_points(load_preset("smoke")), make_points(load_preset("smoke"))
    assert [point.key for point in first] == [point.key for point in second]
    with pytest.raises(dataclasses.FrozenInstanceError):
        first[0].axis = "size"  # type: ignore[misc]
    assert isinstance(first[0], Point)
