"""Many lifetimes at once: groups of a fixed vmap_size, spread over a mesh of all devices. The only place that knows how.

A *slot* is one lifetime's place. Each device holds one group of ``vmap_size`` slots, vmapped; a *round* fills all slots
of all devices, and rounds follow one another until every lifetime is done. Since the program of a group does not
depend on how many devices or rounds there are, a lifetime's numbers do not either.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from open_bench.training.lifetime import Lifetime, LifetimeState, Metrics

AXIS = "group"


@dataclasses.dataclass(frozen=True)
class Program:
    """A lifetime compiled for one round of groups. Build it with ``compile_program``.

    Attributes:
        lifetime: what runs in each slot.
        mesh: the devices, one axis.
        vmap_size: slots a device.
        theta_per_slot: whether every slot has a θ of its own (a leading axis of slots), else all share one.
        compile_seconds: tracing and compilation, or loading from the persistent cache.
    """

    lifetime: Lifetime
    mesh: Mesh
    vmap_size: int
    theta_per_slot: bool
    compile_seconds: float
    _traced_init: Callable[..., Any]
    _init: Callable[..., Any]
    _run: Callable[..., Any]

    @property
    def slots(self) -> int:
        """Lifetimes in a round."""
        return self.mesh.size * self.vmap_size

    @property
    def device_bytes(self) -> int | None:
        """Memory of a round on each device by XLA's account: arguments, results, temporaries; None if it gives none."""
        needs = self._run.memory_analysis()  # type: ignore[attr-defined]
        if needs is None:
            return None
        shared = needs.alias_size_in_bytes  # results that take the place of arguments
        return needs.argument_size_in_bytes + needs.output_size_in_bytes - shared + needs.temp_size_in_bytes

    def init(self, keys: jax.Array, theta: Any) -> LifetimeState:
        """Start a round: ``keys`` (slots,) → state with a leading axis of slots."""
        return self._init(_sharded(jax.random.key_data(keys), self.mesh), self._place(theta))

    def run(self, state: LifetimeState, theta: Any, n_updates: int) -> tuple[LifetimeState, Metrics]:
        """Advance every slot by ``n_updates`` PPO updates. ``state`` is consumed."""
        return self._run(state, self._place(theta), _replicated(np.int32(n_updates), self.mesh))

    def _place(self, theta: Any) -> Any:
        if not self.theta_per_slot:
            return _replicated(theta, self.mesh)
        return jax.tree.map(lambda leaf: _sharded(leaf, self.mesh), theta)

    def save(self, state: LifetimeState) -> list[np.ndarray]:
        """Every array of a round's state, on the host; keys as their integers."""
        return gather([_key_data(leaf) for leaf in jax.tree.leaves(state)])

    def restore(self, arrays: Sequence[np.ndarray], theta: Any) -> LifetimeState:
        """The state that ``save`` took apart; raises ValueError when the arrays do not fit this program."""
        shapes = jax.eval_shape(self._traced_init, _key_shapes(self.slots), theta)
        expected, structure = jax.tree.flatten(shapes)
        found = [(array.shape, array.dtype) for array in arrays]
        if found != [(x.shape, x.dtype) for x in (jax.eval_shape(_key_data, leaf) for leaf in expected)]:
            raise ValueError("the saved arrays have other shapes than this program's state")
        placed = [_sharded(array, self.mesh) for array in arrays]
        keyed = [
            jax.random.wrap_key_data(array, impl=str(jax.random.key_impl(jax.random.key(0))))
            if _is_key(leaf)
            else array
            for array, leaf in zip(placed, expected, strict=True)
        ]
        return jax.tree.unflatten(structure, keyed)


