"""What pruning leaves of constants, computed once instead of for every image, and of outputs that nothing reads.

A gate whose squeeze has lost its filters says the same of every image, and a product with it is a scale, which the
convolution behind it can do by its weights. The pooling, the gate's layers and the product are gone then: in small
batches, where a step's own cost counts, up to a third of the time (`benchmarks/gates.py`). Of a gate that stays, the
channels are needed whose signal is left: a convolution that gives others as well is narrowed to these.

A depthwise convolution's channel that nothing writes gives its bias everywhere: what the convolution behind makes of
that, its own bias can say. And what feeds a channel that the depthwise convolution lost is read by nothing. Without
either, compact forms of networks with such convolutions take longer than the whole one (`benchmarks/gates.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from .modules import (
    Activation,
    Affine,
    Multiply,
    Realign,
    gates_of,
    is_depthwise,
    reads_without_padding,
    zero_preserving,
)
from .network import Network, Step, clone, needed_steps, readers_of
from .operations.routing import Move


@torch.no_grad()
def without_constants(network: Network) -> Network:
    """The same network, up to rounding, without gates and channels that are constant, nor outputs that nothing reads;
    one that has none as it is.

    Of constants only those are followed that are one number a channel: of one pixel, as global pooling gives and gates
    make of it, and of all the pixels of depthwise convolutions.
    """
    modules = network.modules_by_step()
    steps = list(network.steps)
    if gates_of(network) and network.image:
        steps = _without_gates(network, modules)
    if network.image and any(_aligns(module) for module in modules.values()):
        steps = _without_unwritten(network, steps, modules)
        steps = _read(steps, modules, network.result)
    if steps == list(network.steps) and modules == network.modules_by_step():
        return network
    kept = {step.name: modules[step.name] for step in steps}
    left = Network(steps, kept, network.result, network.image)
    return left.eval().requires_grad_(False)


def _aligns(module: nn.Module) -> TypeGuard[Realign]:
    """Whether a step picks channels, or puts zeros beside them."""
    return isinstance(module, Realign) and module.dim == 1


def _without_gates(network: Network, modules: dict[str, nn.Module]) -> list[Step]:
    """The steps that are left without constant gates; `modules` gets what they are then."""
    steps: list[Step] = []
    shapes = network.shapes()
    constants: dict[int, Tensor] = {}  # by slot, shape (1, channels, 1, 1)
    scales: dict[int, Tensor] = {}  # what a constant gate multiplies by, by the product's slot; of that shape too
    for step in network.steps:
        module = modules[step.name]
        known = [slot for slot in step.inputs if slot in constants]
        if isinstance(module, Multiply) and len(known) == 1:
            (signal,) = (slot for slot in step.inputs if slot not in constants)
            scales[step.output] = constants[known[0]]
            modules[step.name] = Affine(scale=scales[step.output])
            step = Step(step.name, (signal,), step.output)
        elif len(shape := shapes[step.output]) == 4 and shape[2:] == (1, 1):
            if _is_dead(module):
                constants[step.output] = _bias(module)
            elif known and _reads_one(module):
                constants[step.output] = module(constants[known[0]].clone())
        steps.append(step)
    needed = needed_steps(steps, network.result)
    return _merged(needed, modules, scales, network.result) if len(needed) < len(steps) else needed


def _reads_one(module: nn.Module) -> bool:
    """Whether a module's result on a value of one pixel depends on that value alone."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.padding == (0, 0)
    return isinstance(module, Realign) or zero_preserving(module) is not None


