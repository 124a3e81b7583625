"""When relevance is recomputed while more and more units go: once, or in steps.

What has been pruned stays pruned, whatever a later step would say of it, so masks are nested over the whole
schedule as they are within one ranking.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .compaction import compact
from .graph import Graph
from .masks import Masks, Ranking, n_removed, rank
from .precision import computed_in
from .repair import Repair


@dataclass(frozen=True)
class Schedule:
    """Rates at which relevance is recomputed: every `step` from 0 up; None for once (the paper's way)."""

    step: float | None = None

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """From "oneshot", "every:0.05" (a step of the rate) or "steps:20" (so many, evenly over [0, 1)).

        Raises:
            ValueError: neither form, or a number out of range.
        """
        if text in ("oneshot", "once"):
            return cls()
        kind, _, number = text.partition(":")
        try:
            if kind == "every":
                step = float(number)
            elif kind == "steps":
                count = int(number)
                step = 1 / count if count > 1 else math.nan
            else:
                raise ValueError
            if not 0.001 <= step < 1:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"schedule {text!r}: give oneshot, every:RATE (such as every:0.05) or steps:N (such as steps:10)"
            ) from None
        return cls(step)

    def __str__(self) -> str:
        return "oneshot" if self.step is None else f"every:{self.step!r}"

    def starts(self, last: float) -> list[float]:
        """The rates at which relevance is computed, for curves up to the rate `last`: 0 first."""
        if self.step is None:
            return [0.0]
        # a step that starts at the last rate would rank for nothing
        count = max(1, math.ceil(last / self.step - 1e-9))
        return [index * self.step for index in range(count)]


Scorer = Callable[[Graph], dict[str, Tensor]]


@dataclass(frozen=True)
class Plan:
    """Which units go in which order, found on the networks as pruned and repaired so far.

    made: networks that were built on the way, by the number of units removed, so that they are not built again. last:
    the rate up to which the order follows the schedule.
    """

    ranking: Ranking
    made: Mapping[int, Graph] = field(default_factory=dict, repr=False)
    last: float = 1.0

    @classmethod
    def make(
        cls,
        graph: Graph,
        score: Scorer,
        schedule: Schedule,
        repair: Repair | None,
        last: float,
        enough: Callable[[Masks], bool] | None = None,
    ) -> Plan:
        """The order in which units of a graph go, up to the rate `last`.

        score: unit scores, by layer, of a graph (the whole one, or a compact form of it). enough: asked of the masks
        at each step whether to rank no further.

        Raises:
            NotFinite: a score that is not finite.
        """
        ranking = rank(score(graph))
        made: dict[int, Graph] = {}
        for start in schedule.starts(last)[1:]:
            masks = ranking.masks(start)
            if enough is not None and enough(masks):
                return cls(ranking, made, start)
            removed = n_removed(ranking.n_units, start)
            made[removed] = pruned(graph, masks, repair)
            ranking = _rerank(ranking, masks, score(made[removed]))
        return cls(ranking, made, last)

    def networks(self, graph: Graph, rates: Sequence[float], repair: Repair | None) -> Iterator[Graph]:
        """The network at each rate in its compact, repaired form. Unpruned at rate 0: the graph itself."""
        for rate in rates:
            known = self.made.get(n_removed(self.ranking.n_units, rate))
            yield known or pruned(graph, self.ranking.masks(rate), repair)


@computed_in("fp32")
def pruned(graph: Graph, masks: Masks, repair: Repair | None) -> Graph:
    """The compact form of a graph under masks, repaired. Without anything removed: the graph itself."""
    if all(bool(mask.all()) for mask in masks.values()):
        return graph
    small = compact(graph, masks)
    return small if repair is None else repair(graph, small, masks)


def _rerank(ranking: Ranking, masks: Masks, scores: Mapping[str, Tensor]) -> Ranking:
    """The ranking whose removed units (under the masks) stay where they are, and whose rest goes by the scores."""
    kept = torch.cat([masks[name] for name in ranking.sizes]).nonzero().flatten()
    left = rank({name: scores[name] for name in ranking.sizes})
    removed = ranking.order[: ranking.n_units - len(kept)]
    return Ranking(ranking.sizes, torch.cat([removed, kept[left.order]]))
