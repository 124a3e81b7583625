"""LRP rules, composites, the relevance of units and of pixels."""

from .composites import FORMAT, GROUPS, Composite, CompositeError, RuleSpec, load_composite
from .criteria import CRITERIA, collect_scores, register_criterion
from .faithfulness import relevance_gain
from .heatmaps import EXPLAINERS, heat_maps, register_explainer
from .relevance import collect_relevance, normalize
from .replacement import REPLACEMENTS, register_replacement
from .rules import RULES, LinearRule, Parameter, RuleKind, Searched, register_rule

__all__ = [
    "CRITERIA",
    "EXPLAINERS",
    "FORMAT",
    "GROUPS",
    "REPLACEMENTS",
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
    "heat_maps",
    "load_composite",
    "normalize",
    "register_criterion",
    "register_explainer",
    "register_replacement",
    "register_rule",
    "relevance_gain",
]
