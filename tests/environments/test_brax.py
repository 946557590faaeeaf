"""Brax: the adapter against Brax's training wrappers, normalization against numpy, silence, and what a CPU is told."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from open_bench.config import StudyConfig
from open_bench.environments.brax import BACKENDS
from open_bench.environments.registry import identifiers, load_environment, make, make_environment
from open_bench.environments.wrappers import VectorEnvironment
from open_bench.errors import UserError
from open_bench.experiments.estimate import announce
from open_bench.experiments.plan import make_plan
from open_bench.training.task import make_task

SHIPPED = ("ant", "humanoid", "walker2d", "hopper", "halfcheetah")
TASK = "inverted_pendulum"  # the one that compiles fastest
COPIES, STEPS, LIMIT, GAMMA = 3, 40, 12, 0.9


class Answer(NamedTuple):
    out: str
    err: str


def python(code: str, folder: Path, *arguments: str) -> Answer:
    """Run ``code`` in a fresh interpreter; both streams as the operating system sees them."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Answer(done.stdout, done.stderr)


# --- importing and printing -------------------------------------------------------------------------------------------


def test_importing_the_package_and_its_adapters_imports_no_brax(tmp_path: Path) -> None:
    names = "open_bench, open_bench.api, open_bench.environments.registry, open_bench.environments.brax"
    loaded = python(f"import sys, {names}; print(*sys.modules)", tmp_path).out.split()
    assert "open_bench.environments.brax" in loaded
    assert not {"brax", "mujoco"} & set(loaded)


@pytest.mark.slow
def test_nothing_is_printed_and_no_log_is_left(tmp_path: Path) -> None:
    """Importing Brax prints of absent packages, every model warns, and that of halfcheetah writes MUJOCO_LOG.TXT."""
    code = """
import jax
from open_bench.environments.registry import make
task = make("brax:halfcheetah")
key = jax.random.key(0)
_, state = jax.eval_shape(task.reset, key)
jax.eval_shape(task.step, key, state, jax.eval_shape(lambda: jax.numpy.zeros(6)))
print("made")
"""
    assert python(code, tmp_path) == ("made\n", "")
    assert not list(tmp_path.iterdir())


# --- names and options ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_settings_are_the_published_ones(name: str) -> None:
    shipped = load_environment(name)
    ppo: Any = make_task(shipped, budget="quick").settings
    assert (shipped.source, shipped.options) == (f"brax:{name}", {"backend": "positional"})
    assert (ppo.num_envs, ppo.num_steps, ppo.update_epochs, ppo.num_minibatches) == (2048, 10, 4, 32)
    assert (ppo.gamma, ppo.gae_lambda, ppo.clip, ppo.entropy_coefficient) == (0.99, 0.95, 0.2, 0.0)
    assert (ppo.value_coefficient, ppo.hidden, ppo.activation) == (0.5, (64, 64), "tanh")
    assert ppo.normalize_observations
    assert ppo.normalize_rewards
    assert not ppo.bootstrap_on_truncation
    assert (shipped.budgets["short"], shipped.budgets["full"]) == (5_000_000, 50_000_000)
    assert shipped.budgets["quick"] > 1000 * ppo.num_envs  # or episodes that only the time limit ends would not count


def test_any_brax_task_by_name() -> None:
    found = load_environment("brax/reacher/spring")
    assert (found.name, found.source, found.options) == ("brax/reacher/spring", "brax:reacher", {"backend": "spring"})
    assert found.algorithms == load_environment("ant").algorithms
    assert load_environment("brax/reacher").options == load_environment("ant").options == {"backend": "positional"}
    assert set(SHIPPED) < set(identifiers("brax"))
    assert "fast" not in identifiers("brax")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brax/recher", r"unknown environment 'brax/recher'\. Did you mean brax/reacher"),
        ("brax:reacher", r"unknown environment 'brax:reacher'\. Did you mean brax/reacher"),
        ("humanoyd", r"unknown environment 'humanoyd'\. Did you mean humanoid"),
        ("brax/reacher/sprung", r"unknown Brax backend 'sprung'\. Did you mean spring\? Known: generalized"),
        ("brax/swimmer", r"brax cannot make swimmer with the positional backend .*as in brax/swimmer/generalized"),
    ],
)
def test_a_bad_name_is_an_error(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_environment(load_environment(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "positonal"}, r"unknown Brax backend 'positonal'\. Did you mean positional"),
        ({"reset_noise_scal": 0.1}, r"brax ant has no option 'reset_noise_scal'\. Did you mean reset_noise_scale"),
        ({"reset_noise_scale": "much"}, r"brax ant: reset_noise_scale = 'much' does not fit"),
        ({"terminate_when_unhealthy": 1}, r"brax ant: terminate_when_unhealthy = 1 does not fit"),
        ({"n_frames": 0}, r"brax ant: n_frames = 0 does not fit"),
        ({"episode_length": 0}, r"brax ant: episode_length = 0 is no whole number from 1"),
        ({"use_contact_forces": True}, r"brax cannot make ant with .*: use_contact_forces not implemented"),
    ],
)
def test_a_bad_option_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make("brax:ant", **options)
    with pytest.raises(UserError, match=r"unknown Brax environment 'aunt'\. Did you mean ant"):
        make("brax:aunt", **options)


