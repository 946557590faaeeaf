"""What people see while something trains, from made-up streams of events."""

import io
import sys
import types
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console

from open_bench.events import (
    Advanced,
    Compiled,
    Compiling,
    Ended,
    Evaluated,
    Event,
    Finished,
    Generation,
    Started,
    Waiting,
    Work,
)
from open_bench.progress import PLAIN_SECONDS, Lines, Tally, bars, default_watcher, notebook, picture, spans

NAN = float("nan")
FIRST = Work("a", "cartpole · adam", 36, 3_600, 3)
SECOND = Work("b", "breakout · lion", 36, 3_600, 3)
STARTED = Started("mine", (FIRST, SECOND))
EVOLVED = Work("cartpole", "cartpole", 100, 10_000, 12)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def row(generation: int, **more: Any) -> dict[str, Any]:
    return {
        "generation": generation, "fitness_mean": 10.0 * generation, "fitness_std": 1.5,
        "fitness_best": 10.0 * generation + 3, "diverged": 0, "unfinished": 0, **more,
    }  # fmt: skip


def evaluated(generation: int) -> dict[str, Any]:
    return row(generation, **{"return.cartpole": 100.0 + generation, "adam.cartpole": 200.0})


def advanced(work: Work, updates: int, seconds: float, lifetimes: int = 1, value: float = 5.0) -> Advanced:
    return Advanced(work, updates * lifetimes, lifetimes, value, 0, seconds)


def told(events: Iterable[Event], clock: Clock | None = None) -> Tally:
    tally = Tally(clock or Clock())
    for event in events:
        tally(event)
    return tally


# --- time left ------------------------------------------------------------------------------------------------------


def test_time_left_is_not_known_before_something_is_measured() -> None:
    tally = told([STARTED, Compiling(FIRST, (0, 1, 2)), Compiled(FIRST, 500.0)])
    assert tally.seconds_left != tally.seconds_left
    assert tally.share == 0


def test_time_left_leaves_compilation_out_but_for_what_is_ahead() -> None:
    """36 of 216 updates took 9 s: 180 are left, and one program is still to be compiled."""
    events = [STARTED, Compiling(FIRST, (0, 1, 2)), Compiled(FIRST, 500.0), advanced(FIRST, 36, 9.0)]
    assert told(events).seconds_left == pytest.approx(180 / 4 + 500)
    events += [advanced(FIRST, 36, 9.0, lifetimes=2), Finished(FIRST, 3), Compiling(SECOND, (0, 1, 2))]
    events += [Compiled(SECOND, 100.0), advanced(SECOND, 18, 9.0)]
    # The second is slower, by its own measure; nothing is left to compile.
    assert told(events).seconds_left == pytest.approx((108 - 18) / 2)
    assert told(events).share == pytest.approx((108 + 18) / 216)


def test_what_is_stored_or_made_elsewhere_is_done() -> None:
    stored = Work("a", "cartpole · adam", 36, 3_600, 3, stored=3)
    tally = told([Started("mine", (stored, SECOND)), Finished(stored, 0)])
    assert tally.share == pytest.approx(0.5)
    tally(Compiling(SECOND, (0, 1, 2)))
    tally(advanced(SECOND, 36, 3.0))
    assert tally.seconds_left == pytest.approx(6.0)
    tally(Finished(SECOND, 3))
    assert (tally.seconds_left, tally.share, tally.finished) == (0.0, 1.0, 2)


def test_the_outcome_of_an_experiment_is_that_of_all_its_seeds() -> None:
    """Batches of one and two seeds, between which another experiment's come: the mean is weighted, failures add up."""
    tally = told([STARTED, Compiling(FIRST, (0, 1, 2)), Compiled(FIRST, 0.0), advanced(FIRST, 36, 9.0, value=2.0)])
    tally(Advanced(SECOND, 36, 1, 80.0, 1, 9.0))
    tally(Advanced(FIRST, 36, 2, 50.0, 0, 9.0))
    tally(Advanced(FIRST, 36, 2, 8.0, 1, 9.0))
    assert tally.outcome(FIRST) == (pytest.approx((2.0 + 2 * 8.0) / 3), 1)
    assert tally.outcome(SECOND) == (80.0, 1)


