"""Tuning from request to tables: plan → trials → selection → hyperparameter files → winners on fresh seeds."""

import dataclasses
import json
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import pydantic
from pydantic import Field

from open_bench import files
from open_bench.config import Config, Count, Execution, StudyConfig, build, check_count, load_study
from open_bench.errors import UserError
from open_bench.evaluation.tables import csv
from open_bench.evaluation.trials import read_trials
from open_bench.experiments.estimate import announce
from open_bench.experiments.execute import execute, execute_jobs
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.plan import adjust, make_plan, told_apart
from open_bench.experiments.provenance import revision
from open_bench.experiments.remote import devices_for
from open_bench.experiments.session import watcher_of
from open_bench.experiments.store import Store
from open_bench.files import read_json, write_atomically
from open_bench.optimizers import hyperparameters, names, registry
from open_bench.optimizers.resolve import UNTUNED, ResolvedOptimizer, resolve
from open_bench.training.devices import Device
from open_bench.training.task import Settings, Task
from open_bench.tuning.selection import one_setting, trial_scores, winner
from open_bench.tuning.space import edge_note
from open_bench.tuning.trials import FOLDER, ROOT_SEED, Trials, read_provenance

TUNED, ONE_SETTING = "tuned", "one_setting"
WRITTEN = ("trials.csv", "winners.csv", "figures/")


class TuneConfig(Config):
    """How much tuning spends on every optimizer in every environment: (trials + 1) × num_seeds lifetimes."""

    trials: Count = 16  # points of the search space; the published setting, or the default, is one more
    num_seeds: Count = 2  # of each
    report_seeds: Annotated[int, Field(ge=0, strict=True)] = 4  # fresh ones, of each winner

    @pydantic.model_validator(mode="after")
    def _lifetimes_can_be_listed(self) -> "TuneConfig":
        check_count((self.trials + 1) * self.num_seeds, "lifetimes")
        return self


class Winner(NamedTuple):
    """The trial that is chosen for an environment."""

    trials: Trials
    track: str  # "tuned" or "one_setting"
    trial: int
    scores: pd.Series  # by trial

    @property
    def experiment(self) -> Experiment:
        """What is trained in tuning."""
        return self.trials.experiment


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        trials: a row an environment, optimizer, trial and seed, of this request alone.
        curves: their learning curves.
        winners: a row an environment, optimizer and track: the settings, ``tuning_score`` (mean final return on the
            tuning seeds), ``trial_0_score``, ``fresh_score`` (on fresh seeds; NaN without), ``edge``.
        notes: what to know.
    """

    trials: pd.DataFrame
    curves: pd.DataFrame
    winners: pd.DataFrame
    notes: tuple[str, ...]


def tune(
    study: str | StudyConfig | None, optimizers: Any, environments: Any, config: dict[str, Any],
    execution: Execution, *, steps: int | None, settings: Settings | None, family: bool, ship: bool, **changes: Any,
) -> Tuned:  # fmt: skip
    """``open_bench.tune``."""
    amount = build(TuneConfig, {key: x for key, x in config.items() if x is not None}, "tune")
    chosen, tracks = _request(study, optimizers, environments, changes)
    if ship and not _is_checkout():
        raise UserError("--ship writes to baselines/hyperparameters of a checkout, and this package is installed: the "
                        "results folder's own hyperparameters can be used with --hyperparameters")  # fmt: skip
    Store(execution.folder).check_writable()
    devices = devices_for(execution)
    if jax.process_count() > 1:
        raise UserError("tune does not join hosts: start the command on each of them, with one results folder for all")
    plan = make_plan(chosen, devices, steps, settings, execution.vmap_size, find=_untuned)
    campaign = _Campaign(plan.experiments, amount, chosen, tracks, execution, devices, family, ship)
    campaign.run_trials()
    campaign.run_winners()
    return campaign.write()


def _request(
    study: str | StudyConfig | None, optimizers: Any, environments: Any, changes: dict[str, Any]
) -> tuple[StudyConfig, dict[str, set[str]]]:
    """What is asked for as a study, and the tracks that are wanted of an optimizer; all of those not named there.

    Raises:
        UserError: nothing to tune, one thing twice, or a name that holds what tuning is to find.
    """
    given = {
        key: x
        for key, x in {"optimizers": optimizers, "environments": environments, **changes}.items()
        if x is not None
    }
    tracks: dict[str, set[str]] = {}
    if study is None:
        if not (optimizers and environments):
            raise UserError("name at least one optimizer and one environment (-e), or a study with --study")
        chosen = build(StudyConfig, {"name": FOLDER, **given}, "tune")
    else:
        chosen = study if isinstance(study, StudyConfig) else load_study(study)
        if not optimizers:
            tracks = _tracks_of(chosen)
            given["optimizers"] = tuple(tracks)
        chosen = adjust(chosen, **given)
    chosen = told_apart(chosen)
    for each in chosen.optimizers:
        _check_tunable(each)
    return chosen, tracks


def _tracks_of(study: StudyConfig) -> dict[str, set[str]]:
    """By optimizer whose settings they are, in the study's order: the tracks that its rows need tuning for."""
    found: dict[str, set[str]] = {}
    for row in told_apart(study).optimizers:
        parsed = names.parse(row) if isinstance(row, str) else None
        if parsed is not None and parsed.track in (TUNED, ONE_SETTING):
            owner = registry.find(parsed).tuned_as or str(dataclasses.replace(parsed, track=None, policy_loss=None))
            found.setdefault(owner, set()).add(parsed.track)
    if not found:
        raise UserError(f"study {study.name} has no row that needs tuning, such as adam:track=tuned: name optimizers")
    return found


