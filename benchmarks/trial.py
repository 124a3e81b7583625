"""What the fast paths of a trial buy: run by hand, prints ratios of medians measured in one run, both sides in turn.

    python benchmarks/trial.py                       # resnet18 at 32 x 32
    python benchmarks/trial.py --model resnet50 --size 224 --batch 8 --samples 32 --part relevance
    python benchmarks/trial.py --model vgg16_bn --json figures.json

The other side is what the paper's code does: zennit's own rules and canonizer on the model as loaded, and the
dense model with the weights of pruned filters (and of their BatchNorm) set to zero.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
import zennit.rules
import zennit.torchvision
from pxp_optimize.attribution import Composite, RuleSpec, collect_relevance
from pxp_optimize.pruning import (
    DEFAULT_RATES,
    Graph,
    Masks,
    accuracy,
    accuracy_curve,
    compact_model,
    nested,
    rank,
    trace,
)
from pxp_optimize.pruning.convolution import plain
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zennit.composites import NameLayerMapComposite, layer_map_base
from zennit.core import Hook

RULES: dict[str, tuple[RuleSpec, Callable[[], Hook]]] = {
    "epsilon": (RuleSpec("epsilon", {"epsilon": 1e-6}), lambda: zennit.rules.Epsilon(1e-6)),
    "gamma": (RuleSpec("gamma", {"gamma": 0.25}), lambda: zennit.rules.Gamma(0.25)),
    "alpha_beta": (RuleSpec("alpha_beta", {"alpha": 2.0}), lambda: zennit.rules.AlphaBeta(2.0, 1.0)),
    "zplus": (RuleSpec("zplus"), zennit.rules.ZPlus),
}


def zennit_relevance(
    model: nn.Module, name: str, rule: Hook, inputs: Tensor, targets: Tensor, batch: int
) -> dict[str, Tensor]:
    """Filter relevance with zennit alone, on the model as loaded."""
    canonizer = zennit.torchvision.ResNetCanonizer if "resn" in name else zennit.torchvision.VGGCanonizer
    layers = [key for key, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    composite = NameLayerMapComposite(name_map=[(layers, rule)], layer_map=layer_map_base(), canonizers=[canonizer()])
    totals: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    convolutions = {key: module for key, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    with composite.context(model):
        handles = [
            module.register_forward_hook(lambda module, args, output, key=key: outputs.__setitem__(key, output))
            for key, module in convolutions.items()
        ]
        for start in range(0, len(targets), batch):
            x = inputs[start : start + batch].clone().requires_grad_()
            logits = model(x)
            for output in outputs.values():
                output.retain_grad()
            start_at = torch.zeros_like(logits).scatter_(1, targets[start : start + batch, None], 1)
            torch.autograd.grad(logits, x, start_at)
            for key, output in outputs.items():
                values = output.grad.sum((2, 3)).abs().sum(0)  # type: ignore[union-attr]
                totals[key] = totals[key] + values if key in totals else values
            outputs.clear()
        for handle in handles:
            handle.remove()
    return totals


def dense_curve(model: nn.Module, masks: list[Masks], inputs: Tensor, targets: Tensor, batch: int) -> list[float]:
    """Accuracies of the dense model with zeroed filters, as loaded: BatchNorm apart, no channels-last."""
    names = [key for key, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    norm_of = {
        key: after for key, after in itertools.pairwise(names) if isinstance(model.get_submodule(after), nn.BatchNorm2d)
    }
    accuracies = []
    for mask in masks:
        pruned = copy.deepcopy(model)
        for key, kept in mask.items():
            for part in (key, norm_of.get(key)):
                if part is not None:
                    layer = pruned.get_submodule(part)
                    layer.weight.data[~kept] = 0  # type: ignore[index, union-attr, operator]
                    if layer.bias is not None:
                        layer.bias.data[~kept] = 0  # type: ignore[index, union-attr, operator]
        accuracies.append(accuracy(pruned, inputs, targets, batch_size=batch))
    return accuracies


def alternate(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each side, run in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(run: Callable[[], Any]) -> float:
    """Peak memory (MiB) that a run adds to what the process holds: the device's own count on CUDA, else Linux's
    count of resident pages, its peak set back before; NaN on other systems."""
    run()  # what is cached from then on is no part of it
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed pages that malloc keeps would hide new ones
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        return math.nan
    before = _resident("VmRSS")
    run()
    return (_resident("VmHWM") - before) / 1024


def _resident(key: str) -> int:
    """A line of the process's memory status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def macs(model: nn.Module, image: Tensor) -> float:
    """Multiply-adds of one image; those with padding count, as they are done or left out on both sides."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--samples", type=int, default=100, help="reference samples")
    parser.add_argument("--search-samples", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--part", choices=("all", "relevance", "curve", "trial", "growth"), default="all")
    parser.add_argument("--memory", action="store_true", help="also peak memory")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = torchvision.models.get_model(options.model, weights=None).eval().requires_grad_(False)
    graph = trace(model)
    inputs = torch.randn(options.samples, 3, options.size, options.size)
    targets = torch.randint(0, 1000, (options.samples,))
    search = torch.randn(options.search_samples, 3, options.size, options.size)
    with torch.inference_mode():
        labels = torch.cat([model(part).argmax(1) for part in search.split(options.batch)])
    figures: list[dict[str, Any]] = []

    def report(what: str, ours: str, other: str, seconds: dict[str, float], error: float, **more: Any) -> None:
        ratio = seconds[other] / seconds[ours]
        figures.append({"what": what, "seconds": seconds, "ratio": ratio, "error": error, **more})
        times = "  ".join(f"{name} {value:8.3f} s" for name, value in seconds.items())
        extra = "  ".join(f"{key} {value:.0f} MiB" for key, value in more.items())
        print(f"{what:24} {times}  ratio {ratio:5.2f}  worst error {error:.1e}  {extra}", flush=True)

    print(f"{options.model} at {options.size}, torch {torch.__version__}, {options.threads} threads")
    first: dict[str, Tensor] = {}
    for name, (spec, rule) in RULES.items():
        composite = Composite.uniform(spec)

        def ours(composite: Composite = composite) -> dict[str, Tensor]:
            return collect_relevance(graph, composite, inputs, targets, "filters", options.batch)

        def theirs(rule: Callable[[], Hook] = rule) -> dict[str, Tensor]:
            return zennit_relevance(model, options.model, rule(), inputs, targets, options.batch)

        first = first or ours()
        if options.part in ("all", "relevance"):
            a, b = ours(), theirs()
            error = max(((a[key] - b[key]).norm() / b[key].norm()).item() for key in b)
            more = {"memory ours": peak_memory(ours), "zennit": peak_memory(theirs)} if options.memory else {}
            seconds = alternate({"ours": ours, "zennit": theirs}, options.rounds)
            report(f"relevance {name}", "ours", "zennit", seconds, error, **more)
    rates = DEFAULT_RATES
    masks = list(nested(rank(first), rates))

    def compact_side(graph: Graph = graph, count: int = len(search), rates: tuple[float, ...] = rates) -> list[float]:
        return accuracy_curve(graph, first, search[:count], labels[:count], rates, batch_size=options.batch)

    def dense_side() -> list[float]:
        return dense_curve(model, masks, search, labels, options.batch)

    if options.part in ("all", "curve"):
        differ = max(abs(x - y) for x, y in zip(compact_side(), dense_side(), strict=True))
        more = {"memory ours": peak_memory(compact_side), "masks": peak_memory(dense_side)} if options.memory else {}
        seconds = alternate({"ours": compact_side, "masks": dense_side}, options.rounds)
        report(f"curve, {len(rates)} rates", "ours", "masks", seconds, differ, **more)
        # what the compact networks would give if nothing but multiply-adds took time, at the dense model's speed
        dense = macs(plain(graph.network), search[:1])
        limit = len(masks) * dense / sum(macs(compact_model(graph, mask), search[:1]) for mask in masks)
        print(f"{'':24} by multiply-adds alone the ratio would be {limit:.2f}")
        figures[-1]["limit"] = limit
    if options.part in ("all", "trial"):
        spec, rule = RULES["gamma"]
        composite = Composite.uniform(spec)

        def our_trial() -> None:
            relevance = collect_relevance(graph, composite, inputs, targets, "filters", options.batch)
            accuracy_curve(graph, relevance, search, labels, rates, batch_size=options.batch)

        def plain_trial() -> None:
            relevance = zennit_relevance(model, options.model, rule(), inputs, targets, options.batch)
            dense_curve(model, list(nested(rank(relevance), rates)), search, labels, options.batch)

        seconds = alternate({"ours": our_trial, "plain": plain_trial}, options.rounds)
        report("trial, gamma", "ours", "plain", seconds, 0.0)
    if options.part in ("all", "growth"):
        half = len(search) // 2
        seconds = alternate({"half the samples": lambda: compact_side(count=half), "all": compact_side}, options.rounds)
        report("growth with samples", "half the samples", "all", seconds, 0.0)
        seconds = alternate(
            {"half the rates": lambda: compact_side(rates=rates[::2]), "all": compact_side}, options.rounds
        )
        report("growth with rates", "half the rates", "all", seconds, 0.0)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(options), "figures": figures}, file, indent=2)


if __name__ == "__main__":
    main()
