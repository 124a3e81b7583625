"""What does not change during a study: the network, its samples, its units and rates."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...pruning import Graph, LayerTimes, Plan, Repair, Schedule, area_saved, make_repair
from ...studies.best import AUC
from ..data.prefetch import Prefetcher
from .candidate import Pruning
from .explaining import Explaining
from .memory import Batching


@dataclass(frozen=True)
class Images:
    """Images, as bytes that are normalised only when a batch of them is asked for, or as a network's own inputs.

    pixels: uint8, or float32 as the network takes them; shape (n, channels, height, width). mean, std: of bytes,
    float32, shape (channels, 1, 1), in units of [0, 1]; None for inputs. in_file: the pixels lie in a file (see
    `Store`): they stay there, and batches are copied to the device.
    """

    pixels: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    in_file: bool = False
    ahead: Prefetcher | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, item: slice) -> Tensor:
        """The float32 batch of these rows, shape (rows, channels, height, width), on the device."""
        pixels = self.pixels[item] if self.ahead is None else self.ahead[item]
        if self.mean is None or self.std is None:
            return pixels
        return (pixels.to(self.mean.device).to(self.mean.dtype) / 255 - self.mean) / self.std

    def take(self, rows: Tensor) -> Images:
        """The images of these rows (indices), in their order."""
        return Images(self.pixels[rows.to(self.pixels.device)], self.mean, self.std)

    def to(self, device: torch.device) -> Images:
        mean, std = (None if value is None else value.to(device) for value in (self.mean, self.std))
        if not self.in_file:
            return Images(self.pixels.to(device), mean, std)
        return Images(self.pixels, mean, std, True, Prefetcher(self.pixels, device) if device.type == "cuda" else None)


@dataclass(frozen=True)
class Samples:
    """Images with the index of the logit that stands for each one's class (int64, shape (n,))."""

    inputs: Images
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> Samples:
        return Samples(self.inputs.to(device), self.targets.to(device))


class Unseen(NamedTuple):
    """Samples that no search sees, to be measured on a trial's networks while these exist.

    name: which ones, in words. above: only if the trial's AUC on the search samples is above this. phase: of the run
    that the time counts as.
    """

    name: str
    samples: Samples
    above: float
    phase: str


class Curve(NamedTuple):
    """What was measured of one ranking on some samples.

    accuracy: at each rate, over the samples that were seen. chunks: AUC of each chunk that was seen
    (`curve.chunks`); empty where a study kept none. samples: how many were seen. costs: of the network at each
    rate, as parts of the unpruned one's; empty where the task has no cost. beyond: accuracy of the networks at higher
    rates that a curve over the cost needs (`pruning.END`), whose costs come after the others.
    """

    accuracy: list[float]
    chunks: list[float]
    samples: int
    costs: list[float] = []  # noqa: RUF012
    beyond: list[float] = []  # noqa: RUF012

    @property
    def area(self) -> float:
        """Area under accuracy over the part of the cost that is saved (`pruning.area_saved`)."""
        return area_saved(self.costs, [*self.accuracy, *self.beyond])


@dataclass(frozen=True)
class Task:
    """Prepared once per study, shared by all its trials.

    units: the kind of units (see `Graph.units`). rates: pruning rates, ascending. batching: samples a pass.
    schedule: when relevance is recomputed. repair: what is done to a pruned network before it is used.
    repair_images: what repairs read, if not the reference samples.
    logits: the logits that compete for the top-1 prediction (domain restriction), or None for all. precision:
    what accuracies are measured in (see `pruning.computed_in`). cost: what networks cost, by its name in
    `pruning.COSTS`, where the area over that is an objective. by_cost: whether it is the only one. flat: the part of
    the samples by which the accuracy at two rates may differ for the one between them not to be measured; 0 to measure
    all, as costs need it. explaining: what heat maps are judged by, in a study of these; nothing is pruned then. times:
    of layers, to look the latency of networks up in. searched: whether the pruning is one of several of a study.
    """

    graph: Graph
    units: str
    reference: Samples
    search: Samples
    holdout: Samples
    rates: tuple[float, ...]
    logits: Tensor | None
    batching: Batching
    schedule: Schedule = field(default_factory=Schedule)
    repair: Repair | None = None
    repair_images: Images | None = None
    precision: str = "fp32"
    cost: str | None = None
    by_cost: bool = False
    times: LayerTimes | None = None
    searched: bool = False
    flat: float = 0.0
    explaining: Explaining | None = None
    # What trials share, so that nothing is measured twice: orders of units by method, curves by samples (with
    # the precision, see `measured`) and ranking, which samples the unpruned network gets right, the task in the
    # prunings that are searched.
    curves: dict[tuple[int, str], dict[str, Curve]] = field(default_factory=dict, compare=False, repr=False)
    plans: dict[str, Plan] = field(default_factory=dict, compare=False, repr=False)
    unpruned: dict[tuple[int, str], Tensor] = field(default_factory=dict, compare=False, repr=False)
    variants: dict[Pruning, Task] = field(default_factory=dict, compare=False, repr=False)

    @property
    def batch_size(self) -> int:
        return self.batching.size

    @property
    def parts(self) -> tuple[float, ...]:
        """What curves run over: the rates, or the parts of an image's regions."""
        return self.rates if self.explaining is None else self.explaining.parts

    @property
    def prunes(self) -> bool:
        """Whether a trial prunes networks."""
        return self.explaining is None or self.explaining.quality == AUC

    @property
    def repair_name(self) -> str:
        return "none" if self.repair is None else self.repair.name

    def measured(self, samples: Samples) -> tuple[int, str]:
        """The key of what was measured on these samples, in the task's precision."""
        return id(samples), self.precision

    def plain(self) -> Task:
        """The same task, pruned as the paper does: ranked once, nothing repaired."""
        return replace(self, schedule=Schedule(), repair=None, searched=False, curves={}, plans={}, variants={})

    def pruned_as(self, pruning: Pruning | None) -> Task:
        """The same task with another schedule and repair, which shares what it can; itself for None.

        Raises:
            ValueError: as `Schedule.parse` and `make_repair`.
        """
        if pruning is None:
            return self
        if pruning not in self.variants:
            schedule = Schedule.parse(pruning.schedule)
            images = self.reference.inputs if self.repair_images is None else self.repair_images
            alike = (task.repair for task in self.variants.values() if task.repair_name == pruning.repair)
            repair = next(alike, None) or make_repair(pruning.repair, self.graph, images)
            variant = replace(self, schedule=schedule, repair=repair, searched=True, plans={}, variants={})
            self.variants[pruning] = variant
        return self.variants[pruning]

    def digest(self, plan: Plan) -> str:
        """What tells apart networks that are not the same: the plan's units at the rates and, where several are
        searched, the repair."""
        found = plan.ranking.digest(self.rates)
        return hashlib.sha256(f"{found} {self.repair_name}".encode()).hexdigest() if self.searched else found
