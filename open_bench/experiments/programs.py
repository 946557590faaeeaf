"""Compiled programs that the experiments of a process share: all that differ in nothing but traced values.

Learning rates of a grid, tracks of one optimizer and weights of one shape are traced, so their experiments need one
program. XLA's persistent cache would spare its compilation, but not the seconds of tracing and loading it.
"""

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from open_bench.algorithms.registry import find_algorithm
from open_bench.experiments.experiment import Experiment
from open_bench.training.mesh import Program
from open_bench.training.record import metrics_of

KEPT = 8  # programs; those of one environment, as studies go environment by environment

_kept: OrderedDict[tuple[Any, ...], tuple[Program, Any]] = OrderedDict()


def shared_program(
    experiment: Experiment, inputs: Any, others: tuple[Any, ...], make: Callable[[], Program]
) -> Program:
    """The program that an experiment needs: one that is there already, or what ``make`` compiles.

    Args:
        experiment: what runs.
        inputs: example of one lifetime's traced inputs.
        others: whatever else its program depends on.
        make: compiles it.

    Returns:
        The program; the ``compile_seconds`` of one that was there are 0.
    """
    optimizer = experiment.optimizer
    if not experiment.task.environment.stored or (optimizer is not None and optimizer.spec.digest is None):
        return make()  # code that may change between two calls
    parts = () if optimizer is None else (optimizer.spec.make, optimizer.spec.eval_params, optimizer.policy_loss)
    static = () if optimizer is None else sorted(optimizer.static.items())
    task = json.dumps(experiment.task.identity, sort_keys=True)
    measured = metrics_of(find_algorithm(experiment.task.algorithm).reports)
    key = (task, *map(id, parts), repr(static), _shapes(inputs), tuple(measured), *others)
    if key in _kept:
        _kept.move_to_end(key)
        return dataclasses.replace(_kept[key][0], compile_seconds=0.0)
    program = make()
    _kept[key] = program, parts  # which live as long, so that their ids stay theirs
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return program


def forget() -> None:
    """Keep none of the programs: what JAX compiles with has changed."""
    _kept.clear()


def _shapes(inputs: Any) -> str:
    shapes = jax.tree.map(lambda leaf: (jnp.shape(leaf), str(jnp.result_type(leaf))), inputs)
    return repr(jax.tree.flatten_with_path(shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))[0])
