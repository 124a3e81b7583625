"""Composites as JSON: what is written is read back, what is wrong is refused by the path of its key."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.attribution import FORMAT, GROUPS, RULES, Composite, CompositeError, RuleSpec, load_composite, rules
from pxp_optimize.attribution.attention import SOFTMAX_RULES, AttnLRPSoftmax, BlockedSoftmax, FullAttentionValue
from pxp_optimize.attribution.composites import AGGREGATIONS, BIASES, GATES, NORMALIZATIONS, REDUCTIONS, STARTS, TYPES
from pxp_optimize.pruning import Graph, trace
from torch import nn

EPSILON = {"rule": "epsilon", "epsilon": 1e-6}
GAMMA = {"rule": "gamma", "gamma": 0.25}


def document(**changes: Any) -> dict[str, Any]:
    """A valid document, of which some keys are changed."""
    return {
        "format": FORMAT,
        "model": "resnet18",
        "units": "filters",
        "groups": {
            "low": EPSILON,
            "mid": GAMMA,
            "high": {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0},
            "classifier": {"rule": "zplus"},
        },
        "attention": {"softmax": "attnlrp"},
        "ranking": {"aggregation": "abs", "normalization": "none"},
        "layers": {"conv1": EPSILON},
        "result": {"auc": 0.71, "rates": [], "accuracy": []},
        **changes,
    }


@st.composite
def specs(draw: st.DrawFn) -> RuleSpec:
    rule = draw(st.sampled_from(list(RULES)))
    return RuleSpec(rule, {key: draw(st.floats(p.low, p.high)) for key, p in RULES[rule].parameters.items()})


@st.composite
def composites(draw: st.DrawFn) -> Composite:
    keys = st.one_of(
        st.sampled_from(GROUPS), st.builds("{}.{}".format, st.sampled_from(GROUPS), st.sampled_from(TYPES))
    )
    return Composite(
        groups=draw(st.dictionaries(keys, specs(), min_size=1, max_size=5)),
        layers=draw(st.dictionaries(st.text(), specs(), max_size=3)),
        softmax=draw(st.sampled_from([None, *SOFTMAX_RULES])),
        bias=draw(st.sampled_from(BIASES)),
        gates=draw(st.sampled_from(GATES)),
        aggregation=draw(st.sampled_from(AGGREGATIONS)),
        normalization=draw(st.sampled_from(NORMALIZATIONS)),
        balance=draw(st.floats(1e-3, 1e3)),
        reduction=draw(st.sampled_from(REDUCTIONS)),
        start=draw(st.sampled_from(STARTS)),
    )


@given(composites())
def test_round_trip(composite: Composite) -> None:
    text = json.dumps({"format": FORMAT, **composite.to_dict()}, allow_nan=False)
    assert load_composite(json.loads(text)) == composite


def test_documented_example(tmp_path: Path) -> None:
    path = tmp_path / "composite.json"
    path.write_text(json.dumps(document()), encoding="utf-8")
    composite = load_composite(path)
    assert composite == load_composite(str(path)) == load_composite(document())
    assert composite.groups["mid"] == RuleSpec("gamma", {"gamma": 0.25})
    assert composite.groups["high"] == RuleSpec("alpha_beta", {"alpha": 2.0})
    assert composite.layers == {"conv1": RuleSpec("epsilon", {"epsilon": 1e-6})}
    assert (composite.softmax, composite.aggregation, composite.normalization) == ("attnlrp", "abs", "none")
    written = composite.to_dict()
    assert {key: written[key] for key in ("groups", "attention", "ranking", "layers")} == {
        key: document()[key] for key in ("groups", "attention", "ranking", "layers")
    }


def test_what_is_left_out_has_its_default() -> None:
    composite = load_composite({"groups": {"low": {"rule": "gamma"}, "mid": {"rule": "alpha_beta"}}})
    assert composite.groups["low"].parameters == {"gamma": RULES["gamma"].parameters["gamma"].default}
    assert composite.groups["mid"].to_dict() == {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0}
    assert composite == Composite(composite.groups)


def test_keys_that_say_nothing_new_are_not_written() -> None:
    composite = load_composite(document())
    assert (composite.reduction, composite.start) == ("auto", "logit")
    assert set(composite.to_dict()["ranking"]) == {"aggregation", "normalization"}
    assert "products" not in composite.to_dict()
    assert load_composite(document(products={"gates": "half"})).to_dict()["products"] == {"gates": "half"}
    other = load_composite(document(ranking={"reduction": "max", "start": "softmax"}))
    assert other.to_dict()["ranking"] == {**composite.to_dict()["ranking"], "reduction": "max", "start": "softmax"}


def test_model_and_result_inform_only() -> None:
    assert load_composite(document(model="vgg16", result={"auc": 0.1})) == load_composite(document())


def rule(**entries: Any) -> dict[str, Any]:
    return document(groups={"low": entries})


BAD: dict[str, tuple[Any, str]] = {
    "not an object": ([], "composite"),
    "nothing": ({}, "groups"),
    "unknown key": (document(unit="filters"), "unit"),
    "key that is no string": (document(groups={3: EPSILON}), "groups"),
    "another version": (document(format="pxp-composite/2"), "format"),
    "format of another type": (document(format=1), "format"),
    "format null": (document(format=None), "format"),
    "model of another type": (document(model=18), "model"),
    "unknown units": (document(units="filter"), "units"),
    "units of another type": (document(units=["filters"]), "units"),
    "no units but of gates": (document(units="-gates"), "units"),
    "one unknown of several units": (document(units="heads+neuron"), "units"),
    "groups of another type": (document(groups=[EPSILON]), "groups"),
    "groups null": (document(groups=None), "groups"),
    "no groups and no layers": (document(groups={}, layers={}), "groups"),
    "unknown group": (document(groups={"top": EPSILON}), "groups.top"),
    "unknown layer type": (document(groups={"low.5x5": EPSILON}), "groups.low.5x5"),
    "empty layer type": (document(groups={"low.": EPSILON}), "groups.low."),
    "rule of another type": (document(groups={"low": "epsilon"}), "groups.low"),
    "rule null": (document(groups={"low": None}), "groups.low"),
    "no rule": (rule(epsilon=1.0), "groups.low.rule"),
    "unknown rule": (rule(rule="sharp"), "groups.low.rule"),
    "rule's name of another type": (rule(rule=["gamma"]), "groups.low.rule"),
    "unknown parameter": (rule(rule="gamma", epsilon=1.0), "groups.low.epsilon"),
    "parameter of a rule without": (rule(rule="zplus", alpha=1.0), "groups.low.alpha"),
    "beta of a rule without": (rule(rule="gamma", beta=1.0), "groups.low.beta"),
    "number as text": (rule(rule="gamma", gamma="0.25"), "groups.low.gamma"),
    "bool for a number": (rule(rule="alpha_beta", alpha=True), "groups.low.alpha"),
    "null for a number": (rule(rule="gamma", gamma=None), "groups.low.gamma"),
    "NaN": (rule(rule="gamma", gamma=math.nan), "groups.low.gamma"),
    "infinity": (rule(rule="gamma", gamma=math.inf), "groups.low.gamma"),
    "zero epsilon": (rule(rule="epsilon", epsilon=0), "groups.low.epsilon"),
    "negative epsilon": (rule(rule="epsilon", epsilon=-1e-6), "groups.low.epsilon"),
    "negative gamma": (rule(rule="gamma", gamma=-0.1), "groups.low.gamma"),
    "alpha below one": (rule(rule="alpha_beta", alpha=0.9), "groups.low.alpha"),
    "far too large": (rule(rule="alpha_beta", alpha=10**400), "groups.low.alpha"),
    "beta that does not fit": (rule(rule="alpha_beta", alpha=2.0, beta=0.5), "groups.low.beta"),
    "beta far too large": (rule(rule="alpha_beta", beta=10**400), "groups.low.beta"),
    "beta that does not fit the default": (rule(rule="alpha_beta", beta=0), "groups.low.beta"),
    "beta NaN": (rule(rule="alpha_beta", alpha=2.0, beta=math.nan), "groups.low.beta"),
    "beta as text": (rule(rule="alpha_beta", alpha=2.0, beta="1"), "groups.low.beta"),
    "beta a bool": (rule(rule="alpha_beta", alpha=2.0, beta=True), "groups.low.beta"),
    "layers of another type": (document(layers=["conv1"]), "layers"),
    "a layer's rule": (document(layers={"conv1": {"rule": "box"}}), "layers.conv1.rule"),
    "a layer's value": (document(layers={"a.0": {"rule": "gamma", "gamma": -1}}), "layers.a.0.gamma"),
    "attention of another type": (document(attention="attnlrp"), "attention"),
    "unknown attention key": (document(attention={"softmx": "cp"}), "attention.softmx"),
    "unknown softmax rule": (document(attention={"softmax": "zplus2"}), "attention.softmax"),
    "softmax of another type": (document(attention={"softmax": ["cp"]}), "attention.softmax"),
    "softmax null": (document(attention={"softmax": None}), "attention.softmax"),
    "unknown products key": (document(products={"gate": "half"}), "products.gate"),
    "unknown gates": (document(products={"gates": "all"}), "products.gates"),
    "unknown bias": (document(attention={"bias": "half"}), "attention.bias"),
    "ranking of another type": (document(ranking=[]), "ranking"),
    "unknown ranking key": (document(ranking={"order": "up"}), "ranking.order"),
    "unknown aggregation": (document(ranking={"aggregation": "sum"}), "ranking.aggregation"),
    "aggregation null": (document(ranking={"aggregation": None}), "ranking.aggregation"),
    "unknown normalization": (document(ranking={"normalization": "l3"}), "ranking.normalization"),
    "unknown reduction": (document(ranking={"reduction": "mean"}), "ranking.reduction"),
    "reduction of another type": (document(ranking={"reduction": ["sum"]}), "ranking.reduction"),
    "unknown start": (document(ranking={"start": "argmax"}), "ranking.start"),
    "start null": (document(ranking={"start": None}), "ranking.start"),
    "balance zero": (document(ranking={"balance": 0}), "ranking.balance"),
    "balance a bool": (document(ranking={"balance": True}), "ranking.balance"),
    "unknown pruning key": (document(pruning={"steps": 3}), "pruning.steps"),
    "result of another type": (document(result=0.7), "result"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_document_is_refused_by_its_key(case: str) -> None:
    data, path = BAD[case]
    with pytest.raises(CompositeError) as caught:
        load_composite(data) if isinstance(data, dict) else Composite.from_dict(data)
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    assert "\n" not in message


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{'groups': 1}", b"\xff\xfe{}", b'{"groups": {"low": {"rule": "gamma", "gamma": NaN}}}'],
    ids=["empty", "cut off", "python", "not utf-8", "NaN"],
)
def test_file_that_is_no_json_is_refused_by_its_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "composite.json"
    path.write_bytes(content)
    with pytest.raises(CompositeError) as caught:
        load_composite(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_json_numbers_that_overflow_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "composite.json"
    path.write_text('{"groups": {"low": {"rule": "gamma", "gamma": 1e999}}}')
    with pytest.raises(CompositeError, match=r"^groups\.low\.gamma: "):
        load_composite(path)


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_composite(tmp_path / "none.json")


# -- on a model ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> Graph:
    return trace(torchvision.models.resnet18(num_classes=3))


@pytest.fixture(scope="module")
def transformer(vision_transformer: Callable[..., nn.Module]) -> Graph:
    return trace(vision_transformer(layers=4))


def spec(value: float) -> RuleSpec:
    return RuleSpec("gamma", {"gamma": value})


def test_every_layer_gets_its_groups_rule(resnet: Graph) -> None:
    resolved = Composite({group: spec(i) for i, group in enumerate(GROUPS)}).resolve(resnet)
    assert list(resolved) == list(resnet.groups)
    for name, given_spec in resolved.items():
        assert given_spec == spec(GROUPS.index(resnet.groups[name]))


def test_layer_type_wins_over_group_and_layer_over_both(resnet: Graph) -> None:
    composite = Composite(
        {**dict.fromkeys(GROUPS, spec(0)), "mid.downsample": spec(1), "mid.3x3": spec(2), "low.stem": spec(4)},
        {"layer2.0.downsample.0": spec(3)},
    )
    resolved = composite.resolve(resnet)
    expected = {
        "conv1": 4,
        "layer1.0.conv1": 0,
        "layer2.0.conv1": 2,
        "layer2.0.downsample.0": 3,
        "layer3.0.downsample.0": 1,
        "layer4.0.downsample.0": 0,
        "fc": 0,
    }
    assert {name: resolved[name].parameters["gamma"] for name in expected} == expected


def test_attention_stands_for_its_four_projections(transformer: Graph) -> None:
    composite = Composite(
        {**dict.fromkeys(GROUPS, spec(0)), "mid.attention": spec(1), "mid.v": spec(2), "mid.mlp": spec(3)},
        {"encoder.layers.encoder_layer_2.self_attention.k_proj": spec(4)},
    )
    resolved = composite.resolve(transformer)

    def values(block: int) -> list[float]:
        parts = [f"self_attention.{part}_proj" for part in ("q", "k", "v", "out")] + ["mlp.0", "mlp.3"]
        return [resolved[f"encoder.layers.encoder_layer_{block}.{part}"].parameters["gamma"] for part in parts]

    assert [values(block) for block in range(4)] == [
        [0, 0, 0, 0, 0, 0],
        [1, 1, 2, 1, 3, 3],
        [1, 4, 2, 1, 3, 3],
        [0, 0, 0, 0, 0, 0],
    ]


def test_composite_that_does_not_fit_names_the_key(resnet: Graph) -> None:
    everywhere = dict.fromkeys(GROUPS, spec(0))
    for composite, message in (
        (Composite({**everywhere, "high.mlp": spec(1)}), "groups.high.mlp: "),
        (Composite({**everywhere, "mid.attention": spec(1)}), "groups.mid.attention: "),
        (Composite(everywhere, {"layer9": spec(1)}), "layers.layer9: "),
        (Composite(everywhere, {"bn1": spec(1)}), "layers.bn1: "),
        (Composite({"low": spec(1)}), "groups.mid: no rule"),
        (
            Composite({"low.stem": spec(1), "mid": spec(1), "high": spec(1), "classifier": spec(1)}),
            "groups.low: no rule",
        ),
    ):
        with pytest.raises(CompositeError) as caught:
            composite.resolve(resnet)
        assert str(caught.value).startswith(message)


def test_a_shallow_network_need_not_have_every_depth() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)))
    assert set(graph.groups.values()) == {"low", "classifier"}
    assert set(Composite.uniform(spec(1)).resolve(graph)) == set(graph.groups)


def test_layers_alone_suffice(resnet: Graph) -> None:
    layers = {name: spec(i) for i, name in enumerate(resnet.groups)}
    assert Composite({}, layers).resolve(resnet) == layers


def test_hooks_know_what_the_graph_knows(resnet: Graph) -> None:
    composite = Composite.uniform(spec(0.5))
    mapping = composite.zennit(resnet).module_map
    modules = resnet.network.modules_by_step()
    for name in resnet.groups:
        hook = mapping({}, name, modules[name])
        assert isinstance(hook, rules.Gamma)
        assert (hook.gamma, hook.nonnegative, hook.rectified) == (
            0.5,
            name in resnet.nonnegative,
            name in resnet.rectified,
        )
    assert not mapping({}, "conv1", modules["conv1"]).nonnegative
    assert mapping({}, "layer1.0.conv1", modules["layer1.0.conv1"]).nonnegative


def test_attention_hooks(transformer: Graph) -> None:
    modules = transformer.network.modules_by_step()
    block = "encoder.layers.encoder_layer_0.self_attention"
    for softmax, kind in ((None, AttnLRPSoftmax), ("cp", BlockedSoftmax)):
        mapping = Composite.uniform(RuleSpec("zplus"), softmax=softmax).zennit(transformer).module_map
        assert isinstance(mapping({}, f"{block}.softmax", modules[f"{block}.softmax"]), kind)
        product = mapping({}, f"{block}.attention_value", modules[f"{block}.attention_value"])
        assert isinstance(product, FullAttentionValue) == (softmax == "cp")
    for bias in BIASES:
        mapping = Composite.uniform(RuleSpec("zplus"), bias=bias).zennit(transformer).module_map
        whole = [
            mapping({}, name, modules[name]).whole_bias
            for name in (f"{block}.q_proj", f"{block}.out_proj", "encoder.layers.encoder_layer_0.mlp.0")
        ]
        assert whole == [bias == "whole", bias == "whole", False]


PACE = {"seconds": 2e-9, "rows": [1, 4], "parts": [0.5, 1.0]}


def test_prices_in_json():
    data = {"groups": {"low": {"rule": "zplus"}}, "ranking": {"aggregation": "abs", "normalization": "none"}}
    plain = Composite.from_dict(data)
    assert (plain.cost_exponent, plain.cost) == (0.0, "macs")
    assert plain.to_dict() == data
    for priced in (
        {"cost_exponent": 1.5},
        {"cost_exponent": 0.5, "cost": "params"},
        {"cost_exponent": 4.0, "cost": "latency", "seconds": {"conv1": 1e-10, "fc": 2e-9}},
        {"cost_exponent": 1.0, "cost": "latency", "seconds": {"conv1": 1e-10, "fc": PACE}},
    ):
        written = {**data, "ranking": {**data["ranking"], **priced}}
        composite = Composite.from_dict(json.loads(json.dumps(written)))
        assert composite.to_dict() == written
        assert composite.cost_exponent == priced["cost_exponent"]


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ({"cost_exponent": 4.1}, r"ranking.cost_exponent: must be in \[0, 4\]"),
        ({"cost_exponent": -1}, r"ranking.cost_exponent: must be in \[0, 4\]"),
        ({"cost_exponent": "1"}, "ranking.cost_exponent: must be a number"),
        ({"cost": "watts"}, "ranking.cost: unknown 'watts'"),
        ({"cost": "latency"}, "ranking.seconds: missing"),
        ({"seconds": {"fc": 1e-9}}, "ranking.seconds: only with cost latency"),
        ({"cost": "latency", "seconds": {"fc": -1}}, "ranking.seconds.fc: must be in"),
        ({"cost": "latency", "seconds": {"fc": "fast"}}, "ranking.seconds.fc: must be a number, not 'fast'"),
        ({"cost": "latency", "seconds": {"fc": {"seconds": 1.0}}}, "ranking.seconds.fc: needs rows and parts"),
        ({"cost": "latency", "seconds": {"fc": PACE | {"pace": 1}}}, "ranking.seconds.fc.*pace"),
        ({"cost": "latency", "seconds": {"fc": PACE | {"seconds": None}}}, "ranking.seconds.fc.seconds: must be a num"),
        ({"cost": "latency", "seconds": {"fc": PACE | {"rows": [4, 1]}}}, "ranking.seconds.fc.rows: must ascend"),
        ({"cost": "latency", "seconds": {"fc": PACE | {"rows": [1]}}}, "ranking.seconds.fc: needs rows and parts"),
        ({"cost": "latency", "seconds": {"fc": PACE | {"parts": [0.5, -1]}}}, "ranking.seconds.fc.parts.1: must be in"),
    ],
)
def test_prices_that_are_none(ranking, message):
    with pytest.raises(CompositeError, match=message):
        Composite.from_dict({"groups": {"low": {"rule": "zplus"}}, "ranking": ranking})
