"""The physically smaller network: channels that are pruned, and all that only they fed, are gone.

One pass over the steps carries, with each value, which of its channels are still live. Each kind of operation
says in one small function how it passes them on: a convolution slices its weights, a sum takes the union, a
concatenation joins. An operation with no function of its own gets all its channels back, as zeros, so the
result is right for any network and small where it can be.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from torch import Tensor, nn

from . import network as ops
from .constants import without_constants
from .convolution import plain
from .dimensions import dimensions, extents
from .graph import Graph, Norm, trace
from .network import Network, Step, clone, needed_steps


@torch.inference_mode(False)
def compact_model(model: nn.Module | Graph, masks: Mapping[str, Tensor]) -> nn.Module:
    """A smaller network with the logits of the masked one.

    masks: per layer (named as in the model) a bool tensor, shape (units,), True = kept; layers not named stay
    whole. Layers may lose all their units. The model is not changed. The state dict of the result loads into
    the result of the same call on a model of the same architecture. Of a model in half precision the result is in
    float32. Gates that are constant now are gone (`without_constants`).

    Raises:
        TraceError: see `trace`.
        ValueError: a mask names no prunable layer, or has another length than the layer has units.
    """
    network = plain(without_constants(compact(trace(model), masks).network))
    return copy.deepcopy(network) if isinstance(model, Graph) else network  # which shares the graph's tensors


def masked_model(model: nn.Module | Graph, masks: Mapping[str, Tensor]) -> nn.Module:
    """The plain form of pruning, at full size: pruned filters and neurons have zero weights and bias, pruned
    heads a softmax output of zero. Slower than `compact_model`, and what that is held against.

    Raises:
        As `compact_model`.
    """
    graph = trace(model)
    masks = check_masks(graph, masks)
    modules = dict(graph.network.modules_by_step())
    for name, kept in masks.items():
        module = modules[name]
        if isinstance(module, ops.HeadSoftmax):
            modules[name] = clone(module, kept=kept.to(next(graph.network.parameters())))
        else:
            weight: Tensor = module.weight  # type: ignore[assignment]
            live: Tensor = live_rows(graph, masks, name)  # type: ignore[assignment]  # masked, so not None
            kept = kept.new_zeros(len(weight)).index_fill_(0, live, True)
            shape = [-1] + [1] * (weight.dim() - 1)
            bias = None if module.bias is None else module.bias * kept  # type: ignore[operator]
            modules[name] = clone(module, weight=weight * kept.view(shape), bias=bias)
    return plain(graph.network.replaced(modules))


def check_masks(graph: Graph, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks on the graph's device, in layer order.

    Raises:
        ValueError: a mask names no prunable layer, or has another length than the layer has units.
    """
    unknown = [name for name in masks if name not in graph.sizes]
    if unknown:
        raise ValueError(f"mask for {unknown[0]!r}, which is not a prunable layer of the model")
    for name, kept in masks.items():
        if kept.shape != (graph.sizes[name],):
            raise ValueError(f"mask for {name} has shape {tuple(kept.shape)}; the layer has {graph.sizes[name]} units")
    device = graph.device
    return {name: masks[name].to(device=device, dtype=torch.bool) for name in graph.sizes if name in masks}


@dataclass(frozen=True)
class Channels:
    """Which channels of a value are live. None in place of it means: all, and nobody knows how many.

    dim: the dimension of the channels, from the front; -1 for the last one, of values with more than two. size: how
    many there were. live: indices of those left, ascending, shape (left,). A value with none left keeps one channel of
    zeros, because convolutions refuse an empty one.
    """

    dim: int
    size: int
    live: Tensor

    @property
    def full(self) -> bool:
        return len(self.live) == self.size

    @property
    def empty(self) -> bool:
        return len(self.live) == 0


State = Channels | None


def compact(graph: Graph, masks: Mapping[str, Tensor]) -> Graph:
    """As `compact_model`, as a graph: same layer names, smaller sizes."""
    return _Compactor(graph, check_masks(graph, masks)).run()


