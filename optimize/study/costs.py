"""What networks and units cost in a study whose trials are judged by that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from optuna.study import Study
from torch import nn

from ...attribution import Composite
from ...attribution.composites import PRICES
from ...pruning import COSTS, LayerTimes, computed_in, sparsity_at, without_constants
from ...pruning.work import latencies
from ...studies.best import SAVED, best_trial
from ...studies.report import KEPT
from ..evaluation.candidate import pruning_of
from ..evaluation.evaluate import plan_of
from ..evaluation.task import Task
from ..progress import Progress, no_progress
from ..search.space import Prices
from .prepare import Prepared

LAYER_TIMES = "layer_times"
"""The study attribute that holds the table of layer times (`pruning.LayerTimes`)."""


def timed(prepared: Prepared, study: Study | None, progress: Progress = no_progress) -> Prepared:
    """The task with its table of layer times, where the latency is an objective: the study's, else measured now."""
    task = prepared.task
    if task.cost != "latency" or task.times is not None:
        return prepared
    kept = None if study is None else study.user_attrs.get(LAYER_TIMES)
    if kept is not None:
        times = LayerTimes.from_dict(kept)
    else:

        def measured(size: int) -> LayerTimes:
            in_use = computed_in(task.precision, task.graph.device)
            with in_use, progress("time layers", len(task.graph.network.steps)) as advance:
                return LayerTimes.measure(task.graph, min(size, len(task.search)), advance)

        times = task.batching.run(measured)
    return replace(prepared, task=replace(task, times=times))


def prices_of(task: Task) -> Prices | None:
    """What units are priced in; None where they are not. Of a cost that is registered from outside: multiply-adds."""
    if task.cost is None:
        return None
    if task.times is not None:
        return Prices("latency", task.times.paces(task.graph))
    return Prices(task.cost if task.cost in PRICES else "macs")


def score_saved(study: Study, task: Task) -> None:
    """Measure what the best composite saves of each cost where it keeps 95 % of the accuracy on the holdout samples.

    It becomes the study's attribute `best.SAVED`, by trial number. The latency is that of the network itself.
    """
    best = best_trial(study)
    scores: dict[str, Any] = dict(study.user_attrs.get(SAVED, {}))
    if str(best.number) in scores:
        return
    task = task.pruned_as(pruning_of(best))
    rate = sparsity_at(task.rates, study.user_attrs["holdout"][str(best.number)]["accuracy"], KEPT)
    plan = plan_of(task, Composite.from_dict(best.user_attrs["composite"]))
    small = without_constants(next(plan.networks(task.graph, [rate], task.repair)).network)
    found: dict[str, float] = {"rate": rate}
    networks = without_constants(task.graph.network), small
    for name in COSTS:
        whole, left = measured(task, name, networks)
        found[name] = 1 - left / whole
    scores[str(best.number)] = found
    study.set_user_attr(SAVED, scores)


def measured(task: Task, cost: str, networks: Sequence[nn.Module]) -> list[float]:
    """What each of some networks costs on a batch of the task's search samples, in the task's precision."""

    def of(size: int) -> list[float]:
        images = task.search.inputs[0:size]
        with computed_in(task.precision, images.device):
            if cost == "latency":
                return latencies(networks, images)
            return [COSTS[cost](network, images) for network in networks]

    return task.batching.run(of)
