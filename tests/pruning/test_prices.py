"""What the removal of a unit saves: by hand, and as compact networks cost less."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision.models as tv
from pxp_optimize.pruning import compact, macs, params, trace, unit_prices, without_constants
from pxp_optimize.pruning.prices import LEAST
from pxp_optimize.pruning.widths import Pace
from torch import Tensor, nn
from torchvision.models import densenet
from torchvision.models.swin_transformer import SwinTransformer


def prices(model: nn.Module, size: int, cost: str = "macs", units: str | None = None) -> dict[str, list[float]]:
    graph = trace(model.eval(), torch.randn(2, 3, size, size))
    return {name: found.tolist() for name, found in unit_prices(graph, graph.units(units), cost).items()}


def test_a_chain_by_hand():
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 9, 5)),
    )
    found = prices(model, 6)
    assert found["0"] == [36 * 3 * 9 + 9 * 6 * 9] * 4  # a row on 6 x 6 pixels, and a column read on 3 x 3
    assert found["2"] == [9 * 4 * 9 + 9 * 5] * 6  # nine inputs of the linear layer each
    found = prices(model, 6, "params")
    assert found["0"] == [3 * 9 + 1 + 6 * 9] * 4
    assert found["2"] == [4 * 9 + 9 * 5] * 6


def test_groups_by_hand():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU()),
        *(nn.Conv2d(8, 4, 3, padding=1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )
    found = prices(model, 4)
    assert found["0"] == [16 * 3 + 16 * 9] * 8  # read by one filter of its own
    assert found["2"] == [16 * 3 + 16 * 9 + 16 * 2 * 9] * 8  # with what only it reads; read by the two of its group
    assert found["4"] == [16 * 4 * 9 + 5] * 4


def test_pairs_by_hand():
    """Without either filter of a pair the channel is gone, with its filters and what reads it."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6()),
        *(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )
    image = torch.randn(1, 3, 4, 4)
    graph = trace(model.eval(), image.expand(2, -1, -1, -1))
    found = unit_prices(graph, graph.units(None))
    assert found["0"].tolist() == found["2"].tolist() == [16 * (3 + 9 + 4)] * 8
    assert found["4"].tolist() == [16 * 8 + 5] * 4
    for name in ("0", "2"):
        small = without_constants(compact(graph, {name: torch.arange(8) != 3}).network)
        assert macs(graph.network, image) - macs(small, image) == found[name][3]
    small = compact(graph, {"0": torch.arange(8) > 1, "2": torch.arange(8) != 7})
    found = unit_prices(small, small.units(None))
    least = sum(float(values.sum()) for values in found.values()) / 17 * LEAST
    assert found["0"].tolist() == pytest.approx([256.0] * 5 + [least], rel=1e-3)
    assert found["2"].tolist() == pytest.approx([least] * 2 + [256.0] * 5, rel=1e-3)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.inner, self.outer = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.fc(torch.relu(x + self.outer(torch.relu(self.inner(x)))).mean((2, 3)))


def test_units_that_go_together_share_what_reads_them():
    model = Residual().eval()
    found = prices(model, 4)
    assert found["inner"] == [16 * 4 * 9 + 16 * 4 * 9] * 6
    assert found["stem"] == [16 * 3 + 16 * 6 * 9 + 5 / 2] * 4  # its reader inside the branch is its own
    assert found["outer"] == [16 * 6 * 9 + 5 / 2] * 4
    graph = trace(model, torch.randn(2, 3, 4, 4))
    kept = torch.tensor([True, False, True, True])
    small = compact(graph, {"stem": kept, "outer": kept})
    image = torch.randn(1, 3, 4, 4)
    assert macs(graph.network, image) - macs(small.network, image) == found["stem"][1] + found["outer"][1]


