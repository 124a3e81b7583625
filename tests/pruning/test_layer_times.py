"""The table of layer times."""

from __future__ import annotations

import json

import pytest
import torch
from pxp_optimize.pruning import LayerTimes, compact, layer_times, macs, trace, without_constants
from torch import nn


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)),
    ).eval()


def test_times_in_proportion_to_work_give_the_multiply_adds(monkeypatch):
    """Between the widths that were measured too: work is bilinear in them, and so is what is looked up."""

    def seconds(run, values, device, enough):
        if not isinstance(run, (nn.Conv2d, nn.Linear)):
            return 0.0
        return run(*values).numel() * run.weight[0].numel() * 1e-9

    monkeypatch.setattr(layer_times, "fastest", seconds)
    image = torch.randn(1, 3, 8, 8)
    graph = trace(model(), image.expand(2, -1, -1, -1))
    times = LayerTimes.measure(graph, 7)
    assert times.latency(graph.network) == pytest.approx(7e-9 * macs(graph.network, image))
    for first, second in ((3, 11), (9, 32), (16, 5)):
        small = compact(graph, {"0": torch.arange(16) < first, "2": torch.arange(32) < second}).network
        assert times.latency(small) == pytest.approx(7e-9 * macs(small, image))
    assert times.seconds_of_work(graph) == pytest.approx(dict.fromkeys(("0", "2", "6"), 1e-9))


def test_a_table_is_json(everything, images):
    graph = trace(everything, images[:2, :, :8, :8])
    times = LayerTimes.measure(graph, 4)
    again = LayerTimes.from_dict(json.loads(json.dumps(times.to_dict())))
    assert again == times
    half = compact(graph, {name: torch.arange(size) % 2 == 0 for name, size in graph.sizes.items()})
    small = without_constants(half.network)
    assert 0 < again.latency(small) == times.latency(small)
    assert set(times.seconds_of_work(graph)) >= {name for name in graph.sizes if name in times.layers}
    assert all(value > 0 for value in times.seconds_of_work(graph).values())


def test_attention_has_times_too(transformer):
    graph = trace(transformer, torch.randn(2, 3, 16, 16))
    times = LayerTimes.measure(graph, 4)
    products = set(times.seconds_of_work(graph)) - set(times.layers)
    assert len(products) == 4  # two of each of the two layers
