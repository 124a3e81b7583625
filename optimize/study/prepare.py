"""From options to a task: everything that does not change during a study, loaded and checked once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from ...attribution.faithfulness import Flipping
from ...pruning import Graph, Schedule, TraceError, make_repair, repair_rows, trace
from ...pruning.graph import logits_of
from ...pruning.names import NO_GATES
from ...pruning.repair import REPAIRS, check_repair
from ...studies.best import AUC, FAITHFULNESS
from ...studies.document import layers_of
from ...studies.errors import UserError
from ...studies.fingerprint import Fingerprint, fingerprint
from ...studies.wording import some
from ..data.datasets import Dataset, Indices, Split, class_logits, open_dataset
from ..data.images import Transform, content_hash, decode
from ..data.prefetch import Store
from ..data.sampling import draw_splits, pick_classes, unlabelled
from ..data.sanity import scaled_up
from ..evaluation.curve import between
from ..evaluation.devices import check_precision, choose_device
from ..evaluation.explaining import Explaining
from ..evaluation.memory import Batching, choose_batch_size, sample_budget
from ..evaluation.processes import begin_autograd
from ..evaluation.task import Images, Samples, Task
from ..models import load_model
from ..options import GIVEN, Options
from ..progress import Progress, no_progress

SPLITS = {"reference": "train", "search": "val", "holdout": "val"}
"""The samples of a study, and the split of the data that each is drawn from."""


@dataclass(frozen=True)
class Source:
    """The data that a task's samples were drawn from.

    classes: indices of those in use. drawn: by samples' name, the rows of the split (`SPLITS`) that they are. draws: of
    reference samples that a trial is the mean over. read: decodes rows of a split ("train", "val"), and puts the
    samples on the task's device; with True it leaves out broken images, also where nobody said to. repair: images for
    repairs other than the reference samples, or None.
    """

    dataset: Dataset
    classes: tuple[int, ...]
    drawn: Mapping[str, Indices]
    per_class: int
    seed: int
    draws: int
    read: Callable[[str, Indices, bool], Samples]
    repair: Images | None = None


@dataclass(frozen=True)
class Subject:
    """The network that a study explains and prunes.

    name: as the user calls it. graph: on the study's device. units: the kind that is meant. outputs: how many logits.
    of_class: the logit of each class of the data. competing: the logits that compete for a prediction, or None for all.
    description: of its weights, in words. image: how an image becomes its input, as the fingerprint keeps it.
    """

    name: str
    module: torch.nn.Module
    graph: Graph
    units: str
    outputs: int
    competing: tuple[int, ...] | None
    description: str
    weights_hash: str
    image: Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A task with what a study keeps about it.

    fingerprint: what must be the same to continue a study. layers: group and type of each ruled layer.
    description: lines that say which model, weights and data these are, and how to use others. source: where the
    samples come from, for other ones than the task's (`resampling`). pruning: the schedules and the repairs that a
    study may use, by "schedule" and "repair"; the task has the first ones. transform: what makes the network's input of
    an image file; None of a network that a program gives.
    """

    task: Task
    fingerprint: Fingerprint
    layers: dict[str, Any]
    description: tuple[str, ...]
    source: Source = field(repr=False)
    pruning: Mapping[str, tuple[str, ...]]
    transform: Transform | None = None

    def told(self) -> tuple[str, ...]:
        """The description without options, which a study has chosen already."""
        return tuple(re.sub(r" \(--[^)]*\)", "", line) for line in self.description)


def cache_folder() -> Path:
    """Where trained weights and downloaded data are kept: the user's cache folder of the system."""
    return user_cache_path("pxp-optimize", appauthor=False)


