"""A study: created or continued, and run until it has its number of finished trials.

A trial that was cut off, by Ctrl-C or with its process, goes back into the queue with its number. Since every
draw depends on the trial's number and the finished trials only (`samplers.make_sampler`), a study that was
interrupted has in the end the same trials as one that was not.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from ...attribution import Composite, CompositeError
from ...pruning import NotFinite, area_over
from ...studies.best import UNSEEN, auc_of, best_trial, check_trials, kept_score, search_best
from ...studies.errors import UserError
from ...studies.fingerprint import Fingerprint, difference
from ...studies.report import fixed_trials, name_of
from ..commands.console import Standing
from ..evaluation.candidate import Pruning, candidate, candidate_of, keep_candidate, pruning_of
from ..evaluation.phases import HOLDOUT, Phases
from ..evaluation.similarity import nearest
from ..evaluation.task import Curve, Unseen
from .pruners import Race, Stopper
from .space import Space

MAX_INTERRUPTIONS = 3
"""How often a trial may take its process down before it is taken for the cause, and failed."""
MAX_FAILURES = 10
"""How many trials in a row may fail before the search gives up."""


@runtime_checkable
class Result(Protocol):
    """What a trial's evaluation has (`trial.Evaluation`). seconds: by step; auc: in [0, 1]."""

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
    """What an evaluation in chunks has besides. chunks: AUC of each one seen. steps: see `likeness.pack`."""

    @property
    def chunks(self) -> list[float]: ...
    @property
    def samples(self) -> int: ...
    @property
    def stopped(self) -> bool: ...
    @property
    def steps(self) -> str: ...


Evaluate = Callable[..., Result]
"""Called with a composite or a `Candidate`; in a race also with what says when to stop (`pruners.Stop`); by the keyword
`unseen` with other samples to measure it on, where there are any."""
Watch = Callable[[Standing, str], None]


def check_study(
    storage: optuna.storages.BaseStorage, name: str, fingerprint: Fingerprint, objective: str = "auc"
) -> Study | None:
    """The study of this name, or None where there is none. Writes nothing.

    Raises:
        UserError: a study of this name has trials that cannot be compared with those to come; every
            difference is named.
    """
    if name not in optuna.get_all_study_names(storage):
        return None
    study = optuna.load_study(study_name=name, storage=storage)
    stored = study.user_attrs.get("fingerprint")
    maximized = all(direction == StudyDirection.MAXIMIZE for direction in study.directions)
    if stored is None and (study.get_trials(deepcopy=False) or not maximized):
        raise UserError(f"study {name!r} was not made by pxp-optimize: give another name with --study")
    check_trials(study)
    if stored is not None and (found := difference(stored, fingerprint)):
        seed = study.user_attrs.get("config", {}).get("seed")
        drawn = f"; its --seed is {seed}" if seed is not None and any("samples" in key for key in found) else ""
        raise UserError(
            f"study {name!r} was made with other settings ({'; '.join(found)}{drawn}): "
            "use those again, or give another name with --study"
        )
    # a study that was cut off while it was made has directions and nothing else
    before = study.user_attrs.get("config", {}).get("objective", "auc" if len(study.directions) == 1 else "auc,...")
    if len(study.directions) != len(objective.split(",")) or (stored is not None and before != objective):
        raise UserError(
            f"study {name!r} was made with --objective {before}, not {objective}: "
            "give that, or another name with --study"
        )
    return study


def check_space(study: Study, space: Space, name: str) -> None:
    """Refuse a space that gives a parameter of a study other choices, which Optuna does not allow. Writes nothing.

    name: of the space, for the message. A range may be another one.

    Raises:
        UserError: the first such parameter.
    """
    parameters = space.parameters()
    for trial in study.get_trials(deepcopy=False):
        for key, stored in trial.distributions.items():
            if key not in parameters:
                continue
            before, now = (
                ", ".join(map(str, choices)) if isinstance(choices, tuple) else "numbers"
                for choices in (getattr(stored, "choices", None), parameters[key])
            )
            if before != now:
                raise UserError(
                    f"study {study.study_name!r} chose {key} from {before}, and --space {name} offers {now}: "
                    "give another name with --study, or the space it was made with (by an older version, maybe)"
                )


