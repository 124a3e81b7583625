"""BatchNorm's statistics, re-estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..curve import Batches
from ..graph import Graph
from ..masks import Masks
from ..network import clone
from .base import Chunks, Repair


@dataclass
class BatchNormRepair(Repair):
    """Means and variances re-estimated over the samples (Hatefi et al. do not; an old remedy after pruning).

    The BatchNorms are folded. A folded layer's output is an affine function of what BatchNorm saw, so the new
    statistics follow from its output's, and folding again is one scaling of its weights.

    inputs: float images, shape (n, channels, height, width), unlabelled. chunk: samples in one call of a layer.
    """

    inputs: Batches
    chunk: int = 256
    name = "batchnorm"

    @staticmethod
    def check(graph: Graph) -> None:
        if not graph.norms:
            raise ValueError("repair batchnorm: the network has no BatchNorm to re-estimate; give least-squares")

    @torch.no_grad()
    def __call__(self, graph: Graph, small: Graph, masks: Masks) -> Graph:
        modules: dict[str, nn.Module] = {}
        norms = dict(small.norms)
        for visit in small.network.walk(Chunks(self.inputs, self.chunk)):
            if visit.name not in norms or not isinstance(visit.module, (nn.Conv2d, nn.Linear)):
                continue
            norm = norms[visit.name]
            mean, variance = _moments(visit.outputs)
            spread = norm.gamma.square().clamp(min=torch.finfo(mean.dtype).tiny)
            scale = (variance / spread + norm.eps / norm.std.square()).rsqrt()
            shift = norm.beta - mean * scale
            shape = [-1] + [1] * (visit.outputs[0].dim() - 2)
            visit.outputs = [value.mul_(scale.view(shape)).add_(shift.view(shape)) for value in visit.outputs]
            modules[visit.name] = _rescaled(visit.module, scale, shift)
            norms[visit.name] = replace(norm, std=norm.std / scale)
        return replace(small, network=small.network.replaced(modules), norms=norms)


def _moments(chunks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance (over n, as BatchNorm normalises) of each channel, shape (channels,)."""
    flat = [value.transpose(0, 1).flatten(1) for value in chunks]
    count = sum(value.shape[1] for value in flat)
    mean = torch.stack([value.sum(1) for value in flat]).sum(0) / count
    squares = torch.stack([(value - mean.unsqueeze(1)).square().sum(1) for value in flat]).sum(0)
    return mean, squares / count


def _rescaled(module: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
    """The layer whose output is `scale * output + shift` for each channel."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    bias = shift if module.bias is None else module.bias * scale + shift  # type: ignore[operator]
    return clone(module, weight=weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias=bias)
