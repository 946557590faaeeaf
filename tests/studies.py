"""Tasks, studies and weights for the tests of generalization."""

import json
from pathlib import Path
from typing import Any

import jax

from open_bench.config import build
from open_bench.experiments.plan import make_experiments
from open_bench.generalization.distribution import place, trained_on
from open_bench.generalization.study import GeneralizationConfig
from open_bench.optimizers.resolve import resolve
from open_bench.training.task import Task, make_task
from open_bench.weights.format import save_weights


def study_of(**sweep: Any) -> GeneralizationConfig:
    """A study with one sweep."""
    values = {"axis": "width", "environments": ["cartpole"], "env_steps": 20_480} | sweep
    kept = {key: value for key, value in values.items() if value is not None}
    return build(GeneralizationConfig, {"name": "mine", "sweeps": [kept]}, "mine.toml")


def task(
    name: str = "cartpole", steps: int = 20_480, options: dict[str, Any] | None = None, algorithm: str | None = None,
    **settings: Any,
) -> Task:  # fmt: skip
    """A task by name and length."""
    return make_task(name, algorithm=algorithm, steps=steps, settings=settings, options=options)


def trained_weights(folder: Path, *tasks: Task, **metadata: Any) -> str:
    """A file of weights that say that they were trained on some tasks."""
    found = {each.base: each.identity for each in tasks}
    theta = resolve("open-feedforward@zero").theta
    said = {"environments": {name: {"env_steps": 1} for name in found}, "identity": {"environments": found}}
    save_weights(folder / "mine.safetensors", theta, json.loads(json.dumps(said)) | metadata)
    return str(folder / "mine.safetensors")


def placed(optimizer: str, point: Task, *train_on: str) -> tuple[str, tuple[str, ...]]:
    """Where a task lies for an optimizer."""
    (experiment,) = make_experiments([optimizer], [point], jax.devices(), 0)
    assert experiment.optimizer is not None
    return place(point, trained_on(experiment.optimizer, point, train_on))
