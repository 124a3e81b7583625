"""Normalisations: by statistics of a training set (BatchNorm) and of the sample itself (all others)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..channels import State
from ..network import BATCH, clone
from .base import Operation, Relevance, operation
from .layers import parameters

if TYPE_CHECKING:
    from ..compaction import Compactor
    from ..graph.build import Builder

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@operation("aten.batch_norm.default", modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
class BatchNorm(Operation):
    """What follows no layer that it could be folded into. Its shift takes a bias's share: were all relevance passed on
    to a sum before it, which may be near zero where the result is not, it would grow from block to block."""

    relevance = Relevance.PROPORTIONAL
    blind = True

    def build(self, b: Builder, node: Any) -> int:
        source, weight, bias, mean, variance, training, _, eps = node.args[:8]
        owner = b.owner_of(weight if weight is not None else mean)
        if training or mean is None or not all(b.is_constant(value) for value in (weight, bias, mean, variance)):
            raise b.refused(node, "without running statistics: an image's logits would depend on its batch")
        rank = len(b.shape(source))
        kind = nn.BatchNorm1d if rank <= 3 else nn.BatchNorm2d if rank == 4 else nn.BatchNorm3d
        norm = kind(b.shape(source)[1], eps=eps)
        parameters(norm, *(None if value is None else b.constant(value) for value in (weight, bias)))
        norm.running_mean, norm.running_var = b.constant(mean).clone(), b.constant(variance).clone()
        norm.num_batches_tracked = None
        return b.emit(node, norm, (b.slot(source),), owner=owner)

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        if state is None:
            return c.emit(module, (slot,)), None
        if state.dim != 1 or not state.loose:  # what was zero is a constant now
            return c.emit(module, (c.expand(slot, state),)), None
        names = ("weight", "bias", "running_mean", "running_var")
        known = {name: getattr(module, name) for name in names if getattr(module, name) is not None}
        slices = {name: value.index_select(0, state.live) for name, value in known.items()}
        return c.emit(clone(module, num_features=len(state.live), **slices), (slot,)), state


class RMSNorm(nn.Module):
    """Division by the root of the mean square over the last dimensions."""

    def __init__(self, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> None:
        super().__init__()
        self.normalized_shape, self.eps = tuple(shape), eps
        self.weight: nn.Parameter | None
        parameters(self, weight, None)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)


@operation("aten.layer_norm.default", "aten.rms_norm.default", modules=(nn.LayerNorm, RMSNorm))
class LayerNorm(Operation):
    relevance = Relevance.NORMALISED

    def build(self, b: Builder, node: Any) -> int:
        shape, weight = node.args[1], b.arg(node, 2, "weight", None)
        tensor = None if weight is None else b.constant(weight)
        owner = None if weight is None else b.owner_of(weight)
        if b.name_of(node) == "rms_norm":
            module: nn.Module = RMSNorm(shape, tensor, b.arg(node, 3, "eps", None))
        else:
            bias = b.arg(node, 3, "bias", None)
            module = nn.LayerNorm(list(shape), b.arg(node, 4, "eps", 1e-5), elementwise_affine=False)
            parameters(module, tensor, None if bias is None else b.constant(bias))
        return b.emit(node, module, (b.slot(node.args[0]),), owner=owner)

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        apart = len(c.shape(inputs[0])) - len(module.normalized_shape)
        if state is None or (state.loose and state.dim < apart):
            return c.emit(module, (slot,)), state
        return c.emit(module, (c.expand(slot, state),)), None


@operation("aten.group_norm.default", modules=(nn.GroupNorm,))
class GroupNorm(Operation):
    relevance = Relevance.NORMALISED

    def build(self, b: Builder, node: Any) -> int:
        weight, bias = b.arg(node, 2, "weight", None), b.arg(node, 3, "bias", None)
        norm = nn.GroupNorm(node.args[1], b.shape(node.args[0])[1], b.arg(node, 4, "eps", 1e-5), affine=False)
        parameters(norm, *(None if value is None else b.constant(value) for value in (weight, bias)))
        owner = None if weight is None else b.owner_of(weight)
        return b.emit(node, norm, (b.slot(node.args[0]),), owner=owner)

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        return c.emit(module, (c.expand(*c.input(inputs[0])),)), None


@operation("aten.instance_norm.default")
class InstanceNorm(GroupNorm):
    """GroupNorm with a group a channel."""

    def build(self, b: Builder, node: Any) -> int:
        source, weight, bias, _, _, by_sample, _, eps = node.args[:8]
        if not by_sample:
            raise b.refused(node, "by running statistics")
        size = b.shape(source)[1]
        norm = nn.GroupNorm(size, size, eps, affine=False)
        parameters(norm, *(None if value is None else b.constant(value) for value in (weight, bias)))
        return b.emit(node, norm, (b.slot(source),), owner=None if weight is None else b.owner_of(weight))


class Statistic(nn.Module):
    """A norm, a variance or a standard deviation over dimensions."""

    def __init__(self, name: str, dims: Sequence[int], keepdim: bool, option: float) -> None:
        super().__init__()
        self.name, self.dims, self.keepdim, self.option = name, tuple(dims), keepdim, option

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "norm":
            return torch.linalg.vector_norm(x, self.option, self.dims, self.keepdim)
        result: Tensor = getattr(torch, self.name)(x, self.dims, correction=self.option, keepdim=self.keepdim)
        return result


@operation(
    *("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim", "aten.var.correction", "aten.std.correction"),
    *("aten.var.dim", "aten.std.dim"),
    modules=(Statistic,),
)
class Scale(Operation):
    """What others are divided by: a constant as far as relevance is concerned, as LayerNorm's standard deviation is
    (Ali et al. 2022, arXiv 2202.07304, section 3.2)."""

    relevance = Relevance.STOPPED

    def build(self, b: Builder, node: Any) -> int:
        name, rank = b.name_of(node), len(b.shape(node.args[0]))
        if name in ("linalg_vector_norm", "norm"):
            option = b.arg(node, 1, "ord", 2)
            dims, keepdim = b.arg(node, 2, "dim", None), b.arg(node, 3, "keepdim", False)
            name = "norm"
        elif str(node.target).endswith("correction"):
            dims, option = b.arg(node, 1, "dim", None), node.kwargs.get("correction", 1)
            keepdim = node.kwargs.get("keepdim", False)
        else:
            dims, keepdim = b.arg(node, 1, "dim", None), b.arg(node, 3, "keepdim", False)
            option = int(b.arg(node, 2, "unbiased", True))
        dims = sorted(dim % rank for dim in (dims if dims else range(rank)))
        if any(b.shape(node.args[0])[dim] % BATCH == 0 for dim in dims):
            raise b.refused(node, "over the images of a batch")
        module = Statistic(name, dims, bool(keepdim), 2 if option is None else option)
        return b.emit(node, module, (b.slot(node.args[0]),))

    def nonnegative(self, module: Any, inputs: Sequence[bool]) -> bool:
        return True

    def gate(self, module: Any, inputs: Sequence[bool]) -> bool:
        return True

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        if state is None or state.dim in module.dims:
            return c.emit(module, (c.expand(slot, state),)), None
        gone = 0 if module.keepdim else sum(dim < state.dim for dim in module.dims)
        return c.emit(module, (slot,)), replace(state, dim=state.dim - gone)
