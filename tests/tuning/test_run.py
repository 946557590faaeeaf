"""``openbench tune`` from request to files, tables and winners on fresh seeds."""

import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from commands import OpenBench, check_refused
from tiny import SETTINGS, STEPS, Log

import open_bench
from open_bench import Execution
from open_bench.api import prepare
from open_bench.config import StudyConfig, read_toml
from open_bench.errors import UserError
from open_bench.evaluation.trials import read_trials
from open_bench.optimizers import Search, searchable
from open_bench.optimizers.resolve import resolve
from open_bench.tuning.run import Tuned
from open_bench.tuning.trials import ROOT_SEED

SET = [f"--set={key}={value}" for key, value in SETTINGS.items()]
TINY: dict[str, Any] = {"steps": STEPS, "settings": SETTINGS, "devices": 2}
CARTPOLE = "cartpole[hidden=8,num_minibatches=2,num_steps=8,update_epochs=1]"
AMOUNT = {"trials": 2, "num_seeds": 1, "report_seeds": 2}
STUDY = StudyConfig(
    name="mine", optimizers=("sgd:track=tuned", "adam:track=one_setting", "sgd:track={one_setting,default}", "lion"),
    environments=("cartpole", "catch"),
)  # fmt: skip


@searchable(learning_rate=Search(1e-3, 1e-1))
def breaking(learning_rate: float = 1e-2) -> optax.GradientTransformation:
    """Its updates are not numbers above a learning rate of 0.01."""
    return optax.sgd(jnp.where(learning_rate > 0.01, jnp.nan, learning_rate))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tuned]:
    """The study tuned: two optimizers in two environments."""
    folder = tmp_path_factory.mktemp("tuned")
    return folder, open_bench.tune(study=STUDY, **AMOUNT, **TINY, results=folder)


def test_equal_means_equal(tuned: tuple[Path, Tuned]) -> None:
    """The same trials, seeds and env steps for every optimizer of a study in every environment, as they are stored."""
    rows = read_trials(tuned[0])
    spent = rows.groupby(["environment", "optimizer"]).agg(
        env_steps=("env_steps", "sum"), trials=("trial", "nunique"), seeds=("seed", "nunique")
    )
    assert len(spent) == 4
    assert set(spent.itertuples(index=False, name=None)) == {(3 * STEPS, 3, 1)}
    of_files = [read_toml(path) for path in tuned[0].glob("hyperparameters/*.toml")]
    told = {table["env_steps"] for file in of_files for name in file["environments"].values()
            for budgets in name.values() for table in budgets.values()}  # fmt: skip
    assert told == {3 * STEPS}


def test_tuning_seeds_are_no_reporting_seeds(tuned: tuple[Path, Tuned]) -> None:
    folder, _ = tuned
    roots = {json.loads(path.read_text())["identity"]["root_seed"] for path in folder.glob("tuning/*/tuning.json")}
    assert roots == {ROOT_SEED}
    assert set(open_bench.load_runs(folder).experiments["root_seed"]) == {0}


def test_the_winners_are_those_of_the_rows(tuned: tuple[Path, Tuned]) -> None:
    _, found = tuned
    assert list(zip(found.winners["optimizer"], found.winners["track"], strict=True)) == [
        ("sgd", "tuned"), ("sgd", "tuned"), ("sgd", "one setting"), ("sgd", "one setting"),
        ("adam", "one setting"), ("adam", "one setting"),
    ]  # fmt: skip
    scores = found.trials.set_index(["environment", "optimizer", "trial"])["final_return"]
    for row in found.winners.itertuples():
        assert scores[row.environment, row.optimizer, row.trial] == row.tuning_score
        assert row.trial_0_score == scores[row.environment, row.optimizer, 0]
        if row.track == "tuned":
            assert row.tuning_score == scores[row.environment, row.optimizer].max()
    assert found.winners.groupby(["optimizer", "track"])["trial"].nunique()["sgd", "one setting"] == 1
    assert list(found.curves["env_steps"][:2]) == [32, 64]


