"""The graph of a model: what it consists of, which of its units can be pruned, and what is known of each layer."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..convolution import convolution
from ..modules import Add, AttentionValue, Constant, Multiply, gates_of, rectifies
from ..names import NO_GATES, UNIT_KINDS, unit_kinds
from ..network import BATCH, Network, Norm, Step, clone, images_dim, needed_steps, readers_of
from ..operations import entry_of
from ..operations.normalization import BATCH_NORMS
from ..operations.reshaping import Reshape
from .attention import find, is_layer, softmax_of
from .build import Builder
from .depth import depth_groups, layer_type
from .export import TraceError, baked, export, unwrapped


@dataclass(frozen=True)
class Layout:
    """Where a layer's value has its images and units, if not where its kind usually has them.

    images: dimension of the images, of which each has `rows` entries there (windows, say). units: of the units.
    """

    images: int
    rows: int
    units: int

    def arranged(self, values: Tensor, kind: str) -> Tensor:
        """The values as their kind usually has them: filters and heads (images, units, ...), neurons last."""
        units = self.units
        if self.images:
            values = values.movedim(self.images, 0)
            units += units < self.images
        if self.rows > 1:
            values = values.unflatten(0, (-1, self.rows))
            units += 1
        values = values.movedim(units, -1 if kind == "neurons" else 1)
        return values.flatten(2, -2) if kind == "heads" and values.dim() > 4 else values


@dataclass(frozen=True)
class Graph:
    """A traced model.

    network: the folded network, in eval mode, parameters without gradients.
    groups: depth group of each layer that takes a rule ("low", "mid", "high", "classifier"), in order.
    types: layer type of each layer that takes a rule, within its group (see `layer_type`).
    kinds: of each prunable layer, in order, the kind of its units.
    sizes: of each prunable layer, how many units it has.
    heads: of each query, key and value projection, the softmax whose heads it computes.
    rows: of each of those, the head of each output; -1 for what several heads use.
    values: of each softmax over keys, the step that multiplies its heads by their values.
    outs: of each layer that reads what heads give, one of the layers that compute their queries.
    layouts: of layers whose values lie otherwise than usual.
    gating: prunable layers that only feed gates (squeeze-and-excitation), or what else only scales: by whatever way one
    goes from there to the logits, it is one that relevance does not come.
    norms: BatchNorms folded into layers, by layer.
    nonnegative: layers whose input is never negative (it comes from ReLU), so that rules may be simpler.
    rectified: layers whose output goes into ReLU only, so that a negative output never has relevance.
    """

    network: Network
    groups: Mapping[str, str]
    types: Mapping[str, str]
    kinds: Mapping[str, str]
    sizes: Mapping[str, int]
    heads: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    outs: Mapping[str, str] = field(default_factory=dict)
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    gating: frozenset[str] = frozenset()
    norms: Mapping[str, Norm] = field(default_factory=dict)
    nonnegative: frozenset[str] = frozenset()
    rectified: frozenset[str] = frozenset()

    def units(self, kind: str | None = None) -> dict[str, int]:
        """How many units of a kind ("filters", "neurons", "heads", or several joined by "+") each layer has.

        With "-gates" at the end those of layers that only feed gates are left out. None stands for what is usual in
        this family (`default_units`).

        Raises:
            ValueError: unknown kind, or the model has no such units.
        """
        kind = kind or self.default_units
        wanted = unit_kinds(kind)
        unknown = [name for name in wanted if name not in UNIT_KINDS]
        if unknown:
            raise ValueError(f"unknown units {unknown[0]!r}: choose from {', '.join(UNIT_KINDS)}")
        apart = self.gating if kind.endswith(NO_GATES) else ()
        found = {name: self.sizes[name] for name, of in self.kinds.items() if of in wanted and name not in apart}
        missing = set(wanted) - {self.kinds[name] for name in found}
        if missing:
            if not self.kinds:
                raise ValueError("the model has nothing to prune: no hidden filter, neuron or attention head")
            held = ", ".join(dict.fromkeys(self.kinds.values()))
            raise ValueError(f"the model has no {' or '.join(sorted(missing))} to prune; it has: {held}")
        return found

    @property
    def default_units(self) -> str:
        """Heads of transformers, filters of convolutional networks, neurons of networks with neither, and of those that
        only cut images into patches by a convolution; without those of layers that only feed gates: relevance says
        nothing of them (benchmarks/README.md)."""
        layers_of = Counter(self.kinds.values())
        convolutional = layers_of["filters"] > 1 or (layers_of["filters"] and layers_of["neurons"] < 2)
        kind = "heads" if layers_of["heads"] else "filters" if convolutional else "neurons"
        layers = {name for name, of in self.kinds.items() if of == kind}
        return kind + NO_GATES if layers & self.gating and layers - self.gating else kind

    @property
    def gated(self) -> bool:
        """Whether the network has gates (squeeze-and-excitation)."""
        return bool(gates_of(self.network))

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def arranged(self, name: str, values: Tensor) -> Tensor:
        """Values shaped like a layer's output, as its kind of units usually has them."""
        layout = self.layouts.get(name)
        return values if layout is None else layout.arranged(values, self.kinds[name])

    def to(self, device: torch.device | str) -> Graph:
        """The graph, moved in place."""
        self.network.to(device)
        object.__setattr__(self, "network", self.network.replaced({}))  # weights in the order that the device likes
        for name, norm in self.norms.items():
            moved = Norm(norm.gamma.to(device), norm.beta.to(device), norm.std.to(device), norm.eps)
            self.norms[name] = moved  # type: ignore[index]
        for name, rows in self.rows.items():
            self.rows[name] = rows.to(device)  # type: ignore[index]
        return self


