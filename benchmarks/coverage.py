"""Which architectures are accepted, and how exactly: one line of a Markdown table for each.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py [LIBRARY:NAME ...]

LIBRARY is tv (torchvision), timm or hf (a small configuration of Hugging Face transformers); without names, the whole
list. Weights are random, units are the default ones, ranked by relevance. Errors are parts of the largest logit.

units: how many, and of how many layers; "without": in how many of these none has any relevance (gates).
logits: the graph's against the model's.
masked: the largest difference of the compact network's logits from those of the model whose pruned units are zeroed by
    hooks on its own modules, with 10, 50 and 90 % of the units pruned (`hooked.py`).
conserved: by the epsilon rule with an epsilon of 1e-12, in double precision, where relevance of 1 at the target's logit
    goes: to the image (or, in networks that have no rule for what makes tokens, to the tokens), to biases and to
    constants (position embeddings, class tokens); and what is missing, as a part of the largest of these (or of 1).
    Attention as in `cp`, which conserves.
activation: by the same rule, in networks of ReLU, pooling and sums only, the largest difference of a layer's relevance
    from gradient times activation on the user's own modules, relative (L2).
parameters: what is left with 50 % of the units pruned, and what Torch-Pruning leaves at a ratio of 0.5 of each layer
    (`other_pruner.py`; "fails" also where the pruned network does not run).
seconds: for export, relevance of two images, and the compact network.
"""

from __future__ import annotations

import argparse
import copy
import pathlib
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from architectures import NAMES, build
from hooked import gradient_times_activation, places, pruned
from pxp_optimize.attribution import collect_relevance, load_composite
from pxp_optimize.pruning import compact_model, prune_masks, trace
from pxp_optimize.pruning.graph import Graph, logits_of
from pxp_optimize.pruning.modules import Activation, Affine, Constant, HeadSoftmax
from pxp_optimize.pruning.operations import Relevance, entry_of
from torch import Tensor, nn

RATES = (0.1, 0.5, 0.9)
RULES = {"low": "epsilon", "mid": "gamma", "high": "zplus", "classifier": "epsilon"}
MIXED = {"groups": {group: {"rule": rule} for group, rule in RULES.items()}}
PROPORTIONAL = {
    "groups": {group: {"rule": "epsilon", "epsilon": 1e-12} for group in RULES},
    "attention": {"softmax": "cp"},
}
LINEAR = (Relevance.RULE, Relevance.ROUTED, Relevance.SHARED, Relevance.PROPORTIONAL, Relevance.UNCHANGED)
SHIFTING = (Relevance.RULE, Relevance.PROPORTIONAL, Relevance.NORMALISED)
"""Of what may have a bias."""
SECONDS = 60
"""That Torch-Pruning may take for an architecture."""
HEADER = ("architecture", "units", "logits", "masked", "conserved", "activation", "parameters", "Torch-Pruning", "s")


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def row(name: str) -> list[str]:
    """The architecture's line, without what Torch-Pruning makes of it."""
    model, x = build(name)
    targets = torch.tensor([1, 7])
    graph, exported = timed(lambda: trace(model, x))
    relevance, explained = timed(lambda: collect_relevance(graph, MIXED, x, targets, units=None))
    if not all(bool(value.isfinite().all()) for value in relevance.values()):
        raise ValueError("relevance is not finite")
    count = sum(value.numel() for value in relevance.values())
    silent = sum(not bool(value.any()) for value in relevance.values())
    units = f"{count} {graph.default_units} in {len(relevance)}" + (f", {silent} without" if silent else "")
    with torch.no_grad():
        logits = error(graph.network(x), logits_of(model(x)))
    small, compacted = timed(lambda: compact_model(graph, prune_masks(relevance, 0.5)))
    left = parameters(small) / parameters(graph.network)
    exact = copy.deepcopy(model).double()
    return [
        units,
        f"{logits:.0e}",
        masked(model, graph, relevance, x),
        conserved(exact, x[:1].double(), targets[:1]),
        activation(exact, graph, x.double(), targets),
        f"{left:.0%}",
        f"{exported:.1f}, {explained:.1f}, {compacted:.1f}",
    ]


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a function gives, and how many seconds it takes."""
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def parameters(network: nn.Module) -> int:
    """How many weights and biases."""
    return sum(value.numel() for value in network.parameters())


@torch.no_grad()
def masked(model: nn.Module, graph: Graph, relevance: dict[str, Tensor], x: Tensor) -> str:
    """How far compact networks are from the model whose own modules' outputs are zeroed."""
    names = [name for name in relevance if graph.kinds[name] != "heads"]
    layers, errors = places(model, names, x), []
    for rate in RATES:
        masks = prune_masks(relevance, rate)
        found = compact_model(graph, masks)(x)
        try:
            with pruned(model, layers, graph.kinds, masks):
                errors.append(error(found, logits_of(model(x))))
        except LookupError as problem:
            return str(problem)
    return f"{max(errors):.0e}"


