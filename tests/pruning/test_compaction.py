"""Compact networks against masked ones: the same logits from fewer parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pxp_optimize.pruning import Graph, compact, compact_model, masked_model, trace
from pxp_optimize.pruning.convolution import plain
from torch import Tensor, nn
from torch.nn.functional import pad

Masks = dict[str, Tensor]


def draw_masks(graph: Graph, seed: int, kept: float) -> Masks:
    """Random masks: each layer keeps a share of its own around `kept`, sometimes nothing or everything."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, size in graph.sizes.items():
        share = kept + 0.5 * (torch.rand(1, generator=generator).item() - 0.5)
        masks[name] = torch.rand(size, generator=generator) < share
    return masks


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def assert_same_logits(small: nn.Module, graph: Graph, masks: Mapping[str, Tensor], images: Tensor) -> None:
    expected = masked_model(graph, masks)(images)
    torch.testing.assert_close(small(images), expected, atol=1e-4 * float(expected.abs().max().clamp(min=1)), rtol=0)


def masks_of(graph: Graph) -> st.SearchStrategy[Masks]:
    """Any masks for a graph's layers, empty and full ones as likely as others."""

    def layer(size: int) -> st.SearchStrategy[Tensor]:
        some = st.lists(st.booleans(), min_size=size, max_size=size)
        return st.one_of(st.just([False] * size), st.just([True] * size), some, some).map(
            lambda kept: torch.tensor(kept, dtype=torch.bool)
        )

    return st.fixed_dictionaries({}, optional={name: layer(size) for name, size in graph.sizes.items()})


# -- every family ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.8, 0.4, 0.1])
def test_families(classifier: Any, kept: float) -> None:
    graph = trace(classifier.model)
    masks = draw_masks(graph, seed=3, kept=kept)
    small = compact_model(graph, masks)
    assert_same_logits(small, graph, masks, classifier.images)
    assert parameters(small) < parameters(graph.network)


def test_families_without_any_unit(classifier: Any) -> None:
    graph = trace(classifier.model)
    masks = {name: torch.zeros(size, dtype=torch.bool) for name, size in graph.sizes.items()}
    small = compact_model(graph, masks)
    assert_same_logits(small, graph, masks, classifier.images)
    assert parameters(small) < (0.5 if graph.heads else 0.2) * parameters(graph.network)
    first, second = small(classifier.images)
    if not graph.heads:  # nothing of the image is left in a convolutional network; there is in a residual stream
        torch.testing.assert_close(first, second)


def test_families_with_everything(classifier: Any) -> None:
    graph = trace(classifier.model)
    for masks in ({}, {name: torch.ones(size, dtype=torch.bool) for name, size in graph.sizes.items()}):
        small = compact_model(graph, masks)
        assert torch.equal(small(classifier.images), plain(graph.network)(classifier.images))
        assert parameters(small) == parameters(graph.network)


# -- any masks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything_graph(everything: nn.Module) -> Graph:
    return trace(everything)


@pytest.fixture(scope="module")
def transformer_graph(transformer: nn.Module) -> Graph:
    return trace(transformer)


@settings(max_examples=60)
@given(data=st.data())
def test_any_masks_of_a_convolutional_network(everything_graph: Graph, images: Tensor, data: st.DataObject) -> None:
    masks = data.draw(masks_of(everything_graph))
    small = compact_model(everything_graph, masks)
    assert_same_logits(small, everything_graph, masks, images[:3, :, :8, :8])
    assert parameters(small) <= parameters(everything_graph.network)


@settings(max_examples=40)
@given(data=st.data())
def test_any_masks_of_a_transformer(transformer_graph: Graph, images: Tensor, data: st.DataObject) -> None:
    masks = data.draw(masks_of(transformer_graph))
    small = compact_model(transformer_graph, masks)
    assert_same_logits(small, transformer_graph, masks, images[:3])


@settings(max_examples=40)
@given(data=st.data())
def test_again(everything_graph: Graph, images: Tensor, data: st.DataObject) -> None:
    """What is compact can be made more so: the masks of the second time count what the first has left."""
    _again(everything_graph, images[:3, :, :8, :8], data)


@settings(max_examples=25)
@given(data=st.data())
def test_again_for_a_transformer(transformer_graph: Graph, images: Tensor, data: st.DataObject) -> None:
    _again(transformer_graph, images[:3], data)


