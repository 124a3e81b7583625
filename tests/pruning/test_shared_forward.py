"""Networks run together against each of them run alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from pxp_optimize.pruning import (
    Family,
    Graph,
    compact,
    compact_model,
    correct_each,
    groups,
    make_repair,
    nested,
    network_bytes,
    rank,
    trace,
)
from pxp_optimize.pruning import shared_forward as family_module
from pxp_optimize.pruning.modules import Affine
from pxp_optimize.pruning.network import Network
from pxp_optimize.pruning.shared_forward import same_module
from torch import Tensor, nn

RATES = (0.0, 0.1, 0.2, 0.2, 0.5, 0.8, 1.0)


def networks_of(graph: Graph, late: bool, units: str) -> Iterator[Network]:
    """The networks at the rates; late: units of early layers are the last to go."""
    generator = torch.Generator().manual_seed(3)
    scores = {
        name: torch.rand(size, generator=generator) - (index if late else 0)
        for index, (name, size) in enumerate(graph.units(units).items())
    }
    yield from (compact(graph, masks).network for masks in nested(rank(scores), RATES))


@pytest.mark.parametrize("late", [True, False])
def test_logits_are_those_of_each_network_alone(classifier, late):
    graph = trace(classifier.model)
    kept = list(networks_of(graph, late, graph.default_units))
    family = Family(kept)
    assert len(family) == len(kept)
    together = family(classifier.images)
    assert len(together) == len(kept)
    for network, logits in zip(kept, together, strict=True):
        (alone,) = Family([network])(classifier.images)
        assert torch.equal(logits, alone)
        with torch.no_grad():
            plain = network(classifier.images)
        assert torch.allclose(logits, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def calls_of(family: Family, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many convolutions run."""
    counted = []
    forward = nn.Conv2d._conv_forward
    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv2d, "_conv_forward", lambda *args: counted.append(1) or forward(*args))
        family(images)
    return len(counted)


def test_what_networks_have_in_common_runs_once(everything, images, monkeypatch):
    graph = trace(everything)
    whole = graph.network
    layers = [name for name, module in whole.modules_by_step().items() if isinstance(module, nn.Conv2d)]
    alone = calls_of(Family([whole]), images[:, :, :8, :8], monkeypatch)
    last = compact(graph, {"last": torch.arange(6) > 2}).network
    first = compact(graph, {"stem": torch.arange(8) > 2}).network
    assert calls_of(Family([whole, whole]), images[:, :, :8, :8], monkeypatch) == alone
    # the last layer alone, and no other convolution: the linear layer reads it
    assert calls_of(Family([whole, last]), images[:, :, :8, :8], monkeypatch) == alone + 1
    assert calls_of(Family([last, whole, last]), images[:, :, :8, :8], monkeypatch) == alone + 2
    separate = sum(calls_of(Family([network]), images[:, :, :8, :8], monkeypatch) for network in (whole, first))
    assert calls_of(Family([whole, first]), images[:, :, :8, :8], monkeypatch) == separate
    assert 2 < alone <= len(layers)  # those on the smallest maps run as matrices


def test_repaired_networks_share_what_the_repair_left_alike(everything, images, monkeypatch):
    graph = trace(everything)
    images = images[:, :, :8, :8]
    repair = make_repair("batchnorm+least-squares", graph, images)
    networks = []
    for keep in (5, 4, 3):
        masks = {"last": torch.arange(6) < keep}
        networks.append(repair(graph, compact(graph, masks), masks).network)
    alone = calls_of(Family(networks[:1]), images, monkeypatch)
    assert calls_of(Family(networks), images, monkeypatch) == alone + 2
    for network, logits in zip(networks, Family(networks)(images), strict=True):
        assert torch.equal(logits, Family([network])(images)[0])


def test_a_relu_writes_into_its_input_only_where_nothing_else_reads_it():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)
            self.b = nn.Conv2d(3, 4, 1)
            self.c = nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z = torch.relu(y) + y
            return self.c(torch.relu(z) + self.b(torch.relu(x))).mean((2, 3))

    torch.manual_seed(0)
    model = Twice()
    images = torch.randn(2, 3, 4, 4)
    before = images.clone()
    family = Family([trace(model).network])
    for _ in range(2):
        assert torch.allclose(family(images)[0], model(images), atol=1e-6)
    assert torch.equal(images, before)


class Chunked(nn.Module):
    """Reads a convolution's output by a ReLU, and through views."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        first, second = y.chunk(2, 1)
        turned = y.permute(0, 2, 3, 1)
        return (self.b(torch.relu(y)) + torch.cat([second, first], 1) + turned.permute(0, 3, 1, 2)).mean((2, 3))


def test_a_relu_leaves_alone_what_views_still_show():
    torch.manual_seed(0)
    model, images = Chunked(), torch.randn(2, 3, 4, 4)
    assert torch.allclose(Family([trace(model).network])(images)[0], model(images), atol=1e-6)


def test_a_view_of_maps_does_not_hang_on_their_order():
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 6, 3, padding=1)
            self.b = nn.Linear(6 * 16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)).view(x.size(0), -1))

    torch.manual_seed(0)
    model, images = Viewed(), torch.randn(2, 3, 4, 4)
    graph = trace(model)
    assert torch.allclose(graph.network(images), model(images), atol=1e-6)
    small = compact_model(model, {"a": torch.arange(6) > 2})
    with torch.no_grad():
        model.a.weight[:3] = 0
        model.a.bias[:3] = 0
    assert torch.allclose(small(images), model(images), atol=1e-6)


def test_modules_are_the_same_where_all_their_numbers_are():
    conv = nn.Conv2d(3, 4, 3)
    twin = copy.deepcopy(conv)
    assert same_module(conv, twin)
    for key, value in (("stride", (2, 2)), ("padding", (1, 1))):
        other = copy.deepcopy(conv)
        setattr(other, key, value)
        assert not same_module(conv, other)
    with torch.no_grad():
        twin.weight[0, 0, 0, 0] += 1e-3
    assert not same_module(conv, twin)
    assert not same_module(conv, nn.Conv2d(3, 4, 3, bias=False))
    assert not same_module(conv, nn.Conv2d(3, 5, 3))
    assert not same_module(Affine(2.0), Affine(3.0))
    assert not same_module(Affine(2.0), Affine(torch.tensor(2.0)))
    assert same_module(Affine(torch.tensor([1.0, 2.0])), Affine(torch.tensor([1.0, 2.0])))
    assert not same_module(nn.Sequential(conv), nn.Sequential(conv))


def test_any_module_may_belong(everything, images):
    logits = Family([everything, everything])(images[:, :, :8, :8])
    assert torch.equal(logits[0], everything(images[:, :, :8, :8]))
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("most", [1, 3, 100])
def test_groups_hold_what_there_is_room_for(everything, images, most, monkeypatch):
    networks = list(networks_of(trace(everything), True, "filters"))
    targets = torch.arange(8) % 5
    small = images[:, :, :8, :8]
    expected = correct_each(Family(networks), small, targets)
    monkeypatch.setattr(family_module, "GROUP_BYTES", sum(map(network_bytes, networks[:most])))
    built = []
    found = []
    for group in groups(built.append(network) or network for network in networks):
        found += group
        assert built == found, "a network is built only when it is its turn"
    sizes = [len(group) for group in groups(networks)]
    assert sizes[0] == min(most, len(networks))
    assert found == networks
    assert torch.equal(torch.cat([correct_each(Family(group), small, targets) for group in groups(networks)]), expected)
