"""The search spaces: which composites a study may try, and the fixed ones it is measured against."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..attribution import GROUPS, Composite
from ..attribution.attention import SOFTMAX_RULES
from ..attribution.composites import AGGREGATIONS, ATTENTION_TYPES, NORMALIZATIONS

if TYPE_CHECKING:
    from optuna import Trial

SOFTMAX = tuple(SOFTMAX_RULES)


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

# How much more a mean neuron counts, where neurons are ranked together with filters or heads.
BALANCE = Range("balance", 0.1, 10.0, log=True)

FIXED: dict[str, dict[str, Any]] = {
    "epsilon": {"rule": "epsilon", "epsilon": 1e-6},
    "zplus": {"rule": "zplus"},
    "alpha2-beta1": {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0},
    "gamma0.25": {"rule": "gamma", "gamma": 0.25},
}
"""Uniform composites from the literature: one rule for the whole network."""


class Space:
    """One rule with its parameter per group of layers, and how relevance becomes a ranking.

    Parameters are named by group: `low.rule`, then `low.epsilon`, `low.gamma` or `low.alpha`; `aggregation`,
    `normalization`, `softmax` and `balance` are the network's.

    Args:
        keys: the groups that the composites have: depth groups, or types within one ("mid.attention").
        conditional: sample only the number that the chosen rule uses. If false, every trial has the numbers
            of all rules, and those of rules not chosen have no effect: for samplers that need a fixed set.
        transformer: search the softmax rule too.
        mixed: units of several kinds are ranked together: search their balance too.
        fixed_numbers: rules only, with the numbers of the fixed composites, and the plain ranking: the choice
            among 256 composites of Hatefi et al.
    """

    def __init__(
        self,
        keys: Iterable[str],
        conditional: bool = True,
        *,
        transformer: bool = False,
        mixed: bool = False,
        fixed_numbers: bool = False,
    ) -> None:
        present = list(dict.fromkeys(keys))
        unknown = {key for key in present if key.partition(".")[0] not in GROUPS}
        if unknown:
            raise ValueError(f"unknown depth groups: {', '.join(sorted(unknown))}")
        self.groups = tuple(sorted(present, key=lambda key: GROUPS.index(key.partition(".")[0])))
        self.conditional = conditional
        self.transformer = transformer
        self.mixed = mixed
        self.fixed_numbers = fixed_numbers

    @classmethod
    def named(cls, name: str, layers: Mapping[str, Mapping[str, str]], conditional: bool, *, mixed: bool) -> Space:
        """A space of `config.SPACES` for a network's layers (group and type of each, see `export.layers_of`).

        `depth`: the depth groups. `type`: the types of layers within them, attention projections as one.
        `paper`: depth groups, rules with fixed numbers. `auto`: depth, for transformers type.
        """
        transformer = any(layer["type"] in ATTENTION_TYPES for layer in layers.values())
        if name == "auto":
            name = "type" if transformer else "depth"
        keys = [layer["group"] for layer in layers.values()]
        if name == "type":
            keys = [_type_key(layer["group"], layer["type"]) for layer in layers.values()]
        return cls(keys, conditional, transformer=transformer, mixed=mixed, fixed_numbers=name == "paper")

    def suggest(self, trial: Trial) -> Composite:
        """The composite that the trial's sampler proposes."""
        data: dict[str, Any] = {"groups": {key: self._suggest_rule(trial, key) for key in self.groups}}
        if self.transformer:
            data["attention"] = {"softmax": trial.suggest_categorical("softmax", SOFTMAX)}
        if not self.fixed_numbers:
            data["ranking"] = {
                "aggregation": trial.suggest_categorical("aggregation", AGGREGATIONS),
                "normalization": trial.suggest_categorical("normalization", NORMALIZATIONS),
            }
            if self.mixed:
                data["ranking"]["balance"] = _suggest(trial, BALANCE.name, BALANCE)
        return Composite.from_dict(data)

    def _suggest_rule(self, trial: Trial, key: str) -> dict[str, Any]:
        if self.fixed_numbers:
            rules = {spec["rule"]: spec for spec in FIXED.values()}
            return rules[trial.suggest_categorical(f"{key}.rule", tuple(RULES))]
        rule = trial.suggest_categorical(f"{key}.rule", tuple(RULES))
        spec: dict[str, Any] = {"rule": rule}
        for name, number in RULES.items():
            if number is not None and (name == rule or not self.conditional):
                value = _suggest(trial, f"{key}.{number.name}", number)
                if name == rule:
                    spec[number.name] = value
        if rule == "alpha_beta":
            spec["beta"] = spec["alpha"] - 1
        return spec

    def fixed_composites(self) -> dict[str, Composite]:
        """The baselines by name: each rule uniform over the network, absolute relevance, no normalisation."""
        more: dict[str, Any] = {"attention": {"softmax": "attnlrp"}} if self.transformer else {}
        return {
            name: Composite.from_dict({"groups": dict.fromkeys(self.groups, rule), **more})
            for name, rule in FIXED.items()
        }

    def params_of(self, composite: Composite) -> dict[str, Any]:
        """The parameters with which `suggest` gives this composite back: to enqueue it as a trial."""
        data = composite.to_dict()
        params: dict[str, Any] = {}
        if not self.fixed_numbers:
            params = {key: data["ranking"][key] for key in ("aggregation", "normalization")}
            if self.mixed:
                params[BALANCE.name] = composite.balance
        if self.transformer:
            params["softmax"] = composite.softmax or "attnlrp"
        for key in self.groups:
            spec = data["groups"][key]
            params[f"{key}.rule"] = spec["rule"]
            number = RULES[spec["rule"]]
            if number is not None and not self.fixed_numbers:
                params[f"{key}.{number.name}"] = spec[number.name]
        return params

    def grid(self, seed: int) -> list[dict[str, Any]]:
        """The parameters of every composite of the space, once each, shuffled by the seed.

        Raises:
            ValueError: the space holds numbers, of which there is no end.
        """
        if not self.fixed_numbers:
            raise ValueError("a grid needs a space without numbers: give --space paper")
        choices: dict[str, tuple[str, ...]] = {f"{key}.rule": tuple(RULES) for key in self.groups}
        if self.transformer:
            choices["softmax"] = SOFTMAX
        points = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
        random.Random(seed).shuffle(points)
        return points


def _type_key(group: str, kind: str) -> str:
    if group == "classifier":
        return group
    return f"{group}.attention" if kind in ATTENTION_TYPES else f"{group}.{kind}"


def _suggest(trial: Trial, name: str, number: Range) -> float:
    return trial.suggest_float(name, number.low, number.high, log=number.log)
