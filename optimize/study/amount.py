"""How much of a network is pruned: a part of its units, or the smallest part by which it saves or fits so much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...pruning import COSTS, Cost, Graph, Masks, Network, Plan, Ranking, Repair, compact, sparsity_at
from ...pruning import without_constants as folded
from ...studies.report import KEPT
from ..parsers import parse_count, parse_rate, parse_share

KINDS = {
    "rate": parse_rate,
    "saved": parse_rate,
    "keep_accuracy": parse_share,
    "max_params": parse_count,
    "max_macs": parse_count,
}
"""The ways to say how much goes, and what each of them takes."""
FINEST = 10_000
"""Rates that are found are whole numbers of this part: they can be read, and given again."""


@dataclass(frozen=True)
class Amount:
    """One of `KINDS`, with its value: by default the largest rate of the study that keeps 95 % of the accuracy."""

    kind: str = "keep_accuracy"
    value: float = KEPT

    @classmethod
    def of(cls, **given: object) -> Amount:
        """The one way that is given; None stands for one that is not.

        Raises:
            ValueError: several are given, or a value out of range.
            TypeError: there is no such way.
        """
        if unknown := [kind for kind in given if kind not in KINDS]:
            raise TypeError(f"{unknown[0]} is no way to say how much goes: there are {', '.join(KINDS)}")
        found = {kind: value for kind, value in given.items() if value is not None}
        if len(found) > 1:
            raise ValueError(f"{' and '.join(found)} are ways to say how much goes: give one of them")
        for kind, value in found.items():
            try:
                return cls(kind, float(KINDS[kind](value)))
            except ValueError as error:
                raise ValueError(f"{kind} is {value}: {error}") from None
        return cls()


class Pruned(NamedTuple):
    """A graph at a rate, in its compact and repaired form, and which units of the whole one it has."""

    rate: float
    graph: Graph
    masks: Masks


class Planner(Protocol):
    """Ranks the units up to a rate, or until `enough` says of the masks at a step that they do."""

    def __call__(self, last: float, enough: Callable[[Masks], bool] | None = None) -> Plan: ...


@dataclass(frozen=True)
class Pruner:
    """What it takes to prune a graph by any amount.

    sizes: units of each layer. curve: rates, and the accuracies on the search samples that are known there. cost: what
    "saved" is a part of, None for the units; `image`: for costs that are counted on one, shape (1, channels, height,
    width).
    """

    graph: Graph
    repair: Repair | None
    plan: Planner
    sizes: dict[str, int]
    image: Tensor
    curve: tuple[Sequence[float], Sequence[float]] | None = None
    cost: Cost | None = None

    def __call__(self, amount: Amount) -> Pruned:
        """The smaller network.

        Raises:
            ValueError: no network is so small, or no accuracies are known.
            NotFinite: relevance that is not finite.
        """
        kind, value = amount.kind, amount.value
        if kind == "keep_accuracy":
            if self.curve is None:
                raise ValueError("no accuracies are known by which a rate could be chosen: give rate")
            return self._at(sparsity_at(*self.curve, value))
        if kind == "rate" or (kind == "saved" and self.cost is None):
            return self._at(value)
        if kind == "saved":
            assert self.cost is not None
            whole = self.cost(folded(self.graph.network), self.image)
            return self._within(self.cost, (1 - value) * whole, f"saved is {value:g}")
        return self._within(COSTS[kind.removeprefix("max_")], value, f"{kind} is {value:,.0f}")

    def _at(self, rate: float, plan: Plan | None = None) -> Pruned:
        plan = plan or self.plan(rate)
        graph = next(plan.networks(self.graph, [rate], self.repair))
        return Pruned(rate, graph, plan.ranking.masks(rate))

    def _within(self, cost: Cost, limit: float, said: str) -> Pruned:
        """The network at the lowest rate at which a cost is within a limit. Units are ranked again as the schedule
        says on the way there, and no further."""

        def spent(network: Network) -> float:
            return cost(folded(network), self.image)

        def fits(bound: float, masks: Masks) -> bool:
            return spent(compact(self.graph, masks).network) <= bound

        if spent(self.graph.network) <= limit:
            return self._at(0.0)
        device = self.graph.device
        nothing = {name: torch.zeros(size, dtype=torch.bool, device=device) for name, size in self.sizes.items()}
        least, bound = spent(compact(self.graph, nothing).network), limit
        while least <= bound:
            enough = partial(fits, bound)
            plan = self.plan((FINEST - 1) / FINEST, enough)
            rate = _lowest(plan.ranking, plan.last, enough)
            if rate is None:
                break
            found = self._at(rate, plan)
            over = spent(found.graph.network) - limit  # a repair may have given biases to layers that had none
            if over <= 0:
                return found
            bound -= over
        raise ValueError(f"{said}, but without any of its {sum(self.sizes.values())} units it has {least:,.0f}")


def _lowest(ranking: Ranking, last: float, enough: Callable[[Masks], bool]) -> float | None:
    """The lowest rate whose masks are enough, where more units do no harm; None if not even the last one's are."""
    low, high = 0, int(last * FINEST + 1e-9)
    if not enough(ranking.masks(high / FINEST)):
        return last if enough(ranking.masks(last)) else None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(ranking.masks(middle / FINEST)) else (middle + 1, high)
    return low / FINEST
