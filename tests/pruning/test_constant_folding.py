"""Gates that are constant are gone, and nothing else has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from pxp_optimize.pruning import Graph, Network, compact, compact_model, make_repair, masked_model, prune_masks, trace
from pxp_optimize.pruning import modules as ops
from pxp_optimize.pruning.constant_folding import without_constants
from torch import Tensor, nn

GATED = {
    "mobilenet_v3_small": partial(torchvision.models.mobilenet_v3_small, num_classes=5),
    "efficientnet_b0": partial(torchvision.models.efficientnet_b0, num_classes=5),
    "regnet_y_400mf": partial(torchvision.models.regnet_y_400mf, num_classes=5),
}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.fixture(scope="module", params=GATED)
def gated(request: pytest.FixtureRequest, randomise: Callable[..., nn.Module]) -> Graph:
    torch.manual_seed(0)
    return trace(randomise(GATED[request.param]()))


def squeezes(graph: Graph) -> list[str]:
    """The first layer of each gate."""
    modules = graph.network.modules_by_step()
    found = [name for name in modules if name.endswith("fc1") and isinstance(modules[name], nn.Conv2d)]
    assert len(found) == sum(isinstance(module, ops.Multiply) for module in modules.values())
    return found


def masks(graph: Graph, gone: Iterable[str]) -> dict[str, Tensor]:
    """Units pruned here and there; all of these layers'."""
    generator = torch.Generator().manual_seed(0)
    found = {name: torch.rand(size, generator=generator) > 0.3 for name, size in graph.units("filters").items()}
    found |= {name: torch.zeros_like(found[name]) for name in gone}
    found |= {name: torch.ones_like(found[name]) for name in set(squeezes(graph)) - set(gone)}
    return found


def products(network: Network) -> int:
    return sum(isinstance(module, (ops.Multiply, ops.Affine)) for module in network.modules())


def test_constant_gates_are_gone(gated: Graph) -> None:
    for gone in (squeezes(gated), squeezes(gated)[::2]):
        network = compact(gated, masks(gated, gone)).network
        lean = without_constants(network)
        assert relative(lean(IMAGES), network(IMAGES)) < 1e-5
        assert products(lean) == products(network) - len(gone)
        for name in squeezes(gated):
            block = name.removesuffix("fc1")
            found = [step.name for step in lean.steps if step.name.startswith(block)]
            assert bool(found) == (name not in gone), found


def test_a_repaired_network_too(gated: Graph) -> None:
    images = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    cut = masks(gated, squeezes(gated))
    repaired = make_repair("least-squares", gated, images)(gated, compact(gated, cut), cut).network
    lean = without_constants(repaired)
    assert products(lean) == 0
    assert relative(lean(IMAGES), repaired(IMAGES)) < 1e-5


def parameters(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def test_of_a_gate_that_stays_only_what_is_read_is_computed(gated: Graph) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(size, generator=generator) for name, size in gated.units().items()}
    cut = prune_masks(scores, 0.3)
    assert not gated.gating & set(cut)
    network = compact(gated, cut).network
    lean = without_constants(network)
    assert relative(lean(IMAGES), network(IMAGES)) < 1e-5
    assert relative(lean(IMAGES), masked_model(gated, cut)(IMAGES)) < 1e-5
    modules = lean.modules_by_step()
    whole = gated.network.modules_by_step()
    unread = 0
    for name in squeezes(gated):
        excite = name.removesuffix("fc1") + "fc2"
        assert modules[excite].out_channels == modules[name].in_channels < whole[excite].out_channels
        assert modules[excite].in_channels == whole[excite].in_channels
        unread += (whole[excite].out_channels - modules[excite].out_channels) * (whole[excite].in_channels + 1)
    assert 0 < unread <= parameters(network) - parameters(lean)
    assert parameters(lean) < 0.7 * parameters(gated.network)


def test_networks_without_constants_stay_what_they_are(gated: Graph) -> None:
    assert without_constants(gated.network) is gated.network
    graph = trace(torchvision.models.resnet18(num_classes=5).eval())
    assert without_constants(graph.network) is graph.network


def test_the_network_given_is_not_changed(gated: Graph) -> None:
    network = compact(gated, masks(gated, squeezes(gated))).network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    steps = network.steps
    without_constants(network)
    assert network.steps == steps
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_gates_that_begin_at_zero_stay(randomise: Callable[..., nn.Module]) -> None:
    model = randomise(GATED["mobilenet_v3_small"]())
    for name, module in model.named_modules():
        if name.endswith("fc2"):
            nn.init.zeros_(module.weight)
    network = trace(model).network
    assert without_constants(network) is network


def test_a_compact_models_weights_load_into_another_one(randomise: Callable[..., nn.Module]) -> None:
    torch.manual_seed(1)
    one, other = (randomise(GATED["mobilenet_v3_small"]()) for _ in range(2))
    cut = masks(trace(one), squeezes(trace(one)))
    small, loaded = compact_model(one, cut), compact_model(other, cut)
    assert relative(loaded(IMAGES), small(IMAGES)) > 0.01
    loaded.load_state_dict(small.state_dict())
    assert torch.equal(loaded(IMAGES), small(IMAGES))


