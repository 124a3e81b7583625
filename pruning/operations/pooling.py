"""Pooling, sums and means over dimensions, and other means of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..channels import State
from ..modules import Mean
from ..network import BATCH
from .base import KeepsSigns, Relevance, operation

if TYPE_CHECKING:
    from ..compaction import Compactor
    from ..graph.build import Builder


class PoolSquare(nn.AdaptiveAvgPool2d):
    """Average pooling of a whole map by a window that was as large as the map when the model was traced: of square
    maps only, since one side may be meant by both sides of the window."""

    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[-2:]
        if height != width:
            raise ValueError(
                f"the model pools over squares as large as one side of its maps, which are {height} x {width}"
            )
        return super().forward(input)


class Reduce(nn.Module):
    """A sum, or the largest or smallest value, over dimensions."""

    def __init__(self, name: str, dims: Sequence[int], keepdim: bool) -> None:
        super().__init__()
        self.name, self.dims, self.keepdim = name, tuple(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = getattr(torch, self.name)(x, self.dims, keepdim=self.keepdim)
        return result


class Resize(nn.Module):
    """Weighted means of neighbours: bilinear upsampling, pooling to a size, over one dimension or two."""

    def __init__(self, function: Callable[..., Tensor], args: tuple) -> None:
        super().__init__()
        self.function, self.args = function, args

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.args)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


class Local(KeepsSigns):
    """Of neighbours in the last dimensions, channel by channel."""

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        if state is not None and state.dim >= 2:
            return c.emit(module, (c.expand(slot, state),)), None
        return c.emit(module, (slot,)), state


def _pair(value: object) -> tuple:
    value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return value * 2 if len(value) == 1 else value


@operation("aten.max_pool2d.default", "aten.adaptive_max_pool2d.default", modules=(nn.MaxPool2d, nn.AdaptiveMaxPool2d))
class MaxPool(Local):
    relevance = Relevance.ROUTED
    passes_zeros = True

    def build(self, b: Builder, node: Any) -> int:
        kernel = _pair(node.args[1])
        if b.name_of(node) == "adaptive_max_pool2d":
            return b.emit(node, nn.AdaptiveMaxPool2d(kernel), (b.slot(node.args[0]),))
        stride, padding, dilation = (
            b.arg(node, 2 + k, key, default)
            for k, (key, default) in enumerate((("stride", None), ("padding", 0), ("dilation", 1)))
        )
        pool = nn.MaxPool2d(
            kernel,
            _pair(stride) if stride else None,
            _pair(padding),
            _pair(dilation),
            ceil_mode=b.arg(node, 5, "ceil_mode", False),
        )
        return b.emit(node, pool, (b.slot(node.args[0]),))

    def part(self, b: Builder, node: Any, index: int, reader: Any) -> int:
        if index:
            raise b.refused(node, "the places of which are read")
        return b.slot(node)


@operation(
    *("aten.avg_pool2d.default", "aten.adaptive_avg_pool2d.default"), modules=(nn.AvgPool2d, nn.AdaptiveAvgPool2d)
)
class AveragePool(Local):
    relevance = Relevance.PROPORTIONAL
    blind = True

    def build(self, b: Builder, node: Any) -> int:
        slots = (b.slot(node.args[0]),)
        size = _pair(node.args[1])
        if b.name_of(node) == "adaptive_avg_pool2d":
            return b.emit(node, nn.AdaptiveAvgPool2d(size), slots)
        stride, padding = b.arg(node, 2, "stride", None), _pair(b.arg(node, 3, "padding", 0))
        ceil, counted = b.arg(node, 4, "ceil_mode", False), b.arg(node, 5, "count_include_pad", True)
        divisor = b.arg(node, 6, "divisor_override", None)
        if size == b.shape(node.args[0])[2:] and not any(padding) and divisor is None:
            return b.emit(node, PoolSquare(1) if size[0] == size[1] else nn.AdaptiveAvgPool2d(1), slots)
        pool = nn.AvgPool2d(size, _pair(stride) if stride else None, padding, ceil, counted, divisor)
        return b.emit(node, pool, slots)


@operation(
    *(f"aten.upsample_{kind}2d.{overload}" for kind in ("bilinear", "bicubic") for overload in ("vec", "default")),
    *("aten.adaptive_avg_pool1d.default", "aten.avg_pool1d.default"),
    modules=(Resize,),
)
class Resized(Local):
    relevance = Relevance.PROPORTIONAL
    blind = True

    def build(self, b: Builder, node: Any) -> int:
        name = b.name_of(node)
        if name == "avg_pool1d":
            module = Resize(F.avg_pool1d, tuple(node.args[1:]))
        elif name == "adaptive_avg_pool1d":
            module = Resize(F.adaptive_avg_pool1d, (node.args[1],))
        else:
            mode = "bilinear" if "bilinear" in name else "bicubic"
            corners = b.arg(node, 2, "align_corners", False)
            scales = b.arg(node, 3, "scale_factors", None) if str(node.target).endswith("vec") else None
            size = None if scales else tuple(b.shape(node)[2:])
            module = Resize(F.interpolate, (size, tuple(scales) if scales else None, mode, corners))
        return b.emit(node, module, (b.slot(node.args[0]),))

    def nonnegative(self, module: Any, inputs: Sequence[bool]) -> bool:
        return inputs[0] and not (module.args and "bicubic" in module.args)


class Reduction(KeepsSigns):
    """Over dimensions."""

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        if state is None:
            return c.emit(module, (slot,)), None
        if state.dim in module.dims:
            return c.emit(module, (c.expand(slot, state),)), None
        gone = 0 if module.keepdim else sum(dim < state.dim for dim in module.dims)
        return c.emit(module, (slot,)), replace(state, dim=state.dim - gone)


def _dims(b: Builder, node: Any) -> tuple[int, ...]:
    rank = len(b.shape(node.args[0]))
    dims = b.arg(node, 1, "dim", None)
    dims = (dims,) if isinstance(dims, int) else tuple(dims or range(rank))
    dims = tuple(sorted(dim % rank for dim in dims))
    if any(b.shape(node.args[0])[dim] % BATCH == 0 for dim in dims):
        raise b.refused(node, "over the images of a batch")
    return dims


@operation("aten.mean.dim", "aten.sum.dim_IntList", modules=(Mean,))
class MeanOrSum(Reduction):
    relevance = Relevance.PROPORTIONAL
    blind = True

    def build(self, b: Builder, node: Any) -> int:
        dims, keepdim = _dims(b, node), b.arg(node, 2, "keepdim", False)
        module = Mean(dims, keepdim) if b.name_of(node) == "mean" else Reduce("sum", dims, keepdim)
        return b.emit(node, module, (b.slot(node.args[0]),))


@operation("aten.amax.default", "aten.amin.default")
class Extreme(Reduction):
    relevance = Relevance.ROUTED

    def build(self, b: Builder, node: Any) -> int:
        dims, keepdim = _dims(b, node), b.arg(node, 2, "keepdim", False)
        return b.emit(node, Extremes(b.name_of(node), dims, keepdim), (b.slot(node.args[0]),))


class Extremes(Reduce):
    """The largest or smallest value over dimensions."""


@operation("aten.max.dim", "aten.min.dim", modules=(Extremes,))
class ExtremeAndPlace(Extreme):
    """Of whose values and places only the values may be read."""

    def build(self, b: Builder, node: Any) -> int:
        dims, keepdim = _dims(b, node), b.arg(node, 2, "keepdim", False)
        return b.emit(node, Extremes(f"a{b.name_of(node)}", dims, keepdim), (b.slot(node.args[0]),))

    def part(self, b: Builder, node: Any, index: int, reader: Any) -> int:
        if index:
            raise b.refused(node, "the places of which are read")
        return b.slot(node)


operation(modules=(Reduce,))(MeanOrSum)
