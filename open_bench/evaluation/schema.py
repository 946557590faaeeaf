"""Columns of stored rows, said once: what the store writes and reads, and what scores, tables and figures are made of.

Each table is a mapping of names to ``Column``. A scores table has one further number a metric: an experiment lists its
metrics as ``{column: label}``, and whatever it lists is stored, checked, ranked and labeled without an edit here.
``final_return`` and ``mean_return`` are always there. Further columns are welcome and ignored.

Rows of one experiment that break any of this are a ``BadRows``, so that a reader can name the experiment and skip it.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from pandas.api import types

METRICS = {"final_return": "final return", "mean_return": "return over the lifetime"}  # labels by column
ORIGINS = ("given", "published", "tuned", "one setting", "default", "none")
LEARNED, MIXED = "learned", "mixed"  # tracks that are no origin
RANDOM = "random"  # algorithm of the random policy, whose lifetimes are stored and never ranked
LARGEST = 1e12  # of a return: anything beyond is a fault, not a score


class BadRows(ValueError):
    """Rows that break the schema; the message names the table, the column and the first of them."""


class Column(NamedTuple):
    """What a column holds: text (strings), number (floats or integers, NaN allowed), integer or flag (booleans)."""

    kind: str
    low: float = -math.inf
    high: float = math.inf
    required: bool = True


_TEXT, _FLAG = Column("text"), Column("flag")
_COUNT = Column("integer", 1, 2**62)
_INDEX = Column("integer", 0, 2**31 - 1)
_AMOUNT = Column("number", 0, LARGEST)
_RETURN = Column("number", -LARGEST, LARGEST)
_AMOUNT_OF_WORK = Column("integer", 0, 2**62, required=False)

LABELS = ("experiment", "environment", "algorithm", "budget", "optimizer")  # repeated in each row of an experiment
SETTINGS = ("settings", "environment_version")  # must agree within an environment of a board, where they are there
EXPERIMENTS = {
    "experiment": _TEXT,  # directory name, unique
    "environment": _TEXT,
    "family": _TEXT,  # "gymnax", "brax", "gridworld", …
    "algorithm": _TEXT,  # "ppo", "pqn", or "random"
    "budget": _TEXT,  # "quick", "full", "steps-500000", …
    "env_steps": _COUNT,  # of a lifetime
    "optimizer": _TEXT,  # label: "adam", "adam:learning_rate=0.001", "lion+dpo"
    "hyperparameters": _TEXT,  # JSON
    "hyperparameter_origin": _TEXT,  # one of ORIGINS
    "theta": _TEXT,  # short content hash, "" without meta-parameters
    "root_seed": _INDEX,
    "vmap_size": _COUNT,  # lifetimes vmapped on one device
    "protocol": _COUNT,  # protocol version
    "settings": _TEXT._replace(required=False),  # JSON of algorithm settings and environment options
    "environment_version": _COUNT._replace(required=False),
    "tuning_trials": _AMOUNT_OF_WORK,  # K: trials that the setting was chosen from; 0: none
    "tuning_env_steps": _AMOUNT_OF_WORK,  # that tuning of this setting took
    "meta_env_steps": _AMOUNT_OF_WORK,  # that meta-training of θ took; 0: unknown, or no θ
    "trained_on": _TEXT._replace(required=False),  # training distribution of θ
    "metrics": _TEXT._replace(required=False),  # JSON: label by column
    "steps_per_second": _AMOUNT,  # env steps over all seeds / run_seconds
    "run_seconds": _AMOUNT,  # wall clock without compilation
    "compile_seconds": _AMOUNT,
    "hardware": _TEXT,
    "revision": _TEXT,  # git revision
}
SCORES = {**dict.fromkeys(LABELS, _TEXT), "seed": _INDEX, "diverged": _FLAG, "env_steps": _COUNT}  # and the metrics
_POINTS = {**dict.fromkeys(LABELS, _TEXT), "seed": _INDEX, "env_steps": _COUNT}
CURVES = {**_POINTS, "episode_return": _RETURN}
DIAGNOSIS = _POINTS  # and a column a diagnostic, whose values know no limits
TRIAL_LABELS = ("environment", "algorithm", "budget", "optimizer")  # repeated in each row of a table of trials
# Trials of tuning, a row each and a seed; beside these the metrics. Trial 0 is the published or default setting, others
# mean the same setting in all environments.
TRIALS = {"trial": _INDEX, "seed": _INDEX, "settings": _TEXT, "env_steps": _COUNT, "diverged": _FLAG}
TRIAL_CURVES = {"trial": _INDEX, "seed": _INDEX, "env_steps": _COUNT, "episode_return": _RETURN}

# What an experiment that lacks an optional column has there.
ABSENT = {"tuning_trials": 0, "tuning_env_steps": 0, "meta_env_steps": 0, "trained_on": ""}

_DTYPES = {"text": "object", "number": "float64", "integer": "int64", "flag": "bool"}
_KINDS = {"number": "iuf", "integer": "iu", "flag": "b", "text": ""}  # of numpy's dtypes
# Of experiments' columns. Tuples, which are checked in a third of the time that unions take.
_SCALARS: dict[str, tuple[type, ...]] = {
    "text": (str,), "integer": (int, np.integer), "number": (int, float, np.number),
}  # fmt: skip
_FLAG_TYPES = (bool, np.bool_)
_SCALAR = (bool, int, float, str, np.generic)
_FLAGS = {"True": True, "False": False}
_READ: dict[str, Callable[[str], Any]] = {"number": float, "integer": int, "flag": _FLAGS.__getitem__}  # of cells


Table: TypeAlias = pd.DataFrame | Mapping[str, np.ndarray]  # columns by name


@dataclasses.dataclass(frozen=True)
class Runs:
    """Stored experiments with their scores and learning curves; the order of rows carries no meaning.

    Attributes:
        experiments: one row an experiment (``EXPERIMENTS``).
        scores: one row an experiment and seed (``SCORES`` and a column a metric; NaN where an experiment lacks it, when
            diverged, and when no episode finished).
        curves: one row an experiment, seed and recorded update (``CURVES``; ``episode_return`` is NaN until an episode
            has finished, and after divergence).
        diagnosis: one row an experiment, seed and measured update (``DIAGNOSIS`` and a column a diagnostic, NaN where
            an experiment lacks it); of those lifetimes that were trained with diagnosis.
    """

    experiments: pd.DataFrame
    scores: pd.DataFrame
    curves: pd.DataFrame
    diagnosis: pd.DataFrame = dataclasses.field(default_factory=lambda: _empty(DIAGNOSIS))

    @classmethod
    def empty(cls) -> "Runs":
        """No rows, but every column with its dtype."""
        return cls(_empty(EXPERIMENTS), _empty(score_columns()), _empty(CURVES))

    @classmethod
    def join(cls, parts: Iterable[tuple[Mapping[str, Any], *tuple[Table | None, ...]]]) -> "Runs":
        """Experiments that have passed ``check_experiment``, in order: rows, scores, curves and perhaps diagnosis."""
        parts = list(parts)
        if not parts:
            return cls.empty()
        experiments = with_absent(pd.DataFrame([dict(row) for row, *_ in parts]))
        labels = [{name: row[name] for name in LABELS} for row, *_ in parts]
        tables = (
            [(frame, own) for frame, own in zip(frames, labels, strict=True) if frame is not None]
            for frames in zip(*(frames for _, *frames in parts), strict=True)
        )
        return cls(experiments, *(_labeled(table) for table in tables if table))

    @property
    def budgets(self) -> tuple[str, ...]:
        """Names of the budgets that the experiments have, sorted."""
        return tuple(sorted(set(self.experiments["budget"])))

    @property
    def metrics(self) -> dict[str, str]:
        """Labels of all metrics by column, those that are always there first."""
        found = dict(METRICS)
        for text in self.experiments["metrics"].unique() if "metrics" in self.experiments else ():
            found |= {name: label for name, label in read_metrics(text).items() if name not in found}
        return found

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
        others = (self.scores, self.curves, self.diagnosis)
        return Runs(experiments, *(each[each["experiment"].isin(experiments["experiment"])] for each in others))


def _labeled(parts: Sequence[tuple[Table, Mapping[str, Any]]]) -> pd.DataFrame:
    """Tables of several experiments, one under the other, with each one's labels behind its rows."""
    lengths = [len(table["seed"]) for table, _ in parts]
    labels = {name: np.repeat(np.array([own[name] for _, own in parts], object), lengths) for name in LABELS}
    return pd.DataFrame({**stacked([table for table, _ in parts]), **labels})


