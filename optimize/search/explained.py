"""What a search of heat maps tries besides: rules for the layer that reads the image, and composites that are known for
heat maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...attribution import GROUPS, Composite
from ..evaluation.task import Images
from .space import FIXED, SEARCHED_RULES, Layers, Part, Space
from .warm_start import ALPHA_BETA, EPSILON, GAMMA, MIXED, ZPLUS

INPUT = "low.stem"
"""The group of the layer that reads the image, where that is a convolution which takes a rule."""
ZBOX = "zbox"


def pixel_bounds(images: Images) -> dict[str, tuple[float, ...]]:
    """The lowest and the highest value that a pixel may have as the network takes it, by channel: black and white, or
    of inputs without a known scale what these images have."""
    if images.mean is None or images.std is None:
        batch = images[0 : len(images)].transpose(0, 1).flatten(1)
        low, high = batch.amin(1).clamp(max=0), batch.amax(1).clamp(min=0)
    else:
        low, high = ((end - images.mean) / images.std for end in (0.0, 1.0))
    return {name: tuple(of.flatten().tolist()) for name, of in (("low", low), ("high", high))}


def input_part(network: Layers) -> Part | None:
    """The part of a space that the layer which reads the image is; None where none takes a rule as such."""
    if all(f"{layer['group']}.{layer['type']}" != INPUT for layer in network.values()):
        return None
    return Part(INPUT, {**SEARCHED_RULES, "flat": None, "wsquare": None, ZBOX: None})


ATTNLRP: Mapping[str, Any] = {"rule": "gamma", "gamma": 0.05}
"""Of all linear layers of a vision transformer, as the authors of AttnLRP use it with their rule for the softmax."""
KNOWN: Mapping[str, tuple[Mapping[str, Any], str]] = {
    # zennit's composites of these names, and the one with z-box in the place of its flat rule
    "epsilon-plus-flat": (ZPLUS, "flat"),
    "epsilon-alpha2-beta1-flat": (ALPHA_BETA, "flat"),
    "epsilon-gamma-box": (GAMMA, ZBOX),
    "epsilon-plus-wsquare": (ZPLUS, "wsquare"),
    "epsilon-plus-box": (ZPLUS, ZBOX),
}
"""By name: the rule between the input and the classifier, which has epsilon's, and the input's."""


def known_heat_maps(space: Space, network: Layers, bounds: Mapping[str, Any]) -> dict[str, Composite]:
    """Composites that are known for heat maps, by name: uniform ones, mixed ones, and where a layer reads the image
    those that give it a rule of its own."""
    found = {name: space.composite(dict.fromkeys(GROUPS, rule)) for name, rule in FIXED.items()}
    for name, rules in MIXED.items():
        composite = space.composite(rules)
        if composite not in found.values():
            found[name] = composite
    if space.transformer:
        found["attnlrp-gamma"] = space.composite(dict.fromkeys(GROUPS, ATTNLRP))
    if input_part(network) is None:
        return found
    depths = dict.fromkeys(layer["group"] for layer in network.values())
    for name, (rule, first) in KNOWN.items():
        groups = {depth: EPSILON if depth == "classifier" else rule for depth in depths}
        groups[INPUT] = {"rule": first, **(bounds if first == ZBOX else {})}
        more: dict[str, Any] = {"attention": {"softmax": "attnlrp"}} if space.transformer else {}
        found[name] = Composite.from_dict({"groups": groups, **more})
    return found
