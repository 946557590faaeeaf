"""The public functions. The command line calls these and prints what they return."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_bench import files
from open_bench.config import MetaConfig, StudyConfig, build, load_meta, load_study
from open_bench.errors import UserError

if TYPE_CHECKING:
    import jax
    import pandas as pd

    from open_bench.evaluation.leaderboard import Leaderboard
    from open_bench.evaluation.schema import Runs
    from open_bench.experiments.execute import Progress
    from open_bench.generalization.scores import Generalization
    from open_bench.generalization.study import GeneralizationConfig
    from open_bench.meta_training.evolution import Progress as MetaProgress
    from open_bench.meta_training.run import MetaTrained, Request

DEFAULT_STUDY = "quick"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How to join other hosts through ``jax.distributed``."""

    coordinator: str | None = None  # host:port of the first process
    num_processes: int | None = None
    process_id: int | None = None


def train(
    optimizer: str,
    environment: str,
    *,
    budget: str = "quick",
    steps: int | None = None,
    num_seeds: int = 1,
    root_seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    results: str | Path = "results",
    devices: int | None = None,
    vmap_size: int | None = None,
    save_agents: bool = False,
    cluster: Cluster | None = None,
    progress: "Progress | None" = None,
) -> "pd.DataFrame":
    """Train one optimizer on one environment and store the experiment.

    Args:
        optimizer: a name in the registry's grammar, such as "adam:learning_rate=1e-3" or "lion+dpo".
        environment: a shipped environment, a TOML of yours, or a gymnax id.
        budget: one of the environment's budgets; ``steps`` (env steps) replaces it.
        num_seeds: seeds; those that are stored already are not trained again.
        root_seed: the root seed, from which all keys derive.
        settings: PPO settings to replace, such as ``{"num_envs": 32}``.
        results: folder to write to.
        devices: how many devices to use; on CPU each core is one by default.
        vmap_size: lifetimes in a vmapped group; by default 1 on CPU, more on accelerators.
        save_agents: keep the trained parameters (``open_bench.load_agent`` reads them).
        cluster: join several hosts.
        progress: watcher of the run.

    Returns:
        One row a seed: seed, final_return, mean_return, diverged, env_steps.

    Raises:
        UserError: whatever the request has wrong, before anything trains.
    """
    values = {
        "name": "train",
        "optimizers": (optimizer,),
        "environments": (environment,),
        "budget": budget,
        "num_seeds": num_seeds,
        "root_seed": root_seed,
    }
    study = build(StudyConfig, values, "train")
    runs = _run(study, steps, settings, results, devices, vmap_size, save_agents, cluster, progress)
    return runs.scores.sort_values("seed", ignore_index=True)


def compare(
    study: str | StudyConfig | None = None,
    *,
    optimizers: Sequence[str] | None = None,
    environments: Sequence[str] | None = None,
    budget: str | None = None,
    steps: int | None = None,
    num_seeds: int | None = None,
    root_seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    results: str | Path = "results",
    devices: int | None = None,
    vmap_size: int | None = None,
    save_agents: bool = False,
    meta_train: str | MetaConfig | bool | None = None,
    cluster: Cluster | None = None,
    progress: "Progress | None" = None,
    meta_progress: "MetaProgress | None" = None,
) -> "pd.DataFrame":
    """Train every optimizer on every environment of a study, and rank them.

    The missing experiments are trained and stored; the leaderboard (CSV and Markdown) and the figures of everything in
    ``results`` are written there. The arguments replace the study's own values; see ``train`` for the others.

    Args:
        meta_train: how learned optimizers without weights get some first: a recipe, settings, or True for those of the
            study, which are OPEN's published ones where it has none; by default what the study says, if anything;
            False: not at all. Environments and length of a lifetime are the study's unless the recipe has its own.
            The weights stay in the library under a name that follows from the settings, and are used again.
        meta_progress: watcher of meta-training.

    Returns:
        The study's leaderboard, a row an optimizer, best first.
    """
    return compare_board(
        study, optimizers=optimizers, environments=environments, budget=budget, steps=steps, num_seeds=num_seeds, root_seed=root_seed,
        settings=settings, results=results, devices=devices, vmap_size=vmap_size, save_agents=save_agents,
        meta_train=meta_train, cluster=cluster, progress=progress, meta_progress=meta_progress,
    ).table  # fmt: skip


