"""The accuracy curve against a plain loop, and the figures drawn from it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.attribution import Composite, RuleSpec, collect_relevance
from pxp_optimize.pruning import (
    DEFAULT_RATES,
    Graph,
    accuracy,
    accuracy_curve,
    auc,
    compact_model,
    correct,
    masked_model,
    nested,
    prune_masks,
    rank,
    sparsity_at,
    trace,
)
from torch import Tensor, nn

RATES = (0.0, 0.02, 0.04, 0.08, 0.5, 1.0)
Samples = tuple[Tensor, Tensor]
Relevance = dict[str, Tensor]


@pytest.fixture(scope="module")
def samples() -> Samples:
    """Sixty images and targets that have nothing to do with them."""
    generator = torch.Generator().manual_seed(4)
    return 3 * torch.randn(60, 3, 8, 8, generator=generator), torch.randint(5, (60,), generator=generator)


@pytest.fixture(scope="module")
def graph(everything: nn.Module, samples: Samples) -> Graph:
    """The network with its last bias moved so that it tells all five classes apart."""
    graph = trace(everything)
    head = graph.network.get_submodule("head")
    with torch.no_grad():
        head.weight.mul_(20)
        head.bias.zero_()
        head.bias.sub_(graph.network(samples[0]).mean(0))
    return graph


@pytest.fixture(scope="module")
def targets(graph: Graph, samples: Samples) -> Tensor:
    """Targets of which the unpruned network gets most right, so that curves fall."""
    predicted = graph.network(samples[0]).argmax(1)
    assert len(predicted.unique()) == 5
    wrong = torch.rand(60, generator=torch.Generator().manual_seed(5)) < 0.2
    return torch.where(wrong, (predicted + 1) % 5, predicted)


@pytest.fixture(scope="module")
def relevance(graph: Graph) -> Relevance:
    generator = torch.Generator().manual_seed(6)
    return {name: torch.rand(size, generator=generator) for name, size in graph.sizes.items()}


def naive(graph: Graph, relevance: Relevance, inputs: Tensor, targets: Tensor, logits: list[int] | None = None) -> list:
    result = []
    for rate in RATES:
        model = masked_model(graph, prune_masks(relevance, rate))
        right = 0
        for image, target in zip(inputs, targets, strict=True):
            output = model(image.unsqueeze(0))[0].tolist()
            choices = range(5) if logits is None else logits
            right += max(choices, key=lambda i: output[i]) == target
        result.append(int(right) / len(targets))
    return result


@pytest.mark.parametrize("batch_size", [1, 7, 128])
def test_curve_is_that_of_a_plain_loop(
    batch_size: int, graph: Graph, samples: Samples, targets: Tensor, relevance: Relevance
) -> None:
    inputs, _ = samples
    expected = naive(graph, relevance, inputs, targets)
    assert len(set(expected)) > 2, "a curve that does not move could hide anything"
    got = accuracy_curve(graph, relevance, inputs, targets, RATES, batch_size=batch_size)
    assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("competing", [[0, 1, 2, 3, 4], [1, 3], [3, 1], [4]])
def test_only_some_logits_compete(
    competing: list[int], graph: Graph, samples: Samples, targets: Tensor, relevance: Relevance
) -> None:
    inputs, _ = samples
    inside = torch.isin(targets, torch.tensor(competing))
    inputs, targets = inputs[inside], targets[inside]
    logits = torch.tensor(competing)
    got = accuracy_curve(graph, relevance, inputs, targets, RATES, logits=logits)
    assert got == pytest.approx(naive(graph, relevance, inputs, targets, competing), abs=1e-12)
    if len(competing) == 1:
        assert got == [1.0] * len(RATES)


def test_curve_of_a_model_is_that_of_its_graph(everything: nn.Module, samples: Samples) -> None:
    inputs, targets = samples
    relevance = {name: torch.arange(float(size)) for name, size in trace(everything).sizes.items()}
    model_state = {key: value.clone() for key, value in everything.state_dict().items()}
    got = accuracy_curve(everything, relevance, inputs, targets, RATES)
    assert got == accuracy_curve(trace(everything), relevance, inputs, targets, RATES)
    assert all(torch.equal(value, model_state[key]) for key, value in everything.state_dict().items())


def test_default_rates(graph: Graph, samples: Samples, targets: Tensor, relevance: Relevance) -> None:
    assert DEFAULT_RATES[:3] == (0.0, 0.05, 0.1)
    assert DEFAULT_RATES[-1] == 0.95
    assert len(accuracy_curve(graph, relevance, samples[0], targets)) == 20


def test_curve_of_compact_is_that_of_masked(
    graph: Graph, samples: Samples, targets: Tensor, relevance: Relevance
) -> None:
    masks = list(nested(rank(relevance), RATES))
    inputs, _ = samples
    got = accuracy_curve(graph, relevance, inputs, targets, RATES)
    assert got == [accuracy(masked_model(graph, mask), inputs, targets) for mask in masks]


def test_curve_of_a_transformer(transformer: nn.Module, images: Tensor) -> None:
    graph = trace(transformer)
    targets = transformer(images).argmax(1)
    relevance = {name: torch.arange(float(size)) for name, size in graph.units("heads+neurons").items()}
    curve = accuracy_curve(graph, relevance, images, targets, [0, 0.5, 1])
    assert curve[0] == 1.0
    expected = [
        (masked_model(graph, prune_masks(relevance, rate))(images).argmax(1) == targets).float().mean().item()
        for rate in (0, 0.5, 1)
    ]
    assert curve == pytest.approx(expected)


def test_correct_tells_each_sample(graph: Graph, samples: Samples, targets: Tensor) -> None:
    inputs, _ = samples
    expected = graph.network(inputs).argmax(1) == targets
    assert 0 < expected.sum() < 60
    for batch_size in (7, 60, 100):
        assert torch.equal(correct(graph.network, inputs, targets, batch_size=batch_size), expected)
    assert accuracy(graph.network, inputs, targets) == pytest.approx(expected.float().mean().item())


def test_any_module_has_an_accuracy(everything: nn.Module, samples: Samples) -> None:
    expected = (everything(samples[0]).argmax(1) == samples[1]).float().mean().item()
    assert accuracy(everything, *samples) == pytest.approx(expected)


def test_measuring_leaves_the_network_as_it_was(graph: Graph, samples: Samples, targets: Tensor) -> None:
    """Its weights too, in every bit and in their order in memory: relevance is collected on them again."""
    inputs, _ = samples
    composite = Composite.uniform(RuleSpec("gamma", {"gamma": 0.25}))
    before = collect_relevance(graph, composite, inputs, targets)
    strides = [parameter.stride() for parameter in graph.network.parameters()]
    accuracy_curve(graph, before, inputs, targets, RATES)
    assert [parameter.stride() for parameter in graph.network.parameters()] == strides
    assert not any(parameter.is_inference() for parameter in graph.network.parameters())
    after = collect_relevance(graph, composite, inputs, targets)
    assert all(torch.equal(before[name], after[name]) for name in before)
    small = compact_model(graph, prune_masks(before, 0.5))
    accuracy(small, inputs, targets)
    small.requires_grad_(True)(inputs).sum().backward()


def test_samples_that_are_only_sliced(graph: Graph, samples: Samples, targets: Tensor, relevance: Relevance) -> None:
    class Stored:
        """Bytes, made floats a batch at a time."""

        def __len__(self) -> int:
            return 60

        def __getitem__(self, item: slice) -> Tensor:
            assert isinstance(item, slice)
            return samples[0][item].clone()

    got = accuracy_curve(graph, relevance, Stored(), targets, RATES, batch_size=16)
    assert got == accuracy_curve(graph, relevance, samples[0], targets, RATES, batch_size=16)


def test_bad_arguments(graph: Graph, samples: Samples, targets: Tensor, relevance: Relevance) -> None:
    inputs, _ = samples
    with pytest.raises(ValueError, match="not in"):
        accuracy_curve(graph, relevance, inputs, targets, [0, 1.5])
    with pytest.raises(ValueError, match="not a prunable layer"):
        accuracy_curve(graph, {"head": torch.zeros(5)}, inputs, targets, [0.5])
    with pytest.raises(ValueError, match="not finite"):
        accuracy_curve(graph, {"stem": torch.full((8,), float("nan"))}, inputs, targets, [0.5])
    for wrong in (targets - 1, targets + 100):
        with pytest.raises(ValueError, match="need indices of"):
            accuracy_curve(graph, relevance, inputs, wrong, [0.5])


@pytest.mark.parametrize(
    "form",
    [
        Tensor.tolist,
        lambda targets: tuple(targets.tolist()),
        Tensor.numpy,
        lambda targets: targets.numpy().astype(np.uint8),
        lambda targets: targets.numpy().astype(np.int32),
        list,
    ],
    ids=["list", "tuple", "int64", "uint8", "int32", "tensors"],
)
def test_targets_in_other_forms(
    form: Callable[[Tensor], Any], graph: Graph, samples: Samples, targets: Tensor, relevance: Relevance
) -> None:
    inputs, given = samples[0], form(targets)
    assert accuracy_curve(graph, relevance, inputs, given, RATES) == accuracy_curve(
        graph, relevance, inputs, targets, RATES
    )
    assert accuracy(graph.network, inputs, given) == accuracy(graph.network, inputs, targets)
    assert torch.equal(correct(graph.network, inputs, given), correct(graph.network, inputs, targets))
    composite = Composite.uniform(RuleSpec("epsilon"))
    expected = collect_relevance(graph, composite, inputs, targets)
    for name, scores in collect_relevance(graph, composite, inputs, given).items():
        assert torch.equal(scores, expected[name])


def test_targets_that_are_none(graph: Graph, samples: Samples, targets: Tensor, relevance: Relevance) -> None:
    inputs, n = samples[0], len(targets)
    wrongs = [targets.double().tolist(), ["cat"] * n, np.zeros((n, 2), int), [[1], [1, 2]], [None] * n, np.zeros(n)]
    for wrong in (*wrongs, targets.tolist()[1:], [], torch.tensor(1), 1, [True] * n):
        with pytest.raises(ValueError, match="need"):
            accuracy_curve(graph, relevance, inputs, wrong, [0.5])


# -- the area -----------------------------------------------------------------------------------------------------


@st.composite
def curves(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    steps = draw(st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True).map(sorted))
    rates = [step / 1000 for step in steps]
    return rates, draw(st.lists(st.floats(0, 1), min_size=len(rates), max_size=len(rates)))


@given(curves())
def test_auc_is_the_trapezoid_rule_over_the_span(curve: tuple[list[float], list[float]]) -> None:
    rates, accuracies = curve
    area = 0.0
    for (r0, r1), (a0, a1) in zip(pairwise(rates), pairwise(accuracies), strict=True):
        area += (r1 - r0) * (a0 + a1) / 2
    assert auc(rates, accuracies) == pytest.approx(area / (rates[-1] - rates[0]), abs=1e-9)
    assert min(accuracies) - 1e-9 <= auc(rates, accuracies) <= max(accuracies) + 1e-9


@given(curves(), st.floats(0.01, 1), st.floats(-0.5, 0.5))
def test_auc_does_not_depend_on_the_span(curve: tuple[list[float], list[float]], scale: float, shift: float) -> None:
    rates, accuracies = curve
    moved = [scale * rate + shift for rate in rates]
    assert auc(moved, accuracies) == pytest.approx(auc(rates, accuracies), abs=1e-6)


def test_auc_examples() -> None:
    assert auc([0, 1], [1, 0]) == pytest.approx(0.5)
    assert auc([0, 0.5], [0.8, 0.8]) == pytest.approx(0.8)
    assert auc([0, 0.1, 1], [1, 0, 0]) == pytest.approx(0.05)
    # the reference's own figure is this times the span
    assert auc([0, 0.95], [1.0, 0.5]) * 0.95 == pytest.approx(0.7125)


@pytest.mark.parametrize(
    ("rates", "accuracies"), [([0], [1]), ([], []), ([0, 1], [1]), ([0, 0], [1, 1]), ([0, 0.5, 0.4], [1, 1, 1])]
)
def test_auc_of_no_curve(rates: list[float], accuracies: list[float]) -> None:
    with pytest.raises(ValueError, match="rates"):
        auc(rates, accuracies)


# -- sparsity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracies", "share", "expected"),
    [
        ([0.9, 0.9, 0.9, 0.9], 0.95, 0.6),
        ([0.9, 0.86, 0.5, 0.9], 0.95, 0.2),  # what recovers later does not count
        ([0.9, 0.5, 0.9, 0.9], 0.95, 0.0),
        ([0.9, 0.86, 0.5, 0.1], 0.5, 0.4),
        ([0.9, 0.95, 0.89, 0.1], 1.0, 0.2),
        ([0.0, 0.0, 0.0, 0.0], 0.95, 0.6),
    ],
)
def test_sparsity_at(accuracies: list[float], share: float, expected: float) -> None:
    assert sparsity_at([0.0, 0.2, 0.4, 0.6], accuracies, share) == expected


@given(curves())
def test_sparsity_at_never_crosses_the_line(curve: tuple[list[float], list[float]]) -> None:
    rates, accuracies = curve
    found = rates.index(sparsity_at(rates, accuracies))
    assert all(value >= 0.95 * accuracies[0] for value in accuracies[: found + 1])
    assert found + 1 == len(rates) or accuracies[found + 1] < 0.95 * accuracies[0]


def test_sparsity_default_share_is_95_percent() -> None:
    check: Callable[[float], float] = lambda value: sparsity_at([0, 0.5], [1.0, value])  # noqa: E731
    assert (check(0.951), check(0.949)) == (0.5, 0)
