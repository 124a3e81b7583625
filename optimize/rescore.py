"""The best few trials of a search, measured again on samples that they were not chosen by.

Those are validation images that neither search nor holdout has, where there are as many as the search has; else the
search's images, ranked by other reference images. Broken images among them are left out: the search did without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from optuna.study import Study

from ..attribution import Composite
from ..pruning import NotFinite
from ..studies.best import RESCORED, candidates
from .candidate import Candidate, candidate_of
from .draws import NONE_SHARED, left_over, sharing, with_reference
from .prepare import SPLITS, Prepared
from .task import Task
from .trial import mean_evaluation

DRAWS = 2
"""Draws of other reference images, where no validation images are left."""

Measure = Callable[[Composite | Candidate], float]


def fresh_measure(prepared: Prepared, tasks: Sequence[Task]) -> tuple[str, Measure]:
    """Which samples the best are measured on, in words, and the AUC of a candidate on them.

    tasks: the study's own, one for each draw of its reference images.

    NotFinite (relevance that is not finite with these samples) is for the caller to handle.
    """
    rows = left_over(prepared.source)
    if rows is not None:
        fresh = prepared.source.read(SPLITS["search"], rows, True)
        others = [replace(task, search=fresh, variants={}) for task in tasks]
        return f"{len(fresh)} other validation images", lambda c: mean_evaluation(others, c).auc
    draws = range(len(tasks), len(tasks) + DRAWS)
    others = [with_reference(prepared, draw) for draw in draws]
    shared = sharing(prepared.source, draws)
    on = f"{DRAWS} other draws of the reference images" + ("" if shared == NONE_SHARED else f" ({shared})")
    return on, lambda c: mean_evaluation(others, c).auc


def is_rescored(study: Study, count: int) -> bool:
    """Whether the `count` best trials all have their new scores, so that no samples for them need be read."""
    scores = study.user_attrs.get(RESCORED, {})
    return all(str(trial.number) in scores for trial in candidates(study, count))


def rescore(study: Study, count: int, on: str, measure: Measure, advance: Callable[[int], None]) -> None:
    """Score the `count` best trials anew; what is there is not computed again.

    The search's best comes last: the scores count only once it has one (`best_trial`), so a run that is cut off
    among them leaves a study whose best is the search's.

    Args:
        on: what the scores are measured on, in words.
        advance: told after each trial.
    """
    scores = dict(study.user_attrs.get(RESCORED, {}))
    for trial in reversed(candidates(study, count)):
        if str(trial.number) not in scores:
            value: float | None = None  # of no use with other images, where its relevance is not finite
            with contextlib.suppress(NotFinite):
                value = measure(candidate_of(trial))
            scores[str(trial.number)] = {"auc": value, "on": on}
            study.set_user_attr(RESCORED, scores)
        advance(1)
