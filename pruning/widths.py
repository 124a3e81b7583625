"""Widths at which a layer is fast, and which units should go together so that it gets there.

Kernels compute outputs in blocks, so that a layer of 17 filters may take as long as one of 32; and a sum takes longer
while one side has fewer channels than the other. So the time that a filter saves depends on how many go with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.float64]
LEAST = 1e-3
"""The least part of a time, or of the sum of prices, that anything is divided by."""


@dataclass(frozen=True)
class Pace:
    """How fast a layer is, or a sum of two values.

    seconds: that a multiply-add takes at its full width; of a sum, a number. rows: numbers of outputs, ascending, the
    last one its full width. parts: the time with so many, as parts of that at full width. Without these, the time is in
    proportion. Of a sum there is one part: the time with fewer channels on one side, as a part of that with all.
    """

    seconds: float
    rows: tuple[int, ...] = ()
    parts: tuple[float, ...] = ()

    def part(self, rows: Numbers) -> Numbers:
        """The time with so many outputs, as parts of that at full width."""
        return np.interp(rows, (0, *self.rows), (0.0, *self.parts))

    def slowdown(self, rows: int) -> float:
        """How much longer a multiply-add takes with so many outputs than at full width."""
        return float(self.part(np.array(rows))) * self.rows[-1] / rows if self.rows and rows else 1.0

    def saved(self, rows: int) -> Tensor:
        """What is saved when 0, 1, 2 and so on of so many outputs go, as parts of the layer's time with all of them;
        double, shape (rows + 1,)."""
        times = self.part(np.arange(rows, -1, -1, dtype=np.float64))
        return torch.from_numpy(1 - times / max(times[0], LEAST))


def in_blocks(relevance: Tensor, prices: Tensor, surplus: Tensor, exponent: float) -> Tensor:
    """Relevance / price^exponent of a layer's units, where several that go together save more than each for itself.

    The units go in the order of their own quotients. The first block is as many of them as have the least quotient in
    all, and so on with the others: for the exponent 1 the lower convex hull of relevance lost over cost saved. All
    units of a block get its quotient, and keep their order.

    relevance, prices: of the units, shape (units,). surplus: what 0, 1, 2 and so on of them save besides the sum of
    their prices, shape (units + 1,).
    """
    lost, price, more = (value.detach().cpu().double().numpy() for value in (relevance, prices, surplus))
    order = np.argsort(lost / price**exponent, kind="stable")
    lost, worth, price = (_sums(values[order]) for values in (lost, price**exponent, price))
    found, start, before = np.empty(len(order), np.float32), 0, -np.inf
    while start < len(order):
        gained, spent = (values[start + 1 :] - values[start] for values in (price + more, price))
        share = np.maximum(gained / spent, LEAST) ** exponent
        quotients = (lost[start + 1 :] - lost[start]) / ((worth[start + 1 :] - worth[start]) * share)
        size = len(quotients) - int(quotients[::-1].argmin())
        # what is not a number stays so; the next block begins after this one
        *block, before = _ascending(float(np.maximum(before, quotients[size - 1])), size + 1)
        found[order[start : start + size]] = block
        start += size
    return torch.from_numpy(found).to(relevance)


def _sums(values: Numbers) -> Numbers:
    """Of the first 0, 1, 2 and so on."""
    return np.concatenate([[0.0], values.cumsum()])


def _ascending(value: float, count: int) -> NDArray[np.float32]:
    """A value and those that follow it in float32, one after the other."""
    bits = int(np.array(value, np.float32).view(np.int32))
    place = bits if bits >= 0 else -(bits & 0x7FFFFFFF)  # from zero
    places = place + np.arange(count, dtype=np.int32)
    return np.where(places < 0, -(-places).view(np.float32), places.view(np.float32))