def open_study(
    storage: optuna.storages.BaseStorage,
    name: str,
    fingerprint: Fingerprint,
    attrs: Mapping[str, Any],
    objective: str = "auc",
) -> Study:
    """The study to run, created if there is none, with its attributes (`rates`, `config`, `layers`, ...).

    objective: one of `config.OBJECTIVES`.

    Raises:
        UserError: as `check_study`; nothing has been written then.
    """
    study = check_study(storage, name, fingerprint, objective)
    if study is None:
        names = ["AUC", *(f"AUC over {cost}" for cost in objective.split(",")[1:])]
        directions = [StudyDirection.MAXIMIZE] * len(names)
        study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(names)  # what plots and the dashboard call them
    for key, value in {**attrs, "fingerprint": fingerprint}.items():
        if study.user_attrs.get(key) != value:
            study.set_user_attr(key, value)
    return study


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
) -> None:
    """Run trials, the fixed composites first, until the study has `trials` finished ones.

    Args:
        study: with its sampler set. Several processes may run the same one.
        space: what to propose.
        evaluate: what a composite is worth. NotFinite (relevance that is not finite) fails the trial, and
            the search goes on.
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

    Raises:
        UserError: too many trials failed one after another.
        CompositeError: the space does not fit the model.
        KeyboardInterrupt: as raised by Ctrl-C; the trial in flight is back in the queue.
    """
    started = time.monotonic()
    with alone():
        _requeue_stale(study)
        _drop_waiting(study, space)
        _enqueue_composites(study, space, space.fixed_composites(), "fixed")
        _enqueue_composites(study, space, start_from or {}, "from")
    failures = 0
    while count_finished(study) < trials:
        if timeout is not None and time.monotonic() - started >= timeout:
            break
        try:
            with alone():
                if not _is_waiting(study) and not _enqueue(study, queue):
                    _enqueue_composites(study, space, known or {}, "known", most=1)
                if queue_only and not _is_waiting(study):
                    break
                trial = _next_trial(study)
            outcome = _run_trial(study, trial, space, evaluate, race, unseen)
        except BaseException as error:
            # Ctrl-C is no sign that the trial is at fault; anything else may be.
            _requeue_own(study, blame=not isinstance(error, KeyboardInterrupt))
            raise
        failed = isinstance(outcome, NotFinite)
        failures = failures + 1 if failed else 0
        if failures >= MAX_FAILURES:
            raise UserError(f"{failures} trials in a row failed, the last one since {outcome}")
        if watch is not None:
            name = name_of(trial) or f"no. {trial.number}"
            watch(standing(study, trials), f"{name}, {_told(trial, outcome)}")


def _is_waiting(study: Study) -> bool:
    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def _told(trial: Trial, outcome: Result | NotFinite) -> str:
    """What became of a trial, in a few words."""
    if isinstance(outcome, NotFinite):
        return f"failed, {outcome}"
    pruning = pruning_of(trial)
    text = f"AUC {outcome.auc:.4f}" + (f" ({pruning})" if pruning else "")
    if isinstance(outcome, Raced) and outcome.stopped:
        text = f"stopped at {text} after {outcome.samples} samples"
    like = trial.user_attrs.get("like")
    if like:
        text += f", like no. {like['trial']} (rank correlation {like['correlation']:.4f})"
    return text


def _next_trial(study: Study) -> Trial:
    """A trial to run: from the queue where there is one."""
    # Signed while it waits, so that a trial that runs always has an owner, whenever this process is killed.
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    if waiting:
        with contextlib.suppress(UpdateFinishedTrialError):  # another process was faster, and is done with it
            study._storage.set_trial_user_attr(waiting[0]._trial_id, "owner", _owner())
    else:
        study.enqueue_trial({}, user_attrs={"owner": _owner()})
    trial = study.ask()
    if trial.user_attrs.get("owner") != _owner():  # another process was faster, and this is the next one
        trial.set_user_attr("owner", _owner())
    return trial


def _run_trial(
    study: Study,
    trial: Trial,
    space: Space,
    evaluate: Evaluate,
    race: Race | None,
    unseen: Callable[[Study, Trial], Sequence[Unseen]] | None,
) -> Result | NotFinite:
    """What a trial gave, which the study now has; of a failed one the error that failed it."""
    composite, pruning = _proposed(trial, space)
    keep_candidate(trial, composite, pruning)
    method = candidate(composite, pruning)
    stop = None if race is None else race.stopper(study, trial)
    others = {} if unseen is None else {"unseen": unseen(study, trial)}
    try:
        result = evaluate(method, *([] if stop is None else [stop]), **others)
    except NotFinite as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=TrialState.FAIL)
        return error
    trial.set_user_attr("accuracy", list(result.accuracy))
    trial.set_user_attr("seconds", dict(result.seconds))
    trial.set_user_attr("ranking_hash", result.ranking_hash)
    if isinstance(result, Raced):
        _record_race(study, trial, result, race, stop)
        if result.stopped:
            study.tell(trial, state=TrialState.PRUNED)
            return result
    scores: Mapping[str, Any] = getattr(result, "unseen", {})
    if scores:
        kept = {name: {"auc": score.auc, "accuracy": list(score.accuracy)} for name, score in scores.items()}
        study._storage.set_trial_system_attr(trial._trial_id, UNSEEN, kept)
    costs = list(getattr(result, "costs", ()))
    if costs:
        trial.set_user_attr("costs", costs)
    study.tell(trial, [result.auc, area_over(costs, result.accuracy)] if len(study.directions) > 1 else result.auc)
    return result


