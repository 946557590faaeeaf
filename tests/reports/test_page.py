"""The page of a results folder: what it shows, that nothing in it is run or loaded, and that its bytes repeat."""

import base64
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from reported import FORMULA, IMAGE, TEMPLATE, write_everything, write_experiment, write_history, write_trials

from open_bench import api
from open_bench.errors import UserError
from open_bench.reports.contents import read
from open_bench.reports.page import render

FEW = 60


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_everything(tmp_path_factory.mktemp("results"))


def page(results: Path) -> str:
    return render(read(results), {}, FEW)


@pytest.fixture(scope="module")
def html(results: Path) -> str:
    return page(results)


def data_of(html: str) -> dict[str, Any]:
    packed = re.search(r'<script type="text/plain" id="data">([A-Za-z0-9+/=]*)</script>', html)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def without_scripts(html: str) -> str:
    return re.sub(r"<script>.*?</script>|<style>.*?</style>", "", html, flags=re.DOTALL)


def test_every_part_is_there(html: str) -> None:
    data, shown = data_of(html), without_scripts(html)
    for part in ("board0", "tuning", "generalization", "meta", "provenance"):
        assert f'<section id="{part}"' in shown
    titles = [chart["title"] for chart in data["charts"]]
    assert titles[:5] == ["IQM", "median", "mean", "optimality gap", "mean rank"]
    for title in ("performance profile", "time to adam's median final return",
                  "learning curves, breakout", "policy kl", "best of k trials, breakout", "performance and sensitivity",
                  "fitness", "members without fitness"):  # fmt: skip
        assert title in titles
    numbers = re.findall(r'data-chart="(\d+)"', shown + "".join(data["panels"].values()))
    assert sorted(map(int, numbers)) == list(range(len(titles)))  # each is shown
    assert "openbench compare -o adam -e =1+1 -e breakout --algorithm ppo --budget quick" in shown
    assert "openbench train adam -e breakout --algorithm ppo --budget quick" in data["panels"]["board0-1"]
    study = "--study &#39;&lt;/script&gt;&lt;script&gt;window.hacked=2&lt;/script&gt;&#39; --num-seeds 2"
    assert f"openbench generalize adam &#39;{IMAGE.replace('<', '&lt;').replace('>', '&gt;')}&#39; {study}" in shown
    assert shown.count("openbench generalize") == 4
    assert shown.count("none: how it was asked for is not stored") == 1  # an evolution without its weights
    assert "2 × cpu" in shown
    assert "jax 0.9" in shown
    assert "a note" in shown


def test_charts_have_the_numbers_of_the_boards_figures(html: str) -> None:
    data = data_of(html)
    chart = next(each for each in data["charts"] if each["title"] == "learning curves, breakout")
    adam = next(one for one in chart["series"] if data["legends"]["board0"][one["of"]]["name"] == "adam")
    assert chart["grids"][adam["x"]] == [250, 500, 750, 1000]
    assert adam["v"] == [2.75, 5.5, 8.25, 11]
    assert adam["low"] < adam["v"] < adam["high"]


def test_the_same_runs_give_the_same_bytes(html: str, results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "elsewhere")
    assert page(tmp_path / "elsewhere") == html


def test_names_are_text(html: str) -> None:
    shown = without_scripts(html)
    everything = shown + "".join(data_of(html)["panels"].values())
    assert IMAGE.replace("<", "&lt;").replace(">", "&gt;") in everything
    assert "<img" not in everything
    assert "<script>window" not in everything
    assert TEMPLATE in everything
    assert ">49<" not in everything


def test_nothing_is_loaded_and_no_other_script_may_run(html: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert policy[1].count("'sha256-") == len(re.findall(r"<script>", html)) == 3
    scripts = policy[1].partition("script-src")[2]
    assert "unsafe" not in scripts
    shown = without_scripts(html)
    assert not re.search(r"(?:src|href)=\"(?!#)", shown)
    assert len(html) < 5_000_000


def test_formulas_and_tags_are_harmless_in_tables(results: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(results, tmp_path / "copy")
    write_experiment(copy, FORMULA, "breakout", [1, 2, 3])
    board = api.leaderboard(copy, figures=())
    cells = [line.split(",")[5] for line in board.to_csv().splitlines()]
    assert f"'{FORMULA}" in cells
    assert FORMULA not in cells
    assert not re.search(r"(?m)(^|,)[=+@]", board.to_csv())
    markdown = board.to_markdown()
    assert "<img" not in markdown
    assert "<script" not in markdown
    latex = board.to_latex()
    assert r"\textless{}img" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2 * len(board.boards) + 1
    assert not re.search(r"(?<!\\)[_#]", latex.replace("% ", ""))


@pytest.mark.parametrize(("write", "part"), [(write_trials, "tuning"), (write_history, "meta")])
def test_a_folder_without_runs_shows_what_there_is(write: Any, part: str, tmp_path: Path) -> None:
    if part == "tuning":
        write(tmp_path, "adam", "breakout", {trial: [trial, trial + 1] for trial in range(4)})
    else:
        write(tmp_path, "mine", "cartpole")
    html = page(tmp_path)
    assert f'<section id="{part}"' in html
    assert "board0" not in without_scripts(html)


def test_what_is_damaged_is_named_and_left_out(tmp_path: Path) -> None:
    write_experiment(tmp_path, "adam", "breakout", [1, 2])
    write_history(tmp_path, "mine", "cartpole")
    (tmp_path / "meta" / "mine" / "history.csv").write_text("generation,fitness_mean\n1,<b>\n")
    (tmp_path / "generalization" / "broken").mkdir(parents=True)
    (tmp_path / "generalization" / "broken" / "points.csv").write_text("axis\n\x00")
    with pytest.warns(UserWarning, match="skipped") as caught:
        html = page(tmp_path)
    assert len([each for each in caught if "skipped" in str(each.message)]) == 2
    assert '<section id="board0"' in html
    assert '<section id="meta"' not in html


def test_nothing_to_report_is_said(tmp_path: Path, openbench: Any) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        read(tmp_path / "absent")
    answer = openbench("report", tmp_path)
    assert answer.code == 2
    assert "nothing to report" in answer.err
    write_experiment(tmp_path, "adam", "breakout", [1, 2])
    answer = openbench("report", tmp_path, "--budget", "ful")
    assert "no runs at budget 'ful'" in answer.err
    answer = openbench("leaderboard", "--results", tmp_path, "--figures", "gif")
    assert "unknown form of figures 'gif'" in answer.err
    assert not (tmp_path / "report.html").exists()
    (tmp_path / "folder").mkdir()
    answer = openbench("report", tmp_path, "--output", tmp_path / "folder")
    assert answer.code == 2
    assert "name another --output" in answer.err


def test_the_command_line_writes_it(results: Path, tmp_path: Path, openbench: Any) -> None:
    answer = openbench("report", results, "--output", tmp_path / "mine.html")
    assert answer.out == f"Written: {tmp_path / 'mine.html'}\n"
    assert (tmp_path / "mine.html").read_text().startswith("<!DOCTYPE html>")
    copy = tmp_path / "copy"
    write_experiment(copy, "adam", "breakout", [1, 2])
    answer = openbench("leaderboard", "--results", copy, "--format", "tex", "--figures", "svg,pdf")
    assert answer.out.startswith("\\begin{table}")
    assert {path.suffix for path in (copy / "figures").iterdir()} == {".svg", ".pdf"}
