"""Other shapes: views, flattened and split dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..channels import State, channels
from ..network import BATCH
from .base import Routing, operation

if TYPE_CHECKING:
    from ..compaction import Compactor
    from ..graph.build import Builder

Groups = tuple[tuple[int, tuple[int | None, ...]], ...]


class Reshape(nn.Module):
    """A reshaping as groups of dimensions that become other groups, so that it does not depend on sizes that it leaves.

    groups: how many dimensions are read, and the sizes that they become; None for the one that takes the rest. A
    single size is whatever it comes to.
    """

    def __init__(self, groups: Groups) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        sizes: list[int] = []
        first = 0
        for count, after in self.groups:
            before = x.shape[first : first + count]
            first += count
            if len(after) == 1:
                sizes.append(before[0] if count == 1 else math.prod(before))
            else:
                fixed = math.prod(size for size in after if size is not None)
                sizes += [math.prod(before) // fixed if size is None else size for size in after]
        return x.reshape(sizes)


# -- reshaping ----------------------------------------------------------------------------------------


def grouped(before: Sequence[int], after: Sequence[int]) -> Groups:
    """The smallest groups of dimensions that a reshaping makes into groups of the same product."""
    groups: list[tuple[int, tuple[int | None, ...]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        first, start = i, j
        product_before, product_after = 1, 1
        if i < len(before):
            product_before, i = before[i], i + 1
        if j < len(after):
            product_after, j = after[j], j + 1
        while product_before != product_after:
            if product_before < product_after:
                product_before, i = product_before * before[i], i + 1
            else:
                product_after, j = product_after * after[j], j + 1
        sizes = list[int | None](after[start:j])
        if len(sizes) > 1:  # the one that depends on the number of images takes the rest, else the largest
            rest = max(range(len(sizes)), key=lambda k: (after[start + k] % BATCH == 0, after[start + k]))
            sizes[rest] = None
        groups.append((i - first, tuple(sizes)))
    return tuple(groups)


def reshaping(b: Builder, node: Any, source: Any) -> int:
    """The step of any operation that only changes a value's shape."""
    before, after = b.shape(source), b.shape(node)
    if before == after:
        return b.same(node, source)
    if len(after) == 2 and len(before) > 2 and before[0] == after[0]:
        return b.emit(node, nn.Flatten(), (b.slot(source),))
    return b.emit(node, Reshape(grouped(before, after)), (b.slot(source),))


@operation(
    *(f"aten.{name}.default" for name in ("reshape", "view", "_unsafe_view", "reshape_as", "view_as", "squeeze")),
    *("aten.flatten.using_ints", "aten.unflatten.int", "aten.squeeze.dim", "aten.squeeze.dims"),
    *("aten.unsqueeze.default", "aten._reshape_alias.default"),
    modules=(Reshape, nn.Flatten),
)
class ChangeShape(Routing):
    views = True
    passes_zeros = True

    def build(self, b: Builder, node: Any) -> int:
        return reshaping(b, node, node.args[0])

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        before, after = c.shape(inputs[0]), c.shape(c.output)
        if state is None:
            return c.emit(module, (slot,)), None
        groups = list(grouped(before, after))
        index = first = start = 0  # of the group that the channels' dimension belongs to
        while not first <= state.dim < first + groups[index][0]:
            first, start, index = first + groups[index][0], start + len(groups[index][1]), index + 1
        count, sizes = groups[index]
        sizes_after = after[start : start + len(sizes)]
        if count == len(sizes) == 1:
            return c.emit(module, (slot,)), replace(state, dim=start)
        inside = before[first : first + count]
        if any(size % BATCH == 0 for size in (*inside, *sizes_after)):
            return c.emit(module, (c.expand(slot, state),)), None
        left = torch.zeros(inside, dtype=torch.bool, device=c.device)
        left.index_fill_(state.dim - first, state.live, True)
        for dim in range(len(sizes_after)):  # the live ones are a range along one dimension, or scattered
            spread = left.view(sizes_after).movedim(dim, 0).reshape(sizes_after[dim], -1)
            kept = spread.any(1)
            if bool((spread == kept[:, None]).all()):
                break
        else:
            return c.emit(module, (c.expand(slot, state),)), None
        if len(sizes) > 1:
            groups[index] = (count, tuple(None if k == dim else size for k, size in enumerate(sizes_after)))
            module = Reshape(tuple(groups))
        live = kept.nonzero().flatten()
        state = channels(start + dim, sizes_after[dim], live, empty=state.empty, loose=state.loose)
        return c.emit(module, (slot,)), state
