"""Histories told to writers: TensorBoard event files and Weights & Biases, each row once and in order.

A history is what is stored: an evolution's generations, an experiment's learning curve. So nothing is lost or told
twice, whatever was interrupted. A writer that fails is left out with a warning: training does not depend on it.
"""

import functools
import importlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import jax

from open_bench.errors import UserError, installed_with
from open_bench.events import Event, Finished, Watcher, several
from open_bench.experiments.execute import label_of
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.store import Store
from open_bench.training.record import METRICS

Row = dict[str, Any]  # a line of a history; one of its columns, the step, ascends
EVENTS = "tensorboard"  # folder of event files
CURVE_STEP = "env_steps"


class Writer(Protocol):
    """Something that is told a history."""

    name: str  # in messages

    def begin(self) -> int:
        """Open; returns the last step that is there already, or 0: rows up to it will not be told again."""

    def write(self, rows: Sequence[Row]) -> None:
        """The rows that follow those told before."""

    def end(self, finished: bool) -> None:
        """Close; ``finished``: the history is complete."""


class Told:
    """A history and the writers that are told it.

    Args:
        step: the column that tells a row's place.
        stored: reads all rows that there are.
        writers: are told.
    """

    def __init__(self, step: str, stored: Callable[[], list[Row]], writers: Sequence[Writer]):
        self._step, self._stored, self._writers = step, stored, writers
        self._told: dict[Writer, int] = {}  # last step by open writer

    def begin(self, spare: bool = False) -> None:
        """Open the writers; ``spare``: one that cannot be opened is left out with a warning.

        Raises:
            UserError: one cannot be opened.
        """
        for writer in self._writers:
            try:
                self._told[writer] = writer.begin()
            except Exception as error:
                reason = f"{writer.name} cannot be started: {type(error).__name__}: {error}"
                reason = str(error) if isinstance(error, UserError) else reason
                if not spare:
                    raise UserError(reason) from error
                warnings.warn(f"{reason}. Training goes on.", stacklevel=1)

    def tell(self, row: Row | None = None) -> None:
        """Pass on what is new; ``row`` spares reading what is stored where it alone is."""
        for writer, told in list(self._told.items()):
            with self._spared(writer):
                if row is not None and row[self._step] == told + 1:
                    rows = [row]
                else:
                    rows = [stored for stored in self._stored() if stored[self._step] > told]
                if rows:
                    writer.write(rows)
                    self._told[writer] = rows[-1][self._step]

    def end(self, finished: bool) -> None:
        """Pass on what is left, and close the writers."""
        self.tell()
        for writer in list(self._told):
            with self._spared(writer):
                writer.end(finished)

    @contextmanager
    def _spared(self, writer: Writer) -> Iterator[None]:
        """Hours of training do not end with a full disk or a lost connection."""
        try:
            yield
        except Exception as error:
            self._told.pop(writer, None)
            warnings.warn(
                f"{writer.name}: {type(error).__name__}: {error}. Not written any more; training goes on.", stacklevel=1
            )


class TensorBoard:
    """Event files, one scalar a column of the history.

    Whoever begins writes the whole history anew in place of the former file, so no step is there twice or missing.
    Where rows have ``seconds``, TensorBoard's relative axis shows these.
    """

    name = "TensorBoard files"

    def __init__(self, folder: Path, step: str):
        check_packages(tensorboard=True)
        self._folder, self._step = folder, step

    def begin(self) -> int:
        # Its usual writer hands events to a thread; when that dies of a full disk, the next event waits for ever.
        from tensorboardX.event_file_writer import EventsWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        for former in self._folder.glob("events.out.tfevents.*"):
            former.unlink()
        self._events = EventsWriter(str(self._folder / "events"))
        return 0

    def write(self, rows: Sequence[Row]) -> None:
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        begun = time.time() - rows[-1].get("seconds", 0.0)
        for row in rows:
            event = Event(wall_time=begun + row.get("seconds", 0.0), step=row[self._step])
            for tag, value in scalars(row, self._step).items():
                event.summary.value.extend(summary.scalar(tag, value).value)
            self._events.write_event(event)
        self._events.flush()

    def end(self, finished: bool) -> None:
        self._events.close()


