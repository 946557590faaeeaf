"""A meta-training as a user asks for it: settings put together, devices started, writers attached."""

from collections.abc import Mapping
from typing import Any

from open_bench.config import Execution, build
from open_bench.experiments.provenance import provenance
from open_bench.experiments.session import baseline_returns, watcher_of
from open_bench.meta_training.logging import logged
from open_bench.meta_training.request import make_request
from open_bench.meta_training.run import MetaTrained, meta_train
from open_bench.meta_training.spec import MetaConfig, load_meta
from open_bench.training import devices


def start(
    optimizer: str, config: str | MetaConfig | None, changes: Mapping[str, Any], settings: Mapping[str, Any] | None,
    name: str | None, tensorboard: bool, wandb: str | None, execution: Execution,
) -> MetaTrained:  # fmt: skip
    """``open_bench.meta_train``, with its arguments sorted."""
    chosen = _config(config, {**changes, "vmap_size": changes.get("vmap_size") or execution.vmap_size})
    found = devices.start(execution.devices, execution.executor)
    returns = baseline_returns()
    request = make_request(optimizer, chosen, returns, found, settings)
    watcher = logged(watcher_of(execution), request, execution.folder, name, tensorboard, wandb)
    return meta_train(request, execution.folder, name, found, watcher, provenance())


def _config(config: str | MetaConfig | None, changes: Mapping[str, Any]) -> MetaConfig:
    """The settings of meta-training with the user's changes; a budget replaces a number of env steps."""
    base = config if isinstance(config, MetaConfig) else load_meta(config) if config else MetaConfig()
    given = {key: tuple(x) if isinstance(x, list) else x for key, x in changes.items() if x is not None}
    if "budget" in given and "env_steps" not in given:
        given["env_steps"] = None
    return build(MetaConfig, base.model_dump() | given, f"meta-training {base.name}")
