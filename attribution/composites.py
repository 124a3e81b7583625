"""A composite: which rule each layer gets, as data. Its JSON form, and the hooks it becomes.

The JSON format is "pxp-composite/1". `groups` is what a person writes: a rule for each depth group, or for a
layer type within one ("mid.downsample"). `layers` names single layers and wins over `groups`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from zennit.core import Composite as ZennitComposite
from zennit.core import Hook

from ..pruning.graph import Graph
from ..pruning.names import UNIT_KINDS, unit_kinds
from ..pruning.repair import check_repair
from ..pruning.schedule import Schedule
from ..pruning.widths import Pace
from . import rules
from .attention import SOFTMAX_RULES
from .between import hook_for
from .canonizer import GraphCanonizer
from .rules import RULES

FORMAT = "pxp-composite/1"
GROUPS = ("low", "mid", "high", "classifier")
TYPES = ("stem", "3x3", "1x1", "downsample", "depthwise", "linear", "mlp", "attention", "q", "k", "v", "qkv", "out")
ATTENTION_TYPES = ("q", "k", "v", "qkv", "out")
BIASES = ("whole", "split")
AGGREGATIONS = ("abs", "signed")
NORMALIZATIONS = ("none", "l1", "l2", "max")
REDUCTIONS = ("auto", "sum", "abs", "max")
STARTS = ("logit", "softmax", "contrastive")
GATES = ("signal", "half")
PRICES = ("macs", "params", "latency")
NUMBERS = {"balance": (1e-6, 1e6), "cost_exponent": (0.0, 4.0)}
"""What the numbers of a ranking may be, from and to."""
RANKING_KEYS = ("aggregation", "normalization", "balance", "reduction", "start", "cost_exponent", "cost", "seconds")
DOCUMENT_KEYS = (
    "format",
    "model",
    "units",
    "groups",
    "attention",
    "products",
    "ranking",
    "layers",
    "pruning",
    "result",
)


Value = float | tuple[float, ...]
"""Of a rule's parameter: a number, or one for each channel."""


class CompositeError(ValueError):
    """A composite that is malformed or does not fit the model. One line, with the path of the key."""


