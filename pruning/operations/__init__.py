"""Operations that networks are made of, each an entry in one table (`base`)."""

from . import activation, arithmetic, attention, layers, normalization, pooling, reshaping, routing
from .base import MODULES, TARGETS, Operation, Relevance, entry_of, operation

__all__ = [
    "MODULES",
    "TARGETS",
    "Operation",
    "Relevance",
    "activation",
    "arithmetic",
    "attention",
    "entry_of",
    "layers",
    "normalization",
    "operation",
    "pooling",
    "reshaping",
    "routing",
]
