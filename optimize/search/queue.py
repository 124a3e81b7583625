"""What waits to be tried: known composites, a grid's next, and trials that were cut off.

A trial that was cut off, by Ctrl-C or with its process, goes back into the queue with its number.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from ...attribution import Composite, CompositeError
from ...studies import internals
from .space import Space

MAX_INTERRUPTIONS = 3
"""How often a trial may take its process down before it is taken for the cause, and failed."""


def is_waiting(study: Study) -> bool:
    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def next_trial(study: Study) -> Trial:
    """A trial to run: from the queue where there is one."""
    # Signed while it waits, so that a trial that runs always has an owner, whenever this process is killed.
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    if waiting:
        with contextlib.suppress(UpdateFinishedTrialError):  # another process was faster, and is done with it
            internals.set_user_attr(study, waiting[0], "owner", own_mark())
    else:
        study.enqueue_trial({}, user_attrs={"owner": own_mark()})
    trial = study.ask()
    if trial.user_attrs.get("owner") != own_mark():  # another process was faster, and this is the next one
        trial.set_user_attr("owner", own_mark())
    return trial


def given_params(space: Space, composite: Composite) -> dict[str, Any] | None:
    try:
        return space.params_of(composite)
    except CompositeError:
        return None


def enqueue_composites(
    study: Study, space: Space, composites: Mapping[str, Composite], mark: str, most: int | None = None
) -> None:
    """Put composites into the queue that no trial has yet (at `most` so many), each with its name as the user
    attribute `mark`.

    A trial keeps its composite as it is, since the space may hold one like it only, or none.
    """
    # one whose process was stopped again and again is given another chance
    trials = [trial for trial in study.get_trials(deepcopy=False) if not _is_given_up(trial)]
    names = {trial.user_attrs.get(mark) for trial in trials} if mark == "fixed" else set()
    tried = [trial.user_attrs["composite"] for trial in trials if "composite" in trial.user_attrs]
    new = {
        name: composite
        for name, composite in composites.items()
        if name not in names and (mark == "fixed" or composite.to_dict() not in tried)
    }
    for name, composite in itertools.islice(new.items(), most):
        params = given_params(space, composite) or {}
        attrs = {mark: name, "given": params, "composite": composite.to_dict()}
        study.enqueue_trial(params, user_attrs=attrs)


def enqueue_next(study: Study, queue: Sequence[Mapping[str, Any]]) -> bool:
    """Put the first parameters into the queue that no trial has; whether there were any. (One at a time: a study that
    goes on in another way has none left over.)"""
    if not queue:
        return False
    # what a trial is to have first: one that has just begun has a part of it
    known = [trial.system_attrs.get("fixed_params") or trial.params for trial in study.get_trials(deepcopy=False)]
    following = next((dict(params) for params in queue if dict(params) not in known), None)
    if following is not None:
        study.enqueue_trial(following)
    return following is not None


def drop_waiting(study: Study, space: Space) -> None:
    """Fail what a grid of another space left in the queue with choices that this space lacks."""
    choices = {name: of for name, of in space.parameters().items() if isinstance(of, tuple)}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        given = {} if "given" in trial.user_attrs else trial.system_attrs.get("fixed_params", {})
        if any(name in choices and value not in choices[name] for name, value in given.items()):
            internals.set_user_attr(study, trial, "error", "it was left over from another space")
            internals.set_state(study, trial, TrialState.FAIL)


def requeue_stale(study: Study) -> None:
    """Put trials back into the queue whose process is provably gone.

    A trial of a process on another machine is left alone: it does no harm, and its process may be at work.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get("owner", {})
        if owner.get("host") == platform.node() and owner != own_mark() and not _alive(owner):
            _requeue(study, trial, blame=True)


def requeue_own(study: Study, *, blame: bool) -> None:
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get("owner") == own_mark():
            _requeue(study, trial, blame=blame)


def _requeue(study: Study, trial: FrozenTrial, *, blame: bool) -> None:
    count = trial.user_attrs.get("interruptions", 0) + blame
    internals.set_user_attr(study, trial, "interruptions", count)
    given_up = count >= MAX_INTERRUPTIONS
    if given_up:
        internals.set_user_attr(study, trial, "error", f"its process ended {count} times while it ran")
    internals.set_state(study, trial, TrialState.FAIL if given_up else TrialState.WAITING)


def _is_given_up(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and trial.user_attrs.get("interruptions", 0) >= MAX_INTERRUPTIONS


def own_mark() -> dict[str, Any]:
    """Who runs a trial. The start time tells this process from a later one with the same id."""
    pid = os.getpid()
    return {"host": platform.node(), "pid": pid, "started": started_at(pid)}


def started_at(pid: int) -> str | None:
    """When a process started, or None if it is gone.

    On Linux in the kernel's own ticks since the machine started: psutil adds those to the time of day at which it
    did, which changes when somebody sets the clock, and a process that runs would be taken for another.
    """
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]  # the name before ")" may hold spaces; see proc_pid_stat(5)
    with contextlib.suppress(psutil.Error):
        return str(psutil.Process(pid).create_time())
    return None


def _alive(owner: Mapping[str, Any]) -> bool:
    return psutil.pid_exists(owner["pid"]) and started_at(owner["pid"]) == owner["started"]