STEPS = "pxp:steps"


def _record_race(study: Study, trial: Trial, result: Raced, race: Race | None, stopper: Stopper | None) -> None:
    """What is kept of a trial besides its curve: its chunks, and which earlier one it is like."""
    trial.set_user_attr("chunks", list(result.chunks))
    trial.set_user_attr("samples", result.samples)
    if race is not None:
        race.close(study, trial, result.chunks, stopper, result.auc if result.stopped else None)
    finished = study.get_trials(deepcopy=False, states=FINISHED)
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
        study._storage.set_trial_system_attr(trial._trial_id, STEPS, result.steps)


FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def _proposed(trial: Trial, space: Space) -> tuple[Composite, Pruning | None]:
    """What a trial was given when it was put into the queue, or else what the sampler proposes."""
    params = trial.user_attrs.get("given")
    if params is None:
        return space.suggest(trial), space.suggest_pruning(trial)
    composite = Composite.from_dict(trial.user_attrs["composite"])
    # with the parameters that were found for it then, unless the study goes on in another space
    if params and params == _params_of(space, composite):
        space.suggest(trial)
        space.suggest_pruning(trial)
    return composite, space.known_pruning()


def _params_of(space: Space, composite: Composite) -> dict[str, Any] | None:
    try:
        return space.params_of(composite)
    except CompositeError:
        return None


def count_complete(study: Study) -> int:
    """How many trials of a study are complete."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def count_finished(study: Study) -> int:
    """How many trials of a study are complete, or were stopped since they were worse."""
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def known_curves(study: Study) -> dict[str, Curve]:
    """The curve of every ranking that a study has measured on all samples, by the ranking's hash."""
    count = sum(study.user_attrs.get("chunks", ()))  # 0 where a study kept none
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {
        trial.user_attrs["ranking_hash"]: Curve(
            list(trial.user_attrs["accuracy"]),
            list(trial.user_attrs.get("chunks", ())),
            trial.user_attrs.get("samples", count),
            list(trial.user_attrs.get("costs", ())),
        )
        for trial in complete
        if "ranking_hash" in trial.user_attrs
    }


def keep_phases(study: Study, phases: Phases) -> None:
    """Adds what a run took to the study's attribute `phases`: "seconds" and "processor" of each phase of all runs."""
    study.set_user_attr("phases", phases.added_to(study.user_attrs.get("phases", {})))


def standing(study: Study, trials: int) -> Standing:
    """Where a study stands on its way to this many finished trials."""
    done, complete = count_finished(study), count_complete(study)
    if not complete:
        return Standing(done, trials, stopped=done)
    best = search_best(study)
    fixed = [(name, auc_of(trial)) for name, trial in fixed_trials(study).items() if trial.values]
    fixed_name, fixed_value = max(fixed, key=lambda item: item[1], default=("", None))
    best_name = name_of(best) or f"no. {best.number}"
    return Standing(done, trials, auc_of(best), best_name, fixed_value, fixed_name, done - complete)


def score_holdout(study: Study, evaluate: Evaluate, advance: Callable[[int], None]) -> None:
    """Score the fixed composites and the best one (and the search's own best) on samples that nothing has seen.

    The scores become the study's attribute `holdout`, by trial number. What is there, or was measured on the trial's
    own networks, is not computed again.

    Args:
        evaluate: what a composite is worth on the holdout samples.
        advance: told after each composite.
    """
    scores: dict[str, Any] = dict(study.user_attrs.get("holdout", {}))
    for trial in [*fixed_trials(study).values(), *best_trials(study)]:
        if trial.state == TrialState.COMPLETE and str(trial.number) not in scores:
            kept = kept_score(trial, HOLDOUT)
            if kept is None:
                result = evaluate(candidate_of(trial))
                kept = {"auc": result.auc, "accuracy": list(result.accuracy)}
            scores[str(trial.number)] = kept
            study.set_user_attr("holdout", scores)
        advance(1)


