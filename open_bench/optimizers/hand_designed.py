"""Hand-designed optimizers with their hyperparameters and search spaces, and the policy losses trained with Adam.

One tuning is a fair race only if the spaces are alike. A learning rate spans two and a half decades around what the
literature uses; decays have a few choices; two or three hyperparameters are searched, and the weight decay beside them
where a method is named after it. Adam's relatives share eps = 1e-5, outside the root: it is small against the clipped
gradients of PPO, about 0.003 a parameter, and is not searched.
"""

from collections.abc import Callable
from typing import Any

import optax

from open_bench.algorithms.policy_losses import DPO, LPO
from open_bench.optimizers import rules
from open_bench.optimizers.schedules import anneal
from open_bench.optimizers.spec import Hyperparameter, OptimizerSpec, Search, TrainingLength

ANNEALED = {"anneal_learning_rate": Hyperparameter(True, "anneal the learning rate linearly to 0 over the lifetime")}


def _annealed(constructor: Callable[..., optax.GradientTransformation]) -> Callable[..., Any]:
    """``make`` of an optax constructor whose arguments are the hyperparameters."""

    def make(theta: Any, length: TrainingLength, *, anneal_learning_rate: bool, **values: Any) -> Any:
        return anneal(constructor(**values), length, anneal_learning_rate)

    return make


def _number(default: float, description: str, low: float, high: float) -> Hyperparameter:
    """A positive number, searched on a log scale."""
    return Hyperparameter(default, description, traced=True, search=Search(low, high, "log"), minimum=0.0)


def _learning_rate(default: float, low: float, high: float) -> dict[str, Hyperparameter]:
    return {"learning_rate": _number(default, "step size", low, high)}


def _decay(default: float, description: str, *choices: float, minimum: float = 0.0) -> Hyperparameter:
    search = Search(choices=choices) if choices else None
    return Hyperparameter(default, description, traced=True, search=search, minimum=minimum, below=1.0)


FIRST = _decay(0.9, "decay of the first moment", 0.9, 0.95, 0.99)
SECOND = _decay(0.999, "decay of the second moment", 0.9, 0.99, 0.999)
EPS = {"eps": Hyperparameter(1e-5, "added to the root of the second moment", traced=True, minimum=0.0)}
WEIGHT_DECAY = {"weight_decay": _number(1e-4, "decoupled weight decay, per learning rate", 1e-5, 1e-1)}
NO_WEIGHT_DECAY = {"weight_decay": Hyperparameter(0.0, "decoupled weight decay, per learning rate", True, minimum=0.0)}

ADAM = _learning_rate(1e-3, 1e-4, 3e-2) | {"b1": FIRST, "b2": SECOND} | EPS | ANNEALED
ADAMW = ADAM | WEIGHT_DECAY
EQUAL_BETAS = (
    _learning_rate(1e-3, 1e-4, 3e-2) | {"beta": _decay(0.9, "decay of both moments", 0.9, 0.95, 0.98, 0.99)} | EPS
) | ANNEALED
RMSPROP = (
    _learning_rate(1e-3, 1e-4, 3e-2)
    | {
        "decay": _decay(0.99, "decay of the second moment", 0.9, 0.99, 0.999),
        # As in optax, eps is added to v, the mean squared gradient, inside the root: √eps is what to compare with the
        # gradient. Clipped gradients of PPO are about 0.003, so √1e-8 = 1e-4 is small, and √1e-5 = 0.003 would make
        # RMSProp SGD.
        "eps": _number(1e-8, "added to the second moment inside the root", 1e-12, 1e-6),
    }
    | ANNEALED
)
LION = (
    _learning_rate(3e-4, 3e-5, 1e-2)
    | {
        "b1": _decay(0.9, "interpolation of gradient and momentum", 0.9, 0.95, 0.99),
        "b2": _decay(0.99, "decay of the momentum", 0.9, 0.99, 0.999),
    }
    | NO_WEIGHT_DECAY
    | ANNEALED
)
SGD = _learning_rate(1e-1, 1e-2, 3.0) | {"momentum": _decay(0.9, "decay of the momentum", 0.0, 0.9, 0.99)} | ANNEALED
MUON = (
    _learning_rate(1e-3, 1e-4, 3e-2)
    | {
        "beta": _decay(0.95, "decay of Muon's momentum", 0.9, 0.95, 0.99),
        "muon_rms": _number(0.2, "root mean square of Muon's updates, per learning rate", 0.05, 1.0),
        "b1": _decay(0.9, "decay of Adam's first moment"),
        "b2": _decay(0.999, "decay of Adam's second moment"),
    }
    | EPS
    | ANNEALED
)
ADOPT = (
    _learning_rate(1e-3, 1e-4, 3e-2)
    | {
        "b1": FIRST,
        "b2": _decay(0.999, "decay of the second moment", 0.99, 0.999, 0.9999),
        "eps": Hyperparameter(1e-6, "smallest root of the second moment", traced=True, minimum=0.0),
    }
    | ANNEALED
)
ADEMAMIX = (
    _learning_rate(1e-3, 1e-4, 3e-2)
    | {
        "b1": _decay(0.9, "decay of the fast momentum", minimum=0.01),
        "b2": _decay(0.999, "decay of the second moment"),
        "b3": _decay(0.999, "decay of the slow momentum at the end", 0.99, 0.999, 0.9999, minimum=0.01),
        "alpha": _number(5.0, "weight of the slow momentum at the end", 1.0, 10.0),
    }
    | EPS
    | ANNEALED
)
SCHEDULE_FREE = (
    _learning_rate(2.5e-3, 1e-4, 3e-2)
    | {
        "b1": _decay(0.9, "share of the average x in y, where gradients are taken", 0.9, 0.95, 0.98, minimum=0.01),
        "b2": SECOND,
    }
    | EPS
    | WEIGHT_DECAY
    | {
        "warmup": Hyperparameter(
            0.05, "share of the lifetime over which the learning rate rises", minimum=0.0, below=1.0
        ),
        "anneal_learning_rate": Hyperparameter(False, "anneal the learning rate linearly to 0 over the lifetime"),
    }
)
PRODIGY = (
    {"d_coef": _number(1.0, "multiplies the learning rate that it estimates", 0.1, 10.0), "b1": FIRST, "b2": SECOND}
    | EPS
    | ANNEALED
)


