"""The search space: what it proposes, and that fixed composites are points of it."""

from __future__ import annotations

import math
from dataclasses import replace

import optuna
import pytest
from pxp_optimize.attribution import Composite, CompositeError
from pxp_optimize.attribution.composites import resolve
from pxp_optimize.optimize.search.samplers import make_sampler
from pxp_optimize.optimize.search.space import FIXED, GROUPS, PRICED, SEARCHED_RULES, Prices, Space


def draws(space: Space, count: int) -> list[tuple[dict, Composite]]:
    study = optuna.create_study(sampler=make_sampler("random", 0))
    trials = [study.ask() for _ in range(count)]
    return [(trial.params, composite) for trial in trials for composite in [space.suggest(trial)]]


@pytest.mark.parametrize("conditional", [True, False])
def test_every_proposal_is_a_composite_within_its_ranges(conditional):
    space = Space(GROUPS, conditional)
    seen = set()
    for params, composite in draws(space, 100):
        data = composite.to_dict()
        assert set(data["groups"]) == set(GROUPS)
        for group, spec in data["groups"].items():
            seen.add((group, spec["rule"]))
            number = SEARCHED_RULES[spec["rule"]]
            if number is not None:
                assert number.low <= spec[number.name] <= number.high
                assert spec[number.name] == params[f"{group}.{number.parameter}"]
            if spec["rule"] == "alpha_beta":
                assert spec["beta"] == spec["alpha"] - 1
        assert data["ranking"] == {key: params[key] for key in ("aggregation", "normalization")}
    assert seen == {(group, rule) for group in GROUPS for rule in SEARCHED_RULES}


def test_conditional_numbers_belong_to_the_chosen_rule():
    for params, _ in draws(Space(["low", "high"]), 50):
        for group in ("low", "high"):
            number = SEARCHED_RULES[params[f"{group}.rule"]]
            present = {name for name in params if name.startswith(f"{group}.") and not name.endswith(".rule")}
            assert present == ({f"{group}.{number.parameter}"} if number else set())


def test_unconditional_trials_all_have_the_same_parameters():
    names = {tuple(sorted(params)) for params, _ in draws(Space(["low", "high"], conditional=False), 20)}
    assert len(names) == 1
    assert len(next(iter(names))) == 2 * 4 + 2


@pytest.mark.parametrize("name", ["depth", "type", "layer", "paper"])
def test_ways_through_gates(name):
    layers = {key: {"group": key, "type": "3x3"} for key in GROUPS}
    space = Space.named(name, layers, True, mixed=False, gates=("signal", "half"))
    searched = name in ("depth", "type")
    assert ("gates" in space.parameters()) == searched
    assert {composite.gates for _, composite in draws(space, 10)} == ({"signal", "half"} if searched else {"signal"})
    for params, composite in draws(space, 5):
        assert space.params_of(composite).get("gates") == params.get("gates")
    assert {composite.gates for composite in space.fixed_composites().values()} == {"signal"}


def test_only_groups_that_the_model_has():
    space = Space(["classifier", "low", "low"])
    assert space.groups == ("low", "classifier")
    with pytest.raises(ValueError, match="depth groups: deep"):
        Space(["low", "deep"])


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_composite_enqueued_comes_back_as_itself(name, conditional):
    space = Space(GROUPS, conditional)
    composite = space.fixed_composites()[name]
    study = optuna.create_study(sampler=make_sampler("random", 0))
    params = space.params_of(composite)
    assert (params is None) == (name == "epsilon")  # of which the space has only a rule that comes near it
    if params is not None:
        study.enqueue_trial(params)
        assert space.suggest(study.ask()).to_dict() == composite.to_dict()
    assert composite.to_dict()["groups"] == dict.fromkeys(GROUPS, FIXED[name])
    assert composite.to_dict()["ranking"] == {"aggregation": "abs", "normalization": "none"}


def test_any_proposal_can_be_enqueued_again():
    space = Space(GROUPS)
    study = optuna.create_study(sampler=make_sampler("random", 1))
    for params, composite in draws(space, 30):
        assert space.params_of(composite) == params
        study.enqueue_trial(space.params_of(composite))
        assert space.suggest(study.ask()).to_dict() == composite.to_dict()


TRANSFORMER = {
    f"layer{index}.{name}": {"group": group, "type": kind}
    for index, group in enumerate(("low", "mid", "high"))
    for name, kind in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "out"), ("mlp0", "mlp"), ("mlp3", "mlp"))
} | {"head": {"group": "classifier", "type": "linear"}}
CONVOLUTIONAL = {
    "conv1": {"group": "low", "type": "stem"},
    "conv2": {"group": "mid", "type": "3x3"},
    "down": {"group": "mid", "type": "downsample"},
    "fc": {"group": "classifier", "type": "linear"},
}


