"""From a composite's JSON to the smaller network: the one that a study measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...attribution import collect_relevance, load_composite
from ...pruning import Batches, Graph, Plan, Schedule, make_repair, repair_rows, trace, without_constants
from ...pruning import mimic as mimicked
from ...pruning.convolution import plain


@torch.inference_mode(False)
def prune(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    inputs: Batches,
    targets: Tensor,
    rate: float,
    *,
    batch_size: int = 64,
    repair_inputs: Batches | None = None,
    logits: Tensor | None = None,
    mimic: int = 0,
    seed: int = 0,
) -> nn.Module:
    """The model without its least relevant units, ranked, cut and repaired as the document says.

    source: a `pxp-composite/1` file such as `best.json`, or its content; its `pruning` names the schedule and
    the repair (absent: ranked once, nothing repaired). inputs: the reference samples, float images, shape
    (n, channels, height, width). targets: logit indices, int64, shape (n,). rate: the part of the units to
    remove, in [0, 1]. repair_inputs: the images of a study with `--repair-samples`, (n, channels, height, width);
    the reference samples otherwise (512 of them, of more). logits: indices of those that competed, where the study
    was of some classes only. mimic: so many steps of training at the end, without labels, on the images that repairs
    read, to give what the model gives; `seed` says in which order. The model stays as it is.

    Raises:
        CompositeError: the document is malformed or does not fit the model.
        TraceError: see `pruning.trace`.
        ValueError: a rate out of range, or a repair that the model has no layers for.
    """
    composite = load_composite(source)
    document: Mapping[str, Any] = source if isinstance(source, Mapping) else json.loads(Path(source).read_bytes())
    how, units = document.get("pruning", {}), document.get("units")
    graph = trace(model, inputs[:2])
    schedule = Schedule.parse(how.get("schedule", "oneshot"))
    if repair_inputs is None:
        repair_inputs = inputs[repair_rows(len(inputs))]
    repair = make_repair(how.get("repair", "none"), graph, repair_inputs)

    def score(network: Graph) -> dict[str, Tensor]:
        return collect_relevance(network, composite, inputs, targets, units, batch_size, logits=logits)

    plan = Plan.make(graph, score, schedule, repair, rate)
    small = next(plan.networks(graph, [rate], repair))
    name = "none" if repair is None else repair.name
    masks = plan.ranking.masks(rate)
    small = mimicked(graph, small, masks, repair_inputs, mimic, repair=name, seed=seed, logits=logits)
    return plain(without_constants(small.network)).requires_grad_()
