"""The command line of the campaigns; see the package."""

import os
import sys
import tempfile
import warnings
from pathlib import Path

# Before JAX is imported: a campaign compiles many small programs and cares for none of their speed.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click

from tooling.campaigns import disturb, downloads, fuzz
from tooling.campaigns.tally import COLUMNS, Tally, write_row

CAMPAIGNS = {
    "names": (fuzz.Names, 2000),
    "tomls": (fuzz.Tomls, 2000),
    "weights": (fuzz.Weights, 2000),
    "results": (fuzz.Results, 2000),
    "archives": (fuzz.Archives, 2000),
    "downloads": (downloads.Downloads, 200),
    "kills": (disturb.Kills, 100),
    "full disk": (disturb.FullDisk, 40),
    "read-only folder": (disturb.ReadOnly, 10),
    "clock": (disturb.Clock, 20),
    "shared folder": (disturb.Shared, 10),
}


def run(kind: str, cases: int, seed: int, first: int = 0) -> Tally:
    """Cases ``first`` to ``first + cases - 1`` of a campaign."""
    tally = Tally(kind, seed)
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = CAMPAIGNS[kind][0](Path(folder))
        for number in range(first, first + cases):
            tally.judge(number, case)
    return tally


@click.command()
@click.argument("kinds", nargs=-1, required=True, type=click.Choice([*CAMPAIGNS, "all"]))
@click.option("--cases", type=int, help="Of each kind; by default as many as the table has.")
@click.option("--seed", default=0, show_default=True, help="Of all dice.")
@click.option("--first", default=0, show_default=True, help="Number of the first case.")
@click.option("--write", is_flag=True, help="Put the rows into docs/reliability.md.")
def main(kinds: tuple[str, ...], cases: int | None, seed: int, first: int, write: bool) -> None:
    """Run campaigns and print a row of the table for each."""
    click.echo(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    failed = False
    for kind in CAMPAIGNS if "all" in kinds else kinds:
        tally = run(kind, CAMPAIGNS[kind][1] if cases is None else cases, seed, first)
        click.echo(tally.row())
        for fault in tally.faults:
            click.echo(f"{kind}, {fault}", err=True)
        failed |= bool(tally.faults)
        if write:
            write_row(tally)
    sys.exit(failed)


if __name__ == "__main__":
    main()
