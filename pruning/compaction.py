"""The physically smaller network: channels that are pruned, and all that only they fed, are gone.

One pass over the steps carries, with each value, which of its channels are still live. Each operation says how it
passes them on (`Operation.reduce`): a convolution slices its weights, a sum takes the union, a concatenation joins.
Where an operation cannot, it gets all its channels back, as zeros, so the result is right for any network and small
where it can be.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from .channels import Channels, State
from .constant_folding import without_constants
from .convolution import plain
from .graph import Graph, trace
from .modules import Constant, HeadSoftmax, Realign
from .network import Network, Norm, Step, clone, needed_steps
from .operations import entry_of
from .operations.layers import real_rows


@torch.inference_mode(False)
def compact_model(model: nn.Module | Graph, masks: Mapping[str, Tensor], *, example: Tensor | None = None) -> nn.Module:
    """A smaller network with the logits of the masked one.

    masks: per layer (named as in the model) a bool tensor, shape (units,), True = kept; layers not named stay
    whole. Layers may lose all their units. The model is not changed; the result, in eval mode, can be trained,
    explained and pruned again. The state dict of the result loads into
    the result of the same call on a model of the same architecture. Of a model in half precision the result is in
    float32. Gates that are constant now are gone (`without_constants`).

    example: float images, shape (n, channels, height, width), of the size that the network is for; None to find a size
    that the model takes.

    Raises:
        TraceError: see `trace`.
        ValueError: a mask names no prunable layer, or has another length than the layer has units.
    """
    network = plain(without_constants(compact(trace(model, example), masks).network))
    if isinstance(model, Graph):
        network = copy.deepcopy(network)  # which shares the graph's tensors
    return network.requires_grad_()


def masked_model(model: nn.Module | Graph, masks: Mapping[str, Tensor], *, example: Tensor | None = None) -> nn.Module:
    """The plain form of pruning, at full size: pruned filters and neurons have zero weights and bias, pruned
    heads a softmax output of zero. Slower than `compact_model`, and what that is held against.

    Raises:
        As `compact_model`.
    """
    graph = trace(model, example)
    masks = check_masks(graph, masks)
    modules = dict(graph.network.modules_by_step())
    for name, kept in masks.items():
        module = modules[name]
        if isinstance(module, HeadSoftmax):
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


def compact(graph: Graph, masks: Mapping[str, Tensor]) -> Graph:
    """As `compact_model`, as a graph: same layer names, smaller sizes."""
    return Compactor(graph, check_masks(graph, masks)).run()


class Compactor:
    """What operations read and write while a network is made smaller.

    graph: of the whole network. masks: of units. name, output: of the step that is reduced, and its slot.
    """

    def __init__(self, graph: Graph, masks: dict[str, Tensor]) -> None:
        self.graph = graph
        self.masks = masks
        self.device = graph.device
        self.dtype = next(graph.network.parameters()).dtype
        self.steps: list[Step] = []
        self.modules: dict[str, nn.Module] = {}
        self.states: dict[int, State] = {0: None}
        self.slots: dict[int, int] = {0: 0}  # slot in the graph to slot in the compact network
        self.shapes = graph.network.shapes()
        self.count = 1
        self.name = ""
        self.output = 0
        self.norms = {name: self._norm(name, norm) for name, norm in graph.norms.items()}

    def run(self) -> Graph:
        """The smaller graph."""
        graph = self.graph
        modules = graph.network.modules_by_step()
        for step in graph.network.steps:
            module = modules[step.name]
            self.name, self.output = step.name, step.output
            slot, state = entry_of(module).reduce(module, self, step.inputs)
            self.slots[step.output], self.states[step.output] = slot, state
        result = graph.network.result
        result = self.expand(self.slots[result], self.states[result])
        steps = needed_steps(self.steps, result)
        network = Network(steps, self.modules, result, graph.network.image).eval().requires_grad_(False)
        return replace(
            graph,
            network=network,
            sizes={name: self._left(name) for name in graph.sizes},
            norms=self.norms,
            rows={name: self._rows(name, rows) for name, rows in graph.rows.items()},
        )

    def _left(self, name: str) -> int:
        return int(self.masks[name].sum()) if name in self.masks else self.graph.sizes[name]

    def _norm(self, name: str, norm: Norm) -> Norm:
        live = live_rows(self.graph, self.masks, name)
        if live is None:
            return norm
        if len(live) == 0 and name in self.graph.heads:
            live = self._first_rows(name)
        if len(live) == 0:  # the one channel of zeros that stays
            zero = norm.gamma.new_zeros(1)
            return Norm(zero, zero, zero + 1, norm.eps)
        return Norm(norm.gamma[live], norm.beta[live], norm.std[live], norm.eps)

    def _rows(self, name: str, rows: Tensor) -> Tensor:
        """Of a projection, the head of each output that is left, counted among those that are."""
        kept = self.masks.get(self.graph.heads[name])
        live = live_rows(self.graph, self.masks, name)
        if kept is None or live is None:
            return rows
        if len(live) == 0:
            live = self._first_rows(name)
        return torch.where(rows < 0, rows, kept.cumsum(0)[rows.clamp(min=0)] - 1)[live]

    def _first_rows(self, name: str) -> Tensor:
        """Of a projection all of whose heads go, the outputs that stay in their place: those of one head."""
        rows = self.graph.rows[name]
        return (rows == rows.min()).nonzero().flatten()

    # -- for the operations ----------------------------------------------------------------------------

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
        """The slot in the compact network, and what is live there, of a slot in the whole one."""
        return self.slots[slot], self.states[slot]

    def shape(self, slot: int) -> tuple[int, ...]:
        """The shape of a value in the whole network (`Network.shapes`)."""
        return self.shapes[slot]

    def units(self, dim: int, size: int) -> tuple[Tensor | None, State]:
        """Which outputs of the present layer stay (None: all), and what that makes of its value."""
        live = live_rows(self.graph, self.masks, self.name)
        if live is None or len(live) == size:
            return None, None
        loose = self.name in self.graph.heads
        if len(live) > 0:
            return live, Channels(dim, size, live, loose=loose)
        first = self._first_rows(self.name) if loose else torch.zeros(1, dtype=torch.long, device=self.device)
        return first, Channels(dim, size, first, empty=True, loose=loose)

    def beside(self, layer: str, slot: int) -> int | None:
        """For a layer that reads what heads give, when none is left: the tokens that they read, if as many."""
        query = self.graph.outs.get(layer)
        found = next((step.inputs[0] for step in self.graph.network.steps if step.name == query), None)
        if found is None or self.shape(found)[:-1] != self.shape(slot)[:-1]:
            return None
        return self.expand(*self.input(found))

    def narrowed(self, slot: int, state: State, live: Tensor, original: int, dim: int) -> int:
        """A slot that holds these channels of a value, zeros where they are not live.

        state: of the value. original: its slot in the whole network. dim: of the channels, counted from the last one.
        """
        shape = self.shape(original)
        dim += len(shape)
        if state is not None and state.dim != dim:
            slot, state = self.expand(slot, state), None
        if state is None and len(live) == shape[dim]:
            return slot
        if state is not None and torch.equal(state.live, live):
            return slot
        maker = self.modules[self.steps[slot - 1].name] if slot else None
        if isinstance(maker, Constant):
            value: Tensor = maker.value  # type: ignore[assignment]
            return self.emit(Constant(value.index_select(dim, live)), (), "_part")
        return self.emit(Realign(dim, live if state is None else state.positions()[live]), (slot,), "_realign")

    def expand(self, slot: int, state: State) -> int:
        """All channels back, as zeros."""
        if state is None or len(state.live) == state.size:
            return slot
        return self.emit(Realign(state.dim, state.positions()), (slot,), "_realign")


def live_rows(graph: Graph, masks: Mapping[str, Tensor], layer: str) -> Tensor | None:
    """Which of a layer's outputs masks leave (`check_masks`), as ascending indices; None: no mask speaks of it. A
    projection goes with the heads that it computes; a unit's index may be another than its output's (`real_rows`)."""
    kept = masks.get(graph.heads.get(layer, layer))
    if kept is None or (layer in graph.heads and len(kept) == 0):
        return None
    if layer in graph.heads:
        rows = graph.rows[layer]
        kept = kept[rows.clamp(min=0)] | (rows < 0)  # what several heads share stays
    live = kept.nonzero().flatten()
    return live if (real := real_rows(graph.network.get_submodule(layer))) is None else real[live]
