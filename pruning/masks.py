"""Ranking of all units of a network together, and the masks that follow from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Relevance = Mapping[str, Tensor]
Masks = dict[str, Tensor]


class NotFinite(ValueError):
    """Relevance that is infinite or not a number: the method, not the input, is at fault."""


@dataclass(frozen=True)
class Ranking:
    """The order in which units go, over all layers together.

    sizes: units of each layer, in layer order. order: flat indices of units, least relevant first; shape
    (units,). A unit's flat index counts the units of the layers before its own.
    """

    sizes: Mapping[str, int]
    order: Tensor

    @property
    def n_units(self) -> int:
        return sum(self.sizes.values())

    def masks(self, rate: float) -> Masks:
        """Which units stay at a pruning rate: per layer a bool tensor, shape (units,), True = kept."""
        removed = n_removed(self.n_units, rate)
        flat = torch.ones(self.n_units, dtype=torch.bool, device=self.order.device)
        flat[self.order[:removed]] = False
        return dict(zip(self.sizes, flat.split(list(self.sizes.values())), strict=True))

    def digest(self, rates: Sequence[float]) -> str:
        """A hash (hex) that two rankings share exactly when their masks at these rates are the same."""
        step = torch.zeros(self.n_units, dtype=torch.int16)
        order = self.order.cpu()
        for index, rate in enumerate(sorted(rates, reverse=True)):
            step[order[: n_removed(self.n_units, rate)]] = index + 1
        text = repr((dict(self.sizes), [n_removed(self.n_units, rate) for rate in rates]))
        return hashlib.sha256(text.encode() + step.numpy().tobytes()).hexdigest()


def n_removed(n_units: int, rate: float) -> int:
    """How many units a pruning rate removes: `int(n_units * rate)`.

    Raises:
        ValueError: rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"pruning rate {rate} is not in [0, 1]")
    return int(n_units * rate)


def rank(relevance: Relevance) -> Ranking:
    """Units of all layers together, ascending by relevance; ties by layer order, then index.

    relevance: per layer a float tensor, shape (units,).

    Raises:
        ValueError: no layer.
        NotFinite: relevance that is not finite.
    """
    if not relevance:
        raise ValueError("no relevance: nothing to rank")
    flat = torch.cat([values.detach().flatten() for values in relevance.values()])
    if not bool(torch.isfinite(flat).all()):
        bad = next(name for name, values in relevance.items() if not bool(torch.isfinite(values).all()))
        raise NotFinite(f"relevance of layer {bad} is not finite")
    sizes = {name: values.numel() for name, values in relevance.items()}
    return Ranking(sizes, torch.argsort(flat, stable=True))


def prune_masks(relevance: Relevance, rate: float) -> Masks:
    """Masks that remove the least relevant `int(n_units * rate)` units of the whole network.

    relevance: per layer a float tensor, shape (units,). Returns, per layer, a bool tensor of that shape, True
    = kept. Masks are nested: what goes at one rate is gone at every higher one (Hatefi et al., eq. 6).

    Raises:
        ValueError: rate outside [0, 1], or relevance that is not finite.
    """
    return rank(relevance).masks(rate)


def nested(ranking: Ranking, rates: Sequence[float]) -> Iterator[Masks]:
    """The masks of one ranking at each rate."""
    for rate in rates:
        yield ranking.masks(rate)
