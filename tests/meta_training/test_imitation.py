"""Imitation: θ comes to do what its teacher does, bitwise the same however it is cut, and what cannot be is refused."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from commands import OpenBench
from jax.flatten_util import ravel_pytree
from tiny_meta import STEPS_PER_UPDATE, TINY, vector

import open_bench
from open_bench.errors import UserError
from open_bench.evaluation.style import png
from open_bench.events import Advanced, Event, Fitted, Started
from open_bench.meta_training.figure import imitation_figure
from open_bench.meta_training.fit import Fit, empty_lessons, fill
from open_bench.meta_training.recording import Recording
from open_bench.meta_training.spec import ImitationConfig, MetaConfig
from open_bench.optimizers.resolve import resolve
from open_bench.progress import Tally, picture, plan_report
from open_bench.weights.format import load_weights

RULE: Any = resolve("open-feedforward", require_weights=False).spec.learned.imitation  # type: ignore[union-attr]
TEACHER = "lion:learning_rate=5e-3"
IMITATION: dict[str, Any] = {
    "teachers": TEACHER, "rounds": 2, "batches": 60, "batch_size": 4, "window_steps": 16, "burn_in": 4, "windows": 4,
    "parameters": 24,
}  # fmt: skip
UPDATES = 20
SETTINGS: dict[str, Any] = {
    "steps": STEPS_PER_UPDATE * UPDATES, "settings": TINY, "vmap_size": 1, "generations": 0, "imitation": IMITATION,
}  # fmt: skip


def imitate(folder: Path, optimizer: str = "open", **changes: Any) -> Any:
    """Imitation on CartPole, without evolution unless ``changes`` have generations."""
    settings = {**SETTINGS, "devices": 2, "name": "mine", **changes}
    return open_bench.meta_train(optimizer, ["cartpole"], results=folder, **settings)


class Imitated(NamedTuple):
    done: Any
    folder: Path
    events: list[Event]


@pytest.fixture(scope="module")
def imitated(tmp_path_factory: pytest.TempPathFactory) -> Imitated:
    folder, events = tmp_path_factory.mktemp("imitated"), list[Event]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPEN_BENCH_WEIGHTS", str(folder / "library"))
        return Imitated(imitate(folder, progress=events.append), folder, events)


# --- the fit ----------------------------------------------------------------------------------------------------------


def synthetic(seed: int, windows: int = 6) -> Recording:
    """Windows whose teacher takes the sign of the third momentum, less and less."""
    inputs = np.random.default_rng(seed).normal(size=(windows, 12, 19, 16)).astype(np.float32)
    inputs[:, :, 15] = np.linspace(0, 1, windows)[:, None, None]
    targets = -np.sign(inputs[:, :, 3]) * (1 - inputs[:, :, 15])
    valid = np.ones((windows, 12), bool)
    return Recording(inputs, targets, valid, np.arange(windows) == 0)


@pytest.fixture(scope="module")
def fit() -> Fit:
    """Of the feed-forward rule, which compiles fastest."""
    config = ImitationConfig(teachers=("lion",), rounds=1, batches=80, batch_size=3, parameters=16, learning_rate=0.03)
    return Fit(RULE, config, 0)


def test_a_fit_lowers_the_loss_at_parameters_that_it_never_sees(fit: Fit) -> None:
    lessons = empty_lessons(12, synthetic(0))
    assert fill(lessons, 0, [synthetic(0)], [2e-3], burn_in=2) == 6
    start = RULE.start(jax.random.key(0))
    (theta, _), _ = fit.advance((start, fit.optimizer.init(start)), lessons, 0, 80)
    before, after = (np.asarray(fit.held_out_loss(each, lessons))[:6].mean() for each in (start, theta))
    assert after < 0.5 * before
    assert after < 0.6 * np.square(synthetic(0).targets).mean()  # what a rule that does nothing has
    # Cut differently it is the same, for the draws of a batch follow from its number.
    parts = (start, fit.optimizer.init(start))
    for first, count in ((0, 50), (50, 30)):
        parts, _ = fit.advance(parts, lessons, first, count)
    np.testing.assert_array_equal(ravel_pytree(parts[0])[0], ravel_pytree(theta)[0])


def test_only_finite_steps_after_the_burn_in_count_and_environments_weigh_alike() -> None:
    short = synthetic(1, windows=2)
    short.valid[1, 5:] = False
    lost = synthetic(2, windows=1)
    lost.valid[:] = False
    lessons = empty_lessons(9, short)
    assert fill(lessons, 0, [short, synthetic(0), lost], [0.1, 0.2, 0.3], burn_in=4) == 9
    np.testing.assert_array_equal(lessons.weights[0], np.ones(12))  # begins with the lifetime: the carry is 0 there
    np.testing.assert_array_equal(lessons.weights[1], [0] * 4 + [1] + [0] * 7)
    np.testing.assert_allclose([lessons.shares[:2].sum(), lessons.shares[2:8].sum(), lessons.shares[8]], [1, 1, 0])
    np.testing.assert_allclose(lessons.learning_rates, [0.1] * 2 + [0.2] * 6 + [0.3], rtol=1e-6)


def test_the_loss_is_the_expected_squared_error_over_the_learning_rate(fit: Fit) -> None:
    lessons = empty_lessons(12, synthetic(0))
    fill(lessons, 0, [synthetic(0)], [0.5], burn_in=0)
    theta = jax.tree.map(lambda leaf: 20.0 * leaf, RULE.start(jax.random.key(1)))
    updates, spread = RULE.unroll(theta, jnp.asarray(lessons.inputs[2][..., -2:]))
    noise = np.random.default_rng(0).normal(size=(4000, *updates.shape))
    errors = (updates + spread * noise) / 0.5 - lessons.targets[2][:, -2:]
    np.testing.assert_allclose(fit.held_out_loss(theta, lessons)[2], np.square(errors).mean(), rtol=1e-2)
    assert np.square(spread / 0.5).mean() > 0.05 * np.square(errors).mean()  # or noise would not be seen


# --- rounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_theta_learns_and_the_check_says_so(imitated: Imitated) -> None:
    history = imitated.done.imitation
    assert list(history["batch"]) == [0, 50, 60, 110, 120]
    assert list(history["round"]) == [1, 1, 1, 2, 2]
    losses = history["held_out_loss"].dropna()
    assert losses.iloc[-1] < 0.7 * losses.iloc[0]
    assert history["new_loss"].notna().tolist() == [False, False, True, False, False]
    checked = history[history["of_teacher"].notna()]
    assert list(checked["batch"]) == [60, 120]
    last, random = checked.iloc[-1], 22.0
    assert last["return.cartpole"] > random
    assert last["of_teacher"] == pytest.approx(
        (last["return.cartpole"] - random) / (last["teacher.cartpole"] - random), rel=0.05
    )
    assert list(history["lifetimes"]) == [2, 2, 4, 4, 6]
    assert (history["env_steps"] == history["lifetimes"] * STEPS_PER_UPDATE * UPDATES).all()
    pd.testing.assert_frame_equal(pd.read_csv(imitated.done.folder / "imitation.csv"), history)


@pytest.mark.slow
def test_the_student_does_what_the_teacher_does(imitated: Imitated) -> None:
    """On gradients that neither has met: most updates have the teacher's sign and about its size."""
    params = {"actor": {"layer_00_dense": {"kernel": jnp.zeros((20, 10)), "bias": jnp.zeros(10)}}}
    student = imitated.done.theta
    optimizer = resolve("open", require_weights=False).spec.build(student, deterministic=True)
    lion = optax.lion(5e-3, 0.9, 0.99)
    state, memory, generator = optimizer.init(params), lion.init(params), np.random.default_rng(0)
    drift = jax.tree.map(lambda leaf: 1e-3 * generator.normal(size=leaf.shape), params)
    for _ in range(10):
        gradients = jax.tree.map(lambda d: jnp.asarray(d + 5e-4 * generator.normal(size=d.shape), jnp.float32), drift)
        ours, state = jax.jit(optimizer.update)(gradients, state, params)
        theirs, memory = lion.update(gradients, memory, params)
    ours, theirs = (np.ravel(each["actor"]["layer_00_dense"]["kernel"]) for each in (ours, theirs))
    assert (np.sign(ours) == np.sign(theirs)).mean() > 0.85
    assert 0.3 < np.abs(ours).mean() / 5e-3 < 1.5


