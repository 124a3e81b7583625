"""Relevance of units: what it sums, what it leaves alone, and where it can run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
import zennit.rules
from pxp_optimize.attribution import (
    GROUPS,
    RULES,
    Composite,
    CompositeError,
    RuleSpec,
    collect_relevance,
    collect_scores,
    load_composite,
    normalize,
    rules,
)
from pxp_optimize.attribution.relevance import balance, last_ones_last, per_unit, priced, start_relevance
from pxp_optimize.pruning import (
    Graph,
    Pace,
    Plan,
    Schedule,
    TraceError,
    compact,
    compact_model,
    masked_model,
    prune_masks,
    trace,
    unit_prices,
)
from pxp_optimize.pruning.masks import NotFinite, rank
from pxp_optimize.pruning.modules import Affine
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from zennit.composites import LayerMapComposite, NameMapComposite

SPECS = {
    "epsilon": RuleSpec("epsilon", {"epsilon": 1e-6}),
    "large epsilon": RuleSpec("epsilon", {"epsilon": 0.1}),
    "relative epsilon": RuleSpec("epsilon_relative", {"epsilon": 0.1}),
    "small gamma": RuleSpec("gamma", {"gamma": 0.01}),
    "gamma": RuleSpec("gamma", {"gamma": 0.25}),
    "large gamma": RuleSpec("gamma", {"gamma": 3.0}),
    "alpha 1": RuleSpec("alpha_beta", {"alpha": 1.0}),
    "alpha 1.3": RuleSpec("alpha_beta", {"alpha": 1.3}),
    "alpha 2": RuleSpec("alpha_beta", {"alpha": 2.0}),
    "alpha 3": RuleSpec("alpha_beta", {"alpha": 3.0}),
    "zplus": RuleSpec("zplus"),
}
DEFAULTS = {
    name: RuleSpec(name, {key: p.default for key, p in kind.parameters.items()}) for name, kind in RULES.items()
}
Samples = tuple[Tensor, Tensor]
Worst = Callable[..., float]


def fitting(graph: Graph, spec: RuleSpec, **options: Any) -> Composite:
    return Composite.uniform(spec, dict.fromkeys(graph.groups.values()), **options)


def keep(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    """A forward hook that stores the output under a name."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        outputs[name] = output

    return hook


@pytest.fixture
def graph(residual: nn.Module) -> Graph:
    return trace(residual)


# -- against zennit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_agrees_with_zennits_rules(name: str, graph: Graph, images: Samples, worst: Worst) -> None:
    composite = fitting(graph, SPECS[name])
    for units in ("filters", "neurons"):
        got = collect_relevance(graph, composite, *images, units=units)
        assert worst(got, collect_relevance(graph, composite, *images, units=units, reference=True)) < 1e-4


@pytest.mark.parametrize("name", SPECS)
def test_agrees_with_zennits_rules_in_attention(
    name: str, vision_transformer: Callable[..., nn.Module], images: Samples, worst: Worst
) -> None:
    graph = trace(vision_transformer().double())  # alpha-beta amplifies what single precision rounds
    inputs, targets = images
    for bias in ("whole", "split"):
        composite = fitting(graph, SPECS[name], bias=bias)
        got = collect_relevance(graph, composite, inputs.double(), targets, units="heads+neurons")
        expected = collect_relevance(graph, composite, inputs.double(), targets, units="heads+neurons", reference=True)
        assert worst(got, expected) < 1e-4


@pytest.mark.parametrize("name", ["epsilon", "gamma", "alpha 2", "zplus"])
def test_agrees_with_zennits_rules_on_random_weights(name: str, worst: Worst) -> None:
    """Their outputs are often near zero, where what single precision rounds is amplified: not so in double."""
    torch.manual_seed(0)
    graph = trace(torchvision.models.resnet18(num_classes=50).double().eval())
    images, targets = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([3, 14, 15, 9])
    composite = Composite.uniform(SPECS[name])
    got = collect_relevance(graph, composite, images, targets)
    assert worst(got, collect_relevance(graph, composite, images, targets, reference=True)) < 1e-9


@pytest.mark.parametrize("name", ["epsilon", "large epsilon", "gamma", "alpha 2", "zplus"])
def test_agrees_with_zennit_used_alone(name: str, images: Samples, worst: Worst, randomise: Callable) -> None:
    """A plain stack of layers, zennit's composite on the user's own model, gradient hooks and naive sums."""
    torch.manual_seed(0)
    model = randomise(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 5),
        )
    )
    spec = SPECS[name]
    theirs = {
        "epsilon": lambda epsilon=0.0: zennit.rules.Epsilon(epsilon),
        "gamma": lambda gamma=0.0: zennit.rules.Gamma(gamma),
        "alpha_beta": lambda alpha=1.0: zennit.rules.AlphaBeta(alpha, alpha - 1),
        "zplus": lambda: zennit.rules.ZPlus(),
    }[spec.rule](**spec.parameters)
    composite = LayerMapComposite([((nn.Conv2d, nn.Linear), theirs), (nn.ReLU, zennit.rules.Pass())])
    expected = {"0": torch.zeros(6), "2": torch.zeros(8), "5": torch.zeros(8)}
    signed = {key: value.clone() for key, value in expected.items()}

    for image, target in zip(*images, strict=True):
        with composite.context(model):
            outputs: dict[str, Tensor] = {}
            handles = [model[int(key)].register_forward_hook(keep(outputs, key)) for key in expected]
            logit = model(image.unsqueeze(0).requires_grad_())[0, target]
            relevance = torch.autograd.grad(logit, list(outputs.values()))
            for key, r in zip(outputs, relevance, strict=True):
                expected[key] += r[0].sum((1, 2)).abs()
                signed[key] += r[0].sum((1, 2))
            for handle in handles:
                handle.remove()
    graph = trace(model)
    assert worst(collect_relevance(model, fitting(graph, spec), *images), expected) < 1e-4
    got = collect_relevance(model, fitting(graph, spec, aggregation="signed"), *images)
    assert worst(got, signed) < 1e-4


