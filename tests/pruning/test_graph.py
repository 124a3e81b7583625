"""From models to graphs: the same function, the right groups and units, and what is refused."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from pxp_optimize.pruning import Graph, TraceError, trace
from pxp_optimize.pruning import modules as ops
from torch import Tensor, nn


class Written(nn.Module):
    """A model whose forward function the test writes."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(before: int, after: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, **options)


def written(forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = {"a": conv(3, 6), "b": conv(3, 6), "c": conv(6, 6), "fc": nn.Linear(6, 4), **layers}
    return Written(forward, **layers).eval()


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return getattr(torchvision.models, name)()


def relative(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return ((got - expected).norm() / expected.norm()).item()


# -- the same function --------------------------------------------------------------------------------------


def test_families_compute_the_same(classifier: Any) -> None:
    graph = trace(classifier.model)
    expected = classifier.model(classifier.images)
    assert expected.std() > 1e-3, "these logits could not tell a wrong network"
    assert relative(graph.network(classifier.images), expected) < 1e-5
    assert not graph.network.training
    assert not any(parameter.requires_grad for parameter in graph.network.parameters())


def test_batch_norms_are_folded(classifier: Any) -> None:
    graph = trace(classifier.model)
    left = [m for m in graph.network.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    if not classifier.name.startswith("densenet"):  # where they stand before their convolutions
        assert not left
    # every convolution that a BatchNorm follows, and none else
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in classifier.model.modules())
    auxiliary = sum(
        "aux" in name.lower() and isinstance(m, nn.BatchNorm2d) for name, m in classifier.model.named_modules()
    )
    assert len(graph.norms) + len(left) == norms - auxiliary


def test_signs_of_inputs_hold(classifier: Any) -> None:
    graph = trace(classifier.model)
    modules = graph.network.modules_by_step()
    first = next(iter(graph.groups))
    assert first not in graph.nonnegative
    seen = {}
    for name in graph.nonnegative & set(graph.groups):
        modules[name].register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0].min().item()}))
    graph.network(10 * classifier.images)
    assert all(low >= 0 for low in seen.values()), seen
    assert len(seen) == len(graph.nonnegative & set(graph.groups))


def test_layers_that_only_relu_reads() -> None:
    graph = trace(on_meta("resnet18"))
    # before the residual sum there is no ReLU of the branch's own
    assert graph.rectified == {"conv1"} | {f"layer{i}.{j}.conv1" for i in range(1, 5) for j in range(2)}
    assert graph.nonnegative >= set(graph.groups) - {"conv1"}


@pytest.mark.parametrize(
    ("function", "rectified"),
    [
        (lambda s, x: s.fc(F.relu(s.a(x)).mean((2, 3))), True),
        (lambda s, x: s.fc(F.gelu(s.a(x)).mean((2, 3))), False),
        (lambda s, x: s.fc((y := s.a(x), F.relu(y) + y)[1].mean((2, 3))), False),
        (lambda s, x: s.fc(s.c(torch.sigmoid(F.relu(s.a(x)))).mean((2, 3))), False),
        (lambda s, x: s.fc(F.max_pool2d(F.relu(s.a(x)), 2).mean((2, 3))), True),
    ],
    ids=["relu", "gelu", "read beside", "relu not read linearly", "pooled"],
)
def test_rectified(function: Callable, rectified: bool) -> None:
    assert ("a" in trace(written(function)).rectified) is rectified


WRITINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "module and function": lambda s, x: s.fc(torch.flatten(F.adaptive_avg_pool2d(F.relu(s.a(x)), (1, 1)), 1)),
    "methods": lambda s, x: s.fc(s.a(x).relu().mean(dim=(2, 3)).flatten(1)),
    "view": lambda s, x: s.fc(s.a(x).relu().mean((2, 3), keepdim=True).view(x.size(0), -1)),
    "reshape by shape": lambda s, x: s.fc(s.a(x).mean((2, 3)).reshape(x.shape[0], 6)),
    "max pool by position": lambda s, x: s.fc(F.max_pool2d(s.a(x), 3, 2, 1).mean((2, 3))),
    "max pool by name": lambda s, x: s.fc(F.max_pool2d(s.a(x), kernel_size=2, ceil_mode=True).mean((2, 3))),
    "average pool": lambda s, x: s.fc(F.avg_pool2d(s.a(x), 3, stride=2, padding=1).mean((2, 3))),
    "leaky by position": lambda s, x: s.fc(F.leaky_relu(s.a(x), 0.4).mean((2, 3))),
    "leaky by name": lambda s, x: s.fc(F.leaky_relu(s.a(x), negative_slope=0.4).mean((2, 3))),
    "softplus by position": lambda s, x: s.fc(F.softplus(s.a(x), 3.0).mean((2, 3))),
    "gelu by name": lambda s, x: s.fc(F.gelu(s.a(x), approximate="tanh").mean((2, 3))),
    "in place by name": lambda s, x: s.fc(F.relu(s.a(x), inplace=True).mean((2, 3))),
    "scaled and shifted": lambda s, x: s.fc(s.c(2 * s.a(x - 0.5) / 3 + 1).mean((2, 3))),
    "sum": lambda s, x: s.fc(torch.add(s.a(x), s.b(x)).add(x.mean(1, keepdim=True)).mean((2, 3))),
    "product": lambda s, x: s.fc(torch.mul(s.a(x), s.b(x)).mean((2, 3))),
    "concatenation": lambda s, x: s.fc(s.c(torch.cat([s.a(x)[:, :3], s.b(x)[:, 3:]], dim=1)).mean((2, 3))),
    "padding": lambda s, x: s.fc(F.pad(s.a(x), (1, 2, 0, 1)).mean((2, 3))),
    "tokens": lambda s, x: s.fc(s.a(x).flatten(2).transpose(1, 2)).mean(1),
    "permuted": lambda s, x: s.fc(s.a(x).permute(0, 2, 3, 1)).mean((1, 2)),
    "dropout": lambda s, x: s.fc(F.dropout(s.a(x), 0.5, training=s.training).mean((2, 3))),
    "average pool over the map": lambda s, x: s.fc(torch.flatten(F.avg_pool2d(y := s.a(x), y.size()[2:]), 1)),
    "average pool over a side": lambda s, x: s.fc(F.avg_pool2d(y := s.a(x), y.size(2)).flatten(1)),
    "average pool with a divisor": lambda s, x: s.fc(F.avg_pool2d(s.a(x), 7, divisor_override=3).flatten(1)),
    "names of NumPy": lambda s, x: s.fc(torch.cat([s.a(x), s.b(x)], axis=1)[:, :6].mean(axis=(2, 3))),
    "input by name": lambda s, x: s.fc(input=torch.relu(input=s.a(x)).mean((2, 3))),
    "in place, unused": lambda s, x: (y := s.a(x), s.r(y), F.relu_(z := s.c(y)), s.fc((y + z).mean((2, 3))))[-1],
    "in place by position": lambda s, x: s.fc(F.relu(s.a(x), True).mean((2, 3))),
    "scale of a shape": lambda s, x: s.fc((s.a(x) * torch.sigmoid(s.fc.weight[0]).view(1, -1, 1, 1)).mean((2, 3))),
    "linear layer over positions, then BatchNorm": lambda s, x: s.fc(
        s.norm(s.pixel(s.a(x).flatten(2)[:, :, :6])).mean(2)
    ),
    "activation twice": lambda s, x: s.fc(s.r(s.c(s.r(s.a(x)))).mean((2, 3))),
    "changed under another name": lambda s, x: change(s.a(x), lambda y: operator.iadd(y, s.b(x)), s),
    "reduced under another name": lambda s, x: change(s.a(x), lambda y: operator.isub(y, 0.5), s),
    "scaled under another name": lambda s, x: change(s.a(x), lambda y: operator.imul(y, s.b(x)), s),
    "divided under another name": lambda s, x: change(s.a(x), lambda y: operator.itruediv(y, 2), s),
    "a size that is counted up": lambda s, x: s.fc(s.a(x).mean((2, 3)).view(operator.iadd(x.size(0), 0), 6)),
    "written into what is viewed": lambda s, x: (
        y := s.a(x).mean((2, 3)),
        z := y.view(-1, 6),
        F.relu_(y),
        s.fc(z),
    )[-1],
    "difference of activations": lambda s, x: s.fc((s.a(x) - s.b(x)).mean((2, 3))),
    "quotient of activations": lambda s, x: s.fc((s.a(x) / (2 + torch.sigmoid(s.b(x)))).mean((2, 3))),
    "constant less activation": lambda s, x: s.fc((1 - s.a(x)).mean((2, 3))),
    "scaled sum": lambda s, x: s.fc(torch.add(s.a(x), s.b(x), alpha=0.5).mean((2, 3))),
    "times a size": lambda s, x: s.fc((s.a(x) * x.shape[1]).mean((2, 3))),
    "changed after all views are read": lambda s, x: s.fc(operator.iadd(s.a(x).flatten(2), 1).mean(2)),
}


