"""``openbench leaderboard``: what stored experiments say."""

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
@JSON
def leaderboard(results: Path, budget: str | None, tracks: tuple[str, ...], metric: str, as_json: bool) -> None:
    """Write the leaderboard and the figures of a results folder anew, from its stored experiments and trials."""
    from open_bench import api

    print_board(api.leaderboard(results, budget, tracks=tracks, metric=metric), results, as_json)


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
