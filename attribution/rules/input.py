"""Rules for the layer that reads the image, whose inputs no layer made: they say nothing of relevance by their size.

An input of zero (black, or the mean colour) has no contribution, and by the usual rules no relevance either. These
share a layer's relevance out by sums of other products of values and weights, which a rule names (`Product`); zennit's
rules of the same names compute the same.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import zennit.rules
from torch import Tensor, nn
from zennit.core import Hook, RemovableHandleList

from .base import stabilize
from .linear import LinearRule, Term

Bound = float | Sequence[float]
"""Of pixels: for all channels, or one for each."""


class Product(NamedTuple):
    """Values in the place of the layer's inputs, which they broadcast to, with weights in the place of its own."""

    values: Tensor
    weight: Tensor
    bias: Tensor | None = None


class InputRule(LinearRule):
    """Shares in proportion to a sum of products: `R_i = sum_p v_pi sum_j w_pij R_j / sum_p,i v_pi w_pij`.

    Args:
        **known: as other rules take them; of no effect here.
    """

    def __init__(self, **known: bool) -> None:
        super().__init__(**known)

    @abstractmethod
    def products(self, module: nn.Module, x: Tensor) -> list[Product]:
        """What the relevance of a layer's input x, shape (batch, inputs, ...), is shared out by."""

    def terms(self, module: nn.Module, x: Tensor, output: Tensor, relevance: Tensor) -> list[Term]:
        raise NotImplementedError("of products of other values there are no terms of contributions")

    def propagate(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        (x,) = inputs
        products = self.products(module, x)
        total = sum((self._forward(module, p.values, p.weight, p.bias) for p in products), torch.zeros_like(output[:1]))
        share = relevance / stabilize(total)
        back = (p.values * self._transposed(module, x, share, p.weight) for p in products)
        return (sum(back, torch.zeros_like(x)),)


def _ones(x: Tensor) -> Tensor:
    """In the place of the inputs of any sample."""
    return torch.ones_like(x[:1])


class Flat(InputRule):
    """The flat rule (Lapuschkin et al. 2019): to all inputs of an output alike."""

    def reference(self) -> Hook:
        return zennit.rules.Flat()

    def products(self, module: nn.Module, x: Tensor) -> list[Product]:
        weight: Tensor = module.weight  # type: ignore[assignment]
        return [Product(_ones(x), torch.ones_like(weight))]


class WSquare(InputRule):
    """The w-square rule (Montavon et al. 2017): by the squares of the weights; the bias takes its share."""

    def reference(self) -> Hook:
        return zennit.rules.WSquare()

    def products(self, module: nn.Module, x: Tensor) -> list[Product]:
        weight, bias = module.weight, module.bias
        return [Product(_ones(x), weight.square(), None if bias is None else bias.square())]  # type: ignore


class ZBox(InputRule):
    """The z-box rule (Montavon et al. 2017): by contributions less the least that inputs within bounds could give.

    Args:
        low: the lowest value that an input may have, 0 at most: of all channels, or one for each.
        high: the highest one, 0 at least.

    Raises:
        ValueError: bounds for several numbers of channels.
    """

    def __init__(self, low: Bound, high: Bound, **known: bool) -> None:
        super().__init__(**known)
        self.low, self.high = (tuple(of) if isinstance(of, Sequence) else (of,) for of in (low, high))
        if len(self.low) != len(self.high) and 1 not in (len(self.low), len(self.high)):
            raise ValueError(f"low is of {len(self.low)} channels, high of {len(self.high)}")

    def reference(self) -> Hook:
        low, high = (torch.tensor(of).view(1, -1, 1, 1) if len(of) > 1 else of[0] for of in (self.low, self.high))
        return zennit.rules.ZBox(low, high)

    def register(self, module: nn.Module) -> RemovableHandleList:
        channels = module.in_channels if isinstance(module, nn.Conv2d) else None
        for bounds in (self.low, self.high):
            if len(bounds) not in (1, channels):
                raise ValueError(f"zbox has bounds for {len(bounds)} channels, and its layer {channels or 'none'}")
        return super().register(module)

    def products(self, module: nn.Module, x: Tensor) -> list[Product]:
        low, high = (
            x.new_tensor(of).view(-1, *[1] * (x.dim() - 2)).expand(x.shape[1:]) for of in (self.low, self.high)
        )
        below, above = (-of.unsqueeze(0) for of in (low, high))
        return [  # the bias would be in all three sums, and cancel
            Product(x, self._weight(module, 1, 1)),
            Product(below, self._weight(module, 1, 0)),
            Product(above, self._weight(module, 0, 1)),
        ]
