"""Composites that come from elsewhere: mixed ones of the literature, and those of earlier studies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pxp_optimize.attribution import Composite, CompositeError
from pxp_optimize.attribution.composites import resolve
from pxp_optimize.optimize.search.space import HALF_PRICED, Prices, Space
from pxp_optimize.optimize.search.warm_start import MIXED, SIGNED, SMALL, earlier_composite, fitted, mixed_composites
from pxp_optimize.pruning import Pace
from pxp_optimize.studies.errors import UserError

RESNET = {
    "conv1": {"group": "low", "type": "stem"},
    "layer2.conv1": {"group": "mid", "type": "3x3"},
    "layer2.downsample": {"group": "mid", "type": "downsample"},
    "layer4.conv1": {"group": "high", "type": "3x3"},
    "fc": {"group": "classifier", "type": "linear"},
}
VGG = {
    "features.0": {"group": "low", "type": "stem"},
    "features.3": {"group": "mid", "type": "3x3"},
    "features.6": {"group": "high", "type": "3x3"},
    "classifier.0": {"group": "classifier", "type": "linear"},
}
SHALLOW = {"conv": {"group": "low", "type": "stem"}, "mid": {"group": "mid", "type": "3x3"}}
EPSILON, GAMMA, ZPLUS = {"rule": "epsilon", "epsilon": 1e-6}, {"rule": "gamma", "gamma": 0.3}, {"rule": "zplus"}
DEPTHS = {"low": GAMMA, "mid": ZPLUS, "high": ZPLUS, "classifier": EPSILON}
TYPES = {"low.stem": GAMMA, "mid.3x3": ZPLUS, "mid.downsample": EPSILON, "high.3x3": ZPLUS, "classifier": EPSILON}


def of(network: dict, name: str = "depth") -> Space:
    return Space.named(name, network, True, mixed=False)


def rules(composite: Composite, network: dict) -> dict[str, dict[str, Any]]:
    groups, types = ({name: layer[key] for name, layer in network.items()} for key in ("group", "type"))
    return {name: spec.to_dict() for name, spec in resolve(composite, groups, types).items()}


@pytest.mark.parametrize("space", ["depth", "type", "layer", "paper"])
def test_mixed_composites_fit_every_space(space):
    found = mixed_composites(of(RESNET, space))
    assert list(found) == [SIGNED, *MIXED]
    small = SMALL if space in ("depth", "type") else EPSILON
    assert rules(found["epsilon-plus"], RESNET) == {**dict.fromkeys(RESNET, ZPLUS), "fc": small}
    assert rules(found["epsilon-high-gamma"], RESNET)["layer4.conv1"] == small
    known = of(RESNET, space).params_of(found["epsilon-high-gamma"]) is not None
    assert known == (space != "layer")  # so that the sampler learns from it
    assert found[SIGNED].aggregation == "signed"
    assert {composite.aggregation for name, composite in found.items() if name != SIGNED} == {"abs"}


def test_times_of_another_network_are_no_prices():
    general = Composite.from_dict({"groups": DEPTHS})
    timed = replace(general, cost_exponent=0.5, cost="latency", paces=dict.fromkeys(RESNET, Pace(1e-9)))
    assert fitted(timed, RESNET) == timed
    assert fitted(timed, VGG) == replace(general, cost_exponent=0.5)


def test_mixed_composites_with_prices():
    space = Space.named("depth", RESNET, True, mixed=False, prices=Prices("params"))
    found = mixed_composites(space)
    assert list(found) == [*MIXED, *(f"{name}{HALF_PRICED}" for name in MIXED)]
    for name in MIXED:
        plain, priced = found[name], found[f"{name}{HALF_PRICED}"]
        assert (plain.cost_exponent, priced.cost_exponent, priced.cost) == (0, 0.5, "params")
        assert priced.groups == plain.groups


def test_mixed_composites_that_are_uniform_are_no_new_ones():
    # which are uniform, and not fixed
    assert list(mixed_composites(of(SHALLOW))) == [SIGNED, "epsilon-relative0.1"]


def test_an_earlier_study_of_the_same_network():
    document = {"groups": DEPTHS, "layers": rules(Composite.from_dict({"groups": DEPTHS}), RESNET)}
    assert fitted(Composite.from_dict(document), RESNET) == Composite.from_dict({"groups": DEPTHS})


def test_rules_of_single_layers_are_kept_where_they_say_more():
    layers = {**rules(Composite.from_dict({"groups": DEPTHS}), RESNET), "conv1": EPSILON}
    composite = fitted(Composite.from_dict({"groups": DEPTHS, "layers": layers}), RESNET)
    assert rules(composite, RESNET) == layers
    alone = fitted(Composite.from_dict({"layers": layers}), RESNET)
    assert rules(alone, RESNET) == layers


def test_groups_go_over_to_another_network():
    layers = rules(Composite.from_dict({"groups": DEPTHS}), RESNET)
    composite = fitted(Composite.from_dict({"groups": DEPTHS, "layers": layers}), VGG)
    assert rules(composite, VGG) == dict(zip(VGG, DEPTHS.values(), strict=True))
    # of types, those that the network has
    composite = fitted(
        Composite.from_dict({"groups": TYPES, "layers": rules(Composite.from_dict({"groups": TYPES}), RESNET)}), VGG
    )
    assert rules(composite, VGG)["features.3"] == ZPLUS
    attention = Composite.from_dict({"groups": DEPTHS, "attention": {"softmax": "cp", "bias": "split"}})
    assert fitted(attention, VGG) == Composite.from_dict({"groups": DEPTHS})


def test_what_does_not_go_over_is_named():
    with pytest.raises(CompositeError, match="layers are those of another network"):
        fitted(Composite.from_dict({"layers": {"conv1": EPSILON}}), VGG)
    found_for_vgg = {"low": GAMMA, "mid.3x3": ZPLUS, "high": ZPLUS, "classifier": EPSILON}
    with pytest.raises(CompositeError, match=r"groups\.mid: no rule for it, which layer layer2\.downsample needs"):
        fitted(Composite.from_dict({"groups": found_for_vgg}), RESNET)


@pytest.mark.parametrize(
    ("content", "space", "message"),
    [
        (None, "depth", "cannot read"),
        ("{", "depth", "not a JSON document"),
        (json.dumps({"groups": {"low": {"rule": "sharp"}}}), "depth", "groups.low.rule: unknown rule"),
        (json.dumps({"groups": {"low": GAMMA}}), "depth", "groups.mid: no rule"),
        (json.dumps({"groups": TYPES}), "depth", "share mid in --space depth: give --space type"),
        (
            json.dumps({"groups": DEPTHS, "layers": {"layer2.conv1": GAMMA}}),
            "depth",
            "layers layer2.conv1 and layer2.downsample have different rules but share mid in --space depth: "
            "give --space layer",
        ),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, content, space, message):
    path = tmp_path / "best.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        earlier_composite(path, of(RESNET, space), RESNET, space)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_space_lacks_is_kept(tmp_path: Path):
    path = tmp_path / "best.json"
    far = {**DEPTHS, "low": {"rule": "gamma", "gamma": 1000.0}}
    path.write_text(json.dumps({"groups": far, "ranking": {"normalization": "l2"}}))
    for name in ("depth", "type", "layer", "paper"):
        composite = earlier_composite(path, of(RESNET, name), RESNET, name)
        assert composite.groups["low"].parameters == {"gamma": 1000.0}
        assert composite.normalization == "l2"