def compare_board(
    study: str | StudyConfig | None = None,
    *,
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    results: str | Path = "results",
    devices: int | None = None,
    vmap_size: int | None = None,
    save_agents: bool = False,
    meta_train: str | MetaConfig | bool | None = None,
    cluster: Cluster | None = None,
    progress: "Progress | None" = None,
    meta_progress: "MetaProgress | None" = None,
    **changes: Any,
) -> "Leaderboard":
    """``compare``, returning the leaderboard with its notes."""
    from open_bench.evaluation.leaderboard import leaderboard
    from open_bench.experiments.plan import adjust

    chosen = study if isinstance(study, StudyConfig) else load_study(study or DEFAULT_STUDY)
    chosen = adjust(chosen, **{key: _tuple(value) for key, value in changes.items()})
    if isinstance(meta_train, bool):
        chosen = chosen.model_copy(update={"meta": (chosen.meta or MetaConfig()) if meta_train else None})
    else:
        chosen = adjust(chosen, meta=meta_train)
    runs = _run(chosen, steps, settings, results, devices, vmap_size, save_agents, cluster, progress, meta_progress)
    write_reports(results)
    return leaderboard(runs, _baseline_returns())


def meta_train(
    optimizer: str,
    environments: Sequence[str] | None = None,
    *,
    config: str | MetaConfig | None = None,
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    name: str | None = None,
    results: str | Path = "results",
    devices: int | None = None,
    cluster: Cluster | None = None,
    progress: "MetaProgress | None" = None,
    tensorboard: bool = False,
    wandb: str | None = None,
    **changes: Any,
) -> "MetaTrained":
    """Evolve the meta-parameters θ of a learned optimizer, with lifetimes of the harness as fitness.

    Interrupted at any moment, the same call goes on from the last generation and ends with bitwise the same θ, on any
    number of devices. With more ``generations`` it continues a finished evolution.

    Args:
        optimizer: such as "open" or "lpo"; with "open@NAME" evolution starts from those weights.
        environments: what fitness is measured on, in place of the configuration's.
        config: a shipped recipe, a TOML of yours, or settings; by default the published ones of OPEN.
        steps: env steps of a lifetime, in place of a budget's.
        settings: PPO settings to replace, such as ``{"num_envs": 32}``.
        name: of the weights; afterwards they are used as "open@NAME". By default it follows from the settings.
        results: folder to write to; the evolution lies in ``<results>/meta/<name>``.
        devices: how many devices to use; on CPU each core is one by default.
        cluster: join several hosts, which must share ``results``.
        progress: watcher.
        tensorboard: write event files to ``<results>/meta/<name>/tensorboard``.
        wandb: project of Weights & Biases to log to; the only thing here that contacts a network.
        **changes: fields of ``MetaConfig`` that replace the configuration's; None leaves a field as it is.

    Raises:
        UserError: whatever the request has wrong, before anything is compiled.
    """
    from open_bench.experiments.provenance import provenance
    from open_bench.meta_training.evolution import Progress
    from open_bench.meta_training.logging import watched
    from open_bench.meta_training.run import meta_train as run
    from open_bench.training.devices import start

    chosen = _meta_config(config, {**changes, "environments": environments, "env_steps": steps})
    cluster = cluster or Cluster()
    found = start(devices, cluster.coordinator, cluster.num_processes, cluster.process_id)
    request = _meta_request(optimizer, chosen, settings, found)
    progress = watched(progress or Progress(), request, Path(results), name, tensorboard, wandb)
    return run(request, Path(results), name, found, progress, provenance())


