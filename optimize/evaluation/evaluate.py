"""One trial: what a composite does to the task. Relevance, ranking, nested masks, accuracy curve, area.

With a schedule in steps a trial is a loop: relevance on the network as pruned and repaired so far, ranking of
what is left, cut, repair.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...attribution import Composite, collect_relevance, collect_scores
from ...pruning import Graph, Masks, NotFinite, Plan, auc
from .candidate import Candidate
from .curve import Stop, measure
from .faithfulness import Faithful, evaluate_maps
from .similarity import pack
from .task import Curve, Samples, Task, Unseen


@dataclass(frozen=True)
class Baseline:
    """A criterion other than LRP (`attribution.CRITERIA`), as a trial may be given one. seed: of "random"."""

    criterion: str
    seed: int = 0


Method = Composite | Candidate | Baseline


class Score(NamedTuple):
    """A curve on samples that no search sees: its AUC, and the accuracy at each rate; where trials are judged by a
    cost, the area over it, and the costs (`task.Curve`)."""

    auc: float
    accuracy: list[float]
    area: float | None = None
    costs: list[float] = []  # noqa: RUF012


@dataclass(frozen=True)
class Evaluation:
    """What a trial measured.

    accuracy: top-1, one for each of the task's rates. auc: area under it, in [0, 1]. seconds: wall time of
    "relevance" (all steps, with their repairs) and of "evaluation". ranking_hash: two trials of a task share
    it exactly when they prune the same units at every rate (and repair alike). chunks: AUC of each chunk of
    samples that was seen (`curve.chunks`). samples: how many were seen; accuracy and auc are over these. stopped:
    whether that is not all. steps: when each unit goes (`similarity.pack`). costs: see `Curve`. unseen: the scores on
    samples that no search sees, by their name (`Unseen`). area: over the cost, where trials are judged by that alone.
    other: the same, where it is the second objective. beyond: see `Curve`.
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
    unseen: dict[str, Score] = field(default_factory=dict)
    area: float | None = None
    other: float | None = None
    beyond: list[float] = field(default_factory=list)

    @property
    def score(self) -> float:
        """What the trial is judged by: the area over the cost where there is one, else the AUC."""
        return self.auc if self.area is None else self.area


def evaluate(
    task: Task,
    method: Method,
    samples: Samples | None = None,
    stop: Stop | None = None,
    unseen: Sequence[Unseen] = (),
) -> Evaluation | Faithful:
    """The accuracy curve of a composite (a candidate with its own pruning, a baseline) on the search samples; what its
    heat maps are worth, where the task judges these.

    samples: measure on these instead, for example the holdout. stop: asked after each chunk of samples. unseen:
    samples to measure the same networks on, where the AUC is high enough for that.

    Raises:
        CompositeError: the composite does not fit the model.
        ValueError: relevance that is not finite.
    """
    samples = task.search if samples is None else samples
    if isinstance(method, Candidate):
        return evaluate(task.pruned_as(method.pruning), method.composite, samples, stop, unseen)
    if task.explaining is not None:
        assert isinstance(method, Composite)
        return evaluate_maps(task, method, samples, stop, unseen)
    start = time.perf_counter()
    plan = plan_of(task, method)
    digest = task.digest(plan)
    ranked = time.perf_counter()
    curve, others = curves_of(task, plan, digest, samples, stop, unseen)
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
        unseen={name: _score(task, other) for name, other in others.items()},
        area=curve.area if task.by_cost else None,
        other=curve.area if curve.costs and not task.by_cost else None,
        beyond=list(curve.beyond),
    )


def pruned_by(task: Task, method: Composite, samples: Samples, targets: Tensor) -> Tensor:
    """A quality of `QUALITIES`: what a composite of heat maps is worth for pruning, the AUC, of all samples at once."""
    return torch.tensor([evaluate(replace(task, explaining=None), method, samples).auc], dtype=torch.float64)


def _score(task: Task, curve: Curve) -> Score:
    found = Score(auc(task.rates, curve.accuracy), list(curve.accuracy))
    return found._replace(area=curve.area, costs=list(curve.costs)) if task.by_cost else found


DRAW_MOVES = 0.04
"""How far another draw of the reference images may move an AUC."""