def test_takes_a_composite_of_zennits(graph: Graph, images: Samples, worst: Worst) -> None:
    pairs = [([name], rules.Gamma(0.25)) for name in graph.groups]
    between = [([name], rules.Pass()) for name in graph.network.modules_by_step() if "relu" in name]
    add = [([name], rules.Share()) for name in graph.network.modules_by_step() if name.startswith("add")]
    pool = [(["pool"], rules.Normalise())]
    got = collect_relevance(graph, NameMapComposite(pairs + between + add + pool), *images)
    assert worst(got, collect_relevance(graph, fitting(graph, SPECS["gamma"]), *images)) < 1e-4


# -- against gradient times activation ----------------------------------------------------------------------


class SmallBranch(nn.Module):
    """Sums, means and a concatenation of activations that are as small as what layer scale leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.branch = nn.Conv2d(6, 6, 3, padding=1)
        self.reduce = nn.Conv2d(6, 4, 1)
        self.mix = nn.Conv2d(10, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = 1e-5 * torch.relu(self.stem(x))
        x = x + 1e-3 * torch.relu(self.branch(x))
        x = F.avg_pool2d(x, 2)
        x = torch.cat([x, torch.relu(self.reduce(x))], 1)
        return self.fc(torch.relu(self.mix(x)).mean((2, 3)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
def test_small_epsilon_is_gradient_times_activation(
    dtype: torch.dtype, tolerance: float, images: Samples, worst: Worst
) -> None:
    """As it is by definition in a network of ReLU: what keeps sums and means from zero must not swallow relevance."""
    torch.manual_seed(0)
    model, expected = SmallBranch().to(dtype).eval(), {}
    for name in ("branch", "reduce", "mix"):
        model.get_submodule(name).bias.data *= 1e-5  # type: ignore[operator, union-attr]
    inputs, targets = images[0].to(dtype), images[1]
    outputs: dict[str, Tensor] = {}
    layers = [(name, module) for name, module in model.named_children() if name != "fc"]
    handles = [module.register_forward_hook(keep(outputs, name)) for name, module in layers]
    logits = model(inputs).gather(1, targets.unsqueeze(1))
    gradients = torch.autograd.grad((logits / logits.detach()).sum(), list(outputs.values()))
    for handle in handles:
        handle.remove()
    for (name, output), gradient in zip(outputs.items(), gradients, strict=True):
        expected[name] = (output * gradient).detach().sum((2, 3)).abs().sum(0)
    tiny = Composite.uniform(RuleSpec("epsilon", {"epsilon": 1e-12}))
    assert worst(collect_relevance(model, tiny, inputs, targets), expected) < tolerance


# -- what is summed -----------------------------------------------------------------------------------------


def test_units_by_their_definitions(
    graph: Graph, images: Samples, worst: Worst, vision_transformer: Callable[..., nn.Module]
) -> None:
    """Against sums over single samples and plain loops, from hooks of this test's own."""
    for one, units in ((graph, "filters+neurons"), (trace(vision_transformer()), "heads+neurons")):
        absolute: dict[str, Tensor] = {}
        signed: dict[str, Tensor] = {}
        composite = fitting(one, SPECS["gamma"])
        modules = one.network.modules_by_step()
        with composite.zennit(one).context(one.network):
            for image, target in zip(*images, strict=True):
                outputs: dict[str, Tensor] = {}
                handles = [modules[name].register_forward_hook(keep(outputs, name)) for name in one.units(units)]
                logit = one.network(image.unsqueeze(0).requires_grad_())[0, target]
                for (name, output), r in zip(
                    outputs.items(), torch.autograd.grad(logit, list(outputs.values())), strict=True
                ):
                    kind = one.kinds[name]
                    values = []
                    for unit in range(one.sizes[name]):
                        if kind == "filters":
                            values.append([r[0, unit].sum()])
                        elif kind == "heads":
                            values.append([row.sum() for row in r[0, unit]])  # one a token
                        else:
                            values.append(list(r[0].reshape(-1, output.shape[-1])[:, unit]))
                    table = torch.tensor(values)
                    absolute[name] = absolute.get(name, 0) + table.abs().sum(1)
                    signed[name] = signed.get(name, 0) + table.sum(1)
                for handle in handles:
                    handle.remove()
        for kind in units.split("+"):
            names = [name for name in one.sizes if one.kinds[name] == kind]
            got = collect_relevance(one, composite, *images, units=kind)
            assert worst(got, {name: absolute[name] for name in names}) < 1e-4
            other = fitting(one, SPECS["gamma"], aggregation="signed")
            got = collect_relevance(one, other, *images, units=kind)
            assert worst(got, {name: signed[name] for name in names}) < 1e-4


def test_per_unit_sums() -> None:
    r = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(per_unit(r, "filters", False), r.sum((2, 3)).abs().sum(0))
    torch.testing.assert_close(per_unit(r, "filters", True), r.sum((0, 2, 3)))
    torch.testing.assert_close(per_unit(r, "heads", False), r.sum(3).abs().sum((0, 2)))
    torch.testing.assert_close(per_unit(r, "heads", True), r.sum((0, 2, 3)))
    tokens, flat = r[:, 0], r[:, 0, 0]
    torch.testing.assert_close(per_unit(tokens, "neurons", False), tokens.abs().sum((0, 1)))
    torch.testing.assert_close(per_unit(flat, "neurons", True), flat.sum(0))


