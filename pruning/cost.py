"""Accuracy over what a network costs, instead of over the number of units. Nothing here imports torch.

A filter of an early layer costs more than one of a late layer, and neither a unit's share of the units nor its share
of the multiply-adds is its share of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from .registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

Cost: TypeAlias = "Callable[[nn.Module, Tensor], float]"
COSTS: Registry[Cost] = Registry(
    "cost", {"macs": ".work:macs", "params": ".work:params", "latency": ".work:latency"}, __package__
)
"""What a network costs, of a network and images."""
register_cost = COSTS.register

END = 0.8
"""The part of a cost up to which it is worth saving: what is left of a network beyond it is of little use."""


def area_over(costs: Sequence[float], accuracies: Sequence[float]) -> float:
    """Area under accuracy against the part of the cost that is saved, by the trapezoid rule: in [0, 1].

    costs: of the network at each rate, as parts of the unpruned one's. Not divided by the span, which is part of the
    result: networks that save more reach further.
    """
    points = list(zip(costs, accuracies, strict=True))
    return sum((c0 - c1) * (a0 + a1) / 2 for (c0, a0), (c1, a1) in pairwise(points))


def area_saved(costs: Sequence[float], accuracies: Sequence[float], end: float = END) -> float:
    """Area under accuracy against the part of the cost that is saved, from 0 to `end`, divided by it: in [0, 1].

    Linear between the networks of the curve; zero beyond the last one. A network that saves no more than one before
    it counts where that one is. costs: as in `area_over`.
    """
    area, saved, before = 0.0, 0.0, accuracies[0]
    for cost, accuracy in zip(costs[1:], accuracies[1:], strict=True):
        reached = max(saved, 1 - cost)
        if reached >= end > saved:
            at_end = before + (accuracy - before) * (end - saved) / (reached - saved)
            return (area + (end - saved) * (before + at_end) / 2) / end
        area += (reached - saved) * (before + accuracy) / 2
        saved, before = reached, accuracy
    return area / end


def saved_at(costs: Sequence[float], accuracies: Sequence[float], share: float = 0.95) -> float:
    """The part of the cost that is saved at the last network up to which the accuracy never falls below `share` of the
    unpruned one's (the first); costs as in `area_over`."""
    kept = 0.0
    for cost, accuracy in zip(costs, accuracies, strict=True):
        if accuracy < share * accuracies[0]:
            break
        kept = 1 - cost
    return kept
