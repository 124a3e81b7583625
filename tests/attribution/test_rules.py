"""LRP rules on single layers and small networks, against their definitions and against zennit's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zennit.rules
from pxp_optimize.attribution import rules
from pxp_optimize.attribution.rules import RULES, AlphaBeta, Epsilon, Gamma, LinearRule, RelativeEpsilon, ZPlus
from pxp_optimize.attribution.rules.input import Flat, WSquare, ZBox
from pxp_optimize.pruning import modules as ops
from torch import Tensor, nn
from zennit.composites import LayerMapComposite, NameMapComposite
from zennit.core import Hook
from zennit.types import Activation, Convolution, Linear

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(4, 6, 3), (3, 4, 7, 6)),
    "no bias": (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), (3, 4, 7, 6)),
    "strided": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0)), (3, 4, 7, 8)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2), (3, 4, 7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 7, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (3, 4, 7, 6)),
    "1x1": (lambda: nn.Conv2d(4, 6, 1, stride=2), (3, 4, 7, 6)),
    "linear": (lambda: nn.Linear(9, 5), (3, 9)),
    "linear, no bias": (lambda: nn.Linear(9, 5, bias=False), (3, 9)),
    "linear on tokens": (lambda: nn.Linear(9, 5), (3, 4, 9)),
}
MAKE: dict[str, Callable[..., LinearRule]] = {
    **{f"epsilon {value}": lambda value=value, **known: Epsilon(value, **known) for value in (1e-6, 1e-2, 1.0)},
    **{f"relative {value}": lambda value=value, **known: RelativeEpsilon(value, **known) for value in (1e-2, 1.0)},
    **{f"gamma {value}": lambda value=value, **known: Gamma(value, **known) for value in (0.01, 0.25, 3.0)},
    **{f"alpha {value}": lambda value=value, **known: AlphaBeta(value, **known) for value in (1.0, 1.3, 2.0, 3.0)},
    "zplus": ZPlus,
}
ZENNIT: dict[str, Callable[[], Hook]] = {
    **{f"epsilon {value}": lambda value=value: zennit.rules.Epsilon(epsilon=value) for value in (1e-6, 1e-2, 1.0)},
    **{
        f"relative {value}": lambda value=value: zennit.rules.Epsilon(lambda z: relatively(z, value))
        for value in (1e-2, 1.0)
    },
    **{f"gamma {value}": lambda value=value: zennit.rules.Gamma(gamma=value) for value in (0.01, 0.25, 3.0)},
    # zennit takes only those alpha of which some float beta is exactly one less: 1.3 has one as well
    **{
        f"alpha {value}": lambda value=value: zennit.rules.AlphaBeta(value, value - 1) for value in (1.0, 1.3, 2.0, 3.0)
    },
    "zplus": zennit.rules.ZPlus,
}


def relatively(z: Tensor, epsilon: float) -> Tensor:
    """z moved away from zero by epsilon times the mean absolute value of its sample, one after another."""
    return torch.stack([stable(sample, epsilon * sample.abs().mean().item()) for sample in z])


def make_layer(
    name: str, *, signed: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, Tensor, Tensor]:
    """A layer of `LAYERS`, an input and relevance of its output."""
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = build().to(dtype)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, std=0.3)
    x = torch.randn(shape, dtype=dtype)
    x = x if signed else x.clamp(min=0)
    return layer, x, torch.randn(layer(x).shape, dtype=dtype)


def through(rule: Hook, module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of the input by a rule attached as zennit attaches it."""
    handles = rule.register(module)
    try:
        x = x.clone().requires_grad_()
        (result,) = torch.autograd.grad(module(x), x, relevance)
    finally:
        handles.remove()
    return result


def error(got: Tensor, expected: Tensor) -> float:
    assert expected.any()
    return ((got - expected).norm() / expected.norm()).item()


def stable(z: Tensor, epsilon: float = 1e-6) -> Tensor:
    return z + epsilon * torch.where(z >= 0, torch.ones_like(z), -torch.ones_like(z))


