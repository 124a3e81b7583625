"""What each unit costs: what its removal saves on a network as it is.

A unit's own row of weights goes, with every reader's weights for the channels that it writes. A channel to which
several units are added (a residual stream) only goes with all of them, so its readers' work is shared out among those
that are left: the prices of such a group are in all what is saved when it goes.

A depthwise convolution's filter and the one that writes its channel go together: without either, the channel is gone.

Which channels a unit writes is found by running all but the layers with weights: these give ones in the place of a
unit, or zeros, in as many images as tell all units apart (their number in binary digits, and its complement). Where
something mixes channels or fills zeros up, both digits arrive, and no single unit is paid for that channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .graph import Graph
from .modules import Add, AttentionValue, HeadSoftmax, QueryKey, ScatterAdd, is_depthwise, reads_without_padding
from .network import BATCH, Step, images_dim, shape_for
from .operations.attention import MatrixProduct
from .operations.layers import real_rows
from .precision import computed_in
from .widths import Pace

WEIGHTED = (nn.Conv2d, nn.Linear)
SUMS = (Add, ScatterAdd)
MEMORY = 2**24
"""Numbers that one value of all images may have."""
LEAST = 1e-3
"""A unit's lowest price, as a part of the mean: nothing is divided by zero."""


@torch.inference_mode()
def unit_prices(
    graph: Graph, layers: Iterable[str], cost: str = "macs", paces: Mapping[str, Pace] | None = None
) -> dict[str, Tensor]:
    """What the removal of each unit saves, by layer: a float tensor, shape (units,), on the graph's device.

    graph: whole or compact, the network as it is. layers: those whose units may go. cost: "macs", multiply-adds of one
    image; "params", weights and biases; or, with `paces`, time: of a layer that is faster at some widths, a unit's part
    of the whole. paces: how fast layers are, by step.

    Raises:
        ValueError: another cost without `paces`.
    """
    if paces is None and cost not in ("macs", "params"):
        raise ValueError(f"the price of a unit in {cost} needs the pace of each layer")
    sizes = {name: graph.sizes[name] for name in layers}
    modules, shapes = graph.network.modules_by_step(), _shapes(graph)
    rate = {
        step.name: _rate(modules[step.name], shapes[step.output], cost) * _seconds(modules[step.name], step.name, paces)
        for step in graph.network.steps
    }
    with computed_in("fp32"):
        written = _written(graph, {name: size for name, size in sizes.items() if size and name in modules})
    own = {
        name: _own(graph, name, modules, shapes, rate, cost)
        if size and name in modules
        else torch.zeros(size, dtype=torch.float64)
        for name, size in sizes.items()
    }
    found = {name: values.clone() for name, values in own.items()}
    for step in graph.network.steps:
        if step.name in written:
            column = _of_column(modules[step.name], shapes[step.inputs[0]], shapes[step.output]) * rate[step.name]
            for name, (channel, unit, share) in written[step.name].items():
                found[name].index_add_(0, unit, share * column[channel])
    _pair(found, own, written, modules)
    every = torch.cat([*found.values()]) if found else torch.zeros(0)
    least = float(every.mean()) * LEAST if len(every) else 0.0
    return {name: values.clamp(min=least or 1.0).to(graph.device, torch.float32) for name, values in found.items()}


