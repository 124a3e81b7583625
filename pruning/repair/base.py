"""What every repair is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from torch import Tensor

from ..curve import Batches
from ..graph import Graph
from ..masks import Masks


class Repair:
    """Makes a better network of a compact one."""

    name: str

    @abstractmethod
    def __call__(self, graph: Graph, small: Graph, masks: Masks) -> Graph:
        """The repaired form of `small`, the compact form of `graph` under `masks`; neither is changed."""


@dataclass(frozen=True)
class Chunks(Sequence[Tensor]):
    """Images, so many at a time; read when they are asked for."""

    images: Batches
    size: int

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):  # what ends an iteration
            raise IndexError(index)
        return self.images[index * self.size : (index + 1) * self.size]