@pytest.mark.slow
def test_weights_say_who_the_teacher_was_and_what_it_cost(imitated: Imitated) -> None:
    facts = load_weights(imitated.done.path).metadata
    assert facts["config"]["imitation"]["teachers"] == [TEACHER]
    teacher = facts["identity"]["imitation"]["teachers"]["cartpole"]
    assert teacher["hyperparameters"]["learning_rate"] == 5e-3
    assert teacher["hyperparameters"]["anneal_learning_rate"] is True
    last = imitated.done.imitation.iloc[-1]
    assert facts["imitation"]["held_out_loss"] == pytest.approx(last["held_out_loss"])
    assert facts["imitation"]["new_loss"] is None
    cost = facts["cost"]
    assert (cost["generations"], cost["lifetimes"]) == (0, 6)
    assert cost["env_steps"] == 6 * STEPS_PER_UPDATE * UPDATES
    assert 0 < cost["seconds"] == last["seconds"]
    assert facts["fitness"] is None
    np.testing.assert_array_equal(vector(resolve(f"open@{imitated.done.path}").theta), vector(imitated.done.theta))
    assert not list(imitated.done.folder.glob("recording-*"))
    assert not (imitated.done.folder / "best.safetensors").exists()


@pytest.mark.slow
def test_what_is_drawn_and_told(imitated: Imitated) -> None:
    drawn = png(imitation_figure(pd.read_csv(imitated.done.folder / "imitation.csv"), "mine"))
    assert (imitated.done.folder / "imitation.png").read_bytes() == drawn
    started = imitated.events[0]
    assert isinstance(started, Started)
    assert (started.batches, started.generations) == (120, 0)
    assert [event.row["batch"] for event in imitated.events if isinstance(event, Fitted)] == [50, 60, 110, 120]
    updates = sum(event.updates for event in imitated.events if isinstance(event, Advanced))
    assert updates == 6 * UPDATES


