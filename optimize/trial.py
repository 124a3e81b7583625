"""One trial: what a composite does to the task. Relevance, ranking, nested masks, accuracy curve, area.

With a schedule in steps a trial is a loop: relevance on the network as pruned and repaired so far, ranking of
what is left, cut, repair.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..attribution import Composite, collect_relevance, collect_scores
from ..pruning import Graph, Plan, auc
from .candidate import Candidate
from .likeness import pack
from .pruners import Stop
from .racing import measure
from .task import Curve, Samples, Task


@dataclass(frozen=True)
class Baseline:
    """A criterion other than LRP (`attribution.CRITERIA`), as a trial may be given one. seed: of "random"."""

    criterion: str
    seed: int = 0


Method = Composite | Candidate | Baseline


@dataclass(frozen=True)
class Evaluation:
    """What a trial measured.

    accuracy: top-1, one for each of the task's rates. auc: area under it, in [0, 1]. seconds: wall time of
    "relevance" (all steps, with their repairs) and of "evaluation". ranking_hash: two trials of a task share
    it exactly when they prune the same units at every rate (and repair alike). chunks: AUC of each chunk of
    samples that was seen (`racing.chunks`). samples: how many were seen; accuracy and auc are over these. stopped:
    whether that is not all. steps: when each unit goes (`likeness.pack`). costs: see `Curve`.
    """

    accuracy: list[float]
    auc: float
    seconds: dict[str, float]
    ranking_hash: str
    chunks: list[float]
    samples: int
    stopped: bool
    steps: str
    costs: list[float] = field(default_factory=list)


def evaluate(task: Task, method: Method, samples: Samples | None = None, stop: Stop | None = None) -> Evaluation:
    """The accuracy curve of a composite (a candidate with its own pruning, a baseline) on the search samples.

    samples: measure on these instead, for example the holdout. stop: asked after each chunk of samples.

    Raises:
        CompositeError: the composite does not fit the model.
        ValueError: relevance that is not finite.
    """
    samples = task.search if samples is None else samples
    if isinstance(method, Candidate):
        return evaluate(task.pruned_as(method.pruning), method.composite, samples, stop)
    start = time.perf_counter()
    plan = plan_of(task, method)
    digest = task.digest(plan)
    ranked = time.perf_counter()
    curve = curve_of(task, plan, digest, samples, stop)
    done = time.perf_counter()
    return Evaluation(
        accuracy=list(curve.accuracy),
        auc=auc(task.rates, curve.accuracy),
        seconds={"relevance": ranked - start, "evaluation": done - ranked},
        ranking_hash=digest,
        chunks=list(curve.chunks),
        samples=curve.samples,
        stopped=curve.samples < len(samples),
        steps=pack(plan.ranking, task.rates),
        costs=list(curve.costs),
    )


def mean_evaluation(
    tasks: Sequence[Task], method: Method, samples: str = "search", stop: Stop | None = None
) -> Evaluation:
    """What a method is worth in the mean over tasks that differ by their draw of the reference samples.

    samples: "search" or "holdout". stop: as in `evaluate`; of a single task only. Seconds are summed.

    Raises:
        As `evaluate`.
    """
    if len(tasks) == 1:
        return evaluate(tasks[0], method, getattr(tasks[0], samples), stop)
    parts = [evaluate(task, method, getattr(task, samples)) for task in tasks]
    digest = hashlib.sha256("".join(part.ranking_hash for part in parts).encode()).hexdigest()
    return replace(
        parts[0],
        accuracy=_means(part.accuracy for part in parts),
        auc=statistics.mean(part.auc for part in parts),
        seconds={key: sum(part.seconds[key] for part in parts) for key in parts[0].seconds},
        ranking_hash=digest,
        chunks=_means(part.chunks for part in parts),
        steps="",  # of one draw only, and so no sign of what the mean is like
        costs=_means(part.costs for part in parts),
    )


def _means(rows: Iterable[Sequence[float]]) -> list[float]:
    return [statistics.mean(column) for column in zip(*rows, strict=True)]


def plan_of(task: Task, method: Composite | Baseline) -> Plan:
    """The order in which the method lets units go, from the reference samples; found once for a method."""
    key = repr(method)
    if key in task.plans:
        return task.plans[key]
    plan = make_plan(task, method, task.rates[-1])
    task.plans[key] = Plan(plan.ranking)  # without the networks, which would fill the memory
    return plan


def make_plan(task: Task, method: Composite | Baseline, last: float) -> Plan:
    """The order in which the method lets units go up to a rate, with the networks of the steps up to there."""
    return Plan.make(task.graph, lambda graph: scores(task, method, graph), task.schedule, task.repair, last)


def scores(task: Task, method: Composite | Baseline, graph: Graph) -> dict[str, Tensor]:
    """Unit scores, shape (units,) by layer, on a graph of the task: the whole one or a compact form."""
    inputs, targets = task.reference.inputs, task.reference.targets
    if isinstance(method, Baseline):
        return task.batching.run(
            lambda size: collect_scores(graph, method.criterion, inputs, targets, task.units, size, method.seed)
        )
    return task.batching.run(
        lambda size: collect_relevance(graph, method, inputs, targets, task.units, size, logits=task.logits)
    )


def curve_of(task: Task, plan: Plan, digest: str, samples: Samples, stop: Stop | None = None) -> Curve:
    """The accuracy curve of a plan; one that was measured before is not measured again."""
    known = task.curves.setdefault(task.measured(samples), {})
    if digest in known:
        return known[digest]
    curve = measure(task, plan, samples, stop)
    if curve.samples == len(samples):
        known[digest] = curve
    return curve
