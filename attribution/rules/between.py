"""Rules for what lies between layers: activations, sums, means, products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import Rule, per_output


class Pass(Rule):
    """Relevance goes through an elementwise function unchanged (ReLU, GELU)."""

    keeps_tensors = False

    def propagate(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (relevance,)


class Share(Rule):
    """Each summand takes its share: `a / (a + b)` of the relevance (epsilon rule on a residual sum)."""

    def propagate(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        scaled = per_output(relevance, output)
        return tuple((value * scaled).sum_to_size(value.shape) for value in inputs)


class ShareScattered(Rule):
    """`Share` for the sum of two activations whose live channels differ, in a compact network."""

    def propagate(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        scaled = per_output(relevance, output)
        summed: Any = module
        dim = summed.dim % scaled.dim()
        passed = []
        for value, where in zip(inputs, (summed.first, summed.second), strict=True):
            part = scaled if where is None else scaled.index_select(dim, where)
            passed.append((value * part).sum_to_size(value.shape))
        return tuple(passed)


class Normalise(Rule):
    """Average pooling: in proportion to what each position contributes (epsilon rule on the mean)."""

    def propagate(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            x = inputs[0].detach().requires_grad_()
            (gradient,) = torch.autograd.grad(module.forward(x), x, per_output(relevance, output))
        return (x.detach() * gradient,)


class Halve(Rule):
    """The uniform rule on a product of two activations: half of the relevance to each factor.

    For an elementwise product (a squeeze-and-excitation gate) that is all there is to it: contribution and
    output are the same (Achtibat et al. 2024, arXiv 2402.05602, eq. 7)."""

    def propagate(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        half = relevance * per_output(output, output) / 2
        return tuple(half.sum_to_size(value.shape) for value in inputs)


class Signal(Rule):
    """All of a product's relevance to what is gated, none to the gate, which only scales (signal-takes-all: Arras et
    al. 2017, arXiv 1706.07206, section 3.1). gate: which factor that is, 0 or 1."""

    def __init__(self, gate: int) -> None:
        super().__init__()
        self.gate = gate

    def propagate(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        whole = relevance * per_output(output, output)
        return tuple(
            None if index == self.gate else whole.sum_to_size(value.shape) for index, value in enumerate(inputs)
        )
