"""From a model to a graph: exported, BatchNorm folded, every operation a module, attention made explicit."""

from .depth import depth_groups, layer_type
from .export import TraceError, baked, logits_of
from .trace import UNIT_KINDS, Graph, Layout, trace, unit_kinds

__all__ = [
    "UNIT_KINDS",
    "Graph",
    "Layout",
    "TraceError",
    "baked",
    "depth_groups",
    "layer_type",
    "logits_of",
    "trace",
    "unit_kinds",
]
