"""``train`` and ``compare``: the main job from end to end, and every bad request refused in one line."""

import itertools
import json
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from commands import Answer, OpenBench, check_refused, subprocess_of
from tiny import PQN_SETTINGS, lies

import open_bench

TINY = {"num_steps": 8, "update_epochs": 1, "num_minibatches": 2, "hidden": [8]}
SET = [f"--set={key}={value}" for key, value in TINY.items()]
STEPS = 4 * 8 * 40
REQUEST = ["-o", "adam", "-o", "sgd", "-e", "cartpole", "--steps", str(STEPS), "--seeds", "2", *SET]


BREAKING = """
import jax, numpy as np, optax

def breaking() -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * np.nan, updates))
"""


def csvs(folder: Path) -> dict[str, bytes]:
    """The stored tables, joined over shards: how rounds were cut depends on the number of devices."""
    runs = open_bench.load_runs(folder)
    keys = ["experiment", "seed", "env_steps"]
    return {
        name: table.sort_values(keys).to_csv(index=False).encode()
        for name, table in (("scores", runs.scores), ("curves", runs.curves))
    }


def reports(folder: Path) -> dict[str, bytes]:
    files = [folder / "leaderboard.csv", folder / "leaderboard.md", *folder.glob("figures/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- from end to end --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, openbench_of_a_module: OpenBench) -> tuple[Path, Answer]:
    """A small study, by the command line."""
    folder = tmp_path_factory.mktemp("compared") / "results"
    return folder, openbench_of_a_module("compare", *REQUEST, "--results", folder, "--plain")


def test_the_report_is_written_where_it_is_asked_for(
    compared: tuple[Path, Answer], tmp_path: Path, openbench: OpenBench
) -> None:
    """What it says is not on stdout, which may be JSON; nothing is trained again."""
    folder = shutil.copytree(compared[0], tmp_path / "results")
    assert not (folder / "report.html").exists()
    answer = openbench("compare", *REQUEST, "--results", folder, "--plain", "--json", "--report")
    assert json.loads(answer.out)["boards"]
    assert f"Written: {folder / 'report.html'}" in answer.err
    assert "openbench compare -o adam" not in (page := (folder / "report.html").read_text())  # of one environment
    assert "openbench train sgd -e cartpole --algorithm ppo" in page


def test_compare_prints_a_table_and_writes_the_leaderboard(compared: tuple[Path, Answer]) -> None:
    folder, answer = compared
    assert answer.code == 0, answer.err
    assert "adam" in answer.out
    assert "sgd" in answer.out
    assert "leaderboard.csv" in answer.out
    table = pd.read_csv(folder / "leaderboard.csv")
    assert set(table["optimizer"]) == {"adam", "sgd"}
    assert set(table["lifetimes"]) == {2}
    assert "adam" in (folder / "leaderboard.md").read_text()
    figures = list(folder.glob("figures/*.png"))
    assert figures
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)


def test_plain_progress_is_lines(compared: tuple[Path, Answer]) -> None:
    err = compared[1].err
    assert "custom: 3 experiments, 2 seeds each" in err  # the random policy's among them, for the scale
    for name in ("adam", "sgd"):
        assert f"{name}: seeds 0–1, 40 updates" in err
        assert f"{name}: done, return " in err
    assert "\x1b" not in err
    assert "\r" not in err


@pytest.mark.parametrize("form", ["csv", "md", "tex"])
def test_boards_in_other_formats(form: str, compared: tuple[Path, Answer], openbench: OpenBench) -> None:
    folder, _ = compared
    answer = openbench("leaderboard", "--results", folder, "--format", form)
    if form != "tex":
        assert answer.out == (folder / f"leaderboard.{form}").read_text()
    assert "adam" in answer.out


@pytest.mark.slow
def test_leaderboard_and_figures_regenerate_byte_for_byte(
    compared: tuple[Path, Answer], tmp_path: Path, openbench: OpenBench
) -> None:
    shutil.copytree(compared[0] / "experiments", tmp_path / "experiments")
    shutil.copy(compared[0] / "study.json", tmp_path)
    answer = openbench("leaderboard", "--results", tmp_path)
    assert answer.code == 0, answer.err
    assert "adam" in answer.out
    assert reports(tmp_path) == reports(compared[0])
    assert len(reports(tmp_path)) >= 4


@pytest.mark.slow
def test_the_api_gives_the_same_bytes(compared: tuple[Path, Answer], tmp_path: Path) -> None:
    request = {"steps": STEPS, "num_seeds": 2, "settings": TINY, "results": tmp_path}
    frame = open_bench.compare(optimizers=["adam", "sgd"], environments=["cartpole"], **request)
    assert csvs(tmp_path) == csvs(compared[0])
    assert isinstance(frame, pd.DataFrame)
    assert set(frame["optimizer"]) == {"adam", "sgd"}
    assert list(frame["rank"]) == sorted(frame["rank"])
    # ``train`` finds the same experiment and has nothing left to do; one seed of the two may be asked for.
    scores = open_bench.train("sgd", "cartpole", **{**request, "num_seeds": 1})
    assert list(scores["seed"]) == [0]
    assert {"final_return", "mean_return", "diverged", "env_steps"} <= set(scores)
    stored = open_bench.load_runs(tmp_path).select(optimizer="sgd").scores
    assert scores["final_return"].iloc[0] == stored["final_return"].iloc[0]
    assert csvs(tmp_path) == csvs(compared[0])


@pytest.mark.slow
def test_train_shows_every_metric_of_the_algorithm(tmp_path: Path, openbench: OpenBench) -> None:
    answer = openbench("train", "adam", "-e", "cartpole", "--algorithm", "pqn", "--steps", STEPS, "--results", tmp_path,
                       "--devices", 1, *(f"--set={key}={value}" for key, value in PQN_SETTINGS.items()))  # fmt: skip
    assert answer.code == 0, answer.err
    assert "final return of the greedy policy" in answer.out.splitlines()[0]
    stored = open_bench.load_runs(tmp_path).scores
    assert f"{stored['greedy_return'].item():.4g}" in answer.out.splitlines()[1]


def test_what_is_stored_is_not_trained_again(
    compared: tuple[Path, Answer], tmp_path: Path, openbench: OpenBench
) -> None:
    shutil.copytree(compared[0], tmp_path / "results")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/experiments/*/shard-*")}
    answer = openbench("train", "adam", "-e", "cartpole", "--steps", STEPS, "--seeds", 2, *SET,
                       "--results", tmp_path / "results", "--plain")  # fmt: skip
    assert answer.code == 0
    assert "stored already" in answer.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(tmp_path.glob("results/experiments/*/shard-*"))) == len(before)
    rows = [line.split() for line in answer.out.splitlines()]
    assert [row[0] for row in rows[1:3]] == ["0", "1"]


def test_quiet_prints_the_result_and_nothing_else(
    compared: tuple[Path, Answer], tmp_path: Path, openbench: OpenBench
) -> None:
    shutil.copytree(compared[0], tmp_path / "results")
    answer = openbench(
        "train", "sgd", "-e", "cartpole", "--steps", STEPS, *SET, "--results", tmp_path / "results", "-q"
    )
    assert (answer.code, answer.err) == (0, "")
    assert answer.out


@pytest.mark.slow
def test_a_study_of_ones_own(compared: tuple[Path, Answer], tmp_path: Path, openbench: OpenBench) -> None:
    """Settings of the study's file, with a seed fewer than stored: everything is there already."""
    shutil.copytree(compared[0], tmp_path / "results")
    study = tmp_path / "mine.toml"
    study.write_text('name = "mine"\noptimizers = ["sgd"]\nenvironments = ["cartpole"]\nnum_seeds = 2\n')
    answer = openbench("compare", study, "--steps", STEPS, *SET, "--results", tmp_path / "results", "--plain")
    assert answer.code == 0, answer.err
    assert "sgd: done, stored already" in answer.err
    assert "adam: done, stored already" in answer.err  # what scores are measured against


@pytest.mark.slow
def test_an_optimizer_that_diverges_is_shown(
    tmp_path: Path, openbench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaks.py").write_text(BREAKING)
    monkeypatch.chdir(tmp_path)  # a file beside the user is found
    answer = openbench("train", "breaks:breaking", "-e", "cartpole", "--steps", STEPS, *SET, "--results", tmp_path)
    assert answer.code == 0, answer.err
    assert "diverged" in answer.out
    assert "diverged" in answer.err


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    steps, num_seeds = 4 * 8 * 1000, 4
    request = ["--steps", steps, "--seeds", num_seeds, *SET, "--results", tmp_path]
    process = subprocess_of("train", "adam", "-e", "cartpole", *request, "--devices", 1, "--plain")
    deadline = time.monotonic() + 120
    while not lies(tmp_path, "experiments/*/shard-0000"):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130, err
    assert "Interrupted. What was finished is stored; the same command goes on from here." in err
    assert "Traceback" not in err
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("experiments/*/shard-*")}
    assert 1 <= len(finished) < num_seeds
    scores = open_bench.train("adam", "cartpole", steps=steps, num_seeds=num_seeds, settings=TINY, results=tmp_path)
    assert list(scores["seed"]) == list(range(num_seeds))
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


# --- before anything runs -------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path: Path, openbench: OpenBench) -> None:
    answer = openbench("compare", *REQUEST, "--results", tmp_path / "results", "--dry-run")
    assert answer.code == 0, answer.err
    first, *parts, last = answer.out.splitlines()
    assert first == "custom: 3 experiments, 2 seeds each"
    assert all(" · ppo · " in part for part in parts[:2])
    assert [part.rpartition(" · ")[2] for part in parts] == [
        f"{name}: 2 lifetimes of 40 updates ({STEPS:,} env steps)" for name in ("adam", "sgd", "random")
    ]
    assert last.startswith(f"  ahead: {3 * 2 * STEPS:,} env steps, about ")
    assert not (tmp_path / "results").exists()


def test_a_dry_run_knows_what_is_stored(compared: tuple[Path, Answer], openbench: OpenBench) -> None:
    before = sorted(compared[0].rglob("*"))
    answer = openbench("compare", *REQUEST, "-o", "lion", "--results", compared[0], "--dry-run", "--json")
    assert answer.code == 0, answer.err
    plan = json.loads(answer.out)
    assert [part["stored"] for part in plan["work"]] == [2, 2, 0, 2]
    assert sorted(compared[0].rglob("*")) == before


PLANS = {
    "train": ["train", "adam", "-e", "cartpole"],
    "compare": ["compare", *REQUEST],
    "compare that meta-trains": ["compare", "-o", "optim4rl", "-e", "cartpole", "--meta-train", "open-cartpole"],
    "generalize": ["generalize", "adam"],
    "meta-train": ["meta-train", "open", "-e", "cartpole"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", PLANS)
def test_a_dry_run_makes_nothing_in_a_folder_that_is_there(
    command: str, tmp_path: Path, openbench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "library"))
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", tmp_path / "not there"):
        answer = openbench(*PLANS[command], "--results", folder, "--dry-run")
        assert answer.code == 0, answer.err
        assert "  ahead: " in answer.out
        assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_dry_run_warns_of_what_takes_long(tmp_path: Path, openbench: OpenBench) -> None:
    """By the one estimate that the plan ends with."""
    for command in (["meta-train", "open"], ["train", "adam", "--seeds", 1000]):
        answer = openbench(*command, "-e", "breakout", "--budget", "full", "--results", tmp_path / "x", "--dry-run")
        about = answer.out.rpartition(", about ")[2].removesuffix(" on this machine\n")
        assert (
            f"are ahead: about {about} on this CPU" in answer.err or f"env steps are ahead: about {about}" in answer.err
        )
    answer = openbench("meta-train", "open", "-e", "breakout", "--population", 10**8, "--results", tmp_path / "x")
    check_refused(answer, "100,000,000 lifetimes of a generation (population × rollouts) are too many", tmp_path / "x")


# --- JSON -----------------------------------------------------------------------------------------------------------


def test_train_as_json(compared: tuple[Path, Answer], openbench: OpenBench) -> None:
    request = ["sgd", "-e", "cartpole", "--steps", STEPS, "--seeds", 2, *SET]
    answer = openbench("train", *request, "--results", compared[0], "-q", "--json")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(answer.out)
    assert [row["seed"] for row in found["scores"]] == [0, 1]
    assert (Path(found["folder"]) / "experiment.json").is_file()


@pytest.mark.parametrize("command", [["compare", *REQUEST, "-q"], ["leaderboard"]], ids=["compare", "leaderboard"])
def test_boards_as_json(command: list[str], compared: tuple[Path, Answer], openbench: OpenBench) -> None:
    answer = openbench(*command, "--results", compared[0], "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    (board,) = found["boards"]
    assert board["title"].startswith("custom · ppo · ")
    assert {row["optimizer"] for row in board["table"]} == {"adam", "sgd"}
    assert all(Path(path).exists() for path in found["written"])


# --- bad requests -----------------------------------------------------------------------------------------------------

GOOD = {"optimizer": "adam", "--env": "cartpole", "--steps": str(STEPS), "--seeds": "1"}

BAD_TRAIN: dict[str, tuple[dict[str, str], str]] = {
    "unknown optimizer": ({"optimizer": "adm"}, "unknown optimizer 'adm'. Did you mean adam"),
    "unknown optimizer setting": ({"optimizer": "adam:learning_rat=1"}, "no setting 'learning_rat'. Did you mean"),
    "setting of the wrong kind": (
        {"optimizer": "adam:learning_rate=fast"},
        "learning_rate = 'fast' is not a finite number",
    ),
    "decay of one": ({"optimizer": "adam:b1=1.0"}, "b1 = 1.0 makes no sense: it must be at least 0 and below 1"),
    "negative step size": ({"optimizer": "lion:learning_rate=-1"}, "learning_rate = -1.0 makes no sense"),
    "malformed name": ({"optimizer": "adam:"}, "optimizer 'adam:'"),
    "unknown policy_loss": ({"optimizer": "adam+dpoo"}, "unknown policy loss 'dpoo'. Did you mean dpo"),
    "unknown in optax": ({"optimizer": "optax.adabeleif"}, "optax has no 'adabeleif'. Did you mean adabelief"),
    "needs closures": ({"optimizer": "optax.lbfgs"}, "optax.lbfgs cannot be benchmarked"),
    "missing module": ({"optimizer": "no_such_module:x"}, "cannot import no_such_module"),
    "no weights": ({"optimizer": "lpo@nowhere"}, "nowhere"),
    "unknown environment": ({"--env": "brekout"}, "unknown environment 'brekout'. Did you mean breakout"),
    "two environments": ({"-e": "catch"}, "not cartpole, catch: openbench compare -o OPTIMIZER -e cart"),
    "missing file": ({"--env": "nowhere.toml"}, "nowhere.toml: no such file"),
    "negative steps": ({"--steps": "-5"}, "-5 steps on cartpole are fewer than one update of ppo"),
    "zero steps": ({"--steps": "0"}, "0 steps on cartpole"),
    "too few steps": ({"--steps": "511"}, "4 × 128 = 512 env steps. Ask for more steps, or"),
    "no seeds": ({"--seeds": "0"}, "num_seeds = 0"),
    "too many seeds": ({"--seeds": "100000000"}, "100,000,000 seeds are too many: ask for at most 1,000,000"),
    "negative seeds": ({"--seeds": "-1"}, "num_seeds = -1"),
    "negative seed": ({"--seed": "-1"}, "root_seed = -1"),
    "seed out of range": ({"--seed": "1000000"}, "root_seed: 1000000 is a root seed kept"),
    "no equals sign": ({"--set": "num_envs"}, "--set num_envs: expected KEY=VALUE"),
    "no value": ({"--set": "num_envs="}, "expected KEY=VALUE"),
    "unknown setting": ({"--set": "num_env=4"}, "unknown key 'num_env'. Did you mean num_envs"),
    "bad setting": ({"--set": "gamma=2"}, "gamma = 2: "),
    "text for a number": ({"--set": "num_envs=many"}, "num_envs = 'many': "),
    "minibatches": ({"--set": "num_minibatches=3"}, "num_minibatches = 3 does not divide"),
    "no devices": ({"--devices": "0"}, "--devices must be from 1 to 4096, not 0"),
    "no vmap_size": ({"--vmap-size": "0"}, "--vmap-size must be from 1 to 4096, not 0"),
    "too many vmapped": ({"--vmap-size": "100000"}, "--vmap-size must be from 1 to 4096, not 100000"),
    "too many devices": ({"--devices": "99999"}, "--devices must be from 1 to"),
    "unknown algorithm": ({"--algorithm": "pqm"}, "unknown algorithm 'pqm'. Did you mean pqn"),
    "another algorithm's setting": (
        {"--algorithm": "pqn", "--set": "gae_lambda=0.9"},
        "'gae_lambda' is a setting of ppo, not of pqn",
    ),
    "policy loss without a policy": ({"--algorithm": "pqn", "optimizer": "adam+dpo"}, "pqn"),
    "continuous actions": ({"--algorithm": "pqn", "--env": "pendulum"}, "pqn"),
    "no class of an algorithm": ({"--algorithm": "commands:Answer"}, "is no subclass of"),
    "an optimizer's setting": ({"--set": "learning_rate=3"}, "adam:learning_rate=3"),
    "half a cluster": ({"--coordinator": "127.0.0.1:9"}, "go together"),
}


@pytest.mark.parametrize("kind", BAD_TRAIN)
def test_a_bad_request_is_refused_in_one_line(kind: str, tmp_path: Path, openbench: OpenBench) -> None:
    change, message = BAD_TRAIN[kind]
    request = {**GOOD, **change}
    arguments = [request.pop("optimizer"), *itertools.chain.from_iterable(request.items())]
    answer = openbench("train", *arguments, "--results", tmp_path / "results")
    check_refused(answer, message, tmp_path / "results")


def test_the_good_request_is_good(compared: tuple[Path, Answer], openbench: OpenBench) -> None:
    """Else the test above would show nothing: what it changes is the only thing wrong."""
    arguments = ["adam", *itertools.chain.from_iterable(list(GOOD.items())[1:])]
    answer = openbench("train", *arguments, *SET, "--results", compared[0])
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quik"], "unknown study 'quik'. Did you mean quick"),
        (["-o", "adam", "-o", "adam"], "optimizer 'adam' is listed twice"),
        (["-e", "cartpole", "-e", "cartpole"], "environment 'cartpole' is listed twice"),
        (["--budget", "quik"], "has no budget 'quik' (it has quick, short, full). Did you mean quick"),
        (["--seeds", "0"], "num_seeds = 0"),
        (["-o", "adam", "-o", "lin"], "unknown optimizer 'lin'. Did you mean lion"),
    ],
    ids=" ".join,
)
def test_a_bad_study_is_refused_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, openbench: OpenBench
) -> None:
    check_refused(openbench("compare", *arguments, "--results", tmp_path / "results"), message, tmp_path / "results")


