"""What a person should know before a study takes its time: that a network hardly knows these images, or that they are
much smaller than what it is given."""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path

from PIL import Image
from torch import Tensor

from .datasets import Indices, Split

DEVIATIONS = 3.0
WAY_TO_CERTAIN = 0.1
"""An accuracy is near chance up to so many standard errors above it, or up to this part of the way from it to 1."""
LARGEST_SCALE = 2.0
"""How much larger than in its file an image may become: beyond, a network sees blur that it was not trained on."""
FEW = 25
"""Search samples, fewer than which say little."""
LOOKED_AT = 50
"""Images whose size is read."""


def chance_of(targets: Tensor) -> float:
    """The accuracy of always saying the most frequent class. targets: int64, shape (n,)."""
    return int(targets.bincount().max()) / len(targets)


def near_chance(accuracy: float, targets: Tensor) -> str | None:
    """A warning, where an accuracy on these targets is hardly better than `chance_of` them."""
    chance = chance_of(targets)
    error = (chance * (1 - chance) / len(targets)) ** 0.5
    least = chance + max(DEVIATIONS * error, WAY_TO_CERTAIN * (1 - chance))
    if accuracy >= least:
        return None
    return (
        f"the unpruned accuracy is near chance (below {least:.1%} on these samples; the most frequent class has "
        f"{chance:.1%}): do --weights, --classes, --mean and --std belong to these images?"
    )


def few(searched: int) -> str | None:
    """A warning, where accuracies are of so few images that they say little."""
    if searched >= FEW:
        return None
    return (
        f"accuracies on {searched} search samples go in steps of {1 / searched:.0%}, which tells few trials apart: "
        "give more validation images"
    )


def scaled_up(split: Split, rows: Indices, resize: int) -> str | None:
    """A warning, where images are enlarged more than twice: the median of some of these rows.

    resize: what their smaller edge becomes, in pixels.
    """
    edges = []
    for row in rows[:: max(1, len(rows) // LOOKED_AT)]:
        image = split.images[row]
        with contextlib.suppress(Exception):  # what cannot be read is said where it is decoded
            if isinstance(image, Path):
                with Image.open(image) as opened:
                    edges.append(min(opened.size))
            else:
                edges.append(min(image.shape[:2]))
    if not edges or resize <= LARGEST_SCALE * statistics.median(edges):
        return None
    edge = round(statistics.median(edges))
    return (
        f"images of {edge} pixels are scaled up {resize / edge:.1f} times: was the network trained so? "
        f"(if not: --image-size {edge})"
    )
