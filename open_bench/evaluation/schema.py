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
EXPERIMENT_COLUMNS = {
    "experiment": "text",  # directory name, unique
    "environment": "text",
    "family": "text",  # "gymnax", "brax", "gridworld", …
    "budget": "text",  # "quick", "full", "steps-500000", …
    "env_steps": "integer",  # length of a lifetime
    "optimizer": "text",  # display name: "adam", "adam:learning_rate=0.001", "lion+dpo"
    "hyperparameters": "text",  # JSON
    "hyperparameter_origin": "text",  # one of ORIGINS
    "theta": "text",  # short content hash, "" without meta-parameters
    "root_seed": "integer",
    "vmap_size": "integer",  # lifetimes in a vmapped group
    "protocol": "integer",  # protocol version
    "steps_per_second": "number",  # env steps over all seeds / run_seconds
    "run_seconds": "number",  # wall clock without compilation
    "compile_seconds": "number",
    "hardware": "text",
    "revision": "text",  # git revision
}
SCORE_COLUMNS = {
    "experiment": "text",
    "environment": "text",
    "budget": "text",
    "optimizer": "text",
    "seed": "integer",
    "final_return": "number",  # NaN when diverged, or when no episode finished
    "mean_return": "number",
    "diverged": "flag",
    "env_steps": "integer",
}
CURVE_COLUMNS = {
    "experiment": "text",
    "environment": "text",
    "budget": "text",
    "optimizer": "text",
    "seed": "integer",
    "env_steps": "integer",
    "episode_return": "number",  # NaN until an episode has finished, and after divergence
}
SETTINGS_COLUMNS = ("settings", "environment_version")  # optional in experiments; must agree within an environment

_DTYPES = {"text": "object", "number": "float64", "integer": "int64", "flag": "bool"}
_IS_KIND = {
    "text": lambda column: all(isinstance(value, str) for value in column),
    "number": lambda column: types.is_numeric_dtype(column) and not types.is_bool_dtype(column),
    "integer": types.is_integer_dtype,
    "flag": types.is_bool_dtype,
}


@dataclasses.dataclass(frozen=True)
class Runs:
    """Stored experiments with their scores and learning curves; the order of rows carries no meaning.

    Attributes:
        experiments: one row an experiment (``EXPERIMENT_COLUMNS``).
        scores: one row an experiment and seed (``SCORE_COLUMNS``).
        curves: one row an experiment, seed and recorded update (``CURVE_COLUMNS``).
    """

    experiments: pd.DataFrame
    scores: pd.DataFrame
    curves: pd.DataFrame

    @classmethod
    def empty(cls) -> "Runs":
        """No rows, but every column with its dtype."""
        return cls(_empty(EXPERIMENT_COLUMNS), _empty(SCORE_COLUMNS), _empty(CURVE_COLUMNS))

    @property
    def budgets(self) -> tuple[str, ...]:
        """Names of the budgets that the experiments have, sorted."""
        return tuple(sorted(set(self.experiments["budget"])))

    def select(self, **columns: Any) -> "Runs":
        """The experiments whose columns have the given values (or one of several), with their scores and curves.

        ``runs.select(budget="quick", environment=["asterix", "breakout"])``. Raises KeyError for a column that
        experiments do not have.
        """
        keep = pd.Series(True, index=self.experiments.index)
        for name, wanted in columns.items():
            if name not in self.experiments:
                raise KeyError(f"experiments have no column {name!r}; they have {', '.join(self.experiments.columns)}")
            several = isinstance(wanted, Collection) and not isinstance(wanted, str)
            keep &= self.experiments[name].isin(list(wanted) if several else [wanted])
        experiments = self.experiments[keep]
        return Runs(
            experiments,
            self.scores[self.scores["experiment"].isin(experiments["experiment"])],
            self.curves[self.curves["experiment"].isin(experiments["experiment"])],
        )


def validate(runs: Runs) -> Runs:
    """Return ``runs``, or raise ValueError that names the table, the column and the first offending rows."""
    for table, frame, columns in (
        ("experiments", runs.experiments, EXPERIMENT_COLUMNS),
        ("scores", runs.scores, SCORE_COLUMNS),
        ("curves", runs.curves, CURVE_COLUMNS),
    ):
        _check_columns(table, frame, columns)
    _refuse(
        "experiments",
        runs.experiments,
        runs.experiments["experiment"].duplicated(),
        "experiment names must be unique",
        ["experiment"],
    )
    origin = ~runs.experiments["hyperparameter_origin"].isin(ORIGINS)
    _refuse(
        "experiments",
        runs.experiments,
        origin,
        f"hyperparameter_origin must be one of {', '.join(ORIGINS)}",
        ["experiment"],
    )
    keys = ["experiment", "seed"]
    _refuse("scores", runs.scores, runs.scores[keys].duplicated(), "a seed appears twice", keys)
    steps = [*keys, "env_steps"]
    _refuse("curves", runs.curves, runs.curves[steps].duplicated(), "a point appears twice", steps)
    for metric in METRICS:
        infinite = runs.scores[metric].abs() == float("inf")
        _refuse("scores", runs.scores, infinite, f"{metric} must be finite, or NaN when there is none", keys)
    for table, frame in (("scores", runs.scores), ("curves", runs.curves)):
        _check_identity(table, frame, runs.experiments)
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


def _check_identity(table: str, frame: pd.DataFrame, experiments: pd.DataFrame) -> None:
    """Every row belongs to an experiment, and repeats that experiment's environment, budget and optimizer."""
    _refuse(
        table,
        frame,
        ~frame["experiment"].isin(experiments["experiment"]),
        "these belong to no experiment",
        ["experiment"],
    )
    identity = experiments.set_index("experiment")
    for name in ("environment", "budget", "optimizer"):
        differs = frame["experiment"].map(identity[name]) != frame[name]
        _refuse(table, frame, differs, f"{name} is not that of the experiment", ["experiment", name])


def _refuse(table: str, frame: pd.DataFrame, bad: pd.Series, problem: str, show: list[str]) -> None:
    if bad.any():
        rows = frame.loc[bad, show].head(3).to_dict("records")
        listed = "; ".join(", ".join(f"{name} {value}" for name, value in row.items()) for row in rows)
        raise ValueError(f"{table}: {problem} ({int(bad.sum())} rows, such as {listed})")
