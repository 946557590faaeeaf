"""Kill a meta-training at random moments, again and again, and see whether θ is bitwise what it would have been.

    python tooling/kill_campaign.py --kills 12

The same small evolution (OPEN on CartPole) runs twice through ``openbench meta-train``: undisturbed, and with SIGKILLs
after each of which the same command is given again. Kills take turns at three kinds of moments, drawn from the seed:
``start`` (importing, or compiling with an empty cache), ``work`` (somewhere in a generation) and ``write`` (as soon as
the temporary file of a checkpoint or of the history is seen). Exits with 1 when a number differs.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from open_bench.weights.format import load_weights

NAME = "campaign"
MOMENTS = ("start", "work", "write")
SECONDS = 300.0  # to wait for a generation, or for a process to end
# Few numbers, so that a generation is short; σ is large, so that members differ in so short a life.
SETTINGS = ["num_envs=4", "num_steps=16", "update_epochs=2", "num_minibatches=2", "hidden=[4]"]
OPTIONS = ["--population", "4", "--sigma", "1.0", "--fitness", "mean_return", "--vmap-size", "1", "--plain"]
ONE_DEVICE = "--xla_force_host_platform_device_count=1"


class Campaign:
    """A meta-training in a folder of its own.

    Args:
        folder: of results, weights, compiled programs and messages.
        generations: how many.
        updates: in a lifetime; they make a generation long enough to be killed in.
    """

    def __init__(self, folder: Path, generations: int, updates: int):
        self.folder, self._cache, self._library = folder, folder / "cache", folder / "library"
        self._request = ["-e", "cartpole", "--steps", str(64 * updates), "--generations", str(generations), *OPTIONS]
        self._request += [word for setting in SETTINGS for word in ("--set", setting)]
        self.evolution = folder / "results" / "meta" / NAME

    def start(self, *more: str) -> "subprocess.Popen[bytes]":
        """The command, whether for the first time or again, with ``more`` arguments."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {"JAX_COMPILATION_CACHE_DIR": self._cache, "OPEN_BENCH_WEIGHTS": self._library,
                    "XLA_FLAGS": ONE_DEVICE}  # fmt: skip
        with (self.folder / "messages.txt").open("ab") as messages:
            return subprocess.Popen(
                [sys.executable, "-m", "open_bench", "meta-train", "open", *self._request,
                 "--name", NAME, "--results", str(self.folder / "results"), *more],
                stdout=messages, stderr=messages,
                env={**os.environ, **{key: str(value) for key, value in settings.items()}},
            )  # fmt: skip

    def finish(self) -> float:
        """Run to the end; seconds to the first generation that was not there before."""
        before, start, process = self.generation(), time.monotonic(), self.start()
        try:
            _until(lambda: self.generation() > before, process, SECONDS)
            startup = time.monotonic() - start
            code = process.wait(SECONDS)
        finally:
            process.kill()
        self._expect(code, 0)
        return startup

    def kill(self, moment: str, dice: random.Random, startup: float) -> dict[str, Any]:
        """Start, kill at ``moment``, and say what was there; ``startup``: seconds to a first generation."""
        if moment == "start":
            shutil.rmtree(self._cache, ignore_errors=True)
        before, start, process = self.generation(), time.monotonic(), self.start()
        advanced = lambda: self.generation() > before
        try:
            if moment == "start":
                _until(advanced, process, dice.uniform(0.0, startup))
            elif moment == "work":
                _until(advanced, process, SECONDS)
                _until(lambda: False, process, dice.uniform(0.0, 0.5))
            else:
                awaited = dice.choice(("checkpoint", "history"))
                _until(lambda: any(name.startswith(awaited) for name in self.torn()), process, SECONDS, pause=0.0)
        finally:
            process.kill()
        self._expect(process.wait(), -signal.SIGKILL)
        return {"moment": moment, "seconds": time.monotonic() - start, "generations": self.generation(),
                "torn": self.torn()}  # fmt: skip

    def _expect(self, found: int, code: int) -> None:
        if found != code:
            text = (self.folder / "messages.txt").read_text(errors="replace")[-3000:]
            raise click.ClickException(f"meta-train ended with {found}, not {code}:\n{text}")

    def generation(self) -> int:
        """Generations in the newest checkpoint."""
        found = self.evolution.glob("checkpoint-*.safetensors")
        return max((int(path.stem.partition("-")[2]) for path in found), default=0)

    def torn(self) -> list[str]:
        """Names of the files that are being written, or were when the process died."""
        found = [path.name for place in (self.evolution, self._library) for path in place.glob(".*")]
        return sorted(name.removeprefix(".").partition(".")[0] for name in found if name != ".lock")

    def weights(self) -> Any:
        """The stored weights."""
        return load_weights(self._library / f"{NAME}.safetensors")

    def history(self) -> pd.DataFrame:
        """The history but for the time that it took."""
        return pd.read_csv(self.evolution / "history.csv").drop(columns="seconds")