@torch.inference_mode(False)  # whose tensors nothing could be learnt of later
def trace(model: nn.Module | Graph, example: Tensor | None = None) -> Graph:
    """The graph of a classifier. The model itself stays as it is; its tensors are copied.

    example: float images, shape (n, channels, height, width), of the size that the graph is for; None to find a size
    that the model takes.

    Raises:
        TraceError: the forward function cannot be exported (control flow that depends on the input), computes what no
            LRP rule covers, calls a layer with weights more than once, or gives other logits than its graph.
    """
    if isinstance(model, Graph):
        return model
    own = unwrapped(model)
    if type(own) is Network:
        return _of_network(own, own.image if example is None else example.shape[1:])
    exported = export(own, example)
    builder = Builder(exported)
    builder.build()
    for text in builder.said:
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    image = exported.images.shape[1:]
    graph = _Analysis(builder.steps, builder.modules, builder.result, builder.attentions, image).graph()
    _compare(graph, exported.images, exported.logits, builder.ended)
    return graph


def _of_network(network: Network, image: Sequence[int]) -> Graph:
    """The graph of a compact network: its steps are known."""
    network = baked(network)  # type: ignore[assignment]
    modules = {name: convolution(module) for name, module in network.modules_by_step().items()}
    makers = {step.output: step for step in network.steps}
    attentions = {
        softmax: step.name
        for step in network.steps
        if isinstance(modules[step.name], AttentionValue)
        for softmax in [softmax_of(step, makers, modules)]
        if softmax
    }
    return _Analysis(list(network.steps), modules, network.result, attentions, image).graph()


@torch.no_grad()
def _compare(graph: Graph, images: Tensor, expected: Tensor, ended: str) -> None:
    """Refuses a graph that gives other logits than the model. ended: the function of them that the model ends with."""
    if images.is_meta or not bool(expected.isfinite().all()):
        return
    found = graph.network(images)
    if ended:
        found = getattr(found, ended)(1)
    if expected.shape != found.shape:
        raise TraceError(f"the graph's logits have shape {tuple(found.shape)}, the model's {tuple(expected.shape)}")
    error = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-6))
    if error > 1e-3:
        raise TraceError(f"the graph gives other logits than the model: they differ by {error:.1e} of the largest")


