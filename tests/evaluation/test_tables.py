"""How a leaderboard looks in Markdown, as CSV and on a terminal."""

import io
import re

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leaderboards import FEW, RESULTS, SCALES, rendered
from rich.console import Console
from synthetic import NAN, make_returns, make_runs

from open_bench import text
from open_bench.evaluation import tables
from open_bench.evaluation.leaderboard import leaderboard


def test_csv_reads_back(tmp_path):
    made = leaderboard(make_runs(RESULTS), SCALES, resamples=FEW)
    written = made.to_csv(tmp_path / "results" / "leaderboard.csv")
    assert (tmp_path / "results" / "leaderboard.csv").read_text() == written
    assert "\r" not in written
    read = pd.read_csv(io.StringIO(written))
    assert list(read) == list(made.table)
    assert read["iqm"].tolist() == pytest.approx(made.table["iqm"].tolist(), rel=1e-5)


def test_latex_has_two_tables_a_board_and_takes_no_name_for_a_command():
    runs = make_runs({("adam", "a_1"): [1, 2], (r"\input{x} 5% & [#1] $x^2$ ~<b>|", "a_1"): [3, 4]})
    written = leaderboard(runs, {}, resamples=FEW).to_latex()
    assert written.count(r"\begin{tabular}") == written.count(r"\end{tabular}") == 2
    assert r"\textbackslash{}input\{x\} 5\% \& [\#1] \$x\textasciicircum{}2\$" in written
    assert r"optimizer & a\_1 \\" in written
    assert r"\caption{ppo $\cdot$ quick $\cdot$ protocol 1" in written
    for line in written.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) in (1, len(re.findall(r"(?<!\\)&", written.split("\n")[5])))


ODD = "=<b>|&_[x](y)"


def test_people_see_short_names_and_csv_has_labels():
    names = {"my.rules:mine:rate=0.1#cddb1c18": "mine:rate=0.1", "lion": ODD, "adam": "adam"}
    runs = make_runs({(name, "a"): [place, place + 1] for place, name in enumerate(names)})
    made = leaderboard(runs, SCALES, resamples=FEW, names={"lion": ODD, "a": "world", "sgd": "elsewhere"})
    assert made.boards[0].short == names
    assert set(made.table["optimizer"]) == set(names)
    assert set(pd.read_csv(io.StringIO(made.to_csv()))["optimizer"]) == set(names)
    shown = {"markdown": made.to_markdown(), "latex": made.to_latex(), "terminal": rendered(made, 200)}
    for form, written in shown.items():
        body = written.split("is my.rules")[0]  # a note says what it is
        assert "my.rules" not in body, form
        assert "mine:rate=0.1" in body, form
        assert "world" in body, form
    assert r"| =&lt;b>\|&_[x]\(y) |" in shown["markdown"]
    assert "- mine:rate=0.1 is my.rules:mine:rate=0.1#cddb1c18" in shown["markdown"]
    assert r"=\textless{}b\textgreater{}\textbar{}\&\_[x](y)" in shown["latex"]


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6), st.text(max_size=8), st.none() | st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_a_column_is_as_wide_as_its_widest_cell(cells, heading, fold):
    first = tables.Column("#", ["1"] * len(cells))
    column = tables.Column(heading, cells, "left", fold)
    alone = [tables._widest(first), tables._widest(column)]
    assert tables._width([first, column]) == tables._width(alone)


def test_markdown_has_intervals_returns_and_notes():
    made = leaderboard(make_runs(RESULTS), SCALES, resamples=FEW)
    written = made.to_markdown()
    lines = written.splitlines()
    assert lines[0] == "### ppo · quick · protocol 1 · root seed 0"
    low, high = made.table.loc[0, ["iqm_low", "iqm_high"]]
    assert f"| 1 | lion | default | 1.25 [{low:.2f}, {high:.2f}] |" in written
    assert "| P(better than adam) |" in lines[2]
    assert "| hyperparameters |" not in lines[2]  # the track says it
    assert "1 of 8" in next(line for line in lines if line.startswith("| 3 | sgd"))
    assert "| optimizer | a | b |" in lines
    assert "- a at quick: 1 of sgd diverged, counted with the random policy's return, 0" in lines
    for block in written.split("\n\n"):
        vmap_sizes = {line.count(" | ") for line in block.splitlines() if line.startswith("|")}
        assert len(vmap_sizes) <= 1


