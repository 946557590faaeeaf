"""A lifetime compiled for a device batch: a fixed number of lifetimes vmapped on each device of a mesh.

The only place that knows of meshes and sharding. Since the program of one device does not depend on how many devices
there are, a lifetime's numbers do not either.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from open_bench.training.lifetime import Lifetime, LifetimeState, Progress

AXIS = "lifetimes"


@dataclasses.dataclass(frozen=True)
class Program:
    """A lifetime compiled for one device batch. Build it with ``compile_program``.

    Attributes:
        lifetime: what runs.
        mesh: the devices, one axis.
        vmap_size: lifetimes on each device.
        own_inputs: whether every lifetime has inputs of its own (a leading axis), else all share one.
        compile_seconds: tracing and compilation, or loading from the persistent cache.
    """

    lifetime: Lifetime
    mesh: Mesh
    vmap_size: int
    own_inputs: bool
    compile_seconds: float
    _traced_init: Callable[..., Any]
    _init: Callable[..., Any]
    _run: Callable[..., Any]

    @property
    def batch_size(self) -> int:
        """Lifetimes in a device batch."""
        return self.mesh.size * self.vmap_size

    @property
    def device_bytes(self) -> int | None:
        """Memory of a batch on each device by XLA's account: arguments, results, temporaries; None if it gives none."""
        needs = self._run.memory_analysis()  # type: ignore[attr-defined]
        if needs is None:
            return None
        shared = needs.alias_size_in_bytes  # results that take the place of arguments
        return needs.argument_size_in_bytes + needs.output_size_in_bytes - shared + needs.temp_size_in_bytes

    def init(self, keys: Key[Array, " lifetimes"], inputs: Any) -> LifetimeState:
        """Start a batch: ``keys`` (batch_size,) → state with a leading axis of lifetimes."""
        return self._init(_sharded(jax.random.key_data(keys), self.mesh), self._place(inputs))

    def run(self, state: LifetimeState, inputs: Any, n_updates: int) -> tuple[LifetimeState, Progress]:
        """Advance every lifetime by ``n_updates``. ``state`` is consumed."""
        return self._run(state, self._place(inputs), _replicated(np.int32(n_updates), self.mesh))

    def acting_params(self, state: LifetimeState, inputs: Any) -> Any:
        """Parameters of the trained agents, with a leading axis of lifetimes; compiled when first needed."""
        return self._acting_params(state, self._place(inputs))

    @functools.cached_property
    def _acting_params(self) -> Callable[..., Any]:
        own = (True, self.own_inputs)
        return jax.jit(_over_devices(self.lifetime.acting_params, self.mesh, self.vmap_size, own))

    def _place(self, inputs: Any) -> Any:
        if not self.own_inputs:
            return _replicated(inputs, self.mesh)
        return jax.tree.map(lambda leaf: _sharded(leaf, self.mesh), inputs)

    def save(self, state: LifetimeState) -> list[np.ndarray]:
        """Every array of a batch's state, on the host; keys as their integers."""
        return gather([_key_data(leaf) for leaf in jax.tree.leaves(state)])

    def restore(self, arrays: Sequence[np.ndarray], inputs: Any) -> LifetimeState:
        """The state that ``save`` took apart; raises ValueError when the arrays do not fit this program."""
        shapes = jax.eval_shape(self._traced_init, _key_shapes(self.batch_size), inputs)
        expected, structure = jax.tree.flatten(shapes)
        found = [(array.shape, array.dtype) for array in arrays]
        if found != [(x.shape, x.dtype) for x in (jax.eval_shape(_key_data, leaf) for leaf in expected)]:
            raise ValueError("the saved arrays have other shapes than this program's state")
        placed = [_sharded(array, self.mesh) for array in arrays]
        pairs = zip(placed, expected, strict=True)
        keyed = [jax.random.wrap_key_data(array) if _is_key(leaf) else array for array, leaf in pairs]
        return jax.tree.unflatten(structure, keyed)