class _Analysis:
    """What is known of a network's layers once its steps are."""

    def __init__(
        self,
        steps: list[Step],
        modules: dict[str, nn.Module],
        result: int,
        attentions: Mapping[str, str],
        image: Sequence[int],
    ) -> None:
        """attentions: of each softmax over keys, the step that multiplies by values."""
        self.result = result
        self.modules = modules
        self.steps = steps
        self.image = image
        self.norms: dict[str, Norm] = {}
        self._drop_unused()
        self._fold_batch_norms()
        self._drop_unused()
        network = Network(self.steps, self.modules, self.result, image).eval().requires_grad_(False)
        self.network = network.to(next(network.parameters(), torch.empty(0)).device)
        self.modules = network.modules_by_step()
        self.shapes = network.shapes()
        softmaxes = {name: value for name, value in attentions.items() if name in self.modules}
        self.attentions = [
            find(self.steps, self.modules, self.shapes, softmax, value) for softmax, value in softmaxes.items()
        ]

    def graph(self) -> Graph:
        """All of it."""
        layers = [step.name for step in self.steps if is_layer(self.modules[step.name])]
        if not layers:
            raise TraceError("the model has no convolution and no linear layer")
        self._find_gates()
        embedding = self._embedding() if self.attentions else frozenset()
        groups = depth_groups(layers, self.modules, transformer=bool(self.attentions), ruleless=embedding)
        parts = {name: part for attention in self.attentions for name, part in attention.parts.items()}
        outs = {name: "out" for attention in self.attentions for name in attention.out}
        kinds, sizes = self._units(embedding, {*outs, *self._inside()})
        nonnegative, rows = self._nonnegative(), self._rows()
        first = next((name for name in layers if name in groups), "")
        first = layers[0] if layers[0] == first else ""
        return Graph(
            network=self.network,
            groups=groups,
            types={
                name: layer_type(
                    name, self.modules[name], first=name == first, attention=parts.get(name, outs.get(name, ""))
                )
                for name in groups
            },
            kinds=kinds,
            sizes=sizes,
            heads={name: attention.softmax for attention in self.attentions for name in attention.rows},
            rows=rows,
            values={attention.softmax: attention.value for attention in self.attentions},
            outs={
                name: next(part for part, letters in attention.parts.items() if letters in ("q", "qkv"))
                for attention in self.attentions
                for name in attention.out
                if {"q", "qkv"} & set(attention.parts.values())
            },
            layouts=self._layouts(kinds),
            gating=frozenset(kinds) - self._signal(),
            norms=self.norms,
            nonnegative=frozenset(step.name for step in self.steps if step.inputs and step.inputs[0] in nonnegative),
            rectified=frozenset(self._rectified()),
        )

    def _drop_unused(self) -> None:
        self.steps = needed_steps(self.steps, self.result)
        self.modules = {step.name: self.modules[step.name] for step in self.steps}

    def _rows(self) -> dict[str, Tensor]:
        device = next(self.network.parameters()).device
        found = {name: rows for attention in self.attentions for name, rows in attention.rows.items()}
        return {name: rows.to(device) for name, rows in found.items()}

    def _inside(self) -> set[str]:
        return {name for attention in self.attentions for name in (*attention.inside, *attention.parts)}

    # -- BatchNorm -------------------------------------------------------------------------------------

    def _fold_batch_norms(self) -> None:
        makers = {step.output: step for step in self.steps}
        readers = readers_of(self.steps)
        shapes = Network(self.steps, self.modules, self.result, self.image).shapes()
        moved: dict[int, int] = {}
        kept = []
        for step in self.steps:
            step = Step(step.name, tuple(moved.get(slot, slot) for slot in step.inputs), step.output)
            norm = self.modules[step.name]
            source = makers.get(step.inputs[0]) if isinstance(norm, BATCH_NORMS) else None
            flat = source is not None and len(shapes[source.output]) == 2
            if source is not None and _merges_positions(self.modules[source.name]) and len(readers[source.output]) == 1:
                source = makers.get(source.inputs[0])  # as `linear(x).flatten(0, 1)` before a BatchNorm of features
            if (
                source is not None
                and _normalises_units(self.modules[source.name], norm, flat=flat)
                and len(readers[source.output]) == 1
                and self.result != source.output
                and source.name not in self.norms
            ):
                layer, self.norms[source.name] = fold(self.modules[source.name], norm)  # type: ignore[arg-type]
                self.modules[source.name] = layer
                moved[step.output] = step.inputs[0]
            else:
                kept.append(step)
        self.steps = kept
        self.result = moved.get(self.result, self.result)

    # -- layers ----------------------------------------------------------------------------------------

    def _embedding(self) -> frozenset[str]:
        """Convolutions that no layer with a rule lies below: what makes tokens of the image. None in a network whose
        trunk is of convolutions, too: one with sums or gates before there are tokens."""
        above: set[int] = set()
        sums: set[int] = set()
        found = set()
        for step in self.steps:
            module = self.modules[step.name]
            reached = not above.isdisjoint(step.inputs)
            if isinstance(module, nn.Conv2d) and not reached:
                found.add(step.name)
                if not sums.isdisjoint(step.inputs):
                    return frozenset()
            elif reached or is_layer(module):
                above.add(step.output)
            if not sums.isdisjoint(step.inputs) or (
                isinstance(module, (Add, Multiply)) and not self._is_constant(step.inputs[1])
            ):
                sums.add(step.output)
        return frozenset(found)

    def _is_constant(self, slot: int) -> bool:
        return any(step.output == slot and isinstance(self.modules[step.name], Constant) for step in self.steps)

    def _units(self, embedding: frozenset[str], apart: set[str]) -> tuple[dict[str, str], dict[str, int]]:
        """Kinds and sizes of what can be pruned. apart: layers of attention that heads stand for, or take with them."""
        kinds, sizes = {}, {}
        logits = self._logit_layers()
        heads = {attention.softmax: attention.heads for attention in self.attentions}
        for step in self.steps:
            module = self.modules[step.name]
            if step.name in logits or step.name in apart or step.name in embedding:
                continue
            if isinstance(module, nn.Conv2d):
                kinds[step.name], sizes[step.name] = "filters", module.out_channels
            elif count := heads.get(step.name):
                kinds[step.name], sizes[step.name] = "heads", count
            elif isinstance(module, nn.Linear):
                kinds[step.name], sizes[step.name] = "neurons", module.out_features
        return kinds, sizes

    def _logit_layers(self) -> set[str]:
        """Layers whose outputs are the classes: the last ones on each way to the result."""
        producers = {step.output: step for step in self.steps}
        found, seen, slots = set(), set(), [self.result]
        while slots:
            slot = slots.pop()
            if slot in seen or slot not in producers:
                continue
            seen.add(slot)
            step = producers[slot]
            if is_layer(self.modules[step.name]):
                found.add(step.name)
            else:
                slots.extend(step.inputs)
        return found

    def _layouts(self, kinds: Mapping[str, str]) -> dict[str, Layout]:
        found = {}
        for step in self.steps:
            if step.name not in kinds:
                continue
            shape, kind = self.shapes[step.output], kinds[step.name]
            images = images_dim(shape)
            usual = {"filters": 1, "neurons": len(shape) - 1, "heads": 1}[kind]
            units = len(shape) - 3 if kind == "heads" else usual
            layout = Layout(images, shape[images] // BATCH, units)
            if layout != Layout(0, 1, usual):
                found[step.name] = layout
        return found

    # -- signs -----------------------------------------------------------------------------------------

    def _find_gates(self) -> None:
        """Notes, at each product, which factor only scales the other."""
        gates: dict[int, bool] = {}
        for step in self.steps:
            module = self.modules[step.name]
            given = [gates.get(slot, False) for slot in step.inputs]
            gates[step.output] = entry_of(module).gate(module, given) if given else False
            if isinstance(module, Multiply):
                found = [index for index, gate in enumerate(given) if gate]
                module.gate = found[0] if len(found) == 1 else None

    def _signal(self) -> set[str]:
        """Steps that relevance comes to where gates get none."""
        slots, found = {self.result}, set()
        for step in reversed(self.steps):
            if step.output in slots:
                found.add(step.name)
                module = self.modules[step.name]
                slots.update(entry_of(module).heirs(module, step.inputs))
        return found

    def _nonnegative(self) -> set[int]:
        """Slots that are never negative: outputs of ReLU and what keeps their sign."""
        slots: set[int] = set()
        for step in self.steps:
            module = self.modules[step.name]
            if entry_of(module).nonnegative(module, [slot in slots for slot in step.inputs]):
                slots.add(step.output)
        return slots

    def _rectified(self) -> set[str]:
        """Layers read by ReLU alone whose every reader, in turn, gives no relevance to a zero input."""
        readers = readers_of(self.steps)

        def blind_to_zeros(slot: int) -> bool:
            following = readers.get(slot, [])
            entries = [(entry_of(self.modules[step.name]), step) for step in following]
            return bool(following) and all(
                entry.blind or (entry.passes_zeros and blind_to_zeros(step.output)) for entry, step in entries
            )

        found = set()
        for step in self.steps:
            following = readers.get(step.output, [])
            if is_layer(self.modules[step.name]) and len(following) == 1 and step.output != self.result:
                after = self.modules[following[0].name]
                if rectifies(after) and blind_to_zeros(following[0].output):
                    found.add(step.name)
        return found


def _merges_positions(module: nn.Module) -> bool:
    """Whether a reshaping joins images and tokens, and leaves features alone."""
    return (
        isinstance(module, Reshape)
        and [len(sizes) for _, sizes in module.groups] == [1, 1]
        and module.groups[1][0] == 1
    )


def _normalises_units(layer: nn.Module, norm: nn.Module, *, flat: bool) -> bool:
    """Whether the channels of a BatchNorm are the outputs of the layer before it; a linear layer's are features only
    where there are no positions besides (flat)."""
    if norm.num_features != getattr(layer, "out_channels", getattr(layer, "out_features", 0)):
        return False
    if isinstance(layer, nn.Conv2d):
        return isinstance(norm, nn.BatchNorm2d)
    return isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d) and flat


def fold(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d) -> tuple[nn.Module, Norm]:
    """A layer that computes what the layer and the BatchNorm after it compute, and the BatchNorm's statistics."""
    assert norm.running_var is not None
    std = (norm.running_var + norm.eps).sqrt()
    gamma = torch.ones_like(std) if norm.weight is None else norm.weight.detach()
    beta = torch.zeros_like(std) if norm.bias is None else norm.bias.detach()
    scale = gamma / std
    bias = torch.zeros_like(std) if layer.bias is None else layer.bias
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    folded = clone(layer, weight=weight, bias=beta + (bias - norm.running_mean) * scale)  # type: ignore[operator]
    return folded, Norm(gamma.clone(), beta.clone(), std, norm.eps)
