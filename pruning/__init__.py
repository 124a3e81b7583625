"""The graph of a model, its units, ranking, masks, compact models and accuracy curves."""

from .compact import compact, compact_model, masked_model
from .constant_folding import without_constants
from .cost import COSTS, Cost, area_over, macs
from .curve import DEFAULT_RATES, Batches, accuracy, accuracy_curve, auc, correct, correct_each, sparsity_at
from .graph import Graph, TraceError, trace
from .masks import Masks, NotFinite, Ranking, nested, prune_masks, rank
from .network import Network
from .precision import PRECISIONS, computed_in
from .repair import REPAIRS, Repair, make_repair, repair_rows
from .schedule import Plan, Schedule, pruned
from .shared_forward import Family, groups, network_bytes

__all__ = [
    "COSTS",
    "DEFAULT_RATES",
    "PRECISIONS",
    "REPAIRS",
    "Batches",
    "Cost",
    "Family",
    "Graph",
    "Masks",
    "Network",
    "NotFinite",
    "Plan",
    "Ranking",
    "Repair",
    "Schedule",
    "TraceError",
    "accuracy",
    "accuracy_curve",
    "area_over",
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
    "nested",
    "network_bytes",
    "prune_masks",
    "pruned",
    "rank",
    "repair_rows",
    "sparsity_at",
    "trace",
    "without_constants",
]
