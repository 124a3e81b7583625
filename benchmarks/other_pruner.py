"""What Torch-Pruning makes of an architecture: prints what happened and the part of the parameters that is left.

    python benchmarks/other_pruner.py LIBRARY:NAME

Its `MagnitudePruner` by the magnitude of groups removes half of the channels of each layer, as its README shows; the
layers that give the classes stay. Nothing is done for single families (its examples replace timm's attention and name
the number of heads). `coverage.py` runs this in a process of its own for each architecture.
"""

from __future__ import annotations

import sys
import warnings

import torch
import torch_pruning
from architectures import CLASSES, build
from pxp_optimize.pruning.graph import logits_of
from torch import nn


def main() -> None:
    """Prunes and prints."""
    warnings.simplefilter("ignore")
    model, x = build(sys.argv[1])
    last = [
        module
        for module in model.modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == CLASSES
    ]
    before = parameters(model)
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        x,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        global_pruning=False,
        ignored_layers=last,
        output_transform=logits_of,
    )
    pruner.step()
    with torch.no_grad():
        logits = logits_of(model(x))
    if logits.shape != (len(x), CLASSES) or not bool(logits.isfinite().all()):
        raise ValueError("its logits are wrong")
    left = parameters(model) / before
    print(f"{left:.0%}" if left < 1 else "nothing removed")


def parameters(model: nn.Module) -> int:
    """How many weights and biases."""
    return sum(value.numel() for value in model.parameters())


if __name__ == "__main__":
    main()
