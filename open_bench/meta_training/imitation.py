"""Imitation: θ is fitted to the updates of hand-designed teachers, as a start for evolution or instead of it.

A round records lifetimes and fits θ to all that has been recorded so far. The teacher drives the lifetimes of the
first round. Those of the others are driven by the student while the teacher runs alongside, so θ learns what the
teacher would do in states that θ itself leads to (DAgger: Ross et al. 2011, arXiv 1011.0686; imitation for learned
optimizers: Chen et al. 2020, arXiv 2010.09089). What the student's lifetimes earn checks the round before.

Work is cut into parts of ``PART`` batches; a checkpoint follows each. A round's recordings are stored besides, and made
again from θ at its beginning where they are damaged.
"""

import functools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import load_baseline_returns, returns_of
from open_bench.evaluation.metrics import Scale, normalize
from open_bench.events import Compiled, Fitted, Started, Watcher, Work
from open_bench.experiments import checkpoint
from open_bench.experiments.estimate import lifetime_seconds
from open_bench.experiments.execute import tell
from open_bench.meta_training.checkpoint import IMITATION, Checkpoints, Saved
from open_bench.meta_training.fit import Fit, Lessons, empty_lessons, fill
from open_bench.meta_training.fitness import FitnessTask, rollout_keys
from open_bench.meta_training.recording import Recorded, Recorder, Recording, Windows
from open_bench.meta_training.request import Request, imitation_of
from open_bench.optimizers.spec import Theta
from open_bench.training.keys import name_to_int
from open_bench.training.mesh import broadcast, same_everywhere

PART = 50  # batches between two checkpoints
RECORDING = "imitation"  # purpose of keys
FIT_SPEED = 1e6  # steps of one parameter that one core fits a second, about: open's size


class Imitated(NamedTuple):
    """What an imitation ends with."""

    theta: Theta
    history: list[dict[str, Any]]  # a row a part; counts of lifetimes, env steps and seconds are cumulative