def _check_tunable(optimizer: Any) -> None:
    parsed, spec = (names.parse(optimizer), None) if isinstance(optimizer, str) else registry.find_object(optimizer)
    spec = spec or registry.find(parsed)
    if parsed.settings or parsed.track:
        raise UserError(f"'{parsed}': settings are what tuning finds: name it without, as {parsed.head}")
    if parsed.policy_loss is not None or (spec.tuned_as in registry.known() and spec.tuned_as != parsed.head):
        owner = spec.tuned_as or parsed.head
        raise UserError(f"'{parsed}' takes its settings from {owner}, whatever its policy loss: tune {owner}")


def _untuned(optimizer: Any, task: Task) -> ResolvedOptimizer:
    """With the setting of trial 0."""
    return resolve(optimizer, task, track=UNTUNED)


def _is_checkout() -> bool:
    return (files.baselines_dir().parent / ".git").exists()


class _Campaign:
    """Optimizers × environments that are tuned by one command."""

    def __init__(
        self, experiments: Sequence[Experiment], amount: TuneConfig, study: StudyConfig, tracks: dict[str, set[str]],
        execution: Execution, devices: Sequence[Device], family: bool, ship: bool,
    ):  # fmt: skip
        self.amount, self.study, self.tracks, self.execution = amount, study, tracks, execution
        self.devices, self.watcher = devices, watcher_of(execution)
        self.results, self.store = execution.folder, Store(execution.folder)
        self.families = _families(experiments) if family else {}
        self.folders = [self.results / hyperparameters.FOLDER]
        self.folders += [files.baselines_dir() / hyperparameters.FOLDER] if ship else []
        # A study's most valuable rows come first; else environment by environment.
        order = {each.label: place for place, each in reversed(list(enumerate(experiments)))}
        ordered = sorted(experiments, key=lambda each: order[each.label]) if tracks else experiments
        self.jobs = [
            Trials(dataclasses.replace(each, root_seed=ROOT_SEED), amount.trials, amount.num_seeds, self.results)
            for each in ordered
        ]
        self._check_one_settings()
        self.done: dict[str, Winner | None] = {}  # by name of the trials
        self.over_all: dict[str, list[Winner]] = {}  # one setting, by optimizer
        self.notes: list[str] = []
        self.fresh: dict[str, float] = {}  # mean final return by experiment

    def _check_one_settings(self) -> None:
        """One setting over some environments does not replace that over more of them, which other studies need."""
        for job in self.jobs:
            alike, task = self._alike(job), job.experiment.task
            if len(alike) < 2 or not self._wants(job, ONE_SETTING):
                continue
            here = {each.experiment.task.name for each in alike}
            for folder in self.folders:
                there = hyperparameters.one_setting_over(folder, self._owner(job), task.algorithm, task.budget)
                if lacking := sorted({*there} - here):
                    raise UserError(
                        f"{folder / hyperparameters.file_name(self._owner(job))} has one setting of {self._owner(job)} "
                        f"at {task.budget} over {', '.join(there)}; this tuning would replace it and lacks "
                        f"{', '.join(lacking)}: name those environments too, other --results, or leave --ship out"
                    )

    # --- trials ---

    def run_trials(self) -> None:
        """Train what is missing; files are written as soon as they can be."""
        announce([(job.experiment, job.lifetimes - len(job.stored())) for job in self.jobs], self.devices)
        title = f"tuning, {self.amount.trials} trials"
        execute_jobs(self.jobs, self.devices, self.watcher, title=title, when_done=self._select)

    def _select(self, job: Any) -> None:
        """Choose a complete job's winner, and the one setting where it was the optimizer's last environment."""
        rows = job.load()[0]
        scores, trial = trial_scores(rows), winner(rows)
        self.done[job.name] = None if trial is None else Winner(job, TUNED, trial, scores)
        if trial is None:
            task = job.experiment.task
            self.notes.append(f"{job.experiment.label} on {task.name}: a lifetime of every trial failed, so none wins")
        else:
            self._put(job, self._place(job.experiment.task), self._table(self.done[job.name]))
        alike = self._alike(job)
        if len(alike) > 1 and self._wants(job, ONE_SETTING) and all(each.name in self.done for each in alike):
            self._select_one_setting(alike)

    def _wants(self, job: Trials, track: str) -> bool:
        return not self.tracks or track in self.tracks.get(self._owner(job), {track})

    def _alike(self, job: Trials) -> list[Trials]:
        """The optimizer's jobs that a board would hold together."""

        def key(each: Trials) -> tuple[str, str, str]:
            return each.experiment.label, each.experiment.task.algorithm, each.experiment.task.budget

        return [each for each in self.jobs if key(each) == key(job)]

    def _select_one_setting(self, jobs: list[Trials]) -> None:
        scores = {job.experiment.task.name: trial_scores(job.load()[0]) for job in jobs}
        trial = one_setting(scores)
        if trial is None:
            return
        first, task = jobs[0], jobs[0].experiment.task
        self.over_all[first.experiment.label] = [
            Winner(job, ONE_SETTING, trial, scores[job.experiment.task.name]) for job in jobs
        ]
        table = {
            "environments": list(scores),
            **self._provenance(jobs, f"best mean rank of {self.amount.trials} trials in {len(jobs)} environments"),
            "values": first.values[trial],
        }
        self._put(first, (ONE_SETTING, task.algorithm, task.budget), table)

    # --- hyperparameter files ---

    def _owner(self, job: Trials) -> str:
        assert job.experiment.optimizer is not None
        return job.experiment.optimizer.spec.tuned_as or job.experiment.optimizer.spec.name

    def _place(self, task: Task) -> tuple[str, ...]:
        return ("environments", self.families.get(task.name, task.name), task.algorithm, task.budget)

    def _table(self, winner: Winner | None) -> dict[str, Any]:
        assert winner is not None
        task, score = winner.experiment.task, winner.scores[winner.trial]
        family = {"environment": task.base} if task.name in self.families else {}
        search = f"{self.amount.trials} trials × {self.amount.num_seeds} seeds"
        told = f"Sobol search, {search}, final return {score:.4g}"
        if winner.trial == 0:
            assert winner.experiment.optimizer is not None
            first = winner.experiment.optimizer.origin
            told = f"trial 0, the {first} setting, better than a Sobol search, {search}; final return {score:.4g}"
        return {"origin": TUNED, **family, **self._provenance([winner.trials], told),
                "values": winner.trials.values[winner.trial]}  # fmt: skip

    def _provenance(self, jobs: Sequence[Trials], source: str) -> dict[str, Any]:
        return {"source": source, "trials": self.amount.trials, "num_seeds": self.amount.num_seeds,
                "env_steps": sum(job.env_steps for job in jobs), "revision": _revisions(jobs)}  # fmt: skip

    def _put(self, job: Trials, keys: tuple[str, ...], table: dict[str, Any]) -> None:
        """Several processes may be at it: one at a time."""
        owner = self._owner(job)
        values = {key: value for key, value in table["values"].items() if isinstance(value, bool | int | float | str)}
        for folder in self.folders:
            with Store(folder.parent, hyperparameters.FOLDER).lock(_Lock(hyperparameters.FOLDER), wait=True):
                path = folder / hyperparameters.file_name(owner)
                hyperparameters.write(path, owner, [(keys, {**table, "values": values})])

    # --- winners ---

    @property
    def winners(self) -> list[Winner]:
        """Tuned and, where it is wanted, with one setting; in the jobs' order."""
        tuned = [winner for job in self.jobs if (winner := self.done[job.name]) and self._wants(job, TUNED)]
        return [*tuned, *(winner for winners in self.over_all.values() for winner in winners)]

    def run_winners(self) -> None:
        """Train the winners on fresh seeds, as the experiments that ``NAME:track=tuned`` means in a study."""
        if not (self.amount.report_seeds and self.winners):
            return
        found = {self._key(winner): self._reported(winner) for winner in self.winners}
        experiments = list(found.values())
        for each in experiments:
            self._supersede(each)
        execute(experiments, self.amount.report_seeds, self.store, self.devices, self.watcher,
                title="winners on fresh seeds")  # fmt: skip
        scores = self.store.load(experiments, self.amount.report_seeds).scores
        returns = scores["final_return"].mask(scores["diverged"])
        means = returns.groupby(scores["experiment"]).agg(lambda values: values.mean(skipna=False))
        failed = returns.isna().groupby(scores["experiment"]).sum()
        for chosen in self.winners:
            if count := int(failed.get(found[self._key(chosen)].name, 0)):
                where = f"{chosen.experiment.task.name} ({chosen.track.replace('_', ' ')})"
                self.notes.append(
                    f"{chosen.experiment.label} on {where}: {count} of {self.amount.report_seeds} fresh lifetimes "
                    "diverged or finished no episode"
                )
        self.fresh = {key: float(means.get(each.name, np.nan)) for key, each in found.items()}

    def _key(self, winner: Winner) -> str:
        return f"{winner.trials.name} {winner.track}"

    def _reported(self, winner: Winner) -> Experiment:
        optimizer = self._named(winner.experiment.label)
        found = resolve(optimizer, winner.experiment.task, track=winner.track, folder=self.folders[0])
        wanted = winner.trials.optimizer(winner.trial).identity["hyperparameters"]
        if found.identity["hyperparameters"] != wanted:
            raise UserError(
                f"{self.folders[0] / hyperparameters.file_name(self._owner(winner.trials))} has other settings for "
                f"{winner.experiment.task.name} itself, which come before those of this tuning: take that table away"
            )
        return dataclasses.replace(winner.experiment, optimizer=found, root_seed=self.study.root_seed)

    def _named(self, label: str) -> Any:
        """What the user has named so: a text, or an object."""
        return next(each for each in self.study.optimizers if resolve(each).label == label)

    def _supersede(self, experiment: Experiment) -> None:
        """Move away what an earlier winner trained, which would stand beside this one's on the board."""

        def apart(identity: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in identity.items() if key != "hyperparameters"}

        wanted = apart(json.loads(json.dumps(experiment.identity)))
        for path in self.store.experiments.glob("*/experiment.json"):
            try:
                identity = read_json(path)["identity"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if path.parent.name != experiment.name and apart(identity) == wanted:
                target = self.results / "superseded" / path.parent.name
                with self.store.lock(_Lock(path.parent.name)) as free:
                    if free and not target.exists():
                        target.parent.mkdir(exist_ok=True)
                        path.parent.rename(target)
                        warnings.warn(f"{path.parent} is an earlier winner's; moved to {target}", stacklevel=2)
                    else:
                        why = f"{target} exists" if free else "another process is at it"
                        warnings.warn(f"{path.parent} is an earlier winner's and stays, as {why}", stacklevel=2)

    # --- tables and figures ---

    def write(self) -> Tuned:
        """The result, written as it is returned; ``trials.csv`` has all trials of the folder."""
        from open_bench.tuning.figures import save_figures

        tables = [job.load() for job in self.jobs]
        trials, curves = (pd.concat(frames, ignore_index=True) for frames in zip(*tables, strict=True))
        winners = pd.DataFrame([self._row(winner) for winner in self.winners], columns=list(_ROW))
        folder = self.results / FOLDER
        for name, frame in (("trials.csv", read_trials(self.results)), ("winners.csv", winners)):
            write_atomically(folder / name, csv(frame))
        save_figures(self.jobs, self.done, folder / "figures")
        return Tuned(trials, curves, winners, tuple(self.notes))

    def _row(self, winner: Winner) -> dict[str, Any]:
        job, task = winner.trials, winner.experiment.task
        assert winner.experiment.optimizer is not None
        values = job.values[winner.trial]
        note = edge_note(winner.experiment.optimizer.spec, job.space, values)
        score, first = float(winner.scores[winner.trial]), float(winner.scores[0])
        cells = (
            task.name, task.algorithm, task.budget, winner.experiment.label, winner.track.replace("_", " "),
            winner.trial, job.settings[winner.trial], score, first if np.isfinite(first) else np.nan,
            self.fresh.get(self._key(winner), np.nan), self.amount.report_seeds, self.amount.trials,
            self.amount.num_seeds, job.env_steps, note,
        )  # fmt: skip
        return dict(zip(_ROW, cells, strict=True))


_ROW = ("environment", "algorithm", "budget", "optimizer", "track", "trial", "settings", "tuning_score",
        "trial_0_score", "fresh_score", "report_seeds", "trials", "num_seeds", "env_steps", "edge")  # fmt: skip


def _revisions(jobs: Sequence[Trials]) -> str:
    """Of the code that ran the trials."""
    batches = [batch for job in jobs for batch in read_provenance(job.path) if isinstance(batch, dict)]
    found = {str(batch["revision"]) for batch in batches if "revision" in batch}
    return ", ".join(sorted(found)) or revision()


class _Lock(NamedTuple):
    """What has a lock, and no more."""

    name: str


def _families(experiments: Sequence[Experiment]) -> dict[str, str]:
    """``{environment: "folder/*"}``; raises UserError for one without a folder, and for two of one folder."""
    found: dict[str, str] = {}
    for task in {each.task.name: each.task for each in experiments}.values():
        folder = task.base.rpartition("/")[0]
        if not folder or f"{folder}/*" in found.values():
            raise UserError(f"--family: {task.name} " + ("is the second of its family" if folder else "has no family"))
        found[task.name] = f"{folder}/*"
    return found
