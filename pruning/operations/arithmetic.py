"""Sums, products and quotients, of two activations or of one and a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..channels import Channels, State, channels
from ..modules import Add, Affine, Multiply, ScatterAdd
from .base import KeepsSigns, Operation, Relevance, operation

if TYPE_CHECKING:
    from ..compaction import Compactor
    from ..graph.build import Builder


class Subtract(nn.Module):
    """Difference of two activations; broadcasts."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b


class Divide(nn.Module):
    """Quotient of two activations; broadcasts."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a / b


class Extremum(nn.Module):
    """The larger or the smaller one of two activations; broadcasts."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        result: Tensor = getattr(torch, self.name)(a, b)
        return result


def _affine(b: Builder, node: Any, value: Any, scale: Any = 1.0, shift: Any = 0.0) -> int:
    return b.emit(node, Affine(scale, shift), (b.slot(value),))


class Binary(Operation):
    """Of two values that broadcast. Where live channels differ, each operation says what is left (`joined`)."""

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        parts = [c.input(slot) for slot in inputs]
        shapes = [c.shape(slot) for slot in inputs]
        rank = max(map(len, shapes))
        if all(state is None for _, state in parts):
            return c.emit(module, tuple(slot for slot, _ in parts)), None
        # channels by the result's dimensions; a value that is broadcast over them has none
        states: list[State] = []
        for (_, state), shape in zip(parts, shapes, strict=True):
            states.append(state and replace(state, dim=state.dim + rank - len(shape)))
        dims = {state.dim for state in states if state is not None}
        dim = dims.pop()
        sizes = [shape[dim - rank] if len(shape) >= rank - dim else 1 for shape in shapes]
        if dims or max(sizes) == 1 or any(s and s.size != max(sizes) for s in states):
            return c.emit(module, tuple(c.expand(*part) for part in parts)), None
        return self.joined(module, c, inputs, parts, states, [size == 1 for size in sizes], dim, max(sizes))

    def joined(
        self,
        module: Any,
        c: Compactor,
        inputs: tuple[int, ...],
        parts: list[tuple[int, State]],
        states: list[State],
        spread: list[bool],
        dim: int,
        size: int,
    ) -> tuple[int, State]:
        """The step and what is live, given the channels of both values in the same dimension (None: all).

        parts: slots in the compact network and what is live in their values. states: the same, by the dimensions of the
        result. spread: whether a value is broadcast over channels. dim, size: of channels, in the result.
        """
        if (chosen := _loose(c, parts, states, spread, inputs)) is not None:
            slots, state = chosen
            return c.emit(module, slots), state
        return c.emit(module, tuple(c.expand(*part) for part in parts)), None


def _loose(
    c: Compactor, parts: list[tuple[int, State]], states: list[State], spread: list[bool], inputs: tuple[int, ...]
) -> tuple[tuple[int, ...], Channels] | None:
    """Both values with the channels that are left of the one nobody reads the others of."""
    found = next((state for state in states if state is not None and state.loose), None)
    if found is None:
        return None
    slots, dim, rank = [], found.dim, max(len(c.shape(slot)) for slot in inputs)
    for (slot, state), wide, original in zip(parts, spread, inputs, strict=True):
        slots.append(slot if wide else c.narrowed(slot, state, found.live, original, dim - rank))
    return tuple(slots), found


