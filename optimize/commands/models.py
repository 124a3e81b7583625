"""`pxp-optimize models`: the networks that are known by name."""

from __future__ import annotations

import difflib
import fnmatch
from typing import TYPE_CHECKING

import click

from ...studies.errors import UserError
from ..lazy import LazyModule
from .help import command

if TYPE_CHECKING:
    from .. import models as networks
else:
    networks = LazyModule("..models", __package__)


@command(
    short_help="List the models that are supported.",
    examples=(
        ("pxp-optimize models", "all of them"),
        ("pxp-optimize models resnet", "those with resnet in their name"),
        ("pxp-optimize models 'vit_*'", "those whose names begin so"),
    ),
)
@click.argument("filter", required=False, default="")
def models(filter: str) -> None:
    """List the torchvision models that are supported, with their sizes and the units that can be pruned.

    FILTER is a part of a name, or a pattern such as 'resnet*'. Parameters and multiply-adds for an image are those of
    the default weights, with ImageNet's 1000 classes (vit_tiny: 10) and at their size of images.
    """
    names = networks.supported_models()
    pattern = filter if set(filter) & set("*?[") else f"*{filter}*"
    chosen = fnmatch.filter(names, pattern.lower())
    if not chosen:
        near = difflib.get_close_matches(filter, names, n=3, cutoff=0.4)
        raise UserError(f"no model is called {filter!r}" + (f"; nearest: {', '.join(near)}" if near else ""))
    click.echo(f"{'model':20} {'parameters':>10} {'multiply-adds':>14}  units")
    for name in chosen:
        units = units_of(name)
        if units:
            size = networks.size_of(name)
            click.echo(f"{name:20} {size.params / 1e6:8.2f} M {size.macs / 1e9:12.2f} G  {units}")


FAMILIES = {
    "vit_": "heads, neurons",
    **dict.fromkeys(("alexnet", "convnext", "mobilenet_v3", "vgg"), "filters, neurons"),
    "swin": "heads, neurons",
    "maxvit": "filters, heads, neurons",
}
"""The kinds of units of models whose names begin so; the others have filters."""


def units_of(model: str) -> str:
    """The kinds of units a torchvision model has, or nothing for one that is not supported."""
    return next((units for family, units in FAMILIES.items() if model.startswith(family)), "filters")
