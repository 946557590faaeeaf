"""What a person sees while something trains: bars in a terminal or a notebook, plain lines in a log.

Both are watchers (``open_bench.events``) of experiments, imitations and generations alike. ``Tally`` keeps the numbers,
the rest draws them. Updates are always those of one lifetime; time left leaves compilation out where it is over, and
puts the mean of those seen where it is still ahead.
"""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from open_bench.events import (
    Advanced,
    Compiled,
    Compiling,
    Ended,
    Evaluated,
    Event,
    Finished,
    Fitted,
    Generation,
    Started,
    Waiting,
    Watcher,
    Work,
)
from open_bench.text import duration

PLAIN_SECONDS = 15.0  # between two lines about one part
NOTEBOOK_SECONDS = 0.5  # between two pictures in a notebook
Clock = Callable[[], float]


def default_watcher(console: Console | None = None) -> Watcher:
    """Bars where they can be drawn, in a terminal or a notebook; else lines. On stderr."""
    console = console or Console(stderr=True)
    if console.is_jupyter:
        return notebook()
    return bars(console) if console.is_terminal else Lines(console)


# --- the numbers ------------------------------------------------------------------------------------------------------


class Tally:
    """How far the work is, counted from its events.

    ``share`` (0 … 1) is of all env steps, batches or generations; ``seconds_left`` is NaN while nothing is known.
    """

    def __init__(self, clock: Clock = time.monotonic):
        self._clock = clock
        self._begin(Started(""))

    def _begin(self, started: Started) -> None:
        self.started = started
        self.since = self._clock()
        self.now: Work | None = None  # the part at work
        self.compiling = self.over = False
        self.updates, self.at_work = 0.0, 0  # of each lifetime at work since it began; how many they are
        self.seeds_done = 0  # of the part at work
        self._places: dict[str, tuple[float, int]] = {}  # these two of parts that others came between
        self._ends: dict[str, list[tuple[float, int, int]]] = {}  # by part: last return of seeds, how many, diverged
        self.waiting = 0
        self.episode_return, self.diverged = math.nan, 0
        self.row: dict[str, Any] = {}
        self.evaluation = ""  # the latest stays in sight
        self.generation = started.generations_done
        self.batch = started.batches_done
        self.lifetimes = 0  # of the generation at work
        self.total = sum(work.lifetimes for work in started.work)  # of a generation
        self._left: dict[str, float] = {
            work.name: work.env_steps * (work.lifetimes - work.stored) for work in started.work
        }
        self._steps: dict[str, float] = {}  # made now, by part
        self._seconds: dict[str, float] = {}  # that they took
        self._compilations: list[float] = []
        measured = started.seconds if started.generations_done else None  # by the generations that are stored
        self._known_left, self._known_at = math.nan if measured is None else measured, self.since
        self._idle = 0.0  # seconds of this generation that were compilation

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self._begin(event)
            case Compiling(work):
                self._turn_to(work)
                self.compiling = True
                if self.staged:
                    self.updates, self.seeds_done = 0.0, work.stored
                self.episode_return, self.diverged, self.waiting = math.nan, 0, 0
            case Compiled(_, seconds):
                self.compiling = False
                self._compilations.append(seconds)
                self._idle += seconds
            case Advanced():
                self._advance(event)
            case Finished(work, _):
                self._left[work.name] = 0.0
            case Waiting(parts):
                self.waiting = parts
            case Evaluated(lifetimes, total):
                self.lifetimes, self.total, self.updates = lifetimes, total, 0.0
            case Fitted(row, seconds_left):
                self.row, self.batch, self.updates = row, row["batch"], 0.0
                self.evaluation = imitation_note(row) or self.evaluation
                self._known_left, self._known_at = seconds_left, self._clock()
            case Generation(row, seconds_left):
                self._next_generation(row, seconds_left)
            case Ended():
                self.over = True

    def _advance(self, event: Advanced) -> None:
        work, each = event.work, event.updates / max(1, event.lifetimes)
        if self.started.batches and (work != self.now or self.updates >= work.updates):  # the next are recorded
            self.updates = 0.0
        self._turn_to(work)
        self.at_work, self.compiling = event.lifetimes, False
        self.updates += each
        if not self.staged and self.updates >= work.updates:  # these seeds are done, the next begin
            self.updates -= work.updates
            self.seeds_done += event.lifetimes
            self._ends.setdefault(work.name, []).append((event.episode_return, event.lifetimes, event.diverged))
        self.episode_return, self.diverged = event.episode_return, event.diverged
        steps = event.updates * work.env_steps / work.updates
        self._left[work.name] = max(0.0, self._left.get(work.name, 0.0) - steps)
        if event.seconds > 0:  # what a checkpoint held took no time now
            self._steps[work.name] = self._steps.get(work.name, 0.0) + steps
            self._seconds[work.name] = self._seconds.get(work.name, 0.0) + event.seconds

    def _turn_to(self, work: Work) -> None:
        """On a cluster several experiments are under way by turns."""
        if self.now is not None and not self.staged:
            self._places[self.now.name] = (self.updates, self.seeds_done)
        if not self.staged:
            self.updates, self.seeds_done = self._places.get(work.name, (0.0, work.stored))
        self.now = work

    def _next_generation(self, row: dict[str, Any], seconds_left: float) -> None:
        self.row, self.generation, self.lifetimes, self.updates = row, row["generation"], 0, 0.0
        self.evaluation = evaluation_note(row) or self.evaluation
        self._known_left, self._known_at, self._idle = seconds_left, self._clock(), 0.0

    def outcome(self, work: Work) -> tuple[float, int]:
        """The mean return at the end of a part's lifetimes that were made now, and how many of them diverged."""
        ends = self._ends.get(work.name, [])
        known = [(episode_return, count) for episode_return, count, _ in ends if not math.isnan(episode_return)]
        seeds = sum(count for _, count in known)
        mean = sum(episode_return * count for episode_return, count in known) / seeds if seeds else math.nan
        return mean, sum(diverged for *_, diverged in ends)

    @property
    def staged(self) -> bool:
        """Whether lifetimes serve batches or generations, and are no experiments."""
        return bool(self.started.batches or self.started.generations)

    @property
    def share(self) -> float:
        if self.started.batches:
            return self.batch / self.started.batches
        if self.started.generations:
            part = (self.lifetimes + self._begun()) / self.total if self.total else 0.0
            return min(1.0, (self.generation + part) / self.started.generations)
        total = sum(work.env_steps * work.lifetimes for work in self.started.work)
        return 1.0 - sum(self._left.values()) / total if total else 0.0

    @property
    def finished(self) -> int:
        """Parts of which nothing is left."""
        return sum(left <= 0 for left in self._left.values())

    @property
    def seconds_left(self) -> float:
        if self.started.batches:
            return max(self._known_left - (self._clock() - self._known_at), 0.0)  # in this order NaN stays
        return self._generations_left() if self.started.generations else self._experiments_left()

    def _experiments_left(self) -> float:
        steps, seconds = sum(self._steps.values()), sum(self._seconds.values())
        if not steps or not seconds:
            return math.nan
        slowness = {name: self._seconds[name] / self._steps[name] for name in self._steps}
        training = sum(left * slowness.get(name, seconds / steps) for name, left in self._left.items())
        ahead = sum(left > 0 and name not in self._steps for name, left in self._left.items())
        compilation = sum(self._compilations) / len(self._compilations) if self._compilations else 0.0
        return training + ahead * compilation

    def _generations_left(self) -> float:
        passed = self._clock() - self._known_at
        if not math.isnan(self._known_left):
            return max(0.0, self._known_left - passed)
        ran, done = passed - self._idle, self.lifetimes + self._begun()
        if not done or not self.total or ran <= 0:
            return math.nan
        wanted = (self.started.generations - self.generation) * self.total
        return ran * (wanted - done) / done

    def _begun(self) -> float:
        """Lifetimes' worth of updates in those that are under way, where their events say so."""
        return 0.0 if self.now is None else self.at_work * self.updates / self.now.updates

    def interrupted(self) -> str:
        """What to tell whoever stopped the work: what is stored, truthfully."""
        if self.started.batches:
            return f"Interrupted after {many(self.batch, 'batch', 'es')}; the same command goes on from what is stored."
        if self.started.generations and not self.generation:
            return "Interrupted before the first generation ended: nothing is stored yet."
        if self.started.generations:
            return f"Interrupted. Generation {self.generation} is stored; the same command goes on from there."
        if self.started.work and not self._steps and not any(work.stored for work in self.started.work):
            return "Interrupted before anything was trained: nothing is stored yet."
        return "Interrupted. What was finished is stored; the same command goes on from here."


