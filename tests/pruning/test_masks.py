"""Ranking and masks, for any relevance."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.pruning import nested, prune_masks, rank
from torch import Tensor

Relevance = dict[str, Tensor]


@st.composite
def relevances(draw: st.DrawFn) -> Relevance:
    """Up to five layers, some without units; few different values, so that there are ties."""
    values = st.one_of(st.sampled_from([-1.0, 0.0, -0.0, 1.0, 2.0]), st.floats(-1e6, 1e6, width=32))
    layers = draw(st.lists(st.lists(values, max_size=12), min_size=1, max_size=5))
    return {f"layer{index}": torch.tensor(layer) for index, layer in enumerate(layers)}


RATES = st.floats(0, 1)


def removed(masks: dict[str, Tensor]) -> set[tuple[str, int]]:
    return {(name, int(unit)) for name, kept in masks.items() for unit in (~kept).nonzero()}


def naive_order(relevance: Relevance) -> list[tuple[str, int]]:
    units = [
        (float(value), layer, index)
        for layer, values in enumerate(relevance.values())
        for index, value in enumerate(values)
    ]
    names = list(relevance)
    return [(names[layer], index) for _, layer, index in sorted(units)]


@given(relevances(), RATES)
def test_removes_the_least_relevant_of_the_whole_network(relevance: Relevance, rate: float) -> None:
    masks = prune_masks(relevance, rate)
    order = naive_order(relevance)
    assert removed(masks) == set(order[: int(len(order) * rate)])
    assert {name: kept.shape for name, kept in masks.items()} == {name: v.shape for name, v in relevance.items()}
    assert all(kept.dtype == torch.bool for kept in masks.values())


@given(relevances(), st.lists(RATES, min_size=2, max_size=6).map(sorted))
def test_nested(relevance: Relevance, rates: list[float]) -> None:
    steps = [removed(masks) for masks in nested(rank(relevance), rates)]
    assert all(before <= after for before, after in pairwise(steps))
    for rate, step in zip(rates, steps, strict=True):
        assert step == removed(prune_masks(relevance, rate))


@given(relevances(), relevances(), st.lists(RATES, min_size=1, max_size=4))
def test_digest_is_equal_exactly_when_masks_are(first: Relevance, second: Relevance, rates: list[float]) -> None:
    _compare_digests(first, second, rates)


@given(relevances(), st.lists(RATES, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_digest_of_the_same_layers(first: Relevance, rates: list[float], random: Random) -> None:
    """The same layers with a few values exchanged: often the same masks by another order."""
    flat = torch.cat(list(first.values()))
    if len(flat) > 1:
        i, j = random.randrange(len(flat)), random.randrange(len(flat))
        flat[[i, j]] = flat[[j, i]]
    second = dict(zip(first, flat.split([len(values) for values in first.values()]), strict=True))
    _compare_digests(first, second, rates)


def _compare_digests(first: Relevance, second: Relevance, rates: list[float]) -> None:
    rankings = rank(first), rank(second)
    masks = [[{name: kept.tolist() for name, kept in step.items()} for step in nested(r, rates)] for r in rankings]
    digests = [ranking.digest(rates) for ranking in rankings]
    assert (masks[0] == masks[1]) == (digests[0] == digests[1])


def test_digest_tells_layers_and_rates_apart() -> None:
    values = torch.arange(4.0)
    one = rank({"a": values, "b": values})
    assert one.digest([0.5]) == rank({"a": values * 2, "b": values * 2}).digest([0.5])
    assert one.digest([0.5]) != rank({"a": values, "c": values}).digest([0.5])
    assert one.digest([0.5]) != rank({"a": values, "b": values + 9}).digest([0.5])
    assert one.digest([0.5]) != one.digest([0.25])
    assert one.digest([0.5]) != one.digest([0.25, 0.5])
    assert one.digest([0.5]) == one.digest([0.55])  # four units of eight, both


def test_digest_does_not_depend_on_precision() -> None:
    relevance = {"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([0.0, 5.0])}
    double = {name: values.double() for name, values in relevance.items()}
    assert rank(relevance).digest([0.0, 0.5]) == rank(double).digest([0.0, 0.5])


def test_ties_go_by_layer_then_index() -> None:
    relevance = {"b": torch.zeros(3), "a": torch.zeros(2)}
    assert removed(prune_masks(relevance, 0.8)) == {("b", 0), ("b", 1), ("b", 2), ("a", 0)}


def test_negative_relevance_goes_first() -> None:
    masks = prune_masks({"a": torch.tensor([0.5, -2.0, 0.0, -0.1])}, 0.5)
    assert masks["a"].tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("n", "rate", "count"), [(10, 0.29, 2), (100, 0.29, 28), (7, 0.999, 6), (7, 1.0, 7), (7, 0, 0)]
)
def test_counts_are_truncated(n: int, rate: float, count: int) -> None:
    assert len(removed(prune_masks({"a": torch.arange(float(n))}, rate))) == count


def test_layers_may_end_empty_or_start_so() -> None:
    masks = prune_masks({"a": torch.zeros(3), "none": torch.zeros(0), "b": torch.ones(3)}, 0.5)
    assert not masks["a"].any()
    assert masks["none"].shape == (0,)
    assert masks["b"].all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_relevance_that_is_not_finite_is_refused(bad: float) -> None:
    relevance = {"fine": torch.zeros(2), "broken": torch.tensor([1.0, bad])}
    for call in (lambda: rank(relevance), lambda: prune_masks(relevance, 0.5)):
        with pytest.raises(ValueError, match="layer broken is not finite"):
            call()


@pytest.mark.parametrize("rate", [-0.1, 1.01, float("nan"), float("inf")])
def test_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
        prune_masks({"a": torch.zeros(2)}, rate)


def test_nothing_to_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to rank"):
        prune_masks({}, 0.5)


def test_relevance_is_left_as_it_was() -> None:
    values = torch.tensor([2.0, 1.0], requires_grad=True)
    prune_masks({"a": values}, 0.5)
    assert values.tolist() == [2.0, 1.0]
    assert values.requires_grad
