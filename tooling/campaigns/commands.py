"""The commands that campaigns disturb, each so small that it takes a second, and what must come out of them."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import safetensors.numpy
from exchanged import chosen, invented
from tiny import SETTINGS, STEPS

from open_bench.weights.format import load_weights
from tooling.campaigns.processes import Run, Surroundings

SET = [f"--set={key}={value}" for key, value in SETTINGS.items()]
TINY = ["--steps", STEPS, *SET, "--devices", 1, "--plain"]
NAME = "campaign"
# What is being written, or was when its writer died.
LEFTOVER = re.compile(r"(\.tmp-.*|\..*\.tmp|partial-.*|\.damaged-.*|\.fetching)")
STUDY = f"""name = "tiny"
num_seeds = 1
[[sweeps]]
axis = "width"
environments = ["cartpole"]
env_steps = {STEPS}
settings = {{ {", ".join(f"{key} = {value}" for key, value in SETTINGS.items() if key != "hidden")} }}
vary = ["settings.hidden"]
values = [[4], [8]]
"""
_TIMED = (".png", ".md", ".lock")  # tables for people say how long it took; their numbers are in the CSV, too
_TIMES = re.compile(r"^(seconds|.*_seconds|steps_per_second|hardware|revision)$")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A command that works in a folder.

    Attributes:
        name: of the command.
        arguments: made of the folder, in which ``results``, ``library`` and whatever is needed lies.
        prepare: what has to be there first.
    """

    name: str
    arguments: Callable[[Path], list[object]]
    prepare: Callable[[Path], object] = lambda folder: None

    def start(self, folder: Path, around: Surroundings | None = None, *more: object) -> Run:
        """The command, whether for the first time or again, with ``more`` arguments."""
        around = around or Surroundings()
        variables = {"OPEN_BENCH_WEIGHTS": str(folder / "library"), **around.variables}
        return Run(
            [*self.arguments(folder), *more], folder / "messages.txt", dataclasses.replace(around, variables=variables)
        )


def _results(folder: Path) -> list[object]:
    return ["--results", folder / "results"]


def _write_study(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.toml").write_text(STUDY)


def _invent(folder: Path) -> None:
    invented(folder / "runs", chosen(), [0, 1, 2], beside=True)


# σ is large, so that the members of so small a generation differ in so short a life.
_EVOLUTION = ["--population", 4, "--sigma", "1.0", "--fitness", "mean_return", "--vmap-size", 1]
SUBJECTS = (
    Subject("compare", lambda folder: ["compare", "-o", "adam", "-o", "sgd", "-e", "cartpole", "--num-seeds", 2, *TINY,
                                       "--no-baseline", *_results(folder)]),
    Subject("tune", lambda folder: ["tune", "sgd", "-e", "cartpole", "--trials", 2, "--num-seeds", 1, "--report-seeds",
                                    1, *TINY, *_results(folder)]),
    Subject("generalize", lambda folder: ["generalize", "sgd", "--study", folder / "tiny.toml", "--devices", 1,
                                          "--plain", *_results(folder)], _write_study),
    Subject("meta-train", lambda folder: ["meta-train", "open", "-e", "cartpole", "--generations", 4, *_EVOLUTION,
                                          "--name", NAME, *TINY, *_results(folder)]),
    Subject("export", lambda folder: ["export", folder / "results" / "mine.zip", "--overwrite", "--results",
                                      folder / "runs"], _invent),
)  # fmt: skip


def outcome(folder: Path) -> dict[str, str]:
    """Digests of everything that a command left but for figures and the times it took: what must not differ.

    Tables lose their columns of times, JSON such keys, and the place of the folder, which a request repeats.
    """
    found = {}
    for path in sorted([*(folder / "results").rglob("*"), *(folder / "library").rglob("*")]):
        if path.is_file() and not path.name.startswith(".") and path.suffix not in _TIMED:
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(
                _timeless(path).replace(str(folder).encode(), b"")
            ).hexdigest()
    return found


def _timeless(path: Path) -> bytes:
    if path.suffix == ".safetensors":  # arrays, and of weights what is told of them
        told = load_weights(path).metadata if path.parent.name == "library" else {}
        arrays = [(name, array.tobytes()) for name, array in sorted(safetensors.numpy.load_file(path).items())]
        return repr((arrays, json.dumps(_without_times(dict(told)), sort_keys=True))).encode()
    if path.suffix == ".json":
        return json.dumps(_without_times(json.loads(path.read_bytes())), sort_keys=True).encode()
    if path.suffix == ".csv":
        import pandas as pd

        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return table[[name for name in table if not _TIMES.match(name)]].to_csv().encode()
    return path.read_bytes()


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_times(each) for key, each in value.items() if not _TIMES.match(key)}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


def leftovers(folder: Path) -> list[str]:
    """Paths of what a writer left half-written. Writers may be at work: what goes meanwhile is not there."""
    found = [(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)]
    return sorted(Path(place, name).relative_to(folder).as_posix() for place, name in found if LEFTOVER.fullmatch(name))


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of files that only one has, or that differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
