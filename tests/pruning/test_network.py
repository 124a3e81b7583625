"""The list of steps that networks are, and the modules that only they have."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from pxp_optimize.pruning import Network, trace
from pxp_optimize.pruning import modules as ops
from pxp_optimize.pruning.modules import zero_preserving
from pxp_optimize.pruning.network import Step, clone
from torch import Tensor, nn


def small_network() -> Network:
    torch.manual_seed(0)
    modules = {
        "conv": nn.Conv2d(3, 4, 3, padding=1),
        "block.relu": nn.ReLU(),
        "block.conv": nn.Conv2d(4, 4, 1),
        "add": ops.Add(),
        "mean": ops.Mean((2, 3), False),
    }
    steps = [
        Step("conv", (0,), 1),
        Step("block.relu", (1,), 2),
        Step("block.conv", (2,), 3),
        Step("add", (1, 3), 4),
        Step("mean", (4,), 5),
    ]
    return Network(steps, modules, 5)


def test_runs_its_steps() -> None:
    network = small_network()
    x = torch.randn(2, 3, 5, 5)
    first = network.get_submodule("conv")(x)
    expected = (first + network.get_submodule("block.conv")(first.relu())).mean((2, 3))
    assert torch.equal(network(x), expected)


def test_bottlenecks_are_what_every_path_passes() -> None:
    assert small_network().bottlenecks() == {"conv", "add", "mean"}
    side = Network(
        [Step("conv", (0,), 1), Step("block.conv", (1,), 2), Step("block.relu", (1,), 3)],
        small_network().modules_by_step(),
        3,
    )
    assert side.bottlenecks() == {"conv", "block.relu"}  # nobody reads the other


def test_names_are_the_steps() -> None:
    network = small_network()
    assert list(network.modules_by_step()) == ["conv", "block.relu", "block.conv", "add", "mean"]
    for name, module in network.modules_by_step().items():
        assert network.get_submodule(name) is module
    assert set(network.state_dict()) == {"conv.weight", "conv.bias", "block.conv.weight", "block.conv.bias"}


def test_names_that_are_parts_of_others() -> None:
    """A container named as a step is, in either order of the two."""
    for names in (("a", "a.b"), ("a.b", "a")):
        modules = {name: nn.Linear(3, 3) for name in names}
        network = Network([Step(names[0], (0,), 1), Step(names[1], (1,), 2)], modules, 2)
        assert all(network.get_submodule(name) is modules[name] for name in names)
        x = torch.randn(2, 3)
        assert torch.equal(network(x), modules[names[1]](modules[names[0]](x)))
        assert len(network.state_dict()) == 4


def test_values_are_forgotten_after_their_last_use() -> None:
    alive: list[int] = []
    made: list[weakref.ref] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            alive.append(sum(ref() is not None for ref in made))
            result = x + 1
            made.append(weakref.ref(result))
            return result

    names = [f"s{i}" for i in range(5)]
    network = Network([Step(n, (i,), i + 1) for i, n in enumerate(names)], {n: Watch() for n in names}, 5)
    with torch.no_grad():
        assert torch.equal(network(torch.zeros(2)), torch.full((2,), 5.0))
    assert alive == [0, 1, 1, 1, 1]


def test_copies_and_pickles(everything: nn.Module) -> None:
    network = trace(everything).network
    x = torch.randn(2, 3, 8, 8)
    expected = network(x)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(x), expected)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not other(x).any()
    assert torch.equal(network(x), expected)


def test_moves_with_its_modules(everything: nn.Module) -> None:
    network = trace(everything).network.double()
    assert network(torch.randn(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64
    assert network.to("meta")(torch.empty(2, 3, 8, 8, dtype=torch.float64, device="meta")).shape == (2, 5)


def test_clone_shares_what_is_not_given() -> None:
    conv = nn.Conv2d(3, 4, 3).train()
    conv.register_forward_hook(lambda *_: pytest.fail("hooks are not copied"))
    other = clone(conv, weight=torch.zeros(2, 3, 3, 3), bias=None, out_channels=2)
    assert (other.out_channels, other.bias, conv.out_channels) == (2, None, 4)
    assert conv.bias is not None
    assert conv.weight.shape == (4, 3, 3, 3)
    assert not other(torch.randn(1, 3, 3, 3)).any()
    same = clone(conv)
    assert same.weight is conv.weight
    same.register_forward_hook(lambda *_: None)
    assert len(conv._forward_hooks) == 1
    softmax = clone(ops.HeadSoftmax(2), kept=torch.tensor([1.0, 0.0]))
    assert softmax.kept.tolist() == [1, 0]


@pytest.mark.parametrize("dim", [1, -1])
def test_realign(dim: int) -> None:
    x = torch.randn(2, 4, 3, 4)
    for source in ([2, 0, 3], [0, 1, 2, 3], [-1, 2, -1, 0], [-1, -1], [3]):
        expected = torch.stack(
            [x.select(dim, i) if i >= 0 else torch.zeros_like(x.select(dim, 0)) for i in source], dim
        )
        assert torch.equal(ops.Realign(dim, torch.tensor(source))(x), expected)
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(ops.Realign(dim, torch.tensor(source))(last), expected)


@pytest.mark.parametrize(("first", "second"), [(None, [1, 3]), ([0, 2], None), ([0, 2, 3], [1, 2])])
def test_scatter_add(first: list[int] | None, second: list[int] | None) -> None:
    parts, full = [], torch.zeros(2, 4, 3, 3)
    for where in (first, second):
        indices = torch.arange(4) if where is None else torch.tensor(where)
        parts.append(torch.randn(2, len(indices), 3, 3))
        full[:, indices] += parts[-1]
    index = [None if where is None else torch.tensor(where) for where in (first, second)]
    add = ops.ScatterAdd(1, 4, *index)
    torch.testing.assert_close(add(*parts), full)
    last = [part.contiguous(memory_format=torch.channels_last) for part in parts]
    torch.testing.assert_close(add(*last), full)
    parts[1] = parts[1].mean((2, 3), keepdim=True)  # broadcasts
    full = torch.zeros(2, 4, 3, 3)
    for part, where in zip(parts, index, strict=True):
        full[:, torch.arange(4) if where is None else where] += part
    torch.testing.assert_close(add(*parts), full)


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    tokens = torch.randn(3, 5, 8)
    q, k, v = (
        nn.functional.linear(tokens, w, b).unflatten(-1, (2, 4)).transpose(1, 2)
        for w, b in zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    )
    weights = ops.HeadSoftmax(2)(ops.QueryKey(4**-0.5)(q, k))
    mixed = ops.AttentionValue()(weights, v).transpose(1, 2).flatten(2)
    expected, averaged = attention(tokens, tokens, tokens)
    torch.testing.assert_close(attention.out_proj(mixed), expected)
    torch.testing.assert_close(weights.mean(1), averaged)
    assert ops.NoFeatures()(tokens).shape == (3, 5, 0)


def test_pruned_heads_are_zero() -> None:
    logits = torch.randn(2, 3, 4, 4)
    softmax = clone(ops.HeadSoftmax(3), kept=torch.tensor([1.0, 0.0, 1.0]))
    got = softmax(logits)
    assert not got[:, 1].any()
    assert torch.equal(got[:, ::2], logits.softmax(-1)[:, ::2])


KEEPS_ZERO = {
    **dict.fromkeys(("relu", "relu6", "leaky_relu", "elu", "celu", "gelu", "silu", "mish", "hardswish"), True),
    **dict.fromkeys(("tanh", "softsign", "selu", "hardtanh", "abs", "sqrt"), True),
    **dict.fromkeys(("sigmoid", "hardsigmoid", "softplus", "rsqrt", "reciprocal"), False),
}


def test_zeros_stay_zeros_where_it_is_said() -> None:
    """Each function that is said to keep zeros does, and each that is said not to does not."""
    assert KEEPS_ZERO.keys() == ops.ELEMENTWISE.keys() - {"clamp", "clamp_min", "clamp_max"}  # which hang on a bound
    for name, keeps in KEEPS_ZERO.items():
        assert zero_preserving(ops.Activation(ops.ELEMENTWISE[name])) is keeps, name
    assert zero_preserving(ops.Affine(scale=2.0)) is True
    assert zero_preserving(ops.Affine(shift=2.0)) is False
    assert zero_preserving(ops.Affine(shift=torch.zeros(3))) is False
    assert zero_preserving(nn.Conv2d(1, 1, 1)) is None


def test_signs_of_functions() -> None:
    positive = {name for name in KEEPS_ZERO if ops.nonnegative(ops.Activation(ops.ELEMENTWISE[name]))}
    assert positive == {"relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "abs"}
    zeros = {name for name in KEEPS_ZERO if ops.rectifies(ops.Activation(ops.ELEMENTWISE[name]))}
    assert zeros == {"relu", "relu6"}
