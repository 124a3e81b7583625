"""What is kept of a ranking, and which part of each layer it removes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pxp_optimize.optimize.evaluation.similarity import pack
from pxp_optimize.pruning import rank
from pxp_optimize.studies import steps
from pxp_optimize.studies.steps import removed_by_layer, unpack

RATES = [0.0, 0.25, 0.5, 0.9]


def test_each_layer_loses_what_its_masks_say():
    generator = torch.Generator().manual_seed(0)
    relevance = {"stem": torch.rand(7, generator=generator), "mid": 2 * torch.rand(40, generator=generator)}
    ranking = rank(relevance | {"last": torch.rand(13, generator=generator)})
    found = removed_by_layer(pack(ranking, RATES), ranking.sizes, RATES)
    for index, rate in enumerate(RATES):
        masks = ranking.masks(rate)
        assert {name: values[index] for name, values in found.items()} == pytest.approx(
            {name: 1 - mask.float().mean().item() for name, mask in masks.items()}
        )


def test_large_networks_are_estimated_from_the_units_that_are_kept(monkeypatch):
    units = {"first": 30_000, "last": 10_000}
    ranking = rank(
        {name: torch.rand(count, generator=torch.Generator().manual_seed(count)) for name, count in units.items()}
    )
    packed = pack(ranking, RATES)
    assert len(unpack(packed)) == 40_000 // 5
    found = removed_by_layer(packed, units, RATES)
    assert found["first"] == pytest.approx(RATES, abs=0.02)
    assert found["last"] == pytest.approx(RATES, abs=0.03)


def test_rankings_of_another_network_are_refused():
    packed = steps.pack(np.zeros(5, dtype=np.int64))
    with pytest.raises(ValueError, match="5 units is not one of 6"):
        removed_by_layer(packed, {"a": 6}, RATES)
