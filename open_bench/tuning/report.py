"""How winners look on a terminal."""

import json
from typing import TYPE_CHECKING, Any

import pandas as pd

from open_bench.evaluation.tables import Column, packed
from open_bench.text import number

if TYPE_CHECKING:
    from open_bench.tuning.run import Tuned


def rich_winners(tuned: "Tuned", width: int = 80) -> Any:
    """A ``rich.console.Group``: winners by algorithm and budget, then what to know of them."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for (algorithm, budget), rows in tuned.winners.groupby(["algorithm", "budget"], sort=False):
        parts += _tables(f"{budget} · {algorithm}", rows, width)
    edges = tuned.winners[tuned.winners["edge"] != ""]
    notes = [f"{row.optimizer} on {row.environment} ({row.track}): {row.edge}" for row in edges.itertuples()]
    return Group(*parts, *(Text(f"· {note}", style="dim") for note in (*notes, *tuned.notes)))


def _tables(title: str, rows: pd.DataFrame, width: int) -> list[Any]:
    first = [
        Column("environment", list(rows["environment"]), "left", 26),
        Column("optimizer", list(rows["optimizer"]), "left", 26),
    ]
    headings = {"tuning seeds": "tuning_score", "trial 0": "trial_0_score", "fresh seeds": "fresh_score"}
    scores = [Column(heading, list(map(number, rows[name]))) for heading, name in headings.items()]
    settings = [
        ", ".join(f"{key}={_short(value)}" for key, value in json.loads(text).items()) for text in rows["settings"]
    ]
    rest = [Column("track", list(rows["track"]), "left"), *scores, Column("settings", settings, "left", 40)]
    return packed(title, first, rest, width)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
