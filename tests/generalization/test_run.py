"""A whole generalization study: planned, run, scored, by command."""

import json
from pathlib import Path
from typing import Any

import jax
import pandas as pd
import pytest
from commands import OpenBench
from studies import study_of, task, trained_weights

import open_bench
from open_bench.environments.gridworld.optimal import optimal_return
from open_bench.errors import UserError
from open_bench.experiments.plan import make_experiments
from open_bench.generalization.run import make_plan, optimal_returns
from open_bench.generalization.study import load_generalization, make_points
from open_bench.reports.commands import generalize_command
from open_bench.training.keys import lifetime_keys, stream
from open_bench.weights.format import load_weights, save_weights


def test_variants_share_the_keys_of_their_base_and_the_base_its_runs_with_compare() -> None:
    points = make_points(study_of(vary=["settings.hidden"], values=[[16, 16], [64, 64]]))
    specs = ["adam"]
    variant, base = make_experiments(specs, [point.task for point in points], jax.devices(), 0, share_keys=True)
    assert variant.keys_name == base.keys_name == "cartpole"
    (alone,) = make_experiments(specs, [points[1].task], jax.devices(), 0)
    assert alone.name == base.name
    (unshared,) = make_experiments(specs, [points[0].task], jax.devices(), 0)
    assert unshared.name != variant.name


@pytest.mark.slow
def test_a_training_environment_named_twice_is_one_point() -> None:
    plan = make_plan(load_generalization("smoke"), ["adam"], jax.devices(), train_on=["acrobot", "acrobot"])
    assert [point.label for point in plan.points if point.axis == "training"] == ["acrobot 200,000"]
    both = ["brax/inverted_pendulum/spring", "brax/inverted_double_pendulum/spring"]
    labels = [point.label for point in make_points(study_of(axis="families", environments=both))]
    assert labels == [name.removeprefix("brax/") for name in both]


OWN = """
optimizer = "adam"
[environments.cartpole.ppo.quick]
origin = "tuned"
source = "mine"
values = { learning_rate = 0.123 }
"""


def test_tuned_settings_of_a_results_folder_come_before_those_that_ship(tmp_path: Path) -> None:
    (tmp_path / "hyperparameters").mkdir()
    (tmp_path / "hyperparameters" / "adam.toml").write_text(OWN)
    study = study_of(vary=["settings.hidden"], values=[[16, 16], [64, 64]])
    plan = make_plan(study, ["adam", "sgd"], jax.devices(), hyperparameters=tmp_path)
    rates: dict[str, set[Any]] = {"adam": set(), "sgd": set()}
    for each in plan.experiments:
        assert each.optimizer is not None
        rates[each.label].add(each.optimizer.hyperparameters["learning_rate"])
    assert rates["adam"] == {0.123}
    assert len(rates["sgd"]) == 1 and 0.123 not in rates["sgd"]
    asked = {"optimizers": ["adam"], "study": "smoke", "hyperparameters": "results"}
    assert generalize_command(asked) == ("openbench generalize adam --study smoke --hyperparameters results",)


def test_training_environments_are_points_too(tmp_path: Path) -> None:
    mine = f"open-feedforward@{trained_weights(tmp_path, task('acrobot', 20_480, hidden=[8]))}"
    study = study_of()
    plan = make_plan(study, [mine], jax.devices())
    assert [(point.axis, point.label) for point in plan.points] == [
        ("training", "acrobot[hidden=8] 20,480"), ("width", "cartpole"),
    ]  # fmt: skip
    assert {experiment.label for experiment in plan.experiments} == {"adam", "open-feedforward@mine"}
    assert any("adam was not named" in note for note in plan.notes)
    short = study.model_copy(update={"longest_training": 10_000})
    plan = make_plan(short, [mine, "adam"], jax.devices())
    assert [point.axis for point in plan.points] == ["width"]
    assert any("longer than the study's longest_training" in note for note in plan.notes)
    plan = make_plan(short, ["adam"], jax.devices(), train_on=["cartpole", "breakout"])
    added = [point for point in plan.points if point.axis == "training"]
    assert [(point.task.base, point.task.env_steps) for point in added] == [("breakout", 10_000)]


