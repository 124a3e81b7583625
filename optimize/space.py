"""The search space: which composites a study may try, and the fixed ones it is measured against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..attribution import Composite

if TYPE_CHECKING:
    from optuna import Trial

GROUPS = ("low", "mid", "high", "classifier")
AGGREGATIONS = ("abs", "signed")
NORMALIZATIONS = ("none", "l1", "l2", "max")


@dataclass(frozen=True)
class Range:
    """The one number of a rule. log: sampled evenly in its logarithm."""

    name: str
    low: float
    high: float
    log: bool


RULES: dict[str, Range | None] = {
    # Below 1e-6 epsilon only guards against dividing by zero, so rankings no longer differ; above 1 it
    # swallows most contributions of networks whose activations are of order one.
    "epsilon": Range("epsilon", 1e-6, 1.0, log=True),
    # Towards 0 gamma is epsilon's rule, far above 1 it is z-plus: the range reaches both ends.
    "gamma": Range("gamma", 1e-2, 10.0, log=True),
    # beta is alpha - 1; alpha = 1 is z-plus where inputs are not negative.
    "alpha_beta": Range("alpha", 1.0, 3.0, log=False),
    "zplus": None,
}

FIXED: dict[str, dict[str, Any]] = {
    "epsilon": {"rule": "epsilon", "epsilon": 1e-6},
    "zplus": {"rule": "zplus"},
    "alpha2-beta1": {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0},
    "gamma0.25": {"rule": "gamma", "gamma": 0.25},
}
"""Uniform composites from the literature: one rule for the whole network."""


class Space:
    """One rule with its parameter per depth group, and how relevance becomes a ranking.

    Parameters are named by group: `low.rule`, then `low.epsilon`, `low.gamma` or `low.alpha`; `aggregation`
    and `normalization` are the network's.

    Args:
        groups: the depth groups that the model has.
        conditional: sample only the number that the chosen rule uses. If false, every trial has the numbers
            of all rules, and those of rules not chosen have no effect: for samplers that need a fixed set.
    """

    def __init__(self, groups: Iterable[str], conditional: bool = True) -> None:
        present = set(groups)
        self.groups = tuple(group for group in GROUPS if group in present)
        self.conditional = conditional
        unknown = present - set(self.groups)
        if unknown:
            raise ValueError(f"unknown depth groups: {', '.join(sorted(unknown))}")

    def suggest(self, trial: Trial) -> Composite:
        """The composite that the trial's sampler proposes."""
        groups = {group: self._suggest_rule(trial, group) for group in self.groups}
        ranking = {
            "aggregation": trial.suggest_categorical("aggregation", AGGREGATIONS),
            "normalization": trial.suggest_categorical("normalization", NORMALIZATIONS),
        }
        return Composite.from_dict({"groups": groups, "ranking": ranking})

    def _suggest_rule(self, trial: Trial, group: str) -> dict[str, Any]:
        rule = trial.suggest_categorical(f"{group}.rule", tuple(RULES))
        spec: dict[str, Any] = {"rule": rule}
        for name, number in RULES.items():
            if number is not None and (name == rule or not self.conditional):
                value = trial.suggest_float(f"{group}.{number.name}", number.low, number.high, log=number.log)
                if name == rule:
                    spec[number.name] = value
        if rule == "alpha_beta":
            spec["beta"] = spec["alpha"] - 1
        return spec

    def fixed_composites(self) -> dict[str, Composite]:
        """The baselines by name: each rule uniform over the network, absolute relevance, no normalisation."""
        ranking = {"aggregation": "abs", "normalization": "none"}
        return {
            name: Composite.from_dict({"groups": dict.fromkeys(self.groups, rule), "ranking": ranking})
            for name, rule in FIXED.items()
        }

    def params_of(self, composite: Composite) -> dict[str, Any]:
        """The parameters with which `suggest` gives this composite back: to enqueue it as a trial."""
        data = composite.to_dict()
        params: dict[str, Any] = dict(data["ranking"])
        for group in self.groups:
            spec = data["groups"][group]
            params[f"{group}.rule"] = spec["rule"]
            number = RULES[spec["rule"]]
            if number is not None:
                params[f"{group}.{number.name}"] = spec[number.name]
        return params