@operation("aten.add.Tensor", "aten.add.Scalar", modules=(Add,))
class Sum(KeepsSigns, Binary):
    relevance = Relevance.SHARED
    blind = True

    def build(self, b: Builder, node: Any) -> int:
        first, second = node.args[:2]
        alpha = b.arg(node, 2, "alpha", 1)
        known = [b.is_constant(first), b.is_constant(second)]
        if not any(known):
            added = b.slot(second) if alpha == 1 else b.emit(node, Affine(alpha), (b.slot(second),))
            return b.emit(node, Add(), (b.slot(first), added))
        if known[0] and alpha != 1:
            return b.emit(node, Add(), (b.emit(node, Affine(alpha), (b.slot(second),)), b.slot(first)))
        value, given = (second, first) if known[0] else (first, second)
        constant = b.constant(given)
        if not isinstance(constant, Tensor):
            return _affine(b, node, value, shift=constant * alpha)
        # a position embedding is a summand of its own, which takes its share of relevance
        return b.emit(node, Add(), (b.slot(value), b.constant_slot(constant * alpha, given)))

    def joined(
        self,
        module: Any,
        c: Compactor,
        inputs: tuple[int, ...],
        parts: list[tuple[int, State]],
        states: list[State],
        spread: list[bool],
        dim: int,
        size: int,
    ) -> tuple[int, State]:
        if any(state is not None and state.loose for state in states):
            return super().joined(module, c, inputs, parts, states, spread, dim, size)
        if any(spread) or len({len(c.shape(slot)) for slot in inputs}) > 1:  # what is added to a zero is left of it
            return c.emit(module, tuple(c.expand(*part) for part in parts)), None
        (a, _), (b, _) = parts
        first, second = states
        if first is not None and second is not None and not first.empty and torch.equal(first.live, second.live):
            return c.emit(module, (a, b)), first
        whole = c.shape(c.output)
        for this, slot, state, other in ((1, b, second, first), (0, a, first, second)):
            # nothing is added: the branch that ends here goes with it
            if other is not None and other.empty and c.shape(inputs[this]) == whole:
                return slot, state
        lives = [torch.arange(size, device=c.device) if state is None else state.live for state in states]
        union = torch.cat(lives).unique()
        targets = [None if len(live) == len(union) else torch.searchsorted(union, live) for live in lives]
        if targets == [None, None]:
            return c.emit(module, (a, b)), channels(dim, size, union)
        return c.emit(ScatterAdd(dim, len(union), *targets), (a, b)), channels(dim, size, union)


@operation("aten.index_add.default", modules=(ScatterAdd,))
class SumOfParts(Operation):
    relevance = Relevance.SCATTERED
    blind = True

    def build(self, b: Builder, node: Any) -> int:
        whole, dim, index, part = node.args
        if not b.is_constant(index) or b.arg(node, 4, "alpha", 1) != 1:
            raise b.refused(node)
        dim %= len(b.shape(node))
        add = ScatterAdd(dim, b.shape(node)[dim], None, b.constant(index))
        return b.emit(node, add, (b.slot(whole), b.slot(part)))

    def nonnegative(self, module: Any, inputs: Sequence[bool]) -> bool:
        return all(inputs)

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        return c.emit(module, tuple(c.expand(*c.input(slot)) for slot in inputs)), None


@operation("aten.sub.Tensor", "aten.sub.Scalar", "aten.rsub.Scalar", "aten.rsub.Tensor", modules=(Subtract,))
class Difference(Binary):
    relevance = Relevance.PROPORTIONAL
    blind = True

    def build(self, b: Builder, node: Any) -> int:
        first, second = node.args[:2]
        alpha = b.arg(node, 2, "alpha", 1)
        if b.name_of(node) == "rsub":
            first, second = second, first
        if b.is_constant(second):
            return _affine(b, node, first, shift=-b.constant(second) * alpha)
        if b.is_constant(first):
            return _affine(b, node, second, scale=-alpha, shift=b.constant(first))
        taken = b.slot(second) if alpha == 1 else b.emit(node, Affine(alpha), (b.slot(second),))
        return b.emit(node, Subtract(), (b.slot(first), taken))


