"""Networks for the tests of graphs and pruning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torchvision.models import convnext, densenet, vgg


class Classifier(NamedTuple):
    name: str
    model: nn.Module
    images: Tensor


def _vgg(width: int) -> nn.Module:
    layers = vgg.make_layers([width, "M", 2 * width, "M", 2 * width, 2 * width, "M"], batch_norm=True)
    model = vgg.VGG(layers, num_classes=5, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(
        *(nn.Linear(8 * width, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, 16), nn.ReLU(True), nn.Dropout()),
        nn.Linear(16, 5),
    )
    return model


def _convnext() -> nn.Module:
    blocks = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, 24, 2), convnext.CNBlockConfig(24, None, 1)]
    return convnext.ConvNeXt(blocks, num_classes=5)


# One of each of torchvision's families, small where its builder allows, with the size of its images.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (partial(tv.resnet18, num_classes=5), 32),
    "resnet50": (lambda: tv.ResNet(tv.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5), 32),
    "resnext50": (
        lambda: tv.ResNet(tv.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5, groups=8, width_per_group=4),
        32,
    ),
    "vgg11_bn": (partial(_vgg, 8), 32),
    "alexnet": (partial(tv.alexnet, num_classes=5), 64),
    "mobilenet_v2": (partial(tv.mobilenet_v2, num_classes=5, width_mult=0.35), 32),
    "mobilenet_v3_small": (partial(tv.mobilenet_v3_small, num_classes=5), 32),
    "efficientnet_b0": (partial(tv.efficientnet_b0, num_classes=5), 32),
    "densenet121": (lambda: densenet.DenseNet(8, (2, 3, 2, 2), 16, num_classes=5), 32),
    "squeezenet1_1": (partial(tv.squeezenet1_1, num_classes=5), 32),
    "shufflenet_v2_x0_5": (partial(tv.shufflenet_v2_x0_5, num_classes=5), 32),
    "mnasnet0_5": (partial(tv.mnasnet0_5, num_classes=5), 32),
    "regnet_y_400mf": (partial(tv.regnet_y_400mf, num_classes=5), 32),
    "googlenet": (partial(tv.googlenet, num_classes=5, init_weights=False), 32),
    "inception_v3": (partial(tv.inception_v3, num_classes=5, init_weights=False), 75),
    "convnext_tiny": (_convnext, 32),
}


@pytest.fixture(scope="module", params=[*FAMILIES, "vision_transformer"])
def classifier(
    request: pytest.FixtureRequest, randomise: Callable[..., nn.Module], vision_transformer: Callable[..., nn.Module]
) -> Classifier:
    """A classifier of each family in turn."""
    torch.manual_seed(0)
    if request.param == "vision_transformer":
        model, size = vision_transformer(), 16
    else:
        build, size = FAMILIES[request.param]
        model = randomise(build())
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return Classifier(request.param, model, images)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, 3, 1)
        self.fc2 = nn.Conv2d(3, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Everything(nn.Module):
    """Residual sums, a gate, grouped and depthwise convolutions, a concatenation, a channel shuffle and a
    flatten of 2 x 2 maps, for 8 x 8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.gate = Gate(8)
        self.down = nn.Conv2d(8, 8, 1, stride=2, bias=False)
        self.wide = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.left = nn.Conv2d(16, 4, 1)
        self.right = nn.Conv2d(8, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 6, 3, padding=1)
        self.hidden = nn.Linear(6 * 2 * 2, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.gate(self.grouped(x)) + x)
        x = torch.relu(self.wide(x) + self.down(x))
        x = torch.cat([self.left(torch.nn.functional.silu(self.depthwise(x))), self.right(x)], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        x = nn.functional.max_pool2d(torch.relu(self.last(x)), 2)
        return self.head(torch.sigmoid(self.hidden(x.flatten(1))))


@pytest.fixture(scope="session")
def everything(randomise: Callable[..., nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomise(Everything())


@pytest.fixture(scope="session")
def transformer(vision_transformer: Callable[..., nn.Module]) -> nn.Module:
    return vision_transformer(layers=2, heads=4)


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Eight images of 16 x 16."""
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
