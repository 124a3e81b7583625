"""Rules of the layer that reads the image, against zennit's own, on layers and in composites."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import zennit.rules
from pxp_optimize.attribution import Composite, CompositeError, RuleSpec, load_composite
from pxp_optimize.attribution.rules import Flat, LinearRule, WSquare, ZBox
from pxp_optimize.pruning.graph import trace
from torch import Tensor, nn
from zennit.core import Hook

LOW, HIGH = [-2.0, -1.5, -1.0, -3.0], [2.5, 1.5, 2.0, 3.0]
LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3), (3, 4, 7, 6)),
    "padded, no bias": (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), (3, 4, 7, 6)),
    "strided": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0)), (3, 4, 7, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 7, 6)),
    "linear": (lambda: nn.Linear(9, 5), (3, 9)),
}
RULES = {
    "flat": (lambda: Flat(), lambda: zennit.rules.Flat()),
    "wsquare": (lambda: WSquare(), lambda: zennit.rules.WSquare()),
    "zbox": (lambda: ZBox(-2.0, 3.0), lambda: zennit.rules.ZBox(-2.0, 3.0)),
    "zbox, channels": (
        lambda: ZBox(LOW, HIGH),
        lambda: zennit.rules.ZBox(*(torch.tensor(of).view(1, 4, 1, 1) for of in (LOW, HIGH))),
    ),
}


def relevance(layer: nn.Module, hook: Hook, x: Tensor) -> Tensor:
    """Of the layer's input, where that of its outputs is their positive part."""
    x = x.clone().requires_grad_()
    handles = hook.register(layer)
    out = layer(x)
    (found,) = torch.autograd.grad(out, x, out.detach().clamp(min=0))
    handles.remove()
    return found


@pytest.mark.parametrize(
    ("kind", "rule"),
    [(kind, rule) for kind in LAYERS for rule in RULES if kind != "linear" or rule != "zbox, channels"],
)
def test_a_layer_passes_what_zennits_rule_passes(kind, rule):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64)
    ours, theirs = (hook() for hook in RULES[rule])
    assert isinstance(ours, LinearRule)
    expected = relevance(layer, theirs.copy(), x)
    torch.testing.assert_close(relevance(layer, ours, x), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(relevance(layer, ours.reference(), x), expected, rtol=1e-9, atol=1e-12)
    assert expected.abs().sum() > 0


@pytest.mark.parametrize("rule", ["flat", "zbox"])
def test_relevance_is_conserved(rule):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3).double()  # without padding, since zeros may lie outside of the bounds
    x = torch.rand(3, 4, 7, 6, dtype=torch.float64) - 0.5
    out = layer(x).clamp(min=0).sum().detach()
    found = relevance(layer, RULES[rule][0](), x).sum()
    assert float(found) == pytest.approx(float(out), rel=1e-4)


SPECS: dict[str, dict[str, Any]] = {
    "flat": {"rule": "flat"},
    "wsquare": {"rule": "wsquare"},
    "zbox": {"rule": "zbox", "low": LOW[:3], "high": 3},
}


@pytest.mark.parametrize("rule", SPECS)
def test_a_composite_with_the_rule_gives_zennits_heat_maps(rule, residual, images):
    composite = load_composite(
        {
            "groups": {
                "low.stem": SPECS[rule],
                **{group: {"rule": "gamma"} for group in ("low", "mid", "high")},
                "classifier": {"rule": "epsilon"},
            }
        }
    )
    x, targets = images
    graph = trace(residual, x[:2])
    found = []
    for reference in (False, True):
        inputs = x.clone().requires_grad_()
        with composite.zennit(graph, reference=reference).context(graph.network):
            graph.network(inputs).gather(1, targets[:, None]).sum().backward()
        found.append(inputs.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert found[0].abs().sum() > 0


def test_bounds_are_numbers_or_one_for_each_channel():
    composite = load_composite({"groups": {"low": SPECS["zbox"]}})
    assert composite.groups["low"] == RuleSpec("zbox", {"low": (-2.0, -1.5, -1.0), "high": 3.0})
    again = json.loads(json.dumps(composite.to_dict()))
    assert again["groups"]["low"] == {"rule": "zbox", "low": [-2.0, -1.5, -1.0], "high": 3.0}
    assert load_composite(again) == composite


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"rule": "zbox", "high": 1}, r"groups\.low\.low: must be a number, not None"),
        ({"rule": "zbox", "low": [], "high": 1}, r"groups\.low\.low: .* not an empty list"),
        ({"rule": "zbox", "low": [0, "x", 0], "high": 1}, r"groups\.low\.low\.1: must be a number, not 'x'"),
        ({"rule": "zbox", "low": [0, 0], "high": [1, 1, 1]}, "groups.low: low is of 2 channels, high of 3"),
        ({"rule": "zbox", "low": [0, 1], "high": 2}, r"groups\.low\.low\.1: must be in \[-1e\+06, 0\], not 1"),
        ({"rule": "flat", "low": 1}, r"groups\.low\.low: unknown key"),
        ({"rule": "gamma", "gamma": [0.1]}, r"groups\.low\.gamma: must be a number"),
    ],
)
def test_what_is_no_rule_is_refused(spec, message):
    with pytest.raises(CompositeError, match=message):
        load_composite({"groups": {"low": spec}})


def test_bounds_of_other_channels_are_refused(residual, images):
    composite = Composite.uniform(RuleSpec("zbox", {"low": (0.0, 0.0), "high": (1.0, 1.0)}))
    graph = trace(residual, images[0][:2])
    with (
        pytest.raises(ValueError, match="bounds for 2 channels, and its layer 3"),
        composite.zennit(graph).context(graph.network),
    ):
        pass