def surplus(graph: Graph, layers: Iterable[str], paces: Mapping[str, Pace]) -> dict[str, Tensor]:
    """What 0, 1, 2 and so on of a layer's units save in seconds, if they go together, besides the sum of their prices
    (`unit_prices`); double, shape (units + 1,). Only of layers that are faster at some widths, and of those whose
    outputs are added to others: a sum takes longer once their channels differ, and nothing without any."""
    modules, shapes = graph.network.modules_by_step(), _shapes(graph)
    makers = {step.output: step for step in graph.network.steps}
    layers = set(layers)
    found: dict[str, Tensor] = {}
    for step in graph.network.steps:
        pace, module, numbers = paces.get(step.name), modules[step.name], torch.Size(shapes[step.output]).numel()
        if pace is None or not pace.rows:
            continue
        if isinstance(module, SUMS):
            apart = pace.parts[0]
            whole = 1.0 if isinstance(module, Add) else apart
            added = [_maker(slot, makers, modules) for slot in step.inputs]
            for maker in added if len({*added}) > 1 else []:  # the sides of a value and itself stay alike
                if maker in layers and (size := graph.sizes[maker]):
                    saved = torch.full((size + 1,), whole - apart, dtype=torch.float64)
                    saved[0], saved[-1] = 0.0, whole
                    found[maker] = found.get(maker, 0.0) + saved * pace.seconds * numbers
        elif isinstance(module, WEIGHTED) and step.name in layers and 0 < len(module.weight) == graph.sizes[step.name]:
            size, work = len(module.weight), module.weight.numel() * _rate(module, shapes[step.output], "latency")
            saved = (pace.saved(size) - torch.arange(size + 1) / size) * work * _seconds(module, step.name, paces)
            found[step.name] = found.get(step.name, 0.0) + saved
    return found


def _maker(slot: int, makers: Mapping[int, Step], modules: Mapping[str, nn.Module]) -> str:
    """The layer whose outputs a slot holds, perhaps after a step or several that read nothing else."""
    while slot in makers:
        step = makers[slot]
        if isinstance(modules[step.name], WEIGHTED) or len(step.inputs) != 1:
            return step.name
        (slot,) = step.inputs
    return ""


def _seconds(module: nn.Module, name: str, paces: Mapping[str, Pace] | None) -> float:
    """What a multiply-add of a step takes at its present width."""
    if paces is None or name not in paces:
        return 1.0
    return paces[name].seconds * (paces[name].slowdown(len(module.weight)) if isinstance(module, WEIGHTED) else 1.0)


def _pair(
    found: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    written: Mapping[str, Writers],
    modules: Mapping[str, nn.Module],
) -> None:
    """A depthwise convolution's filter goes with the filter that alone writes its channel, and that one with it
    (`without_constants`): each is paid for both, and where the other has gone already nothing is left to save."""
    for name, writers in written.items():
        depthwise = modules[name]
        if not is_depthwise(depthwise) or name not in found or len(writers) != 1:
            continue
        ((writer, (channel, unit, _)),) = writers.items()
        mine = found[name]
        if len(mine) != depthwise.groups or writer not in found or sum(writer in of for of in written.values()) > 1:
            continue
        readers = [modules[reader] for reader, of in written.items() if name in of]
        unwritten = torch.ones(len(mine), dtype=torch.bool).index_fill_(0, channel, False)
        unread = torch.ones(len(found[writer]), dtype=torch.bool).index_fill_(0, unit, False)
        if len(readers) == 1 and reads_without_padding(readers[0]):
            found[writer][unit] += (mine - own[name])[channel]
            mine[unwritten] = 0.0
        found[writer][unread] = 0.0
        mine[channel] += own[writer][unit]


def _shapes(graph: Graph) -> dict[int, tuple[int, ...]]:
    """Of each slot for one image."""
    return {slot: shape_for(1, shape) for slot, shape in graph.network.shapes().items()}


def _rate(module: nn.Module, output: Sequence[int], cost: str) -> float:
    """How often each weight counts: once for each place of the output, or, as a parameter, once."""
    if not isinstance(module, WEIGHTED):
        return 0.0 if cost == "params" else 1.0
    channels = output[1] if isinstance(module, nn.Conv2d) else output[-1]
    return 1.0 if cost == "params" else torch.Size(output).numel() / max(1, channels)