@pytest.mark.slow
def test_options_reach_brax() -> None:
    still = make(f"brax:{TASK}")
    moved = make("brax:ant", reset_noise_scale=0)
    observation, other = jax.jit(jax.vmap(lambda key: moved.reset(key)[0]))(jax.random.split(jax.random.key(0)))
    np.testing.assert_array_equal(observation, other)
    assert still.action_space.size == 1  # type: ignore[union-attr]
    assert make("brax:ant", exclude_current_positions_from_observation=False).observation_size == 29


# --- the adapter and normalization ------------------------------------------------------------------------------------


class Walk(NamedTuple):
    """What Brax's own wrappers, the plain copies and the normalizing copies make of the same actions."""

    theirs: Any
    first: Any
    plain: Any
    normal: Any
    plain_statistics: Any
    normal_statistics: Any
    first_normal: Any


@pytest.fixture(scope="module")
def walk() -> Walk:
    """The same actions, many beyond the bounds, for all three; compiled together."""
    import brax.envs

    task = make(f"brax:{TASK}", episode_length=LIMIT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = brax.envs.create(TASK, LIMIT, batch_size=COPIES, backend="positional")
    plain = VectorEnvironment(task, COPIES)
    normal = VectorEnvironment(task, COPIES, normalize_observations=True, normalize_rewards=True, gamma=GAMMA)

    def step(states: Any, key: jax.Array) -> Any:
        theirs, bare, scaled = states
        action = 3.0 * jax.random.normal(key, (COPIES, 1))
        theirs = own.step(theirs, jnp.clip(action, -1.0, 1.0))
        transition, bare = plain.step(key, bare, action)
        normalized, scaled = normal.step(key, scaled, action)
        row = (theirs.obs, theirs.reward, theirs.done, theirs.info["truncation"])
        return (theirs, bare, scaled), (row, transition, normalized, bare.statistics, scaled.statistics)

    @jax.jit
    def run() -> Walk:
        key = jax.random.key(4)
        (first, bare), (first_normal, scaled) = plain.reset(key), normal.reset(key)
        states = (own.reset(key), bare, scaled)
        _, rows = jax.lax.scan(step, states, jax.random.split(jax.random.key(5), STEPS))
        return Walk(rows[0], first, *rows[1:], first_normal)

    return jax.device_get(run())


@pytest.mark.slow
def test_the_adapter_does_what_brax_does(walk: Walk) -> None:
    """Observations, rewards and ends are those of Brax's training wrappers, which restore the first state."""
    observation, reward, done, truncated = walk.theirs
    np.testing.assert_allclose(walk.plain.observation, observation, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(walk.plain.reward, reward, rtol=1e-6)
    np.testing.assert_array_equal(walk.plain.truncated, truncated > 0.5)
    np.testing.assert_array_equal(walk.plain.terminated | walk.plain.truncated, done > 0.5)
    assert walk.plain.terminated.any()
    assert walk.plain.truncated.any()
    assert not (walk.plain.terminated & walk.plain.truncated).any()


@pytest.mark.slow
def test_an_episode_begins_where_its_copy_began(walk: Walk) -> None:
    done = walk.plain.terminated | walk.plain.truncated
    begun = np.broadcast_to(walk.first, walk.plain.observation.shape)
    np.testing.assert_allclose(walk.plain.observation[done], begun[done], rtol=1e-6)
    np.testing.assert_array_equal(walk.plain.final_observation[~done], walk.plain.observation[~done])
    assert (walk.plain.final_observation[done] != walk.plain.observation[done]).any(axis=-1).all()
    assert len(np.unique(walk.first, axis=0)) == COPIES  # copies differ


@pytest.mark.slow
def test_an_episode_lasts_as_long_as_it_is_told(walk: Walk) -> None:
    age = np.zeros(COPIES, int)
    for terminated, truncated in zip(walk.plain.terminated, walk.plain.truncated, strict=True):
        age += 1
        np.testing.assert_array_equal(truncated, (age == LIMIT) & ~terminated)
        age[terminated | truncated] = 0


def moments(samples: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of all samples together with a prior: mean 0, variance 1, worth 1e-4 of a sample."""
    data = np.stack(samples).astype(np.float64)
    count = 1e-4 + len(data)
    mean = data.sum(0) / count
    return mean, (1e-4 * (1.0 + mean**2) + ((data - mean) ** 2).sum(0)) / count


@pytest.mark.slow
def test_normalization_equals_numpy(walk: Walk) -> None:
    """Observations by the running mean and variance; rewards by the running spread of the discounted return."""
    seen, returns = list(walk.first), []
    mean, variance = moments(seen)
    np.testing.assert_allclose(walk.first_normal, (walk.first - mean) / np.sqrt(variance + 1e-8), rtol=1e-3, atol=1e-3)
    discounted = np.zeros(COPIES)
    for t in range(STEPS):
        seen += list(walk.plain.observation[t])
        mean, variance = moments(seen)
        expected = (walk.plain.observation[t] - mean) / np.sqrt(variance + 1e-8)
        np.testing.assert_allclose(walk.normal.observation[t], expected, rtol=1e-3, atol=1e-3)
        discounted = discounted * GAMMA + walk.plain.reward[t]
        returns += list(discounted)
        spread = np.sqrt(moments(returns)[1] + 1e-8)
        np.testing.assert_allclose(walk.normal.reward[t], walk.plain.reward[t] / spread, rtol=1e-3)
        discounted = np.where(walk.plain.terminated[t] | walk.plain.truncated[t], 0.0, discounted)
    assert np.abs(walk.normal.observation - walk.plain.observation).max() > 0.1  # so it did something
    assert np.abs(walk.normal.reward - walk.plain.reward).max() > 0.1


@pytest.mark.slow
def test_returns_are_reported_unnormalized(walk: Walk) -> None:
    jax.tree.map(np.testing.assert_array_equal, walk.normal_statistics, walk.plain_statistics)
    np.testing.assert_array_equal(walk.plain_statistics.last.max(), LIMIT)  # the reward is 1 a step
    assert walk.plain_statistics.finished[-1].all()


# --- a CPU ------------------------------------------------------------------------------------------------------------


class Accelerator:
    platform = "gpu"


def told(environment: str, steps: int | None, devices: Any) -> list[str]:
    study = StudyConfig(name="x", optimizers=("adam", "sgd"), environments=(environment,), budget="full", num_seeds=2)
    experiments = make_plan(study, jax.devices()[:2], steps=steps).experiments
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        announce([(each, 2) for each in experiments], devices)
    return [str(warning.message) for warning in caught if "are ahead" in str(warning.message)]


@pytest.mark.slow
def test_a_cpu_is_warned_of_long_runs_alone() -> None:
    (message,) = told("ant", None, jax.devices()[:2])
    speed = make("brax:ant").cpu_steps_per_second
    assert speed is not None
    total = 4 * (50_000_000 // 20_480) * 20_480
    assert f"4 lifetimes with {total:,} env steps are ahead: about {total / speed / 3600:.1f} h on this CPU" in message
    assert not told("ant", None, [Accelerator()])
    assert not told("ant", 20_480, jax.devices()[:2])
    assert not told("acrobot", None, jax.devices()[:2])


@pytest.mark.slow
def test_every_backend_is_known_to_brax() -> None:
    task = "inverted_pendulum"
    assert [make(f"brax:{task}", backend=backend).observation_size for backend in BACKENDS] == [4] * len(BACKENDS)


@pytest.mark.slow
def test_ant_through_the_command_line(tmp_path: Path) -> None:
    """A lifetime of 400 env steps: its returns are printed and stored, and the folder is named."""
    code = "import sys; sys.argv[0] = 'openbench'; from open_bench.cli.main import main; main()"
    settings = ("num_envs=4", "num_steps=10", "num_minibatches=2", "update_epochs=1")
    sets = [word for setting in settings for word in ("--set", setting)]
    answer = python(code, tmp_path, "train", "adam", "-e", "ant", "--steps", "400", "--devices", "1", "-q", *sets)
    assert answer.err == ""
    header, row, stored = answer.out.strip().splitlines()
    assert re.split(r"\s{2,}", header) == ["seed", "final return", "return over the lifetime", "env steps"]
    final, mean, env_steps = row.split()[1:]
    assert np.isfinite([float(final), float(mean)]).all()
    assert env_steps == "400"
    assert (
        stored.startswith("Stored in results/experiments/ant_")
        and (tmp_path / stored.removeprefix("Stored in ")).is_dir()
    )
