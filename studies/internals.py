"""What of Optuna has no public way, in one place, each with the reason.

Optuna's storage is reached by `Study._storage` and a trial in it by `_trial_id`; both have kept these names since
version 1. Samplers and storages of other packages use them too.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Container
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial, TrialState


def set_system_attr(study: Study, trial: Trial | FrozenTrial, key: str, value: Any) -> None:
    """Keep something with a trial that neither samplers nor people read: user attributes are shown in the dashboard,
    and the public `set_system_attr` of trials is deprecated."""
    study._storage.set_trial_system_attr(trial._trial_id, key, value)


def set_study_attr(study: Study, key: str, value: Any) -> None:
    """The same of a study: `Study.set_system_attr` is deprecated."""
    study._storage.set_study_system_attr(study._study_id, key, value)


def study_attrs(study: Study) -> dict[str, Any]:
    """A study's system attributes: `Study.system_attrs` is deprecated."""
    return study._storage.get_study_system_attrs(study._study_id)


def set_user_attr(study: Study, trial: Trial | FrozenTrial, key: str, value: Any) -> None:
    """Note something about a trial that this process does not run: a `FrozenTrial` from a storage cannot be written."""
    study._storage.set_trial_user_attr(trial._trial_id, key, value)


def set_state(study: Study, trial: Trial | FrozenTrial, state: TrialState) -> None:
    """Put a trial that was cut off back into the queue, or fail one that waits: `Study.tell` takes running ones only,
    and no state but a final one.

    Raises:
        UpdateFinishedTrialError: another process has finished it.
    """
    study._storage.set_trial_state_values(trial._trial_id, state=state)


def stored(study: Study, trial: Trial | FrozenTrial) -> FrozenTrial:
    """A trial as the storage has it now: a running `Trial` has no public way to what it has reported."""
    return study._storage.get_trial(trial._trial_id)


def snapshot(study: Study) -> Study:
    """The study as it stands now, for what only reads: its trials and attributes are read from the storage once, where
    Optuna asks the storage whenever somebody asks the study. Nobody may change what it gives."""
    from optuna.study import Study

    trials, attrs = study.get_trials(deepcopy=False), study.user_attrs

    class Snapshot(Study):
        def __init__(self) -> None:
            vars(self).update(vars(study))

        @property
        def user_attrs(self) -> dict[str, Any]:
            return attrs

        def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
            found = [trial for trial in trials if states is None or trial.state in states]
            return copy.deepcopy(found) if deepcopy else found

    return Snapshot()


def begin(study: Study, trial: FrozenTrial) -> Trial | None:
    """This trial, which begins now; None if another process has begun it. `Study.ask` begins whichever waits first.

    Raises:
        UpdateFinishedTrialError: another process has finished it.
    """
    from optuna.trial import Trial, TrialState

    if not study._storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING):
        return None
    study._thread_local.cached_all_trials = None  # as `ask`: what samplers see is as of now
    return Trial(study, trial._trial_id)


def trial_of(study: Study, number: int) -> Trial:
    """A trial of this number to report to, of a study in memory: `Study.ask` makes new ones only."""
    from optuna.trial import Trial

    return Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def noted_trials(study: Study) -> set[int]:
    """The ids of the trials that have a note in the dashboard, which keeps all of them with the study and reads one at
    a time."""
    found = (re.fullmatch(r"dashboard:(\d+):note_ver", key) for key in study_attrs(study))
    return {int(match[1]) for match in found if match}


def note_target(study: Study, trial: FrozenTrial) -> Any:
    """What `optuna_dashboard.save_note` takes for a trial: it reads these three of a running `Trial`."""
    return SimpleNamespace(study=study, storage=study._storage, _trial_id=trial._trial_id)


def replace_storage(study: Study, other: Callable[[BaseStorage, int], Any]) -> None:
    """Put another object between a study and its storage: `optuna.load_study` takes Optuna's own classes as they are,
    and wraps some of them. other: makes it from the storage and the study's number there."""
    study._storage = other(study._storage, study._study_id)
