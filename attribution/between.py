"""Rules for what lies between the layers, by how each operation says that relevance passes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from zennit.core import Hook

from ..pruning.modules import Affine, Multiply, QueryKey
from ..pruning.operations import Relevance, entry_of
from .attention import SOFTMAX_RULES, LayerNormEpsilon, Tensors, UniformAttentionValue, UniformQueryKey
from .rules import Halve, Normalise, Pass, Rule, Share, ShareScattered, Signal, per_output


class Proportion(Rule):
    """Of what is linear in its inputs: in proportion to input times gradient (the epsilon rule)."""

    def propagate(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> Tensors:
        with torch.enable_grad():
            given = [value.detach().requires_grad_() for value in inputs]
            gradients = torch.autograd.grad(module.forward(*given), given, per_output(relevance, output))
        return tuple(value.detach() * gradient for value, gradient in zip(given, gradients, strict=True))


class Stop(Rule):
    """No relevance to any input: what only scales something else counts as a constant."""

    keeps_tensors = False

    def propagate(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> Tensors:
        return (None,)

    def _attach(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return output.detach() if self.active and torch.is_grad_enabled() else None


class Normalised(Rule):
    """The epsilon rule on a whole normalisation, its standard deviation taken as a constant (the mean is not), as
    `LayerNormEpsilon`: of GroupNorm and RMSNorm."""

    def propagate(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> Tensors:
        (x,) = inputs
        gradient = per_output(relevance, output)
        if isinstance(module, nn.GroupNorm):
            grouped = x.unflatten(1, (module.num_groups, -1)).flatten(2)
            std = (grouped.var(2, correction=0, keepdim=True) + module.eps).sqrt()
            if module.weight is not None:
                gradient = gradient * module.weight.view(-1, *[1] * (x.dim() - 2))
            scaled = gradient.unflatten(1, (module.num_groups, -1)).flatten(2) / std
            return (x * (scaled - scaled.mean(2, keepdim=True)).view(x.shape),)
        norm: Any = module
        dims = tuple(range(-len(norm.normalized_shape), 0))  # type: ignore[arg-type]
        eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
        weight = 1.0 if norm.weight is None else norm.weight
        return (x * gradient * weight / (x.square().mean(dims, keepdim=True) + eps).sqrt(),)


class UniformProduct(UniformAttentionValue):
    """The uniform rule on a product of two activations' matrices: half of the relevance to each."""


RULES_BETWEEN: dict[Relevance, Hook | None] = {
    Relevance.RULE: Proportion(),  # of convolutions that make tokens of an image, below all units: seen in heat maps
    Relevance.UNCHANGED: Pass(),
    Relevance.ROUTED: None,  # the gradient is the rule
    Relevance.SHARED: Share(),
    Relevance.SCATTERED: ShareScattered(),
    Relevance.PROPORTIONAL: Proportion(),
    Relevance.PRODUCT: Halve(),
    Relevance.NUMERATOR: Signal(1),
    Relevance.NORMALISED: Normalised(),
    Relevance.MATRIX_PRODUCT: UniformProduct(),
    Relevance.STOPPED: Stop(),
    Relevance.NONE: None,
}


def hook_for(module: nn.Module, softmax: str, gates: str) -> Hook | None:
    """The hook for a step that takes none of the composite's rules; None where relevance follows the gradient.

    softmax: how relevance passes attention. gates: how it passes products with a gate.
    """
    how = entry_of(module).relevance
    if not isinstance(how, Relevance):
        hook: Hook = how(module)
        return hook
    if how is Relevance.SOFTMAX:
        return SOFTMAX_RULES[softmax][0]
    if how is Relevance.ATTENDED:
        return SOFTMAX_RULES[softmax][1]
    if isinstance(module, nn.LayerNorm):
        return LayerNormEpsilon()
    if isinstance(module, QueryKey):
        return UniformQueryKey()
    if isinstance(module, Multiply) and module.gate is not None and gates == "signal":
        return Signal(module.gate)
    if isinstance(module, Affine) and not module.zero_preserving:
        return Proportion()  # as a BatchNorm
    if isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
        return Normalise()
    return RULES_BETWEEN[how]
