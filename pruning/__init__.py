"""The graph of a model, its units, ranking, masks, compact models and accuracy curves."""

from .compact import compact, compact_model, masked_model
from .curve import DEFAULT_RATES, Batches, accuracy, accuracy_curve, auc, correct, masks_curve, sparsity_at
from .graph import Graph, TraceError, trace
from .masks import Masks, Ranking, nested, prune_masks, rank
from .network import Network

__all__ = [
    "DEFAULT_RATES",
    "Batches",
    "Graph",
    "Masks",
    "Network",
    "Ranking",
    "TraceError",
    "accuracy",
    "accuracy_curve",
    "auc",
    "compact",
    "compact_model",
    "correct",
    "masked_model",
    "masks_curve",
    "nested",
    "prune_masks",
    "rank",
    "sparsity_at",
    "trace",
]
