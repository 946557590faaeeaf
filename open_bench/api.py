"""The public functions. The command line calls these and prints what they return."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_bench.config import Execution, StudyConfig, build, load_study, quiet_xla
from open_bench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from open_bench.evaluation.leaderboard import Leaderboard
    from open_bench.evaluation.schema import Runs
    from open_bench.experiments.session import Session
    from open_bench.generalization.scores import Generalization
    from open_bench.generalization.study import GeneralizationConfig
    from open_bench.meta_training.run import MetaTrained
    from open_bench.meta_training.spec import MetaConfig

DEFAULT_STUDY, CUSTOM = "quick", "custom"  # CUSTOM: of which neither optimizers nor environments are left
HERE = Execution()


def train(
    optimizer: Any,
    environment: Any,
    *,
    algorithm: str | None = None,
    budget: str = "quick",
    steps: int | None = None,
    num_seeds: int = 1,
    root_seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    execution: Execution = HERE,
    **where: Any,
) -> "pd.DataFrame":
    """Train one optimizer on one environment and store the experiment.

    Args:
        optimizer: a name such as "adam:learning_rate=1e-3" or "lion+dpo"; an ``OptimizerSpec``, an optax constructor, a
            function that returns a gradient transformation, or such a transformation.
        environment: a shipped environment, a TOML of yours, a gymnax id; or an environment object or configuration.
        algorithm: "ppo", "pqn", or a class of yours as "module:Class"; by default the environment's own.
        budget: one of the environment's budgets; ``steps`` (env steps) replaces it.
        num_seeds, root_seed: how many lifetimes (those that are stored are not trained again); the root of all keys.
        settings: settings of the algorithm to replace, such as ``{"num_envs": 32}``.
        execution: where and how to run; ``**where`` replaces fields of it, as in ``results="mine", devices=1``.

    Returns:
        One row a seed: seed, the metrics (final_return, mean_return, …), diverged, env_steps, and what they belong to.

    Raises:
        UserError: whatever the request has wrong, before anything trains.
    """
    values = {
        "name": "train", "optimizers": (optimizer,), "environments": (environment,), "algorithm": algorithm,
        "budget": budget, "num_seeds": num_seeds, "root_seed": root_seed,
    }  # fmt: skip
    study = build(StudyConfig, values, "train")
    session = _session(study, steps, settings, execution, where, ranked=False)
    return session.run().scores.sort_values("seed", ignore_index=True)


def compare(study: str | StudyConfig | None = None, **request: Any) -> "pd.DataFrame":
    """Train every optimizer on every environment of a study, and rank them.

    The arguments are those of ``prepare``. The study's board (``leaderboard.csv``, ``leaderboard.md``, ``figures/``) is
    written to the results folder.

    Returns:
        The study's leaderboard, a row an optimizer, best first.
    """
    return compare_board(study, **request).table


def compare_board(study: str | StudyConfig | None = None, **request: Any) -> "Leaderboard":
    """``compare``, returning the leaderboard with its notes."""
    session = prepare(study, **request)
    runs = session.run()
    board = session.board(runs)
    session.write(runs, board)
    return board


def prepare(
    study: str | StudyConfig | None = None,
    *,
    optimizers: Sequence[Any] | None = None,
    environments: Sequence[Any] | None = None,
    algorithm: str | None = None,
    budget: str | None = None,
    steps: int | None = None,
    num_seeds: int | None = None,
    root_seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    meta_train: "str | MetaConfig | bool | None" = None,
    baseline: bool = True,
    execution: Execution = HERE,
    **where: Any,
) -> "Session":
    """A study that is ready to run: everything in it has been checked, and nothing is trained.

    Args:
        study: a shipped one, a TOML of yours, or settings; what follows replaces its values. See ``train``. With other
            optimizers and other environments it is another study, called "custom".
        meta_train: how learned optimizers without weights get some first: a study, settings, or True for those of the
            study, which are OPEN's published ones where it has none; by default what the study says, if anything;
            False: not at all. Environments and length of a lifetime are the study's unless that has its own.
            The weights stay in the library under a name that follows from the settings, and are used again.
        baseline: let Adam join where scores need it: the study lacks it, and stored returns do not fit.
    """
    from open_bench.experiments.plan import adjust

    chosen = study if isinstance(study, StudyConfig) else load_study(study or DEFAULT_STUDY)
    changes = {
        "optimizers": optimizers, "environments": environments, "algorithm": algorithm, "budget": budget,
        "num_seeds": num_seeds, "root_seed": root_seed, "name": CUSTOM if optimizers and environments else None,
    }  # fmt: skip
    chosen = adjust(chosen, **{key: tuple(x) if isinstance(x, list) else x for key, x in changes.items()})
    if isinstance(meta_train, bool):
        chosen = chosen.model_copy(update={"meta": (chosen.meta or {}) if meta_train else None})
    else:
        chosen = adjust(chosen, meta=meta_train)
    return _session(chosen, steps, settings, execution, where, baseline=baseline)


def _session(
    study: StudyConfig, steps: int | None, settings: Mapping[str, Any] | None, execution: Execution,
    where: Mapping[str, Any], ranked: bool = True, baseline: bool = True,
) -> "Session":  # fmt: skip
    quiet_xla()
    from open_bench.experiments.session import Session

    session = Session(study, steps, settings, execution.but(where), ranked, baseline)
    session.store.check_writable()
    if study.meta is not None:
        from open_bench.meta_training.as_needed import with_weights

        session = with_weights(session)
    _ = session.plan  # everything that a user can get wrong is found now
    return session


def meta_train(
    optimizer: str,
    environments: Sequence[str] | None = None,
    *,
    study: "str | MetaConfig | None" = None,
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    name: str | None = None,
    tensorboard: bool = False,
    wandb: str | None = None,
    execution: Execution = HERE,
    **changes: Any,
) -> "MetaTrained":
    """Evolve the meta-parameters θ of a learned optimizer, with lifetimes of the harness as fitness.

    Interrupted at any moment, the same call goes on from the last generation and ends with bitwise the same θ, on any
    number of devices. With more ``generations`` it continues a finished evolution.

    Args:
        optimizer: such as "open" or "lpo"; with "open@NAME" evolution starts from those weights.
        environments: what fitness is measured on, in place of the study's.
        study: a shipped one, a TOML of yours, or settings; by default the published ones of OPEN.
        steps: env steps of a lifetime, in place of a budget's.
        settings: settings of the algorithm to replace, such as ``{"num_envs": 32}``.
        name: of the weights; afterwards they are used as "open@NAME". By default it follows from the settings.
        tensorboard: write event files to ``<results>/meta/<name>/tensorboard``.
        wandb: project of Weights & Biases to log to; the only thing here that contacts a network.
        execution: where and how to run; the evolution lies in ``<results>/meta/<name>``.
        **changes: fields of ``MetaConfig`` or ``Execution`` that replace the study's; None leaves one as it is.

    Raises:
        UserError: whatever the request has wrong, before anything is compiled.
    """
    quiet_xla()
    from open_bench.meta_training.run import evolve_weights

    changes |= {"environments": environments, "env_steps": steps}
    return evolve_weights(optimizer, study, changes, settings, execution, name, tensorboard, wandb)


def generalize(
    optimizers: Any,
    *,
    study: "str | GeneralizationConfig" = "smoke",
    train_on: Sequence[str] = (),
    axes: Sequence[str] = (),
    algorithm: str | None = None,
    budget: str | None = None,
    steps: int | None = None,
    num_seeds: int | None = None,
    root_seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    normalize: str = "adam",
    execution: Execution = HERE,
    **where: Any,
) -> "Generalization":
    """Study how optimizers carry over to what they were not trained or tuned on.

    Points along several axes, each with everything else fixed, are run as ordinary experiments; what is stored is not
    trained again. Tables and figures are written to ``<results>/generalization/<study>``. Adam is always there, as
    what all are compared with.

    Args:
        optimizers: one or several; see ``train``.
        study: a shipped one (smoke, gridworld, full), a TOML of yours, or settings.
        train_on: environments that count as the training distribution of those optimizers of which it is not known,
            such as imported weights; of the others the weights' metadata say, or where hyperparameters were tuned.
        axes: only these of the study's.
        algorithm: at all points that do not vary it; the study is then filed as ``<study>-<algorithm>``.
        budget: of a lifetime at all points that do not vary its length; ``steps`` (env steps) replaces it.
        num_seeds, root_seed: lifetimes at each point; the root of all keys.
        settings: settings of the algorithm, replaced at all points that do not vary them.
        normalize: "adam" (relative to Adam at the same point), "optimal" (absolute, for gridworlds) or "none".
        execution: where and how to run; see ``train``.

    Returns:
        The scored study: ``rows``, ``points``, ``axes`` and ``summary`` are DataFrames, ``notes`` say what to know.

    Raises:
        UserError: whatever the request has wrong, before anything trains.
    """
    quiet_xla()
    from open_bench.generalization.run import generalize as run

    return run(
        study, optimizers, train_on, axes, normalize, execution.but(where), algorithm=algorithm, budget=budget,
        steps=steps, settings=settings, num_seeds=num_seeds, root_seed=root_seed,
    )  # fmt: skip


def load_runs(results: str | Path = "results") -> "Runs":
    """Every stored experiment of a results folder, as tables (``experiments``, ``scores``, ``curves``)."""
    from open_bench.experiments.store import Store

    store = Store(results)
    store.refuse_version_1()
    if not store.experiments.is_dir():
        raise UserError(f"{results}: no stored runs (there is no folder {store.experiments})")
    return store.load()


def leaderboard(results: str | Path = "results", budget: str | None = None) -> "Leaderboard":
    """Write the leaderboard (CSV, Markdown) and figures of a folder from its stored runs; ``budget``: only that one."""
    from open_bench.experiments.session import write_board

    return write_board(Path(results), load_runs(results), budget)
