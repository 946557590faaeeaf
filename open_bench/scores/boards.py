"""What may stand in one leaderboard: comparable rows, split, filled in and normalised.

**Separate.** A board holds one budget, one protocol version and one study seed; nothing is ever aggregated across
boards. Study seeds are separate because repetitions are paired between optimizers by their index, which only means
something under one study seed.

**Together.** Group widths and hardware change rounding, not the distribution, and accelerators choose widths by
memory, which differs between optimizers; so they may mix, and a note says so. Only when one optimizer ran in one
environment at several widths is there a board for each width.

**Told apart.** Two θ of one optimizer in one environment are two rows, ``open (1a2b3c4d)``, and so are
hyperparameters of two origins, ``lion (default)`` and ``lion (tuned)``.

**Refused.** Any other two cells of one optimizer in one environment of a board, and an environment with two lengths
or settings under one budget: UserError names them.

**Missing returns.** A diverged repetition gets the random policy's return, which normalises to 0. So does one in
which no episode finished within the budget, since it has shown nothing better; where no repetition of any optimizer
finished an episode, the environment has no result and is left out of every aggregate. Where the random policy's
return is not known, the lowest return that any repetition reached in that environment stands in. All of it is
counted, and noted.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd

from open_bench.errors import UserError, near_matches
from open_bench.scores.aggregate import ScoreMatrix
from open_bench.scores.normalize import Scale, normalise, scale_of
from open_bench.scores.references import References, returns_of
from open_bench.scores.rows import METRICS, SETTINGS_COLUMNS, Runs, validate

BOARD_COLUMNS = ("budget", "protocol", "study_seed")
_MEASURED = ("cell", "steps_per_second", "run_seconds", "compile_seconds", "hardware", "revision")  # no one's choice


@dataclasses.dataclass(frozen=True)
class BoardScores:
    """The comparable scores of one leaderboard.

    Attributes:
        budget, protocol, study_seed: what all rows share.
        metric: ``final_return`` or ``mean_return``.
        width: the width of the board's groups where boards are apart by width, else None.
        rows: one a repetition, sorted: optimizer, environment, repetition, value (the return, filled in; NaN where
            nothing can stand in), score (normalised, NaN where only raw returns exist), diverged, unfinished.
        cells: the board's cells; ``optimizer`` as in ``rows``, and sorted like them.
        environments: all, sorted.
        observed: those in which some repetition has a value: what ranks and win rates are over.
        normalised: those with a scale too: what normalised scores are aggregated over.
        stand_in: return given to a repetition without one, by environment; NaN where none is known.
        scales: by environment, for ``normalised``.
        notes: what a reader of the board has to know.
    """

    budget: str
    protocol: int
    study_seed: int
    metric: str
    width: int | None
    rows: pd.DataFrame
    cells: pd.DataFrame
    environments: tuple[str, ...]
    observed: tuple[str, ...]
    normalised: tuple[str, ...]
    stand_in: Mapping[str, float]
    scales: Mapping[str, Scale]
    notes: tuple[str, ...]

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Names of the optimizers, sorted."""
        return tuple(sorted(set(self.rows["optimizer"])))

    def lacking(self, optimizer: str, environments: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``environments`` in which the optimizer has not run."""
        ran = set(self.rows.loc[self.rows["optimizer"] == optimizer, "environment"])
        return tuple(name for name in environments if name not in ran)

    def matrix(self, optimizer: str, environments: tuple[str, ...], column: str = "score") -> ScoreMatrix | None:
        """Scores (or raw returns: ``column="value"``) of the repetitions that all of ``environments`` have.

        None when there are none, or the optimizer lacks one of the environments.
        """
        mine = self.rows[(self.rows["optimizer"] == optimizer) & self.rows["environment"].isin(environments)]
        table = mine.pivot(index="repetition", columns="environment", values=column)
        table = table.reindex(columns=list(environments)).dropna()
        if table.empty:
            return None
        return ScoreMatrix(table.to_numpy(float), tuple(int(r) for r in table.index), tuple(environments))


def boards(
    runs: Runs, references: References, budget: str | None = None, metric: str = "final_return"
) -> tuple[BoardScores, ...]:
    """Split ``runs`` into boards, sorted by budget, protocol, study seed and width.

    Args:
        references: reference returns by environment (``load_references``).
        budget: only this one; default: all, each apart.
        metric: ``final_return`` or ``mean_return``.

    Raises:
        UserError: there is nothing to rank, the budget or metric is unknown, or cells do not compare.
        ValueError: the tables break the contract of ``Runs``.
    """
    if metric not in METRICS:
        raise UserError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
    validate(runs)
    if runs.scores.empty:
        raise UserError("there are no runs to rank")
    if budget is not None and budget not in runs.budgets:
        hint = near_matches(budget, list(runs.budgets))
        raise UserError(f"no runs at budget {budget!r}; there are {', '.join(runs.budgets)}.{hint}")
    cells = runs.cells[runs.cells["cell"].isin(runs.scores["cell"])]
    if budget is not None:
        cells = cells[cells["budget"] == budget]
    groups = cells.groupby(list(BOARD_COLUMNS), sort=True)
    return tuple(
        _board(key, width, part, runs.scores, references, metric)
        for key, group in groups
        for width, part in _by_width(group)
    )


def _by_width(cells: pd.DataFrame) -> list[tuple[int | None, pd.DataFrame]]:
    """The cells in one part, or apart by width when some of them differ in nothing else."""
    same = ["optimizer", "environment", "theta", "hyperparameter_origin"]
    if cells.groupby(same)["width"].nunique().max() == 1:
        return [(None, cells)]
    return [(int(width), part) for width, part in cells.groupby("width", sort=True)]


def _board(
    key: tuple[str, int, int],
    width: int | None,
    cells: pd.DataFrame,
    scores: pd.DataFrame,
    references: References,
    metric: str,
) -> BoardScores:
    budget, protocol, study_seed = key
    cells = _label(cells).sort_values(["optimizer", "environment"], ignore_index=True)
    _check_comparable(cells, budget)
    rows, stand_in, scales, notes = [], {}, {}, []
    environments = tuple(sorted(set(cells["environment"])))
    for environment in environments:
        mine = _rows_of(environment, cells, scores, metric)
        known = returns_of(references, environment)
        scale, reason = scale_of(known, budget, metric)
        random = known.random.of(metric) if known is not None and known.random is not None else None
        stand_in[environment] = random.mean if random is not None else float(mine["value"].min())
        notes += _notes_of(f"{environment} at {budget}", mine, stand_in[environment], random is not None, scale, reason)
        if not _nothing_finished(mine):
            mine["value"] = mine["value"].fillna(stand_in[environment])
        if scale is not None:
            scales[environment] = scale
        mine["score"] = normalise(mine["value"], scale) if scale is not None else np.nan
        rows.append(mine)
    joined = pd.concat(rows).sort_values(["optimizer", "environment", "repetition"], ignore_index=True)
    have = joined.dropna(subset=["value"])["environment"].unique()
    observed = tuple(name for name in environments if name in have)
    normalised = tuple(name for name in observed if name in scales)
    return BoardScores(
        budget=str(budget),
        protocol=int(protocol),
        study_seed=int(study_seed),
        metric=metric,
        width=width,
        rows=joined,
        cells=cells,
        environments=environments,
        observed=observed,
        normalised=normalised,
        stand_in=stand_in,
        scales=scales,
        notes=(*notes, *_mixture_notes(cells)),
    )


def _label(cells: pd.DataFrame) -> pd.DataFrame:
    """Tell apart an optimizer's θ, and its hyperparameters' origins, where it has several in one environment.

    Those that differ only between environments stay one row: weights and tuned values may belong to an environment.
    """
    for column, nothing in (("theta", "no θ"), ("hyperparameter_origin", "")):
        counts = cells.groupby(["optimizer", "environment"])[column].nunique()
        several = cells["optimizer"].isin(set(counts[counts > 1].index.get_level_values("optimizer")))
        named = cells["optimizer"] + " (" + cells[column].where(cells[column] != "", nothing) + ")"
        cells = cells.assign(optimizer=named.where(several, cells["optimizer"]))
    return cells


def _check_comparable(cells: pd.DataFrame, budget: str) -> None:
    for (optimizer, environment), group in cells.groupby(["optimizer", "environment"]):
        if len(group) > 1:
            names = sorted(group["cell"])
            differing = [name for name in group.columns.difference(_MEASURED) if group[name].nunique() > 1]
            raise UserError(
                f"{optimizer} has {len(group)} cells in {environment} at {budget} ({', '.join(names)}), which differ "
                f"in {', '.join(differing) or 'nothing that is recorded'}: move one away, or choose with runs.select(…)"
            )
    columns = ["env_steps", *(name for name in SETTINGS_COLUMNS if name in cells)]
    for environment, group in cells.groupby("environment"):
        for name in columns:
            values = sorted(set(map(str, group[name])))
            if len(values) > 1:
                raise UserError(
                    f"{environment} at {budget} has cells with different {name} ({' and '.join(values)}), which do "
                    f"not compare: move some away, or choose with runs.select({name}=…)"
                )


def _rows_of(environment: str, cells: pd.DataFrame, scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    labels = cells[cells["environment"] == environment].set_index("cell")["optimizer"]
    mine = scores[scores["cell"].isin(labels.index)]
    diverged = mine["diverged"].astype(bool)
    value = mine[metric].astype(float).mask(diverged)  # what a diverged run reached before does not count
    return pd.DataFrame(
        {
            "optimizer": mine["cell"].map(labels),
            "environment": environment,
            "repetition": mine["repetition"].astype(int),
            "value": value,
            "diverged": diverged,
            "unfinished": value.isna() & ~diverged,
        }
    )


def _nothing_finished(rows: pd.DataFrame) -> bool:
    return bool(rows["unfinished"].all())


def _notes_of(
    where: str, rows: pd.DataFrame, stand_in: float, random_known: bool, scale: Scale | None, reason: str
) -> list[str]:
    """Notes on one environment, in a fixed order."""
    if _nothing_finished(rows):
        return [f"{where}: no episode finished within the budget; left out of every aggregate"]
    notes = []
    if scale is None:
        notes.append(f"{where}: {reason}; raw returns only")
    for column, what in (("diverged", "diverged"), ("unfinished", "finished no episode")):
        counts = rows[rows[column]].groupby("optimizer").size()
        if len(counts):
            who = ", ".join(f"{count} of {optimizer}" for optimizer, count in counts.items())
            notes.append(f"{where}: {who} {what}, counted with {_describe(stand_in, random_known)}")
    return notes


def _describe(stand_in: float, random_known: bool) -> str:
    if random_known:
        return f"the random policy's return, {stand_in:.4g}"
    if np.isnan(stand_in):
        return "no return: the random policy's is not known, and no repetition has one"
    return f"the lowest return of any repetition, {stand_in:.4g}, as the random policy's is not known"


def _mixture_notes(cells: pd.DataFrame) -> list[str]:
    notes = []
    widths = sorted(set(cells["width"]))
    if len(widths) > 1:
        listed = ", ".join(map(str, widths))
        notes.append(f"cells ran in groups of different widths ({listed}): equal in distribution, not bit for bit")
    machines = sorted(set(cells["hardware"]))
    if len(machines) > 1:
        notes.append(f"cells ran on different hardware ({', '.join(machines)}): their times do not compare")
    return notes