def test_a_misspelt_key_in_a_toml_is_named(tmp_path: Path, openbench: OpenBench) -> None:
    study = tmp_path / "mine.toml"
    study.write_text('name = "mine"\noptimisers = ["adam"]\nenvironments = ["cartpole"]\n')
    answer = openbench("compare", study, "--results", tmp_path / "results")
    check_refused(answer, f"{study}: ", tmp_path / "results")
    assert "unknown key 'optimisers'. Did you mean optimizers?" in answer.err
    study.write_text('name = "mine"\noptimizers = ["adam"\nseeds = 4\n')
    answer = openbench("compare", study, "--results", tmp_path / "results")
    check_refused(answer, f"{study}: ", tmp_path / "results")
    assert "line 3" in answer.err


def test_results_that_cannot_be_written(tmp_path: Path, openbench: OpenBench) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "results"
    answer = openbench("train", "adam", "-e", "cartpole", "--steps", 512, "--results", folder)
    check_refused(answer, f"cannot write results to {folder}: Not a directory", folder)


def test_a_leaderboard_of_nothing(tmp_path: Path, openbench: OpenBench) -> None:
    answer = openbench("leaderboard", "--results", tmp_path / "results")
    check_refused(answer, "no stored runs", tmp_path / "results")
    (tmp_path / "results" / "experiments").mkdir(parents=True)
    answer = openbench("leaderboard", "--results", tmp_path / "results")
    assert answer.code == 2
    assert answer.err.count("\n") == 1