def _spec(
    name: str, description: str, citation: str, make: Callable[..., Any], settings: dict[str, Hyperparameter],
    **more: Any,
) -> OptimizerSpec:  # fmt: skip
    return OptimizerSpec(name, description, make, citation, hyperparameters=settings, **more)


SPECS = (
    _spec("adam", "Adam", "Kingma & Ba 2015, arXiv 1412.6980", _annealed(optax.adam), ADAM),
    _spec(
        "adamw", "Adam with decoupled weight decay",
        "Loshchilov & Hutter 2019, arXiv 1711.05101", _annealed(optax.adamw), ADAMW,
    ),
    _spec(
        "adam-equal-betas", "Adam with one decay for both moments",
        "Ellis et al. 2024, arXiv 2412.17113", rules.adam_equal_betas, EQUAL_BETAS,
    ),
    _spec(
        "adam-rel", "Adam whose bias correction begins anew with each rollout",
        "Ellis et al. 2024, arXiv 2412.17113", rules.adam_rel, ADAM,
    ),
    _spec(
        "nadamw", "Adam with Nesterov momentum and decoupled weight decay",
        "Dozat 2016; Loshchilov & Hutter 2019, arXiv 1711.05101", _annealed(optax.nadamw), ADAMW,
    ),
    _spec("rmsprop", "RMSProp", "Tieleman & Hinton 2012, lecture 6.5", _annealed(optax.rmsprop), RMSPROP),
    _spec(
        "lion", "Lion: sign of an interpolated momentum",
        "Chen et al. 2023, arXiv 2302.06675", _annealed(optax.lion), LION,
    ),
    _spec(
        "sgd", "Stochastic gradient descent with momentum",
        "Polyak 1964; Sutskever et al. 2013", _annealed(optax.sgd), SGD,
    ),
    _spec(
        "muon", "Muon: orthogonalized momentum for hidden kernels, Adam for the rest",
        "Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982", rules.muon, MUON,
    ),
    _spec(
        "adopt", "ADOPT: Adam that divides by the second moment of earlier gradients",
        "Taniguchi et al. 2024, arXiv 2411.02853", _annealed(optax.contrib.adopt), ADOPT,
    ),
    _spec(
        "ademamix", "AdEMAMix: Adam with a fast and a slow momentum",
        "Pagliardini et al. 2024, arXiv 2409.03137", rules.ademamix, ADEMAMIX,
    ),
    _spec(
        "schedule-free-adamw", "Schedule-free AdamW: averages its iterates and acts at the average",
        "Defazio et al. 2024, arXiv 2405.15682", rules.schedule_free_adamw, SCHEDULE_FREE,
        eval_params=optax.contrib.schedule_free_eval_params,
    ),
    _spec(
        "prodigy", "Prodigy: Adam that estimates its learning rate",
        "Mishchenko & Defazio 2023, arXiv 2306.06101", rules.prodigy, PRODIGY,
    ),
    *(
        _spec(loss.name, f"Adam with {loss.description}", loss.citation, _annealed(optax.adam), ADAM,
              policy_loss=loss, tuned_as="adam")
        for loss in (DPO, LPO)
    ),
)  # fmt: skip
