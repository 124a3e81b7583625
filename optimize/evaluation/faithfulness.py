"""A trial of a study whose objective is faithfulness: heat maps of the search images by a composite, and what becomes
of the network's answer while image regions are removed in their order. Nothing is pruned."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...attribution import Composite
from ...attribution.faithfulness import (
    Curves,
    Ends,
    Flipping,
    Patches,
    Probability,
    flip,
    gini,
    probabilities,
    similarity,
)
from ...attribution.heatmaps import Request, map_batches
from ...pruning import NotFinite
from ..parsers import QUALITIES
from .curve import Stop, chunks
from .explaining import Explaining
from .phases import phase
from .task import Samples, Task, Unseen

NOISE = 0.05
"""Of what a stable heat map must not change by: standard deviation, as a part of the image's range of values."""


def noisy(of: Request) -> Tensor:
    """The images with a little noise, always the same."""
    size = (of.images.amax((1, 2, 3), keepdim=True) - of.images.amin((1, 2, 3), keepdim=True)) * NOISE
    return of.images + size * of.noise(0)


@dataclass(frozen=True)
class FaithfulnessScore:
    """What heat maps are worth on some images.

    each: the symmetric relevance gain of each image. least, most: the mean probability of the target at each part of
    the regions removed, least and most relevant first. errors: standard errors of both means. other: the second
    objective, where there is one.
    """

    each: list[float]
    least: list[float]
    most: list[float]
    errors: tuple[list[float], list[float]] = ([], [])
    other: float | None = None

    @property
    def auc(self) -> float:
        """The mean gain, which is the area under the difference of the curves."""
        return sum(self.each) / len(self.each)

    @property
    def accuracy(self) -> list[float]:
        """How much higher the probability is with the least relevant regions first, at each part removed."""
        return [low - high for low, high in zip(self.least, self.most, strict=True)]

    def kept(self) -> dict[str, Any]:
        """What a study keeps of it besides."""
        errors = {f"{name}_first_error": of for name, of in zip(("least", "most"), self.errors, strict=True)}
        each = [round(gain, 6) for gain in self.each]
        return {"least_first": self.least, "most_first": self.most, **errors, "each": each}