class Imitator:
    """The imitation of one request.

    Args:
        request: with teachers.
        devices: where lifetimes run; the fit runs on the first of this process.
        folder: of checkpoints, recordings and the history.
        watcher: of the events.
        work: tells a task's part to watchers.
        writes: whether this process writes.
    """

    def __init__(
        self, request: Request, devices: Sequence[jax.Device], folder: Path, watcher: Watcher,
        work: Callable[[FitnessTask, int], Work], writes: bool,
    ):  # fmt: skip
        assert request.config.imitation is not None
        self._request, self._devices, self._folder, self._watcher = request, devices, folder, watcher
        self._config, self._writes, self._work = request.config.imitation, writes, work
        self._rule = imitation_of(request.tasks[0].optimizer)
        self._fit = Fit(self._rule, self._config, request.config.root_seed)
        identity = {key: value for key, value in request.identity.items() if key in _DETERMINES}
        self._checkpoints = Checkpoints(folder, identity, "imitation", IMITATION)
        self._parts = math.ceil(self._config.batches / PART)  # of a round
        self._recorded: list[float] = []  # seconds that the lifetimes of a round took here
        self._random = [_random_return(task, request.config.fitness) for task in request.tasks]

    def started(self) -> Started:
        """What is ahead, for watchers."""
        config, request = self._config, self._request
        saved = self._checkpoints.load()
        lifetimes = config.lifetimes * (config.rounds + 1)
        work = tuple(self._work(task, lifetimes) for task in request.tasks)
        done = saved.history[-1]["batch"] if saved is not None else 0
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(request.start))
        return Started(request.config.name, work, request.config.generations, 0, size, self._seconds(lifetimes),
                       config.batches * config.rounds, done)  # fmt: skip

    def _seconds(self, lifetimes: int) -> float | None:
        each = [lifetime_seconds(task.task, True, self._devices) for task in self._request.tasks]
        known = [seconds for seconds in each if seconds is not None]
        config = self._config
        fitted = config.rounds * config.batches * config.batch_size * config.window_steps * config.parameters
        recorded = sum(known) * lifetimes / min(len(self._devices), config.lifetimes)
        return recorded + fitted / FIT_SPEED if known else None

    def run(self) -> Imitated:
        """Make the parts that are missing.

        Raises:
            UserError: a teacher diverges, the loss does, or a checkpoint is of other settings.
        """
        total = self._config.rounds * self._parts
        saved = self._checkpoints.load()
        if saved is None or saved.generation < total:
            saved = self._go_on(saved, total)
        if self._writes:
            for path in self._folder.glob("recording-*"):
                path.unlink()
        return Imitated(self._theta(saved.arrays["starts"][-1]), saved.history)

    def _go_on(self, saved: Saved | None, total: int) -> Saved:
        recorders = [self._recorder(task, teacher) for task, teacher in self._pairs()]
        begun = time.perf_counter()
        seconds = saved.facts["seconds"] if saved is not None else 0.0
        first = None
        if saved is None:
            first = self._record(recorders, 0, _vector(self._request.start["optimizer"]))
            saved = self._begin(first)
            self._keep(saved, begun, seconds)
        lessons, filled = self._recall(recorders, saved, first)
        here, before, known = time.perf_counter(), saved.generation, len(self._recorded)
        for part in range(saved.generation, total):
            saved, filled = self._part(part, saved, recorders, lessons, filled)
            self._keep(saved, begun, seconds)
            fitted = time.perf_counter() - here - sum(self._recorded[known:])
            left = fitted / (part + 1 - before) * (total - part - 1)
            rounds = self._config.rounds - (part + 1) // self._parts  # whose lifetimes are ahead
            self._watcher(Fitted(saved.history[-1], left + rounds * float(np.mean(self._recorded or [0.0]))))
        return saved

    def _keep(self, saved: Saved, begun: float, seconds: float) -> None:
        saved.facts["seconds"] = seconds + time.perf_counter() - begun
        saved.history[-1]["seconds"] = round(saved.facts["seconds"], 3)
        if self._writes:
            self._checkpoints.save(saved)

    def _pairs(self) -> Any:
        return zip(self._request.tasks, self._request.teachers, strict=True)

    def _recorder(self, task: FitnessTask, teacher: Any) -> Recorder:
        config = self._config
        windows = Windows.spread(task.task.length.optimizer_steps, config.window_steps, config.windows)
        made = Recorder(
            task.task, task.optimizer, self._rule, teacher, teacher.hyperparameters["learning_rate"], windows,
            config.parameters, self._devices, min(self._request.vmap_size, config.lifetimes), config.lifetimes,
        )  # fmt: skip
        self._watcher(Compiled(self._work(task, config.lifetimes), made.program.compile_seconds))
        return made

    # --- rounds -------------------------------------------------------------------------------------------------------

    def _begin(self, recorded: list[Recorded]) -> Saved:
        """The state before the first batch, from the teachers' lifetimes."""
        part = self._request.start["optimizer"]
        start = _vector(part)
        starts = np.zeros((self._config.rounds + 1, start.size), np.float32)
        starts[0] = start
        for each, (task, teacher) in zip(recorded, self._pairs(), strict=True):
            if each.diverged.any():
                raise UserError(
                    f"the teacher {teacher.label} diverges on {task.task.name}, in {int(each.diverged.sum())} of "
                    f"{len(each.diverged)} lifetimes: lower its learning rate, or name another"
                )
        self._look_at_teachers(recorded)
        row: dict[str, Any] = {"batch": 0, "round": 1, **dict.fromkeys(_MEASURED, math.nan)}
        row |= self._count(None, recorded)
        for each, (task, _) in zip(recorded, self._pairs(), strict=True):
            row |= {f"return.{task.task.name}": math.nan, f"teacher.{task.task.name}": float(each.returns.mean())}
        state = _leaves((part, self._fit.optimizer.init(part)))
        return Saved(0, {"starts": starts, **state}, [row], {"seconds": 0.0})

    def _look_at_teachers(self, recorded: list[Recorded]) -> None:
        """Warn of teachers that learn nothing: θ would come to do the same."""
        for each, random, (task, teacher) in zip(recorded, self._random, self._pairs(), strict=True):
            if (mean := float(each.returns.mean())) <= random:
                warnings.warn(
                    f"the teacher {teacher.label} ends at {mean:.4g} on {task.task.name}, and the random policy has "
                    f"{random:.4g}: there is nothing to learn from it",
                    stacklevel=2,
                )

    def _recall(
        self, recorders: list[Recorder], saved: Saved, first: list[Recorded] | None
    ) -> tuple[Lessons, list[int]]:  # fmt: skip
        """What the rounds up to the present one have recorded, ``first`` just now; where each round's windows end."""
        lessons, ends = None, [0]
        for number in range(min(saved.generation // self._parts, self._config.rounds - 1) + 1):
            recorded = first if first is not None else self._record(recorders, number, saved.arrays["starts"][number])
            parts = [each.recording for each in recorded]
            if lessons is None:
                lessons = empty_lessons(self._config.rounds * sum(len(part.targets) for part in parts), parts[0])
            ends.append(self._learn_from(lessons, ends[-1], parts))
        assert lessons is not None
        return lessons, ends

    def _learn_from(self, lessons: Lessons, first: int, parts: list[Recording]) -> int:
        rates = [teacher.hyperparameters["learning_rate"] for teacher in self._request.teachers]
        return fill(lessons, first, parts, rates, self._config.burn_in)

    def _part(
        self, part: int, saved: Saved, recorders: list[Recorder], lessons: Lessons, ends: list[int]
    ) -> tuple[Saved, list[int]]:
        """Some batches, and after the last of a round the lifetimes that θ drives."""
        number, within = divmod(part, self._parts)
        config, first = self._config, within * PART
        count = min(PART, config.batches - first)
        state = self._restore(saved)
        state, loss = self._fit.advance(state, lessons, number * config.batches + first, count)
        theta = broadcast(_vector(state[0]))
        if not np.isfinite(theta).all() or not math.isfinite(float(loss)):
            raise UserError(
                f"θ is not finite after {number * config.batches + first + count} batches: lower imitation's "
                f"learning_rate ({config.learning_rate})"
            )
        held_out = self._held_out_loss(theta, lessons, ends[number], ends[number + 1])
        unknown = dict.fromkeys([*_MEASURED, *(f"return.{task.task.name}" for task in self._request.tasks)], math.nan)
        row = {**saved.history[-1], **unknown, "batch": number * config.batches + first + count, "round": number + 1,
               "loss": float(loss), "held_out_loss": held_out}  # fmt: skip
        starts = saved.arrays["starts"]
        if within == self._parts - 1:
            starts = starts.copy()
            starts[number + 1] = theta
            recorded = self._record(recorders, number + 1, theta)
            row |= self._count(row, recorded) | self._check(recorded, row)
            if number + 1 < config.rounds:
                ends = [*ends, self._learn_from(lessons, ends[-1], [each.recording for each in recorded])]
                row["new_loss"] = self._held_out_loss(theta, lessons, ends[-2], ends[-1])
        arrays = {"starts": starts, **_leaves(state)}
        return Saved(part + 1, arrays, [*saved.history, row], dict(saved.facts)), ends

    def _held_out_loss(self, theta: np.ndarray, lessons: Lessons, first: int, end: int) -> float:
        """Mean over environments at the parameters that no batch shows."""
        window = jax.tree.map(lambda part: part[first:end], lessons)
        losses = np.asarray(self._fit.held_out_loss(self._theta(theta)["optimizer"], window))
        used = window.shares > 0
        return float(np.average(losses[used], weights=window.shares[used])) if used.any() else math.nan

    def _count(self, last: dict[str, Any] | None, recorded: list[Recorded]) -> dict[str, int]:
        """Lifetimes and env steps so far."""
        before = last or {"lifetimes": 0, "env_steps": 0}
        return {
            "lifetimes": before["lifetimes"] + sum(len(each.returns) for each in recorded),
            "env_steps": before["env_steps"] + sum(each.env_steps for each in recorded),
            "diverged": sum(int(each.diverged.sum()) for each in recorded),
        }

    def _check(self, recorded: list[Recorded], row: dict[str, Any]) -> dict[str, float]:
        """What θ earns on each environment, and the mean of that on the scale from the random policy to the teacher."""
        returns, scores = {}, []
        for each, task, random in zip(recorded, self._request.tasks, self._random, strict=True):
            name = task.task.name
            mean, scale = each.returns.mean(), Scale(random, row[f"teacher.{name}"])
            returns[f"return.{name}"] = float(mean)
            scores.append(float(normalize(mean, scale)) if scale.one > scale.zero else math.nan)
        return {**returns, "of_teacher": float(np.mean(scores))}

    # --- recordings ---------------------------------------------------------------------------------------------------

    def _record(self, recorders: list[Recorder], number: int, start: np.ndarray) -> list[Recorded]:
        """The lifetimes of a round, from its file where there is one; those after the last round are only looked at."""
        path = self._folder / f"recording-{number:02d}.safetensors"
        saved = checkpoint.read(path)
        there = saved is not None and saved.facts["run"] == self._request.digest
        if same_everywhere(there) and saved is not None and there:  # else all processes make it together
            return [_unpack(saved, index) for index in range(len(recorders))]
        begun = time.perf_counter()
        recorded = [self._lifetimes(each, index, number, start) for index, each in enumerate(recorders)]
        self._recorded.append(time.perf_counter() - begun)
        if self._writes and number < self._config.rounds:
            arrays: dict[str, np.ndarray] = {}
            for index, each in enumerate(recorded):
                parts = {**each.recording._asdict(), "returns": each.returns, "diverged": each.diverged}
                arrays |= {f"{index}/{name}": part for name, part in parts.items()}
            facts = {"run": self._request.digest, "env_steps": [each.env_steps for each in recorded]}
            checkpoint.write(path, arrays, facts)
        return recorded

    def _lifetimes(self, recorder: Recorder, index: int, number: int, start: np.ndarray) -> Recorded:
        task, seed = self._request.tasks[index], self._request.config.root_seed
        name = task.task.name
        keys = rollout_keys(seed, RECORDING, name, number, self._config.lifetimes)
        draws = np.random.default_rng([seed, name_to_int(f"{RECORDING} {name}"), number])
        told = functools.partial(tell, self._watcher, self._work(task, self._config.lifetimes))
        metric = self._request.config.fitness
        recorded = recorder.record(self._theta(start), keys, draws, number > 0, metric, told)
        if number > 0 and recorded.diverged.any():
            warnings.warn(
                f"{int(recorded.diverged.sum())} of {len(recorded.diverged)} lifetimes on {name} diverge with θ of "
                f"round {number}; what came before is learned from",
                stacklevel=2,
            )
        return recorded

    # --- θ and its state ----------------------------------------------------------------------------------------------

    def _theta(self, vector: np.ndarray) -> Theta:
        """θ with the optimizer's part from a vector; a learned policy loss stays what it is."""
        _, unravel = ravel_pytree(self._request.start["optimizer"])
        return {**self._request.start, "optimizer": jax.device_get(unravel(jnp.asarray(vector)))}

    def _restore(self, saved: Saved) -> Any:
        """(θ, Adam's state)."""
        part = self._request.start["optimizer"]
        structure = jax.tree.structure((part, jax.eval_shape(self._fit.optimizer.init, part)))
        names = sorted(name for name in saved.arrays if name.startswith("state/"))
        return jax.tree.unflatten(structure, [saved.arrays[name] for name in names])


_MEASURED = ("loss", "held_out_loss", "new_loss", "of_teacher")
# What of a request's identity determines an imitation: evolution after it may be another.
_DETERMINES = ("optimizer", "policy_loss", "start", "vmap_size", "environments", "imitation", "root_seed", "fitness")


def _vector(part: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(part)[0])


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    return {f"state/{index:05d}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(tree))}


def _unpack(saved: checkpoint.Saved, index: int) -> Recorded:
    parts = {name.partition("/")[2]: x for name, x in saved.arrays.items() if name.startswith(f"{index}/")}
    recording = Recording(**{name: parts[name] for name in Recording._fields})
    return Recorded(recording, parts["returns"], parts["diverged"], saved.facts["env_steps"][index])


def _random_return(task: FitnessTask, metric: str) -> float:
    """The random policy's mean return, NaN where it is not known."""
    random = returns_of(load_baseline_returns(), task.task.base).random
    known = random.of(metric) if random is not None else None
    return float(known.mean) if known is not None else math.nan
