"""What waits to be tried: known composites, a grid's next, and trials that were cut off.

A trial that was cut off, by Ctrl-C or with its process, goes back into the queue with its number.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from ...attribution import Composite, CompositeError
from ...studies import internals
from .owners import (
    BEAT,
    OWNER,
    Silence,
    give_sign,
    is_gone,
    is_in_hand,
    is_of_this_run,
    is_on_this_machine,
    new_sign,
    own_mark,
)
from .space import Space

MAX_INTERRUPTIONS = 3
"""How often a trial may take its process down before it is taken for the cause, and failed."""


def is_waiting(study: Study) -> bool:
    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def next_trial(study: Study, trials: int, lag: int = 1) -> Trial | None:
    """A trial to run: from the queue where there is one. None where there is none before another one has ended, since
    so many `trials` are finished or run, or since the next one is to see what comes of that (`may_start`)."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    if not may_start(study, waiting[0].number if waiting else len(study.get_trials(deepcopy=False)), trials, lag):
        return None
    if not waiting:
        _enqueue(study, {}, {})
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not waiting:  # another process was faster
            return None
    # Signed while it waits, so that a trial that runs always has an owner, whenever this process is killed: this one,
    # or another one that signed it as well and, as it does not run it, puts it back into the queue (`requeue_stale`).
    internals.set_user_attr(study, waiting[0], OWNER, own_mark())
    trial = internals.begin(study, waiting[0])
    if trial is None:
        return None
    if trial.user_attrs.get(OWNER) != own_mark():
        trial.set_user_attr(OWNER, own_mark())
    give_sign(study, trial)
    if _is_doubled(waiting[0], study.get_trials(deepcopy=False)):
        _fail_doubled(study, trial)
        return None
    if _number_before(study, trial.number) >= trials:  # where no lock keeps others from the queue
        internals.set_state(study, trial, TrialState.WAITING)
        return None
    return trial


def _enqueue(study: Study, params: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """As `Study.enqueue_trial`, with a sign of life from the first moment on, so that it counts once it runs."""
    system = {"fixed_params": dict(params), BEAT: new_sign()}
    study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=dict(attrs), system_attrs=system))


def has_room(study: Study, trials: int) -> bool:
    """Whether another trial may be put into the queue: fewer than `trials` are finished, run or wait."""
    return _number_before(study, len(study.get_trials(deepcopy=False))) < trials


def may_start(study: Study, number: int, trials: int, lag: int) -> bool:
    """Whether the trial of this number may begin.

    Not if there are `trials` before it that are finished, run or wait: so no more than that are ever finished, whoever
    takes which, since numbers are given once and a trial that has failed stays so. And not while one that it is to see
    runs (`view`), unless other commands work at the study too: then it sees what there is.
    """
    if _number_before(study, number) >= trials:
        return False
    running = [trial for trial in study.get_trials(deepcopy=False) if is_in_hand(trial)]
    return all(trial.number > number - lag for trial in running) or not all(map(is_of_this_run, running))


def _number_before(study: Study, number: int) -> int:
    """How many trials with lower numbers are finished, run or wait."""
    counted = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING)
    trials = (trial for trial in study.get_trials(deepcopy=False) if trial.number < number)
    return sum(trial.state in counted or is_in_hand(trial) for trial in trials)


def has_been_taken(study: Study, trial: Trial) -> bool:
    """Whether another process has taken a trial from this one, which it has heard nothing of for too long."""
    now = internals.stored(study, trial)
    return now.state != TrialState.RUNNING or now.user_attrs.get(OWNER) != own_mark()


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
        _enqueue(study, params, attrs)


def enqueue_next(study: Study, queue: Sequence[Mapping[str, Any]]) -> bool:
    """Put the first parameters into the queue that no trial has; whether there were any. (One at a time: a study that
    goes on in another way has none left over.)"""
    if not queue:
        return False
    # what a trial is to have first: one that has just begun has a part of it
    known = [trial.system_attrs.get("fixed_params") or trial.params for trial in study.get_trials(deepcopy=False)]
    following = next((dict(params) for params in queue if dict(params) not in known), None)
    if following is not None:
        _enqueue(study, following, {})
    return following is not None


def drop_waiting(study: Study, space: Space) -> None:
    """Fail what a grid of another space left in the queue with choices that this space lacks."""
    choices = {name: of for name, of in space.parameters().items() if isinstance(of, tuple)}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        given = {} if "given" in trial.user_attrs else trial.system_attrs.get("fixed_params", {})
        if any(name in choices and value not in choices[name] for name, value in given.items()):
            internals.set_user_attr(study, trial, "error", "it was left over from another space")
            internals.set_state(study, trial, TrialState.FAIL)


def drop_doubled(study: Study) -> None:
    """Fail what waits with a composite, or parameters, that another trial before it was given. Where no lock keeps
    others from the queue, or a server that begins anew has forgotten it, two processes may put the same into it. One
    that is taken before it is dropped is failed by who takes it (`next_trial`)."""
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state == TrialState.WAITING and _is_doubled(trial, trials):
            _fail_doubled(study, trial)


def _is_doubled(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether one of these before a trial was given the same, and has not failed."""
    given = _given(trial)
    before = (other for other in trials if other.number < trial.number)
    return bool(given) and any(other.state != TrialState.FAIL and _given(other) == given for other in before)


def _given(trial: FrozenTrial) -> Any:
    """What a trial was put into the queue with; nothing for one that the sampler proposes."""
    if "given" in trial.user_attrs:
        return trial.user_attrs["composite"], trial.user_attrs.get("fixed")
    return trial.system_attrs.get("fixed_params")


def _fail_doubled(study: Study, trial: Trial | FrozenTrial) -> None:
    with contextlib.suppress(UpdateFinishedTrialError):
        internals.set_user_attr(study, trial, "error", "another process had put the same into the queue")
        internals.set_state(study, trial, TrialState.FAIL)


def requeue_stale(study: Study, silence: Silence | None = None, *, blame: bool = True) -> None:
    """Put trials back into the queue whose process is provably gone, or has been silent for too long; and those of
    this one, which runs none now: it took them and has not heard so, since its server went away.

    blame: whether the trial may be at fault.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get(OWNER, {})
        if is_gone(owner) or owner == own_mark():
            _requeue(study, trial, blame=blame and owner != own_mark())
        elif silence is not None and not is_on_this_machine(owner) and silence.is_over(trial):
            _requeue(study, trial, blame=False)


def requeue_own(study: Study, *, blame: bool) -> None:
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get(OWNER) == own_mark():
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
