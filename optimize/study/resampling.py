"""Other samples of the same data than a study's own: what its search has not been chosen by.

Which images stand for the data decides how well a composite looks as much as the composite does: another draw of the
reference images alone moves an AUC by 0.02 to 0.04.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ...pruning import make_repair
from ...studies.errors import UserError
from ..data.datasets import Indices
from ..data.sampling import share
from ..evaluation.task import Task
from .prepare import SPLITS, Prepared, Source, images_for_repair

NONE_SHARED = "none of them the study's own"


def with_reference(prepared: Prepared, draw: int) -> Task:
    """The task with other reference images, for its relevance and its repair (which has images of its own where the
    study has --repair-samples); search and holdout stay.

    draw: which of the draws, from 1 on: first those of the study's --draws, then others, without broken images.

    Raises:
        UserError: images that cannot be read.
    """
    task, source = prepared.task, prepared.source
    reference = source.read(SPLITS["reference"], other_reference(source, draw), draw >= source.draws)
    fresh = replace(task, reference=reference, curves={}, plans={}, unpruned={}, variants={})
    if source.repair is not None:  # repairs read images of their own
        return fresh
    images = images_for_repair(reference)
    return replace(fresh, repair=make_repair(task.repair_name, task.graph, images), repair_images=images)


def tasks_of(prepared: Prepared, draws: int) -> list[Task]:
    """The task with each of the study's draws of reference images, its own first.

    Raises:
        UserError: no class has other images than its reference samples.
    """
    source = prepared.source
    if draws > 1 and not len(np.setdiff1d(other_reference(source, 1), source.drawn["reference"])):
        raise UserError(
            f"--draws {draws}: all training images are reference samples, so that all draws are the same; "
            "give --draws 1, or fewer --reference-samples"
        )
    return [prepared.task, *(with_reference(prepared, draw) for draw in range(1, draws))]


def other_reference(source: Source, draw: int) -> Indices:
    """Rows of the training split, as many of each class as the study's own reference images, in random order.

    Images that the study uses itself are taken only where a class has too few others: for one of the study's
    --draws those of its first, for a draw beyond them those of all.
    """
    labels = source.dataset.train.labels
    own = own_reference(source, 1 if draw < source.draws else source.draws)
    chosen = []
    for label in source.classes:
        rows = np.random.default_rng((source.seed, label, draw)).permutation(np.flatnonzero(labels == label))
        used = np.isin(rows, own)
        chosen.append(np.concatenate([rows[~used], rows[used]])[: source.per_class])
    return np.concatenate(chosen)


def own_reference(source: Source, draws: int) -> Indices:
    """The rows that the first so many of the study's draws have."""
    return np.concatenate([source.drawn["reference"], *(other_reference(source, draw) for draw in range(1, draws))])


def part_shared(source: Source, draw: int) -> float:
    """How much of a draw beyond the study's own is of their images, for want of others: 0 to 1."""
    return float(np.isin(other_reference(source, draw), own_reference(source, source.draws)).mean())


def mean_shared(source: Source, draws: Iterable[int]) -> float:
    """The mean of `part_shared` over draws."""
    return statistics.mean(part_shared(source, draw) for draw in draws)


def sharing(source: Source, draws: Iterable[int]) -> str:
    """What draws beyond the study's own have of its images, in words."""
    part = mean_shared(source, draws)
    if part == 0:
        return NONE_SHARED
    return f"{part:.0%} of them the study's own, since classes have too few others"


def left_over(source: Source) -> Indices | None:
    """As many rows of the validation split as the search has, that are in neither its samples nor the holdout, of
    each class in proportion; None where there are fewer."""
    taken = np.concatenate([source.drawn["search"], source.drawn["holdout"]])
    labels = source.dataset.val.labels
    rows = [np.setdiff1d(np.flatnonzero(labels == label), taken) for label in source.classes]
    sizes = np.array([len(of_class) for of_class in rows])
    count = len(source.drawn["search"])
    if sizes.min() == 0 or sizes.sum() < count:
        return None
    rng = np.random.default_rng((source.seed, len(taken)))
    return np.concatenate([rng.permutation(r)[:n] for r, n in zip(rows, share(count, sizes), strict=True)])
