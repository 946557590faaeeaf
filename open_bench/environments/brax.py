"""The adapter for Brax: physics tasks with continuous actions (Freeman et al. 2021, arXiv 2106.13281)."""

import contextlib
import inspect
import io
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from open_bench.environments.base import Continuous, Environment, check_options, check_time_limit, with_strong_types
from open_bench.errors import UserError, check_known

BACKENDS = ("generalized", "positional", "spring", "mjx")
BOUNDS = (-1.0, 1.0)  # of every action
Scalar = bool | int | float | str

# Env steps a second that two busy CPU cores made of the positional backend: 64 copies, random actions.
CPU_STEPS_PER_SECOND = {"ant": 5_000.0, "hopper": 9_000.0, "walker2d": 14_000.0}
CPU_STEPS_PER_SECOND_ELSEWHERE = 5_000.0
NEVER_END = ("halfcheetah", "humanoidstandup", "pusher", "reacher", "swimmer")  # before the time limit


class State(NamedTuple):
    """One copy between two steps."""

    current: Any  # Brax's own state
    first: Any  # the one in which every episode of this copy begins
    time: jax.Array  # () int32: env steps of this episode


class BraxEnvironment(Environment):
    """A Brax task. Actions are clipped to [−1, 1]; the action repeat is 1.

    The first state of a copy is drawn when it is started, and all of its episodes begin there, as in Brax's own
    training and in the published protocol. So a step costs no reset; copies differ from one another.

    Args:
        name: such as "ant".
        backend: the physics: "positional" (as published), "generalized", "spring" or "mjx".
        episode_length: env steps until the time limit.
        **options: scalar arguments of the task's constructor, such as ``reset_noise_scale``, and ``n_frames``.

    Raises:
        UserError: for an unknown task, backend or option, or a value that does not fit.
    """

    def __init__(self, name: str, /, backend: str = "positional", episode_length: int = 1000, **options: Scalar):
        check_known("Brax environment", name, _registry())
        check_known("Brax backend", backend, BACKENDS)
        check_time_limit(f"brax {name}", "episode_length", episode_length)
        check_options(f"brax {name}", options, _option_defaults(_registry()[name]), ("backend", "episode_length"))
        if int(options.get("n_frames", 1)) < 1:
            raise UserError(f"brax {name}: n_frames = {options['n_frames']} does not fit: it is at least 1")
        self.episode_length = episode_length
        self.cpu_steps_per_second = CPU_STEPS_PER_SECOND.get(name, CPU_STEPS_PER_SECOND_ELSEWHERE)
        self._environment = _make(name, backend, options)
        self.observation_size = self._observation_size(name)
        self.action_space = Continuous(int(self._environment.action_size), *BOUNDS)
        if name in NEVER_END or options.get("terminate_when_unhealthy") is False:
            self.shortest_episode = episode_length

    @staticmethod
    def identifiers() -> list[str]:
        """All registered tasks, without ``fast``, which is Brax's own test double."""
        return [name for name in _registry() if name != "fast"]

    def reset(self, key: jax.Array) -> tuple[jax.Array, State]:
        state = with_strong_types(self._environment.reset(key))
        return state.obs.astype(jnp.float32), State(state, state, jnp.int32(0))

    def step(self, key: jax.Array, state: State, action: jax.Array) -> tuple[Any, ...]:
        del key  # the physics is deterministic
        # A copy of the tree, because Brax writes into the dictionaries of the state that it is given.
        current = jax.tree.map(lambda leaf: leaf, state.current)
        after = self._environment.step(current, jnp.clip(action, *BOUNDS))
        time = state.time + 1
        terminated = after.done > 0.5
        truncated = (time >= self.episode_length) & ~terminated
        done = terminated | truncated
        chosen = jax.tree.map(
            lambda first, later: jnp.where(done, first, jnp.asarray(later, first.dtype)), state.first, after
        )
        info = {"final_observation": after.obs.astype(jnp.float32)}
        reward = jnp.asarray(after.reward, jnp.float32)
        state = State(chosen, state.first, jnp.where(done, 0, time))
        return chosen.obs.astype(jnp.float32), state, reward, terminated, truncated, info

    def _observation_size(self, name: str) -> int:
        observation = jax.eval_shape(self._environment.reset, jax.random.key(0)).obs
        if not hasattr(observation, "shape") or len(observation.shape) != 1:
            raise UserError(f"brax {name} has observations of a kind that open-bench does not support: {observation}")
        return int(observation.shape[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Brax prints when it is imported (that optional packages are absent) and warns when it loads a model."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _quiet_mujoco() -> Iterator[None]:
    """MuJoCo writes warnings past Python, to the terminal and to MUJOCO_LOG.TXT in the user's folder."""
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _brax() -> Any:
    """The module ``brax.envs``, imported at first use."""
    with _quiet():
        import brax.envs

    return brax.envs


def _registry() -> dict[str, type]:
    return _brax()._envs


def _make(name: str, backend: str, options: dict[str, Scalar]) -> Any:
    try:
        suite = _brax()
        with _quiet(), _quiet_mujoco():
            return suite.get_environment(name, backend=backend, **options)
    except (ValueError, TypeError, NotImplementedError) as error:
        hint = f" Name another, as in brax/{name}/generalized or by `backend` in [options] of a .toml file."
        raise UserError(
            f"brax cannot make {name} with the {backend} backend and {options or 'its own settings'}: {error}"
            f"{hint if 'backend' in str(error) else ''}"
        ) from None


def _option_defaults(task: type) -> dict[str, Scalar]:
    """Scalar arguments of a task's constructor with their defaults, and the physics steps in an env step."""
    parameters = inspect.signature(task).parameters.values()
    found = {p.name: p.default for p in parameters if isinstance(p.default, bool | int | float)}
    return {**found, "n_frames": 1}
