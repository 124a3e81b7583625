"""From options to a task: everything that does not change during a study, loaded and checked once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor

from ..pruning import Graph, Schedule, TraceError, make_repair, repair_rows, trace
from ..pruning.graph import logits_of
from ..studies.export import layers_of
from ..studies.fingerprint import Fingerprint, fingerprint
from .config import Options
from .data import (
    Dataset,
    Indices,
    Progress,
    Split,
    Transform,
    class_logits,
    content_hash,
    decode,
    draw_splits,
    no_progress,
    open_dataset,
    pick_classes,
    some,
    unlabelled,
)
from .errors import UserError
from .memory import Batching, choose_batch_size, sample_budget
from .models import load_model
from .pixels import Store
from .sanity import scaled_up
from .task import Images, Samples, Task

SPLITS = {"reference": "train", "search": "val", "holdout": "val"}
"""The samples of a study, and the split of the data that each is drawn from."""


@dataclass(frozen=True)
class Prepared:
    """A task with what a study keeps about it.

    fingerprint: what must be the same to continue a study. layers: group and type of each ruled layer.
    description: lines that say which model, weights and data these are, and how to use others. source: where the
    samples come from, for other ones than the task's (`draws`). pruning: the schedules and the repairs that a study
    may use, by "schedule" and "repair"; the task has the first ones.
    """

    task: Task
    fingerprint: Fingerprint
    layers: dict[str, Any]
    description: tuple[str, ...]
    source: Source = field(repr=False)
    pruning: Mapping[str, tuple[str, ...]]


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


def cache_folder() -> Path:
    """Where trained weights and downloaded data are kept: the user's cache folder of the system."""
    return user_cache_path("pxp-optimize", appauthor=False)


def prepare(options: Options, progress: Progress = no_progress) -> Prepared:
    """Load the model and the data, draw the samples and put everything on the device.

    Raises:
        UserError: the model, its weights, the data or the device are not to be had, or do not fit each other.
    """
    device = choose_device(options.device)
    check_precision(options.precision, device)
    cache = cache_folder()
    dataset = open_dataset(options.data, seed=options.seed, cache=cache, progress=progress)
    classes = pick_classes(dataset, options.classes, options.seed)
    drawn = draw_splits(
        dataset,
        classes,
        options.reference_samples,
        options.search_samples,
        options.holdout_samples,
        options.seed,
    )

    def check(module: torch.nn.Module, size: int) -> None:
        with progress("trace the network", 1):
            graph, _ = _traced(module, size, options.units, options.model)
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
    with progress("trace the network", 1):
        graph, units = _traced(model.module, model.transform.size, options.units, options.model)
        graph.to(device)
    transform = model.transform
    budget = sample_budget(device) if options.sample_memory is None else options.sample_memory << 20
    store = Store(budget, cache)

    def read(split: str, indices: Indices, skip_broken: bool = False) -> Samples:
        rows: Split = getattr(dataset, split)
        found = _samples(rows, indices, of_class, transform, store, skip_broken or options.skip_broken, progress)
        return Samples(found.inputs.to(device), found.targets.to(device))

    samples = {name: read(SPLITS[name], indices) for name, indices in drawn.items()}
    if options.repair_samples is not None:
        rows = unlabelled(dataset, classes, drawn["reference"], options.repair_samples, options.seed)
        samples["repair"] = read("train", rows)
    repair_images = samples["repair"].inputs if "repair" in samples else None
    competing = sorted(of_class[label] for label in classes)
    restricted = len(competing) < model.num_classes
    schedules, repairs = how_pruned(graph, options.schedule, options.repair)
    reference = samples["reference"]
    repair_from = images_for_repair(reference) if repair_images is None else repair_images
    batch_size = options.batch_size
    if isinstance(batch_size, str):
        with progress("choose a batch size", 1):
            batch_size = choose_batch_size(graph, units, reference.inputs, reference.targets)
    task = Task(
        graph=graph,
        units=units,
        rates=options.rates,
        logits=torch.tensor(competing, device=device) if restricted else None,
        batching=Batching(batch_size),
        reference=reference,
        search=samples["search"],
        holdout=samples["holdout"],
        schedule=Schedule.parse(schedules[0]),
        precision=options.precision,
        cost=options.objective.partition(",")[2] or None,
        repair=make_repair(repairs[0], graph, repair_from),
        repair_images=repair_from,
    )
    _check_graph(model.module, task, options.model)
    mark = fingerprint(
        model=options.model,
        weights=model.weights_hash,
        data=Path(dataset.name).name,  # wherever the folder lies: what is in it counts
        image={"size": transform.size, "mean": transform.mean, "std": transform.std},
        classes=[dataset.classes[label] for label in classes],
        samples={name: _sample_mark(drawn_samples) for name, drawn_samples in samples.items()},
        units=units,
        rates=options.rates,
        schedule=",".join(schedules),
        repair=",".join(repairs),
        precision=options.precision,
        draws=options.draws,
        gated=graph.gated,
        costs=task.cost is not None,
    )
    pruning = {"schedule": schedules, "repair": repairs}
    lines = _describe(options, dataset, task, pruning, model.description, len(classes), model.num_classes)
    warning = scaled_up(dataset.train, drawn["reference"], transform.resize)
    if warning is not None:
        lines += (f"warning {warning}",)
    source = Source(
        dataset, classes, drawn, options.reference_samples, options.seed, options.draws, read, repair_images
    )
    return Prepared(task, mark, layers_of(graph), lines, source, pruning)


