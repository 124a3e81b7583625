"""A network as a list of steps, each a module: what a traced model becomes, and what its compact forms are.

Every operation, also an addition or a reshape, is a module with a name. So one mechanism can attach LRP rules
to any of them (forward hooks), and another can rebuild the list with fewer channels, without either knowing
how the model's author wrote its forward function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module


@dataclass(frozen=True)
class Step:
    """One call: the value of slot `output` is `module(*values of the slots in inputs)`."""

    name: str
    inputs: tuple[int, ...]
    output: int


BATCH = 8191
"""As many images, a prime number, as nothing else of a network is a multiple of."""


def needed_steps(steps: Sequence[Step], result: int) -> list[Step]:
    """The steps that a slot's value depends on, in order."""
    slots, kept = {result}, []
    for step in reversed(steps):
        if step.output in slots:
            slots.update(step.inputs)
            kept.append(step)
    return kept[::-1]


def readers_of(steps: Iterable[Step]) -> dict[int, list[Step]]:
    """The steps that read each slot, by slot; one that reads it twice is there twice."""
    readers: dict[int, list[Step]] = {}
    for step in steps:
        for slot in step.inputs:
            readers.setdefault(slot, []).append(step)
    return readers


@dataclass(frozen=True)
class Norm:
    """The BatchNorm that was folded into a layer, as needed to re-estimate its statistics.

    gamma, beta: scale and shift, shape (channels,). std: `sqrt(running_var + eps)` when folded, (channels,).
    """

    gamma: Tensor
    beta: Tensor
    std: Tensor
    eps: float


@dataclass
class Visit:
    """A stop of `Network.walk` at a step. A visitor may exchange the module, or set the outputs itself.

    arguments: of the module, for each chunk. outputs: for each chunk, computed when they are first asked for.
    """

    name: str
    module: nn.Module
    arguments: list[tuple[Any, ...]]
    _next: Callable[[], tuple[Any, ...]]

    @cached_property
    def outputs(self) -> list[Any]:
        return [self.module(*arguments) for arguments in self.arguments]

    def join(self, count: int) -> None:
        """Lets further chunks come here, until there are so many."""
        while len(self.arguments) < count:
            self.arguments.append(self._next())
            if "outputs" in self.__dict__:
                self.outputs.append(self.module(*self.arguments[-1]))


