"""Hand-designed optimizers, from optax, and the policy losses that are trained with Adam."""

from collections.abc import Callable
from typing import Any

import optax

from open_bench.algorithms.policy_losses import DPO, LPO
from open_bench.optimizers.schedules import anneal
from open_bench.optimizers.spec import Hyperparameter, OptimizerSpec, Search, TrainingLength

ANNEAL = Hyperparameter(True, "anneal the learning rate linearly to 0 over the lifetime")


def _learning_rate(default: float, low: float, high: float) -> Hyperparameter:
    return Hyperparameter(default, "step size", traced=True, search=Search(low, high, "log"), minimum=0.0)


def _decay(default: float, description: str, *choices: float) -> Hyperparameter:
    return Hyperparameter(default, description, traced=True, search=Search(choices=choices), minimum=0.0, below=1.0)


def _factory(make: Callable[..., optax.GradientTransformation]) -> Callable[..., optax.GradientTransformation]:
    """Give an optax constructor the signature of a registry factory."""

    def factory(theta: Any, length: TrainingLength, *, anneal_learning_rate: bool, **hyperparameters: Any) -> Any:
        del theta
        return anneal(make(**hyperparameters), length, anneal_learning_rate)

    return factory


ADAM = {
    "learning_rate": _learning_rate(1e-3, 1e-4, 3e-2),
    "b1": _decay(0.9, "decay of the first moment", 0.9, 0.95, 0.99),
    "b2": _decay(0.999, "decay of the second moment", 0.9, 0.99, 0.999),
    "eps": Hyperparameter(1e-5, "added to the root of the second moment", traced=True, minimum=0.0),
    "anneal_learning_rate": ANNEAL,
}
WEIGHT_DECAY = Hyperparameter(
    1e-4, "decoupled weight decay, per learning rate", traced=True, search=Search(1e-5, 1e-1), minimum=0.0
)

SPECS = (
    OptimizerSpec("adam", "Adam", _factory(optax.adam), "Kingma & Ba 2015, arXiv 1412.6980", hyperparameters=ADAM),
    OptimizerSpec(
        "adamw",
        "Adam with decoupled weight decay",
        _factory(optax.adamw),
        "Loshchilov & Hutter 2019, arXiv 1711.05101",
        hyperparameters=ADAM | {"weight_decay": WEIGHT_DECAY},
    ),
    OptimizerSpec(
        "rmsprop",
        "RMSProp",
        _factory(optax.rmsprop),
        "Tieleman & Hinton 2012, lecture 6.5",
        hyperparameters={
            "learning_rate": _learning_rate(1e-3, 1e-4, 3e-2),
            "decay": _decay(0.99, "decay of the second moment", 0.9, 0.99, 0.999),
            "eps": Hyperparameter(1e-5, "added inside the root of the second moment", traced=True, minimum=0.0),
            "anneal_learning_rate": ANNEAL,
        },
    ),
    OptimizerSpec(
        "lion",
        "Lion: sign of an interpolated momentum",
        _factory(optax.lion),
        "Chen et al. 2023, arXiv 2302.06675",
        hyperparameters={
            "learning_rate": _learning_rate(1e-4, 1e-5, 3e-3),
            "b1": _decay(0.9, "interpolation of gradient and momentum", 0.9, 0.95, 0.99),
            "b2": _decay(0.99, "decay of the momentum", 0.9, 0.99, 0.999),
            "weight_decay": Hyperparameter(0.0, "decoupled weight decay, per learning rate", traced=True, minimum=0.0),
            "anneal_learning_rate": ANNEAL,
        },
    ),
    OptimizerSpec(
        "sgd",
        "Stochastic gradient descent with momentum",
        _factory(optax.sgd),
        "Polyak 1964; Sutskever et al. 2013",
        hyperparameters={
            "learning_rate": _learning_rate(1e-1, 1e-2, 3.0),
            "momentum": _decay(0.9, "decay of the momentum", 0.0, 0.9, 0.99),
            "anneal_learning_rate": ANNEAL,
        },
    ),
    OptimizerSpec(
        "dpo", f"Adam with {DPO.description}", _factory(optax.adam), DPO.citation, DPO, ADAM, tuned_as="adam"
    ),
    OptimizerSpec(
        "lpo", f"Adam with {LPO.description}", _factory(optax.adam), LPO.citation, LPO, ADAM, tuned_as="adam"
    ),
)
