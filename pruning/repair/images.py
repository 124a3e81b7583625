"""The images that repairs read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..curve import Batches

MOST_IMAGES = 512
"""Repairs keep all their images' activations of a layer at a time: of no more images than this."""


@dataclass(frozen=True)
class Mixed:
    """Images, and behind them as many averages of two of them, up to `MOST_IMAGES` in all.

    What a layer is to give, the unpruned network says of any image. So a few images are made to say more, without a
    label and without knowing what changes an image's class (mixup, Zhang et al. 2018, arXiv 1710.09412, mixes targets
    too). Not for statistics: averages have less contrast.
    """

    images: Batches

    def __len__(self) -> int:
        count = len(self.images)
        return max(count, min(2 * count, MOST_IMAGES))

    def __getitem__(self, item: slice) -> Tensor:
        count = len(self.images)
        start, stop, _ = item.indices(len(self))
        parts = [self.images[start : min(stop, count)]] if start < count else []
        if stop > count:
            first, last = max(start, count) - count, stop - count
            apart = max(1, count // 3)  # not half, where each pair would come twice; images may be sorted by class
            parts.append((self.images[first:last] + self._around(first + apart, last + apart)) / 2)
        return torch.cat(parts)

    def _around(self, start: int, stop: int) -> Tensor:
        """The images of these rows, counted on from the first one behind the last."""
        count = len(self.images)
        parts = [self.images[start:stop]] if start < count else []
        if stop > count:
            parts.append(self.images[max(0, start - count) : stop - count])
        return torch.cat(parts)


def repair_rows(count: int) -> slice:
    """Which of so many reference samples repairs read: `MOST_IMAGES` at most, evenly spaced (samples are sorted by
    class)."""
    return slice(None, None, max(1, -(-count // MOST_IMAGES)))
