"""What every rule is: a hook that passes relevance on, in any zennit composite."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from zennit.core import Hook, RemovableHandle, RemovableHandleList

STABILIZER = 1e-6
"""Of z-plus, alpha-beta and gamma, as in zennit."""
FLOOR = 1e-12
"""Of what may be zero but must not swallow relevance."""

TINY = 1e-15
"""An output below which relevance is not divided by it, but goes to zero."""


def stabilize(denominator: Tensor, epsilon: float | Tensor = STABILIZER) -> Tensor:
    """The denominator moved away from zero by epsilon, zero itself by its sign.

    Zennit moves both zeros upwards. Here the sign is copied, which takes a seventh of the time of comparing and
    choosing; a sum is -0 only where all its contributions are zero, and those take no relevance either way.
    """
    # of the same type: a plain number would be a float32
    away = epsilon if isinstance(epsilon, Tensor) else denominator.new_full((), epsilon)
    return torch.copysign(away, denominator).add_(denominator)


def per_output(relevance: Tensor, output: Tensor) -> Tensor:
    """Relevance per unit of output, `relevance / output`, and zero where the output is: for what lies between layers.

    Activations are of any size (after layer scale, of 1e-5 or so). Of the usual 1e-6, added to each denominator, every
    sum and every mean takes some relevance, and some layers lose several per cent of theirs. And where an output is
    zero but its relevance is not (two summands cancel before an unfolded BatchNorm, which passes all on), the quotient
    over any added constant would be larger than all others.
    """
    squared = torch.addcmul(output.new_full((), TINY**2), output, output)
    return torch.div(output, squared, out=squared).mul_(relevance)


class Rule(Hook):
    """A hook that says how relevance goes from a module's output to its inputs.

    It works in any zennit composite, of either zennit's hook signature, and alone: `rule.register(module)`.
    Where zennit wraps inputs and outputs of a module in identities, this replaces the backward function of the
    module's output, so that the forward pass costs nothing and nothing is stored that a rule does not need.
    """

    def register(self, module: nn.Module) -> RemovableHandleList:
        return RemovableHandleList([RemovableHandle(self), module.register_forward_hook(self._attach)])

    def copy(self) -> Rule:
        """Another hook with the same parameters (zennit registers copies of the hooks in a composite)."""
        new = self.__class__.__new__(self.__class__)
        new.__dict__.update(self.__dict__)
        new.stored_tensors, new.tensor_handles = {}, RemovableHandleList()
        return new

    def _attach(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not self.active or not torch.is_grad_enabled():
            return None
        if not any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
            return None
        return _Propagate.apply(self, module, output.detach(), *inputs)  # type: ignore[no-untyped-call]

    @abstractmethod
    def propagate(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Relevance of each input, shaped like it, from the relevance of the output, shaped like that."""

    keeps_tensors = True  # whether `propagate` reads inputs and output


class _Propagate(torch.autograd.Function):
    """The identity on a module's output, whose gradient is relevance."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, module: nn.Module, output: Tensor, *inputs: Tensor) -> Tensor:
        ctx.rule, ctx.module = rule, module
        if rule.keeps_tensors:
            ctx.save_for_backward(output, *inputs)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        output, *inputs = ctx.saved_tensors if ctx.rule.keeps_tensors else (None,)
        passed = ctx.rule.propagate(ctx.module, tuple(inputs), output, relevance)
        return (
            None,
            None,
            None,
            *(r if n else None for r, n in zip(passed, ctx.needs_input_grad[3:], strict=True)),
        )
