"""The graph of a model, its units, ranking, masks, compact models, repairs and accuracy curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from .compaction import compact, compact_model, masked_model
    from .constant_folding import without_constants
    from .cost import COSTS, END, Cost, area_over, area_saved, register_cost, saved_at
    from .curve import Batches, accuracy, accuracy_curve, auc, correct, correct_each, sparsity_at
    from .graph import Graph, TraceError, trace
    from .layer_times import LayerTimes
    from .masks import Masks, NotFinite, Ranking, nested, prune_masks, rank
    from .mimicking import mimic
    from .names import DEFAULT_RATES, PRECISIONS, UNIT_KINDS
    from .network import Network
    from .operations import Operation, Relevance, operation
    from .precision import computed_in
    from .prices import unit_prices
    from .registry import Registry
    from .repair import REPAIRS, Repair, make_repair, register_repair, repair_rows
    from .schedule import Plan, Schedule, pruned
    from .shared_forward import Family, groups, network_bytes
    from .widths import Pace
    from .work import macs, params

_HOMES = {
    "Batches": ".curve",
    "COSTS": ".cost",
    "Cost": ".cost",
    "DEFAULT_RATES": ".names",
    "END": ".cost",
    "Family": ".shared_forward",
    "Graph": ".graph",
    "LayerTimes": ".layer_times",
    "Masks": ".masks",
    "Network": ".network",
    "NotFinite": ".masks",
    "Operation": ".operations",
    "PRECISIONS": ".names",
    "Pace": ".widths",
    "Plan": ".schedule",
    "REPAIRS": ".repair",
    "Ranking": ".masks",
    "Registry": ".registry",
    "Relevance": ".operations",
    "Repair": ".repair",
    "Schedule": ".schedule",
    "TraceError": ".graph",
    "UNIT_KINDS": ".names",
    "accuracy": ".curve",
    "accuracy_curve": ".curve",
    "area_over": ".cost",
    "area_saved": ".cost",
    "auc": ".curve",
    "compact": ".compaction",
    "compact_model": ".compaction",
    "computed_in": ".precision",
    "correct": ".curve",
    "correct_each": ".curve",
    "groups": ".shared_forward",
    "macs": ".work",
    "make_repair": ".repair",
    "masked_model": ".compaction",
    "mimic": ".mimicking",
    "nested": ".masks",
    "network_bytes": ".shared_forward",
    "operation": ".operations",
    "params": ".work",
    "prune_masks": ".masks",
    "pruned": ".schedule",
    "rank": ".masks",
    "register_cost": ".cost",
    "register_repair": ".repair",
    "repair_rows": ".repair",
    "saved_at": ".cost",
    "sparsity_at": ".curve",
    "trace": ".graph",
    "unit_prices": ".prices",
    "without_constants": ".constant_folding",
}
__all__ = [
    "COSTS",
    "DEFAULT_RATES",
    "END",
    "PRECISIONS",
    "REPAIRS",
    "UNIT_KINDS",
    "Batches",
    "Cost",
    "Family",
    "Graph",
    "LayerTimes",
    "Masks",
    "Network",
    "NotFinite",
    "Operation",
    "Pace",
    "Plan",
    "Ranking",
    "Registry",
    "Relevance",
    "Repair",
    "Schedule",
    "TraceError",
    "accuracy",
    "accuracy_curve",
    "area_over",
    "area_saved",
    "auc",
    "compact",
    "compact_model",
    "computed_in",
    "correct",
    "correct_each",
    "groups",
    "macs",
    "make_repair",
    "masked_model",
    "mimic",
    "nested",
    "network_bytes",
    "operation",
    "params",
    "prune_masks",
    "pruned",
    "rank",
    "register_cost",
    "register_repair",
    "repair_rows",
    "saved_at",
    "sparsity_at",
    "trace",
    "unit_prices",
    "without_constants",
]


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
