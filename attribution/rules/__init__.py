"""LRP rules: for layers by name (`RULES`), and for what lies between them."""

from __future__ import annotations

from dataclasses import dataclass

from ...pruning.registry import Registry
from .base import FLOOR, STABILIZER, Rule, per_output, stabilize
from .between import Halve, Normalise, Pass, Share, ShareScattered, Signal
from .input import Flat, InputRule, WSquare, ZBox
from .linear import AlphaBeta, Epsilon, Gamma, LinearRule, RelativeEpsilon, Term, ZPlus, supports

__all__ = [
    "FLOOR",
    "RULES",
    "STABILIZER",
    "AlphaBeta",
    "Epsilon",
    "Flat",
    "Gamma",
    "Halve",
    "InputRule",
    "LinearRule",
    "Normalise",
    "Parameter",
    "Pass",
    "RelativeEpsilon",
    "Rule",
    "RuleKind",
    "Searched",
    "Share",
    "ShareScattered",
    "Signal",
    "Term",
    "WSquare",
    "ZBox",
    "ZPlus",
    "per_output",
    "register_rule",
    "stabilize",
    "supports",
]


@dataclass(frozen=True)
class Searched:
    """The range that a search draws a parameter from. log: evenly in its logarithm."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Parameter:
    """A rule's parameter: its default and the range a composite may set it in, ends included; and the narrower one that
    a search draws it from, or None where it is not searched.

    default: None where a composite must say it. channels: whether it may be a list, with a number for each channel.
    """

    default: float | None
    low: float
    high: float
    searched: Searched | None = None
    channels: bool = False


@dataclass(frozen=True)
class RuleKind:
    """A rule by its name in composites: the hook and its parameters, of which a search draws one at most.

    label: what a search calls the parameter, where another rule's has the same name.
    """

    hook: type[LinearRule]
    parameters: dict[str, Parameter]
    label: str = ""


RULES: Registry[RuleKind] = Registry(
    "rule",
    {
        # Searched from 1e-6, below which epsilon only guards, to 1, above which it swallows most of what activations of
        # order one contribute.
        "epsilon": RuleKind(Epsilon, {"epsilon": Parameter(1e-6, 1e-12, 1e6, Searched(1e-6, 1.0, log=True))}),
        # In units of the layer's mean output, so that one range fits every layer: from 1e-3, where epsilon only guards
        # against dividing by zero (rankings no longer differ), to 10, where it swallows most contributions.
        "epsilon_relative": RuleKind(
            RelativeEpsilon, {"epsilon": Parameter(1e-2, 1e-9, 1e6, Searched(1e-3, 10.0, log=True))}, "epsilon_relative"
        ),
        # Towards 0 gamma is epsilon's rule, far above 1 it is z-plus: the searched range reaches both ends.
        "gamma": RuleKind(Gamma, {"gamma": Parameter(0.25, 0.0, 1e6, Searched(1e-2, 10.0, log=True))}),
        # beta is alpha - 1; alpha = 1 is z-plus where inputs are not negative.
        "alpha_beta": RuleKind(AlphaBeta, {"alpha": Parameter(2.0, 1.0, 1e3, Searched(1.0, 3.0))}),
        "zplus": RuleKind(ZPlus, {}),
        # Of the layer that reads the image. The bounds of z-box are black and white as the network takes them, zero
        # between them.
        "flat": RuleKind(Flat, {}),
        "wsquare": RuleKind(WSquare, {}),
        "zbox": RuleKind(
            ZBox,
            {
                "low": Parameter(None, -1e6, 0.0, channels=True),
                "high": Parameter(None, 0.0, 1e6, channels=True),
            },
        ),
    },
)
register_rule = RULES.register
