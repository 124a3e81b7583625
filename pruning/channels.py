"""Which channels of a value are live in a compact network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Channels:
    """The live channels of a value. None in place of it means: all of them.

    dim: the dimension that the channels lie in, from the front. size: how many there were. live: indices of those
    that are left, ascending, shape (left,). A layer without units keeps one channel, since convolutions refuse an
    empty one. empty: all that is left is that channel, and zero. loose: what was dropped would not be zero, but nothing
    reads it (the queries of a pruned head, say), so that it may be put back as anything.
    """

    dim: int
    size: int
    live: Tensor
    empty: bool = False
    loose: bool = False

    def positions(self) -> Tensor:
        """Where each channel lies among the live ones, -1 for those that do not: shape (size,)."""
        position = self.live.new_full((self.size,), -1)
        position[self.live] = torch.arange(len(self.live), device=self.live.device)
        return position


State = Channels | None


def channels(dim: int, size: int, live: Tensor, *, empty: bool = False, loose: bool = False) -> State:
    """The state of a value: None where all of its channels are live."""
    if len(live) == size and not empty:
        return None
    return Channels(dim, size, live, empty, loose)


def select(tensor: Tensor, dim: int, live: Tensor) -> Tensor:
    """The live slices of a tensor; the tensor itself where all are."""
    return tensor if len(live) == tensor.shape[dim] else tensor.index_select(dim, live)
