"""Hand-designed optimizers, from optax, and the policy losses that are trained with Adam."""

from collections.abc import Callable
from typing import Any

import optax

from open_bench.algorithms.policy_losses import DPO, LPO, PPO, PolicyLoss
from open_bench.optimizers.schedules import anneal
from open_bench.optimizers.spec import Hyperparameter, OptimizerSpec, Search, TrainingLength

ANNEAL = Hyperparameter(True, "anneal the learning rate linearly to 0 over the lifetime")


def _learning_rate(default: float, low: float, high: float) -> Hyperparameter:
    return Hyperparameter(default, "step size", traced=True, search=Search(low, high, "log"), minimum=0.0)


def _decay(default: float, description: str, *choices: float) -> Hyperparameter:
    return Hyperparameter(default, description, traced=True, search=Search(choices=choices), minimum=0.0, below=1.0)


def _spec(
    name: str, description: str, make: Callable[..., optax.GradientTransformation], citation: str,
    hyperparameters: dict[str, Hyperparameter], policy_loss: PolicyLoss = PPO, tuned_as: str = "",
) -> OptimizerSpec:  # fmt: skip
    """A spec of an optax constructor, annealed."""

    def factory(theta: Any, length: TrainingLength, *, anneal_learning_rate: bool, **values: Any) -> Any:
        del theta
        return anneal(make(**values), length, anneal_learning_rate)

    settings = {**hyperparameters, "anneal_learning_rate": ANNEAL}
    return OptimizerSpec(name, description, factory, citation, policy_loss, settings, tuned_as=tuned_as)


ADAM = {
    "learning_rate": _learning_rate(1e-3, 1e-4, 3e-2),
    "b1": _decay(0.9, "decay of the first moment", 0.9, 0.95, 0.99),
    "b2": _decay(0.999, "decay of the second moment", 0.9, 0.99, 0.999),
    "eps": Hyperparameter(1e-5, "added to the root of the second moment", traced=True, minimum=0.0),
}
ADAMW = ADAM | {
    "weight_decay": Hyperparameter(
        1e-4, "decoupled weight decay, per learning rate", traced=True, search=Search(1e-5, 1e-1), minimum=0.0
    )
}
RMSPROP = {
    "learning_rate": _learning_rate(1e-3, 1e-4, 3e-2),
    "decay": _decay(0.99, "decay of the second moment", 0.9, 0.99, 0.999),
    "eps": Hyperparameter(1e-5, "added inside the root of the second moment", traced=True, minimum=0.0),
}
LION = {
    "learning_rate": _learning_rate(1e-4, 1e-5, 3e-3),
    "b1": _decay(0.9, "interpolation of gradient and momentum", 0.9, 0.95, 0.99),
    "b2": _decay(0.99, "decay of the momentum", 0.9, 0.99, 0.999),
    "weight_decay": Hyperparameter(0.0, "decoupled weight decay, per learning rate", traced=True, minimum=0.0),
}
SGD = {
    "learning_rate": _learning_rate(1e-1, 1e-2, 3.0),
    "momentum": _decay(0.9, "decay of the momentum", 0.0, 0.9, 0.99),
}

SPECS = (
    _spec("adam", "Adam", optax.adam, "Kingma & Ba 2015, arXiv 1412.6980", ADAM),
    _spec(
        "adamw", "Adam with decoupled weight decay", optax.adamw, "Loshchilov & Hutter 2019, arXiv 1711.05101", ADAMW
    ),
    _spec("rmsprop", "RMSProp", optax.rmsprop, "Tieleman & Hinton 2012, lecture 6.5", RMSPROP),
    _spec("lion", "Lion: sign of an interpolated momentum", optax.lion, "Chen et al. 2023, arXiv 2302.06675", LION),
    _spec("sgd", "Stochastic gradient descent with momentum", optax.sgd, "Polyak 1964; Sutskever et al. 2013", SGD),
    *(
        _spec(loss.name, f"Adam with {loss.description}", optax.adam, loss.citation, ADAM, loss, tuned_as="adam")
        for loss in (DPO, LPO)
    ),
)
