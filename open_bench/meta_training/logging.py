"""Where else an evolution's history goes: a figure, TensorBoard event files, Weights & Biases.

Writers read ``history.csv``, which is written anew after every generation from the checkpoint. So each gets every
generation once and in order, whatever was interrupted or lost. One that fails is left out with a warning: evolution
does not depend on it. An imitation's history is drawn in the same way; it goes nowhere else.
"""

import importlib
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import jax
import pandas as pd

from open_bench.errors import UserError
from open_bench.events import Ended, Event, Fitted, Generation, Started, Watcher, several
from open_bench.meta_training.checkpoint import HISTORY, IMITATION
from open_bench.meta_training.figure import save_history, save_imitation
from open_bench.meta_training.request import Request

Row = dict[str, Any]  # a generation's line of the history
FIGURE = "history"  # stem of the figure's files
EVENTS = "tensorboard"  # folder of the event files


class Writer(Protocol):
    """Something that is told an evolution's history."""

    name: str  # in messages

    def begin(self) -> int:
        """Open; returns how many generations are there already, and will not be told again."""

    def write(self, rows: Sequence[Row]) -> None:
        """The generations that follow those told before."""

    def end(self, finished: bool) -> None:
        """Close; ``finished``: the evolution has come to its end."""


def logged(
    watcher: Watcher, request: Request, results: Path, name: str | None, tensorboard: bool, wandb: str | None
) -> Watcher:
    """``watcher`` with the writers that were asked for; in a cluster the first process alone writes.

    Args:
        watcher: what the user watches with; is told everything first.
        request: the meta-training.
        results, name: as for ``meta_train``.
        tensorboard: write event files to ``<results>/meta/<name>/tensorboard``.
        wandb: project of Weights & Biases.

    Raises:
        UserError: a package that a writer needs is absent.
    """
    name = name or request.default_name
    folder = results / "meta" / name
    writers: list[Writer] = [Figure(folder, name)]
    if tensorboard:
        writers.append(TensorBoard(folder / EVENTS))
    if wandb is not None:
        writers.append(WeightsAndBiases(wandb, folder, name, request.digest, request.identity))
    first = jax.process_index() == 0
    return several([watcher, Logged(folder, writers if first else []), Drawn(folder, name if first else None)])


class Logged:
    """A watcher that tells writers every generation.

    Args:
        folder: of the evolution, where ``history.csv`` lies.
        writers: are told.
    """

    def __init__(self, folder: Path, writers: Sequence[Writer]):
        self._history, self._writers = folder / HISTORY, writers
        self._told: dict[Writer, int] = {}  # generations by open writer

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started) and not event.batches:  # those of an imitation are told by Drawn
            for writer in self._writers:
                self._told[writer] = _begin(writer)
        elif isinstance(event, Generation):
            self._tell(event.row)
        elif isinstance(event, Ended):
            self._tell()
            for writer in list(self._told):
                with self._spared(writer):
                    writer.end(event.finished)

    def _tell(self, row: Row | None = None) -> None:
        """Pass on what is new; ``row`` spares reading the file where it alone is."""
        for writer, told in list(self._told.items()):
            with self._spared(writer):
                if row is not None and row["generation"] == told + 1:
                    rows = [row]
                else:
                    rows = [stored for stored in self._stored() if stored["generation"] > told]
                if rows:
                    writer.write(rows)
                    self._told[writer] = rows[-1]["generation"]

    def _stored(self) -> list[Row]:
        if not self._history.exists():  # interrupted before the first generation was over
            return []
        return pd.read_csv(self._history, float_precision="round_trip").to_dict("records")

    @contextmanager
    def _spared(self, writer: Writer) -> Iterator[None]:
        """Hours of evolution do not end with a full disk or a lost connection."""
        try:
            yield
        except Exception as error:
            self._told.pop(writer, None)
            warnings.warn(
                f"{writer.name}: {type(error).__name__}: {error}. Not written any more; the evolution goes on.",
                stacklevel=1,
            )