def test_per_unit_reductions() -> None:
    r = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for kind, positions in (  # (samples, units, positions)
        ("filters", r.flatten(2)),
        ("heads", r.sum(3)),
        ("neurons", r.flatten(1, 2).transpose(1, 2)),
    ):
        biggest = torch.tensor([[max(row.tolist(), key=abs) for row in sample] for sample in positions])
        torch.testing.assert_close(per_unit(r, kind, False, "sum"), positions.sum(2).abs().sum(0))
        torch.testing.assert_close(per_unit(r, kind, True, "sum"), positions.sum((0, 2)))
        for signed in (False, True):
            torch.testing.assert_close(per_unit(r, kind, signed, "abs"), positions.abs().sum((0, 2)))
        torch.testing.assert_close(per_unit(r, kind, False, "max"), biggest.abs().sum(0))
        torch.testing.assert_close(per_unit(r, kind, True, "max"), biggest.sum(0))
        as_usual = "sum" if kind == "filters" else "abs"
        assert torch.equal(per_unit(r, kind, False), per_unit(r, kind, False, as_usual))
        assert torch.equal(per_unit(r, kind, True), per_unit(r, kind, True, "sum"))


def test_where_relevance_starts() -> None:
    logits, targets = torch.tensor([[2.0, 1.0, -1.0, 0.5], [80.0, -80.0, 0.0, 0.0]]), torch.tensor([1, 0])
    expected = logits.clone().requires_grad_()
    expected.softmax(1).gather(1, targets.unsqueeze(1)).sum().backward()
    torch.testing.assert_close(start_relevance("softmax", targets, logits), expected.grad)
    contrast = start_relevance("contrastive", targets, logits)
    p = logits.softmax(1)
    torch.testing.assert_close(contrast[0], torch.tensor([-p[0, 0], 1 - p[0, 1], -p[0, 2], -p[0, 3]]) / (1 - p[0, 1]))
    torch.testing.assert_close(contrast[1], torch.tensor([1.0, 0.0, -0.5, -0.5]))  # where 1 - p_t is zero in floats
    for how in ("softmax", "contrastive"):
        competing = start_relevance(how, targets, logits, torch.tensor([0, 1, 3]))
        assert torch.equal(competing[:, 2], torch.zeros(2))
        torch.testing.assert_close(competing[:, [0, 1, 3]], start_relevance(how, targets, logits[:, [0, 1, 3]]))
    alone = start_relevance("contrastive", targets[1:], logits[1:], torch.tensor([0]))
    assert torch.equal(alone, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("start", ["softmax", "contrastive"])
def test_relevance_of_a_start_is_the_sum_over_its_logits(start: str, graph: Graph, images: Samples) -> None:
    """LRP is linear in the relevance it starts from."""
    image, target = images[0][:1], images[1][:1]
    signed = {"aggregation": "signed"}
    got = collect_relevance(graph, fitting(graph, SPECS["gamma"], start=start, **signed), image, target)
    share = start_relevance(start, target, graph.network(image))[0]
    parts = [
        collect_relevance(graph, fitting(graph, SPECS["gamma"], **signed), image, torch.tensor([j])) for j in range(5)
    ]
    for name, values in got.items():
        expected = sum(parts[j][name] * share[j] for j in range(5))
        torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("aggregation", ["abs", "signed"])
def test_batches_change_nothing(aggregation: str, graph: Graph, images: Samples, worst: Worst) -> None:
    composite = fitting(graph, SPECS["alpha 2"], aggregation=aggregation)
    whole = collect_relevance(graph, composite, *images, batch_size=100)
    for size in (1, 3, 7):
        assert worst(collect_relevance(graph, composite, *images, batch_size=size), whole) < 1e-4


@pytest.mark.parametrize("start", ["softmax", "contrastive"])
def test_batches_change_nothing_of_what_depends_on_a_sample(
    start: str, graph: Graph, images: Samples, worst: Worst
) -> None:
    composite = fitting(graph, SPECS["relative epsilon"], start=start, reduction="max")
    whole = collect_relevance(graph, composite, *images, batch_size=100)
    assert worst(collect_relevance(graph, composite, *images, batch_size=2), whole) < 1e-4


def test_samples_add_up(graph: Graph, images: Samples, worst: Worst) -> None:
    composite = fitting(graph, SPECS["gamma"])
    inputs, targets = images
    parts = [collect_relevance(graph, composite, inputs[s], targets[s]) for s in (slice(0, 3), slice(3, None))]
    together = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert worst(collect_relevance(graph, composite, *images), together) < 1e-5


def test_targets_matter(graph: Graph, images: Samples, worst: Worst) -> None:
    composite = fitting(graph, SPECS["gamma"])
    inputs, targets = images
    other = collect_relevance(graph, composite, inputs, (targets + 1) % 5)
    assert worst(other, collect_relevance(graph, composite, inputs, targets)) > 0.01


def test_names_and_shapes_are_the_models(residual: nn.Module, images: Samples) -> None:
    composite = Composite.uniform(SPECS["gamma"])
    got = collect_relevance(residual, composite, *images, units=None)
    assert {name: len(values) for name, values in got.items()} == {
        "conv1": 6,
        "conv2": 8,
        "downsample": 8,
        "conv3": 8,
    }
    assert list(got) == ["conv1", "conv2", "downsample", "conv3"]
    assert collect_relevance(residual, composite, *images, units="neurons")["hidden"].shape == (10,)
    assert all(not values.requires_grad for values in got.values())


def test_repeats_to_the_last_bit(residual: nn.Module, images: Samples) -> None:
    composite = Composite.uniform(SPECS["alpha 1.3"])
    graph = trace(residual)
    first = collect_relevance(residual, composite, *images)
    for _ in range(2):
        again = collect_relevance(graph, composite, *images)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("how", "norm"),
    [("l1", lambda v: v.abs().sum()), ("l2", lambda v: (v**2).sum().sqrt()), ("max", lambda v: v.abs().max())],
)
def test_normalization(how: str, norm: Callable, graph: Graph, images: Samples, worst: Worst) -> None:
    plain = collect_relevance(graph, fitting(graph, SPECS["gamma"], aggregation="signed"), *images)
    got = collect_relevance(graph, fitting(graph, SPECS["gamma"], aggregation="signed", normalization=how), *images)
    assert worst(got, {name: values / norm(values) for name, values in plain.items()}) < 1e-5


