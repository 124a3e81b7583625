"""Attention as a structure: which layers compute a softmax's queries, keys and values, and for which of its heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..modules import HeadSoftmax, QueryKey
from ..network import BATCH, Step, clone, readers_of, shape_for
from ..operations import Relevance, entry_of
from ..operations.attention import MatrixProduct
from ..operations.normalization import LayerNorm

Modules = Mapping[str, nn.Module]
Shapes = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class Attention:
    """One softmax over keys. Names of steps.

    softmax: whose heads are units, where there are `heads` of them that can be told apart (None: there are none).
    value: the product with the values. parts: what each projection gives: "q", "k", "v", or several ("qkv").
    rows: of each projection whose outputs belong to heads, the head of each; -1 for one of several heads. out: layers
    that read what the heads give. inside: layers between the two products.
    """

    softmax: str
    value: str
    heads: int | None
    parts: Mapping[str, str]
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    out: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()


def is_layer(module: nn.Module) -> bool:
    """Whether a module takes a rule: a convolution of images or a linear layer."""
    return isinstance(module, (nn.Conv2d, nn.Linear))


def find(steps: Sequence[Step], modules: Modules, shapes: Shapes, softmax: str, value: str) -> Attention:
    """The structure around a softmax and the product with values that follows it."""
    makers = {step.output: step for step in steps}
    by_name = {step.name: step for step in steps}
    weights, mixed = by_name[softmax], by_name[value]
    side = next((slot for slot in mixed.inputs if weights.output not in _reached(slot, makers, {weights.output})), None)
    product = _product(weights.inputs[0], makers, modules)
    sources = {} if product is None else dict(zip("qk", product.inputs, strict=True))
    if side is not None:
        sources["v"] = side
    parts: dict[str, str] = {}
    for letter, slot in sources.items():
        for name in _layers(slot, makers, modules):
            parts[name] = parts.get(name, "") + letter
    inner = _above([mixed.output], makers, {by_name[name].output for name in parts})
    shape = shapes[weights.output]
    heads = shape[-3] if len(shape) > 3 and shape[-3] % BATCH else None
    rows = {} if heads is None else _rows(steps, modules, shapes, weights, mixed, parts, inner, heads)
    return Attention(
        softmax,
        value,
        heads,
        {name: letters if len(letters) == 1 else "qkv" for name, letters in parts.items()},
        rows,
        tuple(_readers(mixed.output, steps, modules)),
        tuple(step.name for step in inner if is_layer(modules[step.name])),
    )


def softmax_of(product: Step, makers: Mapping[int, Step], modules: Modules) -> str | None:
    """The softmax that a product with values multiplies by: the one with nothing but other operations between."""
    above = _above(product.inputs, makers, ())
    return next((step.name for step in reversed(above) if isinstance(modules[step.name], HeadSoftmax)), None)


def _reached(slot: int, makers: Mapping[int, Step], wanted: set[int]) -> set[int]:
    """The slots that a value comes from, itself included, as far as those wanted."""
    seen, left = set(), [slot]
    while left:
        slot = left.pop()
        if slot in seen:
            continue
        seen.add(slot)
        if slot not in wanted and slot in makers:
            left.extend(makers[slot].inputs)
    return seen


def _above(slots: Sequence[int], makers: Mapping[int, Step], stop: Collection[int]) -> list[Step]:
    """Steps that values come from, as far as the slots to stop at."""
    found: dict[int, Step] = {}
    left = list(slots)
    while left:
        slot = left.pop()
        if slot not in stop and slot in makers and slot not in found:
            found[slot] = makers[slot]
            left.extend(makers[slot].inputs)
    return [found[slot] for slot in sorted(found)]


def _layers(slot: int, makers: Mapping[int, Step], modules: Modules) -> list[str]:
    """The layers that a value comes from, with nothing but other operations between."""
    layers = {output for output, step in makers.items() if is_layer(modules[step.name])}
    ends = {end for step in _above([slot], makers, layers) for end in step.inputs} | {slot}
    return [makers[end].name for end in sorted(ends & layers)]


def _product(slot: int, makers: Mapping[int, Step], modules: Modules) -> Step | None:
    """The product of queries and keys that the logits come from."""
    while slot in makers:
        step = makers[slot]
        if isinstance(modules[step.name], (QueryKey, MatrixProduct)):
            return step
        if not step.inputs:
            return None
        slot = step.inputs[0]
    return None


def _readers(slot: int, steps: Sequence[Step], modules: Modules) -> list[str]:
    """The layers that read a value, with nothing between but what keeps features apart."""
    readers, found = readers_of(steps), []
    for step in readers.get(slot, []):
        module = modules[step.name]
        if is_layer(module):
            found.append(step.name)
        elif entry_of(module).relevance in (Relevance.ROUTED, Relevance.UNCHANGED) or isinstance(
            entry_of(module), LayerNorm
        ):
            found += _readers(step.output, steps, modules)
    return found


# -- which outputs belong to which head ---------------------------------------------------------------


def _rows(
    steps: Sequence[Step],
    modules: Modules,
    shapes: Shapes,
    weights: Step,
    mixed: Step,
    parts: Mapping[str, str],
    inner: Sequence[Step],
    heads: int,
) -> dict[str, Tensor]:
    """Of each projection, the head that each output belongs to, -1 where that is not one and only one.

    Found by what each head's result has a gradient for, on random values: whatever lies between (one layer for all
    three, reshaping, windows, rotary embedding) needs no rule of its own.
    """
    layers = [step for step in steps if step.name in parts]
    ends = {step.output for step in layers}
    generator = torch.Generator().manual_seed(0)
    values: dict[int, Tensor] = {}

    def drawn(slot: int) -> Tensor:
        shape = shape_for(1, shapes[slot])
        return torch.randn(shape, generator=generator)

    with torch.enable_grad():
        for step in layers:
            values[step.output] = drawn(step.output).requires_grad_()
        given = {slot for step in inner for slot in step.inputs} - {step.output for step in inner} - ends
        values.update({slot: drawn(slot) for slot in given})
        here = {step.name: _on_cpu(modules[step.name], generator) for step in inner}
        for step in inner:
            values[step.output] = here[step.name](*(values[slot] for slot in step.inputs))
        roots = [values[step.output] for step in layers]
        used = [
            _gradients(_of_head(head, values, weights, mixed, inner, here, heads), roots, generator)
            for head in range(heads)
        ]
        inside = {step.name for step in inner}
        leaked = _leaks(steps, inside, [*ends, *(step.output for step in inner if step is not mixed)], values)
        shared = [_gradients(value, roots, generator) for value in leaked if value.requires_grad]
    found = {}
    for index, step in enumerate(layers):
        axis = 1 if isinstance(modules[step.name], nn.Conv2d) else -1
        marks = torch.stack([_units(gradients[index], axis) for gradients in used])
        rows = torch.where(marks.sum(0) == 1, marks.long().argmax(0), -1)
        for gradients in shared:
            rows[_units(gradients[index], axis)] = -1
        if bool((rows >= 0).any()):
            found[step.name] = rows
    return found


def _on_cpu(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """The module with weights that have values, for those whose own have none or lie elsewhere."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    if not any(value.device.type != "cpu" or value.dtype == torch.float64 for _, value in own):
        return module
    changes = {
        name: (torch.zeros(value.shape, dtype=value.dtype) if value.is_meta else value.cpu())
        if not value.is_floating_point()
        else torch.rand(value.shape, generator=generator)
        for name, value in own
    }
    return clone(module, **changes)


