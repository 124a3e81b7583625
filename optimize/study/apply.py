"""From a composite's JSON to the smaller network: the one that a study measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...attribution import collect_relevance, load_composite
from ...pruning import (
    COSTS,
    Batches,
    Cost,
    Graph,
    LayerTimes,
    Plan,
    Schedule,
    make_repair,
    repair_rows,
    trace,
    without_constants,
)
from ...pruning import mimic as mimicked
from ...pruning.convolution import plain
from .amount import Amount, Pruner
from .finetune import Training


@torch.inference_mode(False)
def prune(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    inputs: Batches,
    targets: Tensor,
    rate: float | None = None,
    *,
    saved: float | None = None,
    keep_accuracy: float | None = None,
    max_params: float | str | None = None,
    max_macs: float | str | None = None,
    batch_size: int = 64,
    repair_inputs: Batches | None = None,
    logits: Tensor | None = None,
    mimic: int = 0,
    seed: int = 0,
) -> nn.Module:
    """The model without its least relevant units, ranked, cut and repaired as the document says.

    How much goes is said in one of five ways; by default it is the largest of the study's rates that keeps 95 % of the
    accuracy. The model stays as it is.

    Args:
        model: gives logits.
        source: a `pxp-composite/1` file such as `best.json`, or its content; its `pruning` names the schedule and the
            repair (absent: ranked once, nothing repaired).
        inputs: the reference samples, float images, shape (n, channels, height, width).
        targets: logit indices, int64, shape (n,).
        rate: the part of the units to remove, 0 or more, and below 1.
        saved: the part to save of the cost that the document's `result` names as its objective; of the units, where it
            names none.
        keep_accuracy: the part of the accuracy to keep, by the `result`'s curve on the study's search samples.
        max_params: most parameters, as a number or such as "3M".
        max_macs: most multiply-adds for an image, likewise. Of this, max_params and saved the smallest rate is taken
            that is enough.
        batch_size: images for each pass.
        repair_inputs: the images of a study with `--repair-samples`, (n, channels, height, width); the reference
            samples otherwise (512 of them, of more).
        logits: indices of those that competed, where the study was of some classes only.
        mimic: so many steps of training at the end, without labels, on the images that repairs read, to give what the
            model gives (`pruning.mimic`).
        seed: of that.

    Raises:
        CompositeError: the document is malformed or does not fit the model.
        TraceError: see `pruning.trace`.
        ValueError: a value out of range, several of them, no network that is so small, or a repair that the model has
            no layers for.
    """
    training = Training.of(mimic)
    amount = Amount.of(rate=rate, saved=saved, keep_accuracy=keep_accuracy, max_params=max_params, max_macs=max_macs)
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

    result = document.get("result", {})
    named = result.get("objective")
    cost: Cost | None = None if named is None else COSTS[named]
    if named == "latency" and amount.kind == "saved":
        cost = LayerTimes.measure(graph, min(batch_size, len(inputs))).latency
    pruner = Pruner(
        graph,
        repair,
        partial(Plan.make, graph, score, schedule, repair),
        graph.units(units or graph.default_units),
        inputs[0:1],
        (result["rates"], result["accuracy"]) if {"rates", "accuracy"} <= result.keys() else None,
        cost,
    )
    pruned, name = pruner(amount), "none" if repair is None else repair.name
    small = mimicked(graph, *pruned[1:], repair_inputs, training.mimic, repair=name, seed=seed, logits=logits)
    return plain(without_constants(small.network)).requires_grad_()
