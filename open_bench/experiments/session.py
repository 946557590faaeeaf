"""A study from plan to board: plan → runner → store → evaluation."""

import dataclasses
import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from open_bench.config import Aliases, Execution, StudyConfig, build
from open_bench.errors import UserError, check_known
from open_bench.evaluation.baseline_returns import load_baseline_returns
from open_bench.evaluation.leaderboard import Leaderboard
from open_bench.evaluation.leaderboard import leaderboard as rank
from open_bench.evaluation.schema import Runs
from open_bench.evaluation.style import check_aliases
from open_bench.events import Watcher, silent
from open_bench.experiments.estimate import Estimate, announce, estimate, missing_of
from open_bench.experiments.execute import execute
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.history import curves_logged
from open_bench.experiments.plan import Find, Plan, make_plan
from open_bench.experiments.remote import devices_for
from open_bench.experiments.store import Store
from open_bench.files import read_json, write_atomically
from open_bench.optimizers.hyperparameters import folder_of
from open_bench.optimizers.resolve import resolve
from open_bench.training.devices import Device
from open_bench.training.task import Settings

STUDY_FILE = "study.json"  # which study the folder's board is of


@dataclasses.dataclass(frozen=True)
class Session:
    """A study with where and how it is run.

    Attributes:
        study: what is asked for.
        steps: env steps of a lifetime, in place of the budget's.
        settings: settings of the algorithm to replace.
        execution: where and how.
        ranked: whether a board is wanted, and so what scores are measured against.
        baseline: whether Adam joins where scores need it.
        hyperparameters: a folder of hyperparameter files that come before those that ship, or results with such.
        tensorboard, wandb: whether event files are written; project of Weights & Biases to log to.
    """

    study: StudyConfig
    steps: int | None
    settings: Settings | None
    execution: Execution
    ranked: bool = True
    baseline: bool = True
    hyperparameters: str | Path | None = None
    tensorboard: bool = False
    wandb: str | None = None

    @functools.cached_property
    def devices(self) -> list[Device]:
        """The devices to use; JAX starts when they are first asked for."""
        return devices_for(self.execution)

    @functools.cached_property
    def store(self) -> Store:
        """Where experiments lie."""
        return Store(self.execution.folder)

    @functools.cached_property
    def plan(self) -> Plan:
        """Every experiment, checked."""
        return self.plan_with(self.find)

    @functools.cached_property
    def find(self) -> Find:
        """What an optimizer's name means for a task."""
        folder = None if self.hyperparameters is None else folder_of(self.hyperparameters)
        return functools.partial(resolve, folder=folder)

    def plan_with(self, find: Find) -> Plan:
        """The plan where names mean what ``find`` says."""
        vmap_size, returns = self.execution.vmap_size, load_baseline_returns() if self.ranked else None
        return make_plan(self.study, self.devices, self.steps, self.settings, vmap_size, find, returns, self.baseline)

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """All that is run: what is asked for, and Adam and the random policy where scores need them."""
        return (*self.plan.experiments, *self.plan.joined, *self.plan.random)

    @property
    def watcher(self) -> Watcher:
        """Who is told of events."""
        return watcher_of(self.execution)

    def estimate(self) -> Estimate:
        """The work ahead."""
        return estimate(self.experiments, self.study.num_seeds, self.store, self.devices)

    def run(self) -> Runs:
        """Train what is missing; the study's own rows, and no others that the folder may hold."""
        for scale in self.plan.scales:
            if scale.kind != "stored":
                warnings.warn(scale.reason, stacklevel=2)
        announce(missing_of(self.experiments, self.study.num_seeds, self.store), self.devices)
        work = self.experiments, self.study.num_seeds, self.store
        watcher = curves_logged(self.watcher, *work, self.study.name, self.tensorboard, self.wandb)
        execute(
            *work, self.devices, watcher, title=self.study.name,
            save_agents=self.execution.save_agents, diagnose=self.execution.diagnose,
        )  # fmt: skip
        return self.store.load(self.experiments, self.study.num_seeds)

    def board(self, runs: Runs) -> Leaderboard:
        """The study's leaderboard."""
        return rank(runs, load_baseline_returns(), title=self.study.name, joined=bool(self.plan.joined),
                    names=self.study.aliases)  # fmt: skip

    def write(self, runs: Runs, board: Leaderboard) -> None:
        """Write what is returned: tables and figures of this study. Of several hosts the first does."""
        if jax.process_index() > 0:
            return
        names = sorted(each.name for each in self.experiments)
        content = {"study": self.study.name, "experiments": names, "joined": bool(self.plan.joined),
                   **({"aliases": self.study.aliases} if self.study.aliases else {})}  # fmt: skip
        folder = self.execution.folder
        write_atomically(folder / STUDY_FILE, json.dumps(content, indent=1) + "\n")
        _write(folder, runs, board, None)


