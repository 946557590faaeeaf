"""Parts of the page: a board, tuning, studies of generalization, meta-training, provenance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from open_bench.evaluation import curves, ranks
from open_bench.evaluation import trials as measures
from open_bench.evaluation.baseline_returns import BaselineReturns
from open_bench.evaluation.bootstrap import AGGREGATES, RESAMPLES
from open_bench.evaluation.curves import Curve
from open_bench.evaluation.leaderboard import Board
from open_bench.evaluation.tables import LABELS
from open_bench.generalization.study import TRAINING
from open_bench.reports import tables
from open_bench.reports.charts import Charts, legend, plain_legend
from open_bench.reports.commands import generalize_command, meta_train_command, tune_commands
from open_bench.reports.contents import Contents, Study
from open_bench.reports.tables import Commands, Head, Row, Table, headings, named, numeric
from open_bench.text import duration, interval, number, rate

CURVE_POINTS = 120_000  # of all learning curves of the page together, so that it stays below 5 MB
UNTOLD = "none: how it was asked for is not stored"
_MARKS = {"in": "", "out": "°", "unknown": "?"}


class Page:
    """What the parts are made from, and the charts that they collect.

    Args:
        contents: of the results folder.
        returns: stored baseline returns.
        resamples: bootstrap resamples of each interval.
    """

    def __init__(self, contents: Contents, returns: BaselineReturns, resamples: int = RESAMPLES):
        self.contents, self.returns, self.resamples = contents, returns, resamples
        self.charts = Charts()
        experiments = len(contents.runs.experiments)
        self.points = max(12, min(120, CURVE_POINTS // max(experiments, 1)))

    # --- boards ---

    def board(self, board: Board, place: int) -> dict[str, Any]:
        """One board: leaderboard, charts of aggregates, pairs, a panel an environment."""
        scores, group = board.scores, f"board{place}"
        self.charts.legends[group] = legend(list(board.table["optimizer"]), board.short)
        rates = ranks.win_rates(scores, list(board.table["optimizer"][: tables.MOST_PAIRED]), self.resamples)
        return {
            "id": group,
            "title": board.title,
            "tracks": sorted({scores.tracks[name] for name in scores.optimizers}),
            "leaderboard": tables.leaderboard(board, self.contents.sources),
            "notes": board.notes,
            "legend": self.charts.legends[group],
            "charts": self._aggregates(board, group),
            "matrix": tables.pairs(board, rates),
            "environments": self._environments(board, group),
        }

    def _aggregates(self, board: Board, group: str) -> list[int]:
        table, charts = board.table, self.charts
        found = []
        for name in (*AGGREGATES, "mean_rank"):
            label = LABELS.get(name, "mean rank")
            less = name in ("optimality_gap", "mean_rank")
            if table[name].notna().any():
                rows = table[["optimizer", name, f"{name}_low", f"{name}_high"]].itertuples(index=False, name=None)
                level = None if less else 1.0
                found.append(
                    charts.intervals(group, label, "less is better" if less else "score (1: Adam)", rows, level)
                )
        profiles = curves.profiles(board, self.resamples, 121)
        if profiles:
            found.append(charts.lines(group, "performance profile", "score τ (0: random policy, 1: Adam)",
                                      "lifetimes with score > τ", profiles, fraction=True))  # fmt: skip
        times = curves.time_profiles(board, 121)
        if times:
            title = f"time to {board.scores.adam}'s median {board.scores.label}"
            found.append(charts.lines(group, title, "τ: env steps / fewest env steps", "environments with r ≤ τ", times,
                                      fraction=True))  # fmt: skip
        return found

    def _environments(self, board: Board, group: str) -> list[dict[str, Any]]:
        drawn = curves.learning_curves(board, self.contents.runs, self.resamples, self.points)
        diagnosed = curves.diagnosis(board, self.contents.runs, self.resamples, self.points)
        identities, seeds = tables.identities(board, self.contents.sources), tables.num_seeds(board)
        returns = dict(tuple(board.per_environment.groupby("environment")))
        found = []
        for place, name in enumerate(board.scores.environments):
            found.append({
                "id": f"{group}-{place}",
                "name": board.places[name],
                "charts": [self._learning(board, group, name, drawn[name])] if drawn[name] else [],
                "table": tables.environment(board, name, returns.get(name), identities, seeds),
                "diagnosis": [
                    self.charts.lines(group, what.replace("_", " "), "env steps", what.replace("_", " "), mine,
                                      from_zero=True, log_y=curves.needs_log(mine))
                    for what, mine in diagnosed.get(name, {}).items()
                ],
            })  # fmt: skip
        return found

    def _learning(self, board: Board, group: str, name: str, drawn: dict[str, Curve]) -> int:
        levels = curves.levels(board, self.returns, name)
        return self.charts.lines(group, f"learning curves, {board.places[name]}", "env steps", "episode return", drawn,
                                 levels=levels, from_zero=True)  # fmt: skip

    # --- tuning ---

    def tuning(self) -> list[dict[str, Any]]:
        """Expected best of k and sensitivity, a part an algorithm and budget."""
        trials = self.contents.trials
        if trials.empty:
            return []
        best, sensitive = measures.best_of_k(trials, self.resamples), measures.sensitivity(trials, self.resamples)
        keys = [frame.groupby(measures.BOARD).groups if len(frame) else {} for frame in (best, sensitive)]
        return [self._tuned(key, place, best, sensitive) for place, key in enumerate(sorted({*keys[0], *keys[1]}))]

    def _tuned(self, key: Any, place: int, best: pd.DataFrame, sensitive: pd.DataFrame) -> dict[str, Any]:
        group = f"tuning{place}"
        mine, phi = (_of(frame, dict(zip(measures.BOARD, key, strict=True))) for frame in (best, sensitive))
        self.charts.legends[group] = legend(sorted({*mine.get("optimizer", ()), *phi.get("optimizer", ())}))
        charts = []
        for environment, rows in mine.groupby("environment") if len(mine) else ():
            y = "normalized (p5 to p95)" if environment == measures.ALL else "final return"
            found = {
                name: _curve(each.sort_values("k"), "k", "value", "low", "high")
                for name, each in rows.groupby("optimizer")
            }
            charts.append(
                self.charts.lines(group, f"best of k trials, {environment}", "trials k", y, found, from_zero=True)
            )
        table = None
        if len(phi):
            rows, measured = phi.to_dict("records"), ("sensitivity", "performance", "one_setting")
            points = [
                (row["optimizer"], *([row[f"{name}{end}"] for end in ("", "_low", "_high")] for name in measured[:2]))
                for row in rows
            ]
            charts.append(
                self.charts.points(group, "performance and sensitivity", "sensitivity Φ", "performance", points)
            )
            table = Table(
                "Normalized final returns with 95 % intervals",
                headings(["optimizer", "sensitivity Φ", "tuned for each environment", "one setting", "command"]),
                [
                    Row([Head(row["optimizer"]), *(named(row, name, 2) for name in measured), self._again(row)])
                    for row in rows
                ],
            )
        title = " · ".join(key)
        return {"id": group, "title": title, "legend": self.charts.legends[group], "charts": charts, "table": table}

    def _again(self, row: Mapping[Any, Any]) -> Commands:
        """What runs the trials of a row's optimizer again."""
        mine = _of(self.contents.trials, {name: row[name] for name in (*measures.BOARD, "optimizer")})
        stored = mine.groupby(["tuning", "environment"])[["trial", "seed"]].max()
        amounts = {environment: (int(trial), int(seed) + 1) for (_, environment), trial, seed in stored.itertuples()}
        return Commands(
            tune_commands([self.contents.tuned[name] for name in stored.index.get_level_values(0)], amounts)
        )

    # --- generalization ---

    def study(self, study: Study, place: int) -> dict[str, Any]:
        """Summary, heat map and sweeps of a study of generalization."""
        group, points = f"study{place}", study.points
        names = list(dict.fromkeys(points["optimizer"]))
        self.charts.legends[group] = legend(names)
        return {
            "id": group,
            "title": study.name,
            "scale": study.scale,
            "notes": study.notes,
            "legend": self.charts.legends[group],
            "summary": _study_summary(study),
            "heat_map": _heat_map(study, names),
            "charts": [self._sweep(group, axis, mine, names) for axis, mine in points.groupby("axis", sort=False)],
        }

    def _sweep(self, group: str, axis: str, points: pd.DataFrame, names: list[str]) -> int:
        """Values stand at equal distances, whatever they are; only numbers are joined by lines."""
        numbers = bool(points["x"].notna().all()) and points["point"].nunique() > 1
        points = points.sort_values("x", kind="stable") if numbers else points
        column = "score" if points["score"].notna().any() else "mean"
        labels = list(dict.fromkeys(points["point"]))
        found = {}
        for index, name in enumerate(names):
            mine = points[points["optimizer"] == name].dropna(subset=[column])
            if len(mine):
                apart = (0.04 if numbers else 0.12) * (index - (len(names) - 1) / 2)
                found[name] = _curve(mine.assign(place=[labels.index(each) + apart for each in mine["point"]]), "place",
                                     column, f"{column}_low", f"{column}_high")  # fmt: skip
        y = "score" if column == "score" else "return (no scale)"
        return self.charts.lines(group, axis, "", y, found, bars=True, ticks=labels, apart=not numbers)

    # --- meta-training ---

    def meta(self) -> dict[str, Any]:
        """Histories of evolutions with what they cost."""
        histories = self.contents.histories
        rows = []
        for name, history in histories.items():
            last = history.iloc[-1]
            rows.append(
                Row([
                    Head(name),
                    *(numeric(rate(last[key]), last[key]) for key in ("generation", "lifetimes", "env_steps")),
                    numeric(duration(last["seconds"]), last["seconds"]),
                    numeric(number(last["fitness_mean"]), last["fitness_mean"]),
                    "; ".join(_evaluations(history)),
                    Commands(meta_train_command(name, self.contents.weights[name], int(last["generation"])), UNTOLD),
                ])
            )  # fmt: skip
        names = ["evolution", "generations", "lifetimes", "env steps", "time", "last mean fitness", "last evaluation",
                 "command"]  # fmt: skip
        evolutions = [self._evolution(name, history, place) for place, (name, history) in enumerate(histories.items())]
        return {"table": Table("What the evolutions cost and reached", headings(names), rows), "evolutions": evolutions}

    def _evolution(self, name: str, history: pd.DataFrame, place: int) -> dict[str, Any]:
        group, charts = f"meta{place}", []
        lines = (
            "population: mean ± standard deviation",
            "best member",
            "mean θ",
            "Adam",
            "σ",
            "diverged",
            "no episode ended",
        )
        mean, best, theta, adam, sigma, diverged, unfinished = lines
        self.charts.legends[group] = plain_legend(lines)

        def draw(title: str, y: str, found: dict[str, Curve]) -> None:
            charts.append(self.charts.lines(group, title, "generation", y, found))

        spread = history.assign(low=history["fitness_mean"] - history["fitness_std"],
                                high=history["fitness_mean"] + history["fitness_std"])  # fmt: skip
        draw("fitness", "fitness", {mean: _curve(spread, "generation", "fitness_mean", "low", "high"),
                                    best: _curve(history, "generation", "fitness_best")})  # fmt: skip
        for column in (each for each in history if each.startswith("return.")):
            environment = column.removeprefix("return.")
            shown = {theta: column, adam: f"adam.{environment}"}
            found = {key: _curve(history.dropna(subset=[each]), "generation", each)
                     for key, each in shown.items() if each in history and history[each].notna().any()}  # fmt: skip
            if found:
                draw(f"evaluation on {environment}", "return", found)
        draw("σ of the search distribution", "σ", {sigma: _curve(history, "generation", "sigma")})
        failed = {diverged: "diverged", unfinished: "unfinished"}
        there = {
            key: _curve(history, "generation", each)
            for key, each in failed.items()
            if history.get(each, pd.Series(0.0)).any()
        }
        if there:
            draw("members without fitness", "members", there)
        return {"id": group, "name": name, "legend": self.charts.legends[group], "charts": charts}

    # --- provenance ---

    def provenance(self) -> dict[str, Any]:
        """Versions, hardware and revisions; every experiment with digests."""
        frame, sources = self.contents.runs.experiments, self.contents.sources
        return {
            "id": "experiments",
            "machines": tables.machines(sources.values()),
            "experiments": tables.experiments(frame, sources),
            "count": len(frame),
        }


