"""What may stand in one leaderboard: comparable rows, split, filled in and normalized.

**Separate.** A board holds one budget, one protocol version and one root seed; nothing is ever aggregated across
boards. root seeds are separate because seeds are paired between optimizers by their index, which only means
something under one root seed.

**Together.** Group vmap_sizes and hardware change rounding, not the distribution, and accelerators choose vmap_sizes by
memory, which differs between optimizers; so they may mix, and a note says so. Only when one optimizer ran in one
environment at several vmap_sizes is there a board for each vmap_size.

**Told apart.** Two θ of one optimizer in one environment are two rows, ``open (1a2b3c4d)``, and so are
hyperparameters of two origins, ``lion (default)`` and ``lion (tuned)``.

**Refused.** Any other two experiments of one optimizer in one environment of a board, and an environment with two lengths
or settings under one budget: UserError names them.

**Missing returns.** A diverged seed gets the random policy's return, which normalizes to 0. So does one in
which no episode finished within the budget, since it has shown nothing better; where no seed of any optimizer
finished an episode, the environment has no result and is left out of every aggregate. Where the random policy's
return is not known, the lowest return that any seed reached in that environment stands in. All of it is
counted, and noted.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd

from open_bench.errors import UserError, near_matches
from open_bench.evaluation.baseline_returns import References, returns_of
from open_bench.evaluation.bootstrap import ScoreMatrix
from open_bench.evaluation.metrics import Scale, normalize, scale_of
from open_bench.evaluation.schema import METRICS, SETTINGS_COLUMNS, Runs, validate

BOARD_COLUMNS = ("budget", "protocol", "root_seed")
_MEASURED = (
    "experiment",
    "steps_per_second",
    "run_seconds",
    "compile_seconds",
    "hardware",
    "revision",
)  # no one's choice


@dataclasses.dataclass(frozen=True)
class BoardScores:
    """The comparable scores of one leaderboard.

    Attributes:
        budget, protocol, root_seed: what all rows share.
        metric: ``final_return`` or ``mean_return``.
        vmap_size: the vmap_size of the board's groups where boards are apart by vmap_size, else None.
        rows: one a seed, sorted: optimizer, environment, seed, value (the return, filled in; NaN where
            nothing can stand in), score (normalized, NaN where only raw returns exist), diverged, unfinished.
        experiments: the board's experiments; ``optimizer`` as in ``rows``, and sorted like them.
        environments: all, sorted.
        observed: those in which some seed has a value: what ranks and win rates are over.
        normalized: those with a scale too: what normalized scores are aggregated over.
        stand_in: return given to a seed without one, by environment; NaN where none is known.
        scales: by environment, for ``normalized``.
        notes: what a reader of the board has to know.
    """

    budget: str
    protocol: int
    root_seed: int
    metric: str
    vmap_size: int | None
    rows: pd.DataFrame
    experiments: pd.DataFrame
    environments: tuple[str, ...]
    observed: tuple[str, ...]
    normalized: tuple[str, ...]
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
        """Scores (or raw returns: ``column="value"``) of the seeds that all of ``environments`` have.

        None when there are none, or the optimizer lacks one of the environments.
        """
        mine = self.rows[(self.rows["optimizer"] == optimizer) & self.rows["environment"].isin(environments)]
        table = mine.pivot(index="seed", columns="environment", values=column)
        table = table.reindex(columns=list(environments)).dropna()
        if table.empty:
            return None
        return ScoreMatrix(table.to_numpy(float), tuple(int(r) for r in table.index), tuple(environments))


def boards(
    runs: Runs, references: References, budget: str | None = None, metric: str = "final_return"
) -> tuple[BoardScores, ...]:
    """Split ``runs`` into boards, sorted by budget, protocol, root seed and vmap_size.

    Args:
        references: reference returns by environment (``load_references``).
        budget: only this one; default: all, each apart.
        metric: ``final_return`` or ``mean_return``.

    Raises:
        UserError: there is nothing to rank, the budget or metric is unknown, or experiments do not compare.
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
    experiments = runs.experiments[runs.experiments["experiment"].isin(runs.scores["experiment"])]
    if budget is not None:
        experiments = experiments[experiments["budget"] == budget]
    groups = experiments.groupby(list(BOARD_COLUMNS), sort=True)
    return tuple(
        _board(key, vmap_size, part, runs.scores, references, metric)
        for key, group in groups
        for vmap_size, part in _by_vmap_size(group)
    )


def _by_vmap_size(experiments: pd.DataFrame) -> list[tuple[int | None, pd.DataFrame]]:
    """The experiments in one part, or apart by vmap_size when some of them differ in nothing else."""
    same = ["optimizer", "environment", "theta", "hyperparameter_origin"]
    if experiments.groupby(same)["vmap_size"].nunique().max() == 1:
        return [(None, experiments)]
    return [(int(vmap_size), part) for vmap_size, part in experiments.groupby("vmap_size", sort=True)]


