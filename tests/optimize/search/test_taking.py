"""Trials begin once, and those of a process that runs none go back into the queue."""

from __future__ import annotations

from pathlib import Path

import faults
from optuna.trial import TrialState
from pxp_optimize.optimize.search.owners import OWNER, own_mark
from pxp_optimize.optimize.search.queue import next_trial, requeue_stale
from pxp_optimize.studies import internals


def test_a_trial_begins_once(tmp_path: Path):
    study = faults.study_in(str(tmp_path / "a.db"))
    study.enqueue_trial({"low.rule": "zplus"})
    (waiting,) = study.trials
    trial = internals.begin(study, waiting)
    assert trial is not None and trial.suggest_categorical("low.rule", ["epsilon", "zplus"]) == "zplus"
    assert internals.begin(study, waiting) is None


def test_what_another_process_began_meanwhile_is_left_to_it(tmp_path: Path, monkeypatch):
    study = faults.study_in(str(tmp_path / "a.db"))
    begin = internals.begin

    def late(study, trial):
        begin(study, trial)
        internals.set_user_attr(study, trial, OWNER, {**own_mark(), "host": "another"})
        return begin(study, trial)

    monkeypatch.setattr(internals, "begin", late)
    assert next_trial(study, 5) is None
    requeue_stale(study)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]


def test_a_trial_that_was_taken_unheard_goes_back(tmp_path: Path):
    """Its server went away before it could answer."""
    study = faults.study_in(str(tmp_path / "a.db"))
    assert next_trial(study, 5) is not None
    requeue_stale(study)
    (trial,) = study.trials
    assert (trial.state, trial.user_attrs["interruptions"]) == (TrialState.WAITING, 0)
