"""The public functions. The command line calls these and prints what they return."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_bench.config import Execution, StudyConfig, build, load_study, quiet_xla, several

if TYPE_CHECKING:
    import pandas as pd

    from open_bench.algorithms.base import Algorithm
    from open_bench.evaluation.leaderboard import Leaderboard
    from open_bench.exchange.verify import Verification
    from open_bench.experiments.session import Session
    from open_bench.generalization.scores import Generalization
    from open_bench.generalization.study import GeneralizationConfig
    from open_bench.meta_training.run import MetaTrained
    from open_bench.meta_training.spec import MetaConfig
    from open_bench.training.task import Settings
    from open_bench.tuning.run import Tuned

DEFAULT_STUDY, CUSTOM = "quick", "custom"  # CUSTOM: of which neither optimizers nor environments are left
HERE = Execution()


def train(
    optimizer: Any, environment: Any, *, algorithm: "str | type[Algorithm] | None" = None, budget: str = "quick",
    steps: int | None = None, num_seeds: int = 1, root_seed: int = 0, settings: "Settings | None" = None,
    hyperparameters: str | Path | None = None, tensorboard: bool = False, wandb: str | None = None,
    execution: Execution = HERE, **where: Any,
) -> "pd.DataFrame":  # fmt: skip
    """Train one optimizer on one environment and store the experiment.

    Args:
        optimizer: a name such as "adam:learning_rate=1e-3" or "lion+dpo"; an ``OptimizerSpec``, an optax constructor, a
            function that returns a gradient transformation, or such a transformation.
        environment: a shipped environment, a TOML of yours, a gymnax id; or an environment object or configuration.
        algorithm: "ppo", "pqn", or a class of yours, also as "module:Class"; by default the environment's own.
        budget: one of the environment's budgets; ``steps`` (env steps) replaces it.
        num_seeds, root_seed: how many lifetimes (those that are stored are not trained again); the root of all keys.
        settings: settings of the algorithm to replace, such as ``{"num_envs": 32}``; or all, as its ``Config``.
        hyperparameters: results of ``tune``, or a folder of its files, that come before the settings that ship.
        tensorboard: write learning curves as event files to ``<results>/tensorboard/<experiment>``, too.
        wandb: project of Weights & Biases to log them to, a run an experiment; it alone contacts a network.
        execution: where and how to run; ``**where`` replaces fields of it, as in ``results="mine", devices=1``.

    Returns:
        One row a seed: seed, the metrics (final_return, mean_return, …), diverged, env_steps, and what they belong to.

    Raises:
        UserError: whatever the request has wrong, before anything trains.
    """
    quiet_xla()
    from open_bench.algorithms.registry import algorithm_name

    values = {
        "name": "train", "optimizers": (optimizer,), "environments": (environment,),
        "algorithm": algorithm_name(algorithm), "budget": budget, "num_seeds": num_seeds, "root_seed": root_seed,
    }  # fmt: skip
    study = build(StudyConfig, values, "train")
    session = _session(study, steps, settings, execution, where, ranked=False, hyperparameters=hyperparameters,
                       tensorboard=tensorboard, wandb=wandb)  # fmt: skip
    return session.run().scores.sort_values("seed", ignore_index=True)


def compare(study: str | StudyConfig | None = None, **request: Any) -> "pd.DataFrame":
    """Train every optimizer on every environment of a study (see ``prepare``), and write its board and figures.

    Returns:
        The leaderboard, a row an optimizer, best first.
    """
    return compare_board(study, **request).table


def compare_board(study: str | StudyConfig | None = None, **request: Any) -> "Leaderboard":
    """``compare``, returning the leaderboard with its notes."""
    session = prepare(study, **request)
    board = session.board(runs := session.run())
    session.write(runs, board)
    return board


def prepare(
    study: str | StudyConfig | None = None, *, optimizers: Any = None, environments: Any = None,
    algorithm: "str | type[Algorithm] | None" = None, budget: str | None = None, steps: int | None = None,
    num_seeds: int | None = None, root_seed: int | None = None, settings: "Settings | None" = None,
    meta_train: "str | MetaConfig | bool | None" = None, baseline: bool = True,
    hyperparameters: str | Path | None = None, tensorboard: bool = False, wandb: str | None = None,
    aliases: Mapping[str, str] | None = None, execution: Execution = HERE, **where: Any,
) -> "Session":  # fmt: skip
    """A study that is ready to run: everything in it has been checked, and nothing is trained.

    Args:
        study: a shipped one, a TOML of yours, or settings; what follows replaces its values. See ``train``. With other
            optimizers and other environments it is another study, called "custom".
        meta_train: how learned optimizers without weights get some first: a study, settings, or True for those of the
            study, which are OPEN's published ones where it has none; by default what the study says, if anything;
            False: not at all. Environments and length of a lifetime are the study's unless that has its own. The
            library keeps the weights under a name that follows from the settings.
        baseline: let Adam join where scores need it: the study lacks it, and stored returns do not fit.
        aliases: short names to show for optimizers and environments, by name; they come before the study's.
    """
    quiet_xla()
    from open_bench.algorithms.registry import algorithm_name
    from open_bench.evaluation.style import check_aliases
    from open_bench.experiments.plan import adjust

    chosen = study if isinstance(study, StudyConfig) else load_study(study or DEFAULT_STUDY)
    changes = {
        "optimizers": several(optimizers), "environments": several(environments),
        "algorithm": algorithm_name(algorithm), "budget": budget, "num_seeds": num_seeds, "root_seed": root_seed,
        "name": CUSTOM if optimizers and environments else None,
        "aliases": {**chosen.aliases, **aliases} if aliases else None,
    }  # fmt: skip
    chosen = adjust(chosen, **changes, meta=None if isinstance(meta_train, bool) else meta_train)
    if isinstance(meta_train, bool):
        chosen = chosen.model_copy(update={"meta": (chosen.meta or {}) if meta_train else None})
    session = _session(chosen, steps, settings, execution, where, baseline=baseline, hyperparameters=hyperparameters,
                       tensorboard=tensorboard, wandb=wandb)  # fmt: skip
    labels = {name for each in session.experiments for name in (each.label, each.task.name)}
    check_aliases(sorted(labels), aliases or {})
    return session


def _session(study: StudyConfig, steps: int | None, settings: "Settings | None", execution: Execution,
             where: Mapping[str, Any], **more: Any) -> "Session":  # fmt: skip
    from open_bench.experiments.history import check_packages
    from open_bench.experiments.plan import told_apart
    from open_bench.experiments.session import Session

    check_packages(more["tensorboard"], more["wandb"] is not None)
    session = Session(told_apart(study), steps, settings, execution.but(where), **more)
    session.store.check_writable()
    if study.meta is not None:
        from open_bench.meta_training.as_needed import with_weights

        session = with_weights(session)
    _ = session.plan  # everything that a user can get wrong is found now
    return session


def meta_train(
    optimizer: Any,
    environments: str | Sequence[str] | None = None, *, study: "str | MetaConfig | None" = None,
    steps: int | None = None, settings: "Settings | None" = None, name: str | None = None,
    tensorboard: bool = False, wandb: str | None = None, execution: Execution = HERE, **changes: Any,
) -> "MetaTrained":  # fmt: skip
    """Evolve the meta-parameters θ of a learned optimizer, with lifetimes of the harness as fitness.

    With ``imitation`` θ is fitted to the updates of hand-designed teachers first, by gradient descent. Interrupted at
    any moment, the same call goes on from what is stored and ends with bitwise the same θ, on any number of devices.
    With more ``generations`` it continues a finished evolution.

    Args:
        optimizer: such as "open", or an ``OptimizerSpec`` that a name finds; "open@NAME" starts from those weights.
        environments: what fitness is measured on, in place of the study's.
        study: a shipped one, a TOML of yours, or settings; by default the published ones of OPEN.
        steps: env steps of a lifetime, in place of a budget's.
        settings: settings of the algorithm to replace, such as ``{"num_envs": 32}``.
        name: of the weights; afterwards they are used as "open@NAME". By default it follows from the settings.
        tensorboard: write event files to ``<results>/meta/<name>/tensorboard``.
        wandb: project of Weights & Biases to log to; the only thing here that contacts a network.
        execution: where and how to run; the evolution lies in ``<results>/meta/<name>``.
        **changes: fields of ``MetaConfig`` or ``Execution`` that replace the study's; None leaves one as it is.
            ``imitation={"teachers": "lion:learning_rate=2e-3"}`` has fields of ``ImitationConfig``, and with
            ``generations=0`` it is all.

    Raises:
        UserError: whatever the request has wrong, before anything is compiled.
    """
    quiet_xla()
    from open_bench.meta_training.run import evolve_weights

    changes |= {"environments": several(environments), "env_steps": steps}
    return evolve_weights(optimizer, study, changes, settings, execution, name, tensorboard, wandb)


def generalize(
    optimizers: Any, *, study: "str | GeneralizationConfig" = "smoke", train_on: str | Sequence[str] = (),
    axes: str | Sequence[str] = (), algorithm: Any = None, budget: str | None = None, steps: int | None = None,
    num_seeds: int | None = None, root_seed: int | None = None, settings: Mapping[str, Any] | None = None,
    normalize: str = "adam", hyperparameters: str | Path | None = None, execution: Execution = HERE, **where: Any,
) -> "Generalization":  # fmt: skip
    """Study how optimizers carry over to what they were not trained or tuned on.

    Points along several axes, each with everything else fixed, are ordinary experiments. Tables and figures are written
    to ``<results>/generalization/<study>``. Adam is always there, as what all are compared with.

    Args:
        optimizers: one or several; see ``train``.
        study: a shipped one (smoke, gridworld, full), a TOML of yours, or settings.
        train_on: environments that count as the training distribution of those optimizers of which it is not known,
            such as imported weights; of the others the weights' metadata say, or where hyperparameters were tuned.
        axes: only these of the study's.
        algorithm, budget, steps, settings: at all points that do not vary them; see ``train``. With an algorithm the
            study is filed as ``<study>-<algorithm>``.
        num_seeds, root_seed: lifetimes at each point; the root of all keys.
        normalize: "adam" (relative to Adam at the same point), "optimal" (absolute, for gridworlds) or "none".
        hyperparameters: see ``train``.
        execution: where and how to run; see ``train``.

    Returns:
        The scored study: ``rows``, ``points``, ``axes`` and ``summary`` are DataFrames, ``notes`` say what to know.
    """
    quiet_xla()
    from open_bench.generalization.run import generalize as run

    return run(
        study, several(optimizers), several(train_on), several(axes), normalize, execution.but(where),
        algorithm=algorithm, budget=budget, steps=steps, settings=settings, num_seeds=num_seeds, root_seed=root_seed,
        hyperparameters=hyperparameters,
    )  # fmt: skip


def tune(
    optimizers: Any = None, environments: Any = None, *, study: str | StudyConfig | None = None, trials: int = 16,
    num_seeds: int = 2, report_seeds: int = 4, algorithm: Any = None, steps: int | None = None,
    settings: "Settings | None" = None, family: bool = False, ship: bool = False, execution: Execution = HERE,
    **changes: Any,
) -> "Tuned":  # fmt: skip
    """Find hyperparameters, with the same trials, seeds and env steps for every optimizer. See docs/tuning.md.

    Args:
        optimizers, environments: one or several; see ``train``. By default those of the ``study`` that its rows with
            ``track=tuned`` and ``track=one_setting`` need.
        trials, num_seeds: points of each search space; lifetimes of each, under a root seed that no study can use.
        report_seeds: fresh seeds that winners are run on again, as experiments of the results folder; 0: none.
        algorithm, steps, settings: see ``train``.
        family: the result holds for everything under the environment's folder.
        ship: in a checkout, write to ``baselines/hyperparameters`` as well as to ``<results>/hyperparameters``.
        **changes: ``budget`` and ``root_seed`` (of the fresh seeds), or fields of ``Execution``.

    Raises:
        UserError: whatever the request has wrong, before anything trains.
    """
    quiet_xla()
    from open_bench.algorithms.registry import algorithm_name
    from open_bench.tuning.run import tune as run

    budget, root_seed = (changes.pop(name, None) for name in ("budget", "root_seed"))
    amount = {"trials": trials, "num_seeds": num_seeds, "report_seeds": report_seeds}
    return run(study, several(optimizers), several(environments), amount, execution.but(changes), steps=steps,
               settings=settings, family=family, ship=ship, algorithm=algorithm_name(algorithm), budget=budget,
               root_seed=root_seed)  # fmt: skip


def leaderboard(
    results: str | Path = "results", budget: str | None = None, *, environments: Sequence[str] | str = (),
    tracks: Sequence[str] | str = (), metric: str = "final_return", figures: Sequence[str] | str = ("png",),
    aliases: Mapping[str, str] | None = None,
) -> "Leaderboard":  # fmt: skip
    """Write the leaderboard (CSV, Markdown) and figures of a folder anew, from its stored runs and trials.

    Args:
        results: the folder.
        budget: only this one.
        environments: rank by these alone, such as those that a learned optimizer was trained on, or the others.
        tracks: show only rows with these: default, one setting, tuned, published, learned, given, mixed.
        metric: column to rank by: final_return, mean_return (the area under the learning curve divided by its length),
            or another that experiments list.
        figures: forms of the figures: png, svg, pdf.
        aliases: short names to show for optimizers and environments, by name.

    Raises:
        UserError: there are no runs, a budget, environment, track, metric, form of figures or a name of ``aliases`` is
            unknown, or two rows would have one short name.
    """
    from open_bench.errors import check_known
    from open_bench.evaluation.style import FORMATS
    from open_bench.experiments.session import load_runs, of_environments, write_board

    forms = several(figures) or ()
    for form in forms:
        check_known("form of figures", form, FORMATS)
    runs = of_environments(load_runs(results), several(environments) or ())
    return write_board(Path(results), runs, budget, several(tracks) or (), metric, forms, aliases)


def report(
    results: str | Path = "results", path: str | Path | None = None, budget: str | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Path:  # fmt: skip
    """Write one self-contained HTML page of a results folder. See docs/report.md.

    Args:
        results: the folder: its runs, trials, studies of generalization and evolutions, whatever there is.
        path: of the page; by default ``<results>/report.html``.
        budget: only boards of this one.
        aliases: see ``leaderboard``.

    Returns:
        Where the page lies.

    Raises:
        UserError: there is nothing to report, the budget is unknown, or experiments do not compare.
    """
    from open_bench.reports.page import write

    return write(Path(results), None if path is None else Path(path), budget, aliases)


def verify(
    num_seeds: int = 4, *, root_seed: int | None = None, own_code: bool = False, execution: Execution = HERE,
    **where: Any,
) -> "Verification":  # fmt: skip
    """Run a random sample of the stored seeds again and compare; ``passed`` says whether all agree. Writes nothing.

    Args:
        num_seeds: of all experiments together.
        root_seed: of the sample; by default another one each time.
        own_code: import optimizers, algorithms and environments from outside open-bench; else they are ``skipped``.
        execution: the folder and the devices; see ``train``. The vmap size is always the stored one.

    Raises:
        UserError: nothing is stored, or nothing of it can be run again.
    """
    quiet_xla()
    from open_bench.exchange.verify import verify as run
    from open_bench.experiments.session import watcher_of
    from open_bench.experiments.store import Store
    from open_bench.training.devices import start

    here = execution.but(where)
    store, devices = Store(here.folder), start(here.devices, here.executor)
    return run(store, num_seeds, devices, root_seed=root_seed, own_code=own_code, watcher=watcher_of(here))