def _own(
    graph: Graph,
    name: str,
    modules: Mapping[str, nn.Module],
    shapes: Mapping[int, tuple[int, ...]],
    rate: Mapping[str, float],
    cost: str,
) -> Tensor:
    """What a layer spends on each of its units."""

    def of_rows(layer: str) -> float:
        module = modules[layer]
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight[:1].numel() * rate[layer] + (cost == "params" and module.bias is not None)

    if graph.kinds[name] != "heads":
        return torch.full((graph.sizes[name],), of_rows(name), dtype=torch.float64)
    found = torch.zeros(graph.sizes[name], dtype=torch.float64)
    for projection in (layer for layer, softmax in graph.heads.items() if softmax == name and layer in modules):
        rows = graph.rows[projection].cpu()
        found += torch.bincount(rows[rows >= 0], minlength=len(found)) * of_rows(projection)
    makers = {step.output: step for step in graph.network.steps}
    slot = next(step.inputs[0] for step in graph.network.steps if step.name == name)
    while slot in makers and not isinstance(modules[makers[slot].name], (QueryKey, MatrixProduct)):
        slot = makers[slot].inputs[0] if makers[slot].inputs else 0
    if slot in makers:  # queries times keys
        product = makers[slot]
        work = torch.Size(shapes[slot]).numel() * shapes[product.inputs[0]][-1]
        found += work / len(found) * rate[product.name]
    return found


def _of_column(module: nn.Module, source: Sequence[int], output: Sequence[int]) -> Tensor:
    """How many weights of a reader each channel of its input meets; of a product, multiply-adds."""
    if isinstance(module, nn.Conv2d):
        return torch.full((module.in_channels,), module.weight[:, :1].numel() / module.groups, dtype=torch.float64)
    if isinstance(module, nn.Linear):
        return torch.full((module.in_features,), float(module.out_features), dtype=torch.float64)
    work = torch.Size(output).numel() * source[-1]
    return torch.full((source[-3],), work / source[-3], dtype=torch.float64)


Writers = dict[str, tuple[Tensor, Tensor, Tensor]]
"""By layer: channels that its units write, their units, and the part of each channel that is theirs."""


def _written(graph: Graph, sizes: Mapping[str, int]) -> dict[str, Writers]:
    """What of each reader's input single units write, by reader."""
    modules = graph.network.modules_by_step()
    above: dict[int, frozenset[str]] = {0: frozenset()}
    for step in graph.network.steps:
        if isinstance(modules[step.name], (*WEIGHTED, HeadSoftmax)):
            above[step.output] = frozenset([step.name]) & sizes.keys()
        else:
            above[step.output] = frozenset().union(*(above[slot] for slot in step.inputs))
    readers = {step.name: step.inputs[0] for step in graph.network.steps if _reads(modules[step.name])}
    digits = _digits(sizes, [above[slot] for slot in readers.values()])
    arrived = _run(graph, sizes, digits, readers.keys())
    found: dict[str, Writers] = {}
    for reader, slot in readers.items():
        live = arrived[reader]
        writers = {name: digits[name].decoded(live) for name in above[slot]}
        always = live[-1] | torch.stack([mixed for _, mixed in writers.values()] or [live[-1]]).any(0)
        count = torch.stack([unit >= 0 for unit, _ in writers.values()] or [always]).sum(0)
        for name, (unit, _) in writers.items():
            channel = ((unit >= 0) & ~always).nonzero().flatten()
            share = 1 / count[channel].double()
            found.setdefault(reader, {})[name] = (channel, unit[channel], share)
    return found


def _reads(module: nn.Module) -> bool:
    return isinstance(module, (*WEIGHTED, AttentionValue))


@dataclass(frozen=True)
class Digits:
    """The images in which a layer's units say who they are: `count` with the binary digits of their numbers from
    `start` on, and as many with the complement."""

    start: int
    count: int

    def patterns(self, size: int, images: int) -> Tensor:
        """Which units give ones in which image: bool, shape (images, units)."""
        found = torch.zeros(images, size, dtype=torch.bool)
        bits = (torch.arange(size) >> torch.arange(self.count).unsqueeze(1)) & 1
        found[self.start : self.start + 2 * self.count] = torch.cat([bits == 1, bits == 0])
        return found

    def decoded(self, live: Tensor) -> tuple[Tensor, Tensor]:
        """Of each channel the unit that writes it (-1: none), and whether several do. live: (images, channels)."""
        ones, zeros = live[self.start : self.start + 2 * self.count].split(self.count)
        mixed = (ones & zeros).any(0)
        single = (ones ^ zeros).all(0) & ~mixed
        unit = (ones.long() << torch.arange(self.count).unsqueeze(1)).sum(0)
        return torch.where(single, unit, -1), mixed


