"""How faithful heat maps are: what becomes of the network's answer while regions of the image are removed in the order
of their relevance.

The symmetric relevance gain (Blücher et al. 2024, arXiv 2401.06654) is the area under the target's probability over the
part of the regions removed, least relevant first, less the same with the most relevant first. It is 0 on average for an
order at random, negative for one that is upside down, and whatever replaces the regions, the two curves begin and end
together: a replacement that the network takes for something strange lowers both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pruning.curve import Batches, checked_samples
from ..pruning.graph import Graph, trace
from ..pruning.precision import computed_in
from .replacement import REPLACEMENTS

STEPS = 5
"""Regions are removed in so many steps: with 10 or 20 composites keep their order (docs/faithfulness.md)."""
REPLACE = "blur"
PATCHES = 8
"""An image has so many patches along its longer edge, if nobody says how large they are."""


@dataclass(frozen=True)
class Patches:
    """Square regions of an image of this height and width, smaller at its right and lower border where they do not fit.

    edge: in pixels.
    """

    edge: int
    height: int
    width: int

    @property
    def grid(self) -> tuple[int, int]:
        return -(-self.height // self.edge), -(-self.width // self.edge)

    def __len__(self) -> int:
        rows, columns = self.grid
        return rows * columns

    def sums(self, maps: Tensor) -> Tensor:
        """The relevance of each region, shape (batch, regions), of maps, shape (batch, height, width)."""
        rows, columns = self.grid
        below, right = rows * self.edge - self.height, columns * self.edge - self.width
        padded = F.pad(maps, (0, right, 0, below))
        return padded.view(-1, rows, self.edge, columns, self.edge).sum((2, 4)).flatten(1)

    def spread(self, values: Tensor) -> Tensor:
        """A value of each region, shape (batch, regions), at its pixels: shape (batch, 1, height, width)."""
        grid = values.view(-1, 1, *self.grid)
        return grid.repeat_interleave(self.edge, 2)[:, :, : self.height].repeat_interleave(self.edge, 3)[
            ..., : self.width
        ]


@dataclass(frozen=True)
class Flipping:
    """How regions are removed.

    patches: the regions. replace: of `REPLACEMENTS`. steps: how many parts of the regions are removed, evenly; each is
    rounded to whole regions, and those that are then the same are one.
    """

    patches: Patches
    replace: str = REPLACE
    steps: int = STEPS

    @classmethod
    def of(cls, size: Sequence[int], edge: int | None = None, replace: str = REPLACE, steps: int = STEPS) -> Flipping:
        """For images of this (height, width). edge: of a patch; None for an eighth of the image's.

        Raises:
            ValueError: patches of less than a pixel or as large as the image, or no such replacement.
        """
        height, width = size
        longest = max(height, width)
        edge = max(1, round(longest / PATCHES)) if edge is None else edge
        if not 1 <= edge < longest:
            raise ValueError(f"patches of {edge} pixels leave nothing to order in images of {height} x {width}")
        if replace not in REPLACEMENTS:
            raise ValueError(f"unknown replacement {replace!r}: choose from {', '.join(REPLACEMENTS)}")
        return cls(Patches(edge, height, width), replace, steps)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many regions are removed, between none and all of them."""
        regions = len(self.patches)
        counts = {round(regions * step / self.steps) for step in range(1, self.steps)}
        return tuple(sorted(counts - {0, regions}))

    @cached_property
    def parts(self) -> tuple[float, ...]:
        """The parts of the regions that are removed, from 0 to 1."""
        return (0.0, *(count / len(self.patches) for count in self.counts), 1.0)

    def gain(self, curve: Sequence[float]) -> float:
        """Area under a curve over the parts, by the trapezoid rule."""
        pairs = zip(self.parts, self.parts[1:], curve, curve[1:], strict=False)
        return sum((b - a) * (p + q) / 2 for a, b, p, q in pairs)


@dataclass(frozen=True)
class Ends:
    """What does not depend on the order. targets: the logit that is explained, int64, shape (n,). whole, bare: its
    probability for the image, and with all regions replaced, shape (n,)."""

    targets: Tensor
    whole: Tensor
    bare: Tensor


@dataclass(frozen=True)
class Curves:
    """The target's probability of each image at each of the parts, least and most relevant regions first.

    Both of shape (n, parts), on the CPU.
    """

    least: Tensor
    most: Tensor
    flipping: Flipping

    @property
    def gains(self) -> Tensor:
        """The symmetric relevance gain of each image, shape (n,)."""
        return torch.trapezoid((self.least - self.most).double(), torch.tensor(self.flipping.parts).double(), dim=1)


Probability = Callable[[Tensor], Tensor]
"""The class probabilities of images, shape (batch, logits)."""


def probabilities(network: nn.Module, competing: Tensor | None, precision: str = "fp32") -> Probability:
    """Softmax over the competing logits, or all for None; the others have none."""

    def of(images: Tensor) -> Tensor:
        with computed_in(precision, images.device):
            logits = network(images).float()
        if competing is None:
            return logits.softmax(1)
        kept = torch.full_like(logits, -torch.inf)
        return kept.index_copy_(1, competing, logits.index_select(1, competing)).softmax(1)

    return of


