"""The modules that a network's steps are, besides torch's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Constant(nn.Module):
    """A parameter or buffer that the forward function reads by itself, such as a position embedding."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        return self.value  # type: ignore[return-value]


class Add(nn.Module):
    """Sum of two activations (a residual connection); broadcasts."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Multiply(nn.Module):
    """Product of two activations; broadcasts. gate: which of them is one (0 or 1), as in squeeze-and-excitation."""

    gate: int | None = None

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


class Affine(nn.Module):
    """Elementwise `scale * x + shift` with constants: the shift takes a bias's share of relevance."""

    def __init__(self, scale: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> None:
        super().__init__()
        for name, value in (("scale", scale), ("shift", shift)):
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    @property
    def zero_preserving(self) -> bool:
        shift: Any = self.shift
        return not isinstance(shift, Tensor) and shift == 0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift  # type: ignore[operator]


class Activation(nn.Module):
    """An elementwise function. zero_preserving: whether a zero stays a zero: then a pruned channel stays pruned."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.zero_preserving = not function(torch.zeros(1)).any()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        function = self.function.function if isinstance(self.function, Partial) else self.function
        return getattr(function, "__name__", str(function))


class Mean(nn.Module):
    """Mean over dimensions, most often the spatial ones: average pooling by another name."""

    def __init__(self, dims: tuple[int, ...], keepdim: bool) -> None:
        super().__init__()
        self.dims = dims
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims, keepdim=self.keepdim)


class Concat(nn.Module):
    """Concatenation along one dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.dim)


class Permute(nn.Module):
    """Reordering of dimensions."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class QueryKey(nn.Module):
    """Scaled product of queries and keys: logits of attention, shape (batch, heads, tokens, tokens)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return (query @ key.transpose(-2, -1)) * self.scale