def _again(graph: Graph, images: Tensor, data: st.DataObject) -> None:
    first = data.draw(masks_of(graph))
    once = compact(graph, first)
    assert once.sizes == {name: int(first[name].sum()) if name in first else size for name, size in graph.sizes.items()}
    second = data.draw(masks_of(once))
    both = {}
    for name, size in graph.sizes.items():
        kept = first.get(name, torch.ones(size, dtype=torch.bool)).clone()
        if name in second:
            kept[kept.nonzero().flatten()] = second[name]
        both[name] = kept
    assert_same_logits(compact(once, second).network, graph, both, images)


def test_masks_of_a_compact_graph(everything_graph: Graph, images: Tensor) -> None:
    once = compact(everything_graph, {"grouped": torch.tensor([1, 1, 1, 0, 0, 0, 1, 0]).bool()})
    masks = {"grouped": torch.tensor([1, 0, 1, 1]).bool(), "last": torch.arange(6) < 2}
    assert_same_logits(compact(once, masks).network, once, masks, images[:, :, :8, :8])


# -- smaller ----------------------------------------------------------------------------------------------------


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def test_convolutions_lose_outputs_and_inputs(everything_graph: Graph) -> None:
    masks = {
        "stem": torch.tensor([1, 1, 0, 1, 1, 0, 1, 1]).bool(),
        "wide": torch.tensor([1, 0, 0, 0, 0, 0, 0, 0]).bool(),
        "down": torch.tensor([0, 1, 0, 0, 0, 0, 0, 0]).bool(),
        "depthwise": torch.tensor([1, 1, 0, 1] + [0] * 10 + [0, 1]).bool(),
        "last": torch.tensor([1, 1, 0, 0, 0, 0]).bool(),
        "hidden": torch.arange(7) < 3,
    }
    before, after = shapes(everything_graph.network), shapes(compact_model(everything_graph, masks))
    assert after["stem.weight"] == (6, 3, 3, 3)
    assert after["wide.weight"][0] == 1
    assert after["right.weight"] == (4, 2, 3, 3)  # reads the sum of wide and down: two channels live
    assert after["depthwise.weight"] == (6, 1, 3, 3)  # three of eight groups, each as wide as the widest
    assert after["left.weight"] == (4, 4, 1, 1)
    assert after["last.weight"] == (2, *before["last.weight"][1:])
    assert after["hidden.weight"] == (3, 2 * 2 * 2)  # three neurons; two channels of 2 x 2
    assert after["head.weight"] == before["head.weight"]  # sigmoid makes a constant of a pruned neuron


def test_a_branch_without_units_is_gone() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, padding=1)
            self.deep1 = nn.Conv2d(6, 6, 3, padding=1)
            self.deep2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            return self.fc((x + self.deep2(torch.relu(self.deep1(x)))).mean((2, 3)))

    torch.manual_seed(0)
    model = Branches().eval()
    masks = {"deep2": torch.zeros(6, dtype=torch.bool)}
    small = compact_model(model, masks)
    assert {name.partition(".")[0] for name in shapes(small)} == {"stem", "fc"}
    assert_same_logits(small, trace(model), masks, torch.randn(2, 3, 8, 8))


def test_heads_are_really_gone(transformer: nn.Module, transformer_graph: Graph, images: Tensor) -> None:
    names = list(transformer_graph.units("heads"))
    masks = {names[0]: torch.tensor([True, False, True, False]), names[1]: torch.tensor([False, True, False, False])}
    small = compact_model(transformer, masks)
    after = shapes(small)
    for name, heads in zip(names, (2, 1), strict=True):
        block = name.removesuffix(".softmax")
        for part in "qkv":
            assert after[f"{block}.{part}_proj.weight"] == (4 * heads, 16)
            assert after[f"{block}.{part}_proj.bias"] == (4 * heads,)
        assert after[f"{block}.out_proj.weight"] == (16, 4 * heads)
    assert_same_logits(small, transformer_graph, masks, images)


def test_attention_without_heads_leaves_its_bias(
    transformer: nn.Module, transformer_graph: Graph, images: Tensor
) -> None:
    name = next(iter(transformer_graph.units("heads")))
    block = name.removesuffix(".softmax")
    masks = {name: torch.zeros(4, dtype=torch.bool)}
    small = compact_model(transformer, masks)
    after = shapes(small)
    assert not any(key.startswith((f"{block}.q_", f"{block}.k_", f"{block}.v_")) for key in after)
    assert after[f"{block}.out_proj.weight"] == (16, 0)
    assert after[f"{block}.out_proj.bias"] == (16,)
    assert_same_logits(small, transformer_graph, masks, images)
    without = copy.deepcopy(transformer)
    without.get_submodule(block).out_proj.bias.data.zero_()
    assert not torch.allclose(compact_model(without, masks)(images), small(images), atol=1e-3)


