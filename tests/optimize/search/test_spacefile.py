"""A space of the user's own: what a file may say, what it becomes, and how mistakes are named."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.attribution import Composite, RuleSpec
from pxp_optimize.attribution.composites import AGGREGATIONS, NORMALIZATIONS, resolve
from pxp_optimize.optimize.search import spacefile
from pxp_optimize.optimize.search.samplers import make_sampler
from pxp_optimize.optimize.search.space import FIXED, SEARCHED_RULES, Prices
from pxp_optimize.optimize.search.spacefile import SpaceError, parse_space, read_space
from pxp_optimize.optimize.search.warm_start import mixed_composites
from pxp_optimize.studies.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RESNET = {
    "conv1": {"group": "low", "type": "stem"},
    "layer2.conv1": {"group": "mid", "type": "3x3"},
    "layer2.downsample": {"group": "mid", "type": "downsample"},
    "layer4.conv1": {"group": "high", "type": "3x3"},
    "layer4.conv2": {"group": "high", "type": "3x3"},
    "fc": {"group": "classifier", "type": "linear"},
}
TRANSFORMER = {
    "block.q": {"group": "low", "type": "q"},
    "block.mlp": {"group": "low", "type": "mlp"},
    "head": {"group": "classifier", "type": "linear"},
}
GROUPS, TYPES = ({name: layer[key] for name, layer in RESNET.items()} for key in ("group", "type"))
DOCUMENTED = textwrap.dedent((spacefile.__doc__ or "").split("numbers:\n")[1].split("\nA part is named")[0])


def draws(space: Any, count: int = 20) -> list[tuple[dict, Composite]]:
    study = optuna.create_study(sampler=make_sampler("random", 0))
    trials = [study.ask() for _ in range(count)]
    return [(trial.params, composite) for trial in trials for composite in [space.suggest(trial)]]


def test_the_documented_example():
    data = tomllib.loads(DOCUMENTED)
    assert "attention" in data
    with pytest.raises(SpaceError, match=r"ranking\.cost_exponent: units have no prices; give --objective macs"):
        parse_space(data, RESNET)
    with pytest.raises(SpaceError, match="attention: the network has none"):
        parse_space(data, RESNET, prices=Prices())
    del data["attention"]
    space = parse_space(data, RESNET, prices=Prices())
    assert set(space.parameters()) == {
        *("classifier.epsilon", "mid.3x3.rule", "mid.3x3.gamma", "layer4.*.rule", "layer4.*.gamma"),
        *("*.rule", "*.epsilon", "*.gamma", "normalization", "gates", "cost_exponent"),
    }
    for params, composite in draws(space):
        specs = resolve(composite, GROUPS, TYPES)
        assert specs["fc"].rule == "epsilon"
        assert 1e-4 <= specs["fc"].parameters["epsilon"] <= 0.1
        assert specs["layer2.conv1"].rule in ("gamma", "zplus")
        assert specs["layer4.conv1"] == specs["layer4.conv2"]
        assert specs["layer4.conv1"].parameters in ({"alpha": 2.0}, {"gamma": params.get("layer4.*.gamma")})
        assert specs["conv1"] == specs["layer2.downsample"]
        assert composite.aggregation == "abs"
        assert composite.normalization in ("none", "l2")
        assert 0.5 <= composite.cost_exponent <= 1.5
        assert Composite.from_dict(composite.to_dict()) == composite
        assert space.params_of(composite) == params


@pytest.mark.parametrize("name", ["cost_exponent", "balance"])
def test_the_networks_own_numbers(name):
    data = {**part(), "ranking": {name: 1}}
    space = parse_space(data, RESNET, mixed=True, prices=Prices())
    assert name not in space.parameters()
    for params, composite in draws(space, 5):
        assert getattr(composite, name) == 1
        assert name not in params
        assert space.params_of(composite) == params
    assert space.params_of(replace(composite, **{name: 2.0})) is None
    with pytest.raises(SpaceError, match=rf"ranking\.{name}: must ascend within"):
        parse_space({**part(), "ranking": {name: [0.1, 1e7]}}, RESNET, mixed=True, prices=Prices())
    with pytest.raises(SpaceError, match=rf"ranking\.{name}: units"):
        parse_space(data, RESNET)


def test_layers_belong_to_the_first_part_that_names_them():
    space = parse_space(
        {
            "parts": {
                "layer4.conv1": {"rules": ["zplus"]},
                "high": {"rules": ["epsilon"], "epsilon": 0.1},
                "*": {"rules": ["gamma"], "gamma": 1},
            }
        },
        RESNET,
    )
    ((_, composite),) = draws(space, 1)
    rules = {name: spec.rule for name, spec in resolve(composite, GROUPS, TYPES).items()}
    assert rules == {**dict.fromkeys(RESNET, "gamma"), "layer4.conv1": "zplus", "layer4.conv2": "epsilon"}
    assert draws(space, 1)[0][0].keys() == {"aggregation", "normalization"}


def test_baselines_can_be_tried_where_the_space_lacks_their_rules():
    space = parse_space({"parts": {"*": {"rules": ["epsilon"]}}}, RESNET)
    found = {name: space.params_of(composite) for name, composite in space.fixed_composites().items()}
    assert list(found) == list(FIXED)
    assert found["epsilon"]["*.epsilon"] == 1e-6
    assert found["zplus"] is None
    assert mixed_composites(space)["epsilon-plus"].groups["low"].rule == "zplus"


def test_attention_of_a_transformer():
    space = parse_space(
        {
            "parts": {"low.attention": {"rules": ["epsilon", "zplus"]}, "*": {"rules": ["gamma"]}},
            "attention": {"softmax": ["cp"]},
        },
        TRANSFORMER,
    )
    for params, composite in draws(space, 5):
        assert composite.softmax == "cp"
        assert "softmax" not in params
        assert composite.groups["low.attention"].rule in ("epsilon", "zplus")
        assert set(composite.layers) == {"block.mlp", "head"}


def test_what_only_a_space_of_ones_own_has():
    data = {
        "parts": {"*": {"rules": ["epsilon", "epsilon_relative"], "epsilon_relative": [0.01, 1]}},
        "ranking": {"reduction": ["auto", "max"], "start": ["logit", "softmax", "contrastive"]},
        "products": {"gates": ["half", "signal"]},
    }
    for conditional in (True, False):
        space = parse_space(data, RESNET, conditional)
        seen = set()
        for params, composite in draws(space, 30):
            spec = composite.layers["fc"]
            assert spec.parameters["epsilon"] == params[f"*.{spec.rule}"]
            assert (composite.reduction, composite.start) == (params["reduction"], params["start"])
            assert composite.gates == params["gates"]
            assert Composite.from_dict(composite.to_dict()) == composite
            assert space.params_of(composite).items() <= params.items()
            seen.add((spec.rule, composite.start))
        assert len(seen) == 6
    usual = parse_space({"parts": {"*": {"rules": ["epsilon"]}}}, RESNET)
    assert usual.params_of(Composite.uniform(RuleSpec("epsilon"), start="softmax")) is None
    assert usual.params_of(Composite.uniform(RuleSpec("epsilon"), gates="half")) is None


def part(**entries: Any) -> dict[str, Any]:
    return {"parts": {"*": {"rules": ["epsilon", "gamma"], **entries}}}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "parts: a space needs one"),
    "unknown table": ({**part(), "samplers": {}}, "samplers: unknown key"),
    "parts a list": ({"parts": ["*"]}, "parts: must be a table"),
    "a part no table": ({"parts": {"*": "epsilon"}}, "parts.*: must be a table"),
    "no rules": ({"parts": {"*": {}}}, "parts.*.rules: missing"),
    "rules no list": (part(rules="epsilon"), "parts.*.rules: must be a list"),
    "rules empty": (part(rules=[]), "parts.*.rules: must be a list"),
    "unknown rule": (part(rules=["sharp"]), "parts.*.rules: unknown 'sharp'; choose from epsilon"),
    "rule twice": (part(rules=["zplus", "zplus"]), "parts.*.rules: 'zplus' is named twice"),
    "rule of another type": (part(rules=[1]), "parts.*.rules: unknown 1"),
    "number of a rule that is not there": (part(alpha=2), "parts.*.alpha: unknown key"),
    "number out of range": (part(gamma=[-1, 1]), "parts.*.gamma: must ascend within [0, 1e+06]"),
    "range upside down": (part(gamma=[1, 0.1]), "parts.*.gamma: must ascend"),
    "range from zero": (part(gamma=[0, 1]), "parts.*.gamma: must begin above 0"),
    "range of three": (part(gamma=[0.1, 1, 2]), "parts.*.gamma: must be a number or [low, high]"),
    "range of text": (part(gamma=["0.1", "1"]), "parts.*.gamma: must be a number or [low, high]"),
    "range a bool": (part(gamma=True), "parts.*.gamma: must be a number"),
    "not a number": (part(gamma=float("nan")), "parts.*.gamma: must ascend"),
    "no such layer": ({"parts": {"layer3.*": {"rules": ["zplus"]}}}, "parts.layer3.*: the network has no such layer"),
    "a slip": ({"parts": {"clasifier": {"rules": ["zplus"]}}}, "did you mean classifier?"),
    "no such type": ({"parts": {"mid.1x1": {"rules": ["zplus"]}}}, "parts.mid.1x1: the network has no such"),
    "nothing left": (
        {"parts": {"mid": {"rules": ["zplus"]}, "mid.3x3": {"rules": ["epsilon"]}}},
        "parts.mid.3x3: all its layers are in parts above it",
    ),
    "a layer left": ({"parts": {"low": {"rules": ["zplus"]}}}, "parts: layer layer2.conv1 (mid.3x3) is in none"),
    "unknown ranking": ({**part(), "ranking": {"order": ["up"]}}, "ranking.order: unknown key"),
    "unknown aggregation": ({**part(), "ranking": {"aggregation": ["sum"]}}, "ranking.aggregation: unknown 'sum'"),
    "attention without": ({**part(), "attention": {"softmax": ["cp"]}}, "attention: the network has none"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named_by_their_key(case):
    data, message = BAD[case]
    with pytest.raises(SpaceError) as caught:
        parse_space(data, RESNET)
    assert str(caught.value).startswith(message) or (case == "a slip" and message in str(caught.value))
    assert "\n" not in str(caught.value)


def test_gates_need_a_network_that_has_some():
    data = {**part(), "products": {"gates": ["signal", "half"]}}
    with pytest.raises(SpaceError, match="products: the network has no gates"):
        parse_space(data, RESNET, gates=())
    assert "gates" in parse_space(data, RESNET).parameters()
    assert "gates" not in parse_space(part(), RESNET, gates=()).parameters()


def test_files_that_are_none(tmp_path):
    path = tmp_path / "space.toml"
    with pytest.raises(UserError, match="cannot read"):
        read_space(path, RESNET, True, mixed=False)
    path.write_text("parts = [")
    with pytest.raises(UserError, match="is not TOML"):
        read_space(path, RESNET, True, mixed=False)
    path.write_text("[parts]")
    with pytest.raises(UserError, match=r"--space .*space\.toml: parts: a space needs one"):
        read_space(path, RESNET, True, mixed=False)


names = st.sampled_from(["low", "mid", "mid.3x3", "high", "layer*", "*.conv1", "conv1", "fc"])


@given(
    st.dictionaries(names, st.lists(st.sampled_from(list(SEARCHED_RULES)), min_size=1, unique=True), max_size=4),
    st.lists(st.sampled_from(AGGREGATIONS), min_size=1, unique=True),
    st.lists(st.sampled_from(NORMALIZATIONS), min_size=1, unique=True),
)
def test_every_space_gives_composites_that_come_back(parts, aggregations, normalizations):
    data = {
        "parts": {name: {"rules": rules} for name, rules in parts.items()} | {"*": {"rules": ["zplus", "gamma"]}},
        "ranking": {"aggregation": aggregations, "normalization": normalizations},
    }
    try:
        space = parse_space(data, RESNET)
    except SpaceError as error:
        assert "all its layers are in parts above it" in str(error)
        return
    for params, composite in draws(space, 3):
        assert set(resolve(composite, GROUPS, TYPES)) == set(RESNET)
        assert Composite.from_dict(composite.to_dict()) == composite
        assert space.params_of(composite) == params
        assert set(params) <= set(space.parameters())
