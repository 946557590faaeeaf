"""Packages that a library imports and hardly ever uses: loaded at their first use.

gymnax imports matplotlib's pyplot and seaborn to draw, which takes longer than all else that it does when imported.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


class Deferred(ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system itself looks for
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def deferred(*names: str) -> Iterator[None]:
    """Within it, ``import`` of a module that is not loaded gives one that loads itself later.

    Afterwards nobody else meets it: their imports give the module itself. A module that is not there is missed at its
    first use.
    """
    mine = {name: Deferred(name) for name in names if name not in sys.modules}
    sys.modules.update(mine)
    try:
        yield
    finally:
        for name, module in mine.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
            parent, _, child = name.rpartition(".")
            if parent and getattr(sys.modules.get(parent), child, None) is module:
                delattr(sys.modules[parent], child)
