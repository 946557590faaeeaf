"""The leaderboard: every optimizer's aggregates, comparisons with Adam, returns, failures, provenance and cost.

**Order.** By IQM of scores. Where no environment has a scale, by mean rank: the optimizer's rank by mean return in each
environment, averaged (ties share their average rank). Equal optimizers share a rank and are listed by name. Optimizers
whose difference is not significant share a range of ranks (``ranks``).

**Which environments.** IQM, median, mean, optimality gap and the paired difference are over the environments with a
scale (see ``metrics``); win rates and mean ranks need no scale and are over all that have a result. An optimizer that
has not run in one of them keeps its returns per environment, but its aggregate is left blank and it has no rank.

**Which seeds.** rliable needs rectangular matrices: an optimizer's aggregates are over the seeds that all its
environments have. Optimizers may have different numbers; paired differences are over those that both have. Everything
else is counted over all seeds.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from open_bench.evaluation import bootstrap, metrics, ranks, time_to_target
from open_bench.evaluation.baseline_returns import BaselineReturns
from open_bench.evaluation.boards import BOARD_COLUMNS, BoardScores, boards
from open_bench.evaluation.bootstrap import AGGREGATES, NO_ESTIMATE, RESAMPLES, Estimate
from open_bench.evaluation.schema import MIXED, Runs, tracks
from open_bench.evaluation.style import aliases
from open_bench.files import write_atomically
from open_bench.text import compact

ESTIMATES = (*AGGREGATES, "probability_of_improvement", "paired_difference")


@dataclasses.dataclass(frozen=True)
class Board:
    """One algorithm's and budget's table (of one protocol version and one root seed).

    Attributes:
        scores: what it was computed from.
        table: one row an optimizer, in order. Columns: rank, optimizer, track; rank_low, rank_high; each of
            ``ESTIMATES`` with ``_low`` and ``_high``; mean_rank with its interval; time_to_target (its score, see
            ``time_to_target``); ``<metric>:<environment>`` (mean return), and its interval as ``<metric>_low:…`` and
            ``<metric>_high:…``; num_seeds (of the aggregate), lifetimes (all), diverged and unfinished (lifetimes);
            hyperparameter_origin, tuning_trials, theta, trained_on (each distinct value once, joined by "/");
            tuning_env_steps (of all its environments), meta_env_steps (of θ); vmap_size, hardware;
            steps_per_second, run_seconds, compile_seconds (summed wall clock, compilation apart); notes (its own).
        per_environment: one row an optimizer and environment: mean, low, high (return), score (mean), num_seeds,
            diverged, unfinished; difference, difference_low, difference_high (of returns, paired with the baseline);
            steps_to_target (env steps to Adam's median final return; ∞: missed, NaN: not known) and time_ratio (of
            these, to the fewest of any optimizer).
        notes: about the board, then about single optimizers.
        baseline: the optimizer that the others are compared with.
        study: name that heads it, or None.
        aliases: short names that were chosen, by optimizer or environment.
    """

    scores: BoardScores
    table: pd.DataFrame
    per_environment: pd.DataFrame
    notes: tuple[str, ...]
    baseline: str
    study: str | None = None
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def short(self) -> dict[str, str]:
        """What each optimizer, and the baseline, is called where people look: in tables, figures and the report."""
        return aliases([*self.scores.optimizers, *({self.baseline} - {*self.scores.optimizers})], self.aliases)

    @functools.cached_property
    def places(self) -> dict[str, str]:
        """The same of each environment."""
        return aliases(self.scores.environments, self.aliases)

    @property
    def title(self) -> str:
        """Study, algorithm, budget, protocol and root seed in words."""
        key, vmap_size = self.scores.key, self.scores.vmap_size
        study = None if self.study == key.budget else self.study
        words = [study, key.algorithm, key.budget, f"protocol {key.protocol}", f"root seed {key.root_seed}"]
        words += [] if vmap_size is None else [f"vmap size {vmap_size}"]
        return " · ".join(filter(None, words))


@dataclasses.dataclass(frozen=True)
class Leaderboard:
    """Boards side by side; nothing is aggregated across them.

    Attributes:
        boards: sorted by algorithm, budget, protocol version, root seed and vmap size.
        metric: the column that is ranked.
    """

    boards: tuple[Board, ...]
    metric: str

    @property
    def table(self) -> pd.DataFrame:
        """All boards' tables, one under the other, led by algorithm, budget, protocol and root_seed."""
        return self._joined("table")

    @property
    def per_environment(self) -> pd.DataFrame:
        """All boards' results per environment, led by algorithm, budget, protocol and root_seed."""
        return self._joined("per_environment")

    @property
    def notes(self) -> tuple[str, ...]:
        """All boards' notes."""
        return tuple(note for board in self.boards for note in board.notes)

    def to_csv(self, path: str | Path | None = None) -> str:
        """The table as CSV, written to ``path`` when given; the same runs give the same bytes.

        Numbers have six significant digits; what does not exist is empty. A row has its own notes alone; those of
        its board are in ``notes`` and in the Markdown.
        """
        from open_bench.evaluation.tables import csv

        return _written(csv(self.table, "%.6g"), path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Per board: aggregates with intervals, returns per environment, notes. Written to ``path`` when given."""
        from open_bench.evaluation.tables import markdown

        return _written(markdown(self), path)

    def to_latex(self, path: str | Path | None = None) -> str:
        """The same as tables of LaTeX, which need its package booktabs. Written to ``path`` when given."""
        from open_bench.evaluation.tables import latex

        return _written(latex(self), path)

    def to_rich(self, width: int = 80) -> Any:
        """A rich renderable that fits a terminal ``width`` columns wide; one table a board, more where returns of
        many environments would not fit beside each other."""
        from open_bench.evaluation.tables import rich_tables

        return rich_tables(self, width)

    def _joined(self, name: str) -> pd.DataFrame:
        """Boards one under the other; returns of all environments stand together, sorted by environment."""
        frames = [getattr(board, name) for board in self.boards]
        names = list(dict.fromkeys(column for frame in frames for column in frame))
        ends = [f"{self.metric}{end}" for end in ("", "_low", "_high")]
        returns = sorted((column.partition(":") for column in names if ":" in column),
                         key=lambda parts: (ends.index(parts[0]), parts[2]))  # fmt: skip
        at = next((place for place, column in enumerate(names) if ":" in column), len(names))
        others = [column for column in names if ":" not in column]
        columns = [*BOARD_COLUMNS, *others[:at], *map("".join, returns), *others[at:]]
        # pandas warns about columns without a value when it joins frames; reindexing brings them back as empty.
        told = [
            frame.dropna(axis="columns", how="all").assign(**board.scores.key._asdict())
            for frame, board in zip(frames, self.boards, strict=True)
        ]
        return pd.concat(told, ignore_index=True).reindex(columns=columns)


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        write_atomically(path, text)
    return text


def leaderboard(
    runs: Runs,
    baseline_returns: BaselineReturns,
    budget: str | None = None,
    *,
    metric: str = "final_return",
    only: Collection[str] = (),
    baseline: str = metrics.ADAM,
    resamples: int = RESAMPLES,
    title: str | None = None,
    joined: bool = False,
    names: Mapping[str, str] | None = None,
) -> Leaderboard:
    """Rank the optimizers in ``runs``.

    Args:
        runs: stored rows.
        baseline_returns: stored returns by environment (``load_baseline_returns``).
        budget: only this one; default: all that ``runs`` holds, each in a board of its own.
        metric: ``final_return``, ``mean_return`` (the area under the learning curve, divided by its length), or another
            that experiments list.
        only: tracks to show; default: all. The others are still there to measure against and to be compared with.
        baseline: optimizer that win rates and paired differences compare with, by its label; of several Adams the one
            that scores would be measured against.
        resamples: bootstrap resamples of each interval.
        title: name of the study, which heads every board.
        joined: whether Adam was not named and joined where scores need it; boards say so.
        names: short names to show, by optimizer or environment (``style.aliases``).

    Raises:
        UserError: there is nothing to rank, the budget, metric or a track is unknown, experiments do not compare, or a
            short name would name two rows.
        BadRows: the tables break the schema.
    """
    found = boards(runs, baseline_returns, budget, metric, only)
    made = (_make_board(scores, runs.curves, baseline, resamples, title, joined) for scores in found)
    return Leaderboard(tuple(_named(board, names or {}) for board in made), metric)


def _named(board: Board, names: Mapping[str, str]) -> Board:
    """The board with short names, and notes on what they stand for."""
    board = dataclasses.replace(board, aliases=names)
    told = [f"{short} is {name}" for each in (board.short, board.places) for name, short in each.items()
            if short != name]  # fmt: skip
    return dataclasses.replace(board, notes=(*board.notes, *told))


def _make_board(
    scores: BoardScores, curves: pd.DataFrame, baseline: str, resamples: int, study: str | None, joined: bool
) -> Board:
    baseline = scores.adam if baseline == metrics.ADAM else baseline
    steps = time_to_target.steps_to_target(scores, curves)
    ratios = time_to_target.ratios(steps)
    per_environment = _per_environment(scores, baseline, steps, ratios, resamples)
    mean_ranks = ranks.mean_ranks(scores, resamples).to_dict("index")
    own_notes = {optimizer: _own_notes(scores, optimizer) for optimizer in scores.optimizers}
    rows = [
        {"optimizer": optimizer, "track": scores.tracks[optimizer]}
        | bootstrap.columns_of(_estimates(scores, optimizer, baseline, resamples))
        | mean_ranks.get(optimizer, dict.fromkeys(("mean_rank", "mean_rank_low", "mean_rank_high"), np.nan))
        | {"time_to_target": time_to_target.score(ratios[optimizer]) if optimizer in ratios else np.nan}
        | _returns(scores, per_environment, optimizer)
        | _counts(scores, optimizer)
        | _provenance(scores.experiments[scores.experiments["optimizer"] == optimizer])
        | {"notes": "; ".join(own_notes[optimizer])}
        for optimizer in scores.optimizers
    ]
    table = _ranked(pd.DataFrame(rows), scores)
    mine = [f"{optimizer}: {note}" for optimizer in table["optimizer"] for note in own_notes[optimizer]]
    notes = [*scores.notes, *([metrics.JOINED] if joined and scores.plan.kind == "own" else [])]
    notes += [*_board_notes(scores, baseline), *_tuning_notes(table)]
    return Board(scores, table, per_environment, (*notes, *mine), baseline, study)


def _estimates(scores: BoardScores, optimizer: str, baseline: str, resamples: int) -> dict[str, Estimate]:
    """Every name in ``ESTIMATES``; NO_ESTIMATE where it can not be had."""
    estimates = dict.fromkeys(ESTIMATES, NO_ESTIMATE)
    mine = scores.matrix(optimizer, scores.normalized)
    if mine is not None:
        estimates |= bootstrap.aggregates(mine, resamples)
    if scores.plan.kind == "own" and optimizer == scores.adam:  # 1 by construction, so an interval would say nothing
        estimates = {name: NO_ESTIMATE._replace(value=estimate.value) for name, estimate in estimates.items()}
    if optimizer == baseline:
        return estimates
    estimates["paired_difference"] = bootstrap.paired_difference(mine, scores.matrix(baseline, scores.normalized))
    mine, theirs = (scores.matrix(name, scores.observed, "value") for name in (optimizer, baseline))
    estimates["probability_of_improvement"] = bootstrap.probability_of_improvement(mine, theirs, resamples)
    return estimates


def _per_environment(
    scores: BoardScores, baseline: str, steps: pd.DataFrame, ratios: pd.DataFrame, resamples: int
) -> pd.DataFrame:
    rows = []
    shown = scores.rows[scores.rows["optimizer"].isin(scores.optimizers)]
    counts = shown.groupby(["optimizer", "environment"]).agg(
        score=("score", "mean"), num_seeds=("seed", "size"), diverged=("diverged", "sum"),
        unfinished=("unfinished", "sum"),
    )  # fmt: skip
    cells = counts.to_dict("index")
    matrices = [scores.matrix(optimizer, (environment,), "value") for optimizer, environment in cells]
    means = bootstrap.mean_estimates(matrices, resamples)
    compared = {environment: scores.matrix(baseline, (environment,), "value") for environment in scores.environments}
    pairs = [
        (mine, compared[environment] if optimizer != baseline else None)
        for mine, (optimizer, environment) in zip(matrices, cells, strict=True)
    ]
    differences = bootstrap.paired_differences(pairs)
    times, compared_times = steps.to_dict(), ratios.to_dict()
    for ((optimizer, environment), counted), mean, difference in zip(cells.items(), means, differences, strict=True):
        rows.append(
            {"optimizer": optimizer, "environment": environment}
            | {"mean": mean.value, "low": mean.low, "high": mean.high}
            | counted
            | bootstrap.columns_of({"difference": difference})
            | {"steps_to_target": times.get(optimizer, {}).get(environment, np.nan)}
            | {"time_ratio": compared_times.get(optimizer, {}).get(environment, np.nan)}
        )
    return pd.DataFrame(rows)


def _ranked(table: pd.DataFrame, scores: BoardScores) -> pd.DataFrame:
    """Sort, best first, and number: 1 + how many are strictly better; without the number, no rank."""
    merit = -table["iqm"] if scores.normalized else table["mean_rank"]
    table.insert(0, "rank", merit.rank(method="min").astype("Int64"))
    ranges = ranks.rank_ranges(scores, table.set_index("optimizer")["rank"])
    for place, name in enumerate(("rank_low", "rank_high")):
        table.insert(3 + place, name, table["optimizer"].map(ranges[name]).astype("Int64"))
    return table.sort_values(["rank", "optimizer"], na_position="last", ignore_index=True)


def _returns(scores: BoardScores, per_environment: pd.DataFrame, optimizer: str) -> dict[str, float]:
    mine = per_environment[per_environment["optimizer"] == optimizer].set_index("environment")
    return {
        f"{scores.metric}{end}:{environment}": mine[column].get(environment, np.nan)
        for end, column in (("", "mean"), ("_low", "low"), ("_high", "high"))
        for environment in scores.environments
    }


def _counts(scores: BoardScores, optimizer: str) -> dict[str, int]:
    mine = scores.rows_of(optimizer)
    return {
        "num_seeds": _common_seeds(scores, optimizer),
        "lifetimes": len(mine),
        "diverged": int(mine["diverged"].sum()),
        "unfinished": int(mine["unfinished"].sum()),
    }


def _common_seeds(scores: BoardScores, optimizer: str) -> int:
    """Seeds that all environments which the optimizer ran in, and which count, have."""
    mine = scores.rows_of(optimizer)
    counted = mine[mine["environment"].isin(scores.normalized or scores.observed or scores.environments)]
    if scores.normalized:
        counted = counted[counted["score"].notna()]  # a seed without Adam's has none
    per_seed = counted.groupby("seed")["environment"].nunique()
    return int((per_seed == counted["environment"].nunique()).sum())


def _provenance(experiments: pd.DataFrame) -> dict[str, Any]:
    seconds = experiments["run_seconds"].sum(min_count=1)
    steps = (experiments["steps_per_second"] * experiments["run_seconds"]).sum(min_count=1)
    return {
        "hyperparameter_origin": _distinct(experiments["hyperparameter_origin"]),
        "tuning_trials": _distinct(experiments["tuning_trials"]),
        "tuning_env_steps": _tuning_env_steps(experiments),
        "theta": _distinct(experiments["theta"]),
        "meta_env_steps": experiments["meta_env_steps"].max(),
        "trained_on": _distinct(experiments["trained_on"]),
        "vmap_size": _distinct(experiments["vmap_size"]),
        "hardware": _distinct(experiments["hardware"]),
        "steps_per_second": steps / seconds if seconds > 0 else experiments["steps_per_second"].mean(),
        "run_seconds": seconds,
        "compile_seconds": experiments["compile_seconds"].sum(min_count=1),
    }


def _tuning_env_steps(experiments: pd.DataFrame) -> int:
    """One setting is tuned once, on all environments together; others are tuned on each."""
    once = experiments["hyperparameter_origin"] == "one setting"
    steps = experiments["tuning_env_steps"]
    return int(steps[~once].sum() + steps[once].max() if once.any() else steps.sum())


def _distinct(column: pd.Series) -> str:
    return "/".join(map(str, sorted(set(column) - {"", 0})))


def _tuning_notes(table: pd.DataFrame) -> list[str]:
    """What tuning took, the optimizers together that it took the same of."""
    tuned = table[table["tuning_trials"] != ""]
    return [
        f"{', '.join(mine['optimizer'])}: settings of {trials} trials, {compact(steps)} env steps of tuning"
        + (" each" if len(mine) > 1 else "")
        for (trials, steps), mine in tuned.groupby(["tuning_trials", "tuning_env_steps"], sort=True)
    ]


def _own_notes(scores: BoardScores, optimizer: str) -> list[str]:
    experiments = scores.experiments[scores.experiments["optimizer"] == optimizer]
    notes = [*_track_notes(experiments)] if scores.tracks[optimizer] == MIXED else []
    if scores.tracks[optimizer] == "one setting" and experiments["hyperparameters"].nunique() > 1:
        notes.append("its one setting is not the same in all environments: it comes from several tunings")
    if (meta := experiments["meta_env_steps"].max()) > 0:
        where = _distinct(experiments["trained_on"]) or "an unknown distribution"
        told = f"θ of {compact(meta)} env steps of meta-training on {where}"
        notes.append(told + _amortization(scores, float(meta)))
    lacking = scores.lacking(optimizer, scores.environments)
    if lacking:
        counts = set(lacking) & set(scores.normalized or scores.observed)
        blank = "its aggregate is left blank" if counts else "it has no win rate and no mean rank"
        notes.append(f"has not run in {', '.join(lacking)}; {blank}")
    mine = scores.rows_of(optimizer)
    sizes = mine.groupby("environment")["seed"].nunique()
    common = _common_seeds(scores, optimizer)
    if sizes.nunique() > 1 or common < sizes.min():
        notes.append(f"{sizes.min()} to {sizes.max()} seeds an environment; aggregates are over the {common} in common")
    elif common == 1:
        notes.append("one seed, so no intervals")
    return notes


def _amortization(scores: BoardScores, meta_env_steps: float) -> str:
    """In how many environments tuning Adam would have cost as many env steps as θ did; θ needs no tuning in any."""
    adams = scores.experiments[scores.experiments["optimizer"] == scores.adam]
    tuned = adams[(adams["hyperparameter_origin"] == "tuned") & (adams["tuning_env_steps"] > 0)]
    if tuned.empty:
        return ""
    environments = meta_env_steps / tuned["tuning_env_steps"].mean()
    told = f"{environments:,.0f}" if environments >= 10 else f"{environments:.1f}"
    return f": as many as tuning {scores.adam} took in {told} environments like these"


def _track_notes(experiments: pd.DataFrame) -> list[str]:
    found = experiments["environment"].groupby(tracks(experiments)).agg(", ".join)
    return ["; ".join(f"{track} in {environments}" for track, environments in found.items())]


def _board_notes(scores: BoardScores, baseline: str) -> list[str]:
    notes = []
    if len(scores.optimizers) > 1 and scores.observed:
        notes.append("a range of ranks counts significant differences alone (paired, 5 % for all pairs together, Holm)")
    if not scores.observed:
        notes.append("no environment has a result: nothing is ranked")
    elif scores.normalized and scores.normalized != scores.observed:
        scored = ", ".join(scores.normalized)
        notes.append(f"aggregates of scores are over {scored}; win rates and mean ranks over all with a result")
    if baseline not in scores.tracks:
        notes.append(f"{baseline} is not there, so nothing is compared with it")
    elif scores.lacking(baseline, scores.observed):
        lacking = ", ".join(scores.lacking(baseline, scores.observed))
        notes.append(f"{baseline} has not run in {lacking}: no win rate against it")
    return notes
