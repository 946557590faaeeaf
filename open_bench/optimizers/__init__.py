"""Optimizers: what is registered, and what an author of a new one needs."""

from open_bench.config import TrainingLength
from open_bench.optimizers.adapters import searchable
from open_bench.optimizers.registry import available, register
from open_bench.optimizers.schedules import anneal
from open_bench.optimizers.spec import Hyperparameter, Imitation, Learned, OptimizerSpec, Reader, Search

__all__ = [
    "Hyperparameter",
    "Imitation",
    "Learned",
    "OptimizerSpec",
    "Reader",
    "Search",
    "TrainingLength",
    "anneal",
    "available",
    "register",
    "searchable",
]
