from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.pruning import Graph, Masks, compact, make_repair, prune_masks, pruned, trace
from pxp_optimize.pruning.repair import BatchNormRepair, LeastSquaresRepair, Repair
from pxp_optimize.pruning.repair.images import MOST_IMAGES, Mixed
from pxp_optimize.pruning.repair.least_squares import _rows, _seen_taps
from pxp_optimize.pruning.repair.ridge import fit
from pxp_optimize.pruning.repair.tokens import token_weights
from torch import Tensor, nn
from torchvision.models import resnet18


def random_masks(graph: Graph, rate: float, seed: int = 0, kind: str | None = None) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(size, generator=generator) for name, size in graph.units(kind).items()}
    return prune_masks(scores, rate)


@pytest.fixture(scope="module")
def resnet(randomise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomise(resnet18(num_classes=5))


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(3))


class Branches(nn.Module):
    """Two convolutions side by side, summed up or put together, and a layer that reads both."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem, self.branch = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.reader, self.head = nn.Conv2d(16 if way == "add" else 32, 32, 3, padding=1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        other = torch.relu(self.branch(x))
        x = x + other if self.way == "add" else torch.cat([x, other], 1)
        return self.head(torch.relu(self.reader(x)).mean((2, 3)))


def masked_in_training(model: nn.Module, masks: Masks, images: Tensor) -> nn.Module:
    """The plain form of the repair: the dense model's BatchNorms, in training mode, see the images once; what
    is pruned has zero weights, scale and shift throughout. (BatchNorm normalises by the variance over n, and
    keeps that over n - 1.)"""
    counts = {}

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        counts[module] = args[0].numel() // args[0].shape[1]

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    for name, norm in zip(names, norms, strict=True):
        model.get_submodule(name).weight.data[~masks[name]] = 0  # type: ignore[index, union-attr, operator]
        norm.weight.data[~masks[name]] = 0
        norm.bias.data[~masks[name]] = 0
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.register_forward_pre_hook(count)
    model.train()
    with torch.no_grad():
        model(images)
    for norm in norms:
        norm.running_var *= (counts[norm] - 1) / counts[norm]  # type: ignore[operator]
    return model.eval()


def test_batchnorm_is_what_batchnorm_would_have_estimated(
    randomise: Callable[[nn.Module], nn.Module], resnet: nn.Module, photos: Tensor
) -> None:
    graph = trace(resnet)
    masks = random_masks(graph, 0.6)
    plain = resnet18(num_classes=5)
    plain.load_state_dict(resnet.state_dict())
    expected = masked_in_training(plain, masks, photos)(photos).detach()
    got = BatchNormRepair(photos)(graph, compact(graph, masks), masks).network(photos)
    assert torch.allclose(got, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("chunk", [5, 8])
def test_batchnorm_does_not_depend_on_the_chunks(resnet: nn.Module, photos: Tensor, chunk: int) -> None:
    graph = trace(resnet)
    masks = random_masks(graph, 0.5)
    small = compact(graph, masks)
    whole = BatchNormRepair(photos)(graph, small, masks).network(photos)
    parts = BatchNormRepair(photos, chunk=chunk)(graph, small, masks).network(photos)
    assert torch.allclose(whole, parts, atol=1e-4 * float(whole.abs().max()))


def test_batchnorm_twice_is_once(resnet: nn.Module, photos: Tensor) -> None:
    graph = trace(resnet)
    masks = random_masks(graph, 0.5)
    repair = BatchNormRepair(photos)
    once = repair(graph, compact(graph, masks), masks)
    twice = repair(graph, once, masks)
    assert torch.allclose(once.network(photos), twice.network(photos), atol=1e-3)


@pytest.mark.parametrize("repair", ["batchnorm", "least-squares", "batchnorm+least-squares"])
@pytest.mark.parametrize("rate", [0.3, 0.9, 1.0])
def test_grouped_gated_and_empty_layers(everything: nn.Module, images: Tensor, repair: str, rate: float) -> None:
    graph = trace(everything)
    masks = random_masks(graph, rate, seed=1)
    small = compact(graph, masks)
    before = {key: value.clone() for key, value in small.network.state_dict().items()}
    mend = make_repair(repair, graph, images[:, :, :8, :8])
    assert mend is not None
    repaired = mend(graph, small, masks)
    assert torch.isfinite(repaired.network(images[:, :, :8, :8])).all()
    assert repaired.units() == small.units()
    for key, value in small.network.state_dict().items():
        assert torch.equal(value, before[key])


def test_least_squares_gives_back_what_is_redundant() -> None:
    """Hidden neurons that come in equal pairs: without one of each, the reader can make up for it exactly."""
    torch.manual_seed(0)
    first, second = nn.Linear(12, 8), nn.Linear(8, 3)
    with torch.no_grad():
        first.weight[4:] = first.weight[:4]
        first.bias[4:] = first.bias[:4]
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)
    images = torch.randn(200, 3, 2, 2)
    graph = trace(model)
    masks = {"1": torch.arange(8) < 4}
    small = compact(graph, masks)
    expected = model(images)
    assert not torch.allclose(small.network(images), expected, atol=0.1)
    repaired = LeastSquaresRepair(images)(graph, small, masks)
    assert torch.allclose(repaired.network(images), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["heads", "neurons", "heads+neurons"])
def test_least_squares_brings_a_transformer_nearer(transformer: nn.Module, images: Tensor, kind: str) -> None:
    graph = trace(transformer)
    fresh = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    masks = random_masks(graph, 0.5, kind=kind)
    small = compact(graph, masks)
    repaired = LeastSquaresRepair(torch.cat([images, fresh[:16]]))(graph, small, masks)
    expected = graph.network(fresh[16:])
    error = (small.network(fresh[16:]) - expected).norm()
    assert (repaired.network(fresh[16:]) - expected).norm() < error


def test_least_squares_mends_behind_too() -> None:
    """A layer that lost nothing makes up for what the one before it could not give back."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))
    images, fresh = torch.randn(2, 2000, 3, 2, 2)
    graph = trace(model)
    masks = {"1": torch.arange(16) < 6}
    repaired = pruned(graph, masks, LeastSquaresRepair(images))
    only_reader = repaired.network.replaced({"5": model[5]})
    expected = model(fresh)
    error, without = ((network(fresh) - expected).norm() for network in (repaired.network, only_reader))
    assert error < 0.96 * without


