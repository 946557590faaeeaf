"""What a person sees while a study trains or θ evolves: bars in a terminal, plain lines in a log, or nothing."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from open_bench.evaluation.text import duration
from open_bench.experiments.execute import Progress as Watcher
from open_bench.experiments.experiment import Experiment
from open_bench.meta_training.evolution import Progress as MetaWatcher
from open_bench.meta_training.logging import FIGURE
from open_bench.meta_training.run import MetaTrained

PLAIN_SECONDS = 15.0  # between two lines of one experiment


class Bars(Watcher):
    """A bar for the whole study and one for the experiment at work, with its latest return and the time left."""

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
        self._experiment: Any = None
        self._measured: Any = None

    def watch(self) -> AbstractContextManager[Any]:
        return self._bars

    def planned(self, experiments: Sequence[Experiment], seeds: int) -> None:
        total = sum(experiment.lifetime_steps for experiment in experiments) * seeds
        self._study = self._bars.add_task("[bold]study", total=total, note=f"{len(experiments)} experiments")
        self._seeds = seeds

    def experiment_started(self, experiment: Experiment, seeds: list[int]) -> None:
        total = experiment.num_updates * len(seeds)
        name = f"{experiment.environment.name} {experiment.optimizer}"
        self._experiment = self._bars.add_task(name, total=total, note="compiling")

    def compiled(self, experiment: Experiment, seconds: float) -> None:
        self._bars.update(self._experiment, note=f"compiled in {seconds:.0f} s")

    def advanced(self, experiment: Experiment, updates: int, episode_return: float, diverged: int) -> None:
        self._bars.update(self._experiment, advance=updates, note=_note(episode_return, diverged))
        self._bars.update(self._study, advance=updates * experiment.environment.ppo.batch_size)

    def experiment_finished(self, experiment: Experiment, trained: int) -> None:
        if self._experiment is not None:
            self._bars.remove_task(self._experiment)
            self._experiment = None
        stored = (self._seeds - trained) * experiment.lifetime_steps
        self._bars.update(self._study, advance=stored)

    def measuring(self, what: str, done: int, total: int) -> None:
        if self._measured is None:
            self._measured = self._bars.add_task("[bold]random policy", total=total, note="")
        self._bars.update(self._measured, completed=done, note=what)

    def waiting(self, experiments: list[Experiment]) -> None:
        self._bars.update(self._study, note=f"waiting for another process ({len(experiments)} experiments)")


class Lines(Watcher):
    """A line at the start and the end of each experiment and every so often between, for logs."""

    def __init__(self, console: Console):
        self._console = console
        self._start = self._last = time.monotonic()
        self._done = self._total = self._in_experiment = 0
        self._waited = False
        self._return, self._diverged = math.nan, 0

    def planned(self, experiments: Sequence[Experiment], seeds: int) -> None:
        self._total = sum(experiment.lifetime_steps for experiment in experiments) * seeds
        self._seeds = seeds
        self._say(f"{len(experiments)} experiments, {seeds} seeds each")

    def experiment_started(self, experiment: Experiment, seeds: list[int]) -> None:
        self._in_experiment, self._last = 0, time.monotonic()
        self._say(
            f"{experiment.environment.name} · {experiment.optimizer}: seeds {_spans(seeds)}, {experiment.num_updates} updates"
        )

    def advanced(self, experiment: Experiment, updates: int, episode_return: float, diverged: int) -> None:
        self._done += updates * experiment.environment.ppo.batch_size
        self._in_experiment += updates
        self._return, self._diverged = episode_return, diverged
        if time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            elapsed = self._last - self._start
            left = elapsed * (self._total - self._done) / max(1, self._done)
            self._say(
                f"{experiment.environment.name} · {experiment.optimizer}: {self._in_experiment} updates, "
                f"{_note(episode_return, diverged)}; study {self._done / self._total:.0%}, about {left:.0f} s left"
            )

    def experiment_finished(self, experiment: Experiment, trained: int) -> None:
        self._done += (self._seeds - trained) * experiment.lifetime_steps
        note = _note(self._return, self._diverged) if trained else "stored already"
        self._say(f"{experiment.environment.name} · {experiment.optimizer}: done, {note}")

    def measuring(self, what: str, done: int, total: int) -> None:
        if done < total:
            self._say(f"{what} · random policy: {done + 1} of {total}")

    def waiting(self, experiments: list[Experiment]) -> None:
        if not self._waited:
            self._say(f"waiting for another process that trains {len(experiments)} of these experiments")
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
        left = f", {duration(seconds_left)} left" if seconds_left > 0 else ""
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
            left = "" if ends else f", about {duration(seconds_left)} left"
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
        f"{int(last['lifetimes']):,} lifetimes, {int(last['env_steps']):,} env steps, {duration(last['seconds'])}\n"
        f"weights {done.hash[:12]}: {done.path}, to be used as {done.optimizer}\n"
        f"history and checkpoints: {done.folder}; figure: {done.folder / (FIGURE + '.png')}"
    )


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
