"""What every repair is."""

from __future__ import annotations

from abc import abstractmethod

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


def chunks_of(inputs: Batches, size: int) -> list[Tensor]:
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]
