"""What the fast paths of a trial buy: run by hand, prints ratios of medians measured in one run, both sides in turn.

    python benchmarks/trial.py                       # resnet18, trained on the digits, with their images
    python benchmarks/trial.py --model resnet50 --json figures.json
    python benchmarks/trial.py --model vit_tiny --units neurons --part curve
    python benchmarks/trial.py --model vgg16_bn --noise 224 --batch 8 --samples 8 --search-samples 8

The other side is what the paper's code does: zennit's own rules and canonizer on the model as loaded, and the
dense model with the weights of pruned filters (and of their BatchNorm) set to zero. Beside relevance stands the least
that it can cost, the plain network's forward and backward pass. Errors are the worst relative error of a layer's
relevance, against zennit in double precision: ours, zennit's own, and ours in double precision too, which leaves out
what single precision rounds. `--noise SIZE` takes random weights and images.
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
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
import zennit.rules
import zennit.torchvision
from pxp_optimize.attribution import Composite, RuleSpec, collect_relevance, collect_scores
from pxp_optimize.optimize.data.datasets import open_dataset
from pxp_optimize.optimize.models import load_model
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.study.prepare import cache_folder, prepare
from pxp_optimize.pruning import (
    DEFAULT_RATES,
    Graph,
    Masks,
    accuracy,
    accuracy_curve,
    compact_model,
    macs,
    nested,
    rank,
    trace,
)
from torch import Tensor, nn
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
        norms = {module: module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
        for norm in norms:
            # merged; zennit 0.5 leaves the old one, which shrinks every layer's output by 5e-6; torch 2.11 takes no 0
            norm.eps = 1e-30
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
    for norm, eps in norms.items():
        norm.eps = eps
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


def samples_of(options: argparse.Namespace) -> tuple[nn.Module, Graph, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The model as loaded, its graph, the reference samples, and the search samples."""
    if options.noise:
        torch.manual_seed(0)
        model = torchvision.models.get_model(options.model, weights=None).eval().requires_grad_(False)
        inputs, search = (
            torch.randn(count, 3, options.noise, options.noise) for count in (options.samples, options.search_samples)
        )
        targets = torch.randint(0, 1000, (options.samples,))
        with torch.inference_mode():
            labels = torch.cat([model(part).argmax(1) for part in search.split(options.batch)])
        return model, trace(model), (inputs, targets), (search, labels)
    settings = Options.parsed(
        model=options.model,
        units=options.units,
        reference_samples=options.samples // 10,
        search_samples=options.search_samples,
        device="cpu",
    )
    task = prepare(settings).task
    dataset = open_dataset(settings.data, seed=0, cache=cache_folder())
    module = load_model(settings.model, settings.weights, dataset, cache=cache_folder()).module.eval()
    reference, search_samples = (
        (samples.inputs[0 : len(samples)], samples.targets) for samples in (task.reference, task.search)
    )
    return module.requires_grad_(False), task.graph, reference, search_samples