def test_neurons_of_both_layers(transformer: nn.Module, transformer_graph: Graph) -> None:
    first, second = list(transformer_graph.units("neurons"))[:2]
    after = shapes(compact_model(transformer, {first: torch.arange(24) < 5, second: torch.arange(16) < 7}))
    assert after[f"{first}.weight"] == (5, 16)
    assert after[f"{second}.weight"] == (7, 5)


# -- what other operations do with pruned channels ---------------------------------------------------------------


class Written(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.function = forward
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(3, 6, 3, padding=1)
        self.small = nn.Conv2d(3, 6, 3, padding=1, stride=2)
        self.one = nn.Conv2d(6, 1, 3, padding=1)
        self.whole = nn.Conv2d(3, 6, 8)
        self.valid = nn.Conv2d(3, 6, 3)
        self.pixel = nn.Linear(3, 6)
        self.rows = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(6)
        self.flat_norm = nn.BatchNorm1d(384)
        self.scale = nn.Parameter(torch.randn(6, 1, 1))
        self.fc = nn.Linear(features, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def last(x: Tensor) -> Tensor:
    """Channels last."""
    return x.permute(0, 2, 3, 1)


WRITINGS: dict[str, tuple[int, Callable[[Any, Tensor], Tensor]]] = {
    "sigmoid": (6, lambda s, x: s.fc(torch.sigmoid(s.a(x)).mean((2, 3)))),
    "spatial gate": (6, lambda s, x: s.fc((y := s.a(x), y * torch.sigmoid(s.one(y)))[1].mean((2, 3)))),
    "flatten": (384, lambda s, x: s.fc(torch.relu(s.a(x).flatten(1)))),
    "flatten, then sigmoid": (384, lambda s, x: s.fc(torch.sigmoid(s.a(x).flatten(1)))),
    "flatten, then sum": (384, lambda s, x: s.fc(s.a(x).flatten(1) + s.b(x).flatten(1))),
    "flatten, then concatenation": (480, lambda s, x: s.fc(torch.cat([s.a(x).flatten(1), s.small(x).flatten(1)], 1))),
    "flatten, then BatchNorm": (384, lambda s, x: s.fc(s.flat_norm(s.a(x).flatten(1)))),
    "mean over features": (6, lambda s, x: s.fc((y := s.a(x).mean((2, 3))) + y.mean(-1, keepdim=True))),
    "mean over channels that are next to last": (8, lambda s, x: s.fc(s.a(x).mean(3).mean(-2))),
    "mean over two, one by one": (6, lambda s, x: s.fc(s.a(x).mean(-1).mean(-1))),
    "flatten in part": (8, lambda s, x: s.fc(s.a(x).flatten(1, 2).mean(1))),
    "tokens": (6, lambda s, x: s.fc(s.a(x).flatten(2).transpose(1, 2)).mean(1)),
    "BatchNorm apart": (6, lambda s, x: s.fc(s.norm(torch.relu(s.a(x))).mean((2, 3)))),
    "layer scale": (6, lambda s, x: s.fc((s.a(x) * s.scale).mean((2, 3)))),
    "shift": (6, lambda s, x: s.fc(s.one(s.a(x) + 0.5).flatten(1)[:, :6])),
    "sum that broadcasts": (6, lambda s, x: s.fc((s.a(x) + s.b(x).mean((2, 3), keepdim=True)).mean((2, 3)))),
    "part of the channels": (3, lambda s, x: s.fc(s.a(x)[:, 1:4].mean((2, 3)))),
    "max over nothing negative": (96, lambda s, x: s.fc(nn.functional.max_pool2d(s.a(x), 2).flatten(1))),
    "padded": (6, lambda s, x: s.fc(nn.functional.pad(s.a(x), (1, 1)).mean((2, 3)))),
    "concatenation": (12, lambda s, x: s.fc(torch.cat([s.a(x), torch.sigmoid(s.b(x))], 1).mean((2, 3)))),
    "product": (6, lambda s, x: s.fc((s.a(x) * s.b(x)).mean((2, 3)))),
    "permuted": (6, lambda s, x: s.fc(s.a(x).permute(0, 2, 3, 1)).mean((1, 2))),
    "sum with a convolution as large as the map": (384, lambda s, x: s.fc((s.a(x) + s.whole(x)).flatten(1))),
    "sum with a padded convolution": (384, lambda s, x: s.fc((s.a(x) + s.valid(pad(x, (1, 1, 1, 1)))).flatten(1))),
    "no longer flat": (
        8,
        lambda s, x: s.fc(s.pixel(last(s.a(x).flatten(1).view(-1, 3, 16, 8))).permute(0, 1, 3, 2)).mean((1, 2)),
    ),
    "sum of two ways to halve": (6, lambda s, x: s.fc((s.small(x) + s.b(nn.functional.max_pool2d(x, 2))).mean((2, 3)))),
    "pixels, then convolution": (1, lambda s, x: s.fc(s.one(s.pixel(last(x)).permute(0, 3, 1, 2)).mean((2, 3)))),
    "linear over another dimension": (8, lambda s, x: s.fc(s.pixel(last(x)).permute(0, 1, 3, 2)).mean((1, 2))),
    "convolution over another dimension": (8, lambda s, x: s.fc(s.rows(s.pixel(last(x))).mean((2, 3)))),
    "strips": (6, lambda s, x: s.fc((s.a(x).mean(2, keepdim=True) + s.b(x).mean(3, keepdim=True)).mean((2, 3)))),
    "sum with what is reshaped": (6, lambda s, x: s.fc((s.a(x) + s.b(x).mean((2, 3)).view(-1, 6, 1, 1)).mean((2, 3)))),
    "pooling in lists": (96, lambda s, x: s.fc(nn.functional.max_pool2d(s.a(x), [2, 2]).flatten(1))),
    "view": (384, lambda s, x: s.fc(torch.relu(s.a(x)).view(x.size(0), -1))),
    "pooling of channels": (3, lambda s, x: s.fc(nn.functional.max_pool2d(s.pixel(last(x)), 2)).mean((1, 2))),
}


@pytest.mark.parametrize("name", WRITINGS)
def test_operations(name: str, randomise: Callable[[nn.Module], nn.Module]) -> None:
    features, function = WRITINGS[name]
    torch.manual_seed(0)
    graph = trace(randomise(Written(function, features)))
    x = torch.randn(3, 3, 8, 8)
    for seed in range(8):
        masks = draw_masks(graph, seed, 0.5)
        if seed >= 6:  # a layer without units
            first = next(iter(masks))
            masks[first] = torch.zeros_like(masks[first])
        assert_same_logits(compact_model(graph, masks), graph, masks, x)


def test_sum_that_broadcasts_over_an_empty_branch() -> None:
    function = lambda s, x: s.fc((s.a(x) + s.b(x).mean((2, 3), keepdim=True)).flatten(1))  # noqa: E731
    graph = trace(Written(function, 384).eval())
    masks = {"a": torch.zeros(6, dtype=torch.bool)}
    assert_same_logits(compact_model(graph, masks), graph, masks, torch.randn(3, 3, 8, 8))


def test_a_view_is_compacted_like_a_flatten() -> None:
    model = Written(lambda s, x: s.fc(torch.relu(s.a(x)).view(x.size(0), -1)), 384).eval()
    small = compact_model(model, {"a": torch.arange(6) < 2})
    assert small.fc.in_features == 128


def test_a_layer_that_is_put_in_anothers_place_runs() -> None:
    model = Written(lambda s, x: s.fc(s.a(x).mean((2, 3))), 6).eval()
    small = compact_model(model, {"a": torch.arange(6) < 2})
    small.fc = nn.Linear(2, 3)
    assert small(torch.randn(1, 3, 8, 8)).shape == (1, 3)


class Fed(nn.Module):
    """Attention that reads neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.fc(last(x).flatten(1, 2)))
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


def test_attention_that_reads_no_neuron(randomise: Callable[[nn.Module], nn.Module]) -> None:
    graph = trace(randomise(Fed()))
    for seed in range(4):
        masks = {**draw_masks(graph, seed, 0.5), "fc": torch.zeros(8, dtype=torch.bool)}
        assert_same_logits(compact_model(graph, masks), graph, masks, torch.randn(3, 3, 4, 4))


# -- the masked model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["everything_graph", "transformer_graph"])
def test_masked_units_are_exactly_zero(network: str, images: Tensor, request: pytest.FixtureRequest) -> None:
    graph: Graph = request.getfixturevalue(network)
    masks = draw_masks(graph, seed=1, kept=0.5)
    model = masked_model(graph, masks)
    outputs: dict[str, Tensor] = {}
    for name, module in model.modules_by_step().items():
        module.register_forward_hook(lambda module, args, output, name=name: outputs.update({name: output}))
    model(images if graph.heads else images[:, :, :8, :8])
    for name, kept in masks.items():
        axis = -1 if graph.kinds[name] == "neurons" else 1
        units = outputs[name].transpose(0, axis).flatten(1)
        assert not units[~kept].any(), name
        assert units[kept].any(1).all(), name
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == shapes(graph.network)


def test_masked_bias_is_zero_after_folding(everything_graph: Graph) -> None:
    kept = torch.arange(8) % 2 == 0
    stem = masked_model(everything_graph, {"stem": kept}).get_submodule("stem")
    assert stem.bias is not None  # of the BatchNorm: the layer had none
    assert not stem.bias[~kept].any()
    assert torch.equal(stem.bias[kept], everything_graph.network.get_submodule("stem").bias[kept])


# -- model, masks, state dict -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [compact_model, masked_model])
def test_model_is_left_as_it_was(make: Callable, everything: nn.Module, images: Tensor) -> None:
    model = copy.deepcopy(everything).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = trace(everything)
    expected = graph.network(images[:, :, :8, :8])
    masks = draw_masks(graph, 1, 0.5)
    kept = {name: mask.clone() for name, mask in masks.items()}
    for one in (model, graph):
        small = make(one, masks)
        with torch.no_grad():
            for parameter in small.parameters():
                assert parameter.requires_grad == (make is compact_model)
        assert not small.training
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(graph.network(images[:, :, :8, :8]), expected)
    assert all(torch.equal(masks[name], kept[name]) for name in masks)


def test_state_dict_loads_into_another_of_the_same_call(
    everything: nn.Module, transformer: nn.Module, images: Tensor
) -> None:
    for model, x in ((everything, images[:, :, :8, :8]), (transformer, images)):
        masks = draw_masks(trace(model), 5, 0.4)
        small = compact_model(model, masks)
        saved = {key: value.clone() for key, value in small.state_dict().items()}
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(9))
        fresh = compact_model(other, masks)
        assert not torch.allclose(fresh(x), small(x))
        fresh.load_state_dict(saved)
        assert torch.equal(fresh(x), small(x))


def test_compact_model_saves_and_trains(transformer: nn.Module, images: Tensor, tmp_path: Any) -> None:
    masks = draw_masks(trace(transformer), 5, 0.5)
    small = compact_model(transformer, masks)
    torch.save(small.state_dict(), tmp_path / "small.pt")
    again = compact_model(transformer, masks)
    again.load_state_dict(torch.load(tmp_path / "small.pt", weights_only=True))
    assert torch.equal(again(images), small(images))
    again.requires_grad_(True)
    again(images).sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters() if parameter.numel())


def test_masks_may_be_floats_or_on_another_layout(everything_graph: Graph, images: Tensor) -> None:
    kept = torch.tensor([1, 0, 1, 0, 1, 0])
    expected = compact_model(everything_graph, {"last": kept.bool()})(images[:, :, :8, :8])
    got = compact_model(everything_graph, {"last": kept.float()})(images[:, :, :8, :8])
    assert torch.equal(got, expected)


@pytest.mark.parametrize("make", [compact_model, masked_model])
@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"head": torch.ones(5)}, "'head', which is not a prunable layer"),
        ({"nothing": torch.ones(5)}, "'nothing', which is not a prunable layer"),
        ({"gate": torch.ones(8)}, "'gate', which is not a prunable layer"),
        ({"stem": torch.ones(7)}, r"shape \(7,\); the layer has 8 units"),
        ({"stem": torch.ones(8, 1)}, r"shape \(8, 1\); the layer has 8 units"),
        ({"stem": torch.tensor(True)}, r"shape \(\); the layer has 8 units"),
    ],
)
def test_masks_that_do_not_fit(make: Callable, masks: Masks, message: str, everything_graph: Graph) -> None:
    with pytest.raises(ValueError, match=message):
        make(everything_graph, masks)


def test_names_and_sizes_of_the_compact_graph(everything_graph: Graph) -> None:
    masks = draw_masks(everything_graph, 2, 0.6)
    small = compact(everything_graph, masks)
    assert list(small.sizes) == list(everything_graph.sizes)
    assert small.kinds == everything_graph.kinds
    assert small.groups == everything_graph.groups
    norm, before = small.norms["stem"], everything_graph.norms["stem"]
    if masks["stem"].any():
        assert torch.equal(norm.std, before.std[masks["stem"]])
        assert torch.equal(norm.gamma, before.gamma[masks["stem"]])
