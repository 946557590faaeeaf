"""A small leaderboard that several tests look at."""

import io

from rich.console import Console
from synthetic import make_returns

from open_bench.evaluation.leaderboard import leaderboard

FEW = 60  # bootstrap resamples
SCALES = make_returns(a=(0, 10), b=(0, 100))
RESULTS = {
    ("adam", "a"): [10, 9, 11, 10],
    ("adam", "b"): [100, 90, 110, 100],
    ("lion", "a"): [12, 13, 11, 14],
    ("lion", "b"): [120, 130, 110, 140],
    ("sgd", "a"): [5, None, 4, 5],
    ("sgd", "b"): [50, 60, 40, 50],
}


def board_table(runs, returns=SCALES, **options):
    """The table of a leaderboard, by optimizer."""
    return leaderboard(runs, returns, resamples=FEW, **options).table.set_index("optimizer")


def rendered(leaderboard_, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(leaderboard_.to_rich(width))
    return console.file.getvalue()
