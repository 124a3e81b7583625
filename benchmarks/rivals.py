"""Other ways to prune beside this one, at the same multiply-adds: run by hand, prints a table.

    python benchmarks/rivals.py --model resnet18
    python benchmarks/rivals.py --model resnet18 --only 'layer.*conv1' --search 40
    python benchmarks/rivals.py --model cifar_resnet:resnet20 --weights resnet20_cifar10.th --data cifar ...

Needs `pip install torch-pruning`. Every row prunes the same network by the same reference images, without labels for
repairs and without training, until 30, 50 and 70 % of the multiply-adds are saved (counted for all by
`pruning.macs`), and is measured on the same holdout images: accuracy with its standard error, and the difference to
the row `ours, macs` image by image with the standard error of that. `--only` restricts all rows to the layers whose
name matches, since Torch-Pruning and folding cannot prune everything that is pruned here.

Torch-Pruning cannot follow shortcuts that subsample and pad with zeros (CIFAR's ResNets). For it they are rewritten as
fixed convolutions, which give the same and are not counted.

Rows of others, as written here from their papers: `local` refits the layer behind a cut only, by ridge regression of
what is cut on what is left (GRAIL, arXiv 2602.23795, without and CORP, arXiv 2602.05243, with a constant); `folding`
(arXiv 2502.10216) merges channels of a layer that k-means puts together, the same share of every layer, and
re-estimates statistics. Folding is measured where a channel has readers of its own.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from pxp_optimize.attribution import Composite
from pxp_optimize.optimize.console import Screen
from pxp_optimize.optimize.evaluation.candidate import pruning_of
from pxp_optimize.optimize.evaluation.evaluate import Baseline, scores
from pxp_optimize.optimize.evaluation.phases import recorded
from pxp_optimize.optimize.models import load_model
from pxp_optimize.optimize.search.space import Space
from pxp_optimize.optimize.study.prepare import cache_folder
from pxp_optimize.optimize.study.run import run_study
from pxp_optimize.pruning import (
    Graph,
    Masks,
    Plan,
    Repair,
    Schedule,
    compact,
    macs,
    make_repair,
    register_repair,
    unit_prices,
    without_constants,
)
from pxp_optimize.pruning.compaction import Compactor, check_masks, live_rows
from pxp_optimize.pruning.network import clone
from pxp_optimize.pruning.repair.base import Chunks
from pxp_optimize.pruning.repair.batchnorm import BatchNormRepair
from pxp_optimize.studies.best import best_trial
from saved import Case, Found, arguments, case_of, measure
from torch import Tensor, nn

OURS = "ours, macs"
SHORTCUT = "fixed_shortcut"
RIDGE = 1e-2
"""Of `local`, in units of the mean squared activation."""
STEPS = 100
"""Steps in which Torch-Pruning goes, importance computed again at each."""

MODES = ("uniform", "global", "isomorphic")
"""Of Torch-Pruning: the same share of each layer, its default; all layers together; those of one form together."""

Scores = dict[str, Tensor]


def ranked(
    case: Case,
    method: Composite | Baseline,
    schedule: str = "every:0.1",
    repair: str = "least-squares",
    form: Callable[[Graph, Scores], Scores] = lambda graph, found: found,
) -> Iterator[Found]:
    """By a composite or a criterion, in steps or once, repaired. form: of the scores."""
    task = case.task
    mend = make_repair(repair, case.graph, task.repair_images)

    def score(graph: Graph) -> Scores:
        found = {name: values for name, values in scores(task, method, graph).items() if name in case.only}
        return form(graph, found)

    for last in (0.7, 0.98):
        plan = Plan.make(case.graph, score, Schedule.parse(schedule), mend, last)
        rates = [case.part_saving(plan.ranking.masks, target) for target in case.targets]
        if rates[-1] <= last:
            break
    for network in plan.networks(case.graph, rates, mend):
        yield case.measured(without_constants(network.network))


def priced(graph: Graph, found: Scores) -> Scores:
    """Over what each unit's removal saves."""
    prices = unit_prices(graph, found)
    return {name: values / prices[name].to(values) for name, values in found.items()}


def levelled(graph: Graph, found: Scores) -> Scores:
    """The same share of each layer."""
    return {name: values.argsort().argsort() / max(1, len(values)) for name, values in found.items()}


