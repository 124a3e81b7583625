"""From a model and data to a study: the Python front door, and below it data, evaluation, search and study."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..studies.errors import UserError
    from .data.datasets import register_dataset
    from .front import Objective, Result, optimize
    from .search.samplers import Sampler, register_sampler
    from .study.apply import prune
    from .study.checkpoint import load_pruned

__all__ = [
    "Objective",
    "Result",
    "Sampler",
    "UserError",
    "load_pruned",
    "optimize",
    "prune",
    "register_dataset",
    "register_sampler",
]

_HOMES = {
    "Objective": ".front",
    "Result": ".front",
    "Sampler": ".search.samplers",
    "UserError": "..studies.errors",
    "load_pruned": ".study.checkpoint",
    "optimize": ".front",
    "prune": ".study.apply",
    "register_dataset": ".data.datasets",
    "register_sampler": ".search.samplers",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are asked for: torch takes seconds, which the command's help does without."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __package__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