def _of(frame: pd.DataFrame, labels: dict[str, str]) -> pd.DataFrame:
    for column, value in labels.items():
        frame = frame[frame[column] == value] if len(frame) else frame
    return frame


def _curve(frame: pd.DataFrame, x: str, value: str, low: str = "", high: str = "") -> Curve:
    """Columns of a table as a line; without an interval where none is named."""
    nothing = np.full(len(frame), np.nan)
    ends = (frame[name].to_numpy(float) if name in frame else nothing for name in (low, high))
    return Curve(frame[x].to_numpy(float), frame[value].to_numpy(float), *ends)


def _asked(study: Study, axis: str | None = None) -> Commands:
    return Commands(() if study.request is None else generalize_command(study.request, axis), UNTOLD)


def _study_summary(study: Study) -> Table:
    rows = [
        Row([
            Head(str(row["optimizer"])),
            *(named(row, name, 2) for name in ("in_score", "out_score", "gap")),
            "" if pd.isna(row.get("worst_axis")) else f"{row['worst_axis']} {row.get('worst_point', '')}",
            _asked(study),
        ])
        for row in study.summary.to_dict("records")
    ]  # fmt: skip
    names = ["optimizer", "IQM in its training distribution", "IQM outside", "gap", "worst point", "command"]
    return Table("In and out of the training distribution, with 95 % intervals", headings(names), rows)