def worst_error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    return max(((found[key] - exact[key]).norm() / exact[key].norm()).item() for key in exact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--units", default="filters")
    parser.add_argument("--noise", type=int, metavar="SIZE", help="random weights and images of this size")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--samples", type=int, default=100, help="reference samples")
    parser.add_argument("--search-samples", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--part", choices=("all", "relevance", "curve", "trial", "growth"), default="all")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--memory", action="store_true", help="also peak memory")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, graph, (inputs, targets), (search, labels) = samples_of(options)
    figures: list[dict[str, Any]] = []

    def report(what: str, ours: str, other: str, seconds: dict[str, float], **more: Any) -> None:
        ratio = seconds[other] / seconds[ours]
        figures.append({"what": what, "seconds": seconds, "ratio": ratio, **more})
        times = "  ".join(f"{name} {value:8.3f} s" for name, value in seconds.items())
        extra = "  ".join(f"{key} {value}" for key, value in more.items())
        print(f"{what:22} {times}  ratio {ratio:5.2f}  {extra}", flush=True)

    def wanted(part: str) -> bool:
        return options.part in ("all", part)

    def compact_side(relevance: dict[str, Tensor], count: int | None = None, rates: Any = DEFAULT_RATES) -> list[float]:
        return accuracy_curve(graph, relevance, search[:count], labels[:count], rates, batch_size=options.batch)

    def dense_side(relevance: dict[str, Tensor]) -> list[float]:
        return dense_curve(model, list(nested(rank(relevance), DEFAULT_RATES)), search, labels, options.batch)

    def memory(ours: Callable[[], Any], other: Callable[[], Any]) -> dict[str, str]:
        found = (peak_memory(run) for run in (ours, other)) if options.memory else ()
        return {f"memory {side}": f"{value:.0f} MiB" for side, value in zip(("ours", "other"), found, strict=False)}

    size = tuple(inputs.shape[2:])
    print(
        f"{options.model} at {size}, torch {torch.__version__}, {options.threads} threads, {len(inputs)} reference and"
    )
    print(f"{len(search)} search samples, batches of {options.batch}")
    for name in options.rules.split(","):
        spec, rule = RULES[name]
        composite = Composite.uniform(spec)
        with_zennit = options.units == "filters"  # it has no rules for attention

        def ours(composite: Composite = composite) -> dict[str, Tensor]:
            return collect_relevance(graph, composite, inputs, targets, options.units, options.batch)

        def theirs(rule: Callable[[], Hook] = rule) -> dict[str, Tensor]:
            return zennit_relevance(model, options.model, rule(), inputs, targets, options.batch)

        def plain() -> dict[str, Tensor]:
            return collect_scores(graph, "gradient", inputs, targets, options.units, options.batch)

        relevance = ours()
        if wanted("relevance") and with_zennit:
            double, images = copy.deepcopy(model).double(), inputs.double()
            exact = zennit_relevance(double, options.model, rule(), images, targets, options.batch)
            precise = collect_relevance(double, composite, images, targets, options.units, options.batch)
            del double, images
            errors = {
                "error": worst_error(relevance, exact),
                "zennit's": worst_error(theirs(), exact),
                "in double": worst_error(precise, exact),
            }
            seconds = alternate({"ours": ours, "zennit": theirs, "plain": plain}, options.rounds)
            told = {key: f"{value:.1e}" for key, value in errors.items()}
            report(f"relevance {name}", "ours", "zennit", seconds, **told, **memory(ours, theirs))
        if wanted("curve"):
            a, b = compact_side(relevance), dense_side(relevance)
            differ = round(max(abs(x - y) for x, y in zip(a, b, strict=True)) * len(search))
            sides = {"ours": partial(compact_side, relevance), "masks": partial(dense_side, relevance)}
            seconds = alternate(sides, options.rounds)
            masks = list(nested(rank(relevance), DEFAULT_RATES))
            networks = [compact_model(graph, mask) for mask in masks]
            # what networks run one by one would give, if nothing but multiply-adds took time
            limit = len(masks) * macs(networks[0], search[:1]) / sum(macs(network, search[:1]) for network in networks)
            more = {"predictions that differ": differ, "limit one by one": f"{limit:.2f}"}
            report(f"curve {name}", "ours", "masks", seconds, **more, **memory(*sides.values()))
        if wanted("trial") and with_zennit:
            sides = {"ours": lambda: compact_side(ours()), "plain": lambda: dense_side(theirs())}
            report(f"trial {name}", "ours", "plain", alternate(sides, options.rounds))
        if wanted("growth") and name == "gamma":
            half = len(search) // 2
            for what, less in (
                ("samples", partial(compact_side, relevance, half)),
                ("rates", partial(compact_side, relevance, rates=DEFAULT_RATES[::2])),
            ):
                sides = {"half": less, "all": partial(compact_side, relevance)}
                report(f"growth with {what}", "half", "all", alternate(sides, options.rounds))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(options), "figures": figures}, file, indent=2)


if __name__ == "__main__":
    main()