def test_files_come_back_as_tracks(tuned: tuple[Path, Tuned]) -> None:
    folder, found = tuned
    session = prepare(STUDY, **TINY, results=folder, hyperparameters=folder, num_seeds=2)
    by_row = {
        (each.task.name, each.label, each.optimizer.origin): each.optimizer
        for each in session.plan.experiments
        if each.optimizer is not None
    }
    for row in found.winners.itertuples():
        optimizer = by_row[row.environment, row.optimizer, row.track]
        assert json.dumps(dict(optimizer.hyperparameters), sort_keys=True) == row.settings
        environments = 1 if row.track == "tuned" else 2
        assert (optimizer.tuning_trials, optimizer.tuning_env_steps) == (2, 3 * STEPS * environments)
    assert by_row[CARTPOLE, "sgd", "default"].tuning_trials == 0


def test_a_later_compare_finds_the_winners_stored(tuned: tuple[Path, Tuned]) -> None:
    """Rows with a track are labeled alike, and told apart by their origin."""
    folder, found = tuned
    log = Log()
    rows = ["sgd:track=tuned", "sgd:track=one_setting"]
    board = open_bench.compare(optimizers=rows, environments=["cartpole"], num_seeds=2, baseline=False,
                               hyperparameters=folder, execution=Execution(folder, progress=log), **TINY)  # fmt: skip
    assert log.started == []
    assert set(board["optimizer"]) == {"sgd (tuned)", "sgd (one setting)"}
    runs = open_bench.load_runs(folder)
    told = runs.experiments.set_index(["environment", "optimizer", "hyperparameter_origin"])
    assert told.loc[(CARTPOLE, "sgd", "tuned"), "tuning_trials"] == 2
    means = runs.scores.groupby("experiment")["final_return"].mean()
    name = told.loc[(CARTPOLE, "sgd", "tuned"), "experiment"]
    (fresh,) = found.winners.query("track == 'tuned' and environment == @CARTPOLE")["fresh_score"]
    assert fresh == means[name]


def test_all_of_it_is_written(tuned: tuple[Path, Tuned]) -> None:
    folder, found = tuned
    assert len(pd.read_csv(folder / "tuning/trials.csv")) == len(found.trials) == 12
    written = pd.read_csv(folder / "tuning/winners.csv", keep_default_na=False)
    assert list(written["settings"]) == list(found.winners["settings"])
    figures = sorted(path.name.rpartition("_")[2] for path in folder.glob("tuning/figures/*.png"))
    assert figures == ["curves.png"] * 4 + ["returns.png"] * 4


@pytest.mark.slow
def test_an_earlier_winner_is_moved_away(tmp_path: Path) -> None:
    """With more trials another may win, and two winners of one track would be no board."""
    request = {**TINY, "trials": 2, "num_seeds": 1, "report_seeds": 1, "results": tmp_path}
    first = open_bench.tune("sgd", "cartpole", **request).winners["trial"].item()
    (table,) = tmp_path.glob("tuning/*/trials.csv")
    rows = pd.read_csv(table)
    rows.loc[rows["trial"] == (other := (first + 1) % 3), "final_return"] = 500.0  # as if it had been the best
    rows.to_csv(table, index=False)
    with pytest.warns(UserWarning, match="is an earlier winner's; moved to"):
        second = open_bench.tune("sgd", "cartpole", **request).winners["trial"].item()
    assert second == other
    assert len(open_bench.load_runs(tmp_path).experiments) == 1
    assert len(list(tmp_path.glob("superseded/*/experiment.json"))) == 1


