"""The last step: a pruned network trained, without labels, to give what the unpruned one gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision.models as tv
from pxp_optimize.pruning import Graph, Masks, compact, make_repair, masked_model, mimic, prune_masks, trace
from pxp_optimize.pruning import mimicking as module
from pxp_optimize.pruning.mimicking import _Goals, _halfway, _values, averaged, mirrored, shifted, unpooled
from torch import Tensor, nn


class Small(nn.Module):
    """Two convolutions with a shortcut, pooled, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.hidden, self.head = nn.Linear(12, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.branch(x))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


def random_masks(graph: Graph, rate: float, kind: str | None = None) -> Masks:
    generator = torch.Generator().manual_seed(0)
    return prune_masks({n: torch.rand(s, generator=generator) for n, s in graph.units(kind).items()}, rate)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Smooth images, so that held-out ones are like the others."""
    coarse = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=12, mode="bilinear")


@pytest.fixture(scope="module")
def cut(pictures: Tensor) -> tuple[Graph, Graph, Masks]:
    torch.manual_seed(0)
    graph = trace(Small(), pictures[:2])
    masks = random_masks(graph, 0.5, "filters+neurons")
    return graph, compact(graph, masks), masks


def error(graph: Graph, small: Graph, images: Tensor) -> float:
    return float((graph.network(images) - small.network(images)).square().mean())


def test_it_comes_nearer_to_the_unpruned_network_on_images_that_it_never_saw(cut, pictures, monkeypatch):
    monkeypatch.setattr(module, "LEARNING_RATE", 5e-3)  # so few steps, so far to go
    graph, small, masks = cut
    before = {name: value.clone() for name, value in small.network.state_dict().items()}
    done: list[int] = []
    found = mimic(graph, small, masks, pictures[:32], 60, advance=done.append)
    assert error(graph, found, pictures[32:]) < 0.5 * error(graph, small, pictures[32:])
    assert 60 < len(done) <= 120
    assert all(torch.equal(value, before[name]) for name, value in small.network.state_dict().items())
    assert not any(value.requires_grad for value in found.network.parameters())
    assert [type(each) for each in found.network.modules()] == [type(each) for each in small.network.modules()]
    again = mimic(graph, small, masks, pictures[:32], 60)
    for (name, value), other in zip(
        found.network.state_dict().items(), again.network.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    other = mimic(graph, small, masks, pictures[:32], 60, seed=1)
    assert not torch.equal(found.network.get_submodule("head").weight, other.network.get_submodule("head").weight)


def test_what_only_gets_worse_on_the_images_held_out_stays_as_it_is(cut, pictures, monkeypatch):
    graph, small, masks = cut
    small = make_repair("least-squares", graph, pictures[:20])(graph, small, masks)
    monkeypatch.setattr(module, "LEARNING_RATE", 10.0)
    assert mimic(graph, small, masks, pictures[:20], 5, repair="least-squares") is small
    assert mimic(graph, small, masks, pictures, 0) is small
    with pytest.raises(ValueError, match="two images"):
        mimic(graph, small, masks, pictures[:1], 5)


def test_nothing_that_is_held_out_is_read_by_repair_or_training(cut, pictures, monkeypatch):
    """What is held out is not finite here: so would be whatever had read it, in the first of the two runs."""
    graph, small, masks = cut
    held = sorted(torch.randperm(20, generator=torch.Generator().manual_seed(3)).tolist()[:4])
    spoilt = pictures[:20].clone()
    spoilt[held] = torch.nan
    lost = []
    plain = _Goals.loss

    def loss(self, network, images, goals):
        lost.append(plain(self, network, images, goals))
        return lost[-1]

    monkeypatch.setattr(_Goals, "loss", loss)
    assert mimic(graph, small, masks, spoilt, 3, repair="least-squares", seed=3) is small
    finite = [bool(value.isfinite()) for value in lost]
    assert finite == [False, True, False, True, False, True, False]  # asked before, between and after the steps


def test_of_some_classes_only_their_logits_count(cut, pictures):
    graph, small, masks = cut
    some = torch.tensor([0, 2])
    goals = _Goals(graph, masks, some)
    wanted = goals.goals(pictures[:8])
    spoilt = [*wanted[:-1], wanted[-1].index_fill(1, torch.tensor([1, 3]), 100.0)]
    assert torch.equal(goals.loss(small.network, pictures[:8], wanted), goals.loss(small.network, pictures[:8], spoilt))
    assert goals.loss(small.network, pictures[:8], wanted) > 0


FEATURES: dict[str, tuple[Callable[[], nn.Module], int, list[tuple[int, ...]]]] = {
    "resnet": (lambda: tv.resnet18(num_classes=5), 32, [(512, 1, 1)]),
    "mobilenet": (lambda: tv.mobilenet_v3_small(num_classes=5), 40, [(576, 2, 2)]),
    "perceptron": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 5)), 4, []),
}


@pytest.mark.parametrize("name", [*FEATURES, "transformer", "everything"])
def test_features_are_those_before_pooling_in_any_network(name, transformer, everything, images):
    if name in FEATURES:
        build, size, shapes = FEATURES[name]
        torch.manual_seed(0)
        model, x = build().eval(), torch.randn(3, 3, size, size)
    else:
        model = transformer if name == "transformer" else everything
        x = images[:3] if name == "transformer" else images[:3, :, :8, :8].contiguous()
        shapes = []
    graph = trace(model, x[:2])
    slots = unpooled(graph.network)
    if name == "transformer":
        assert [len(graph.network.shapes()[slot]) for slot in slots] == [3]  # images, tokens, features
    elif name != "everything":
        assert [graph.network.shapes()[slot][1:] for slot in slots] == shapes
    masks = random_masks(graph, 0.6)
    small, goals = compact(graph, masks), _Goals(graph, masks, None)
    assert len(goals.slots) == len(slots)
    wanted = goals.goals(x)
    found = _values(small.network, x, goals.small_slots)
    assert [value.shape for value in found] == [value.shape for value in wanted]
    masked = trace(masked_model(graph, masks), x[:2])  # the same channels, of the masked network at full size
    for value, goal in zip(found, _Goals.goals(_of(goals, masked), x), strict=True):
        torch.testing.assert_close(value, goal, atol=1e-4, rtol=1e-4)


def _of(goals: _Goals, graph: Graph) -> _Goals:
    """The same goals, asked of another network of the same form."""
    other = object.__new__(_Goals)
    other.__dict__.update(goals.__dict__, network=graph.network, slots=unpooled(graph.network))
    return other


def test_averages_are_of_two_images_each():
    images = torch.eye(5).view(5, 5, 1, 1)
    found = averaged(images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.sum(1), torch.ones(5, 1, 1))
    assert bool(((found > 0).sum(1) <= 2).all())
    assert bool((found >= 0).all())


class Side(nn.Module):
    """Says which half of an image is the brighter one, or, where it sees all alike, whether the middle is bright."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 2, bias=False), nn.Linear(2, 2, bias=False)
        sign = torch.ones(8, 8)
        if not alike:
            sign[:, 4:] = -1
        with torch.no_grad():
            self.hidden.weight.copy_(torch.stack([sign.flatten(), -sign.flatten()]))
            self.head.weight.copy_(torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(x.flatten(1))))


