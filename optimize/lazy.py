"""Modules that are imported when something of them is first used, so that `--help` and `import` are quick."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any


class LazyModule(ModuleType):
    """Stands for a module until an attribute of it is asked for.

    Type checkers are given the real module beside it, under `if TYPE_CHECKING:`.

    Args:
        name: as in an import statement, with dots in front if it is relative.
        package: `__package__` of the module that imports.
    """

    def __init__(self, name: str, package: str | None = None) -> None:
        super().__init__(importlib.util.resolve_name(name, package))

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.__name__), attribute)


def load(*modules: ModuleType) -> None:
    """Import modules now, whether or not they are lazy."""
    for module in modules:
        importlib.import_module(module.__name__)