@pytest.mark.parametrize("how", ["none", "l1", "l2", "max"])
def test_normalization_of_nothing(how: str) -> None:
    got = normalize({"zero": torch.zeros(3), "empty": torch.zeros(0), "one": torch.tensor([2.0])}, how)
    assert torch.equal(got["zero"], torch.zeros(3))
    assert got["empty"].shape == (0,)
    assert got["one"].item() == (2.0 if how == "none" else 1.0)


def test_kinds_are_balanced() -> None:
    relevance = {"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([10.0, 20.0, 30.0]), "c": torch.tensor([6.0])}
    kinds = {"a": "heads", "b": "neurons", "c": "heads"}
    got = balance(relevance, kinds, 4.0)
    heads = torch.cat([got["a"], got["c"]]).abs().mean()
    assert heads.item() == pytest.approx(1)
    assert got["b"].mean().item() == pytest.approx(4)
    torch.testing.assert_close(got["a"] / got["c"], relevance["a"] / relevance["c"])
    alone = balance({"b": relevance["b"]}, kinds, 4.0)
    assert torch.equal(alone["b"], relevance["b"])


def test_several_kinds_are_balanced_in_collecting(graph: Graph, images: Samples) -> None:
    got = collect_relevance(graph, fitting(graph, SPECS["gamma"], balance=3.0), *images, units="filters+neurons")
    filters = torch.cat([values for name, values in got.items() if graph.kinds[name] == "filters"])
    assert got["hidden"].abs().mean().item() == pytest.approx(3 * filters.abs().mean().item(), rel=1e-4)


def test_layers_without_units_and_dead_layers(graph: Graph, images: Samples) -> None:
    masks = {"conv2": torch.zeros(8, dtype=torch.bool), "conv3": torch.arange(8) < 3}
    small = compact(graph, masks)
    got = collect_relevance(small, fitting(graph, SPECS["gamma"]), *images)
    assert {name: len(values) for name, values in got.items()} == {"conv1": 6, "conv2": 0, "downsample": 8, "conv3": 3}
    assert got["conv3"].any()


@pytest.mark.parametrize("options", [{}, {"reduction": "max", "start": "contrastive"}])
@pytest.mark.parametrize("name", ["gamma", "relative epsilon"])
def test_units_of_groups_that_are_filled_up(
    name: str, options: dict[str, str], graph: Graph, images: Samples, worst: Worst
) -> None:
    """A grouped convolution whose groups keep different numbers of units, against the masked one."""
    kept = torch.tensor([1, 1, 1, 0, 0, 0, 1, 0]).bool()
    composite = fitting(graph, SPECS[name], **options)
    got = collect_relevance(compact(graph, {"conv3": kept}), composite, *images)
    whole = replace(graph, network=masked_model(graph, {"conv3": kept}))
    expected = collect_relevance(whole, composite, *images)
    assert worst(got, {**expected, "conv3": expected["conv3"][kept]}) < 1e-4


# -- what stays as it was -----------------------------------------------------------------------------------


def state(model: nn.Module) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "tensors": {key: value.detach().clone() for key, value in model.state_dict().items()},
        "flags": [(module.training, *(len(getattr(module, name)) for name in hooks)) for module in model.modules()],
        "gradients": [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        "attributes": [sorted(module.__dict__) for module in model.modules()],
        "forward": [type(module).forward for module in model.modules()],
    }


def assert_same(before: dict[str, Any], model: nn.Module) -> None:
    after = state(model)
    tensors, expected = after.pop("tensors"), dict(before)
    for key, value in expected.pop("tensors").items():
        assert torch.equal(tensors[key], value), key
    assert after == expected


def mixed(model: nn.Module) -> nn.Module:
    """A model in the state of one that is being trained: part frozen, part in eval mode."""
    model.train()
    model.bn1.eval()
    model.conv2.weight.requires_grad_(False)
    model.conv3.register_forward_hook(lambda module, args, output: None)
    return model


@pytest.mark.filterwarnings("ignore:forward hooks:RuntimeWarning")
@pytest.mark.parametrize("reference", [False, True])
def test_model_is_left_as_it_was(residual: nn.Module, images: Samples, reference: bool) -> None:
    model = mixed(residual)
    before = state(model)
    expected = copy.deepcopy(model).eval()(images[0])
    collect_relevance(model, Composite.uniform(SPECS["gamma"]), *images, reference=reference)
    assert_same(before, model)
    assert torch.equal(model.eval()(images[0]), expected)


@pytest.mark.filterwarnings("ignore:forward hooks:RuntimeWarning")
def test_model_is_left_as_it_was_after_errors(residual: nn.Module, images: Samples) -> None:
    model = mixed(residual)
    before = state(model)
    inputs, targets = images
    composite = Composite.uniform(SPECS["gamma"])
    for error, call in (
        (TraceError, lambda: collect_relevance(model, composite, inputs[:, :2], targets)),
        (ValueError, lambda: collect_relevance(model, composite, inputs, targets + 5, batch_size=4)),
        (CompositeError, lambda: collect_relevance(model, Composite({"low": SPECS["gamma"]}), inputs, targets)),
        (ValueError, lambda: collect_relevance(model, composite, inputs, targets, units="heads")),
    ):
        with pytest.raises(error):
            call()
        assert_same(before, model)


@pytest.mark.parametrize("reference", [False, True])
def test_graph_is_left_as_it_was(graph: Graph, images: Samples, reference: bool) -> None:
    before = state(graph.network)
    inputs, targets = images
    composite = fitting(graph, SPECS["gamma"])
    collect_relevance(graph, composite, inputs, targets, reference=reference)
    assert_same(before, graph.network)
    with pytest.raises(ValueError):
        collect_relevance(graph, composite, inputs, targets + 5, reference=reference)
    assert_same(before, graph.network)


def test_inputs_are_left_as_they_were(graph: Graph, images: Samples) -> None:
    inputs = images[0].clone().requires_grad_()
    collect_relevance(graph, fitting(graph, SPECS["gamma"]), inputs, images[1])
    assert inputs.grad is None
    assert inputs.requires_grad
    assert torch.equal(inputs.detach(), images[0])


def test_inside_no_grad(graph: Graph, images: Samples) -> None:
    composite = fitting(graph, SPECS["gamma"])
    expected = collect_relevance(graph, composite, *images)
    with torch.no_grad():
        got = collect_relevance(graph, composite, *images)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_inside_inference_mode(residual: nn.Module, images: Samples) -> None:
    composite = Composite.uniform(SPECS["gamma"])
    expected = collect_relevance(residual, composite, *images)
    scores = collect_scores(residual, "gradient", *images)
    with torch.inference_mode():
        made_inside = images[0].clone(), images[1].clone()
        for samples in (images, made_inside):
            got = collect_relevance(residual, composite, *samples)
            assert all(torch.equal(got[name], expected[name]) for name in expected)
            assert all(torch.equal(scores[k], v) for k, v in collect_scores(residual, "gradient", *samples).items())
        small = compact_model(residual, prune_masks(got, 0.3))
        assert torch.is_inference_mode_enabled()
    assert not any(value.is_inference() for value in small.state_dict().values())
    assert any(value.abs().sum() > 0 for value in expected.values())


# -- where it runs, and what it refuses -----------------------------------------------------------------------


def on_meta(model: nn.Module, size: int) -> tuple[nn.Module, Tensor, Tensor]:
    """There every host synchronisation, and every tensor on another device, raises."""
    inputs = torch.empty(4, 3, size, size, device="meta")
    return model.to("meta"), inputs, torch.empty(4, dtype=torch.long, device="meta")


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("options", [{}, {"aggregation": "signed", "normalization": "l2"}], ids=["plain", "options"])
def test_resnet_without_synchronisation(name: str, options: dict[str, str]) -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18(num_classes=10)
    model, inputs, targets = on_meta(model, 32)
    got = collect_relevance(model, Composite.uniform(DEFAULTS[name], **options), inputs, targets, batch_size=3)
    assert len(got) == 20
    assert all(values.device.type == "meta" for values in got.values())


@pytest.mark.parametrize("softmax", ["attnlrp", "zplus", "zplus_bias", "cp"])
@pytest.mark.parametrize("name", RULES)
def test_transformer_without_synchronisation(
    name: str, softmax: str, vision_transformer: Callable[..., nn.Module]
) -> None:
    model, inputs, targets = on_meta(vision_transformer(layers=4), 16)
    composite = Composite.uniform(DEFAULTS[name], softmax=softmax)
    got = collect_relevance(model, composite, inputs, targets, units="heads+neurons", batch_size=3)
    assert len(got) == 12
    assert all(values.device.type == "meta" for values in got.values())


@pytest.mark.parametrize("name", RULES)
def test_pruned_networks_without_synchronisation(
    name: str, residual: nn.Module, vision_transformer: Callable[..., nn.Module]
) -> None:
    """What a schedule's later steps see."""
    transformer = vision_transformer(layers=4)
    models = ((residual, "filters+neurons"), (transformer, "heads+neurons"), (Gated(constant=False), "filters"))
    for model, units in models:
        graph = trace(model)
        generator = torch.Generator().manual_seed(0)
        scores = {layer: torch.rand(size, generator=generator) for layer, size in graph.units(units).items()}
        small = compact(graph, prune_masks(scores, 0.5)).to("meta")
        inputs, targets = torch.empty(4, 3, 16, 16, device="meta"), torch.empty(4, dtype=torch.long, device="meta")
        got = collect_relevance(small, fitting(small, DEFAULTS[name]), inputs, targets, units=units, batch_size=3)
        assert {layer: len(values) for layer, values in got.items()} == small.units(units)
        assert all(values.device.type == "meta" for values in got.values())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", RULES)
def test_cuda_agrees(name: str, residual: nn.Module, images: Samples, worst: Worst) -> None:
    composite = Composite.uniform(DEFAULTS[name])
    expected = collect_relevance(residual, composite, *images)
    got = collect_relevance(residual.cuda(), composite, *(part.cuda() for part in images))
    assert all(values.is_cuda for values in got.values())
    assert worst({name: values.cpu() for name, values in got.items()}, expected) < 1e-3


def test_samples_and_targets_must_match(graph: Graph, images: Samples) -> None:
    inputs, targets = images
    composite = fitting(graph, SPECS["gamma"])
    for samples in ((inputs[:0], targets[:0]), (inputs, targets[:3])):
        with pytest.raises(ValueError, match="same number, at least one"):
            collect_relevance(graph, composite, *samples)
    for changes, message in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"targets": targets.float()}, "int64 indices"),
        ({"targets": torch.eye(5, dtype=torch.long)[targets]}, "int64 indices"),
        ({"targets": targets - 5}, "need indices of 5 logits"),
        ({"targets": targets + 5}, "need indices of 5 logits"),
        ({"inputs": inputs.byte()}, "float images"),
    ):
        with pytest.raises(ValueError, match=message):
            collect_relevance(graph, composite, **{"inputs": inputs, "targets": targets, **changes})