def prepare(options: Options, progress: Progress = no_progress) -> Prepared:
    """Load the model and the data, draw the samples and put everything on the device.

    Raises:
        UserError: the model, its weights, the data or the device are not to be had, or do not fit each other.
    """
    begin_autograd()
    device = choose_device(options.device)
    check_precision(options.precision, device)
    cache = cache_folder()
    dataset = open_dataset(options.data, seed=options.seed, cache=cache, progress=progress)
    classes = pick_classes(dataset, options.classes, options.seed)
    if not options.prunes:  # then they only tell what a batch of them needs: whatever there is does
        fewest = int(np.bincount(dataset.train.labels, minlength=len(dataset.classes))[list(classes)].min())
        options = replace(options, reference_samples=max(1, min(options.reference_samples, fewest)))
    drawn = draw_splits(
        dataset,
        classes,
        options.reference_samples,
        options.search_samples,
        options.holdout_samples,
        options.seed,
    )

    def check(module: torch.nn.Module, transform: Transform) -> None:
        with progress("trace the network", 1):
            graph, _ = traced(module, example_of(transform.shape), options.units, options.model)
        how_pruned(graph, options.schedule, options.repair)

    model = load_model(
        options.model,
        options.weights,
        dataset,
        cache=cache,
        image_size=options.image_size,
        resize=options.resize,
        mean=options.mean,
        std=options.std,
        device=device,
        progress=progress,
        check=check,
    )
    of_class = class_logits(dataset, model.num_classes)
    transform = model.transform
    with progress("trace the network", 1):
        example = example_of(transform.shape)
        graph, units = traced(model.module, example, options.units, options.model)
        graph.to(device)
    budget = sample_budget(device) if options.sample_memory is None else options.sample_memory << 20
    store = Store(budget, cache)

    def read(split: str, indices: Indices, skip_broken: bool = False) -> Samples:
        rows: Split = getattr(dataset, split)
        found = _samples(rows, indices, of_class, transform, store, skip_broken or options.skip_broken, progress)
        return found.to(device)

    competing = tuple(sorted(of_class[label] for label in classes))
    subject = Subject(
        name=options.model,
        module=model.module,
        graph=graph,
        units=units,
        outputs=model.num_classes,
        competing=competing if len(competing) < model.num_classes else None,
        description=model.description,
        weights_hash=model.weights_hash,
        image={"size": transform.size, "mean": transform.mean, "std": transform.std},
    )
    source = Source(dataset, classes, drawn, options.reference_samples, options.seed, options.draws, read)
    warning = scaled_up(dataset.train, drawn["reference"], transform.resize)
    warnings = () if warning is None else (f"warning {warning}",)
    return replace(assemble(options, subject, source, warnings, progress), transform=transform)


