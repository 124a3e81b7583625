"""Rules inside attention, against explicit Jacobians and autograd; conservation through a whole transformer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pxp_optimize.attribution import GROUPS, Composite, RuleSpec, attention, collect_relevance
from pxp_optimize.pruning import modules as ops
from pxp_optimize.pruning import trace
from torch import Tensor, nn
from zennit.core import Hook

STABILIZER = 1e-6


def stable(z: Tensor) -> Tensor:
    return z + STABILIZER * torch.where(z >= 0, torch.ones_like(z), -torch.ones_like(z))


def through(rule: Hook, module: nn.Module, relevance: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
    handles = rule.register(module)
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    result = torch.autograd.grad(module(*inputs), inputs, relevance, allow_unused=True)
    handles.remove()
    return result


def error(got: Tensor | None, expected: Tensor) -> float:
    assert got is not None
    assert expected.any()
    return ((got - expected).norm() / expected.norm()).item()


@pytest.fixture
def logits() -> Tensor:
    torch.manual_seed(0)
    return 2 * torch.randn(2, 3, 5, 5, dtype=torch.float64)


@pytest.fixture
def relevance() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 5, 5, dtype=torch.float64)


def softmax_row(name: str, x: Tensor, r: Tensor) -> Tensor:
    """The definitions for one row, from its Jacobian."""
    s = x.softmax(0)
    jacobian = torch.autograd.functional.jacobian(lambda v: v.softmax(0), x)  # (outputs, inputs)
    c = x.unsqueeze(1) * jacobian.T  # c[i, j]: contribution of logit i to output j
    if name == "attnlrp":
        return x * (jacobian.T @ (r / s))
    positive = c.clamp(min=0)
    denominator = positive.sum(0)
    if name == "zplus_bias":
        denominator = denominator + (s - c.sum(0)).clamp(min=0)
    return (positive * (r / stable(denominator))).sum(1)


@pytest.mark.parametrize("name", ["attnlrp", "zplus", "zplus_bias"])
def test_softmax(name: str, logits: Tensor, relevance: Tensor) -> None:
    rule, _ = attention.SOFTMAX_RULES[name]
    (got,) = through(rule.copy(), ops.HeadSoftmax(3), relevance, logits)
    rows = zip(logits.view(-1, 5), relevance.view(-1, 5), strict=True)
    expected = torch.stack([softmax_row(name, x, r) for x, r in rows]).view_as(logits)
    assert error(got, expected) < 1e-9


@pytest.mark.parametrize("name", ["attnlrp", "zplus", "zplus_bias"])
def test_softmax_of_one_token_or_of_certainty(name: str) -> None:
    rule, _ = attention.SOFTMAX_RULES[name]
    for row in (torch.tensor([[[[2.0]]]]), torch.tensor([[[[90.0, -80.0]]]]), torch.zeros(1, 1, 1, 3)):
        (got,) = through(rule.copy(), ops.HeadSoftmax(1), torch.ones_like(row), row)
        assert torch.isfinite(got).all()


def test_attnlrp_softmax_is_the_readmes_formula(logits: Tensor, relevance: Tensor) -> None:
    (got,) = through(attention.AttnLRPSoftmax(), ops.HeadSoftmax(3), relevance, logits)
    s = logits.softmax(-1)
    assert error(got, logits * (relevance - s * relevance.sum(-1, keepdim=True))) < 1e-12


def test_blocked_softmax_stops_relevance(logits: Tensor, relevance: Tensor) -> None:
    module = ops.HeadSoftmax(3)
    handles = attention.BlockedSoftmax().register(module)
    logits.requires_grad_()
    output = module(logits)
    torch.testing.assert_close(output, logits.softmax(-1))
    seen: list[Tensor] = []
    output.register_hook(seen.append)
    output.backward(relevance)
    handles.remove()
    assert logits.grad is None
    assert torch.equal(seen[0], relevance)  # the heads themselves still have theirs


def test_query_key_product_gives_half_to_each(relevance: Tensor) -> None:
    torch.manual_seed(2)
    query, key = torch.randn(2, 2, 3, 5, 4, dtype=torch.float64)
    got = through(attention.UniformQueryKey(), ops.QueryKey(0.3), relevance, query, key)
    query.requires_grad_()
    key.requires_grad_()
    product = 0.3 * query @ key.transpose(-2, -1)
    gradients = torch.autograd.grad(product, (query, key), relevance / (2 * product.detach()))
    for result, factor, gradient in zip(got, (query, key), gradients, strict=True):
        assert error(result, (factor * gradient).detach()) < 1e-12
        torch.testing.assert_close(result.sum(), relevance.sum() / 2, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("rule", "share"), [(attention.UniformAttentionValue(), 2), (attention.FullAttentionValue(), 1)]
)
def test_attention_value_product(rule: Hook, share: int, logits: Tensor) -> None:
    torch.manual_seed(2)
    weights = logits.softmax(-1)
    value, relevance = torch.randn(2, 2, 3, 5, 4, dtype=torch.float64)
    got = through(rule, ops.AttentionValue(), relevance, weights, value)
    weights.requires_grad_()
    value.requires_grad_()
    product = weights @ value
    gradients = torch.autograd.grad(product, (weights, value), relevance / (share * product.detach()))
    for result, factor, gradient in zip(got, (weights, value), gradients, strict=True):
        assert error(result, (factor * gradient).detach()) < 1e-12
        torch.testing.assert_close(result.sum(), relevance.sum() / share, rtol=1e-3, atol=0)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6,), (5, 6)])
def test_layer_norm_with_constant_deviation(shape: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(shape, elementwise_affine=affine, eps=1e-3, dtype=torch.float64)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, relevance = 3 * torch.randn(2, 4, 5, 6, dtype=torch.float64) + 1
    (got,) = through(attention.LayerNormEpsilon(), norm, relevance, x)
    dims = tuple(range(-len(shape), 0))
    std = (x.var(dims, correction=0, keepdim=True) + norm.eps).sqrt()
    x.requires_grad_()
    y = (x - x.mean(dims, keepdim=True)) / std.detach()
    if affine:
        y = y * norm.weight.detach() + norm.bias.detach()
    torch.testing.assert_close(y, norm(x))
    (gradient,) = torch.autograd.grad(y, x, relevance / y.detach())
    assert error(got, (x * gradient).detach()) < 1e-12


# -- the whole ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["epsilon", "gamma"])
@pytest.mark.parametrize("softmax", ["attnlrp", "cp"])
def test_conservation_without_biases(
    softmax: str, rule: str, vision_transformer: Callable[..., nn.Module], images: tuple[Tensor, Tensor]
) -> None:
    """Where nothing has a bias, relevance only moves: what reaches the tokens below the first block is the target
    logit, with which it began.

    One thing keeps some by definition: a softmax passes on what its Taylor expansion at the logits explains, and
    its constant term holds the rest. So that is counted, at each softmax, as what comes in less what goes out
    (with `cp` nothing goes out, and nothing was taken from the values for it). What else is lost are the
    stabilizers in each denominator: that is the tolerance, in double precision. LayerNorm's own epsilon is inside its
    constant deviation and loses nothing.
    """
    model = vision_transformer(layers=4).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or name == "encoder.pos_embedding":
                parameter.zero_()
    graph = trace(model)
    modules = graph.network.modules_by_step()
    composite = Composite.uniform(RuleSpec(rule, {rule: 1e-9 if rule == "epsilon" else 0.25}), softmax=softmax)
    inputs, _ = images
    inputs = inputs.double()
    lost, reached = [], []
    handles = []

    def on_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].requires_grad_() if not args[0].requires_grad else None
        args[0].register_hook(lambda r: reached.append(r.sum((1, 2))))

    def on_softmax(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(lambda r: lost.append(r.sum((1, 2, 3))))
        if args[0].requires_grad:
            args[0].register_hook(lambda r: lost.append(-r.sum((1, 2, 3))))

    add = next(name for name, module in modules.items() if isinstance(module, ops.Add))  # position embedding
    with composite.zennit(graph).context(graph.network):
        handles.append(modules[add].register_forward_pre_hook(on_input))
        for module in modules.values():
            if isinstance(module, ops.HeadSoftmax):
                handles.append(module.register_forward_hook(on_softmax))
        logits = graph.network(inputs)
        target = logits.detach().argmax(1)
        # relevance that starts as the logit itself is conserved as such; one that starts as 1, in proportion
        start = torch.zeros_like(logits).scatter_(
            1, target.unsqueeze(1), logits.detach().gather(1, target.unsqueeze(1))
        )
        logits.backward(start)
    for handle in handles:
        handle.remove()
    assert len(reached) == 1
    at_logit = start.sum(1)
    if softmax == "attnlrp":  # what the constant term of each softmax kept
        at_logit = at_logit - torch.stack(lost).sum(0)
    torch.testing.assert_close(reached[0], at_logit, rtol=1e-4, atol=1e-5)


def test_softmax_rules_differ_where_they_should(
    vision_transformer: Callable[..., nn.Module], images: tuple[Tensor, Tensor]
) -> None:
    graph = trace(vision_transformer(layers=4))
    got = {}
    for name in attention.SOFTMAX_RULES:
        composite = Composite(dict.fromkeys(GROUPS, RuleSpec("epsilon", {"epsilon": 1e-6})), softmax=name)
        got[name] = collect_relevance(graph, composite, *images, units="neurons")
    first = next(iter(got["attnlrp"]))
    last = list(got["attnlrp"])[-1]
    for name in ("zplus", "zplus_bias", "cp"):
        assert error(got[name][first], got["attnlrp"][first]) > 1e-3
        # the last block's neurons lie above every softmax
        assert error(got[name][last], got["attnlrp"][last]) < 1e-6


def test_default_softmax_rule_is_attnlrp(
    vision_transformer: Callable[..., nn.Module], images: tuple[Tensor, Tensor]
) -> None:
    graph = trace(vision_transformer(layers=4))
    spec = RuleSpec("gamma", {"gamma": 0.25})
    plain = collect_relevance(graph, Composite.uniform(spec), *images, units="heads")
    named = collect_relevance(graph, Composite.uniform(spec, softmax="attnlrp"), *images, units="heads")
    assert all(torch.equal(plain[name], named[name]) for name in named)