def without_holdout(study: Study) -> list[FrozenTrial]:
    """The fixed composites' trials whose scores on the holdout samples a study has nowhere."""
    scores = study.user_attrs.get("holdout", {})
    complete = [trial for trial in fixed_trials(study).values() if trial.state == TrialState.COMPLETE]
    return [trial for trial in complete if str(trial.number) not in scores and kept_score(trial, HOLDOUT) is None]


def seconds_a_trial(study: Study) -> float:
    """The seconds that a complete trial took: the median of all; 0 where none is complete."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return (
        statistics.median(sum(trial.user_attrs.get("seconds", {}).values()) for trial in complete) if complete else 0.0
    )


def unpruned_accuracy(study: Study) -> float | None:
    """The accuracy of the unpruned network on the search samples, as the study's first complete trial has it."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return complete[0].user_attrs["accuracy"][0] if complete else None


def best_trials(study: Study) -> list[FrozenTrial]:
    """The best trial, and the search's own best where re-scoring said otherwise."""
    found = {trial.number: trial for trial in (best_trial(study), search_best(study))}
    return list(found.values())


def score_plain(
    study: Study, evaluate: Callable[[Composite], tuple[Result, Result]], advance: Callable[[int], None]
) -> None:
    """Score the best composite as the paper would use it: ranked once, nothing repaired.

    The scores become the study's attribute `plain`, by trial number.

    Args:
        evaluate: what a composite is worth so, on the search and on the holdout samples.
        advance: told when it is done.
    """
    best = best_trial(study)
    scores: dict[str, Any] = dict(study.user_attrs.get("plain", {}))
    if str(best.number) not in scores:
        search, holdout = evaluate(Composite.from_dict(best.user_attrs["composite"]))
        scores[str(best.number)] = {"auc": search.auc, "holdout_auc": holdout.auc, "accuracy": list(holdout.accuracy)}
        study.set_user_attr("plain", scores)
    advance(1)


def _enqueue_composites(
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
        params = _params_of(space, composite) or {}
        attrs = {mark: name, "given": params, "composite": composite.to_dict()}
        study.enqueue_trial(params, user_attrs=attrs)


def _enqueue(study: Study, queue: Sequence[Mapping[str, Any]]) -> bool:
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


def _drop_waiting(study: Study, space: Space) -> None:
    """Fail what a grid of another space left in the queue with choices that this space lacks."""
    choices = {name: of for name, of in space.parameters().items() if isinstance(of, tuple)}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        given = {} if "given" in trial.user_attrs else trial.system_attrs.get("fixed_params", {})
        if any(name in choices and value not in choices[name] for name, value in given.items()):
            study._storage.set_trial_user_attr(trial._trial_id, "error", "it was left over from another space")
            study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)


# -- trials that were cut off --------------------------------------------------------------------------


def _requeue_stale(study: Study) -> None:
    """Put trials back into the queue whose process is provably gone.

    A trial of a process on another machine is left alone: it does no harm, and its process may be at work.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get("owner", {})
        if owner.get("host") == platform.node() and owner != _owner() and not _alive(owner):
            _requeue(study, trial, blame=True)


def _requeue_own(study: Study, *, blame: bool) -> None:
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get("owner") == _owner():
            _requeue(study, trial, blame=blame)


def _requeue(study: Study, trial: FrozenTrial, *, blame: bool) -> None:
    storage = study._storage
    count = trial.user_attrs.get("interruptions", 0) + blame
    storage.set_trial_user_attr(trial._trial_id, "interruptions", count)
    given_up = count >= MAX_INTERRUPTIONS
    if given_up:
        storage.set_trial_user_attr(trial._trial_id, "error", f"its process ended {count} times while it ran")
    storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL if given_up else TrialState.WAITING)


def _is_given_up(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and trial.user_attrs.get("interruptions", 0) >= MAX_INTERRUPTIONS


def _owner() -> dict[str, Any]:
    """Who runs a trial. The start time tells this process from a later one with the same id."""
    pid = os.getpid()
    return {"host": platform.node(), "pid": pid, "started": _started(pid)}


def _started(pid: int) -> str | None:
    """When a process started, in the system's own unit; None where the system does not say (not Linux)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]  # the name before ")" may hold spaces; see proc_pid_stat(5)


def _alive(owner: Mapping[str, Any]) -> bool:
    if os.name == "nt":  # where os.kill would end the process; a trial that was cut off is lost there
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _started(owner["pid"]) == owner["started"]
