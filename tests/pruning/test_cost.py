"""What networks cost, and the area over it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.pruning import COSTS, area_over, auc, compact_model, macs, trace
from torch import nn


def test_multiply_adds_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 5, 7))
    images = torch.randn(3, 3, 5, 5)
    expected = 5 * 5 * 4 * 3 * 9 + 100 * 7
    assert macs(model, images) == expected
    assert macs(trace(model).network, images) == expected


def test_a_small_map_costs_what_the_convolution_would(everything, images):
    """Also where it runs as a matrix, which has other products."""
    graph = trace(everything)
    small = images[:, :, :8, :8]
    graph.network(small)
    assert macs(graph.network, small) == macs(everything, small)


def test_fewer_channels_cost_less(everything, images):
    graph, small = trace(everything), images[:, :, :8, :8]
    half = compact_model(graph, {name: torch.arange(size) % 2 == 0 for name, size in graph.sizes.items()})
    assert 0 < macs(half, small) < 0.6 * macs(graph.network, small)
    for cost in COSTS.values():
        assert cost(half, small) > 0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_the_area_over_evenly_falling_costs_is_the_usual_one(accuracies):
    count = len(accuracies)
    rates = [index / (count - 1) for index in range(count)]
    assert area_over([1 - rate for rate in rates], accuracies) == pytest.approx(auc(rates, accuracies))


def test_what_saves_more_has_more_area():
    assert area_over([1.0, 0.5], [1.0, 1.0]) == pytest.approx(0.5)
    assert area_over([1.0, 0.25], [1.0, 1.0]) == pytest.approx(0.75)
    assert area_over([1.0, 1.0], [1.0, 0.2]) == 0
