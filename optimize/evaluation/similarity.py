"""How alike two rankings are: what a study keeps of each trial to tell, and the rank correlation.

Rankings that prune the same units at every rate have the same curve, which is not measured again
(`Ranking.digest`). Of those that nearly do it is only said so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ...pruning import Ranking
from ...pruning.masks import n_removed
from ...studies import steps
from ...studies.steps import MOST_UNITS

Ranks: TypeAlias = NDArray[np.float32]

NEAR = 0.99
"""The rank correlation from which a trial is said to be like another one."""


def pack(ranking: Ranking, rates: Sequence[float]) -> str:
    """How many of the rates each unit outlives, in few characters of ASCII."""
    position = np.empty(ranking.n_units, dtype=np.int64)
    position[ranking.order.cpu().numpy()] = np.arange(ranking.n_units)
    ends = np.array([n_removed(ranking.n_units, rate) for rate in rates])
    return steps.pack(np.searchsorted(ends, position, side="right"), MOST_UNITS)


def correlation(first: str, second: str) -> float:
    """Spearman's rank correlation of two packed rankings of the same units: 1 where they prune alike.

    Units that outlive the same rates share a mean rank (Kendall 1945). Spearman, "The Proof and Measurement of
    Association between Two Things", 1904.

    Raises:
        ValueError: another number of units.
    """
    if first == second:
        return 1.0
    one, other = _ranks(first), _ranks(second)
    if len(one) != len(other):
        raise ValueError(f"rankings of {len(one)} and of {len(other)} units cannot be compared")
    return min(1.0, float(one @ other))


def nearest(packed: str, others: Mapping[int, str]) -> tuple[int, float] | None:
    """The trial of the most similar ranking, with the correlation; None if none reaches `NEAR`.

    others: packed rankings by the number of their trial. Of equals the first.
    """
    found = {number: correlation(packed, other) for number, other in sorted(others.items())}
    best = max(found, key=found.__getitem__, default=None)
    return None if best is None or found[best] < NEAR else (best, found[best])


@lru_cache(maxsize=1024)
def _ranks(packed: str) -> Ranks:
    """Mean ranks, centred and of length 1, so that a product of two is their correlation."""
    ranks = rankdata(steps.unpack(packed))
    ranks -= ranks.mean()
    length = np.linalg.norm(ranks)
    return (ranks / length if length > 0 else ranks).astype(np.float32)
