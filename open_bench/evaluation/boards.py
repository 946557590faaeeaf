"""What may stand in one leaderboard: comparable rows, split, filled in and scored.

**Separate.** A board holds one algorithm, one budget, one protocol version and one root seed; nothing is ever
aggregated across boards. Root seeds are separate because seeds are paired between optimizers by their index, which only
means something under one root seed.

**Together.** Vmap sizes and hardware change rounding, not the distribution, and accelerators choose vmap sizes by
memory, which differs between optimizers; so they may mix, and a note says so. Only when one optimizer ran in one
environment at several vmap sizes is there a board for each vmap size.

**Told apart.** Two θ of one optimizer in one environment are two rows, ``open (1a2b3c4d)``, and so are
hyperparameters of two origins, ``lion (default)`` and ``lion (tuned)``. Of two tunings it is the number of trials, else
the values, ``lion (tuned, 8 trials)`` and ``lion (tuned, learning_rate=0.002)``. Experiments that differ in nothing but
their names (the best known setting, and the same one asked for by its track) are one: the one with more seeds.

**Tracks.** A row's track is what the optimizer was given: ``learned`` for a θ, else the origin of its hyperparameters.
Where that differs between environments it is ``mixed``, and a note says what it was where.

**Refused.** Any other two experiments of one optimizer in one environment of a board, and an environment with two
lengths or settings under one budget: UserError names them.

**One scale.** Stored returns where they fit every environment, else the board's own Adam and random policy, else none
(``metrics.scale_plan``); lifetimes of the random policy are never ranked. Of several Adams that one is 1 which ran in
most environments, of those the tuned one before one setting, published, default and given. What missing returns count
as is defined in ``metrics`` too. All of it is counted, and noted.
"""

import dataclasses
import functools
import json
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from open_bench.errors import UserError, near_matches
from open_bench.evaluation import metrics
from open_bench.evaluation.baseline_returns import BaselineReturns, returns_of
from open_bench.evaluation.bootstrap import ScoreMatrix
from open_bench.evaluation.metrics import RandomReturns, Scale, ScalePlan, ScoreTable
from open_bench.evaluation.schema import LEARNED, MIXED, ORIGINS, RANDOM, SETTINGS, Runs, tracks, validate, with_absent

BOARD_COLUMNS = ("algorithm", "budget", "protocol", "root_seed")
_TUNED = ("tuned", "one setting")  # origins that took trials
# Of several Adams the first of these is the board's 1.
_ADAMS = ("tuned", "one setting", "published", "default", "given")
# What is measured and no one's choice, so no difference between two experiments.
_MEASURED = ("experiment", "steps_per_second", "run_seconds", "compile_seconds", "hardware", "revision")
_COST = ("tuning_trials", "tuning_env_steps")  # of equal settings; a tuning that went on may have found the same again


class BoardKey(NamedTuple):
    """What all rows of a board share."""

    algorithm: str
    budget: str
    protocol: int
    root_seed: int


