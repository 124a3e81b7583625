"""What a study keeps of its best trials besides their AUC: holdout scores, the plain way's, times."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ...attribution import Composite
from ...studies.best import best_trial, kept_score, search_best, stored_score
from ...studies.report import fixed_trials
from ..evaluation.candidate import candidate_of
from ..evaluation.phases import HOLDOUT, Phases
from ..evaluation.task import Curve
from ..search.loop import Evaluate, Result


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
            list(trial.user_attrs.get("beyond", ())),
        )
        for trial in complete
        if "ranking_hash" in trial.user_attrs
    }


def keep_phases(study: Study, phases: Phases) -> None:
    """Adds what a run took to the study's attribute `phases`: "seconds" and "processor" of each phase of all runs."""
    study.set_user_attr("phases", phases.added_to(study.user_attrs.get("phases", {})))


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
                kept = stored_score(result)
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
        scores[str(best.number)] = {
            "auc": search.auc,
            "holdout_auc": holdout.auc,
            "accuracy": list(holdout.accuracy),
            **_areas(search, holdout),
        }
        study.set_user_attr("plain", scores)
    advance(1)


def _areas(search: Result, holdout: Result) -> dict[str, Any]:
    """The areas over the cost, where that is what trials are judged by."""
    kept = stored_score(holdout)
    if "area" not in kept:
        return {}
    return {"area": stored_score(search)["area"], "holdout_area": kept["area"], "costs": kept["costs"]}