class _Compactor:
    def __init__(self, graph: Graph, masks: dict[str, Tensor]) -> None:
        self.graph = graph
        self.masks = masks
        self.device = graph.device
        self.steps: list[Step] = []
        self.modules: dict[str, nn.Module] = {}
        self.states: dict[int, State] = {0: None}
        self.slots: dict[int, int] = {0: 0}  # slot in the graph to slot in the compact network
        modules = graph.network.modules_by_step()
        self.extents = extents(graph.network.steps, modules)
        self.dimensions = dimensions(graph.network.steps, modules)
        self.count = 1
        self.name = ""
        self.output = 0
        self.norms = {name: self._norm(name, norm) for name, norm in graph.norms.items()}
        self.attention_outputs = {
            name.removesuffix(".q_proj") + ".out_proj" for name in graph.heads if name.endswith(".q_proj")
        }

    def run(self) -> Graph:
        graph = self.graph
        modules = graph.network.modules_by_step()
        for step in graph.network.steps:
            module = modules[step.name]
            self.name, self.output = step.name, step.output
            slot, state = reduce_step(module, self, step.inputs)
            self.slots[step.output], self.states[step.output] = slot, state
        result = self.slots[graph.network.result]
        result, _ = self.expand(result, self.states[graph.network.result])
        steps = needed_steps(self.steps, result)
        network = Network(steps, self.modules, result).eval().requires_grad_(False)
        return replace(
            graph,
            network=network,
            sizes={name: self._left(name) for name in graph.sizes},
            norms=self.norms,
        )

    def _left(self, name: str) -> int:
        return int(self.masks[name].sum()) if name in self.masks else self.graph.sizes[name]

    def _norm(self, name: str, norm: Norm) -> Norm:
        if name not in self.masks:
            return norm
        kept = self.masks[name].nonzero().flatten()
        if len(kept) == 0:  # the one channel of zeros that stays
            zero = norm.gamma.new_zeros(1)
            return Norm(zero, zero, zero + 1, norm.eps)
        return Norm(norm.gamma[kept], norm.beta[kept], norm.std[kept], norm.eps)

    # -- for the operations -----------------------------------------------------------------------------

    def emit(self, module: nn.Module, inputs: tuple[int, ...], suffix: str = "") -> int:
        """A step of the compact network; `inputs` are slots of that network."""
        name = self.name + suffix
        while name in self.modules:
            name += "_"
        self.modules[name] = module
        self.steps.append(Step(name, inputs, self.count))
        self.count += 1
        return self.count - 1

    def input(self, slot: int) -> tuple[int, State]:
        return self.slots[slot], self.states[slot]

    def along(self, dim: int, slot: int) -> tuple[int, State]:
        """A value for a layer whose channels lie in this dimension: all of it, where the live ones lie elsewhere."""
        found, state = self.input(slot)
        return (found, state) if state is None or state.dim == dim else (self.expand(found, state)[0], None)

    def kept(self, size: int) -> Tensor:
        """Indices of the units of the present layer that stay, shape (kept,)."""
        name = self.name
        if name in self.masks:
            return self.masks[name].nonzero().flatten()
        return torch.arange(size, device=self.device)

    def read_as_runs(self, slot: int) -> bool:
        """Whether linear layers alone read a flattened value: they know that a channel is a run of features."""
        network = self.graph.network
        modules = network.modules_by_step()
        readers = [(step, modules[step.name]) for step in network.steps]
        return slot != network.result and all(
            isinstance(module, nn.Linear)
            or (ops.zero_preserving(module) is True and not _per_channel(module) and self.read_as_runs(step.output))
            for step, module in readers
            if slot in step.inputs
        )

    def realign(self, slot: int, state: Channels, wanted: Tensor) -> int:
        """A slot that holds the wanted channels, zeros where they are not live."""
        if torch.equal(state.live, wanted) and not state.empty:
            return slot
        position = _positions(state)
        source = position[wanted] if len(wanted) else position[-1:]
        return self.emit(ops.Realign(state.dim, source), (slot,), "_realign")

    def expand(self, slot: int, state: State) -> tuple[int, State]:
        """All channels back, as zeros."""
        if state is None or state.full:
            return slot, state
        return self.realign(slot, state, torch.arange(state.size, device=self.device)), None


def _positions(state: Channels) -> Tensor:
    """Where each channel lies among the live ones, -1 for those that are not: shape (size + 1,), the last one is -1."""
    position = state.live.new_full((state.size + 1,), -1)
    position[state.live] = torch.arange(len(state.live), device=state.live.device)
    return position


def _select(tensor: Tensor, dim: int, live: Tensor, size: int) -> Tensor:
    """The live slices of a tensor; one slice of zeros when none is live."""
    if len(live) == size:
        return tensor
    if len(live) == 0:
        shape = list(tensor.shape)
        shape[dim] = 1
        return tensor.new_zeros(shape)
    return tensor.index_select(dim, live)