def refitted(graph: Graph, masks: Masks, images: Tensor) -> tuple[Graph, list[str]]:
    """The repaired network, and its layers that least squares gave other weights."""
    small = compact(graph, masks)
    found = LeastSquaresRepair(images)(graph, small, masks)
    before, after = (each.network.modules_by_step() for each in (small, found))
    return found, [name for name in after if after[name] is not before[name]]


def test_least_squares_refits_all_that_lies_behind(classifier: Any) -> None:
    """In each family: every layer from the first one on that was cut, besides those that read images."""
    graph, images = trace(classifier.model), classifier.images
    masks = random_masks(graph, 0.3)
    repaired, changed = refitted(graph, masks, images)
    assert torch.isfinite(repaired.network(images)).all()
    errors = [
        (network(images) - graph.network(images)).norm()
        for network in (repaired.network, compact(graph, masks).network)
    ]
    assert errors[0] < errors[1]
    layers = [name for name, m in repaired.network.modules_by_step().items() if isinstance(m, (nn.Conv2d, nn.Linear))]
    missed = set(layers) - set(changed)
    of_images = {step.name for step in graph.network.steps if step.inputs == (0,)}
    assert missed <= of_images | set(list(graph.heads)[:3])  # the first attention comes before the first cut


@pytest.mark.parametrize("way", ["add", "cat"])
def test_what_reads_a_branch_that_is_gone_is_refitted(way: str) -> None:
    torch.manual_seed(0)
    graph, images = trace(Branches(way).eval()), torch.randn(128, 3, 8, 8)
    _, changed = refitted(graph, {"branch": torch.zeros(16, dtype=torch.bool)}, images)
    assert changed == ["reader", "head"]