def _is_dead(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a convolution has no input or no unit left: it has one in their place, and weights of exactly zero, also
    after repair. (One of more channels whose weights are zero may be about to get others.)"""
    return isinstance(module, nn.Conv2d) and 1 in (module.in_channels, module.out_channels) and not module.weight.any()


def _bias(module: nn.Conv2d) -> Tensor:
    bias = module.weight.new_zeros(module.out_channels) if module.bias is None else module.bias.detach().clone()
    return bias.view(1, -1, 1, 1)


def _merged(steps: list[Step], modules: dict[str, nn.Module], scales: dict[int, Tensor], result: int) -> list[Step]:
    """The steps without scales that only one convolution reads; its weights, in `modules`, do that too."""
    readers = readers_of(steps)
    merged: dict[int, int] = {}  # slots of scaled values, and of what they were scaled from
    channels: dict[int, int] = {}  # of slots, where known: one channel may be spread over many by its scales
    for step in steps:
        module, after = modules[step.name], readers.get(step.output, [])
        if isinstance(module, nn.Conv2d):
            channels[step.output] = module.out_channels
        elif _aligns(module):
            channels[step.output] = module.size
        elif zero_preserving(module) is not None and step.inputs[0] in channels:
            channels[step.output] = channels[step.inputs[0]]
        if step.output not in scales or step.output == result or len(after) != 1:
            continue
        reader = modules[after[0].name]
        if isinstance(reader, nn.Conv2d) and reader.in_channels == channels.get(step.inputs[0]):
            modules[after[0].name] = clone(reader, weight=_scaled(reader, scales[step.output]))
            merged[step.output] = step.inputs[0]
    return _renamed(steps, merged)


def _without_unwritten(network: Network, steps: list[Step], modules: dict[str, nn.Module]) -> list[Step]:
    """The steps where depthwise convolutions have no channels that nothing writes, if a convolution without padding is
    all that reads them: its bias, in `modules`, says what they gave. (Beyond an edge they would give nothing.)"""
    readers, shapes = readers_of(steps), network.shapes()
    same: dict[int, int] = {}  # slots that hold what another one does
    for step in steps:
        filled = modules[step.name]
        if not _aligns(filled) or filled.target is None or len(filled.source) == 0:
            continue
        written = filled.target
        chain = list(_alone(step, readers, network.result))
        depthwise = modules[chain[0].name] if chain else None
        count = sum(1 for _ in takewhile(lambda each: _of_each_channel(modules[each.name]), chain[1:])) + 1
        reader = modules[chain[count].name] if len(chain) > count else None
        if not is_depthwise(depthwise) or not reads_without_padding(reader):
            continue
        rows = torch.arange(depthwise.out_channels, device=written.device).view(depthwise.groups, -1)
        unwritten = written.new_ones(depthwise.groups, dtype=torch.bool).index_fill_(0, written, False)
        kept, gone = rows[written].flatten(), rows[unwritten].flatten()
        given = reader.weight.new_zeros(len(gone)) if depthwise.bias is None else depthwise.bias[gone]
        for each in chain[1:count]:
            given = modules[each.name](given.view(1, -1, 1, 1).clone()).flatten()
        bias: Any = reader.weight[:, gone].sum((2, 3)) @ given
        if reader.bias is not None:
            bias = bias + reader.bias
        weight = reader.weight[:, kept]
        modules[chain[count].name] = clone(reader, weight=weight, bias=bias, in_channels=len(kept))
        bias = None if depthwise.bias is None else depthwise.bias[kept]
        sizes = {"groups": len(written), "in_channels": len(written), "out_channels": len(kept)}
        modules[chain[0].name] = clone(depthwise, weight=depthwise.weight[kept], bias=bias, **sizes)
        modules[step.name] = Realign(1, filled.source)
        if len(filled.source) == shapes[step.inputs[0]][1]:
            same[step.output] = step.inputs[0]
    return _renamed(steps, same)


def _renamed(steps: list[Step], same: Mapping[int, int]) -> list[Step]:
    """The steps without those whose slots, the keys, hold what others do."""
    return [
        Step(step.name, tuple(same.get(slot, slot) for slot in step.inputs), step.output)
        for step in steps
        if step.output not in same
    ]


def _alone(step: Step, readers: Mapping[int, list[Step]], result: int) -> Iterator[Step]:
    """The steps after this one, as long as nothing else reads what is passed on."""
    while step.output != result and len(after := readers.get(step.output, [])) == 1 and len(after[0].inputs) == 1:
        (step,) = after
        yield step


def _read(steps: list[Step], modules: dict[str, nn.Module], result: int) -> list[Step]:
    """The steps without those that only pick channels of what one convolution gives; its weights, in `modules`, give
    no others then."""
    readers = readers_of(steps)
    makers = {step.output: step for step in steps if len(readers.get(step.output, [])) == 1 and step.output != result}
    picked: dict[int, int] = {}  # slots of channels that were picked, and of what they were picked from
    for step in steps:
        pick = modules[step.name]
        if not _aligns(pick) or pick.target is not None:
            continue
        maker = makers.get(step.inputs[0])
        while maker is not None and _keeps_channels(modules[maker.name]):
            maker = makers.get(maker.inputs[0])
        layer = None if maker is None else modules[maker.name]
        if maker is not None and isinstance(layer, nn.Conv2d) and layer.groups == 1:
            bias = None if layer.bias is None else layer.bias[pick.source]
            weight = layer.weight[pick.source]
            modules[maker.name] = clone(layer, weight=weight, bias=bias, out_channels=len(weight))
            picked[step.output] = picked.get(step.inputs[0], step.inputs[0])
    return _renamed(steps, picked)


def _keeps_channels(module: nn.Module) -> bool:
    """Whether each channel that a step gives is made of the one that it reads there."""
    return _of_each_channel(module) or (isinstance(module, Move) and 1 not in module.dims)


def _of_each_channel(module: nn.Module) -> bool:
    """Whether a step does the same to each number, whatever its channel."""
    if isinstance(module, Affine):
        return not isinstance(module.scale, Tensor) and not isinstance(module.shift, Tensor)
    return isinstance(module, Activation)


def _scaled(module: nn.Conv2d, scale: Tensor) -> Tensor:
    """The weights with which a convolution does to x what it did to `scale * x`. scale: shape (1, channels, 1, 1)."""
    groups, units = module.groups, module.out_channels // module.groups
    each = scale.view(groups, 1, -1).expand(-1, units, -1).reshape(module.out_channels, -1, 1, 1)
    return module.weight * each
