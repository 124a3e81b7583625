"""Widths at which a layer is fast."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.pruning.masks import rank
from pxp_optimize.pruning.widths import Pace, in_blocks

BLOCKS = Pace(1e-9, (1, 16, 17, 32), (0.5, 0.5, 1.0, 1.0))


def test_time_goes_in_blocks():
    assert BLOCKS.saved(32)[[0, 1, 15, 16, 31, 32]].tolist() == [0, 0, 0, 0.5, 0.5, 1]
    assert BLOCKS.saved(20)[[0, 3, 4, 19, 20]].tolist() == [0, 0, 0.5, 0.5, 1]
    assert BLOCKS.saved(16)[[0, 15, 16]].tolist() == [0, 0, 1]
    assert [BLOCKS.slowdown(rows) for rows in (32, 16, 17, 0)] == [1, 1, 32 / 17, 1]
    assert Pace(1e-9).slowdown(3) == 1


def test_units_go_in_blocks_and_the_least_relevant_of_a_block_first():
    """Of 20 units a block of 16 is computed whole, so that only the fourth that goes saves anything."""
    relevance = torch.arange(20.0).flip(0) + 1
    prices = torch.ones(20)
    surplus = (BLOCKS.saved(20) - torch.arange(21) / 20) * 20
    found = in_blocks(relevance, prices, surplus, 1.0)
    assert found.argsort().tolist() == [*range(19, -1, -1)]
    assert found[16:].tolist() == pytest.approx([(1 + 2 + 3 + 4) / 10] * 4)
    assert found[:16].tolist() == pytest.approx([sum(range(5, 21)) / 10] * 16, rel=1e-5)
    # of another layer, what is worth more than the first block and less than the second goes between them
    order = rank({"blocks": found, "other": torch.full((3,), 5.0)}).order.tolist()
    assert [order.index(unit) for unit in (20, 21, 22)] == [4, 5, 6]


@st.composite
def layers(draw):
    """A layer's relevance, its units' prices, and what they save besides: its own part in blocks, the rest each."""
    size = draw(st.integers(1, 40))
    numbers = st.lists(st.floats(0.1, 10), min_size=size, max_size=size).map(torch.tensor)
    own, block = draw(st.floats(0, 10)), draw(st.integers(1, 16))
    left = torch.arange(size, -1, -1).double()
    blocks = (left / block).ceil()
    surplus = own * size * ((1 - blocks / blocks[0]) - (1 - left / size))
    return draw(numbers), draw(numbers) + own, surplus


@given(layers())
def test_no_order_of_a_layer_loses_less_for_what_it_saves(layer):
    """Blocks are the lower hull: no number of units, in their order, is below the line between two ends of blocks."""
    relevance, prices, surplus = layer
    found = in_blocks(relevance, prices, surplus, 1.0)
    order = (relevance.double() / prices.double()).argsort(stable=True)
    assert torch.equal(found.argsort(stable=True), order)
    lost = np.concatenate([[0], relevance[order].double().cumsum(0)])
    saved = np.concatenate([[0], prices[order].double().cumsum(0)]) + surplus.numpy()
    values = found[order].double().numpy()
    ends = [0, *(np.flatnonzero(np.diff(values) > 1e-5 * values[1:]) + 1), len(values)]
    line = np.interp(saved, saved[ends], lost[ends])
    assert (lost >= line - 1e-4 * lost[-1]).all()


@given(layers(), st.floats(0, 4))
def test_what_saves_nothing_together_is_ranked_by_itself(layer, exponent):
    relevance, prices, _ = layer
    found = in_blocks(relevance, prices, torch.zeros(len(prices) + 1), exponent)
    assert torch.allclose(found.double(), relevance.double() / prices.double() ** exponent, rtol=1e-4)


def test_what_is_no_number_stays_so():
    found = in_blocks(torch.tensor([1.0, torch.nan, 2.0]), torch.ones(3), torch.zeros(4), 1.0)
    assert found.isnan().any()


@pytest.mark.parametrize("values", [[-1e-45, 1.0, 2.0], [-2e-45, -1e-45, -1e-45, 2.0], [-1.0, -1.0, -1.0]])
def test_blocks_about_zero(values: list[float]):
    """The next number after the least negative one is zero."""
    relevance = torch.tensor(values)
    surplus = torch.tensor([0.0, *[-0.9] * (len(values) - 1), 0.0], dtype=torch.float64)
    found = in_blocks(relevance, torch.ones(len(values)), surplus, 1.0)
    assert found.isfinite().all()
    assert (found[1:] > found[:-1]).all()
