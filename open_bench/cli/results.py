"""``openbench leaderboard``, ``report``, ``export``, ``import``, ``verify``: what is stored, shown, sent, checked."""

import sys
from pathlib import Path
from typing import Any

import click

from open_bench.cli import console
from open_bench.cli.options import ALIAS, JSON, RESULTS, runs
from open_bench.config import Execution

WRITTEN = ("leaderboard.csv", "leaderboard.md", "figures/")


@click.command()
@RESULTS
@click.option("--budget", help="Only this budget.")
@click.option("--env", "-e", "environments", multiple=True, help="Rank by this environment alone; repeatable.")
@click.option("--track", "tracks", multiple=True,
              help="Show only rows of this track: default, 'one setting', tuned, published, learned, given, mixed; "
                   "repeatable.")  # fmt: skip
@click.option("--metric", default="final_return", show_default=True,
              help="Column to rank by; mean_return is the area under the learning curve over its length.")  # fmt: skip
@click.option("--figures", default="png", show_default=True, metavar="FORM,…", help="Forms of figures: png, svg, pdf.")
@click.option("--format", "form", type=click.Choice(["csv", "md", "tex"]),
              help="Print the board so, and nothing else.")  # fmt: skip
@ALIAS
@JSON
def leaderboard(results: Path, figures: str, form: str | None, as_json: bool, **request: Any) -> None:
    """Write the leaderboard and the figures of a results folder anew, from its stored experiments and trials.

    \b
    openbench leaderboard --format tex > board.tex
    openbench leaderboard --figures pdf,svg
    openbench leaderboard -e asterix -e spaceinvaders
    """
    from open_bench import api

    board = api.leaderboard(results, figures=[each.strip() for each in figures.split(",")], **request)
    if form is None or as_json:
        print_board(board, results, as_json)
    else:
        console.say({"csv": board.to_csv, "md": board.to_markdown, "tex": board.to_latex}[form]().removesuffix("\n"))


@click.command()
@click.argument("results", type=click.Path(path_type=Path), default=Path("results"))
@click.option("--output", "path", type=click.Path(path_type=Path), help="In place of RESULTS/report.html.")
@click.option("--budget", help="Only boards of this budget.")
@ALIAS
def report(results: Path, **request: Any) -> None:
    """Write RESULTS, a results folder, as one HTML page: boards, curves, tuning and whatever else it holds.

    \b
    openbench report results/quick
    """
    from open_bench import api

    console.say(f"Written: {api.report(results, **request)}")


def print_board(board: Any, results: Path, as_json: bool) -> None:
    """A leaderboard, and where it was written."""
    if as_json:
        boards = [
            {"title": each.title, "table": console.records(each.table), "notes": list(each.notes)}
            for each in board.boards
        ]
        console.show_json({"boards": boards, "written": [str(results / name) for name in WRITTEN]})
        return
    console.show(board.to_rich(console.width()))
    console.say(f"Written: {results}/{', '.join(WRITTEN)}")


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@RESULTS
@click.option("--overwrite", is_flag=True, help="Replace TARGET where it exists.")
def export(target: Path, results: Path, overwrite: bool) -> None:
    """Write the runs of a results folder to TARGET: an archive (.zip), or a tidy table with a row a seed (.csv).

    \b
    openbench export mine.zip
    openbench export mine.csv

    An archive has the board, that table, and every experiment with provenance and checksums. The same runs give the
    same bytes.
    """
    import open_bench

    console.say(f"Written: {open_bench.export(target, results, overwrite)}")


@click.command("import")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE...")
@RESULTS
@JSON
def import_(sources: tuple[Path, ...], results: Path, as_json: bool) -> None:
    """Merge archives of `openbench export` and results folders into one folder.

    \b
    openbench import theirs.zip ../other/results

    Everything is checked before anything is written: digests, values, protocol, and that seeds which are there already
    have the same numbers. Nothing that a SOURCE names is run.
    """
    import open_bench

    found = open_bench.import_results(*sources, results=results)
    if as_json:
        console.show_json(console.records(found))
        return
    for (source, counted), rows in found.groupby(["source", "counted"], sort=False):
        added, known = int(rows["added"].sum()), int(rows["known"].sum())
        what = "experiments" if counted == "seed" else "folders of trials"
        console.say(f"{source}: {len(rows)} {what}, {added} {counted}s added, {known} known before")
    console.say(f"`openbench leaderboard --results {results}` ranks them")


@click.command()
@click.argument("num_seeds", type=int, default=4, metavar="[N]")
@click.option("--root-seed", type=click.IntRange(0, 2**32 - 1),
              help="Root of the sample's keys; by default another sample each time.")  # fmt: skip
@click.option("--own-code", is_flag=True,
              help="Import what experiments name from outside open-bench, and run it.")  # fmt: skip
@runs
def verify(execution: Execution, as_json: bool, **request: Any) -> None:
    """Run a random sample of N stored seeds (4) again and compare. Exits with 1 when one disagrees.

    \b
    openbench verify 8 --results results/theirs

    On the same kind of machine every bit must be the same; elsewhere returns must agree within tolerance, or as two
    draws of one distribution. What is damaged is named too. Nothing is written.
    """
    from open_bench import api
    from open_bench.cli.listings import verified

    found = api.verify(execution=execution, **request)
    if as_json:
        rows = console.records(found.rows)
        told = {"skipped": found.skipped, "damaged": list(found.damaged), "root_seed": found.root_seed}
        console.show_json({"passed": found.passed, "conclusive": found.conclusive, "rows": rows, **told})
    else:
        console.show(verified(found.rows).drawn(console.width()))
        for problem in found.damaged:
            console.complain("error", f"damaged: {problem}")
        for name, reason in found.skipped.items():
            console.complain("warning", f"not run again: {name}: {reason}")
        verdict = f"Verified, {found.conclusive} of {len(found.rows)} seeds" if found.passed else "NOT verified"
        if found.passed and not found.conclusive:
            verdict = "Nothing could be said: take more seeds, or the kind of machine that made them"
        console.say(f"{verdict}; this sample again: --root-seed {found.root_seed}")
    if not found.passed:
        sys.exit(1)
