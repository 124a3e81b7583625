"""A search space of the user's own, from a TOML file.

A table for each part of the network says which rules it may get, and the range of their numbers:

    [parts.classifier]
    rules = ["epsilon"]
    epsilon = [1e-4, 0.1]        # a range, sampled evenly in its logarithm

    [parts."mid.3x3"]
    rules = ["gamma", "zplus"]   # gamma in its usual range

    [parts."layer4.*"]
    rules = ["alpha_beta", "gamma"]
    alpha = 2                    # always this number
    gamma = [0.05, 1]

    [parts."*"]
    rules = ["epsilon", "gamma", "zplus"]

    [ranking]
    aggregation = ["abs"]
    normalization = ["none", "l2"]
    cost_exponent = [0.5, 1.5]   # under a cost objective

    [attention]                  # of transformers
    softmax = ["attnlrp", "cp"]

    [products]                   # of networks with gates, such as squeeze-and-excitation
    gates = ["signal", "half"]

A part is named by a group ("low", "mid", "high", "classifier"), by a type of layer within one ("mid.3x3",
"high.mlp"), or by a pattern over layer names, in which `*` stands for any characters. A layer belongs to the
first part that names it, and all layers of a part have the same rule. What is left out is searched as in the
other spaces. Five things are searched only here: the normalisation "max", the rule "epsilon" (the range
of "epsilon_relative" is `epsilon_relative`), in [ranking] `reduction` ("auto", "sum", "abs", "max") and `start`
("logit", "softmax", "contrastive"), and, but with a second objective, in [products] `gates` ("signal", "half").
"""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...attribution import GROUPS, RULES
from ...attribution.composites import (
    AGGREGATIONS,
    ATTENTION_TYPES,
    GATES,
    NORMALIZATIONS,
    NUMBERS,
    REDUCTIONS,
    STARTS,
    TYPES,
    keys_of,
    refuse_unknown,
)
from ...studies.errors import UserError
from ...studies.wording import did_you_mean
from .space import BALANCE, COST_EXPONENT, SOFTMAX, Layers, Part, Prices, Range, Space, all_rules, range_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "ranking": {
        "aggregation": AGGREGATIONS,
        "normalization": NORMALIZATIONS,
        "reduction": REDUCTIONS,
        "start": STARTS,
    },
    "attention": {"softmax": SOFTMAX},
    "products": {"gates": GATES},
}
"""The network's own categories, by their table."""
OWN = {number.name: number for number in (BALANCE, COST_EXPONENT)}
"""The network's own numbers, in [ranking]."""


Choices = Mapping[str, tuple[str, ...]]


class SpaceError(ValueError):
    """A space that is malformed or does not fit the network. One line, with the path of the key."""


