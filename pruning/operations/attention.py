"""What attention is made of: products of activations and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..channels import State, channels
from ..modules import AttentionValue, HeadSoftmax, NoFeatures, Permute, QueryKey
from ..network import clone
from .base import Operation, Relevance, operation
from .layers import LinearMap, parameters, product_before

if TYPE_CHECKING:
    from ..compaction import Compactor
    from ..graph.build import Builder

NEVER = -1e9
"""A logit that is masked: its probability is zero, and it may be multiplied by zero."""


class MatrixProduct(nn.Module):
    """Product of two activations' matrices."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


class Softmax(nn.Module):
    """Softmax over a dimension, of a gate that chooses between branches."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(self.dim)


def _product(c: Compactor, module: Any, inputs: tuple[int, ...]) -> tuple[int, State]:
    """A product of matrices, of which one dimension may have lost channels."""
    parts = [c.input(slot) for slot in inputs]
    shapes = [c.shape(slot) for slot in inputs]
    rank = len(c.shape(c.output))
    if all(state is None for _, state in parts):
        return c.emit(module, tuple(slot for slot, _ in parts)), None
    states: list[State] = [
        state and replace(state, dim=state.dim + rank - len(shape))
        for (_, state), shape in zip(parts, shapes, strict=True)
    ]
    found = [state for state in states if state is not None]
    dim = found[0].dim
    if any(state.dim != dim for state in found) or dim >= rank - 2:
        return c.emit(module, tuple(c.expand(*part) for part in parts)), None
    wide = [len(shape) < rank - dim or shape[dim - rank] == 1 for shape in shapes]  # the same for all heads
    lives = [state.live for state in found]
    live = lives[0] if len(lives) == 1 else lives[0][torch.isin(lives[0], lives[1])]
    zero = [state for state in found if not state.loose]
    if len(live) == 0:
        live = lives[0][:1]
    slots = [
        slot if alone else c.narrowed(slot, state, live, original, dim - rank)
        for (slot, state), alone, original in zip(parts, wide, inputs, strict=True)
    ]
    size = found[0].size
    state = channels(dim, size, live, empty=any(each.empty for each in found), loose=not zero)
    return c.emit(module, tuple(slots)), state


@operation("aten.matmul.default", "aten.bmm.default", "aten.einsum.default", modules=(MatrixProduct,))
class Product(Operation):
    relevance = Relevance.MATRIX_PRODUCT

    def build(self, b: Builder, node: Any) -> int:
        if b.name_of(node) == "einsum":
            return _einsum(b, node)
        first, second = node.args[:2]
        if b.is_constant(second) and b.constant(second).dim() == 2:
            matrix = b.constant(second).T
            layer = nn.utils.skip_init(nn.Linear, matrix.shape[1], matrix.shape[0], bias=False)
            parameters(layer, matrix, None)
            return b.emit(node, layer, (b.slot(first),), owner=b.owner_of(second), layer=True)
        if b.is_constant(second):
            return b.emit(node, LinearMap(torch.matmul, (b.constant(second),)), (b.slot(first),))
        if b.is_constant(first):
            return b.emit(node, LinearMap(product_before, (b.constant(first),)), (b.slot(second),))
        return b.product(node, b.slot(first), b.slot(second))

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        return _product(c, module, inputs)


def _einsum(b: Builder, node: Any) -> int:
    """As a product of matrices between reorderings."""
    equation, values = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[call-overload]
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != 2 or not arrow or "." in equation or any(len(set(t)) < len(t) for t in (*terms, result)):
        raise b.refused(node)
    if any(b.is_constant(value) for value in values):
        raise b.refused(node)
    first, second = terms
    batch = [k for k in first if k in second and k in result]
    inner = [k for k in first if k in second and k not in result]
    rows, columns = [k for k in first if k not in second], [k for k in second if k not in first]
    if len(inner) != 1 or len(rows) != 1 or len(columns) != 1:
        raise b.refused(node)

    def ordered(slot: int, before: Sequence[str], after: Sequence[str]) -> int:
        dims = tuple(before.index(k) for k in after)
        return slot if dims == tuple(range(len(dims))) else b.emit(node, Permute(dims), (slot,))

    a = ordered(b.slot(values[0]), first, [*batch, *rows, *inner])
    c = ordered(b.slot(values[1]), second, [*batch, *inner, *columns])
    return ordered(b.product(node, a, c), [*batch, *rows, *columns], result)


@operation(modules=(QueryKey,))
class QueryTimesKey(Operation):
    relevance = Relevance.MATRIX_PRODUCT

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        return _product(c, module, inputs)


@operation(modules=(AttentionValue,))
class AttentionTimesValue(Operation):
    relevance = Relevance.ATTENDED

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        return _product(c, module, inputs)


@operation("aten.softmax.int", "aten._softmax.default", modules=(Softmax,))
class GateSoftmax(Operation):
    """Of a gate: what it scales takes the relevance."""

    relevance = Relevance.STOPPED

    def build(self, b: Builder, node: Any) -> int:
        rank = len(b.shape(node))
        dim = node.args[1] % rank  # type: ignore[operator]
        return b.softmax(node, b.slot(node.args[0]), dim, rank)

    def nonnegative(self, module: Any, inputs: Sequence[bool]) -> bool:
        return True

    def gate(self, module: Any, inputs: Sequence[bool]) -> bool:
        return True

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        return c.emit(module, (c.expand(*c.input(inputs[0])),)), None


@operation(modules=(HeadSoftmax,))
class AttentionSoftmax(Operation):
    relevance = Relevance.SOFTMAX

    def nonnegative(self, module: Any, inputs: Sequence[bool]) -> bool:
        return True

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        dim = len(c.shape(inputs[0])) - 3
        if state is not None and (state.dim != dim or not state.loose):
            slot, state = c.expand(slot, state), None
        kept = c.masks.get(c.name)
        if kept is None or bool(kept.all()):
            if state is not None:
                slot = c.expand(slot, state)
            return c.emit(module, (slot,)), None
        live = kept.nonzero().flatten()
        empty = len(live) == 0
        if empty:
            live = torch.zeros(1, dtype=torch.long, device=c.device)
        slot = c.narrowed(slot, state, live, inputs[0], -3)
        softmax = clone(module, heads=len(live), kept=module.kept if module.kept is None else module.kept[live])
        if empty:
            softmax = clone(softmax, kept=torch.zeros(1, device=c.device, dtype=c.dtype))
        return c.emit(softmax, (slot,)), channels(dim, module.heads, live, empty=empty)


@operation(modules=(NoFeatures,))
class WithoutFeatures(Operation):
    relevance = Relevance.ROUTED

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        return c.emit(module, (c.expand(*c.input(inputs[0])),)), None


@operation("aten.scaled_dot_product_attention.default")
class ScaledDotProduct(Operation):
    """Whole: a product with keys, a softmax and a product with values."""

    relevance = Relevance.SOFTMAX

    def build(self, b: Builder, node: Any) -> int:
        query, key, value = node.args[:3]
        mask = b.arg(node, 3, "attn_mask", None)
        causal, scale = b.arg(node, 5, "is_causal", False), node.kwargs.get("scale")
        shape = b.shape(query)
        slots = [b.slot(query), b.slot(key), b.slot(value)]
        if node.kwargs.get("enable_gqa"):
            raise b.refused(node, "with fewer keys than queries")
        rank, tokens, keys = len(shape), shape[-2], b.shape(key)[-2]
        logits = b.emit(
            node, QueryKey(shape[-1] ** -0.5 if scale is None else scale), tuple(slots[:2]), part="query_key"
        )
        if causal:
            causal_mask = torch.ones(tokens, keys, dtype=torch.bool).tril()
            logits = b.masked(node, logits, causal_mask)
        if mask is not None:
            logits = b.masked(node, logits, mask)
        weights = b.softmax(node, logits, rank - 1, rank)
        return b.product(node, weights, slots[2])

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        raise AssertionError("makes no step of its own kind")