def test_weights_that_say_where_but_not_how_long_add_no_point(tmp_path: Path) -> None:
    """As imported weights do: ``openbench weights import … --train-on acrobot``."""
    found = load_weights(trained_weights(tmp_path, task("acrobot", 20_480, hidden=[8])))
    save_weights(tmp_path / "imported.safetensors", found.theta, {"environments": {"acrobot": {"env_steps": None}}})
    plan = make_plan(study_of(), [f"open-feedforward@{tmp_path / 'imported.safetensors'}"], jax.devices())
    assert [point.axis for point in plan.points] == ["width"]
    assert any("acrobot with lifetimes of a length that is not known" in note for note in plan.notes)


def test_optimal_returns_are_those_of_each_seeds_level() -> None:
    points = [task("gridworld/small", 40_960), task("gridworld/rand_sparse", 40_960), task()]
    experiments = make_experiments(["adam"], points, jax.devices(), 3)
    found = optimal_returns(experiments[0], 2)
    assert found is not None
    environment: Any = points[0].make_environment()
    keys = [stream(key, "environment") for key in lifetime_keys(3, "gridworld/small", [0, 1])]
    assert list(found) == [optimal_return(environment.level(key)) for key in keys]
    assert optimal_returns(experiments[1], 2) is None
    assert optimal_returns(experiments[2], 2) is None


def test_hyperparameters_carry_over_to_another_algorithm() -> None:
    """Adam, the baseline, is tuned for each algorithm; others keep those of the environment's own."""
    study = study_of(axis="algorithm", vary=["algorithm"], values=["ppo", "pqn"], env_steps=None, budget="quick")
    plan = make_plan(study, ["adamw", "open-feedforward"], jax.devices())
    found = {(each.label, each.task.algorithm): each.optimizer for each in plan.experiments}
    carried = found["adamw", "pqn"]
    assert carried is not None
    assert carried.hyperparameters == found["adamw", "ppo"].hyperparameters  # type: ignore[union-attr]
    assert carried.tuned_on == ("cartpole", "ppo", "quick")
    baseline = found["adam", "pqn"]
    assert baseline is not None
    assert baseline.tuned_on in (None, ("cartpole", "pqn", "quick"))
    assert ("open-feedforward", "pqn") in found


def test_adam_is_the_baseline_however_it_is_named() -> None:
    """With a track it is still Adam, and tuned for each algorithm; two rows of one label would be one."""
    study = study_of(axis="algorithm", vary=["algorithm"], values=["ppo", "pqn"], env_steps=None, budget="quick")
    plan = make_plan(study, ["adam:track=tuned"], jax.devices())
    found = {(each.label, each.task.algorithm): each.optimizer for each in plan.experiments}
    assert set(found) == {("adam", "ppo"), ("adam", "pqn")}
    baseline = found["adam", "pqn"]
    assert baseline is not None
    assert baseline.tuned_on == ("cartpole", "pqn", "quick")
    with pytest.raises(UserError, match="two of the optimizers are called adam"):
        make_plan(study, ["adam", "adam:track=default"], jax.devices())


