"""Tables of ``docs/results.md``, made from stored runs and trials, so that none is copied by hand.

    python -m tooling.result_tables            write them anew
    python -m tooling.result_tables --check    exit with 1 where one is not what the stored runs give

In the page a table stands between ``<!-- KIND FOLDER [BUDGET [ENVIRONMENT,…]] -->`` and ``<!-- end -->``; the folder
is one of ``results/published``. Kinds: ``board`` (the leaderboard, shortened, of these environments or all),
``returns`` (by environment, with intervals), ``revisions`` (of the code, by row), ``trials`` (expected best of all
trials), ``growth`` (the same against the number of trials), ``sensitivity``, ``diagnosis`` (of tuned and
learned rows in one environment).
"""

import functools
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import pandas as pd

from open_bench.evaluation import trials
from open_bench.evaluation.leaderboard import Board
from open_bench.evaluation.tables import markdown_table, returns, summary
from open_bench.experiments.session import load_runs, of_environments, stored_board
from open_bench.text import interval, number

ROOT = Path(__file__).resolve().parents[1]
PAGE, PUBLISHED = ROOT / "docs" / "results.md", ROOT / "results" / "published"
WHERE = ("budget", "environment")
PLACE = re.compile(
    r"(<!-- (?P<kind>\w+) (?P<folder>[\w-]+)(?: (?P<budget>[\w-]+)(?: (?P<environment>[\w,-]+))?)? -->\n)"
    r".*?(?P<end><!-- end -->)",
    re.DOTALL,
)
DIAGNOSTICS = ("policy_kl", "entropy", "update_ratio", "update_cosine", "dormant_fraction", "explained_variance")
SHOWN = (1, 2, 4, 8, 16, 32)  # numbers of trials


def filled(page: str) -> str:
    """The page with every table made anew."""
    return PLACE.sub(lambda found: found[1] + table(found["kind"], *found.group("folder", *WHERE)) + found["end"], page)


def table(kind: str, folder: str, budget: str | None = None, environment: str | None = None) -> str:
    """One table, in Markdown."""
    return KINDS[kind](folder, budget, *([] if environment is None else [environment]))


@functools.cache
def _board(folder: str, budget: str | None, environments: str = "") -> Board:
    place = PUBLISHED / folder
    runs = of_environments(load_runs(place), environments.split(",") if environments else ())
    (board,) = stored_board(place, runs, budget).boards
    return board


@functools.cache
def _trials(folder: str) -> pd.DataFrame:
    return trials.read_trials(PUBLISHED / folder)


def board(folder: str, budget: str | None, environments: str = "") -> str:
    """Ranks, IQM, difference to the baseline, and mean returns."""
    found = _board(folder, budget, environments)
    whole = summary(found)
    shown = ("rank", "optimizer", "track", "IQM", f"difference to {found.short[found.baseline]}")
    columns = {name: whole[name] for name in shown}
    for name, place in zip(found.scores.environments, _without_settings(found), strict=True):
        columns[place] = list(map(number, found.table[f"{found.scores.metric}:{name}"]))
    return markdown_table(list(columns), list(map(list, zip(*columns.values(), strict=True))))


def board_returns(folder: str, budget: str | None) -> str:
    """Mean final returns in each environment, with 95 % bootstrap intervals."""
    found = _board(folder, budget)
    headings, rows = returns(found)
    return markdown_table([headings[0], *_without_settings(found)], rows)


def revisions(folder: str, budget: str | None) -> str:
    """Which revision of the code trained which optimizers."""
    rows: dict[str, set[str]] = {}
    for each in _board(folder, budget).scores.experiments.to_dict("records"):
        for revision in each["revision"].split("; "):
            commit, dash, state = revision.partition("-")
            rows.setdefault(f"`{commit[:7]}{dash}{state}`", set()).add(each["optimizer"].partition(" (")[0])
    everyone = len(set.union(*rows.values()))
    told = [f"{name} ({'all' if len(who) == everyone else ', '.join(sorted(who))})" for name, who in rows.items()]
    return f"Revisions: {'; '.join(sorted(told))}.\n"


