"""A study: created or continued, and run until it has its number of finished trials.

A trial that was cut off, by Ctrl-C or with its process, goes back into the queue with its number. Since every
draw depends on the trial's number and the finished trials only (`samplers.make_sampler`), a study that was
interrupted has in the end the same trials as one that was not.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import Trial, TrialState

from ...attribution import Composite
from ...pruning import NotFinite
from ...studies import internals
from ...studies.best import AUC, UNSEEN, stored_score
from ...studies.errors import UserError
from ...studies.report import title
from ...studies.signals import stop_if_asked
from ...studies.steps import STEPS
from ..evaluation.candidate import Pruning, candidate, keep_candidate, pruning_of
from ..evaluation.faithfulness import Faithful
from ..evaluation.memory import OutOfMemory
from ..evaluation.similarity import nearest
from ..evaluation.task import Unseen
from .owners import Silence, signs_of_life
from .pruners import Race, Stopper
from .queue import (
    drop_doubled,
    drop_waiting,
    enqueue_composites,
    enqueue_next,
    given_params,
    has_been_taken,
    has_room,
    is_waiting,
    next_trial,
    requeue_own,
    requeue_stale,
)
from .space import Space
from .status import FINISHED, SearchStatus, count_finished, standing
from .view import is_seen, view

MAX_FAILURES = 10
"""How many trials in a row may fail before the search gives up."""
PAUSES = (0.01, 1.0)
"""Seconds to wait at first, and at most, before another look at what other processes have finished."""


@runtime_checkable
class Result(Protocol):
    """What a trial's evaluation has (`evaluate.Evaluation`). seconds: by step; auc: in [0, 1]."""

    @property
    def accuracy(self) -> list[float]: ...
    @property
    def auc(self) -> float: ...
    @property
    def seconds(self) -> dict[str, float]: ...
    @property
    def ranking_hash(self) -> str: ...


@runtime_checkable
class Raced(Result, Protocol):
    """What an evaluation in chunks has besides. chunks: AUC of each one seen. steps: see `similarity.pack`."""

    @property
    def chunks(self) -> list[float]: ...
    @property
    def samples(self) -> int: ...
    @property
    def stopped(self) -> bool: ...
    @property
    def steps(self) -> str: ...


Evaluate = Callable[..., Result]
"""Called with a composite or a `Candidate`; in a race also with what says when to stop (`curve.Stop`); by the keyword
`unseen` with other samples to measure it on, where there are any."""
Watch = Callable[[SearchStatus, str], None]