def test_the_outcome_where_no_episode_finished_is_not_known() -> None:
    mean, diverged = told([STARTED, advanced(FIRST, 36, 9.0, value=NAN)]).outcome(FIRST)
    assert mean != mean and diverged == 0


def test_updates_of_a_checkpoint_count_and_are_no_measure() -> None:
    tally = told([STARTED, Compiling(FIRST, (0, 1, 2)), Compiled(FIRST, 0.0), advanced(FIRST, 30, 0.0, value=NAN)])
    assert tally.seconds_left != tally.seconds_left
    assert tally.updates == 30
    tally(advanced(FIRST, 3, 3.0))
    assert tally.seconds_left == pytest.approx(216 - 33)


def test_before_the_first_generation_time_left_comes_from_lifetimes() -> None:
    clock = Clock()
    tally = told([Started("mine", (EVOLVED,), 10)], clock)
    clock.now += 60
    tally(Compiled(EVOLVED, 60.0))
    assert tally.seconds_left != tally.seconds_left
    clock.now += 10
    tally(advanced(EVOLVED, 50, 10.0, lifetimes=2))  # half of two lifetimes
    assert tally.seconds_left == pytest.approx(10 * 119)
    clock.now += 10
    tally(Evaluated(2, 12))
    assert tally.seconds_left == pytest.approx(10 * 118)
    assert tally.share == pytest.approx(2 / 120)
    tally(Generation(row(1), 900.0))
    clock.now += 100
    assert tally.seconds_left == pytest.approx(800.0)


def test_parts_that_are_under_way_by_turns_keep_their_places() -> None:
    """As on a cluster: each has its own updates, and what advances is not compiling."""
    tally = told([STARTED, Compiling(FIRST), Compiled(FIRST, 1.0), advanced(FIRST, 30, 1.0), Compiling(SECOND)])
    assert (tally.now, tally.updates, tally.compiling) == (SECOND, 0, True)
    tally(advanced(FIRST, 10, 1.0))
    assert (tally.now, tally.updates, tally.seeds_done, tally.compiling) == (FIRST, 4, 1, False)
    tally(advanced(SECOND, 7, 1.0))
    assert (tally.updates, tally.seeds_done) == (7, 0)


# --- what is told of an interrupt -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "What was finished is stored"),
        ([STARTED, Compiling(FIRST, (0,)), Compiled(FIRST, 1.0)], "nothing is stored yet"),
        ([STARTED, Compiling(FIRST, (0,)), advanced(FIRST, 1, 1.0)], "What was finished is stored"),
        ([Started("mine", (EVOLVED,), 10), Evaluated(11, 12)], "before the first generation ended: nothing is stored"),
        ([Started("mine", (EVOLVED,), 10), Generation(row(1), 1.0)], "Generation 1 is stored"),
        ([Started("mine", (EVOLVED,), 10, generations_done=4)], "Generation 4 is stored"),
    ],
)
def test_an_interrupt_says_what_is_stored(events: list[Event], message: str) -> None:
    assert message in told(events).interrupted()


def test_time_left_of_an_evolution_that_goes_on_is_known_at_once() -> None:
    stored = told([Started("mine", (EVOLVED,), 10, generations_done=4, seconds=600.0)])
    assert stored.seconds_left == 600.0
    guessed = told([Started("mine", (EVOLVED,), 10, seconds=600.0)])
    assert guessed.seconds_left != guessed.seconds_left


# --- lines ----------------------------------------------------------------------------------------------------------


