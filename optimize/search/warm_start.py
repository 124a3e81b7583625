"""Composites that a study tries before its sampler proposes any: those of the literature, and an earlier study's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...attribution import GROUPS, Composite, CompositeError, load_composite
from ...attribution.composites import ATTENTION_TYPES, keys_of, resolve
from ...studies.errors import UserError
from .space import FIXED, Layers, Space

# Uniform, the best rule with one number in our measurements (benchmarks/README.md): 0.04 above epsilon in the area.
RELATIVE: Mapping[str, Any] = {"rule": "epsilon_relative", "epsilon": 0.1}
EPSILON, ZPLUS, ALPHA_BETA, GAMMA = (FIXED[name] for name in ("epsilon", "zplus", "alpha2-beta1", "gamma0.25"))
# The same ranking but for rounding, in the terms of the usual spaces: what a sampler is to learn from needs parameters.
SMALL: Mapping[str, Any] = {"rule": "epsilon_relative", "epsilon": 1e-3}

MIXED: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "epsilon-relative0.1": dict.fromkeys(GROUPS, RELATIVE),
    # One rule below the classifier (Kohlbrenner et al. 2020, arXiv 1910.09840; zennit's composites of these names).
    "epsilon-plus": {"low": ZPLUS, "mid": ZPLUS, "high": ZPLUS, "classifier": EPSILON},
    "epsilon-gamma": {"low": GAMMA, "mid": GAMMA, "high": GAMMA, "classifier": EPSILON},
    "epsilon-alpha2-beta1": {"low": ALPHA_BETA, "mid": ALPHA_BETA, "high": ALPHA_BETA, "classifier": EPSILON},
    # The deeper, the closer to the gradient (Montavon et al. 2019, section 10.2.2).
    "epsilon-high-gamma": {"low": GAMMA, "mid": GAMMA, "high": EPSILON, "classifier": EPSILON},
}
"""Composites that are known to be good: a rule for each depth. Few, so that a short study searches too."""
SIGNED = "alpha2-beta1-signed"
"""The fixed composite of this rule, ranked by what is left where samples contradict each other. By alpha-beta that is
much better (benchmarks/README.md); a sampler that begins with absolute values only finds it late."""


def mixed_composites(space: Space) -> dict[str, Composite]:
    """The composites of `MIXED` by name, without those that are a fixed one in a network with fewer depths. Epsilon is
    relative where the space has no other.

    And the signed one; where units have prices, by which it is worst, each of the others with the exponent 0.5
    instead, between those that the fixed ones have."""
    fixed = space.fixed_composites()
    found = {} if space.prices else {SIGNED: replace(fixed["alpha2-beta1"], aggregation="signed")}
    searched = {rule for part in space.parts for rule in part.rules}
    small = "epsilon_relative" in searched and "epsilon" not in searched
    for name, rules in MIXED.items():
        composite = space.composite(
            {depth: SMALL if small and rule is EPSILON else rule for depth, rule in rules.items()}
        )
        if composite not in fixed.values() and composite not in found.values():
            found[name] = composite
    return found if space.prices is None else space.prices.known(found, 0.5)


def read_earlier(path: str | Path) -> Composite:
    """The composite of a `pxp-composite/1` file, for whatever network it was found.

    Raises:
        UserError: no such file, or no composite.
    """
    try:
        return load_composite(path)
    except OSError as error:
        raise UserError(f"--from: cannot read {path}: {error.strerror or error}") from error
    except CompositeError as error:
        raise UserError(f"--from {path}: {error}") from error


def earlier_composite(path: str | Path, space: Space, network: Layers, name: str) -> Composite:
    """The composite of a `pxp-composite/1` file, such as an earlier study's, for a network and a space.

    name: of the space, for the message. Numbers outside of the space's ranges and rules that it lacks are kept:
    the composite is tried as it is.

    Raises:
        UserError: no such file, no composite, one that does not fit the network, or one whose rules differ within
            a part of the space.
    """
    earlier = read_earlier(path)
    try:
        composite = fitted(earlier, network)
    except CompositeError as error:
        raise UserError(f"--from {path}: {error}") from error
    try:
        space.params_of(composite)
    except CompositeError as error:
        finer = "layer" if composite.layers else "type"
        raise UserError(f"--from {path}: {error} in --space {name}: give --space {finer}") from error
    return composite


def fitted(composite: Composite, network: Layers) -> Composite:
    """The composite as far as it speaks of a network, which may be another one than it was found for.

    Rules of single layers are kept where they are all layers of the network and say more than the groups do.
    Types of layers that the network lacks are left out, and so is attention without any. Times of another network's
    layers are no prices: multiply-adds are.

    Raises:
        CompositeError: it has no rule for some layer of the network.
    """
    groups, types = ({name: layer[key] for name, layer in network.items()} for key in ("group", "type"))
    keys = {key for name in network for key in keys_of(groups[name], types[name])}
    if composite.paces and not network.keys() <= composite.paces.keys():
        composite = replace(composite, cost="macs", paces={})
    kept = {key: spec for key, spec in composite.groups.items() if key in keys}
    general = replace(composite, groups=kept, layers={})
    if not set(types.values()) & set(ATTENTION_TYPES):
        general = replace(general, softmax=None, bias="whole")
    own = replace(general, layers=composite.layers) if set(composite.layers) <= set(network) else general
    if not own.groups and not own.layers:
        raise CompositeError("its layers are those of another network, and it has no groups that fit this one")
    specs = resolve(own, groups, types)
    try:
        return general if resolve(general, groups, types) == specs else own
    except CompositeError:
        return own
