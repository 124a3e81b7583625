"""Layers refitted by least squares, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compact import check_masks, live_rows, real_rows
from ..curve import Batches
from ..graph import Graph
from ..masks import Masks
from ..network import clone
from .base import Repair, chunks_of
from .images import Mixed
from .ridge import drawn_rows, part_of, ridge, ridge_by_group
from .tokens import AT_ONCE, token_weights

ROOM = 2**28
"""Bytes that the unpruned network's outputs may take, to be kept from one repair to the next; and a layer's rows."""
FEW = 64
"""Features of which a layer has at least so many when rows are drawn: more rows cost nothing there."""


@dataclass
class LeastSquaresRepair(Repair):
    """Layers with fewer inputs than they had, refitted by ridge regression on the unpruned network's outputs, and the
    layers behind them, which make up for what is still missing.

    A row is a sample at a spatial position or token; the features are what the layer reads there (for a
    convolution the patch). Weights W and bias b minimise `|X W + b - Y|^2 + ridge |W - V|^2`, where Y is the
    unpruned network's output of that layer and V the layer's own weights, sliced: so with few rows the layer
    stays what it was. The ridge is the one of `RIDGES` with the least leave-one-out error. Normal equations are
    summed chunk by chunk, so memory does not grow with the samples' positions. Rows that are tokens count by how much
    the prediction hangs on them (`token_weights`): a class token for more than one of many patches.

    inputs: float images, unlabelled; averages of two are read too (`Mixed`).
    most: a layer whose rows and features are both more is left as it is.
    enough: of rows, for each feature (of `FEW` at least); of many more, at least so many are drawn (`drawn_rows`), and
        of tokens anyway `least`, since a few of them matter most.
    """

    inputs: Batches
    chunk: int = 64
    most: int = 5000
    enough: int = 16
    least: int = 8192
    _unpruned: _Unpruned | None = field(default=None, init=False, repr=False, compare=False)
    name = "least-squares"

    @torch.no_grad()
    def __call__(self, graph: Graph, small: Graph, masks: Masks) -> Graph:
        modules: dict[str, nn.Module] = {}
        masks, images = check_masks(graph, masks), Mixed(self.inputs)
        if self._unpruned is None or self._unpruned.graph is not graph:
            self._unpruned = _Unpruned(graph, images, self.chunk)
        originals, outputs = graph.network.modules_by_step(), self._unpruned.outputs()
        behind = _behind_changes(graph, small)
        for visit in small.network.walk(chunks_of(images, self.chunk)):
            if visit.name in behind and isinstance(visit.module, (nn.Conv2d, nn.Linear)):
                live = live_rows(graph, masks, visit.name)
                goals = _goals(originals[visit.name], outputs(visit.name), live)
                inputs = [values[0] for values in visit.arguments]
                visit.module = self._refit(visit.module, inputs, goals, self._unpruned.weights.get(visit.name))
                modules[visit.name] = visit.module
        return replace(small, network=small.network.replaced(modules))

    def _refit(
        self, module: nn.Module, inputs: Sequence[Tensor], wanted: Sequence[Tensor], weights: Tensor | None
    ) -> nn.Module:
        weight: Tensor = module.weight  # type: ignore[assignment]
        features = weight[0].numel()
        goals = [_goal_rows(module, goal) for goal in wanted]
        count = sum(map(len, goals))
        if (real := real_rows(module)) is not None and goals[0].shape[1] == len(real):  # the others give zeros
            goals = [goal.new_zeros(len(goal), len(weight)).index_copy_(1, real, goal) for goal in goals]
        # a layer without units left keeps one channel of zeros; attention without heads its bias, which the layers
        # behind it make as good as the mean of what it gave
        if features == 0 or min(features, count) > self.most or goals[0].shape[1] != len(weight):
            return module
        wanted_rows = max(self.enough * max(features, FEW), 0 if weights is None else self.least)
        most = count // max(1, count // wanted_rows)
        drawn = None if most == count else drawn_rows(count, most)
        if drawn is not None and weights is not None:
            weights = weights[drawn.to(weights.device)]
        size = most * features * weight.element_size()  # of the rows, or of one group's
        try:
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                fitted, bias = _fit_groups(module, inputs, goals, drawn, at_once=max(1, ROOM // 4 // size))
            else:
                known = list(_pairs(module, inputs, goals, drawn)) if size <= ROOM else None
                again = known.__iter__ if known is not None else lambda: _pairs(module, inputs, goals, drawn)
                fitted, bias = ridge(again, weight.flatten(1), weights)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # what is left of the network overflows: no fit
            return module
        before = bias.new_zeros(len(bias)) if module.bias is None else module.bias
        fits = fitted.isfinite().all() & bias.isfinite().all()  # not read here: it may lie on a GPU
        return clone(
            module,
            weight=torch.where(fits, fitted.view(weight.shape), weight),
            bias=torch.where(fits, bias, before),  # type: ignore[arg-type]
        )


def _pairs(
    module: nn.Module, inputs: Sequence[Tensor], goals: Sequence[Tensor], drawn: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the layer reads and what it should give, chunk by chunk, at the drawn positions (None: at all)."""
    start = 0
    for value, goal in zip(inputs, goals, strict=True):
        rows = None if drawn is None else part_of(drawn, start, len(goal)).to(goal.device)
        start += len(goal)
        yield _rows(module, value, rows), goal if rows is None else goal[rows]


