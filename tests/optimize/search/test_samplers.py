"""Samplers: each one searches, warns of nothing, and repeats itself whatever happens in between."""

from __future__ import annotations

import logging
import warnings

import optuna
import pytest
from optuna.trial import TrialState
from pxp_optimize.optimize.search.samplers import SAMPLERS, default_sampler, is_conditional, make_sampler
from pxp_optimize.optimize.search.space import Space

GROUPS = ["low", "classifier"]


def space_for(name: str) -> Space:
    return Space(GROUPS, conditional=is_conditional(name))


def value(params: dict) -> float:
    """Best for z-plus high up and a large epsilon at the bottom."""
    good = params["classifier.rule"] == "zplus"
    return good + (params["low.epsilon_relative"] / 10 if params["low.rule"] == "epsilon_relative" else -1.0)


def search(name: str, seed: int, trials: int, study: optuna.Study | None = None) -> optuna.Study:
    study = study or optuna.create_study(direction="maximize")
    space = space_for(name)
    while len(study.trials) < trials:
        study.sampler = make_sampler(name, seed)  # as if each trial were a process of its own
        trial = study.ask()
        space.suggest(trial)
        study.tell(trial, value(trial.params))
    return study


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_seed_gives_the_same_trials_in_one_process_or_many(name):
    many = search(name, 0, 18)
    one = optuna.create_study(direction="maximize", sampler=make_sampler(name, 0))
    for _ in range(18):
        trial = one.ask()
        space_for(name).suggest(trial)
        one.tell(trial, value(trial.params))
    assert [trial.params for trial in one.trials] == [trial.params for trial in many.trials]
    assert len({str(trial.params) for trial in one.trials}) == 18
    other = search(name, 1, 3)
    assert [trial.params for trial in other.trials] != [trial.params for trial in one.trials[:3]]


@pytest.mark.parametrize("name", SAMPLERS)
def test_parameters_that_were_drawn_before_a_cut_do_not_change_the_rest(name):
    """A trial that was killed while its parameters were drawn keeps those it has."""
    whole = search(name, 0, 13)
    cut = search(name, 0, 12)
    cut.sampler = make_sampler(name, 0)
    trial = cut.ask()
    trial.suggest_categorical("low.rule", ("epsilon_relative", "gamma", "alpha_beta", "zplus"))
    cut._storage.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)
    cut.sampler = make_sampler(name, 0)
    trial = cut.ask()
    space_for(name).suggest(trial)
    assert trial.params == whole.trials[12].params


@pytest.mark.parametrize("name", ["tpe", "local", "gp"])
def test_model_based_samplers_learn(name):
    study = search(name, 0, 30)
    late = sum(trial.params["classifier.rule"] == "zplus" for trial in study.trials[20:])
    assert late >= 5  # of 10; 2.5 at random


def test_the_default_sampler_goes_by_what_a_space_is_made_of():
    network = {"conv": {"group": "low", "type": "stem"}, "fc": {"group": "classifier", "type": "linear"}}
    chosen = {
        name: default_sampler(Space.named(name, network, True, mixed=False).parameters(), ("auc",))
        for name in ("depth", "type", "layer", "paper")
    }
    assert chosen == {"depth": "tpe", "type": "tpe", "layer": "cmaes", "paper": "local"}
    layers = Space.named("layer", network, True, mixed=False)
    assert default_sampler(layers.parameters(), ("auc", "macs")) == "tpe"
    layers = Space.named("layer", network, True, mixed=False, pruning={"schedule": ("oneshot", "every:0.1")})
    assert default_sampler(layers.parameters(), ("auc",)) == "tpe"
    assert default_sampler({}, ("auc",)) == "tpe"


def test_cmaes_drives_the_numbers():
    study = search("cmaes", 0, 12)
    driven = [trial for trial in study.trials if "cma:generation" in trial.system_attrs]
    assert len(driven) >= 10


@pytest.mark.parametrize("before", SAMPLERS)
@pytest.mark.parametrize("after", SAMPLERS)
def test_a_trial_that_was_cut_off_goes_on_with_another_sampler(before, after):
    space = space_for("cmaes")
    study = optuna.create_study(direction="maximize")
    for number in range(12):
        study.sampler = make_sampler(before if number < 11 else after, 0)
        trial = study.ask()
        if number == 10:
            study._storage.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)
            continue
        space.suggest(trial)
        study.tell(trial, value(trial.params))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 11


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_warnings(name, caplog):
    optuna.logging.enable_propagation()
    try:
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="optuna"):
            warnings.simplefilter("error")
            search(name, 0, 12)
    finally:
        optuna.logging.disable_propagation()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_unknown_sampler_is_refused():
    with pytest.raises(KeyError):
        make_sampler("magic", 0)
