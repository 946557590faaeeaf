"""Reading θ from flax's msgpack, in which VeLO's and Celo's authors publish weights.

Decoding builds numbers, text, dicts, lists and plain numeric arrays and nothing else: no code runs, and an object dtype
is an error.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def read(path: Path) -> dict[str, Any]:
    """The dict that a file holds; ValueError where it holds anything else or cannot be read."""
    from flax import serialization

    try:
        content = serialization.msgpack_restore(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever a damaged file makes the decoder raise means the same to the reader
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not a flax msgpack file, or is damaged ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no dict but {type(content).__name__}")
    return content


def arrays(tree: dict[Any, Any], path: Path) -> dict[str, Any]:
    """The tree with float32 arrays; a key with "/" becomes levels. ValueError names a leaf that is no array of floats.

    ``path`` is the file that the tree is from, for messages.
    """
    flat: dict[str, np.ndarray] = {}
    for keys, leaf in flatten_dict(tree).items():
        name = "/".join(map(str, keys))
        if not isinstance(leaf, np.ndarray) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{path}: {name} is no array of floats but {getattr(leaf, 'dtype', type(leaf).__name__)}")
        flat[name] = np.array(leaf, np.float32)
    return unflatten_dict(flat, sep="/")