def stacked(tables: Sequence[Table]) -> dict[str, np.ndarray]:
    """The columns of tables with seeds, one under the other; NaN where one has no such column."""
    if len(tables) == 1:
        return {name: np.asarray(tables[0][name]) for name in tables[0]}
    names = dict.fromkeys(name for table in tables for name in table)
    columns = {name: [table.get(name) for table in tables] for name in names}
    lengths = [len(table["seed"]) for table in tables]
    return {
        name: np.concatenate(
            [np.full(n, np.nan) if part is None else np.asarray(part) for part, n in zip(parts, lengths, strict=True)]
        )
        for name, parts in columns.items()
    }


# --- columns -----------------------------------------------------------------------------------------------------


def score_columns(metrics: Iterable[str] = METRICS) -> dict[str, Column]:
    """The columns of a scores table whose experiments have these metrics."""
    return {**SCORES, **dict.fromkeys(metrics, _RETURN)}


def diagnosis_columns(names: Iterable[str]) -> dict[str, Column]:
    """The columns of one experiment's diagnosis that has these, seed and env steps among them."""
    points = without_labels(DIAGNOSIS)
    return points | {name: Column("number") for name in names if name not in points}


def without_labels(columns: Mapping[str, Column]) -> dict[str, Column]:
    """What one experiment's own file holds: every column but those that repeat the experiment's."""
    return {name: column for name, column in columns.items() if name not in LABELS}