def _fit_groups(
    module: nn.Conv2d, inputs: Sequence[Tensor], goals: Sequence[Tensor], drawn: Tensor | None, at_once: int
) -> tuple[Tensor, Tensor]:
    """Weights, (units, features of a group), and bias, (units,), fitted so many groups at a time."""
    fits = []
    units = module.out_channels // module.groups
    weight = module.weight.flatten(1).unflatten(0, (module.groups, units))
    channels = zip(*(value.split(at_once * module.weight.shape[1], 1) for value in inputs), strict=True)
    outputs = zip(*(goal.split(at_once * units, 1) for goal in goals), strict=True)
    for some, wanted, prior in zip(channels, outputs, weight.split(at_once), strict=True):
        x, y = (torch.cat(parts) for parts in zip(*_pairs(module, some, wanted, drawn), strict=True))
        fits.append(ridge_by_group(x.unflatten(1, (len(prior), -1)), y.unflatten(1, (len(prior), -1)), prior))
    fitted, bias = (torch.cat(parts).flatten(0, 1) for parts in zip(*fits, strict=True))
    return fitted, bias


def _behind_changes(graph: Graph, small: Graph) -> set[str]:
    """Layers that read something else than in the unpruned network, by name. What is changed is noted by the unpruned
    network's slots, since a branch without units leaves no step in the small one."""
    left, originals = small.network.modules_by_step(), graph.network.modules_by_step()
    changed: set[int] = set()
    behind = set()
    for step in graph.network.steps:
        reads_changed = not changed.isdisjoint(step.inputs)
        if reads_changed:
            behind.add(step.name)
        if reads_changed or left.get(step.name) is not originals[step.name]:
            changed.add(step.output)
    return behind


class _Unpruned:
    """What one repair after the other asks of the unpruned network: tokens' weights, and what its layers give (kept if
    there is room, else computed again for each)."""

    def __init__(self, graph: Graph, inputs: Batches, chunk: int) -> None:
        self.graph = graph
        self.weights = token_weights(graph, chunks_of(inputs, AT_ONCE))
        self._walk = lambda: graph.network.walk(chunks_of(inputs, chunk))
        self._kept = self._keep()

    def _keep(self) -> dict[str, list[Tensor]] | None:
        kept: dict[str, list[Tensor]] = {}
        room = ROOM
        for visit in self._walk():
            if isinstance(visit.module, (nn.Conv2d, nn.Linear)):
                kept[visit.name] = visit.outputs
                room -= sum(value.nbytes for value in visit.outputs)
                if room < 0:
                    return None
        return kept

    def outputs(self) -> Callable[[str], list[Tensor]]:
        """The outputs of a layer by its name. Layers are to be asked for in the network's order."""
        if self._kept is not None:
            return self._kept.__getitem__
        walk = self._walk()
        return lambda layer: next(visit.outputs for visit in walk if visit.name == layer)


def _goals(module: nn.Module, outputs: list[Tensor], live: Tensor | None) -> list[Tensor]:
    """What is wanted of a layer: the unpruned one's outputs, those with these indices (None: all its units')."""
    live = real_rows(module) if live is None else live
    if live is None:
        return outputs
    dim = 1 if isinstance(module, nn.Conv2d) else -1
    return [value.index_select(dim, live) for value in outputs]


def _rows(module: nn.Module, value: Tensor, rows: Tensor | None = None) -> Tensor:
    """What the layer reads at each position (at these, counted through the samples): (rows, features)."""
    if not isinstance(module, nn.Conv2d):
        flat = value.flatten(0, -2)
        return flat if rows is None else flat[rows]
    windows = _windows(module, value)
    if rows is None:
        return windows.reshape(-1, windows[0, 0, 0].numel())
    _, height, width = windows.shape[:3]
    image, pixel = rows // (height * width), rows % (height * width)
    return windows[image, pixel // width, pixel % width].flatten(1)


def _windows(module: nn.Conv2d, value: Tensor) -> Tensor:
    """A view of a convolution's patches: (samples, height, width, channels, kernel height, kernel width)."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    value = F.pad(value, module._reversed_padding_repeated_twice, mode)
    (samples, channels, *size), (batch, channel, *steps) = value.shape, value.stride()
    spans = [dilation * (kernel - 1) for dilation, kernel in zip(module.dilation, module.kernel_size, strict=True)]
    outside = [(size[axis] - spans[axis] - 1) // module.stride[axis] + 1 for axis in range(2)]
    return value.as_strided(
        (samples, *outside, channels, *module.kernel_size),
        (
            batch,
            *(steps[axis] * module.stride[axis] for axis in range(2)),
            channel,
            *(steps[axis] * module.dilation[axis] for axis in range(2)),
        ),
        value.storage_offset(),
    )


def _goal_rows(module: nn.Module, value: Tensor) -> Tensor:
    return value.permute(0, 2, 3, 1).flatten(0, 2) if isinstance(module, nn.Conv2d) else value.flatten(0, -2)
