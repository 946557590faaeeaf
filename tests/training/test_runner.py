"""The one loop: batches, spare places, segments, checkpoints, inputs of each lifetime's own, agents."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import Probe
from tiny import SEEDS, TINY, UPDATES, algorithm_of, equal, finished, learning, lifetime_of

from open_bench.algorithms.base import Learning
from open_bench.training import record
from open_bench.training.keys import lifetime_keys
from open_bench.training.lifetime import make_lifetime
from open_bench.training.mesh import Program, compile_program
from open_bench.training.runner import Finished, Segment, next_segment, run_lifetimes

pytestmark = pytest.mark.usefixtures("optimized")
PROBE = Probe(length=3, reward=lambda step, sign, action: sign + action)
KEYS = lifetime_keys(0, "probe", list(range(SEEDS)))


def doubled(state: Any, params: Any) -> Any:
    del state
    return jax.tree.map(lambda p: 2.0 * p, params)


@functools.cache
def program(count: int = 1) -> Program:
    return compile_program(lifetime_of(PROBE, eval_params=doubled), {}, jax.devices()[:count], 1, SEEDS)


def arrays(batches: list[Finished]) -> list[Any]:
    """Everything that is measured, lifetime by lifetime."""
    measured = [(b.metrics, b.curves, b.diverged) for b in batches]
    return jax.tree.leaves(jax.tree.map(lambda *parts: np.concatenate(parts), *measured))


@pytest.mark.slow
def test_a_batch_is_init_and_run() -> None:
    """Metrics, curves and acting parameters are those of the states that the program gives by hand."""
    batches = finished(program(), KEYS, keep_agents=True)
    assert [list(batch.indices) for batch in batches] == [[0], [1], [2], [3]]
    for index, batch in enumerate(batches):
        state, _ = program().run(program().init(KEYS[index : index + 1], {}), {}, UPDATES)
        metrics, curves = record.finish(jax.device_get(state.record))
        equal([batch.curves, *batch.metrics.values()], [curves, *metrics.values()])
        expected = jax.device_get(doubled((), state.agent.params))
        jax.tree.map(np.testing.assert_array_equal, batch.agents, expected)
        assert not batch.diverged.any()
        assert batch.seconds > 0


@pytest.mark.slow
def test_spare_places_are_left_out() -> None:
    three = finished(program(2), KEYS[:3])
    assert [list(batch.indices) for batch in three] == [[0, 1], [2]]
    assert len(three[1].curves) == len(three[1].diverged) == 1
    equal(arrays(three), [leaf[:3] for leaf in arrays(finished(program(), KEYS))])
    assert finished(program(), KEYS)[0].agents == {}


def test_segments_are_told_and_cover_every_update() -> None:
    told: list[Segment] = []
    finished(program(2), KEYS[:3], on_segment=told.append)
    assert sum(segment.updates for segment in told) == 2 * UPDATES
    assert {segment.lifetimes for segment in told} == {1, 2}
    assert all(segment.diverged == 0 and segment.seconds > 0 for segment in told)
    assert np.isfinite(told[-1].episode_return)


@pytest.mark.parametrize(
    ("segment", "elapsed", "total", "expected"),
    [(1, 1e-3, 100, 2), (4, 1e-3, 100, 8), (8, 2.0, 100, 4), (8, 1.0, 100, 8), (1, 100.0, 100, 1), (4, 0.0, 100, 8)],
)
def test_segments_last_about_a_second(segment: int, elapsed: float, total: int, expected: int) -> None:
    assert next_segment(segment, elapsed, total) == expected


class Kept:
    """A checkpoint in memory, due after every segment."""

    def __init__(self, saved: Any = None):
        self.saved, self.updates = saved, []

    def due(self) -> bool:
        return True

    def save(self, arrays: Any, facts: dict[str, Any]) -> None:
        self.saved = (list(arrays), dict(facts))
        self.updates.append(facts["update"])

    def load(self) -> Any:
        return self.saved


class Enough(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_batch_goes_on_from_its_checkpoint(after: int) -> None:
    """Bit for bit, and without the updates that were made already."""
    expected, kept, told = arrays(finished(program(2), KEYS)), [Kept(), Kept()], []

    def stop(segment: Segment) -> None:
        told.append(segment.updates)
        if len(told) == after:
            raise Enough

    checkpoint = lambda indices: kept[indices.start // 2]
    with pytest.raises(Enough):
        list(run_lifetimes(program(2), KEYS, {}, stop, checkpoint))
    saved = kept[0].updates[-1] if kept[0].updates else 0
    again: list[Segment] = []
    batches = finished(program(2), KEYS, on_segment=again.append, checkpoint=checkpoint)
    equal(arrays(batches), expected)
    assert saved == sum(told[: after - 1])
    assert sum(segment.updates for segment in again) == 2 * UPDATES  # what was made before is told at once
    assert sum(segment.updates for segment in again if segment.seconds > 0) == 2 * UPDATES - saved
    assert UPDATES not in kept[0].updates  # an ended batch needs no checkpoint


def test_a_checkpoint_of_another_program_is_not_used() -> None:
    foreign = Kept(([np.zeros(3)], {"update": 5, "seconds": 1.0}))
    told: list[Segment] = []
    batches = finished(program(), KEYS[:1], on_segment=told.append, checkpoint=lambda indices: foreign)
    equal(arrays(batches), [leaf[:1] for leaf in arrays(finished(program(), KEYS))])
    assert sum(segment.updates for segment in told) == UPDATES


@pytest.mark.slow
def test_every_lifetime_may_have_inputs_of_its_own() -> None:
    """A population: each member's learning rate gives what it gives when all share it."""

    def scaled(inputs: Any) -> Learning:
        sgd = optax.stateless(lambda updates, params: jax.tree.map(lambda u: -inputs["rate"] * u, updates))
        return learning(sgd)

    lifetime = make_lifetime(algorithm_of(PROBE, TINY), UPDATES, scaled)
    rates, example = np.float32([0.0, 0.1, 1.0]), {"rate": np.float32(0)}
    own = compile_program(lifetime, example, jax.devices()[:2], 1, 3, own_inputs=True)
    shared = compile_program(lifetime, example, jax.devices()[:1], 1, 1)
    keys = jnp.repeat(KEYS[:1], 3)
    together = list(run_lifetimes(own, keys, {"rate": rates}, keep_agents=True))
    params = [jax.tree.map(lambda x, i=i: x[i], batch.agents) for batch in together for i in range(len(batch.indices))]
    for rate, found in zip(rates, params, strict=True):
        (alone,) = run_lifetimes(shared, keys[:1], {"rate": rate}, keep_agents=True)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), found, alone.agents)
    kernels = [each["actor"]["layer_00_dense"]["kernel"] for each in params]
    assert not np.array_equal(kernels[0], kernels[2])
