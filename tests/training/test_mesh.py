"""Lifetimes on meshes: the same bits however the work is cut and whatever it runs on."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from tiny import SEEDS, UPDATES, equal, lifetime_of

from open_bench.algorithms.ppo import PPOConfig
from open_bench.algorithms.pqn import PQNConfig
from open_bench.environments.registry import make
from open_bench.training.keys import lifetime_keys
from open_bench.training.lifetime import Lifetime
from open_bench.training.mesh import Program, compile_program

pytestmark = pytest.mark.usefixtures("optimized")
CONFIGS = {
    "ppo": PPOConfig(num_envs=4, num_steps=16, update_epochs=2, num_minibatches=2, hidden=(8,)),
    "pqn": PQNConfig(num_envs=4, num_steps=16, num_epochs=2, num_minibatches=2, hidden=(8,), greedy_envs=2),
}


@functools.cache
def lifetime(algorithm: str = "ppo") -> Lifetime:
    return lifetime_of(make("gymnax:CartPole-v1"), CONFIGS[algorithm])


@functools.cache
def program(count: int, vmap_size: int = 1, lifetimes: int = SEEDS, algorithm: str = "ppo") -> Program:
    return compile_program(lifetime(algorithm), {}, jax.devices()[:count], vmap_size, lifetimes)


def keys(seeds: list[int]) -> jax.Array:
    return lifetime_keys(0, "cartpole", seeds)


def in_batches(compiled: Program, seeds: list[int], cuts: tuple[int, ...] = (UPDATES,)) -> list[Any]:
    """The arrays of every seed's final state, trained batch by batch in segments of ``cuts`` updates."""
    batches = []
    for start in range(0, len(seeds), compiled.batch_size):
        chosen = seeds[start : start + compiled.batch_size]
        padded = chosen + [chosen[-1]] * (compiled.batch_size - len(chosen))
        state = compiled.init(keys(padded), {})
        for updates in cuts:
            state, _ = compiled.run(state, {}, updates)
        batches.append([array[: len(chosen)] for array in compiled.save(state)])
    return [np.concatenate(leaves) for leaves in zip(*batches, strict=True)]


@functools.cache
def on_one_device(algorithm: str = "ppo") -> list[Any]:
    """Every seed's final state, one after the other."""
    return in_batches(program(1, algorithm=algorithm), list(range(SEEDS)))


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "count"), [("ppo", 2), ("ppo", 4), ("pqn", 4)])
def test_any_number_of_devices_gives_the_same_bits(algorithm: str, count: int) -> None:
    compiled = program(count, algorithm=algorithm)
    assert (compiled.mesh.size, compiled.batch_size) == (count, count)
    expected = on_one_device(algorithm)
    equal(in_batches(compiled, list(range(SEEDS))), expected)
    # Three lifetimes leave a place over, and what is in the other places does not matter.
    equal(in_batches(compiled, [3, 0, 1]), [leaf[[3, 0, 1]] for leaf in expected])


@pytest.mark.slow
def test_alone_or_among_others_gives_the_same_bits() -> None:
    equal(in_batches(program(1), [2]), [leaf[2:3] for leaf in on_one_device()])
    for leaf in on_one_device():  # the seeds differ from one another, so the comparison means something
        if leaf.dtype == np.float32 and leaf.ndim > 2:
            assert not np.array_equal(leaf[0], leaf[1])


def test_no_more_devices_are_used_than_there_are_batches() -> None:
    assert program(4, lifetimes=1).mesh.size == 1


@pytest.mark.parametrize("cuts", [(1,) * UPDATES, (5, 7), (1, 2, 4, 5)], ids=str)
def test_segments_give_the_same_bits(cuts: tuple[int, ...]) -> None:
    assert sum(cuts) == UPDATES
    equal(in_batches(program(1), [0], cuts), [leaf[:1] for leaf in on_one_device()])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "pqn"])
def test_a_restored_state_goes_on_with_the_same_bits(algorithm: str) -> None:
    one = program(1, algorithm=algorithm)
    state, _ = one.run(one.init(keys([1]), {}), {}, 5)
    saved = one.save(state)
    other = compile_program(lifetime(algorithm), {}, jax.devices()[:1], 1, 1)  # as in another process
    state, _ = other.run(other.restore(saved, {}), {}, UPDATES - 5)
    equal(other.save(state), [leaf[1:2] for leaf in on_one_device(algorithm)])


def test_what_does_not_fit_is_not_restored() -> None:
    saved = program(1).save(program(1).init(keys([1]), {}))
    with pytest.raises(ValueError, match="other shapes"):
        program(2).restore(saved, {})
    with pytest.raises(ValueError, match="other shapes"):
        program(1).restore(saved[1:], {})


@pytest.mark.slow
def test_vmap_sizes_agree_on_the_first_update_and_each_repeats_itself() -> None:
    wide = program(1, vmap_size=2)
    assert wide.batch_size == 2
    one = in_batches(program(1), [0, 1], cuts=(1,))
    two = in_batches(wide, [0, 1], cuts=(1,))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-4, atol=1e-5)
    spread = program(2, vmap_size=2)
    assert spread.batch_size == 4
    equal(in_batches(spread, [0, 1, 2, 3]), in_batches(wide, [0, 1, 2, 3]))


def test_the_memory_of_a_batch_is_known() -> None:
    one, two = program(1).device_bytes, program(1, vmap_size=2).device_bytes
    assert one is not None
    assert two is not None
    assert 0 < one < two
