"""What a campaign counts, and its row in the table of ``docs/reliability.md``."""

import contextlib
import dataclasses
import itertools
import random
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from open_bench.errors import UserError
from tooling.campaigns import ROOT

COLUMNS = ("case kind", "cases", "right results", "clear refusals", "faults", "seconds", "seed", "revision")
PAGE = ROOT / "docs" / "reliability.md"
MOST_COMPUTED, MOST_WAITED = 60.0, 1800.0  # seconds; a case that takes longer hangs


class Hangs(Exception):
    """A case took too long."""


def revision() -> str:
    """The commit, with a + where files differ from it."""
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "open_bench", "tooling", "tests", "configs")
    return git("rev-parse", "--short", "HEAD").strip() + ("+" if changed.strip() else "")


@dataclasses.dataclass
class Tally:
    """Outcomes of one campaign's cases."""

    kind: str
    seed: int
    right: int = 0
    refused: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    revision: str = dataclasses.field(default_factory=revision)

    @property
    def cases(self) -> int:
        return self.right + self.refused + len(self.faults)

    def judge(self, number: int, case: Callable[[random.Random], Any]) -> None:
        """Run one case: it may succeed, or raise UserError in words; anything else is a fault."""
        begun = time.monotonic()
        try:
            with _in_time():
                case(dice(self.kind, self.seed, number))
            self.right += 1
        except UserError as error:
            if str(error).strip():
                self.refused += 1
            else:
                self.faults.append(f"case {number}: a refusal without a word")
        except Exception:
            self.faults.append(f"case {number}: {traceback.format_exc()}")
        self.seconds += time.monotonic() - begun

    def row(self) -> str:
        """The row of the table."""
        numbers = (self.cases, self.right, self.refused, len(self.faults), round(self.seconds), self.seed)
        return f"| {self.kind} | {' | '.join(f'{number:,}' for number in numbers)} | {self.revision} |"


def dice(kind: str, seed: int, number: int) -> random.Random:
    """What decides everything about a case."""
    return random.Random(f"{kind} {seed} {number}")


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """Raise Hangs in what computes or waits too long; again and again, should somebody swallow it."""

    def hangs(number: int, _: Any) -> None:
        raise Hangs(f"longer than {MOST_COMPUTED if number == signal.SIGPROF else MOST_WAITED} s")

    limits = ((signal.SIGPROF, signal.ITIMER_PROF, MOST_COMPUTED), (signal.SIGALRM, signal.ITIMER_REAL, MOST_WAITED))
    before = [signal.signal(number, hangs) for number, _, _ in limits]
    try:
        for _, timer, seconds in limits:
            signal.setitimer(timer, seconds, 1.0)
        yield
    finally:
        for (number, timer, _), handler in zip(limits, before, strict=True):
            signal.setitimer(timer, 0.0)
            signal.signal(number, handler)


def write_row(tally: Tally, page: Path = PAGE) -> None:
    """Put the row into the table, in place of one of the same kind."""
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    before, found, rest = page.read_text().partition(head)
    if not found:
        raise SystemExit(f"{page} has no table with the columns {', '.join(COLUMNS)}")
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), rest.splitlines(keepends=True)))
    kept = [line for line in rows if not line.startswith(f"| {tally.kind} |")]
    page.write_text("".join([before, head, *kept, f"{tally.row()}\n", rest[len("".join(rows)) :]]))
