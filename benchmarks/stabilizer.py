"""What keeps denominators from zero, and what it costs: run by hand, prints a table of relative errors.

    OMP_NUM_THREADS=1 python benchmarks/stabilizer.py densenet121 inception_next_tiny
    OMP_NUM_THREADS=1 python benchmarks/stabilizer.py resnet50 --image-size 224 --added 1e-6,1e-9

For a network with random weights (torchvision's or timm's), relevance of the filters by LRP-epsilon with next to no
epsilon, against gradient times activation: of the same network with the gradient of each activation, BatchNorm and
LayerNorm replaced by output over input, in double precision. Each row: with how much added to the denominators of sums,
means, products and LayerNorm ("none": what the rules do now), the relative error of a layer's units, of the worst layer
and of the median one, in double and in single precision.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from unittest.mock import patch

import torch
import torchvision
from pxp_optimize.attribution import Composite, RuleSpec, attention, between, collect_relevance, rules
from pxp_optimize.attribution.relevance import scores_of
from pxp_optimize.pruning import Graph, trace
from pxp_optimize.pruning.modules import Activation, Affine
from torch import Tensor, nn


class Slope(nn.Module):
    """A module whose gradient is its output over its input; the epsilon rule's way through LayerNorm."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y, given = self.module(x).detach(), x
        if isinstance(self.module, nn.LayerNorm):
            given = (x - x.mean(-1, keepdim=True)) / x.detach().std(-1, correction=0, keepdim=True)
        return given * torch.where(given == 0, 0, y / given).detach()


def gradient_times_activation(graph: Graph, x: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Per unit, over the target's logit."""
    steps = graph.network.modules_by_step()
    kinds = (Activation, Affine, nn.BatchNorm2d, nn.LayerNorm)
    slopes = {name: Slope(module) for name, module in steps.items() if isinstance(module, kinds)}
    network = graph.network.replaced(slopes)
    sloped = Graph(**{**vars(graph), "network": network})
    handle = network.register_forward_hook(lambda module, args, output: output / output.detach())
    scores = scores_of(sloped, "filters", x, targets, len(x), lambda output, gradient: output * gradient)
    handle.remove()
    return scores


def added(epsilon: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda relevance, output: relevance / rules.stabilize(output, epsilon)


def errors(graph: Graph, x: Tensor, targets: Tensor, expected: dict[str, Tensor]) -> tuple[float, float]:
    found = collect_relevance(graph, Composite.uniform(RuleSpec("epsilon", {"epsilon": 1e-12})), x, targets)
    each = [float((found[name] - e).norm() / e.norm()) for name, e in expected.items() if e.any()]
    return max(each), statistics.median(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["densenet121", "inception_next_tiny"])
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--added", default="1e-6", help="several by commas")
    args = parser.parse_args()
    print(f"{'model':20} {'added':>6} {'double: worst':>14} {'median':>8} {'single: worst':>14} {'median':>8}")
    for name in args.models:
        torch.manual_seed(0)
        if name in torchvision.models.list_models():
            model = torchvision.models.get_model(name, num_classes=10)
        else:
            import timm

            model = timm.create_model(name, num_classes=10)
        x, targets = torch.randn(args.images, 3, args.image_size, args.image_size), torch.arange(args.images) % 10
        graph = trace(model.eval(), x)
        double = Graph(**{**vars(graph), "network": copy.deepcopy(graph.network).double()})
        expected = gradient_times_activation(double, x.double(), targets)
        for how in (*args.added.split(","), "none"):
            function = rules.per_output if how == "none" else added(float(how))
            with (
                patch.object(rules, "per_output", function),
                patch.object(between, "per_output", function),
                patch.object(attention, "per_output", function),
            ):
                row = [*errors(double, x.double(), targets, expected), *errors(graph, x, targets, expected)]
            print(f"{name:20} {how:>6} {row[0]:14.1e} {row[1]:8.1e} {row[2]:14.1e} {row[3]:8.1e}", flush=True)


if __name__ == "__main__":
    main()
