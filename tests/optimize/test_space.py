"""The search space: what it proposes, and that fixed composites are points of it."""

from __future__ import annotations

import optuna
import pytest
from pxp_optimize.attribution import Composite
from pxp_optimize.optimize.samplers import make_sampler
from pxp_optimize.optimize.space import FIXED, GROUPS, RULES, Space


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
            number = RULES[spec["rule"]]
            if number is not None:
                assert number.low <= spec[number.name] <= number.high
                assert spec[number.name] == params[f"{group}.{number.name}"]
            if spec["rule"] == "alpha_beta":
                assert spec["beta"] == spec["alpha"] - 1
        assert data["ranking"] == {key: params[key] for key in ("aggregation", "normalization")}
    assert seen == {(group, rule) for group in GROUPS for rule in RULES}


def test_conditional_numbers_belong_to_the_chosen_rule():
    for params, _ in draws(Space(["low", "high"]), 50):
        for group in ("low", "high"):
            number = RULES[params[f"{group}.rule"]]
            present = {name for name in params if name.startswith(f"{group}.") and not name.endswith(".rule")}
            assert present == ({f"{group}.{number.name}"} if number else set())


def test_unconditional_trials_all_have_the_same_parameters():
    names = {tuple(sorted(params)) for params, _ in draws(Space(["low", "high"], conditional=False), 20)}
    assert len(names) == 1
    assert len(next(iter(names))) == 2 * 4 + 2


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
    study.enqueue_trial(space.params_of(composite))
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
