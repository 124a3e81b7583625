"""A study in its database: whose it is, and when another may take its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from pxp_optimize.optimize import UserError
from pxp_optimize.optimize.search.owners import OWNER, own_mark, started_at
from pxp_optimize.optimize.study.opening import check_study, never_began, open_study
from pxp_optimize.studies.storage import open_storage

FIRST, SECOND = {"model": "toy", "image": {"size": 224}}, {"model": "toy", "image": {"size": 32}}


@pytest.fixture(scope="module")
def gone() -> dict:
    """The mark of a process that has ended."""
    code = "from pxp_optimize.optimize.search.owners import own_mark; import json; print(json.dumps(own_mark()))"
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "a.db"))


def begun(storage, owner: dict | None, state: TrialState = TrialState.WAITING) -> optuna.Study:
    """A study with the first settings, whose second trial nobody has begun."""
    study = open_study(storage, "mine", FIRST, {"rates": [0.0]})
    study.add_trial(create_trial(state=state, user_attrs={} if owner is None else {OWNER: owner}))
    study.add_trial(create_trial(state=TrialState.WAITING))
    return study


@pytest.mark.parametrize("state", [TrialState.WAITING, TrialState.RUNNING])
def test_a_study_that_was_stopped_before_its_first_trial_had_ended_gives_way(storage, gone, state):
    study = begun(storage, gone, state)
    assert never_began(study)
    assert check_study(storage, "mine", FIRST) is not None  # with its own settings it goes on
    assert check_study(storage, "mine", SECOND) is None
    assert optuna.get_all_study_names(storage) == ["mine"]  # looking changes nothing
    opened = open_study(storage, "mine", SECOND, {"rates": [0.0]})
    assert opened.trials == []
    assert opened.user_attrs["fingerprint"] == SECOND


def test_another_objective_takes_its_place_too(storage, gone):
    begun(storage, gone)
    opened = open_study(storage, "mine", FIRST, {"config": {"objective": "auc,macs"}}, ("auc", "macs"))
    assert len(opened.directions) == 2


def test_what_this_process_has_stopped_is_left(storage):
    assert never_began(begun(storage, own_mark()))


@pytest.mark.parametrize(
    ("owner", "state"),
    [
        ({"host": "elsewhere", "pid": 1, "started": "1"}, TrialState.WAITING),  # of another machine nothing is known
        (None, TrialState.WAITING),  # which another process may have put there just now
        ("alive", TrialState.RUNNING),
        ("gone", TrialState.FAIL),
    ],
)
def test_a_study_that_may_be_in_use_or_has_a_finished_trial_stays(storage, gone, owner, state):
    parent = os.getppid()
    marks = {"alive": {**own_mark(), "pid": parent, "started": started_at(parent)}, "gone": gone}
    begun(storage, marks[owner] if isinstance(owner, str) else owner, state)
    with pytest.raises(UserError, match="made with other settings"):
        open_study(storage, "mine", SECOND, {"rates": [0.0]})
    assert optuna.load_study(study_name="mine", storage=storage).user_attrs["fingerprint"] == FIRST
