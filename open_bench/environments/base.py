"""The interface that every environment has, and the only one that the harness knows."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from open_bench.errors import UserError, near_matches

Options = Mapping[str, bool | int | float | str]  # arguments of an environment's constructor, as a TOML gives them


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions 0 … n−1, int32."""

    n: int


@dataclasses.dataclass(frozen=True)
class Continuous:
    """Actions of shape (size,), float32, clipped by the environment to its bounds ``low`` and ``high``."""

    size: int
    low: float = -1.0
    high: float = 1.0


ActionSpace = Discrete | Continuous


class Environment(abc.ABC):
    """A task as pure functions of one environment copy; the harness vmaps them.

    ``reset``, ``step``, ``observation_size`` and ``action_space`` are what a class must have. Everything else has a
    default; what few tasks can do (``level``, ``optimal_return``, ``shifts_from``, ``draw``) is asked for by a call.

    Attributes:
        observation_size: length of the flat observation vector.
        observation_dtype: dtype in which observations are stored (``bool`` for binary ones: a quarter of the bytes).
        action_space: ``Discrete`` or ``Continuous``.
        cpu_steps_per_second: roughly what two CPU cores make of a task that is slow there; None for all others.
        shortest_episode: env steps before which no episode can end, whatever the agent does; None where that is not
            known. It is the length of every episode where only a time limit ends one.
    """

    observation_size: int
    observation_dtype: Any = jnp.float32
    action_space: ActionSpace
    cpu_steps_per_second: float | None = None
    shortest_episode: int | None = None

    @abc.abstractmethod
    def reset(self, key: jax.Array) -> tuple[jax.Array, Any]:
        """Start an episode: ``(observation (observation_size,), state)``."""

    def reset_copies(self, key: jax.Array, copies: int) -> tuple[jax.Array, Any]:
        """Start ``copies`` episodes together; every result has a leading axis of copies.

        For tasks whose copies share something that is drawn once, such as a level; by default they share nothing.
        """
        return jax.vmap(self.reset)(jax.random.split(key, copies))

    def reset_more_copies(self, key: jax.Array, began: jax.Array, copies: int) -> tuple[jax.Array, Any]:
        """Start ``copies`` more, to be looked at beside those that ``reset_copies`` has started from the key ``began``:
        with what those share, such as their level."""
        return self.reset_copies(key, copies)

    @abc.abstractmethod
    def step(
        self, key: jax.Array, state: Any, action: jax.Array
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
        """One env step with auto-reset.

        Returns:
            ``(observation, state, reward, terminated, truncated, info)``. After an episode's end the observation and
            state are those of the next episode, and ``info["final_observation"]`` is the last one of the old.
        """

    def step_copies(self, keys: jax.Array, state: Any, action: Any) -> tuple[Any, ...]:
        """``step`` of all copies together: the same numbers, with a leading axis of copies on everything.

        For tasks whose episodes are costly to begin: under a plain vmap every copy would begin one at every step.
        """
        return jax.vmap(self.step)(keys, state, action)

    @classmethod
    def read_files(cls, options: Options, folder: Path) -> dict[str, bool | int | float | str]:
        """Options with what files say in place of paths, relative to ``folder``: an edited file is another task."""
        del folder
        return dict(options)

    def level(self, key: jax.Array) -> Any:
        """What ``reset_copies(key, …)`` draws once for all copies and episodes; None: a task without levels."""
        del key
        return None

    def optimal_return(self, level: Any) -> float | None:
        """Expected return of an optimal policy over an episode of ``level``; None where it is not known."""
        del level
        return None

    def shifts_from(self, trained: "Environment") -> tuple[str, ...] | None:
        """What of this task lies outside of another one of its class; empty when it is a part of it.

        Two tasks of which each is a part of the other are one task. None: no more is known than whether the sources and
        options are equal.
        """
        del trained
        return None

    def draw(self, name: str, key: jax.Array, path: Any = None, png: Path | None = None) -> str:
        """The level that copies started from ``key`` share, as text.

        Args:
            name: what people call the task.
            key: of ``reset_copies``.
            path: also play an episode: by the "optimal" or the "random" policy, or by ``(description, policy)``.
            png: also draw a picture into this file.

        Raises:
            UserError: the task has no levels, no such policy is known, or the file cannot be written.
        """
        del key, path, png
        raise UserError(f"{name} draws no levels, so there is nothing to show; gridworlds do, such as gridworld/small")


def check_options(task: str, options: Options, defaults: Mapping[str, Any], others: Sequence[str] = ()) -> None:
    """Raise UserError for an option that a task has not, or whose value is of another kind than its default.

    ``others`` are options that are checked elsewhere: they are only named.
    """
    known = [*others, *defaults]
    for key, value in options.items():
        if key not in defaults:
            raise UserError(f"{task} has no option '{key}'.{near_matches(key, known)} It has: {', '.join(known)}.")
        default = defaults[key]
        if type(value) not in ((int, float) if isinstance(default, float) else (type(default),)):
            raise UserError(f"{task}: {key} = {value!r} does not fit; it is such as {default!r}")


def check_time_limit(task: str, name: str, value: Any) -> None:
    """Raise UserError for a number of env steps that an int32 cannot count, or no whole number at all."""
    if type(value) is not int or not 0 < value < 2**31:
        raise UserError(
            f"{task}: {name} = {value!r} is no whole number from 1 to 2³¹ − 1, so it is no number of env steps"
        )


def episodes_per_copy(environment: Environment, num_envs: int, env_steps: int) -> float | None:
    """The most episodes that every copy can finish in a lifetime of ``env_steps``; None where that is not known.

    Below 3, what is learned late is hardly scored: a return counts when its episode is over.
    """
    shortest = environment.shortest_episode
    return None if shortest is None else env_steps / num_envs / shortest


def restart_finished(
    reset: Callable[[jax.Array], Any], keys: jax.Array, done: jax.Array, current: Any, at_once: int
) -> Any:
    """Begin an episode in those copies whose last one is over, and in no others.

    Args:
        reset: from a key to what ``current`` holds of one copy.
        keys: (copies,), one for each copy, used or not.
        done: (copies,) bool.
        current: a tree of arrays with a leading axis of copies.
        at_once: episodes that are begun together.

    Returns:
        ``current`` with ``reset(keys[i])`` in place of copy i wherever ``done[i]``.
    """
    copies, needed = len(done), done.sum()
    finished_first = jnp.pad(jnp.argsort(~done, stable=True), (0, at_once - 1))

    def begin_some(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        begun, current = carry
        chosen = jax.lax.dynamic_slice(finished_first, (begun,), (at_once,))
        fresh = jax.vmap(reset)(keys[chosen])
        places = jnp.where(begun + jnp.arange(at_once) < needed, chosen, copies)  # out of range: dropped
        return begun + at_once, jax.tree.map(lambda now, new: now.at[places].set(new, mode="drop"), current, fresh)

    return jax.lax.while_loop(lambda carry: carry[0] < needed, begin_some, (jnp.zeros_like(needed), current))[1]


def with_strong_types(state: Any) -> Any:
    """Give weakly typed leaves (Python numbers in a suite's states) a fixed type, so that loops can carry them."""

    def strong(leaf: Any) -> jax.Array:
        array = jnp.asarray(leaf)
        is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)  # keys have one type only
        return array if is_key else jax.lax.convert_element_type(array, array.dtype)

    return jax.tree.map(strong, state)