def assemble(
    options: Options,
    subject: Subject,
    source: Source,
    warnings: tuple[str, ...] = (),
    progress: Progress = no_progress,
) -> Prepared:
    """The task of a network and its data: samples read, what repairs need measured, a batch size chosen.

    Raises:
        UserError: they do not fit each other, or the options.
    """
    graph, device = subject.graph, subject.graph.device
    if not options.prunes:
        options = replace(options, schedule=("oneshot",), repair=("none",))
    samples = {name: source.read(SPLITS[name], indices, False) for name, indices in source.drawn.items()}
    if options.repair_samples is not None:
        count = options.repair_samples
        rows = unlabelled(source.dataset, source.classes, source.drawn["reference"], count, options.seed)
        samples["repair"] = source.read("train", rows, False)
        source = replace(source, repair=samples["repair"].inputs)
    schedules, repairs = how_pruned(graph, options.schedule, options.repair)
    reference = samples["reference"]
    repair_from = images_for_repair(reference) if source.repair is None else source.repair
    batch_size = options.batch_size
    if isinstance(batch_size, str):
        with progress("choose a batch size", 1):
            batch_size = choose_batch_size(graph, subject.units, reference.inputs, reference.targets)
    task = Task(
        graph=graph,
        units=subject.units,
        rates=options.rates,
        logits=None if subject.competing is None else torch.tensor(subject.competing, device=device),
        batching=Batching(batch_size),
        reference=reference,
        search=samples["search"],
        holdout=samples["holdout"],
        schedule=Schedule.parse(schedules[0]),
        precision=options.precision,
        cost=None if options.explains else next((cost for cost in options.objective if cost != "auc"), None),
        by_cost="auc" not in options.objective and not options.explains,
        flat=options.flat if options.objective in MEASURED_SPARSELY and between(options.rates) else 0.0,
        explaining=_explaining(options, samples["search"]) if options.explains else None,
        repair=make_repair(repairs[0], graph, repair_from),
        repair_images=repair_from,
    )
    _check_graph(subject, task)
    mark = fingerprint(
        model=subject.name,
        weights=subject.weights_hash,
        data=Path(source.dataset.name).name,  # wherever the folder lies: what is in it counts
        image=subject.image,
        classes=[source.dataset.classes[label] for label in source.classes],
        samples={name: _sample_mark(drawn_samples) for name, drawn_samples in samples.items()},
        units=subject.units,
        rates=options.rates,
        schedule=",".join(schedules),
        repair=",".join(repairs),
        precision=options.precision,
        draws=options.draws,
        flat=task.flat,
        gated=graph.gated,
        costs=task.cost is not None,
        explaining=None if task.explaining is None else task.explaining.mark(),
    )
    pruning = {"schedule": schedules, "repair": repairs}
    lines = (*_describe(options, subject, source, task, pruning), *warnings)
    return Prepared(task, mark, layers_of(graph), lines, source, pruning)


def _explaining(options: Options, samples: Samples) -> Explaining:
    """What heat maps are judged by.

    Raises:
        UserError: regions that the images are too small for, or no such replacement.
    """
    try:
        flipping = Flipping.of(samples.inputs.pixels.shape[-2:], options.regions, options.replace)
    except ValueError as error:
        raise UserError(f"{error} (--regions, --replace)") from error
    return Explaining(flipping, options.explain_target, next(iter(options.objective[1:]), None))


MEASURED_SPARSELY = ((AUC,), (FAITHFULNESS, AUC))
"""Objectives that leave out rates where the curve is flat: a cost is measured at each of them."""
AUTO_SCHEDULE, AUTO_REPAIR = "every:0.1", "least-squares"


def images_for_repair(reference: Samples) -> Images:
    """What repairs read of the reference samples, where they have no images of their own (`repair_rows`)."""
    images = reference.inputs
    return Images(images.pixels[repair_rows(len(images))], images.mean, images.std, images.in_file)