def conserved(model: nn.Module, x: Tensor, target: Tensor) -> str:
    """Where the relevance of one image's target goes."""
    graph = trace(model, x)
    ruleless = {
        name
        for name, module in graph.network.modules_by_step().items()
        if isinstance(module, nn.Conv2d) and name not in graph.groups
    }
    image, ends, constants, biases = x.clone().requires_grad_(), [], [], []

    def start_here(found: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def on_forward(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if not output.is_floating_point():
                return output
            found.append(output.detach().requires_grad_())
            return found[-1]

        return on_forward

    def cut(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.detach()  # so that biases between softmax and values take nothing, which `cp` gives to both

    def count_bias(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad and len(args) == 1:
            part = module.forward(torch.zeros_like(args[0])) / output.detach()
            output.register_hook(lambda relevance: biases.append((part * relevance).nan_to_num(0, 0, 0).sum()))

    ends.append(image)
    with load_composite(PROPORTIONAL).zennit(graph).context(graph.network):
        handles = []
        for name, module in graph.network.modules_by_step().items():
            if name in ruleless:
                handles.append(module.register_forward_hook(start_here(ends)))
            elif isinstance(module, HeadSoftmax):
                handles.append(module.register_forward_hook(cut))
            elif isinstance(module, Constant):
                handles.append(module.register_forward_hook(start_here(constants)))
            elif entry_of(module).relevance in SHIFTING or isinstance(module, Affine):
                handles.append(module.register_forward_hook(count_bias))
        logits = graph.network(image)
        logits.backward(torch.zeros_like(logits).scatter_(1, target[:, None], 1))
        for handle in handles:
            handle.remove()
    given, held = (sum(float(v.grad.sum()) for v in values if v.grad is not None) for values in (ends, constants))
    parts = given, float(sum(biases)), held
    missing = (1 - sum(parts)) / max(1.0, *map(abs, parts))
    return f"{', '.join(f'{part:.3g}' for part in parts)}; {missing:.0e}"


def activation(model: nn.Module, graph: Graph, x: Tensor, targets: Tensor) -> str:
    """How far relevance is from gradient times activation, where they are the same; otherwise a dash."""
    if not homogeneous(graph):
        return "-"
    expected = gradient_times_activation(model, places(model, list(graph.units(None)), x), x, targets, logits_of)
    found = collect_relevance(model, PROPORTIONAL, x, targets, units=None)
    return f"{max(float((found[k] - v).norm() / v.norm()) for k, v in expected.items()):.0e}"


def homogeneous(graph: Graph) -> bool:
    """Whether a network consists of linear operations, choices among values, and ReLU or leaky ReLU."""
    line = torch.linspace(-8, 8, 65)
    for module in graph.network.modules_by_step().values():
        if isinstance(module, Activation) and not torch.allclose(module(2 * line), 2 * module(line)):
            return False
        if entry_of(module).relevance not in LINEAR:
            return False
    return True


def torch_pruning(name: str) -> str:
    """What Torch-Pruning leaves of an architecture, in a process of its own."""
    script = pathlib.Path(__file__).with_name("other_pruner.py")
    try:
        done = subprocess.run([sys.executable, script, name], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"fails: takes more than {SECONDS} s"
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1]
    kind = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1].partition(":")[0]
    return f"fails: {kind}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="LIBRARY:NAME")
    names = parser.parse_args().names or NAMES
    warnings.simplefilter("ignore")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    accepted = 0
    for name in names:
        try:
            *cells, seconds = row(name)
            accepted += 1
        except Exception as problem:
            text = str(problem).splitlines()[0] if str(problem) else ""
            cells, seconds = [f"refused: {type(problem).__name__} {text}", *[""] * (len(HEADER) - 4)], ""
        print(f"| {' | '.join([name, *cells, torch_pruning(name), seconds])} |", flush=True)
    print(f"\n{accepted} of {len(names)} accepted")


if __name__ == "__main__":
    main()