class WeightsAndBiases:
    """A run of Weights & Biases whose ``id`` follows from what is logged, so that resuming continues it.

    Online or offline as its own settings say (``WANDB_MODE``).

    Args:
        step: the column that tells a row's place.
        weights: files that become an artifact when the history is complete.
        settings: of ``wandb.init``: project, dir, name, id, config, group.
    """

    name = "Weights & Biases"

    def __init__(self, step: str, weights: Callable[[], Iterable[Path]] = tuple, **settings: Any):
        self._module = check_packages(wandb=True)
        self._step, self._weights, self._settings = step, weights, settings

    def begin(self) -> int:
        self._run = self._module.init(**self._settings, resume="allow")
        return max(0, self._run.step - 1)  # a resumed run's step is the one after the last

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log(scalars(row, self._step), step=row[self._step], commit=True)  # else it waits for the next one

    def end(self, finished: bool) -> None:
        files = list(self._weights()) if finished else []
        if files:
            artifact = self._module.Artifact(self._settings["name"], type="weights")
            for path in files:
                artifact.add_file(str(path))
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=0 if finished else 1)


def scalars(row: Row, step: str) -> dict[str, float]:
    """Tag → value of a row; columns that begin alike share a group, and what is not known is left out."""
    named = {key.replace("fitness_", "fitness/", 1).replace(".", "/", 1): value for key, value in row.items()}
    return {tag: float(value) for tag, value in named.items() if tag != step and not math.isnan(value)}


def check_packages(tensorboard: bool = False, wandb: bool = False) -> Any:
    """The package that the last of these writers needs.

    Raises:
        UserError: one is absent.
    """
    module = _require("tensorboardX", "event_file_writer", "tensorboard") if tensorboard else None
    return _require("wandb", "init", "wandb") if wandb else module


def _require(package: str, part: str, extra: str) -> Any:
    """The package; one without ``part`` is a folder that happens to be called alike, such as wandb's own output."""
    try:
        module = importlib.import_module(package)
        if not hasattr(module, part):
            raise ImportError
    except ImportError:
        raise UserError(f"{package} is not installed: {installed_with(extra)}") from None
    return module


def curves_logged(
    watcher: Watcher, experiments: Sequence[Experiment], num_seeds: int, store: Store, title: str, tensorboard: bool,
    wandb: str | None,
) -> Watcher:  # fmt: skip
    """``watcher``, and every experiment's learning curve for the writers that are asked for, as soon as it is complete.

    In a cluster the first process alone writes.

    Args:
        watcher: what the user watches with; is told everything first.
        experiments, num_seeds: what is run.
        store: where it is stored; event files go to ``tensorboard/<experiment>`` in its folder.
        title: of the study; runs of Weights & Biases are grouped by it.
        tensorboard: write event files.
        wandb: project of Weights & Biases.

    Raises:
        UserError: a package that a writer needs is absent.
    """
    if not (tensorboard or wandb is not None) or jax.process_index() > 0:
        return watcher
    told = {}
    for each in experiments:
        writers: list[Writer] = []
        if tensorboard:
            writers.append(TensorBoard(store.results / EVENTS / each.name, CURVE_STEP))
        if wandb is not None:
            identity = f"{each.name.rpartition('--')[2]}-{num_seeds}"  # more seeds make another mean
            about: dict[str, Any] = {"name": label_of(each), "id": identity, "config": each.identity, "group": title}
            writers.append(WeightsAndBiases(CURVE_STEP, project=wandb, dir=str(store.results), **about))
        told[each.name] = Told(CURVE_STEP, functools.partial(curve_rows, store, each, num_seeds), writers)

    def write(event: Event) -> None:
        if isinstance(event, Finished) and event.work.name in told:
            history = told[event.work.name]
            history.begin(spare=True)
            history.end(True)

    return several([watcher, write])


def curve_rows(store: Store, experiment: Experiment, num_seeds: int) -> list[Row]:
    """An experiment's learning curve over its seeds, as stored; the last row has the mean scores too."""
    runs = store.load([experiment], num_seeds)
    if runs.curves.empty:
        return []
    over_seeds = runs.curves.groupby(CURVE_STEP)["episode_return"].agg(["mean", "min", "max"])
    rows: list[Row] = [
        {CURVE_STEP: int(step), **{f"episode_return.{name}": value for name, value in values.items()}}
        for step, values in over_seeds.to_dict("index").items()
    ]
    scores = {f"score.{name}": runs.scores[name].mean() for name in METRICS if name in runs.scores}
    rows[-1] |= {**scores, "score.diverged": int(runs.scores["diverged"].sum())}
    return rows