@dataclass(frozen=True)
class RuleSpec:
    """A rule by name with its parameters (`RULES` has their defaults and ranges)."""

    rule: str
    parameters: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = RULES[self.rule].parameters
        defaults = {key: of.default for key, of in known.items() if of.default is not None}
        object.__setattr__(self, "parameters", {**defaults, **self.parameters})

    @classmethod
    def parse(cls, data: Any, path: str) -> RuleSpec:
        """From JSON such as `{"rule": "gamma", "gamma": 0.25}`; a parameter left out takes its default.

        Raises:
            CompositeError: unknown rule or key, or a value that is not a number in range.
        """
        entries = _mapping(data, path)
        name = entries.get("rule")
        if not isinstance(name, str) or name not in RULES:
            raise CompositeError(f"{path}.rule: unknown rule {name!r}; choose from {', '.join(RULES)}")
        known = RULES[name].parameters
        allowed = ("rule", *known, *(("beta",) if name == "alpha_beta" else ()))
        refuse_unknown(entries, allowed, path)
        parameters: dict[str, Any] = {}
        for key, parameter in known.items():
            value = entries.get(key, parameter.default)
            read = _numbers if parameter.channels and isinstance(value, (list, tuple)) else _number
            parameters[key] = read(value, parameter.low, parameter.high, f"{path}.{key}")
        if "beta" in entries:
            beta = _number(entries["beta"], 0, known["alpha"].high, f"{path}.beta")
            wanted = _number(parameters["alpha"], 1, known["alpha"].high, f"{path}.alpha") - 1
            if not math.isclose(beta, wanted, rel_tol=0, abs_tol=1e-9):
                raise CompositeError(f"{path}.beta: must be alpha - 1 = {wanted:g}, not {beta!r}")
        spec = cls(name, parameters)
        try:
            spec.hook()
        except ValueError as error:
            raise CompositeError(f"{path}: {error}") from None
        return spec

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, with beta where there is an alpha."""
        data: dict[str, Any] = {"rule": self.rule}
        data |= {key: list(value) if isinstance(value, tuple) else value for key, value in self.parameters.items()}
        if self.rule == "alpha_beta":
            data["beta"] = data["alpha"] - 1
        return data

    def hook(self, **known: bool) -> rules.LinearRule:
        """The hook for a layer of which this much is known (arguments of `rules.LinearRule`)."""
        return RULES[self.rule].hook(**self.parameters, **known)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Composite:
    """A rule for each group of layers, and how unit relevance is ranked.

    groups: by "low", "mid", "high", "classifier", or by "<group>.<layer type>". layers: by layer name, wins.
    softmax: how relevance passes attention (`SOFTMAX_RULES`), of no effect in networks without. bias: in
    z-plus and alpha-beta on attention projections, "whole" as in the paper's code, or "split" by sign as
    everywhere else (see `rules.LinearRule.total`).
    gates: where a sigmoid gates a signal (squeeze-and-excitation), the signal takes all relevance ("signal", see
    `rules.Signal`), or "half" of it (`rules.Halve`).
    aggregation: "abs" sums absolute relevance over samples, "signed" signed relevance.
    normalization: within a layer, before layers are ranked together: "none", "l1", "l2" or "max".
    balance: where neurons are ranked together with filters or heads, how much more the mean neuron counts.
    reduction: how positions (space or tokens) become one number a unit: see `relevance.per_unit`.
    start: where relevance starts: see `relevance.start_relevance`.
    cost_exponent: units are ranked by relevance / price^cost_exponent, with what a unit's removal saves as its price
    (`pruning.unit_prices`). cost: in what, "macs", "params" or "latency". paces: for "latency", how fast each
    layer is.
    """

    groups: Mapping[str, RuleSpec]
    layers: Mapping[str, RuleSpec] = field(default_factory=dict)
    softmax: str | None = None
    bias: str = "whole"
    gates: str = "signal"
    aggregation: str = "abs"
    normalization: str = "none"
    balance: float = 1.0
    reduction: str = "auto"
    start: str = "logit"
    cost_exponent: float = 0.0
    cost: str = "macs"
    paces: Mapping[str, Pace] = field(default_factory=dict)

    @classmethod
    def uniform(cls, spec: RuleSpec, groups: Iterable[str] = GROUPS, **options: Any) -> Composite:
        """The same rule everywhere."""
        return cls(dict.fromkeys(groups, spec), **options)

    @classmethod
    def from_dict(cls, data: Any) -> Composite:
        """From the JSON form of a composite or a whole document (of which the rest is checked, not kept).

        Raises:
            CompositeError: see the class.
        """
        entries = _mapping(data, "composite")
        refuse_unknown(entries, DOCUMENT_KEYS, "")
        if entries.get("format", FORMAT) != FORMAT:
            raise CompositeError(f"format: this version reads {FORMAT!r}, not {entries['format']!r}")
        units = entries.get("units")
        if units is not None and (
            not isinstance(units, str) or any(kind not in UNIT_KINDS for kind in unit_kinds(units))
        ):
            raise CompositeError(f"units: unknown units {units!r}; choose from {', '.join(UNIT_KINDS)}")
        if "model" in entries and not isinstance(entries["model"], str):
            raise CompositeError(f"model: must be a name, not {entries['model']!r}")
        _mapping(entries.get("result", {}), "result")
        groups = {}
        for key, value in _mapping(entries.get("groups", {}), "groups").items():
            group, _, kind = key.partition(".")
            if group not in GROUPS or ("." in key and kind not in TYPES):
                raise CompositeError(f"groups.{key}: unknown group; choose from {', '.join(GROUPS)}")
            groups[key] = RuleSpec.parse(value, f"groups.{key}")
        layers = {
            name: RuleSpec.parse(value, f"layers.{name}")
            for name, value in _mapping(entries.get("layers", {}), "layers").items()
        }
        if not groups and not layers:
            raise CompositeError("groups: a composite needs a rule for at least one group or layer")
        attention = _mapping(entries.get("attention", {}), "attention")
        refuse_unknown(attention, ("softmax", "bias"), "attention")
        products = _mapping(entries.get("products", {}), "products")
        refuse_unknown(products, ("gates",), "products")
        ranking = _mapping(entries.get("ranking", {}), "ranking")
        refuse_unknown(ranking, RANKING_KEYS, "ranking")
        cost = _choice(ranking, "cost", PRICES, "macs", "ranking")
        seconds = _mapping(ranking.get("seconds", {}), "ranking.seconds")
        if (cost == "latency") != bool(seconds):
            raise CompositeError(f"ranking.seconds: {'missing' if cost == 'latency' else 'only with cost latency'}")
        pruning = _mapping(entries.get("pruning", {}), "pruning")
        refuse_unknown(pruning, ("schedule", "repair", "repair_samples"), "pruning")
        for key, check, usual in (("repair", check_repair, "none"), ("schedule", Schedule.parse, "oneshot")):
            try:
                check(str(pruning.get(key, usual)))
            except ValueError as error:
                raise CompositeError(f"pruning.{key}: {error}") from None
        return cls(
            groups=groups,
            layers=layers,
            softmax=_choice(attention, "softmax", tuple(SOFTMAX_RULES), None, "attention"),
            bias=_choice(attention, "bias", BIASES, "whole", "attention"),  # type: ignore[arg-type]
            gates=_choice(products, "gates", GATES, "signal", "products"),  # type: ignore[arg-type]
            aggregation=_choice(ranking, "aggregation", AGGREGATIONS, "abs", "ranking"),  # type: ignore[arg-type]
            normalization=_choice(ranking, "normalization", NORMALIZATIONS, "none", "ranking"),  # type: ignore
            balance=_number(ranking.get("balance", 1.0), *NUMBERS["balance"], "ranking.balance"),
            reduction=_choice(ranking, "reduction", REDUCTIONS, "auto", "ranking"),  # type: ignore[arg-type]
            start=_choice(ranking, "start", STARTS, "logit", "ranking"),  # type: ignore[arg-type]
            cost_exponent=_number(
                ranking.get("cost_exponent", 0.0), *NUMBERS["cost_exponent"], "ranking.cost_exponent"
            ),
            cost=cost,  # type: ignore[arg-type]
            paces={name: _pace(value, f"ranking.seconds.{name}") for name, value in seconds.items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: `groups`, `ranking`, and `attention`, `products` and `layers` where they say something."""
        data: dict[str, Any] = {"groups": {key: spec.to_dict() for key, spec in self.groups.items()}}
        attention = {} if self.softmax is None else {"softmax": self.softmax}
        if self.bias != "whole":
            attention["bias"] = self.bias
        if attention:
            data["attention"] = attention
        if self.gates != "signal":
            data["products"] = {"gates": self.gates}
        data["ranking"] = {"aggregation": self.aggregation, "normalization": self.normalization}
        if self.balance != 1:
            data["ranking"]["balance"] = self.balance
        if self.reduction != "auto":
            data["ranking"]["reduction"] = self.reduction
        if self.start != "logit":
            data["ranking"]["start"] = self.start
        if self.cost_exponent != 0:
            data["ranking"]["cost_exponent"] = self.cost_exponent
            if self.cost != "macs":
                data["ranking"]["cost"] = self.cost
            if self.paces:
                data["ranking"]["seconds"] = {name: _pace_dict(pace) for name, pace in self.paces.items()}
        if self.layers:
            data["layers"] = {name: spec.to_dict() for name, spec in self.layers.items()}
        return data

    def resolve(self, graph: Graph) -> dict[str, RuleSpec]:
        """The rule of every layer that takes one, by name, in layer order.

        Raises:
            CompositeError: a layer type or layer the model does not have, or a layer no rule is given for.
        """
        return resolve(self, graph.groups, graph.types)

    def zennit(self, model: Graph | nn.Module | None = None, *, reference: bool = False) -> ZennitComposite:
        """As a composite for zennit: a hook for each layer and for what lies between them.

        model: a graph, for a composite for its network. Otherwise it is one for any classifier, with the canonizer that
        this takes (`GraphCanonizer`), which checks whether it fits when the model is called. Where relevance starts is
        then up to the caller, and what a composite says of ranking has no effect.
        reference: zennit's own rules on the layers, slower and the same up to rounding.

        Raises:
            CompositeError: the composite does not fit the graph.
        """
        if not isinstance(model, Graph):
            return ZennitComposite(canonizers=[GraphCanonizer(self, reference=reference)])
        graph = model
        specs, steps = self.resolve(graph), graph.network.modules_by_step()

        def hook(_: dict, name: str, module: nn.Module) -> Hook | None:
            if name in specs:
                fast = specs[name].hook(
                    nonnegative=name in graph.nonnegative,
                    rectified=name in graph.rectified,
                    whole_bias=self.bias == "whole" and graph.types[name] in ATTENTION_TYPES,
                )
                return fast.reference() if reference else fast
            return hook_for(module, self.softmax or "attnlrp", self.gates) if name in steps else None

        return ZennitComposite(module_map=hook)