def searched(case: Case, trials: int) -> Iterator[Found]:
    """By the best composite of a search of so many trials, of the case's layers only at the end."""
    with tempfile.TemporaryDirectory() as folder, recorded() as phases:
        options = case.options.changed(trials=trials, storage=f"{folder}/rivals.db", quiet=True, study="rivals")
        study = run_study(options, case.prepared, phases, Screen(quiet=True))
    trial = best_trial(study)
    assert pruning_of(trial) is None
    print(f"searched: {trial.user_attrs['composite']}", file=sys.stderr)
    return ranked(case, Composite.from_dict(trial.user_attrs["composite"]))


# -- refitting the layer behind a cut only ------------------------------------------------------------------------


class Local(Repair):
    """Reads the unpruned network once: what is cut of a layer's input is predicted from what is left of it, channel by
    channel, and the prediction is put into the layer's weights. No layer sees what the others have become."""

    name = "local"
    constant = True

    @torch.no_grad()
    def __call__(self, graph: Graph, small: Graph, masks: Masks) -> Graph:
        masks = check_masks(graph, masks)
        compactor = Compactor(graph, masks)
        compactor.run()
        inputs = {step.name: step.inputs for step in graph.network.steps}
        left, modules = small.network.modules_by_step(), {}
        for visit in graph.network.walk(Chunks(self.inputs, 64)):
            layer = visit.module
            if not isinstance(layer, (nn.Conv2d, nn.Linear)) or getattr(layer, "groups", 1) > 1:
                continue
            state = compactor.states[inputs[visit.name][0]]
            if state is None or state.empty or visit.name not in left or state.size != layer.weight.shape[1]:
                continue
            values = torch.cat([given[0].movedim(state.dim, -1).flatten(0, -2) for given in visit.arguments])
            gone = torch.ones(state.size, dtype=torch.bool).index_fill_(0, state.live, False)
            x, y = values[:, state.live], values[:, gone]
            mean_x, mean_y = (x.mean(0), y.mean(0)) if self.constant else (x.new_zeros(1), y.new_zeros(1))
            x, y = x - mean_x, y - mean_y
            products = x.T @ x
            products.diagonal().add_(RIDGE * products.diagonal().mean().clamp(min=1e-12))
            predict = torch.linalg.solve(products, x.T @ y)  # (left, gone)
            rows = live_rows(graph, masks, visit.name)
            weight = layer.weight if rows is None else layer.weight[rows]
            of_gone = weight[:, gone]
            new = weight[:, state.live] + torch.einsum("og...,lg->ol...", of_gone, predict)
            bias = left[visit.name].bias
            if self.constant:
                shift = torch.einsum("og,g->o", of_gone.flatten(2).sum(2) if of_gone.dim() > 2 else of_gone, mean_y)
                shift -= torch.einsum(
                    "og,g->o", of_gone.flatten(2).sum(2) if of_gone.dim() > 2 else of_gone, mean_x @ predict
                )
                bias = shift if bias is None else bias + shift
            if new.shape == left[visit.name].weight.shape:
                modules[visit.name] = clone(left[visit.name], weight=new, bias=bias)
        return replace(small, network=small.network.replaced(modules))


class LocalWithoutConstant(Local):
    """The same without a constant."""

    name = "local-linear"
    constant = False


register_repair("local", Local)
register_repair("local-linear", LocalWithoutConstant)


# -- channel folding ----------------------------------------------------------------------------------------------


def folded(case: Case) -> Iterator[Found]:
    """Channels of each layer clustered by their weights, clusters merged, statistics re-estimated."""
    graph = case.graph
    readers = {name: found for name in sorted(case.only) if (found := _readers(graph, name))}

    def masks(part: float) -> Masks:
        sizes = {name: graph.sizes[name] for name in readers}
        return {name: torch.arange(size) < max(1, round(size * (1 - part))) for name, size in sizes.items()}

    for target in case.targets:
        kept = masks(case.part_saving(masks, target))
        modules, norms = graph.network.modules_by_step(), dict(graph.norms)
        chosen: Masks = {}
        for name, mask in kept.items():
            layer = modules[name]
            rows = layer.weight.flatten(1)
            cluster = kmeans(
                rows if layer.bias is None else torch.cat([rows, layer.bias.unsqueeze(1)], 1), int(mask.sum())
            )
            member = F.one_hot(cluster).to(rows.dtype)  # (units, clusters)
            member = member[:, member.sum(0) > 0]
            share = member / member.sum(0)
            first = member.argmax(0)  # which unit stands for the cluster
            chosen[name] = torch.zeros(len(rows), dtype=torch.bool).index_fill_(0, first, True)
            weight = layer.weight.clone()
            weight[first] = torch.einsum("uc,u...->c...", share, layer.weight)
            bias = layer.bias
            if bias is not None:
                bias = bias.clone()
                bias[first] = share.T @ layer.bias
            modules[name] = clone(layer, weight=weight, bias=bias)
            if name in norms:
                gamma, beta = norms[name].gamma.clone(), norms[name].beta.clone()
                gamma[first], beta[first] = share.T @ gamma, share.T @ beta
                norms[name] = replace(norms[name], gamma=gamma, beta=beta)
            for reader in readers[name]:
                weight = modules[reader].weight.clone()
                weight[:, first] = torch.einsum("uc,ou...->oc...", member, modules[reader].weight)
                modules[reader] = clone(modules[reader], weight=weight)
        merged = replace(graph, network=graph.network.replaced(modules), norms=norms)
        small = compact(merged, chosen)
        if graph.norms:
            small = BatchNormRepair(case.task.repair_images)(merged, small, chosen)
        yield case.measured(without_constants(small.network))