def test_a_model_and_images_in_half_precision(residual: nn.Module, images: Samples, worst: Worst) -> None:
    composite, (inputs, targets) = Composite.uniform(SPECS["gamma"]), images
    model = copy.deepcopy(residual).bfloat16()
    got = collect_relevance(model, composite, inputs.bfloat16(), targets)
    assert worst(got, collect_relevance(model.float(), composite, inputs.bfloat16().float(), targets)) == 0


def test_takes_a_composite_from_a_file(graph: Graph, images: Samples, tmp_path: Path) -> None:
    composite = fitting(graph, SPECS["gamma"])
    (tmp_path / "a.json").write_text(json.dumps({"format": "pxp-composite/1", **composite.to_dict()}))
    expected = collect_relevance(graph, composite, *images)
    for source in (tmp_path / "a.json", str(tmp_path / "a.json")):
        got = collect_relevance(graph, source, *images)
        assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_units_that_are_not_there(graph: Graph, images: Samples) -> None:
    composite = fitting(graph, SPECS["gamma"])
    with pytest.raises(ValueError, match="no heads to prune; it has: filters, neurons"):
        collect_relevance(graph, composite, *images, units="heads")
    with pytest.raises(ValueError, match="unknown units 'filter'"):
        collect_relevance(graph, composite, *images, units="filter")


