"""The search spaces: which composites a study may try, and the fixed ones it is measured against."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...attribution import GROUPS, Composite, CompositeError, RuleSpec
from ...attribution.attention import SOFTMAX_RULES
from ...attribution.composites import AGGREGATIONS, ATTENTION_TYPES, GATES, keys_of, resolve
from ...attribution.rules import RULES
from ...pruning.widths import Pace
from ..evaluation.candidate import Pruning

if TYPE_CHECKING:
    from optuna import Trial

SOFTMAX = tuple(SOFTMAX_RULES)

Layers = Mapping[str, Mapping[str, str]]
"""Group and type of each layer that takes a rule, by name (`document.layers_of`)."""


@dataclass(frozen=True)
class Range:
    """The one number of a rule. log: sampled evenly in its logarithm. Where low is high it is not sampled.
    label: what its parameter is called, if not by its name."""

    name: str
    low: float
    high: float
    log: bool
    label: str = ""

    @property
    def parameter(self) -> str:
        return self.label or self.name

    @property
    def fixed(self) -> bool:
        return self.low == self.high

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def value(self, trial: Trial, parameter: str) -> float:
        """What the trial's sampler proposes, or what is always taken."""
        return self.low if self.fixed else trial.suggest_float(parameter, self.low, self.high, log=self.log)


Rules = Mapping[str, Range | None]


def range_of(rule: str) -> Range | None:
    """The number of a rule that is searched, or None where it has none."""
    kind = RULES[rule]
    for name, parameter in kind.parameters.items():
        if (found := parameter.searched) is not None:
            return Range(name, found.low, found.high, found.log, kind.label)
    return None


def all_rules() -> dict[str, Range | None]:
    """Every rule that there is, for a space of one's own (`spacefile`)."""
    return {name: range_of(name) for name in RULES}


SEARCHED_RULES = {name: range_of(name) for name in ("epsilon_relative", "gamma", "alpha_beta", "zplus")}
"""The rules that are searched where a space of one's own says nothing else, with the range of their number."""

# Without "max": no composite with it came near the best (resnet18: 0.52 against 0.65, 49 random trials).
SEARCHED = ("none", "l1", "l2")
"""The normalisations that are searched, where a space of one's own says nothing else."""

# How much more a mean neuron counts, where neurons are ranked together with filters or heads.
BALANCE = Range("balance", 0.1, 10.0, log=True)

# Exponents above 1.5 and the "l2" norm were worst in searches over costs (docs/objectives.md).
COST_EXPONENT = Range("cost_exponent", 0.0, 1.5, log=False)
PRICED, HALF_PRICED = ", priced", ", half priced"
"""What the names of known composites end with where units are ranked by relevance over their price, or its root."""


@dataclass(frozen=True)
class Prices:
    """What units are priced in, where trials are judged by a cost: see `Composite.cost` and `Composite.paces`."""

    cost: str = "macs"
    paces: Mapping[str, Pace] = field(default_factory=dict)

    def on(self, composite: Composite, exponent: float) -> Composite:
        """The composite, ranked by relevance / price^exponent."""
        return replace(composite, cost_exponent=exponent, cost=self.cost, paces=self.paces)

    def known(self, composites: Mapping[str, Composite], exponent: float = 1.0) -> dict[str, Composite]:
        """Known composites as they are, and with the exponent: 1, or 0.5."""
        ending = PRICED if exponent == 1 else HALF_PRICED
        return {**composites, **{f"{name}{ending}": self.on(c, exponent) for name, c in composites.items()}}


FIXED: dict[str, dict[str, Any]] = {
    "epsilon": {"rule": "epsilon", "epsilon": 1e-6},
    "zplus": {"rule": "zplus"},
    "alpha2-beta1": {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0},
    "gamma0.25": {"rule": "gamma", "gamma": 0.25},
}
"""Uniform composites from the literature: one rule for the whole network."""