# --- in words ---------------------------------------------------------------------------------------------------------


def many(count: int, one: str, plural: str = "s") -> str:
    """1, "seed" → "1 seed"; 2000, "seed" → "2,000 seeds"."""
    return f"{count:,} {one}{'' if count == 1 else plural}"


def spans(numbers: Iterable[int]) -> str:
    """0, 1, 2, 7 → "0–2, 7"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in found)


def left_note(seconds: float) -> str:
    """ "7.5 min left", "– left" where nothing is known."""
    return f"{duration(seconds) or '–'} left"


def plan_note(started: Started) -> str:
    """What is ahead, such as "12 experiments, 4 seeds each"."""
    if started.batches:
        done = f", going on after batch {started.batches_done}" if started.batches_done else ""
        then = f", then {many(started.generations, 'generation')}" if started.generations else ""
        batches = many(started.batches, "batch", "es")
        return f"imitation, {batches}{then}, θ has {many(started.parameters, 'number')}{done}"
    if started.generations:
        done = f", going on after generation {started.generations_done}" if started.generations_done else ""
        return f"{many(started.generations, 'generation')}, θ has {many(started.parameters, 'number')}{done}"
    wanted = {work.lifetimes for work in started.work}
    total = sum(work.lifetimes for work in started.work)
    seeds = f"{many(wanted.pop(), started.work[0].counted)} each" if len(wanted) == 1 else many(total, "lifetime")
    stored = sum(work.stored for work in started.work)
    return many(len(started.work), "experiment") + f", {seeds}" + (f", {stored:,} stored already" if stored else "")


def plan_report(started: Started) -> str:
    """All that is ahead, a line a part, for whoever wants to know before it begins."""
    generations = 0 if started.batches else started.generations
    each = " a generation" if generations else ""
    parts = [
        f"  {work.label}: {many(work.lifetimes, 'lifetime')}{each} of {many(work.updates, 'update')} "
        f"({work.env_steps:,} env steps)" + (f", {work.stored:,} stored already" if work.stored else "")
        for work in started.work
    ]
    missing = sum(work.env_steps * (work.lifetimes - work.stored) for work in started.work)
    missing *= generations - started.generations_done if generations else 1
    guess = "" if started.seconds is None else f", about {duration(started.seconds)} on this machine"
    own = [f"{started.title}: {plan_note(started)}", *parts, f"  ahead: {missing:,} env steps{guess}"]
    return "\n".join([*own, *map(plan_report, started.later)])


def fitness_note(row: dict[str, Any]) -> str:
    """A generation's fitness: mean ± spread, best, and how many members failed."""
    text = f"fitness {row['fitness_mean']:.4g} ± {row['fitness_std']:.2g}, best {row['fitness_best']:.4g}"
    return text + "".join(f", {row[key]} {key}" for key in ("diverged", "unfinished") if row[key])


