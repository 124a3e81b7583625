"""The graph of a model, its units, ranking, masks, compact models and accuracy curves."""

from .compact import compact, compact_model, masked_model
from .curve import DEFAULT_RATES, Batches, accuracy, accuracy_curve, auc, correct, masks_curve, predictor, sparsity_at
from .graph import Graph, TraceError, trace
from .masks import Masks, NotFinite, Ranking, nested, prune_masks, rank
from .network import Network
from .precision import PRECISIONS, computed_in
from .repair import REPAIRS, Repair, make_repair
from .schedule import Plan, Schedule, pruned

__all__ = [
    "DEFAULT_RATES",
    "PRECISIONS",
    "REPAIRS",
    "Batches",
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
    "auc",
    "compact",
    "compact_model",
    "computed_in",
    "correct",
    "make_repair",
    "masked_model",
    "masks_curve",
    "nested",
    "predictor",
    "prune_masks",
    "pruned",
    "rank",
    "sparsity_at",
    "trace",
]