def named(name: str, layers: dict, mixed: bool = False) -> Space:
    return Space.named(name, layers, True, mixed=mixed)


@pytest.mark.parametrize(
    ("name", "layers", "keys"),
    [
        ("auto", CONVOLUTIONAL, {"low", "mid", "classifier"}),
        ("depth", CONVOLUTIONAL, {"low", "mid", "classifier"}),
        ("type", CONVOLUTIONAL, {"low.stem", "mid.3x3", "mid.downsample", "classifier"}),
        ("paper", CONVOLUTIONAL, {"low", "mid", "classifier"}),
        ("depth", TRANSFORMER, {"low", "mid", "high", "classifier"}),
        *[
            (
                name,
                TRANSFORMER,
                {f"{group}.{kind}" for group in ("low", "mid", "high") for kind in ("attention", "mlp")}
                | {"classifier"},
            )
            for name in ("auto", "type")
        ],
    ],
)
def test_named_spaces_fit_the_layers(name, layers, keys):
    space = named(name, layers)
    assert set(space.groups) == keys
    groups, types = ({layer: part[key] for layer, part in layers.items()} for key in ("group", "type"))
    for composite in [*space.fixed_composites().values(), *(found for _, found in draws(space, 20))]:
        assert set(resolve(composite, groups, types)) == set(layers)
        assert (composite.softmax is not None) == (layers is TRANSFORMER)


@pytest.mark.parametrize("layers", [CONVOLUTIONAL, TRANSFORMER])
@pytest.mark.parametrize("name", ["depth", "type", "paper"])
@pytest.mark.parametrize("mixed", [True, False])
def test_any_proposal_of_a_named_space_can_be_enqueued_again(name, layers, mixed):
    space = named(name, layers, mixed)
    study = optuna.create_study(sampler=make_sampler("random", 1))
    for params, composite in draws(space, 10):
        assert space.params_of(composite) == params
        study.enqueue_trial(params)
        assert space.suggest(study.ask()).to_dict() == composite.to_dict()
        assert ("balance" in params) == (mixed and name != "paper")


def test_the_papers_grid_is_every_composite_once():
    space = named("paper", CONVOLUTIONAL | {"deep": {"group": "high", "type": "3x3"}})
    grid = space.grid(0)
    assert len({tuple(point.items()) for point in grid}) == len(grid) == 256
    assert grid != space.grid(1)
    study = optuna.create_study(sampler=make_sampler("grid", 0))
    for point in grid[:20]:
        study.enqueue_trial(point)
        composite = space.suggest(study.ask())
        assert composite.to_dict()["ranking"] == {"aggregation": "abs", "normalization": "none"}
        for key, spec in composite.to_dict()["groups"].items():
            assert spec in FIXED.values()
            assert spec["rule"] == point[f"{key}.rule"]


def test_no_grid_of_numbers():
    with pytest.raises(ValueError, match="--space paper"):
        named("depth", CONVOLUTIONAL).grid(0)


@pytest.mark.parametrize("layers", [CONVOLUTIONAL, TRANSFORMER])
@pytest.mark.parametrize("conditional", [True, False])
def test_the_layer_space_is_a_number_a_layer_and_nothing_else(layers, conditional):
    space = Space.named("layer", layers, conditional, mixed=False)
    expected = {f"{name}.gamma" for name in layers}
    for params, composite in draws(space, 5):
        assert set(params) == expected
        assert {type(value) for value in params.values()} == {float}
        assert {
            f"{name}.{number}": value
            for name, spec in composite.layers.items()
            for number, value in spec.parameters.items()
        } == params
        assert (composite.aggregation, composite.normalization) == ("abs", "none")
        assert Composite.from_dict(composite.to_dict()) == composite
        assert space.params_of(composite) == params
    assert set(space.fixed_composites()) == set(FIXED)


