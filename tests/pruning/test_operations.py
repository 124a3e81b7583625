"""The table of operations, and networks that could not be read from a symbolic trace."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
import zennit.rules
from pxp_optimize.attribution import collect_relevance
from pxp_optimize.attribution.between import RULES_BETWEEN, hook_for
from pxp_optimize.pruning import compact_model, masked_model, prune_masks, trace
from pxp_optimize.pruning.operations import MODULES, TARGETS, Operation, Relevance, operation
from torch import Tensor, nn

RULES = {"groups": {group: {"rule": "zplus"} for group in ("low", "mid", "high", "classifier")}}


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


# -- the table ------------------------------------------------------------------------------------


def test_an_operation_says_how_relevance_passes() -> None:
    with pytest.raises(TypeError, match="does not say how relevance passes"):

        @operation("aten.nothing.default")
        class Silent(Operation):
            def reduce(self, module: Any, c: Any, inputs: Any) -> Any: ...

    assert "aten.nothing.default" not in TARGETS


def test_every_way_of_relevance_has_a_rule() -> None:
    by_composite = {Relevance.SOFTMAX, Relevance.ATTENDED}
    assert RULES_BETWEEN.keys() | by_composite == set(Relevance)


def test_users_add_operations() -> None:
    model, x = Net(lambda x: torch.special.expm1(x)), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="expm1"):
        trace(model, x)

    class Expm1(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.expm1(x)

    @operation("aten.special_expm1.default", modules=(Expm1,))
    class Entry(Operation):
        relevance = staticmethod(lambda module: zennit.rules.Pass())

        def build(self, b: Any, node: Any) -> int:
            return b.emit(node, Expm1(), (b.slot(node.args[0]),))

        def reduce(self, module: Any, c: Any, inputs: tuple[int, ...]) -> Any:
            slot, state = c.input(inputs[0])
            return c.emit(module, (slot,)), state

    try:
        graph = trace(model, x)
        assert relative(graph.network(x), model(x)) < 1e-6
        assert isinstance(hook_for(Expm1(), "attnlrp", "signal"), zennit.rules.Pass)
        masks = {"conv": torch.arange(8) < 3}
        assert relative(compact_model(graph, masks)(x), masked_model(graph, masks)(x)) < 1e-5
    finally:
        del TARGETS["aten.special_expm1.default"], MODULES[Expm1]


# -- spellings ----------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, middle: Any = None, channels: int = 8) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(channels, 4)
        self.part = nn.Conv2d(4, 4, 1)
        self.middle = middle or F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(self.conv(x)).mean((2, 3)))


class BatchNormAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(
            F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        )


class Conv(nn.Conv2d):
    pass


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Chunks(Net):
    def forward(self, x: Tensor) -> Tensor:
        parts = list(F.relu(self.conv(x)).chunk(2, 1))
        parts[1] = self.part(parts[1])
        return self.fc(torch.cat(parts, 1).mean((2, 3)))


class Counted(Net):
    def forward(self, x: Tensor) -> Tensor:
        x, n = F.relu(self.conv(x)).mean((2, 3)), 1
        for size in x.size()[1:]:
            n *= size
        return self.fc(x.view(-1, n))


class Features(Net):
    """An optional argument that chooses the path."""

    def forward(self, x: Tensor, return_features: Any = None) -> Tensor:
        features = F.relu(self.conv(x)).mean((2, 3))
        return self.fc(features) if return_features is None else features


class Asking(Net):
    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor):
            x = (x - 0.5) / 0.2
        return super().forward(x)


class GlobalResponse(nn.Module):
    """GRN, as ConvNeXt V2 has it."""

    def forward(self, x: Tensor) -> Tensor:
        norm = x.norm(dim=(2, 3), keepdim=True)
        return x + x * (norm / (norm.mean(1, keepdim=True) + 1e-6))


def patched() -> nn.Module:
    """A forward function that was replaced on the instance."""

    def without_maxpool(self: Any, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.avgpool(self.layer4(self.layer3(self.layer2(self.layer1(x))))).flatten(1))

    model = torchvision.models.resnet18(num_classes=4)
    model.forward = types.MethodType(without_maxpool, model)
    return model


relu = nn.ReLU()
SPELLINGS: dict[str, Callable[[], nn.Module]] = {
    "functional batch_norm in a subclass": lambda: Net(BatchNormAct(8)),
    "SyncBatchNorm": lambda: Net(nn.Sequential(nn.SyncBatchNorm(8), relu)),
    "a subclass of Conv2d": lambda: Net(nn.Sequential(relu, Conv(8, 8, 1))),
    "standardised weights": lambda: Net(nn.Sequential(relu, Standardised(8, 8, 3, padding=1))),
    "list(chunk)": Chunks,
    "size arithmetic": Counted,
    "an argument with a default": Features,
    "a type that is asked for": Asking,
    "a forward function that was replaced": patched,
    "ZeroPad2d": lambda: Net(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), relu)),
    "ReflectionPad2d": lambda: Net(nn.Sequential(nn.ReflectionPad2d(1), relu)),
    "global max": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), relu, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ),
    "amax": lambda: Net(lambda x: F.relu(x).amax((2, 3), keepdim=True)),
    "repeat of grey": lambda: Net(lambda x: F.relu(x[:, :1].repeat(1, 8, 1, 1))),
    "GroupNorm": lambda: Net(nn.Sequential(nn.GroupNorm(2, 8), relu)),
    "InstanceNorm": lambda: Net(nn.Sequential(nn.InstanceNorm2d(8), relu)),
    "GRN": lambda: Net(GlobalResponse()),
    "L2 norm": lambda: Net(lambda x: F.normalize(x, dim=1)),
    "maximum": lambda: Net(lambda x: torch.maximum(x, x.flip(2))),
    "clamp": lambda: Net(lambda x: x.clamp(-1, 1)),
    "roll": lambda: Net(lambda x: F.relu(x).roll((1, 2), (2, 3))),
    "Conv1d over channels (ECA)": lambda: Net(
        lambda x: (
            x
            * torch.sigmoid(F.conv1d(x.mean((2, 3))[:, None], torch.ones(1, 1, 3) / 3, padding=1))[:, 0, :, None, None]
        )
    ),
    "softmax over branches": lambda: Net(
        lambda x: (x.unflatten(1, (2, 4)).softmax(1) * F.relu(x).unflatten(1, (2, 4))).flatten(1, 2)
    ),
    "difference of activations": lambda: Net(lambda x: F.relu(x) - F.avg_pool2d(F.relu(x), 3, 1, 1)),
    "upsampling": lambda: Net(nn.Sequential(relu, nn.AvgPool2d(2), nn.Upsample(scale_factor=2))),
    "bilinear upsampling": lambda: Net(
        nn.Sequential(relu, nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear"))
    ),
    "TransformerEncoderLayer": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 4, 4),
        nn.Flatten(2),
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        nn.Flatten(),
        nn.Linear(256, 4),
    ),
    "DataParallel": lambda: nn.DataParallel(Net()),
    "torch.compile": lambda: torch.compile(Net()),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_network_that_the_model_runs(name: str) -> None:
    torch.manual_seed(0)
    model = SPELLINGS[name]().eval()
    x = torch.rand(2, 3, 16, 16)
    plain = getattr(model, "_orig_mod", getattr(model, "module", model))
    graph = trace(model, x)
    expected = plain(x)
    assert relative(graph.network(x), expected) < 1e-5
    relevance = collect_relevance(graph, RULES, x, torch.tensor([0, 1]), units=None)
    assert all(bool(values.isfinite().all()) for values in relevance.values())
    for rate in (0.0, 0.5):
        masks = prune_masks(relevance, rate)
        small = compact_model(model, masks, example=x)
        assert relative(small(x), masked_model(graph, masks)(x) if rate else expected) < 1e-4


@pytest.mark.parametrize("shape", [(1, 16, 16), (5, 16, 24)])
def test_images_of_other_shapes(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(shape[0], 8, 3), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    x = torch.randn(2, *shape)
    relevance = collect_relevance(model, RULES, x, torch.tensor([0, 1]))
    masks = prune_masks(relevance, 0.5)
    assert relative(compact_model(model, masks)(x), masked_model(model, masks)(x)) < 1e-5


# -- compact networks are networks ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_prune_train_and_prune_again(name: str, randomise: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = randomise(torchvision.models.get_model(name, weights=None, num_classes=4))
    x, targets = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    small = compact_model(model, prune_masks(collect_relevance(model, RULES, x, targets), 0.3), example=x)
    optimizer = torch.optim.SGD(small.parameters(), 1e-4)
    F.cross_entropy(small(x), targets).backward()
    optimizer.step()
    small.requires_grad_(True)
    expected = small(x).detach()
    again = trace(small)
    assert relative(again.network(x), expected) < 1e-5
    masks = prune_masks(collect_relevance(small, RULES, x, targets), 0.3)
    smaller = compact_model(small, masks)
    assert relative(smaller(x), masked_model(small, masks)(x)) < 1e-4
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in small.parameters())
    wrapped = nn.Sequential(nn.Identity(), small)  # as a part of a user's network
    assert relative(trace(wrapped, x).network(x), expected) < 1e-5


def test_compact_networks_are_exported(randomise: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = randomise(torchvision.models.resnet18(num_classes=4))
    x = torch.randn(2, 3, 32, 32)
    small = compact_model(model, prune_masks(collect_relevance(model, RULES, x, torch.tensor([0, 1])), 0.5))
    expected = small(x).detach()
    other = torch.randn(2, 3, 32, 32)
    traced = torch.jit.trace(small, x)
    exported = torch.export.export(small, (x,)).module()
    for network in (copy.deepcopy(small), traced, exported):
        assert relative(network(x), expected) < 1e-5
        assert relative(network(other), small(other)) < 1e-5
    kinds = [node.kind() for node in torch.jit.freeze(traced).graph.nodes()]
    assert kinds.count("aten::_convolution") == 20