def _heat_map(study: Study, names: Sequence[str]) -> Table:
    """A row a point; framed what lies in the training distribution, in brackets returns where there is no scale."""
    points = study.points
    found = points.set_index(["axis", "point", "optimizer"])
    rows = []
    for axis, point in points[["axis", "point"]].drop_duplicates().itertuples(index=False, name=None):
        cells: list[Any] = [Head(axis), point]
        for name in names:
            if (axis, point, name) not in found.index:
                cells.append("")
                continue
            row = found.loc[(axis, point, name)]
            scored = pd.notna(row["score"])
            text = (
                interval(row["score"], row["score_low"], row["score_high"], 2) if scored else f"({number(row['mean'])})"
            )
            heat = round(min(max(row["score"] / 2, 0.0), 1.0), 3) if scored else None
            kind = "in" if row["distribution"] == "in" else ""
            cells.append(numeric(text + _MARKS.get(row["distribution"], ""), row["score"], heat, kind))
        rows.append(Row([*cells, _asked(study, None if axis == TRAINING else axis)]))
    caption = ("Mean scores at each point, colored around 1; framed: in the optimizer's training distribution; "
               "°: outside of it; ?: not known; in brackets: the return, where there is no scale")  # fmt: skip
    return Table(caption, headings(["axis", "point", *names, "command"]), rows, "heat")


def _evaluations(history: pd.DataFrame) -> list[str]:
    """``cartpole 450 (Adam 480)``, of the last generation that was evaluated."""
    found = []
    for column in (name for name in history if name.startswith("return.")):
        known, environment = history[column].dropna(), column.removeprefix("return.")
        adam = history.get(f"adam.{environment}", pd.Series(dtype=float)).dropna()
        if len(known):
            found.append(
                f"{environment} {number(known.iloc[-1])}" + (f" (Adam {number(adam.iloc[-1])})" if len(adam) else "")
            )
    return found