def in_groups() -> Graph:
    """A network for images of 8 x 8 whose second convolution has four groups."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(), nn.Flatten()]
    return trace(nn.Sequential(*layers, nn.Linear(16 * 36, 5)).eval())


def test_groups_that_are_filled_up_are_refitted() -> None:
    """Groups that lost different numbers of channels have rows of zeros, which stay zeros."""
    graph = in_groups()
    images, fresh = torch.randn(2, 200, 3, 8, 8)
    masks = {"0": torch.arange(16) != 5, "2": torch.arange(16) % 7 != 0}
    repaired, changed = refitted(graph, masks, images)
    layer = repaired.network.get_submodule("2")
    assert changed == ["2", "5"]
    assert isinstance(layer, nn.Conv2d)
    padding = layer.weight.flatten(1).count_nonzero(1) == 0
    assert padding.sum() == len(layer.weight) - 13
    assert not layer.bias[padding].any()
    assert logit_error(graph, masks, fresh, LeastSquaresRepair(images)) < logit_error(graph, masks, fresh, None)


def test_large_layers_are_fitted_to_fewer_images(
    resnet: nn.Module, photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there is room for; the others join above, and all that is known of a layer fits into memory."""
    monkeypatch.setattr("pxp_optimize.pruning.repair.least_squares.LAYER_BYTES", 2**18)
    monkeypatch.setattr("pxp_optimize.pruning.repair.least_squares.PIXELS", 2**12)
    monkeypatch.setattr("pxp_optimize.pruning.repair.least_squares.FEW", 1)
    graph, repair = trace(resnet), LeastSquaresRepair(photos, enough=1)
    masks = random_masks(graph, 0.5)
    errors = [logit_error(graph, masks, photos, each) for each in (None, repair)]
    assert errors[1] < errors[0] / 2
    assert repair._unpruned is not None
    chunks = {name: len(goals.rows) for name, goals in repair._unpruned.goals.items()}
    assert chunks["conv1"] == 1  # of four images, with 64 KiB each
    assert chunks["conv1"] < chunks["layer2.0.conv1"] < chunks["layer4.1.conv2"] == 12  # of 24 images and averages
    for name, goals in repair._unpruned.goals.items():
        layer = graph.network.get_submodule(name)
        assert len(goals.values) * layer.weight[0].numel() * 4 <= max(2**18, 4 * layer.weight[0].numel() ** 2)  # type: ignore[union-attr, operator]


def test_a_compact_network_is_repaired_by_its_own_units() -> None:
    """Where its groups are filled up, a unit's index is not its channel's."""
    graph = in_groups()
    images, fresh = torch.randn(2, 200, 3, 8, 8)
    once = compact(graph, {"2": torch.arange(16) != 3})
    masks = {"2": ~torch.isin(torch.arange(15), torch.tensor([6, 10, 14])), "0": torch.arange(16) != 5}
    assert logit_error(once, masks, fresh, LeastSquaresRepair(images)) < 0.9 * logit_error(once, masks, fresh, None)


def test_projections_of_heads_that_are_left_are_refitted(transformer: nn.Module, images: Tensor) -> None:
    graph = trace(transformer)
    masks = {name: torch.arange(size) != 1 for name, size in graph.units("heads").items()}
    _, changed = refitted(graph, masks, images)
    assert set(graph.heads) - set(changed) == set(list(graph.heads)[:3])  # which read what no cut has changed


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_least_squares_leaves_what_nothing_changed_before(transformer: nn.Module, images: Tensor, kind: str) -> None:
    """Layers before the first that lost something are the very modules of the unpruned network."""
    graph = trace(transformer)
    last = list(graph.units(kind))[-1]
    masks = {name: torch.ones(size, dtype=torch.bool) for name, size in graph.units(kind).items()}
    masks[last][:2] = False
    before, after = (g.network.modules_by_step() for g in (graph, pruned(graph, masks, LeastSquaresRepair(images))))
    linear = [name for name, module in before.items() if isinstance(module, nn.Linear)]
    changed = [name for name in linear if after[name] is not before[name]]
    assert changed == linear[linear.index(changed[0]) :]
    assert not any("layer_0" in name for name in changed)


@pytest.mark.parametrize("groups", [16, 4])
def test_least_squares_refits_grouped_convolutions(groups: int) -> None:
    """What the expansion before it lost, the depthwise convolution and the projection make up for together."""
    torch.manual_seed(0)
    mobile = [nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=groups), nn.ReLU()]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), *mobile, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )
    images, fresh = torch.randn(2, 200, 3, 8, 8)
    graph = trace(model.eval())
    masks = {"0": torch.arange(8) < 5}
    repaired = pruned(graph, masks, LeastSquaresRepair(images))
    without = repaired.network.replaced({"4": model[4]})
    assert repaired.network.get_submodule("4").groups == groups

    def outputs(network: nn.Module) -> Tensor:
        found: list[Tensor] = []
        handle = network.get_submodule("4").register_forward_hook(lambda _, __, output: found.append(output))
        network(fresh)
        handle.remove()
        return found[0]

    errors = [(outputs(network) - outputs(graph.network)).norm() for network in (repaired.network, without)]
    assert errors[0] < errors[1]


