"""Where else an evolution's history goes: a figure, TensorBoard event files, Weights & Biases.

Writers read ``history.csv``, which is written anew after every generation from the checkpoint. So each gets every
generation once and in order, whatever was interrupted or lost. One that fails is left out with a warning: evolution
does not depend on it. An imitation's history is drawn in the same way; it goes nowhere else.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import pandas as pd

from open_bench.events import Ended, Event, Fitted, Generation, Started, Watcher, several
from open_bench.experiments.history import EVENTS, Row, TensorBoard, Told, WeightsAndBiases, Writer
from open_bench.meta_training.checkpoint import HISTORY, IMITATION
from open_bench.meta_training.figure import save_history, save_imitation
from open_bench.meta_training.request import Request

FIGURE = "history"  # stem of the figure's files
STEP = "generation"
THETAS = ("latest", "best", "generation-*")  # stems of the files of θ that Weights & Biases keeps


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
        writers.append(TensorBoard(folder / EVENTS, STEP))
    if wandb is not None:
        kept = lambda: sorted(path for stem in THETAS for path in folder.glob(f"{stem}.safetensors"))
        writers.append(WeightsAndBiases(STEP, kept, project=wandb, dir=str(folder), name=name, id=request.digest,
                                        config=request.identity))  # fmt: skip
    first = jax.process_index() == 0
    return several([watcher, Logged(folder, writers if first else []), Drawn(folder, name if first else None)])


class Logged:
    """A watcher that tells writers every generation.

    Args:
        folder: of the evolution, where ``history.csv`` lies.
        writers: are told.
    """

    def __init__(self, folder: Path, writers: Sequence[Writer]):
        self._file = folder / HISTORY
        self._told = Told(STEP, self._stored, writers)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started) and not event.batches:  # those of an imitation are told by Drawn
            self._told.begin()
        elif isinstance(event, Generation):
            self._told.tell(event.row)
        elif isinstance(event, Ended):
            self._told.end(event.finished)

    def _stored(self) -> list[Row]:
        if not self._file.exists():  # interrupted before the first generation was over
            return []
        return pd.read_csv(self._file, float_precision="round_trip").to_dict("records")


class Drawn:
    """A watcher that draws an imitation's history after every round; ``title`` None: it does not.

    At the end it is drawn where it lacks: the process may have been killed before. A figure that cannot be drawn is
    left out with a warning.
    """

    def __init__(self, folder: Path, title: str | None):
        self._folder, self._title = folder, title

    def __call__(self, event: Event) -> None:
        if self._title is None:
            return
        stem = self._folder / Path(IMITATION).stem
        lacks = (
            isinstance(event, Ended) and (self._folder / IMITATION).exists() and not stem.with_suffix(".png").exists()
        )
        if lacks or (isinstance(event, Fitted) and _has_returns(event.row)):
            self._draw(stem, self._title)

    def _draw(self, stem: Path, title: str) -> None:
        history = pd.read_csv(self._folder / IMITATION, float_precision="round_trip")
        try:
            save_imitation(history, stem, title)
        except Exception as error:
            warnings.warn(f"figure of the imitation: {type(error).__name__}: {error}", stacklevel=1)


def _has_returns(row: Row) -> bool:
    """Whether θ was evaluated."""
    return any(key.startswith("return.") and not math.isnan(value) for key, value in row.items())


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
