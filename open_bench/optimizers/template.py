"""A template for an optimizer of your own: copy this file, change the rule, and run

    openbench check my_optimizer:SPEC
    openbench compare -o adam -o my_optimizer:SPEC -e breakout -e cartpole

The rule here is Signum, the sign of a momentum (Bernstein et al. 2018, arXiv 1802.04434, algorithm 2):
m ← β·m + (1 − β)·g;  update = −α·sign(m).

A plain function that returns a transformation is an optimizer too, named ``my_optimizer:FUNCTION``: its arguments
become hyperparameters, and ``open_bench.optimizers.searchable`` says where tuning looks for them::

    @searchable(learning_rate=Search(1e-5, 1e-2), decay=Search(choices=(0.9, 0.95, 0.99)))
    def signum(learning_rate=3e-4, decay=0.9): ...
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from open_bench.optimizers import Hyperparameter, OptimizerSpec, Search, TrainingLength, anneal


class SignumState(NamedTuple):
    """Keep the shape and dtype of every field from step to step."""

    momentum: Any  # like the parameters


def signum(
    theta: Any, length: TrainingLength, *, learning_rate: Any, decay: Any
) -> optax.GradientTransformationExtraArgs:
    """Signum, its learning rate annealed linearly to 0.

    Args:
        theta: θ["optimizer"] of a learned optimizer; this one has none.
        length: static length of the lifetime, in updates, epochs and minibatches.
        learning_rate: step size; may be a tracer, as it is declared ``traced`` below.
        decay: β.

    Returns:
        A transformation whose updates are *added* to the parameters.
    """
    del theta

    def init(params: Any) -> SignumState:
        return SignumState(jax.tree.map(jnp.zeros_like, params))

    def update(gradients: Any, state: SignumState, params: Any = None, **extras: Any) -> tuple[Any, SignumState]:
        # The harness passes training_fraction, epoch_fraction, new_rollout, activations, loss, value, key and
        # acting_network: name what you need as a keyword argument.
        del params, extras
        momentum = jax.tree.map(lambda m, g: decay * m + (1.0 - decay) * g, state.momentum, gradients)
        return jax.tree.map(lambda m: -learning_rate * jnp.sign(m), momentum), SignumState(momentum)

    return anneal(optax.GradientTransformationExtraArgs(init, update), length)


SPEC = OptimizerSpec(
    name="signum",
    description="Signum: the sign of a momentum",
    make=signum,
    citation="Bernstein et al. 2018, arXiv 1802.04434",
    hyperparameters={
        "learning_rate": Hyperparameter(3e-4, "step size", traced=True, search=Search(1e-5, 1e-2, "log")),
        "decay": Hyperparameter(0.9, "decay of the momentum", traced=True, search=Search(choices=(0.9, 0.95, 0.99))),
    },
)
