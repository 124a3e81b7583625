"""The accuracy curve chunk by chunk, so that a trial which is surely worse can stop before it has seen all samples.

A chunk has its share of every class and is scored at all rates, which gives it an AUC of its own. A trial that
sees all chunks has the accuracies that it has without any: right predictions are counted over all of them. (A
prediction does not hang on the batch that a sample is in, but for rounding.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..pruning import Plan, auc, correct, predictor
from .pruners import Stop
from .task import Curve, Samples, Task

MOST_CHUNKS = 20
LEAST_SAMPLES = 10
"""In a chunk: with fewer, batches are too small to be fast."""
KEPT_BYTES = 2**30
"""Memory for networks that wait for their next chunk."""


def chunks(targets: Tensor) -> list[Tensor]:
    """The samples of each chunk, as ascending indices. Classes are dealt out in turn, so no chunk has more than
    one sample more of a class than another, nor more than one sample more in all.

    targets: int64, shape (n,). Samples are in random order by the study's seed (`data.draw_splits`), so that
    who is in which chunk is random too, and the same in every trial.
    """
    count = max(1, min(MOST_CHUNKS, len(targets) // LEAST_SAMPLES))
    by_class = torch.argsort(targets, stable=True)
    return [by_class[start::count].sort().values for start in range(count)]


def measure(task: Task, plan: Plan, samples: Samples, stop: Stop | None = None) -> Curve:
    """The curve of a plan on these samples; with `stop` up to the chunk after which it says so."""
    rows = chunks(samples.targets)
    networks = (graph.network for graph in plan.networks(task.graph, task.rates, task.repair))
    if stop is None or len(rows) < 2:  # one network at a time
        flags = torch.stack([_right(task, network, samples) for network in networks])
        counts = torch.stack([flags[:, of_chunk].sum(1) for of_chunk in rows]).tolist()
    else:
        counts = _race(task, networks, samples, rows, stop)
    sizes = [len(of_chunk) for of_chunk in rows[: len(counts)]]
    total = sum(sizes)
    return Curve(
        accuracy=[sum(at_rate) / total for at_rate in zip(*counts, strict=True)],
        chunks=[_auc(task, count, size) for count, size in zip(counts, sizes, strict=True)],
        samples=total,
    )


def _race(
    task: Task, networks: Iterable[nn.Module], samples: Samples, rows: Sequence[Tensor], stop: Stop
) -> list[list[int]]:
    """Right predictions at each rate, for each chunk up to the last one seen.

    No network is built twice: one for which there is no room is measured on all samples while it is there.
    """
    room = KEPT_BYTES
    waiting: list[Tensor | nn.Module] = []
    for network in networks:
        size = sum(tensor.nbytes for tensor in network.state_dict().values())
        if network is task.graph.network or size > room:
            waiting.append(_right(task, network, samples))
        else:
            room -= size
            waiting.append(predictor(network))
    counts: list[list[int]] = []
    for of_chunk in rows:
        chunk = Samples(samples.inputs.take(of_chunk), samples.targets[of_chunk])
        right = [
            (entry[of_chunk] if isinstance(entry, Tensor) else _right(task, entry, chunk)).sum() for entry in waiting
        ]
        counts.append(torch.stack(right).tolist())
        if stop(len(counts), _auc(task, counts[-1], len(of_chunk))):
            break
    return counts


def _auc(task: Task, right: Sequence[int], size: int) -> float:
    return auc(task.rates, [count / size for count in right])


def _right(task: Task, network: nn.Module, samples: Samples) -> Tensor:
    """Whether each prediction is right: bool, shape (samples,)."""
    key = task.measured(samples)
    unpruned = network is task.graph.network
    if unpruned and key in task.unpruned:  # the same in every trial
        return task.unpruned[key]
    right = task.batching.run(
        lambda size: correct(
            network,
            samples.inputs,
            samples.targets,
            logits=task.logits,
            batch_size=size,
            precision=task.precision,
        )
    )
    if unpruned:
        task.unpruned[key] = right
    return right
