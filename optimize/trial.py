"""One trial: what a composite does to the task. Relevance, ranking, nested masks, accuracy curve, area."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attribution import Composite, collect_relevance
from ..pruning import Ranking, accuracy, auc, compact, rank
from .task import Samples, Task

Criterion = Callable[[Task], dict[str, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """What a trial measured.

    accuracy: top-1, one for each of the task's rates. auc: area under it, in [0, 1]. seconds: wall time of
    "relevance" and of "evaluation". ranking_hash: two trials share it exactly when they prune the same units
    at every rate.
    """

    accuracy: list[float]
    auc: float
    seconds: dict[str, float]
    ranking_hash: str


def evaluate(task: Task, composite: Composite | Criterion, samples: Samples | None = None) -> Evaluation:
    """The accuracy curve of a composite (or of any other criterion of relevance) on the search samples.

    samples: measure on these instead, for example the holdout.

    Raises:
        CompositeError: the composite does not fit the model.
        ValueError: relevance that is not finite.
    """
    samples = task.search if samples is None else samples
    start = time.perf_counter()
    relevance = composite(task) if callable(composite) else relevance_of(task, composite)
    ranking = rank(relevance)
    digest = ranking.digest(task.rates)
    ranked = time.perf_counter()
    curve = curve_of(task, ranking, digest, samples)
    done = time.perf_counter()
    return Evaluation(
        accuracy=curve,
        auc=auc(task.rates, curve),
        seconds={"relevance": ranked - start, "evaluation": done - ranked},
        ranking_hash=digest,
    )


def relevance_of(task: Task, composite: Composite) -> dict[str, Tensor]:
    """Relevance of the task's units over its reference samples, shape (units,) by layer."""
    reference = task.reference
    return collect_relevance(
        task.graph, composite, reference.inputs, reference.targets, task.units, batch_size=task.batch_size
    )


def curve_of(task: Task, ranking: Ranking, digest: str, samples: Samples) -> list[float]:
    """The accuracy curve of a ranking; one that was measured before is not measured again."""
    known = task.curves.setdefault(id(samples), {})
    if digest not in known:
        known[digest] = [_accuracy_at(task, ranking, rate, samples) for rate in task.rates]
    return list(known[digest])


def _accuracy_at(task: Task, ranking: Ranking, rate: float, samples: Samples) -> float:
    masks = ranking.masks(rate)
    if all(bool(torch.all(mask)) for mask in masks.values()):  # the unpruned network, the same in every trial
        key = ("unpruned", id(samples))
        if key not in task.unpruned:
            task.unpruned[key] = _accuracy(task, task.graph.network, samples)
        return task.unpruned[key]
    return _accuracy(task, compact(task.graph, masks).network, samples)


def _accuracy(task: Task, network: torch.nn.Module, samples: Samples) -> float:
    return accuracy(network, samples.inputs, samples.targets, logits=task.logits, batch_size=task.batch_size)