def _of_head(
    head: int,
    values: Mapping[int, Tensor],
    weights: Step,
    mixed: Step,
    inner: Sequence[Step],
    modules: Modules,
    heads: int,
) -> Tensor:
    """What one head gives: the product with the values, with the probabilities of all others being zero."""
    kept = torch.zeros(heads)
    kept[head] = 1
    changed = {weights.output: values[weights.output] * kept.view(-1, 1, 1)}
    for step in inner:
        if step.output > weights.output and not changed.keys().isdisjoint(step.inputs):
            inputs = (changed.get(slot, values.get(slot)) for slot in step.inputs)
            changed[step.output] = modules[step.name](*inputs)
    return changed[mixed.output]


def _leaks(steps: Sequence[Step], inside: set[str], slots: Sequence[int], values: Mapping[int, Tensor]) -> list[Tensor]:
    """Values on the way that others read too."""
    readers = readers_of(steps)
    return [values[slot] for slot in slots if any(step.name not in inside for step in readers.get(slot, []))]


def _gradients(value: Tensor, roots: Sequence[Tensor], generator: torch.Generator) -> Sequence[Tensor]:
    weight = torch.randn(value.shape, generator=generator)
    return torch.autograd.grad(value, roots, weight, retain_graph=True, allow_unused=True, materialize_grads=True)


def _units(gradient: Tensor, axis: int) -> Tensor:
    """Which units have a gradient anywhere: bool, shape (units,)."""
    return gradient.movedim(axis, 0).flatten(1).any(1)
