"""LRP rules for what only transformers have: attention products, softmax and LayerNorm.

Where AttnLRP (Achtibat et al. 2024, arXiv 2402.05602) is followed, its equations are named. All rules are
closed forms over whole tensors: no Jacobian is built, although the z-plus rules of the softmax are defined by
one (tokens x tokens for each row).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from zennit.core import Hook

from .rules import Rule, per_output, stabilize

Tensors = tuple[Tensor | None, ...]


class UniformQueryKey(Rule):
    """The uniform rule on the product of queries and keys: half of the relevance to each (AttnLRP, eq. 14).

    Each entry takes it in proportion to input times gradient; the logits' own relevance is divided by the sum
    over both factors, twice the logit.
    """

    def propagate(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> Tensors:
        query, key = inputs
        gradient = per_output(relevance, 2 * output) * module.scale  # type: ignore[operator]
        return query * (gradient @ key), key * (gradient.transpose(-2, -1) @ query)


class UniformAttentionValue(Rule):
    """The uniform rule on the product of attention and values: half of the relevance to each (eq. 14)."""

    share = 2

    def propagate(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> Tensors:
        attention, value = inputs
        gradient = per_output(relevance, self.share * output)
        return (
            attention * (gradient @ value.transpose(-2, -1)),
            value * (attention.transpose(-2, -1) @ gradient),
        )


class FullAttentionValue(UniformAttentionValue):
    """All of the relevance to both factors: what the authors' code does where the softmax stops relevance
    (`cp`). The softmax's share then goes nowhere but into the heads' scores, so nothing is counted twice on the
    way to the input."""

    share = 1


class AttnLRPSoftmax(Rule):
    """Softmax by its Taylor expansion at the input (AttnLRP, proposition 3.1, eq. 13).

    The relevance of logit i is `x_i (R_i - s_i sum_j R_j)`.
    """

    def propagate(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> Tensors:
        total = relevance.sum(-1, keepdim=True)
        return (inputs[0] * torch.addcmul(relevance, output, total, value=-1),)


class ZPlusSoftmax(Rule):
    """Softmax by the z-plus rule on its linearisation: positive contributions only.

    Contribution of logit i to probability j: `c_ij = x_i s_j (delta_ij - s_i)`, where positive. Off the
    diagonal that is `s_j p_i` with `p_i = max(-x_i, 0) s_i`, on it `s_j d_j` with
    `d_j = max(x_j, 0) (1 - s_j)`. So a row's sums need no Jacobian: `sum_k c_kj = s_j (P - p_j + d_j)`.

    Args:
        bias: the rest of each probability, `s_j - sum_k c_kj` over all contributions, is an input of its own
            and, where positive, takes its share.
    """

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.bias = bias

    def propagate(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> Tensors:
        (x,) = inputs
        others = x.clamp(max=0).neg_() * output
        itself = x.clamp(min=0) * (1 - output)
        denominator = output * (others.sum(-1, keepdim=True) - others + itself)
        if self.bias:
            mean = (x * output).sum(-1, keepdim=True)
            denominator = denominator + (output * (1 - x + mean)).clamp(min=0)
        shared = output * relevance / stabilize(denominator)
        return (others * (shared.sum(-1, keepdim=True) - shared) + itself * shared,)


class BlockedSoftmax(Rule):
    """No relevance through the softmax: queries and keys count as constants (CP, Ali et al. 2022)."""

    keeps_tensors = False

    def propagate(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> Tensors:
        return (None,)

    def _attach(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self.active or not torch.is_grad_enabled():
            return None
        return output.detach().requires_grad_()  # nothing below is visited at all


class LayerNormEpsilon(Rule):
    """The epsilon rule on the whole LayerNorm, its standard deviation taken as a constant (the mean is not),
    its bias in the denominator (AttnLRP, proposition 3.4, describes the rule that lets all of it pass)."""

    def propagate(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> Tensors:
        assert isinstance(module, nn.LayerNorm)
        (x,) = inputs
        dims = tuple(range(-len(module.normalized_shape), 0))
        std = (x.var(dims, correction=0, keepdim=True) + module.eps).sqrt()
        gradient = per_output(relevance, output)
        if module.weight is not None:
            gradient = gradient * module.weight
        gradient = gradient / std
        return (x * (gradient - gradient.mean(dims, keepdim=True)),)


# How relevance passes the softmax, and with it the product of attention and values.
SOFTMAX_RULES: dict[str, tuple[Hook, Hook]] = {
    "attnlrp": (AttnLRPSoftmax(), UniformAttentionValue()),
    "zplus": (ZPlusSoftmax(), UniformAttentionValue()),
    "zplus_bias": (ZPlusSoftmax(bias=True), UniformAttentionValue()),
    "cp": (BlockedSoftmax(), FullAttentionValue()),
}
