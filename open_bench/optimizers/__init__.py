"""The registry of optimizers, and what those who write one need."""

from open_bench.optimizers.adapters import searchable
from open_bench.optimizers.registry import available, register, resolve
from open_bench.optimizers.schedules import anneal
from open_bench.optimizers.spec import Hyperparameter, Learned, OptimizerSpec, Reader, Search, TrainingLength

__all__ = [
    "Hyperparameter",
    "Learned",
    "OptimizerSpec",
    "Reader",
    "Search",
    "TrainingLength",
    "anneal",
    "available",
    "register",
    "resolve",
    "searchable",
]
