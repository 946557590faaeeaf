"""Environments: adapters that give every task one interface. Suites are imported when first used."""

from open_bench.environments.base import Continuous, Discrete, Environment
from open_bench.errors import UserError

__all__ = ["Continuous", "Discrete", "Environment", "brax_names", "gymnax_ids", "make"]


def gymnax_ids() -> list[str]:
    """All registered gymnax ids."""
    from open_bench.environments import gymnax

    return gymnax.gymnax_ids()


def brax_names() -> list[str]:
    """All Brax tasks; imports Brax, which takes seconds."""
    from open_bench.environments import brax

    return brax.brax_names()


def make(source: str, **options: bool | int | float | str) -> Environment:
    """An environment from its source, "<adapter>:<id>", such as "gymnax:Breakout-MinAtar" or "brax:ant"."""
    adapter, _, identifier = source.partition(":")
    if adapter == "gymnax":
        from open_bench.environments.gymnax import GymnaxEnvironment

        return GymnaxEnvironment(identifier, **options)  # type: ignore[arg-type]
    if adapter == "gridworld":
        from open_bench.environments.gridworld.environment import GridworldEnvironment

        return GridworldEnvironment(identifier, **options)
    if adapter == "brax":
        from open_bench.environments.brax import BraxEnvironment

        return BraxEnvironment(identifier, **options)  # type: ignore[arg-type]
    if adapter == "craftax":
        from open_bench.environments.craftax import CraftaxEnvironment

        return CraftaxEnvironment(identifier, **options)
    raise UserError(f"unknown environment source '{source}': it must begin with gymnax:, gridworld:, brax: or craftax:")
