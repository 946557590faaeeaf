"""``openbench`` in processes that are forked from one that has imported everything, so that a run takes a second.

What a child changes of its surroundings (variables, limits, clock, user, folder) stays in the child.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PRELOADED = ["jax", "optax", "pandas", "scipy.stats", "matplotlib.pyplot", "open_bench.cli.main", "open_bench.api",
             "open_bench.experiments.session", "open_bench.tuning.run", "open_bench.generalization.run",
             "open_bench.meta_training.run", "open_bench.exchange.export", "open_bench.evaluation.figures",
             "tooling.campaigns.processes"]  # fmt: skip
SECONDS = 300.0  # to wait for a command
ONE_DEVICE = "--xla_force_host_platform_device_count=1"


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a child finds itself in.

    Attributes:
        variables: of the environment.
        largest_file: bytes; more in one file is "no space" (EFBIG).
        clock: seconds that the clock is off, drawn anew at each look from this range.
        user: the id of the user it becomes; None: who it is.
    """

    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    largest_file: int | None = None
    clock: tuple[float, float] | None = None
    user: int | None = None


class Run:
    """A command at work, or done; ``said`` is what it printed."""

    def __init__(self, arguments: Sequence[object], messages: Path, around: Surroundings | None = None):
        messages.parent.mkdir(parents=True, exist_ok=True)
        self._messages = messages
        words = [str(word) for word in arguments]
        self._process = _context().Process(target=_command, args=(words, str(messages), around or Surroundings()))
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self._process.kill()
        self._process.join()

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit code; RuntimeError where it takes too long."""
        self._process.join(seconds)
        if self._process.is_alive():
            self.kill()
            raise RuntimeError(f"hangs: not done after {seconds} s: {self.said}")
        return int(self._process.exitcode or 0)

    @property
    def said(self) -> str:
        return self._messages.read_text(errors="replace")[-3000:]


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _command(arguments: list[str], messages: str, around: Surroundings) -> None:
    with open(messages, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _settle(around)
    import jax

    if cache := os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # JAX read its variables when it was imported
        jax.config.update("jax_compilation_cache_dir", cache)
    sys.argv = ["openbench", *arguments]
    from open_bench.cli.main import main

    main()


def _settle(around: Surroundings) -> None:
    os.environ.update({"XLA_FLAGS": ONE_DEVICE, "OPENBLAS_NUM_THREADS": "1", **around.variables})
    if around.clock:
        real, (low, high) = time.time, around.clock
        time.time = lambda: real() + random.uniform(low, high)  # type: ignore[assignment]
    if around.largest_file is not None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (around.largest_file, around.largest_file))
    if around.user is not None:
        os.setgid(around.user)
        os.setuid(around.user)


@contextlib.contextmanager
def several(runs: Sequence[Run]) -> Any:
    """Nothing is left running, whatever happens."""
    try:
        yield runs
    finally:
        for run in runs:
            if run.running:
                run.kill()
