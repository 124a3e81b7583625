"""How much goes: every way to say it gives the smallest network that does what it says, and no smaller one."""

from __future__ import annotations

import math

import pytest
import torch
from pxp_optimize.optimize.study.amount import Amount, Pruner
from pxp_optimize.pruning import COSTS, Plan, Schedule, compact, macs, make_repair, params, trace
from torch import nn

IMAGES = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 24, 3, bias=False), nn.ReLU()]
    return trace(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3)).eval(), IMAGES[:2])


def pruner(graph, schedule="oneshot", repair="none", cost=None, curve=None, steps=None) -> Pruner:
    """steps: gets how many units there were at each ranking."""
    sizes = graph.units("filters")
    steps = [] if steps is None else steps

    def score(network):
        steps.append(sum(network.sizes[name] for name in sizes))
        # upwards and downwards in turn: the order is another one after each step
        upwards = len(steps) % 2 == 1
        return {
            name: torch.arange(network.sizes[name]).float() * (1 if upwards else -1) + index / 2
            for index, name in enumerate(sizes)
        }

    made = make_repair(repair, graph, IMAGES)

    def plan(last, enough=None):
        steps.clear()
        return Plan.make(graph, score, Schedule.parse(schedule), made, last, enough)

    return Pruner(graph, made, plan, sizes, IMAGES[:1], curve, cost)


@pytest.mark.parametrize("schedule", ["oneshot", "every:0.1", "every:0.35"])
@pytest.mark.parametrize(("kind", "value"), [("max_params", 1500), ("max_macs", 150_000), ("saved", 0.6)])
def test_the_smallest_rate_that_is_enough(graph, schedule, kind, value):
    cost = macs if kind in ("max_macs", "saved") else params
    limit = 0.4 * macs(graph.network, IMAGES) if kind == "saved" else value
    prune = pruner(graph, schedule, cost=COSTS["macs"] if kind == "saved" else None)
    found = prune(Amount(kind, value))
    assert cost(found.graph.network, IMAGES) <= limit
    again = prune(Amount("rate", found.rate))  # the rate is what --rate takes
    assert {name: kept.tolist() for name, kept in again.masks.items()} == {
        name: kept.tolist() for name, kept in found.masks.items()
    }
    units = sum(prune.sizes.values())
    one_less = (math.floor(found.rate * units + 1e-9) - 0.5) / units
    assert cost(prune(Amount("rate", one_less)).graph.network, IMAGES) > limit


def test_units_are_ranked_no_further_than_it_takes(graph):
    steps: list[int] = []
    pruner(graph, "every:0.1", steps=steps)(Amount("max_params", 0.7 * params(graph.network, IMAGES)))
    assert steps == [40, 36]


def test_biases_that_a_repair_adds_count(graph):
    prune = pruner(graph, repair="least-squares")
    limit = params(compact(graph, prune(Amount("rate", 0.5)).masks).network, IMAGES)
    assert params(prune(Amount("rate", 0.5)).graph.network, IMAGES) > limit
    assert params(prune(Amount("max_params", limit)).graph.network, IMAGES) <= limit


def test_nothing_goes_where_nothing_has_to(graph):
    found = pruner(graph)(Amount("max_params", 1e9))
    assert found.rate == 0
    assert found.graph is graph


def test_what_no_network_is_small_enough_for_is_refused(graph):
    with pytest.raises(ValueError, match="max_params is 2, but without any of its 40 units"):
        pruner(graph)(Amount("max_params", 2))


def test_the_accuracy_that_is_kept_is_that_of_the_curve(graph):
    curve = (0.0, 0.25, 0.5, 0.75), (0.8, 0.78, 0.7, 0.75)
    assert pruner(graph, curve=curve)(Amount()).rate == 0.25
    assert pruner(graph, curve=curve)(Amount("keep_accuracy", 0.8)).rate == 0.75
    assert pruner(graph, curve=curve)(Amount("keep_accuracy", 1.0)).rate == 0.0
    with pytest.raises(ValueError, match="give rate"):
        pruner(graph)(Amount())
    assert pruner(graph)(Amount("saved", 0.3)).rate == 0.3  # of the units, where no cost is named


def test_one_way_to_say_it():
    assert Amount.of(rate=None, saved=None) == Amount("keep_accuracy", 0.95)
    assert Amount.of(max_params="3M") == Amount("max_params", 3e6)
    assert Amount.of(max_macs="1.2G", rate=None) == Amount("max_macs", 1.2e9)
    with pytest.raises(ValueError, match="rate and max_macs are ways to say how much goes: give one"):
        Amount.of(rate=0.5, max_macs=3)
    with pytest.raises(TypeError, match="max_parameters is no way"):
        Amount.of(max_parameters=3)
    for wrong in ({"rate": 1}, {"saved": -0.1}, {"keep_accuracy": 0}, {"max_params": "3X"}, {"max_macs": 0}):
        (kind,) = wrong
        with pytest.raises(ValueError, match=f"{kind} is "):
            Amount.of(**wrong)
