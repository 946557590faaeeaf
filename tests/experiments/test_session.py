"""A study from plan to board: what is returned is what is written, and scores are known before training."""

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import OpenBench
from tiny import PQN_SETTINGS, SETTINGS, STEPS, Log

import open_bench
from open_bench.api import prepare
from open_bench.config import StudyConfig
from open_bench.errors import UserError
from open_bench.events import Started
from open_bench.experiments.session import Session

STUDY = StudyConfig(name="mine", optimizers=("adam", "sgd"), environments=("cartpole",), num_seeds=2)
REQUEST: dict[str, Any] = {"steps": STEPS, "settings": SETTINGS, "devices": 2}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Any, Log]:
    """A small study away from everything that ships: session, board, events."""
    log = Log()
    session = prepare(STUDY, results=tmp_path_factory.mktemp("ran"), progress=log, **REQUEST)
    with pytest.warns(UserWarning, match="0 is the random policy and 1 is Adam, of these runs and paired by seed"):
        runs = session.run()
    board = session.board(runs)
    session.write(runs, board)
    return session, board, log


def test_planning_trains_and_writes_nothing(tmp_path: Path) -> None:
    session = prepare(STUDY, results=tmp_path / "results", **REQUEST)
    assert [each.label for each in session.experiments] == ["adam", "sgd", "random"]
    assert session.estimate().lifetimes == 3 * 2
    assert [scale.kind for scale in session.plan.scales] == ["own"]
    assert not (tmp_path / "results").exists()


def test_a_study_of_which_nothing_is_left_has_a_name_of_its_own() -> None:
    adam, cartpole = {"optimizers": ["adam"]}, {"environments": ["cartpole"]}
    names = [prepare(**request).study.name for request in (adam, cartpole, {**adam, **cartpole})]
    assert names == ["quick", "quick", "custom"]


def test_every_study_gets_scores(ran: tuple[Session, Any, Log]) -> None:
    """Measured against its own Adam and the random policy, which is run once, stored, and never ranked."""
    session, board, log = ran
    assert [label for label, _ in log.started] == ["adam", "sgd", "random"]
    assert isinstance(log.events[0], Started)
    assert log.events[0].title == "mine"
    assert set(board.table["optimizer"]) == {"adam", "sgd"}
    again = Log()
    repeated = prepare(STUDY, results=session.execution.results, progress=again, **REQUEST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pd.testing.assert_frame_equal(repeated.board(repeated.run()).table, board.table)
    assert not again.started


@pytest.mark.slow
def test_short_names_are_chosen_on_the_command_line(ran: tuple[Session, Any, Log], openbench: OpenBench) -> None:
    folder = ran[0].execution.results
    request = ["leaderboard", "--results", folder, "--alias"]
    answer = openbench(*request, "adam=Mine")
    assert answer.code == 0, answer.err
    assert "Mine" in answer.out
    assert "Mine is adam" in (folder / "leaderboard.md").read_text()
    assert set(pd.read_csv(folder / "leaderboard.csv")["optimizer"]) == {"adam", "sgd"}
    for alias, message in (("adma=Mine", "nothing here is called 'adma'"), ("adam=sgd", "would name")):
        answer = openbench(*request, alias)
        assert (answer.code, answer.out) == (2, "")
        assert message in answer.err


@pytest.mark.slow
def test_adam_joins_and_the_board_says_so(tmp_path: Path, openbench: OpenBench) -> None:
    """Without it there are returns, and no scores. Lifetimes are long enough for Adam to pass the random policy."""
    folder = tmp_path / "results"
    request = ["-o", "sgd", "-e", "cartpole", "--num-seeds", 2, "--steps", 8 * STEPS, "--devices", 2, "--results",
               folder, *(f"--set={key}={value}" for key, value in SETTINGS.items())]  # fmt: skip
    answer = openbench("compare", *request)
    assert answer.code == 0, answer.err
    assert "adam was not named: it joins as what scores are measured against" in answer.err
    board = pd.read_csv(folder / "leaderboard.csv")
    assert set(board["optimizer"]) == {"adam", "sgd"}
    assert board["iqm"].notna().all()
    assert "- adam was not named: it joins" in (folder / "leaderboard.md").read_text()
    answer = openbench("compare", *request, "--no-baseline")
    assert answer.code == 0, answer.err
    assert set(pd.read_csv(folder / "leaderboard.csv")["optimizer"]) == {"sgd"}
    assert "no scores, only returns" in (folder / "leaderboard.md").read_text()


@pytest.mark.slow
def test_what_is_returned_is_what_is_written(ran: tuple[Session, Any, Log]) -> None:
    """Also where the folder holds rows of other studies."""
    session, board, _ = ran
    folder = session.execution.folder
    open_bench.train("lion", "cartpole", num_seeds=2, results=folder, **REQUEST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = open_bench.compare(STUDY, results=folder, **REQUEST)
    pd.testing.assert_frame_equal(table, board.table)
    written = pd.read_csv(folder / "leaderboard.csv")
    assert set(written["optimizer"]) == set(table["optimizer"]) == {"adam", "sgd"}
    assert list(written["rank"]) == list(table["rank"])
    text = (folder / "leaderboard.md").read_text()
    assert "mine" in text.splitlines()[0]
    assert "lion" not in text
    assert json.loads((folder / "study.json").read_text())["study"] == "mine"
    # All of the folder is another board, which no study's name stands over.
    whole = open_bench.leaderboard(folder)
    assert set(whole.table["optimizer"]) == {"adam", "sgd", "lion"}
    assert "mine" not in (folder / "leaderboard.md").read_text().splitlines()[0]


@pytest.mark.slow
def test_the_rows_of_a_study_are_its_own(ran: tuple[Session, Any, Log]) -> None:
    session, _, _ = ran
    open_bench.train("adam", "cartpole", num_seeds=3, results=session.execution.folder, **REQUEST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = session.run()
    assert set(runs.experiments["experiment"]) == {each.name for each in session.experiments}
    assert set(runs.scores["seed"]) == {0, 1}


def test_the_wrong_value_of_a_study_is_found_before_anything_trains(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for changes, message in (
        ({"optimizers": ["adam", "adm"]}, "unknown optimizer 'adm'"),
        ({"algorithm": "pqn", "optimizers": ["adam", "dpo"], "settings": PQN_SETTINGS}, "pqn has no policy loss"),
        ({"algorithm": "pqn"}, "'update_epochs' is a setting of ppo, not of pqn"),
        ({"num_seeds": 0}, "num_seeds = 0"),
        ({"where": 1}, "unknown argument 'where'"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(STUDY, results=results, **{**REQUEST, **changes})
    assert not results.exists()