def test_cmaes_fits_the_layer_space():
    """It models every parameter of it, from given points on."""
    space = Space.named("layer", CONVOLUTIONAL, False, mixed=False)
    study = optuna.create_study(sampler=make_sampler("cmaes", 0), direction="maximize")
    for gamma in (0.01, 10.0, 10.0, 0.25):
        study.enqueue_trial({f"{layer}.gamma": gamma for layer in CONVOLUTIONAL})
    best = {"conv1.gamma": 0.1, "conv2.gamma": 1.0, "down.gamma": 0.03, "fc.gamma": 0.05}

    def value(trial):
        space.suggest(trial)
        return -sum((math.log(trial.params[name]) - math.log(wanted)) ** 2 for name, wanted in best.items())

    study.optimize(value, n_trials=80)
    drawn = [trial.system_attrs["pxp:relative_params"] for trial in study.trials[4:]]
    assert all(set(params) == set(best) for params in drawn)
    assert study.best_value > -1 > max(trial.value for trial in study.trials[:4])


def test_only_what_the_space_has_exactly_has_parameters():
    """A sampler would learn from the nearest ones what was not tried."""
    space = Space.named("layer", CONVOLUTIONAL, True, mixed=False)
    fixed = {name: space.params_of(composite) for name, composite in space.fixed_composites().items()}
    assert fixed.pop("gamma0.25") == {f"{layer}.gamma": 0.25 for layer in CONVOLUTIONAL}
    assert set(fixed.values()) == {None}
    inside = {"low": {"rule": "zplus"}, "mid": {"rule": "gamma", "gamma": 10.0}}
    for rule, known in (
        ({"rule": "alpha_beta", "alpha": 2.5}, True),
        ({"rule": "alpha_beta", "alpha": 3.5}, False),
        ({"rule": "epsilon", "epsilon": 1e-6}, False),
        ({"rule": "epsilon_relative", "epsilon": 1e-4}, False),
        ({"rule": "gamma", "gamma": 10.5}, False),
    ):
        composite = Composite.from_dict({"groups": {**inside, "classifier": rule}})
        params = named("depth", CONVOLUTIONAL).params_of(composite)
        assert (params is not None) == known
        if params is not None:
            assert (params["mid.gamma"], params["classifier.alpha"]) == (10.0, 2.5)
        assert named("paper", CONVOLUTIONAL).params_of(composite) is None  # its numbers are single points
    mixed = named("depth", CONVOLUTIONAL, True)
    composite = Composite.from_dict({"groups": {**inside, "classifier": {"rule": "zplus"}}})
    assert mixed.params_of(composite)["balance"] == 1.0
    assert mixed.params_of(replace(composite, balance=100.0)) is None


def test_a_composite_of_depths_is_a_point_of_the_types_but_not_the_other_way_round():
    depth, kinds = named("depth", CONVOLUTIONAL), named("type", CONVOLUTIONAL)
    for _, composite in draws(depth, 10):
        params = kinds.params_of(composite)
        assert params["mid.3x3.rule"] == params["mid.downsample.rule"] == composite.groups["mid"].rule
    refused = 0
    for _, composite in draws(kinds, 10):
        if composite.groups["mid.3x3"] != composite.groups["mid.downsample"]:
            refused += 1
            with pytest.raises(CompositeError, match="layers conv2 and down have different rules but share mid"):
                depth.params_of(composite)
    assert refused > 3


def test_prices_are_searched_where_a_cost_counts():
    prices = Prices("params")
    space = Space.named("depth", CONVOLUTIONAL, True, mixed=False, prices=prices)
    assert "cost_exponent" not in named("depth", CONVOLUTIONAL).parameters()
    for params, composite in draws(space, 10):
        assert (composite.cost_exponent, composite.cost) == (params["cost_exponent"], "params")
        assert space.params_of(composite) == params
        assert named("depth", CONVOLUTIONAL).params_of(composite) is None
        assert space.params_of(replace(composite, cost="macs")) is None  # of another price
    fixed = space.fixed_composites()
    assert list(fixed) == [*FIXED, *(f"{name}{PRICED}" for name in FIXED)]
    assert space.params_of(fixed["zplus"])["cost_exponent"] == 0
    assert space.params_of(fixed[f"zplus{PRICED}"])["cost_exponent"] == 1
    paper = Space.named("paper", CONVOLUTIONAL, True, mixed=False, prices=prices)
    assert list(paper.fixed_composites()) == list(FIXED)
    assert len(paper.grid(0)) == 4**3


@pytest.mark.parametrize("name", ["depth", "type", "layer"])
def test_sums_of_priced_relevance_are_absolute(name):
    space = Space.named(name, CONVOLUTIONAL, True, mixed=False, prices=Prices())
    assert "aggregation" not in space.parameters()
    assert space.parameters().get("normalization", ("none", "l1")) == ("none", "l1")
    assert {composite.aggregation for _, composite in draws(space, 10)} == {"abs"}
