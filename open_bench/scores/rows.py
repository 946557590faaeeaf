"""Stored rows as three tables: what every score, table and figure is computed from.

The names and kinds of the columns are the contract between the store, which fills a ``Runs``, and everything in
``scores`` and ``report``, which only read it. Further columns are welcome and ignored, but for those in
``SETTINGS_COLUMNS``, which are compared when they are there.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import pandas as pd
from pandas.api import types

METRICS = ("final_return", "mean_return")
ORIGINS = ("given", "published", "tuned", "default")

# Kinds: text (strings), number (floats or integers, NaN allowed), integer, flag (booleans).
CELL_COLUMNS = {
    "cell": "text",  # directory name, unique
    "environment": "text",
    "family": "text",  # "gymnax", "brax", "gridworld", …
    "budget": "text",  # "quick", "full", "steps-500000", …
    "env_steps": "integer",  # length of a lifetime
    "optimizer": "text",  # display name: "adam", "adam:learning_rate=0.001", "lion+dpo"
    "hyperparameters": "text",  # JSON
    "hyperparameter_origin": "text",  # one of ORIGINS
    "theta": "text",  # short content hash, "" without meta-parameters
    "study_seed": "integer",
    "width": "integer",  # lifetimes in a vmapped group
    "protocol": "integer",  # protocol version
    "steps_per_second": "number",  # env steps over all repetitions / run_seconds
    "run_seconds": "number",  # wall clock without compilation
    "compile_seconds": "number",
    "hardware": "text",
    "revision": "text",  # git revision
}
SCORE_COLUMNS = {
    "cell": "text",
    "environment": "text",
    "budget": "text",
    "optimizer": "text",
    "repetition": "integer",
    "final_return": "number",  # NaN when diverged, or when no episode finished
    "mean_return": "number",
    "diverged": "flag",
    "env_steps": "integer",
}
CURVE_COLUMNS = {
    "cell": "text",
    "environment": "text",
    "budget": "text",
    "optimizer": "text",
    "repetition": "integer",
    "env_steps": "integer",
    "episode_return": "number",  # NaN until an episode has finished, and after divergence
}
SETTINGS_COLUMNS = ("settings", "environment_version")  # optional in cells; must agree within an environment

_DTYPES = {"text": "object", "number": "float64", "integer": "int64", "flag": "bool"}
_IS_KIND = {
    "text": lambda column: all(isinstance(value, str) for value in column),
    "number": lambda column: types.is_numeric_dtype(column) and not types.is_bool_dtype(column),
    "integer": types.is_integer_dtype,
    "flag": types.is_bool_dtype,
}


@dataclasses.dataclass(frozen=True)
class Runs:
    """Stored cells with their scores and learning curves; the order of rows carries no meaning.

    Attributes:
        cells: one row a cell (``CELL_COLUMNS``).
        scores: one row a cell and repetition (``SCORE_COLUMNS``).
        curves: one row a cell, repetition and recorded update (``CURVE_COLUMNS``).
    """

    cells: pd.DataFrame
    scores: pd.DataFrame
    curves: pd.DataFrame

    @classmethod
    def empty(cls) -> "Runs":
        """No rows, but every column with its dtype."""
        return cls(_empty(CELL_COLUMNS), _empty(SCORE_COLUMNS), _empty(CURVE_COLUMNS))

    @property
    def budgets(self) -> tuple[str, ...]:
        """Names of the budgets that the cells have, sorted."""
        return tuple(sorted(set(self.cells["budget"])))

    def select(self, **columns: Any) -> "Runs":
        """The cells whose columns have the given values (or one of several), with their scores and curves.

        ``runs.select(budget="quick", environment=["asterix", "breakout"])``. Raises KeyError for a column that
        cells do not have.
        """
        keep = pd.Series(True, index=self.cells.index)
        for name, wanted in columns.items():
            if name not in self.cells:
                raise KeyError(f"cells have no column {name!r}; they have {', '.join(self.cells.columns)}")
            several = isinstance(wanted, Collection) and not isinstance(wanted, str)
            keep &= self.cells[name].isin(list(wanted) if several else [wanted])
        cells = self.cells[keep]
        return Runs(
            cells,
            self.scores[self.scores["cell"].isin(cells["cell"])],
            self.curves[self.curves["cell"].isin(cells["cell"])],
        )


def validate(runs: Runs) -> Runs:
    """Return ``runs``, or raise ValueError that names the table, the column and the first offending rows."""
    for table, frame, columns in (
        ("cells", runs.cells, CELL_COLUMNS),
        ("scores", runs.scores, SCORE_COLUMNS),
        ("curves", runs.curves, CURVE_COLUMNS),
    ):
        _check_columns(table, frame, columns)
    _refuse("cells", runs.cells, runs.cells["cell"].duplicated(), "cell names must be unique", ["cell"])
    origin = ~runs.cells["hyperparameter_origin"].isin(ORIGINS)
    _refuse("cells", runs.cells, origin, f"hyperparameter_origin must be one of {', '.join(ORIGINS)}", ["cell"])
    keys = ["cell", "repetition"]
    _refuse("scores", runs.scores, runs.scores[keys].duplicated(), "a repetition appears twice", keys)
    steps = [*keys, "env_steps"]
    _refuse("curves", runs.curves, runs.curves[steps].duplicated(), "a point appears twice", steps)
    for metric in METRICS:
        infinite = runs.scores[metric].abs() == float("inf")
        _refuse("scores", runs.scores, infinite, f"{metric} must be finite, or NaN when there is none", keys)
    for table, frame in (("scores", runs.scores), ("curves", runs.curves)):
        _check_identity(table, frame, runs.cells)
    return runs


def _empty(columns: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=_DTYPES[kind]) for name, kind in columns.items()})


def _check_columns(table: str, frame: pd.DataFrame, columns: dict[str, str]) -> None:
    missing = [name for name in columns if name not in frame]
    if missing:
        raise ValueError(f"{table}: columns are missing: {', '.join(missing)}")
    for name, kind in columns.items():
        if len(frame) and not _IS_KIND[kind](frame[name]):
            raise ValueError(f"{table}: column {name!r} must hold {kind} values; it has dtype {frame[name].dtype}")


def _check_identity(table: str, frame: pd.DataFrame, cells: pd.DataFrame) -> None:
    """Every row belongs to a cell, and repeats that cell's environment, budget and optimizer."""
    _refuse(table, frame, ~frame["cell"].isin(cells["cell"]), "these belong to no cell", ["cell"])
    identity = cells.set_index("cell")
    for name in ("environment", "budget", "optimizer"):
        differs = frame["cell"].map(identity[name]) != frame[name]
        _refuse(table, frame, differs, f"{name} is not that of the cell", ["cell", name])


def _refuse(table: str, frame: pd.DataFrame, bad: pd.Series, problem: str, show: list[str]) -> None:
    if bad.any():
        rows = frame.loc[bad, show].head(3).to_dict("records")
        listed = "; ".join(", ".join(f"{name} {value}" for name, value in row.items()) for row in rows)
        raise ValueError(f"{table}: {problem} ({int(bad.sum())} rows, such as {listed})")
