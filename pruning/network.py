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


def images_dim(shape: Sequence[int]) -> int:
    """The dimension of a value, shaped for `BATCH` images, in which they lie, each perhaps in several rows: windows of
    maps."""
    return next((dim for dim, size in enumerate(shape) if size % BATCH == 0), 0)


def shape_for(images: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a value for so many images, of that for `BATCH`."""
    return tuple(size // BATCH * images if size % BATCH == 0 else size for size in shape)


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
            visits = self.walk([torch.empty(found[0], dtype=type_of(self), device="meta")])
            for step, visit in zip(self.steps, visits, strict=True):
                found[step.output] = tuple(visit.outputs[0].shape)
        self._shapes = found
        return found

    def bottlenecks(self) -> set[str]:
        """The steps that every path from the images to the logits passes."""
        to: dict[int, int] = {0: 1}  # paths from the images to each slot
        for step in self.steps:
            to[step.output] = sum(to.get(slot, 0) for slot in step.inputs)
        onwards: dict[int, int] = {self.result: 1}  # and from there to the logits
        for step in reversed(self.steps):
            for slot in step.inputs:
                onwards[slot] = onwards.get(slot, 0) + onwards.get(step.output, 0)
        every = to[self.result]
        return {step.name for step in self.steps if to[step.output] * onwards.get(step.output, 0) == every}

    def modules_by_step(self) -> dict[str, nn.Module]:
        """The module of each step, by its name."""
        places = zip(self.steps, self._program, strict=True)
        return {step.name: owner[leaf] for step, (owner, leaf, _, _) in places}


def type_of(module: nn.Module) -> torch.dtype:
    """Of its parameters; float32 without any."""
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