def test_model_that_cannot_be_traced(images: Samples) -> None:
    class Undecided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(TraceError):
        collect_relevance(Undecided(), Composite.uniform(SPECS["gamma"], GROUPS), *images)


def test_takes_a_composite_as_json(residual: nn.Module, images: Samples) -> None:
    document = {"groups": {group: {"rule": "zplus"} for group in trace(residual).groups.values()}}
    got = collect_relevance(residual, document, *images)
    expected = collect_relevance(residual, load_composite(document), *images)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_channels_are_normalised_where_they_lie() -> None:
    """ConvNeXt's norm of maps is a permutation, a LayerNorm and the way back; maps here are as wide as channels are
    many, so that a norm over the width would go unnoticed."""

    class Normed(nn.Module):
        def __init__(self, maps: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.c1, self.c2, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
            self.norm = LayerNorm2d(8) if maps else nn.LayerNorm(8)
            nn.init.normal_(self.norm.weight)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.c1(x))
            last = isinstance(self.norm, LayerNorm2d)
            x = self.norm(x) if last else self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return self.fc(self.c2(x).mean((2, 3)))

    x, y = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    for name in ("epsilon", "gamma"):
        composite = Composite.uniform(RuleSpec(name))
        found, expected = (collect_relevance(Normed(maps).eval(), composite, x, y) for maps in (True, False))
        for layer, values in expected.items():
            assert torch.allclose(found[layer], values, rtol=1e-4)


def test_nothing_is_left_on_the_way_to_the_logits() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    small = compact(trace(model), {"2": torch.zeros(4, dtype=torch.bool)})
    images, targets = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    for name in ("epsilon", "alpha_beta"):
        found = collect_relevance(small, Composite.uniform(RuleSpec(name)), images, targets)
        assert not found["0"].any()
    assert not collect_scores(small, "integrated_gradients", images, targets, "filters", 2, 0)["0"].any()


def test_relative_epsilon_of_a_layer_that_gives_zeros() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(4, 5, bias=False)
    ).eval()
    nn.init.normal_(model[4].weight, std=20)
    images = torch.randn(3, 3, 8, 8)
    images[0] = 0
    found = collect_relevance(model, Composite.uniform(RuleSpec("epsilon_relative")), images, torch.arange(3))
    assert torch.isfinite(found["0"]).all()
    assert found["0"].any()


# -- gates --------------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """Squeeze-and-excitation, with the gate at hand as a number that nothing flows through (`constant`)."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.squeeze, self.excite = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)
        self.b = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.fc = nn.Linear(8, 5, bias=False)
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        if self.constant:
            gate = gate.detach()
        return self.fc(torch.relu(self.b(gate * x)).mean((2, 3)))


