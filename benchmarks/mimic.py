"""What a moment of training adds to a pruned and repaired network: run by hand, prints a table.

    python benchmarks/mimic.py --model resnet18
    python benchmarks/mimic.py --steps 300 --repair-samples 300 --model cifar_resnet:resnet20 ...

A network is pruned by default (relevance by epsilon over multiply-adds, in steps of 0.1, least squares) until 30, 50
and 70 % of the multiply-adds are saved. Rows: as it is; mimicking (`pruning.mimic`, no labels); training by cross
entropy on the labels of the same images, as many steps at the same learning rate, the last network taken; and the
first two again with `--repair-samples` images in all, of which only the reference samples have labels. Accuracy on
holdout images with its standard error, and the difference to the first row, image by image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial

import torch
import torch.nn.functional as F
from pxp_optimize.attribution import Composite, RuleSpec
from pxp_optimize.optimize.evaluation.evaluate import scores
from pxp_optimize.pruning import Graph, Masks, Plan, mimic, without_constants
from pxp_optimize.pruning.convolution import plain
from pxp_optimize.pruning.mimicking import IN_BATCH, LEARNING_RATE
from saved import Case, Found, arguments, case_of, measure
from torch import Tensor, nn

COMPOSITE = replace(Composite.uniform(RuleSpec("epsilon")), cost_exponent=1.0)
CLOSED = "closed form"


def pruned(case: Case) -> list[tuple[Graph, Masks]]:
    """The networks of a case, by default."""
    task = case.task

    def score(graph: Graph) -> dict[str, Tensor]:
        return {name: values for name, values in scores(task, COMPOSITE, graph).items() if name in case.only}

    for last in (0.7, 0.98):
        plan = Plan.make(case.graph, score, task.schedule, task.repair, last)
        rates = [case.part_saving(plan.ranking.masks, target) for target in case.targets]
        if rates[-1] <= last:
            break
    networks = plan.networks(case.graph, rates, task.repair)
    return [(graph, plan.ranking.masks(rate)) for graph, rate in zip(networks, rates, strict=True)]


Networks = Callable[[], list[tuple[Graph, Masks]]]


def closed(case: Case, networks: Networks) -> Iterator[Found]:
    """As they are."""
    for graph, _ in networks():
        yield case.measured(without_constants(graph.network))


def mimicked(case: Case, networks: Networks, steps: int) -> Iterator[Found]:
    """Trained to give what the unpruned network gives."""
    task = case.task
    for graph, masks in networks():
        found = mimic(
            case.graph, graph, masks, task.repair_images, steps, repair=task.repair_name, seed=case.options.seed
        )
        yield case.measured(without_constants(found.network))


def trained(case: Case, networks: Networks, steps: int) -> Iterator[Found]:
    """Trained by the labels."""
    for graph, _ in networks():
        yield case.measured(by_labels(case, copy.deepcopy(plain(graph.network)), steps))


def by_labels(case: Case, network: nn.Module, steps: int) -> nn.Module:
    """Cross entropy, Adam, half a cosine."""
    network.requires_grad_()
    optimizer = torch.optim.Adam([value for value in network.parameters() if value.numel()], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    reference = case.task.reference
    images, chance = reference.inputs[:], torch.Generator().manual_seed(case.options.seed)
    for _ in range(steps):
        rows = torch.randperm(len(images), generator=chance)[:IN_BATCH]
        optimizer.zero_grad()
        F.cross_entropy(network(images[rows]), reference.targets[rows]).backward()
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repair-samples", type=int, default=None)
    args = parser.parse_args()
    case = case_of(args)
    networks = cache(partial(pruned, case))
    rows = {
        CLOSED: partial(closed, case, networks),
        "mimic": partial(mimicked, case, networks, args.steps),
        "labels": partial(trained, case, networks, args.steps),
    }
    if args.repair_samples:
        more = case_of(args, repair_samples=args.repair_samples)
        others = cache(partial(pruned, more))
        rows[f"{CLOSED}, {args.repair_samples} images"] = partial(closed, more, others)
        rows[f"mimic, {args.repair_samples} images"] = partial(mimicked, more, others, args.steps)
    measure(args, case, rows, CLOSED)


if __name__ == "__main__":
    main()
