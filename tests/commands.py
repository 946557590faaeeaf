"""What a call of the command line gives, for the fixture ``openbench``."""

from collections.abc import Callable
from typing import NamedTuple


class Answer(NamedTuple):
    """Exit code and both streams."""

    code: int
    out: str
    err: str


OpenBench = Callable[..., Answer]  # openbench("train", "adam", …)