def compile_program(
    lifetime: Lifetime,
    inputs: Any,
    devices: Sequence[jax.Device],
    vmap_size: int,
    lifetimes: int,
    own_inputs: bool = False,
) -> Program:
    """Compile a lifetime for ``lifetimes`` of them: no more devices are used than they fill.

    Args:
        lifetime: the functions to compile.
        inputs: example of one lifetime's traced inputs.
        devices: devices of all processes, in a fixed order.
        vmap_size: lifetimes on each device.
        lifetimes: how many will be run.
        own_inputs: every lifetime gets inputs of its own, as the members of a population do.
    """
    start = time.perf_counter()
    needed = -(-lifetimes // vmap_size)
    count = min(len(devices), needed) if jax.process_count() == 1 else len(devices)
    mesh = Mesh(np.asarray(devices[:count]), (AXIS,))
    batch_size = mesh.size * vmap_size
    split, whole = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
    of_inputs = split if own_inputs else whole
    init = _over_devices(
        lambda key_data, inputs: lifetime.init(jax.random.wrap_key_data(key_data), inputs),
        mesh,
        vmap_size,
        (True, own_inputs),
    )
    run = _over_devices(lifetime.run, mesh, vmap_size, (True, own_inputs, False))
    jitted_init = jax.jit(init, in_shardings=(split, of_inputs), out_shardings=split)
    jitted_run = jax.jit(run, in_shardings=(split, of_inputs, whole), out_shardings=split, donate_argnums=0)
    keys = _key_shapes(batch_size)
    leading = (batch_size,) if own_inputs else ()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*leading, *jnp.shape(x)), jnp.result_type(x)), inputs)
    state = jax.eval_shape(init, keys, shapes)
    with ThreadPoolExecutor(1) as pool:  # the two compilations share nothing, so they may use two cores
        compiled_init = pool.submit(lambda: jitted_init.lower(keys, shapes).compile())
        compiled_run = jitted_run.lower(state, shapes, jax.ShapeDtypeStruct((), jnp.int32)).compile()
        finished_init = compiled_init.result()
    seconds = time.perf_counter() - start
    return Program(lifetime, mesh, vmap_size, own_inputs, seconds, init, finished_init, compiled_run)


def gather(tree: Any) -> Any:
    """Fetch arrays of all processes to every host, as numpy."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def broadcast(array: np.ndarray) -> np.ndarray:
    """The first process's array, on every process."""
    return array if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(array))


def meet(place: str) -> None:
    """Wait until all processes are at a place of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def same_everywhere(number: int) -> bool:
    """Whether all processes name the same number; each of them has to ask."""
    return jax.process_count() == 1 or len({*map(int, multihost_utils.process_allgather(np.int32(number)))}) == 1


def _over_devices(
    function: Callable[..., Any], mesh: Mesh, vmap_size: int, own: tuple[bool, ...]
) -> Callable[..., Any]:
    """``function`` of one lifetime → the same over a batch; ``own``: which arguments each lifetime has its own of."""

    def on_one_device(*arguments: Any) -> Any:
        if vmap_size > 1:
            return jax.vmap(function, in_axes=tuple(0 if each else None for each in own))(*arguments)
        # A vmap of size 1 would compile to other operations than the plain program, and slower ones.
        single = [
            jax.tree.map(lambda x: x[0], argument) if each else argument
            for argument, each in zip(arguments, own, strict=True)
        ]
        return jax.tree.map(lambda x: x[None], function(*single))

    split, whole = PartitionSpec(AXIS), PartitionSpec()
    specs = tuple(split if each else whole for each in own)
    return jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _key_shapes(lifetimes: int) -> jax.ShapeDtypeStruct:
    shape = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    return jax.ShapeDtypeStruct((lifetimes, *shape.shape), shape.dtype)


def _sharded(array: Any, mesh: Mesh) -> jax.Array:
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, NamedSharding(mesh, PartitionSpec(AXIS)), lambda index: host[index])


def _replicated(tree: Any, mesh: Mesh) -> Any:
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree)
