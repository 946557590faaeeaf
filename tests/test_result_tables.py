"""Published boards and the tables of docs/results.md are those that the stored runs give."""

import re
import warnings
from pathlib import Path

import pytest

from open_bench.experiments.session import load_runs, stored_board
from tooling import result_tables

BOARDS = sorted(
    path.parent for path in result_tables.PUBLISHED.glob("*/leaderboard.csv") if (path.parent / "experiments").is_dir()
)


@pytest.mark.slow
@pytest.mark.parametrize("folder", BOARDS, ids=[path.name for path in BOARDS])
def test_stored_runs_give_the_published_board_byte_for_byte(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        board = stored_board(folder, load_runs(folder))
    assert board.to_csv().encode() == (folder / "leaderboard.csv").read_bytes()
    assert board.to_markdown().encode() == (folder / "leaderboard.md").read_bytes()


@pytest.mark.slow
def test_the_page_holds_what_the_stored_runs_give() -> None:
    page = result_tables.PAGE.read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert result_tables.filled(page) == page, "python -m tooling.result_tables writes them anew"


def test_every_place_is_filled_and_another_number_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    page = result_tables.PAGE.read_text(encoding="utf-8")
    assert len(result_tables.PLACE.findall(page)) == page.count("<!-- end -->") >= 4
    kinds = {found["kind"] for found in result_tables.PLACE.finditer(page)}
    assert kinds <= result_tables.KINDS.keys()
    for kind in kinds:
        monkeypatch.setitem(result_tables.KINDS, kind, lambda folder, budget, *_: f"| {folder} {budget} |\n")
    changed = result_tables.filled(page)
    assert "| minatar short |\n<!-- end -->" in changed
    assert result_tables.filled(changed) == changed
    assert re.sub(r"(?s)(<!-- \w+ .*?-->\n).*?<!-- end -->", "", changed) == re.sub(
        r"(?s)(<!-- \w+ .*?-->\n).*?<!-- end -->", "", page
    )
