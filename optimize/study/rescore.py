"""The best few trials of a search, measured again on samples that they were not chosen by.

Those are validation images that neither search nor holdout has, where there are as many as the search has; else the
search's images, ranked by other reference images. Broken images among them are left out: the search did without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from ...attribution import Composite
from ...pruning import NotFinite
from ...studies.best import RESCORED, candidates, judged, kept_score, measure_of, score_of
from ..evaluation.candidate import Candidate, candidate_of
from ..evaluation.evaluate import mean_evaluation
from ..evaluation.phases import HOLDOUT, RESCORING
from ..evaluation.task import Samples, Task, Unseen
from .prepare import SPLITS, Prepared
from .resampling import NONE_SHARED, left_over, sharing, with_reference

DRAWS = 1
"""Draws of other reference images, where no validation images are left. Each costs a trial for each candidate: with two
of them scoring again took a quarter of a run of 20 trials."""

Measure = Callable[[Composite | Candidate], float]


def fresh_samples(prepared: Prepared) -> Samples | None:
    """The validation images that the best are measured on; None where there are too few (`left_over`)."""
    rows = left_over(prepared.source)
    return None if rows is None else prepared.source.read(SPLITS["search"], rows, True)


def fresh_measure(
    prepared: Prepared, tasks: Sequence[Task], fresh: Callable[[], Samples | None] | None = None
) -> tuple[str, Measure]:
    """Which samples the best are measured on, in words, and the score of a candidate on them.

    tasks: the study's own, one for each draw of its reference images. fresh: gives the validation images, read before.

    NotFinite (relevance that is not finite with these samples) is for the caller to handle.
    """
    samples = fresh_samples(prepared) if fresh is None else fresh()
    if samples is not None:
        return name_of_fresh(samples), lambda c: mean_evaluation(tasks, c, samples).score
    draws = range(len(tasks), len(tasks) + DRAWS)
    others = [with_reference(prepared, draw) for draw in draws]
    shared = sharing(prepared.source, draws)
    name = "draw" if DRAWS == 1 else "draws"
    on = f"{DRAWS} other {name} of the reference images" + ("" if shared == NONE_SHARED else f" ({shared})")
    return on, lambda c: mean_evaluation(others, c).score


def name_of_fresh(samples: Samples) -> str:
    """What re-scored trials say they were measured on."""
    return f"{len(samples)} other validation images"


def unseen_samples(study: Study, trial: Trial, count: int, holdout: Samples, fresh: Samples | None) -> list[Unseen]:
    """What a trial is to be measured on while its networks exist, so that nothing need be built again at the end.

    The fresh samples, if its AUC is among the `count` best so far: whatever re-scoring asks for was so when it ran. The
    holdout, if it is a fixed composite or better than all so far. That misses a trial which only re-scoring calls best;
    to measure all that it might call so costs more passes, of most trials of a search that gets better and better.

    fresh: see `fresh_samples`; not needed if `count` is 1, where nothing is scored again.
    """
    best = candidates(study, count)
    highest = score_of(best[0]) if best else -1.0
    found = [Unseen(HOLDOUT, holdout, -1.0 if "fixed" in trial.user_attrs else highest, HOLDOUT)]
    if count > 1 and fresh is not None:
        above = score_of(best[-1]) if len(best) == count else -1.0
        found.append(Unseen(name_of_fresh(fresh), fresh, above, RESCORING))
    return found


def is_rescored(study: Study, count: int) -> bool:
    """Whether the `count` best trials all have their new scores, so that no samples for them need be read."""
    scores = study.user_attrs.get(RESCORED, {})
    return all(str(trial.number) in scores for trial in candidates(study, count))


def rescore(study: Study, count: int, on: str, measure: Measure, advance: Callable[[int], None]) -> None:
    """Score the `count` best trials anew; what is there, or was measured on the trial's own networks, is not computed
    again.

    The search's best comes last: the scores count only once it has one (`best_trial`), so a run that is cut off
    among them leaves a study whose best is the search's.

    Args:
        on: what the scores are measured on, in words.
        advance: told after each trial.
    """
    scores = dict(study.user_attrs.get(RESCORED, {}))
    for trial in reversed(candidates(study, count)):
        if str(trial.number) not in scores:
            scores[str(trial.number)] = {measure_of(study): _score(trial, on, measure), "on": on}
            study.set_user_attr(RESCORED, scores)
        advance(1)


def _score(trial: FrozenTrial, on: str, measure: Measure) -> float | None:
    """A trial's score on the samples of this name; None where it is of no use with other images, since its relevance is
    not finite there."""
    kept = kept_score(trial, on)
    if kept is not None:
        return judged(kept)
    with contextlib.suppress(NotFinite):
        return measure(candidate_of(trial))
    return None