def best_trials(folder: str, budget: str | None) -> str:
    """Expected best of all trials, over all environments and in each."""
    best = _best(folder, budget)
    last = best[best["k"] == best["k"].max()]
    over_all = last[last["environment"] == trials.ALL].sort_values("value", ascending=False)
    places = [name for name in sorted(set(last["environment"])) if name != trials.ALL]
    cells = {
        (row["optimizer"], row["environment"]): interval(row["value"], row["low"], row["high"], 2)
        for row in last.to_dict("records")
    }
    rows = [[name, *(cells[name, place] for place in (trials.ALL, *places))] for name in over_all["optimizer"]]
    return markdown_table(["optimizer", "all", *places], rows)


def growth(folder: str, budget: str | None) -> str:
    """Expected best of k trials over all environments, and the agreement of the ranks with the last ones."""
    best = _best(folder, budget)
    values = best[best["environment"] == trials.ALL].pivot(index="optimizer", columns="k", values="value")
    shown = [k for k in SHOWN if k in values]
    values = values.sort_values(shown[-1], ascending=False)
    tau = trials.rank_stability(best).groupby("k")["kendall_tau"].first()
    rows = [[name, *(f"{values.loc[name, k]:.2f}" for k in shown)] for name in values.index]
    rows.append(["Kendall's τ with the last order", *(f"{tau[k]:.2f}" for k in shown)])
    return markdown_table(["optimizer", *(f"k = {k}" for k in shown)], rows)


def sensitivity(folder: str, budget: str | None) -> str:
    """Performance of each environment's setting, of one for all, and the difference Φ."""
    found = trials.sensitivity(_of(_trials(folder), budget)).sort_values("performance", ascending=False)
    names = {"performance": "tuned for each", "one_setting": "one setting", "sensitivity": "sensitivity Φ"}
    rows = [
        [row["optimizer"], *(interval(row[name], row[f"{name}_low"], row[f"{name}_high"], 2) for name in names)]
        for row in found.to_dict("records")
    ]
    return markdown_table(["optimizer", *names.values()], rows)


def diagnosis(folder: str, budget: str | None, environment: str) -> str:
    """Final returns, and each diagnostic's mean over seeds and the last fifth of the lifetimes, where it is stored."""
    runs = load_runs(PUBLISHED / folder)
    found = runs.experiments
    learned_or_tuned = found[(found["theta"] != "") | (found["hyperparameter_origin"] == "tuned")]
    runs = runs.select(experiment=list(learned_or_tuned["experiment"]))
    rows, scores = (_of(each[each["environment"] == environment], budget) for each in (runs.diagnosis, runs.scores))
    late = rows[rows["env_steps"] > 0.8 * rows["env_steps"].max()]
    returns = scores.groupby("optimizer")["final_return"].mean().sort_values(ascending=False)
    shown = [name for name in DIAGNOSTICS if name in rows]
    means = late.groupby("optimizer")[shown].mean()
    cells = [
        [each, number(returns[each]), *map("{:.3g}".format, means.loc[each])]
        for each in returns.index
        if each in means.index
    ]
    return markdown_table(["optimizer", "final return", *(name.replace("_", " ") for name in shown)], cells)


def _without_settings(board: Board) -> list[str]:
    """Environments without what is in brackets, which the page says, unless they differ in it."""
    places = [board.places[name] for name in board.scores.environments]
    plain = [place.partition("[")[0] for place in places]
    return plain if len(set(plain)) == len(plain) else places


def _best(folder: str, budget: str | None) -> pd.DataFrame:
    return trials.best_of_k(_of(_trials(folder), budget))


def _of(rows: pd.DataFrame, budget: str | None) -> pd.DataFrame:
    return rows if budget is None else rows[rows["budget"] == budget]


KINDS: dict[str, Callable[..., str]] = {
    "board": board,
    "returns": board_returns,
    "revisions": revisions,
    "trials": best_trials,
    "growth": growth,
    "sensitivity": sensitivity,
    "diagnosis": diagnosis,
}


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 where a table differs.")
def main(check: bool) -> None:
    """Write the tables of docs/results.md."""
    before = PAGE.read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = filled(before)
    if check:
        sys.exit("docs/results.md: `python -m tooling.result_tables` writes it anew" if after != before else 0)
    PAGE.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
