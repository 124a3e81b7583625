"""From a model and data to a study: the Python front door, and below it data, evaluation, search and study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..pruning.lazy import lazy_names

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


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