def _readers(graph: Graph, name: str) -> list[str]:
    """The layers that read a layer's channels, where nothing else does that keeps them apart or adds to them."""
    kept = torch.ones(graph.sizes[name], dtype=torch.bool)
    kept[0] = False
    compactor = Compactor(graph, check_masks(graph, {name: kept}))
    compactor.run()
    modules, found = graph.network.modules_by_step(), []
    for step in graph.network.steps:
        layer = modules[step.name]
        if all(compactor.states[slot] is None for slot in step.inputs):
            continue
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            if getattr(layer, "groups", 1) > 1 or layer.weight.shape[1] != len(kept):
                return []
            found.append(step.name)
        elif compactor.states[step.output] is None:  # a sum with what has the channel
            return []
    return found


def kmeans(rows: Tensor, count: int, rounds: int = 50) -> Tensor:
    """Which of `count` clusters each row belongs to: Lloyd's, from rows that are far apart (k-means++, seeded)."""
    generator = torch.Generator().manual_seed(0)
    centres = rows[torch.randint(len(rows), (1,), generator=generator)]
    while len(centres) < count:
        far = torch.cdist(rows, centres).min(1).values.square()
        pick = torch.multinomial(far, 1, generator=generator) if bool(far.sum() > 0) else torch.tensor([len(centres)])
        centres = torch.cat([centres, rows[pick]])
    for _ in range(rounds):
        cluster = torch.cdist(rows, centres).argmin(1)
        member = F.one_hot(cluster, count).to(rows.dtype)
        held = member.sum(0).unsqueeze(1)
        centres = torch.where(held > 0, member.T @ rows / held.clamp(min=1), centres)
    return cluster


# -- Torch-Pruning ------------------------------------------------------------------------------------------------


def torch_pruned(case: Case, importance: str, mode: str) -> list[tuple[float, nn.Module]]:
    """By Torch-Pruning in one of its `MODES`, importance computed again at each of `STEPS` steps: for each target, what
    the nearest network saves, and that network."""
    import torch_pruning

    model = rewritten(fresh(case))
    kinds = {
        "magnitude": partial(torch_pruning.importance.GroupMagnitudeImportance, p=2),
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }
    classes = case.graph.network.shapes()[case.graph.network.result][1]
    keep = [
        module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
        and (name not in case.graph.sizes or (name not in case.only) or getattr(module, "out_features", 0) == classes)
        and SHORTCUT not in name
    ]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        case.image,
        importance=kinds[importance](),
        pruning_ratio=1.0,
        global_pruning=mode != "uniform",
        isomorphic=mode == "isomorphic",
        iterative_steps=STEPS,
        ignored_layers=keep,
    )
    reference, whole = case.task.reference, _counted(model, case.image)
    best: dict[float, tuple[float, nn.Module]] = {}
    for _ in range(STEPS):
        if importance == "taylor":
            model.zero_grad()
            F.cross_entropy(model(reference.inputs[:]), reference.targets).backward()
        pruner.step()
        saved = 1 - _counted(model, case.image) / whole
        for target in case.targets:
            if target not in best or abs(saved - target) < abs(best[target][0] - target):
                model.zero_grad()
                best[target] = saved, copy.deepcopy(model)
        if saved > case.targets[-1] + 0.05:
            break
    return [best[target] for target in case.targets]


