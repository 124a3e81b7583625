"""LRP rules for linear and convolutional layers, without a second pass per sign.

A linear layer sums contributions `c_ij = x_i w_ij`, positive ones `c+` and negative ones `c-`. Every rule here shares
relevance out by a weighted sum of the two, so a rule is three lines: what it divides by, and the weights of its terms,
`positive c+ + negative c-`.

Where inputs are not negative (after ReLU), the positive contributions are those of the positive weights: such a sum is
the layer itself with weights `positive w+ + negative w-`, forward for the denominator and backward for the relevance.
With inputs of both signs, `c+ = (c + |c|) / 2`: the layer's output `z` (which the forward pass has left behind) and
one more pass with absolute values, which gives `t_j = sum_i |c_ij| + |b_j|`, make `z+ = (z + t) / 2` and
`z- = (z - t) / 2`. In the same way the relevance that goes back is made of `x_i sum_j w_ij g_j` and
`|x_i| sum_j |w_ij| g_j`.

Zennit's own rules, with their four or five modified passes, compute the same numbers; they remain as the
oracle (`RULES[...].reference`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import zennit.rules
from torch import Tensor, nn
from zennit.core import Hook, RemovableHandleList
from zennit.rules import ClampMod

from ...pruning.convolution import Convolution, in_groups_order
from .base import FLOOR, Rule, stabilize


@dataclass(frozen=True)
class Term:
    """`sum_j (positive c+_ij + negative c-_ij) gradient_j`: a part of the relevance of the input."""

    gradient: Tensor
    positive: float
    negative: float


class LinearRule(Rule):
    """The mechanism that all rules of this module share: denominators from one more pass, terms back.

    Args:
        nonnegative: the input is known to be non-negative, so that signs are those of the weights.
        rectified: the output goes into ReLU, so that where it is negative its relevance is zero.
        whole_bias: see `total`.

    Falls back on zennit's rule for layers that are neither a plain convolution nor linear, and for padding
    other than zeros.
    """

    def __init__(self, *, nonnegative: bool = False, rectified: bool = False, whole_bias: bool = False) -> None:
        super().__init__()
        self.nonnegative = nonnegative
        self.rectified = rectified
        self.whole_bias = whole_bias
        self.weights: dict[Any, Tensor] = {}

    def copy(self) -> LinearRule:
        new = super().copy()
        new.weights = {}  # type: ignore[attr-defined]
        return new  # type: ignore[return-value]

    def register(self, module: nn.Module) -> RemovableHandleList:
        if not supports(module):
            return self.reference().register(module)
        return super().register(module)

    def remove(self) -> None:
        super().remove()
        self.weights.clear()

    @abstractmethod
    def reference(self) -> Hook:
        """Zennit's rule with the same parameters."""

    @abstractmethod
    def terms(self, module: nn.Module, x: Tensor, output: Tensor, relevance: Tensor) -> list[Term]:
        """The terms of the input's relevance.

        x: the layer's input. output: z, shape (batch, units, ...). relevance: of the output, of that shape.
        """

    def total(self, module: nn.Module, x: Tensor, output: Tensor, positive: float, negative: float) -> Tensor:
        """`sum_i (positive c+_ij + negative c-_ij)`, shaped like the output, with the bias among the contributions.

        With `whole_bias` z+ (positive 1, negative 0) and z- (0 and 1) both hold the whole bias instead, as in the
        paper's code on attention projections: zennit is told to leave a parameter named "bias" out of the second of
        its two passes, theirs is named "proj_bias", and so b+ and b- are both added. The denominators then sum to more
        than the output and z+ can be negative; relevance is not conserved.
        """
        bias: Tensor | None = module.bias  # type: ignore[assignment]
        if self.nonnegative:
            if bias is not None and not self.whole_bias:
                bias = _weighted(bias, positive, negative)
            return self._forward(module, x, self._weight(module, positive, negative), bias)
        z, size = self.both(module, output), None if bias is None or self.whole_bias else bias.abs()
        t = self._forward(module, x.abs(), self._weight(module, 1, -1), size)
        return _combined([((positive + negative) / 2, z), ((positive - negative) / 2, t)])

    def both(self, module: nn.Module, output: Tensor) -> Tensor:
        """The sum of z+ and z-: the output, with the bias a second time where both hold the whole."""
        bias: Tensor | None = module.bias  # type: ignore[assignment]
        if bias is None or not self.whole_bias:
            return output
        return output + bias if isinstance(module, nn.Linear) else output + bias.view(-1, 1, 1)

    def propagate(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        (x,) = inputs
        if isinstance(module, Convolution) and (flat := module.flat(x.shape[2:])) is not None:
            (passed,) = self.propagate(flat, (x.flatten(1),), output.flatten(1), relevance.flatten(1))
            return (passed.view(x.shape),)  # type: ignore[union-attr]
        terms = self.terms(module, x, output, relevance)
        if self.nonnegative:
            first, *others = (self._back(module, x, part.gradient, part.positive, part.negative) for part in terms)
            for other in others:
                first.add_(other)
            return (first.mul_(x),)
        signed = _combined([((part.positive + part.negative) / 2, part.gradient) for part in terms])
        absolute = _combined([((part.positive - part.negative) / 2, part.gradient) for part in terms])
        result = self._back(module, x, signed, 1, 1).mul_(x)
        if absolute is not None:
            result.addcmul_(x.abs(), self._back(module, x, absolute, 1, -1))
        return (result,)

    def _divided(self, relevance: Tensor, part: Tensor, output: Tensor) -> Tensor:
        """Relevance over z+ or z-, and zero where that is rounding noise.

        Where all contributions have the other sign, `c + |c|` is zero only in exact arithmetic; divided by the
        stabilizer alone, what is left of it would show. With a non-negative input no such sum is formed.
        """
        share = relevance / stabilize(part)
        if self.nonnegative:
            return share
        beyond = part.abs().sub_(output.abs(), alpha=8 * torch.finfo(output.dtype).eps)
        return torch.ops.aten.threshold_backward(share, beyond, 0)  # no other kernel chooses as fast

    def _weight(self, module: nn.Module, positive: float, negative: float) -> Tensor:
        """`positive W+ + negative W-`, computed once while the rule is registered."""
        weight: Tensor = module.weight  # type: ignore[assignment]
        if positive == negative == 1:
            return weight
        key = (positive, negative, weight.data_ptr(), weight._version)
        if key not in self.weights:
            self.weights[key] = _weighted(weight, positive, negative)
        return self.weights[key]

    def _forward(self, module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(module, nn.Conv2d):
            x = in_groups_order(module, x)
            return F.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)
        return F.linear(x, weight, bias)

    def _back(self, module: nn.Module, x: Tensor, gradient: Tensor, positive: float, negative: float) -> Tensor:
        """The gradient of the layer with weights `positive W+ + negative W-`, shaped like x."""
        return self._transposed(module, x, gradient, self._weight(module, positive, negative))

    def _transposed(self, module: nn.Module, x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the layer with these weights, shaped like x."""
        if isinstance(module, nn.Conv2d):
            return torch.ops.aten.convolution_backward(
                gradient,
                x,
                weight,
                None,
                module.stride,
                module.padding,
                module.dilation,
                False,
                [0, 0],
                module.groups,
                [True, False, False],
            )[0]
        return gradient @ weight


def _weighted(values: Tensor, positive: float, negative: float) -> Tensor:
    """`positive` times the values above zero, `negative` times those below."""
    if (positive, negative) == (1, 0):
        return values.clamp(min=0)
    if (positive, negative) == (0, 1):
        return values.clamp(max=0)
    if (positive, negative) == (1, -1):
        return values.abs()
    return values.clamp(min=0).mul_(positive - negative).add_(values, alpha=negative)


def _combined(parts: list[tuple[float, Tensor]]) -> Any:
    """The weighted sum, or None when no weight is left."""
    parts = [(factor, gradient) for factor, gradient in parts if factor]
    if not parts:
        return None
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1]
    total = parts[0][1] * parts[0][0]
    for factor, gradient in parts[1:]:
        total = total.add_(gradient, alpha=factor)
    return total


def supports(module: nn.Module) -> bool:
    """Whether the fast rules apply to a module: linear, or a convolution padded with zeros."""
    if isinstance(module, nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


class Epsilon(LinearRule):
    """LRP-epsilon (Bach et al. 2015, eq. 58): shares in proportion to contributions, `epsilon` absorbs.

    Args:
        epsilon: added to the denominator with its sign, > 0, in units of the layer's output.
    """

    def __init__(self, epsilon: float = 1e-6, **known: bool) -> None:
        super().__init__(**known)
        self.epsilon = epsilon

    def reference(self) -> Hook:
        return zennit.rules.Epsilon(epsilon=self.epsilon)

    def terms(self, module: nn.Module, x: Tensor, output: Tensor, relevance: Tensor) -> list[Term]:
        return [Term(relevance / stabilize(output, self.epsilon), 1, 1)]


class RelativeEpsilon(Epsilon):
    """LRP-epsilon whose epsilon is in units of each sample's mean absolute output of the layer, so that one range
    of it fits every layer (Montavon et al. 2019, section 10.3, multiply theirs by the outputs' deviation).

    The mean is over outputs that are not zero, since pruned filters and neurons, whose outputs are, must not count: a
    network with these masked and one without them have the same relevance. (The values of a masked head are not zero;
    there they differ by some 1e-3.) It does not depend on which samples share a batch.

    Args:
        epsilon: > 0, without a unit.
    """

    def reference(self) -> Hook:
        return zennit.rules.Epsilon(epsilon=self._stabilized)

    def terms(self, module: nn.Module, x: Tensor, output: Tensor, relevance: Tensor) -> list[Term]:
        return [Term(relevance / self._stabilized(output), 1, 1)]

    def _stabilized(self, output: Tensor) -> Tensor:
        dims = tuple(range(1, output.dim()))
        size = output.abs()
        total = size.sum(dims, keepdim=True)
        count = size.sign_().sum(dims, keepdim=True)  # of those that are not zero: a third of the time of comparing
        return stabilize(output, (self.epsilon * total / count.clamp(min=1)).clamp(min=FLOOR))


class ZPlus(LinearRule):
    """The z-plus rule (Montavon et al. 2017): positive contributions only; alpha-beta with alpha 1."""

    def reference(self) -> Hook:
        rule = zennit.rules.ZPlus()
        if self.whole_bias:
            rule.param_modifiers = [ClampMod(min=0.0), ClampMod(max=0.0)]
        return rule

    def terms(self, module: nn.Module, x: Tensor, output: Tensor, relevance: Tensor) -> list[Term]:
        return [Term(self._divided(relevance, self.total(module, x, output, 1, 0), output), 1, 0)]


class AlphaBeta(LinearRule):
    """The alpha-beta rule (Bach et al. 2015, eq. 60): positive contributions weigh alpha, negative ones beta.

    Args:
        alpha: >= 1. beta is alpha - 1, so that relevance is conserved.
    """

    def __init__(self, alpha: float = 2.0, **known: bool) -> None:
        super().__init__(**known)
        self.alpha, self.beta = alpha, alpha - 1

    def reference(self) -> Hook:
        rule = _reference_alpha_beta(self.alpha)
        if self.whole_bias:
            rule.param_modifiers = [
                ClampMod(min=0.0),
                ClampMod(max=0.0),
                ClampMod(max=0.0),
                ClampMod(min=0.0),
            ]
        return rule

    def terms(self, module: nn.Module, x: Tensor, output: Tensor, relevance: Tensor) -> list[Term]:
        above = self.total(module, x, output, 1, 0)
        # the relevance is multiplied, which is less work than to have the weights multiplied
        positive = Term(self._divided(relevance, above, output).mul_(self.alpha), 1, 0)
        if self.beta == 0:
            return [positive]
        below = self.both(module, output) - above
        return [positive, Term(self._divided(relevance, below, output).mul_(-self.beta), 0, 1)]


class Gamma(LinearRule):
    """The generalised gamma rule (Montavon et al. 2019; Andeol et al. 2021): the contributions that agree with
    the output's sign are favoured by the factor 1 + gamma.

    Args:
        gamma: >= 0; 0 is LRP-epsilon, infinity z-plus (for positive outputs).

    The whole bias is always counted once, with its favoured part: `whole_bias` has no effect.
    """

    def __init__(self, gamma: float = 0.25, **known: bool) -> None:
        super().__init__(**{**known, "whole_bias": False})
        self.gamma = gamma

    def reference(self) -> Hook:
        return zennit.rules.Gamma(gamma=self.gamma)

    def terms(self, module: nn.Module, x: Tensor, output: Tensor, relevance: Tensor) -> list[Term]:
        if self.rectified:
            total = self.total(module, x, output, 1 + self.gamma, 1)
            share = torch.ops.aten.threshold_backward(relevance / stabilize(total), output, 0)  # as ReLU's gradient
            return [Term(share, 1 + self.gamma, 1)]
        # the output's sign tells which part is favoured: z + gamma z+, or z + gamma z-, with z+ - z- = t
        sign, half = output.sign(), self.gamma / 2
        total = torch.addcmul(output * (1 + half), sign, self.total(module, x, output, 1, -1), value=half)
        share = (relevance / stabilize(total)).mul_(sign)
        return [Term((share * sign).mul_(1 + half), 1, 1), Term(share.mul_(half), 1, -1)]


def _reference_alpha_beta(alpha: float) -> Hook:
    """Zennit's rule for any alpha. Zennit refuses an alpha and beta whose difference is not 1 to the last bit,
    which for most alpha no float beta gives; the reducer is the only place the two appear in."""
    rule = zennit.rules.AlphaBeta(alpha=2.0, beta=1.0)
    beta = alpha - 1

    def reducer(inputs: list[Tensor], gradients: list[Tensor]) -> Tensor:
        parts = [value * gradient for value, gradient in zip(inputs, gradients, strict=True)]
        return alpha * (parts[0] + parts[1]) - beta * (parts[2] + parts[3])

    rule.reducer = reducer
    return rule
