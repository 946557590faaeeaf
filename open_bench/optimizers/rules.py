"""Hand-designed rules that take more than a constructor of optax: a choice of ours, or a schedule.

Each is the ``make`` of a spec in ``hand_designed``: ``(θ, length, *, hyperparameters) → transformation``. Numbers may
be tracers, so none is branched on.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from open_bench.optimizers.schedules import anneal, remaining
from open_bench.optimizers.spec import TrainingLength


def adam_equal_betas(
    theta: Any, length: TrainingLength, *, learning_rate: Any, beta: Any, eps: Any, anneal_learning_rate: bool
) -> optax.GradientTransformationExtraArgs:
    """Adam whose moments share one decay: a step then never exceeds the learning rate by much (Ellis et al. 2024)."""
    return anneal(optax.adam(learning_rate, beta, beta, eps), length, anneal_learning_rate)


def adam_rel(
    theta: Any, length: TrainingLength, *, learning_rate: Any, b1: Any, b2: Any, eps: Any, anneal_learning_rate: bool
) -> optax.GradientTransformationExtraArgs:
    """Adam whose bias-correction count is t' = 1 at the first step after each rollout; both moments are kept.

    The update is −α·(m/(1 − β1^t'))/(√(v/(1 − β2^t')) + ε) (Ellis et al. 2024, arXiv 2412.17113, algorithm 1).
    """
    moments = optax.scale_by_adam(b1, b2, eps)

    def update(
        gradients: Any, state: Any, params: Any = None, *, new_rollout: jax.Array | bool, **extras: Any
    ) -> tuple[Any, Any]:
        del params, extras
        return moments.update(gradients, state._replace(count=jnp.where(new_rollout, 0, state.count)))

    relative = optax.GradientTransformationExtraArgs(moments.init, update)
    return anneal(optax.chain(relative, optax.scale_by_learning_rate(learning_rate)), length, anneal_learning_rate)


def is_hidden_kernel(params: Any) -> Any:
    """Whether each parameter is the kernel of a hidden layer: a matrix, and neither its network's first nor last.

    Sorted order of a network's layers is forward order, so names play no part. A network with one hidden layer has an
    input and an output kernel, and none between.
    """

    def of_network(network: Any) -> Any:
        leaves, structure = jax.tree.flatten(network)
        matrices = [number for number, leaf in enumerate(leaves) if jnp.ndim(leaf) == 2]
        return jax.tree.unflatten(structure, [number in matrices[1:-1] for number in range(len(leaves))])

    return {name: of_network(network) for name, network in params.items()}


def muon(
    theta: Any, length: TrainingLength, *, learning_rate: Any, beta: Any, muon_rms: Any, b1: Any, b2: Any, eps: Any,
    anneal_learning_rate: bool,
) -> optax.GradientTransformationExtraArgs:  # fmt: skip
    """Muon on the kernels of hidden layers, Adam on everything else.

    Input and output layers, biases, norms and ``log_std`` are Adam's, as Muon's author advises (Jordan et al. 2024).
    Muon's updates are scaled to a root mean square of ``muon_rms`` per learning rate whatever the kernel's shape;
    0.2 is about Adam's, so that one learning rate serves both (Liu et al. 2025, arXiv 2502.16982, section 2.2).
    """
    parts = {
        "muon": optax.contrib.muon(learning_rate, beta=beta, consistent_rms=muon_rms),
        "adam": optax.adam(learning_rate, b1, b2, eps),
    }

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda hidden: "muon" if hidden else "adam", is_hidden_kernel(params))

    return anneal(optax.partition(parts, labels), length, anneal_learning_rate)


def ademamix(
    theta: Any, length: TrainingLength, *, learning_rate: Any, b1: Any, b2: Any, b3: Any, alpha: Any, eps: Any,
    anneal_learning_rate: bool,
) -> optax.GradientTransformationExtraArgs:  # fmt: skip
    """AdEMAMix, its slow momentum warmed up over the lifetime (Pagliardini et al. 2024, arXiv 2409.03137, section 3).

    With s the share of the lifetime's optimizer steps that are done: α rises as s·α, and the decay of the slow
    momentum from β1 to β3 such that its half-life rises linearly:
    exp(ln β1·ln β3/((1 − s)·ln β3 + s·ln β1)).
    """

    def share(step: Any) -> jax.Array:
        return jnp.minimum(step / length.optimizer_steps, 1.0)

    def slow_decay(step: Any) -> jax.Array:
        s, fast, slow = share(step), jnp.log(b1), jnp.log(b3)
        return jnp.exp(fast * slow / ((1 - s) * slow + s * fast))

    mixed = optax.contrib.ademamix(learning_rate, b1, b2, slow_decay, lambda step: alpha * share(step), eps)
    return anneal(mixed, length, anneal_learning_rate)


def schedule_free_adamw(
    theta: Any, length: TrainingLength, *, learning_rate: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any,
    warmup: float, anneal_learning_rate: bool,
) -> optax.GradientTransformationExtraArgs:  # fmt: skip
    """Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682): the spec's ``eval_params`` gives the average x.

    The learning rate rises from 0 over the first ``warmup`` of the optimizer steps, as the authors ask for. Where it
    is annealed, the steps of the iterate z are, and y and x follow.
    """
    steps = round(warmup * length.optimizer_steps)
    rate = optax.warmup_constant_schedule(0.0, learning_rate, steps) if steps else learning_rate
    iterate = optax.chain(
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    return optax.contrib.schedule_free(anneal(iterate, length, anneal_learning_rate), rate, b1)


def prodigy(
    theta: Any, length: TrainingLength, *, d_coef: Any, b1: Any, b2: Any, eps: Any, anneal_learning_rate: bool
) -> optax.GradientTransformationExtraArgs:
    """Prodigy, which estimates the learning rate itself (Mishchenko & Defazio 2023, arXiv 2306.06101).

    ``d_coef`` multiplies the estimate. Its authors anneal a learning rate of 1 that also enters the estimate, so the
    schedule goes inside.
    """

    def at(rate: Any) -> optax.GradientTransformationExtraArgs:
        return optax.contrib.prodigy(rate, (b1, b2), eps=eps, estim_lr_coef=d_coef)

    def update(
        gradients: Any, state: Any, params: Any = None, *, training_fraction: Any = 0.0, **extras: Any
    ) -> tuple[Any, Any]:
        rate = remaining(training_fraction, length) if anneal_learning_rate else 1.0
        return at(rate).update(gradients, state, params)

    return optax.GradientTransformationExtraArgs(at(1.0).init, update)