def of_torch_pruning(
    case: Case, networks: Callable[[], list[tuple[float, nn.Module]]], batchnorm: bool
) -> Iterator[Found]:
    """Torch-Pruning's networks as they are, or with BatchNorm re-estimated."""
    for saved, network in networks():
        if batchnorm:
            network = copy.deepcopy(network)
            reestimate(network, case.task.repair_images[:])
        yield saved, case.measured(network.eval())[1]


def fresh(case: Case) -> nn.Module:
    """The model again, as the study loaded it, in eval mode."""
    options = case.options
    model = load_model(
        options.model,
        options.weights,
        case.prepared.source.dataset,
        cache=cache_folder(),
        image_size=options.image_size,
        resize=options.resize,
        mean=options.mean,
        std=options.std,
        device=torch.device("cpu"),
    )
    return copy.deepcopy(model.module).eval().requires_grad_()


def rewritten(model: nn.Module) -> nn.Module:
    """The model with padded shortcuts as fixed convolutions. A block has one where it says `more`, for channels."""

    def forward(block: Any, x: Tensor) -> Tensor:
        y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        return F.relu(getattr(block, SHORTCUT)(x) + y)

    for block in model.modules():
        if getattr(block, "more", 0):
            inputs = block.conv1.in_channels
            layer = nn.Conv2d(inputs, inputs + block.more, 1, block.stride, bias=False)
            nn.init.zeros_(layer.weight)
            with torch.no_grad():
                layer.weight[torch.arange(inputs) + block.more // 2, torch.arange(inputs)] = 1
            setattr(block, SHORTCUT, layer)
            block.forward = types.MethodType(forward, block)
    return model


@torch.no_grad()
def _counted(model: nn.Module, image: Tensor) -> float:
    """Multiply-adds without those of rewritten shortcuts."""
    extra = 0.0

    def note(layer: Any, given: object, output: Tensor) -> None:
        nonlocal extra
        extra += output.numel() * layer.in_channels

    handles = [module.register_forward_hook(note) for name, module in model.named_modules() if name.endswith(SHORTCUT)]
    total = macs(model, image)
    for handle in handles:
        handle.remove()
    return total - extra


@torch.no_grad()
def reestimate(model: nn.Module, images: Tensor) -> None:
    """Statistics of BatchNorms over the images."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    model(images)
    model.eval()


# -- the table ----------------------------------------------------------------------------------------------------


def rows_of(case: Case, search: int) -> dict[str, Callable[[], Iterator[Found]]]:
    """What is measured, by name."""
    fixed = Space.named("auto", case.prepared.layers, True, mixed="+" in case.task.units).fixed_composites()
    plain = fixed["epsilon"]
    by_price = replace(plain, cost_exponent=1.0)
    seed = case.options.seed
    found: dict[str, Callable[[], Iterator[Found]]] = {}
    for kind in ("magnitude", "taylor"):
        for mode in MODES:
            networks = cache(partial(torch_pruned, case, kind, mode))
            for batchnorm in (False, True):
                name = f"Torch-Pruning, {kind}, {mode}{', BatchNorm' if batchnorm else ''}"
                found[name] = partial(of_torch_pruning, case, networks, batchnorm)
    for name, method in {"magnitude": Baseline("magnitude", seed), "relevance": plain}.items():
        for repair in ("none", "local-linear", "local", "least-squares"):
            found[f"{name}, once, {repair}"] = partial(ranked, case, method, "oneshot", repair)
    for repair in ("batchnorm", "local-linear", "local", "local+batchnorm", "least-squares"):
        if "batchnorm" in repair and not case.graph.norms:
            continue
        name = f"magnitude, the same share of each layer, once, {repair}"
        found[name] = partial(ranked, case, Baseline("magnitude", seed), "oneshot", repair, levelled)
    for repair in ("local", "local+batchnorm", "least-squares"):
        found[f"relevance / macs, once, {repair}"] = partial(ranked, case, by_price, "oneshot", repair)
    found["folding, BatchNorm"] = partial(folded, case)
    found["Taylor, our steps and repair"] = partial(ranked, case, Baseline("taylor", seed))
    found["Taylor / macs, our steps and repair"] = partial(ranked, case, Baseline("taylor", seed), form=priced)
    found["ours, auc"] = partial(ranked, case, plain)
    found[OURS] = partial(ranked, case, by_price)
    if search:
        found[f"ours, macs, {search} trials"] = partial(searched, case, search)
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--search", type=int, default=0, help="trials of a search, as a row of its own")
    args = parser.parse_args()
    case = case_of(args)
    measure(args, case, rows_of(case, args.search), OURS)


if __name__ == "__main__":
    main()