def test_relevance_passes_a_gate_as_if_it_were_a_constant(images: Samples, worst: Worst) -> None:
    """LRP with epsilon towards zero is output times gradient where all between is linear or ReLU (without biases)."""
    model, plain = Gated(constant=False), Gated(constant=True)
    plain.load_state_dict(model.state_dict())
    graph = trace(model)
    got = collect_relevance(graph, fitting(graph, RuleSpec("epsilon", {"epsilon": 1e-9})), *images)
    outputs: dict[str, Tensor] = {}
    for name in "ab":
        plain.get_submodule(name).register_forward_hook(keep(outputs, name))
    inputs, targets = images
    logits = plain(inputs.requires_grad_()).gather(1, targets.unsqueeze(1))
    # relevance starts as 1 whatever the logit is: the gradient over the logit is that of its logarithm
    gradients = torch.autograd.grad(logits.abs().log().sum(), [*outputs.values()])
    expected = {
        name: (output.detach() * gradient).sum((2, 3)).abs().sum(0)
        for (name, output), gradient in zip(outputs.items(), gradients, strict=True)
    }
    assert worst({name: got[name] for name in "ab"}, expected) < 1e-3
    assert not got["squeeze"].any()
    assert not got["excite"].any()


@pytest.mark.parametrize("rule", ["epsilon", "zplus"])
def test_layers_that_only_feed_gates_are_those_without_relevance(images: Samples, rule: str) -> None:
    graph = trace(Gated(constant=False))
    composite = fitting(graph, SPECS[rule])
    every = collect_relevance(graph, composite, *images)
    assert {name for name, values in every.items() if not values.any()} == graph.gating == {"squeeze", "excite"}
    usual = collect_relevance(graph, composite, *images, units=None)
    assert [*usual] == ["a", "b"]
    assert all(torch.equal(values, every[name]) for name, values in usual.items())


def test_half_of_the_relevance_may_go_to_the_gate(images: Samples) -> None:
    graph = trace(Gated(constant=False))
    signal, half = (
        collect_relevance(graph, fitting(graph, SPECS["zplus"], gates=gates, aggregation="signed"), *images)
        for gates in ("signal", "half")
    )
    torch.testing.assert_close(half["b"], signal["b"])
    torch.testing.assert_close(half["excite"].sum() * 2, signal["a"].sum(), rtol=1e-3, atol=1e-4)


def test_compact_networks_keep_their_gates(images: Samples, worst: Worst) -> None:
    graph = trace(Gated(constant=False))
    masks = {name: torch.arange(size) % 3 != 1 for name, size in graph.units("filters").items()}
    small = compact(graph, masks)
    assert small.gated
    composite = fitting(graph, SPECS["gamma"])
    masked = collect_relevance(masked_model(graph, masks), composite, *images)
    got = collect_relevance(small, composite, *images)
    assert worst({name: got[name] for name in "ab"}, {name: masked[name][masks[name]] for name in "ab"}) < 1e-4
    assert not got["squeeze"].any()


def test_a_composite_of_zennits_on_a_network_with_sums() -> None:
    from zennit.composites import EpsilonPlus
    from zennit.torchvision import ResNetCanonizer

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4).double().eval()
    inputs, targets = torch.randn(2, 3, 32, 32).double(), torch.tensor([0, 1])
    found = collect_relevance(model, EpsilonPlus(), inputs, targets)
    expected: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        def on_forward(module: nn.Module, args: Any, output: Tensor) -> None:
            output.register_hook(lambda gradient: expected.update({name: gradient.sum((2, 3)).abs().sum(0)}))

        return on_forward

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in found]
    with EpsilonPlus(canonizers=[ResNetCanonizer()]).context(model) as wrapped:
        wrapped(inputs.clone().requires_grad_()).backward(torch.nn.functional.one_hot(targets, 4).double())
    for handle in handles:
        handle.remove()
    for name, values in found.items():
        assert float((values - expected[name]).norm() / expected[name].norm()) < 1e-3


