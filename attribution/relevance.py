"""Relevance of units: what the LRP backward pass assigns to each filter, neuron or head."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zennit.core import Composite as ZennitComposite

from ..pruning.curve import Batches, check_targets, checked_samples
from ..pruning.graph import Graph, trace
from ..pruning.operations.layers import real_rows
from ..pruning.precision import computed_in
from ..pruning.prices import surplus, unit_prices
from ..pruning.widths import in_blocks
from .composites import Composite, load_composite
from .foreign import on_graph


@torch.inference_mode(False)  # in which nothing has a gradient, whatever enable_grad says
def collect_relevance(
    model: nn.Module | Graph,
    composite: Composite | str | Path | Mapping[str, Any] | ZennitComposite,
    inputs: Batches,
    targets: Tensor,
    units: str | None = "filters",
    batch_size: int = 32,
    *,
    reference: bool = False,
    logits: Tensor | None = None,
) -> dict[str, Tensor]:
    """Relevance of each unit, over all samples (Hatefi et al., eq. 4 and 5).

    Relevance starts as 1 at each sample's target logit (or as the composite says, see `start_relevance`). That of
    a filter is summed over space, that of a neuron or a head taken absolute for each token and summed (or reduced as
    the composite says, see `per_unit`); then samples are summed, absolute or signed as the composite says, and
    layers are normalised as it says. With a `cost_exponent` it is divided by that power of the unit's price on this
    network (`priced`).

    model: a classifier, which stays as it is, or its graph. composite: ours, its JSON (a file, or its content), or one
    of zennit's, whose rules are used as on the model with zennit's canonizer. inputs: float images, shape
    (n, channels, height, width), on the model's device. targets: logit indices, int64, shape (n,). units: "filters",
    "neurons", "heads", several joined by "+", or None for what is usual for the model. reference: use zennit's own
    rules (slower, the same up to rounding). logits: indices of those that compete with the targets; None for all.

    Returns, by layer name in layer order, a float tensor, shape (units,), on the model's device.

    Raises:
        TraceError: see `trace`.
        CompositeError: the composite does not fit the model.
        ValueError: no such units in the model, no samples, or a target that no logit has.
    """
    inputs, targets = checked_samples(inputs, targets, batch_size)
    graph = trace(model, inputs[:2])
    if isinstance(composite, (str, Path, Mapping)):
        composite = load_composite(composite)
    if not isinstance(composite, Composite):
        with computed_in("fp32"), on_graph(composite).context(graph.network):
            return scores_of(graph, units, inputs, targets, batch_size, relevance_score, input_gradient=True)
    with computed_in("fp32"), composite.zennit(graph, reference=reference).context(graph.network):
        totals = scores_of(
            graph,
            units,
            inputs,
            targets,
            batch_size,
            relevance_score,
            signed=composite.aggregation == "signed",
            reduction=composite.reduction,
            start=composite.start,
            competing=logits,
            input_gradient=reference,
        )
    found = normalize(totals, composite.normalization)
    # where nothing is relevant, prices would give an order all the same
    by_price = composite.cost_exponent and found and bool(torch.cat([*found.values()]).any())
    if by_price:
        paces = composite.paces if composite.cost == "latency" else None
        together = {} if paces is None else surplus(graph, found, paces)
        found = priced(found, unit_prices(graph, found, composite.cost, paces), composite.cost_exponent, together)
    found = balance(found, graph.kinds, composite.balance)  # after prices: a head costs a hundred neurons
    return last_ones_last(found, graph.network.bottlenecks()) if by_price else found


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
    reduction: str = "auto",
    start: str = "logit",
    competing: Tensor | None = None,
    input_gradient: bool = False,
) -> dict[str, Tensor]:
    """Sums over samples of a score of each unit, from a backward pass that starts at the target logits.

    score: from a unit layer's output and the gradient there, a tensor of their shape; it is reduced as `per_unit`
    says. start, competing: as in `start_relevance`. input_gradient: let gradients flow down to the images, which
    zennit's own hooks need.
    """
    totals: dict[str, Tensor] = {}
    with _recorded(graph, units, totals, score, signed, reduction), torch.enable_grad():
        for first in range(0, len(targets), batch_size):
            batch = inputs[first : first + batch_size].detach()
            if input_gradient:
                batch.requires_grad_()
            logits = graph.network(batch)
            if first == 0:
                check_targets(targets, logits.shape[1])
            if not logits.requires_grad:  # no unit is left on the way to them: relevance is zero
                continue
            logits.backward(start_relevance(start, targets[first : first + batch_size], logits.detach(), competing))
    return totals


def one_hot(targets: Tensor, logits: Tensor) -> Tensor:
    """Relevance 1 at the target logit: shape and type of the logits, (batch, classes)."""
    return torch.zeros_like(logits).scatter_(1, targets.unsqueeze(1), 1)


def start_relevance(how: str, targets: Tensor, logits: Tensor, competing: Tensor | None = None) -> Tensor:
    """The relevance of the logits, shape (batch, classes), with p their softmax and t the target.

    how: "logit": 1 at the target. "softmax": the gradient of the target's probability, `p_t (1 - p_t)` at the target
    and `-p_t p_j` at each other class, so that samples which are certain hardly count (SGLRP, Iwana et al. 2019,
    arXiv 1908.04351, eq. 8). "contrastive": 1 at the target and -1 in all at the others, shared as their
    probabilities are, `-p_j / (1 - p_t)`: softmax's, with each sample counting the same (in the spirit of CLRP, Gu et
    al. 2018, arXiv 1812.02100, whose second form shares the -1 evenly). competing: the logits that are classes.
    """
    target = one_hot(targets, logits)
    if how == "logit":
        return target
    if competing is not None:
        outside = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        outside[competing] = False
        logits = logits.masked_fill(outside, -torch.inf)
    if how == "softmax":
        p = logits.softmax(1)
        p_target = p.gather(1, targets.unsqueeze(1))
        return p_target * (target - p)
    others = logits.masked_fill(target.bool(), -torch.inf).softmax(1)
    return target - others.nan_to_num(0.0)  # with no other class there is nothing to contrast with


@contextmanager
def _recorded(
    graph: Graph, units: str | None, totals: dict[str, Tensor], score: Score, signed: bool, reduction: str
) -> Iterator[None]:
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
                found = graph.arranged(name, score(value, gradient.detach()))
                values = per_unit(found, graph.kinds[name], signed, reduction)
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


def per_unit(relevance: Tensor, kind: str, signed: bool, reduction: str = "auto") -> Tensor:
    """Sum over samples of each unit's relevance, shape (units,).

    relevance: of a layer's output: filters (batch, units, height, width), neurons (batch, ..., units), heads
    (batch, units, tokens, tokens; summed over the last first). reduction: over positions (space or tokens): "sum",
    "abs" (the sum of absolute values, of which `signed` makes no difference), "max" (the largest by absolute value,
    with its sign), or "auto": "sum" for filters and "abs" for the others, as in the paper's code; where `signed`,
    "sum" for all.
    """
    if kind == "filters":
        positions = relevance.flatten(2)
    elif kind == "heads":
        positions = relevance.sum(-1)
    else:
        positions = relevance.flatten(1, -2).transpose(1, 2) if relevance.dim() > 2 else relevance.unsqueeze(2)
    if reduction == "auto":
        reduction = "sum" if signed or kind == "filters" else "abs"
    if reduction == "sum":
        samples = positions.sum(2)
    elif reduction == "abs":
        samples = positions.abs().sum(2)
    else:
        high, low = positions.amax(2), positions.amin(2)
        samples = torch.where(high >= -low, high, low)
    return (samples if signed else samples.abs()).sum(0)


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


def priced(
    relevance: Mapping[str, Tensor],
    prices: Mapping[str, Tensor],
    exponent: float,
    together: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Relevance divided by a power of the units' prices, each in units of the mean one; shapes (units,).

    together: by layer, what units save besides if they go together (`pruning.prices.surplus`): see
    `pruning.widths.in_blocks`."""
    if not any(len(values) for values in prices.values()):
        return dict(relevance)
    mean = torch.cat([*prices.values()]).mean()
    found, together = {}, together or {}
    for name, values in relevance.items():
        price = prices[name] / mean
        if name in together:
            found[name] = in_blocks(values, price, together[name] / mean.cpu().double(), exponent)
        else:
            found[name] = values / price.to(values) ** exponent
    return found


def last_ones_last(relevance: Mapping[str, Tensor], layers: Collection[str]) -> dict[str, Tensor]:
    """The same with the most relevant unit of each of these layers after all others, in their order: without it, no
    path would be left through the network. Prices alone would now and then have a whole layer go, where it is dear."""
    found = dict(relevance)
    chosen = [name for name in relevance if name in layers and len(relevance[name])]
    if chosen:
        highest = torch.stack([values.max() for values in relevance.values() if len(values)]).max().clamp(min=1e-30)
        for name in chosen:
            best = relevance[name].argmax()
            own = relevance[name][best]
            positive = own.clamp(min=0)
            after_all = highest * (2 + positive / (positive + highest))  # twice the highest, or up to half of it more
            after_all = torch.where(highest.isfinite(), after_all, own)  # what is not is to be found where it is
            found[name] = relevance[name].index_copy(0, best.unsqueeze(0), after_all.unsqueeze(0))
    return found