def test_markdown_without_scales_shows_no_empty_columns():
    written = leaderboard(make_runs(RESULTS), {}, resamples=FEW).to_markdown()
    assert "mean rank" in written
    assert "IQM" not in written


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("environments", [1, 2, 7])
def test_the_terminal_table_fits_and_loses_nothing(environments, width):
    """No line is too long, nothing is cut off, and no number is broken over lines, in pipes (80) and narrow windows."""
    names = [f"environment_{i}" for i in range(environments)]
    optimizers = {"adam": 100, "open@a_rather_long_name_of_weights": 200}
    runs = make_runs({(o, e): [v, v + 7] for o, v in optimizers.items() for e in names}, steps_per_second=1234567.0)
    made = leaderboard(runs, make_returns(**dict.fromkeys(names, (0, 100))), resamples=FEW)
    shown = rendered(made, width)
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    assert "…" not in shown
    assert shown.count("103.5") == environments
    assert all(name in shown for name in names)
    assert text.interval(*made.table.loc[0, ["iqm", "iqm_low", "iqm_high"]]) in shown
    assert shown.count("1,234,567") == 2


def test_packed_tables_repeat_what_they_begin_with():
    first = [tables.Column("name", ["x", "y"], "left")]
    rest = [tables.Column(f"column{i}", ["123456789", "1"]) for i in range(5)]
    console = Console(width=40, file=io.StringIO(), color_system=None)
    found = tables.packed("", first, rest, 40)
    assert [len(table.columns) for table in found] == [3, 3, 2]
    for table in found:
        console.print(table)
    assert console.file.getvalue().count("123456789") == 5


def test_single_seeds_as_a_table():
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(tables.rich_scores(make_runs({("adam", "a"): [8, None, NAN]}).scores))
    lines = console.file.getvalue().splitlines()
    assert lines[1].split() == ["0", "8.00", "4.00", "1,000"]
    assert lines[2].split() == ["1", "1,000", "diverged"]
    assert lines[3].split() == ["2", "1,000", "no", "episode"]
    assert lines[-1].split() == ["mean", "8.00", "4.00", "of", "1", "of", "3"]


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ((0.934, 0.812, 1.041), "0.93 [0.81, 1.04]"),
        ((6517.3, 6400.2, 6600.9), "6517 [6400, 6601]"),
        ((167.09, 160.0, 170.0), "167.1 [160.0, 170.0]"),
        ((0.5, NAN, NAN), "0.50"),
        ((NAN, NAN, NAN), ""),
    ],
)
def test_interval(numbers, shown):
    assert text.interval(*numbers) == shown


def test_durations():
    assert [text.duration(s) for s in (0, 119, 120, 7200, 172_800, NAN)] == [
        "0 s", "119 s", "2.0 min", "2.0 h", "2.0 days", "",
    ]  # fmt: skip


def test_short_forms():
    assert [text.compact(x) for x in (0, 250, 499_712, 2_500_000, 1.51624e9)] == [
        "0",
        "250",
        "499.7k",
        "2.5M",
        "1.516G",
    ]
    assert text.listed(["a", "b"]) == "a, b"
    assert text.listed(list("abcdef"), 4) == "a, b, c, d and 2 more"


HOSTILE = ("<img src=x onerror=alert(1)>", "=1+1", "a|b", "[x](javascript:alert(1))", "two\nlines", "50%_#&{}~^\\")


def hostile_board():
    runs = make_runs({("adam", "a"): [1, 2], **{(name, "a"): [3, 4] for name in HOSTILE}})
    return leaderboard(runs, make_returns(a=(0, 2)), resamples=FEW)


def test_names_are_text_in_markdown():
    written = hostile_board().to_markdown()
    assert "<" not in written.replace("&lt;", "")
    assert "](" not in written
    for block in written.split("\n\n"):
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")}) <= 1


def test_names_are_no_formulas_in_csv():
    written = hostile_board().to_csv()
    names = pd.read_csv(io.StringIO(written))["optimizer"]
    assert "'=1+1" in set(names)
    assert not names.str.match(r"[=+\-@\t\r]").any()
    frame = pd.DataFrame({"=x": ["+1", "-", "@a", "b"], "y": [-1.5, 2, 3, 4]})
    assert tables.csv(frame).splitlines() == ["'=x,y", "'+1,-1.5", "'-,2.0", "'@a,3.0", "b,4.0"]


def test_latex_has_a_table_a_block_and_text_that_compiles():
    written = hostile_board().to_latex()
    assert written.count(r"\begin{tabular}") == written.count(r"\bottomrule") == 2
    rows = [line for line in written.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2 * (1 + 7)
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows[:8]}) == 1
    assert r"50\%\_\#\&\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in written
    assert not re.search(r"[θ–−·]", written)
    assert [tables.latex_text(text) for text in ("-0.5 [-1, 2]", "a-1", "1e-3")] == ["$-$0.5 [$-$1, 2]", "a-1", "1e-3"]


def test_latex_has_short_names(tmp_path):
    runs = make_runs({("adam", "a"): [1, 2], ("mine:rule#cddb1c18", "a"): [3, 4]})
    made = leaderboard(runs, make_returns(a=(0, 2)), resamples=FEW)
    written = made.to_latex(tmp_path / "board.tex")
    assert (tmp_path / "board.tex").read_text() == written
    assert "& rule &" in written
    assert "cddb1c18" not in "\n".join(line for line in written.splitlines() if not line.startswith("%"))
