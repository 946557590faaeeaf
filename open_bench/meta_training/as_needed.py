"""Meta-training as ``compare`` needs it: optimizers without weights get some first, once for all later runs."""

import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from open_bench.config import StudyConfig, build
from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import load_baseline_returns
from open_bench.events import Watcher
from open_bench.experiments.plan import Find
from open_bench.experiments.provenance import provenance
from open_bench.experiments.session import Session
from open_bench.meta_training.checkpoint import Checkpoints
from open_bench.meta_training.evolution import check_generations
from open_bench.meta_training.logging import logged
from open_bench.meta_training.request import Request, make_request
from open_bench.meta_training.run import Busy, check_name_is_free, meta_train
from open_bench.meta_training.spec import MetaConfig, load_meta
from open_bench.optimizers import names
from open_bench.optimizers.resolve import ResolvedOptimizer, own_weights, resolve
from open_bench.training.task import Task, make_task
from open_bench.weights import library
from open_bench.weights.fetch import OFFICIAL
from open_bench.weights.format import load_weights

POLL_SECONDS = 1.0  # between two looks at a folder that another process holds


def with_weights(session: Session) -> Session:
    """The session with weights for those optimizers that have none, after everything else in it has been checked."""
    study, results = session.study, session.execution.folder
    config = settings_for(study, session.steps)
    returns = load_baseline_returns()
    requests = {
        name: make_request(name, config, returns, session.devices, session.settings) for name in without_weights(study)
    }
    session.plan_with(stand_ins(requests, session.find))
    for request in requests.values():
        check(request, results)
    named = {}
    for name, request in requests.items():
        watcher = logged(session.watcher, request, results, None, session.tensorboard, session.wandb)
        named[name] = obtain(request, results, session.devices, watcher, provenance())
    optimizers = tuple(named.get(each, each) if isinstance(each, str) else each for each in study.optimizers)
    return dataclasses.replace(session, study=study.model_copy(update={"optimizers": optimizers}))


def without_weights(study: StudyConfig) -> list[str]:
    """The study's optimizers that are learned and have no weights, but for weights that only need to be fetched.

    Raises:
        UserError: a name that means nothing, so that it is found before anything is evolved; or several hosts.
    """
    task = make_task(study.environments[0], algorithm=study.algorithm)
    found = {each: resolve(each, task, require_weights=False) for each in study.optimizers if isinstance(each, str)}
    lacking = [
        name
        for name, each in found.items()
        if each.needs_weights and each.weights is None and own_weights(each) not in OFFICIAL
    ]
    if lacking and jax.process_count() > 1:
        raise UserError(
            f"{', '.join(lacking)}: no weights, and processes on several hosts do not meta-train as part of compare. "
            f"Run `openbench meta-train {lacking[0]} -e ENVIRONMENT --name NAME` first, and compare {lacking[0]}@NAME"
        )
    return lacking


def settings_for(study: StudyConfig, steps: int | None) -> MetaConfig:
    """The study's settings of meta-training. What they leave open is the study's: environments, algorithm, length.

    Args:
        study: with ``meta``.
        steps: env steps of a lifetime in the study, in place of its budget's.
    """
    assert study.meta is not None
    chosen = load_meta(study.meta) if isinstance(study.meta, str) else build(MetaConfig, study.meta, "[meta]")
    values = chosen.model_dump(exclude_unset=True)
    if not chosen.environments:
        values["environments"] = study.environments
    values.setdefault("algorithm", study.algorithm)
    if not {"budget", "env_steps"} & values.keys():
        values |= {"budget": study.budget} if steps is None else {"env_steps": steps}
    if chosen.stages:
        raise UserError(
            f"meta-training {chosen.name} has stages, which take hours: run `openbench meta-train OPTIMIZER --study "
            f"{study.meta if isinstance(study.meta, str) else 'FILE'} --name NAME` first, and compare OPTIMIZER@NAME"
        )
    return build(MetaConfig, values, f"meta-training {chosen.name} for study {study.name}")


def stand_ins(requests: Mapping[Any, Request], resolved: Find = resolve) -> Find:
    """Like ``resolved``, but for the optimizers that are to be meta-trained: with the θ that they start from.

    They have the names that they will have. A plan with them finds what is wrong with a study before evolution begins.
    """

    def find(name: Any, task: Task) -> ResolvedOptimizer:
        if not isinstance(name, str) or name not in requests:
            return resolved(name, task)
        found = resolve(str(dataclasses.replace(names.parse(name), source="init")), task)
        return dataclasses.replace(found, label=_with_weights(requests[name]))

    return find


def _with_weights(request: Request) -> str:
    """The optimizer's name with the weights that a request leads to; the same settings lead to the same name."""
    return f"{request.optimizer}@{request.default_name}"


def check(request: Request, results: Path) -> None:
    """Find what would stop a meta-training that begins later.

    Raises:
        UserError: the weights' name is taken, or they have had more generations than are asked for.
    """
    if is_stored(request):
        return
    check_name_is_free(request.default_name, request)
    folder = results / "meta" / request.default_name
    saved = Checkpoints(folder, request.identity).load()
    check_generations(saved.generation if saved else 0, request.config, folder)


def is_stored(request: Request) -> bool:
    """Whether weights of this request, with as many generations, ship or lie in the library."""
    path = library.kept(request.default_name)
    if path is None:
        return False
    facts = load_weights(path).metadata
    if facts.get("run") != request.digest:
        raise UserError(f"{path} holds other weights than its name says; remove that file")
    done = int(facts["cost"]["generations"])
    check_generations(done, request.config, path)
    return done == request.config.generations


def obtain(
    request: Request, results: Path, devices: Sequence[jax.Device], watcher: Watcher, provenance: Mapping[str, Any]
) -> str:
    """The optimizer's name with weights (``open@NAME``), which are evolved unless they are there.

    Where another process is evolving them in the same folder, this one waits; when that one dies, its work is
    continued here.
    """
    waited = False
    while not is_stored(request):
        try:
            return meta_train(request, results, request.default_name, devices, watcher, provenance).optimizer
        except Busy as busy:
            if not waited:
                warnings.warn(f"{busy}; waiting for {_with_weights(request)}", stacklevel=2)
            waited = True
            time.sleep(POLL_SECONDS)
    return _with_weights(request)
