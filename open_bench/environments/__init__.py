"""Environments: the interface of every task. ``registry`` finds them by name; suites are imported when first used."""

from open_bench.environments.base import Continuous, Discrete, Environment, episodes_per_copy

__all__ = ["Continuous", "Discrete", "Environment", "episodes_per_copy"]
