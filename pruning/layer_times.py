"""Latency from a table: how long each layer takes at some widths, measured once, so that no network need be timed.

What lies between the measured widths is interpolated; all other steps take time in proportion to the numbers that they
give. A table is of one network, one device and one batch size.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .graph import Graph
from .modules import Add, AttentionValue, QueryKey, Realign, ScatterAdd
from .network import Network, clone, shape_for, type_of
from .operations.attention import MatrixProduct
from .widths import Pace
from .work import fastest

WIDTHS = (0.0625, 0.25, 0.5, 1.0)
"""Parts of a layer's inputs and outputs that are measured."""
BLOCK = 16
"""Outputs that kernels compute together, or twice as many: processors' vectors have 8 or 16 numbers."""
BLOCKS = 4
"""Of wider layers, this many parts of whole blocks are measured."""
ENOUGH = 0.01
"""Seconds that one of them is measured for."""


@dataclass(frozen=True)
class Grid:
    """A layer's seconds for a batch, shape (rows, columns), by how many outputs it has and inputs (of a group)."""

    rows: list[int]
    columns: list[int]
    seconds: list[list[float]]

    def at(self, rows: int, columns: int) -> float:
        """The seconds at this width; narrower than any that was measured, those of the narrowest."""
        by_row = [float(np.interp(columns, self.columns, row)) for row in self.seconds]
        return float(np.interp(rows, self.rows, by_row))


@dataclass(frozen=True)
class LayerTimes:
    """The table. batch: images. layers: by name. others: by kind of step, the seconds for a number that it gives."""

    batch: int
    layers: Mapping[str, Grid]
    others: Mapping[str, float]

    @classmethod
    @torch.inference_mode()
    def measure(cls, graph: Graph, batch: int, advance: Callable[[int], object] = lambda steps: None) -> LayerTimes:
        """Measure a network's layers, on its device, with so many images. Layers that are alike are measured once.

        advance: is told of each step of the network that is done."""
        network = graph.network
        modules, shapes = network.modules_by_step(), _shapes(network, batch)
        layers: dict[str, Grid] = {}
        alike: dict[str, Grid] = {}
        spent: dict[str, list[tuple[float, int]]] = {}
        for step in network.steps:
            advance(1)
            module, inputs = modules[step.name], [shapes[slot] for slot in step.inputs]
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                key = f"{module} {inputs[0]}"
                if key not in alike:
                    alike[key] = _grid(module, inputs[0], network, graph.device)
                layers[step.name] = alike[key]
            elif inputs and isinstance(module, nn.Module):
                values = [_random(shape, network, graph.device) for shape in inputs]
                seconds = fastest(module, values, graph.device, ENOUGH)
                spent.setdefault(_name(module), []).append((seconds, torch.Size(shapes[step.output]).numel()))
        makers = {step.output: modules[step.name] for step in network.steps if step.name in layers}
        slot = max(makers, key=lambda slot: torch.Size(shapes[slot]).numel(), default=0)
        dim = len(shapes[slot]) - 1 if isinstance(makers.get(slot), nn.Linear) else 1
        value, size = _random(shapes[slot], network, graph.device), shapes[slot][dim]
        index = torch.arange(size, device=graph.device)
        for added, values in (
            (Realign(dim, torch.where(index % 2 == 0, index, -1)), [value]),
            (ScatterAdd(dim, size, None, index), [value, value]),
            (ScatterAdd(dim, size, index, index), [value, value]),
        ):
            seconds = fastest(added.to(graph.device), values, graph.device, ENOUGH)
            spent.setdefault(_name(added), []).append((seconds, value.numel()))
        others = {
            name: _short(sum(seconds for seconds, _ in found) / max(1, sum(numbers for _, numbers in found)))
            for name, found in spent.items()
        }
        return cls(batch, layers, others)

    def latency(self, network: nn.Module, images: Tensor | None = None) -> float:
        """Seconds for a batch of a network made from the one of the table. images: not read."""
        assert isinstance(network, Network)
        modules, shapes = network.modules_by_step(), _shapes(network, self.batch)
        usual = statistics.median(self.others.values())
        total = 0.0
        for step in network.steps:
            module = modules[step.name]
            if isinstance(module, (nn.Conv2d, nn.Linear)) and step.name in self.layers:
                total += self.layers[step.name].at(*module.weight.shape[:2])
            elif step.inputs:
                total += self.others.get(_name(module), usual) * torch.Size(shapes[step.output]).numel()
        return total

    def paces(self, graph: Graph) -> dict[str, Pace]:
        """How fast each layer is, and each product of attention."""
        modules, shapes = graph.network.modules_by_step(), _shapes(graph.network, self.batch)
        found: dict[str, Pace] = {}
        for step in graph.network.steps:
            module, numbers = modules[step.name], torch.Size(shapes[step.output]).numel()
            if step.name in self.layers:
                weight: Tensor = module.weight  # type: ignore[assignment]
                grid = self.layers[step.name]
                whole = grid.at(*weight.shape[:2])
                parts = tuple(_short(grid.at(row, weight.shape[1]) / whole) for row in grid.rows)
                found[step.name] = Pace(_short(whole / (numbers * weight[0].numel())), tuple(grid.rows), parts)
            elif isinstance(module, Add):
                usual = self.others[_name(module)]
                if usual:
                    found[step.name] = Pace(usual, (1,), (_short(self.others.get(APART, usual) / usual),))
            elif isinstance(module, (QueryKey, MatrixProduct, AttentionValue)):
                found[step.name] = Pace(self.others[_name(module)] / shapes[step.inputs[0]][-1])
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerTimes:
        """What `to_dict` gave."""
        return cls(data["batch"], {name: Grid(**grid) for name, grid in data["layers"].items()}, data["others"])


