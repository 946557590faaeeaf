"""What is known of an environment before it is made: source, options, settings for each algorithm, budgets."""

from typing import Any

from pydantic import Field

from open_bench.config import Config, Name, Positive
from open_bench.errors import UserError, near_matches

Option = bool | int | float | str


class EnvironmentConfig(Config):
    """An environment with what algorithms are to do there. Budgets are env steps by name."""

    name: Name
    description: str
    family: str
    source: str  # "<adapter>:<id>", such as "gymnax:Breakout-MinAtar"
    version: Positive = 1  # raised when the task itself changes
    options: dict[str, Option] = Field(default_factory=dict)
    algorithm: str = "ppo"  # unless another is asked for
    algorithms: dict[str, dict[str, Any]] = Field(
        default_factory=dict
    )  # settings by algorithm; one that it is not meant for has no table
    budgets: dict[str, Positive] = Field(min_length=1)

    def budget_steps(self, budget: str) -> int:
        """Env steps of a named budget."""
        if budget not in self.budgets:
            raise UserError(
                f"{self.name} has no budget '{budget}' (it has {', '.join(self.budgets)})."
                f"{near_matches(budget, list(self.budgets))}"
            )
        return self.budgets[budget]