def log(events: Iterable[Event], pause: float = 0.0, encoding: str = "utf-8") -> list[str]:
    """What ``lines`` prints, without the clock; ``pause`` seconds pass before each event."""
    clock, stream = Clock(), io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    watch = Lines(Console(file=stream, color_system=None), clock)
    for event in events:
        clock.now += pause
        watch(event)
    stream.flush()
    return [line.partition("] ")[2] for line in stream.buffer.getvalue().decode(encoding).splitlines()]  # type: ignore[attr-defined]


WHOLE = [
    STARTED, Compiling(FIRST, (0, 1, 2)), Compiled(FIRST, 2.0), advanced(FIRST, 12, 3.0), advanced(FIRST, 24, 6.0),
    advanced(FIRST, 12, 6.0, lifetimes=2), advanced(FIRST, 24, 6.0, lifetimes=2), Finished(FIRST, 3),
    Finished(SECOND, 0), Ended(),
]  # fmt: skip


def test_lines_count_updates_of_a_lifetime() -> None:
    assert log(WHOLE, pause=PLAIN_SECONDS) == [
        "mine: 2 experiments, 3 seeds each",
        "cartpole · adam: seeds 0–2, 36 updates",
        "cartpole · adam: 12 of 36 updates, 0 of 3 seeds done; return 5; 6% of all, about 53 s left",
        "cartpole · adam: 0 of 36 updates, 1 of 3 seeds done; return 5; 17% of all, about 47 s left",
        "cartpole · adam: 12 of 36 updates, 1 of 3 seeds done; return 5; 28% of all, about 41 s left",
        "cartpole · adam: 0 of 36 updates, 3 of 3 seeds done; return 5; 50% of all, about 23 s left",
        "cartpole · adam: done, return 5",
        "breakout · lion: done, stored already",
    ]


def test_lines_are_few_when_little_time_passes() -> None:
    assert [line.rpartition(": ")[2] for line in log(WHOLE)] == [
        "2 experiments, 3 seeds each", "seeds 0–2, 36 updates", "done, return 5", "done, stored already",
    ]  # fmt: skip


def test_lines_say_once_that_they_wait() -> None:
    shown = log([STARTED, Waiting(2), Waiting(2), Waiting(1)])
    assert shown[1:] == ["waiting for another process that trains 2 of these experiments"]


def test_lines_show_fitness_time_left_and_the_mean_against_adam() -> None:
    events = [
        Started("mine", (), 30, 4, 1211), Compiled(EVOLVED, 3.21), Generation(row(5), 50.0),
        Generation(row(6, diverged=2, unfinished=1), 7200.0),  # too soon after the one before
        Generation(evaluated(7), 7200.0), Generation(row(30), 0.0),
    ]  # fmt: skip
    assert log(events) == [
        "mine: 30 generations, θ has 1,211 numbers, going on after generation 4",
        "cartpole: compiled in 3.2 s",
        "generation 5/30: fitness 50 ± 1.5, best 53, about 50 s left",
        "generation 7/30: fitness 70 ± 1.5, best 73; mean θ on cartpole 107 (Adam 200), about 2.0 h left",
        "generation 30/30: fitness 300 ± 1.5, best 303",
    ]


def test_lines_say_what_goes_on_before_the_first_generation() -> None:
    shown = log([Started("mine", (EVOLVED,), 10), advanced(EVOLVED, 50, 9.0, 2), Evaluated(2, 12)], PLAIN_SECONDS)
    assert shown[1:] == [
        "generation 1/10: 0 of 12 lifetimes; cartpole: 50 of 100 updates; return 5, about 29.8 min left",
        "generation 1/10: 2 of 12 lifetimes; cartpole: 0 of 100 updates; return 5, about 29.5 min left",
    ]