def dtypes(columns: Mapping[str, Column]) -> dict[str, str]:
    """The pandas dtype of each column, in order."""
    return {name: _DTYPES[column.kind] for name, column in columns.items()}


def read_metrics(text: str) -> dict[str, str]:
    """Labels by column from an experiment's ``metrics``; raises BadRows."""
    try:
        metrics = json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise BadRows(f"experiments: metrics are not JSON ({type(error).__name__})") from None
    if not isinstance(metrics, dict) or not METRICS.keys() <= metrics.keys():
        raise BadRows(f"experiments: metrics must be a table of labels with {' and '.join(METRICS)}")
    for name, label in metrics.items():
        if not name.isidentifier() or name in SCORES or not isinstance(label, str):
            raise BadRows(f"experiments: {name!r} is no metric: it needs a name of its own and a label")
    return metrics


# --- one experiment ----------------------------------------------------------------------------------------------


def write_csv(frame: pd.DataFrame, columns: Mapping[str, Column], path: str | Path) -> None:
    """Write these columns in their order; numbers survive exactly."""
    frame.to_csv(path, index=False, columns=list(columns), lineterminator="\n")


def read_csv(name: str, data: bytes, columns: Mapping[str, Column]) -> dict[str, np.ndarray]:
    """What ``write_csv`` wrote of numbers and flags, by column; ``name`` is what BadRows calls the file.

    Without pandas: a folder has thousands of such files, of a few rows each, and a frame takes longer to make than to
    read and check. Raises BadRows for other columns or values.
    """
    try:
        head, *lines = data.decode().removesuffix("\n").split("\n")
        if head != ",".join(columns):
            raise BadRows(f"{name}: its columns are {head}")
        cells = zip(*(line.split(",") for line in lines), strict=True) if lines else ((),) * len(columns)
        return {key: _parsed(columns[key].kind, each) for key, each in zip(columns, cells, strict=True)}
    except BadRows:
        raise
    except (ValueError, OverflowError, KeyError) as error:  # wrong bytes and lines are ValueErrors too
        raise BadRows(f"{name}: {error}") from None


def _parsed(kind: str, cells: Sequence[str]) -> np.ndarray:
    if kind == "number" and "" in cells:
        return np.array([float(cell) if cell else math.nan for cell in cells], float)
    return np.array(list(map(_READ[kind], cells)), _DTYPES[kind])


def read_trials(path: Path, columns: Mapping[str, Column], keys: list[str]) -> pd.DataFrame:
    """``TRIALS`` or ``TRIAL_CURVES`` with further columns, which are metrics; no rows where there is no file.

    Raises BadRows for other values, or one key twice.
    """
    if not path.is_file():
        return _empty(columns)
    try:
        frame = pd.read_csv(path, float_precision="round_trip", dtype=dtypes(columns))
    except (ValueError, OverflowError, KeyError, TypeError, OSError) as error:
        raise BadRows(f"{path}: {error}") from None
    expected = {**columns, **{name: _RETURN for name in frame.columns if name not in columns}}
    _check(str(path), frame, expected, keys, "a lifetime appears twice")
    return frame