def how_pruned(
    graph: Graph, schedules: tuple[str, ...], repairs: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The schedules and the repairs that are meant: `auto` stands for what measured best (benchmarks/README.md).

    Raises:
        UserError: a repair that the network has nothing for, such as BatchNorm's in a network without.
    """
    repairs = tuple(AUTO_REPAIR if repair == "auto" else repair for repair in repairs)
    for part in (part for repair in repairs for part in check_repair(repair)):
        try:
            REPAIRS[part].check(graph)
        except ValueError as error:
            raise UserError(f"{error} (--repair)") from error
    return tuple(AUTO_SCHEDULE if schedule == "auto" else schedule for schedule in schedules), repairs


@torch.inference_mode()
def _check_graph(subject: Subject, task: Task) -> None:
    """A forward function may do what tracing cannot see (change a tensor that it reads again, say)."""
    batch = task.reference.inputs[0:2]
    expected = logits_of(subject.module.to(batch.device)(batch))
    found = task.graph.network(batch)
    scale = expected.abs().max().clamp(min=1e-6)
    name = subject.name
    if not bool(torch.isfinite(expected).all()):
        raise UserError(f"model {name} gives logits that are not finite: look at its weights and at --mean and --std")
    if expected.shape != found.shape or bool((expected - found).abs().max() > 1e-2 * scale):
        raise UserError(f"model {name} is not supported: its traced graph gives other logits than the model")


def example_of(shape: Sequence[int]) -> Tensor:
    """Two inputs of a shape (channels, height, width) to trace a network with: noise, always the same."""
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def traced(module: torch.nn.Module, example: Tensor, units: str, name: str) -> tuple[Graph, str]:
    """The network's graph, and the kind of units that is meant.

    Raises:
        UserError: a network that cannot be traced, or without such units.
    """
    try:
        graph = trace(module, example)
    except TraceError as error:
        raise UserError(f"model {name} is not supported: {error}") from error
    units = graph.default_units if units == "auto" else units
    try:
        graph.units(units)
    except ValueError as error:
        raise UserError(f"{error} (--units)") from error
    return graph, units


def _samples(
    split: Split,
    indices: Indices,
    of_class: tuple[int, ...],
    transform: Transform,
    store: Store,
    skip_broken: bool,
    progress: Progress,
) -> Samples:
    out, in_file = store.room((len(indices), *transform.shape))
    pixels, kept = decode(split, indices, transform, skip_broken=skip_broken, progress=progress, out=out)
    targets = torch.tensor([of_class[label] for label in split.labels[kept]])
    return Samples(Images(pixels, _channels(transform.mean), _channels(transform.std), in_file), targets)


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def _sample_mark(samples: Samples) -> dict[str, int | str]:
    return {"count": len(samples), "hash": content_hash(samples.inputs.pixels, samples.targets)}


def _image_told(image: Mapping[str, Any]) -> str:
    mean, std = (", ".join(f"{value:g}" for value in image[key]) for key in ("mean", "std"))
    return f"image   pixels in [0, 1], less {mean}, divided by {std} (--image-size, --resize, --mean, --std)"


def _describe(
    options: Options, subject: Subject, source: Source, task: Task, pruning: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    units = task.graph.units(task.units)
    dataset, n_classes = source.dataset, len(source.classes)
    height, width = task.reference.inputs.pixels.shape[-2:]
    coarser = "" if task.precision == "fp32" else f", accuracies in {task.precision}"
    masked = ""
    if task.logits is not None:
        used = some(list(map(str, task.logits.tolist())), 10)
        masked = f"; {subject.outputs - n_classes} of {subject.outputs} outputs ignored, used are {used}"
    unlabelled_images = "" if options.repair_samples is None else f" from {options.repair_samples} images"
    draws = "" if options.draws == 1 else f" in each of {options.draws} draws"
    stored = [name for name in SPLITS if getattr(task, name).inputs.in_file]
    where = f"; {', '.join(stored)} on disk (--sample-memory)" if stored else ""
    by_name = dataset.name != GIVEN
    kinds = task.units.removesuffix(NO_GATES)
    apart = ", others only feed gates" if kinds != task.units else ""
    counted = f"{sum(units.values())} {kinds} in {len(units)} layers{apart}, "
    drawn, named = f"{len(task.reference)} reference{draws}, ", "--reference-samples, "
    if not task.prunes:
        counted = drawn = named = ""
    pruned = (
        f"pruning {' or '.join(pruning['schedule'])}, repair {' or '.join(pruning['repair'])}{unlabelled_images}"
        f"{' (--schedule, --repair, --repair-samples)' * by_name}",
    )
    return (
        f"model   {subject.name}, {subject.description}; {counted}on {task.graph.device}{coarser}"
        f"{' (--model, --weights)' * by_name}",
        f"data    {dataset.name}, {n_classes} classes at {height} x {width}{masked}"
        f"{' (--data DIR for your own)' * by_name}",
        *([_image_told(subject.image)] if by_name and dataset.name != "digits" else []),
        *(pruned if task.prunes else ()),
        *(() if task.explaining is None else task.explaining.described(by_name)),
        f"samples {drawn}{len(task.search)} search, {len(task.holdout)} holdout"
        f"{f' ({named}--search-samples, --holdout-samples)' * by_name}{where}",
    )
