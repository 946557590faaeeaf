"""Recordings: what is kept is what a plain computation finds, whoever drives, in a buffer of fixed size."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_bench.config import TrainingLength
from open_bench.meta_training.recording import Windows, recorder, sample_columns
from open_bench.optimizers.learned.per_parameter import Layout
from open_bench.optimizers.resolve import resolve

RATE, STEPS = 0.01, 12
STUDENT = resolve("open", require_weights=False).spec
IMITATION = STUDENT.learned.imitation  # type: ignore[union-attr]
THETA = jax.tree.map(lambda leaf: 3.0 * leaf, IMITATION.start(jax.random.key(3)))  # type: ignore[union-attr]
PARAMS = {
    network: {"layer_00_dense": {"kernel": jnp.full((3, 2), 0.1), "bias": jnp.zeros(2)}}
    for network in ("actor", "critic")
}
LAYOUT = Layout.of(PARAMS)


def optimizers() -> tuple[Any, Any]:
    """The student, and Lion that is annealed over six updates of two steps."""
    length = TrainingLength(STEPS // 2, 1, 2)
    lion = resolve(f"lion:learning_rate={RATE}").spec
    student = STUDENT.build({"optimizer": THETA, "policy_loss": {}}, length)
    return student, lion.build(None, length, learning_rate=RATE)


def gradients(params: Any) -> Any:
    """Of a bowl; both networks have slopes of both signs."""
    target = jax.tree.map(lambda leaf: jnp.linspace(-1.0, 1.0, leaf.size).reshape(leaf.shape), PARAMS)
    return jax.tree.map(lambda p, t: p - t, params, target)


def extras(step: int) -> dict[str, Any]:
    return {
        "training_fraction": jnp.float32(step // 2 / (STEPS // 2 - 1)),
        "epoch_fraction": jnp.float32(0.0),
        "activations": {name: {"layer_00_dense": jnp.asarray([1.0, 3.0])} for name in PARAMS},
        "key": jax.random.key(step),
    }


def trajectory(optimizer: Any) -> tuple[list[Any], Any]:
    """Parameters before every step, and the state after the last."""
    params, state, seen = PARAMS, optimizer.init(PARAMS), []
    update = jax.jit(optimizer.update)
    for step in range(STEPS):
        seen.append(params)
        updates, state = update(gradients(params), state, params, **extras(step))
        params = optax.apply_updates(params, updates)
    return seen, state


def features(seen: list[Any], step: int, column: int) -> np.ndarray:
    """OPEN's 19 inputs of one parameter by plain sums over the history, in float64."""
    leaf = int(np.searchsorted(LAYOUT.offsets, column, side="right")) - 1
    history = [np.ravel(jax.tree.leaves(gradients(params))[leaf]).astype(float) for params in seen[: step + 1]]
    decays = np.asarray([0.1, 0.5, 0.9, 0.99, 0.999, 0.9999])[:, None]
    momenta = sum((1 - decays) * decays ** (step - t) * g for t, g in enumerate(history))
    log = lambda x: np.log(np.abs(x) + 1e-13)
    now = history[-1][None]
    rows = [np.ravel(jax.tree.leaves(seen[step])[leaf])[None], np.sign(momenta), log(momenta), np.sign(now), log(now)]
    table = np.concatenate(rows)
    table = table / np.sqrt(1e-5 + (table**2).mean(axis=1, keepdims=True))
    within = column - LAYOUT.offsets[leaf]
    return np.asarray([*table[:, within], step // 2 / (STEPS // 2 - 1), 0.0, 0.0, (0.5, 1.5)[within % 2]])


@pytest.mark.parametrize("by_student", [False, True])
def test_a_recording_is_what_a_plain_computation_finds(by_student: bool) -> None:
    """Inputs, and as labels the teacher's updates in the states of whoever drives."""
    student, teacher = optimizers()
    windows = Windows.spread(STEPS, 3, 2)
    columns = sample_columns(LAYOUT, 6, 2, np.random.default_rng(0))
    made = recorder(student, teacher, IMITATION, windows, jnp.asarray(columns), RATE, by_student)  # type: ignore[arg-type]
    seen, state = trajectory(made)
    plain, _ = trajectory(student if by_student else teacher)
    for one, other in zip(seen, plain, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one, other)
    assert not np.allclose(seen[-1]["actor"]["layer_00_dense"]["kernel"], PARAMS["actor"]["layer_00_dense"]["kernel"])

    labels, lion = [], optax.scale_by_lion(0.9, 0.99)
    memory = lion.init(PARAMS)
    for step, params in enumerate(seen):
        signs, memory = lion.update(gradients(params), memory)
        labels.append(LAYOUT.flatten(signs) * -(1 - step // 2 / (STEPS // 2)))  # one step down an update
    assert windows.starts == (0, 9)
    for window, start in enumerate(windows.starts):
        for offset in range(3):
            slot, step = window * 3 + offset, start + offset
            np.testing.assert_allclose(state.buffer.targets[slot], labels[step][columns[window]], atol=1e-6)
            expected = np.stack([features(seen, step, int(column)) for column in columns[window]], axis=1)
            np.testing.assert_allclose(state.buffer.inputs[slot], expected, atol=2e-4)


def test_memory_does_not_grow_with_the_lifetime() -> None:
    student, teacher = optimizers()

    def size(steps: int) -> int:
        windows = Windows.spread(steps, 64, 4)
        columns = jnp.zeros((len(windows.starts), 7), jnp.int32)
        made = recorder(student, teacher, IMITATION, windows, columns, RATE, True)  # type: ignore[arg-type]
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(made.init, PARAMS).buffer))

    assert size(256) == size(1_000_000) == (4 * 64 + 1) * 7 * (19 + 1)


@given(st.integers(1, 5000), st.integers(1, 300), st.integers(1, 20))
def test_windows_lie_apart_from_the_first_step_to_the_last(steps: int, length: int, most: int) -> None:
    windows = Windows.spread(steps, length, most)
    slots, kept = windows.slots, len(windows.starts) * length
    assert len(windows.starts) == max(1, min(most, steps // length))
    assert windows.starts[0] == 0
    assert len(windows.starts) == 1 or windows.starts[-1] + length == steps
    assert sorted(slots[slots < kept]) == list(range(min(kept, steps)))
    assert all(slots[start] == number * length for number, start in enumerate(windows.starts))


@given(st.integers(2, 60), st.integers(0, 9))
def test_parameters_are_drawn_from_all_tensors_alike(count: int, seed: int) -> None:
    layout = Layout.of({"actor": {"a": jnp.zeros((30, 2)), "b": jnp.zeros(3), "c": jnp.zeros(40)}})
    drawn = sample_columns(layout, count, 3, np.random.default_rng(seed))
    assert drawn.shape == (3, count)
    assert layout.mask[drawn].all()
    for columns in drawn:
        assert len(set(columns)) == count
        each = np.bincount(np.searchsorted(layout.offsets, columns, side="right") - 1, minlength=3)
        assert each[1] == min(3, count // 3)  # the small tensor
        assert abs(int(each[0]) - int(each[2])) <= 1


def test_a_small_agent_has_some_parameters_twice() -> None:
    drawn = sample_columns(LAYOUT, 40, 1, np.random.default_rng(0))
    assert set(drawn[0]) == set(np.flatnonzero(LAYOUT.mask))