def change(y: Tensor, write: Callable[[Tensor], Tensor], s: Any) -> Tensor:
    """Logits of a value that is changed in place, by both of its names."""
    return s.fc((write(y) * s.c(y)).mean((2, 3)))


@pytest.mark.parametrize("name", WRITINGS)
def test_ways_to_write_a_model(name: str) -> None:
    norm = nn.BatchNorm1d(6)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    torch.nn.init.normal_(norm.running_mean)
    model = written(WRITINGS[name], r=nn.ReLU(inplace=True), pixel=nn.Linear(6, 6), norm=norm)
    x = torch.randn(3, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    assert relative(trace(model).network(x), model(x.clone())) < 1e-6


@pytest.mark.parametrize(
    "relu", [nn.ReLU(inplace=True), F.relu_, lambda x: F.relu(x, inplace=True), torch.relu_, lambda x: x.relu_()]
)
def test_what_is_changed_in_place_is_read_changed(relu: Callable[[Tensor], Tensor]) -> None:
    """As in pre-activation residual blocks: `x + conv(relu(x))` adds the rectified x when relu works in place."""

    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        z = s.r(y) if isinstance(relu, nn.Module) else relu(y)
        return s.fc((y + s.c(z)).mean((2, 3)))

    model = written(forward, **({"r": relu} if isinstance(relu, nn.Module) else {}))
    x = torch.randn(3, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    assert relative(trace(model).network(x), model(x)) < 1e-6


def test_pooling_over_a_side_needs_square_maps() -> None:
    network = trace(written(WRITINGS["average pool over a side"]), torch.randn(2, 3, 6, 6)).network
    with pytest.raises(ValueError, match="5 x 7"):
        network(torch.randn(2, 3, 5, 7))
    model = written(lambda s, x: s.fc(F.avg_pool2d(y := s.a(x), (y.size(-2), y.size(3))).flatten(1)))
    x = torch.randn(2, 3, 5, 7)
    assert relative(trace(model, x).network(x), model(x)) < 1e-6


def test_network_leaves_its_input() -> None:
    model = written(lambda s, x: s.fc(s.a(F.relu_(x)).mean((2, 3))))
    x = torch.randn(3, 3, 7, 7)
    before = x.clone()
    trace(model).network(x)
    assert torch.equal(x, before)


def test_attention_with_separate_weights() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, 2, batch_first=True, kdim=4, vdim=5, bias=False)

    def forward(s: Any, x: Tensor) -> Tensor:
        tokens = s.a(x).flatten(2).transpose(1, 2)
        mixed, _ = s.attention(tokens, tokens[..., :4], tokens[..., 1:], need_weights=False)
        return s.fc(mixed.mean(1))

    model = written(forward, attention=attention)
    x = torch.randn(2, 3, 4, 4)
    graph = trace(model)
    assert relative(graph.network(x), model(x)) < 1e-5
    assert graph.units() == {"attention.softmax": 2}


def test_a_graph_is_its_own_trace(everything: nn.Module) -> None:
    graph = trace(everything)
    assert trace(graph) is graph


def test_graph_holds_copies(everything: nn.Module) -> None:
    model = copy.deepcopy(everything).train().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    x = torch.randn(2, 3, 8, 8)
    expected = graph.network(x)
    with torch.no_grad():
        for parameter in graph.network.parameters():
            assert parameter.data_ptr() not in {p.data_ptr() for p in model.parameters()}
        for tensor in model.state_dict().values():
            tensor.zero_()
        assert torch.equal(graph.network(x), expected)
        model.load_state_dict(before)
        for parameter in graph.network.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# -- groups and units -----------------------------------------------------------------------------------------


def groups_of(graph: Graph) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, group in graph.groups.items():
        found.setdefault(group, []).append(name)
    return found


@pytest.mark.parametrize(("name", "convolutions"), [("resnet18", 20), ("resnet50", 53)])
def test_groups_of_resnets(name: str, convolutions: int) -> None:
    graph = trace(on_meta(name))
    stages = {"conv1": "low", "layer1": "low", "layer2": "mid", "layer3": "mid", "layer4": "high", "fc": "classifier"}
    assert len(graph.groups) == convolutions + 1
    assert graph.groups == {layer: stages[layer.partition(".")[0]] for layer in graph.groups}
    assert list(groups_of(graph)) == ["low", "mid", "high", "classifier"]
    assert sum(graph.units("filters").values()) == {"resnet18": 4800, "resnet50": 26560}[name]


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_groups_of_vgg16(name: str) -> None:
    model = on_meta(name)
    graph = trace(model)
    convolutions = [f"features.{i}" for i, layer in enumerate(model.features) if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 13
    assert groups_of(graph) == {
        "low": convolutions[:4],
        "mid": convolutions[4:9],
        "high": convolutions[9:],
        "classifier": ["classifier.0", "classifier.3", "classifier.6"],
    }
    assert sum(graph.units("filters").values()) == 4224
    assert graph.units("neurons") == {"classifier.0": 4096, "classifier.3": 4096}


@pytest.mark.parametrize(("layers", "low", "high"), [(4, 1, 3), (8, 2, 6), (12, 3, 9)])
def test_groups_of_vision_transformers(layers: int, low: int, high: int, vision_transformer: Callable) -> None:
    graph = trace(vision_transformer(layers=layers))
    for name, group in graph.groups.items():
        if name == "heads.head":
            assert group == "classifier"
        else:
            block = int(name.split("encoder_layer_")[1].split(".")[0])
            assert group == ("low" if block < low else "mid" if block < high else "high")
    assert len(graph.groups) == 6 * layers + 1  # the patch convolution takes no rule
    block = "encoder.layers.encoder_layer_0"
    assert list(graph.groups)[:6] == [
        *(f"{block}.self_attention.{part}_proj" for part in ("q", "k", "v", "out")),
        f"{block}.mlp.0",
        f"{block}.mlp.3",
    ]


def test_groups_of_other_models_by_fractions() -> None:
    model = nn.Sequential(nn.Sequential(*[conv(3, 3) for _ in range(26)]), nn.Flatten(), nn.Linear(48, 2))
    counts = {group: len(names) for group, names in groups_of(trace(model)).items()}
    assert counts == {"low": 8, "mid": 10, "high": 8, "classifier": 1}


def test_types() -> None:
    types = trace(on_meta("resnet18")).types
    assert types["conv1"] == "stem"
    assert types["layer1.0.conv1"] == "3x3"
    assert types["layer2.0.downsample.0"] == "downsample"
    assert types["fc"] == "linear"
    assert trace(on_meta("resnet50")).types["layer1.0.conv1"] == "1x1"
    assert "depthwise" in trace(on_meta("mobilenet_v2")).types.values()


def test_types_of_transformers(transformer: nn.Module) -> None:
    types = list(trace(transformer).types.values())
    assert types == ["q", "k", "v", "out", "mlp", "mlp"] * 2 + ["linear"]


def test_names_like_attentions_are_no_attention() -> None:
    model = written(lambda s, x: s.fc(s.out_proj(s.a(x).mean((2, 3)))), out_proj=nn.Linear(6, 6))
    assert trace(model).types == {"a": "stem", "out_proj": "linear", "fc": "linear"}


def test_a_transformers_convolutions_take_rules_but_for_those_that_make_its_tokens() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        tokens = F.relu(s.c(s.a(x))).flatten(2).transpose(1, 2)
        mixed = s.attention(tokens, tokens, tokens)[0] + tokens
        return s.fc(s.later(mixed.transpose(1, 2).reshape(-1, 6, 4, 4)).mean((2, 3)))

    model = written(forward, attention=nn.MultiheadAttention(6, 2, batch_first=True), later=conv(6, 6))
    graph = trace(model)
    assert [*graph.groups] == [*(f"attention.{part}_proj" for part in ("q", "k", "v", "out")), "later", "fc"]
    assert graph.types["later"] == "3x3"


def test_units_of_transformers(transformer: nn.Module) -> None:
    graph = trace(transformer)
    blocks = [f"encoder.layers.encoder_layer_{i}" for i in range(2)]
    assert graph.units("heads") == {f"{block}.self_attention.softmax": 4 for block in blocks}
    assert graph.units() == graph.units("heads")
    neurons = graph.units("neurons")
    assert neurons == {
        f"{block}.{layer}": size for block, (layer, size) in itertools.product(blocks, (("mlp.0", 24), ("mlp.3", 16)))
    }
    assert graph.units("heads+neurons") == graph.sizes
    assert graph.units("neurons+heads") == graph.sizes
    with pytest.raises(ValueError, match="no filters"):
        graph.units("filters")


def test_units_of_a_fully_convolutional_classifier() -> None:
    graph = trace(torchvision.models.squeezenet1_1(num_classes=5))
    assert "classifier.1" not in graph.sizes  # it gives the logits
    assert graph.groups["classifier.1"] == "classifier"


def test_graph_moves() -> None:
    graph = trace(torchvision.models.resnet18(num_classes=3))
    assert graph.to("meta") is graph
    assert graph.device.type == "meta"
    assert all(norm.std.device.type == "meta" for norm in graph.norms.values())


def test_normalisations_are_kept(everything: nn.Module) -> None:
    graph = trace(everything)
    assert list(graph.norms) == ["stem"]
    norm, before = graph.norms["stem"], everything.norm
    torch.testing.assert_close(norm.std, (before.running_var + before.eps).sqrt())
    torch.testing.assert_close(norm.gamma, before.weight.detach())
    torch.testing.assert_close(norm.beta, before.bias.detach())


def test_weights_that_are_computed() -> None:
    model = written(lambda s, x: s.fc(s.c(s.a(x)).mean((2, 3))))
    nn.utils.parametrizations.weight_norm(model.a)
    nn.utils.prune.l1_unstructured(model.c, "weight", 0.5)
    nn.utils.spectral_norm(model.fc)
    x = torch.randn(3, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    model(x)  # leaves weights with a history, which torch does not copy
    with torch.no_grad():
        expected = model(x)
        graph = trace(model)
        assert relative(graph.network(x), expected) < 1e-6
        assert torch.equal(model(x), expected)
    assert "c.weight" in graph.network.state_dict()


FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda z: z.flatten(1, 3),
    "view": lambda z: z.view(-1, 6),
    "view by size": lambda z: z.view(z.size(0), 6),
    "reshape": lambda z: z.reshape((-1, 6)),
    "squeeze": lambda z: z.squeeze(-1).squeeze(2),
    "index": lambda z: z[:, :, 0, 0],
    "means": lambda z: z.mean(-1).mean(2),
    "chunk": lambda z: z.flatten(1).chunk(1, 1)[0],
    "permute": lambda z: z.permute(0, 2, 3, 1).flatten(1),
    "unsqueeze": lambda z: z.unsqueeze(1).flatten(1),
}


@pytest.mark.parametrize("name", FEATURES)
def test_batch_norm_of_features_is_folded(name: str) -> None:
    norm = nn.BatchNorm1d(8)
    for value in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(value)
    features = FEATURES[name]
    forward = lambda s, x: s.head(F.relu(s.norm(s.hidden(features(F.adaptive_avg_pool2d(s.a(x), 1))))))  # noqa: E731
    model = written(forward, hidden=nn.Linear(6, 8), norm=norm, head=nn.Linear(8, 4))
    graph = trace(model)
    assert [*graph.norms] == ["hidden"]
    x = torch.randn(3, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    assert relative(graph.network(x), model(x)) < 1e-6


def test_arguments_that_nobody_gives() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = conv(3, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor, features: bool = False) -> Tensor:
            x = self.a(x).mean((2, 3))
            return x if features else self.fc(x)

    model, x = Two().eval(), torch.randn(2, 3, 5, 5)
    assert relative(trace(model).network(x), model(x)) < 1e-6


def test_no_layer_of_the_logits_is_pruned() -> None:
    model = written(lambda s, x: s.fc(s.a(x).mean((2, 3))) * torch.sigmoid(s.h(s.b(x).mean((2, 3)))), h=nn.Linear(6, 4))
    assert [*trace(model).sizes] == ["a", "b"]


def test_groups_of_a_network_in_another() -> None:
    inner = torchvision.models.resnet18(num_classes=4)
    groups = trace(nn.Sequential(nn.Conv2d(1, 3, 1), inner)).groups
    assert set(groups.values()) == {"low", "mid", "high", "classifier"}
    assert [name for name, group in groups.items() if group == "classifier"] == ["1.fc"]


# -- refused --------------------------------------------------------------------------------------------------


def attend(**options: Any) -> Callable[[Any, Tensor], Tensor]:
    def forward(s: Any, x: Tensor) -> Tensor:
        tokens = s.a(x).flatten(2).transpose(1, 2)
        return s.fc(s.attention(tokens, tokens, tokens, **options)[0].mean(1))

    return forward


def attend_twice(s: Any, x: Tensor) -> Tensor:
    tokens = s.a(x).flatten(2).transpose(1, 2)
    for _ in range(2):
        tokens, _ = s.attention(tokens, tokens, tokens)
    return s.fc(tokens.mean(1))


def use_weights(s: Any, x: Tensor) -> Tensor:
    tokens = s.a(x).flatten(2).transpose(1, 2)
    mixed, weights = s.attention(tokens, tokens, tokens)
    return s.fc(mixed.mean(1)) + weights.mean((1, 2)).unsqueeze(1)


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "control flow": (
        lambda s, x: s.fc(s.a(x).mean((2, 3)) if x.sum() > 0 else s.b(x).mean((2, 3))),
        "cannot be traced",
    ),
    "shared layer": (lambda s, x: s.fc(s.c(s.c(s.a(x))).mean((2, 3))), "layer c is called more than once"),
    "shared attention": (attend_twice, "layer attention.q_proj is called more than once"),
    "attention's weights": (use_weights, "weights"),
    "function": (lambda s, x: s.fc(torch.fft.fft(s.a(x)).real.mean((2, 3))), "fft"),
    "method": (lambda s, x: s.fc(s.a(x).mean((2, 3))).cumsum(1), "cumsum"),
    "mean over everything": (lambda s, x: s.fc(s.a(x).mean((2, 3))) + s.b(x).mean(), "mean"),
    "no layer": (lambda s, x: x.mean((2, 3)), "no convolution"),
    "written into": (lambda s, x: (y := s.a(x), y.__setitem__(0, 0.0), s.fc(y.mean((2, 3))))[-1], "fill"),
    "written into a part": (
        lambda s, x: (y := s.a(x), F.relu(y[:, :3], inplace=True), s.fc(y.mean((2, 3))))[-1],
        "in place and then reads a",
    ),
    "written into a half": (
        lambda s, x: (y := s.a(x), h := y.chunk(2, 1), operator.iadd(h[0], h[1]), s.fc(y.mean((2, 3))))[-1],
        "in place and then reads a",
    ),
    "places of maxima": (lambda s, x: s.fc(s.places(s.a(x))[0].mean((2, 3))), "places computes max_pool2d"),
    "data": (lambda s, x: s.fc(s.a(x).data.mean((2, 3))), "cannot be traced|do not depend"),  # torch 2.6 reads none
    "whole part": (lambda s, x: s.fc((s.a(x) // 1).mean((2, 3))), "floor_divide"),
    "images with images": (
        lambda s, x: s.fc(torch.cat(tensors=[s.a(x), s.b(x)], dim=0).mean((2, 3))),
        "another number of logits",
    ),
    "map": (lambda s, x: s.a(x), "logits have (images, classes)"),
    "fewer logits than images": (lambda s, x: s.fc(s.a(x).mean((2, 3)).view(-1, 2, 6).mean(1)), "cannot be traced"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_rule_covers_is_refused(name: str) -> None:
    function, message = REFUSED[name]
    layers = {"places": nn.MaxPool2d(2, return_indices=True)}
    model = written(function, attention=nn.MultiheadAttention(6, 2, batch_first=True), **layers)
    with pytest.raises(TraceError) as caught:
        trace(model)
    assert any(words in str(caught.value) for words in message.split("|"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("owner", ["a", ""])
@pytest.mark.parametrize("before", [False, True])
def test_hooks_are_left_out_with_a_warning(owner: str, before: bool) -> None:
    model, x = written(WRITINGS["methods"]), torch.randn(2, 3, 5, 5)
    expected = model(x)
    module, seen = model.get_submodule(owner), []
    (module.register_forward_pre_hook if before else module.register_forward_hook)(lambda *given: seen.append(given))
    with pytest.warns(RuntimeWarning, match=f"those of {owner or 'the model'}$"):
        network = trace(model).network
    assert relative(network(x), expected) < 1e-6
    assert not seen
    model(x)
    assert len(seen) == 1


OTHER_ATTENTION: dict[str, dict[str, Any]] = {
    "tokens first": {"batch_first": False},
    "a key and a value of its own": {"batch_first": True, "add_bias_kv": True},
}


@pytest.mark.parametrize("name", OTHER_ATTENTION)
def test_other_attention(name: str) -> None:
    torch.manual_seed(0)
    model = written(attend(), attention=nn.MultiheadAttention(6, 2, **OTHER_ATTENTION[name]))
    x = torch.randn(2, 3, 4, 4)
    if name == "tokens first":
        model.function = lambda s, x: s.fc(
            s.attention(*[s.a(x).flatten(2).permute(2, 0, 1)] * 3, attn_mask=torch.ones(16, 16).triu() * -9)[0].mean(0)
        )
    assert relative(trace(model, x).network(x), model(x)) < 1e-5


def test_attention_with_a_token_of_zeros_is_refused() -> None:
    model = written(attend(), attention=nn.MultiheadAttention(6, 2, batch_first=True, add_zero_attn=True))
    with pytest.raises(TraceError, match="attention computes zeros"):
        trace(model, torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize(
    "give", [lambda logits, other: (logits, other), lambda logits, other: {"features": other, "logits": logits}]
)
def test_logits_among_other_outputs(give: Callable[[Tensor, Tensor], Any]) -> None:
    model = written(lambda s, x: give(s.fc(s.a(x).mean((2, 3))), s.b(x)))
    x = torch.randn(2, 3, 5, 5)
    with pytest.warns(RuntimeWarning, match="1 more than its logits"):
        graph = trace(model, x)
    assert relative(graph.network(x), model.fc(model.a(x).mean((2, 3)))) < 1e-6
    assert [*graph.sizes] == ["a"]


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_logits_before_a_softmax_are_explained(end: nn.Module) -> None:
    model = written(lambda s, x: s.end(s.fc(s.a(x).mean((2, 3)))), end=end)
    x = torch.randn(2, 3, 5, 5)
    with pytest.warns(RuntimeWarning, match="logits before the"):
        found = trace(model, x).network(x)
    assert relative(found, model.fc(model.a(x).mean((2, 3)))) < 1e-6


def test_operations_become_modules(everything: nn.Module) -> None:
    kinds = {type(module) for module in trace(everything).network.modules_by_step().values()}
    assert {ops.Add, ops.Multiply, ops.Concat, ops.Mean, ops.Activation, nn.Flatten, nn.MaxPool2d} <= kinds


GATES: dict[str, tuple[Callable, int | None]] = {
    "first": (lambda a, b: torch.sigmoid(a.mean((2, 3), keepdim=True)) * b, 0),
    "second": (lambda a, b: a * F.hardsigmoid(b), 1),
    "method": (lambda a, b: a * b.sigmoid(), 1),
    "of another shape": (lambda a, b: a * torch.sigmoid(b.mean((2, 3))).view(a.size(0), -1, 1, 1), 1),
    "spread": (lambda a, b: a * torch.sigmoid(b.mean((2, 3), keepdim=True)).expand_as(a), 1),
    "two": (lambda a, b: torch.sigmoid(a) * torch.sigmoid(b), None),
    "none": (lambda a, b: a * torch.relu(b), None),
}


@pytest.mark.parametrize("case", GATES)
def test_gates_are_found(case: str) -> None:
    product, gate = GATES[case]
    graph = trace(written(lambda s, x: s.fc(product(s.a(x), s.b(x)).mean((2, 3)))))
    (module,) = (module for module in graph.network.modules() if isinstance(module, ops.Multiply))
    assert module.gate == gate
    assert graph.gated == (gate is not None)


def squeezed(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


GATING: dict[str, tuple[Callable[[Any, Tensor], Tensor], set[str]]] = {
    "squeeze and excitation": (lambda s, x: (y := s.a(x), y * torch.sigmoid(s.c(torch.relu(squeezed(y)))))[1], {"c"}),
    "two layers": (lambda s, x: s.a(x) * torch.sigmoid(s.c(torch.relu(s.b(x)))), {"b", "c"}),
    "a gate and a signal": (lambda s, x: (y := s.b(x), s.c(y + s.a(x) * torch.sigmoid(y)))[1], set()),
    "two gates of one layer": (lambda s, x: (y := s.b(x).sigmoid(), s.c(s.a(x) * y) * y)[1], {"b"}),
    "a gate in a gate": (lambda s, x: s.a(x) * torch.sigmoid(s.c(s.b(x) * torch.sigmoid(s.d(x)))), {"b", "c", "d"}),
    "a gate above a gate": (lambda s, x: s.c(s.a(x) * torch.sigmoid(s.b(x))) * torch.sigmoid(s.d(x)), {"b", "d"}),
    "what divides": (lambda s, x: s.a(x) / (1 + torch.relu(s.b(x))), {"b"}),
    "gates only": (lambda s, x: torch.sigmoid(s.a(x)) * torch.sigmoid(s.b(x)), set()),
    "no gate": (lambda s, x: s.c(s.a(x) * torch.relu(s.b(x))), set()),
}


@pytest.mark.parametrize("case", GATING)
def test_layers_that_only_feed_gates_are_no_units_unless_asked_for(case: str) -> None:
    body, gating = GATING[case]
    layers = {name: layer for name, layer in (("d", conv(3, 6)),) if name in gating}
    graph = trace(written(lambda s, x: s.fc(body(s, x).mean((2, 3))), **layers))
    every = dict.fromkeys(graph.kinds, 6)
    assert graph.gating == gating < set(every)
    assert graph.default_units == ("filters-gates" if gating else "filters")
    assert graph.units() == graph.units("filters-gates") == {name: 6 for name in every if name not in gating}
    assert graph.units("filters") == every


def test_units_of_a_network_of_patches_are_its_neurons() -> None:
    def mixed(s: Any, x: Tensor) -> Tensor:
        y = s.a(x).flatten(2).transpose(1, 2)
        for block in (s.one, s.two)[: s.depth]:
            y = y + block(y)
        return s.fc(y.mean(1))  # type: ignore[no-any-return]

    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6))

    for depth, units in ((2, "neurons"), (0, "filters")):
        model = written(mixed, a=nn.Conv2d(3, 6, 4, 4), one=block(), two=block(), fc=nn.Linear(6, 2))
        model.depth = depth
        assert trace(model).default_units == units


def test_where_all_layers_feed_gates_they_are_units() -> None:
    body = written(
        lambda s, x: s.fc(x.mean((2, 3)) * torch.sigmoid(s.a(x).mean((2, 3)))), a=conv(3, 3), fc=nn.Linear(3, 2)
    )
    graph = trace(body)
    assert graph.gating == {"a"}
    assert graph.default_units == "filters"
    assert graph.units() == {"a": 3}
    with pytest.raises(ValueError, match="no filters"):
        graph.units("filters-gates")


class Namesakes(nn.Module):
    """Layers named as the tracer would name the operations that come before them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.act_1 = nn.Conv2d(4, 4, 1)
        self.cat = nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act_1(self.act(self.act(self.a(x))))
        return self.fc(self.cat(torch.cat([x, x], 1)).mean((2, 3)))


def test_layers_keep_their_names() -> None:
    model = Namesakes().eval()
    graph = trace(model)
    assert list(graph.units()) == ["a", "act_1", "cat"]
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(graph.network(x), model(x), atol=1e-6)


class Padding(nn.Conv2d):
    """A convolution that pads by itself, as TensorFlow's "same"."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def test_layers_keep_their_names_whatever_else_their_modules_compute() -> None:
    model = nn.Sequential(Padding(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    assert list(trace(model, torch.rand(2, 3, 8, 8)).units("filters")) == ["0"]


def test_units_of_a_network_without_convolutions() -> None:
    graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)))
    assert graph.units() == {"1": 5}
