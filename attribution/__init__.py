"""LRP rules, composites and the relevance of units."""

from .composites import FORMAT, GROUPS, Composite, CompositeError, RuleSpec, load_composite
from .relevance import collect_relevance, normalize
from .rules import RULES

__all__ = [
    "FORMAT",
    "GROUPS",
    "RULES",
    "Composite",
    "CompositeError",
    "RuleSpec",
    "collect_relevance",
    "load_composite",
    "normalize",
]