def run_search(
    study: Study,
    space: Space,
    evaluate: Evaluate,
    *,
    trials: int,
    timeout: float | None = None,
    start_from: Mapping[str, Composite] | None = None,
    known: Mapping[str, Composite] | None = None,
    queue: Sequence[Mapping[str, Any]] = (),
    watch: Watch | None = None,
    race: Race | None = None,
    queue_only: bool = False,
    alone: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    unseen: Callable[[Study, Trial], Sequence[Unseen]] | None = None,
    keep: Callable[[Study, Trial], object] | None = None,
    lag: int = 1,
    since: int | None = None,
    fixed: Mapping[str, Composite] | None = None,
) -> None:
    """Run trials, the fixed composites first, until the study has `trials` finished ones.

    Args:
        study: with its sampler set. Several processes may run the same one, and finish no more than `trials` of it.
        space: what to propose.
        evaluate: what a composite is worth. NotFinite (relevance that is not finite, or zero everywhere) and
            OutOfMemory (with a single image) fail the trial, and the search goes on.
        trials: finished trials to reach, those that are there included: complete ones, and stopped ones.
        timeout: start no trial after this many seconds.
        start_from: composites to try after the fixed ones, by name.
        known: more of them, each tried in its turn, so that none is left waiting when the study is done.
        queue: parameters to try, one after the other, after `start_from` and before the sampler proposes any.
        watch: told after each trial.
        race: whether trials are stopped, by the study's pruner; None for never.
        queue_only: end when nothing is left in the queue, whatever the number of trials.
        alone: keeps other processes from the queue while this one adds to it (`storage.alone`).
        unseen: which samples a trial is measured on besides, since it may be one that is reported. What comes of it
            is kept apart (`best.UNSEEN`), for `score_holdout` and `rescore`: the search goes on as without.
        fixed: the composites to try first, by name; None for the space's.
        keep: called with each trial that has a curve, before it is told its value: what is then put with it stays.
        lag: how far back the trials lie that a trial sees (`view.lag_of`), the sampler's.
        since: how many trials the study had when the run began that this process takes part in.

    Raises:
        UserError: too many trials failed one after another.
        CompositeError: the space does not fit the model.
        KeyboardInterrupt: as raised by Ctrl-C; the trial in flight is back in the queue.
    """
    started = time.monotonic()
    silence = Silence()
    since = len(study.get_trials(deepcopy=False)) if since is None else since
    with alone():
        requeue_stale(study, silence)
        drop_waiting(study, space)
        enqueue_composites(study, space, space.fixed_composites() if fixed is None else fixed, "fixed")
        enqueue_composites(study, space, start_from or {}, "from")
        drop_doubled(study)
    pause = PAUSES[0]
    while count_finished(study) < trials:
        stop_if_asked()
        check_failures(study, since)
        if timeout is not None and time.monotonic() - started >= timeout:
            break
        try:
            with alone():
                requeue_stale(study, silence)
                room = has_room(study, trials)  # else what is put into the queue would stay there
                if room and not is_waiting(study):
                    if not enqueue_next(study, queue):
                        enqueue_composites(study, space, known or {}, "known", most=1)
                    drop_doubled(study)
                if room and queue_only and not is_waiting(study):
                    break
                trial = next_trial(study, trials, lag)
            if trial is None:
                time.sleep(pause)
                pause = min(2 * pause, PAUSES[1])
                continue
            pause = PAUSES[0]
            with signs_of_life(study, trial):
                outcome = _run_trial(study, trial, space, evaluate, race, unseen, keep, lag)
        except UpdateFinishedTrialError:  # this process was stopped for so long that another one ran its trial
            continue
        except BaseException as error:
            with contextlib.suppress(Exception):  # else whoever goes on finds that this process has ended
                # Ctrl-C is no sign that the trial is at fault; anything else may be.
                requeue_own(study, blame=not isinstance(error, KeyboardInterrupt))
            raise
        if watch is not None and outcome is not None:
            watch(standing(study, trials), f"{title(trial)}, {_told(trial, outcome)}")
    check_failures(study, since)


def check_failures(study: Study, since: int) -> None:
    """End a search in which nothing works.

    since: the number of the first trial of this run.

    Raises:
        UserError: the last trials that ended, more than a few, all failed; with the reasons.
    """
    ended = [t for t in study.get_trials(deepcopy=False) if t.number >= since and t.state.is_finished()][-MAX_FAILURES:]
    if len(ended) < MAX_FAILURES or any(trial.state != TrialState.FAIL for trial in ended):
        return
    reasons = Counter(str(trial.user_attrs.get("error", "its process ended")) for trial in ended)
    last = str(ended[-1].user_attrs.get("error", "its process ended"))
    others = [f"{count} since {reason}" for reason, count in reasons.most_common() if reason != last]
    told = f"; of the others {', '.join(others)}" if others else ""
    raise UserError(f"{len(ended)} trials in a row failed, the last one since {last}{told}")


def _told(trial: Trial, outcome: Result | NotFinite | OutOfMemory) -> str:
    """What became of a trial, in a few words."""
    if isinstance(outcome, (NotFinite, OutOfMemory)):
        return f"failed, {outcome}"
    pruning = pruning_of(trial)
    area = getattr(outcome, "area", None)
    score = f"AUC {outcome.auc:.4f}" if area is None else f"area {area:.4f}, AUC {outcome.auc:.4f}"
    if isinstance(outcome, Faithful):
        score = ", ".join([f"SRG {outcome.auc:.4f}", *(f"{value:.4f}" for value in outcome.values[1:])])
    text = score + (f" ({pruning})" if pruning else "")
    if isinstance(outcome, Raced) and outcome.stopped:
        text = f"stopped at {text} after {outcome.samples} samples"
    like = trial.user_attrs.get("like")
    if like:
        text += f", like trial {like['trial']} (rank correlation {like['correlation']:.4f})"
    return text


