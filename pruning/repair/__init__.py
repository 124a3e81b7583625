"""Repair after pruning, without labels and without training, from the same few samples.

`batchnorm` re-estimates what BatchNorm would normalise by. `least_squares` gives every linear layer and convolution
that is left with fewer inputs, and every one behind those, new weights, in closed form, so that its output is as near
as can be to the unpruned network's. Both walk through the network once, step by step, all samples abreast: a layer sees
what the repaired layers before it give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..curve import Batches
from ..graph import Graph
from ..masks import Masks
from .base import Repair
from .batchnorm import BatchNormRepair
from .images import repair_rows
from .least_squares import LeastSquaresRepair

__all__ = ["REPAIRS", "BatchNormRepair", "Chain", "LeastSquaresRepair", "Repair", "make_repair", "repair_rows"]


@dataclass
class Chain(Repair):
    """One repair after the other."""

    parts: Sequence[Repair]

    @property
    def name(self) -> str:  # type: ignore[override]
        return "+".join(part.name for part in self.parts)

    def __call__(self, graph: Graph, small: Graph, masks: Masks) -> Graph:
        for part in self.parts:
            small = part(graph, small, masks)
        return small


REPAIRS = ("none", "batchnorm", "least-squares", "batchnorm+least-squares")


def make_repair(name: str, graph: Graph, inputs: Batches) -> Repair | None:
    """A repair by its name in `REPAIRS`, from these samples.

    Raises:
        ValueError: unknown name, or a repair of BatchNorm in a network without.
    """
    if name not in REPAIRS:
        raise ValueError(f"repair {name!r}: choose from {', '.join(REPAIRS)}")
    if "batchnorm" in name and not graph.norms:
        raise ValueError(f"repair {name}: the model has no BatchNorm to re-estimate; try least-squares")
    parts: dict[str, list[Repair]] = {
        "none": [],
        "batchnorm": [BatchNormRepair(inputs)],
        "least-squares": [LeastSquaresRepair(inputs)],
    }
    chain = [repair for part in name.split("+") for repair in parts[part]]
    return None if not chain else chain[0] if len(chain) == 1 else Chain(chain)
