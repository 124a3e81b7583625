"""A task from a network and images that a program gives, in place of names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ...pruning.graph import logits_of
from ...pruning.graph.export import baked, unwrapped
from ...studies.errors import UserError
from ...studies.wording import reason
from ..data.datasets import Dataset, Indices, Split
from ..data.given import Given, read_given
from ..data.sampling import draw_rows, halves, pick_classes
from ..evaluation.devices import check_precision, choose_device
from ..evaluation.processes import begin_autograd
from ..evaluation.task import Images, Samples
from ..options import GIVEN, Options
from ..progress import Progress, no_progress
from ..weights import state_hash
from .prepare import Prepared, Source, Subject, assemble, traced


def prepare_given(
    options: Options,
    module: nn.Module,
    reference: Given,
    search: Given,
    holdout: Given | None = None,
    *,
    per_class: int | None = None,
    progress: Progress = no_progress,
) -> Prepared:
    """As `prepare`, of a network and images that are there. The network stays as it is.

    Images of whole numbers are scaled to [0, 1] and normalised by the options' mean and std, where these are given;
    floats are what the network takes.

    per_class: draw so many reference images of each class, by the options' seed; None for all. The options'
    search_samples and holdout_samples likewise. holdout: None for a half of `search`, class by class.

    Raises:
        UserError: the network or the images are not supported, or do not fit each other.
    """
    begin_autograd()
    device = choose_device(options.device)
    check_precision(options.precision, device)
    splits = {"train": read_given(reference, "reference", progress), "val": read_given(search, "search", progress)}
    searched = len(splits["val"][1])
    if holdout is not None:
        more = read_given(holdout, "holdout", progress)
        splits["val"] = _joined(splits["val"], more)
    name = options.model
    module = baked(unwrapped(module)).cpu()
    example = _inputs(splits["train"][0][:2], options)[0:2].clone()
    outputs = _outputs(module, example, name)
    labels = {split: targets.numpy() for split, (_, targets) in splits.items()}
    lowest, highest = min(int(of.min()) for of in labels.values()), max(int(of.max()) for of in labels.values())
    if lowest < 0 or highest >= outputs:
        raise UserError(f"targets reach from {lowest} to {highest}, but the outputs of {name} are 0 to {outputs - 1}")
    rows = {split: Split(of, np.zeros((len(of), 0, 0, 0), np.uint8)) for split, of in labels.items()}
    dataset = Dataset(GIVEN, tuple(map(str, range(outputs))), None, rows["train"], rows["val"])
    chosen = pick_classes(dataset, options.classes, options.seed)
    classes = tuple(label for label in chosen if label in set(labels["train"]) | set(labels["val"]))
    drawn = _drawn(options, dataset, classes, searched if holdout is not None else None, per_class)
    with progress("trace the network", 1):
        graph, units = traced(module, example, options.units, name)
        graph.to(device)

    def read(split: str, indices: Indices, skip_broken: bool = False) -> Samples:
        pixels, targets = splits[split]
        picked = torch.from_numpy(indices)
        return Samples(_inputs(pixels[picked], options), targets[picked]).to(device)

    image = {"shape": list(splits["train"][0].shape[1:]), "mean": options.mean, "std": options.std}
    subject = Subject(
        name=name,
        module=module,
        graph=graph,
        units=units,
        outputs=outputs,
        competing=None if options.classes is None else classes,
        description="as given",
        weights_hash=state_hash(module.state_dict()),
        image=image,
    )
    counts = [int(np.count_nonzero(labels["train"][drawn["reference"]] == label)) for label in classes]
    source = Source(dataset, classes, drawn, per_class or max(counts), options.seed, options.draws, read)
    return assemble(replace(options, reference_samples=source.per_class), subject, source, progress=progress)


def _joined(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    (inputs, targets), (others, more) = first, second
    if inputs.shape[1:] != others.shape[1:] or inputs.dtype != others.dtype:
        raise UserError(
            f"holdout: inputs of shape {tuple(others.shape[1:])} and {others.dtype}, where search has "
            f"{tuple(inputs.shape[1:])} and {inputs.dtype}; give both alike"
        )
    return torch.cat([inputs, others]), torch.cat([targets, more])


def _drawn(
    options: Options, dataset: Dataset, classes: Sequence[int], searched: int | None, per_class: int | None
) -> dict[str, Indices]:
    """The rows of the samples: all that are given of these classes, or as many as the options say.

    searched: how many rows of the validation split are the search's, from the first on; the others are the holdout's.
    None where they are to be shared out.
    """
    seed = options.seed
    train, val = dataset.train.labels, dataset.val.labels
    reference = np.flatnonzero(np.isin(train, classes))
    usable = np.flatnonzero(np.isin(val, classes))
    if searched is None:
        search, holdout = halves(val, usable, seed)
    else:
        search, holdout = usable[usable < searched], usable[usable >= searched]
    if per_class is not None:
        reference = draw_rows(train, reference, dict.fromkeys(classes, per_class), seed, "reference_samples")
    if options.search_samples is not None:
        search = draw_rows(val, search, options.search_samples, seed, "search_samples")
    if options.holdout_samples is not None:
        holdout = draw_rows(val, holdout, options.holdout_samples, seed, "holdout_samples")
    found = {"reference": reference, "search": search, "holdout": holdout}
    for name, rows in found.items():
        if not len(rows):
            raise UserError(f"{name}: no sample of the classes in use")
    return found


def _inputs(pixels: Tensor, options: Options) -> Images:
    if pixels.is_floating_point():
        if options.mean is not None or options.std is not None:
            raise UserError("mean and std are for images of whole numbers: floats are what the network takes")
        return Images(pixels)
    channels = pixels.shape[1]
    mean = _of_channels("mean", options.mean or (0.0,), channels)
    return Images(pixels, mean, _of_channels("std", options.std or (1.0,), channels))


def _of_channels(name: str, values: Sequence[float], channels: int) -> Tensor:
    if len(values) not in (1, channels):
        raise UserError(f"{name} has {len(values)} values, images have {channels} channels; give one, or {channels}")
    return torch.tensor(values).expand(channels).reshape(channels, 1, 1).clone()


@torch.no_grad()
def _outputs(module: nn.Module, example: Tensor, name: str) -> int:
    """How many logits the network gives."""
    try:
        logits = logits_of(module(example))
    except Exception as error:  # whatever the user's network raises
        raise UserError(f"{name} does not take inputs of shape {tuple(example.shape)} ({reason(error)})") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(example):
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{name} returned {what} for {len(example)} images; a classifier returns logits (n, classes)")
    return int(logits.shape[1])