@dataclasses.dataclass(frozen=True)
class BoardScores:
    """The comparable scores of one leaderboard.

    Attributes:
        key: algorithm, budget, protocol and root seed.
        metric: the column that is ranked.
        label: what it is called.
        vmap_size: that of all its experiments where boards are apart by it, else None.
        rows: one a lifetime, sorted: optimizer, environment, seed, value (the return, filled in; NaN where nothing can
            stand in), score (NaN where only returns exist), diverged, unfinished, final_return (NaN where there is
            none), whatever is ranked.
        experiments: the board's experiments; ``optimizer`` as in ``rows``, and sorted like them.
        environments: all, sorted.
        observed: those in which some seed has a value: what ranks and win rates are over.
        normalized: those with a scale too: what scores are aggregated over.
        stand_in: return given to a lifetime without one, by environment; NaN where none is known.
        plan: what scores are measured against.
        adam: label of the Adam that is 1 where scores are by the board's own, and that others are compared with.
        tracks: of every optimizer, by label.
        optimizers: labels of those that are shown, sorted; the others are there to be compared with.
        scales: by environment, for ``normalized``.
        notes: what a reader of the board has to know.
    """

    key: BoardKey
    metric: str
    label: str
    vmap_size: int | None
    rows: pd.DataFrame
    experiments: pd.DataFrame
    environments: tuple[str, ...]
    observed: tuple[str, ...]
    normalized: tuple[str, ...]
    stand_in: Mapping[str, float]
    plan: ScalePlan
    adam: str
    tracks: Mapping[str, str]
    optimizers: tuple[str, ...]
    scales: Mapping[str, Scale]
    notes: tuple[str, ...]

    @functools.cached_property
    def _table(self) -> ScoreTable:
        return ScoreTable(self.rows)

    @functools.cached_property
    def _by_optimizer(self) -> dict[str, pd.DataFrame]:
        return dict(tuple(self.rows.groupby("optimizer")))

    def rows_of(self, optimizer: str) -> pd.DataFrame:
        """The optimizer's lifetimes."""
        return self._by_optimizer[optimizer]

    def lacking(self, optimizer: str, environments: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``environments`` in which the optimizer has not run."""
        ran = set(self.rows_of(optimizer)["environment"])
        return tuple(name for name in environments if name not in ran)

    def matrix(self, optimizer: str, environments: tuple[str, ...], column: str = "score") -> ScoreMatrix | None:
        """Scores (or returns: ``column="value"``) of the seeds that all of ``environments`` have.

        None when there are none, or the optimizer lacks one of the environments.
        """
        return self._table.matrix(optimizer, environments, column)


def boards(
    runs: Runs,
    baseline_returns: BaselineReturns,
    budget: str | None = None,
    metric: str = "final_return",
    only: Collection[str] = (),
) -> tuple[BoardScores, ...]:
    """Split ``runs`` into boards, sorted by algorithm, budget, protocol, root seed and vmap size.

    Args:
        baseline_returns: stored returns by environment (``load_baseline_returns``).
        budget: only this one; default: all, each apart.
        metric: ``final_return``, ``mean_return``, or another that experiments list.
        only: tracks to show; default: all. Boards without one of them are left out.

    Raises:
        UserError: there is nothing to rank, the budget, metric or a track is unknown, or experiments do not compare.
        BadRows: the tables break the schema.
    """
    validate(runs)
    known = [name for name in runs.metrics if name in runs.scores]
    if metric not in known:
        raise UserError(f"metric must be one of {', '.join(known)}, not {metric!r}.{near_matches(metric, known)}")
    experiments = runs.experiments[runs.experiments["experiment"].isin(runs.scores["experiment"])]
    experiments = experiments[experiments["algorithm"] != RANDOM]
    if experiments.empty:
        raise UserError("there are no runs to rank")
    if budget is not None:
        budgets = sorted(set(experiments["budget"]))
        if budget not in budgets:
            hint = near_matches(budget, budgets)
            raise UserError(f"no runs at budget {budget!r}; there are {', '.join(budgets)}.{hint}")
        experiments = experiments[experiments["budget"] == budget]
    only = {track.replace("_", " ") for track in only}  # as names of optimizers spell them, too
    maker = _Maker(runs, baseline_returns, metrics.random_returns(runs, metric), metric, frozenset(only))
    groups = with_absent(experiments).groupby(list(BOARD_COLUMNS), sort=True)
    made = [
        maker.board(BoardKey(str(key[0]), str(key[1]), int(key[2]), int(key[3])), vmap_size, part)
        for key, group in groups
        for vmap_size, part in _by_vmap_size(group)
    ]
    there = sorted({track for board in made for track in board.tracks.values()})
    for track in only:
        if track not in there:
            known = sorted({*there, *ORIGINS, LEARNED, MIXED})
            raise UserError(
                f"no row has the track {track!r}; there are {', '.join(there)}.{near_matches(track, known)}"
            )
    return tuple(board for board in made if board.optimizers)


@dataclasses.dataclass(frozen=True)
class _Maker:
    """What every board of a leaderboard is made from."""

    runs: Runs
    baseline_returns: BaselineReturns
    random: Mapping[tuple[str, str, int, int, str], RandomReturns]
    metric: str
    only: frozenset[str]

    def board(self, key: BoardKey, vmap_size: int | None, experiments: pd.DataFrame) -> BoardScores:
        experiments = _label(experiments).sort_values(["optimizer", "environment"], ignore_index=True)
        experiments = _without_twins(experiments, self.runs.scores["experiment"].value_counts())
        _check_comparable(experiments, key.budget)
        steps = experiments.groupby("environment")["env_steps"].first().to_dict()
        row_tracks, adam = _row_tracks(experiments), _adam(experiments)
        shown = tuple(sorted(name for name, track in row_tracks.items() if not self.only or track in self.only))
        plan = metrics.scale_plan(
            steps, key.algorithm, key.budget, row_tracks, self.baseline_returns, self.metric, steps, adam
        )
        rows, stand_in, scales, notes = [], {}, {}, []
        for environment, mine in _rows_of(experiments, self.runs.scores, self.metric):
            here = experiments[experiments["environment"] == environment].iloc[0]
            random = self._random(plan, here, key)
            where = f"{environment} at {key.budget}"
            stand_in[environment] = metrics.stand_in(mine, random)
            notes += _failure_notes(where, mine, shown, stand_in[environment], random)
            nothing = bool(mine["unfinished"].all())
            mine["value"] = metrics.filled(mine, random)
            scale = self._scale(plan, environment, key, mine[mine["optimizer"] == adam], random)
            if isinstance(scale, Scale):
                scales[environment] = scale
                mine["score"] = metrics.scored(mine, scale, plan.kind == "own", adam)
            else:
                mine["score"] = np.nan
                if plan.kind != "none" and not nothing:
                    notes.append(f"{where}: {scale}; returns only")
            rows.append(mine)
        if plan.kind != "none" and not scales:
            plan = ScalePlan("none", "no scores, only returns, ranked by mean rank: no environment has a scale")
        joined = pd.concat(rows).sort_values(["optimizer", "environment", "seed"], ignore_index=True)
        have = set(joined.dropna(subset=["value"])["environment"])
        observed = tuple(name for name in sorted(steps) if name in have)
        return BoardScores(
            key=key,
            metric=self.metric,
            label=self.runs.metrics[self.metric],
            vmap_size=vmap_size,
            rows=joined,
            experiments=experiments,
            environments=tuple(sorted(steps)),
            observed=observed,
            normalized=tuple(name for name in observed if name in scales),
            stand_in=stand_in,
            plan=plan,
            adam=adam,
            tracks=row_tracks,
            optimizers=shown,
            scales=scales,
            notes=(plan.reason, *notes, *_pairing_notes(plan, joined, adam), *_mixture_notes(experiments, shown)),
        )

    def _random(self, plan: ScalePlan, experiment: pd.Series, key: BoardKey) -> RandomReturns:
        """What is known of the random policy on an experiment's task: the stored mean where scores are by stored
        returns, else its own runs."""
        environment = str(experiment["environment"])
        place = (environment, key.budget, key.protocol, key.root_seed)
        own = self.random.get((*place, metrics.acting(experiment)))
        if own is not None and plan.kind != "stored":
            return own
        stored = returns_of(self.baseline_returns, environment).random
        interval = stored.of(self.metric) if stored is not None else None
        return RandomReturns(interval.mean) if interval is not None else RandomReturns()

    def _scale(
        self, plan: ScalePlan, environment: str, key: BoardKey, adam: pd.DataFrame, random: RandomReturns
    ) -> Scale | str:
        if plan.kind == "stored":
            known = returns_of(self.baseline_returns, environment)
            return metrics.stored_scale(known, key.algorithm, key.budget, self.metric)
        if plan.kind == "none":
            return ""
        if random.by_seed.empty:
            return "the random policy has not run"
        return metrics.own_scale(adam.set_index("seed")["value"], random)


def _by_vmap_size(experiments: pd.DataFrame) -> list[tuple[int | None, pd.DataFrame]]:
    """The experiments in one part, or apart by vmap_size when some of them differ in nothing else."""
    same = ["optimizer", "environment", "theta", "hyperparameter_origin"]
    if experiments.groupby(same)["vmap_size"].nunique().max() == 1:
        return [(None, experiments)]
    return [(int(vmap_size), part) for vmap_size, part in experiments.groupby("vmap_size", sort=True)]


def _label(experiments: pd.DataFrame) -> pd.DataFrame:
    """Tell apart what an optimizer was given, where it has several experiments in one environment.

    Those that differ only between environments stay one row: weights and tuned values may belong to an environment.
    """
    given = pd.Series("", index=experiments.index)
    for differing in (_thetas, _origins, _trials, _values):
        label = experiments["optimizer"] + given
        text = differing(experiments, label)
        places = [label, experiments["environment"]]
        several = (text.groupby(places).transform("nunique") > 1).groupby(label).transform("any") & (text != "")
        given = given.where(~several, given + text.radd(", "))
    label = experiments["optimizer"] + given.str.replace("^, (.*)$", r" (\1)", regex=True)
    return experiments.assign(optimizer=label)


def _thetas(experiments: pd.DataFrame, label: pd.Series) -> pd.Series:
    return experiments["theta"].where(experiments["theta"] != "", "no θ")


def _origins(experiments: pd.DataFrame, label: pd.Series) -> pd.Series:
    return experiments["hyperparameter_origin"]


def _trials(experiments: pd.DataFrame, label: pd.Series) -> pd.Series:
    """How many trials a tuning had; where that is not known its values tell."""
    known = experiments["hyperparameter_origin"].isin(_TUNED) & (experiments["tuning_trials"] > 0)
    return experiments["tuning_trials"].astype(str).add(" trials").where(known, "")


def _values(experiments: pd.DataFrame, label: pd.Series) -> pd.Series:
    """Of tunings that nothing else tells apart: the hyperparameters that differ."""
    found = pd.Series("", index=experiments.index)
    tuned = experiments[experiments["hyperparameter_origin"].isin(_TUNED)]
    for _, group in tuned.groupby([label.loc[tuned.index], tuned["environment"]]):
        values = pd.DataFrame([json.loads(each) for each in group["hyperparameters"]], index=group.index)
        values = values[[name for name in values if values[name].astype(str).nunique() > 1]]
        for row, each in values.iterrows():
            found[row] = ", ".join(f"{name}={value}" for name, value in each.dropna().items())
    return found


def _without_twins(experiments: pd.DataFrame, num_seeds: pd.Series) -> pd.DataFrame:
    """Of experiments that differ in nothing that is recorded, the one with most seeds."""
    same = [name for name in experiments if name not in (*_MEASURED, *_COST)]
    order = experiments["experiment"].map(num_seeds).sort_values(ascending=False, kind="stable").index
    return experiments.loc[experiments.loc[order, same].drop_duplicates().sort_index().index].reset_index(drop=True)


def _row_tracks(experiments: pd.DataFrame) -> dict[str, str]:
    """The track of each row of the board, by label."""
    found = tracks(experiments).groupby(experiments["optimizer"]).unique()
    return {str(name): str(each[0]) if len(each) == 1 else MIXED for name, each in found.items()}


def _adam(experiments: pd.DataFrame) -> str:
    """The Adam that scores are measured against, where they are by the board's own."""
    labels = experiments["optimizer"]
    ran = labels[(labels == metrics.ADAM) | labels.str.startswith(f"{metrics.ADAM} (")].value_counts()

    def order(label: str) -> tuple[int, int, str]:
        origin = label.removeprefix(f"{metrics.ADAM} (").rstrip(")").split(", ")[0]
        return -int(ran[label]), _ADAMS.index(origin) if origin in _ADAMS else -1, label

    return min(ran.index, key=order, default=metrics.ADAM)


def _check_comparable(experiments: pd.DataFrame, budget: str) -> None:
    for (optimizer, environment), group in experiments.groupby(["optimizer", "environment"]):
        if len(group) > 1:
            names = sorted(group["experiment"])
            differing = [name for name in group.columns.difference([*_MEASURED, *_COST]) if group[name].nunique() > 1]
            raise UserError(
                f"{optimizer} has {len(group)} experiments in {environment} at {budget} ({', '.join(names)}), which "
                f"differ in {', '.join(differing) or 'nothing that is recorded'}: move one away, or choose with "
                "runs.select(…)"
            )
    columns = ["env_steps", *(name for name in SETTINGS if name in experiments)]
    for environment, group in experiments.groupby("environment"):
        for name in columns:
            values = sorted(set(map(str, group[name])))
            if len(values) > 1:
                raise UserError(
                    f"{environment} at {budget} has experiments with different {name} ({' and '.join(values)}), which "
                    f"do not compare: move some away, or choose with runs.select({name}=…)"
                )


def _rows_of(experiments: pd.DataFrame, scores: pd.DataFrame, metric: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Lifetimes by environment, in order."""
    labels = experiments.set_index("experiment")["optimizer"]
    mine = metrics.lifetimes(scores[scores["experiment"].isin(labels.index)], metric)
    mine = mine.assign(optimizer=mine["experiment"].map(labels))
    mine = mine.assign(final_return=mine["final_return"].mask(mine["diverged"]))
    columns = ["optimizer", "environment", "seed", "value", "diverged", "unfinished", "final_return"]
    for environment, rows in mine[columns].groupby("environment", sort=True):
        yield str(environment), rows.copy()


def _failure_notes(
    where: str, rows: pd.DataFrame, shown: tuple[str, ...], stand_in: float, random: RandomReturns
) -> list[str]:
    """Lifetimes without a return of one environment (not filled in yet), in a fixed order."""
    if rows["unfinished"].all():
        return [f"{where}: no episode finished within the budget; left out of every aggregate"]
    if not (rows["diverged"] | rows["unfinished"]).any():
        return []
    rows, notes = rows[rows["optimizer"].isin(shown)], []
    for column, what in (("diverged", "diverged"), ("unfinished", "finished no episode")):
        counts = rows[rows[column]].groupby("optimizer").size()
        if len(counts):
            who = ", ".join(f"{count} of {optimizer}" for optimizer, count in counts.items())
            notes.append(f"{where}: {who} {what}, counted with {_describe(stand_in, random)}")
    return notes


def _describe(stand_in: float, random: RandomReturns) -> str:
    if not np.isnan(random.mean):
        return f"the random policy's return{' of the same seed' if len(random.by_seed) else f', {stand_in:.4g}'}"
    if np.isnan(stand_in):
        return "no return: the random policy's is not known, and no seed has one"
    return f"the lowest return of any seed, {stand_in:.4g}, as the random policy's is not known"


def _pairing_notes(plan: ScalePlan, rows: pd.DataFrame, adam: str) -> list[str]:
    """Who has lifetimes that no lifetime of Adam is the pair of."""
    if plan.kind != "own":
        return []
    scored = rows.groupby("environment")["score"].transform(lambda scores: scores.notna().any())
    alone = rows[scored & rows["score"].isna()].groupby("optimizer").size()
    if alone.empty:
        return []
    who = ", ".join(f"{count} of {optimizer}" for optimizer, count in alone.items())
    return [f"{who} have no score, as {adam} has not run with their seeds"]


def _mixture_notes(experiments: pd.DataFrame, shown: tuple[str, ...]) -> list[str]:
    experiments = experiments[experiments["optimizer"].isin(shown)]
    notes = []
    vmap_sizes = sorted(set(experiments["vmap_size"]))
    if len(vmap_sizes) > 1:
        sizes = ", ".join(map(str, vmap_sizes))
        notes.append(f"experiments ran at different vmap sizes ({sizes}): equal in distribution, not bit for bit")
    machines = sorted(set(experiments["hardware"]))
    if len(machines) > 1:
        notes.append(f"experiments ran on different hardware ({', '.join(machines)}): their times do not compare")
    return notes
