"""`pxp-optimize models`: the networks that are known by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..lazy import LazyModule

if TYPE_CHECKING:
    from .. import models as networks
else:
    networks = LazyModule("..models", __package__)


@click.command(short_help="List the models that are supported.")
def models() -> None:
    """List the torchvision models that are supported, with the units that can be pruned."""
    for name in networks.supported_models():
        units = units_of(name)
        if units:
            click.echo(f"{name:24} {units}")


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
