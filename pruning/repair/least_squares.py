"""Layers refitted by least squares, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compaction import check_masks, live_rows
from ..curve import Batches
from ..graph import Graph
from ..masks import Masks
from ..network import Visit, clone
from ..operations.layers import real_rows
from .base import Chunks, Repair
from .images import Mixed
from .ridge import drawn_rows, fit, part_of
from .tokens import AT_ONCE, token_weights

ENOUGH = 8
"""Rows for each feature of a layer: more make it hardly better (benchmarks/README.md)."""
FEW = 256
"""Features of which a layer has at least so many when rows are drawn: more rows cost nothing there."""
LAYER_BYTES = 2**27
"""Bytes that the images may take which walk through a network abreast, of what one layer reads or gives."""
PIXELS = 2**18
"""Pixels in a chunk of images, about: enough for a layer to be fast, few enough to come up to the others later."""


@dataclass
class LeastSquaresRepair(Repair):
    """Layers with fewer inputs than they had, refitted by ridge regression on the unpruned network's outputs, and the
    layers behind them, which make up for what is still missing.

    A row is a sample at a spatial position or token; the features are what the layer reads there (for a convolution
    the patch). Weights W and bias b minimise `|X W + b - Y|^2 + ridge |W - V|^2`, where Y is the unpruned network's
    output of that layer and V the layer's own weights, sliced: so with few rows the layer stays what it was
    (`ridge.fit`). Rows that are tokens count by how much the prediction depends on them (`token_weights`): a class
    token for more than one of many patches. Where a layer's values are so large that all images' would not fit into
    `LAYER_BYTES`, it is fitted to as many as do; the others join further up. So memory does not grow with the images.

    inputs: float images, unlabelled; averages of two are read too (`Mixed`).
    most: a layer whose rows and features are both more is left as it is.
    enough: of rows, for each of the unpruned layer's features (of `FEW` at least); of many more, at least so many are
        drawn (`drawn_rows`), and of tokens anyway `least`, since a few of them matter most.
    """

    inputs: Batches
    most: int = 5000
    enough: int = ENOUGH
    least: int = 8192
    _unpruned: _Unpruned | None = field(default=None, init=False, repr=False, compare=False)
    name = "least-squares"

    @torch.no_grad()
    def __call__(self, graph: Graph, small: Graph, masks: Masks) -> Graph:
        masks = check_masks(graph, masks)
        if self._unpruned is None or self._unpruned.graph is not graph:
            self._unpruned = _Unpruned(graph, self)
        modules: dict[str, nn.Module] = {}
        behind = _behind_changes(graph, small)
        for visit in small.network.walk(self._unpruned.chunks, start=1):
            layer = visit.module
            if visit.name in behind and isinstance(layer, (nn.Conv2d, nn.Linear)):
                live = live_rows(graph, masks, visit.name)
                modules[visit.name] = visit.module = self._unpruned.goals[visit.name].fitted(visit, live, self.most)
        return replace(small, network=small.network.replaced(modules))

    def wanted(self, layer: nn.Module, weights: Tensor | None) -> int:
        """How many rows a layer is fitted to, where there are so many: those needed that fit into `LAYER_BYTES`."""
        weight: Tensor = layer.weight  # type: ignore[assignment]
        features, groups = weight[0].numel(), getattr(layer, "groups", 1)
        wanted = max(self.enough * max(features, FEW), 0 if weights is None else self.least)
        return min(wanted, max(features, LAYER_BYTES // max(1, features * groups * weight.element_size())))


@dataclass(frozen=True)
class _Goals:
    """What a layer is to give: the unpruned network's outputs at the drawn rows.

    rows: indices of these in each chunk of the samples that has some, counted through its positions. values: (rows of
    all chunks, outputs). weights: how much each row counts, (rows,), of mean 1; None for all alike. units:
    which outputs are units, where the unpruned layer has others; None: all.
    """

    rows: Sequence[Tensor]
    values: Tensor
    weights: Tensor | None
    units: Tensor | None

    def fitted(self, visit: Visit, live: Tensor | None, most: int) -> nn.Module:
        """The layer that comes nearest. live: which of the outputs it has (None: all). As it is, where there is nothing
        to fit: a layer without units left keeps one channel of zeros; attention without heads its bias, which the
        layers behind it make as good as the mean of what it gave; and where no fit is finite, since what is left of the
        network overflows."""
        layer = visit.module
        weight: Tensor = layer.weight  # type: ignore[assignment]
        live = self.units if live is None else live
        features, y = weight[0].numel(), self.values if live is None else self.values[:, live]
        if (real := real_rows(layer)) is not None and y.shape[1] == len(real):  # the others give zeros
            y = y.new_zeros(len(y), len(weight)).index_copy_(1, real, y)
        if features == 0 or min(features, len(y)) > most or y.shape[1] != len(weight):
            return layer
        visit.join(len(self.rows))
        given = visit.arguments[0][0]
        taps = _seen_taps(layer, given.shape[2:])
        prior = _of_taps(weight, taps)
        groups = getattr(layer, "groups", 1)
        last = groups == 1 and given.dim() == 4 and given.stride(1) == 1 < given.shape[1]  # channels lie side by side
        x = torch.cat(
            [
                _rows(layer, values[0], rows, taps, last)
                for values, rows in zip(visit.arguments, self.rows, strict=False)
            ]
        )
        flat = (prior.permute(0, 2, 3, 1) if last else prior).flatten(1)
        if groups > 1:
            x, y = (each.unflatten(1, (groups, -1)).transpose(0, 1) for each in (x, y))
            flat = flat.unflatten(0, (groups, -1))
        new, bias = fit(x, y, flat, self.weights)
        if last:
            new = new.view(len(prior), *prior.shape[2:], -1).permute(0, 3, 1, 2)
        new, bias = new.reshape(prior.shape), bias.flatten()
        before = bias.new_zeros(len(bias)) if layer.bias is None else layer.bias
        finite = new.isfinite().all() & bias.isfinite().all()  # not read here: it may lie on a GPU
        whole = weight.clone()
        _of_taps(whole, taps).copy_(torch.where(finite, new, prior))
        return clone(layer, weight=whole, bias=torch.where(finite, bias, before))  # type: ignore[arg-type]


class _Unpruned:
    """What one repair after the other asks of the unpruned network: the images, and what its layers give for them."""

    def __init__(self, graph: Graph, repair: LeastSquaresRepair) -> None:
        self.graph = graph
        mixed = Mixed(repair.inputs)
        height, width = mixed[0:1].shape[-2:]
        self.chunks = Chunks(mixed, max(1, min(64, PIXELS // (height * width))))
        weights = token_weights(graph, Chunks(mixed, AT_ONCE))
        self.goals = {
            visit.name: self._goals(visit, repair, weights.get(visit.name))
            for visit in graph.network.walk(self.chunks, start=1)
            if isinstance(visit.module, (nn.Conv2d, nn.Linear))
        }

    def _goals(self, visit: Visit, repair: LeastSquaresRepair, weights: Tensor | None) -> _Goals:
        layer, of_chunk = visit.module, len(self.chunks[0])
        wanted = repair.wanted(layer, weights)
        size = max(1, max(visit.arguments[0][0].nbytes, visit.outputs[0].nbytes) // of_chunk)
        positions = -(-len(_goal_rows(layer, visit.outputs[0])) // of_chunk)  # of an image
        images = min(len(self.chunks.images), max(LAYER_BYTES // size, -(-wanted // positions)))
        visit.join(-(-images // of_chunk))
        goals = [_goal_rows(layer, output) for output in visit.outputs[: -(-images // of_chunk)]]
        count = min(images * positions, sum(map(len, goals)))
        drawn = drawn_rows(count, min(count, wanted))
        starts = accumulate(map(len, goals), initial=0)
        rows = [part_of(drawn, start, len(goal)).to(goal.device) for start, goal in zip(starts, goals, strict=False)]
        values = torch.cat([goal[some] for goal, some in zip(goals, rows, strict=True)])
        return _Goals(rows, values, None if weights is None else weights[drawn.to(weights.device)], real_rows(layer))


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


def _seen_taps(module: nn.Module, size: Sequence[int]) -> tuple[slice, ...]:
    """The taps of a convolution's kernel that meet a pixel, along each axis of maps of this size: on maps of one pixel
    most of a kernel meets padding only, of which there is nothing to learn. Empty for a linear layer."""
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
        return ()
    found = []
    for axis, (before, after) in enumerate(_pads(module)):
        stride, dilation, taps = module.stride[axis], module.dilation[axis], module.kernel_size[axis]
        outputs = (size[axis] + before + after - dilation * (taps - 1) - 1) // stride + 1
        meets = [
            any(0 <= out * stride - before + tap * dilation < size[axis] for out in range(outputs))
            for tap in range(taps)
        ]
        found.append(slice(meets.index(True), taps - meets[::-1].index(True)) if any(meets) else slice(0, taps))
    return tuple(found)


def _of_taps(value: Tensor, taps: Sequence[slice]) -> Tensor:
    """The part of a kernel, or of patches, that belongs to these taps; all of it without any."""
    return value[..., taps[0], taps[1]] if taps else value


def _pads(module: nn.Conv2d) -> list[tuple[int, int]]:
    """Pixels of padding before and after, along each axis: as the convolution's own padding says now."""
    if module.padding == "valid":
        return [(0, 0), (0, 0)]
    if module.padding == "same":
        spans = [dilation * (taps - 1) for dilation, taps in zip(module.dilation, module.kernel_size, strict=True)]
        return [(span // 2, span - span // 2) for span in spans]
    return [(int(pad), int(pad)) for pad in module.padding]


def _rows(
    module: nn.Module, value: Tensor, rows: Tensor | None = None, taps: tuple[slice, ...] = (), last: bool = False
) -> Tensor:
    """What the layer reads at each position (at these, counted through the samples): (rows, features).

    taps: of a convolution's kernel, along each axis; all without any. last: the channels of a patch after its pixels,
    which is several times as fast where they lie so in memory.
    """
    if not isinstance(module, nn.Conv2d):
        flat = value.flatten(0, -2)
        return flat if rows is None else flat[rows]
    windows = _of_taps(_windows(module, value), taps)
    if last:
        windows = windows.permute(0, 1, 2, 4, 5, 3)
    if rows is None:
        return windows.reshape(-1, windows[0, 0, 0].numel())
    _, height, width = windows.shape[:3]
    image, pixel = rows // (height * width), rows % (height * width)
    return windows[image, pixel // width, pixel % width].flatten(1)


def _windows(module: nn.Conv2d, value: Tensor) -> Tensor:
    """A view of a convolution's patches: (samples, height, width, channels, kernel height, kernel width)."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    value = F.pad(value, [pad for of_axis in reversed(_pads(module)) for pad in of_axis], mode)
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