def evaluation_note(row: dict[str, Any]) -> str:
    """The mean θ against Adam on each environment; empty where it was not evaluated."""
    environments = [key.removeprefix("return.") for key in row if key.startswith("return.")]
    return "".join(
        f"; mean θ on {name} {row[f'return.{name}']:.4g} (Adam {row[f'adam.{name}']:.4g})" for name in environments
    )


def fit_note(row: dict[str, Any]) -> str:
    """Where an imitation is: its round and losses."""
    losses = f"loss {row['loss']:.4g}, held out {row['held_out_loss']:.4g}"
    return f"round {row['round']}: {losses}"


def imitation_note(row: dict[str, Any]) -> str:
    """What θ earns beside the teachers on each environment; empty where it was not looked at."""
    names = [key.removeprefix("return.") for key, x in row.items() if key.startswith("return.") and not math.isnan(x)]
    return "".join(f"; on {name} {row[f'return.{name}']:.4g} (teacher {row[f'teacher.{name}']:.4g})" for name in names)


def return_note(episode_return: float, diverged: int) -> str:
    """The latest returns, and how many lifetimes have failed."""
    shown = "no episode finished yet" if math.isnan(episode_return) else f"return {episode_return:.4g}"
    return shown + (f", {diverged} diverged" if diverged else "")