def _meta_request(
    optimizer: str, config: MetaConfig, settings: Mapping[str, Any] | None, devices: "Sequence[jax.Device]"
) -> "Request":
    """A meta-training that has been checked; ``settings`` replace PPO settings, those of ``config`` included."""
    from open_bench.environments.registry import load_environment, make_environment
    from open_bench.experiments.plan import slot_bytes
    from open_bench.meta_training.run import make_request
    from open_bench.training import mesh as parallel

    trained, held_out = (
        [load_environment(name).with_settings({**config.settings, **(settings or {})}) for name in names]
        for names in (config.environments, config.held_out)
    )
    sizes = [slot_bytes(make_environment(environment), environment) for environment in trained]
    vmap_size = parallel.default_vmap_size(devices, max(sizes, default=1))
    return make_request(optimizer, config, trained, held_out, _baseline_returns(), vmap_size)


def _meta_config(config: str | MetaConfig | None, changes: dict[str, Any]) -> MetaConfig:
    """The settings of meta-training with the user's changes; a budget replaces a number of env steps."""
    base = config if isinstance(config, MetaConfig) else load_meta(config) if config else MetaConfig()
    given = {key: _tuple(value) for key, value in changes.items() if value is not None}
    if "budget" in given and "env_steps" not in given:
        given["env_steps"] = None
    return build(MetaConfig, base.model_dump() | given, f"meta-training {base.name}")


def generalize(
    optimizers: str | Sequence[str],
    *,
    preset: "str | GeneralizationConfig" = "smoke",
    train_on: Sequence[str] = (),
    axes: Sequence[str] = (),
    num_seeds: int | None = None,
    root_seed: int | None = None,
    normalize: str = "adam",
    results: str | Path = "results",
    devices: int | None = None,
    vmap_size: int | None = None,
    progress: "Progress | None" = None,
) -> "Generalization":
    """Study how optimizers carry over to what they were not trained or tuned on.

    Points along several axes, each with everything else fixed, are run as ordinary experiments; what is stored is not
    trained again. Tables and figures are written to ``<results>/generalization/<preset>``. Adam is always there, as
    what all are compared with.

    Args:
        optimizers: one name or several, in the registry's grammar.
        preset: a shipped one (smoke, gridworld, full), a TOML of yours, or settings.
        train_on: environments that count as the training distribution of those optimizers of which it is not known,
            such as imported weights; of the others the weights' metadata say, or where hyperparameters were tuned.
        axes: only these of the preset's.
        num_seeds: seeds of each point.
        root_seed: the root seed, from which all keys derive.
        normalize: "adam" (scores relative to Adam at the same point), "optimal" (absolute, where the optimal return of
            a gridworld can be computed) or "none".
        results: folder to write to.
        devices: how many devices to use; on CPU each core is one by default.
        vmap_size: lifetimes in a vmapped group.
        progress: watcher.

    Returns:
        The scored study: ``rows``, ``points``, ``axes`` and ``summary`` are DataFrames, ``notes`` say what to know.

    Raises:
        UserError: whatever the request has wrong, before anything trains.
    """
    from open_bench.experiments.execute import Progress
    from open_bench.experiments.store import Store
    from open_bench.generalization import run as study
    from open_bench.generalization.report import write
    from open_bench.generalization.scores import check_normalizer, generalization
    from open_bench.generalization.study import load_preset
    from open_bench.training.devices import start

    check_normalizer(normalize)
    chosen = load_preset(preset) if isinstance(preset, str) else preset
    named = [optimizers] if isinstance(optimizers, str) else list(optimizers)
    found = start(devices)
    plan = study.make_plan(
        chosen, named, found, train_on=train_on, axes=axes, num_seeds=num_seeds, root_seed=root_seed, vmap_size=vmap_size
    )  # fmt: skip
    store = Store(results)
    store.prepare()
    scored = generalization(study.run(plan, store, found, progress or Progress()), normalize, study.BASELINE)
    write(scored, study.folder_of(results, chosen.name))
    return scored