def by_definition(name: str, layer: nn.Module, x: Tensor, relevance: Tensor, whole_bias: bool = False) -> Tensor:
    """The rule from every single contribution `c_ij = x_i w_ij`, one sample at a time."""
    kind, _, value = name.partition(" ")
    results = []
    for sample, relevant in zip(x, relevance, strict=True):
        weights = torch.autograd.functional.jacobian(lambda v: layer(v.unsqueeze(0))[0], sample)
        c = weights.reshape(relevant.numel(), -1) * sample.flatten()  # (outputs, inputs)
        r = relevant.flatten().unsqueeze(1)
        z = layer(sample.unsqueeze(0)).flatten().unsqueeze(1)
        bias = z - c.sum(1, keepdim=True)
        above, below = c.clamp(min=0), c.clamp(max=0)
        z_above = above.sum(1, keepdim=True) + (bias if whole_bias else bias.clamp(min=0))
        z_below = below.sum(1, keepdim=True) + (bias if whole_bias else bias.clamp(max=0))
        if kind == "epsilon":
            result = c / stable(z, float(value)) * r
        elif kind == "relative":
            result = c / stable(z, float(value) * z.abs().mean().item()) * r
        elif kind == "gamma":
            gamma = float(value)
            favoured = torch.where(z > 0, c + gamma * above, c + gamma * below)
            total = torch.where(z > 0, z + gamma * z_above, z + gamma * z_below)
            result = favoured / stable(total) * r
        else:
            alpha = 1.0 if kind == "zplus" else float(value)
            result = alpha * above / stable(z_above) * r - (alpha - 1) * below / stable(z_below) * r
        results.append(result.sum(0).view_as(sample))
    return torch.stack(results)


@pytest.mark.parametrize("rule", MAKE)
@pytest.mark.parametrize("layer", LAYERS)
def test_definition(rule: str, layer: str) -> None:
    module, x, relevance = make_layer(layer)
    assert error(through(MAKE[rule](), module, x, relevance), by_definition(rule, module, x, relevance)) < 1e-9


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "non-negative"])
@pytest.mark.parametrize("rule", MAKE)
def test_zennit(rule: str, signed: bool) -> None:
    for layer in LAYERS:
        module, x, relevance = make_layer(layer, signed=signed, dtype=torch.float32)
        expected = through(ZENNIT[rule](), module, x, relevance)
        assert error(through(MAKE[rule](), module, x, relevance), expected) < 1e-4, layer
        assert error(through(MAKE[rule]().reference(), module, x, relevance), expected) < 1e-6, layer


@pytest.mark.parametrize("rule", MAKE)
def test_known_signs_change_nothing(rule: str) -> None:
    for layer in LAYERS:
        module, x, relevance = make_layer(layer, signed=False)
        relevance = relevance * (module(x) > 0)  # a ReLU reads the output: what it blocks has no relevance
        expected = by_definition(rule, module, x, relevance)
        for known in ({"nonnegative": True}, {"rectified": True}, {"nonnegative": True, "rectified": True}):
            assert error(through(MAKE[rule](**known), module, x, relevance), expected) < 1e-9, (layer, known)


def test_rectified_gamma_leaves_negative_outputs_out() -> None:
    module, x, relevance = make_layer("conv")
    got = through(Gamma(0.25, rectified=True), module, x, relevance)
    assert error(got, by_definition("gamma 0.25", module, x, relevance * (module(x) > 0))) < 1e-9
    assert error(got, by_definition("gamma 0.25", module, x, relevance)) > 0.1


@pytest.mark.parametrize("rule", ["zplus", "alpha 1.3", "alpha 2.0"])
@pytest.mark.parametrize("layer", ["conv", "grouped", "linear", "linear on tokens", "linear, no bias"])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "non-negative"])
def test_whole_bias_in_both_denominators(rule: str, layer: str, signed: bool) -> None:
    module, x, relevance = make_layer(layer, signed=signed)
    expected = by_definition(rule, module, x, relevance, whole_bias=True)
    assert error(through(MAKE[rule](whole_bias=True, nonnegative=not signed), module, x, relevance), expected) < 1e-9
    assert error(through(MAKE[rule](whole_bias=True).reference(), module, x, relevance), expected) < 1e-9
    if module.bias is not None:
        assert error(expected, by_definition(rule, module, x, relevance)) > 1e-2


@pytest.mark.parametrize("rule", ["epsilon 1e-06", "gamma 0.25"])
def test_whole_bias_is_nothing_to_rules_with_one_denominator(rule: str) -> None:
    module, x, relevance = make_layer("linear")
    plain = through(MAKE[rule](), module, x, relevance)
    torch.testing.assert_close(through(MAKE[rule](whole_bias=True), module, x, relevance), plain, atol=0, rtol=0)


