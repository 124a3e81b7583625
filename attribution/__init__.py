"""LRP rules, composites and the relevance of units."""

from .composites import FORMAT, GROUPS, Composite, CompositeError, RuleSpec, load_composite
from .criteria import CRITERIA, collect_scores, register_criterion
from .relevance import collect_relevance, normalize
from .rules import RULES, LinearRule, Parameter, RuleKind, Searched, register_rule

__all__ = [
    "CRITERIA",
    "FORMAT",
    "GROUPS",
    "RULES",
    "Composite",
    "CompositeError",
    "LinearRule",
    "Parameter",
    "RuleKind",
    "RuleSpec",
    "Searched",
    "collect_relevance",
    "collect_scores",
    "load_composite",
    "normalize",
    "register_criterion",
    "register_rule",
]