def load_runs(results: str | Path = "results") -> "Runs":
    """Every stored experiment of a results folder, as tables (``experiments``, ``scores``, ``curves``)."""
    from open_bench.experiments.store import Store

    folder = Path(results)
    if not (folder / "experiments").is_dir():
        raise UserError(f"{folder}: no stored runs (there is no folder {folder / 'runs'})")
    return Store(folder).load()


def write_reports(results: str | Path = "results", budget: str | None = None) -> "Leaderboard":
    """Write ``leaderboard.csv``, ``leaderboard.md`` and ``figures/`` of a results folder from its stored runs alone.

    Args:
        results: the folder.
        budget: only this one; by default every budget gets a board of its own.
    """
    from open_bench.evaluation.figures import save_figures
    from open_bench.evaluation.leaderboard import leaderboard

    folder, baseline_returns = Path(results), _baseline_returns()
    runs = load_runs(folder)
    board = leaderboard(runs, baseline_returns, budget)
    board.to_csv(folder / "leaderboard.csv")
    board.to_markdown(folder / "leaderboard.md")
    save_figures(runs, baseline_returns, budget, folder / "figures", ranked=board)
    return board


def _run(
    study: StudyConfig,
    steps: int | None,
    settings: Mapping[str, Any] | None,
    results: str | Path,
    devices: int | None,
    vmap_size: int | None,
    save_agents: bool,
    cluster: Cluster | None,
    progress: "Progress | None",
    meta_progress: "MetaProgress | None" = None,
) -> "Runs":
    from open_bench.experiments.execute import Options, Progress, execute
    from open_bench.experiments.plan import make_plan
    from open_bench.experiments.store import Store
    from open_bench.training.devices import start

    cluster = cluster or Cluster()
    found = start(devices, cluster.coordinator, cluster.num_processes, cluster.process_id)
    if study.meta is not None:
        study = _with_weights(study, steps, settings, Path(results), found, vmap_size, meta_progress)
    plan = make_plan(study, found, steps, settings, vmap_size)
    store = Store(results)
    store.prepare()
    execute(plan.experiments, study.num_seeds, store, Options(found, save_agents=save_agents), progress or Progress())
    return _first_seeds(store.load(list(plan.experiments)), study.num_seeds)


def _with_weights(
    study: StudyConfig, steps: int | None, settings: Mapping[str, Any] | None, results: Path,
    devices: "Sequence[jax.Device]", vmap_size: int | None, progress: "MetaProgress | None",
) -> StudyConfig:  # fmt: skip
    """The study with weights for those optimizers that have none, after everything else in it has been checked."""
    from open_bench.experiments.plan import make_plan
    from open_bench.experiments.provenance import provenance
    from open_bench.experiments.store import Store
    from open_bench.meta_training import as_needed as needed
    from open_bench.meta_training.evolution import Progress
    from open_bench.meta_training.logging import watched

    config = needed.settings_for(study, steps)
    lacking = needed.without_weights(study.optimizers)
    requests = {name: _meta_request(name, config, settings, devices) for name in lacking}
    make_plan(study, devices, steps, settings, vmap_size, find=needed.stand_ins(requests))
    for request in requests.values():
        needed.check(request, results)
    Store(results).prepare()
    facts, watcher = provenance(), progress or Progress()
    named = {}
    for name, request in requests.items():
        watching = watched(watcher, request, results, None, tensorboard=False, wandb=None)
        named[name] = needed.obtain(request, results, devices, watching, facts)
    return study.model_copy(update={"optimizers": tuple(named.get(name, name) for name in study.optimizers)})


def _first_seeds(runs: "Runs", count: int) -> "Runs":
    """The rows of seeds 0 … count−1: a folder may hold more than were asked for now."""
    from open_bench.evaluation.schema import Runs

    scores, curves = (frame[frame["seed"] < count] for frame in (runs.scores, runs.curves))
    return Runs(runs.experiments, scores, curves)


def _baseline_returns() -> Any:
    from open_bench.evaluation.baseline_returns import load_baseline_returns

    return load_baseline_returns()


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