AUTO_SCHEDULE, AUTO_REPAIR = "every:0.1", "least-squares"


def images_for_repair(reference: Samples) -> Images:
    """What repairs read of the reference samples, where they have no images of their own (`repair_rows`)."""
    images = reference.inputs
    return Images(images.pixels[repair_rows(len(images))], images.mean, images.std, images.in_file)


def how_pruned(graph: Graph, schedule: str, repair: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The schedules and the repairs that are meant: `auto` stands for what measured best (benchmarks/README.md).

    Raises:
        UserError: a repair of BatchNorm in a network without.
    """
    if schedule == "auto":
        schedule = AUTO_SCHEDULE
    if repair == "auto":
        repair = AUTO_REPAIR
    if "batchnorm" in repair and not graph.norms:
        raise UserError(f"--repair {repair}: the network has no BatchNorm to re-estimate; give least-squares")
    return tuple(schedule.split(",")), tuple(repair.split(","))


@torch.inference_mode()
def _check_graph(module: torch.nn.Module, task: Task, name: str) -> None:
    """A forward function may do what tracing cannot see (change a tensor that it reads again, say)."""
    batch = task.reference.inputs[0:2]
    expected = logits_of(module.to(batch.device)(batch))
    found = task.graph.network(batch)
    scale = expected.abs().max().clamp(min=1e-6)
    if not bool(torch.isfinite(expected).all()):
        raise UserError(f"model {name} gives logits that are not finite: look at its weights and at --mean and --std")
    if expected.shape != found.shape or bool((expected - found).abs().max() > 1e-2 * scale):
        raise UserError(f"model {name} is not supported: its traced graph gives other logits than the model")


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    match = re.fullmatch(r"(cpu)|(mps)|cuda(?::(\d+))?", name)
    if match is None:
        raise UserError(f"unknown device {name!r}: give auto, cpu, cuda, cuda:N or mps")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("this machine has no MPS device: give --device auto")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError("no CUDA device, or a torch built without CUDA: give --device auto")
        if int(match[3] or 0) >= count:
            raise UserError(f"no device {name}: the last one is cuda:{count - 1}")
    return torch.device(name)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that a device does not have.

    Raises:
        UserError: TF32 elsewhere than on CUDA, or on CUDA a device too old for it or for bfloat16.
    """
    cuda = device.type == "cuda"
    if precision == "tf32" and not (cuda and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise UserError(
            f"--precision tf32: {device} has no TF32 (CUDA devices of compute capability 8.0 or newer have); "
            "give fp32 or bf16"
        )
    if precision == "bf16" and cuda:
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported():
                raise UserError(f"--precision bf16: {device} has no bfloat16; give fp32")


def _traced(module: torch.nn.Module, side: int, units: str, name: str) -> tuple[Graph, str]:
    """The network's graph, and the kind of units that is meant."""
    try:
        graph = trace(module, torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
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
    out, in_file = store.room((len(indices), 3, transform.size, transform.size))
    pixels, kept = decode(split, indices, transform, skip_broken=skip_broken, progress=progress, out=out)
    targets = torch.tensor([of_class[label] for label in split.labels[kept]])
    return Samples(Images(pixels, _channels(transform.mean), _channels(transform.std), in_file), targets)


def _channels(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


def _sample_mark(samples: Samples) -> dict[str, int | str]:
    return {"count": len(samples), "hash": content_hash(samples.inputs.pixels, samples.targets)}


def _describe(
    options: Options,
    dataset: Dataset,
    task: Task,
    pruning: Mapping[str, tuple[str, ...]],
    model: str,
    n_classes: int,
    n_outputs: int,
) -> tuple[str, ...]:
    units = task.graph.units(task.units)
    size = task.reference.inputs.pixels.shape[-1]
    coarser = "" if task.precision == "fp32" else f", accuracies in {task.precision}"
    masked = ""
    if task.logits is not None:
        used = some(list(map(str, task.logits.tolist())), 10)
        masked = f"; {n_outputs - n_classes} of {n_outputs} outputs ignored, used are {used}"
    unlabelled_images = "" if options.repair_samples is None else f" from {options.repair_samples} images"
    draws = "" if options.draws == 1 else f" in each of {options.draws} draws"
    stored = [name for name in SPLITS if getattr(task, name).inputs.in_file]
    where = f"; {', '.join(stored)} on disk (--sample-memory)" if stored else ""
    return (
        f"model   {options.model}, {model}; {sum(units.values())} {task.units} in {len(units)} layers, "
        f"on {task.graph.device}{coarser} (--model, --weights)",
        f"data    {dataset.name}, {n_classes} classes at {size} x {size}{masked} (--data DIR for your own)",
        f"pruning {' or '.join(pruning['schedule'])}, repair {' or '.join(pruning['repair'])}{unlabelled_images} "
        "(--schedule, --repair, --repair-samples)",
        f"samples {len(task.reference)} reference{draws}, {len(task.search)} search, {len(task.holdout)} holdout "
        f"(--reference-samples, --search-samples, --holdout-samples){where}",
    )