@pytest.mark.slow
def test_a_leaderboard_of_some_tracks(tmp_path: Path, openbench: OpenBench) -> None:
    """Of the published quick study: fewer rows, the same scores, and a track that no row has is refused."""
    published = Path(__file__).parents[2] / "results" / "published" / "quick"
    shutil.copytree(published, tmp_path / "results")
    answer = openbench(
        "leaderboard", "--results", tmp_path / "results", "--track", "learned", "--metric", "mean_return"
    )
    assert answer.code == 0, answer.err
    assert "lpo" in answer.out
    assert "rmsprop" not in answer.out
    table = pd.read_csv(tmp_path / "results" / "leaderboard.csv")
    assert set(table["optimizer"]) == {"lpo", "open"}
    assert "mean_return:breakout" in table
    answer = openbench("leaderboard", "--results", tmp_path / "results", "--track", "publishd")
    check_refused(
        answer, "no row has the track 'publishd'; there are learned, tuned. Did you mean published", tmp_path / "x"
    )


@pytest.mark.slow
def test_a_leaderboard_of_some_environments(tmp_path: Path, openbench: OpenBench) -> None:
    """Of the published quick study: what it has of the others has no part in scores."""
    published = Path(__file__).parents[2] / "results" / "published" / "quick"
    shutil.copytree(published, tmp_path / "results")
    command = ("leaderboard", "--results", tmp_path / "results", "--metric", "final_return")
    assert openbench(*command, "-e", "breakout", "-e", "spaceinvaders").code == 0
    two = pd.read_csv(tmp_path / "results" / "leaderboard.csv").set_index("optimizer")
    returns = [column for column in two if column.startswith("final_return:")]
    assert returns == ["final_return:breakout", "final_return:spaceinvaders"]
    assert openbench(*command).code == 0
    whole = pd.read_csv(tmp_path / "results" / "leaderboard.csv").set_index("optimizer")
    pd.testing.assert_frame_equal(two[returns], whole.loc[two.index, returns], check_exact=True)
    assert two.loc["open", "iqm"] > whole.loc["open", "iqm"]  # CartPole is what it is bad at
    check_refused(
        openbench(*command, "-e", "breakuot"), "unknown environment 'breakuot'. Did you mean breakout", tmp_path / "x"
    )
