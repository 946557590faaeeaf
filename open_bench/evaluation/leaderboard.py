"""The leaderboard: every optimizer's aggregates, comparisons with Adam, returns, failures, provenance and cost.

**Order.** By IQM of scores. Where no environment has a scale, by mean rank: the optimizer's rank by mean return in each
environment, averaged (ties share their average rank). Equal optimizers share a rank and are listed by name.

**Which environments.** IQM, median, mean, optimality gap and the paired difference are over the environments with a
scale (see ``metrics``); win rates and mean ranks need no scale and are over all that have a result. An optimizer that
has not run in one of them keeps its returns per environment, but its aggregate is left blank and it has no rank.

**Which seeds.** rliable needs rectangular matrices: an optimizer's aggregates are over the seeds that all its
environments have. Optimizers may have different numbers; paired differences are over those that both have. Everything
else is counted over all seeds.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from open_bench.evaluation import bootstrap, metrics
from open_bench.evaluation.baseline_returns import BaselineReturns
from open_bench.evaluation.boards import BOARD_COLUMNS, BoardScores, boards
from open_bench.evaluation.bootstrap import AGGREGATES, NO_ESTIMATE, RESAMPLES, Estimate
from open_bench.evaluation.schema import Runs
from open_bench.files import write_atomically

ESTIMATES = (*AGGREGATES, "probability_of_improvement", "paired_difference")


@dataclasses.dataclass(frozen=True)
class Board:
    """One algorithm's and budget's table (of one protocol version and one root seed).

    Attributes:
        scores: what it was computed from.
        table: one row an optimizer, in order. Columns: rank, optimizer; each of ``ESTIMATES`` with ``_low`` and
            ``_high``; mean_rank; ``<metric>:<environment>`` (mean return), and its interval as ``<metric>_low:…`` and
            ``<metric>_high:…``; num_seeds (of the aggregate), lifetimes (all), diverged and unfinished (lifetimes);
            hyperparameter_origin, theta (each distinct value once, joined by "/"); vmap_size, hardware;
            steps_per_second, run_seconds, compile_seconds (summed wall clock, compilation apart); notes (its own).
        per_environment: one row an optimizer and environment: mean, low, high (return), score (mean), num_seeds,
            diverged, unfinished, and difference, difference_low, difference_high (of returns, paired with
            the baseline).
        notes: about the board, then about single optimizers.
        study: name that heads it, or None.
    """

    scores: BoardScores
    table: pd.DataFrame
    per_environment: pd.DataFrame
    notes: tuple[str, ...]
    study: str | None = None

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
        baseline: the optimizer that the others are compared with.
    """

    boards: tuple[Board, ...]
    metric: str
    baseline: str

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
        text = self.table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        if path is not None:
            write_atomically(path, text)
        return text

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Per board: aggregates with intervals, returns per environment, notes. Written to ``path`` when given."""
        from open_bench.evaluation.tables import markdown

        text = markdown(self)
        if path is not None:
            write_atomically(path, text)
        return text

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


def leaderboard(
    runs: Runs,
    baseline_returns: BaselineReturns,
    budget: str | None = None,
    *,
    metric: str = "final_return",
    baseline: str = metrics.ADAM,
    resamples: int = RESAMPLES,
    title: str | None = None,
    joined: bool = False,
) -> Leaderboard:
    """Rank the optimizers in ``runs``.

    Args:
        runs: stored rows.
        baseline_returns: stored returns by environment (``load_baseline_returns``).
        budget: only this one; default: all that ``runs`` holds, each in a board of its own.
        metric: ``final_return``, ``mean_return``, or another that experiments list.
        baseline: optimizer that win rates and paired differences compare with, by its label.
        resamples: bootstrap resamples of each interval.
        title: name of the study, which heads every board.
        joined: whether Adam was not named and joined where scores need it; boards say so.

    Raises:
        UserError: there is nothing to rank, the budget or metric is unknown, or experiments do not compare.
        BadRows: the tables break the schema.
    """
    found = boards(runs, baseline_returns, budget, metric)
    made = tuple(_make_board(scores, baseline, resamples, title, joined) for scores in found)
    return Leaderboard(made, metric, baseline)


def _make_board(scores: BoardScores, baseline: str, resamples: int, study: str | None, joined: bool) -> Board:
    per_environment = _per_environment(scores, baseline, resamples)
    mean_ranks = _mean_ranks(scores, per_environment)
    own_notes = {optimizer: _own_notes(scores, optimizer) for optimizer in scores.optimizers}
    rows = [
        {"optimizer": optimizer}
        | bootstrap.columns_of(_estimates(scores, optimizer, baseline, resamples))
        | {"mean_rank": mean_ranks.get(optimizer, np.nan)}
        | _returns(scores, per_environment, optimizer)
        | _counts(scores, optimizer)
        | _provenance(scores.experiments[scores.experiments["optimizer"] == optimizer])
        | {"notes": "; ".join(own_notes[optimizer])}
        for optimizer in scores.optimizers
    ]
    table = _ranked(pd.DataFrame(rows), by_score=bool(scores.normalized))
    mine = [f"{optimizer}: {note}" for optimizer in table["optimizer"] for note in own_notes[optimizer]]
    notes = [*scores.notes, *([metrics.JOINED] if joined and scores.plan.kind == "own" else [])]
    return Board(scores, table, per_environment, (*notes, *_board_notes(scores, baseline), *mine), study)


def _estimates(scores: BoardScores, optimizer: str, baseline: str, resamples: int) -> dict[str, Estimate]:
    """Every name in ``ESTIMATES``; NO_ESTIMATE where it can not be had."""
    estimates = dict.fromkeys(ESTIMATES, NO_ESTIMATE)
    mine = scores.matrix(optimizer, scores.normalized)
    if mine is not None:
        estimates |= bootstrap.aggregates(mine, resamples)
    if scores.plan.kind == "own" and optimizer == metrics.ADAM:  # 1 by construction, so an interval would say nothing
        estimates = {name: NO_ESTIMATE._replace(value=estimate.value) for name, estimate in estimates.items()}
    if optimizer == baseline:
        return estimates
    estimates["paired_difference"] = bootstrap.paired_difference(
        mine, scores.matrix(baseline, scores.normalized), resamples
    )
    mine, theirs = (scores.matrix(name, scores.observed, "value") for name in (optimizer, baseline))
    estimates["probability_of_improvement"] = bootstrap.probability_of_improvement(mine, theirs, resamples)
    return estimates


def _per_environment(scores: BoardScores, baseline: str, resamples: int) -> pd.DataFrame:
    rows = []
    for (optimizer, environment), group in scores.rows.groupby(["optimizer", "environment"]):
        mine = scores.matrix(optimizer, (environment,), "value")
        mean = bootstrap.mean_estimate(mine, resamples)
        theirs = scores.matrix(baseline, (environment,), "value") if optimizer != baseline else None
        counts = {"num_seeds": len(group)} | {name: int(group[name].sum()) for name in ("diverged", "unfinished")}
        rows.append(
            {"optimizer": optimizer, "environment": environment}
            | {"mean": mean.value, "low": mean.low, "high": mean.high, "score": group["score"].mean()}
            | counts
            | bootstrap.columns_of({"difference": bootstrap.paired_difference(mine, theirs, resamples)})
        )
    return pd.DataFrame(rows)


def _mean_ranks(scores: BoardScores, per_environment: pd.DataFrame) -> pd.Series:
    """Mean over environments of the rank by mean return, among optimizers that have a result in all of them."""
    means = per_environment.pivot(index="optimizer", columns="environment", values="mean")
    complete = means.reindex(columns=list(scores.observed)).dropna()
    return complete.rank(ascending=False, method="average").mean(axis=1)


def _ranked(table: pd.DataFrame, by_score: bool) -> pd.DataFrame:
    """Sort, best first, and number: 1 + how many are strictly better; without the number, no rank."""
    merit = -table["iqm"] if by_score else table["mean_rank"]
    table.insert(0, "rank", merit.rank(method="min").astype("Int64"))
    return table.sort_values(["rank", "optimizer"], na_position="last", ignore_index=True)


def _returns(scores: BoardScores, per_environment: pd.DataFrame, optimizer: str) -> dict[str, float]:
    mine = per_environment[per_environment["optimizer"] == optimizer].set_index("environment")
    return {
        f"{scores.metric}{end}:{environment}": mine[column].get(environment, np.nan)
        for end, column in (("", "mean"), ("_low", "low"), ("_high", "high"))
        for environment in scores.environments
    }


def _counts(scores: BoardScores, optimizer: str) -> dict[str, int]:
    mine = scores.rows[scores.rows["optimizer"] == optimizer]
    return {
        "num_seeds": _common_seeds(scores, optimizer),
        "lifetimes": len(mine),
        "diverged": int(mine["diverged"].sum()),
        "unfinished": int(mine["unfinished"].sum()),
    }


def _common_seeds(scores: BoardScores, optimizer: str) -> int:
    """Seeds that all environments which the optimizer ran in, and which count, have."""
    mine = scores.rows[scores.rows["optimizer"] == optimizer]
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
        "theta": _distinct(experiments["theta"]),
        "vmap_size": _distinct(experiments["vmap_size"]),
        "hardware": _distinct(experiments["hardware"]),
        "steps_per_second": steps / seconds if seconds > 0 else experiments["steps_per_second"].mean(),
        "run_seconds": seconds,
        "compile_seconds": experiments["compile_seconds"].sum(min_count=1),
    }


def _distinct(column: pd.Series) -> str:
    return "/".join(map(str, sorted(set(column) - {""})))


def _own_notes(scores: BoardScores, optimizer: str) -> list[str]:
    notes = []
    lacking = scores.lacking(optimizer, scores.environments)
    if lacking:
        counts = set(lacking) & set(scores.normalized or scores.observed)
        blank = "its aggregate is left blank" if counts else "it has no win rate and no mean rank"
        notes.append(f"has not run in {', '.join(lacking)}; {blank}")
    mine = scores.rows[scores.rows["optimizer"] == optimizer]
    sizes = mine.groupby("environment")["seed"].nunique()
    common = _common_seeds(scores, optimizer)
    if sizes.nunique() > 1 or common < sizes.min():
        notes.append(f"{sizes.min()} to {sizes.max()} seeds an environment; aggregates are over the {common} in common")
    elif common == 1:
        notes.append("one seed, so no intervals")
    return notes


def _board_notes(scores: BoardScores, baseline: str) -> list[str]:
    notes = []
    if not scores.observed:
        notes.append("no environment has a result: nothing is ranked")
    elif scores.normalized and scores.normalized != scores.observed:
        scored = ", ".join(scores.normalized)
        notes.append(f"aggregates of scores are over {scored}; win rates and mean ranks over all with a result")
    if baseline not in scores.optimizers:
        notes.append(f"{baseline} is not there, so nothing is compared with it")
    elif scores.lacking(baseline, scores.observed):
        lacking = ", ".join(scores.lacking(baseline, scores.observed))
        notes.append(f"{baseline} has not run in {lacking}: no win rate against it")
    return notes
