"""Elementwise functions of one activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..channels import State
from ..modules import ELEMENTWISE, Activation, Partial, is_sigmoid, nonnegative
from .base import Operation, Relevance, operation

if TYPE_CHECKING:
    from ..compaction import Compactor
    from ..graph.build import Builder


@operation(*(f"aten.{name}.default" for name in ELEMENTWISE), modules=(Activation,))
class Elementwise(Operation):
    relevance = Relevance.UNCHANGED

    def build(self, b: Builder, node: Any) -> int:
        function = ELEMENTWISE[b.name_of(node)]
        rest = tuple(node.args[1:])
        if rest or node.kwargs:
            function = Partial(function, rest, dict(node.kwargs))
        return b.emit(node, Activation(function), (b.slot(node.args[0]),))

    def nonnegative(self, module: Any, inputs: Sequence[bool]) -> bool:
        return nonnegative(module)

    def gate(self, module: Any, inputs: Sequence[bool]) -> bool:
        return is_sigmoid(module) or inputs[0]

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        if state is None or state.loose or module.zero_preserving:
            return c.emit(module, (slot,)), state
        return c.emit(module, (c.expand(slot, state),)), None  # what was zero is a constant now


@operation("aten.prelu.default", modules=(nn.PReLU,))
class PReLU(Operation):
    relevance = Relevance.UNCHANGED

    def build(self, b: Builder, node: Any) -> int:
        weight = b.constant(node.args[1])
        module = nn.PReLU(weight.numel())
        module.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        return b.emit(node, module, (b.slot(node.args[0]),), owner=b.owner_of(node.args[1]))

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        if state is not None and len(module.weight) > 1:
            return c.emit(module, (c.expand(slot, state),)), None
        return c.emit(module, (slot,)), state