def watcher_of(execution: Execution) -> Watcher:
    """The watcher that ``progress`` asks for."""
    if callable(execution.progress):
        return execution.progress
    if execution.progress:
        from open_bench.progress import default_watcher

        return default_watcher()
    return silent


def load_runs(results: str | Path = "results") -> Runs:
    """Every stored experiment of a results folder, as tables (``experiments``, ``scores``, ``curves``)."""
    store = Store(results)
    store.check_there()
    return store.load()


def of_environments(runs: Runs, environments: Sequence[str]) -> Runs:
    """The runs on these environments, all where none is named; raises UserError for one that there are no runs of."""
    for name in environments:
        check_known("environment", name, sorted(set(runs.experiments["environment"])))
    return runs.select(environment=list(environments)) if environments else runs


def write_board(
    folder: Path, runs: Runs, budget: str | None, tracks: Sequence[str] = (), metric: str = "final_return",
    formats: Sequence[str] = ("png",), aliases: Mapping[str, str] | None = None,
) -> Leaderboard:  # fmt: skip
    """Rank stored runs and write tables and figures."""
    board = stored_board(folder, runs, budget, tracks, metric, aliases)
    _write(folder, runs, board, budget, formats)
    return board


def stored_board(
    folder: Path, runs: Runs, budget: str | None = None, tracks: Sequence[str] = (), metric: str = "final_return",
    aliases: Mapping[str, str] | None = None,
) -> Leaderboard:  # fmt: skip
    """The board of stored runs; the study that made all of them names it. ``aliases`` come before the study's.

    Raises UserError for an alias of what is on no board.
    """
    given = checked_aliases(aliases)
    title, joined, before = _study_of(folder, runs)
    board = rank(runs, load_baseline_returns(), budget, metric=metric, only=tracks, title=title, joined=joined,
                 names={**before, **given})  # fmt: skip
    shown = {name for each in board.boards for name in (*each.scores.optimizers, *each.scores.environments)}
    check_aliases(sorted(shown), given)
    return board


def checked_aliases(aliases: Mapping[str, str] | None) -> dict[str, str]:
    """Short names by name; raises UserError for what is none."""
    return build(Aliases, {"aliases": dict(aliases or {})}, "aliases").aliases


def _study_of(folder: Path, runs: Runs) -> tuple[str | None, bool, dict[str, str]]:
    """Name of the study that all of the folder's runs belong to, None where there is none; whether Adam joined it, and
    its aliases."""
    try:
        content = read_json(folder / STUDY_FILE)
        if set(runs.experiments["experiment"]) <= set(content["experiments"]):
            aliases = checked_aliases(content.get("aliases"))
            return str(content["study"]), bool(content.get("joined")), aliases
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        pass
    return None, False, {}


def _write(folder: Path, runs: Runs, board: Leaderboard, budget: str | None, formats: Sequence[str] = ("png",)) -> None:
    from open_bench.evaluation.figures import save_figures
    from open_bench.evaluation.trial_figures import write_trials
    from open_bench.evaluation.trials import read_trials

    board.to_csv(folder / "leaderboard.csv")
    board.to_markdown(folder / "leaderboard.md")
    save_figures(runs, load_baseline_returns(), budget, folder / "figures", ranked=board, formats=formats)
    write_trials(read_trials(folder), folder, formats=formats)
