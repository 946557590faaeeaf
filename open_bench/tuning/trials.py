"""An optimizer's trials on one task, as a job: ``<results>/tuning/<environment>--<optimizer>--<hash>/``.

``tuning.json`` says what they are trials of, ``trials.csv`` has a row a trial and seed, ``curves.csv`` their learning
curves, ``provenance.json`` what each device batch took, and where. A table is rewritten whole with every batch, the
curves first: a lifetime is there once its row is. How many trials and seeds there are is no part of the identity, nor
how many lifetimes are vmapped: an accelerator's trials and a CPU's choose together, and provenance tells them apart.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from open_bench.evaluation import schema
from open_bench.evaluation.schema import BadRows
from open_bench.evaluation.trials import labeled
from open_bench.experiments.execute import Group, label_of, rows
from open_bench.experiments.experiment import Experiment, folder_name
from open_bench.experiments.store import Store, set_aside
from open_bench.files import read_json, write_atomically
from open_bench.optimizers.resolve import ResolvedOptimizer
from open_bench.training.lifetime import Lifetime
from open_bench.training.runner import Finished
from open_bench.tuning.space import points, space_of

ROOT_SEED = 1_000_001  # no study may use it
FOLDER = "tuning"  # below the results folder
DESCRIPTION, TRIALS, CURVES, PROVENANCE = "tuning.json", "trials.csv", "curves.csv", "provenance.json"
KEYS = ["trial", "seed"]
_NO_PART = ("hyperparameters", "track", "vmap_size")  # of an experiment's identity in that of its trials


class Trials:
    """Trial 0 is the published setting, or else the default; trials 1 … K are points of the search space.

    Args:
        experiment: the optimizer with the setting of trial 0 on a task, under the root seed of tuning.
        trials: K.
        num_seeds: lifetimes of each trial.
        results: the results folder.

    Raises:
        UserError: the optimizer has no search space, or one that makes no sense.
    """

    counted = "lifetime"
    save_agents = False

    def __init__(self, experiment: Experiment, trials: int, num_seeds: int, results: Path):
        assert experiment.optimizer is not None
        spec = experiment.optimizer.spec
        self.experiment, self.trials, self.num_seeds = experiment, trials, num_seeds
        self.space = space_of(spec)
        defaults = {key: each.default for key, each in spec.hyperparameters.items()}
        drawn = [{**defaults, **point} for point in points(spec, self.space, trials)]
        self.values = [dict(experiment.optimizer.hyperparameters), *drawn]  # by trial
        self.pairs = [(trial, seed) for trial in range(trials + 1) for seed in range(num_seeds)]
        self.lifetimes, self.label = len(self.pairs), label_of(experiment)
        self._store = Store(results, FOLDER)
        self.path = self._store.path(self)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What the trials are of, as JSON values; the values of hyperparameters are no part of it."""
        identity = {key: x for key, x in self.experiment.identity.items() if key not in _NO_PART}
        return {
            **identity,
            "search": json.loads(json.dumps({key: dataclasses.asdict(x) for key, x in self.space.items()})),
        }

    @functools.cached_property
    def name(self) -> str:
        """The folder: environment, optimizer and a short hash of the identity."""
        return folder_name(self.identity)

    @property
    def env_steps(self) -> int:
        """Env steps of all lifetimes."""
        return self.lifetimes * self.experiment.task.lifetime_steps

    def optimizer(self, trial: int) -> ResolvedOptimizer:
        """The optimizer with a trial's setting."""
        assert self.experiment.optimizer is not None
        return dataclasses.replace(self.experiment.optimizer, hyperparameters=self.values[trial])

    @functools.cached_property
    def settings(self) -> list[str]:
        """Each trial's setting as JSON."""
        found = [self.optimizer(trial).identity["hyperparameters"] for trial in range(self.trials + 1)]
        return [json.dumps(values, sort_keys=True) for values in found]

    # --- the job ---

    def stored(self) -> set[int]:
        """Lifetimes whose rows are there, with the settings that they have today."""
        try:
            there, curves = read_rows(self.path), read_curves(self.path)
        except BadRows:
            return set()
        found = set(there[[*KEYS, "settings"]].itertuples(index=False, name=None))
        drawn = set(curves[KEYS].itertuples(index=False, name=None))
        return {i for i, pair in enumerate(self.pairs) if pair in drawn and (*pair, self.settings[pair[0]]) in found}

    def lock(self, wait: bool) -> AbstractContextManager[bool]:
        return self._store.lock(self, wait)

    def refresh(self) -> None:
        set_damaged_aside(self.path)

    def create(self) -> None:
        path, text = self.path / DESCRIPTION, json.dumps({"identity": self.identity}, indent=1, sort_keys=True) + "\n"
        if not path.is_file() or path.read_bytes() != text.encode():
            write_atomically(path, text)

    def take_over(self) -> None:
        """Nothing: no other search has these trials."""

    def groups(self, missing: Sequence[int]) -> Iterable[Group]:
        """One program, or one for each combination of static hyperparameters."""
        by_static: dict[str, list[int]] = {}
        for index in missing:
            by_static.setdefault(repr(self.optimizer(self.pairs[index][0]).static), []).append(index)
        for indices in by_static.values():
            each = [self.optimizer(self.pairs[index][0]) for index in indices]
            inputs = jax.tree.map(lambda *leaves: np.stack(leaves), *(optimizer.inputs for optimizer in each))
            seeds = [self.pairs[index][1] for index in indices]
            yield Group(indices, dataclasses.replace(self.experiment, optimizer=each[0]), seeds, inputs)

    def digest(self, indices: Sequence[int]) -> str:
        told = [(*self.pairs[index], self.settings[self.pairs[index][0]]) for index in indices]
        return "-" + hashlib.sha256(repr(told).encode()).hexdigest()[:8]

    def add(self, lifetime: Lifetime, indices: Sequence[int], batch: Finished, facts: dict[str, Any]) -> None:
        """Store a device batch; rows of a trial that had another setting go."""
        scores, curves = (self._in_pairs(frame) for frame in rows(lifetime, indices, batch))
        scores["settings"] = [self.settings[trial] for trial in scores["trial"]]
        before, curves_before = read_rows(self.path), read_curves(self.path)
        current = before["trial"].map(dict(enumerate(self.settings))).fillna(before["settings"])
        kept = before[current == before["settings"]]
        there = pd.MultiIndex.from_frame(kept[KEYS])
        curves_before = curves_before[pd.MultiIndex.from_frame(curves_before[KEYS]).isin(there)]
        batches = read_provenance(self.path)
        lifetimes = [list(self.pairs[index]) for index in indices]
        told = {"lifetimes": lifetimes, "vmap_size": self.experiment.vmap_size, **facts}
        write_provenance(self.path, [*batches, told])
        write_joined(self.path / CURVES, curves_before, curves, [*KEYS, "env_steps"], schema.TRIAL_CURVES)
        write_joined(self.path / TRIALS, kept, scores, KEYS, schema.TRIALS)

    def _in_pairs(self, frame: pd.DataFrame) -> pd.DataFrame:
        pairs = [self.pairs[index] for index in frame["seed"]]
        return frame.assign(trial=[trial for trial, _ in pairs], seed=[seed for _, seed in pairs])

    # --- what they gave ---

    def load(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Rows and curves of these trials and seeds, whatever else is stored; labeled."""
        found = []
        for frame in (read_rows(self.path), read_curves(self.path)):
            mine = frame[(frame["trial"] <= self.trials) & (frame["seed"] < self.num_seeds)]
            found.append(labeled(mine.reset_index(drop=True), self.name, self.identity))
        return found[0], found[1]


def read_rows(path: Path) -> pd.DataFrame:
    """``trials.csv`` of a folder, without rows where there is none; raises BadRows."""
    return schema.read_trials(path / TRIALS, schema.TRIALS, KEYS)


def read_curves(path: Path) -> pd.DataFrame:
    return schema.read_trials(path / CURVES, schema.TRIAL_CURVES, [*KEYS, "env_steps"])


def read_provenance(path: Path) -> list[Any]:
    try:
        found = read_json(path / PROVENANCE)
        return found if isinstance(found, list) else []
    except (OSError, ValueError):
        return []


def write_provenance(path: Path, batches: Sequence[Any]) -> None:
    write_atomically(path / PROVENANCE, json.dumps(batches, indent=1, sort_keys=True) + "\n")


def set_damaged_aside(path: Path) -> None:
    """Where a table of a folder cannot be read, both make room for new ones."""
    try:
        read_rows(path), read_curves(path)
    except BadRows:
        for file in (TRIALS, CURVES):
            if (path / file).exists():
                set_aside(path / file)


def write_joined(path: Path, before: pd.DataFrame, new: pd.DataFrame, keys: list[str], columns: Any) -> None:
    """The rows of both, new ones in place of old ones, in order; numbers survive exactly."""
    old = before[~pd.MultiIndex.from_frame(before[keys]).isin(pd.MultiIndex.from_frame(new[keys]))]
    joined = (pd.concat([old, new]) if len(old) else new).sort_values(keys)
    order = [*columns, *(name for name in joined.columns if name not in columns)]
    write_atomically(path, joined.to_csv(index=False, columns=order, lineterminator="\n"))
