"""Composites of zennit on a graph's network, whose sums and activations are modules of our own."""

from __future__ import annotations

from typing import Any

from torch import nn
from zennit.core import Composite as ZennitComposite
from zennit.core import Hook
from zennit.layer import Sum

from ..pruning.modules import Activation, Add, ScatterAdd
from .rules import Share, ShareScattered

STAND_INS: dict[type[nn.Module], nn.Module] = {Activation: nn.ReLU(), Add: Sum(), ScatterAdd: Sum()}
"""What zennit knows the steps as: a residual sum as what its canonizers make of one."""
SUMS: dict[type[nn.Module], type[Hook]] = {Add: Share, ScatterAdd: ShareScattered}


def on_graph(composite: ZennitComposite) -> ZennitComposite:
    """The composite with the same rules for a graph's network as zennit has for the model with its canonizer.

    Zennit's rule for a sum is the epsilon rule, over a dimension that its own module stacks the summands in; here it is
    `Share`, the same for the module that sums them.
    """

    def hook(context: dict, name: str, module: nn.Module) -> Any:
        found = composite.module_map(context, name, module)
        stand_in = STAND_INS.get(type(module))
        if found is not None or stand_in is None:
            return found
        found = composite.module_map(context, name, stand_in)
        return SUMS[type(module)]() if found is not None and type(module) in SUMS else found

    return ZennitComposite(module_map=hook)