@operation("aten.mul.Tensor", "aten.mul.Scalar", modules=(Multiply,))
class Product(KeepsSigns, Binary):
    relevance = Relevance.PRODUCT

    def build(self, b: Builder, node: Any) -> int:
        first, second = node.args[:2]
        if b.is_constant(first) or b.is_constant(second):
            value, constant = (second, first) if b.is_constant(first) else (first, second)
            return _affine(b, node, value, scale=b.constant(constant))
        return b.emit(node, Multiply(), (b.slot(first), b.slot(second)))

    def heirs(self, module: Any, inputs: tuple[int, ...]) -> tuple[int, ...]:
        return inputs if module.gate is None else (inputs[1 - module.gate],)

    def joined(
        self,
        module: Any,
        c: Compactor,
        inputs: tuple[int, ...],
        parts: list[tuple[int, State]],
        states: list[State],
        spread: list[bool],
        dim: int,
        size: int,
    ) -> tuple[int, State]:
        if any(state is not None and state.loose for state in states):
            return super().joined(module, c, inputs, parts, states, spread, dim, size)
        lives = [state.live for state in states if state is not None]
        shared = lives[0] if len(lives) == 1 else lives[0][torch.isin(lives[0], lives[1])]
        empty = len(shared) == 0 or any(state is not None and state.empty for state in states)
        if empty:  # a channel of zeros, of the value that has one
            shared = next((state.live for state in states if state is not None and state.empty), lives[0])[:1]
        slots, rank = [], len(c.shape(c.output))
        for (slot, state), wide, original in zip(parts, spread, inputs, strict=True):
            slots.append(slot if wide else c.narrowed(slot, state, shared, original, dim - rank))
        return c.emit(module, tuple(slots)), channels(dim, size, shared, empty=empty)


@operation("aten.div.Tensor", "aten.div.Scalar", modules=(Divide,))
class Quotient(Binary):
    """Of activations: what divides is a statistic of them, a constant as far as relevance is concerned, as LayerNorm's
    standard deviation is (Ali et al. 2022, arXiv 2202.07304, section 3.2)."""

    relevance = Relevance.NUMERATOR

    def build(self, b: Builder, node: Any) -> int:
        first, second = node.args[:2]
        if b.is_constant(second):
            return _affine(b, node, first, scale=1 / b.constant(second))
        return b.emit(node, Divide(), (b.slot(first), b.slot(second)))

    def gate(self, module: Any, inputs: Sequence[bool]) -> bool:
        return inputs[0]


@operation("aten.maximum.default", "aten.minimum.default", "aten.max.other", "aten.min.other", modules=(Extremum,))
class LargerOrSmaller(Binary):
    relevance = Relevance.ROUTED

    def build(self, b: Builder, node: Any) -> int:
        name = {"max": "maximum", "min": "minimum"}.get(b.name_of(node), b.name_of(node))
        return b.emit(node, Extremum(name), tuple(b.slot(item) for item in node.args[:2]))

    def nonnegative(self, module: Any, inputs: Sequence[bool]) -> bool:
        return all(inputs)


@operation(
    "aten.neg.default", "aten.addcmul.default", "aten.square.default", "aten.pow.Tensor_Scalar", modules=(Affine,)
)
class ScaleAndShift(Operation):
    relevance = Relevance.UNCHANGED

    def build(self, b: Builder, node: Any) -> int:
        name = b.name_of(node)
        if name == "neg":
            return _affine(b, node, node.args[0], scale=-1.0)
        if name in ("square", "pow"):
            if name == "pow" and node.args[1] != 2:
                raise b.refused(node)
            return b.emit(node, Multiply(), (b.slot(node.args[0]), b.slot(node.args[0])))
        shift, first, second = node.args
        value = b.arg(node, 3, "value", 1)
        if b.is_constant(first):
            first, second = second, first
        if not b.is_constant(shift) or not b.is_constant(second):
            raise b.refused(node)
        return _affine(b, node, first, scale=b.constant(second) * value, shift=b.constant(shift))

    def gate(self, module: Any, inputs: Sequence[bool]) -> bool:
        return inputs[0]

    def nonnegative(self, module: Any, inputs: Sequence[bool]) -> bool:
        values = [torch.as_tensor(value) for value in (module.scale, module.shift)]
        return inputs[0] and all(not value.is_meta and bool((value >= 0).all()) for value in values)

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        if state is None:
            return c.emit(module, (slot,)), None
        shape = c.shape(inputs[0])
        values = {"scale": module.scale, "shift": module.shift}
        wider = any(isinstance(value, Tensor) and value.dim() > len(shape) for value in values.values())
        if wider or not (state.loose or module.zero_preserving):
            return c.emit(module, (c.expand(slot, state),)), None
        changes = {}
        for key, value in values.items():
            dim = state.dim - len(shape)
            if isinstance(value, Tensor) and value.dim() >= -dim and value.shape[dim] > 1:
                changes[key] = value.index_select(dim, state.live)
        return c.emit(Affine(**{**values, **changes}) if changes else module, (slot,)), state