class Unfolded(nn.Module):
    """BatchNorms that follow no layer: before an activation, on a branch of its own, and a scale with a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.branch = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)
        self.shift = nn.Parameter(torch.zeros(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.conv((self.norm(x)).relu())
        x = torch.addcmul(self.shift, self.branch(x.relu()), self.shift + 1).relu()
        return self.fc(x.mean((2, 3)))


def test_what_shifts_takes_a_biass_share(randomise: Callable[[nn.Module], nn.Module]) -> None:
    """Without an epsilon, relevance is gradient times activation over the logit."""
    torch.manual_seed(0)
    model, x, targets = randomise(Unfolded()).double(), torch.randn(3, 3, 9, 9).double(), torch.tensor([0, 1, 3])
    graph = trace(model, x)
    kinds = {type(module) for module in graph.network.modules_by_step().values()}
    assert {nn.BatchNorm2d, Affine} <= kinds
    found = collect_relevance(graph, fitting(graph, RuleSpec("epsilon", {"epsilon": 1e-12})), x, targets)
    outputs: dict[str, Tensor] = {}
    for name in found:
        model.get_submodule(name).register_forward_hook(keep(outputs, name))
    logits = model(x).gather(1, targets[:, None])
    gradients = torch.autograd.grad(logits.sum(), [outputs[name] for name in found])
    for name, gradient in zip(found, gradients, strict=True):
        expected = (outputs[name] * gradient / logits[..., None, None]).sum((2, 3)).abs().sum(0).detach()
        assert float((found[name] - expected).norm() / expected.norm()) < 1e-4


def test_relevance_over_a_power_of_the_price():
    relevance = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([3.0]), "c": torch.tensor([])}
    prices = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([4.0]), "c": torch.tensor([])}
    found = priced(relevance, prices, 2.0)  # in units of the mean price, 3
    assert found["a"].tolist() == pytest.approx([9.0, -2 * 9 / 16])
    assert found["b"].tolist() == pytest.approx([27 / 16])
    assert found["c"].tolist() == []


def test_kinds_are_balanced_after_prices(vision_transformer: Callable[..., nn.Module]):
    """Else heads, of which each costs many neurons, would all go first."""
    images, targets = torch.randn(6, 3, 16, 16), torch.arange(6) % 4
    composite = Composite.uniform(RuleSpec("epsilon"), softmax="attnlrp", cost_exponent=1.0)
    graph = trace(vision_transformer())
    found = collect_relevance(graph, composite, images, targets, "heads+neurons")
    means = [
        torch.cat([values.abs() for name, values in found.items() if graph.kinds[name] == kind]).mean()
        for kind in ("heads", "neurons")
    ]
    assert means == pytest.approx([1.0, 1.0])


def test_the_last_units_of_bottlenecks_go_last():
    relevance = {
        "a": torch.tensor([1.0, 5.0, 2.0]),
        "b": torch.tensor([9.0, 0.0]),
        "c": torch.zeros(2),
        "d": torch.ones(0),
    }
    found = last_ones_last(relevance, {"a", "c", "d"})
    assert rank(found).order.tolist() == [0 + 4, 6, 0, 2, 3, 5, 1]
    assert found["b"] is relevance["b"]
    assert relevance["a"].tolist() == [1.0, 5.0, 2.0]


def test_last_ones_of_negative_relevance_are_last_too():
    found = last_ones_last({"a": torch.tensor([-5.0, -9.0]), "b": torch.tensor([-1.0, -3.0])}, {"a", "b"})
    assert rank(found).order.tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_where_it_is(wrong: float):
    found = last_ones_last({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0, wrong])}, {"a"})
    with pytest.raises(NotFinite, match="layer b"):
        rank(found)


@pytest.mark.parametrize("cost", ["macs", "latency"])
def test_prices_make_no_order_where_nothing_is_relevant(cost: str):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    nn.init.zeros_(model[4].weight)
    paces = {"0": Pace(1e-9, (1, 2, 4), (0.5, 0.5, 1.0)), "4": Pace(1e-9)} if cost == "latency" else {}
    composite = Composite.uniform(RuleSpec("epsilon"), cost_exponent=1.0, cost=cost, paces=paces)
    found = collect_relevance(model, composite, torch.randn(4, 3, 8, 8), torch.arange(4) % 3)
    assert found["0"].tolist() == [0.0] * 4


@pytest.mark.parametrize("exponent", [0.0, 4.0])
def test_prices_cut_no_network_in_two(exponent: float):
    """A first layer that costs more than all the others together is the first that prices would have gone."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 9, padding=4), nn.ReLU(), nn.MaxPool2d(8), nn.Conv2d(8, 16, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * 4, 5)),
    ).eval()
    images, targets = torch.randn(6, 3, 16, 16), torch.arange(6) % 5
    composite = Composite.uniform(RuleSpec("epsilon"), cost_exponent=exponent)
    order = rank(collect_relevance(model, composite, images, targets)).order.tolist()
    first, last = max(order.index(unit) for unit in range(8)), max(order.index(unit) for unit in range(8, 24))
    if exponent:
        assert {first, last} == {22, 23}
    else:
        assert first < 22 or last < 22


def test_layers_lose_whole_blocks_where_these_are_what_saves_time():
    """Of a layer that is as fast with 17 filters as with 32 sixteen go one after the other, in the order of ever."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 16, 5)),
    ).eval()
    images, targets = torch.randn(6, 3, 4, 4), torch.arange(6) % 5
    even = {name: Pace(1e-9) for name in ("0", "2", "5")}
    blocks = {name: Pace(1e-9, (1, 16, 17, 32), (0.5, 0.5, 1.0, 1.0)) for name in ("0", "2")}
    composite = Composite.uniform(RuleSpec("zplus"), cost_exponent=1.0, cost="latency", paces=even)
    usual = collect_relevance(model, composite, images, targets)
    found = collect_relevance(model, replace(composite, paces=even | blocks), images, targets)

    def runs(scores: dict[str, Tensor]) -> list[int]:
        of_second = [unit >= 32 for unit in rank(scores).order.tolist()]
        return [len([*run]) for second, run in groupby(of_second) if second]

    assert runs(found) == [16, 15, 1]  # the last of the network's only path stays
    assert len(runs(usual)) > 2
    assert all(torch.equal(values.argsort(), usual[name].argsort()) for name, values in found.items())


def test_prices_are_those_of_the_network_as_it_is():
    """In steps masks stay nested, and each step's ranking has the prices of what is left."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 16, 5)),
    ).eval()
    images, targets = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    graph = trace(model, images[:2])
    plain = Composite.uniform(RuleSpec("zplus"))
    for cost in ("macs", "params"):
        composite = replace(plain, cost_exponent=1.0, cost=cost)
        seen = []

        def score(network: Graph, composite: Composite = composite, seen: list = seen) -> dict[str, Tensor]:
            found = collect_relevance(network, composite, images, targets)
            by_hand = collect_relevance(network, plain, images, targets)
            prices = unit_prices(network, by_hand, composite.cost)
            seen.append(prices)
            mean = torch.cat([*prices.values()]).mean()
            for name, values in found.items():
                expected = by_hand[name] / (prices[name] / mean)
                others = torch.arange(len(values)) != int(expected.argmax())  # the last one of a layer stays
                torch.testing.assert_close(values[others], expected[others])
            return found

        plan = Plan.make(graph, score, Schedule(0.25), None, 0.75)
        masks = [plan.ranking.masks(rate) for rate in (0.25, 0.5, 0.75)]
        for before, after in pairwise(masks):
            assert all(bool((after[name] <= before[name]).all()) for name in before)
        assert len(seen) == 3
        assert not torch.equal(seen[0]["0"][:1], seen[2]["0"][:1])