def mean_evaluation(
    tasks: Sequence[Task],
    method: Method,
    samples: Samples | None = None,
    stop: Stop | None = None,
    unseen: Sequence[Unseen] = (),
) -> Evaluation | Faithful:
    """What a method is worth in the mean over tasks that differ by their draw of the reference samples.

    samples, unseen: as in `evaluate`; what is unseen is measured by the mean AUC. stop: as there, of a single task
    only. Seconds are summed.

    Raises:
        As `evaluate`.
    """
    if len(tasks) == 1:
        return evaluate(tasks[0], method, samples, stop, unseen)
    parts: list[Evaluation] = []
    for task in tasks:
        aucs = [part.score for part in parts]
        wanted = [of._replace(above=_above(of.above, aucs, len(tasks))) for of in unseen if _in_all(parts, of.name)]
        part = evaluate(task, method, samples, unseen=wanted)
        assert isinstance(part, Evaluation)  # heat maps have no draws
        parts.append(part)
    digest = hashlib.sha256("".join(part.ranking_hash for part in parts).encode()).hexdigest()
    return replace(
        parts[0],
        accuracy=_means(part.accuracy for part in parts),
        auc=statistics.mean(part.auc for part in parts),
        seconds={key: sum(part.seconds[key] for part in parts) for key in parts[0].seconds},
        ranking_hash=digest,
        chunks=_means(part.chunks for part in parts),
        steps="",  # of one draw only, and so no sign of what the mean is like
        costs=_means(part.costs[: len(tasks[0].rates)] for part in parts),
        unseen={
            of.name: _mean_score([part.unseen[of.name] for part in parts]) for of in unseen if _in_all(parts, of.name)
        },
        area=_mean([part.area for part in parts]),
        other=_mean([part.other for part in parts]),
        beyond=[],
    )


def _mean_score(scores: Sequence[Score]) -> Score:
    accuracy = _means(score.accuracy for score in scores)
    costs = _means(score.costs[: len(accuracy)] for score in scores)
    return Score(statistics.mean(score.auc for score in scores), accuracy, _mean([s.area for s in scores]), costs)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _above(above: float, aucs: Sequence[float], draws: int) -> float:
    """What the AUC of the next draw must be above for the mean of all draws to be, where those before it have these
    and those after it may have `DRAW_MOVES` more."""
    left = draws - len(aucs)
    return (draws * above - sum(aucs) - (left - 1) * DRAW_MOVES) / left


def _in_all(parts: Iterable[Evaluation], name: str) -> bool:
    return all(name in part.unseen for part in parts)


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


def make_plan(
    task: Task, method: Composite | Baseline, last: float, enough: Callable[[Masks], bool] | None = None
) -> Plan:
    """The order in which the method lets units go up to a rate, with the networks of the steps up to there.

    enough: as in `Plan.make`.
    """
    return Plan.make(task.graph, lambda graph: scores(task, method, graph), task.schedule, task.repair, last, enough)


def scores(task: Task, method: Composite | Baseline, graph: Graph) -> dict[str, Tensor]:
    """Unit scores, shape (units,) by layer, on a graph of the task: the whole one or a compact form.

    Raises:
        NotFinite: relevance that ranks nothing, since it is zero everywhere in the whole network.
    """
    inputs, targets = task.reference.inputs, task.reference.targets
    if isinstance(method, Baseline):
        return task.batching.run(
            lambda size: collect_scores(graph, method.criterion, inputs, targets, task.units, size, method.seed)
        )
    found = task.batching.run(
        lambda size: collect_relevance(graph, method, inputs, targets, task.units, size, logits=task.logits)
    )
    if graph is task.graph and not any(bool(layer.any()) for layer in found.values()):
        raise NotFinite("relevance is zero for all units")  # of a pruned network it may be
    return found


def curves_of(
    task: Task, plan: Plan, digest: str, samples: Samples, stop: Stop | None = None, unseen: Sequence[Unseen] = ()
) -> tuple[Curve, dict[str, Curve]]:
    """The accuracy curve of a plan, and those on the unseen samples, as `measure`. A ranking whose curve was measured
    before is not measured again."""
    known = task.curves.setdefault(task.measured(samples), {})
    of_unseen = {of.name: task.curves.setdefault(task.measured(of.samples), {}) for of in unseen}
    if digest not in known:
        curve, others = measure(task, plan, samples, stop, unseen)
        if curve.samples < len(samples):
            return curve, {}
        known[digest] = curve
        for name, other in others.items():
            of_unseen[name][digest] = other
    return known[digest], {name: curves[digest] for name, curves in of_unseen.items() if digest in curves}
