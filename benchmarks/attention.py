"""What relevance costs in a vision transformer, and what pruning half of it saves: run by hand.

    python benchmarks/attention.py                                       # vit_b_16 at 224, batch 8
    python benchmarks/attention.py --model vit_tiny --size 32 --batch 64

Prints the wall time of one relevance pass as a ratio to a plain forward pass, alternating in one run, its peak
memory against a plain forward and backward pass, and parameters, MACs and latency of the compact model with half
of the heads, or half of the MLP neurons, gone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from pxp_optimize.attribution import Composite, RuleSpec, collect_relevance
from pxp_optimize.optimize.models import build_model
from pxp_optimize.pruning import compact_model, prune_masks, trace
from torch import nn
from trial import alternate, macs, peak_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_b_16")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--units", default="heads,neurons")
    parser.add_argument("--softmax", default="attnlrp,cp,zplus,zplus_bias")
    parser.add_argument("--rules", default="epsilon,gamma,zplus,alpha_beta")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model(args.model, 1000, args.size).eval().requires_grad_(False)
    for parameter in model.parameters():  # torchvision starts the head at zero, where nothing is relevant
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    graph = trace(model)
    inputs = torch.randn(args.batch, 3, args.size, args.size)
    targets = torch.randint(0, 1000, (args.batch,))

    def forward() -> None:
        with torch.inference_mode():
            model(inputs)

    def backward() -> None:
        model(inputs.clone().requires_grad_()).sum().backward()

    print(
        f"{args.model} at {args.size}, batch {args.batch}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    plain = peak_memory(backward)
    for units in args.units.split(","):
        for softmax in args.softmax.split(","):
            for rule in args.rules.split(","):
                composite = Composite.uniform(RuleSpec(rule), softmax=softmax)

                def relevance(composite: Composite = composite, units: str = units) -> Any:
                    return collect_relevance(graph, composite, inputs, targets, units, args.batch)

                seconds = alternate({"relevance": relevance, "forward": forward}, args.rounds)
                line = (
                    f"{units:8} {softmax:10} {rule:10} {seconds['relevance'] / seconds['forward']:5.2f} forward passes"
                )
                if rule == "epsilon":
                    memory = peak_memory(relevance)
                    line += f"   peak memory {memory:.0f} MiB, plain forward and backward {plain:.0f} MiB"
                print(line, flush=True)
    for units in args.units.split(","):
        relevance_ = collect_relevance(
            graph, Composite.uniform(RuleSpec("epsilon")), inputs, targets, units, args.batch
        )
        small = compact_model(graph, prune_masks(relevance_, 0.5))
        whole, less = ((_parameters(m), macs(m, inputs[:1])) for m in (graph.network, small))
        latency = alternate({"whole": lambda: _run(model, inputs), "small": _runner(small, inputs)}, args.rounds)
        print(
            f"half the {units}: parameters {less[0] / whole[0]:.1%}, MACs {less[1] / whole[1]:.1%}, "
            f"latency {latency['small'] / latency['whole']:.1%} of the whole model's"
        )


def _runner(model: nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    return lambda: _run(model, inputs)


@torch.inference_mode()
def _run(model: nn.Module, inputs: torch.Tensor) -> None:
    model(inputs)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
