"""How alike rankings are, against SciPy's rank correlation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.optimize.evaluation import similarity as likeness
from pxp_optimize.optimize.evaluation.similarity import NEAR, correlation, nearest, pack
from pxp_optimize.pruning import Ranking
from scipy.stats import spearmanr

RATES = (0.0, 0.2, 0.5, 0.75)


def ranking(order: list[int]) -> Ranking:
    return Ranking({"a": 3, "b": len(order) - 3}, torch.tensor(order))


def outlived(of: Ranking) -> list[int]:
    """The plain way: at how many rates each unit is there."""
    masks = [torch.cat(list(of.masks(rate).values())) for rate in RATES]
    return torch.stack(masks).sum(0).tolist()


orders = st.integers(6, 40).flatmap(lambda n: st.tuples(*[st.permutations(range(n))] * 2))


@given(orders)
def test_it_is_spearmans_of_the_rates_that_units_outlive(pair):
    one, other = map(ranking, pair)
    expected = spearmanr(outlived(one), outlived(other)).statistic
    assert correlation(pack(one, RATES), pack(other, RATES)) == pytest.approx(expected, abs=1e-5)


@given(orders)
def test_it_is_one_exactly_where_the_same_units_go(pair):
    one, other = map(ranking, pair)
    same = one.digest(RATES) == other.digest(RATES)
    assert (pack(one, RATES) == pack(other, RATES)) == same
    assert (correlation(pack(one, RATES), pack(other, RATES)) == 1) == same


def test_the_nearest_is_named_if_it_is_near():
    order = list(range(400))
    close, reverse = order.copy(), order[::-1]
    close[79], close[80] = close[80], close[79]  # one unit more, one less at the rate 0.2
    packed = pack(ranking(order), RATES)
    others = {3: pack(ranking(reverse), RATES), 5: pack(ranking(close), RATES)}
    number, found = nearest(packed, others)
    assert number == 5
    assert NEAR < found < 1
    assert nearest(packed, {3: others[3]}) is None
    assert nearest(packed, {}) is None
    assert nearest(packed, {8: packed, 7: packed, **others}) == (7, 1.0)


def test_large_networks_keep_a_part(monkeypatch):
    order = torch.randperm(1000).tolist()
    whole = pack(ranking(order), RATES)
    monkeypatch.setattr(likeness, "MOST_UNITS", 100)
    part = pack(ranking(order), RATES)
    assert len(part) < len(whole)
    assert correlation(part, part) == 1
    with pytest.raises(ValueError, match="1000 and of 100 units"):
        correlation(whole, part)