def work_note(tally: Tally) -> str:
    """Where the part at work is: updates of a lifetime, never summed over lifetimes."""
    work = tally.now
    if work is None or tally.compiling:
        return "compiling"
    text = f"{tally.updates:.0f} of {work.updates:,} updates"
    if not tally.staged and work.lifetimes > 1:
        text += f", {tally.seeds_done} of {many(work.lifetimes, work.counted)} done"
    return f"{text}; {return_note(tally.episode_return, tally.diverged)}"


def stage_note(tally: Tally) -> str:
    """The last batches' losses or the last generation's fitness, and how far the present one is."""
    if not tally.row:
        return under_way_note(tally)
    note = fit_note if tally.started.batches else fitness_note
    return "; ".join([note(tally.row) + tally.evaluation, *_lifetimes(tally)])


def under_way_note(tally: Tally) -> str:
    """How far the present generation is."""
    at_work = []
    if tally.now is not None:
        at_work = [f"{tally.now.label}: {'compiling' if tally.compiling else work_note(tally)}"]
    return "; ".join([*_lifetimes(tally), *at_work]) or "compiling"


def _lifetimes(tally: Tally) -> list[str]:
    counted = tally.total and not tally.over and not tally.started.batches
    return [f"{tally.lifetimes} of {many(tally.total, 'lifetime')}"] if counted else []


def picture(tally: Tally, width: int, elapsed: float) -> list[str]:
    """The display as one or two lines of at most ``width`` characters: all of the work, then what is at work now."""
    started = tally.started
    if tally.staged:
        where = f"batch {tally.batch:,} of {started.batches:,}"
        if not started.batches:
            where = f"generation {tally.generation} of {started.generations}"
        below = stage_note(tally)
    else:
        where = f"{tally.finished} of {many(len(started.work), 'experiment')}"
        below = f"{tally.now.label}: {work_note(tally)}" if tally.now else ""
        if tally.waiting:
            below = f"waiting for another process that trains {tally.waiting} of these"
    time_left = left_note(tally.seconds_left)
    end = f" {tally.share:4.0%}  {where}, {duration(elapsed)}, {time_left}"
    short = f" {tally.share:4.0%}  {time_left}"
    end = end if len(end) + 20 <= width else short
    title = _cut(started.title, max(6, min(30, width - len(end) - 11)))
    bar = _bar(tally.share, min(20, width - len(title) - len(end) - 1))
    return [_cut(f"{title} {bar}{end}", width), *([_cut(f"  {below}", width)] if below else [])]


def _bar(share: float, width: int) -> str:
    full = int(share * max(0, width))
    return "█" * full + "░" * (max(0, width) - full)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


# --- watchers ---------------------------------------------------------------------------------------------------------


def bars(console: Console) -> Watcher:
    """A watcher that draws in a terminal and leaves nothing behind."""
    tally = Tally()

    def draw() -> Text:
        drawn = picture(tally, console.width - 1, time.monotonic() - tally.since)
        return Text("\n".join(drawn), no_wrap=True, overflow="crop")

    live: Live | None = None  # one a stream

    def watch(event: Event) -> None:
        nonlocal live
        tally(event)
        if live is None and isinstance(event, Started):
            live = Live(console=console, get_renderable=draw, transient=True, refresh_per_second=4)
            live.start()
        elif live is not None and isinstance(event, Ended):
            live.stop()
            live = None

    return watch


