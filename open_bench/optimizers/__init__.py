"""The registry of optimizers."""

from open_bench.optimizers.registry import available, register, resolve
from open_bench.optimizers.spec import Hyperparameter, Learned, OptimizerSpec, Search, TrainingLength

__all__ = ["Hyperparameter", "Learned", "OptimizerSpec", "Search", "TrainingLength", "available", "register", "resolve"]
