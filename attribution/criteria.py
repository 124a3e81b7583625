"""What else units can be ranked by: the baselines that LRP is compared with.

Each is a function of the same arguments that gives, by layer, one score a unit, shape (units,); higher means
more important. Scores of a layer's output are reduced as relevance is (summed over space; absolute for each
token), then summed over samples as absolute values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..pruning.curve import Batches, checked_samples
from ..pruning.graph import Graph, trace
from ..pruning.precision import computed_in
from ..pruning.registry import Registry
from .relevance import balance, of_units, per_unit, scores_of

Scores = dict[str, Tensor]


def magnitude(graph: Graph, inputs: Batches, targets: Tensor, units: str | None, batch_size: int, seed: int) -> Scores:
    """L2 norm of a unit's weights (folded with BatchNorm); of a head's, those of its three projections."""
    modules = graph.network.modules_by_step()
    scores = {}
    for name, size in graph.units(units).items():
        if graph.kinds[name] == "heads":
            parts = [modules.get(part) for part, softmax in graph.heads.items() if softmax == name]
        else:
            parts = [modules.get(name)]
        weights = [of_units(part, part.weight).reshape(size, -1) for part in parts if part is not None and size]  # type: ignore
        like = next(graph.network.parameters())
        scores[name] = torch.cat(weights, 1).norm(dim=1) if weights else like.new_zeros(size)
    return scores


@torch.no_grad()
def activation(graph: Graph, inputs: Batches, targets: Tensor, units: str | None, batch_size: int, seed: int) -> Scores:
    """Absolute output of the unit. Of a head that is the sum over its tokens' features: its softmax, a unit's output
    elsewhere, sums to one in every head."""
    modules = graph.network.modules_by_step()
    like = next(graph.network.parameters())
    totals = {name: like.new_zeros(size) for name, size in graph.units(units).items()}

    def record(name: str, kind: str) -> Callable[[nn.Module, object, Tensor], None]:
        def on_forward(module: nn.Module, args: object, output: Tensor) -> None:
            if kind == "heads":
                totals[name] += output.abs().movedim(-3, 0).flatten(1).sum(1)
            else:
                totals[name] += of_units(module, per_unit(graph.arranged(name, output), kind, signed=False))

        return on_forward

    handles = []
    for name, values in totals.items():
        kind = graph.kinds[name]
        step = graph.values[name] if kind == "heads" else name
        if len(values) and step in modules:
            handles.append(modules[step].register_forward_hook(record(name, kind)))
    try:
        for start in range(0, len(targets), batch_size):
            graph.network(inputs[start : start + batch_size])
    finally:
        for handle in handles:
            handle.remove()
    return totals


def gradient(graph: Graph, inputs: Batches, targets: Tensor, units: str | None, batch_size: int, seed: int) -> Scores:
    """Absolute gradient of the target logit at the unit's output."""
    return scores_of(graph, units, inputs, targets, batch_size, lambda output, gradient: gradient)


def taylor(graph: Graph, inputs: Batches, targets: Tensor, units: str | None, batch_size: int, seed: int) -> Scores:
    """Output times gradient: how far the target logit moves, to first order, without the unit (Molchanov et
    al. 2017, eq. 6)."""
    return scores_of(graph, units, inputs, targets, batch_size, lambda output, gradient: output * gradient)


INTEGRATION_STEPS = 20


def integrated_gradients(
    graph: Graph, inputs: Batches, targets: Tensor, units: str | None, batch_size: int, seed: int
) -> Scores:
    """Gradients at the unit's output, averaged over images on the way from zero (the mean colour) to the
    sample (Sundararajan et al. 2017; 20 steps, as in the paper's code), absolute for each sample."""
    modules = graph.network.modules_by_step()
    layers = {name: size for name, size in graph.units(units).items() if size and name in modules}
    like = next(graph.network.parameters())
    totals = {name: like.new_zeros(size) for name, size in graph.units(units).items()}
    for start in range(0, len(targets), batch_size):
        batch, labels = inputs[start : start + batch_size], targets[start : start + batch_size]
        sums: dict[str, Tensor] = {}
        for step in range(1, INTEGRATION_STEPS + 1):
            for name, value in _gradients(graph, layers, batch * (step / INTEGRATION_STEPS), labels).items():
                sums[name] = sums[name].add_(value) if name in sums else value
        for name, value in sums.items():
            values = per_unit(graph.arranged(name, value / INTEGRATION_STEPS), graph.kinds[name], signed=False)
            totals[name] += of_units(modules[name], values)
    return totals


def _gradients(graph: Graph, layers: dict[str, int], batch: Tensor, labels: Tensor) -> Scores:
    """The target logit's gradient at the output of each layer, shaped like it."""
    found: Scores = {}
    modules = graph.network.modules_by_step()

    def keep(name: str) -> Callable:
        def on_forward(module: torch.nn.Module, args: object, output: Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_()
            output.register_hook(lambda gradient: found.__setitem__(name, gradient.detach().clone()))

        return on_forward

    handles = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        with torch.enable_grad():
            logits = graph.network(batch)
            if logits.requires_grad:  # else no unit is left on the way to them
                logits.gather(1, labels.unsqueeze(1)).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    return found


def random(graph: Graph, inputs: Batches, targets: Tensor, units: str | None, batch_size: int, seed: int) -> Scores:
    """Uniform numbers, by the seed."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(size, generator=generator).to(graph.device) for name, size in graph.units(units).items()}


Criterion = Callable[[Graph, Batches, Tensor, str | None, int, int], Scores]

CRITERIA: Registry[Criterion] = Registry(
    "criterion",
    {
        "magnitude": magnitude,
        "activation": activation,
        "gradient": gradient,
        "taylor": taylor,
        "integrated_gradients": integrated_gradients,
        "random": random,
    },
)
register_criterion = CRITERIA.register


@torch.inference_mode(False)
def collect_scores(
    model: nn.Module | Graph,
    criterion: str,
    inputs: Batches,
    targets: Tensor,
    units: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Scores:
    """Scores by a criterion of `CRITERIA`; arguments and result as in `collect_relevance`.

    Raises:
        KeyError: unknown criterion.
        ValueError: no such units in the model.
    """
    inputs, targets = checked_samples(inputs, targets, batch_size)
    graph = trace(model, inputs[:2])
    with computed_in("fp32"):
        scores = CRITERIA[criterion](graph, inputs, targets, units, batch_size, seed)
    return balance(scores, graph.kinds, 1.0)