class StopAt:
    """Interrupts at the n-th event of a kind."""

    def __init__(self, kind: type, number: int):
        self._kind, self.left = kind, number

    def __call__(self, event: Event) -> None:
        self.left -= isinstance(event, self._kind)
        if self.left == 0:
            raise KeyboardInterrupt


KILLED = """
import open_bench
open_bench.meta_train("open", ["cartpole"], results="results", name="mine", **{settings!r})
"""


@pytest.mark.slow
def test_killed_and_interrupted_theta_is_bitwise_the_same(imitated: Imitated, tmp_path: Path) -> None:
    """Killed among the batches on one device; then on two, with the recording damaged, interrupted once more."""
    settings = {**SETTINGS, "devices": 1}
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_NUM", "XLA_"))}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(settings=settings)], cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    folder, deadline = tmp_path / "results" / "meta" / "mine", time.monotonic() + 600
    while not list(folder.glob("imitation-000001*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (recording,) = folder.glob("recording-*")
    recording.write_bytes(recording.read_bytes()[:-9])
    with pytest.raises(KeyboardInterrupt):
        imitate(tmp_path / "results", progress=StopAt(Fitted, 1))
    resumed = imitate(tmp_path / "results")
    np.testing.assert_array_equal(vector(resumed.theta), vector(imitated.done.theta))
    same = [column for column in resumed.imitation if column != "seconds"]
    pd.testing.assert_frame_equal(resumed.imitation[same], imitated.done.imitation[same], check_exact=True)


@pytest.mark.slow
def test_evolution_goes_on_from_the_imitated_theta(imitated: Imitated, tmp_path: Path) -> None:
    shutil.copytree(imitated.done.folder, tmp_path / "meta" / "mine")
    changes = {"population": 2, "sigma": 0.01, "learning_rate": 1e-6}
    done = imitate(tmp_path, generations=2, **changes)
    moved = vector(done.theta) - vector(imitated.done.theta)
    assert 0 < np.abs(moved).max() < 1e-4
    pd.testing.assert_series_equal(done.imitation["loss"], imitated.done.imitation["loss"], check_exact=True)
    assert (done.history["fitness_mean"] > 9).all()
    cost = load_weights(done.path).metadata["cost"]
    assert (cost["generations"], cost["lifetimes"]) == (2, 6 + 4)
    assert cost["env_steps"] == 10 * STEPS_PER_UPDATE * UPDATES
    with pytest.raises(UserError, match="has 2 generations already, and 0 were asked for"):
        imitate(tmp_path, **changes)


@pytest.mark.slow
def test_evolution_goes_on_where_returns_of_several_environments_are_normalized(tmp_path: Path) -> None:
    settings = {
        **SETTINGS, "steps": STEPS_PER_UPDATE * 8, "imitation": {**IMITATION, "rounds": 1, "batches": 5},
        "population": 4, "sigma": 1.0, "fitness": "mean_return",
    }  # fmt: skip

    def both(**changes: Any) -> Any:
        changed = {**settings, "devices": 2, "name": "mine", **changes}
        return open_bench.meta_train("open-feedforward", ["cartpole", "catch"], results=tmp_path, **changed)

    with pytest.warns(UserWarning, match="generations = 0: save_every does nothing"):
        alone = both(save_every=3)
    events: list[Event] = []
    done = both(generations=1, progress=events.append)
    assert done.metadata["run"] == alone.metadata["run"]
    assert not [event for event in events if isinstance(event, Fitted)]  # what was imitated is used
    pd.testing.assert_frame_equal(done.imitation, alone.imitation, check_exact=True)
    assert load_weights(alone.path).hash == done.hash != alone.hash


@pytest.mark.slow
def test_the_figure_of_an_imitation_that_is_over_is_drawn_where_it_lacks(imitated: Imitated, tmp_path: Path) -> None:
    shutil.copytree(imitated.done.folder, tmp_path / "meta" / "mine")
    figure = tmp_path / "meta" / "mine" / "imitation.png"
    drawn = figure.read_bytes()
    figure.unlink()
    imitate(tmp_path)
    assert figure.read_bytes() == drawn


@pytest.mark.slow
def test_a_teacher_that_diverges_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the teacher lion:learning_rate=1e\+30 diverges on cartpole, in 2 of 2 lifet"):
        imitate(tmp_path, "open-feedforward", imitation={**IMITATION, "teachers": "lion:learning_rate=1e30"})


@pytest.mark.slow
def test_a_teacher_that_learns_nothing_is_named(tmp_path: Path) -> None:
    imitation = {**IMITATION, "teachers": "sgd:learning_rate=1e-12"}
    message = r"sgd:learning_rate=1e-12 ends at .* on cartpole, and the random policy has 2"
    with pytest.warns(UserWarning, match=message), pytest.raises(KeyboardInterrupt):
        imitate(tmp_path, "open-feedforward", imitation=imitation, progress=StopAt(Fitted, 1))


# --- requests ---------------------------------------------------------------------------------------------------------

ALONE = ("-e", "cartpole", "--generations", "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["open", *ALONE], "generations = 0 is imitation alone, and there is no teacher: name one (--imitate)"),
        (["open", *ALONE, "--imitation-rounds", "2"], "key 'imitation.teachers' is missing"),
        (["open", *ALONE, "--imitate", "lino"], "unknown optimizer 'lino'. Did you mean lion"),
        (["open", *ALONE, "--imitate", "lion:lr=1"], "lion has no setting"),
        (["open", *ALONE, "--imitate", "optim4rl"], "no weights named 'optim4rl' ship"),
        (["open", *ALONE, "--imitate", "open@zero"], "it has no learning rate above 0"),
        (["open", *ALONE, "--imitate", "lion:learning_rate=0"], "it has no learning rate above 0"),
        (["open", *ALONE, "--imitate", "dpo"], "it is meant for the policy loss dpo: name the student so, as open+dpo"),
        (["open", *ALONE, "--imitate", "lion", "--imitate", "adam"], "2 teachers for 1 environments: name one for all"),
        (["open", *ALONE, "--imitate", "lion", "--imitation-batches", "0"], "imitation.batches = 0"),
        (["open@zero", *ALONE, "--imitate", "lion"], "imitation begins at a random θ; leave @zero out"),
        (["open-no-training-proportion", *ALONE, "--imitate", "lion"], "set anneal_learning_rate=false"),
        (["optim4rl", *ALONE, "--imitate", "lion"], "optim4rl cannot imitate: it sees neither momenta nor time"),
        (["l2lgd2", *ALONE, "--imitate", "lion"], "l2lgd2 cannot imitate: it sees neither momenta nor time"),
        (["velo", *ALONE, "--imitate", "lion"], "velo cannot imitate: its steps depend on whole tensors"),
        (["celo2", *ALONE, "--imitate", "lion"], "celo2 cannot imitate: its steps depend on whole tensors"),
        (["lpo", *ALONE, "--imitate", "lion"], "lpo cannot imitate: its θ is a policy loss"),
        (["adam", *ALONE, "--imitate", "lion"], "adam cannot be meta-trained: it has no meta-parameters"),
        (["open", "-e", "pendulum", "--algorithm", "pqn", "--imitate", "lion"], "continuous"),
        (["open", *ALONE, "--imitate", "lion", "--imitation-lifetimes", "1000000"], "the recordings may need"),
    ],
)
def test_a_bad_request_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, openbench: OpenBench, tmp_path: Path
) -> None:
    answer = openbench("meta-train", *arguments, "--results", tmp_path / "results")
    assert answer.code == 2
    assert message in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_a_plan_tells_both_stages(openbench: OpenBench, tmp_path: Path) -> None:
    options = ("--imitate", TEACHER, "--generations", 7, "--results", tmp_path / "results", "--dry-run")
    answer = openbench("meta-train", "open", "-e", "cartpole", "--steps", 5120, *options)
    assert answer.code == 0, answer.err
    assert "imitation, 1,800 batches, then 7 generations, θ has 1,211 numbers" in answer.out
    assert "8 lifetimes of 10 updates" in answer.out
    assert not (tmp_path / "results").exists()