@pytest.mark.parametrize("rule", ["epsilon 1e-06", "gamma 3.0", "alpha 2.0", "zplus"])
def test_relevance_is_conserved_without_bias(rule: str) -> None:
    module, x, relevance = make_layer("no bias")
    torch.testing.assert_close(through(MAKE[rule](), module, x, relevance).sum(), relevance.sum(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denominators_move_away_from_zero(dtype: torch.dtype) -> None:
    z = torch.tensor([-3.0, -1e-7, 0.0, 1e-7, 3.0], dtype=dtype)
    each = torch.tensor([1.0, 1e-3, 1e-3, 1e-6, 1e-3], dtype=dtype)
    for epsilon in (1e-6, 0.5, each):
        got = rules.stabilize(z, epsilon)
        assert torch.equal(got, zennit.rules.Stabilizer(epsilon)(z))
        assert got.dtype == dtype


@pytest.mark.parametrize("rule", MAKE)
def test_a_sum_of_zeros_has_no_relevance_to_give_whatever_its_sign(rule: str) -> None:
    """A denominator of -0 is moved downwards, where zennit moves it upwards."""
    module, x = nn.Linear(3, 2, bias=False), torch.tensor([[1.0, 0.0, 2.0]])
    module.weight.data = torch.tensor([[0.0, -1.0, 0.0], [1.0, 1.0, -0.5]])
    for known in ({}, {"nonnegative": True}):
        above, below = (
            MAKE[rule](**known).propagate(module, (x,), torch.tensor([[zero, 2e-3]]), torch.ones(1, 2))[0]
            for zero in (0.0, -0.0)
        )
        assert torch.equal(above, below)
        assert above.any()


def test_silent_outputs_have_no_relevance_to_give() -> None:
    for rule in MAKE:
        module, x, relevance = make_layer("conv")
        got = through(MAKE[rule](), module, torch.zeros_like(x), relevance)
        assert torch.equal(got, torch.zeros_like(x)), rule


# -- in composites of zennit's ------------------------------------------------------------------------------


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 1, dilation=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def attribute(composite: Any, network: nn.Module) -> list[Tensor]:
    """Relevance of the image and, by gradient hooks, of each layer's output."""
    x = torch.randn(5, 3, 11, 11, generator=torch.Generator().manual_seed(1)).requires_grad_()
    seen: list[Tensor] = []
    recorders = []
    with composite.context(network):
        for layer in network:
            if isinstance(layer, nn.Conv2d):
                keep = lambda module, args, output: output.register_hook(seen.append) and None  # noqa: E731
                recorders.append(layer.register_forward_hook(keep))
        output = network(x)
        (relevance,) = torch.autograd.grad(output, x, torch.eye(4)[[0, 1, 2, 3, 0]])
    for handle in recorders:
        handle.remove()
    assert len(seen) == 3
    return [relevance, *seen]


@pytest.mark.parametrize("rule", MAKE)
def test_in_layer_map_composite(rule: str) -> None:
    ours = LayerMapComposite([(Activation, rules.Pass()), ((Convolution, Linear), MAKE[rule]())])
    theirs = LayerMapComposite([(Activation, zennit.rules.Pass()), ((Convolution, Linear), ZENNIT[rule]())])
    network = make_network()
    for got, expected in zip(attribute(ours, network), attribute(theirs, network), strict=True):
        assert error(got, expected) < 1e-4


def test_in_name_map_composite_with_zennits_own_beside() -> None:
    names = [["0"], ["2"], ["5"], ["8"], ["1", "3", "6"]]
    hooks = [Gamma(0.25), AlphaBeta(2.0, nonnegative=True), zennit.rules.ZPlus(), Epsilon(1e-2), zennit.rules.Pass()]
    theirs = [
        zennit.rules.Gamma(0.25),
        zennit.rules.AlphaBeta(2.0, 1.0),
        zennit.rules.ZPlus(),
        zennit.rules.Epsilon(1e-2),
        zennit.rules.Pass(),
    ]
    network = make_network()
    results = [attribute(NameMapComposite(list(zip(names, part, strict=True))), network) for part in (hooks, theirs)]
    for got, expected in zip(*results, strict=True):
        assert error(got, expected) < 1e-4


@pytest.mark.parametrize("rule", ["epsilon 1e-06", "gamma 0.25", "alpha 2.0", "zplus"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 6, 3),
    ],
    ids=["string padding", "reflected", "transposed"],
)
def test_layers_that_the_fast_rules_do_not_know(layer: nn.Module, rule: str) -> None:
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    relevance = torch.ones_like(layer(x))
    assert not rules.supports(layer)
    expected = through(ZENNIT[rule](), layer, x, relevance)
    assert error(through(MAKE[rule](), layer, x, relevance), expected) < 1e-6


# -- the hook -----------------------------------------------------------------------------------------------


def test_removed_leaves_nothing() -> None:
    module, x, relevance = make_layer("conv")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    rule = Gamma(0.25)
    through(rule, module, x, relevance)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    assert not rule.weights
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    plain = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(plain), plain, relevance)
    assert error(gradient, F.conv_transpose2d(relevance, module.weight)) < 1e-9


