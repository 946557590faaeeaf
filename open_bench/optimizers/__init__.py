"""The registry of optimizers."""

from open_bench.optimizers.entry import Budget, Hyperparameter, Learned, OptimizerEntry, Search
from open_bench.optimizers.registry import available, register, resolve

__all__ = ["Budget", "Hyperparameter", "Learned", "OptimizerEntry", "Search", "available", "register", "resolve"]