def resolve(composite: Composite, groups: Mapping[str, str], types: Mapping[str, str]) -> dict[str, RuleSpec]:
    """As `Composite.resolve`, from the group and the type of each layer alone."""
    known = {key for name, group in groups.items() for key in keys_of(group, types[name])}
    for key in composite.groups:
        if key not in known and key not in GROUPS:  # a shallow model need not have every depth
            raise CompositeError(f"groups.{key}: the model has no such layers")
    for name in composite.layers:
        if name not in groups:
            raise CompositeError(f"layers.{name}: the model has no such layer that takes a rule")
    specs = {}
    for name, group in groups.items():
        keys = keys_of(group, types[name])
        spec = composite.layers.get(name) or next(
            (composite.groups[key] for key in keys if key in composite.groups), None
        )
        if spec is None:
            raise CompositeError(f"groups.{group}: no rule for it, which layer {name} needs")
        specs[name] = spec
    return specs


def keys_of(group: str, kind: str) -> tuple[str, ...]:
    """The keys that may give a layer its rule, the most specific first."""
    shared = (f"{group}.attention",) if kind in ATTENTION_TYPES else ()
    return (f"{group}.{kind}", *shared, group)


def load_composite(source: str | Path | Mapping[str, Any]) -> Composite:
    """A composite from a JSON file or from such a file's content.

    Raises:
        CompositeError: not JSON, an unknown key or rule, a value out of range, a format of another version.
        OSError: the file cannot be read.
    """
    if isinstance(source, Mapping):
        return Composite.from_dict(source)
    raw = Path(source).read_bytes()
    try:
        data = json.loads(raw.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise CompositeError(f"{source}: not a composite: nested too deeply") from None
    except ValueError as error:
        raise CompositeError(f"{source}: not a JSON document: {error}") from error
    return Composite.from_dict(data)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _mapping(data: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise CompositeError(f"{path}: must be an object, not {type(data).__name__}")
    for key in data:
        if not isinstance(key, str):
            raise CompositeError(f"{path}: keys must be strings, not {key!r}")
    return data


def refuse_unknown(
    entries: Mapping[str, Any], allowed: Iterable[str], path: str, error: type[ValueError] = CompositeError
) -> None:
    """Raises `error`, with the path of the key, for a key that is not allowed."""
    for key in entries:
        if key not in allowed:
            where = f"{path}.{key}" if path else key
            raise error(f"{where}: unknown key; choose from {', '.join(allowed)}")


def _number(value: Any, low: float, high: float, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CompositeError(f"{path}: must be a number, not {value!r}")
    if not low <= value <= high:
        raise CompositeError(f"{path}: must be in [{low:g}, {high:g}], not {value!r}")
    return float(value)


def _numbers(values: Sequence[Any], low: float, high: float, path: str) -> tuple[float, ...]:
    if not values:
        raise CompositeError(f"{path}: must be a number, or one for each channel, not an empty list")
    return tuple(_number(value, low, high, f"{path}.{index}") for index, value in enumerate(values))


def _pace(value: Any, path: str) -> Pace:
    if not isinstance(value, Mapping):
        return Pace(_number(value, 0, 1e9, path))
    refuse_unknown(_mapping(value, path), ("seconds", "rows", "parts"), path)
    rows, parts = value.get("rows"), value.get("parts")
    if not isinstance(rows, list) or not isinstance(parts, list) or not rows or len(rows) != len(parts):
        raise CompositeError(f"{path}: needs rows and parts, two lists of one length")
    counts = tuple(int(_number(row, 1, 1e9, f"{path}.rows.{index}")) for index, row in enumerate(rows))
    if any(left >= right for left, right in itertools.pairwise(counts)):
        raise CompositeError(f"{path}.rows: must ascend")
    shares = _numbers(parts, 0, 1e9, f"{path}.parts")
    return Pace(_number(value.get("seconds"), 0, 1e9, f"{path}.seconds"), counts, shares)


def _pace_dict(pace: Pace) -> float | dict[str, Any]:
    if not pace.rows:
        return pace.seconds
    return {"seconds": pace.seconds, "rows": list(pace.rows), "parts": list(pace.parts)}


def _choice(entries: Mapping[str, Any], key: str, allowed: tuple[str, ...], default: Any, path: str) -> str | None:
    if key not in entries:
        return default
    value = entries[key]
    if value not in allowed:
        raise CompositeError(f"{path}.{key}: unknown {value!r}; choose from {', '.join(allowed)}")
    return value