class Drawn:
    """A watcher that draws an imitation's history after every round; ``title`` None: it does not.

    A figure that cannot be drawn is left out with a warning.
    """

    def __init__(self, folder: Path, title: str | None):
        self._folder, self._title = folder, title

    def __call__(self, event: Event) -> None:
        if self._title is None or not isinstance(event, Fitted) or not _has_returns(event.row):
            return
        history = pd.read_csv(self._folder / IMITATION, float_precision="round_trip")
        try:
            save_imitation(history, self._folder / Path(IMITATION).stem, self._title)
        except Exception as error:
            warnings.warn(f"figure of the imitation: {type(error).__name__}: {error}", stacklevel=1)


def _has_returns(row: Row) -> bool:
    """Whether θ was evaluated."""
    return any(key.startswith("return.") and not math.isnan(value) for key, value in row.items())


def _begin(writer: Writer) -> int:
    """Nothing is lost yet, so what fails here is an error that can be mended."""
    try:
        return writer.begin()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{writer.name} cannot be started: {type(error).__name__}: {error}") from error


class Figure:
    """``history.png`` and ``history.pdf``, drawn after every evaluation of the mean and at the end."""

    name = "figure of the history"

    def __init__(self, folder: Path, title: str):
        self._stem, self._title = folder / FIGURE, title
        self._rows: list[Row] = []

    def begin(self) -> int:
        return 0

    def write(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        if _has_returns(rows[-1]):
            self._draw()

    def end(self, finished: bool) -> None:
        if self._rows:
            self._draw()

    def _draw(self) -> None:
        save_history(pd.DataFrame(self._rows), self._stem, self._title)


class TensorBoard:
    """Event files, one scalar a column of the history, the step being the generation.

    A resumed evolution writes the whole history anew in place of the former file, so no step is there twice or
    missing. Times are such that TensorBoard's relative axis shows the seconds that the evolution itself has taken.
    """

    name = "TensorBoard files"

    def __init__(self, folder: Path):
        _require("tensorboardX", "event_file_writer", "tensorboard")
        self._folder = folder

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

        end = time.time() - rows[-1]["seconds"]
        for row in rows:
            event = Event(wall_time=end + row["seconds"], step=row["generation"])
            for tag, value in scalars(row).items():
                event.summary.value.extend(summary.scalar(tag, value).value)
            self._events.write_event(event)
        self._events.flush()

    def end(self, finished: bool) -> None:
        self._events.close()


class WeightsAndBiases:
    """A run of Weights & Biases whose identity follows from the request, so that resuming continues it.

    Online or offline as its own settings say (``WANDB_MODE``). Files go to the evolution's folder.
    """

    name = "Weights & Biases"

    def __init__(self, project: str, folder: Path, name: str, digest: str, identity: dict[str, Any]):
        self._module = _require("wandb", "init", "wandb")
        self._settings = {"project": project, "dir": str(folder), "name": name, "id": digest, "config": identity}

    def begin(self) -> int:
        self._run = self._module.init(**self._settings, resume="allow")
        return max(0, self._run.step - 1)  # a resumed run's step is the one after the last

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log(scalars(row), step=row["generation"], commit=True)  # else it waits for the next one

    def end(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


def scalars(row: Row) -> dict[str, float]:
    """Tag → value of a generation; columns that begin alike share a group, and what is not known is left out."""
    named = {key.replace("fitness_", "fitness/", 1).replace(".", "/", 1): value for key, value in row.items()}
    return {tag: float(value) for tag, value in named.items() if tag != "generation" and not math.isnan(value)}


def _require(package: str, part: str, extra: str) -> Any:
    """The package; one without ``part`` is a folder that happens to be called alike, such as wandb's own output."""
    try:
        module = importlib.import_module(package)
        if not hasattr(module, part):
            raise ImportError
    except ImportError:
        raise UserError(f'{package} is not installed: pip install "open-bench[{extra}]"') from None
    return module
