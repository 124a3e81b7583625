"""Relevance of units: what the LRP backward pass assigns to each filter, neuron or head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from zennit.core import Composite as ZennitComposite

from ..pruning.compact import real_rows
from ..pruning.curve import Batches, check_samples
from ..pruning.graph import Graph, trace
from ..pruning.precision import computed_in
from .composites import Composite, load_composite


@computed_in("fp32")
def collect_relevance(
    model: nn.Module | Graph,
    composite: Composite | Mapping[str, Any] | ZennitComposite,
    inputs: Batches,
    targets: Tensor,
    units: str | None = "filters",
    batch_size: int = 32,
    *,
    reference: bool = False,
) -> dict[str, Tensor]:
    """Relevance of each unit, over all samples (Hatefi et al., eq. 4 and 5).

    Relevance starts as 1 at each sample's target logit. That of a filter is summed over space, that of a
    neuron or a head taken absolute for each token and summed; then samples are summed, absolute or signed as
    the composite says, and layers are normalised as it says.

    model: a classifier, which stays as it is, or its graph. composite: ours, its JSON, or one of zennit's for the
    network of a graph. inputs: float images, shape (n, channels, height, width), on the model's device.
    targets: logit indices, int64, shape (n,). units: "filters", "neurons", "heads", several joined by "+", or
    None for what is usual for the model. reference: use zennit's own rules (slower, the same up to rounding).

    Returns, by layer name in layer order, a float tensor, shape (units,), on the model's device.

    Raises:
        TraceError: see `trace`.
        CompositeError: the composite does not fit the model.
        ValueError: no such units in the model, or no samples.
    """
    graph = trace(model)
    check_samples(inputs, targets)
    if isinstance(composite, Mapping):
        composite = load_composite(composite)
    if not isinstance(composite, Composite):
        with composite.context(graph.network):
            return scores_of(graph, units, inputs, targets, batch_size, relevance_score, input_gradient=True)
    with composite.zennit(graph, reference=reference).context(graph.network):
        totals = scores_of(
            graph,
            units,
            inputs,
            targets,
            batch_size,
            relevance_score,
            signed=composite.aggregation == "signed",
            input_gradient=reference,
        )
    return balance(normalize(totals, composite.normalization), graph.kinds, composite.balance)


Score = Callable[[Tensor, Tensor], Tensor]


def relevance_score(output: Tensor, gradient: Tensor) -> Tensor:
    """What reaches a unit's output in the backward pass: under a composite, its relevance."""
    return gradient


def scores_of(
    graph: Graph,
    units: str | None,
    inputs: Batches,
    targets: Tensor,
    batch_size: int,
    score: Score,
    *,
    signed: bool = False,
    input_gradient: bool = False,
) -> dict[str, Tensor]:
    """Sums over samples of a score of each unit, from a backward pass that starts at the target logits.

    score: from a unit layer's output and the gradient there, a tensor of their shape; it is reduced as the
    definitions say. input_gradient: let gradients flow down to the images, which zennit's own hooks need.
    """
    totals: dict[str, Tensor] = {}
    with _recorded(graph, units, totals, score, signed), torch.enable_grad():
        for start in range(0, len(targets), batch_size):
            batch = inputs[start : start + batch_size].detach()
            if input_gradient:
                batch.requires_grad_()
            logits = graph.network(batch)
            logits.backward(one_hot(targets[start : start + batch_size], logits))
    return totals


def one_hot(targets: Tensor, logits: Tensor) -> Tensor:
    """Relevance 1 at the target logit: shape and type of the logits, (batch, classes)."""
    return torch.zeros_like(logits).scatter_(1, targets.unsqueeze(1), 1)


@contextmanager
def _recorded(graph: Graph, units: str | None, totals: dict[str, Tensor], score: Score, signed: bool) -> Iterator[None]:
    """Sums, in `totals`, the score of each unit in every backward pass while the context is open."""
    modules = graph.network.modules_by_step()
    like = next(graph.network.parameters())
    handles = []

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def on_forward(module: nn.Module, args: Any, output: Tensor) -> None:
            if not output.requires_grad:  # the first layer of all: gradients need not go below it
                output.requires_grad_()
            value = output.detach()

            def on_backward(gradient: Tensor) -> None:
                values = per_unit(score(value, gradient.detach()), graph.kinds[name], signed)
                totals[name] += of_units(module, values)

            output.register_hook(on_backward)

        return on_forward

    for name, size in graph.units(units).items():
        totals[name] = like.new_zeros(size)
        # a layer with nothing left, or that nothing reads any more, has no relevance to give
        if size and name in modules:
            handles.append(modules[name].register_forward_hook(record(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def of_units(module: nn.Module, values: Tensor) -> Tensor:
    """The values that belong to units: a compact grouped convolution may have rows of zeros besides."""
    rows = real_rows(module)
    return values if rows is None else values[rows]


def per_unit(relevance: Tensor, kind: str, signed: bool) -> Tensor:
    """Sum over samples of each unit's relevance, shape (units,).

    relevance: of a layer's output: filters (batch, units, height, width), neurons (batch, ..., units), heads
    (batch, units, tokens, tokens).
    """
    if kind == "filters":
        samples = relevance.sum((2, 3))
        return (samples if signed else samples.abs()).sum(0)
    if kind == "heads":
        samples = relevance.sum(-1)
        return (samples if signed else samples.abs()).sum((0, 2))
    return (relevance if signed else relevance.abs()).flatten(0, -2).sum(0)


def normalize(relevance: Mapping[str, Tensor], how: str) -> dict[str, Tensor]:
    """Relevance divided, layer by layer, by its sum ("l1"), root of squares ("l2") or maximum ("max"), all of
    absolute values. A layer that is zero everywhere stays so."""
    if how == "none":
        return dict(relevance)
    order = {"l1": 1.0, "l2": 2.0, "max": float("inf")}[how]
    return {
        name: values / torch.linalg.vector_norm(values, order).clamp(min=torch.finfo(values.dtype).tiny)
        if values.numel()
        else values
        for name, values in relevance.items()
    }


def balance(relevance: Mapping[str, Tensor], kinds: Mapping[str, str], factor: float) -> dict[str, Tensor]:
    """Makes units of several kinds comparable in one ranking; one kind alone stays as it is.

    Each kind is divided by the mean of its absolute values, so that none drowns the other; then neurons count
    `factor` times.
    """
    present = {kinds[name] for name in relevance}
    if len(present) < 2:
        return dict(relevance)
    scale = {}
    for kind in present:
        values = torch.cat([value.abs() for name, value in relevance.items() if kinds[name] == kind])
        mean = values.mean().clamp(min=torch.finfo(values.dtype).tiny)
        scale[kind] = (factor if kind == "neurons" else 1.0) / mean
    return {name: value * scale[kinds[name]] for name, value in relevance.items()}