@singledispatch
def reduce_step(module: nn.Module, c: _Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
    """The step, with live channels only, added to `c`; returns its slot and what is live in its value.

    This is the form for operations that nothing is known of: they see all channels.
    """
    if (keeps := ops.zero_preserving(module)) is not None:
        slot, state = c.input(inputs[0])
        if keeps and not _per_channel(module):
            return c.emit(module, (slot,)), state
        if state is not None and not isinstance(module, ops.Affine):  # pruned channels are constants now
            everything = replace(state, live=torch.arange(state.size, device=c.device))
            return c.emit(module, (c.expand(slot, state)[0],)), everything
    return c.emit(module, tuple(c.expand(*c.input(slot))[0] for slot in inputs)), None


def _per_channel(module: nn.Module) -> bool:
    return isinstance(module, ops.Affine) and isinstance(module.scale, Tensor)


@reduce_step.register
def _(module: nn.Conv2d, c: _Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
    slot, state = c.along(1, inputs[0])
    size = module.out_channels
    live = live_rows(c.graph, c.masks, c.name)
    kept = c.kept(size) if live is None else live
    result = Channels(1, size, kept)
    if result.full and (state is None or state.full):
        return c.emit(module, (slot,)), result
    if module.groups > 1:
        return _grouped(module, c, slot, state, kept)
    weight = _select(module.weight, 0, kept, size)
    if state is not None:
        weight = _select(weight, 1, state.live, state.size)
    reduced = clone(
        module,
        weight=weight,
        bias=None if module.bias is None else _select(module.bias, 0, kept, size),
        out_channels=weight.shape[0],
        in_channels=weight.shape[1],
    )
    return c.emit(reduced, (slot,)), result


def _grouped(module: nn.Conv2d, c: _Compactor, slot: int, state: State, kept: Tensor) -> tuple[int, State]:
    """A grouped convolution keeps equal groups: those with no output left go, the others are as wide as the
    widest of them. Depthwise convolutions, where a group is one channel, lose exactly what is pruned."""
    size, groups = module.out_channels, module.groups
    width_out, width_in = size // groups, module.in_channels // groups
    if len(kept) == 0:
        weight = module.weight[:1, :1] * 0
        bias = None if module.bias is None else module.bias[:1] * 0
        if state is not None:
            slot = c.realign(slot, state, torch.zeros(0, dtype=torch.long, device=c.device))
        else:
            slot = c.emit(ops.Realign(1, torch.zeros(1, dtype=torch.long, device=c.device)), (slot,), "_first")
        empty = clone(module, weight=weight, bias=bias, groups=1, in_channels=1, out_channels=1)
        return c.emit(empty, (slot,)), Channels(1, size, kept)
    live = torch.arange(module.in_channels, device=c.device) if state is None else state.live
    alive = (kept // width_out).unique()  # groups that still have outputs
    rows = _by_group(kept, width_out, alive)
    columns = _by_group(live, width_in, alive)
    if columns.shape[1] == 0:
        columns = columns.new_full((len(alive), 1), -1)
    wanted = columns.flatten()
    source = wanted
    if state is not None:
        source = _positions(state)[wanted]
    channels = module.in_channels if state is None else max(1, len(state.live))
    if len(source) != channels or not torch.equal(source, torch.arange(channels, device=c.device)):
        slot = c.emit(ops.Realign(1, source), (slot,), "_realign")
    # padded rows and columns are zero: they read, and give, zeros
    flat_rows, row_pad = rows.flatten(), (rows.flatten() < 0)
    weight = module.weight[flat_rows.clamp(min=0)]
    local = (columns % width_in).repeat_interleave(rows.shape[1], 0)
    index = local.view(len(local), -1, 1, 1).expand(-1, -1, *weight.shape[2:])
    pad = (columns < 0).repeat_interleave(rows.shape[1], 0) | row_pad.unsqueeze(1)
    weight = weight.gather(1, index).masked_fill(pad.view(*pad.shape, 1, 1), 0)
    bias = None
    if module.bias is not None:
        bias = module.bias[flat_rows.clamp(min=0)].masked_fill(row_pad, 0)
    reduced = clone(
        module,
        weight=weight.contiguous(),
        bias=bias,
        groups=len(alive),
        in_channels=weight.shape[1] * len(alive),
        out_channels=weight.shape[0],
        real_rows=_real_rows(module, flat_rows, row_pad),
    )
    if (norm := c.graph.norms.get(c.name)) is not None:
        picked = flat_rows.clamp(min=0)
        gamma, beta = (values[picked].masked_fill(row_pad, 0) for values in (norm.gamma, norm.beta))
        c.norms[c.name] = Norm(gamma, beta, norm.std[picked], norm.eps)
    slot = c.emit(reduced, (slot,))
    if bool(row_pad.any()):
        slot = c.emit(ops.Realign(1, (~row_pad).nonzero().flatten()), (slot,), "_unpad")
    return slot, Channels(1, size, kept)


def live_rows(graph: Graph, masks: Mapping[str, Tensor], layer: str) -> Tensor | None:
    """Which of a layer's outputs masks leave (`check_masks`), as ascending indices; None: no mask speaks of it. A
    projection goes with the heads that it computes; a unit's index may be another than its output's (`real_rows`)."""
    kept, module = masks.get(graph.heads.get(layer, layer)), graph.network.get_submodule(layer)
    if kept is None:
        return None
    if layer in graph.heads:
        kept = kept.repeat_interleave(module.out_features // len(kept))  # type: ignore[operator]
    live = kept.nonzero().flatten()
    return live if (real := real_rows(module)) is None else real[live]


def real_rows(module: nn.Module) -> Tensor | None:
    """Which outputs of a compact layer are its units, where it has others to fill up groups; None: all."""
    rows: Tensor | None = getattr(module, "real_rows", None)
    return rows if rows is None else rows.to(module.weight.device)  # type: ignore[arg-type]


def _real_rows(module: nn.Conv2d, picked: Tensor, padding: Tensor) -> Tensor | None:
    before = real_rows(module)
    real = ~padding if before is None else ~padding & torch.isin(picked, before)
    return None if bool(real.all()) else real.nonzero().flatten()


def _by_group(indices: Tensor, width: int, groups: Tensor) -> Tensor:
    """Ascending indices as a table with a row for each group, -1 where a group has fewer than the most."""
    of = indices // width
    row = torch.searchsorted(groups, of).clamp(max=len(groups) - 1)
    inside = groups[row] == of
    indices, row = indices[inside], row[inside]
    counts = torch.bincount(row, minlength=len(groups))
    column = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    table = indices.new_full((len(groups), int(counts.max())), -1)
    table[row, column] = indices
    return table


@reduce_step.register
def _(module: nn.Linear, c: _Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
    slot, state = c.input(inputs[0]) if c.dimensions.get(inputs[0]) == 2 else c.along(-1, inputs[0])
    rows, result = _rows(module, c)
    weight: Tensor = module.weight
    bias: Tensor | None = module.bias
    if rows is not None:
        weight = _select(weight, 0, rows, module.out_features)
        bias = None if bias is None else _select(bias, 0, rows, module.out_features)
    if state is not None and not state.full:
        repeat = module.in_features // state.size  # after a flatten each channel is a run of features
        offsets = torch.arange(repeat, device=c.device)
        columns = (state.live.unsqueeze(1) * repeat + offsets).flatten()
        if state.empty and c.name not in c.attention_outputs:
            columns = offsets  # its one channel of zeros: any weights will do
        weight = weight.index_select(1, columns)
    if weight is module.weight:
        return c.emit(module, (slot,)), result
    sizes = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    return c.emit(clone(module, weight=weight, bias=bias, **sizes), (slot,)), result


def _rows(module: nn.Linear, c: _Compactor) -> tuple[Tensor | None, State]:
    """Which output rows stay (None: all), and what that makes of the value."""
    live = live_rows(c.graph, c.masks, c.name)
    if c.name in c.graph.heads:
        return None if live is None or len(live) == module.out_features else live, None
    kept = c.kept(module.out_features) if live is None else live
    return kept, Channels(-1, module.out_features, kept)


@reduce_step.register(nn.MaxPool2d)
@reduce_step.register(nn.AvgPool2d)
@reduce_step.register(nn.AdaptiveAvgPool2d)
@reduce_step.register(nn.AdaptiveMaxPool2d)
def _(module: nn.Module, c: _Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
    slot, state = c.along(1, inputs[0])
    return c.emit(module, (slot,)), state


@reduce_step.register
def _(module: nn.Flatten, c: _Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
    slot, state = c.input(inputs[0])
    channels_first = state is not None and state.dim == 1
    if channels_first and (module.start_dim, module.end_dim) == (1, -1) and c.read_as_runs(c.output):
        return c.emit(module, (slot,)), state
    return c.emit(module, (c.expand(slot, state)[0],)), None


@reduce_step.register
def _(module: ops.Mean, c: _Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
    slot, state = c.input(inputs[0])
    if state is not None and state.dim == 1 and set(module.dims) <= {2, 3}:  # counted from the front, where known
        return c.emit(module, (slot,)), state
    return c.emit(module, (c.expand(slot, state)[0],)), None


@reduce_step.register
def _(module: ops.Permute, c: _Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
    slot, state = c.input(inputs[0])
    if state is not None:
        dims = [dim % len(module.dims) for dim in module.dims]
        dim = dims.index(state.dim % len(dims))
        if len(dims) == 3 and dim == 1:  # channels lie there in maps, which these are not
            return c.emit(module, (c.expand(slot, state)[0],)), None
        state = replace(state, dim=-1 if dim == len(dims) - 1 > 1 else dim)
    return c.emit(module, (slot,)), state


@reduce_step.register
def _(module: ops.Add, c: _Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
    (a, first), (b, second) = c.input(inputs[0]), c.input(inputs[1])
    if first is None or second is None or (first.dim, first.size) != (second.dim, second.size):
        return c.emit(module, (c.expand(a, first)[0], c.expand(b, second)[0])), None
    if not first.empty and torch.equal(first.live, second.live):
        return c.emit(module, (a, b)), first
    if c.extents[inputs[0]] != c.extents[inputs[1]]:  # one of them may be repeated over the other
        return c.emit(module, (c.expand(a, first)[0], c.expand(b, second)[0])), None
    if first.empty or second.empty:  # nothing is added: the branch that ends here goes with it
        return (a, first) if second.empty else (b, second)
    union = torch.cat([first.live, second.live]).unique()
    targets = [
        None if len(state.live) == len(union) else torch.searchsorted(union, state.live) for state in (first, second)
    ]
    add = ops.ScatterAdd(first.dim, len(union), *targets)
    return c.emit(add, (a, b)), Channels(first.dim, first.size, union)


@reduce_step.register
def _(module: ops.Multiply, c: _Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
    (a, first), (b, second) = c.input(inputs[0]), c.input(inputs[1])
    if first is None or second is None or (first.dim, first.size) != (second.dim, second.size):
        return c.emit(module, (c.expand(a, first)[0], c.expand(b, second)[0])), None
    shared = first.live[torch.isin(first.live, second.live)]
    a, b = c.realign(a, first, shared), c.realign(b, second, shared)
    return c.emit(module, (a, b)), replace(first, live=shared)


@reduce_step.register
def _(module: ops.Concat, c: _Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
    parts = [c.input(slot) for slot in inputs]
    states = [state for _, state in parts]
    if any(state is None or state.dim != module.dim for state in states):
        return c.emit(module, tuple(c.expand(*part)[0] for part in parts)), None
    offset, live, slots = 0, [], []
    for slot, state in parts:
        assert state is not None
        if not state.empty:
            live.append(state.live + offset)
            slots.append(slot)
        offset += state.size
    joined = Channels(module.dim, offset, torch.cat(live) if live else states[0].live)  # type: ignore[union-attr]
    if len(slots) < 2:
        return (slots or [parts[0][0]])[0], joined
    return c.emit(module, tuple(slots)), joined


@reduce_step.register
def _(module: ops.SplitHeads, c: _Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
    slot, _ = c.input(inputs[0])
    parent = c.name.rpartition(".")[0]
    kept = c.masks.get(f"{parent}.softmax")
    heads = module.heads if kept is None else max(1, int(kept.sum()))
    return c.emit(_with_heads(module, heads), (slot,)), None


@reduce_step.register
def _(module: ops.HeadSoftmax, c: _Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
    slot, _ = c.input(inputs[0])
    return c.emit(_with_heads(module, max(1, len(c.kept(module.heads)))), (slot,)), None


def _with_heads(module: ops.SplitHeads | ops.HeadSoftmax, heads: int) -> nn.Module:
    return module if heads == module.heads else clone(module, heads=heads)


@reduce_step.register
def _(module: ops.MergeHeads, c: _Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
    slot, _ = c.input(inputs[0])
    parent = c.name.rpartition(".")[0]
    kept = c.masks.get(f"{parent}.softmax")
    if kept is None:
        return c.emit(module, (slot,)), None
    live = kept.nonzero().flatten()
    if len(live) == 0:  # tokens without features: what reads them is left with its bias
        (tokens,) = next(step.inputs for step in c.graph.network.steps if step.name == f"{parent}.q_proj")
        return c.emit(ops.NoFeatures(), (c.expand(*c.input(tokens))[0],)), Channels(-1, len(kept), live)
    # one "channel" a head: the linear layer that reads it knows how wide a head is
    return c.emit(module, (slot,)), Channels(-1, len(kept), live)
