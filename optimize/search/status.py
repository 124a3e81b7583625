"""Where a study stands, in numbers."""

from __future__ import annotations

from optuna.study import Study
from optuna.trial import TrialState

from ...studies.best import auc_of, search_best
from ...studies.report import fixed_trials, name_of
from ..commands.console import Standing

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def count_complete(study: Study) -> int:
    """How many trials of a study are complete."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def count_finished(study: Study) -> int:
    """How many trials of a study are complete, or were stopped since they were worse."""
    return len(study.get_trials(deepcopy=False, states=FINISHED))


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