def notebook() -> Watcher:
    """A watcher that draws below a notebook's cell, in place, without widgets."""
    from IPython.display import display

    tally, handle, drawn = Tally(), None, -math.inf

    def watch(event: Event) -> None:
        nonlocal handle, drawn
        tally(event)
        if time.monotonic() - drawn < NOTEBOOK_SECONDS and not isinstance(event, Started | Ended):
            return
        drawn = time.monotonic()
        shown = {"text/plain": "\n".join(picture(tally, 100, drawn - tally.since))}
        if handle is None or isinstance(event, Started):
            handle = display(shown, raw=True, display_id=True)
        elif handle is not None:
            handle.update(shown, raw=True)

    return watch


class Lines:
    """A watcher for logs: a line at the start and end of each part, and one every so often between."""

    def __init__(self, console: Console, clock: Clock = time.monotonic):
        self._console, self._clock, self._tally = console, clock, Tally(clock)
        self._start, self._last, self._waited = clock(), -math.inf, False
        self._begun = self._start  # of the generation under way

    def __call__(self, event: Event) -> None:
        self._tally(event)
        match event:
            case Started(title):
                self._begun = self._clock()
                self._say(f"{title}: {plan_note(event)}" if title else plan_note(event))
                self._last = self._clock() if not self._tally.staged else -math.inf
            case Compiling(work, seeds) if seeds:
                self._say(f"{work.label}: seeds {spans(seeds)}, {many(work.updates, 'update')}")
                self._last = self._clock()
            case Compiled(work, seconds) if self._tally.staged or seconds >= 5:
                self._say(f"{work.label}: compiled in {seconds:.1f} s")
            case Advanced(work) if not self._tally.staged:
                self._sometimes(f"{work.label}: {work_note(self._tally)}; {self._tally.share:.0%} of all, ")
            case Finished(work, trained) if not self._tally.staged:
                note = return_note(*self._tally.outcome(work)) if trained else "stored already"
                self._say(f"{work.label}: done, {note}")
            case Waiting(parts) if not self._waited:
                self._waited = True
                self._say(f"waiting for another process that trains {parts} of these experiments")
            case Advanced(work) if self._tally.started.batches:
                self._sometimes(f"recording {work.label}: {work_note(self._tally)}, ")
            case Advanced() | Evaluated() if self._slow():
                number = self._tally.generation + 1
                where = f"generation {number}/{self._tally.started.generations}"
                self._sometimes(f"{where}: {under_way_note(self._tally)}, ")
            case Fitted(row):
                text = f"batch {row['batch']}/{self._tally.started.batches}: {fit_note(row)}{imitation_note(row)}"
                self._sometimes(f"{text}, ", now=bool(imitation_note(row)))
            case Generation(row):
                self._generation(row)

    def _generation(self, row: dict[str, Any]) -> None:
        number, total = row["generation"], self._tally.started.generations
        evaluation = evaluation_note(row)
        text = f"generation {number}/{total}: {fitness_note(row)}{evaluation}"
        if number == total:
            self._say(text)
        else:
            self._sometimes(f"{text}, ", now=bool(evaluation) or self._slow())
        self._begun = self._clock()

    def _slow(self) -> bool:
        """Whether the generation under way takes so long that it has lines of its own."""
        return self._clock() - self._begun >= PLAIN_SECONDS

    def _sometimes(self, text: str, now: bool = False) -> None:
        if now or self._clock() - self._last >= PLAIN_SECONDS:
            self._last = self._clock()
            known = self._tally.seconds_left
            self._say(text + ("" if math.isnan(known) else "about ") + left_note(known))

    def _say(self, text: str) -> None:
        seconds = self._clock() - self._start
        self._console.print(f"[{seconds:6.0f} s] {text}", markup=False, highlight=False, soft_wrap=True)