APART = ScatterAdd.__name__
"""A sum of maps of which one has all channels, and the other fewer."""


def _name(module: nn.Module) -> str:
    both = isinstance(module, ScatterAdd) and module.first is not None and module.second is not None
    return type(module).__name__ + (" of two parts" if both else "")


def _shapes(network: Network, batch: int) -> dict[int, tuple[int, ...]]:
    return {slot: shape_for(batch, shape) for slot, shape in network.shapes().items()}


def _random(shape: tuple[int, ...], network: Network, device: torch.device) -> Tensor:
    value = torch.rand(shape, device=device, dtype=type_of(network))
    return network.ordered(value) if len(shape) == 4 else value


def _grid(module: nn.Conv2d | nn.Linear, source: tuple[int, ...], network: Network, device: torch.device) -> Grid:
    weight = module.weight
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    if groups > 1:  # of grouped layers whole groups go
        kept = _columns(groups) if weight.shape[1] > 1 else _rows(groups)
        rows, columns = [len(weight) // groups * count for count in kept], [weight.shape[1]]
    else:
        kept = []
        rows, columns = _rows(len(weight)), _columns(weight.shape[1])
    seconds: list[list[float]] = []
    for index, row in enumerate(rows):
        seconds.append([])
        for column in columns:
            bias = None if module.bias is None else module.bias[:row]
            part = weight[:row, :column].contiguous()
            channels = column * kept[index] if groups > 1 else column
            if isinstance(module, nn.Conv2d):
                count = kept[index] if groups > 1 else 1
                layout = torch.channels_last if network.channels_last else torch.contiguous_format
                part = part.contiguous(memory_format=layout)
                sizes = {"in_channels": channels, "out_channels": row, "groups": count}
                shape = (source[0], channels, *source[2:])
            else:
                sizes = {"in_features": column, "out_features": row}
                shape = (*source[:-1], column)
            narrow = clone(module, weight=part, bias=bias, **sizes)
            seconds[-1].append(fastest(narrow, [_random(shape, network, device)], device, ENOUGH))
    return Grid(rows, columns, _without_delays(seconds))


def _columns(size: int) -> list[int]:
    return sorted({max(1, round(size * part)) for part in WIDTHS})


def _rows(size: int) -> list[int]:
    """Outputs that are measured: one, all, and on both sides of each multiple of a kernel's block."""
    step = BLOCK // 2 if size <= 2 * BLOCK else BLOCK * math.ceil(size / BLOCK / BLOCKS)
    edges = range(step, size, step)
    return sorted({1, *edges, *(edge + 1 for edge in edges), size})


def _without_delays(seconds: list[list[float]]) -> list[list[float]]:
    """Where more outputs or inputs took less time, something else ran when there were fewer."""
    found = np.array(seconds)
    for axis in (0, 1):
        found = np.flip(np.minimum.accumulate(np.flip(found, axis), axis), axis)
    return [[_short(value) for value in row] for row in found.tolist()]


def _short(value: float) -> float:
    """To four digits: a database may take no more than 64 kB for a table, or for the composite of a trial."""
    return float(f"{value:.4g}")
