"""Where a study stands, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import TrialState

from ...studies.best import heading_of, score_of, search_best
from ...studies.internals import snapshot
from ...studies.report import called, fixed_trials


@dataclass(frozen=True)
class SearchStatus:
    """Where a study stands. measure: what trials are judged by. best, fixed: the best of all and of the fixed
    composites, with what it is called.
    stopped: how many of those done were stopped early. after: what comes after the trials, in trials."""

    done: int
    total: int
    best: float | None = None
    best_name: str = ""
    fixed: float | None = None
    fixed_name: str = ""
    stopped: int = 0
    after: float = 0.0
    measure: str = "AUC"

    def __str__(self) -> str:
        if self.best is None:
            return f"no {self.measure} yet"
        text = f"best {self.measure} {self.best:.4f} ({self.best_name})"
        if self.fixed is not None and self.best_name != self.fixed_name:
            text += f", best fixed {self.fixed:.4f} ({self.fixed_name})"
        if self.stopped:
            text += f", {self.stopped} stopped early"
        return text


FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def count_complete(study: Study) -> int:
    """How many trials of a study are complete."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def count_finished(study: Study) -> int:
    """How many trials of a study are complete, or were stopped since they were worse."""
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def standing(study: Study, trials: int) -> SearchStatus:
    """Where a study stands on its way to this many finished trials."""
    study = snapshot(study)
    done, complete = count_finished(study), count_complete(study)
    measure = heading_of(study)
    if not complete:
        return SearchStatus(done, trials, stopped=done, measure=measure)
    best = search_best(study)
    fixed = [(called(trial), score_of(trial)) for trial in fixed_trials(study).values() if trial.values]
    fixed_name, fixed_value = max(fixed, key=lambda item: item[1], default=("", None))
    return SearchStatus(
        done, trials, score_of(best), called(best), fixed_value, fixed_name, done - complete, measure=measure
    )