def read_diagnosis(name: str, data: bytes) -> dict[str, np.ndarray]:
    """One experiment's diagnosis: seed, env_steps, and whatever diagnostics the file has. Raises as ``read_csv``."""
    names = data.partition(b"\n")[0].decode(errors="replace").split(",")
    columns = diagnosis_columns(names)
    if list(columns) != names or not all(each.isidentifier() and each not in LABELS for each in names):
        raise BadRows(f"{name}: its columns are {', '.join(names)}")
    return read_csv(name, data, columns)


def check_scores(table: Table, metrics: Iterable[str] = METRICS) -> None:
    """Raise BadRows unless these are one experiment's scores."""
    _check("scores", table, without_labels(score_columns(metrics)), ["seed"], "a seed appears twice")


def check_curves(table: Table, scores: Table) -> None:
    """Raise BadRows unless these are the curves of lifetimes with these scores."""
    _check("curves", table, without_labels(CURVES), ["seed", "env_steps"], "a point appears twice")
    _check_seeds("curves", table, scores)


def check_diagnosis(table: Table, scores: Table) -> None:
    """Raise BadRows unless this is the diagnosis of lifetimes with these scores."""
    _check("diagnosis", table, without_labels(DIAGNOSIS), ["seed", "env_steps"], "a point appears twice")
    _check_seeds("diagnosis", table, scores)


def _check_seeds(name: str, table: Table, scores: Table) -> None:
    mine, known = (np.asarray(each["seed"]) for each in (table, scores))
    if not {*mine.tolist()} <= {*known.tolist()}:  # of few rows this is told in a tenth of what isin takes
        _refuse(name, table, ~np.isin(mine, known), "these seeds have no scores", ["seed"])


def experiment_row(**values: Any) -> dict[str, Any]:
    """A row of the experiments table, in the order of its columns; raises BadRows unless it is complete and right."""
    unknown = sorted(values.keys() - EXPERIMENTS.keys())
    if unknown:
        raise BadRows(f"experiments: there is no column {unknown[0]!r}")
    row = {name: values[name] for name in EXPERIMENTS if name in values}
    missing = [name for name, column in EXPERIMENTS.items() if column.required and name not in row]
    if missing:
        raise BadRows(f"experiments: columns are missing: {', '.join(missing)}")
    check_values(row)
    if row["hyperparameter_origin"] not in ORIGINS:
        raise BadRows(f"experiments: hyperparameter_origin must be one of {', '.join(ORIGINS)}")
    if "metrics" in row:
        read_metrics(row["metrics"])
    return row


def check_values(values: Mapping[str, Any]) -> None:
    """Raise BadRows unless these columns of the experiments table hold what they may."""
    for name, value in values.items():
        kind, low, high, _ = EXPERIMENTS[name]
        if kind == "text" and isinstance(value, str):
            continue
        if not isinstance(value, _SCALAR):
            raise BadRows(f"experiments: {name} = {value!r} is no single value")
        if not isinstance(value, _SCALARS[kind]) or isinstance(value, _FLAG_TYPES):
            raise BadRows(f"experiments: column {name!r} must hold {kind} values, and has {value!r}")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise BadRows(f"experiments: {name} is out of range")
        number: Any = value
        if number < low or number > high:
            raise BadRows(f"experiments: {name} must be finite, from {low:g} to {high:g}, and is {value}")


def check_experiment(row: Mapping[str, Any], scores: Table, curves: Table) -> None:
    """Raise BadRows unless an experiment's row, scores and curves (of all its shards) are fit to be ranked."""
    experiment_row(**row)
    check_scores(scores, read_metrics(row["metrics"]) if "metrics" in row else METRICS)
    check_curves(curves, scores)


def check_trials(frame: pd.DataFrame) -> pd.DataFrame:
    """Return labeled tables of trials, or raise BadRows; further columns are welcome."""
    columns = {**dict.fromkeys(TRIAL_LABELS, _TEXT), **TRIALS, **dict.fromkeys(METRICS, _RETURN)}
    _check("trials", frame, columns, [*TRIAL_LABELS, "trial", "seed"], "a trial's seed appears twice")
    return frame


