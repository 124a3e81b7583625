"""A study as a run leaves it, without a network: every value in it is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from pxp_optimize.studies.steps import STEPS, UNITS, pack
from pxp_optimize.studies.storage import open_storage

RATES = [0.0, 0.25, 0.5, 0.75]
LAYERS = {name: {"group": group, "type": "3x3"} for name, group in (("conv", "low"), ("fc", "classifier"))}
RULE = CategoricalDistribution(("zplus", "gamma"))
GAMMA = FloatDistribution(0.01, 10.0, log=True)


def curve(value: float) -> list[float]:
    """A curve of this area: it falls to nothing, evenly, from twice that."""
    return [2 * value, 4 / 3 * value, 2 / 3 * value, 0.0]


def composite(rule: str, gamma: float = 0.25) -> dict:
    spec = {"rule": rule, **({"gamma": gamma} if rule == "gamma" else {})}
    return {
        "groups": {"low": spec, "classifier": spec},
        "ranking": {"aggregation": "abs", "normalization": "none"},
    }


def fill(study: optuna.Study) -> None:
    """Two fixed composites (AUC 0.3, 0.25), twenty trials whose AUC grows with gamma (the last has 0.42), one that was
    stopped, one that failed."""
    study.set_user_attr("rates", RATES)
    study.set_user_attr("layers", LAYERS)
    study.set_user_attr("fingerprint", {"model": "small", "data": "digits", "units": "filters", "rates": RATES})
    for name, value in (("epsilon", 0.3), ("zplus", 0.25)):
        attrs = {"fixed": name, "accuracy": curve(value), "composite": composite("zplus")}
        study.add_trial(create_trial(value=value, user_attrs=attrs))
    for index in range(20):
        gamma, value = 0.01 * 1000 ** (index / 19), 0.04 + 0.02 * index
        params = {"low.rule": "gamma", "low.gamma": gamma} if index % 4 else {"low.rule": "zplus"}
        # units 0 to 3 are conv's, 4 to 7 fc's: fc's go first
        system = {STEPS: pack(np.array([4, 4, 3, 3, 1, 1, 2, 2]))}
        study.add_trial(
            create_trial(
                value=value,
                params=params,
                distributions={name: {"low.rule": RULE, "low.gamma": GAMMA}[name] for name in params},
                user_attrs={"accuracy": curve(value), "composite": composite(params["low.rule"], gamma)},
                system_attrs=system,
            )
        )
    stopped = {"accuracy": curve(0.1), "composite": composite("zplus"), "samples": 40}
    study.add_trial(create_trial(state=TrialState.PRUNED, user_attrs=stopped))
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"error": "relevance of layer fc is not finite"}))


def finish(study: optuna.Study) -> None:
    """What a run of today adds: counts of samples, units, scores on the holdout, and of trials scored again."""
    samples = {name: {"count": count, "hash": "x"} for name, count in (("search", 100), ("holdout", 50))}
    mark = {**study.user_attrs["fingerprint"], "samples": samples, "classes": ["0", "1"]}
    study.set_user_attr("fingerprint", mark)
    study.set_user_attr("config", {"trials": 24, "seed": 3, "objective": "auc", "schedule": ["oneshot"]})
    study.set_user_attr(UNITS, {"conv": 4, "fc": 4})
    scores = {0: 0.28, 1: 0.2, 20: 0.35, 21: 0.33}
    study.set_user_attr("holdout", {str(n): {"auc": auc, "accuracy": curve(auc)} for n, auc in scores.items()})
    again = {"21": {"auc": 0.3, "on": "50 other images"}, "20": {"auc": 0.4, "on": "50 other images"}}
    study.set_user_attr("rescored", again)


@pytest.fixture
def old_study(tmp_path: Path) -> optuna.Study:
    """As an early version left it."""
    study = optuna.create_study(study_name="toy", storage=open_storage(str(tmp_path / "a.db")), direction="maximize")
    fill(study)
    return study


@pytest.fixture
def finished_study(old_study: optuna.Study) -> optuna.Study:
    """As a run of today leaves it. Trial 20 is the best, after scoring again; trial 21 was the search's."""
    finish(old_study)
    return old_study