def _board(
    key: tuple[str, int, int],
    vmap_size: int | None,
    experiments: pd.DataFrame,
    scores: pd.DataFrame,
    references: References,
    metric: str,
) -> BoardScores:
    budget, protocol, root_seed = key
    experiments = _label(experiments).sort_values(["optimizer", "environment"], ignore_index=True)
    _check_comparable(experiments, budget)
    rows, stand_in, scales, notes = [], {}, {}, []
    environments = tuple(sorted(set(experiments["environment"])))
    for environment in environments:
        mine = _rows_of(environment, experiments, scores, metric)
        known = returns_of(references, environment)
        scale, reason = scale_of(known, budget, metric)
        random = known.random.of(metric) if known is not None and known.random is not None else None
        stand_in[environment] = random.mean if random is not None else float(mine["value"].min())
        notes += _notes_of(f"{environment} at {budget}", mine, stand_in[environment], random is not None, scale, reason)
        if not _nothing_finished(mine):
            mine["value"] = mine["value"].fillna(stand_in[environment])
        if scale is not None:
            scales[environment] = scale
        mine["score"] = normalize(mine["value"], scale) if scale is not None else np.nan
        rows.append(mine)
    joined = pd.concat(rows).sort_values(["optimizer", "environment", "seed"], ignore_index=True)
    have = joined.dropna(subset=["value"])["environment"].unique()
    observed = tuple(name for name in environments if name in have)
    normalized = tuple(name for name in observed if name in scales)
    return BoardScores(
        budget=str(budget),
        protocol=int(protocol),
        root_seed=int(root_seed),
        metric=metric,
        vmap_size=vmap_size,
        rows=joined,
        experiments=experiments,
        environments=environments,
        observed=observed,
        normalized=normalized,
        stand_in=stand_in,
        scales=scales,
        notes=(*notes, *_mixture_notes(experiments)),
    )


def _label(experiments: pd.DataFrame) -> pd.DataFrame:
    """Tell apart an optimizer's θ, and its hyperparameters' origins, where it has several in one environment.

    Those that differ only between environments stay one row: weights and tuned values may belong to an environment.
    """
    for column, nothing in (("theta", "no θ"), ("hyperparameter_origin", "")):
        counts = experiments.groupby(["optimizer", "environment"])[column].nunique()
        several = experiments["optimizer"].isin(set(counts[counts > 1].index.get_level_values("optimizer")))
        named = experiments["optimizer"] + " (" + experiments[column].where(experiments[column] != "", nothing) + ")"
        experiments = experiments.assign(optimizer=named.where(several, experiments["optimizer"]))
    return experiments


def _check_comparable(experiments: pd.DataFrame, budget: str) -> None:
    for (optimizer, environment), group in experiments.groupby(["optimizer", "environment"]):
        if len(group) > 1:
            names = sorted(group["experiment"])
            differing = [name for name in group.columns.difference(_MEASURED) if group[name].nunique() > 1]
            raise UserError(
                f"{optimizer} has {len(group)} experiments in {environment} at {budget} ({', '.join(names)}), which differ "
                f"in {', '.join(differing) or 'nothing that is recorded'}: move one away, or choose with runs.select(…)"
            )
    columns = ["env_steps", *(name for name in SETTINGS_COLUMNS if name in experiments)]
    for environment, group in experiments.groupby("environment"):
        for name in columns:
            values = sorted(set(map(str, group[name])))
            if len(values) > 1:
                raise UserError(
                    f"{environment} at {budget} has experiments with different {name} ({' and '.join(values)}), which do "
                    f"not compare: move some away, or choose with runs.select({name}=…)"
                )


def _rows_of(environment: str, experiments: pd.DataFrame, scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    labels = experiments[experiments["environment"] == environment].set_index("experiment")["optimizer"]
    mine = scores[scores["experiment"].isin(labels.index)]
    diverged = mine["diverged"].astype(bool)
    value = mine[metric].astype(float).mask(diverged)  # what a diverged run reached before does not count
    return pd.DataFrame(
        {
            "optimizer": mine["experiment"].map(labels),
            "environment": environment,
            "seed": mine["seed"].astype(int),
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
        return "no return: the random policy's is not known, and no seed has one"
    return f"the lowest return of any seed, {stand_in:.4g}, as the random policy's is not known"


def _mixture_notes(experiments: pd.DataFrame) -> list[str]:
    notes = []
    vmap_sizes = sorted(set(experiments["vmap_size"]))
    if len(vmap_sizes) > 1:
        listed = ", ".join(map(str, vmap_sizes))
        notes.append(
            f"experiments ran in groups of different vmap_sizes ({listed}): equal in distribution, not bit for bit"
        )
    machines = sorted(set(experiments["hardware"]))
    if len(machines) > 1:
        notes.append(f"experiments ran on different hardware ({', '.join(machines)}): their times do not compare")
    return notes