class Gates(nn.Module):
    """Gates that end in products of several kinds: read by a grouped convolution, by two, by none; over one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 4, 3, padding=1) for _ in range(3))
        self.one = nn.Conv2d(3, 1, 3, padding=1)
        self.squeeze = nn.ModuleList(nn.Conv2d(4, 2, 1) for _ in range(4))
        self.excite = nn.ModuleList(nn.Conv2d(2, 4, 1) for _ in range(4))
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="reflect")
        self.d, self.e, self.f = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 3, padding=1)
        self.fc = nn.Linear(4 + 5 + 5 + 4 + 5, 5)

    def gate(self, index: int, x: Tensor) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(x, 1) if index % 2 else x.mean((2, 3), keepdim=True)
        return torch.sigmoid(self.excite[index](torch.relu(self.squeeze[index](pooled))))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, one = self.a(x), self.b(x), self.c(x), self.one(x)
        twice = b * self.gate(1, b)
        parts = [
            self.grouped(self.gate(0, a) * a),
            *(self.d(twice), self.e(twice)),
            c * self.gate(2, c),
            self.f(one * self.gate(3, b)),
        ]
        return self.fc(torch.cat([part.mean((2, 3)) for part in parts], 1))


def check_any_masks(data: st.DataObject, graph: Graph) -> tuple[dict[str, Tensor], Network]:
    """Holds what masks leave, without constants, against the masked model. Gives the masks and that network back."""
    cut = {
        name: torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size), label=name))
        for name, size in graph.units("filters").items()
    }
    expected = masked_model(graph, cut)(IMAGES)
    lean = without_constants(compact(graph, cut).network)
    assert relative(lean(IMAGES), expected) < 1e-5
    assert relative(compact_model(graph, cut)(IMAGES), expected) < 1e-5
    return cut, lean


@settings(max_examples=40)
@given(st.data())
def test_any_masks(data: st.DataObject) -> None:
    torch.manual_seed(5)
    check_any_masks(data, trace(Gates().eval()))


class Separable(nn.Module):
    """Depthwise convolutions of several kinds: with a bias or none, two outputs a channel, padded by a step of its own;
    read by a convolution without padding, with padding, by two, and by another depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.ModuleList(nn.Conv2d(3, 6, 1) for _ in range(5))
        self.depthwise = nn.ModuleList(
            nn.Conv2d(6, 12 if k == 1 else 6, 3, padding=int(k != 2), groups=6, bias=k != 1) for k in range(5)
        )
        self.project = nn.ModuleList(nn.Conv2d(12 if k == 1 else 6, 4, 3 if k == 2 else 1) for k in range(3))
        self.padded, self.second = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 1, bias=False)
        self.again = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.last = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e = (torch.nn.functional.relu6(expand(x)) for expand in self.expand)
        c = torch.nn.functional.pad(c, (1, 1, 1, 1))
        a, b, c, d, e = (f(y) for f, y in zip(self.depthwise, (a, b, c, d, e), strict=True))
        parts = [f(y) for f, y in zip(self.project, (torch.nn.functional.hardswish(a), torch.relu(b), c), strict=True)]
        parts += [self.padded(torch.sigmoid(d)), self.second(torch.relu(d)), self.last(self.again(torch.tanh(e)))]
        return self.fc(sum(part.mean((2, 3)) for part in parts))


@settings(max_examples=30)
@given(st.data())
def test_any_masks_of_depthwise_convolutions(data: st.DataObject) -> None:
    torch.manual_seed(6)
    cut, lean = check_any_masks(data, trace(Separable().eval()))
    modules = lean.modules_by_step()
    for k in (0, 2):  # what has two outputs a channel fills them up
        left = int((cut[f"expand.{k}"] & cut[f"depthwise.{k}"]).sum())
        if left and cut[f"project.{k}"].any():
            assert modules[f"depthwise.{k}"].groups == modules[f"expand.{k}"].out_channels == left
            assert f"depthwise.{k}_realign" not in modules


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5", "mnasnet0_5"])
def test_of_separable_layers_only_what_is_read_and_written_is_left(
    name: str, randomise: Callable[..., nn.Module]
) -> None:
    torch.manual_seed(0)
    graph = trace(randomise(torchvision.models.get_model(name, num_classes=5)))
    generator = torch.Generator().manual_seed(0)
    cut = {name: torch.rand(size, generator=generator) > 0.4 for name, size in graph.units("filters").items()}
    network = compact(graph, cut).network
    lean = without_constants(network)
    assert relative(lean(IMAGES), network(IMAGES)) < 1e-5
    assert without_constants(lean) is lean
    assert parameters(lean) < 0.9 * parameters(network)
    if name != "shufflenet_v2_x0_5":  # which shuffles
        assert not any(isinstance(module, ops.Realign) for module in lean.modules())
