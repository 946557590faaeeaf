"""What is known of an environment before it is made: source, options, settings for each algorithm, budgets."""

import uuid
from typing import Any

from pydantic import Field, PrivateAttr

from open_bench.config import Config, Name, Positive
from open_bench.errors import UserError, near_matches

Option = bool | int | float | str


class EnvironmentConfig(Config):
    """An environment with what algorithms are to do there. Budgets are env steps by name."""

    name: Name
    description: str
    family: str
    source: str  # "<adapter>:<id>", such as "gymnax:Breakout-MinAtar", or "module:Class" of the user's
    version: Positive = 1  # raised when the task itself changes
    options: dict[str, Option] = Field(default_factory=dict)
    algorithm: str = "ppo"  # unless another is asked for
    # Settings by algorithm; one that it is not meant for has no table.
    algorithms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    budgets: dict[str, Positive] = Field(min_length=1)
    # Of a class of the user's; set by load_environment, never by a TOML.
    _digest: str | None = PrivateAttr("")  # of its file; None: it has none
    _object: Any = PrivateAttr(None)  # the class or instance itself, where no other process could import it

    @property
    def stored(self) -> bool:
        """Whether results belong to the configuration: not so where code or arguments are known to this process alone.

        What is not stored must never be taken from the store.
        """
        return self._digest is not None

    @property
    def task_identity(self) -> dict[str, Any]:
        """What makes the environment what it is, apart from its version, as JSON values."""
        digest = {"digest": self._digest} if self._digest else {}
        unsaved = {} if self.stored else {"digest": uuid.uuid4().hex}
        return {"source": self.source, "options": self.options, **digest, **unsaved}

    def made_by(self, digest: str | None, thing: Any = None) -> "EnvironmentConfig":
        """A copy that is made by code of the user's: a file's ``digest``, and a class or instance at hand."""
        copy = self.model_copy()
        copy._digest, copy._object = digest, thing
        return copy

    def budget_steps(self, budget: str) -> int:
        """Env steps of a named budget."""
        if budget not in self.budgets:
            raise UserError(
                f"{self.name} has no budget '{budget}' (it has {', '.join(self.budgets)})."
                f"{near_matches(budget, self.budgets)}"
            )
        return self.budgets[budget]