def _run_trial(
    study: Study,
    trial: Trial,
    space: Space,
    evaluate: Evaluate,
    race: Race | None,
    unseen: Callable[[Study, Trial], Sequence[Unseen]] | None,
    keep: Callable[[Study, Trial], object] | None,
    lag: int,
) -> Result | NotFinite | OutOfMemory:
    """What a trial gave, which the study now has; of a failed one the error that failed it.

    Raises:
        UpdateFinishedTrialError: another process has it, or has finished it.
    """
    seen = view(study, lambda other: is_seen(other, trial, lag))
    composite, pruning = _proposed(trial, space)
    keep_candidate(trial, composite, pruning)
    method = candidate(composite, pruning)
    stop = None if race is None else race.stopper(study, trial, lag)
    others = {} if unseen is None else {"unseen": unseen(seen, trial)}
    try:
        result = evaluate(method, *([] if stop is None else [stop]), **others)
    except (NotFinite, OutOfMemory) as error:
        _check_own(study, trial)
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=TrialState.FAIL)
        return error
    _check_own(study, trial)
    keep_measured(trial, result)
    trial.set_user_attr("ranking_hash", result.ranking_hash)
    if keep is not None:
        keep(study, trial)
    if isinstance(result, Raced):
        _record_race(study, seen, trial, result, race, stop)
        if result.stopped:
            study.tell(trial, state=TrialState.PRUNED)
            return result
    scores: Mapping[str, Any] = getattr(result, "unseen", {})
    if scores:
        kept = {name: stored_score(score) for name, score in scores.items()}
        internals.set_system_attr(study, trial, UNSEEN, kept)
    costs, beyond = (list(getattr(result, name, ())) for name in ("costs", "beyond"))
    for name, values in (("costs", costs), ("beyond", beyond)):
        if values:
            trial.set_user_attr(name, values)
    if isinstance(result, Faithful):
        study.tell(trial, result.values)
    elif len(study.directions) > 1:
        # rounded, or one of two equal trials would beat the other
        study.tell(trial, [round(value, 9) for value in (result.auc, getattr(result, "other", 0.0))])
    elif (area := getattr(result, "area", None)) is not None:
        trial.set_user_attr(AUC, result.auc)
        study.tell(trial, area)
    else:
        study.tell(trial, result.auc)
    return result


def keep_measured(trial: Trial, result: Result) -> None:
    """Notes with a trial what it measured, besides its values."""
    trial.set_user_attr("accuracy", list(result.accuracy))
    if isinstance(result, Faithful):
        for name, value in result.kept().items():
            trial.set_user_attr(name, value)
    trial.set_user_attr("seconds", dict(result.seconds))


def _check_own(study: Study, trial: Trial) -> None:
    if has_been_taken(study, trial):
        raise UpdateFinishedTrialError(f"trial {trial.number} is another process's")


def _record_race(
    study: Study, seen: Study, trial: Trial, result: Raced, race: Race | None, stopper: Stopper | None
) -> None:
    """What is kept of a trial besides its curve: its chunks, and which earlier one it is like."""
    trial.set_user_attr("chunks", list(result.chunks))
    trial.set_user_attr("samples", result.samples)
    if race is not None:
        race.close(study, trial, result.chunks, stopper, result.auc if result.stopped else None)
    finished = seen.get_trials(deepcopy=False, states=FINISHED)
    pruning = pruning_of(trial)  # the same ranking with another repair is another thing
    others = {
        other.number: other.system_attrs[STEPS]
        for other in finished
        if STEPS in other.system_attrs and pruning_of(other) == pruning
    }
    like = nearest(result.steps, others) if result.steps else None
    if like is not None:
        trial.set_user_attr("like", {"trial": like[0], "correlation": round(like[1], 6)})
    if result.steps:
        internals.set_system_attr(study, trial, STEPS, result.steps)


def _proposed(trial: Trial, space: Space) -> tuple[Composite, Pruning | None]:
    """What a trial was given when it was put into the queue, or else what the sampler proposes."""
    params = trial.user_attrs.get("given")
    if params is None:
        return space.suggest(trial), space.suggest_pruning(trial)
    composite = Composite.from_dict(trial.user_attrs["composite"])
    # with the parameters that were found for it then, unless the study goes on in another space
    if params and params == given_params(space, composite):
        space.suggest(trial)
        space.suggest_pruning(trial)
    return composite, space.known_pruning()
