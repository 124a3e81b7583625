"""CMA-ES from the finished trials: the state that Optuna's sampler keeps as a pickle, without one."""

from __future__ import annotations

import pickle
import warnings

import cmaes
import numpy as np
import optuna
import pytest
from optuna.samplers import CmaEsSampler
from optuna.study import Study
from optuna.trial import Trial, TrialState
from pxp_optimize.optimize.search.cmaes import GENERATION, CmaEs, replay


def value(trial: Trial) -> float:
    """Best at x = 0.7 and y = 20; z makes no difference."""
    x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 1e-2, 1e3, log=True)
    trial.suggest_categorical("z", "ab")
    return -((x - 0.7) ** 2) - (np.log10(y) - np.log10(20)) ** 2 / 25


def search(sampler: optuna.samplers.BaseSampler, trials: int, direction: str = "maximize") -> Study:
    study = optuna.create_study(direction=direction, sampler=sampler)
    sign = 1 if direction == "maximize" else -1
    study.optimize(lambda trial: sign * value(trial), n_trials=trials)
    return study


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_state_is_the_one_that_optuna_keeps(direction):
    """From the trials of a study of Optuna's own sampler, whose pickles are ours here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = CmaEsSampler(seed=1, warn_independent_sampling=False)
    study = search(theirs, 40, direction)
    kept = theirs._restore_optimizer(study.trials)
    sampler = CmaEs(seed=1)
    space = sampler.infer_relative_search_space(study, study.trials[-1])
    found = replay(study.trials, space, study.direction)
    assert list(space) == ["x", "y"]
    assert found.generation == kept.generation >= 4
    for name in ("_mean", "_sigma", "_C", "_p_sigma", "_pc"):
        assert np.allclose(getattr(found, name), getattr(kept, name)), name


def test_draws_are_those_of_optunas_sampler():
    """Trial for trial, also with a new sampler for each trial."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = optuna.create_study(direction="maximize")
        ours = optuna.create_study(direction="maximize")
        for number in range(30):
            theirs.sampler = CmaEsSampler(seed=number, warn_independent_sampling=False)
            ours.sampler = CmaEs(seed=number)
            for study in (theirs, ours):
                study.optimize(value, n_trials=1)
    for one, other in zip(theirs.trials[1:], ours.trials[1:], strict=True):
        assert (one.params["x"], one.params["y"]) == pytest.approx((other.params["x"], other.params["y"]), rel=1e-6)


def test_it_finds_the_best_point():
    best = search(CmaEs(seed=0), 80).best_trial.params
    assert best["x"] == pytest.approx(0.7, abs=0.05)
    assert np.log10(best["y"]) == pytest.approx(np.log10(20), abs=0.2)


def test_stopped_trials_count_by_their_last_report():
    study = optuna.create_study(direction="maximize", sampler=CmaEs(seed=0))
    for number in range(30):
        trial = study.ask()
        found = value(trial)
        if number % 2:
            trial.report(found, 1)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, found)
    assert study.trials[-1].system_attrs[GENERATION] >= 3
    assert study.best_value > -0.02


def test_nothing_in_the_database_is_unpickled_or_pickled(monkeypatch):
    """A database of somebody else's with what Optuna's sampler would run."""
    study = search(CmaEs(seed=0), 12)
    assert not any("optimizer" in key for trial in study.trials for key in trial.system_attrs)
    trap = pickle.dumps(cmaes.CMA(np.zeros(2), 1.0)).hex()
    for trial in study.trials:
        study._storage.get_trial(trial._trial_id).system_attrs["cma:optimizer:0"] = trap

    def refuse(*_):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "dumps", refuse)
    search_on = study.ask()
    value(search_on)
    study.tell(search_on, 0.0)


def test_a_foreign_generation_is_ignored():
    study = search(CmaEs(seed=0), 12)
    for trial in study.trials[:6]:
        study._storage.get_trial(trial._trial_id).system_attrs[GENERATION] = "seven"
    trial = study.ask()
    assert 0 <= trial.suggest_float("x", 0, 1) <= 1
