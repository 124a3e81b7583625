"""What pruning leaves of gates: constants, computed once instead of for every image, and outputs that nothing reads.

A gate whose squeeze has lost its filters says the same of every image, and a product with it is a scale, which the
convolution behind it can do by its weights. The pooling, the gate's layers and the product are gone then: in small
batches, where a step's own cost counts, up to a third of the time (`benchmarks/gates.py`). Of a gate that stays, the
channels are needed whose signal is left: a convolution that gives others as well is narrowed to these.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from .modules import Activation, Affine, Multiply, Realign, gates_of, zero_preserving
from .network import Network, Step, clone, needed_steps, readers_of


@torch.no_grad()
def without_constants(network: Network) -> Network:
    """The same network, up to rounding, without gates that are constant, nor outputs that nothing reads; one without
    gates as it is.

    Of constants only those with one pixel, and so one number a channel, are followed: global pooling and what gates
    make of it.
    """
    modules = network.modules_by_step()
    steps: list[Step] = []
    if not gates_of(network) or not network.image:
        return network
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
    if len(needed) < len(steps):
        needed = _merged(needed, modules, scales, network.result)
    steps = _read(needed, modules, network.result)
    if len(steps) == len(network.steps):
        return network
    kept = {step.name: modules[step.name] for step in steps}
    left = Network(steps, kept, network.result, network.image)
    return left.eval().requires_grad_(False)


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
        elif isinstance(module, Realign) and module.dim == 1:
            channels[step.output] = module.size
        elif zero_preserving(module) is not None and step.inputs[0] in channels:
            channels[step.output] = channels[step.inputs[0]]
        if step.output not in scales or step.output == result or len(after) != 1:
            continue
        reader = modules[after[0].name]
        if isinstance(reader, nn.Conv2d) and reader.in_channels == channels.get(step.inputs[0]):
            modules[after[0].name] = clone(reader, weight=_scaled(reader, scales[step.output]))
            merged[step.output] = step.inputs[0]
    return [
        Step(step.name, tuple(merged.get(slot, slot) for slot in step.inputs), step.output)
        for step in steps
        if step.output not in merged
    ]


def _read(steps: list[Step], modules: dict[str, nn.Module], result: int) -> list[Step]:
    """The steps without those that only pick channels of what one convolution gives; its weights, in `modules`, give
    no others then."""
    readers = readers_of(steps)
    makers = {step.output: step for step in steps if len(readers.get(step.output, [])) == 1 and step.output != result}
    picked: dict[int, int] = {}  # slots of channels that were picked, and of what they were picked from
    for step in steps:
        pick = modules[step.name]
        if not isinstance(pick, Realign) or pick.dim != 1 or pick.target is not None:
            continue
        maker = makers.get(step.inputs[0])
        while maker is not None and _of_each_channel(modules[maker.name]):
            maker = makers.get(maker.inputs[0])
        layer = None if maker is None else modules[maker.name]
        if maker is not None and isinstance(layer, nn.Conv2d) and layer.groups == 1:
            source: Any = pick.source
            bias = None if layer.bias is None else layer.bias[source]
            modules[maker.name] = clone(layer, weight=layer.weight[source], bias=bias, out_channels=len(source))
            picked[step.output] = picked.get(step.inputs[0], step.inputs[0])
    return [
        Step(step.name, tuple(picked.get(slot, slot) for slot in step.inputs), step.output)
        for step in steps
        if step.output not in picked
    ]


def _of_each_channel(module: nn.Module) -> bool:
    """Whether a step does the same to every channel."""
    if isinstance(module, Affine):
        return not isinstance(module.scale, Tensor) and not isinstance(module.shift, Tensor)
    return isinstance(module, Activation)


def _scaled(module: nn.Conv2d, scale: Tensor) -> Tensor:
    """The weights with which a convolution does to x what it did to `scale * x`. scale: shape (1, channels, 1, 1)."""
    groups, units = module.groups, module.out_channels // module.groups
    each = scale.view(groups, 1, -1).expand(-1, units, -1).reshape(module.out_channels, -1, 1, 1)
    return module.weight * each
