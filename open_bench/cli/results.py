"""``openbench leaderboard`` and ``report``: what stored experiments say."""

from pathlib import Path
from typing import Any

import click

from open_bench.cli import console
from open_bench.cli.options import JSON, RESULTS

WRITTEN = ("leaderboard.csv", "leaderboard.md", "figures/")


@click.command()
@RESULTS
@click.option("--budget", help="Only this budget.")
@click.option("--track", "tracks", multiple=True,
              help="Show only rows of this track: default, 'one setting', tuned, published, learned, given, mixed; "
                   "repeatable.")  # fmt: skip
@click.option("--metric", default="final_return", show_default=True,
              help="Column to rank by; mean_return is the area under the learning curve over its length.")  # fmt: skip
@click.option("--figures", default="png", show_default=True, metavar="FORM,…", help="Forms of figures: png, svg, pdf.")
@click.option("--format", "form", type=click.Choice(["csv", "md", "tex"]),
              help="Print the board so, and nothing else.")  # fmt: skip
@JSON
def leaderboard(results: Path, figures: str, form: str | None, as_json: bool, **request: Any) -> None:
    """Write the leaderboard and the figures of a results folder anew, from its stored experiments and trials.

    \b
    openbench leaderboard --format tex > board.tex
    openbench leaderboard --figures pdf,svg
    """
    from open_bench import api

    board = api.leaderboard(results, figures=[each.strip() for each in figures.split(",")], **request)
    if form is None:
        print_board(board, results, as_json)
    else:
        console.say({"csv": board.to_csv, "md": board.to_markdown, "tex": board.to_latex}[form]().rstrip("\n"))


@click.command()
@click.argument("results", type=click.Path(path_type=Path), default=Path("results"))
@click.option("--output", "path", type=click.Path(path_type=Path), help="In place of RESULTS/report.html.")
@click.option("--budget", help="Only boards of this budget.")
def report(results: Path, **request: Any) -> None:
    """Write RESULTS, a results folder, as one HTML page: boards, curves, tuning and whatever else it holds.

    \b
    openbench report results/quick
    """
    from open_bench import api

    console.say(f"Written: {api.report(results, **request)}")


def print_board(board: Any, results: Path, as_json: bool) -> None:
    """A leaderboard, and where it was written."""
    if as_json:
        boards = [
            {"title": each.title, "table": console.records(each.table), "notes": list(each.notes)}
            for each in board.boards
        ]
        console.show_json({"boards": boards, "written": [str(results / name) for name in WRITTEN]})
        return
    console.show(board.to_rich(console.width()))
    console.say(f"Written: {results}/{', '.join(WRITTEN)}")
