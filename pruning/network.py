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


@dataclass(frozen=True)
class Step:
    """One call: the value of slot `output` is `module(*values of the slots in inputs)`."""

    name: str
    inputs: tuple[int, ...]
    output: int


def needed_steps(steps: Sequence[Step], result: int) -> list[Step]:
    """The steps that a slot's value hangs on, in order."""
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
    """

    def __init__(self, steps: Sequence[Step], modules: dict[str, nn.Module], result: int) -> None:
        super().__init__()
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
        network = Network(self.steps, {**self.modules_by_step(), **modules}, self.result)
        return network.eval().requires_grad_(False)

    def modules_by_step(self) -> dict[str, nn.Module]:
        """The module of each step, by its name."""
        places = zip(self.steps, self._program, strict=True)
        return {step.name: owner[leaf] for step, (owner, leaf, _, _) in places}


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


class Call(nn.Module):
    """A function with some arguments fixed; `Slot(i)` in its arguments stands for the i-th input."""

    @dataclass(frozen=True)
    class Slot:
        index: int

    def __init__(self, function: Callable[..., Any], args: tuple, kwargs: dict) -> None:
        super().__init__()
        self.function = function
        self.args = args
        self.kwargs = kwargs

    def forward(self, *inputs: Any) -> Any:
        def fill(argument: Any) -> Any:
            if isinstance(argument, Call.Slot):
                return inputs[argument.index]
            if isinstance(argument, (tuple, list)):
                return type(argument)(fill(item) for item in argument)
            if isinstance(argument, slice):
                return slice(fill(argument.start), fill(argument.stop), fill(argument.step))
            return argument

        return self.function(
            *(fill(item) for item in self.args), **{key: fill(item) for key, item in self.kwargs.items()}
        )

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


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
    """Elementwise `scale * x + shift` with constants: relevance passes it as it passes an activation."""

    def __init__(self, scale: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> None:
        super().__init__()
        for name, value in (("scale", scale), ("shift", shift)):
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift  # type: ignore[operator]


class Activation(nn.Module):
    """An elementwise function that the model called as a function (`torch.relu`, `F.silu`, ...)."""

    def __init__(self, function: Callable[[Tensor], Tensor], zero_preserving: bool) -> None:
        super().__init__()
        self.function = function
        self.zero_preserving = zero_preserving

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


class Mean(nn.Module):
    """Mean over dimensions, most often the spatial ones: average pooling by another name."""

    def __init__(self, dims: tuple[int, ...], keepdim: bool) -> None:
        super().__init__()
        self.dims = dims
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims, keepdim=self.keepdim)


class PoolSquare(nn.AdaptiveAvgPool2d):
    """Average pooling with windows as high and wide as the map is high, or wide: of the whole map, if it is square."""

    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[-2:]
        if height != width:
            raise ValueError(
                f"the model pools over squares as large as one side of its maps, which are {height} x {width}"
            )
        return super().forward(input)


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


class SplitHeads(nn.Module):
    """(batch, tokens, heads * width) to (batch, heads, tokens, width)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        return x.view(batch, tokens, self.heads, -1).transpose(1, 2)


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


class MergeHeads(nn.Module):
    """(batch, heads, tokens, width) to (batch, tokens, heads * width)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


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
        result = a.new_zeros([*a.shape[:dim], self.size, *a.shape[dim + 1 :]])
        if dim == 1 and a.dim() == 4 and _memory_format(a) == torch.channels_last:
            result = result.contiguous(memory_format=torch.channels_last)
            rows = _rows(result)  # a view; the same sums as below, which take almost twice as long in this order
            rows.index_copy_(1, self.first, _rows(a)).index_add_(1, self.second, _rows(b))  # type: ignore[arg-type]
            return result
        return result.index_copy_(dim, self.first, a).index_add_(dim, self.second, b)  # type: ignore[arg-type]


def _rows(x: Tensor) -> Tensor:
    """The channels of each pixel, shape (pixels, channels): a view of maps in channels-last order."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _memory_format(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


# Elementwise functions a model may call, and whether a zero stays a zero: then a pruned channel stays pruned.
ELEMENTWISE: dict[Any, bool] = {
    **dict.fromkeys((torch.relu, torch.relu_, F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.celu), True),
    **dict.fromkeys((F.gelu, F.silu, F.mish, F.hardswish, torch.tanh, F.tanh, F.softsign, F.selu), True),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, F.hardsigmoid, F.softplus), False),
}
ELEMENTWISE_METHODS: dict[str, bool] = {"relu": True, "relu_": True, "tanh": True, "sigmoid": False}
ACTIVATION_MODULES: dict[type[nn.Module], bool] = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU), True),
    **dict.fromkeys((nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Softsign), True),
    **dict.fromkeys((nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.PReLU), False),
}


def is_relu(module: nn.Module) -> bool:
    """Whether a module is ReLU, as a layer or as a function."""
    if isinstance(module, Activation):
        return module.function in (torch.relu, F.relu)
    return type(module) is nn.ReLU


def is_sigmoid(module: nn.Module) -> bool:
    """Whether a module gives values between 0 and 1, by which others are gated; as a layer or as a function."""
    if isinstance(module, Activation):
        return module.function in (torch.sigmoid, F.sigmoid, F.hardsigmoid)
    return isinstance(module, (nn.Sigmoid, nn.Hardsigmoid))


def gates_of(network: nn.Module) -> list[Multiply]:
    """The products of a network in which a gate is a factor."""
    return [module for module in network.modules() if isinstance(module, Multiply) and module.gate is not None]


def zero_preserving(module: nn.Module) -> bool | None:
    """Whether an elementwise module maps zero to zero; None for a module that is not elementwise."""
    if isinstance(module, Activation):
        return module.zero_preserving
    if isinstance(module, Affine):
        shift: Any = module.shift
        return not isinstance(shift, Tensor) and shift == 0
    return ACTIVATION_MODULES.get(type(module))