@pytest.mark.slow
def test_a_winner_that_stays_is_told_with_all_its_trials(tmp_path: Path) -> None:
    """What is stored of it stays, and its row says how many trials it has won against by now."""
    request = {**TINY, "num_seeds": 1, "report_seeds": 1, "results": tmp_path}
    open_bench.tune("sgd", "cartpole", trials=2, **request)
    (table,) = tmp_path.glob("tuning/*/trials.csv")
    rows = pd.read_csv(table)
    rows.loc[rows["trial"] == 1, "final_return"] = 500.0  # as if it had been the best
    rows.to_csv(table, index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_bench.tune("sgd", "cartpole", trials=2, **request)
    before = open_bench.load_runs(tmp_path)
    open_bench.tune("sgd", "cartpole", trials=4, **request)
    after = open_bench.load_runs(tmp_path)
    assert [list(runs.experiments["tuning_trials"]) for runs in (before, after)] == [[2], [4]]
    pd.testing.assert_frame_equal(before.scores, after.scores, check_exact=True)


@pytest.mark.slow
def test_the_first_trial_may_win_and_the_file_says_so(tmp_path: Path) -> None:
    request = {**TINY, "trials": 2, "num_seeds": 1, "report_seeds": 0, "results": tmp_path}
    open_bench.tune("sgd", "cartpole", **request)
    (table,) = tmp_path.glob("tuning/*/trials.csv")
    rows = pd.read_csv(table)
    rows.loc[rows["trial"] == 0, "final_return"] = 500.0  # as if it had been the best
    rows.to_csv(table, index=False)
    (provenance,) = tmp_path.glob("tuning/*/provenance.json")
    batches = json.loads(provenance.read_text())
    provenance.write_text(json.dumps([{**batch, "revision": "abc"} for batch in batches]))
    open_bench.tune("sgd", "cartpole", **request)
    (path,) = tmp_path.glob("hyperparameters/*.toml")
    ((_, environment),) = read_toml(path)["environments"].items()
    ((_, found),) = environment["ppo"].items()
    told = "trial 0, the default setting, better than a Sobol search, 2 trials × 1 seeds; final return 500"
    assert (found["source"], found["revision"]) == (told, "abc")  # of the code that ran the trials


@pytest.mark.slow
def test_one_setting_for_fewer_environments_replaces_none_for_more(tuned: tuple[Path, Tuned], tmp_path: Path) -> None:
    shutil.copytree(tuned[0], tmp_path / "copy")
    one, another = "cartpole", "acrobot"
    with pytest.raises(UserError, match=r"sgd\.toml has one setting of sgd at .* over cartpole.*, catch.*; this tuning "
                                        r"would replace it and lacks catch"):  # fmt: skip
        open_bench.tune("sgd", [one, another], **AMOUNT, **TINY, results=tmp_path / "copy")
    assert len(list(tmp_path.glob("copy/tuning/acrobot*"))) == 0


@pytest.mark.slow
def test_a_family_whose_environment_has_settings_of_its_own_is_refused(tmp_path: Path) -> None:
    """Those come first, so the winner would not be what is trained on fresh seeds."""
    few = {"settings": SETTINGS | {"num_envs": 4}, "steps": 3_200}
    request = {**TINY, **few, "trials": 1, "num_seeds": 1, "report_seeds": 1, "results": tmp_path}
    open_bench.tune("sgd", "gridworld/dense", **request)
    (path,) = tmp_path.glob("hyperparameters/*.toml")
    text = path.read_text()
    path.write_text(re.sub(r"learning_rate = [0-9.e-]+", "learning_rate = 0.123", text))
    with pytest.raises(
        UserError, match=r"sgd\.toml has other settings for gridworld/dense.* itself, which come before"
    ):
        open_bench.tune("sgd", "gridworld/dense", **request, family=True)


@pytest.mark.slow
def test_a_winner_that_fails_on_fresh_seeds_is_said(tmp_path: Path) -> None:
    """It earned all of its returns on the tuning seeds."""
    request = {**TINY, "trials": 1, "num_seeds": 1, "report_seeds": 1, "results": tmp_path}
    open_bench.tune("sgd", "cartpole", **request)
    (scores,) = tmp_path.glob("experiments/*/*/scores.csv")
    rows = pd.read_csv(scores)
    rows[["final_return", "mean_return"]] = np.nan
    rows.to_csv(scores, index=False)
    provenance = scores.parent / "provenance.json"
    content = json.loads(provenance.read_text())
    content["files"]["scores.csv"] = hashlib.sha256(scores.read_bytes()).hexdigest()
    provenance.write_text(json.dumps(content))
    found = open_bench.tune("sgd", "cartpole", **request)
    assert found.notes == (f"sgd on {CARTPOLE} (tuned): 1 of 1 fresh lifetimes diverged or finished no episode",)
    assert found.winners["fresh_score"].isna().all()


@pytest.mark.slow
def test_objects_are_tuned_and_a_failing_trial_never_wins(tmp_path: Path) -> None:
    request = {**AMOUNT, **TINY, "results": tmp_path, "trials": 3, "report_seeds": 1}
    found = open_bench.tune(breaking, "cartpole", **request)
    rates = found.trials["settings"].map(lambda text: json.loads(text)["learning_rate"])
    assert list(found.trials["diverged"]) == list(rates > 0.01)
    assert found.trials["diverged"].any()
    assert json.loads(found.winners["settings"].item())["learning_rate"] <= 0.01
    assert np.isfinite(found.winners["fresh_score"].item())
    (path,) = tmp_path.glob("hyperparameters/*.toml")
    assert read_toml(path)["optimizer"].endswith(":breaking")


@pytest.mark.slow
def test_a_tuning_without_a_winner_says_so(tmp_path: Path) -> None:
    spec = f"{__name__}:always_breaking"
    found = open_bench.tune(spec, "cartpole", trials=1, num_seeds=1, **TINY, results=tmp_path)
    assert found.winners.empty
    assert len(found.notes) == 1
    assert "a lifetime of every trial failed" in found.notes[0]


@searchable(learning_rate=Search(1e-1, 1.0))
def always_breaking(learning_rate: float = 0.5) -> optax.GradientTransformation:
    """Its updates are not numbers."""
    return optax.sgd(learning_rate * np.nan)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_winners(tuned: tuple[Path, Tuned], openbench: OpenBench) -> None:
    folder, found = tuned
    request = ["tune", "sgd", "-e", "cartpole", "--steps", STEPS, *SET, "--trials", 2, "--num-seeds", 1,
               "--report-seeds", 2, "--results", folder, "--quiet"]  # fmt: skip
    answer = openbench(*request)
    assert answer.code == 0, answer.err
    assert all(word in answer.out for word in ("fresh seeds", "trial 0", "sgd", "learning_rate=", f"{folder}/tuning/"))
    values = json.loads(openbench(*request, "--json").out)
    (winner,) = values["winners"]
    first = found.winners.iloc[0]
    assert winner["settings"] == json.loads(first["settings"])
    assert (winner["tuning_score"], winner["fresh_score"]) == (first["tuning_score"], first["fresh_score"])


def test_a_dry_run_trains_nothing(tmp_path: Path, openbench: OpenBench) -> None:
    answer = openbench(
        "tune", "sgd", "adam", "-e", "cartpole", "-e", "acrobot", "--dry-run", "--results", tmp_path / "r"
    )
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0] == "tuning, 16 trials: 4 experiments, 34 lifetimes each"
    assert [line.split(":")[0].strip() for line in lines[1:5]] == [
        f"{environment} · ppo · {optimizer}" for environment in ("cartpole", "acrobot") for optimizer in ("sgd", "adam")
    ]
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (["sgd", "-e", "cartpole", "--trials", 0], "trials = 0: Input should be greater than 0"),
        (["sgd", "-e", "cartpole", "--trials", -3], "trials = -3"),
        (["sgd", "-e", "cartpole", "--num-seeds", 0], "num_seeds = 0"),
        (["sgd", "-e", "cartpole", "--report-seeds", -1], "report_seeds = -1"),
        (["sgd", "-e", "cartpole", "--trials", 10**6], "are too many"),
        (["sgd", "-e", "cartpole", "--root-seed", ROOT_SEED], "kept for baseline returns and tuning"),
        (["sgd"], "name at least one optimizer and one environment"),
        (["-e", "cartpole"], "name at least one optimizer and one environment"),
        (["sgd", "sgd", "-e", "cartpole"], "optimizer 'sgd' is listed twice"),
        (["sgd", "-e", "cartpole", "-e", "cartpole"], "environment 'cartpole' is listed twice"),
        (["sgdd", "-e", "cartpole"], "unknown optimizer 'sgdd'"),
        (["velo@zero", "-e", "cartpole"], "has no search space"),
        (["sgd:momentum=0.5", "-e", "cartpole"], "settings are what tuning finds: name it without, as sgd"),
        (["sgd:track=tuned", "-e", "cartpole"], "settings are what tuning finds: name it without, as sgd"),
        (["dpo", "-e", "cartpole"], "takes its settings from adam, whatever its policy loss: tune adam"),
        (["lion+dpo", "-e", "cartpole"], "takes its settings from lion"),
        (["--study", "quick"], "study quick has no row that needs tuning, such as adam:track=tuned"),
        (["sgd", "-e", "cartpole", "--family"], "cartpole has no family"),
        (["sgd", "-e", "gridworld/dense", "-e", "gridworld/rand_all", "--family"], "is the second of its family"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(request_: list[Any], message: str, tmp_path: Path, openbench: OpenBench) -> None:
    check_refused(openbench("tune", *request_, "--results", tmp_path / "results"), message, tmp_path / "results")


def test_tracks_without_settings_say_what_to_run(tmp_path: Path, openbench: OpenBench) -> None:
    request = ["compare", "-e", "cartpole", "--budget", "short", "--results", tmp_path / "results"]
    answer = openbench(*request, "-o", "sgd:track=one_setting")
    check_refused(answer, "openbench tune sgd -e cartpole --algorithm ppo --budget short", tmp_path / "results")
    answer = openbench(*request, "-o", "sgd", "--hyperparameters", tmp_path)
    check_refused(answer, "holds no hyperparameter files", tmp_path / "results")


def test_shipping_needs_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, openbench: OpenBench) -> None:
    """Then everything else in the file stays as it is, and the settings are what the name means from now on."""
    from open_bench import files

    shipped = tmp_path / "checkout" / "baselines"
    (shipped / "hyperparameters").mkdir(parents=True)
    text = (
        '# A comment.\noptimizer = "sgd"\n\n[environments.acrobot.ppo.any]\norigin = "published"\n'
        "values = { learning_rate = 1.0 }\n"
    )
    (shipped / "hyperparameters" / "sgd.toml").write_text(text)
    monkeypatch.setattr(files, "baselines_dir", lambda: shipped)
    request = ["tune", "sgd", "-e", "cartpole", "--steps", STEPS, *SET, "--trials", 1, "--num-seeds", 1,
               "--report-seeds", 0, "--ship", "--json", "--quiet"]  # fmt: skip
    check_refused(openbench(*request, "--results", tmp_path / "r"), "--ship writes to baselines", tmp_path / "r")
    (tmp_path / "checkout" / ".git").mkdir()
    answer = openbench(*request, "--results", tmp_path / "results")
    assert answer.code == 0, answer.err
    written = (shipped / "hyperparameters" / "sgd.toml").read_text()
    assert written.startswith(text)
    (session,) = prepare(optimizers=["sgd:track=tuned"], environments=["cartpole"], **TINY, baseline=False,
                         results=tmp_path / "results").plan.experiments  # fmt: skip
    assert session.optimizer is not None
    assert dict(session.optimizer.hyperparameters) == json.loads(answer.out)["winners"][0]["settings"]
    assert resolve("sgd", session.task).origin == "tuned"