@dataclass(frozen=True)
class Faithful(FaithfulnessScore):
    """What a trial measured; what it shares with a trial that prunes (`evaluate.Evaluation`) is called the same.

    ranking_hash: two trials share it exactly when they order the regions of every image alike.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    ranking_hash: str = ""
    chunks: list[float] = field(default_factory=list)
    samples: int = 0
    stopped: bool = False
    steps: str = ""
    unseen: dict[str, FaithfulnessScore] = field(default_factory=dict)

    @property
    def score(self) -> float:
        return self.auc

    @property
    def values(self) -> list[float]:
        """By objective."""
        return [self.auc, *([] if self.other is None else [self.other])]


def complexity(task: Task, method: Composite | str, samples: Samples, targets: Tensor) -> Tensor:
    """The Gini index of each map: the higher, the fewer pixels hold its relevance."""
    return task.batching.run(
        lambda size: torch.cat(
            [gini(maps) for maps in map_batches(task.graph, method, samples.inputs, targets, size, task.logits)]
        )
    )


def stability(task: Task, method: Composite | str, samples: Samples, targets: Tensor) -> Tensor:
    """The correlation of each map with that of the same image and a little noise."""

    def found(size: int) -> Tensor:
        make = (task.graph, method, samples.inputs, targets, size, task.logits)
        pairs = zip(map_batches(*make), map_batches(*make, change=noisy), strict=True)
        return torch.cat([similarity(maps, others) for maps, others in pairs])

    return task.batching.run(found)


def evaluate_maps(
    task: Task,
    method: Composite | str,
    samples: Samples,
    stop: Stop | None = None,
    unseen: Sequence[Unseen] = (),
    seed: int = 0,
) -> Faithful:
    """The symmetric relevance gain of a composite's heat maps, or those of an explainer by name.

    stop: asked after each chunk of samples. unseen: images to measure besides, where the gain is high enough for that.

    Raises:
        CompositeError: the composite does not fit the model.
        NotFinite: relevance that is not finite.
    """
    explaining = explaining_of(task)
    rows = chunks(samples.targets)
    racing = stop is not None and len(rows) > 1
    spent = {"relevance": 0.0, "evaluation": 0.0}
    digest = hashlib.sha256()

    def measure(of: Samples, ends: Ends) -> Curves:
        started = time.perf_counter()
        relevance = _region_relevance(task, method, of, ends, seed)
        digest.update(relevance.argsort(dim=1, stable=True).to(torch.int16).cpu().numpy().tobytes())
        mapped = time.perf_counter()
        probability = probabilities(task.graph.network, task.logits, task.precision)
        curves = task.batching.run(partial(_flipped, probability, of, relevance, ends, explaining.flipping))
        spent["relevance"] += mapped - started
        spent["evaluation"] += time.perf_counter() - mapped
        return curves

    ends = explaining.ends_of(task, samples)
    if racing:
        found, values = [], []
        for index, of_chunk in enumerate(rows, 1):
            picked = of_chunk.to(ends.targets.device)
            part = Ends(*(values_of[picked] for values_of in (ends.targets, ends.whole, ends.bare)))
            curves = measure(Samples(samples.inputs.take(of_chunk), samples.targets[picked]), part)
            found.append(curves)
            values.append(float(curves.gains.mean()))
            assert stop is not None
            if stop(index, values[-1]):
                break
        order = torch.cat([of_chunk.cpu() for of_chunk in rows[: len(found)]]).argsort()
        curves = Curves(
            torch.cat([of.least for of in found])[order],
            torch.cat([of.most for of in found])[order],
            explaining.flipping,
        )
    else:
        curves = measure(samples, ends)
        gains = curves.gains
        values = [float(gains[of_chunk.cpu()].mean()) for of_chunk in rows]
    score = _score(curves)
    stopped = len(curves.least) < len(samples)
    name = digest.hexdigest()
    other = None
    if explaining.quality is not None and not stopped:
        other = float(QUALITIES[explaining.quality](task, method, samples, ends.targets).mean())
    others = {}
    for of in [] if stopped else unseen:
        if score.auc > of.above:
            with phase(of.phase):
                others[of.name] = _score(measure(of.samples, explaining.ends_of(task, of.samples)))
    return Faithful(
        score.each,
        score.least,
        score.most,
        score.errors,
        other=other,
        seconds=spent,
        ranking_hash=name,
        chunks=values,
        samples=len(curves.least),
        stopped=stopped,
        unseen=others,
    )


def gains_by_replacement(
    tasks: Mapping[str, Task], method: Composite | str, samples: Samples, seed: int = 0
) -> dict[str, list[float]]:
    """The gain of each image under several replacements of the regions, by the names of tasks that differ by these; the
    heat maps are made once for regions of a size.

    Raises:
        As `evaluate_maps`.
    """
    found: dict[str, list[float]] = {}
    relevances: dict[Patches, Tensor] = {}
    for name, other in tasks.items():
        explaining = explaining_of(other)
        ends, flipping = explaining.ends_of(other, samples), explaining.flipping
        if flipping.patches not in relevances:
            relevances[flipping.patches] = _region_relevance(other, method, samples, ends, seed)
        relevance = relevances[flipping.patches]
        probability = probabilities(other.graph.network, other.logits, other.precision)
        curves = other.batching.run(
            partial(_flipped, probability, samples, relevance, ends, flipping)  # bound now, not when it runs
        )
        found[name] = curves.gains.tolist()
    return found


def _flipped(
    probability: Probability, samples: Samples, relevance: Tensor, ends: Ends, flipping: Flipping, size: int
) -> Curves:
    return flip(probability, samples.inputs, relevance, ends, flipping, size)


def explaining_of(task: Task) -> Explaining:
    """What heat maps are judged by in a study that does nothing else."""
    assert task.explaining is not None
    return task.explaining


def _region_relevance(task: Task, method: Composite | str, samples: Samples, ends: Ends, seed: int) -> Tensor:
    """Relevance of each region, shape (n, regions)."""
    patches = explaining_of(task).flipping.patches

    def found(size: int) -> Tensor:
        maps = map_batches(task.graph, method, samples.inputs, ends.targets, size, task.logits, seed)
        return torch.cat([patches.sums(of) for of in maps])

    relevance = task.batching.run(found)
    if not bool(torch.isfinite(relevance).all()):
        raise NotFinite("relevance is not finite")
    return relevance


def _score(curves: Curves) -> FaithfulnessScore:
    both = [of.double() for of in (curves.least, curves.most)]
    least, most = (of.mean(0).tolist() for of in both)
    count = len(curves.least)
    least_error, most_error = (
        ((of.var(0, correction=1) / count).sqrt() if count > 1 else torch.zeros(of.shape[1])).tolist() for of in both
    )
    return FaithfulnessScore(curves.gains.tolist(), least, most, (least_error, most_error))