class HeadSoftmax(nn.Module):
    """Softmax over keys; its output's heads are the units "heads". `kept` zeroes those that are pruned."""

    kept: Tensor | None

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("kept", None)

    def forward(self, logits: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        return probabilities if self.kept is None else probabilities * self.kept.view(-1, 1, 1)


class AttentionValue(nn.Module):
    """Attention-weighted sum of values, shape (batch, heads, tokens, width)."""

    def forward(self, attention: Tensor, value: Tensor) -> Tensor:
        return attention @ value


class NoFeatures(nn.Module):
    """(batch, tokens, width) to (batch, tokens, 0): what is left of attention when no head is."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :0]


class Realign(nn.Module):
    """Channels from one set of live indices to another: some dropped, missing ones filled with zeros.

    source: position in the input of each output channel, or -1 for zeros; shape (channels out,).
    """

    source: Tensor
    target: Tensor | None

    def __init__(self, dim: int, source: Tensor) -> None:
        super().__init__()
        self.dim = dim
        present = source >= 0
        self.size = len(source)
        self.register_buffer("source", source[present])
        self.register_buffer("target", None if bool(present.all()) else present.nonzero().flatten())

    def forward(self, x: Tensor) -> Tensor:
        dim = self.dim % x.dim()
        if self.target is None:
            return x.index_select(dim, self.source)
        shape = [*x.shape[:dim], self.size, *x.shape[dim + 1 :]]
        result = x.new_zeros(shape)
        if dim == 1 and x.dim() == 4:
            result = result.contiguous(memory_format=_memory_format(x))
        return result.index_copy_(dim, self.target, x.index_select(dim, self.source))


class ScatterAdd(nn.Module):
    """Sum of two activations whose live channels differ.

    size: channels out. first, second: where each input's channels go, shape (channels of that input,), or
    None when they fill the output.
    """

    def __init__(self, dim: int, size: int, first: Tensor | None, second: Tensor | None) -> None:
        super().__init__()
        self.dim = dim
        self.size = size
        self.register_buffer("first", first)
        self.register_buffer("second", second)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        dim = self.dim % a.dim()
        if a.shape[:dim] != b.shape[:dim] or a.shape[dim + 1 :] != b.shape[dim + 1 :]:
            shape = [max(sizes) for sizes in zip(a.shape, b.shape, strict=True)]
            a, b = (x.expand(*shape[:dim], x.shape[dim], *shape[dim + 1 :]) for x in (a, b))
        if a.dtype != b.dtype:  # under autocast
            dtype = torch.promote_types(a.dtype, b.dtype)
            a, b = a.to(dtype), b.to(dtype)
        if dim == 1 and a.dim() == 4 and _memory_format(a) == torch.channels_last:
            # a pixel a row: the same sums, which take up to nine times as long as maps in this order. Not written into
            # a view of the result, which torch.jit.trace would not see
            batch, _, height, width = a.shape
            rows = self._added(_rows(a), _rows(b), 1)
            return rows.view(batch, height, width, self.size).permute(0, 3, 1, 2)
        return self._added(a, b, dim)

    def _added(self, a: Tensor, b: Tensor, dim: int) -> Tensor:
        if self.first is None:
            return a.index_add(dim, self.second, b)  # type: ignore[arg-type]
        if self.second is None:
            return b.index_add(dim, self.first, a)  # type: ignore[arg-type]
        result = a.new_zeros([*a.shape[:dim], self.size, *a.shape[dim + 1 :]])
        return result.index_copy_(dim, self.first, a).index_add_(dim, self.second, b)  # type: ignore[arg-type]


def _rows(x: Tensor) -> Tensor:
    """The channels of each pixel, shape (pixels, channels): a view of maps in channels-last order."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _memory_format(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in ("relu", "tanh", "sigmoid", "selu", "celu", "clamp", "clamp_min")},
    **{name: getattr(F, name) for name in ("relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish")},
    **{name: getattr(F, name) for name in ("hardsigmoid", "hardtanh", "softplus", "softsign")},
    **{name: getattr(torch, name) for name in ("clamp_max", "abs", "sqrt", "rsqrt", "reciprocal")},
}
"""Elementwise functions, by their name in ATen."""
_LINE = torch.linspace(-8, 8, 65)


@dataclass(frozen=True)
class Partial:
    """An elementwise function with its other arguments fixed (the slope of a leaky ReLU)."""

    function: Callable[..., Tensor]
    args: tuple
    kwargs: dict

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, *self.args, **self.kwargs)


def rectifies(module: nn.Module) -> bool:
    """Whether an elementwise module makes zeros of all that is negative."""
    return isinstance(module, Activation) and not module.function(_LINE[_LINE < 0]).any()


def nonnegative(module: Activation) -> bool:
    """Whether an elementwise function gives nothing negative."""
    return bool((module.function(_LINE) >= 0).all())


def is_relu(module: nn.Module) -> bool:
    """Whether a module is ReLU."""
    return isinstance(module, Activation) and module.function in (torch.relu, F.relu)


def is_sigmoid(module: nn.Module) -> bool:
    """Whether a module gives values between 0 and 1, by which others are gated."""
    return isinstance(module, Activation) and module.function in (torch.sigmoid, F.sigmoid, F.hardsigmoid)


def gates_of(network: nn.Module) -> list[Multiply]:
    """The products of a network in which a gate is a factor."""
    return [module for module in network.modules() if isinstance(module, Multiply) and module.gate is not None]


def is_depthwise(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a convolution each of whose outputs reads one channel of its own."""
    return isinstance(module, nn.Conv2d) and module.groups > 1 and module.weight.shape[1] == 1


def reads_without_padding(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a convolution in which a constant channel has the same part in every output."""
    return isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding == (0, 0)


def zero_preserving(module: nn.Module) -> bool | None:
    """Whether an elementwise module maps zero to zero; None for a module that is not elementwise."""
    return module.zero_preserving if isinstance(module, (Activation, Affine)) else None
