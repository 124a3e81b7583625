"""The accuracy curve chunk by chunk, so that a trial which is surely worse can stop before it has seen all samples.

A chunk has its share of every class and is scored at all rates, which gives it an AUC of its own. A trial that
sees all chunks has the accuracies that it has without any: right predictions are counted over all of them. (A
prediction does not hang on the batch that a sample is in, but for rounding.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ...pruning import (
    COSTS,
    END,
    Cost,
    Family,
    Network,
    Plan,
    area_saved,
    auc,
    computed_in,
    correct_each,
    groups,
    network_bytes,
    without_constants,
)
from .phases import phase
from .task import Curve, Samples, Task, Unseen

Stop = Callable[[int, float], bool]
"""Given the number of a chunk, from 1, and the AUC over its samples: whether to stop there."""
MOST_CHUNKS = 20
LEAST_SAMPLES = 10
"""In a chunk: with fewer, batches are too small to be fast."""
KEPT_BYTES = 2**30
"""Memory for networks that wait for their next chunk."""


def chunks(targets: Tensor) -> list[Tensor]:
    """The samples of each chunk, as ascending indices. Classes are dealt out in turn, so no chunk has more than
    one sample more of a class than another, nor more than one sample more in all.

    targets: int64, shape (n,). Samples are in random order by the study's seed (`sampling.draw_splits`), so that
    who is in which chunk is random too, and the same in every trial.
    """
    count = max(1, min(MOST_CHUNKS, len(targets) // LEAST_SAMPLES))
    by_class = torch.argsort(targets, stable=True)
    return [by_class[start::count].sort().values for start in range(count)]


def measure(
    task: Task, plan: Plan, samples: Samples, stop: Stop | None = None, unseen: Sequence[Unseen] = ()
) -> tuple[Curve, dict[str, Curve]]:
    """The curve of a plan on these samples; with `stop` up to the chunk after which it says so. And the curves on the
    unseen ones that this one's AUC is high enough for, by name, from the same networks: none is built for them.

    Of networks that are too many to wait in memory for the AUC, some may be left out whose AUC turns out high enough.
    Without `stop`, accuracies where the curve is flat are interpolated (`Task.flat`).
    """
    rows = chunks(samples.targets)
    costs: list[float] = []
    # with two objectives what is measured on other samples is compared by its AUC
    with_costs = task.by_cost or samples is task.search
    networks = networks_of_curve(task, plan, costs) if with_costs else networks_of(task, plan)
    if stop is None or len(rows) < 2:
        if task.flat:
            flags, others = _where_it_falls(task, plan, samples, unseen)
        else:
            flags, others = _together(task, networks, samples, unseen, costs)
        counts = _counts(flags, rows)
    else:
        counts, others = _race(task, networks, samples, rows, stop, unseen)
    curves = {}
    for of in unseen:
        if of.name in others:
            of_unseen = chunks(of.samples.targets)
            of_these = costs if task.by_cost else ()
            curves[of.name] = _curve(task, _counts(others[of.name], of_unseen), of_unseen, of_these)
    return _curve(task, counts, rows, costs), curves


def _counts(flags: Tensor, rows: Sequence[Tensor]) -> list[list[float]]:
    """Right predictions at each rate, for each chunk. flags: shape (networks, samples)."""
    return torch.stack([flags[:, of_chunk].sum(1) for of_chunk in rows]).tolist()


def _curve(task: Task, counts: Sequence[list[float]], rows: Sequence[Tensor], costs: Sequence[float] = ()) -> Curve:
    sizes = [len(of_chunk) for of_chunk in rows[: len(counts)]]
    total, rates = sum(sizes), len(task.rates)
    accuracy = [sum(at_rate) / total for at_rate in zip(*counts, strict=True)]
    return Curve(
        accuracy=accuracy[:rates],
        chunks=[_auc(task.rates, count, size) for count, size in zip(counts, sizes, strict=True)],
        samples=total,
        costs=[cost / costs[0] for cost in costs],
        beyond=accuracy[rates:],
    )


def networks_of(task: Task, plan: Plan, rates: Sequence[float] | None = None) -> Iterator[Network]:
    """The network at each of the rates (None: the task's), built when it is asked for; the pruned ones as they are
    used, without constants."""
    graphs = plan.networks(task.graph, rates or task.rates, task.repair)
    return (graph.network if graph is task.graph else without_constants(graph.network) for graph in graphs)


def networks_of_curve(task: Task, plan: Plan, costs: list[float]) -> Iterator[Network]:
    """The networks that a curve is of: those at the rates, and where the task has a cost such as save more.

    costs: gets what each of them costs then, when it is asked for.
    """
    networks = networks_of(task, plan)
    if task.cost is None:
        return networks
    networks = itertools.chain(networks, _networks_beyond(task, plan, costs))
    return _with_costs(task, COSTS[task.cost] if task.times is None else task.times.latency, networks, costs)


FURTHER = 6
"""At most so many networks are measured beyond the last rate, each with half of the units that the one before has."""


def _networks_beyond(task: Task, plan: Plan, costs: Sequence[float]) -> Iterator[Network]:
    """Smaller and smaller networks, until one saves as much of the cost as counts. costs: of those before."""
    last = task.rates[-1]
    for index in range(1, FURTHER + 1):
        if 1 - costs[-1] / costs[0] >= END:
            return
        rate = 1 - (1 - last) / 2**index
        yield next(networks_of(task, plan, [rate]))


def _with_costs(task: Task, cost: Cost, networks: Iterable[Network], costs: list[float]) -> Iterator[Network]:
    """The same networks; what each costs is noted on the way."""

    def measured(network: Network, size: int) -> float:
        images = task.search.inputs[0:size]
        with computed_in(task.precision, images.device):
            return cost(network, images)

    for network in networks:
        used = without_constants(network) if network is task.graph.network else network
        costs.append(task.batching.run(partial(measured, used)))
        yield network


def right_predictions(task: Task, networks: Iterable[Network], samples: Samples) -> Tensor:
    """Whether each network is right on each sample: bool, shape (networks, samples)."""
    return _together(task, networks, samples, ())[0]


def _together(
    task: Task,
    networks: Iterable[Network],
    samples: Samples,
    unseen: Sequence[Unseen],
    costs: Sequence[float] = (),
    rates: Sequence[float] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Whether each network is right on each sample: bool, shape (networks, samples); and on the unseen samples whose
    `above` the score is likely to reach, by name. Memory holds one group of networks at a time. costs: of those that
    were asked for so far. rates: of the networks, if not the task's."""
    right: list[Tensor] = []
    others: dict[str, list[Tensor]] = {of.name: [] for of in unseen}
    for group in groups(networks):
        right.append(_right(task, group, samples))
        if not others:
            continue
        likely = _likely_score(task, torch.cat(right), costs, rates or task.rates)
        for of in unseen:
            if of.name in others and likely > of.above:
                with phase(of.phase):
                    others[of.name].append(_right(task, group, of.samples))
            else:
                others.pop(of.name, None)
    return torch.cat(right), {name: torch.cat(found) for name, found in others.items()}


WIDEST = 0.1
"""How far apart two rates may be for the accuracy between them to be interpolated."""


def between(rates: Sequence[float]) -> list[int]:
    """The rates, by their index, that need not be measured where the curve is flat: every second one, if those beside
    it are near each other."""
    inner = range(1, len(rates) - 1, 2)
    return [index for index in inner if rates[index + 1] - rates[index - 1] <= WIDEST + 1e-9]


def _where_it_falls(
    task: Task, plan: Plan, samples: Samples, unseen: Sequence[Unseen]
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `_together`, for all rates. Where two rates hardly differ in accuracy, the one between them is not measured:
    whether it is right on a sample is the mean of what they are, a number from 0 to 1."""
    inner = between(task.rates)
    first = [index for index in range(len(task.rates)) if index not in inner]
    rates = [task.rates[index] for index in first]
    found, others = _together(task, networks_of(task, plan, rates), samples, unseen, rates=rates)
    right = dict(zip(first, found.sum(1).tolist(), strict=True))
    falls = [index for index in inner if abs(right[index - 1] - right[index + 1]) > task.flat * len(samples)]
    asked = [of for of in unseen if of.name in others]
    more: dict[str, list[Tensor]] = {name: [flags] for name, flags in others.items()}
    of_samples = [found]
    for group in groups(networks_of(task, plan, [task.rates[index] for index in falls]) if falls else ()):
        of_samples.append(_right(task, group, samples))
        for of in asked:
            with phase(of.phase):
                more[of.name].append(_right(task, group, of.samples))
    whole = partial(_filled, task.rates, [*first, *falls])
    return whole(torch.cat(of_samples)), {name: whole(torch.cat(flags)) for name, flags in more.items()}


def _filled(rates: Sequence[float], measured: Sequence[int], flags: Tensor) -> Tensor:
    """Flags of all rates, from those of the measured ones: bool, or if some were not measured float64 with these
    interpolated between their neighbours."""
    if len(measured) == len(rates):
        return flags[torch.tensor(measured, device=flags.device).argsort()]
    exact = torch.float32 if flags.device.type == "mps" else torch.float64  # which MPS has not
    whole = flags.new_zeros(len(rates), flags.shape[1], dtype=exact)
    whole[list(measured)] = flags.to(exact)
    for index in sorted(set(range(len(rates))) - set(measured)):
        share = (rates[index] - rates[index - 1]) / (rates[index + 1] - rates[index - 1])
        whole[index] = whole[index - 1].lerp(whole[index + 1], share)
    return whole


def _likely_score(task: Task, flags: Tensor, costs: Sequence[float], rates: Sequence[float]) -> float:
    """The AUC of which the first rates are measured, if accuracy stays as it is at the last one of them: mostly more
    than it turns out to be. Once all are measured, the AUC. So too the area over the cost, where that is judged by."""
    right = flags.sum(1).tolist()
    if task.by_cost:
        parts = [cost / costs[0] for cost in costs[: len(right)]]
        rest = [] if parts[-1] <= 1 - END else [0.0]
        accuracy = [count / flags.shape[1] for count in right + right[-1:] * len(rest)]
        return area_saved([*parts, *rest], accuracy)
    return _auc(rates, right + right[-1:] * (len(rates) - len(right)), flags.shape[1])


def _race(
    task: Task,
    networks: Iterable[Network],
    samples: Samples,
    rows: Sequence[Tensor],
    stop: Stop,
    unseen: Sequence[Unseen],
) -> tuple[list[list[float]], dict[str, Tensor]]:
    """Right predictions at each rate, for each chunk up to the last one seen; and, of a trial that has seen all, which
    predictions for the unseen samples are right, unless there was no room for its networks.

    No network is built twice: one for which there is no room is measured on all samples while it is there.
    """
    room = KEPT_BYTES
    measured: dict[int, Tensor] = {}
    kept: dict[int, Network] = {}
    waiting: dict[int, Network] = {}
    for index, network in enumerate(networks):
        size = network_bytes(network)
        if network is task.graph.network:
            kept[index] = network
            (measured[index],) = _right(task, [network], samples)
        elif size > room:
            (measured[index],) = _right(task, [network], samples)
        else:
            room -= size
            kept[index] = waiting[index] = network
    family = Family(waiting.values()) if waiting else None
    counts: list[list[float]] = []
    for of_chunk in rows:
        flags = {index: right[of_chunk] for index, right in measured.items()}
        if family is not None:
            chunk = Samples(samples.inputs.take(of_chunk), samples.targets[of_chunk])
            flags |= dict(zip(waiting, _measured(task, family, chunk), strict=True))
        counts.append(torch.stack([flags[index].sum() for index in sorted(flags)]).tolist())
        if stop(len(counts), _auc(task.rates, counts[-1], len(of_chunk))):
            break
    others = {}
    if len(counts) == len(rows) and len(kept) == len(task.rates):
        found = _auc(task.rates, [sum(at_rate) for at_rate in zip(*counts, strict=True)], len(samples))
        for of in unseen:
            if found > of.above:
                with phase(of.phase):
                    others[of.name] = right_predictions(task, kept.values(), of.samples)
    return counts, others


def _auc(rates: Sequence[float], right: Sequence[float], size: int) -> float:
    return auc(rates, [count / size for count in right[: len(rates)]])


def _right(task: Task, networks: Sequence[Network], samples: Samples) -> Tensor:
    """Whether each prediction of each network is right: bool, shape (networks, samples)."""
    if networks[0] is not task.graph.network:
        return _measured(task, Family(networks), samples)
    key = task.measured(samples)
    if key not in task.unpruned:  # the same in every trial
        task.unpruned[key] = _measured(task, Family(networks[:1]), samples)
    pruned = [_measured(task, Family(networks[1:]), samples)] if len(networks) > 1 else []
    return torch.cat([task.unpruned[key], *pruned])


def _measured(task: Task, family: Family, samples: Samples) -> Tensor:
    return task.batching.run(
        lambda size: correct_each(
            family,
            samples.inputs,
            samples.targets,
            logits=task.logits,
            batch_size=size,
            precision=task.precision,
        )
    )