def compile_program(
    lifetime: Lifetime,
    theta: Any,
    devices: Sequence[jax.Device],
    vmap_size: int,
    lifetimes: int,
    theta_per_slot: bool = False,
) -> Program:
    """Compile a lifetime for ``lifetimes`` of them: no more devices are used than there are groups.

    Args:
        lifetime: the functions to compile.
        theta: example of one lifetime's traced inputs.
        devices: devices of all processes, in a fixed order.
        vmap_size: slots a device.
        lifetimes: how many will be run.
        theta_per_slot: every slot gets inputs of its own, as the members of a population do.
    """
    start = time.perf_counter()
    groups = -(-lifetimes // vmap_size)
    count = min(len(devices), groups) if jax.process_count() == 1 else len(devices)
    mesh = Mesh(np.asarray(devices[:count]), (AXIS,))
    slots = mesh.size * vmap_size
    split, whole = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
    of_theta = split if theta_per_slot else whole
    init = _over_groups(
        lambda key_data, theta: lifetime.init(jax.random.wrap_key_data(key_data), theta),
        mesh,
        vmap_size,
        (True, theta_per_slot),
    )
    run = _over_groups(lifetime.run, mesh, vmap_size, (True, theta_per_slot, False))
    jitted_init = jax.jit(init, in_shardings=(split, of_theta), out_shardings=split)
    jitted_run = jax.jit(run, in_shardings=(split, of_theta, whole), out_shardings=split, donate_argnums=0)
    keys = _key_shapes(slots)
    leading = (slots,) if theta_per_slot else ()
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*leading, *jnp.shape(x)), jnp.result_type(x)), theta)
    state = jax.eval_shape(init, keys, inputs)
    with ThreadPoolExecutor(1) as pool:  # the two compilations share nothing, so they may use two cores
        compiled_init = pool.submit(lambda: jitted_init.lower(keys, inputs).compile())
        compiled_run = jitted_run.lower(state, inputs, jax.ShapeDtypeStruct((), jnp.int32)).compile()
        finished_init = compiled_init.result()
    seconds = time.perf_counter() - start
    return Program(lifetime, mesh, vmap_size, theta_per_slot, seconds, init, finished_init, compiled_run)


def run_whole(program: Program, keys: jax.Array, theta: Any) -> LifetimeState:
    """Whole lifetimes in one go, for callers that need no progress: ``keys`` (slots,) → the state at the end."""
    state, _ = program.run(program.init(keys, theta), theta, program.lifetime.num_updates)
    return state


SEGMENT_SECONDS = 1.0  # how often the host looks at the devices


def next_segment(segment: int, elapsed: float, total: int) -> int:
    """PPO updates in the segment after one of ``segment`` that took ``elapsed`` seconds; a lifetime has ``total``.

    Segmentation never changes numbers, so it may follow the clock.
    """
    if jax.process_count() > 1:  # processes have clocks of their own, so all take the same fixed segments
        return max(1, total // 50)
    return max(1, min(2 * segment, round(segment * SEGMENT_SECONDS / max(elapsed, 1e-6))))


def gather(tree: Any) -> Any:
    """Fetch arrays of all processes to every host, as numpy."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


MAX_DEFAULT_VMAP_SIZE = 16


def default_vmap_size(devices: Sequence[jax.Device], slot_bytes: int) -> int:
    """1 on CPU; on accelerators the largest power of two up to 16 whose slots fit half of a device's memory.

    It does not depend on how many lifetimes are asked for: the vmap_size is part of a cell's identity.
    """
    if devices[0].platform == "cpu":
        return 1
    statistics = devices[0].memory_stats() or {}
    fitting = int(statistics.get("bytes_limit", 8 << 30)) // 2 // max(1, slot_bytes)
    vmap_size = MAX_DEFAULT_VMAP_SIZE
    while vmap_size > max(1, fitting):
        vmap_size //= 2
    return vmap_size


def _over_groups(
    function: Callable[..., Any], mesh: Mesh, vmap_size: int, per_slot: tuple[bool, ...]
) -> Callable[..., Any]:
    """``function`` of one slot → the same over all slots; ``per_slot`` says which arguments have an axis of slots."""

    def group(*arguments: Any) -> Any:
        if vmap_size > 1:
            return jax.vmap(function, in_axes=tuple(0 if own else None for own in per_slot))(*arguments)
        # A vmap of vmap_size 1 would compile to other operations than the plain program, and slower ones.
        single = [
            jax.tree.map(lambda x: x[0], argument) if own else argument
            for argument, own in zip(arguments, per_slot, strict=True)
        ]
        return jax.tree.map(lambda x: x[None], function(*single))

    split, whole = PartitionSpec(AXIS), PartitionSpec()
    specs = tuple(split if own else whole for own in per_slot)
    return jax.shard_map(group, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _key_shapes(slots: int) -> jax.ShapeDtypeStruct:
    shape = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    return jax.ShapeDtypeStruct((slots, *shape.shape), shape.dtype)


def _sharded(array: Any, mesh: Mesh) -> jax.Array:
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, NamedSharding(mesh, PartitionSpec(AXIS)), lambda index: host[index])


def _replicated(tree: Any, mesh: Mesh) -> Any:
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree)
