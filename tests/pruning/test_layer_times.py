"""The table of layer times."""

from __future__ import annotations

import json
import math

import pytest
import torch
from pxp_optimize.pruning import LayerTimes, compact, layer_times, macs, trace, unit_prices, without_constants
from pxp_optimize.pruning.modules import Add, ScatterAdd
from pxp_optimize.pruning.prices import surplus
from pxp_optimize.pruning.widths import Pace
from torch import Tensor, nn


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
    assert times.latency(graph.network) == pytest.approx(7e-9 * macs(graph.network, image), rel=1e-3)
    for first, second in ((3, 11), (9, 32), (16, 5)):
        small = compact(graph, {"0": torch.arange(16) < first, "2": torch.arange(32) < second}).network
        assert times.latency(small) == pytest.approx(7e-9 * macs(small, image), rel=1e-3)
    for name in ("0", "2", "6"):
        pace = times.paces(graph)[name]
        assert pace.seconds == pytest.approx(1e-9)
        assert pace.parts == pytest.approx([row / pace.rows[-1] for row in pace.rows], rel=1e-3)


def test_a_table_is_json(everything, images):
    graph = trace(everything, images[:2, :, :8, :8])
    times = LayerTimes.measure(graph, 4)
    again = LayerTimes.from_dict(json.loads(json.dumps(times.to_dict())))
    assert again == times
    half = compact(graph, {name: torch.arange(size) % 2 == 0 for name, size in graph.sizes.items()})
    small = without_constants(half.network)
    assert 0 < again.latency(small) == times.latency(small)
    paces = times.paces(graph)
    assert set(paces) >= {name for name in graph.sizes if name in times.layers}
    assert all(pace.seconds > 0 and min(pace.parts, default=1) > 0 for pace in paces.values())


def test_attention_has_times_too(transformer):
    graph = trace(transformer, torch.randn(2, 3, 16, 16))
    times = LayerTimes.measure(graph, 4)
    paces = times.paces(graph)
    products = {name for name in paces if not paces[name].rows}
    assert len(products) == 4  # two of each of the two layers
    assert len(set(paces) - products - set(times.layers)) == 5  # the tokens' positions, and two sums of each


def in_blocks_of_16(run, values, device, enough):
    """Kernels that compute sixteen outputs together."""
    if not isinstance(run, (nn.Conv2d, nn.Linear)):
        return 0.0
    blocks = math.ceil(run.weight.shape[0] / 16) * 16
    return run(*values).numel() / run.weight.shape[0] * blocks * run.weight[0].numel() * 1e-9