def _until(condition: Any, process: "subprocess.Popen[bytes]", seconds: float, pause: float = 0.002) -> None:
    """Wait for a condition, the process's end, or so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(pause)


def disturb(campaign: Campaign, kills: int, dice: random.Random, startup: float) -> list[dict[str, Any]]:
    """Kill ``kills`` times, the kinds of moments taking turns."""
    return [campaign.kill(MOMENTS[number % len(MOMENTS)], dice, startup) for number in range(kills)]


def differences(one: Campaign, other: Campaign) -> list[str]:
    """What differs between two finished evolutions; empty when θ and the history are bitwise the same."""
    found, arrays = [], [_flat(campaign.weights().theta) for campaign in (one, other)]
    if one.weights().hash != other.weights().hash or arrays[0].tobytes() != arrays[1].tobytes():
        found.append("θ")
    if not one.history().equals(other.history()):
        found.append("history")
    costs = [{**campaign.weights().metadata["cost"], "seconds": 0} for campaign in (one, other)]
    return found + (["cost"] if costs[0] != costs[1] else [])


def _flat(tree: Any) -> np.ndarray:
    """Every number of nested dicts of arrays, by sorted names."""
    if isinstance(tree, dict):
        return np.concatenate([np.zeros(0, np.float32), *(_flat(tree[key]) for key in sorted(tree))])
    return np.ravel(tree)


@click.command()
@click.option("--kills", default=12, show_default=True)
@click.option("--generations", default=30, show_default=True)
@click.option("--updates", default=400, show_default=True, help="Updates in a lifetime.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--folder", type=click.Path(path_type=Path), help="Kept afterwards; by default a temporary one.")
def main(kills: int, generations: int, updates: int, seed: int, folder: Path | None) -> None:
    """Run the campaign and print every kill."""
    root = folder or Path(tempfile.mkdtemp(prefix="kill-campaign-"))
    if (root / "killed").exists() or (root / "undisturbed").exists():
        raise click.ClickException(f"{root} holds a campaign already")
    undisturbed, killed = (Campaign(root / name, generations, updates) for name in ("undisturbed", "killed"))
    startup = undisturbed.finish()
    done = disturb(killed, kills, random.Random(seed), startup)
    killed.finish()
    table = Table("kill", "moment", "after", "generations stored", "half-written", box=None)
    for number, kill in enumerate(done, start=1):
        facts = (f"{kill['seconds']:.1f} s", f"{kill['generations']}/{generations}", ", ".join(kill["torn"]) or "–")
        table.add_row(str(number), kill["moment"], *facts)
    Console(width=120).print(table)
    differing = differences(undisturbed, killed)
    for campaign in (undisturbed, killed):
        click.echo(f"{campaign.folder.name:>12}: θ {campaign.weights().hash}")
    if folder is None:
        shutil.rmtree(root)
    if differing:
        raise click.ClickException(f"after {kills} kills these differ: {', '.join(differing)}")
    click.echo(f"after {kills} kills θ and the history are bitwise the same")


if __name__ == "__main__":
    main()
