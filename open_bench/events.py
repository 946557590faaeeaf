"""What happens while something trains, as one stream of events. A watcher is any callable that takes one.

Terminal bars, plain lines, TensorBoard and Weights & Biases are watchers. An event is told after what it says has
happened, on the first process alone. Watchers change no number.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias, runtime_checkable


@dataclasses.dataclass(frozen=True)
class Work:
    """A part of the work ahead: lifetimes that share one program.

    Attributes:
        name: unique among the parts, such as the experiment's.
        label: for people: what is trained on what.
        updates: updates of one lifetime.
        env_steps: env steps of one lifetime.
        lifetimes: how many are wanted.
        stored: how many of them are there already.
        counted: what one of them is called.
    """

    name: str
    label: str
    updates: int
    env_steps: int
    lifetimes: int
    stored: int = 0
    counted: str = "seed"


@dataclasses.dataclass(frozen=True)
class Started:
    """The work is known and begins; every stream begins with it. Of experiments, or where ``generations`` of those.

    Where ``batches``, of an imitation, after which another event tells of the ``generations`` if there are any.
    """

    title: str
    work: tuple[Work, ...] = ()
    generations: int = 0
    generations_done: int = 0
    parameters: int = 0  # numbers in θ, where θ is evolved
    seconds: float | None = None  # rough, for all that is missing; None where it cannot be guessed
    batches: int = 0
    batches_done: int = 0
    later: tuple["Started", ...] = ()  # what comes after this, each with an event of its own


@dataclasses.dataclass(frozen=True)
class Compiling:
    """A part begins: these ``seeds`` of it are missing and its program is being compiled."""

    work: Work
    seeds: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The part's program is ready."""

    work: Work
    seconds: float


@dataclasses.dataclass(frozen=True)
class Advanced:
    """``updates`` more were made, summed over the ``lifetimes`` at work, whose mean return may be NaN: not known."""

    work: Work
    updates: int
    lifetimes: int
    episode_return: float
    diverged: int
    seconds: float  # that these updates took, compilation apart; 0 for those that a checkpoint held


@dataclasses.dataclass(frozen=True)
class Finished:
    """All lifetimes of a part are there; ``trained`` of them were made now."""

    work: Work
    trained: int


@dataclasses.dataclass(frozen=True)
class Waiting:
    """Other processes are at work on all parts that are left."""

    parts: int


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """So many lifetimes of a generation's ``total`` are done."""

    lifetimes: int
    total: int


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Some batches of an imitation are stored; ``row`` is their line of the history."""

    row: dict[str, Any]
    seconds_left: float


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generation is stored; ``row`` is its line of the history."""

    row: dict[str, Any]
    seconds_left: float


@dataclasses.dataclass(frozen=True)
class Ended:
    """The stream is over; ``finished`` is False after an interrupt or an error."""

    finished: bool = True


Event: TypeAlias = (
    Started | Compiling | Compiled | Advanced | Finished | Waiting | Evaluated | Fitted | Generation | Ended
)


@runtime_checkable
class Watcher(Protocol):
    """Any callable that takes an event."""

    def __call__(self, event: Event, /) -> None: ...


def silent(event: Event) -> None:
    """The watcher that does nothing."""


def several(watchers: Iterable[Watcher]) -> Watcher:
    """One watcher that tells all of them, in order."""
    told = tuple(watchers)

    def tell(event: Event) -> None:
        for watcher in told:
            watcher(event)

    return tell