class Network(nn.Module):
    """Runs steps in order and forgets each value after its last use.

    Modules are registered under the steps' names, so `get_submodule("layer1.0.conv1")` and the keys of
    `state_dict()` are those of the model that was traced. On the CPU a convolutional network's weights and images
    are put into channels-last order (`channels_last`), where all its passes are faster.

    image: channels, height and width of the images that it was traced with.
    """

    def __init__(
        self, steps: Sequence[Step], modules: dict[str, nn.Module], result: int, image: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.image = tuple(image)
        self._shapes: dict[int, tuple[int, ...]] | None = None
        self.channels_last = runs_channels_last(modules.values())
        modules = {name: _in_order(module, self.channels_last) for name, module in modules.items()}
        self.steps = tuple(steps)
        self.result = result
        for name in (step.name for step in steps):
            self._register(name, modules[name])
        last_use = {slot: index for index, step in enumerate(steps) for slot in step.inputs}
        self._expired = [
            tuple(slot for slot in {*step.inputs, step.output} if last_use.get(slot, -1) <= index and slot != result)
            for index, step in enumerate(steps)
        ]
        # where modules lie, so that what a user puts in another's place is what runs
        self._program = [(*self._place(step.name), step.inputs, step.output) for step in steps]

    def _register(self, name: str, module: nn.Module) -> None:
        *parents, leaf = name.split(".")
        owner: nn.Module = self
        for part in parents:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        held = owner._modules.get(leaf)
        if held is not None:  # a container that stands for a name such as "attention" and "attention.softmax"
            module._modules.update(held._modules)
        owner._modules[leaf] = module

    def _place(self, name: str) -> tuple[dict[str, nn.Module], str]:
        parent, _, leaf = name.rpartition(".")
        return self.get_submodule(parent)._modules, leaf  # type: ignore[return-value]

    def forward(self, input: Tensor) -> Tensor:
        """Logits, shape (batch, classes), of float images, shape (batch, channels, height, width)."""
        values: dict[int, Any] = {0: self.ordered(input)}
        for (owner, leaf, inputs, output), expired in zip(self._program, self._expired, strict=True):
            values[output] = owner[leaf](*[values[slot] for slot in inputs])
            for slot in expired:
                values.pop(slot, None)
        return values[self.result]

    def walk(self, chunks: Sequence[Tensor], start: int | None = None) -> Iterator[Visit]:
        """Runs chunks of a batch abreast, stopping at each step: what a later step reads is what the visit to an
        earlier one left as its outputs.

        start: with how many chunks (None: all of them). The others come up, through the modules that visitors left,
        where a visitor lets them join: so memory holds few of them where values are large.
        """
        modules = self.modules_by_step()
        count = len(chunks) if start is None else start
        values: dict[int, list[Any]] = {0: [self.ordered(chunks[index]) for index in range(count)]}

        def come_up(step: Step, index: int) -> tuple[Any, ...]:
            """Bring the next chunk to a step: what is still read of its values joins the others'."""
            chunk: dict[int, Any] = {0: self.ordered(chunks[len(next(iter(values.values())))])}
            for earlier, expired in zip(self.steps[:index], self._expired, strict=False):
                chunk[earlier.output] = modules[earlier.name](*[chunk[slot] for slot in earlier.inputs])
                for slot in expired:
                    chunk.pop(slot, None)
            for slot, of_all in values.items():
                of_all.append(chunk[slot])
            return tuple(chunk[slot] for slot in step.inputs)

        for index, (step, expired) in enumerate(zip(self.steps, self._expired, strict=True)):
            present = len(next(iter(values.values())))
            arguments = [tuple(values[slot][index] for slot in step.inputs) for index in range(present)]
            visit = Visit(step.name, modules[step.name], arguments, partial(come_up, step, index))
            yield visit
            modules[step.name] = visit.module
            values[step.output] = visit.outputs
            for slot in expired:
                values.pop(slot, None)

    def ordered(self, images: Tensor) -> Tensor:
        """The images, shape (batch, channels, height, width), in the order in memory that the network works in."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def replaced(self, modules: Mapping[str, nn.Module]) -> Network:
        """The same network with other modules under some of the steps' names."""
        network = Network(self.steps, {**self.modules_by_step(), **modules}, self.result, self.image)
        return network.eval().requires_grad_(False)

    @torch.no_grad()
    def shapes(self) -> dict[int, tuple[int, ...]]:
        """The shape of each slot's value, for `BATCH` images of the size that the network was traced with: what is a
        multiple of that number depends on how many images there are."""
        if self._shapes is not None:
            return self._shapes
        found = {0: (BATCH, *self.image)}
        values = [*self.named_parameters(), *self.named_buffers()]
        on_meta = {name: torch.empty_like(value, device="meta") for name, value in values}
        with _reparametrize_module(self, on_meta):  # type: ignore[arg-type]
            visits = self.walk([torch.empty(found[0], dtype=_type_of(self), device="meta")])
            for step, visit in zip(self.steps, visits, strict=True):
                found[step.output] = tuple(visit.outputs[0].shape)
        self._shapes = found
        return found

    def modules_by_step(self) -> dict[str, nn.Module]:
        """The module of each step, by its name."""
        places = zip(self.steps, self._program, strict=True)
        return {step.name: owner[leaf] for step, (owner, leaf, _, _) in places}


def _type_of(module: nn.Module) -> torch.dtype:
    return next((value.dtype for value in module.parameters()), torch.float32)


def runs_channels_last(modules: Iterable[nn.Module]) -> bool:
    """Whether channels-last is the faster order: for convolutions on the CPU, unless a LayerNorm wants its own."""
    modules = list(modules)
    weights = [module.weight for module in modules if isinstance(module, nn.Conv2d)]
    return (
        bool(weights)
        and all(weight.device.type == "cpu" for weight in weights)
        and not any(isinstance(module, nn.LayerNorm) for module in modules)
    )


def _in_order(module: nn.Module, channels_last: bool) -> nn.Module:
    """The module, or a copy of a convolution whose weight was in another order."""
    if not isinstance(module, nn.Conv2d):
        return module
    weight = module.weight.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return module if weight is module.weight else clone(module, weight=weight)


def clone(module: nn.Module, **changes: Any) -> nn.Module:
    """A copy that shares the module's tensors, except those given; hooks are not copied.

    Cheaper than building a new module: no initialisation of weights that would be overwritten.
    """
    new = module.__class__.__new__(module.__class__)
    nn.Module.__init__(new)
    fresh = {key: value for key, value in new.__dict__.items() if "hooks" in key}
    new.__dict__.update(module.__dict__)
    new.__dict__.update(fresh)
    for registry in ("_parameters", "_buffers", "_modules"):
        new.__dict__[registry] = dict(module.__dict__[registry])
    for key, value in changes.items():
        if key in new._parameters:
            new._parameters[key] = None if value is None else nn.Parameter(value, requires_grad=False)
        elif key in new._buffers:
            new._buffers[key] = value
        else:
            setattr(new, key, value)
    return new


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
            return x.index_select(dim, self.source)  # type: ignore[arg-type]
        shape = [*x.shape[:dim], self.size, *x.shape[dim + 1 :]]
        result = x.new_zeros(shape)
        if dim == 1 and x.dim() == 4:
            result = result.contiguous(memory_format=_memory_format(x))
        return result.index_copy_(dim, self.target, x.index_select(dim, self.source))  # type: ignore[arg-type]


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
        if self.first is None:
            return a.index_add(dim, self.second, b)  # type: ignore[arg-type]
        if self.second is None:
            return b.index_add(dim, self.first, a)  # type: ignore[arg-type]
        if dim == 1 and a.dim() == 4 and _memory_format(a) == torch.channels_last:
            # a pixel a row: the same sums as below, which take almost twice as long in this order. Not written into a
            # view of the result, which torch.jit.trace would not see
            batch, _, height, width = a.shape
            rows = a.new_zeros(batch * height * width, self.size)
            rows = rows.index_copy_(1, self.first, _rows(a)).index_add_(1, self.second, _rows(b))  # type: ignore
            return rows.view(batch, height, width, self.size).permute(0, 3, 1, 2)
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


def zero_preserving(module: nn.Module) -> bool | None:
    """Whether an elementwise module maps zero to zero; None for a module that is not elementwise."""
    return module.zero_preserving if isinstance(module, (Activation, Affine)) else None
