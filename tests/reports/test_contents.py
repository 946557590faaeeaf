"""What is damaged in a results folder is named and left out of the report."""

from pathlib import Path

import pytest

from open_bench.errors import UserError
from open_bench.reports.contents import read

POINTS = "axis,point,x,optimizer,mean,score,score_low,score_high,distribution\n"
POINT = "width,cartpole,8,adam,1.5,1,0.9,1.1,in\n"


NAMELESS = "a row does not say what it is of"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (POINT, ""),
        (POINT + POINT, "an optimizer appears twice at a point"),
        (POINT + POINT.replace("adam", ""), NAMELESS),
        (POINT.replace(",in", ","), NAMELESS),
    ],
)
def test_a_study_that_makes_no_sense_is_left_out(rows: str, told: str, tmp_path: Path) -> None:
    folder = tmp_path / "generalization" / "mine"
    folder.mkdir(parents=True)
    (folder / "points.csv").write_text(POINTS + rows)
    (folder / "summary.csv").write_text("optimizer,in_score,out_score,gap\nadam,1,1,0\n")
    (folder / "generalization.md").write_text("# mine\n")
    if not told:
        assert [study.name for study in read(tmp_path).studies] == ["mine"]
        return
    with pytest.warns(UserWarning, match=told), pytest.raises(UserError, match="nothing to report"):
        read(tmp_path)


def test_trials_whose_description_is_nested_too_deeply_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "tuning" / "mine"
    folder.mkdir(parents=True)
    (folder / "trials.csv").write_text("trial,seed\n")
    (folder / "tuning.json").write_text("[" * 100_000)
    with pytest.warns(UserWarning, match="nested too deeply"), pytest.raises(UserError, match="nothing to report"):
        read(tmp_path)
