"""What stands in the place of image regions that are removed. A network never sees nothing: what it sees instead
decides how much removing a region tells, and so how methods compare."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pruning.registry import Registry

Fill: TypeAlias = Callable[[Tensor], Tensor]
"""From what is kept, bool, shape (batch, 1, height, width), the images with the rest replaced."""
Replacement: TypeAlias = Callable[[Tensor, int], Fill]
"""From images, shape (batch, channels, height, width), and the edge of a region in pixels. What needs the images only
is computed once."""


def mean_colour(images: Tensor, edge: int) -> Fill:
    """Each image's mean colour."""
    colour = images.mean((2, 3), keepdim=True)
    return lambda kept: torch.where(kept, images, colour)


def blur(images: Tensor, edge: int) -> Fill:
    """The image itself, blurred by a Gaussian whose standard deviation is the edge of a region: no detail of a region
    is left, but its colour."""
    blurred = _blurred(_blurred(images, edge, 2), edge, 3)
    return lambda kept: torch.where(kept, images, blurred)


def _blurred(images: Tensor, sigma: float, dim: int) -> Tensor:
    """Along one dimension, with the border pixels repeated beyond the border."""
    reach = math.ceil(3 * sigma)
    at = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weights = torch.softmax(-at.square() / (2 * sigma**2), 0)
    channels = images.shape[1]
    kernel = weights.view((-1, 1) if dim == 2 else (1, -1)).expand(channels, 1, -1, -1)
    padding = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
    return F.conv2d(F.pad(images, padding, mode="replicate"), kernel, groups=channels)


def neighbours(images: Tensor, edge: int) -> Fill:
    """Inpainting from what is kept around: means of ever larger squares, each as fine as there are kept pixels in it;
    between them interpolated. Where nothing is kept, the image's mean colour."""
    colour = images.mean((2, 3), keepdim=True)

    def fill(kept: Tensor) -> Tensor:
        weight = kept.to(images.dtype)
        sums, weights = [images * weight], [weight]
        while max(weights[-1].shape[2:]) > 1:
            sums.append(F.avg_pool2d(sums[-1], 2, ceil_mode=True))
            weights.append(F.avg_pool2d(weights[-1], 2, ceil_mode=True))
        found = torch.where(weights[-1] > 0, sums[-1] / weights[-1].clamp(min=1e-12), colour)
        for total, weight in zip(reversed(sums[:-1]), reversed(weights[:-1]), strict=True):
            coarser = F.interpolate(found, size=total.shape[2:], mode="bilinear", align_corners=False)
            share = weight.clamp(max=1)  # how much of the square is known
            found = total / weight.clamp(min=1e-12) * share + coarser * (1 - share)
        return found

    return fill


REPLACEMENTS: Registry[Replacement] = Registry(
    "replacement", {"mean": mean_colour, "blur": blur, "neighbours": neighbours}
)
register_replacement = REPLACEMENTS.register
