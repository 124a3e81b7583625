"""Layers with weights, which take the composite's rules: linear layers and convolutions of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..channels import State, select
from ..convolution import Convolution
from ..modules import NoFeatures, Realign
from ..network import Norm, clone
from .base import Operation, Relevance, operation

if TYPE_CHECKING:
    from ..compaction import Compactor
    from ..graph.build import Builder


def parameters(module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> None:
    """Gives a module copies of a weight and a bias."""
    for key, value in (("weight", weight), ("bias", bias)):
        parameter = None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)
        module.register_parameter(key, parameter)


@operation("aten.linear.default", "aten.addmm.default", "aten.mm.default", modules=(nn.Linear,))
class Linear(Operation):
    relevance = Relevance.RULE
    blind = True

    def build(self, b: Builder, node: Any) -> int:
        name = b.name_of(node)
        source, weight, bias = node.args[0], node.args[1], b.arg(node, 2, "bias", None)
        if name == "addmm":
            bias, source, weight = node.args[:3]
        if not b.is_constant(weight) or not b.is_constant(bias):
            raise b.refused(node)
        matrix = b.constant(weight) if name == "linear" else b.constant(weight).T
        layer = nn.utils.skip_init(nn.Linear, matrix.shape[1], matrix.shape[0], bias=bias is not None)
        parameters(layer, matrix, None if bias is None else b.constant(bias).expand(len(matrix)))
        return b.emit(node, layer, (b.slot(source),), owner=b.owner_of(weight), layer=True)

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        last = len(c.shape(inputs[0])) - 1
        slot, state = c.input(inputs[0])
        rows, result = c.units(last, module.out_features)
        if state is not None and state.dim != last:
            if result is None and (module.bias is None or state.loose):
                return c.emit(module, (slot,)), state  # what is zero stays so
            slot, state = c.expand(slot, state), None
        if state is not None and state.empty and (tokens := c.beside(c.name, inputs[0])) is not None:
            slot = c.emit(NoFeatures(), (tokens,), "_none")
            weight = module.weight[:, :0]
        else:
            weight = module.weight if state is None else select(module.weight, 1, state.live)
        bias = module.bias
        if rows is not None:
            weight = select(weight, 0, rows)
            bias = None if bias is None else select(bias, 0, rows)
            if result is not None and result.empty and not result.loose:
                weight, bias = weight * 0, None if bias is None else bias * 0
        if weight is module.weight:
            return c.emit(module, (slot,)), result
        sizes = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
        return c.emit(clone(module, weight=weight, bias=bias, **sizes), (slot,)), result


@operation("aten.conv2d.default", "aten.conv2d.padding", modules=(nn.Conv2d,))
class Conv2d(Operation):
    relevance = Relevance.RULE
    blind = True

    def build(self, b: Builder, node: Any) -> int:
        source, weight, bias = node.args[0], node.args[1], b.arg(node, 2, "bias", None)
        if not b.is_constant(weight) or not b.is_constant(bias) or len(b.shape(source)) != 4:
            raise b.refused(node)
        kernel = b.constant(weight)
        stride, padding, dilation = (
            b.arg(node, 3 + k, key, default)
            for k, (key, default) in enumerate((("stride", 1), ("padding", 0), ("dilation", 1)))
        )
        groups = b.arg(node, 6, "groups", 1)
        sizes = [tuple(value) if len(value) == 2 else (value[0],) * 2 for value in map(_list, (stride, dilation))]
        if isinstance(padding, str):
            if padding == "same" and any(d * (k - 1) % 2 for d, k in zip(sizes[1], kernel.shape[2:], strict=True)):
                raise b.refused(node)
            same = [d * (k - 1) // 2 for d, k in zip(sizes[1], kernel.shape[2:], strict=True)]
            padding = same if padding == "same" else 0
        padding = _list(padding)
        layer = nn.utils.skip_init(
            Convolution,
            kernel.shape[1] * groups,
            len(kernel),
            tuple(kernel.shape[2:]),
            stride=sizes[0],
            padding=tuple(padding) if len(padding) == 2 else (padding[0],) * 2,
            dilation=sizes[1],
            groups=groups,
            bias=bias is not None,
        )
        parameters(layer, kernel, None if bias is None else b.constant(bias))
        return b.emit(node, layer, (b.slot(source),), owner=b.owner_of(weight), layer=True)

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        if state is not None and state.dim != 1:
            slot, state = c.expand(slot, state), None
        rows, result = c.units(1, module.out_channels)
        if rows is None and state is None:
            return c.emit(module, (slot,)), result
        if module.groups > 1:
            return _grouped(module, c, slot, state, rows, result)
        weight = module.weight if rows is None else select(module.weight, 0, rows)
        bias = module.bias if module.bias is None or rows is None else select(module.bias, 0, rows)
        if state is not None:
            weight = select(weight, 1, state.live)
        if result is not None and result.empty and not result.loose:
            weight, bias = weight * 0, None if bias is None else bias * 0
        sizes = {"out_channels": weight.shape[0], "in_channels": weight.shape[1]}
        return c.emit(clone(module, weight=weight, bias=bias, **sizes), (slot,)), result


def _list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _grouped(
    module: nn.Conv2d, c: Compactor, slot: int, state: State, rows: Tensor | None, result: State
) -> tuple[int, State]:
    """A grouped convolution keeps equal groups: those with no output left go, the others are as wide as the
    widest of them. Depthwise convolutions, where a group is one channel, lose exactly what is pruned."""
    size, groups = module.out_channels, module.groups
    width_out, width_in = size // groups, module.in_channels // groups
    kept = torch.arange(size, device=c.device) if rows is None else rows
    if result is not None and result.empty and not result.loose:
        first = torch.zeros(1, dtype=torch.long, device=c.device)
        if state is None or len(state.live) > 1:
            slot = c.emit(Realign(1, first), (slot,), "_first")
        bias = None if module.bias is None else module.bias[:1] * 0
        empty = clone(module, weight=module.weight[:1, :1] * 0, bias=bias, groups=1, in_channels=1, out_channels=1)
        return c.emit(empty, (slot,)), result
    live = torch.arange(module.in_channels, device=c.device) if state is None else state.live
    if state is not None and state.empty:
        live = live[:0]
    alive = (kept // width_out).unique()  # groups that still have outputs
    table = _by_group(kept, width_out, alive)
    columns = _by_group(live, width_in, alive)
    if columns.shape[1] == 0:
        columns = columns.new_full((len(alive), 1), -1)
    wanted = columns.flatten()
    source = wanted
    if state is not None:
        source = state.positions()[wanted].masked_fill(wanted < 0, -1)
    present = module.in_channels if state is None else len(state.live)
    if len(source) != present or not torch.equal(source, torch.arange(present, device=c.device)):
        slot = c.emit(Realign(1, source), (slot,), "_realign")
    # padded rows and columns are zero: they read, and give, zeros
    flat_rows, row_pad = table.flatten(), (table.flatten() < 0)
    weight = module.weight[flat_rows.clamp(min=0)]
    local = (columns % width_in).repeat_interleave(table.shape[1], 0)
    index = local.view(len(local), -1, 1, 1).expand(-1, -1, *weight.shape[2:])
    pad = (columns < 0).repeat_interleave(table.shape[1], 0) | row_pad.unsqueeze(1)
    weight = weight.gather(1, index).masked_fill(pad.view(*pad.shape, 1, 1), 0)
    bias = None
    if module.bias is not None:
        bias = module.bias[flat_rows.clamp(min=0)].masked_fill(row_pad, 0)
    reduced = clone(
        module,
        weight=weight.contiguous(),
        bias=bias,
        groups=len(alive),
        in_channels=weight.shape[1] * len(alive),
        out_channels=weight.shape[0],
        real_rows=_real_rows(module, flat_rows, row_pad),
    )
    if (norm := c.graph.norms.get(c.name)) is not None:
        picked = flat_rows.clamp(min=0)
        gamma, beta = (values[picked].masked_fill(row_pad, 0) for values in (norm.gamma, norm.beta))
        c.norms[c.name] = Norm(gamma, beta, norm.std[picked], norm.eps)
    slot = c.emit(reduced, (slot,))
    if bool(row_pad.any()):
        slot = c.emit(Realign(1, (~row_pad).nonzero().flatten()), (slot,), "_unpad")
    return slot, result


def real_rows(module: nn.Module) -> Tensor | None:
    """Which outputs of a compact layer are its units, where it has others to fill up groups; None: all."""
    rows: Tensor | None = getattr(module, "real_rows", None)
    return rows if rows is None else rows.to(module.weight.device)  # type: ignore[arg-type]


def _real_rows(module: nn.Conv2d, picked: Tensor, padding: Tensor) -> Tensor | None:
    before = real_rows(module)
    real = ~padding if before is None else ~padding & torch.isin(picked, before)
    return None if bool(real.all()) else real.nonzero().flatten()


def _by_group(indices: Tensor, width: int, groups: Tensor) -> Tensor:
    """Ascending indices as a table with a row for each group, -1 where a group has fewer than the most."""
    of = indices // width
    row = torch.searchsorted(groups, of).clamp(max=len(groups) - 1)
    inside = groups[row] == of
    indices, row = indices[inside], row[inside]
    counts = torch.bincount(row, minlength=len(groups))
    column = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    table = indices.new_full((len(groups), int(counts.max())), -1)
    table[row, column] = indices
    return table


class LinearMap(nn.Module):
    """What is linear in its input, without units of its own: a convolution over other dimensions than an image's, a
    product with a constant. tensors: its other arguments, in order."""

    def __init__(self, function: Callable[..., Tensor], tensors: tuple[Tensor | None, ...], args: tuple = ()) -> None:
        super().__init__()
        self.function, self.args, self.count = function, args, len(tensors)
        for index, value in enumerate(tensors):
            self.register_buffer(f"tensor{index}", None if value is None else value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(getattr(self, f"tensor{index}") for index in range(self.count)), *self.args)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


def product_before(x: Tensor, matrix: Tensor) -> Tensor:
    """The product of a constant and an activation, in this order."""
    return matrix @ x


@operation(
    *("aten.conv1d.default", "aten.conv3d.default", "aten.conv_transpose2d.input", "aten.conv_transpose1d.default"),
    modules=(LinearMap,),
)
class OtherLinear(Operation):
    relevance = Relevance.PROPORTIONAL
    blind = True

    def build(self, b: Builder, node: Any) -> int:
        if not all(b.is_constant(item) for item in node.args[1:3]):
            raise b.refused(node)
        function = getattr(F, b.name_of(node))
        tensors = tuple(None if item is None else b.constant(item) for item in node.args[1:3])
        args = tuple(node.args[3:])
        return b.emit(node, LinearMap(function, tensors, args), (b.slot(node.args[0]),), owner=b.owner_of(node.args[1]))

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        return c.emit(module, (c.expand(*c.input(inputs[0])),)), None
