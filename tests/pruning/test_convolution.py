"""Convolutions as matrices: the same numbers, only where it pays, never with a stale weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from pxp_optimize.attribution.rules import AlphaBeta, Epsilon, Gamma, ZPlus
from pxp_optimize.pruning import compact_model, trace
from pxp_optimize.pruning.convolution import Convolution, convolution, plain
from pxp_optimize.pruning.network import clone
from torch import Tensor, nn


def pair(*args: Any, **kwargs: Any) -> tuple[nn.Conv2d, Convolution]:
    """A convolution of torch, and ours with the same tensors."""
    module = nn.Conv2d(*args, **kwargs).requires_grad_(False)
    return module, convolution(clone(module))  # type: ignore[return-value]


@settings(max_examples=100)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
    groups=st.sampled_from([1, 2, 4]),
    last=st.booleans(),
    seed=st.integers(0, 100),
)
def test_any_geometry_gives_the_convolutions_numbers(
    kernel: Any, stride: Any, padding: Any, dilation: Any, size: Any, bias: bool, groups: int, last: bool, seed: int
) -> None:
    for axis in range(2):
        if size[axis] + 2 * padding[axis] < dilation[axis] * (kernel[axis] - 1) + 1:
            return  # no output
    torch.manual_seed(seed)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "bias": bias, "groups": groups}
    theirs, ours = pair(4, 4, kernel, **geometry)
    x = torch.randn(2, 4, *size)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    if groups > 1:
        return
    flat = ours._as_linear(torch.Size(size))  # also where the convolution itself would be taken
    assert torch.allclose(flat(x.flatten(1)).view_as(theirs(x)), theirs(x), atol=1e-5)


@pytest.mark.parametrize("rule", [Epsilon(1e-3), Gamma(0.25), AlphaBeta(2.0), ZPlus()])
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("groups", [1, 6])
def test_rules_give_the_convolutions_relevance(
    rule: Any, nonnegative: bool, size: int, stride: int, groups: int
) -> None:
    torch.manual_seed(0)
    theirs, ours = pair(6, 12, 3, stride=stride, padding=1, groups=groups)
    x = torch.randn(4, 6, size, size)
    x = x.relu() if nonnegative else x
    found = []
    for module in (theirs, ours):
        hook = rule.copy()
        hook.nonnegative = nonnegative
        handle = hook.register(module)
        leaf = x.clone().requires_grad_()
        torch.manual_seed(1)
        output = module(leaf)
        output.backward(torch.randn(output.shape))
        found.append(leaf.grad)
        handle.remove()
    assert (ours._flat is not None) == (groups == 1)
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_only_where_it_is_less_work() -> None:
    _, ours = pair(3, 4, 3, padding=1)
    assert ours.flat(torch.Size((2, 2))) is not None
    assert ours.flat(torch.Size((3, 3))) is None  # nine times the weights
    assert ours.flat(torch.Size((8, 8))) is None
    _, grouped = pair(4, 4, 3, padding=1, groups=2)
    assert grouped.flat(torch.Size((1, 1))) is None
    _, mirrored = pair(4, 4, 3, padding=1, padding_mode="circular")
    assert mirrored.flat(torch.Size((2, 2))) is None


def test_the_matrix_follows_its_weight() -> None:
    _, ours = pair(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 1, 1)
    before = ours(x)
    assert ours.flat(x.shape[2:]) is ours.flat(x.shape[2:])
    with torch.no_grad():
        ours.weight.mul_(2)
        ours.bias.zero_()  # type: ignore[union-attr]
    bias = nn.Conv2d.forward(ours, x)
    assert torch.allclose(ours(x), bias, atol=1e-6)
    assert not torch.allclose(ours(x), before)
    smaller = clone(ours, weight=ours.weight[:2].clone(), bias=None, out_channels=2)
    assert torch.allclose(smaller(x), ours(x)[:, :2], atol=1e-6)
    assert ours.double()(x.double()).dtype == torch.float64


def test_a_network_may_be_run_before_it_is_explained() -> None:
    _, ours = pair(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 1, 1)
    with torch.inference_mode():
        ours(x)
    x.requires_grad_()
    ours(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, ours.weight[:, :, 1, 1].sum(0).view(1, 3, 1, 1).expand_as(x), atol=1e-6)


def test_users_get_torchs_own_layers() -> None:
    graph = trace(torchvision.models.resnet18(num_classes=3))
    images = torch.randn(2, 3, 32, 32)
    graph.network(images)
    held = [module for module in graph.network.modules() if isinstance(module, Convolution)]
    assert any(module._flat is not None for module in held)
    kept: dict[str, Tensor] = {name: torch.arange(size) % 2 == 0 for name, size in graph.sizes.items()}
    for network in (plain(graph.network), compact_model(graph, kept)):
        kinds = {type(module) for module in network.modules() if isinstance(module, nn.Conv2d)}
        assert kinds == {nn.Conv2d}
    assert torch.allclose(plain(graph.network)(images), graph.network(images), atol=1e-5)