TINY = """
name = "tiny"
num_seeds = 2
[[sweeps]]
axis = "width"
environments = ["cartpole"]
vary = ["settings.hidden"]
values = [[4], [8]]
settings = { num_steps = 8, update_epochs = 1, num_minibatches = 2 }
env_steps = 1_280
"""


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path: Path, openbench: OpenBench) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    request = ["sgd", "--study", tmp_path / "tiny.toml", "--results", tmp_path / "results", "--plain", "--diagnose"]
    answer = openbench("generalize", *request)
    assert answer.code == 0, answer.err
    assert "adam was not named" in answer.out
    assert "6 experiments" in answer.err
    folder = tmp_path / "results" / "generalization" / "tiny"
    rows = pd.read_csv(folder / "generalization.csv")
    assert len(rows) == 2 * 2 * 2
    assert set(rows["algorithm"]) == set(pd.read_csv(folder / "points.csv")["algorithm"]) == {"ppo"}
    assert set(rows["optimizer"]) == {"adam", "sgd"}
    assert rows["random"].between(8, 40).all()
    assert rows["random"].nunique() == 1  # both widths meet one random policy: same environment, same keys
    assert set(rows["hyperparameter_origin"]) == {"tuned"}  # so short a lifetime takes those of the quick budget
    runs = open_bench.load_runs(tmp_path / "results")
    assert set(runs.diagnosis["optimizer"]) == {"adam", "sgd"}
    stored = runs.scores.set_index(["experiment", "seed"])["final_return"]
    for row in rows.itertuples():
        assert stored[(row.experiment, row.seed)] == row.final_return
    adam = rows[rows["optimizer"] == "adam"].set_index(["point", "seed"])["value"]
    others = rows[rows["optimizer"] == "sgd"].set_index(["point", "seed"])
    pd.testing.assert_series_equal(others["value"] - adam, others["difference"], check_names=False)
    asked = json.loads((folder / "request.json").read_text())
    assert (asked["optimizers"], asked["study"]) == (["sgd"], str(tmp_path / "tiny.toml"))
    assert generalize_command(asked)[0].startswith(f"openbench generalize sgd --study {tmp_path / 'tiny.toml'} ")
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    answer = openbench("generalize", *request, "--normalize", "adam")
    assert answer.code == 0, answer.err
    assert answer.err.count("done, stored already") == 6  # the random policy's two among them
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'OPTIMIZER...'"),
        (["adam", "--study", "smok"], "unknown study 'smok'. Did you mean smoke"),
        (["adam", "--study", "mine.toml"], "mine.toml: no such file"),
        (["adam", "--axis", "widht"], "unknown axis 'widht'. Did you mean width"),
        (["adam", "--study", "gridworld", "--axis", "width"], "study gridworld has no axis 'width'; it has levels"),
        (["adam", "--train-on", "cartpoel"], "unknown environment 'cartpoel'. Did you mean cartpole"),
        (["l2lgd2"], "l2lgd2 is a learned optimizer, and no weights"),
        (["open@nowhere.npy"], "nowhere.npy"),
        (["adamm"], "unknown optimizer 'adamm'"),
        (["lion", "lion"], "optimizer 'lion' is listed twice"),
        (["adam", "--normalize", "best"], "unknown normalizer 'best'"),
        (["adam", "--seeds", "0"], "num_seeds = 0"),
        (["adam", "--seeds", "2000000"], "2,000,000 seeds are too many: ask for at most 1,000,000"),
        (["adam", "--algorithm", "pqm"], "unknown algorithm 'pqm'. Did you mean pqn"),
        (["adam", "--budget", "quik"], "has no budget 'quik'"),
        (["adam", "--steps", "5"], "5 steps on gridworld/rand_sparse are fewer"),
        (["adam", "--set", "num_env=4"], "unknown key 'num_env'. Did you mean num_envs"),
        (["adam", "--seed", "-1"], "root_seed = -1"),
        (["adam", "--vmap-size", "0"], "--vmap-size must be from 1"),
        (["adam", "--devices", "0"], "--devices must be from 1"),
        (["adam", "--hyperparameters", "."], "holds no hyperparameter files"),
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


def test_options_hold_at_every_point_that_does_not_vary_them(tmp_path: Path, openbench: OpenBench) -> None:
    (tmp_path / "tiny.toml").write_text(TINY.split("settings =")[0] + "env_steps = 1_280\n")
    given = ["--algorithm", "pqn", "--steps", 640, "--set=num_steps=8", "--set=num_envs=4", "--set=hidden=[2]"]
    answer = openbench("generalize", "sgd", "--study", tmp_path / "tiny.toml", "--dry-run", "--json", *given)
    assert answer.code == 0, answer.err
    plan = json.loads(answer.out)
    assert plan["title"] == "tiny-pqn"
    assert {part["env_steps"] for part in plan["work"]} == {640}
    assert {part["label"].split(" · ")[1] for part in plan["work"]} == {"pqn", "random"}
    assert {part["label"].split("[")[1].split(",")[0] for part in plan["work"]} == {"hidden=4", "hidden=8"}


def test_no_optimizer_is_refused_from_python_too() -> None:
    with pytest.raises(UserError, match="no optimizer"):
        open_bench.generalize([])