@pytest.mark.parametrize("size", [32, 128, 1000])
def test_a_table_knows_the_widths_that_are_fast(monkeypatch, size):
    monkeypatch.setattr(layer_times, "fastest", in_blocks_of_16)
    network = nn.Sequential(nn.Conv2d(3, size, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(size, 4)).eval()
    grid = LayerTimes.measure(trace(network, torch.randn(2, 3, 4, 4)), 1).layers["0"]
    assert len(grid.rows) <= 9
    for row in (edge := next(row for row in grid.rows if row > 1 and row % 16 == 0), edge + 1, size):
        assert grid.at(row, 3) == pytest.approx(16 * 3 * 1e-9 * 16 * math.ceil(row / 16), rel=1e-3)


def test_what_delays_a_measurement_is_left_out(monkeypatch):
    """Fewer outputs or inputs never take longer."""
    late = iter([3.0, 1.0, 2.0, 1.0, 1.0, 4.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr(layer_times, "fastest", lambda *_: next(late, 0.0))
    network = nn.Sequential(nn.Conv2d(2, 9, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 4)).eval()
    grid = LayerTimes.measure(trace(network, torch.randn(2, 2, 4, 4)), 1).layers["0"]
    assert (grid.rows, grid.columns) == ([1, 8, 9], [1, 2])
    assert grid.seconds == [[1.0, 1.0], [1.0, 1.0], [1.0, 4.0]]


def test_what_units_save_together_is_what_the_table_says(monkeypatch):
    """Of the whole network and of a narrower one: prices and what comes besides are the difference of its times."""
    monkeypatch.setattr(layer_times, "fastest", in_blocks_of_16)
    image = torch.randn(1, 3, 8, 8)
    whole = trace(model(), image.expand(2, -1, -1, -1))
    times = LayerTimes.measure(whole, 1)
    paces = times.paces(whole)
    for graph in (whole, compact(whole, {"0": torch.arange(16) < 9, "2": torch.arange(32) < 21})):
        sizes = graph.units("filters")
        prices, more = unit_prices(graph, sizes, "latency", paces), surplus(graph, sizes, paces)
        for name, size in sizes.items():
            for gone in (1, 4, 5, size - 2):
                masks = {other: torch.arange(count) >= (gone if other == name else 0) for other, count in sizes.items()}
                saved = times.latency(graph.network) - times.latency(compact(graph, masks).network)
                assert float(prices[name][:gone].sum() + more[name][gone]) == pytest.approx(saved, rel=2e-3)


def test_each_step_is_told_of():
    graph = trace(model(), torch.randn(2, 3, 4, 4))
    told: list[int] = []
    LayerTimes.measure(graph, 1, told.append)
    assert sum(told) == len(graph.network.steps)


class Block(nn.Module):
    """A branch that is added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        return self.fc(x.mean((2, 3)))


def sums_alone(run, values, device, enough):
    """Two seconds for a sum of all channels, three where one part has them all, five else."""
    if isinstance(run, Add):
        return 2.0
    if isinstance(run, ScatterAdd):
        return 3.0 if run.first is None else 5.0
    return 0.0 if not isinstance(run, (nn.Conv2d, nn.Linear)) else 1e-9


def test_a_sum_takes_longer_once_its_channels_differ(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(layer_times, "fastest", sums_alone)
    whole = trace(Block().eval(), torch.randn(2, 3, 4, 4))
    times = LayerTimes.measure(whole, 1)
    units, paces = whole.units("filters"), times.paces(whole)
    assert surplus(whole, units, paces).keys() == {"stem", "inner", "outer"}
    assert surplus(whole, units, paces)["outer"].tolist() == pytest.approx([0, *[-1] * 5, 2], abs=1e-3)
    assert surplus(whole, units, paces)["inner"].tolist() == pytest.approx([0] * 6, abs=1e-3)
    masks = {"stem": torch.ones(6).bool(), "inner": torch.ones(5).bool(), "outer": torch.arange(6) > 0}
    narrow = compact(whole, masks)
    assert times.latency(narrow.network) - times.latency(whole.network) == pytest.approx(1, abs=1e-3)
    # what it has cost already is no more to be lost, and all of it to be saved
    assert surplus(narrow, units, paces)["outer"].tolist() == pytest.approx([0, *[0] * 4, 3], abs=1e-3)
    gone = compact(whole, {**masks, "outer": torch.zeros(6).bool()})
    assert times.latency(narrow.network) - times.latency(gone.network) == pytest.approx(3, abs=1e-3)
    both = compact(whole, {**masks, "stem": torch.arange(6) != 3})
    assert times.latency(both.network) - times.latency(whole.network) == pytest.approx(3, abs=1e-3)


def test_paces_of_a_document_that_make_no_sense_are_borne(transformer):
    """A layer that takes no time, one that has no weights, one that there is not."""
    graph = trace(Block().eval(), torch.randn(2, 3, 4, 4))
    none = Pace(1.0, (1, 5), (0.0, 0.0))
    found = surplus(graph, graph.units("filters"), {"inner": none, "relu": none, "outer.3": none})
    assert found.keys() == {"inner"}
    assert found["inner"].isfinite().all()
    heads = trace(transformer, torch.randn(2, 3, 16, 16))
    units = heads.units("heads")
    assert surplus(heads, units, dict.fromkeys(units, none)) == {}
