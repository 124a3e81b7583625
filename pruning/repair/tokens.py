"""How much each token counts in a refit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..graph import Graph

AT_ONCE = 8
"""Images in a pass that keeps all their activations for the gradient: few, since nobody has asked whether more fit."""
EVEN = 0.5
"""The part of a token's weight that is the same for all, so that none is without."""


@torch.inference_mode(False)
def token_weights(graph: Graph, chunks: Sequence[Tensor]) -> dict[str, Tensor]:
    """How much each token of a linear layer counts in its refit: shape (tokens of all samples,), of mean 1, by layer.

    Half of it is even; the other half goes by the square of the gradient of the sample's margin (the largest logit less
    the next) at the layer's output for that token: a squared error counts by what it does to the prediction, as in
    Optimal Brain Surgeon (Hassibi and Stork 1993). So no labels are needed. Layers without tokens (rows are images, or
    pixels of a convolution) have no weights: there they change nothing (benchmarks/README.md).
    """
    modules = graph.network.modules_by_step()
    counts = {slot: len(shape) for slot, shape in graph.network.shapes().items()}
    outputs = {step.name: step.output for step in graph.network.steps}
    layers = [name for name, m in modules.items() if isinstance(m, nn.Linear) and counts.get(outputs[name]) == 3]
    squares: dict[str, list[Tensor]] = {name: [] for name in layers}

    def note(name: str, output: Tensor) -> Tensor:
        if len(output) != len(chunk):  # tokens come first: rows of several chunks would be in another order
            return output
        output = output if output.requires_grad else output.requires_grad_()
        output.register_hook(lambda gradient: squares[name].append(gradient.square().sum(-1).flatten()))
        return output

    handles = [modules[name].register_forward_hook(lambda _, __, out, name=name: note(name, out)) for name in layers]
    try:
        with torch.enable_grad():
            for chunk in chunks if layers else ():
                logits = graph.network(chunk)
                if logits.requires_grad:
                    best = logits.topk(min(2, logits.shape[1])).values
                    (2 * best[:, 0].sum() - best.sum()).backward()
    finally:
        for handle in handles:
            handle.remove()
    flat = {name: torch.cat(parts) for name, parts in squares.items() if len(parts) == len(chunks)}
    tiny = torch.finfo(torch.float32).tiny
    return {name: EVEN + (1 - EVEN) * each / each.mean().clamp(min=tiny) for name, each in flat.items()}
