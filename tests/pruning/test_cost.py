"""What networks cost, and the area over it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.pruning import COSTS, area_over, area_saved, auc, compact_model, macs, params, saved_at, trace, work
from torch import Tensor, nn


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


def test_the_area_over_what_is_saved_by_hand():
    costs, accuracies = [1.0, 0.6, 0.1], [0.9, 0.8, 0.3]
    # 0.4 wide at 0.85; then up to 0.8, where the line from (0.4, 0.8) to (0.9, 0.3) is at 0.4
    assert area_saved(costs, accuracies) == pytest.approx((0.4 * 0.85 + 0.4 * (0.8 + 0.4) / 2) / 0.8)
    assert area_saved(costs, accuracies, end=0.4) == pytest.approx(0.85)
    assert area_saved(costs[:2], accuracies[:2]) == pytest.approx(0.4 * 0.85 / 0.8)  # zero from there on
    assert area_saved([1.0, 0.2], [0.7, 0.7]) == pytest.approx(0.7)
    assert area_saved([1.0, 1.0, 0.2], [0.9, 0.5, 0.5]) == pytest.approx(0.5)  # what saves nothing has no width
    assert area_saved([1.0, 0.6, 0.8, 0.1], [0.9, 0.8, 0.8, 0.3]) == pytest.approx(area_saved(costs, accuracies))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.lists(st.floats(0, 1), min_size=7, max_size=7))
def test_the_area_is_linear_in_the_accuracies(accuracies, falls):
    costs = [1.0, *sorted(falls, reverse=True)][: len(accuracies)]
    alone = [[float(index == place) for index in range(len(accuracies))] for place in range(len(accuracies))]
    parts = [accuracy * area_saved(costs, one) for accuracy, one in zip(accuracies, alone, strict=True)]
    assert area_saved(costs, accuracies) == pytest.approx(sum(parts))
    assert 0 <= area_saved(costs, accuracies) <= max(accuracies) + 1e-12


def test_what_is_saved_while_accuracy_lasts():
    assert saved_at([1.0, 0.7, 0.5, 0.2], [0.8, 0.79, 0.7, 0.79]) == pytest.approx(0.3)
    assert saved_at([1.0, 0.5], [0.8, 0.1]) == 0


def test_parameters_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 7, bias=False))
    assert params(model, torch.randn(1, 3, 3, 3)) == 4 * 27 + 4 + 28


def test_networks_that_are_compared_run_in_turn(monkeypatch):
    """A machine that is slow for a while is so for each of them."""
    clock, runs = iter(range(10**6)), []

    class Named(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, images: Tensor) -> Tensor:
            runs.append(self.name)
            busy = 3 < len(runs) <= 9
            for _ in range((5 if self.name == "whole" else 2) * (10 if busy else 1) - 1):
                next(clock)
            return images

    monkeypatch.setattr(work.time, "perf_counter", lambda: float(next(clock)))
    found = work.latencies([Named("whole"), Named("small")], torch.zeros(1, 1, 1, 1))
    assert found == [5, 2]
    assert runs == ["whole", "small"] * (work.ROUNDS + 1)
