"""What a person sees while a study trains or θ evolves: bars in a terminal, plain lines in a log, or nothing."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from open_bench.meta.evolution import Progress as MetaWatcher
from open_bench.meta.run import MetaTrained
from open_bench.meta.writers import FIGURE
from open_bench.runs.cell import Cell
from open_bench.runs.execute import Progress as Watcher

PLAIN_SECONDS = 15.0  # between two lines of one cell


class Bars(Watcher):
    """A bar for the whole study and one for the cell at work, with its latest return and the time left."""

    def __init__(self, console: Console):
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._study: Any = None
        self._cell: Any = None
        self._measured: Any = None

    def watch(self) -> AbstractContextManager[Any]:
        return self._bars

    def planned(self, cells: Sequence[Cell], repetitions: int) -> None:
        total = sum(cell.lifetime_steps for cell in cells) * repetitions
        self._study = self._bars.add_task("[bold]study", total=total, note=f"{len(cells)} cells")
        self._repetitions = repetitions

    def cell_started(self, cell: Cell, repetitions: list[int]) -> None:
        total = cell.num_updates * len(repetitions)
        name = f"{cell.environment.name} {cell.optimizer}"
        self._cell = self._bars.add_task(name, total=total, note="compiling")

    def compiled(self, cell: Cell, seconds: float) -> None:
        self._bars.update(self._cell, note=f"compiled in {seconds:.0f} s")

    def advanced(self, cell: Cell, updates: int, episode_return: float, diverged: int) -> None:
        self._bars.update(self._cell, advance=updates, note=_note(episode_return, diverged))
        self._bars.update(self._study, advance=updates * cell.environment.ppo.batch_size)

    def cell_finished(self, cell: Cell, trained: int) -> None:
        if self._cell is not None:
            self._bars.remove_task(self._cell)
            self._cell = None
        stored = (self._repetitions - trained) * cell.lifetime_steps
        self._bars.update(self._study, advance=stored)

    def measuring(self, what: str, done: int, total: int) -> None:
        if self._measured is None:
            self._measured = self._bars.add_task("[bold]random policy", total=total, note="")
        self._bars.update(self._measured, completed=done, note=what)

    def waiting(self, cells: list[Cell]) -> None:
        self._bars.update(self._study, note=f"waiting for another process ({len(cells)} cells)")


class Lines(Watcher):
    """A line at the start and the end of each cell and every so often between, for logs."""

    def __init__(self, console: Console):
        self._console = console
        self._start = self._last = time.monotonic()
        self._done = self._total = self._in_cell = 0
        self._waited = False
        self._return, self._diverged = math.nan, 0

    def planned(self, cells: Sequence[Cell], repetitions: int) -> None:
        self._total = sum(cell.lifetime_steps for cell in cells) * repetitions
        self._repetitions = repetitions
        self._say(f"{len(cells)} cells, {repetitions} seeds each")

    def cell_started(self, cell: Cell, repetitions: list[int]) -> None:
        self._in_cell, self._last = 0, time.monotonic()
        self._say(
            f"{cell.environment.name} · {cell.optimizer}: seeds {_spans(repetitions)}, {cell.num_updates} updates"
        )

    def advanced(self, cell: Cell, updates: int, episode_return: float, diverged: int) -> None:
        self._done += updates * cell.environment.ppo.batch_size
        self._in_cell += updates
        self._return, self._diverged = episode_return, diverged
        if time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            elapsed = self._last - self._start
            left = elapsed * (self._total - self._done) / max(1, self._done)
            self._say(
                f"{cell.environment.name} · {cell.optimizer}: {self._in_cell} updates, "
                f"{_note(episode_return, diverged)}; study {self._done / self._total:.0%}, about {left:.0f} s left"
            )

    def cell_finished(self, cell: Cell, trained: int) -> None:
        self._done += (self._repetitions - trained) * cell.lifetime_steps
        note = _note(self._return, self._diverged) if trained else "stored already"
        self._say(f"{cell.environment.name} · {cell.optimizer}: done, {note}")

    def measuring(self, what: str, done: int, total: int) -> None:
        if done < total:
            self._say(f"{what} · random policy: {done + 1} of {total}")

    def waiting(self, cells: list[Cell]) -> None:
        if not self._waited:
            self._say(f"waiting for another process that trains {len(cells)} of these cells")
        self._waited = True

    def _say(self, text: str) -> None:
        seconds = time.monotonic() - self._start
        self._console.print(f"[{seconds:6.0f} s] {text}", markup=False, highlight=False, soft_wrap=True)


class MetaBars(MetaWatcher):
    """A bar over generations, with the fitness of the last one and the share of the present one that is done."""

    def __init__(self, console: Console):
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: Any = None
        self._done, self._note, self._evaluation = 0, "", ""

    def watch(self) -> AbstractContextManager[Any]:
        return self._bars

    def planned(self, name: str, generations: int, done: int, parameters: int) -> None:
        self._done = done
        self._task = self._bars.add_task(f"[bold]{name}", total=generations, completed=done, note="compiling")

    def evaluated(self, lifetimes: int, total: int) -> None:
        share = f"{self._note}  ({lifetimes}/{total} lifetimes)"
        self._bars.update(self._task, completed=self._done + lifetimes / total, note=share)

    def generation(self, row: dict[str, Any], seconds_left: float) -> None:
        self._evaluation = evaluation_note(row) or self._evaluation  # the latest stays in sight
        left = f", {_duration(seconds_left)} left" if seconds_left > 0 else ""
        self._done, self._note = row["generation"], f"{fitness_note(row)}{self._evaluation}{left}"
        self._bars.update(self._task, completed=self._done, note=self._note)


class MetaLines(MetaWatcher):
    """A line for the first, the last and every evaluated generation, and one every so often between, for logs."""

    def __init__(self, console: Console):
        self._console = console
        self._start = time.monotonic()
        self._last = -math.inf
        self._total = 0

    def planned(self, name: str, generations: int, done: int, parameters: int) -> None:
        self._total = generations
        resumed = f", going on after generation {done}" if done else ""
        self._say(f"{name}: {generations} generations, θ has {parameters:,} numbers{resumed}")

    def compiled(self, environment: str, seconds: float) -> None:
        self._say(f"{environment}: compiled in {seconds:.1f} s")

    def generation(self, row: dict[str, Any], seconds_left: float) -> None:
        evaluation, ends = evaluation_note(row), row["generation"] == self._total
        if evaluation or ends or time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            left = "" if ends else f", about {_duration(seconds_left)} left"
            self._say(f"generation {row['generation']}/{self._total}: {fitness_note(row)}{evaluation}{left}")

    def _say(self, text: str) -> None:
        seconds = time.monotonic() - self._start
        self._console.print(f"[{seconds:6.0f} s] {text}", markup=False, highlight=False, soft_wrap=True)


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


def meta_report(done: MetaTrained) -> str:
    """What a meta-training ended with: the course of fitness, the cost, and where the weights lie."""
    first, last = done.history.iloc[0], done.history.iloc[-1]
    return (
        f"fitness {first['fitness_mean']:.4g} → {last['fitness_mean']:.4g} over {int(last['generation'])} generations, "
        f"{int(last['lifetimes']):,} lifetimes, {int(last['env_steps']):,} env steps, {_duration(last['seconds'])}\n"
        f"weights {done.hash[:12]}: {done.path}, to be used as {done.optimizer}\n"
        f"history and checkpoints: {done.folder}; figure: {done.folder / (FIGURE + '.png')}"
    )


def _duration(seconds: float) -> str:
    """Seconds for people: 42 s, 7 min, 3.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _note(episode_return: float, diverged: int) -> str:
    shown = "no episode finished yet" if math.isnan(episode_return) else f"return {episode_return:.4g}"
    return shown + (f", {diverged} diverged" if diverged else "")


def _spans(numbers: list[int]) -> str:
    """1, 2, 3, 7 → "1–3, 7"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in spans)
