"""Networks and comparisons for the tests of relevance."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from zennit.canonizers import MergeBatchNorm


@pytest.fixture(autouse=True)
def zennits_folded_batchnorm_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zennit 1.0 leaves a folded BatchNorm an epsilon of 0, which torch 2.11 refuses. This one changes no output."""
    merge = MergeBatchNorm.merge_batch_norm

    def merged(modules: list[nn.Module], batch_norm: nn.Module) -> None:
        merge(modules, batch_norm)
        if batch_norm.eps == 0:
            object.__setattr__(batch_norm, "eps", 1e-30)

    monkeypatch.setattr(MergeBatchNorm, "merge_batch_norm", staticmethod(merged))


@pytest.fixture(scope="session")
def worst() -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], float]:
    """The largest relative error of a layer's vector. Refuses layers that differ or say nothing."""

    def compare(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
        assert list(got) == list(expected)
        assert all(values.any() for values in expected.values())
        return max(float((got[name] - expected[name]).norm() / expected[name].norm()) for name in expected)

    return compare


class Residual(nn.Module):
    """Convolutions with a residual connection, every kind of layer type but depthwise, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.downsample = nn.Conv2d(6, 8, 1, stride=2, bias=False)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.pool = nn.AvgPool2d(2)
        self.hidden = nn.Linear(8 * 4 * 4, 10)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.conv2(x) + self.downsample(x))
        x = self.pool(torch.relu(self.conv3(x)))
        return self.fc(torch.relu(self.hidden(x.flatten(1))))


@pytest.fixture
def residual(randomise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A `Residual` for 16 x 16 images."""
    torch.manual_seed(0)
    return randomise(Residual())


@pytest.fixture(scope="session")
def images() -> tuple[Tensor, Tensor]:
    """Seven 16 x 16 images and a target, of five, for each."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 3, 16, 16, generator=generator), torch.tensor([0, 1, 2, 3, 4, 0, 2])