def test_every_slow_generation_has_lines_of_its_own() -> None:
    under_way = [advanced(EVOLVED, 50, 9.0, 2), Evaluated(2, 12)]
    events = [Started("mine", (EVOLVED,), 10), *under_way, Generation(row(1), 90.0), *under_way]
    assert [line.partition(",")[0] for line in log(events, 0.6 * PLAIN_SECONDS)[1:]] == [
        "generation 1/10: 2 of 12 lifetimes; cartpole: 0 of 100 updates; return 5",
        "generation 1/10: fitness 10 ± 1.5",  # whatever was said just before
        "generation 2/10: 2 of 12 lifetimes; cartpole: 0 of 100 updates; return 5",
    ]
    quick = [
        Started("mine", (EVOLVED,), 10),
        *(each for n in range(1, 9) for each in (*under_way, Generation(row(n), 9.0))),
    ]
    said = log(quick, 0.2 * PLAIN_SECONDS)[1:]
    assert len(said) >= 3
    assert all(": fitness" in line for line in said)


def test_lines_survive_ascii() -> None:
    assert log(WHOLE, encoding="ascii")[0] == "mine: 2 experiments, 3 seeds each"


# --- bars -----------------------------------------------------------------------------------------------------------

STREAMS = {
    "begun": [STARTED],
    "compiling": WHOLE[:2],
    "at work": WHOLE[:5],
    "waiting": [STARTED, Waiting(2)],
    "generations": [Started("mine", (EVOLVED,), 500, 4, 1211), Generation(evaluated(5), 3e7), Evaluated(3, 12)],
    "before": [Started("mine", (EVOLVED,), 500), advanced(EVOLVED, 50, 9.0, 2)],
    "long": [Started("a-study-with-a-very-long-name-that-nobody-would-choose", (FIRST,)), Compiling(FIRST, (0,))],
}


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
@pytest.mark.parametrize("stream", STREAMS)
def test_a_picture_fits(stream: str, width: int) -> None:
    drawn = picture(told(STREAMS[stream]), width, 12.0)
    assert 1 <= len(drawn) <= 2
    assert all(len(line) <= width for line in drawn)
    if width >= 60:
        assert "%" in drawn[0]
        assert "left" in drawn[0]


def test_a_picture_shows_the_whole_and_the_part() -> None:
    first, second = picture(told(WHOLE[:5]), 100, 75.0)
    assert first.startswith("mine ███░░░░░░░░░░░░░░░░░  17%  0 of 2 experiments, 75 s, 47 s left")
    assert second == "  cartpole · adam: 0 of 36 updates, 1 of 3 seeds done; return 5"
    first, second = picture(told(STREAMS["generations"]), 140, 75.0)
    assert "generation 5 of 500" in first
    assert second == (
        "  fitness 50 ± 1.5, best 53; mean θ on cartpole 105 (Adam 200); 3 of 12 lifetimes"
    )  # fmt: skip
    assert "– left" in picture(told([STARTED]), 80, 0.0)[0]


def test_bars_draw_in_place_and_leave_nothing() -> None:
    stream = io.StringIO()
    watch = bars(Console(file=stream, width=60, force_terminal=True, color_system=None))
    for event in WHOLE:
        watch(event)
    shown = stream.getvalue()
    assert shown.endswith("\x1b[2K") or "\x1b[?25h" in shown  # the cursor is back
    watch(STARTED)  # a second stream, as when weights are evolved first
    watch(Ended(False))


def test_a_notebook_gets_one_picture_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            assert raw
            shown.append(data["text/plain"])

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert raw and display_id
        shown.append(data["text/plain"])
        return Handle()

    module = types.SimpleNamespace(display=display)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=module))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    watch = notebook()
    for event in WHOLE:
        watch(event)
    assert len(shown) == 2  # at the start and the end; between them too little time has passed
    assert "100%" in shown[-1]
    console = Console(file=io.StringIO(), force_jupyter=True)
    assert type(default_watcher(console)) is type(watch)


def test_the_display_suits_where_it_is() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert type(default_watcher(terminal)) is type(bars(terminal))
    log_file = Console(file=io.StringIO())
    assert type(default_watcher(log_file)) is Lines


def test_spans() -> None:
    assert spans([0, 1, 2, 7, 9, 10]) == "0–2, 7, 9–10"
    assert spans([]) == ""