def test_the_network_is_priced_as_it_is():
    """Where the others have gone, the one that is left has all of what reads the channel; what nothing else feeds
    goes."""
    graph = trace(Residual().eval(), torch.randn(2, 3, 4, 4))
    masks = {"stem": torch.tensor([False, True, True, True]), "inner": torch.arange(6) == 2}
    small = compact(graph, masks)
    found = unit_prices(small, small.units(None))
    assert found["stem"].tolist() == [16 * 3 + 16 * 9 + 5 / 2] * 3
    assert found["outer"].tolist() == [16 * 9 + 5, *[16 * 9 + 5 / 2] * 3]
    assert found["inner"].tolist() == [16 * 3 * 9 + 16 * 4 * 9]  # and the branch with it
    none = compact(graph, {"inner": torch.zeros(6, dtype=torch.bool)})
    assert unit_prices(none, none.units(None))["inner"].tolist() == []


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (partial(tv.alexnet, num_classes=5), 64),
        (partial(tv.squeezenet1_1, num_classes=5), 32),
        (lambda: densenet.DenseNet(8, (2, 3), 16, num_classes=5, memory_efficient=False), 32),
    ],
)
@pytest.mark.parametrize(("cost", "counted"), [("macs", macs), ("params", params)])
def test_what_one_unit_writes_is_what_a_compact_network_saves(build, size, cost, counted, randomise):
    """Flattened maps and concatenations."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, size, size)
    graph = trace(randomise(build()), image.expand(2, -1, -1, -1))
    layers = [name for name, kind in graph.kinds.items() if kind == "filters"]
    whole = counted(graph.network, image)
    for name, found in unit_prices(graph, layers, cost).items():
        small = compact(graph, {name: torch.arange(len(found)) != 2}).network
        free = 0 if cost == "macs" else _constants(graph.network) - _constants(small)
        assert whole - counted(small, image) == pytest.approx(float(found[2]) + free), name


def _constants(network: nn.Module) -> int:
    """Parameters of what has no weight of its own kind (BatchNorm that is not folded)."""
    kinds = (nn.Conv2d, nn.Linear)
    return sum(p.numel() for m in network.modules() if not isinstance(m, kinds) for p in m.parameters(recurse=False))


def test_heads_have_all_four_projections(transformer):
    image = torch.randn(1, 3, 16, 16)
    graph = trace(transformer, image.expand(2, -1, -1, -1))
    found = unit_prices(graph, graph.units("heads"))
    assert found
    whole = macs(graph.network, image)
    for name, values in found.items():
        small = compact(graph, {name: torch.arange(len(values)) != 1}).network
        assert whole - macs(small, image) == pytest.approx(float(values[1]))
        # 5 tokens, 16 wide: queries, keys, values and the way out for 4 features, two products over 5 x 5 tokens
        assert values.tolist() == [5 * 16 * 4 * 4 + 2 * 25 * 4] * 4
    counted = unit_prices(graph, graph.units("heads"), "params")
    assert {tuple(values.tolist()) for values in counted.values()} == {(4 * 16 * 4 + 3 * 4,) * 4}


class TokensFirst(nn.Module):
    """Tokens in the first dimension, images in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patches(x).flatten(2).permute(2, 0, 1)).mean(0))


@pytest.mark.parametrize("units", ["heads", "neurons"])
@pytest.mark.parametrize(
    ("build", "size"),
    [(TokensFirst, 16), (partial(SwinTransformer, [4, 4], 12, [2, 2], [2, 3], [4, 4], num_classes=5), 32)],
)
def test_values_that_lie_unusually(build, size, units, randomise):
    """Where the images are not in the first dimension, or each is in several rows of it: windows."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, size, size)
    graph = trace(randomise(build()), image.expand(2, -1, -1, -1))
    whole = macs(graph.network, image)
    # what is added to the tokens stays to be read
    found = unit_prices(graph, [name for name in graph.units(units) if not name.endswith(("linear2", "mlp.3"))])
    assert found
    for name, values in found.items():
        small = compact(graph, {name: torch.arange(len(values)) != 1}).network
        assert whole - macs(small, image) == pytest.approx(float(values[1])), name


def test_neurons_of_a_transformer(transformer):
    image = torch.randn(1, 3, 16, 16)
    graph = trace(transformer, image.expand(2, -1, -1, -1))
    found = unit_prices(graph, graph.units("neurons"))
    assert len(found) == 4
    for name, values in found.items():
        # what is hidden has one reader; what is added to the tokens is normalised with the others, and stays to be read
        assert values.tolist() == ([2 * 5 * 16] * 24 if name.endswith("0") else [5 * 24] * 16)


def test_no_channel_is_paid_to_what_does_not_write_it_alone(everything, images):
    """Whatever lies between layers: prices are positive, and in all no more than the network's work twice."""
    graph = trace(everything, images[:2, :, :8, :8])
    found = unit_prices(graph, graph.units(None))
    assert all(bool((values > 0).all()) for values in found.values())
    assert sum(float(values.sum()) for values in found.values()) <= 2 * macs(graph.network, images[:1, :, :8, :8])


def test_time_is_work_times_its_seconds():
    graph = trace(Residual().eval(), torch.randn(2, 3, 4, 4))
    layers = graph.units(None)
    ones = dict.fromkeys(("stem", "inner", "outer", "fc"), Pace(1.0))
    for name, values in unit_prices(graph, layers, "latency", ones).items():
        assert torch.equal(values, unit_prices(graph, layers)[name])
    found = unit_prices(graph, layers, "latency", {**ones, "inner": Pace(2.0)})
    assert found["stem"].tolist() == [16 * 3 + 2 * 16 * 6 * 9 + 5 / 2] * 4
    assert found["inner"].tolist() == [2 * 16 * 4 * 9 + 16 * 4 * 9] * 6
    with pytest.raises(ValueError, match="needs the pace"):
        unit_prices(graph, layers, "latency")


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_a_layer_that_has_lost_all_units_costs_nothing(transformer: nn.Module, kind: str) -> None:
    graph = trace(transformer)
    units = graph.units("heads+neurons")
    emptied = next(name for name in units if graph.kinds[name] == kind)
    small = compact(graph, {name: torch.full((size,), name != emptied) for name, size in units.items()})
    found = unit_prices(small, units)
    assert len(found[emptied]) == 0
    whole, block = unit_prices(graph, units), emptied.rpartition(".")[0]
    others = [name for name in units if name.rpartition(".")[0] != block]  # its reader has nothing left to do
    assert all(torch.equal(found[name], whole[name]) for name in others)
    assert others