def test_output_is_the_layers_own() -> None:
    module, x, _ = make_layer("conv")
    expected = module(x)
    handles = Gamma(0.25).register(module)
    assert torch.equal(module(x.requires_grad_()), expected)
    handles.remove()


def test_modified_weights_follow_the_layers() -> None:
    module, x, relevance = make_layer("conv")
    handles = (rule := Gamma(0.25)).register(module)
    x.requires_grad_()
    for _ in range(2):
        (got,) = torch.autograd.grad(module(x), x, relevance)
        without = copy.deepcopy(module)
        without._forward_hooks.clear()
        assert error(got, by_definition("gamma 0.25", without, x.detach(), relevance)) < 1e-9
        assert rule.weights
        with torch.no_grad():
            module.weight.neg_()
    handles.remove()


def test_copies_share_parameters_only() -> None:
    rule = AlphaBeta(1.3, nonnegative=True)
    rule.weights["used"] = torch.ones(1)
    other = rule.copy()
    assert (other.alpha, other.beta, other.nonnegative) == (rule.alpha, rule.beta, True)
    assert other.weights == {}
    assert other.stored_tensors is not rule.stored_tensors


def test_inactive_rule_is_the_gradient() -> None:
    module, x, relevance = make_layer("linear")
    rule = Gamma(0.25)
    rule.active = False
    assert error(through(rule, module, x, relevance), relevance @ module.weight) < 1e-9


def test_every_rule_by_name_has_its_hook() -> None:
    given = {"low": -1.0, "high": 1.0}  # have no default
    made = {
        name: kind.hook(**{key: given[key] if p.default is None else p.default for key, p in kind.parameters.items()})
        for name, kind in RULES.items()
    }
    assert {name: type(rule) for name, rule in made.items()} == {
        "flat": Flat,
        "wsquare": WSquare,
        "zbox": ZBox,
        "epsilon": Epsilon,
        "epsilon_relative": RelativeEpsilon,
        "gamma": Gamma,
        "alpha_beta": AlphaBeta,
        "zplus": ZPlus,
    }
    for kind in RULES.values():
        assert all(p.low <= p.default <= p.high for p in kind.parameters.values() if p.default is not None)


# -- between the layers -------------------------------------------------------------------------------------


def through_two(rule: Hook, module: nn.Module, a: Tensor, b: Tensor, relevance: Tensor) -> list[Tensor]:
    handles = rule.register(module)
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    result = torch.autograd.grad(module(a, b), (a, b), relevance, materialize_grads=True)
    handles.remove()
    return list(result)


def test_sum_is_shared_in_proportion() -> None:
    a, b, relevance = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64)
    got = through_two(rules.Share(), ops.Add(), a, b, relevance)
    assert error(got[0], a / (a + b) * relevance) < 1e-12
    assert error(got[1], b / (a + b) * relevance) < 1e-12


