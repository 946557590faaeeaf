"""Per-parameter learned rules on rows: all parameters of an agent as columns, their features as rows.

OPEN, Optim4RL and L2LGD2 apply one small network to every parameter by itself. Here the whole agent is one flat
vector and a network maps an array of rows (features, P) to rows (units, P), so the work is a few large matrix products
and elementwise loops instead of dozens of small ones. Each tensor is padded to a multiple of ``LANES`` columns: sums
over a tensor are then sums over whole blocks, and spreading a number per tensor over its columns is a broadcast.
"""

import dataclasses
import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from open_bench.optimizers.spec import Reader
from open_bench.weights.format import read_npy

Array = jax.Array
Shapes = dict[str, Any]  # nested dict whose leaves are shape tuples

LANES = 64  # columns per block; every tensor begins at a multiple of it
_BLOCK = re.compile(r"^(.*_\d+)_[a-z]+$")  # name of a layer → its block
_PARTIAL = 8  # lanes that a block is first summed to: wide enough for vector instructions, cheap to finish


def matmul(left: Any, right: Any) -> Array:
    """A product in full float32: accelerators would otherwise round the inputs to 10 bits (TF32) or fewer."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


# --- The flat vector -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each tensor of ``params`` lies in the flat vector; static, made from shapes alone.

    Attributes:
        treedef: structure of the parameters.
        shapes: shape of each leaf, in flattening order.
        dtypes: dtype of each leaf.
        layers: (network, layer) of each leaf, e.g. ``("actor", "Dense_0")``; ``""`` where the tree is shallower.
        bare: whether each leaf is a layer by itself (``actor/log_std``).
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    layers: tuple[tuple[str, str], ...]
    bare: tuple[bool, ...]

    @classmethod
    def of(cls, params: Any) -> "Layout":
        """The layout of ``{network: {layer: {"kernel", "bias"} or array}}``."""
        leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        names = [tuple(jax.tree_util.keystr((key,), simple=True) for key in path) for path, _ in leaves]
        return cls(
            treedef=treedef,
            shapes=tuple(jnp.shape(leaf) for _, leaf in leaves),
            dtypes=tuple(jnp.result_type(leaf) for _, leaf in leaves),
            layers=tuple(((*name, "", "")[0], (*name, "", "")[1]) for name in names),
            bare=tuple(len(name) < 3 for name in names),
        )

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of parameters of each leaf."""
        return tuple(int(np.prod(shape)) for shape in self.shapes)

    @functools.cached_property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks of ``LANES`` columns of each leaf."""
        return tuple(-(-size // LANES) for size in self.sizes)

    @property
    def columns(self) -> int:
        """Length of the flat vector, padding included."""
        return sum(self.blocks) * LANES

    @property
    def count(self) -> int:
        """Number of parameters."""
        return sum(self.sizes)

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """First column of each leaf, and the end of the last."""
        return tuple(int(offset) * LANES for offset in np.cumsum((0, *self.blocks)))

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """(columns,) bool: which columns are parameters, not padding."""
        lengths = [(size, blocks * LANES - size) for size, blocks in zip(self.sizes, self.blocks, strict=True)]
        return np.repeat(np.tile([True, False], len(lengths)), np.asarray(lengths, int).reshape(-1))

    @functools.cached_property
    def membership(self) -> np.ndarray:
        """(blocks, tensors) float32: 1 where the block belongs to the tensor."""
        tensors = np.eye(len(self.blocks), dtype=np.float32)
        return np.repeat(tensors, self.blocks, axis=0)

    @functools.cached_property
    def layer_blocks(self) -> tuple[tuple[str, str], ...]:
        """(network, block) of each leaf. ``layer_00_dense`` and ``layer_00_norm`` are of one block, ``layer_00``.

        A name that does not go on after its number (``dense_00``), or has none (``log_std``), is a block by itself.
        """
        return tuple((network, _BLOCK.sub(r"\1", layer)) for network, layer in self.layers)

    def span(self, network: str) -> tuple[int, int]:
        """Columns [start, stop) of a network; an empty range when the tree has none of that name."""
        members = [i for i, (name, _) in enumerate(self.layers) if name == network]
        return (self.offsets[members[0]], self.offsets[members[-1] + 1]) if members else (0, 0)

    def flatten(self, tree: Any) -> Float[Array, " columns"]:
        """The leaves of ``tree`` as one float32 vector (columns,), padded with zeros."""
        return self._join(self.treedef.flatten_up_to(tree))

    def spread(self, values: Sequence[Any]) -> Float[Array, " columns"]:
        """(columns,): one value per leaf, each broadcast to its leaf's shape from the last axis on."""
        return self._join([jnp.broadcast_to(value, shape) for value, shape in zip(values, self.shapes, strict=True)])

    def unflatten(self, vector: Float[Array, " columns"]) -> Any:
        """The tree of a flat vector, each leaf in its parameter's dtype."""
        starts = zip(self.offsets, self.sizes, self.shapes, self.dtypes, strict=False)
        leaves = [vector[start : start + size].reshape(shape).astype(dtype) for start, size, shape, dtype in starts]
        return self.treedef.unflatten(leaves)

    def mean_square(self, rows: Float[Array, "rows columns"]) -> Float[Array, "rows tensors"]:
        """(rows, tensors): mean of the squares over each tensor of ``rows`` (rows, columns), whose padding is 0."""
        count = rows.shape[0]
        squares = jnp.square(rows).reshape(count, sum(self.blocks), LANES // _PARTIAL, _PARTIAL)
        means = self.membership / np.maximum(np.asarray(self.sizes, np.float32), 1.0)
        partial = squares.sum(axis=2).reshape(count, sum(self.blocks) * _PARTIAL)
        return matmul(partial, np.repeat(means, _PARTIAL, axis=0))

    def scale(
        self, rows: Float[Array, "rows columns"], factors: Float[Array, "rows tensors"]
    ) -> Float[Array, "rows columns"]:
        """``rows`` (rows, columns) times ``factors`` (rows, tensors), one factor per tensor."""
        by_block = matmul(factors, self.membership.T)
        blocked = rows.reshape(rows.shape[0], sum(self.blocks), LANES)
        return (blocked * by_block[:, :, None]).reshape(rows.shape)

    def _join(self, leaves: Sequence[Any]) -> Float[Array, " columns"]:
        pieces = [jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves]
        padding = [blocks * LANES - size for blocks, size in zip(self.blocks, self.sizes, strict=True)]
        padded = [jnp.pad(piece, (0, pad)) if pad else piece for piece, pad in zip(pieces, padding, strict=True)]
        return jnp.concatenate(padded) if padded else jnp.zeros((0,), jnp.float32)


# --- Networks on rows ----------------------------------------------------------------------------------------------


class Affine(NamedTuple):
    """Weights of x ↦ kernel·x + bias, as columns meet them."""

    kernel: Float[Array, "units inputs"]
    bias: Float[Array, "units 1"]


class Gru(NamedTuple):
    """A GRU's weights, its gates r, z, n below one another. r and z are halved because σ(x) = ½ + ½·tanh(x/2)."""

    input: Affine  # (3G, inputs), (3G, 1)
    hidden: Float[Array, "3*G G"]
    candidate_bias: Float[Array, "G 1"]  # the bias inside r⊙(…)


def affine(layer: Mapping[str, Any]) -> Affine:
    """A dense layer of θ, ``{"kernel": (in, out), "bias": (out,)}``, for rows."""
    return Affine(_float(layer["kernel"]).T, _float(layer["bias"])[:, None])


def apply(
    layer: Affine, rows: Float[Array, "features columns"], context: Sequence[Any] = ()
) -> tuple[Float[Array, "units columns"], Float[Array, "units columns_or_1"]]:
    """(product, offset), whose sum is kernel·[rows; context] + bias.

    ``context`` are further inputs that are one number for all columns, () or (columns,): their share is added instead
    of going through the product. The two terms stay apart because the next loop adds them for nothing.
    """
    features = layer.kernel.shape[1] - len(context)
    offset = layer.bias
    for column, value in enumerate(context, start=features):
        offset = offset + layer.kernel[:, column, None] * value
    return matmul(layer.kernel[:, :features], rows), offset


def dense(layer: Affine, rows: Float[Array, "inputs columns"]) -> Float[Array, "units columns"]:
    """kernel·rows + bias, (units, columns)."""
    product, offset = apply(layer, rows)
    return product + offset


def gru(cell: Mapping[str, Mapping[str, Any]]) -> Gru:
    """The GRU of θ, ``{hn: {bias, kernel}, hr, hz: {kernel}, in, ir, iz: {bias, kernel}}``, for rows."""
    size = cell["hn"]["bias"].shape[0]
    halves = np.repeat(np.asarray([0.5, 0.5, 1.0], np.float32), size)[:, None]
    gates = [affine(cell[name]) for name in ("ir", "iz", "in")]
    kernel = jnp.concatenate([gate.kernel for gate in gates]) * halves
    bias = jnp.concatenate([gate.bias for gate in gates]) * halves
    hidden = jnp.concatenate([_float(cell[name]["kernel"]).T for name in ("hr", "hz", "hn")]) * halves
    return Gru(Affine(kernel, bias), hidden, _float(cell["hn"]["bias"])[:, None])


def gru_step(
    cell: Gru, rows: Float[Array, "inputs columns"], carry: Float[Array, "G columns"], context: Sequence[Any] = ()
) -> Float[Array, "G columns"]:
    """One step of a GRU: the new carry (G, columns).

    r = σ(W_ir x + b_ir + W_hr h), z = σ(W_iz x + b_iz + W_hz h), n = tanh(W_in x + b_in + r⊙(W_hn h + b_hn)),
    h' = (1−z)⊙n + z⊙h.
    """
    size = carry.shape[0]
    product, offset = apply(cell.input, rows, context)
    recurrent = matmul(cell.hidden, carry)
    reset, update, new = slice(size), slice(size, 2 * size), slice(2 * size, None)
    r = 0.5 + 0.5 * jnp.tanh(product[reset] + recurrent[reset] + offset[reset])
    z = 0.5 + 0.5 * jnp.tanh(product[update] + recurrent[update] + offset[update])
    n = jnp.tanh(product[new] + offset[new] + r * (recurrent[new] + cell.candidate_bias))
    return n + z * (carry - n)


# --- θ on these networks -------------------------------------------------------------------------------------------


def dense_shapes(inputs: int, units: int) -> Shapes:
    """Shapes of a dense layer."""
    return {"kernel": (inputs, units), "bias": (units,)}


def gru_shapes(inputs: int, size: int) -> Shapes:
    """Shapes of a GRU; only the candidate's recurrent part has a bias."""
    gates = {name: dense_shapes(inputs, size) for name in ("ir", "iz", "in")}
    recurrent = {name: {"kernel": (size, size)} for name in ("hr", "hz")}
    return {**gates, **recurrent, "hn": dense_shapes(size, size)}


def size_of(shapes: Shapes) -> int:
    """Number of meta-parameters."""
    return sum(int(np.prod(shape)) for shape in flatten_dict(shapes).values())


def zeros(shapes: Shapes) -> Any:
    """θ = 0."""
    return jax.tree.map(lambda shape: jnp.zeros(shape, jnp.float32), shapes, is_leaf=_is_shape)


def from_flat(name: str, shapes: Shapes, vector: Any) -> Any:
    """θ from a flat vector that holds its arrays in sorted-key order.

    Raises:
        ValueError: when ``vector`` is not one-dimensional of the right length.
    """
    vector, expected = np.asarray(vector, np.float32), size_of(shapes)
    if vector.shape != (expected,):
        raise ValueError(
            f"{name} has {expected:,} meta-parameters, expected a vector of shape ({expected},); found {vector.shape}"
        )
    _, unravel = ravel_pytree(zeros(shapes))
    return jax.tree.map(np.asarray, unravel(vector))


def to_flat(theta: Any) -> np.ndarray:
    """The inverse of ``from_flat``: all arrays of θ in sorted-key order as one float32 vector."""
    return np.asarray(ravel_pytree(theta)[0], np.float32)


def flat_reader(from_vector: Callable[[np.ndarray], Any]) -> Reader:
    """The reader of flat ``.npy`` vectors, the form in which OPEN's authors publish weights."""

    def read(path: Path) -> tuple[Any, dict[str, Any]]:
        return from_vector(read_npy(path)), {}

    def write(theta: Any) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, to_flat(theta), allow_pickle=False)
        return buffer.getvalue()

    return Reader(".npy", "flat vector", read, write)


def check(name: str, shapes: Shapes, theta: Any) -> None:
    """Raise ValueError, naming the array, unless ``theta`` has exactly these arrays."""
    found, expected = (flatten_dict(tree, sep="/") for tree in (theta, shapes))
    for path in sorted(found.keys() | expected.keys()):
        if path not in found:
            raise ValueError(f"{name}: θ lacks the array {path} of shape {expected[path]}")
        if path not in expected:
            raise ValueError(f"{name}: θ holds an unknown array {path}")
        if (shape := tuple(jnp.shape(found[path]))) != expected[path]:
            raise ValueError(f"{name}: θ's array {path} has shape {shape}, expected {expected[path]}")


def shape_at(theta: Any, *path: str) -> tuple[int, ...]:
    """Shape of the array at ``path``, () where there is none; reads a θ that has not been checked."""
    for key in path:
        theta = theta.get(key, {}) if isinstance(theta, Mapping) else {}
    return () if isinstance(theta, Mapping) else tuple(jnp.shape(theta))


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple)


def _float(array: Any) -> Array:
    return jnp.asarray(array, jnp.float32)
