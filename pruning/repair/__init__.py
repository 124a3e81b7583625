"""Repair after pruning, without labels and without training, from the same few samples.

`batchnorm` re-estimates what BatchNorm would normalise by. `least_squares` gives every linear layer and convolution
that is left with fewer inputs, and every one behind those, new weights, in closed form, so that its output is as near
as can be to the unpruned network's. Both walk through the network once, step by step, all samples abreast: a layer sees
what the repaired layers before it give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from ..registry import Registry

if TYPE_CHECKING:
    from .base import Chain, Repair, make_repair
    from .batchnorm import BatchNormRepair
    from .images import repair_rows
    from .least_squares import LeastSquaresRepair

NONE = "none"
REPAIRS: Registry[type[Repair]] = Registry(
    "repair",
    {"batchnorm": ".batchnorm:BatchNormRepair", "least-squares": ".least_squares:LeastSquaresRepair"},
    __package__,
)
"""Repairs, each made of the reference samples. In use they may be chained: batchnorm+least-squares."""
register_repair = REPAIRS.register

_HOMES = {
    "BatchNormRepair": ".batchnorm",
    "Chain": ".base",
    "LeastSquaresRepair": ".least_squares",
    "Repair": ".base",
    "make_repair": ".base",
    "repair_rows": ".images",
}
__all__ = [
    "NONE",
    "REPAIRS",
    "BatchNormRepair",
    "Chain",
    "LeastSquaresRepair",
    "Repair",
    "check_repair",
    "make_repair",
    "register_repair",
    "repair_rows",
]


def check_repair(name: str) -> tuple[str, ...]:
    """The repairs that a name stands for, in their order: none, one, or several joined by "+".

    Raises:
        ValueError: an unknown one, or one named twice.
    """
    if name == NONE:
        return ()
    parts = tuple(name.split("+"))
    if any(part not in REPAIRS for part in parts) or len(set(parts)) < len(parts):
        raise ValueError(f'unknown {name!r}: choose from {NONE}, {", ".join(REPAIRS)}, or several joined by "+"')
    return parts


__getattr__ = lazy_names(__name__, _HOMES)