def test_what_is_shown_while_it_fits() -> None:
    tally = Tally(clock=lambda: 0.0)
    tally(Started("mine", batches=200, generations=3))
    row = {"batch": 50, "round": 1, "loss": 0.25, "held_out_loss": 0.5}
    row |= {"return.cartpole": 90.0, "teacher.cartpole": 99.0}
    tally(Fitted(row, 30.0))
    above, below = picture(tally, 120, 10.0)
    assert "25%  batch 50 of 200" in above
    assert "30 s left" in above
    assert below.strip() == "round 1: loss 0.25, held out 0.5; on cartpole 90 (teacher 99)"
    assert "after 50 batches" in tally.interrupted()
    tally(Started("mine", generations=3))
    assert "generation 0 of 3" in picture(tally, 120, 10.0)[0]
    assert "then 3 generations" in plan_report(Started("mine", batches=200, generations=3))


def test_a_table_of_imitation_is_changed_key_by_key() -> None:
    from open_bench.meta_training.spec import adjusted

    study = MetaConfig(environments=("cartpole",), imitation=ImitationConfig(teachers=("lion",), rounds=7))
    changed = adjusted(study, {"imitation": {"batches": 9}}).imitation
    assert changed is not None
    assert (changed.teachers, changed.rounds, changed.batches) == (("lion",), 7, 9)
    with pytest.raises(UserError, match="burn_in = 64 leaves nothing of a window of 64 steps"):
        adjusted(study, {"imitation": {"burn_in": 64}})
    with pytest.raises(UserError, match=r"unknown key 'imitation\.round'"):
        adjusted(study, {"imitation": {"round": 64}})