def test_features_that_are_mostly_zero() -> None:
    """A kernel of nine taps on maps of one pixel reads padding with eight: their products are zero."""
    torch.manual_seed(0)
    images = torch.relu(torch.randn(100, 8, 1, 1)) * 30
    layer = nn.Conv2d(8, 7, 3, padding=1)
    goal = layer(images) + torch.randn(100, 7, 1, 1)
    weight, bias = fit(_rows(layer, images), goal.flatten(1).detach(), layer.weight.flatten(1))
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (3, 2), "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect"},
    ],
)
def test_rows_are_what_a_convolution_reads(options: dict[str, Any], last: bool) -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(3, 5, **options), torch.randn(4, 3, 7, 6)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    goal = layer(images).permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.allclose(_rows(layer, images) @ layer.weight.flatten(1).T + layer.bias, goal, atol=1e-5)
    by_pixel = layer.weight.permute(0, 2, 3, 1).flatten(1)
    assert torch.allclose(_rows(layer, images, last=True) @ by_pixel.T + layer.bias, goal, atol=1e-5)
    for rows in (torch.tensor([2, 5, 11]), torch.tensor([], dtype=torch.long)):
        assert torch.equal(_rows(layer, images, rows), _rows(layer, images)[rows])
        assert torch.equal(_rows(layer, images, rows, last=True), _rows(layer, images, last=True)[rows])


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (2, 2), (3, 5)])
@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"padding": 2, "dilation": 2}, {"padding": 1, "stride": 2}, {"padding": "same"}]
)
def test_only_taps_that_meet_pixels_are_fitted(options: dict[str, Any], size: tuple[int, int]) -> None:
    """The others have features that are always zero, and keep their weights."""
    torch.manual_seed(0)
    layer, images = nn.Conv2d(4, 5, 3, **options), torch.rand(6, 4, *size) + 1
    taps = _seen_taps(layer, size)
    features = _rows(layer, images).view(-1, 4, 3, 3)
    seen = torch.zeros(3, 3, dtype=torch.bool)
    seen[taps] = True
    assert torch.equal((features != 0).any(0).any(0), seen)
    assert torch.equal(_rows(layer, images, taps=taps), features[(..., *taps)].flatten(1))


def test_a_convolution_whose_padding_was_changed() -> None:
    """As in networks that were dilated or converted: what torch remembers of the padding is the old one's."""
    torch.manual_seed(0)
    depthwise, images = nn.Conv2d(16, 16, 3, groups=16), torch.randn(40, 3, 8, 8)
    depthwise.padding = (1, 1)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU6(), depthwise, nn.ReLU6(), nn.Conv2d(16, 24, 1), nn.ReLU6()]
    graph = trace(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)).eval())
    masks = random_masks(graph, 0.3)
    repair = LeastSquaresRepair(images)
    assert logit_error(graph, masks, images, repair) < logit_error(graph, masks, images, None)


def logit_error(graph: Graph, masks: Masks, images: Tensor, repair: Repair | None) -> float:
    """How far the pruned network's logits are from the whole one's."""
    return (pruned(graph, masks, repair).network(images) - graph.network(images)).norm().item()


