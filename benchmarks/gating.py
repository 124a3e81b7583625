"""What to do with units of layers that only feed gates, of which relevance says nothing: run by hand, prints a table.

    OMP_NUM_THREADS=1 python benchmarks/gating.py --models mobilenet_v3_small,regnet_y_400mf,seresnet
    python benchmarks/gating.py --ways counted,apart --schedule every:0.1 --repair least-squares --seeds 2

Networks trained on the digits; `seresnet` is timm's ResNet of two bottlenecks a stage with squeeze-and-excitation. Each
row is the mean over draws of the samples (seeds): the area under holdout accuracy over the units that are gone (of all
that the way counts), over multiply-adds and over parameters saved (up to 80 % of them, as a part of that span), and the
parameters left at 30 % of the units.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pxp_optimize.attribution import collect_relevance, collect_scores
from pxp_optimize.optimize.data.datasets import open_dataset
from pxp_optimize.optimize.data.digits import seeded, train
from pxp_optimize.optimize.evaluation.curve import right_predictions
from pxp_optimize.optimize.evaluation.task import Task
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.search.space import Space
from pxp_optimize.optimize.study.prepare import cache_folder, prepare
from pxp_optimize.pruning import Graph, Plan, auc, macs, without_constants
from safetensors.torch import save_file
from torch import Tensor, nn

RATES = (*(round(0.05 * step, 2) for step in range(20)), 0.98)
END = 0.8
Scores = dict[str, Tensor]


def counted(relevance: Scores, gates: Scores) -> Scores:
    """All filters are units; those of gates, without relevance, go first."""
    return {**relevance, **{name: torch.zeros_like(values) for name, values in gates.items()}}


def apart(relevance: Scores, gates: Scores) -> Scores:
    """Filters of gates are no units (`filters-gates`, the default)."""
    return relevance


def effect(relevance: Scores, gates: Scores) -> Scores:
    """Filters of gates count by output times gradient, over the mean logit, as epsilon's relevance does."""
    return {**relevance, **gates}


def even(relevance: Scores, gates: Scores) -> Scores:
    """By output times gradient, scaled so that the mean filter of a gate counts as much as the mean of the others."""
    means = [torch.cat([*scores.values()]).mean() for scores in (relevance, gates)]
    return {**relevance, **{name: values * means[0] / means[1].clamp(min=1e-30) for name, values in gates.items()}}


def proportion(relevance: Scores, gates: Scores) -> Scores:
    """Of each layer that feeds a gate goes the part that goes of the others; within it, by output times gradient."""
    others = torch.cat([*relevance.values()]).sort().values

    def placed(values: Tensor) -> Tensor:
        places = (values.argsort().argsort() + 0.5) / max(1, len(values)) * len(others)
        return others[places.long().clamp(max=len(others) - 1)]

    return {**relevance, **{name: placed(values) for name, values in gates.items()}}


WAYS: dict[str, Callable[[Scores, Scores], Scores]] = {
    way.__name__: way for way in (counted, apart, effect, even, proportion)
}


def scorer(task: Task, composite: Any, way: Callable[[Scores, Scores], Scores]) -> Callable[[Graph], Scores]:
    """Scores of a network's units, by layer order."""
    inputs, targets = task.reference.inputs, task.reference.targets

    def scores(graph: Graph) -> Scores:
        relevance = collect_relevance(graph, composite, inputs, targets, "filters-gates", 64)
        taylor = collect_scores(graph, "taylor", inputs, targets, "filters", 64)
        with torch.no_grad():
            logit = graph.network(inputs[0 : len(targets)]).gather(1, targets[:, None]).abs().mean()
        found = way(relevance, {name: values / logit for name, values in taylor.items() if name in graph.gating})
        return {name: found[name] for name in taylor if name in found}

    return scores


def area(left: list[float], accuracy: list[float]) -> float:
    """Area under accuracy over the part that is saved, up to `END`, divided by it; zero from where a curve ends."""
    total, points = 0.0, list(zip([1 - part for part in left], accuracy, strict=True))
    for (x0, a0), (x1, a1) in pairwise(points):
        if x0 < x1 and x0 < END:
            cut = min(x1, END)
            total += (cut - x0) * (a0 + a0 + (a1 - a0) * (cut - x0) / (x1 - x0)) / 2
    return total / END


def parameters(network: nn.Module) -> float:
    """How many weights and biases."""
    return float(sum(value.numel() for value in network.parameters()))


def measured(task: Task, composite: Any, way: str) -> dict[str, float]:
    """One row's figures, of one draw."""
    plan = Plan.make(task.graph, scorer(task, composite, WAYS[way]), task.schedule, task.repair, RATES[-1])
    networks = [graph.network for graph in plan.networks(task.graph, RATES, task.repair)]
    accuracy = right_predictions(task, iter(networks), task.holdout).double().mean(1).tolist()
    image = task.holdout.inputs[0:1]
    left: dict[str, list[float]] = {"macs": [], "parameters": []}
    for network in map(without_constants, networks):
        left["macs"].append(macs(network, image))
        left["parameters"].append(parameters(network))
    shares = {key: [cost / costs[0] for cost in costs] for key, costs in left.items()}
    return {
        "units": auc(RATES, accuracy),
        **{key: area(share, accuracy) for key, share in shares.items()},
        "at 30 %": shares["parameters"][RATES.index(0.3)],
    }


def seresnet() -> nn.Module:
    """As the file that it is read from says."""
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [2, 2, 2, 2], num_classes=10, block_args={"attn_layer": "se"})


def source(name: str, folder: Path) -> Mapping[str, str]:
    """The options that say where a network comes from; `seresnet` is trained here."""
    if name != "seresnet":
        return {"model": name}
    with seeded():
        model = seresnet()
    train(model, open_dataset("digits", seed=0, cache=cache_folder()))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "seresnet.safetensors")
    return {"model": f"{__file__}:seresnet", "weights": str(folder / "seresnet.safetensors")}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mobilenet_v3_small,regnet_y_400mf,seresnet")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--methods", default="epsilon,zplus")
    parser.add_argument("--schedule", default="oneshot")
    parser.add_argument("--repair", default="none")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    print(f"{args.schedule}, {args.repair}, {args.seeds} draws\n{'':44} units  macs  params  at 30 %")
    for name in args.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            options = Options.parsed(
                **source(name, Path(folder)),
                units="filters",
                search_samples=100,
                holdout_samples=300,
                rates=RATES,
                schedule=args.schedule,
                repair=args.repair,
            )
            drawn = [prepare(Options(**{**vars(options), "seed": seed})) for seed in range(args.seeds)]
        for method in args.methods.split(","):
            for way in args.ways.split(","):
                rows = [
                    measured(
                        one.task, Space.named("auto", one.layers, True, mixed=False).fixed_composites()[method], way
                    )
                    for one in drawn
                ]
                mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
                figures = f"{mean['units']:.3f} {mean['macs']:.3f} {mean['parameters']:.3f} {mean['at 30 %']:.0%}"
                print(f"{name:20} {method:12} {way:10} {figures}", flush=True)


if __name__ == "__main__":
    main()