def read_space(
    path: str | Path,
    network: Layers,
    conditional: bool,
    *,
    mixed: bool,
    pruning: Choices | None = None,
    gates: tuple[str, ...] = GATES[:1],
    prices: Prices | None = None,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    inputs: Part | None = None,
    ranked: bool = True,
) -> Space:
    """The space in a TOML file, for a network. Arguments as in `Space.named`; what it says itself counts for `inputs`.

    Raises:
        UserError: no such file, not TOML, or as `parse_space`.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return parse_space(
            data,
            network,
            conditional,
            mixed=mixed,
            pruning=pruning,
            gates=gates,
            prices=prices,
            given=given,
            ranked=ranked,
        )
    except OSError as error:
        raise UserError(f"--space: cannot read {path}: {error.strerror or error}") from error
    except SpaceError as error:
        raise UserError(f"--space {path}: {error}") from error
    except (ValueError, RecursionError) as error:  # also bytes that are no text, numbers of thousands of digits
        raise UserError(f"--space: {path} is not TOML: {error}") from error


def parse_space(
    data: Mapping[str, Any],
    network: Layers,
    conditional: bool = True,
    *,
    mixed: bool = False,
    pruning: Choices | None = None,
    gates: tuple[str, ...] = GATES[:1],
    prices: Prices | None = None,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    ranked: bool = True,
) -> Space:
    """The space that a TOML file's content describes, for a network.

    Raises:
        SpaceError: an unknown key, rule or choice, a number out of range, a part without layers, or a layer in
            no part.
    """
    refuse_unknown(data, ("parts", *CHOICES), "", SpaceError)
    transformer = any(layer["type"] in ATTENTION_TYPES for layer in network.values())
    choices: dict[str, tuple[str, ...]] = {} if ranked else {"aggregation": ("abs",), "normalization": ("none",)}
    ranking = dict(_table(data.get("ranking", {}), "ranking"))
    numbers = {name: ranking.pop(name) for name in OWN if name in ranking}
    if "balance" in numbers and not mixed:
        raise SpaceError("ranking.balance: units of one kind have nothing to balance; give --units heads+neurons")
    if "cost_exponent" in numbers and prices is None:
        raise SpaceError("ranking.cost_exponent: units have no prices; give --objective macs, params or latency")
    for table, known in CHOICES.items():
        entries = ranking if table == "ranking" else _table(data.get(table, {}), table)
        refuse_unknown(entries, known, table, SpaceError)
        if table == "attention" and entries and not transformer:
            raise SpaceError("attention: the network has none")
        if table == "products" and entries and not gates:
            raise SpaceError("products: the network has no gates")
        choices |= {key: _choices(value, known[key], f"{table}.{key}") for key, value in entries.items()}
    tables = _table(data.get("parts", {}), "parts")
    if not tables:
        raise SpaceError('parts: a space needs one, such as [parts."*"] with rules = ["epsilon", "zplus"]')
    members = _members(tables, network)
    parts = [
        Part(name, _rules(table, f"parts.{name}"), () if _is_group(name) else members[name])
        for name, table in tables.items()
    ]
    return Space(
        parts,
        conditional,
        transformer=transformer,
        mixed=mixed,
        choices=choices,
        numbers={name: _range(value, OWN[name], NUMBERS[name], f"ranking.{name}") for name, value in numbers.items()},
        network=network,
        pruning=pruning,
        gates=gates,
        prices=prices,
        given=given,
    )


def _members(names: Iterable[str], network: Layers) -> dict[str, tuple[str, ...]]:
    """The layers of each part: those that no part before it names."""
    left = dict(network)
    members: dict[str, tuple[str, ...]] = {}
    for name in names:
        found = [layer for layer, known in left.items() if _names(name, layer, known)]
        if not found:
            every = [layer for layer, known in network.items() if _names(name, layer, known)]
            hint = did_you_mean(name, [*network, *_groups_of(network)], "")
            missing = "the network has no such layer or group" + (f"; {hint}" if hint else "")
            why = "all its layers are in parts above it" if every else missing
            raise SpaceError(f"parts.{name}: {why}")
        members[name] = tuple(found)
        for layer in found:
            del left[layer]
    if left:
        layer, known = next(iter(left.items()))
        raise SpaceError(f'parts: layer {layer} ({known["group"]}.{known["type"]}) is in none; add one, such as "*"')
    return members


def _groups_of(network: Layers) -> list[str]:
    return list(dict.fromkeys(key for known in network.values() for key in keys_of(known["group"], known["type"])))


def _is_group(name: str) -> bool:
    group, dot, kind = name.partition(".")
    return group in GROUPS and (not dot or kind in (*TYPES, "attention"))


def _names(name: str, layer: str, known: Mapping[str, str]) -> bool:
    """Whether a part's name is a group of the layer, or a pattern that its name fits."""
    if _is_group(name):
        return name in keys_of(known["group"], known["type"])
    return fnmatch.fnmatchcase(layer, name)


def _rules(data: Any, path: str) -> dict[str, Range | None]:
    """The rules of a part with their numbers."""
    entries = _table(data, path)
    if "rules" not in entries:
        raise SpaceError(f"{path}.rules: missing; choose from {', '.join(all_rules())}")
    names = _choices(entries["rules"], tuple(all_rules()), f"{path}.rules")
    numbers = {name: number for name in names if (number := range_of(name)) is not None}
    refuse_unknown(entries, ("rules", *(number.parameter for number in numbers.values())), path, SpaceError)
    return {
        name: _range(entries[number.parameter], number, _allowed(name, number), f"{path}.{number.parameter}")
        if (number := numbers.get(name)) is not None and number.parameter in entries
        else number
        for name in names
    }


def _allowed(rule: str, number: Range) -> tuple[float, float]:
    parameter = RULES[rule].parameters[number.name]
    return parameter.low, parameter.high


def _range(value: Any, usual: Range, allowed: tuple[float, float], path: str) -> Range:
    """From [low, high], or one number that is always taken."""
    parts = value if isinstance(value, list) else [value, value]
    if len(parts) != 2 or any(isinstance(part, bool) or not isinstance(part, (int, float)) for part in parts):
        raise SpaceError(f"{path}: must be a number or [low, high], not {value!r}")
    low, high = map(float, parts)
    if not allowed[0] <= low <= high <= allowed[1]:
        raise SpaceError(f"{path}: must ascend within [{allowed[0]:g}, {allowed[1]:g}], not {value!r}")
    if usual.log and low == 0 < high:
        raise SpaceError(f"{path}: must begin above 0, since it is sampled in its logarithm")
    return replace(usual, low=low, high=high)


def _choices(value: Any, known: Sequence[str], path: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise SpaceError(f"{path}: must be a list of {', '.join(known)}, not {value!r}")
    for choice in value:
        if choice not in known:
            raise SpaceError(f"{path}: unknown {choice!r}; choose from {', '.join(known)}")
        if value.count(choice) > 1:
            raise SpaceError(f"{path}: {choice!r} is named twice")
    return tuple(choice for choice in known if choice in value)  # in one order: a study's choices must not change


def _table(data: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise SpaceError(f"{path}: must be a table, not {data!r}")
    return data