FIXED_RULES: Rules = {
    name: number and replace(number, low=spec[number.name], high=spec[number.name])
    for spec in FIXED.values()
    for name in [spec["rule"]]
    for number in [range_of(name)]
}
"""The rules with the numbers of the fixed composites."""


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the network that gets one rule.

    name: what its parameters begin with: a group of the composite, or any name where `layers` are given.
    rules: those it may get, with their numbers. With one rule only, the rule is no parameter.
    layers: the layers it stands for, by name; empty for a group.
    """

    name: str
    rules: Rules
    layers: tuple[str, ...] = ()


class Space:
    """One rule with its number for each part of the network, and how relevance becomes a ranking.

    Parameters are named by part: `low.rule`, then `low.epsilon`, `low.gamma` or `low.alpha`; `aggregation`,
    `normalization`, `softmax` and `balance` are the network's.

    Args:
        parts: groups that the composites have (depth groups, or types within one: "mid.attention"), which get
            the rules of `SEARCHED_RULES`; or parts with rules of their own.
        conditional: sample only the number that the chosen rule uses. If false, every trial has the numbers
            of all rules, and those of rules not chosen have no effect: for samplers that need a fixed set.
        transformer: search the softmax rule too.
        mixed: units of several kinds are ranked together: search their balance too.
        fixed_numbers: rules only, with the numbers of the fixed composites, and the plain ranking: the choice
            among 256 composites of Hatefi et al.
        choices: what the network's own categories may be, where that is not all that is known.
        numbers: ranges of the network's own numbers, by name, where these are not the usual ones.
        network: the layers, so that a composite with other groups or with single layers can be found in the space.
        pruning: "schedule" and "repair" that a study may use, best known first; of several one is searched.
        gates: how relevance may pass gates, the usual way first; of several one is searched. Empty: there are none.
        prices: what units are priced in: search the exponent too. None where units are what counts.
        given: parameters of rules that a search does not draw, by rule (`explained.pixel_bounds`).
    """

    def __init__(
        self,
        parts: Iterable[str | Part],
        conditional: bool = True,
        *,
        transformer: bool = False,
        mixed: bool = False,
        fixed_numbers: bool = False,
        choices: Mapping[str, tuple[str, ...]] | None = None,
        numbers: Mapping[str, Range] | None = None,
        network: Layers | None = None,
        pruning: Mapping[str, tuple[str, ...]] | None = None,
        gates: tuple[str, ...] = GATES[:1],
        prices: Prices | None = None,
        given: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        rules = FIXED_RULES if fixed_numbers else SEARCHED_RULES
        present = [part if isinstance(part, Part) else Part(part, rules) for part in dict.fromkeys(parts)]
        unknown = {part.name for part in present if not part.layers and _depth(part.name) not in GROUPS}
        if unknown:
            raise ValueError(f"unknown depth groups: {', '.join(sorted(unknown))}")
        groups = sorted((part for part in present if not part.layers), key=lambda part: GROUPS.index(_depth(part.name)))
        self.parts = (*groups, *(part for part in present if part.layers))
        self.groups = tuple(part.name for part in groups)
        self.conditional = conditional
        self.transformer = transformer
        self.mixed = mixed and not fixed_numbers
        self.network = network
        self.pruning = dict(pruning or {})
        self.prices = prices
        usual = {**({"balance": BALANCE} if self.mixed else {}), **({"cost_exponent": COST_EXPONENT} if prices else {})}
        self.numbers = tuple({**usual, **(numbers or {})}.values())
        self.given = {name: RuleSpec(name, parameters) for name, parameters in (given or {}).items()}
        ranking = {"aggregation": AGGREGATIONS, "normalization": SEARCHED}
        if fixed_numbers:
            ranking = {"aggregation": ("abs",), "normalization": ("none",)}
        plain = {"reduction": ("auto",), "start": ("logit",), "gates": gates or GATES[:1]}
        self.choices = {**({"softmax": SOFTMAX} if transformer else {}), **ranking, **plain, **(choices or {})}

    @classmethod
    def named(
        cls,
        name: str,
        layers: Layers,
        conditional: bool,
        *,
        mixed: bool,
        pruning: Mapping[str, tuple[str, ...]] | None = None,
        gates: tuple[str, ...] = GATES[:1],
        prices: Prices | None = None,
        given: Mapping[str, Mapping[str, Any]] | None = None,
        inputs: Part | None = None,
        ranked: bool = True,
    ) -> Space:
        """A space of `parsers.SPACES` for a network's layers.

        `depth`: the depth groups. `type`: the types of layers within them, attention projections as one.
        `layer`: gamma of each layer and nothing else. Its range reaches from epsilon's rule to z-plus, so no
        category is needed, and CMA-ES fits it (so Zhang et al. 2025, arXiv 2509.23585, search LRP's numbers).
        `paper`: depth groups, rules with fixed numbers, and no prices. `auto`: depth, for transformers type.

        inputs: the part of its own that the layer which reads the image is in `depth` and `type`; None for none.
        ranked: whether units are ranked, so that how is searched too.
        """
        transformer = any(layer["type"] in ATTENTION_TYPES for layer in layers.values())
        if name == "auto":
            name = "type" if transformer else "depth"
        parts: list[str | Part] = [layer["group"] for layer in layers.values()]
        choices: dict[str, tuple[str, ...]] = {}
        if name == "type":
            parts = [_type_key(layer["group"], layer["type"]) for layer in layers.values()]
        if inputs is not None and name in ("depth", "type"):
            of_layers = zip(parts, layers.values(), strict=True)
            parts = [inputs, *(part for part, layer in of_layers if f"{layer['group']}.{layer['type']}" != inputs.name)]
        plain = not ranked or name == "layer"
        if prices is not None and name != "paper":  # with prices signed sums were worse in four of four searches
            choices |= {"aggregation": ("abs",), "normalization": SEARCHED[:2]}
        if plain:
            choices |= {"aggregation": ("abs",), "normalization": ("none",)}
        if name == "layer":
            parts = [Part(name, {"gamma": SEARCHED_RULES["gamma"]}, (name,)) for name in layers]
            choices |= {"softmax": ("attnlrp",)} if transformer else {}
        if name in ("layer", "paper"):
            gates = gates[:1]
        return cls(
            parts,
            conditional,
            transformer=transformer,
            mixed=mixed,
            fixed_numbers=name == "paper",
            choices=choices,
            network=layers,
            pruning=pruning,
            gates=gates,
            prices=None if name == "paper" else prices,
            given=given,
        )

    def parameters(self) -> dict[str, tuple[str, ...] | Range]:
        """All that a trial may have, by name: the choices, or the range."""
        found: dict[str, tuple[str, ...] | Range] = {}
        for part in self.parts:
            if len(part.rules) > 1:
                found[f"{part.name}.rule"] = tuple(part.rules)
            found |= {f"{part.name}.{n.parameter}": n for n in part.rules.values() if n is not None and not n.fixed}
        found |= {name: choices for name, choices in {**self.choices, **self.pruning}.items() if len(choices) > 1}
        return found | {number.name: number for number in self.numbers if not number.fixed}

    def suggest(self, trial: Trial) -> Composite:
        """The composite that the trial's sampler proposes."""
        data: dict[str, Any] = {"groups": {}, "layers": {}}
        for part in self.parts:
            spec = self._suggest_rule(trial, part)
            data["layers" if part.layers else "groups"] |= dict.fromkeys(part.layers or (part.name,), spec)
        chosen = {
            name: trial.suggest_categorical(name, choices) if len(choices) > 1 else choices[0]
            for name, choices in self.choices.items()
        }
        data["products"] = {"gates": chosen.pop("gates")}
        if self.transformer:
            data["attention"] = {"softmax": chosen.pop("softmax")}
        data["ranking"] = chosen
        own = {number.name: number.value(trial, number.name) for number in self.numbers}
        exponent = own.pop(COST_EXPONENT.name, 0.0)
        data["ranking"] |= own
        composite = Composite.from_dict(data)
        return composite if self.prices is None else self.prices.on(composite, exponent)

    def suggest_pruning(self, trial: Trial) -> Pruning | None:
        """How the sampler proposes to use the ranking; None where there is nothing to choose."""
        return self._pruning(lambda name, choices: trial.suggest_categorical(name, choices))

    def known_pruning(self) -> Pruning | None:
        """How composites are used that the sampler does not propose: the first of each choice."""
        return self._pruning(lambda name, choices: choices[0])

    def _pruning(self, choose: Callable[[str, tuple[str, ...]], str]) -> Pruning | None:
        if all(len(choices) == 1 for choices in self.pruning.values()):
            return None
        return Pruning(**{n: choose(n, known) if len(known) > 1 else known[0] for n, known in self.pruning.items()})

    def _suggest_rule(self, trial: Trial, part: Part) -> dict[str, Any]:
        rules = tuple(part.rules)
        rule = trial.suggest_categorical(f"{part.name}.rule", rules) if len(rules) > 1 else rules[0]
        spec: dict[str, Any] = self.given[rule].to_dict() if rule in self.given else {"rule": rule}
        for name, number in part.rules.items():
            if number is not None and (name == rule or not self.conditional):
                value = number.value(trial, f"{part.name}.{number.parameter}")
                if name == rule:
                    spec[number.name] = value
        return spec

    def fixed_composites(self) -> dict[str, Composite]:
        """The baselines by name: each rule uniform over the network, absolute relevance, no normalisation; where units
        have prices, with and without these."""
        fixed = {name: self.composite(dict.fromkeys(GROUPS, rule)) for name, rule in FIXED.items()}
        return fixed if self.prices is None else self.prices.known(fixed)

    def composite(self, rules: Mapping[str, Mapping[str, Any]]) -> Composite:
        """The composite with these rules at the depths, ranked plainly, in the groups that the space has."""
        keys: Iterable[str] = self.groups
        if self.network is not None and len(self.groups) < len(self.parts):
            depths = {layer["group"] for layer in self.network.values()}
            keys = [depth for depth in GROUPS if depth in depths]
        more: dict[str, Any] = {"attention": {"softmax": "attnlrp"}} if self.transformer else {}
        return Composite.from_dict({"groups": {key: rules[_depth(key)] for key in keys}, **more})

    def params_of(self, composite: Composite) -> dict[str, Any] | None:
        """The parameters with which `suggest` gives exactly this composite back; used as `known_pruning` says.

        None where the space lacks a rule, a choice or a number of it: a sampler would learn from the nearest
        parameters what was not tried.

        Raises:
            CompositeError: it does not fit the network, or has several rules within a part of the space.
        """
        params: dict[str, Any] = {}
        for part, spec in self._specs(composite):
            number = part.rules.get(spec.rule)
            value: Any = 0.0 if number is None else spec.parameters[number.name]
            if (
                self.given.get(spec.rule, spec) != spec
                or spec.rule not in part.rules
                or (number is not None and value not in number)
            ):
                return None
            if len(part.rules) > 1:
                params[f"{part.name}.rule"] = spec.rule
            if number is not None and not number.fixed:
                params[f"{part.name}.{number.parameter}"] = value
        own = {
            "softmax": composite.softmax or "attnlrp",
            "aggregation": composite.aggregation,
            "normalization": composite.normalization,
            "reduction": composite.reduction,
            "start": composite.start,
            "gates": composite.gates,
        }
        if composite.bias != "whole" or any(own[name] not in choices for name, choices in self.choices.items()):
            return None
        params |= {name: own[name] for name, choices in self.choices.items() if len(choices) > 1}
        params |= {name: choices[0] for name, choices in self.pruning.items() if len(choices) > 1}
        numbers = {number.name: getattr(composite, number.name) for number in self.numbers}
        exponent = composite.cost_exponent
        if any(numbers[number.name] not in number for number in self.numbers):
            return None
        if exponent and (self.prices is None or self.prices.on(composite, exponent) != composite):
            return None
        return params | {number.name: numbers[number.name] for number in self.numbers if not number.fixed}

    def _specs(self, composite: Composite) -> Iterable[tuple[Part, RuleSpec]]:
        """The rule that a composite has for each part."""
        if self.network is None:
            for part in self.parts:
                yield part, composite.groups.get(part.name) or composite.groups[_depth(part.name)]
            return
        groups, types = ({name: layer[key] for name, layer in self.network.items()} for key in ("group", "type"))
        specs = resolve(composite, groups, types)
        alone = {name for part in self.parts for name in part.layers}
        members: dict[str, list[str]] = {}
        for name in groups:
            if name not in alone:
                keys = keys_of(groups[name], types[name])
                members.setdefault(next(key for key in keys if key in self.groups), []).append(name)
        for part in self.parts:
            names = part.layers or members[part.name]
            different = next((name for name in names if specs[name] != specs[names[0]]), None)
            if different is not None:
                raise CompositeError(f"layers {names[0]} and {different} have different rules but share {part.name}")
            yield part, specs[names[0]]

    def grid(self, seed: int) -> list[dict[str, Any]]:
        """The parameters of every composite of the space, once each, shuffled by the seed.

        Raises:
            ValueError: the space holds numbers, of which there is no end.
        """
        choices = {name: values for name, values in self.parameters().items() if isinstance(values, tuple)}
        if len(choices) < len(self.parameters()):
            raise ValueError("a grid needs a space without numbers: give --space paper")
        points = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
        random.Random(seed).shuffle(points)
        return points


def _depth(key: str) -> str:
    return key.partition(".")[0]


def _type_key(group: str, kind: str) -> str:
    if group == "classifier":
        return group
    return f"{group}.attention" if kind in ATTENTION_TYPES else f"{group}.{kind}"
