"""Compare an optimizer of yours with Adam: python examples/compare_your_optimizer.py

About two minutes on two cores. Interrupt it at any moment: started again, it goes on.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import open_bench
from open_bench.optimizers import Search, searchable


@searchable(learning_rate=Search(1e-4, 1e-2), decay=Search(choices=(0.8, 0.9, 0.95)))
def signed_momentum(learning_rate: float = 1e-3, decay: float = 0.9) -> optax.GradientTransformation:
    """The sign of a momentum. Its arguments are hyperparameters, and the harness anneals the learning rate.

    ``searchable`` says where ``openbench tune`` looks.
    """
    sign = optax.stateless(lambda updates, _: jax.tree.map(jnp.sign, updates))
    return optax.chain(optax.ema(decay), sign, optax.scale(-learning_rate))


def main(**request: Any) -> Any:
    """The leaderboard, a row an optimizer; ``request`` is whatever ``open_bench.compare`` takes."""
    study = {"optimizers": ["adam", signed_momentum], "environments": ["cartpole", "breakout"], "num_seeds": 4}
    board = open_bench.compare(**{**study, "results": "results/your-optimizer", "progress": True, **request})
    print(board[["rank", "optimizer", "iqm", "iqm_low", "iqm_high"]].to_string(index=False))
    return board


if __name__ == "__main__":
    main()
