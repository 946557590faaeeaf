"""The state of an evolution or an imitation on disk, so that it goes on from any interruption with bitwise the same θ.

``<folder>/checkpoint-<generations done>.safetensors`` are checkpoints of ``experiments.checkpoint``, of which the last
few are kept. ``<folder>/history.csv`` beside them is for people: a row a generation, written anew each time. Those of
an imitation, in the same folder, have names and steps of their own.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from flax.traverse_util import flatten_dict

from open_bench.errors import UserError
from open_bench.experiments import checkpoint
from open_bench.files import write_atomically
from open_bench.training.mesh import same_everywhere

KEEP = 3
HISTORY, IMITATION = "history.csv", "imitation.csv"
_SUFFIX = ".safetensors"


class Saved(NamedTuple):
    """Everything between two steps, which are generations or parts of an imitation; keys follow from their numbers."""

    generation: int  # generations done
    arrays: dict[str, np.ndarray]  # the strategy's state by position, and the best θ so far
    history: list[dict[str, Any]]  # a row a generation
    facts: dict[str, Any]  # numbers that are no arrays: the best fitness, seconds spent


class Checkpoints:
    """The checkpoints of one evolution or imitation.

    Args:
        folder: where they lie; created when needed.
        identity: everything that determines θ, as nested JSON values; another identity's checkpoints are refused.
        stem: how their names begin.
        history: name of the file for people.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], stem: str = "checkpoint", history: str = HISTORY
    ):  # fmt: skip
        self.folder, self._prefix, self._history = folder, f"{stem}-", history
        self._identity = json.loads(json.dumps(identity))

    def save(self, saved: Saved) -> None:
        """Write a checkpoint whole, then forget those that are too old."""
        facts = saved._asdict() | {"identity": self._identity}
        del facts["arrays"]
        checkpoint.write(self.folder / f"{self._prefix}{saved.generation:06d}{_SUFFIX}", saved.arrays, facts)
        for old in self.paths()[:-KEEP]:
            old.unlink(missing_ok=True)
        self.write_history(saved.history)

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Write the file for people."""
        write_atomically(self.folder / self._history, pd.DataFrame(history).to_csv(index=False))

    def load(self) -> Saved | None:
        """The newest checkpoint that is whole; None when there is none. Damaged ones are named in a warning.

        Raises:
            UserError: it belongs to another optimizer or to other settings; the message says which. Or the processes
                of a cluster do not find the same one.
        """
        found = self._newest()
        if not same_everywhere(found.generation if found is not None else -1):
            raise UserError(
                f"the processes do not find the same checkpoint in {self.folder}: they need one results folder that "
                "all of them see"
            )
        return found

    def _newest(self) -> Saved | None:
        damaged: list[Path] = []
        for path in reversed(self.paths()):
            found = checkpoint.read(path)
            if found is None:
                damaged.append(path)
                continue
            _warn_of(damaged, f"going on from {path.name}")
            self._check(path, found.facts["identity"])
            kept = {name: found.facts[name] for name in ("generation", "history", "facts")}
            return Saved(arrays=found.arrays, **kept)
        _warn_of(damaged, "beginning anew")
        return None

    def paths(self) -> list[Path]:
        """The files, oldest first."""
        return sorted(self.folder.glob(f"{self._prefix}*{_SUFFIX}"))

    def clear_temporaries(self) -> None:
        """Remove what a killed process was writing. Only for who holds the folder's lock."""
        for name in (self._prefix, self._history):
            for path in self.folder.glob(f".{name}*"):
                path.unlink(missing_ok=True)

    def _check(self, path: Path, found: Mapping[str, Any]) -> None:
        ours, theirs = (flatten_dict(dict(tree), sep=".") for tree in (self._identity, found))
        differing = [
            f"{key} ({there} there, {here} here)"
            for key in sorted(ours | theirs)
            if (there := _shown(theirs, key)) != (here := _shown(ours, key))
        ]
        if differing:
            raise UserError(
                f"{path} was made with other settings: {'; '.join(differing)}. "
                "Use those settings to go on with it, or another --name to begin anew."
            )


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "absent"


def _warn_of(damaged: list[Path], then: str) -> None:
    if damaged:
        names = ", ".join(path.name for path in damaged)
        warnings.warn(f"{damaged[0].parent}: {names} is damaged; {then}", stacklevel=3)
