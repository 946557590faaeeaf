"""Key streams derived by name, never by position and never from the optimizer.

Every optimizer meets the same initial networks and environment resets, so differences between them are paired.
"""

import hashlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

PURPOSES = ("networks", "environment", "rollout", "learning", "optimizer")


def name_to_int(name: str) -> int:
    """A stable 32-bit number for a name (the first four bytes of its SHA-256)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def lifetime_keys(root_seed: int, environment: str, seeds: list[int]) -> Key[Array, " seeds"]:
    """Keys (len(seeds),), one a lifetime, from (root seed, environment, seed)."""
    root = jax.random.fold_in(jax.random.key(root_seed), name_to_int(environment))
    return jax.vmap(lambda seed: jax.random.fold_in(root, seed))(jnp.asarray(seeds, jnp.uint32))


def stream(key: Key[Array, ""], purpose: str) -> Key[Array, ""]:
    """The key stream of one purpose within a lifetime."""
    if purpose not in PURPOSES:
        raise ValueError(f"unknown purpose {purpose!r}; known: {PURPOSES}")
    return jax.random.fold_in(key, name_to_int(purpose))
