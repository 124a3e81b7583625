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
from . import REPAIRS, check_repair


class Repair:
    """Makes a better network of a compact one.

    Args:
        inputs: float images, shape (n, channels, height, width), unlabelled.
    """

    name: str

    def __init__(self, inputs: Batches) -> None:
        self.inputs = inputs

    @staticmethod
    def check(graph: Graph) -> None:
        """Refuse a network that there is nothing to repair in.

        Raises:
            ValueError: why, and what else to try.
        """

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


class Chain(Repair):
    """One repair after the other."""

    def __init__(self, parts: Sequence[Repair]) -> None:
        self.parts = parts
        self.name = "+".join(part.name for part in parts)

    def __call__(self, graph: Graph, small: Graph, masks: Masks) -> Graph:
        for part in self.parts:
            small = part(graph, small, masks)
        return small


def make_repair(name: str, graph: Graph, inputs: Batches) -> Repair | None:
    """A repair by its name (`check_repair`), from these samples; None where the name is "none".

    Raises:
        ValueError: unknown name, or a repair that the network has nothing for.
    """
    kinds = [REPAIRS[part] for part in check_repair(name)]
    for kind in kinds:
        kind.check(graph)
    parts = [kind(inputs) for kind in kinds]
    return None if not parts else parts[0] if len(parts) == 1 else Chain(parts)