def _digits(sizes: Mapping[str, int], together: Iterable[frozenset[str]]) -> dict[str, Digits]:
    """Images for each layer, the same ones for layers that no reader meets together."""
    others: dict[str, set[str]] = {name: set() for name in sizes}
    for names in together:
        for name in names:
            others[name] |= names - {name}
    place: dict[str, int] = {}
    for name in sizes:
        taken = {place[other] for other in others[name] if other in place}
        place[name] = next(index for index in range(len(sizes)) if index not in taken)
    widest = [max(size for name, size in sizes.items() if place[name] == k) for k in range(len({*place.values()}))]
    counts = [max(1, (size - 1).bit_length()) for size in widest]
    starts = [2 * sum(counts[:index]) for index in range(len(counts))]
    return {name: Digits(starts[index], counts[index]) for name, index in place.items()}


def _run(
    graph: Graph,
    sizes: Mapping[str, int],
    digits: Mapping[str, Digits],
    readers: Iterable[str],
) -> dict[str, Tensor]:
    """What of each reader's input is not zero, in each image and, last, where all units give zeros: bool, shape
    (images + 1, channels)."""
    whole = graph.network.shapes()
    total = max((of.start + 2 * of.count for of in digits.values()), default=0) + 1
    largest = max(torch.Size(shape).numel() // BATCH for shape in whole.values())
    step = max(1, MEMORY // largest)
    parts: dict[str, list[Tensor]] = {name: [] for name in readers}
    sources = {each.name: whole[each.inputs[0]] for each in graph.network.steps if each.inputs}
    outputs = {each.name: whole[each.output] for each in graph.network.steps}
    for start in range(0, total, step):
        rows = slice(start, min(total, start + step))
        count = rows.stop - rows.start
        images = torch.ones(count, *graph.network.image, device=graph.device)
        for visit in graph.network.walk([images]):
            name, module = visit.name, visit.module
            if name in parts:
                source = visit.arguments[0][0]
                dim = {nn.Conv2d: 1, AttentionValue: -3}.get(_kind(module), -1) % source.dim()
                parts[name].append(_any(source, images_dim(sources[name]), dim, count).cpu())
            if name in sizes:
                visit.outputs = [_ones(graph, name, module, outputs[name], sizes[name], digits[name], total, rows)]
            elif isinstance(module, WEIGHTED):
                visit.outputs = [torch.ones(shape_for(count, outputs[name]), device=graph.device)]
            else:
                visit.outputs = [value.abs() if isinstance(value, Tensor) else value for value in visit.outputs]
    return {name: torch.cat(found) for name, found in parts.items()}


def _kind(module: nn.Module) -> type[nn.Module]:
    return next((kind for kind in (nn.Conv2d, AttentionValue) if isinstance(module, kind)), nn.Linear)


def _any(source: Tensor, images: int, channels: int, count: int) -> Tensor:
    """Whether anything is not zero, for each of so many images and each channel, in these dimensions: shape (images,
    channels)."""
    found = (source != 0).movedim((images, channels), (0, 1))
    rows, *rest = found.shape
    # no size is left to be found, which of a layer without units cannot be
    return found.reshape(count, rows // count, *rest).movedim(2, 1).flatten(2).any(2)


def _ones(
    graph: Graph,
    name: str,
    module: nn.Module,
    shape: Sequence[int],
    size: int,
    digits: Digits,
    total: int,
    rows: slice,
) -> Tensor:
    """What a layer gives in place of its output: ones, where its units say so in these images. shape: for `BATCH`."""
    count = rows.stop - rows.start
    images, units = images_dim(shape), {"filters": 1, "heads": len(shape) - 3}.get(graph.kinds[name], len(shape) - 1)
    pattern = digits.patterns(size, total)[rows].float().to(graph.device)
    if (real := real_rows(module)) is not None:
        pattern = pattern.new_zeros(count, shape[units]).index_copy_(1, real, pattern)
    pattern = pattern.repeat_interleave(shape[images] // BATCH, 0)
    view = [1] * len(shape)
    view[images], view[units] = pattern.shape
    return (pattern if images < units else pattern.T).reshape(view).expand(shape_for(count, shape))
