"""Commands that are killed, starved, misled and shared: in the end their results are those of an undisturbed run."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from open_bench.errors import UserError
from tooling.campaigns.commands import SUBJECTS, Subject, differences, leftovers, outcome
from tooling.campaigns.processes import SECONDS, Run, Surroundings, several

REFUSED = 2  # the exit code
NOBODY = 65534


class Disturbed:
    """Runs of the five commands in folders of their own, and what each gives when nobody disturbs it."""

    subjects = SUBJECTS

    def __init__(self, folder: Path):
        self._folder = folder
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
        self._undisturbed: dict[str, dict[str, str]] = {}
        self._seconds: dict[str, float] = {}

    def undisturbed(self, subject: Subject) -> dict[str, str]:
        """What a run gives."""
        if subject.name not in self._undisturbed:
            place = self._prepared(subject, "undisturbed")
            self.finish(subject, place)
            assert not leftovers(place), leftovers(place)
            self._undisturbed[subject.name] = outcome(place)
        return self._undisturbed[subject.name]

    def finish(self, subject: Subject, place: Path) -> None:
        """Run to the end, and learn how long that takes; the first run compiles."""
        begun = time.monotonic()
        expect(subject.start(place), 0)
        self._seconds[subject.name] = min(time.monotonic() - begun, self._seconds.get(subject.name, SECONDS))

    def _prepared(self, subject: Subject, name: str) -> Path:
        place = self._folder / subject.name / name
        subject.prepare(place)
        return place

    @contextlib.contextmanager
    def place(self, subject: Subject) -> Iterator[Path]:
        """A folder for a case; the undisturbed run was before."""
        self.undisturbed(subject)
        place = self._prepared(subject, "case")
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def check(self, subject: Subject, place: Path) -> None:
        """What is there is what an undisturbed run gives, and nothing else."""
        differing = differences(self.undisturbed(subject), outcome(place))
        assert not differing, f"{subject.name}: these differ: {differing}"
        assert not leftovers(place), f"{subject.name}: these are left: {leftovers(place)}"

    def goes_on(self, subject: Subject, place: Path) -> None:
        """The same command, undisturbed, mends and finishes everything."""
        self.finish(subject, place)
        self.check(subject, place)


def expect(run: Run, *codes: int) -> int:
    """The exit code, which must be one of these."""
    code = run.wait()
    if code not in codes or "Traceback" in run.said:
        raise AssertionError(f"ended with {code}, not {' or '.join(map(str, codes))}: {run.said}")
    return code


class Kills(Disturbed):
    """SIGKILL, at any moment of a run or as soon as something half-written is seen; then the same command again."""

    def __call__(self, dice: Random) -> None:
        subject = dice.choice(self.subjects)
        with self.place(subject) as place:
            for _ in range(dice.choice((1, 1, 2, 3))):
                self.kill(subject, place, dice)
            self.goes_on(subject, place)

    def kill(self, subject: Subject, place: Path, dice: Random) -> None:
        """Start, and kill at a moment of the run or as soon as a temporary name is seen."""
        before = set(leftovers(place))
        written = dice.random() < 0.5
        moment = time.monotonic() + (SECONDS if written else dice.uniform(0.0, self._seconds[subject.name]))
        with several([subject.start(place)]) as (run,):
            while run.running and time.monotonic() < moment:
                if written and set(leftovers(place)) - before:
                    break
                time.sleep(0.001)
            run.kill()


class FullDisk(Disturbed):
    """A disk that is full from some moment on: a small file system, or where none can be mounted, a limit on files."""

    def __call__(self, dice: Random) -> None:
        subject = dice.choice(self.subjects)
        with self.place(subject) as place, contextlib.ExitStack() as cleanup:
            around, relieve = Surroundings(), lambda: None
            if dice.random() < 0.5 and can_mount(self._folder):
                size = f"{dice.choice((4, 16, 64, 128, 256, 512, 1024))}k"
                for name in ("results", "library"):
                    cleanup.callback(unmount, mount(place / name, f"size={size}"))
                relieve = lambda: [mount(place / name, "remount,size=64m") for name in ("results", "library")]
            else:
                around = Surroundings(largest_file=dice.choice((0, 100, 300, 1000, 3000, 10_000, 100_000)))
            refused = self.starve(subject, place, around)
            relieve()
            self.goes_on(subject, place)
        if refused:
            raise UserError(refused)

    def starve(self, subject: Subject, place: Path, around: Surroundings) -> str:
        """The words of the refusal; "" where there was room."""
        run = subject.start(place, around)
        return (run.said or "no room for words") if expect(run, 0, REFUSED) else ""


class ReadOnly(Disturbed):
    """Folders that cannot be written, as the system or as another user finds them."""

    def __call__(self, dice: Random) -> None:
        subject = dice.choice(self.subjects)
        with self.place(subject) as place, contextlib.ExitStack() as cleanup:
            results = place / "results"
            if half := dice.random() < 0.5:  # what is there was begun by somebody else
                expect(subject.start(place), 0)
            results.mkdir(parents=True, exist_ok=True)
            if os.geteuid() == 0:
                subprocess.run(["mount", "--bind", results, results], check=True)
                cleanup.callback(unmount, results)
                mount(results, "remount,bind,ro")
            else:
                results.chmod(0o555)
                cleanup.callback(results.chmod, 0o755)
            run = subject.start(place)
            refused = run.said if expect(run, 0, REFUSED) else ""
            assert refused or half, "nothing could be written, and yet all was well"
            cleanup.close()
            self.goes_on(subject, place)
        if refused:
            raise UserError(refused)


class Clock(Disturbed):
    """A clock that jumps by years while a command runs, is killed and goes on, and files from the future or 1970."""

    ranges = ((-1e9, 1e9), (3e8, 3e8), (-3e8, -3e8), (-7200, 7200))

    def __call__(self, dice: Random) -> None:
        subject = dice.choice(self.subjects)
        with self.place(subject) as place:
            around = Surroundings(clock=dice.choice(self.ranges))
            run, end = subject.start(place, around), time.monotonic() + dice.uniform(0.0, self._seconds[subject.name])
            while run.running and time.monotonic() < end:
                time.sleep(0.01)
            run.kill()
            for path in place.rglob("*"):
                stamp = dice.choice((0, time.time() + 1e9, time.time()))
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path, (stamp, stamp))
            expect(subject.start(place, Surroundings(clock=dice.choice(self.ranges))), 0)
            self.check(subject, place)


class Shared(Disturbed):
    """Two or four processes on one folder at once, one of which may be killed."""

    subjects = tuple(each for each in SUBJECTS if each.name not in ("meta-train",))

    def __call__(self, dice: Random) -> None:
        subject, several_of = dice.choice(self.subjects), dice.choice((2, 2, 4))
        with self.place(subject) as place:
            with several([subject.start(place) for _ in range(several_of)]) as runs:
                if dice.random() < 0.5:
                    time.sleep(dice.uniform(0.0, 2 * self._seconds[subject.name]))
                    runs.pop().kill()
                for run in runs:
                    expect(run, 0)
            self.goes_on(subject, place)


def mount(place: Path, options: str) -> Path:
    """A file system in memory at a place, or other options for the one that is there."""
    place.mkdir(parents=True, exist_ok=True)
    kind = [] if options.startswith("remount") else ["-t", "tmpfs", "none"]
    subprocess.run(["mount", "-o", options, *kind, place], check=True, capture_output=True)
    return place


def unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def can_mount(folder: Path) -> bool:
    """Whether this user may mount."""
    try:
        unmount(mount(folder / "mounted", "size=4k"))
    except (OSError, subprocess.CalledProcessError):
        return False
    return True
