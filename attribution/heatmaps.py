"""Heat maps: how much of a logit each pixel of an image is answerable for, by a composite or by another method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from zennit.core import Composite as ZennitComposite

from ..pruning.curve import Batches, check_targets, checked_samples
from ..pruning.graph import Graph, trace
from ..pruning.precision import computed_in
from ..pruning.registry import Registry
from .composites import Composite, load_composite
from .foreign import on_graph
from .relevance import start_relevance


@dataclass(frozen=True)
class Request:
    """What is to be explained, a batch of it.

    images: float, shape (batch, channels, height, width). targets: logit indices, int64, shape (batch,). first: the
    number of the first sample. seed: for random numbers, which are drawn by seed and sample number, whatever the batch.
    competing: the logits that are classes, or None for all.
    """

    images: Tensor
    targets: Tensor
    first: int = 0
    seed: int = 0
    competing: Tensor | None = None

    def noise(self, draw: int, make: Callable[..., Tensor] = torch.randn) -> Tensor:
        """Numbers for each of the images, shaped like them; others for each draw."""
        found = []
        for index in range(self.first, self.first + len(self.images)):
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) * 1_009 + draw)
            found.append(make(self.images.shape[1:], generator=generator))
        return torch.stack(found).to(self.images)


Explainer: TypeAlias = Callable[[nn.Module, Request], Tensor]
"""Takes a network that gives logits, and a request; returns the relevance of every value of its images."""


def gradient_of(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the target logits, shaped like the images."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = network(images)
        (found,) = torch.autograd.grad(logits.gather(1, targets.unsqueeze(1)).sum(), images)
    return found


def gradient_times_input(network: nn.Module, of: Request) -> Tensor:
    """How far each value moves the logit, to first order, from an input of zero (the mean colour)."""
    return gradient_of(network, of.images, of.targets) * of.images


INTEGRATION_STEPS = 20


def integrated_gradients(network: nn.Module, of: Request) -> Tensor:
    """Gradients on the way from zero (the mean colour) to the image, averaged, times the image (Sundararajan et al.
    2017); by the midpoint rule."""
    total = torch.zeros_like(of.images)
    for step in range(INTEGRATION_STEPS):
        total += gradient_of(network, of.images * ((step + 0.5) / INTEGRATION_STEPS), of.targets)
    return total / INTEGRATION_STEPS * of.images


SMOOTHING_DRAWS, SMOOTHING_NOISE = 20, 0.15
"""Of SmoothGrad: how many noisy images, and their noise as a part of the image's range."""


def smoothgrad(network: nn.Module, of: Request) -> Tensor:
    """Absolute gradients, averaged over the image with noise (Smilkov et al. 2017)."""
    size = (of.images.amax((1, 2, 3), keepdim=True) - of.images.amin((1, 2, 3), keepdim=True)) * SMOOTHING_NOISE
    total = torch.zeros_like(of.images)
    for draw in range(SMOOTHING_DRAWS):
        total += gradient_of(network, of.images + size * of.noise(draw), of.targets)
    return (total / SMOOTHING_DRAWS).abs()


def random(network: nn.Module, of: Request) -> Tensor:
    """Uniform numbers, by the seed."""
    return of.noise(0, torch.rand)


EXPLAINERS: Registry[Explainer] = Registry(
    "explainer",
    {
        "gradient_times_input": gradient_times_input,
        "integrated_gradients": integrated_gradients,
        "smoothgrad": smoothgrad,
        "random": random,
    },
)
"""What else makes heat maps: what composites are compared with."""
register_explainer = EXPLAINERS.register

Method: TypeAlias = "Composite | str | Path | Mapping[str, Any] | ZennitComposite"
"""A composite of ours, its JSON (a file, or its content), one of zennit's, or the name of an explainer."""


@torch.inference_mode(False)
def heat_maps(
    model: nn.Module | Graph,
    method: Method,
    inputs: Batches,
    targets: Tensor,
    batch_size: int = 32,
    *,
    logits: Tensor | None = None,
    seed: int = 0,
    reference: bool = False,
) -> Tensor:
    """The relevance of each pixel for a logit, its channels summed.

    Args:
        model: a classifier, which stays as it is, or its graph.
        method: a composite, as `collect_relevance` takes it, or the name of one of `EXPLAINERS`.
        inputs: float images, shape (n, channels, height, width), on the model's device.
        targets: the logit to explain for each, int64, shape (n,).
        batch_size: images a pass.
        logits: the logits that are classes, for composites whose relevance starts at several; None for all.
        seed: for random numbers.
        reference: use zennit's own rules (slower, the same up to rounding).

    Returns:
        Shape (n, height, width). By a composite it sums to about what the logit's relevance is at the start, 1.

    Raises:
        TraceError: see `trace`.
        CompositeError: the composite does not fit the model.
        KeyError: no such explainer.
        ValueError: no samples, or a target that no logit has.
    """
    inputs, targets = checked_samples(inputs, targets, batch_size)
    graph = trace(model, inputs[:2])
    if isinstance(method, (str, Path, Mapping)) and not (isinstance(method, str) and method in EXPLAINERS):
        method = load_composite(method)
    return torch.cat(list(map_batches(graph, method, inputs, targets, batch_size, logits, seed, reference=reference)))


def map_batches(
    graph: Graph,
    method: Composite | ZennitComposite | str | Path | Mapping[str, Any],
    inputs: Batches,
    targets: Tensor,
    batch_size: int,
    competing: Tensor | None = None,
    seed: int = 0,
    *,
    reference: bool = False,
    change: Callable[[Request], Tensor] | None = None,
) -> Iterator[Tensor]:
    """The heat maps of `heat_maps`, batch by batch. change: what is explained in the place of the images."""
    explain, rules = _explainer(graph, method, reference)
    for first in range(0, len(targets), batch_size):
        batch = inputs[first : first + batch_size].detach()
        request = Request(batch, targets[first : first + batch_size], first, seed, competing)
        if change is not None:
            request = Request(change(request), request.targets, first, seed, competing)
        # nothing is on while somebody else has the batch: two of these may take turns, and one may never end
        with computed_in("fp32"), torch.inference_mode(False), rules():
            maps = explain(graph.network, request).sum(1)
        yield maps


def _explainer(
    graph: Graph, method: Any, reference: bool
) -> tuple[Explainer, Callable[[], AbstractContextManager[Any]]]:
    """What makes the maps, and what the network has to have on while it does."""
    if isinstance(method, str):
        return EXPLAINERS[method], nullcontext
    if isinstance(method, Composite):
        start = method.start
        hooks = method.zennit(graph, reference=reference)
    else:
        start, hooks = "logit", on_graph(method)

    def explain(network: nn.Module, of: Request) -> Tensor:
        with torch.enable_grad():
            images = of.images.clone().requires_grad_()
            logits = network(images)
            if of.first == 0:
                check_targets(of.targets, logits.shape[1])
            relevance = start_relevance(start, of.targets, logits.detach(), of.competing)
            (found,) = torch.autograd.grad(logits, images, relevance)
        return found

    return explain, partial(hooks.context, graph.network)