def measure_ends(
    probability: Probability, inputs: Batches, targets: Tensor | None, flipping: Flipping, batch_size: int
) -> Ends:
    """What is the same for every heat map of these images. targets: None for the predicted classes."""
    explained, whole, bare = [], [], []
    make = REPLACEMENTS[flipping.replace]
    with torch.inference_mode():
        for start in range(0, len(inputs), batch_size):
            images = inputs[start : start + batch_size]
            found = probability(images)
            chosen = found.argmax(1) if targets is None else targets[start : start + batch_size]
            nothing = torch.zeros_like(images[:, :1], dtype=torch.bool)
            without = probability(make(images, flipping.patches.edge)(nothing))
            explained.append(chosen)
            whole.append(found.gather(1, chosen.unsqueeze(1))[:, 0])
            bare.append(without.gather(1, chosen.unsqueeze(1))[:, 0])
    # outside of the inference mode, for what asks for gradients at these targets
    return Ends(*(torch.cat([part.clone() for part in parts]) for parts in (explained, whole, bare)))


@torch.inference_mode()
def flip(
    probability: Probability, inputs: Batches, relevance: Tensor, ends: Ends, flipping: Flipping, batch_size: int
) -> Curves:
    """The curves of heat maps, from the relevance of each region, shape (n, regions).

    Of equally relevant regions the first ones are taken for less relevant.
    """
    make, regions = REPLACEMENTS[flipping.replace], len(flipping.patches)
    ranks = relevance.argsort(dim=1, stable=True).argsort(1)
    rows = []
    for start in range(0, len(inputs), batch_size):
        images, rank = inputs[start : start + batch_size], ranks[start : start + batch_size]
        targets = ends.targets[start : start + batch_size].unsqueeze(1)
        fill = make(images, flipping.patches.edge)
        kept = [rank >= count for count in flipping.counts] + [rank < regions - count for count in flipping.counts]
        found = [probability(fill(flipping.patches.spread(of))).gather(1, targets) for of in kept]
        rows.append(torch.cat(found, 1))
    inner = torch.cat(rows).cpu()
    first, last = ends.whole.cpu().unsqueeze(1), ends.bare.cpu().unsqueeze(1)
    least, most = (torch.cat([first, half, last], 1) for half in inner.chunk(2, 1))
    return Curves(least, most, flipping)


def relevance_gain(
    model: nn.Module | Graph,
    maps: Tensor,
    inputs: Batches,
    targets: Tensor,
    *,
    edge: int | None = None,
    replace: str = REPLACE,
    steps: int = STEPS,
    logits: Tensor | None = None,
    batch_size: int = 128,
) -> Tensor:
    """The symmetric relevance gain of heat maps.

    Args:
        model: a classifier, or its graph.
        maps: relevance of each pixel, shape (n, height, width), as `heat_maps` gives it.
        inputs: the images that were explained, shape (n, channels, height, width).
        targets: the logits that were explained, int64, shape (n,).
        edge: of the square regions, in pixels; None for an eighth of the image.
        replace: what stands in the place of a region that is removed: of `REPLACEMENTS`.
        steps: parts of the regions that are removed one after another.
        logits: those that are classes, whose probability counts; None for all.
        batch_size: images a pass.

    Returns:
        Of each image, float64, shape (n,), in [-1, 1], on the CPU.

    Raises:
        TraceError: see `trace`.
        ValueError: samples or maps that do not fit each other, or as `Flipping.of`.
    """
    inputs, targets = checked_samples(inputs, targets, batch_size)
    graph = trace(model, inputs[:2])
    size = inputs[:1].shape[2:]
    if maps.shape != (len(targets), *size):
        raise ValueError(f"maps have shape {tuple(maps.shape)}, and the images need {(len(targets), *size)}")
    flipping = Flipping.of(size, edge, replace, steps)
    probability = probabilities(graph.network, logits)
    ends = measure_ends(probability, inputs, targets, flipping, batch_size)
    return flip(probability, inputs, flipping.patches.sums(maps), ends, flipping, batch_size).gains


def gini(maps: Tensor) -> Tensor:
    """The Gini index of each map's absolute values, in [0, 1], shape (n,): 0 where all pixels are alike, near 1 where
    few have all (Chalasani et al. 2020). A map of zeros has 0."""
    values = maps.abs().flatten(1).double().sort(1).values
    count = values.shape[1]
    weights = 2 * torch.arange(1, count + 1, device=maps.device, dtype=torch.float64) - count - 1
    total = values.sum(1)
    return (values @ weights) / (count * total.clamp(min=torch.finfo(torch.float64).tiny))


def similarity(maps: Tensor, others: Tensor) -> Tensor:
    """The correlation of each map with another one, in [-1, 1], shape (n,); 0 where one is the same everywhere."""
    first, second = (of.flatten(1).double() - of.flatten(1).double().mean(1, keepdim=True) for of in (maps, others))
    size = first.norm(dim=1) * second.norm(dim=1)
    return (first * second).sum(1) / size.clamp(min=torch.finfo(torch.float64).tiny)