def with_absent(experiments: pd.DataFrame) -> pd.DataFrame:
    """The experiments with every column of ``ABSENT``."""
    columns = {name: experiments.get(name, pd.Series(index=experiments.index, dtype=object)) for name in ABSENT}
    filled = {name: column.where(column.notna(), ABSENT[name]) for name, column in columns.items()}
    return experiments.assign(**filled).astype({name: type(nothing) for name, nothing in ABSENT.items()})


def tracks(experiments: pd.DataFrame) -> pd.Series:
    """What each experiment's optimizer was given: a θ, or hyperparameters of one of ``ORIGINS``."""
    return experiments["hyperparameter_origin"].where(experiments["theta"] == "", LEARNED)


# --- whole tables ------------------------------------------------------------------------------------------------


def validate(runs: Runs) -> Runs:
    """Return ``runs``, or raise BadRows that names the table, the column and the first offending rows."""
    _check_experiments(runs.experiments)
    keys = ["experiment", "seed"]
    metrics = [name for name in runs.metrics if name in METRICS or name in runs.scores]
    _check("scores", runs.scores, score_columns(metrics), keys, "a seed appears twice")
    _check("curves", runs.curves, CURVES, [*keys, "env_steps"], "a point appears twice")
    for table, frame in (("scores", runs.scores), ("curves", runs.curves)):
        _check_labels(table, frame, runs.experiments)
    return runs


def _check_experiments(frame: pd.DataFrame) -> None:
    _check("experiments", frame, EXPERIMENTS, ["experiment"], "experiment names must be unique")
    origin = ~frame["hyperparameter_origin"].isin(ORIGINS)
    problem = f"hyperparameter_origin must be one of {', '.join(ORIGINS)}"
    _refuse("experiments", frame, origin, problem, ["experiment"])
    for text in frame["metrics"].unique() if "metrics" in frame else ():
        read_metrics(text)


def _check(name: str, table: Table, columns: Mapping[str, Column], keys: list[str], problem: str) -> None:
    """Columns are there, hold their kind within their limits, and no two rows share ``keys``."""
    missing = [key for key, column in columns.items() if column.required and key not in table]
    if missing:
        raise BadRows(f"{name}: columns are missing: {', '.join(missing)}")
    arrays = {key: np.asarray(table[key]) for key in columns if key in table}
    if not len(arrays[keys[0]]):
        return
    for key, values in arrays.items():
        kind, low, high, _ = columns[key]
        text = kind == "text" and types.infer_dtype(values, skipna=False) == "string"
        if not text and values.dtype.kind not in _KINDS[kind]:
            raise BadRows(f"{name}: column {key!r} must hold {kind} values; it has dtype {values.dtype}")
        if kind in ("number", "integer"):
            outside = (values < low) | (values > high)
            if outside.any():
                _refuse(name, arrays, outside, f"{key} must be finite, from {low:g} to {high:g}", [*keys, key])
    if not _differ([arrays[key] for key in keys]):
        _refuse(name, arrays, pd.DataFrame({key: arrays[key] for key in keys}).duplicated(), problem, keys)


def _differ(keys: list[np.ndarray]) -> bool:
    """Whether no two rows are the same, where that is seen at once: in integers."""
    if any(key.dtype.kind != "i" for key in keys):
        return False
    return len({*zip(*(key.tolist() for key in keys), strict=True)}) == len(keys[0])


def _check_labels(table: str, frame: pd.DataFrame, experiments: pd.DataFrame) -> None:
    """Every row belongs to an experiment, and repeats that experiment's labels."""
    orphans = ~frame["experiment"].isin(experiments["experiment"])
    _refuse(table, frame, orphans, "these belong to no experiment", ["experiment"])
    identity = experiments.set_index("experiment")
    for name in LABELS[1:]:
        differs = frame["experiment"].map(identity[name]) != frame[name]
        _refuse(table, frame, differs, f"{name} is not that of the experiment", ["experiment", name])


def _refuse(name: str, table: Table, bad: pd.Series | np.ndarray, problem: str, show: list[str]) -> None:
    wrong = np.flatnonzero(bad)
    if len(wrong):
        columns = [(key, np.asarray(table[key])[wrong[:3]].tolist()) for key in dict.fromkeys(show)]
        rows = zip(*([f"{key} {value}" for value in values] for key, values in columns), strict=True)
        listed = "; ".join(map(", ".join, rows))
        raise BadRows(f"{name}: {problem} ({len(wrong)} rows, such as {listed})")


def _empty(columns: Mapping[str, Column]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in dtypes(columns).items()})