class Tokens(nn.Module):
    """A residual MLP over 64 patches and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 64))
        self.up, self.down, self.head = nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


@pytest.mark.parametrize("kept", [31, 32, 33])  # with 32 a row at even distances would be a class token each time
def test_least_squares_reads_all_tokens(kept: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(512, 3, 32, 32)
    graph = trace(Tokens().eval())
    masks = {"up": torch.arange(128) < kept}
    plain, repaired = (
        logit_error(graph, masks, images, repair) for repair in (None, LeastSquaresRepair(images, least=1))
    )
    assert repaired < plain / 3


def test_tokens_count_by_how_much_the_logits_hang_on_them(transformer: nn.Module, photos: Tensor) -> None:
    graph, photos = trace(transformer), photos[..., :16, :16]
    before = {name: value.clone() for name, value in graph.network.state_dict().items()}
    weights = token_weights(graph, [photos[:10], photos[10:]])
    whole = token_weights(graph, [photos])
    tokens = {name: layer for name, layer in graph.network.modules_by_step().items() if name in weights}
    assert "head" not in "".join(name.rpartition(".")[2] for name in tokens)  # which reads class tokens only
    assert all(isinstance(layer, nn.Linear) for layer in tokens.values())
    for name, each in weights.items():
        assert torch.allclose(each, whole[name], rtol=1e-4)
        assert each.mean().item() == pytest.approx(1, abs=1e-4)
        assert each.min() >= 0.5 - 1e-6
    last = [name for name in weights if name.endswith("out_proj") or ".mlp." in name][-1]
    by_token = weights[last].view(len(photos), -1)
    of_class_token, of_patches = by_token[:, :1], by_token[:, 1:]
    assert (of_class_token > 2.5 * of_patches).all()  # the logits are read off it
    assert (of_patches < 0.51).all()
    after = graph.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(p.requires_grad or p.grad is not None for p in graph.network.parameters())
    assert not any(module._forward_hooks for module in graph.network.modules())


def test_tokens_that_come_first_have_no_weights() -> None:
    """Chunks of such rows do not follow one another as the samples do."""

    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.up, self.down = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 24), nn.Linear(24, 12)
            self.head = nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).permute(2, 0, 1)
            return self.head((x + self.down(torch.relu(self.up(x))))[0])

    assert token_weights(trace(TokensFirst().eval()), list(torch.randn(20, 3, 16, 16).split(8))) == {}


def test_only_tokens_have_weights(resnet: nn.Module, photos: Tensor) -> None:
    assert token_weights(trace(resnet), [photos]) == {}


@pytest.mark.parametrize("kept", [21, 22, 23])  # with 22 they would be of the leftmost column only
def test_least_squares_reads_all_columns(kept: int) -> None:
    torch.manual_seed(0)
    images = torch.zeros(100, 3, 32, 32)
    images[..., 4:28] = torch.randn(100, 3, 32, 24)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 8, 3, padding=1))
    graph = trace(nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval())
    masks = {"0.0": torch.arange(64) < kept}
    plain, repaired = (
        logit_error(graph, masks, images, repair) for repair in (None, LeastSquaresRepair(images, least=1))
    )
    assert repaired < plain / 3


@given(count=st.integers(1, 700), chunk=st.integers(1, 800))
def test_averages_come_behind_the_images_in_any_chunks(count: int, chunk: int) -> None:
    images = torch.arange(3.0 * count).view(count, 3)
    mixed = Mixed(images)
    assert len(mixed) == max(count, min(2 * count, MOST_IMAGES))
    averages = (images + images.roll(-max(1, count // 3), 0)) / 2
    got = torch.cat([mixed[start : start + chunk] for start in range(0, len(mixed), chunk)])
    assert torch.equal(got, torch.cat([images, averages])[: len(mixed)])


def test_least_squares_reads_averages_as_it_reads_images(
    resnet: nn.Module, photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = trace(resnet)
    masks = random_masks(graph, 0.5)
    small = compact(graph, masks)
    got = LeastSquaresRepair(photos)(graph, small, masks).network(photos)
    seen = Mixed(photos)[:]
    monkeypatch.setattr("pxp_optimize.pruning.repair.images.MOST_IMAGES", 0)
    assert torch.equal(got, LeastSquaresRepair(seen)(graph, small, masks).network(photos))
    assert not torch.equal(got, LeastSquaresRepair(photos)(graph, small, masks).network(photos))


def test_layers_that_read_what_is_not_finite_stay_as_they_are() -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=4)]
    graph = trace(nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32, 5)))
    with torch.no_grad():
        graph.network.get_submodule("0").weight.fill_(1e38)
    small = compact(graph, masks := {"0": torch.arange(8) < 4})
    repaired = LeastSquaresRepair(torch.rand(20, 3, 8, 8) + 9)(graph, small, masks)
    for name in ("1", "2", "4"):
        layers = [part.network.get_submodule(name) for part in (repaired, small)]
        assert torch.equal(layers[0].weight, layers[1].weight)


def test_names(resnet: nn.Module, transformer: nn.Module, photos: Tensor) -> None:
    assert make_repair("none", trace(resnet), photos) is None
    with pytest.raises(ValueError, match="choose from"):
        make_repair("glue", trace(resnet), photos)
    with pytest.raises(ValueError, match="least-squares"):
        make_repair("batchnorm", trace(transformer), photos)


def test_norms_follow_the_masks(resnet: nn.Module) -> None:
    graph = trace(resnet)
    masks = random_masks(graph, 0.5)
    small = compact(graph, masks)
    assert replace(small).norms.keys() == graph.norms.keys()
    for name, norm in small.norms.items():
        layer = small.network.get_submodule(name)
        assert norm.gamma.shape == layer.bias.shape  # type: ignore[union-attr]