@pytest.mark.parametrize("alike", [True, False])
def test_images_are_only_changed_in_ways_that_the_network_bears(alike):
    images = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images += torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0).view(-1, 1, 1, 1) * (
        torch.ones(8) if alike else torch.tensor([1.0] * 4 + [-1.0] * 4)
    )
    goals = _Goals(trace(Side(alike), images[:2]), {}, None)
    goals.find_changes(images, 0)
    assert goals.changes == ([mirrored, shifted] if alike else [shifted])


def test_shifted_images_are_parts_of_what_their_edges_continue():
    images = torch.arange(2 * 64.0).view(2, 1, 8, 8)
    chance = torch.Generator().manual_seed(0)
    wide = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    seen = set()
    for _ in range(30):
        for image, whole in zip(shifted(images, chance), wide, strict=True):
            places = [(y, x) for y in range(3) for x in range(3) if torch.equal(image, whole[:, y : y + 8, x : x + 8])]
            assert len(places) == 1
            seen.update(places)
    assert len(seen) == 9


def test_weights_end_halfway(cut):
    _, small, _ = cut
    before, after = small.network, _halfway(small.network, small.network)
    for value in after.parameters():
        value += 2
    found = _halfway(before, after)
    for value, old, new in zip(found.parameters(), before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(value, old + 1)
        torch.testing.assert_close(new, old + 2)