def test_sum_of_any_size_and_where_its_summands_cancel() -> None:
    a, b, relevance = torch.randn(3, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for size in (1e-9, 1e-6, 1e6):
        got = through_two(rules.Share(), ops.Add(), size * a, size * b, relevance)
        assert error(got[0], a / (a + b) * relevance) < 1e-5
    b[0] = -a[0]
    got = through_two(rules.Share(), ops.Add(), a, b, relevance)
    assert not got[0][0].any()
    assert not got[1][0].any()


def test_sum_that_broadcasts() -> None:
    a, relevance = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    b = torch.randn(1, 4, 6, dtype=torch.float64)  # as a position embedding
    got = through_two(rules.Share(), ops.Add(), a, b, relevance)
    assert error(got[1], (b / (a + b) * relevance).sum(0, keepdim=True)) < 1e-12


@pytest.mark.parametrize(("first", "second"), [(None, [1, 2]), ([0, 2, 3], None), ([0, 2, 3], [1, 2])])
def test_sum_of_different_channels(first: list[int] | None, second: list[int] | None) -> None:
    indices = [None if part is None else torch.tensor(part) for part in (first, second)]
    parts = [torch.randn(2, 4 if part is None else len(part), 3, 3, dtype=torch.float64) for part in (first, second)]
    relevance = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    got = through_two(rules.ShareScattered(), ops.ScatterAdd(1, 4, *indices), *parts, relevance)
    full = [
        part if where is None else torch.zeros(2, 4, 3, 3, dtype=torch.float64).index_copy(1, where, part)
        for part, where in zip(parts, indices, strict=True)
    ]
    for result, part, where in zip(got, full, indices, strict=True):
        expected = part / (full[0] + full[1]) * relevance
        assert error(result, expected if where is None else expected[:, where]) < 1e-12


@pytest.mark.parametrize("module", [nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), ops.Mean((2, 3), False)])
def test_average_pooling_is_shared_in_proportion(module: nn.Module) -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    output = module(x)
    relevance = torch.randn(output.shape, dtype=torch.float64)
    size = 2 if isinstance(module, nn.AvgPool2d) else 4
    spread = (relevance / output).view(2, 3, 4 // size, 4 // size)
    expected = x / size**2 * spread.repeat_interleave(size, 2).repeat_interleave(size, 3)
    got = through(rules.Normalise(), module, x, relevance)
    assert error(got, expected) < 1e-9
    torch.testing.assert_close(got.sum(), relevance.sum(), rtol=1e-3, atol=0)


def test_product_gives_half_to_each() -> None:
    a, relevance = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64)
    gate = torch.rand(2, 4, 1, 1, dtype=torch.float64)  # as of a squeeze-and-excitation block
    got = through_two(rules.Halve(), ops.Multiply(), a, gate, relevance)
    torch.testing.assert_close(got[0], relevance / 2, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(got[1], relevance.sum((2, 3), keepdim=True) / 2, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("gate", [0, 1])
def test_what_is_gated_takes_all(gate: int) -> None:
    values, relevance = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64)
    scale = torch.rand(2, 4, 1, 1, dtype=torch.float64) + 0.1
    values = values.sign() + values / 4  # products near zero give nothing on
    factors = (scale, values) if gate == 0 else (values, scale)
    got = through_two(rules.Signal(gate), ops.Multiply(), *factors, relevance)
    torch.testing.assert_close(got[1 - gate], relevance, rtol=1e-3, atol=1e-3)
    assert not got[gate].any()


def test_pass_is_the_identity() -> None:
    x, relevance = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.equal(through(rules.Pass(), nn.GELU(), x, relevance), relevance)


def test_relative_epsilon_is_the_same_at_any_scale_and_without_outputs_that_are_zero() -> None:
    module, x, relevance = make_layer("linear")
    expected = through(RelativeEpsilon(0.1), module, x, relevance)
    small = copy.deepcopy(module)
    for parameter in small.parameters():
        parameter.data *= 1e-3
    assert error(through(RelativeEpsilon(0.1), small, x, relevance), expected) < 1e-9
    assert error(through(Epsilon(0.1), small, x, relevance), through(Epsilon(0.1), module, x, relevance)) > 0.1
    padded = nn.Linear(9, 8).double()
    for mine, theirs in zip(padded.parameters(), module.parameters(), strict=True):
        mine.data.zero_()[:5] = theirs.data
    assert error(through(RelativeEpsilon(0.1), padded, x, F.pad(relevance, (0, 3))), expected) < 1e-9


def test_relative_epsilon_where_all_is_zero() -> None:
    module = nn.Linear(3, 2, bias=False)
    result = through(RelativeEpsilon(0.1), module, torch.zeros(1, 3), torch.ones(1, 2))
    assert torch.equal(result, torch.zeros(1, 3))
