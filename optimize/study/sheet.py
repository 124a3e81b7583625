"""Heat maps of a few holdout images, made at the end of a run for the study to keep (`studies.maps`)."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from optuna.study import Study
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ...attribution import Composite
from ...attribution.heatmaps import map_batches
from ...pruning import Graph
from ...studies.best import SAVED, best_trial, explains
from ...studies.maps import KeptMaps, MapRow, keep_maps, kept_maps
from ..data.datasets import class_logits
from ..evaluation.candidate import pruning_of
from ..evaluation.evaluate import plan_of
from ..evaluation.task import Images, Task
from .explain import heat_palette, predicted, shown_methods
from .prepare import Prepared

IMAGES, KNOWN = 4, 4
EDGE = 64
"""Pixels of a map's longer side at most: they are small pictures, of which a study keeps dozens."""


def map_samples(study: Study, prepared: Prepared) -> None:
    """Keep heat maps of a few holdout images: by the best composite and by fixed ones, of the network as it is and as
    the best one prunes it, at the rate that keeps 95 % of the accuracy (`costs.score_saved`). Those of a study that has
    the same best trial as before stay."""
    best, kept = best_trial(study), kept_maps(study)
    if kept is not None and kept.trial == best.number:
        return
    task = prepared.task
    rate = 0.0 if explains(study) else study.user_attrs[SAVED][str(best.number)]["rate"]
    graphs = [task.graph]
    if rate > 0:
        as_best = task.pruned_as(pruning_of(best))
        plan = plan_of(as_best, Composite.from_dict(best.user_attrs["composite"]))
        graphs += plan.networks(task.graph, [rate], as_best.repair)
    rows = spaced_rows(task.holdout.targets.tolist(), IMAGES)
    samples = task.holdout.inputs.take(torch.tensor(rows))
    images = samples[0 : len(rows)]
    classes = [predicted(task, graph, images) for graph in graphs]
    targets = classes[0]
    if task.explaining is not None and task.explaining.target == "true":
        targets = task.holdout.targets[rows]
    methods = shown_methods(study, most=KNOWN)
    size = shrunk(images).shape[2:]
    strips = [as_shown(_maps(task, graph, method, images, targets)) for method in methods.values() for graph in graphs]
    lefts = _lefts(size[1], len(methods), len(graphs))
    names = _names(prepared, task.graph.network(images[0:1]).shape[1])
    keep_maps(
        study,
        KeptMaps(
            trial=best.number,
            rate=rate,
            methods=list(methods),
            size=list(size),
            lefts=lefts,
            rows=[
                MapRow(
                    image=png(picture),
                    maps=png(_joined([strip[index] for strip in strips], lefts), palette=True),
                    label=names[int(targets[index])],
                    true=_other(targets[index], task.holdout.targets[row], names),
                    after=_other(targets[index], classes[-1][index], names),
                )
                for index, (row, picture) in enumerate(zip(rows, pictures(samples), strict=True))
            ],
        ),
    )


def spaced_rows(targets: Sequence[int], most: int) -> list[int]:
    """The first image of each of so many classes, evenly spaced among all; of fewer classes the second ones, too."""
    turns: dict[int, int] = {}
    ordered = []
    for row, target in enumerate(targets):
        turns[target] = turn = turns.get(target, -1) + 1
        ordered.append((turn, target, row))
    return [row for _, _, row in sorted(ordered)[:: max(1, len(turns) // most)][:most]]


def pictures(images: Images) -> list[NDArray[np.uint8]]:
    """Images in small, in grey or in three colours: shape (height, width) or (height, width, 3)."""
    values = images.pixels.cpu().float()
    if images.mean is None:  # a network's own inputs, whose scale is not known
        low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
        values = (values - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny) * 255
    if values.shape[1] != 3:
        values = values.mean(1, keepdim=True)
    found = shrunk(values).round().to(torch.uint8).movedim(1, 3)
    return [of.squeeze(2).numpy() for of in found]


def shrunk(values: Tensor) -> Tensor:
    """Averaged to no more than `EDGE` pixels: shape (n, channels, height, width)."""
    height, width = values.shape[2:]
    scale = min(1.0, EDGE / max(height, width))
    return adaptive_avg_pool2d(values, (max(1, round(height * scale)), max(1, round(width * scale))))


def _maps(task: Task, graph: Graph, method: Composite, images: Tensor, targets: Tensor) -> Tensor:
    """Shape (n, height, width)."""
    return task.batching.run(
        lambda size: torch.cat(list(map_batches(graph, method, images, targets, size, task.logits)))
    )


def as_shown(maps: Tensor) -> NDArray[np.uint8]:
    """Places in the palette: 0 is transparent, 128 no relevance; each map's largest value is an end of the scale. A map
    that is not finite is not shown."""
    values = shrunk(maps.unsqueeze(1)).squeeze(1).cpu()
    largest = values.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    finite = torch.isfinite(values).all(2, keepdim=True).all(1, keepdim=True)
    return torch.where(finite, 128 + 127 * values / largest, 0).round().to(torch.uint8).numpy()


def _lefts(width: int, methods: int, graphs: int) -> list[int]:
    """Where maps begin: those of one method nearly touch."""
    near, far = width + max(1, width // 32), max(2, width // 6)
    return [method * (graphs * near + far) + graph * near for method in range(methods) for graph in range(graphs)]


def _joined(maps: Sequence[NDArray[np.uint8]], lefts: Sequence[int]) -> NDArray[np.uint8]:
    height, width = maps[0].shape
    strip = np.zeros((height, lefts[-1] + width), np.uint8)
    for found, left in zip(maps, lefts, strict=True):
        strip[:, left : left + width] = found
    return strip


def png(values: NDArray[np.uint8], palette: bool = False) -> str:
    """A picture in base64. palette: the values are places in the palette of heat maps, of which 0 is transparent."""
    from PIL import Image

    picture, out = Image.fromarray(values), io.BytesIO()
    if palette:
        picture = picture.convert("P")
        picture.putpalette(heat_palette().tobytes())
    picture.save(out, "png", optimize=True, **({"transparency": 0} if palette else {}))
    return base64.b64encode(out.getvalue()).decode()


def _names(prepared: Prepared, outputs: int) -> list[str]:
    """What the logits stand for: the names of the data's classes, and numbers for others."""
    dataset = prepared.source.dataset
    names = dict(zip(class_logits(dataset, outputs), dataset.classes, strict=True))
    return [names.get(logit, str(logit)) for logit in range(outputs)]


def _other(explained: Tensor, found: Tensor, names: Sequence[str]) -> str | None:
    """The name of a class, where it is another one than the explained one."""
    return None if found == explained else names[int(found)]
