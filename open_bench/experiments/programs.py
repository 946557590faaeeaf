"""Compiled programs that the experiments of a process share: all that differ in nothing but traced values.

Learning rates of a grid, tracks of one optimizer and weights of one shape are traced, so their experiments need one
program. XLA's persistent cache would spare its compilation, but not the seconds of tracing and loading it. A program
may be prepared before it is asked for, while another runs.
"""

import dataclasses
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from open_bench.algorithms.registry import find_algorithm
from open_bench.experiments.experiment import Experiment
from open_bench.training.mesh import Program
from open_bench.training.record import metrics_of

THREAD = "compile ahead"
KEPT = 8  # programs; those of one environment, as studies go environment by environment


class _Kept(NamedTuple):
    program: Program
    parts: Any  # which live as long, so that their ids stay theirs
    asked_for: bool


_kept: OrderedDict[tuple[Any, ...], _Kept] = OrderedDict()


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
        The program; its ``compile_seconds`` are 0 for all who ask for it but the first.
    """
    key, parts = _key(experiment, inputs, others)
    if key is None:
        return make()
    if key not in _kept:
        _keep(key, _Kept(make(), parts, True))
        return _kept[key].program
    found = _kept[key]
    _keep(key, found._replace(asked_for=True))
    return dataclasses.replace(found.program, compile_seconds=0.0) if found.asked_for else found.program


def prepare_program(experiment: Experiment, inputs: Any, others: tuple[Any, ...], make: Callable[[], Program]) -> None:
    """Compile what ``shared_program`` will be asked for, if it is a program that can be kept."""
    key, parts = _key(experiment, inputs, others)
    if key is not None and key not in _kept:
        _keep(key, _Kept(make(), parts, False))


class Ahead:
    """Prepares the program that is needed next while another runs; where cores are idle then, that saves its time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, THREAD)
        self._under_way: Future[None] | None = None

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def begin(self, prepare: Callable[[], None]) -> None:
        """Call ``prepare`` in another thread; what it raises is raised again where the program is asked for."""
        self.wait()
        self._under_way = self._pool.submit(prepare)

    def wait(self) -> None:
        """Until what is under way is done."""
        if self._under_way is not None:
            wait([self._under_way])


def compiling_ahead() -> bool:
    """Whether a thread of some ``Ahead`` is there, which the end of the process would wait for."""
    return any(thread.name.startswith(THREAD) for thread in threading.enumerate())


def _key(experiment: Experiment, inputs: Any, others: tuple[Any, ...]) -> tuple[tuple[Any, ...] | None, Any]:
    """What a program depends on, None where that cannot be told; and the parts whose ids are in it."""
    optimizer = experiment.optimizer
    if not experiment.task.environment.stored or (optimizer is not None and optimizer.spec.digest is None):
        return None, ()  # code that may change between two calls
    parts = () if optimizer is None else (optimizer.spec.make, optimizer.spec.eval_params, optimizer.policy_loss)
    static = () if optimizer is None else sorted(optimizer.static.items())
    task = json.dumps(experiment.task.identity, sort_keys=True)
    measured = metrics_of(find_algorithm(experiment.task.algorithm).reports)
    return (task, *map(id, parts), repr(static), _shapes(inputs), tuple(measured), *others), parts


def _keep(key: tuple[Any, ...], kept: _Kept) -> None:
    _kept[key] = kept
    _kept.move_to_end(key)
    while len(_kept) > KEPT:
        _kept.popitem(last=False)


def forget() -> None:
    """Keep none of the programs: what JAX compiles with has changed."""
    _kept.clear()


def _shapes(inputs: Any) -> str:
    shapes = jax.tree.map(lambda leaf: (jnp.shape(leaf), str(jnp.result_type(leaf))), inputs)
    return repr(jax.tree.flatten_with_path(shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))[0])
